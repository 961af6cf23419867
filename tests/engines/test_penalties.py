"""min_p and the repetition, frequency and presence penalties of --gen_kwargs, on every engine."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from helpers.instances import make_instance
from helpers.tiny_models import save_tiny
from lm_eval_aft.core.config import AFTConfig, samplings
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.records import Chat, Message, Request, Sampling
from lm_eval_aft.engines.hf.engine import HFEngine
from lm_eval_aft.engines.hf.sampling import RowSampler, threshold
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.model import AFTLM
from lm_eval_aft.storage.draft_store import generation_key

GREEDY = Sampling(0.0, 1.0, 0, 24)
ALL = {"min_p": 0.05, "repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": -0.25}
TEXTS = ["a", "a longer question about spiders", "the longest question of all, about spiders and spiders", "b"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["llama", "gemma"])
def engine(request, tmp_path_factory) -> HFEngine:
    folder = save_tiny(tmp_path_factory.mktemp(request.param), request.param)
    return HFEngine.load({"pretrained": folder, "dtype": "float32"}, HostArgs("auto", None, "cpu"))


def ask(engine, sampling: Sampling, samples: int = 1) -> list[Request]:
    prompts = [engine.renderer.encode(Chat((Message("user", text),))) for text in TEXTS]
    return [Request(prompt, sampling, 100 * i + j) for i, prompt in enumerate(prompts) for j in range(samples)]


def token_ids(engine: HFEngine, requests: list[Request]) -> list[tuple[int, ...]]:
    return [completion.token_ids for _, completion in sorted(engine.generate(requests), key=lambda pair: pair[0])]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_a_repetition_penalty_is_that_of_generate_alone_and_padded(engine, penalty, beams):
    requests = ask(engine, replace(GREEDY, repetition_penalty=penalty, beams=beams))
    expected = []
    for request in requests:
        prompt = torch.tensor([request.prompt.token_ids])
        settings = {"max_new_tokens": 24, "do_sample": False, "repetition_penalty": penalty, "num_beams": beams}
        output = engine.model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
        row = output[0, prompt.shape[1] :].tolist()
        end = next((number for number, token in enumerate(row) if token in engine.stop_ids), len(row) - 1)
        expected.append(tuple(row[: end + 1]))
    assert token_ids(engine, requests) == expected
    assert [token_ids(engine, [request])[0] for request in requests] == expected
    # The penalty changes the texts.
    assert expected != token_ids(engine, ask(engine, replace(GREEDY, beams=beams)))


@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty"])
def test_other_penalties_count_generated_tokens_only(engine, name):
    (request, *_) = ask(engine, replace(GREEDY, **{name: 1.5}))
    ids = list(request.prompt.token_ids)
    for _ in range(24):
        logits = engine.model(torch.tensor([ids])).logits[0, -1].detach().float()
        written = torch.tensor(ids[len(request.prompt.token_ids) :], dtype=torch.long)
        counts = torch.bincount(written, minlength=len(logits))
        logits -= 1.5 * (counts if name == "frequency_penalty" else counts.clamp(max=1))
        ids.append(int(logits.argmax()))
        if ids[-1] in engine.stop_ids:
            break
    assert token_ids(engine, [request]) == [tuple(ids[len(request.prompt.token_ids) :])]


def test_penalised_samples_do_not_depend_on_batch_order_or_company(engine):
    requests = ask(engine, Sampling(0.8, 0.95, 0, 24, **ALL), samples=3)
    together = token_ids(engine, requests)
    assert token_ids(engine, requests[::-1])[::-1] == together
    assert [token_ids(engine, [request])[0] for request in requests[:4]] == together[:4]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.9), (300, 0.99)])
@pytest.mark.parametrize("min_p", [0.01, 0.2, 1.0])
def test_min_p_keeps_what_transformers_keeps(min_p, top_k, top_p):
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = torch.randn(8, 500, generator=torch.Generator().manual_seed(1)) * 2
    kept = scores >= threshold(scores, Sampling(1.0, top_p, top_k, 1, min_p=min_p))
    expected = TopKLogitsWarper(top_k)(None, scores) if top_k else scores
    expected = TopPLogitsWarper(top_p)(None, expected) if top_p < 1 else expected
    assert torch.equal(kept, MinPLogitsWarper(min_p)(None, expected) > -torch.inf)


def test_rows_keep_their_own_counts_when_others_leave():
    logits = torch.tensor([0.0, 1.0, 0.9]).expand(3, 3)
    sampler = RowSampler(replace(GREEDY, presence_penalty=2.0, repetition_penalty=1.01), [0] * 3, CPU, [[1], [2], [0]])
    assert sampler.draw(logits).tolist() == [1, 1, 1]
    sampler.keep([0, 2])
    assert sampler.draw(logits[:2]).tolist() == [2, 2]
    sampler.keep([1])
    assert sampler.draw(logits[:1]).tolist() == [0]


def test_a_key_has_them_only_where_they_are_given(tiny_engine):
    (request, *_) = ask(tiny_engine, Sampling(0.7, 0.95, 0, 24))
    keys = {generation_key("f", request)}
    for name, value in ALL.items():
        keys.add(generation_key("f", replace(request, sampling=replace(request.sampling, **{name: value}))))
    assert len(keys) == 5
    greedy, penalised = GREEDY, replace(GREEDY, repetition_penalty=1.3)
    same = {generation_key("f", replace(request, sampling=replace(GREEDY, min_p=p))) for p in (0.0, 0.1)}
    assert same == {generation_key("f", replace(request, sampling=greedy))}
    assert generation_key("f", replace(request, sampling=penalised)) not in same


def test_gen_kwargs_apply_to_the_last_layer_only():
    drafts, final = samplings(AFTConfig(), {**ALL, "top_k": 7})
    assert (drafts.extras, drafts.top_k) == ({}, 0)
    assert (final.extras, final.top_k) == (ALL, 7)
    # The command line delivers whole numbers too.
    assert samplings(AFTConfig(), {"repetition_penalty": 1, "min_p": None})[1].extras == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("min_p", value) for value in (-0.1, 1.5, "much", float("nan"), True)),
        *(("repetition_penalty", value) for value in (0, -1, float("inf"))),
        *(("frequency_penalty", value) for value in (-2.5, 3)),
        *(("presence_penalty", value) for value in (-3, [1])),
    ],
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match=rf"{name}=.* is not allowed: {name} must be a number"):
        samplings(AFTConfig(), {name: value})


def test_a_server_gets_them_with_the_calls_of_the_last_layer(server, caplog):
    caplog.set_level(logging.WARNING)
    lm = AFTLM(engine="api", base_url=server.url, model="m", k=2, layers=1, cache="none", extra_body={"min_p": 0.2})
    request = make_instance("generate_until", {}, ("Why?", {"until": [], **ALL}), 0, ("t", 0, 1))
    lm.generate_until([request], disable_tqdm=True)
    *drafts, last = server.calls
    assert [{name: call.get(name) for name in ALL} for call in drafts] == [{**dict.fromkeys(ALL), "min_p": 0.2}] * 2
    assert {name: last[name] for name in ALL} == ALL
    assert "are not used" not in caplog.text


def test_a_vllm_server_gets_them_instead_of_neutral_values(server):
    server.models = (200, {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 64}]}, {})
    engine = load_engine("api", {"base_url": server.url, "model": "m"}, HostArgs())
    (request, *_) = ask(engine, Sampling(0.7, 1.0, 0, 9, min_p=0.3))
    list(engine.generate([request]))
    assert (server.calls[0]["min_p"], server.calls[0]["repetition_penalty"]) == (0.3, 1.0)

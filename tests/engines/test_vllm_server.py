"""The server engine against `vllm serve` on 127.0.0.1, with SmolLM2 in fp32 on the CPU."""

from __future__ import annotations

import importlib.util

import pytest
import requests

from helpers.vllm_server import Server
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import EngineError, PromptTooLong
from lm_eval_aft.core.records import Chat, Message, Request, Sampling
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.inference.generate import generate_or_reuse
from lm_eval_aft.storage.draft_store import SQLiteStore

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here"),
]
SAMPLED, GREEDY = Sampling(0.7, 0.95, 0, 24), Sampling(0.0, 1.0, 0, 24)
# More than one block of 128 tokens.
LONG = "Name three colours and explain each one in a sentence of its own. " * 14
TEXTS = ["What is 2+3?", "Name a city.", LONG, "Why is the sky blue?"]


@pytest.fixture(scope="module")
def server(smollm2, tmp_path_factory):
    running = Server(smollm2, tmp_path_factory.mktemp("server") / "log", "smollm2")
    try:
        running.wait()
        yield running
    finally:
        running.kill()


def load(server: Server, **args):
    settings = {"base_url": server.url, "model": "smollm2", "timeout_s": 120, "max_retries": 1, **args}
    return load_engine("api", settings, HostArgs())


@pytest.fixture(scope="module")
def engine(server, smollm2):
    return load(server, tokenizer=smollm2, extra_body={"return_token_ids": True})


@pytest.fixture(scope="module")
def hf_engine(smollm2):
    from lm_eval_aft.engines.hf.engine import HFEngine

    return HFEngine.load({"pretrained": smollm2, "dtype": "float32", "max_length": 2048}, HostArgs("auto", None, "cpu"))


def chats(texts=TEXTS) -> list[Chat]:
    return [Chat((Message("system", "Be brief."), Message("user", text))) for text in texts]


def ask(engine, sampling: Sampling = SAMPLED, samples: int = 3, questions=None) -> list[Request]:
    prompts = [engine.renderer.encode(chat) for chat in questions or chats()]
    return [Request(prompt, sampling, 2**62 + 100 * i + j) for i, prompt in enumerate(prompts) for j in range(samples)]


def complete(engine, requests_: list[Request]):
    pairs = sorted(engine.generate(requests_), key=lambda pair: pair[0])
    assert [position for position, _ in pairs] == list(range(len(requests_)))
    return [completion for _, completion in pairs]


def test_the_server_says_its_context_length(server):
    assert load(server).max_length == 2048


def test_a_seed_gives_its_text_alone_reversed_and_in_company(engine):
    together = [c.text for c in complete(engine, ask(engine))]
    # Samples of one prompt differ.
    assert len(set(together)) > 2 * len(TEXTS)
    assert [c.text for c in complete(engine, ask(engine)[::-1])][::-1] == together
    assert [complete(engine, [request])[0].text for request in ask(engine)[:3]] == together[:3]


def test_counts_are_those_of_the_tokens(engine, hf_engine):
    requests_ = ask(engine, Sampling(1.0, 0.9, 0, 60))
    completions = complete(engine, requests_)
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for request, completion in zip(requests_, completions, strict=True):
        # Our tokenizer counts as many.
        assert completion.prompt_tokens == request.prompt.prompt_tokens
        assert completion.generated_tokens == len(completion.token_ids) <= 60
        body = completion.token_ids[:-1] if completion.finish_reason == "stop" else completion.token_ids
        assert hf_engine.tokenizer.decode(list(body), skip_special_tokens=True) == completion.text
    # A prompt of more than one block, which is in the server's cache now.
    again = complete(engine, requests_[6:9])
    assert {c.prompt_tokens - c.computed_prompt_tokens for c in again} == {128}


def test_prompts_are_those_of_the_hf_engine_token_for_token(server, hf_engine):
    from lm_eval_aft.core.prompts import Template, aggregate_prompt, draft_prompt

    template = Template.load(None)
    for chat in [*chats(), Chat((Message("user", "Count."),), prefill="One, two,")]:
        draft = draft_prompt(template, hf_engine.renderer, chat, 2000, final=True).prompt
        merged = aggregate_prompt(template, hf_engine.renderer, chat, ["It is 5.", "6"], 2000, final=True).prompt
        for prompt in (draft, merged):
            rows = [message.to_dict() for message in prompt.chat.with_prefill]
            body = {"model": "smollm2", "messages": rows, "add_generation_prompt": not chat.prefill}
            if chat.prefill:
                body["continue_final_message"] = True
            reply = requests.post(f"http://127.0.0.1:{server.port}/tokenize", json=body, timeout=60).json()
            assert tuple(reply["tokens"]) == prompt.token_ids


def test_greedy_texts_are_those_of_the_hf_engine_a_prefill_included(engine, hf_engine):
    questions = [*chats(), Chat((Message("user", "Count to ten."),), prefill="One, two,")]
    ours, theirs = (
        complete(engine, ask(engine, GREEDY, 1, questions)),
        complete(hf_engine, ask(hf_engine, GREEDY, 1, questions)),
    )
    assert [c.text for c in ours] == [c.text for c in theirs]
    assert [c.token_ids for c in ours] == [c.token_ids for c in theirs]
    assert ours[-1].text.startswith(" three")


def test_without_seeds_samples_share_a_call(server, engine):
    free = Sampling(1.0, 1.0, 0, 24, seeded=False)
    shown, plain = (complete(lm, ask(lm, free, 4, chats(TEXTS[:1]))) for lm in (engine, load(server)))
    assert len({c.text for c in shown}) > 1
    assert all(c.generated_tokens == len(c.token_ids) for c in shown)
    assert all(c.generated_tokens > 0 and not c.token_ids for c in plain)
    assert [c.computed_prompt_tokens > 0 for c in shown] == [True, False, False, False]


def test_a_prompt_beyond_the_context_is_prompt_too_long(server):
    engine = load(server, max_length=100_000)
    with pytest.raises(PromptTooLong, match="does not fit the context of model=smollm2"):
        complete(engine, ask(engine, GREEDY, 1, chats(["word " * 4000])))


def test_unknown_models(server):
    with pytest.raises(EngineError, match="no model=nobody: it lists smollm2"):
        load(server, model="nobody")
    engine = load(server, model="nobody", check=False)
    with pytest.raises(EngineError, match="has no model=nobody"):
        complete(engine, ask(engine, GREEDY, 1))


def answered(server: Server) -> int:
    """How many calls a server has answered, by its own count."""
    lines = requests.get(f"http://127.0.0.1:{server.port}/metrics", timeout=20).text.splitlines()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total")))


def test_one_of_two_servers_killed_half_way_loses_nothing(server, engine, smollm2, tmp_path):
    second = Server(smollm2, tmp_path / "log", "smollm2")
    try:
        second.wait()
        urls, concurrency = [server.url, second.url], 3
        both = load(server, base_url=urls, tokenizer=smollm2, concurrency=concurrency)
        requests_ = ask(both, samples=8)
        expected = [text.text for text in complete(engine, requests_)]
        before, store, steps = answered(server), SQLiteStore(tmp_path / "drafts.sqlite"), []
        for step in generate_or_reuse(requests_, both, store):
            steps.append(step)
            if len(steps) == len(requests_) // 2:
                second.kill()
    finally:
        second.kill()
    texts = {position: completion.text for position, completion, reused in steps if not reused}
    assert [texts[position] for position in range(len(requests_))] == expected
    assert store.info().generations == len(requests_)
    info = both.info
    sent, moved = info["calls"], info["calls_moved"]
    assert info["servers_left_out"] == [second.url]
    assert 1 <= moved <= concurrency
    # Each call was answered once. Those that moved are the only ones that were sent twice.
    assert answered(server) - before == sent[server.url]
    assert sum(sent.values()) == len(requests_) + moved
    print(f"calls {list(sent.values())}, moved {moved}")


def test_propose_and_aggregate_and_a_server_that_dies(server, smollm2, tmp_path):
    """This test comes last, because it kills the server."""
    from helpers.instances import make_instance
    from lm_eval_aft.model import AFTLM

    settings = {"engine": "api", "base_url": server.url, "model": "smollm2", "tokenizer": smollm2, "max_retries": 1}
    model = AFTLM(**settings, k=3, layers=1, max_gen_toks=24, cache=str(tmp_path / "drafts.sqlite"), concurrency=4)
    contexts = [model.apply_chat_template([{"role": "user", "content": text}]) for text in TEXTS]

    def run(until: int):
        requests_ = [
            make_instance("generate_until", {"id": i}, (context, {"until": []}), 0, ("t", i, 1))
            for i, context in enumerate(contexts[:until])
        ]
        return model.generate_until(requests_, disable_tqdm=True)

    first = run(2)
    assert model.computed_usage.generations == 8
    assert run(2) == first
    # No call was repeated.
    assert model.computed_usage.generations == 8
    real, kept = model.store.put, []

    def put(key, completion):
        real(key, completion)
        kept.append(key)
        if len(kept) == 2:
            server.kill()

    model.store.put = put
    with pytest.raises(EngineError, match=r"stopped answering .* texts of this layer unfinished"):
        run(4)
    assert 2 <= len(kept) < 6
    assert set(model.store.get(kept)) == set(kept)
    # Generations in the store need no server.
    assert run(2) == first
    with pytest.raises(EngineError, match=r"base_url=http://127.0.0.1:\d+/v1 cannot be reached"):
        load(server)
    model.store.close()

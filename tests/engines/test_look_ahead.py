"""Proposed tokens of the hf engine: no text depends on them."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from helpers.instances import make_instance
from helpers.tiny_models import save_tiny
from lm_eval_aft.bundled import arith, locate
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Chat, Completion, LookAhead, Message, Question, Request, Sampling, Trace
from lm_eval_aft.engines.hf import decoding
from lm_eval_aft.engines.hf.engine import HFEngine
from lm_eval_aft.engines.hf.look_ahead import MOST_PROPOSED, PromptIndex, Proposer
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.inference.answers import AnswerFinder
from lm_eval_aft.inference.checkpoint import choose_template
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.inference.selection import Majority
from lm_eval_aft.model import AFTLM
from lm_eval_aft.storage.draft_store import NoStore
from lm_eval_aft.storage.traces import read_traces, trace_files

SAMPLED = Sampling(0.8, 0.95, 0, 40)
SAMPLINGS = {
    "greedy": Sampling(0.0, 1.0, 0, 40),
    "sampled": SAMPLED,
    "penalised": replace(SAMPLED, repetition_penalty=1.3, frequency_penalty=0.1, presence_penalty=0.5),
    "at a stop string": replace(SAMPLED, temperature=1.0, until=("e", "x")),
    "of few tokens": replace(SAMPLED, max_tokens=3),
}
TEXTS = ["a", "a longer question about spiders", "the longest question of all, well beyond the others", "b"]


def load(folder: str, **more) -> HFEngine:
    return HFEngine.load({"pretrained": folder, "dtype": "float32", **more}, HostArgs("auto", None, "cpu"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> HFEngine:
    return load(save_tiny(tmp_path_factory.mktemp("llama")), look_ahead=True)


def completions(engine: HFEngine, requests: list[Request], *, ahead: bool) -> list[Completion]:
    engine.looks_ahead = ahead
    found = dict(engine.generate(requests))
    return [found[position] for position in range(len(requests))]


def requests_of(engine: HFEngine, sampling: Sampling) -> list[Request]:
    prompts = [engine.renderer.encode(Chat((Message("user", text),))) for text in TEXTS]
    return [Request(prompt, sampling, 100 * i + j) for i, prompt in enumerate(prompts) for j in range(3)]


class TestProposer:
    def proposer(self, prompt: list[int], text: list[int]) -> Proposer:
        proposer = Proposer(PromptIndex(prompt))
        for token in text:
            proposer.add(token)
        return proposer

    def test_it_proposes_as_many_tokens_as_the_prompt_has_predicted_in_a_row(self):
        prompt = list(range(50))
        lengths = [len(self.proposer(prompt, prompt[20 : 20 + n]).propose(100)) for n in range(1, 25)]
        assert lengths == [min(n, MOST_PROPOSED, 29 - n) for n in range(24)]
        assert self.proposer(prompt, [20, 21, 22, 23]).propose(2) == [24, 25]

    def test_after_a_wrong_prediction_it_proposes_half_as_many_tokens_as_match(self):
        # The prompt predicts 9 after 5, and the text continues as the prompt does elsewhere.
        prompt = [1, 2, 3, 4, 5, 9, 0, 1, 2, 3, 4, 5, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 20, 21]
        assert self.proposer(prompt, [1, 2, 3, 4, 5, 6]).propose(9) == [7, 8, 20]

    def test_the_longest_match_decides(self):
        prompt = [1, 2, 3, 4, 5, 9, 2, 3, 4, 6, 9, 3, 4, 6]
        assert self.proposer(prompt, [1, 2, 3, 4]).propose(1) == [5]

    def test_the_most_frequent_continuation_follows_equal_matches(self):
        prompt = [1, 2, 3, 7, 1, 2, 3, 8, 0, 1, 2, 3, 8, 5]
        assert self.proposer(prompt, [1, 2, 3]).propose(2) == [8, 0]

    @pytest.mark.parametrize("text", [[], [3], [99], [1, 2, 3, 99], [3, 1], [1, 2, 3, 4, 5]])
    def test_none_without_a_right_prediction_or_a_continuation(self, text):
        assert self.proposer([1, 2, 3, 4, 5], text).propose(9) == []


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_no_proposal_changes_a_text(engine, monkeypatch, kind):
    """Proposals are right up to a random place, wrong from there, and longer than what is left of the text."""
    requests = requests_of(engine, SAMPLINGS[kind])
    plain = completions(engine, requests, ahead=False)
    rng, rest = random.Random(0), {}
    for completion in plain:
        for size in range(len(completion.token_ids)):
            rest.setdefault(completion.token_ids[:size], completion.token_ids)
    written: dict[int, list[int]] = {}

    def add(proposer: Proposer, token: int) -> None:
        written.setdefault(id(proposer), []).append(token)

    def propose(proposer: Proposer, most: int) -> list[int]:
        text = written[id(proposer)]
        right = rest.get(tuple(text), ())[len(text) :][: rng.randint(0, 6)]
        return [*right, *(rng.randrange(260) for _ in range(rng.randint(0, 3)))][:most]

    monkeypatch.setattr(Proposer, "add", add)
    monkeypatch.setattr(Proposer, "propose", propose)
    ahead = completions(engine, requests, ahead=True)
    assert [each.token_ids for each in ahead] == [each.token_ids for each in plain]
    assert [(each.text, each.finish_reason) for each in ahead] == [(each.text, each.finish_reason) for each in plain]
    for ours, expected in zip(ahead, plain, strict=True):
        assert ours.confidence.sum == pytest.approx(expected.confidence.sum, abs=1e-3)
    fewer = sum(each.generated_tokens - each.look_ahead.forward_passes for each in ahead)
    assert fewer > (0 if kind == "of few tokens" else len(requests))


@pytest.mark.parametrize(("logits", "longest"), [(12 * 260, 0), (2 * 12 * 260, 1), (4 * 12 * 260 + 1, 3)])
def test_the_logits_of_a_forward_pass_are_bounded(engine, monkeypatch, logits, longest):
    bounds = []

    def propose(_: Proposer, most: int) -> list[int]:
        bounds.append(most)
        return [5] * most

    monkeypatch.setattr(decoding, "PASS_LOGITS", logits)
    monkeypatch.setattr(Proposer, "propose", propose)
    requests = requests_of(engine, SAMPLED)
    ahead = completions(engine, requests, ahead=True)
    # Twelve rows take part in the first forward pass after the prompts.
    assert bounds[:12] == [longest] * 12
    assert [each.token_ids for each in ahead] == [each.token_ids for each in completions(engine, requests, ahead=False)]


def test_it_is_off_by_default(tmp_path, engine):
    assert not load(save_tiny(tmp_path)).looks_ahead
    assert engine.fingerprint == load(str(tmp_path)).fingerprint


def test_a_cache_that_cannot_forget_tokens_proposes_none(tmp_path, caplog):
    engine = load(save_tiny(tmp_path, "sliding"), look_ahead=True)
    assert not engine.looks_ahead
    assert "look_ahead=true has no effect: the cache of this model cannot forget tokens." in caplog.text


@pytest.mark.parametrize(
    ("engine_name", "value", "sentence"),
    [
        ("hf", "maybe", "look_ahead=maybe is not allowed: look_ahead must be true or false."),
        ("hf", 2, "look_ahead=2 is not allowed: look_ahead must be true or false."),
        ("api", True, "look_ahead= works with engine=hf only, not with engine=api: leave it out."),
        ("vllm", True, "look_ahead= works with engine=hf only, not with engine=vllm: leave it out."),
    ],
)
def test_bad_values_are_refused_in_a_sentence(tmp_path, engine_name, value, sentence):
    with pytest.raises(ConfigError) as caught:
        load_engine(engine_name, {"pretrained": "bundled:aft", "look_ahead": value}, HostArgs(1, None, "cpu"))
    assert sentence in str(caught.value)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[bool, tuple[dict, list[Trace]]]:
    """What the results hold, and the traces, with proposals and without."""
    arguments = {"pretrained": str(locate("bundled:aft")), "look_ahead": True}
    engine = load_engine("hf", arguments, HostArgs("auto", None, "cpu"))
    problems = [problem.question for problem, _ in itertools.islice(arith.problems("test", 0), 6)]
    settings = {"until": [], "temperature": 0.0, "do_sample": False, "max_gen_toks": 24}
    runs = {}
    for ahead in (True, False):
        engine.looks_ahead = ahead
        folder = tmp_path_factory.mktemp("traces")
        config = AFTConfig(k=5, layers=2, record=str(folder), grade_drafts=False)
        lm = AFTLM.around(engine, config, choose_template(config, arguments), NoStore(), "aft")
        lm.generate_until([make_instance("generate_until", {}, (text, settings)) for text in problems])
        traces = [trace for file in trace_files(folder) for trace in read_traces(file)]
        runs[ahead] = lm.get_model_info()["aft"], traces
    return runs


class TestBundled:
    """A model that repeats its drafts."""

    def test_texts_are_equal_in_every_layer(self, runs):
        (_, ahead), (_, plain) = runs[True], runs[False]
        assert len(ahead) == len(plain) == 6
        for ours, expected in zip(ahead, plain, strict=True):
            completions = [draft.completion for draft in ours.drafts]
            assert [each.token_ids for each in completions] == [draft.completion.token_ids for draft in expected.drafts]
            assert [draft.seed for draft in ours.drafts] == [draft.seed for draft in expected.drafts]
            assert all(isinstance(each.look_ahead, LookAhead) for each in completions)

    def test_aggregated_texts_take_part_in_few_forward_passes_and_drafts_in_one_a_token(self, runs):
        info, traces = runs[True]
        rows = info["look_ahead"]
        for layer, row in enumerate(rows):
            texts = [draft.completion for trace in traces for draft in trace.layer(layer)]
            assert row == {
                "generated_tokens": sum(text.generated_tokens for text in texts),
                "forward_passes": sum(text.look_ahead.forward_passes for text in texts),
                "proposed_tokens": sum(text.look_ahead.proposed_tokens for text in texts),
                "accepted_tokens": sum(text.generated_tokens - text.look_ahead.forward_passes for text in texts),
            }
            assert row["accepted_tokens"] <= row["proposed_tokens"]
        passes = [row["forward_passes"] / row["generated_tokens"] for row in rows]
        assert passes[0] == pytest.approx(1, abs=0.1)
        assert max(passes[1:]) <= 0.6

    def test_a_run_without_proposals_counts_none(self, runs):
        info, traces = runs[False]
        assert info["look_ahead"] == []
        assert "look_ahead" not in traces[0].to_json()
        assert all(draft.completion.look_ahead is None for trace in traces for draft in trace.drafts)

    def test_a_selected_copy_counts_no_forward_pass(self):
        engine = load_engine("hf", {"pretrained": "bundled:aft", "look_ahead": True}, HostArgs("auto", None, "cpu"))
        sampling = Sampling(0.7, 0.95, 0, 24)
        question = Question(Chat((Message("user", "15 3 1 2 make 13"),)), sampling, sampling)
        config = AFTConfig(k=3, layers=1, strategy="majority", vote_regex=r"= (\d+)$")
        selector = Majority(AnswerFinder(config.vote_regex))
        template = Template.load(None)
        (trace,) = propose_and_aggregate([question], engine, template, config, NoStore(), selector=selector, quiet=True)
        assert all(draft.completion.look_ahead for draft in trace.layer(0))
        assert trace.layer(1)[0].completion.look_ahead is None

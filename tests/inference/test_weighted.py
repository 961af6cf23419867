"""``strategy=weighted``: votes that count more if the model was surer, and stored drafts without confidence."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.paths import ROOT
from helpers.scripted_runs import SAMPLED, TEMPLATE, make_drafts, make_question
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import ConfigError, EngineError
from lm_eval_aft.core.records import Completion, Confidence, Draft, Request, Trace
from lm_eval_aft.engines.hf.engine import HFEngine
from lm_eval_aft.engines.scripted import ScriptedEngine
from lm_eval_aft.inference.answers import AnswerFinder
from lm_eval_aft.inference.generate import generate_or_reuse
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.inference.selection import Candidates, Choice, Majority, load_selector
from lm_eval_aft.inference.weighted_vote import Weighted
from lm_eval_aft.model import AFTLM
from lm_eval_aft.storage.draft_store import NoStore, SQLiteStore, Store
from lm_eval_aft.storage.traces import read_traces, write_traces

QUESTION = make_question("q")
FINDER = AnswerFinder(r"<(\w)>")
VERSION_1 = ROOT / "tests" / "fixtures" / "version_0_1_0" / "aft" / "traces" / "drafts.sqlite"
REGEX = r"(\w)\W*$"


def sure(numbers: Sequence[float | None], *texts: str, seeds: Sequence[int] = ()) -> list[Draft]:
    """Drafts whose mean log-probabilities are these numbers; None gives a draft no confidence."""
    return [
        replace(draft, completion=replace(draft.completion, confidence=number and Confidence(-9, number, -7, -8)))
        for draft, number in zip(make_drafts(*texts, seeds=seeds), numbers, strict=True)
    ]


def choose(drafts: Sequence[Draft], selector: Majority | None = None) -> Choice:
    (choice,) = (selector or Weighted(FINDER)).select([Candidates(QUESTION, drafts)])
    return choice


class TestVote:
    def test_a_sure_text_outweighs_two_unsure_ones(self):
        choice = choose(sure([-2.0, -2.0, -0.5], "<a>", "<a>", "<b>"))
        assert choice.index == 2
        assert choice.scores == pytest.approx([2 * math.exp(-1.5), 2 * math.exp(-1.5), 1.0])

    def test_two_texts_that_are_sure_enough_win(self):
        assert choose(sure([-1.0, -1.0, -0.5], "<a>", "<a>", "<b>")).index == 0

    @pytest.mark.parametrize(("name", "winner"), [("sum", 1), ("mean", 0), ("tail", 1), ("window", 0)])
    def test_each_number_can_be_the_weight(self, name: str, winner: int):
        numbers = [Confidence(-5, -1, -5, -1), Confidence(-1, -5, -1, -5)]
        drafts = [
            replace(draft, completion=replace(draft.completion, confidence=confidence))
            for draft, confidence in zip(make_drafts("<a>", "<b>"), numbers, strict=True)
        ]
        config = AFTConfig(strategy="weighted", confidence=name, vote_regex=r"<(\w)>", layers=1)
        assert choose(drafts, load_selector(config, NoStore(), HostArgs())).index == winner

    def test_the_default_is_the_mean(self):
        config = AFTConfig.split({"strategy": "weighted", "vote_regex": "x"})[0]
        assert config.layers == 1
        assert load_selector(config, NoStore(), HostArgs()) == Weighted(AnswerFinder("x"), confidence="mean")

    def test_texts_of_tiny_probability_are_compared_too(self):
        choice = choose(sure([-90_000.0, -5_000.0, -4_999.0], "<a>", "<b>", "<c>"))
        assert choice.scores == pytest.approx([0.0, math.exp(-1), 1.0])

    def test_a_text_without_an_answer_has_no_vote_and_needs_no_confidence(self):
        choice = choose(sure([-0.01, None, -9.0, -8.0], "none", "none", "<a>", "<b>"))
        assert choice.scores == pytest.approx([0.0, 0.0, math.exp(-1), 1.0])

    def test_without_answers_seeds_draw(self):
        assert choose(sure([-1.0, -1.0], "none", "none", seeds=[2, 1])) == Choice(1, (0.0, 0.0))

    def test_a_text_with_an_answer_needs_a_confidence(self):
        with pytest.raises(ConfigError, match=r"2 of 3 texts of a question have no confidence .*confidence=mean"):
            choose(sure([None, -1.0, None], "<a>", "<a>", "<b>"))

    @given(
        st.lists(st.sampled_from(["<a>", "<b>", "<c>", "none"]), min_size=1, max_size=9),
        st.floats(-5_000, -1e-9),
        st.randoms(use_true_random=False),
    )
    def test_with_equal_weights_it_is_majority(self, texts: list[str], number: float, source: Any):
        seeds = source.sample(range(100), len(texts))
        drafts = sure([number] * len(texts), *texts, seeds=seeds)
        assert choose(drafts) == choose(drafts, Majority(FINDER))

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(-30, -1e-9)), min_size=1, max_size=8), st.randoms())
    def test_the_order_of_the_texts_does_not_matter(self, parts: list[tuple[str, float]], source: Any):
        drafts = sure([number for _, number in parts], *(f"<{letter}>" for letter, _ in parts))
        shuffled = source.sample(drafts, len(drafts))
        assert drafts[choose(drafts).index] == shuffled[choose(shuffled).index]

    def test_a_task_without_answers_is_refused(self):
        with pytest.raises(ConfigError, match="strategy=weighted cannot find the answers of t"):
            choose(sure([-1.0], "a"), Weighted())


def answer(engine: Any, store: Store, **settings: Any) -> list[Trace]:
    config = AFTConfig.split({"k": 3, "layers": 1, "vote_regex": REGEX, "strategy": "weighted", **settings})[0]
    short = replace(SAMPLED, max_tokens=8)
    questions = [replace(make_question(text), drafts=short, final=short) for text in ("a?", "b?")]
    selector = load_selector(config, store, HostArgs())
    return propose_and_aggregate(questions, engine, TEMPLATE, config, store, selector=selector, quiet=True)


def confidences(traces: list[Trace]) -> list[Confidence | None]:
    return [draft.completion.confidence for trace in traces for draft in trace.drafts]


def assert_close(found: list[Confidence | None], expected: list[Confidence | None]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        assert other is not None
        assert (one.sum, one.mean, one.tail, one.window) == pytest.approx(
            (other.sum, other.mean, other.tail, other.window), rel=1e-4, abs=1e-4
        )


class Silent:
    """An engine that writes the texts of another one, and gives them no confidence."""

    def __init__(self, engine: HFEngine, scorer: Any = "its own") -> None:
        self.engine, self.scored = engine, 0
        self.scorer = self if scorer == "its own" else scorer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        for position, completion in self.engine.generate(requests):
            yield position, replace(completion, confidence=None)

    def token_logprobs(self, prompts: Any, texts: Any, *, quiet: bool = False) -> Iterator[tuple[int, list[float]]]:
        self.scored += len(texts)
        return self.engine.scorer.token_logprobs(prompts, texts, quiet=quiet)


class TestStoredDrafts:
    def fill(self, engine: HFEngine, store: Store) -> list[Trace]:
        """Generate the drafts without confidence; ``strategy=majority`` needs none."""
        return answer(Silent(engine), store, strategy="majority")

    def test_they_are_scored_once_and_keep_their_confidence(self, tiny_engine: HFEngine, tmp_path: Path):
        expected = answer(tiny_engine, NoStore())
        with closing(SQLiteStore(tmp_path / "s.sqlite")) as store:
            assert confidences(self.fill(tiny_engine, store)) == [None] * 8
            engine = Silent(tiny_engine)
            traces = answer(engine, store)
            assert engine.scored == 6
            assert_close(confidences(traces), confidences(expected))
            assert [trace.answer for trace in traces] == [trace.answer for trace in expected]
            assert all(trace.computed_usage.generated_tokens == 0 for trace in traces)
        with closing(SQLiteStore(tmp_path / "s.sqlite")) as store:
            again = Silent(tiny_engine)
            assert confidences(answer(again, store)) == confidences(traces)
            assert again.scored == 0
            assert store.verify().damaged == ()
            assert store.info().generations == 6

    def test_a_file_of_version_1_is_scored_each_time_and_not_changed(self, tiny_engine: HFEngine, tmp_path: Path):
        path = tmp_path / "drafts.sqlite"
        shutil.copy(VERSION_1, path)
        with closing(SQLiteStore(path)) as store:
            self.fill(tiny_engine, store)
        before = path.read_bytes()
        for _ in range(2):
            engine = Silent(tiny_engine)
            with closing(SQLiteStore(path)) as store:
                answer(engine, store)
            assert engine.scored == 6
            assert path.read_bytes() == before

    def test_nothing_is_scored_for_a_strategy_that_needs_no_confidence(self, tiny_engine: HFEngine, tmp_path: Path):
        store, engine = SQLiteStore(tmp_path / "s.sqlite"), Silent(tiny_engine)
        self.fill(tiny_engine, store)
        answer(engine, store, strategy="majority")
        assert engine.scored == 0
        # An explicit number keeps the confidence for later votes.
        traces = answer(engine, store, strategy="majority", confidence="tail")
        assert engine.scored == 6
        assert None not in confidences(traces)
        store.close()

    def test_an_engine_that_cannot_score_refuses(self, tiny_engine: HFEngine, tmp_path: Path):
        store = SQLiteStore(tmp_path / "s.sqlite")
        self.fill(tiny_engine, store)
        with pytest.raises(EngineError, match="6 stored texts have no confidence, and this engine cannot score them"):
            answer(Silent(tiny_engine, scorer=None), store)
        store.close()

    def test_a_resumed_run_keeps_them(self, tiny_engine: HFEngine, tmp_path: Path):
        store = SQLiteStore(tmp_path / "s.sqlite")
        whole = answer(tiny_engine, store)
        resumed = answer(tiny_engine, store)
        assert confidences(resumed) == confidences(whole)
        assert [trace.scores for trace in resumed] == [trace.scores for trace in whole]
        store.close()

    def test_an_empty_stored_text_needs_no_score(self, tmp_path: Path):
        class Empty(ScriptedEngine):
            def complete(self, request: Request, shared: bool) -> Completion:
                return Completion("", (), "stop", 1, 1, 1)

        store, engine = SQLiteStore(tmp_path / "s.sqlite"), Empty()
        prompt = engine.renderer.encode(QUESTION.chat)
        request = Request(prompt, SAMPLED, 7, confidence=True)
        for _ in range(2):
            ((_, completion, _),) = generate_or_reuse([request], engine, store)
            assert completion.confidence is None
        store.close()


def test_traces_keep_the_confidence_of_each_text(tiny_engine: HFEngine, tmp_path: Path):
    traces = answer(tiny_engine, NoStore())
    assert None not in confidences(traces)
    # The answer is a copy of one of the texts.
    assert all(trace.drafts[-1].completion.confidence in confidences([trace])[:-1] for trace in traces)
    settings = {"k": 3, "layers": 1}
    write_traces(str(tmp_path), settings, traces)
    assert [trace.drafts for trace in read_traces(tmp_path)] == [trace.drafts for trace in traces]


class TestEngines:
    def model(self, engine: ScriptedEngine, **settings: Any) -> AFTLM:
        config = AFTConfig.split({"engine": "scripted", "vote_regex": REGEX, **settings})[0]
        return AFTLM.around(engine, config, TEMPLATE, NoStore(), "m")

    @pytest.mark.parametrize(
        ("settings", "name"),
        [({"strategy": "weighted"}, "strategy=weighted"), ({"confidence": "sum"}, "confidence=sum")],
    )
    def test_one_that_gives_no_log_probabilities_is_refused_before_the_run(self, settings: dict[str, Any], name: str):
        settings = {"strategy": "majority", **settings}
        with pytest.raises(
            ConfigError, match=f"^{name} needs the log-probabilities of texts, and the engine of m gives none"
        ):
            self.model(ScriptedEngine(), **settings)

    def test_a_script_may_give_them(self):
        engine = ScriptedEngine(logprobs=lambda request: [-1.0, -float(request.seed % 7)])
        self.model(engine, strategy="weighted")
        traces = answer(engine, NoStore())
        for trace in traces:
            for draft in trace.layer(0):
                assert draft.completion.confidence == Confidence.of([-1.0, -float(draft.seed % 7)])


def test_settings_of_other_runs_keep_their_names(tiny_engine: HFEngine):
    config = AFTConfig.split({})[0]
    settings = AFTLM.around(tiny_engine, config, TEMPLATE, NoStore(), "m").get_model_info()["aft"]
    assert "confidence" not in settings

"""Diagnostics of made traces whose fault is known: the answers copy at random, select, or break right votes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.made_runs import log_targets as log
from helpers.made_traces import trace_of_texts as trace
from lm_eval_aft.analysis.diagnosis import Diagnostics, diagnose_traces
from lm_eval_aft.analysis.grading import grade
from lm_eval_aft.analysis.report.diagnosis_tables import diagnostics_panel, panel_markdown, panel_text
from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.cli import aft
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.records import Trace
from lm_eval_aft.inference.extraction import choose_extraction
from lm_eval_aft.storage.traces import read_traces, write_traces

GSM8K = choose_extraction("gsm8k")


def diagnosed(folder: Path, traces: list[Trace], gold: str = "7", **options: object) -> Diagnostics:
    """The diagnostics of one run whose gold answers are all the same."""
    log(folder, {each.question.doc_id: gold for each in traces}, traces[0].question.task)
    (diagnosis,) = diagnose_traces(traces, read_entries([folder]), **options)
    return diagnosis.diagnostics


def test_a_text_is_graded_by_its_answer_and_by_what_it_repeats():
    graded = grade(trace(["it is 7", "it  is\n8", "no idea", " "], ["it is 8", "so 7"], ["it is 8"]), GSM8K, "7")
    assert [text.answer for text in graded.texts] == ["7", "8", None, None, "8", "7", "8"]
    assert [text.right for text in graded.texts] == [True, False, False, False, False, True, False]
    assert (graded.vote, graded.right, graded.fixed, graded.broken) == (0.5, False, False, False)
    middle, last = graded.layer(1)[0], graded.texts[-1]
    assert (graded.copies(middle, 0), graded.copies(last, 1), graded.copies(last, 0)) == ((1,), (0,), (1,))
    assert [text.empty for text in graded.layer(0)] == [False, False, False, True]


@pytest.mark.parametrize(
    ("drafts", "answer", "fixed", "broken"),
    [
        (["8", "8", "7"], "7", True, False),
        (["7", "7", "8"], "8", False, True),
        # The vote is tied.
        (["7", "8"], "7", False, False),
        (["7", "8"], "8", False, False),
        (["8", "8"], "8", False, False),
        (["", ""], "7", True, False),
        (["7", ""], "", False, True),
    ],
)
def test_fixed_and_broken_need_a_vote_that_is_sure(drafts: list[str], answer: str, fixed: bool, broken: bool):
    graded = grade(trace(drafts, [answer]), GSM8K, "7")
    assert (graded.fixed, graded.broken) == (fixed, broken)


def test_without_a_gold_answer_nothing_is_right_or_wrong():
    graded = grade(trace(["7", "8"], ["7"]), GSM8K)
    assert (graded.right, graded.vote, graded.fixed, graded.broken) == (None, None, False, False)
    assert [text.answer for text in graded.texts] == ["7", "8", "7"]


def test_overlap_is_the_share_of_the_texts_word_triples():
    graded = grade(trace(["a b c d e", "x y"], ["a b c d z", "x y", ""], ["x q"]), None)
    first, second, empty = graded.layer(1)
    assert first.overlaps == (2 / 3, 0)
    # Texts of fewer than three words are compared by single words.
    assert second.overlaps == (0, 1)
    assert empty.overlaps == (0, 0)
    assert graded.texts[-1].overlaps == (0, 0.5, 0)


def test_layers_are_counted_one_by_one(tmp_path: Path):
    traces = [
        trace(["is 7", "is 7", "is 8", ""], ["so is 7", "so is 8", "so is 9", "so is 9"], ["then it is 8"], doc=0),
        trace(["is 1", "is 2", "is 7", "what"], ["is 7", "is 7", "is 7", "is 1"], ["then it is 7"], doc=1, cut=True),
    ]
    diagnostics = diagnosed(tmp_path, [traces[0], *traces[1:]])
    drafts, hidden, answer = diagnostics.by_layer
    assert (diagnostics.k, diagnostics.layers, diagnostics.questions, diagnostics.judged) == (4, 2, 2, 2)
    assert [layer.mean.estimate for layer in diagnostics.by_layer] == [3 / 8, 1 / 2, 1 / 2]
    assert [layer.majority.estimate for layer in diagnostics.by_layer] == pytest.approx([(1 + 1 / 3) / 2, 1 / 2, 1 / 2])
    assert [layer.oracle.estimate for layer in diagnostics.by_layer] == [1, 1, 1 / 2]
    assert [layer.distinct_answers for layer in diagnostics.by_layer] == [2.5, 2.5, 1]
    assert [layer.distinct_texts for layer in diagnostics.by_layer] == [3.5, 2.5, 1]
    assert [layer.duplicates for layer in diagnostics.by_layer] == [1, 3, 0]
    assert [layer.silent for layer in diagnostics.by_layer] == [2, 0, 0]
    assert (drafts.empty, drafts.cut, hidden.cut, answer.cut) == (1, 4, 4, 1)
    assert [layer.generated_tokens for layer in diagnostics.by_layer] == [13 / 8, 20 / 8, 4]


def test_a_step_says_what_it_copied_and_what_it_chose(tmp_path: Path):
    traces = [
        # Right, against the vote.
        trace(["is 7", "is 8", "is 8"], ["is  7"], doc=0),
        # Wrong, against the vote.
        trace(["is 7", "is 7", "is 8"], ["is 8"], doc=1),
        # Not disputed, and a copy of three equal drafts.
        trace(["is 9", "is 9", "is 9"], ["is 9"], doc=2),
        # The vote is tied.
        trace(["is 7", "is 9", "is 8"], ["it is surely 7"], doc=3),
    ]
    diagnostics = diagnosed(tmp_path, traces)
    (step,) = diagnostics.readings
    assert (step.layer, step.read, step.texts, step.copies, step.copy_rate) == (1, 0, 4, 3, 0.75)
    assert step.copies_by_position == pytest.approx((1 + 1 / 3, 1 / 3, 1 + 1 / 3))
    assert step.disputed == 3
    assert step.selected.estimate == pytest.approx(2 / 3)
    assert step.random.estimate == pytest.approx((1 / 3 + 2 / 3 + 1 / 3) / 3)
    assert step.majority.estimate == pytest.approx((0 + 1 + 1 / 3) / 3)
    vote, first, mean = diagnostics.changes
    assert (vote.fixed, vote.broken, vote.tied) == (1, 1, 1)
    assert (first.fixed, first.broken) == (0, 1)
    assert (mean.fixed, mean.broken) == pytest.approx((2 / 3 + 2 / 3, 2 / 3))
    assert [(s.right_drafts, s.questions, s.answer) for s in diagnostics.vote_shares] == [
        (0, 1, 0),
        (1, 2, 1),
        (2, 1, 0),
    ]
    assert [s.majority for s in diagnostics.vote_shares] == pytest.approx([0, 1 / 6, 1])


def test_net_fixed_is_the_gain_over_the_mean_draft(tmp_path: Path):
    rng = random.Random(5)
    traces = [trace([rng.choice("789") for _ in range(5)], [rng.choice("789")], doc=doc) for doc in range(200)]
    diagnostics = diagnosed(tmp_path, traces)
    drafts, answer = diagnostics.by_layer
    _, first, mean = diagnostics.changes
    assert (mean.fixed - mean.broken) / 200 == pytest.approx(answer.mean.estimate - drafts.mean.estimate)
    right_first = sum(each.drafts[0].completion.text == "7" for each in traces) / 200
    assert (first.fixed - first.broken) / 200 == pytest.approx(answer.mean.estimate - right_first)


def test_the_gap_closed_lies_between_the_vote_and_the_oracle(tmp_path: Path):
    """On 50 questions of 100 the vote is wrong and the oracle is right: the gap. Answers are right on 30 of these."""
    traces = [trace(["8", "8", "7"], ["7" if doc < 30 else "8"], doc=doc) for doc in range(50)]
    traces += [trace(["7", "7", "8"], ["7"], doc=doc) for doc in range(50, 100)]
    gap = diagnosed(tmp_path, traces).gap_closed
    assert gap.estimate == pytest.approx(0.6)
    assert gap.low < 0.5 < 0.7 < gap.high
    against_vote, _, _ = diagnostics_panel(diagnosed(tmp_path, traces)).findings
    assert against_vote.startswith("Against the majority vote 30 fixed, 0 broken. It closes 60.0% [")
    assert against_vote.endswith("] of the gap between the vote and the oracle.")
    # A vote as good as the oracle leaves no gap.
    assert diagnosed(tmp_path / "none", [trace(["7", "7"], ["7"], doc=doc) for doc in range(9)]).gap_closed is None


def run_of(choose, questions: int = 600, k: int = 5) -> list[Trace]:
    """Traces with 40% right drafts and scattered wrong ones. ``choose`` makes the answer from the drafts."""
    rng, traces = random.Random(1), []
    for doc in range(questions):
        numbers = [7 if rng.random() < 0.4 else rng.choice([8, 9, 10, 11]) for _ in range(k)]
        drafts = [f"way {i} of {doc}, so the answer is {number}" for i, number in enumerate(numbers)]
        traces.append(trace(drafts, [choose(drafts, numbers, rng)], doc=doc))
    return traces


def copy_at_random(drafts: list[str], numbers: list[int], rng: random.Random) -> str:
    """Four of five answers copy a random draft word for word. The fifth says the same in other words."""
    spot = rng.randrange(len(drafts))
    return drafts[spot] if rng.random() < 0.8 else f"All things weighed up it must be {numbers[spot]}"


def test_an_aggregator_that_copies_at_random_is_found_out(tmp_path: Path):
    diagnostics = diagnosed(tmp_path, run_of(copy_at_random))
    (step,) = diagnostics.readings
    assert 0.72 < step.copy_rate < 0.92
    assert max(step.copies_by_position) < 1.5 * min(step.copies_by_position)
    # The answer is as good as a random draft, and worse than the vote.
    assert step.random.low < step.selected.estimate < step.random.high
    assert step.selected.high < step.majority.estimate
    vote = diagnostics.changes[0]
    assert vote.broken > 2 * vote.fixed
    assert step.nearest_overlap > step.mean_overlap + 0.2
    findings = " ".join(diagnostics_panel(diagnostics).findings)
    assert f"{step.copy_rate:.1%} of the answers repeat a draft word for word" in findings


def test_an_aggregator_that_selects_differs_from_one_that_copies(tmp_path: Path):
    diagnostics = diagnosed(
        tmp_path, run_of(lambda drafts, numbers, rng: f"Best is {7 if 7 in numbers else numbers[0]}")
    )
    (step,) = diagnostics.readings
    assert (step.copies, step.selected.estimate, diagnostics.changes[0].broken) == (0, 1, 0)
    assert all(share.answer == 1 for share in diagnostics.vote_shares if share.right_drafts)


def test_a_habit_about_position_shows(tmp_path: Path):
    diagnostics = diagnosed(tmp_path, run_of(lambda drafts, numbers, rng: drafts[1 + rng.randrange(4)]))
    assert diagnostics.readings[0].copies_by_position[0] == 0
    assert min(diagnostics.readings[0].copies_by_position[1:]) > 100


def test_later_layers_are_also_held_against_the_drafts(tmp_path: Path):
    traces = [trace(["is 7", "is 8"], ["is 8", "is 7 or 8"], ["is 7"], doc=0)]
    readings = diagnosed(tmp_path, traces).readings
    assert [(r.layer, r.read) for r in readings] == [(1, 0), (2, 1), (2, 0)]
    assert [r.copies_by_position for r in readings] == [(0, 1), (0, 0), (1, 0)]
    assert [r.disputed for r in readings] == [1, 0, 1]
    assert readings[-1].nearest_overlap is None
    assert readings[1].selected is None


def test_essays_are_diagnosed_without_accuracies(tmp_path: Path):
    diagnostics = diagnosed(tmp_path, [trace(["one text", "two"], ["one text"], task="essay")])
    assert (diagnostics.extraction, diagnostics.judged, diagnostics.changes, diagnostics.vote_shares) == ("", 0, (), ())
    assert diagnostics.by_layer[0].mean is None
    assert diagnostics.readings[0].copies == 1
    assert "nothing is right or wrong, since texts are not graded" in panel_text(diagnostics_panel(diagnostics))


def test_a_regex_finds_answers_where_the_task_has_none(tmp_path: Path):
    diagnostics = diagnosed(tmp_path, [trace(["(A)", "(B)"], ["(A)"], task="arc")], gold="(A)", regex=r"\(([A-D])\)")
    assert (diagnostics.judged, diagnostics.by_layer[1].mean.estimate) == (1, 1)


def test_a_plain_answer_has_layers_but_no_readings(tmp_path: Path):
    diagnostics = diagnosed(tmp_path, [trace(["is 7"])])
    assert (
        diagnostics.k,
        diagnostics.layers,
        len(diagnostics.by_layer),
        diagnostics.readings,
        diagnostics.changes,
    ) == (1, 0, 1, (), ())
    assert "100.0" in panel_text(diagnostics_panel(diagnostics))


def test_questions_without_gold_count_for_copies_alone(tmp_path: Path):
    traces = [trace(["is 7", "is 8"], ["is 8"], doc=doc) for doc in (0, 1)]
    log(tmp_path, {0: "7"})
    (diagnosis,) = diagnose_traces(traces, read_entries([tmp_path]))
    numbers = diagnosis.diagnostics
    assert (numbers.questions, numbers.judged, numbers.readings[0].copies, numbers.readings[0].disputed) == (2, 1, 2, 1)
    assert [graded.right for graded in diagnosis.traces] == [False, None]


def test_runs_are_told_apart_and_equal_questions_count_once(tmp_path: Path):
    traces = [trace(["is 7", "is 8"], ["is 8"], seed=seed) for seed in (1, 2, 1)]
    log(tmp_path, {0: "7"})
    diagnoses = diagnose_traces(traces, read_entries([tmp_path]))
    assert [each.diagnostics.questions for each in diagnoses] == [1, 1]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Traces of a copying run and the gold answers of its questions."""
    traces = run_of(copy_at_random, questions=40)
    write_traces(str(tmp_path / "traces"), traces[0].settings, traces)
    log(tmp_path / "run", {each.question.doc_id: "7" for each in traces})
    return tmp_path


def test_the_command_prints_text_markdown_and_json(out: Path):
    runner = CliRunner()
    text = runner.invoke(aft, ["diagnose", str(out)], catch_exceptions=False)
    assert text.exit_code == 0
    for words in ("gsm8k: model, k=5, layers=1", "40 questions, 40 with a gold answer", "copies by position", "4 of 5"):
        assert words in text.output
    markdown = runner.invoke(aft, ["diagnose", str(out), "--format", "markdown"], catch_exceptions=False)
    assert "| against | fixed | broken | net | tied |" in markdown.output
    data = json.loads(runner.invoke(aft, ["diagnose", str(out), "--format", "json"], catch_exceptions=False).output)
    (direct,) = diagnose_traces(read_traces(out), read_entries([out]))
    assert data[0]["readings"][0]["copies"] == direct.diagnostics.readings[0].copies
    assert data[0]["by_layer"][0]["mean"]["estimate"] == direct.diagnostics.by_layer[0].mean.estimate


def test_a_task_that_was_not_run_is_one_sentence(out: Path):
    with pytest.raises(ConfigError, match="no traces of --task poem"):
        CliRunner().invoke(aft, ["diagnose", str(out), "--task", "poem"], catch_exceptions=False)


def test_markdown_cells_cannot_break_the_table(tmp_path: Path):
    diagnostics = diagnosed(tmp_path, [trace(["is 7", "is 8"], ["is 8"], model="a|b<script>")])
    markdown = panel_markdown(diagnostics_panel(diagnostics, "a|b<script>\nx"))
    assert "a\\|b&lt;script> x" in markdown
    assert "<script>" not in markdown


def test_importing_loads_nothing_heavy():
    code = "import sys, lm_eval_aft.analysis.report.diagnosis_tables\n"
    code += "print(sorted({'numpy', 'torch', 'lm_eval'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_repeats_of_a_question_are_one_question(tmp_path: Path):
    """Two questions, the first asked three times: of its repeats one is fixed and one is broken."""
    fixed, broken, right = trace(["8", "8", "7"], ["7"]), trace(["7", "7", "8"], ["8"]), trace(["7", "7", "7"], ["7"])
    traces = [
        replace(each, question=replace(each.question, repeat=number))
        for number, each in enumerate((fixed, broken, right))
    ]
    diagnostics = diagnosed(tmp_path, [*traces, trace(["8", "8", "7"], ["7"], doc=1)])
    assert (diagnostics.questions, diagnostics.judged, diagnostics.readings[0].disputed) == (2, 2, 2)
    vote, _, _ = diagnostics.changes
    assert (vote.fixed, vote.broken) == (pytest.approx(4 / 3), pytest.approx(1 / 3))
    shares = {share.right_drafts: (share.questions, share.answer) for share in diagnostics.vote_shares}
    assert shares == {1: (pytest.approx(4 / 3), 1), 2: (pytest.approx(1 / 3), 0), 3: (pytest.approx(1 / 3), 1)}
    text = panel_text(diagnostics_panel(diagnostics))
    assert "2 questions, 2 with a gold answer" in text
    assert "Against the majority vote 1.3 fixed, 0.3 broken." in text


def test_a_text_copies_only_what_it_read():
    made = replace(
        trace(["it is 7", "it is 8"], ["it is 7", "it is 8"], ["it is 8"]), subsets=(((1,), (1,)), ((0, 1),))
    )
    graded = grade(made, GSM8K, "7")
    assert [graded.copies(text, 0) for text in graded.layer(1)] == [(), (1,)]
    assert [len(text.overlaps) for text in graded.texts] == [0, 0, 1, 1, 2]


def test_questions_that_stopped_early_are_diagnosed_with_the_others(tmp_path):
    settings = {**trace(["x"], "x").settings, "k": 3, "layers": 2, "stop_when": "window:2", "stop_layers": 0}
    stopped = trace(["it is 7", "it is 7"], ["it is 7"], doc=0)
    whole = trace(["it is 7", "it is 8", "it is 8"], ["a 8", "b 7", "c 7"], ["so 7"], doc=1)
    made = [replace(each, settings=settings) for each in (stopped, whole)]
    found = diagnosed(tmp_path, made)
    assert [(layer.layer, layer.texts) for layer in found.by_layer] == [(0, 5), (1, 3), (2, 2)]
    assert [(reading.layer, reading.read, reading.texts) for reading in found.readings] == [
        (1, 0, 3),
        (2, 1, 1),
        (2, 0, 2),
    ]
    assert found.by_layer[2].mean.estimate == 1.0
    assert found.k == 3
    only = diagnosed(tmp_path, made[:1])
    assert [layer.layer for layer in only.by_layer] == [0, 2]

"""Votes, diagnosis and equal-cost baselines of traces that the task graded: without a regex and without samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.made_runs import make_run
from helpers.made_traces import trace_of_texts, with_grades
from lm_eval_aft.analysis.api import read_sides
from lm_eval_aft.analysis.diagnosis import diagnose_traces
from lm_eval_aft.analysis.frontier import frontiers
from lm_eval_aft.analysis.report.diagnosis_tables import diagnostics_panel, panel_text
from lm_eval_aft.analysis.report.tables import render
from lm_eval_aft.analysis.report.vote_tables import vote_table
from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.analysis.votes import count_votes
from lm_eval_aft.analysis.voting import score_texts
from lm_eval_aft.cli import aft
from lm_eval_aft.core.records import Grade, Trace
from lm_eval_aft.core.usage import Usage
from lm_eval_aft.storage.traces import write_traces

SOURCE = {"model": "other/writer", "fingerprint": "w"}


def voting() -> list[Trace]:
    """Two questions with answers: the vote is wrong on the first one, and right on the second one."""
    first = trace_of_texts(["a", "b", "c"], ["d"], doc=0, task="own")
    second = trace_of_texts(["a", "b", "c"], ["d"], doc=1, task="own")
    return [
        with_grades(first, "exact_match", [0, 0, 1, 1], ["8", "8", "7", "7"]),
        with_grades(second, "exact_match", [1, 1, 0, 1], ["5", "5", None, "5"]),
    ]


def essays() -> list[Trace]:
    """Three questions without answers to vote on: fixed for certain, disputed, broken for certain."""
    values = [[0, 0, 1], [1, 0, 1], [1, 1, 0]]
    traces = [trace_of_texts(["a", "b"], ["c"], doc=doc, task="essay") for doc in range(3)]
    return [with_grades(each, "strict_acc", row) for each, row in zip(traces, values, strict=True)]


def test_votes_need_neither_samples_nor_a_regex():
    (votes,) = count_votes(voting(), [])
    assert (votes.extraction, votes.measure) == (
        "the task's filter flexible-extract",
        "exact_match, flexible-extract",
    )
    one, _, three = votes.points
    assert one.mean.estimate == one.majority.estimate == one.oracle.estimate == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert (three.majority.estimate, three.oracle.estimate) == (0.5, 1.0)
    assert (votes.aggregate.estimate, votes.silent) == (1.0, pytest.approx(1 / 6))


def test_equal_numbers_vote_together_whatever_their_spelling():
    trace = trace_of_texts(["a", "b", "c", "d"], ["e"], task="own")
    graded = with_grades(trace, "exact_match", [1, 0, 0, 1, 1], ["1,800", "$1800.00", "7", "1800.", "1800"])
    (votes,) = count_votes([graded], [])
    # Three of four drafts say 1800. The metric takes two of the three for right, and the vote takes one of the three.
    assert votes.points[-1].majority.estimate == pytest.approx(2 / 3)
    (diagnosis,) = diagnose_traces([graded], [])
    assert diagnosis.diagnostics.by_layer[0].distinct_answers == 2


def test_without_an_answer_string_there_is_no_vote_but_the_rest():
    (votes,) = count_votes(essays(), [])
    assert [point.majority for point in votes.points] == [None, None]
    assert [point.mean.estimate for point in votes.points] == [0.5, 0.5]
    assert votes.points[1].oracle.estimate == pytest.approx(2 / 3)
    text = render([vote_table(votes)], "text")
    assert "There is no answer string to vote on; 0.0% of the drafts are empty." in text
    assert "Right by the task's strict_acc; a draft that is empty or only a thought is wrong." in text


def test_empty_drafts_are_wrong_and_counted():
    (votes,) = count_votes([with_grades(trace_of_texts(["a", " "], ["c"], task="essay"), "acc", [1, 0, 1])], [])
    assert (votes.points[0].mean.estimate, votes.empty) == (0.5, 0.5)


def test_the_main_score_of_the_results_says_which_metric_is_read(tmp_path: Path):
    grades = (Grade("none", {"length": 1.0, "f1": 0.5, "em": 0.0}),)
    trace = replace(trace_of_texts(["a"], ["b"], task="t"), grades=(grades, grades))
    (votes,) = count_votes([trace], [])
    # A metric that is 0 or 1 comes before one between them.
    assert votes.measure == "length"
    make_run(tmp_path, [0.0], metric="em")
    (votes,) = count_votes([trace], read_entries([tmp_path]))
    assert votes.measure == "em"


def test_a_metric_of_which_less_is_better_says_nothing(tmp_path: Path):
    trace = with_grades(trace_of_texts(["a"], ["b"], task="t"), "wer", [0.0, 1.0])
    make_run(tmp_path, [0.0], metric="wer", higher_is_better={"t": {"wer": False}})
    assert count_votes([trace], read_entries([tmp_path])) == ()


def test_scores_between_0_and_1_have_a_mean_and_a_best():
    mean, majority, oracle = score_texts(["x", "x", "y"], [0.25, 0.75, 1.0], 2)
    # The best of each pair of the three: 0.75, 1, 1. Each pair but one draws lots.
    assert (mean, oracle) == (pytest.approx(2 / 3), pytest.approx((0.75 + 1 + 1) / 3))
    assert majority == pytest.approx((0.5 + 2 * (0.5 * 0.5 + 0.5 * 1.0)) / 3)
    assert score_texts(None, [0.0, 1.0], 1) == (0.5, None, 0.5)


def test_diagnosis_against_the_vote():
    (diagnosis,) = diagnose_traces(voting(), [])
    vote, first, mean = diagnosis.diagnostics.changes
    assert (vote.fixed, vote.broken) == (1, 0)
    assert (first.fixed, first.broken) == (1, 0)
    assert (mean.fixed, mean.broken) == (pytest.approx(2 / 3 + 1 / 3), 0)
    assert [(trace.fixed, trace.broken) for trace in diagnosis.traces] == [(True, False), (False, False)]
    text = panel_text(diagnostics_panel(diagnosis.diagnostics))
    assert (
        "2 questions, 2 graded by the task's exact_match, flexible-extract; answers by the task's filter "
        "flexible-extract." in text
    )


def test_diagnosis_without_an_answer_string():
    (diagnosis,) = diagnose_traces(essays(), [])
    diagnostics = diagnosis.diagnostics
    assert [change.beside for change in diagnostics.changes] == ["first draft", "mean draft"]
    first, mean = diagnostics.changes
    assert (first.fixed, first.broken) == (1, 1)
    assert (mean.fixed, mean.broken) == (1.5, 1)
    assert [layer.majority for layer in diagnostics.by_layer] == [None, None]
    assert [layer.mean.estimate for layer in diagnostics.by_layer] == [pytest.approx(0.5), pytest.approx(2 / 3)]
    # All drafts are wrong, or all are right: any vote would be.
    assert [(trace.fixed, trace.broken) for trace in diagnosis.traces] == [(True, False), (False, False), (False, True)]
    text = panel_text(diagnostics_panel(diagnostics))
    assert "3 questions, 3 graded by the task's strict_acc; no answer string to vote on." in text
    assert "Against the first draft 1 fixed, 1 broken." in text


def test_traces_without_grades_beside_graded_ones_are_left_out_and_counted():
    plain = trace_of_texts(["a", "b", "c"], ["d"], doc=5, task="own")
    (votes,) = count_votes([*voting(), plain], [])
    assert (votes.aggregate.n, votes.without_gold) == (2, 1)
    assert "Left out without grades: 1." in render([vote_table(votes)], "text")


def graded_run(folder: Path, traces: list[Trace], scores: list[float], **changes) -> Path:
    """A run of the task t whose traces are graded, and which scored these."""
    settings = {"k": 3, "layers": 1, "model": "m", "fingerprint": "m"}
    make_run(folder, scores, k=3, layers=1, metric="strict_acc", tokens=3)
    usage = Usage(3, 9, 9, 3)
    own = [replace(each, question=replace(each.question, task="t"), usage=usage, **changes) for each in traces]
    write_traces(str(folder / "traces"), settings, own)
    return folder


def test_a_run_is_compared_with_the_best_draft_of_equal_cost(tmp_path: Path):
    graded_run(tmp_path / "run", essays(), [1, 1, 0])
    make_run(tmp_path / "base", [0, 1, 1], k=1, layers=0, metric="strict_acc", tokens=1, model="b")
    result = CliRunner().invoke(aft, ["compare", str(tmp_path / "base"), str(tmp_path / "run")], catch_exceptions=False)
    rows = [line for line in result.output.splitlines() if "best draft of" in line]
    assert len(rows) == 1
    assert "66.7" in rows[0]
    assert "majority vote" not in result.output


def test_votes_over_given_drafts_name_the_model_that_wrote_them(tmp_path: Path):
    given = [replace(each, settings={**each.settings, "fingerprint": "m", "drafts_from": SOURCE}) for each in voting()]
    own_settings = {"fingerprint": "m"}
    own_traces = [replace(each, settings={**each.settings, **own_settings}) for each in voting()]
    path = make_run(tmp_path, [1], k=3, layers=1)
    shape = '"model_shape": {"parameters": 100, "layers": 2, "attention_width": 8}'
    path.write_text(path.read_text().replace('"fingerprint": "m"', f'"fingerprint": "m", {shape}'))
    own, read = count_votes([*own_traces, *given], read_entries([tmp_path]))
    assert own.points[0].flops is not None
    assert (read.drafter, read.points[0].flops) == ("other/writer", None)
    assert "own, k=3, layers=1, drafts of other/writer: 2 questions" in vote_table(read).title
    (diagnosis,) = diagnose_traces(given, [])
    assert "The drafts are those of other/writer" in panel_text(diagnostics_panel(diagnosis.diagnostics))


def test_the_baselines_traces_are_found_beside_it_under_any_name(tmp_path: Path):
    graded_run(tmp_path / "run", essays(), [1, 1, 0])
    (tmp_path / "run" / "traces").rename(tmp_path / "run" / "notes")
    (tmp_path / "run").rename(tmp_path / "moved")
    make_run(tmp_path / "moved" / "model", [1, 1, 0], k=3, layers=1, metric="strict_acc", tokens=3)
    for file in (tmp_path / "moved").glob("*_2026*"):
        file.unlink()
    make_run(tmp_path / "other", [0, 1, 1], k=1, layers=0, metric="strict_acc", tokens=1, model="b")
    base, (other,) = read_sides(tmp_path / "moved", [tmp_path / "other"])
    assert [trace.question.doc_id for trace in base.traces()] == [0, 1, 2]
    assert list(other.traces()) == []


def test_votes_over_given_drafts_are_no_points_of_the_model_that_read_them(tmp_path: Path):
    make_run(tmp_path, [1, 1], task="own", k=3, layers=1, model="some/model", metric="exact_match")
    (entry,) = read_entries([tmp_path])
    given = [replace(each, settings={**each.settings, "drafts_from": SOURCE}) for each in voting()]
    labels = []
    for traces in (voting(), given):
        votes = count_votes(traces, [entry])
        (drawn,) = frontiers([(entry, {"own": votes[0].points[0].mean})], votes, "tokens")
        labels.append({point.label for point in drawn.points})
    assert labels == [{entry.label, "model vote of 2", "model vote of 3"}, {entry.label}]

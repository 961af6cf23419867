"""avg@k, maj@k, pass@k and the gap closed: their values, and every place that shows them."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from itertools import combinations
from math import comb
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.graded_tasks import scripted_model, texts, write_task
from helpers.lm_eval_runs import run_lm_eval
from helpers.made_traces import trace_of_texts, with_grades
from lm_eval_aft import frames, votes
from lm_eval_aft.analysis.gap import gap_closed
from lm_eval_aft.analysis.report.leaderboard import leaderboard
from lm_eval_aft.analysis.report.page.build import write_report
from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.analysis.votes import count_votes
from lm_eval_aft.analysis.voting import score_texts
from lm_eval_aft.cli import aft

pytestmark = pytest.mark.usefixtures("quick_lm_eval")


@given(st.lists(st.booleans(), min_size=1, max_size=9))
def test_pass_at_n_is_the_mean_over_every_subset(rights: list[bool]):
    for n in range(1, len(rights) + 1):
        subsets = list(combinations(rights, n))
        by_hand = sum(any(chosen) for chosen in subsets) / len(subsets)
        assert score_texts(None, list(map(float, rights)), n)[2] == pytest.approx(by_hand)


def test_pass_at_n_is_the_estimator_of_chen_and_others():
    rights = [1.0] * 30 + [0.0] * 170
    for n in (1, 10, 100):
        assert score_texts(None, rights, n)[2] == pytest.approx(1 - comb(170, n) / comb(200, n))


# ------------------------------------------------------------------ gap closed


def test_the_gap_closed_equals_a_case_by_hand():
    """The vote is right on 40 of 100 questions, the oracle on 90, the run on 65: half of the gap."""
    votes_of, oracles = [1.0] * 40 + [0.0] * 60, [1.0] * 90 + [0.0] * 10
    gap = gap_closed([1.0] * 65 + [0.0] * 35, votes_of, oracles, list(range(100)))
    assert (gap.closed.estimate, gap.size, gap.apart, gap.questions) == (pytest.approx(0.5), 0.5, 50, 100)
    assert 0.3 < gap.closed.low < 0.5 < gap.closed.high < 0.7


def test_a_run_as_good_as_the_oracle_closes_all_of_the_gap_and_a_worse_one_less_than_nothing():
    votes_of, oracles = [1.0] * 20 + [0.0] * 80, [1.0] * 60 + [0.0] * 40
    groups = list(range(100))
    assert gap_closed(oracles, votes_of, oracles, groups).closed.estimate == 1
    assert gap_closed([0.0] * 100, votes_of, oracles, groups).closed.estimate == pytest.approx(-0.5)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=20, max_size=60))
@settings(max_examples=30)
def test_the_gap_closed_is_a_ratio_of_means(rows: list[tuple[bool, bool, bool]]):
    runs, votes_of = [float(run) for run, _, _ in rows], [float(vote) for _, vote, _ in rows]
    oracles = [float(vote or best) for _, vote, best in rows]
    gap = gap_closed(runs, votes_of, oracles, list(range(len(rows))))
    if gap.closed is not None:
        assert gap.closed.estimate == pytest.approx((sum(runs) - sum(votes_of)) / (sum(oracles) - sum(votes_of)))
        assert gap.closed.low <= gap.closed.high


def test_the_last_digits_of_sums_change_no_interval():
    """0.1 + 0.2 is another number than 0.3, and both are the score of a vote."""
    votes_of = [0.3] * 40 + [0.0] * 20
    noisy = [0.1 + 0.2 if number % 3 else 0.3 for number in range(40)] + [0.0] * 20
    runs, oracles, groups = [1.0] * 30 + [0.0] * 30, [1.0] * 50 + [0.0] * 10, list(range(60))
    once, again = (gap_closed(runs, votes, oracles, groups).closed for votes in (votes_of, noisy))
    assert (again.low, again.high) == pytest.approx((once.low, once.high), abs=1e-9)


def test_a_gap_near_to_zero_gives_no_ratio_and_says_so():
    votes_of, oracles = [1.0] * 50 + [0.0] * 50, [1.0] * 53 + [0.0] * 47
    gap = gap_closed(oracles, votes_of, oracles, list(range(100)))
    assert (gap.closed, gap.size) == (None, pytest.approx(0.03))
    assert gap.sentence.startswith("The oracle is better than the vote on 3 of 100 questions.")


def test_the_repeats_of_a_question_are_drawn_together():
    """Two repeats that say the same of each question say no more than one."""
    votes_of, oracles = [1.0] * 20 + [0.0] * 40, [1.0] * 50 + [0.0] * 10
    runs = [1.0] * 30 + [0.0] * 30
    once = gap_closed(runs, votes_of, oracles, list(range(60)))
    twice = gap_closed(runs * 2, votes_of * 2, oracles * 2, list(range(60)) * 2)
    assert twice == replace(once, closed=replace(twice.closed))
    assert (twice.closed.low, twice.closed.high) == pytest.approx((once.closed.low, once.closed.high))


def test_votes_say_how_much_of_the_gap_the_answer_closes():
    """The vote of three drafts is wrong on all 20 questions, the oracle is right, and 15 answers are right."""
    traces = [
        with_grades(trace_of_texts(["a", "b", "b"], ["x"], doc=doc), "em", [1, 0, 0, doc < 15], list("7887"))
        for doc in range(20)
    ]
    (counted,) = count_votes(traces, ())
    assert (counted.gap.closed.estimate, counted.gap.size) == (0.75, 1.0)
    assert counted.points[2].named.keys() == {"avg@3", "maj@3", "pass@3", "oracle@3"}
    assert [counted.points[2].named[name].estimate for name in ("maj@3", "pass@3", "oracle@3")] == [0, 1, 1]


# ------------------------------------------------------------------ repeats


def answered(out: Path, written: tuple[str, ...], repeats: int, **given: object) -> Path:
    """A run of three questions with repeats, whose texts are given."""
    model = scripted_model(texts(*written), record=str(out / "traces"), **given)
    run_lm_eval(out, ["numbers"], write_task(out.parent / "tasks", repeats=repeats), model)
    return out


def test_the_answers_of_repeats_are_samples_beside_the_drafts(tmp_path: Path):
    """Question 0 is answered 0, 1, 0 and 1 in its four repeats; questions 1 and 2 likewise."""
    (counted,) = votes(answered(tmp_path / "out", ("#### 0", "#### 1"), 4, layers=0, k=1))
    assert (counted.questions, counted.k, len(counted.points)) == (3, 1, 1)
    assert counted.aggregate.estimate == pytest.approx(1 / 3)
    # One of two texts answers question 0, the other one question 1, and none question 2.
    assert [point.oracle.estimate for point in counted.answer_points] == pytest.approx([1 / 3, 5 / 9, 2 / 3, 2 / 3])
    assert [point.mean.estimate for point in counted.answer_points] == pytest.approx([1 / 3] * 4)
    # The vote of three answers is theirs that stands twice; of four it is drawn by lot.
    assert [point.majority.estimate for point in counted.answer_points] == pytest.approx([1 / 3] * 4)
    assert counted.answer_points[3].generated_tokens == 4 * counted.aggregate_tokens
    assert counted.answer_points[3].named["pass@4"].estimate == pytest.approx(2 / 3)


def test_a_layer_reads_the_drafts_of_its_repeat_and_both_are_counted(tmp_path: Path):
    """Each repeat has two drafts and one answer of its own."""
    (counted,) = votes(answered(tmp_path / "out", ("#### 0", "#### 1", "#### 2"), 3, layers=1, k=2))
    assert (counted.questions, [point.n for point in counted.points]) == (3, [1, 2])
    assert [point.n for point in counted.answer_points] == [1, 2, 3]
    assert counted.answer_points[0].mean.estimate == pytest.approx(counted.aggregate.estimate)


def test_a_task_without_repeats_has_no_further_rows(tmp_path: Path):
    (counted,) = votes(answered(tmp_path / "out", ("#### 0", "#### 1"), 1, layers=0, k=1))
    assert counted.answer_points == ()


# ------------------------------------------------------------------ every place


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, quick_lm_eval: None) -> Path:
    """A run of 24 questions with three drafts each, and one of a single answer."""
    folder = tmp_path_factory.mktemp("runs")
    documents = [{"question": f"q{number}", "answer": "7"} for number in range(24)]
    tasks = write_task(folder / "tasks", documents=documents)
    script = texts("#### 7", "#### 8", "#### 8")
    for name, layers, k in (("one", 0, 1), ("three", 1, 3)):
        model = scripted_model(script, record=str(folder / name / "traces"), layers=layers, k=k)
        run_lm_eval(folder / name, ["numbers"], tasks, model)
    return folder


def shown(*arguments: object) -> str:
    result = CliRunner().invoke(aft, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_votes_have_the_known_names_beside_their_own(out: Path):
    (table,) = json.loads(shown("votes", out / "three", "--format", "json"))
    last = table["rows"][2]
    assert (last["mean"], last["majority"], last["oracle"]) == (last["avg@n"], last["maj@n"], last["pass@n"])
    assert (last["oracle@n"]["value"], last["avg@n"]["value"]) == (1.0, pytest.approx(1 / 3))
    (row, *_) = csv.DictReader(io.StringIO(shown("votes", out / "three", "--format", "csv")))
    assert row["oracle"] == row["pass@n"] == row["oracle@n"]
    assert list(row)[:3] == ["drafts", "mean", "mean/low"]
    assert "avg@n, maj@n and pass@n" in shown("votes", out / "three")


def test_report_has_a_second_table_of_drafts(out: Path):
    table, drafts = json.loads(shown("report", out / "one", out / "three", "--format", "json"))
    (row,) = drafts["rows"]
    assert (len(table["rows"]), row["k"]["value"], row["texts"]["text"]) == (2, 3, "drafts")
    assert (row["pass@k"]["value"], row["maj_at_k"]["value"]) == (1.0, 0.0)
    # The answer is the first text again, which is right.
    assert (row["answer"]["value"], row["gap_closed"]["value"]) == (1.0, 1.0)
    assert len(shown("report", out / "one", out / "three", "--format", "csv").splitlines()) == 3
    assert "| maj@k % | pass@k % |" in shown("report", out / "three", "--model-card")


def test_compare_has_them_too(out: Path):
    (comparison,) = json.loads(shown("compare", out / "one", out / "three", "--format", "json"))
    (drafts,) = comparison["drafts"]
    assert drafts["drafts"]["pass@3"]["estimate"] == 1
    assert drafts["gap_closed"]["estimate"] == 1
    assert "The drafts alone" in shown("compare", out / "one", out / "three")


def test_the_page_shows_the_table(out: Path, tmp_path: Path):
    entries = read_entries([out / "one", out / "three"], keep=True)
    write_report(tmp_path / "page.html", entries, leaderboard(entries), None)
    page = (tmp_path / "page.html").read_text()
    assert '"title":"The drafts alone"' in page
    assert '"gap closed %"' in page


def test_frames_have_a_row_for_each_number_of_drafts(out: Path):
    frame = frames(out / "three").votes
    assert frame["n"].tolist() == [1, 2, 3]
    assert frame["pass_at_n"].tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert frame["gap_closed"].isna().tolist() == [True, True, False]
    assert frame["gap_closed"].iloc[-1] == 1

"""Paired comparisons: pairing, tests and intervals, votes at equal cost, exit codes, and the sentences that say it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.made_runs import add_task, make_run
from lm_eval_aft.analysis.api import read_sides
from lm_eval_aft.analysis.comparison import compare_entries
from lm_eval_aft.analysis.report.comparison_tables import comparison_sentences, equal_cost_table, equal_costs
from lm_eval_aft.analysis.stats import holm, mcnemar_exact, paired_difference_interval, paired_permutation
from lm_eval_aft.cli import aft
from lm_eval_aft.core.errors import ConfigError, RecordError
from lm_eval_aft.core.records import Chat, Completion, Draft, Message, Question, Sampling, Trace
from lm_eval_aft.core.usage import Usage
from lm_eval_aft.storage.traces import write_traces

WORSE, BETTER = [1, 0, 0, 0, 0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1, 1, 0, 0, 1]


def compared(tmp_path: Path, **options):
    base, others = read_sides(tmp_path / "a", [tmp_path / "b"], None)
    return compare_entries(base, others, **options).comparisons


def test_binary_scores_get_the_exact_test_and_tangos_interval(tmp_path: Path):
    make_run(tmp_path / "a", WORSE, k=1, layers=0, tokens=100)
    make_run(tmp_path / "b", BETTER, tokens=300)
    (row,) = compared(tmp_path)
    assert row.test == "exact McNemar"
    assert row.p_value == mcnemar_exact(WORSE, BETTER).p_value == row.p_holm
    assert row.difference == paired_difference_interval(WORSE, BETTER)
    assert (row.n, row.counts.wins, row.counts.ties, row.counts.losses) == (10, 6, 4, 0)
    assert row.cost_ratio == 3
    assert row.verdict == "better"


def test_graded_scores_get_a_permutation_test_and_a_bootstrap(tmp_path: Path):
    first, second = [1.5, 2.0, 7.0, 3.0], [2.5, 2.0, 8.0, 5.0]
    make_run(tmp_path / "a", first)
    make_run(tmp_path / "b", second, model="n")
    (row,) = compared(tmp_path)
    assert row.test == "sign-flip permutation"
    assert row.p_value == paired_permutation(first, second).p_value
    assert row.difference.method in ("bca", "percentile")
    assert row.difference.estimate == pytest.approx(1.0)


def test_parts_of_one_question_are_drawn_together(tmp_path: Path):
    make_run(tmp_path / "a", [[0, 0], [1, 0], [0]])
    make_run(tmp_path / "b", [[1, 1], [1, 0], [0]], model="n")
    (row,) = compared(tmp_path)
    assert row.n == 5
    assert row.test == "sign-flip permutation"
    # One question differs, however many parts it has.
    assert row.p_value == 1.0
    assert row.difference.estimate == pytest.approx(0.4)
    assert (row.counts.wins, row.counts.ties, row.counts.losses) == (1, 2, 0)


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        ("perplexity", [-1.0, -2.0]),
        ("word_perplexity", [[-9.0, 4], [-8.0, 3]]),
        ("mcc", [[0, 1], [1, 1]]),
        ("f1", [[0, 1]]),
    ],
)
def test_what_is_no_mean_over_questions_is_refused(tmp_path: Path, metric: str, values: list):
    for name in ("a", "b"):
        make_run(tmp_path / name, values, model=name, metric=metric)
    with pytest.raises(RecordError, match=f"{metric} of t is no mean over questions: .* give another --metric"):
        compared(tmp_path)


def test_an_f1_of_each_question_is_compared(tmp_path: Path):
    for name, values in (("a", [0.5, 0.0]), ("b", [1.0, 0.5])):
        make_run(tmp_path / name, values, model=name, metric="f1")
    assert compared(tmp_path)[0].difference.estimate == pytest.approx(0.5)


def test_what_could_be_seen_counts_questions_and_not_their_parts(tmp_path: Path):
    first, second = [5, 6, 7, 4, 5, 6], [7, 5, 9, 5, 4, 8]
    for parts in (1, 8):
        make_run(tmp_path / f"{parts}/a", [[score] * parts for score in first])
        make_run(tmp_path / f"{parts}/b", [[score] * parts for score in second], model="n")
    one, eight = (compared(tmp_path / str(parts))[0] for parts in (1, 8))
    assert (one.n, eight.n) == (6, 48)
    assert eight.detectable == pytest.approx(one.detectable)
    assert eight.counts == one.counts


def test_pairs_are_matched_by_document_not_by_place(tmp_path: Path):
    make_run(tmp_path / "a", [1, 0, 0], ids=[0, 1, 2])
    make_run(tmp_path / "b", [0, 0, 1], ids=[2, 1, 0], model="n")
    (row,) = compared(tmp_path)
    assert (row.counts.wins, row.counts.losses) == (0, 0)


def test_other_questions_are_refused_with_their_ids(tmp_path: Path):
    make_run(tmp_path / "a", [1] * 12)
    make_run(tmp_path / "b", [1, 0, 1], ids=[0, 1, 99], model="n")
    with pytest.raises(RecordError) as caught:
        compared(tmp_path)
    text = str(caught.value)
    assert "10 only in" in text
    assert "(doc_id 2, 3, 4, 5, 6, 7, 8, 9 and 2 more)" in text
    assert "1 only in" in text
    assert "(doc_id 99)" in text
    assert "--common to compare the 2 that both answered" in text
    (row,) = compared(tmp_path, common=True)
    assert row.n == 2
    assert "11 questions that only one of the runs answered are left out" in row.notes


def test_runs_without_a_task_or_question_in_common(tmp_path: Path):
    make_run(tmp_path / "a", [1, 0])
    make_run(tmp_path / "b", [1, 0], task="u", model="n")
    with pytest.raises(ConfigError, match="no task is in both runs"):
        compared(tmp_path)
    make_run(tmp_path / "c", [1, 0], ids=[7, 8], model="n")
    base, others = read_sides(tmp_path / "a", [tmp_path / "c"], None)
    with pytest.raises(RecordError, match="they share none"):
        compare_entries(base, others, common=True)


def test_an_unknown_task_or_metric_names_what_there_is(tmp_path: Path):
    make_run(tmp_path / "a", [1, 0])
    make_run(tmp_path / "b", [1, 0], model="n")
    with pytest.raises(ConfigError, match=r"task gsm is not in both runs: .*; give a task that both have"):
        compared(tmp_path, tasks=["gsm"])
    with pytest.raises(ConfigError, match=r"--metric f1 is not a metric of t .* it has acc,none"):
        compared(tmp_path, metric="f1")
    (row,) = compared(tmp_path, metric="acc,none")
    assert row.score.metric == "acc"


def test_samples_that_were_not_logged(tmp_path: Path):
    for name in ("a", "b"):
        make_run(tmp_path / name, [1, 0], model=name)
    for file in (tmp_path / "b").glob("samples_*"):
        file.unlink()
    with pytest.raises(RecordError, match="--log_samples"):
        compared(tmp_path)


def test_the_baseline_is_one_run(tmp_path: Path):
    for name in ("a/1", "a/2", "b"):
        make_run(tmp_path / name, [1, 0], model=name)
    with pytest.raises(RecordError, match="holds 2 runs and the baseline is one"):
        compared(tmp_path)
    with pytest.raises(ConfigError, match="no other run"):
        read_sides(tmp_path / "b", [tmp_path / "b"], None)


def test_drafts_alone_are_nothing_to_compare_with(tmp_path: Path):
    for name in ("a", "b"):
        make_run(tmp_path / name, [1, 0], model=name)
    sides = [str(tmp_path / "a"), str(tmp_path / "a"), "--drafts", str(tmp_path / "b")]
    with pytest.raises(ConfigError, match="holds no other run than the baseline"):
        CliRunner().invoke(aft, ["compare", *sides], catch_exceptions=False)


def test_holm_is_over_the_tasks_of_one_run_and_categories_are_not_corrected(tmp_path: Path):
    kinds = ["x", "y"] * 5
    for name, scores in (("a", WORSE), ("b", BETTER)):
        make_run(tmp_path / name, scores, model=name, categories=kinds)
        for task in ("u", "v"):
            add_task(tmp_path / name, task, scores if task == "u" else WORSE)
    comparisons = compared(tmp_path)
    whole = [row for row in comparisons if not row.category]
    assert [row.score.task for row in whole] == ["t", "u", "v"]
    assert [row.p_holm for row in whole] == list(holm([row.p_value for row in whole]))
    parts = [row for row in comparisons if row.category]
    assert [(row.category, row.n, row.p_holm) for row in parts] == [("x", 5, None), ("y", 5, None)]


def test_a_length_is_neither_better_nor_worse(tmp_path: Path):
    for name, lengths in (("a", [9.5, 8.5, 7.5, 9, 8, 7, 6]), ("b", [1.5, 2, 2.5, 3, 1, 2, 3])):
        make_run(
            tmp_path / name, lengths, model=name, metric="avg_length", higher_is_better={"t": {"avg_length": None}}
        )
        add_task(tmp_path / name, "u", WORSE if name == "a" else BETTER)
    length, score = compared(tmp_path)
    assert length.p_value < 0.05
    assert (length.verdict, length.p_holm) == ("neither better nor worse", None)
    # Only this p-value is corrected.
    assert score.p_holm == score.p_value
    assert comparison_sentences([length])[0].startswith(
        "t: b (5, 2) is 5.79 lower than a (5, 2) in avg_length, which is neither better nor worse (95% "
    )
    done = CliRunner().invoke(
        aft, ["compare", *(str(tmp_path / name) for name in ("a", "b")), "--format", "markdown", "--fail-on-regression"]
    )
    assert done.exit_code == 0, done.output
    assert "More of avg_length is neither better nor worse: its p is not corrected." in done.output


def test_a_sentence_says_what_how_sure_and_at_what_cost(tmp_path: Path):
    make_run(tmp_path / "a", WORSE, k=1, layers=0, tokens=100)
    make_run(tmp_path / "b", BETTER, tokens=320)
    (sentence,) = comparison_sentences(compared(tmp_path))
    assert sentence == (
        "t: m (5, 2) is 60.0 points better than m (1, 0) (95% +15.6 to +83.2, p = 0.031, n = 10), at 3.2 times the "
        "generated tokens."
    )


def test_no_difference_is_said_with_what_could_have_been_seen(tmp_path: Path):
    make_run(tmp_path / "a", [1, 0] * 100)
    make_run(tmp_path / "b", [1, 0] * 97 + [0, 0, 1, 1] + [1, 0], model="n")
    (row,) = compared(tmp_path)
    (sentence,) = comparison_sentences([row])
    assert "level with" in sentence
    assert "no difference is shown" in sentence
    assert row.detectable is None
    assert "can hardly show one" in sentence


def test_where_less_is_better_the_sentence_turns_round(tmp_path: Path):
    make_run(tmp_path / "a", WORSE, higher_is_better={"t": {"acc": False}})
    make_run(tmp_path / "b", BETTER, model="n", higher_is_better={"t": {"acc": False}})
    (row,) = compared(tmp_path)
    assert row.verdict == "worse"
    assert "60.0 points worse than" in comparison_sentences([row])[0]


def test_a_regression_fails_only_when_asked_and_only_when_sure(tmp_path: Path):
    make_run(tmp_path / "a", BETTER)
    make_run(tmp_path / "b", WORSE, model="n")
    make_run(tmp_path / "c", [*BETTER[:-1], 0], model="o")
    sides = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert CliRunner().invoke(aft, ["compare", *sides]).exit_code == 0
    assert CliRunner().invoke(aft, ["compare", *sides, "--fail-on-regression"]).exit_code == 1
    slightly = [str(tmp_path / "a"), str(tmp_path / "c"), "--fail-on-regression"]
    assert CliRunner().invoke(aft, ["compare", *slightly]).exit_code == 0


def test_every_form_prints(tmp_path: Path):
    make_run(tmp_path / "a", WORSE, k=None)
    make_run(tmp_path / "b", BETTER)
    for form in ("text", "markdown", "json"):
        done = CliRunner().invoke(aft, ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--format", form])
        assert done.exit_code == 0, done.output
        assert "m (5, 2)" in done.output
    assert json.loads(done.output)[0]["n"] == 10


def test_json_has_no_number_for_an_open_end(tmp_path: Path):
    for name, score in (("a", 1.5), ("b", 2.5)):
        make_run(tmp_path / name, [score], model=name)
    done = CliRunner().invoke(aft, ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--format", "json"])
    (row,) = json.loads(done.output, parse_constant=pytest.fail)
    assert (row["difference"]["estimate"], row["difference"]["low"]) == (1.0, None)


def test_a_level_is_printed_as_it_was_asked_for(tmp_path: Path):
    make_run(tmp_path / "a", WORSE)
    make_run(tmp_path / "b", BETTER, model="n")
    assert "(99.9% " in comparison_sentences(compared(tmp_path, level=0.999))[0]


# Equal cost


def add_traces(folder: Path, answers: dict[int, list[str]], tokens: int = 10, hidden: int = 0) -> None:
    """Add traces to a run of a task like gsm8k. The samples' gold answer is 18.

    Args:
        folder: Folder of the run.
        answers: The answer in each draft, by doc_id.
        tokens: Generated tokens of each generation.
        hidden: Generations a question beyond the drafts, which count in the cost.
    """
    (path,) = folder.glob("results_*.json")
    settings = json.loads(path.read_text())["config"]["aft"]
    sampling = Sampling(0.7, 1.0, 0, 64)
    traces = []
    for doc_id, texts in answers.items():
        chat = Chat((Message("user", f"question {doc_id}"),))
        question = Question(chat, sampling, sampling, "aft_gsm8k", doc_id, f"h{doc_id}")
        completions = [Completion(f"The answer is {text}.", (), "stop", 5, 5, tokens) for text in texts]
        drafts = [Draft(0, index, index, each, False, 0.1) for index, each in enumerate(completions)]
        count = len(texts) + hidden
        usage = Usage(count, 5, 5, tokens * count)
        traces.append(Trace(question, tuple(drafts), (), completions[0].text, usage, Usage()))
    kept = {name: settings[name] for name in ("k", "layers", "fingerprint", "model")}
    write_traces(str(folder / "traces"), kept, [replace(trace, settings=kept) for trace in traces], "")


def test_votes_at_the_same_cost_are_paired_with_the_run(tmp_path: Path):
    drafts = {0: ["18", "18", "7"], 1: ["7", "8", "18"], 2: ["7", "7", "7"], 3: ["18", "18", "18"]}
    make_run(tmp_path / "a", [1, 0, 0, 1], task="aft_gsm8k", k=1, layers=0, tokens=10)
    make_run(tmp_path / "b", [1, 1, 0, 1], task="aft_gsm8k", k=3, layers=1, tokens=30, model="n")
    add_traces(tmp_path / "b", drafts)
    base, others = read_sides(tmp_path / "a", [tmp_path / "b"], None)
    comparisons = compare_entries(base, others).comparisons
    table = equal_cost_table(list(equal_costs(base, others, comparisons, [base, *others], None, 0.95)))
    assert table is not None
    (vote, best) = [[cell.text for cell in row.cells] for row in table.rows]
    assert vote[2] == "majority vote of 3, n (3, 1)"
    assert vote[3] == "30"
    assert float(vote[4]) == pytest.approx(100 * (1 + 1 / 3 + 0 + 1) / 4, abs=0.05)
    assert best[2] == "best draft of 3, n (3, 1)"
    assert best[4] == "75.0"
    assert not table.rows[0].notes
    assert "How votes find answers: extract_flexible of aft_gsm8k; " in table.notes[1]


def test_no_vote_stands_beside_a_score_that_asks_for_a_form(tmp_path: Path):
    for name, scores in (("a", [1, 0]), ("b", [1, 1])):
        make_run(tmp_path / name, scores, task="aft_gsm8k", k=3, layers=1, tokens=30, model=name)
        add_traces(tmp_path / name, {0: ["18", "18", "7"], 1: ["7", "8", "18"]})
    base, others = read_sides(tmp_path / "a", [tmp_path / "b"], None)
    (row,) = compare_entries(base, others).comparisons
    assert equal_cost_table(list(equal_costs(base, others, [row], [base, *others], None, 0.95))) is not None
    strict = replace(row, score=replace(row.score, filter="strict-match"))
    assert equal_cost_table(list(equal_costs(base, others, [strict], [base, *others], None, 0.95))) is None


def test_too_few_drafts_for_equal_cost_are_said(tmp_path: Path):
    make_run(tmp_path / "a", [1, 0], task="aft_gsm8k", k=1, layers=0, tokens=10)
    make_run(tmp_path / "b", [1, 1], task="aft_gsm8k", k=2, layers=4, tokens=90, model="n")
    add_traces(tmp_path / "b", {0: ["18", "18"], 1: ["7", "18"]}, hidden=7)
    base, others = read_sides(tmp_path / "a", [tmp_path / "b"], None)
    comparisons = compare_entries(base, others).comparisons
    table = equal_cost_table(list(equal_costs(base, others, comparisons, [base, *others], None, 0.95)))
    assert table is not None
    assert table.rows[0].notes == (
        "too few drafts for equal cost: run the model with a larger k, and name that run with --drafts.",
    )

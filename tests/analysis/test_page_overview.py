"""The first screen of the page: title, verdict, scores on one axis, columns, and how the runs were made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers.made_runs import add_task, make_run
from lm_eval_aft.analysis.comparison import compare_all
from lm_eval_aft.analysis.report.comparison_tables import comparison_sentences
from lm_eval_aft.analysis.report.leaderboard import leaderboard
from lm_eval_aft.analysis.report.page.axes import linear_axis
from lm_eval_aft.analysis.report.page.overview import (
    headlines,
    made_line,
    page_title,
    run_facts,
    strips,
    without_shared_columns,
)
from lm_eval_aft.analysis.runs import RunEntry, read_entries


def made_entries(folder: Path, *scores: Sequence[float], tokens: int = 100) -> tuple[RunEntry, ...]:
    """Runs a, b, c, ... of these scores; each generates as many times ``tokens`` as its place says."""
    folders = [folder / "abcdefgh"[place] for place in range(len(scores))]
    for place, (path, values) in enumerate(zip(folders, scores, strict=True)):
        make_run(path, values, model=path.name, k=place + 1, tokens=tokens * (place + 1))
    return read_entries(folders)


def test_the_title_names_the_runs_and_the_tasks(tmp_path: Path):
    entries = made_entries(tmp_path, [1, 0], [1, 1], [0, 0])
    assert page_title(entries[:1], "") == "a (1, 2) on t"
    assert page_title(entries[:2], "a (1, 2)") == "b (2, 2) against a (1, 2) on t"
    assert page_title(entries, "a (1, 2)") == "2 runs against a (1, 2) on t"
    for number in range(4):
        add_task(tmp_path / "a", f"u{number}", [1, 0])
    assert page_title(read_entries([tmp_path / "a"]), "") == "a (1, 2) on t, u0, u1 and 2 more"


def test_the_headline_is_about_the_best_run(tmp_path: Path):
    entries = made_entries(tmp_path, [0] * 20, [1] * 8 + [0] * 12, [1] * 12 + [0] * 8, [1] + [0] * 19)
    compared = compare_all(entries, None)
    findings = {("c (3, 2)", "t"): "2 fixed.", ("b (2, 2)", "t"): "1 fixed."}
    (headline,) = headlines(compared, entries, findings)
    best = next(each for each in compared.comparisons if each.other == "c (3, 2)")
    assert headline.verdict == "better"
    assert headline.sentences == (
        comparison_sentences([best])[0],
        "This is the best of 3 runs against a (1, 2): 2 better, 1 no difference shown.",
        "2 fixed.",
    )
    assert [(fact.label, fact.text) for fact in headline.facts] == [
        ("difference in points", "+60.0 [+34.2, +78.1]"),
        ("p, corrected by Holm over tasks", "4.9e-04"),
        ("generated tokens, times the baseline's", "x 3 (300 a question)"),
    ]


def test_a_single_run_has_its_score_and_cost_as_headline(tmp_path: Path):
    entries = made_entries(tmp_path, [1] * 30 + [0] * 10)
    (headline,) = headlines(compare_all(entries, None), entries, {("a (1, 2)", "t"): "2 fixed."})
    score = "t: a (1, 2) scores 75.0 [58.8, 87.3] (acc, %; n = 40), at 100 generated tokens a question."
    assert (headline.run, headline.verdict, headline.sentences) == ("a (1, 2)", "", (score, "2 fixed."))


def test_the_scores_of_all_runs_share_an_axis(tmp_path: Path):
    entries = made_entries(tmp_path, [0] * 20, [1] * 20)
    (strip,) = strips(compare_all(entries, None), entries, entries[0].label)
    assert (strip.title, strip.axis.label) == ("t, 20 questions", "acc, %")
    assert [(row.name, row.value, row.verdict, row.baseline, row.tokens, row.ratio) for row in strip.rows] == [
        ("a (1, 2)", 0, "", True, "100", "x 1"),
        ("b (2, 2)", 100, "better", False, "200", "x 2"),
    ]
    assert (strip.axis.low, strip.axis.high) == (0, 100)
    assert [tick.text for tick in strip.axis.ticks] == ["0", "20", "40", "60", "80", "100"]


def test_equal_and_empty_columns_are_named_once(tmp_path: Path):
    entries = made_entries(tmp_path, [1, 0], [1, 0])
    table, shared = without_shared_columns(leaderboard(entries))
    # The score comes before k and layers. Equal scores stay.
    assert [column.key for column in table.columns][:4] == ["model", "t/acc/none", "k", "layers"]
    assert not {"n", "engine", "judge"} & {column.key for column in table.columns}
    assert all(len(row.cells) == len(table.columns) for row in table.rows)
    texts = {fact.label: fact.text for fact in shared}
    assert (texts["engine"], texts["questions of each task or group"]) == ("hf, aft 0.1.0", "2")
    # No run had a judge, and that is no fact to show.
    assert "judge" not in texts
    single, _ = without_shared_columns(leaderboard(entries[:1]))
    assert {"n", "engine"} < {column.key for column in single.columns}


def test_each_run_has_its_settings_date_and_command(tmp_path: Path):
    entries = made_entries(tmp_path, [1, 0])
    (facts,) = run_facts(entries)
    assert (facts.name, facts.date) == ("a (1, 2)", "2026-01-02 03:04")
    assert facts.settings.startswith("lm_eval_aft 0.1.0, lm_eval 0.4.13, engine hf")
    assert facts.command.startswith("lm_eval --model aft --model_args pretrained=a --tasks t")
    assert made_line(entries).endswith("; 1 run, ended 2026-01-02")


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([-6.1, -1.1, 2], ["-6", "-4", "-2", "0", "+2"]),
        ([0.0], ["-1", "-0.5", "0", "+0.5", "+1"]),
        ([float("inf"), 3.2e-4, 4e-4], ["+0.00032", "+0.00034", "+0.00036", "+0.00038", "+0.0004"]),
    ],
)
def test_ticks_are_round_numbers_within_the_axis(values: list[float], texts: list[str]):
    axis = linear_axis(values, signed=True)
    assert [tick.text for tick in axis.ticks] == texts
    assert all(axis.low <= tick.value <= axis.high for tick in axis.ticks)

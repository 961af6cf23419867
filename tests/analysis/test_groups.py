"""Groups of tasks: their score stands in place of their tasks, and one test covers their questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from helpers.group_tasks import pupil, write_group_tasks
from helpers.lm_eval_runs import run_lm_eval
from helpers.made_runs import make_run
from lm_eval_aft.analysis.api import read_sides
from lm_eval_aft.analysis.comparison import compare_entries
from lm_eval_aft.analysis.groups import group_weighting, listed_names, members_of
from lm_eval_aft.analysis.report.leaderboard import leaderboard
from lm_eval_aft.analysis.runs import RunEntry, read_entries
from lm_eval_aft.analysis.stats import mcnemar_exact, paired_difference_interval, paired_permutation
from lm_eval_aft.cli import aft
from lm_eval_aft.core.errors import ConfigError, RecordError
from lm_eval_aft.storage.results import read_run

pytestmark = pytest.mark.usefixtures("quick_lm_eval")
TASKS = ["school_maths", "school_physics", "school_art"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, quick_lm_eval: None) -> Path:
    """A weak and a strong pupil on each of the groups school, school_alike and school_plain."""
    folder = tmp_path_factory.mktemp("groups")
    tasks = write_group_tasks(folder / "tasks")
    for group in ("school", "school_alike", "school_plain"):
        for name, right in (("weak", 1), ("strong", 6)):
            run_lm_eval(folder / group / name, [group], tasks, pupil(right, name, folder / group / name / "traces"))
    return folder


def sides(folder: Path) -> tuple[RunEntry, tuple[RunEntry, ...]]:
    return read_sides(folder / "weak", [folder / "strong"], None)


def output(*arguments: object) -> str:
    done = CliRunner().invoke(aft, [str(each) for each in arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_a_group_stands_in_place_of_its_tasks(runs: Path):
    run = read_run(runs / "school" / "strong")
    assert listed_names(run) == ("school",)
    assert members_of(run, "school") == ("school_sciences", "school_maths", "school_physics", "school_art")
    assert listed_names(run, members=True) == ("school", *members_of(run, "school"))
    assert listed_names(read_run(runs / "school_plain" / "strong")) == ("school_maths", "school_art")


def test_the_leaderboard_has_lm_evals_score_of_a_group_and_its_members_on_demand(runs: Path):
    entries = read_entries([runs / "school"])
    table = leaderboard(entries)
    assert [column.key for column in table.columns if "/" in column.key] == ["school/exact_match/none"]
    reported = read_run(runs / "school" / "strong").scores_of("school")[0].value
    # 4 of 4, 6 of 8 and 2 of 2 questions.
    assert reported == pytest.approx(12 / 14)
    assert sorted(row.cells[3].value for row in table.rows) == pytest.approx([3 / 14, reported])
    assert {row.cells[4].text for row in table.rows} == {"14"}
    keys = [column.key for column in leaderboard(entries, members=True).columns if "/" in column.key]
    names = ["school", "school_sciences", *TASKS]
    assert keys == [f"{name}/exact_match/none" for name in names]
    assert "school_maths exact_match %" in output("report", runs / "school", "--members")


def test_the_weights_of_a_group_are_told_from_its_score(runs: Path):
    for group, weighting in (("school", "by size"), ("school_alike", "alike")):
        run = read_run(runs / group / "strong")
        assert group_weighting(run, run.scores_of(group)[0]) == weighting


def test_a_group_weighted_by_size_is_one_test_over_its_questions(runs: Path):
    (row,) = compare_entries(*sides(runs / "school")).comparisons
    weak = [1, 0, 0, 0, 1, *[0] * 7, 1, 0]
    strong = [1] * 4 + [1] * 6 + [0] * 2 + [1] * 2
    assert (row.score.task, row.n, row.test) == ("school", 14, "exact McNemar")
    assert row.p_value == row.p_holm == mcnemar_exact(weak, strong).p_value
    assert row.difference == paired_difference_interval(weak, strong)
    reported = [read_run(runs / "school" / name).scores_of("school")[0].value for name in ("weak", "strong")]
    assert [row.baseline_mean, row.other_mean] == pytest.approx(reported)
    assert "each question counts once, as in lm-eval's score of the group (weight_by_size: true)" in row.notes


def test_a_group_whose_tasks_count_alike_is_tested_with_lm_evals_weights(runs: Path):
    (row,) = compare_entries(*sides(runs / "school_alike")).comparisons
    reported = [
        read_run(runs / "school_alike" / name).scores_of("school_alike")[0].value for name in ("weak", "strong")
    ]
    assert reported == pytest.approx([(1 / 4 + 1 / 8 + 1 / 2) / 3, (1 + 6 / 8 + 1) / 3])
    assert [row.baseline_mean, row.other_mean] == pytest.approx(reported)
    assert row.difference.estimate == pytest.approx(reported[1] - reported[0])
    assert (row.test, row.difference.method) == ("weighted sign-flip permutation", "stratified")
    deltas = [14 / (3 * 4)] * 3 + [14 / (3 * 8)] * 5 + [14 / (3 * 2)]
    assert row.p_value == paired_permutation([0.0] * 9, deltas).p_value
    assert "each task counts alike, as in lm-eval's score of the group (weight_by_size: false)" in row.notes


def test_members_are_compared_on_demand_and_not_corrected(runs: Path):
    rows = compare_entries(*sides(runs / "school"), members=True).comparisons
    assert [(row.score.task, row.member_of) for row in rows] == [
        ("school", ""),
        *((name, "school") for name in ("school_sciences", *TASKS)),
    ]
    assert [row.p_holm is None for row in rows] == [False, *[True] * 4]
    text = output("compare", runs / "school" / "weak", runs / "school" / "strong", "--members")
    assert "  school_physics exact_match" in text
    assert text.count(" than weak") == 1


def test_task_takes_groups_and_their_members(runs: Path):
    base, others = sides(runs / "school")
    for name in ("school", "school_sciences", "school_art"):
        (row,) = compare_entries(base, others, tasks=[name]).comparisons
        assert (row.score.task, row.p_holm) == (name, row.p_value)
    base, others = sides(runs / "school_plain")
    rows = compare_entries(base, others, tasks=["school_plain"]).comparisons
    assert [row.score.task for row in rows] == ["school_maths", "school_art"]
    known = "school_maths, school_art, school_plain"
    with pytest.raises(ConfigError, match=f"task college is not in both runs: .* has {known}"):
        compare_entries(base, others, tasks=["college"])
    for command in ("votes", "diagnose"):
        text = output(command, runs / "school" / "strong", "--task", "school_sciences", "--regex", r"(\d+)")
        assert "school_maths" in text
        assert "school_physics" in text
        assert "school_art" not in text


def test_the_cost_of_a_group_is_that_of_its_tasks(runs: Path):
    (entry,) = read_entries([runs / "school" / "strong"])
    cost = entry.cost_of("school")
    assert cost is not None
    assert (cost.questions, cost.usage.generations) == (14, 14)
    (row,) = compare_entries(*sides(runs / "school")).comparisons
    # One word where the answer is known, four where it is not.
    assert row.cost_ratio == pytest.approx((12 * 1 + 2 * 4) / (3 * 1 + 11 * 4))
    assert " times the generated tokens" in output("compare", runs / "school" / "weak", runs / "school" / "strong")


def test_the_page_the_card_and_plots_have_the_group(runs: Path, tmp_path: Path):
    page = tmp_path / "page.html"
    output("report", runs / "school" / "weak", runs / "school" / "strong", "--html", page)
    assert '"title":"school exact_match, %; ' in page.read_text()
    assert '"name":"school_maths"' not in page.read_text()
    card = output("report", runs / "school", "--model-card", "--baseline", runs / "school" / "weak")
    assert "--tasks school --" in card
    assert "- school: strong (1, 0) is 64.3 points better than weak (1, 0) " in card


def test_a_run_without_the_groups_score_is_compared_by_tasks(runs: Path, tmp_path: Path):
    run_lm_eval(tmp_path / "strong", TASKS, runs / "tasks", pupil(6, "strong"))
    base, others = read_sides(runs / "school" / "weak", [tmp_path / "strong"], None)
    rows = compare_entries(base, others).comparisons
    assert [row.score.task for row in rows] == TASKS


def group_run(folder: Path, value: float = 0.5, **changes: Any) -> Path:
    """A results file of two tasks and a group of them, whose score is ``value``."""
    path = make_run(folder, [1, 0])
    data = json.loads(path.read_text())
    data["results"]["g"] = {"alias": "g", "acc,none": value, "acc_stderr,none": 0.1}
    data["group_subtasks"] = {"g": ["t"]}
    path.write_text(json.dumps(data | changes))
    return path


def test_a_group_score_that_is_no_mean_is_left_out_with_the_reason(tmp_path: Path):
    for name in ("a", "b"):
        group_run(tmp_path / name, value=0.25, model_name=name)
    base, others = read_sides(tmp_path / "a", [tmp_path / "b"], None)
    with pytest.raises(RecordError, match=r"g: acc,none of m .* is no mean over its tasks, .* give --task for a task"):
        compare_entries(base, others)


@pytest.mark.parametrize(
    "subtasks",
    [{"g": ["h", "t"], "h": ["g"]}, {"g": ["t"], "t": []}, {"g": ["t", "nowhere"]}, {"g": ["t"], "h": ["nowhere"]}],
)
def test_strange_lists_of_groups_are_read(tmp_path: Path, subtasks: dict[str, list[str]]):
    run = read_run(group_run(tmp_path, group_subtasks=subtasks))
    assert listed_names(run) == ("g",)
    assert run.tasks_of("g") == ("t",)


def test_other_settings_of_a_group_are_one_remark(runs: Path, tmp_path: Path):
    for name in ("a", "b", "c"):
        run_lm_eval(
            tmp_path / name, ["school"], runs / "tasks", pupil(2, name), options={"limit": 3 if name == "c" else None}
        )
    notes = [row.notes for row in leaderboard(read_entries([tmp_path])).rows]
    assert notes == [
        (),
        (),
        ("school: do not compare this row with the others: 8 questions instead of 14.",),
    ]

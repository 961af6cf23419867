"""aft sweep: the plan, reuse, continuing, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from lm_eval_aft.cli import aft
from lm_eval_aft.errors import ConfigError
from lm_eval_aft.plan import grid, plan_of
from lm_eval_aft.records import Sampling
from lm_eval_aft.store import SQLiteStore

pytestmark = pytest.mark.usefixtures("quick_lm_eval")
SAMPLED, GREEDY = Sampling(0.7, 0.95, 0, 64), Sampling(0.0, 0.95, 0, 64)
KS, LAYERS = [1, 3, 5], [0, 1, 2, 3]  # the paper's grid, for the plan
SMALL = [(1, 0), (1, 2), (3, 2)]  # what the runs below do: lm-eval takes seconds per run to describe the machine


@pytest.mark.parametrize(("final", "distinct"), [(SAMPLED, 26), (GREEDY, 33), (Sampling(0.7, 1.0, 0, 64), 33)])
def test_the_plan_of_the_papers_grid(final, distinct):
    plan = plan_of(KS, LAYERS, SAMPLED, final)
    assert (plan.distinct, plan.separate) == (distinct, 66)


def test_greedy_drafts_are_one_text():
    assert plan_of([5], [1], GREEDY, GREEDY).distinct == 2


def test_points_run_from_the_cheapest_and_layers_0_once():
    assert grid(KS, LAYERS)[:5] == [(1, 0), (1, 1), (1, 2), (3, 1), (1, 3)]
    assert len(grid(KS, LAYERS)) == 10


def run(tmp_path: Path, *more: str, expect: int = 0):
    arguments = ["sweep", "--tasks", "aft_demo", "--output_path", str(tmp_path / "out"), "--limit", "4"]
    if "--k" not in more:
        more = ("--k", "1,3", *more)
    if "--layers" not in more:
        more = ("--layers", "0,2", *more)
    if "--model_args" not in more:
        more = ("--model_args", "engine=scripted", *more)
    result = CliRunner().invoke(aft, [*arguments, "--apply_chat_template", *more])
    if expect == 0 and result.exception:
        raise result.exception
    return result


@pytest.fixture(scope="module")
def done(tmp_path_factory, quick_lm_eval):
    folder = tmp_path_factory.mktemp("sweep")
    return folder, run(folder).output


def test_it_generates_what_the_plan_says(done):
    folder, output = done
    assert "aft_demo: 10 generations a question instead of 12" in output
    assert SQLiteStore(folder / "out" / "drafts.sqlite").info().generations == 4 * 10


def test_every_point_is_an_lm_eval_results_folder(done):
    folder, _ = done
    for k, layers in SMALL:
        point = folder / "out" / f"k{k}_l{layers}"
        (results,) = point.rglob("results_*.json")
        config = json.loads(results.read_text())["config"]
        assert (config["model"], config["aft"]["k"], config["aft"]["layers"]) == ("aft", k, layers)
        assert config["aft"]["usage"]["generations"] == 4 * (k * layers + 1)
        assert len(list(point.rglob("samples_aft_demo_*.jsonl"))) == 1
        assert len(list((point / "traces").glob("*.jsonl"))) == 1


def test_the_summary_has_scores_intervals_and_cost(done):
    folder, output = done
    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert len(summary["rows"]) == 3 * 2  # two filters
    for row in summary["rows"]:
        assert row["generations"] == row["k"] * row["layers"] + 1
        assert row["low"] <= row["value"] <= row["high"]
        assert row["questions"] == 4
    assert (folder / "out" / "summary.md").read_text().strip() in output


def test_again_it_skips_and_a_lost_point_is_made_from_the_store(done):
    folder, first = done
    assert run(folder).output.count("done before, skipped") == 3
    (folder / "out" / "k3_l2" / "point.json").unlink()
    output = run(folder).output
    assert output.count("done before, skipped") == 2
    assert "0 new generations" in output
    assert output.rsplit("| k |", 1)[1].strip() == first.rsplit("| k |", 1)[1].strip()  # the same table


def test_other_settings_in_the_same_folder_are_refused(done):
    folder, _ = done
    with pytest.raises(ConfigError, match="other settings"):
        run(folder, "--model_args", "engine=scripted,temperature=0.9")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--model_args", "engine=scripted,k=3"), "k=3 contradicts the sweep: use --k"),
        (("--k", "0"), "--k=0 is not allowed"),
        (("--layers", "1,x"), "--layers=x is not allowed"),
    ],
)
def test_bad_input(tmp_path, more, said):
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, *more)
    assert said in str(caught.value)


class TestCache:
    def test_info_and_verify(self, done):
        folder, _ = done
        store = str(folder / "out" / "drafts.sqlite")
        assert "40 generations" in CliRunner().invoke(aft, ["cache", "info", store]).output
        verified = CliRunner().invoke(aft, ["cache", "verify", store])
        assert (verified.exit_code, "0 damaged" in verified.output) == (0, True)

    def test_a_damaged_row_is_listed_with_exit_code_1(self, done, tmp_path):
        import shutil
        import sqlite3

        folder, _ = done
        copy = tmp_path / "copy.sqlite"
        shutil.copy(folder / "out" / "drafts.sqlite", copy)
        with sqlite3.connect(copy) as db:
            db.execute("UPDATE generations SET text = 'x' WHERE key = (SELECT min(key) FROM generations)")
        db.close()
        verified = CliRunner().invoke(aft, ["cache", "verify", str(copy)])
        assert (verified.exit_code, "1 damaged" in verified.output) == (1, True)

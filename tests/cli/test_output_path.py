"""Every command reads a run that --output_path wrote as DIR/FILE_<stamp>.json."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.lm_eval_runs import run_lm_eval
from lm_eval_aft.cli import aft

pytestmark = pytest.mark.usefixtures("quick_lm_eval")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, quick_lm_eval: None) -> Path:
    """A folder with two runs of aft_demo under names of their own, and their traces elsewhere."""
    out = tmp_path_factory.mktemp("named")
    for name, layers in (("single", 0), ("aggregate", 1)):
        model_args = {"engine": "scripted", "k": 3, "layers": layers, "record": str(out / "traces")}
        run_lm_eval(out / "runs" / f"{name}.json", ["aft_demo"], options={"limit": 4}, **model_args)
    return out / "runs"


def output(*arguments: object) -> str:
    done = CliRunner().invoke(aft, [str(each) for each in arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


@pytest.mark.parametrize("name", ["", "single.json"])
def test_a_run_is_read_by_its_folder_and_by_the_path_that_was_given(out: Path, name: str):
    table = output("report", out / name)
    assert "scripted (1, 0)" in table
    assert ("scripted (3, 1)" in table) == (name == "")


def test_commands_that_read_traces_take_the_path_that_was_given(out: Path, tmp_path: Path):
    (results,) = out.glob("aggregate_*.json")
    for path in (out / "aggregate.json", results):
        assert "k=3, layers=1" in output("votes", path)
        diagnosis = output("diagnose", path)
        assert diagnosis.count("k=3, layers=1") == 1
        assert "layers=0" not in diagnosis
    compared = output("compare", out / "single.json", out / "aggregate.json")
    assert compared.startswith("aft_demo, filter flexible-extract: scripted (3, 1) is ")
    assert "png" in output("plot", out / "single.json", out / "aggregate.json", "--png", tmp_path)

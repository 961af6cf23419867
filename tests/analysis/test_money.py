"""Reports and comparisons show the cost in money and in tokens."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from helpers.graded_tasks import graded_task
from helpers.lm_eval_runs import run_lm_eval
from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.cli import aft
from lm_eval_aft.core.errors import ConfigError, RecordError

pytestmark = pytest.mark.usefixtures("quick_lm_eval")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: one that states what its tokens cost, and one that does not."""
    folder = tmp_path_factory.mktemp("money")
    costs = {"price_in": 2, "price_out": 10}
    for name, layers, more in (("priced", 1, costs), ("plain", 0, {})):
        record = str(folder / name / "traces")
        run_lm_eval(folder / name, [graded_task()], engine="scripted", k=2, layers=layers, record=record, **more)
    return folder


def run(*words: object) -> str:
    return CliRunner().invoke(aft, [str(word) for word in words], standalone_mode=False, catch_exceptions=False).output


def by_hand(folder: Path, prompt: float, generated: float) -> float:
    """The cost of one of the three questions."""
    (entry,) = read_entries([folder])
    usage = entry.run.usage
    return (usage.prompt_tokens * prompt + usage.generated_tokens * generated) / 1e6 / 3


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_a_report_shows_the_cost_of_a_question(out):
    priced, plain = sorted(rows(run("report", out, "--format", "csv")), key=lambda row: -int(row["layers"]))
    assert float(priced["cost"]) == pytest.approx(by_hand(out / "priced", 2, 10))
    assert plain["cost"] == ""
    assert "cost" not in rows(run("report", out / "plain", "--format", "csv"))[0]


def test_frames_hold_the_cost_of_a_question(out):
    from lm_eval_aft import frames

    costs = frames(str(out)).runs.groupby("layers")["cost"].first()
    assert costs[1] == pytest.approx(by_hand(out / "priced", 2, 10))
    assert costs.isna()[0]


def test_options_give_the_cost_of_runs_that_do_not_state_it(out):
    text = run("report", out, "--format", "csv", "--price-in", 1, "--price-out", 3)
    priced, plain = sorted(rows(text), key=lambda row: -int(row["layers"]))
    assert float(priced["cost"]) == pytest.approx(by_hand(out / "priced", 2, 10))
    assert float(plain["cost"]) == pytest.approx(by_hand(out / "plain", 1, 3))
    with pytest.raises(ConfigError, match="--price-in and --price-out need each other"):
        run("report", out, "--price-in", 1)


def test_a_comparison_shows_the_cost_of_a_question(out):
    text = run("compare", out / "plain", out / "priced", "--price-in", 1, "--price-out", 3, "--format", "text")
    table = text[text.index("Cost of a question") :].splitlines()
    head, line = (next(each for each in table if word in each) for word in ("run  ", "(2, 1)"))
    assert head.split()[-1] == "cost"
    assert float(line.split()[-1]) == pytest.approx(by_hand(out / "priced", 2, 10), rel=1e-3)


@pytest.mark.parametrize("value", [-1, "x", True, 1e400, [1]])
def test_a_damaged_cost_is_refused(out, tmp_path, value: Any):
    (file,) = (out / "priced").rglob("results_*.json")
    for place in ("usage", "aft"):
        data = json.loads(file.read_text(encoding="utf-8"))
        settings = data["config"]["aft"]
        settings["usage"] |= {"cost": value} if place == "usage" else {}
        settings |= {"price_in": value} if place == "aft" else {}
        (tmp_path / file.name).write_text(json.dumps(data), encoding="utf-8")
        with pytest.raises(RecordError, match="is not a results file of lm-eval"):
            read_entries([tmp_path])

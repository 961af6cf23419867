"""Runs with several models in reports: their labels, the cost of each model, their traces and their drafts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.made_runs import make_run
from lm_eval_aft.analysis.report.leaderboard import models_table
from lm_eval_aft.analysis.report.model_card import command
from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.analysis.votes import drafter_of
from lm_eval_aft.cli import aft
from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.storage.results import read_run

ONE = {"model": "hub/one", "fingerprint": "1", "engine": "hf", "template": {"name": "default", "sha256": "ab"}}
TWO = {**ONE, "model": "/disk/two", "fingerprint": "2"}


def several(folder: Path, scores=(1, 0, 1, 1), tokens: int = 300, **settings) -> Path:
    """A run of the model /disk/m with further models. Each of its two models has half of the cost."""
    path = make_run(folder, scores, model="/disk/m", tokens=tokens)
    data = json.loads(path.read_text())
    ours = data["config"]["aft"]
    half = {name: count // 2 for name, count in ours["usage"].items()}
    ours |= {"usage_by_model": {"m": half, "one": half}, **settings}
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({"aggregator": ONE}, "m -> one (5, 2)"),
        ({"aggregator": TWO}, "m -> two (5, 2)"),
        ({"proposers": [ONE, TWO]}, "one + two -> m (5, 2)"),
        ({"proposers": [ONE]}, "one -> m (5, 2)"),
        ({"aggregator": None, "proposers": []}, "m (5, 2)"),
    ],
)
def test_a_label_names_the_models_in_the_order_in_which_they_write(tmp_path, settings, label):
    several(tmp_path, **settings)
    (entry,) = read_entries([tmp_path])
    assert entry.label == label


def test_a_label_says_whose_drafts_were_given(tmp_path):
    several(tmp_path / "a", drafts_from={"model": "/disk/one", "fingerprint": "1", "k": 5})
    several(tmp_path / "b", drafts_from={"model": "m", "fingerprint": "0", "proposers": [ONE, TWO]})
    found = [entry.label for entry in read_entries([tmp_path])]
    assert found == ["m (5, 2) drafts_from=one", "m (5, 2) drafts_from=one + two -> m"]


def test_the_cost_of_each_model_is_a_table_of_its_own(tmp_path):
    several(tmp_path / "a", aggregator=ONE)
    make_run(tmp_path / "b", [1, 0, 1, 0], model="plain")
    table = models_table(read_entries([tmp_path]))
    assert [[cell.text for cell in row.cells] for row in table.rows] == [
        ["m -> one (5, 2)", "m", "5.5", "150", "4", "3.5"],
        ["m -> one (5, 2)", "one", "5.5", "150", "4", "3.5"],
    ]
    assert models_table(read_entries([tmp_path / "b"])) is None


@pytest.mark.parametrize("form", ["text", "markdown", "json"])
def test_report_and_compare_show_it(tmp_path, form):
    several(tmp_path / "a", aggregator=ONE)
    make_run(tmp_path / "b", [1, 0, 1, 0], model="plain")
    result = CliRunner().invoke(aft, ["report", str(tmp_path), "--format", form])
    assert (result.exit_code, "Cost of a question by model" in result.stdout) == (0, True)
    if form != "json":
        paths = [str(tmp_path / "b"), str(tmp_path / "a")]
        result = CliRunner().invoke(aft, ["compare", *paths, "--format", form])
        assert "Cost of a question by model" in result.stdout


def test_the_page_and_the_card_show_it(tmp_path):
    several(tmp_path / "a", aggregator=ONE)
    page = tmp_path / "page.html"
    result = CliRunner().invoke(aft, ["report", str(tmp_path), "--model-card", "--html", str(page)])
    assert result.exit_code == 0, result.output
    assert "**Cost of a question by model**" in result.stdout
    assert '"title":"Cost of a question by model"' in page.read_text()


def test_a_csv_file_has_the_leaderboard_alone(tmp_path):
    several(tmp_path, aggregator=ONE)
    result = CliRunner().invoke(aft, ["report", str(tmp_path), "--format", "csv"])
    assert len(result.stdout.strip().splitlines()) == 2


def test_a_card_names_no_folders_of_further_models(tmp_path):
    path = several(tmp_path, proposers=[ONE, TWO])
    data = json.loads(path.read_text())
    data["config"]["model_args"] = {"pretrained": "hub/m", "proposers": [{"pretrained": "/disk/two"}, {"peft": "a/b"}]}
    path.write_text(json.dumps(data))
    assert '{"pretrained": "hub/m", "proposers": [{"pretrained": "two"}, {"peft": "b"}]}' in command(read_run(tmp_path))


@pytest.mark.parametrize(
    "damage",
    [
        {"proposers": "one"},
        {"proposers": [1]},
        {"proposers": [{"model": "one"}]},
        {"aggregator": "one"},
        {"aggregator": {"model": 1, "fingerprint": "1"}},
        {"usage_by_model": [1]},
        {"usage_by_model": {"m": {"generations": -1}}},
    ],
)
def test_a_damaged_description_of_models_is_refused(tmp_path, damage):
    several(tmp_path, **damage)
    with pytest.raises(RecordError, match="results_"):
        read_run(tmp_path)


def test_drafts_of_proposers_are_those_of_neither_model_alone():
    drafter = drafter_of({"model": "m", "fingerprint": "0", "proposers": [ONE, TWO]})
    assert drafter == {"model": "hub/one + /disk/two", "fingerprint": "1 + 2"}
    given = drafter_of({"model": "m", "drafts_from": {"model": "x", "fingerprint": "9", "proposers": [ONE, TWO]}})
    assert given == drafter
    settings = {"model": "m", "fingerprint": "0", "aggregator": ONE}
    assert drafter_of(settings) is settings

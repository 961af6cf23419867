"""Scores as the Hugging Face hub reads them: ``model-index`` in a card, and files in ``.eval_results``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import yaml
from huggingface_hub import EvalResultEntry, ModelCard, eval_result_entries_to_yaml, parse_eval_result_entries

from helpers.commands import output_of, refusal_of
from helpers.made_runs import add_task, make_run

GSM8K = {"t": {"dataset_path": "openai/gsm8k", "dataset_name": "main", "test_split": "test"}}


report, refused = partial(output_of, "report"), partial(refusal_of, "report")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A model in two variants, and another model."""
    make_run(tmp_path / "aft", [1, 1, 0, 1], model="me/m", configs=GSM8K, date=1_800_000_000.0)
    make_run(tmp_path / "one", [1, 0, 0, 1], k=1, layers=0, model="me/m", configs=GSM8K)
    make_run(tmp_path / "sft", [1, 0, 0, 0], k=1, layers=0, model="me/sft", configs=GSM8K)
    return tmp_path


def entries_of(folder: Path, name: str) -> list[EvalResultEntry]:
    rows = yaml.safe_load((folder / ".eval_results" / f"{name}.yaml").read_text())
    read = parse_eval_result_entries(rows)
    assert eval_result_entries_to_yaml(read) == rows
    return read


def test_the_card_is_a_valid_model_card_with_an_entry_a_variant(runs: Path):
    card = ModelCard(report(runs / "aft", runs / "one", "--model-card"))
    assert card.data.model_name == "me/m"
    results = card.data.eval_results
    assert [(result.metric_name, result.metric_value) for result in results] == [
        ("t acc: m (5, 2)", 0.75),
        ("t acc: m (1, 0)", 0.5),
    ]
    assert {(result.dataset_type, result.dataset_config, result.dataset_split) for result in results} == {
        ("openai/gsm8k", "main", "test")
    }
    assert (results[0].metric_args["k"], results[0].metric_args["layers"]) == (5, 2)
    assert card.text.startswith("\n## Evaluation")


def test_each_model_of_a_card_has_its_own_scores(runs: Path):
    index = yaml.safe_load(report(runs, "--model-card").split("---\n")[1])["model-index"]
    assert [(model["name"], len(model["results"][0]["metrics"])) for model in index] == [("me/m", 2), ("me/sft", 1)]


def test_a_file_a_variant_says_how_the_score_was_reached(runs: Path):
    report(runs / "aft", runs / "one", "--eval-results", runs / "out")
    (entry,) = entries_of(runs / "out", "m__5__2_")
    assert (entry.dataset_id, entry.task_id, entry.value, entry.date) == (
        "openai/gsm8k",
        "main",
        75.0,
        "2027-01-15T08:00:00Z",
    )
    assert entry.notes == (
        "m (5, 2); t acc; n=4; 0-shot; k=5, layers=2, aggregate; 11 generations and 300 generated tokens a question; "
        "lm_eval 0.4.13 with lm_eval_aft 0.1.0"
    )
    (single,) = entries_of(runs / "out", "m__1__0_")
    assert (single.value, single.date) == (50.0, None)


def test_a_benchmark_can_be_named(runs: Path):
    make_run(runs / "local", [1, 0], model="n")
    report(runs / "local", "--eval-results", runs / "out", "--benchmark", "t=openai/gsm8k:gsm8k")
    (entry,) = entries_of(runs / "out", "n__5__2_")
    assert (entry.dataset_id, entry.task_id) == ("openai/gsm8k", "gsm8k")


def test_a_score_of_another_unit_is_written_as_it_is(tmp_path: Path):
    make_run(tmp_path, [7.5, 8.5], metric="rating", configs=GSM8K)
    report(tmp_path, "--eval-results", tmp_path / "out")
    assert entries_of(tmp_path / "out", "m__5__2_")[0].value == 8.0


def test_a_task_without_a_dataset_of_the_hub_is_named(runs: Path, caplog: pytest.LogCaptureFixture):
    add_task(runs / "aft", "u", [1, 0])
    report(runs / "aft", "--eval-results", runs / "out")
    assert "u of m (5, 2) is left out, since the task loads no dataset of the hub: give --benchmark." in caplog.text
    assert len(entries_of(runs / "out", "m__5__2_")) == 1


@pytest.mark.parametrize("path", ["json", "/disk/rows", "a/b/c", "./a", "../b", ""])
def test_a_local_dataset_is_none_of_the_hub(tmp_path: Path, path: str):
    make_run(tmp_path, [1, 0], configs={"t": {"dataset_path": path}})
    message = refused(tmp_path, "--eval-results", tmp_path / "out")
    assert "no score of these runs belongs to a dataset of the hub" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--benchmark", "t=a/b:c"], "--benchmark is for --eval-results"),
        (["--eval-results", "OUT", "--benchmark", "t=b:c"], "is not TASK=OWNER/NAME:TASK_ID"),
        (["--eval-results", "OUT", "--benchmark", "u=a/b:c"], "--benchmark names 'u', and the runs have t"),
        (["--eval-results", ""], "the path of --eval-results is empty"),
    ],
)
def test_bad_input_is_one_sentence(runs: Path, words: list[str], sentence: str):
    message = refused(runs / "aft", *(str(runs / "out") if word == "OUT" else word for word in words))
    assert sentence in message
    assert not (runs / "out").exists()


def test_a_score_that_is_no_number_is_in_no_form(tmp_path: Path):
    make_run(tmp_path / "run", [1, float("nan")], configs=GSM8K)
    assert yaml.safe_load(report(tmp_path, "--model-card").split("---\n")[1]) == {"model-index": []}
    refused(tmp_path, "--eval-results", tmp_path / "out")


def test_names_from_files_cannot_end_the_head_of_the_card(tmp_path: Path):
    make_run(tmp_path, [1, 0], task="t\n---\n\u202e", model="m: \x1b[2J\n---")
    head, text = report(tmp_path, "--model-card").split("\n---\n", 1)
    (model,) = yaml.safe_load(head.removeprefix("---\n"))["model-index"]
    assert model["name"] == "m: <U+001B>[2J ---"
    assert text.lstrip().startswith("## Evaluation")

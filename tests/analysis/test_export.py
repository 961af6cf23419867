"""``aft export``: frames as files, and records of Every Eval Ever."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas
import pytest

import lm_eval_aft
from helpers.commands import output_of, refusal_of
from helpers.made_runs import make_run
from helpers.made_traces import SETTINGS, trace_of_texts
from helpers.paths import ROOT
from lm_eval_aft.analysis.every_eval_ever import Publisher, write_every_eval_ever
from lm_eval_aft.analysis.frames import DRAFT_COLUMNS, RUN_COLUMNS, SAMPLE_COLUMNS
from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.core.errors import ConfigError, RecordError
from lm_eval_aft.storage.traces import write_traces

FILES = ROOT / "tests" / "fixtures"
RUNS = FILES / "version_0_1_0"
# To make the golden files again, copy what the test of them writes.
GOLDEN = FILES / "every_eval_ever"
COLUMNS = {"runs": RUN_COLUMNS, "samples": SAMPLE_COLUMNS, "drafts": DRAFT_COLUMNS}
READERS = {
    "parquet": pandas.read_parquet,
    "csv": pandas.read_csv,
    "jsonl": lambda path: pandas.read_json(path, lines=True, precise_float=True, dtype=False),
}
NOW = 1_800_000_000.5


export, refused = partial(output_of, "export"), partial(refusal_of, "export")


# ---------------------------------------------------------------- tables


@pytest.mark.parametrize("form", READERS)
def test_the_files_hold_the_frames(tmp_path: Path, form: str):
    export(RUNS / "aft", RUNS / "sft", "--output", tmp_path, "--format", form)
    frames = lm_eval_aft.frames(RUNS / "aft", RUNS / "sft")
    for name, columns in COLUMNS.items():
        read, made = READERS[form](tmp_path / f"{name}.{form}"), getattr(frames, name)
        assert list(read) == list(columns)
        assert len(read) == len(made) > 0
        for column in {"run", "score", "k", "doc_id", "text", "seed", "generated_tokens", "right"} & set(columns):
            assert read[column].tolist() == made[column].tolist(), column
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.{form}" for name in COLUMNS}


def test_parquet_keeps_the_type_of_a_column_without_values(tmp_path: Path):
    make_run(tmp_path / "run", [1, 0], k=None)
    export(tmp_path / "run", "--output", tmp_path / "out")
    drafts = pandas.read_parquet(tmp_path / "out" / "drafts.parquet", dtype_backend="pyarrow")
    assert drafts.empty
    assert [str(drafts[name].dtype) for name in ("text", "seed", "right", "elapsed_s")] == [
        "string[pyarrow]",
        "int64[pyarrow]",
        "bool[pyarrow]",
        "double[pyarrow]",
    ]


@pytest.mark.parametrize("form", READERS)
def test_a_text_that_no_file_can_hold_is_replaced(tmp_path: Path, form: str):
    trace = trace_of_texts(["aHALFb", "=1+1\n2"], ["8"], task="t")
    write_traces(str(tmp_path / "run" / "traces"), SETTINGS | {"k": 2, "layers": 1, "model": "m"}, [trace])
    (traces,) = (tmp_path / "run").rglob("*.jsonl")
    traces.write_text(traces.read_text().replace("HALF", r"\ud800"))
    make_run(tmp_path / "run", [1], k=2, layers=1)
    export(tmp_path / "run", "--output", tmp_path / "out", "--format", form)
    texts = READERS[form](tmp_path / "out" / f"drafts.{form}")["text"].astype(str).tolist()
    formula = "'=1+1 2" if form == "csv" else "=1+1\n2"
    assert texts == ["a?b", formula, "8"]


def test_json_lines_hold_each_number_exactly_and_no_infinity(tmp_path: Path):
    path = make_run(tmp_path / "run", [1, 0], k=None)
    row = {"alias": "t", "acc,none": 1.5e-17, "acc_stderr,none": 1e308, "f1,none": float("inf")}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"results": {"t": row}}))
    export(tmp_path / "run", "--output", tmp_path / "out", "--format", "jsonl")
    lines = (tmp_path / "out" / "runs.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [(row["score"], row["stderr"], row["n"]) for row in rows] == [(1.5e-17, 1e308, 2), (None, None, 2)]


def test_a_failed_export_leaves_the_older_file(tmp_path: Path):
    export(RUNS / "aft", "--output", tmp_path)
    before = (tmp_path / "runs.parquet").read_bytes()
    run = tmp_path / "run"
    shutil.copytree(RUNS / "aft", run)
    (samples,) = run.rglob("samples_*.jsonl")
    samples.write_text("{")
    assert "samples_" in refused(run, "--output", tmp_path)
    assert (tmp_path / "runs.parquet").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_a_missing_pyarrow_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow, or give --format jsonl" in refused(RUNS / "aft", "--output", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--format", "csv", "--every-eval-ever"], "--format is for tables: leave out it or --every-eval-ever"),
        (["--organization", "us"], "--organization is for --every-eval-ever: add it"),
        (["--output", ROOT / "README.md"], "README.md/runs.parquet cannot be written"),
        (["--output", ROOT / "README.md", "--every-eval-ever"], "cannot be written"),
        (["--output", ""], "the path of --output is empty"),
        (["--regex", "("], "regex"),
    ],
)
def test_bad_input_is_one_sentence(words: list[object], sentence: str):
    assert sentence in refused(RUNS / "aft", *words)


# ---------------------------------------------------------------- Every Eval Ever


def records(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    return [(path, json.loads(path.read_text())) for path in sorted(folder.rglob("*.json"))]


def test_the_records_are_the_golden_files(tmp_path: Path):
    entries = read_entries([RUNS / "aft", RUNS / "sft"])
    write_every_eval_ever(tmp_path, entries, Publisher("us", "first_party", "us"), NOW)
    written = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*.json*")}
    expected = {path.relative_to(GOLDEN).as_posix(): path for path in GOLDEN.rglob("*.json*")}
    assert written.keys() == expected.keys()
    for name, path in written.items():
        assert path.read_text() == expected[name].read_text(), name


def test_a_record_has_what_the_format_requires(tmp_path: Path):
    """The required parts of schema version 0.3.0, in our words."""
    export(RUNS / "aft", "--every-eval-ever", "--output", tmp_path)
    ((path, record),) = records(tmp_path)
    assert record["schema_version"] == "0.3.0"
    assert float(record["retrieved_timestamp"]) > record["evaluation_results"][0]["score_details"]["score"] == 0.5
    source = record["source_metadata"]
    assert (source["source_type"], source["source_organization_name"]) == ("evaluation_run", "unknown")
    assert source["evaluator_relationship"] == "other"
    assert record["eval_library"]["name"] == "lm_eval"
    details = record["model_info"]["additional_details"]
    assert (details["deployment_type"], details["model_availability"]) == ("self_deployed", "unknown")
    assert all(isinstance(value, str) for value in details.values())
    (result,) = record["evaluation_results"]
    assert {"evaluation_name", "source_data", "metric_config", "score_details"} <= result.keys()
    assert result["metric_config"]["lower_is_better"] is False
    samples = record["detailed_evaluation_results"]
    assert samples["file_path"] == path.relative_to(tmp_path).as_posix().replace(".json", "_samples.jsonl")
    file = tmp_path / samples["file_path"]
    assert samples["checksum"] == sha256(file.read_bytes()).hexdigest()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == samples["total_rows"] == 8
    assert {row["evaluation_id"] for row in rows} == {record["evaluation_id"]}
    assert {row["evaluation_result_id"] for row in rows} == {result["evaluation_result_id"]}
    assert sum(row["evaluation"]["is_correct"] for row in rows) == 4


def test_exporting_again_replaces_the_record(tmp_path: Path):
    for _ in range(2):
        export(RUNS / "aft", "--every-eval-ever", "--output", tmp_path)
    assert len(records(tmp_path)) == 1


def test_a_record_names_the_dataset_of_the_hub_and_no_folder(tmp_path: Path):
    configs = {"t": {"dataset_path": "openai/gsm8k", "dataset_name": "main", "test_split": "test"}}
    make_run(tmp_path / "run", [1, 0], model="/disk/of/me/m", configs=configs)
    export(tmp_path / "run", "--every-eval-ever", "--output", tmp_path / "out")
    ((path, record),) = records(tmp_path / "out")
    source = record["evaluation_results"][0]["source_data"]
    assert (source["source_type"], source["hf_repo"], source["hf_split"]) == ("hf_dataset", "openai/gsm8k", "test")
    assert record["model_info"]["id"] == "m"
    assert "/disk" not in path.read_text()


@pytest.mark.parametrize("task", ["data", "con", "a/b", "..", "x" * 300])
def test_any_name_of_a_task_is_a_folder_of_the_datastore(tmp_path: Path, task: str):
    make_run(tmp_path / "run", [1, 0])
    (results,) = (tmp_path / "run").glob("results_*")
    results.write_text(results.read_text().replace('"t"', json.dumps(task)))
    export(tmp_path / "run", "--every-eval-ever", "--output", tmp_path / "out")
    ((path, _),) = records(tmp_path / "out")
    parts = path.relative_to(tmp_path / "out").parts
    assert len(parts) == 5
    assert parts[0] == "data"
    assert parts[1].upper() not in {"DATA", "CON", "..", "."}


def test_a_score_that_is_no_number_is_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    make_run(tmp_path / "a", [1, float("nan")], task="t")
    with pytest.raises(ConfigError, match="nothing to export"):
        write_every_eval_ever(tmp_path / "out", read_entries([tmp_path / "a"]), Publisher(), NOW)
    assert "acc,none of t in m (5, 2) is left out: it is not a number." in caplog.text


def test_a_score_that_is_no_number_is_named_once_beside_another(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = make_run(tmp_path / "a", [1, 0])
    row = {"alias": "t", "acc,none": 0.5, "f1,none": float("inf")}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"results": {"t": row}}))
    write_every_eval_ever(tmp_path / "out", read_entries([tmp_path / "a"]), Publisher(), NOW)
    ((_, record),) = records(tmp_path / "out")
    assert [result["metric_config"]["metric_id"] for result in record["evaluation_results"]] == ["acc"]
    assert caplog.messages == ["f1,none of t in m (5, 2) is left out: it is not a number."]


def test_a_question_without_a_number_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    make_run(tmp_path / "a", [1, 0])
    (samples,) = (tmp_path / "a").glob("samples_*")
    samples.write_text(samples.read_text().replace('"acc": 0', '"acc": null'))
    write_every_eval_ever(tmp_path / "out", read_entries([tmp_path / "a"]), Publisher(), NOW)
    ((_, record),) = records(tmp_path / "out")
    assert record["detailed_evaluation_results"]["total_rows"] == 1
    assert "1 of the questions of t in m (5, 2) are left out" in caplog.text


def logged_dialogue(folder: Path, resps: list[str], filtered: str, **change: Any) -> dict[str, Any]:
    """The exported row of a request with two later turns."""
    make_run(folder / "run", [0.5])
    (file,) = (folder / "run").glob("samples_*")
    said = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "2+2?"}]
    arguments = {"arg_0": "<u>2+2?", "arg_1": {"turns": ["and twice?", "and half?"]}, "arg_2": {"messages": said}}
    row = {"arguments": {"gen_args_0": {**arguments, **change}}, "resps": [resps], "filtered_resps": [filtered]}
    file.write_text(json.dumps({**json.loads(file.read_text()), **row}) + "\n")
    write_every_eval_ever(folder / "out", read_entries([folder / "run"]), Publisher(), NOW)
    (samples,) = (folder / "out").rglob("*_samples.jsonl")
    (exported,) = [json.loads(line) for line in samples.read_text().splitlines()]
    return exported


def turns(*answers: str) -> str:
    return json.dumps({"turns": answers})


def test_a_dialogue_is_multi_turn(tmp_path: Path):
    row = logged_dialogue(tmp_path, [turns("4", "8", "2")], turns("4", "8", "2"))
    assert row["interaction_type"] == "multi_turn"
    assert row["messages"] == [
        {"turn_idx": 0, "role": "system", "content": "be brief"},
        {"turn_idx": 1, "role": "user", "content": "2+2?"},
        {"turn_idx": 2, "role": "assistant", "content": "4"},
        {"turn_idx": 3, "role": "user", "content": "and twice?"},
        {"turn_idx": 4, "role": "assistant", "content": "8"},
        {"turn_idx": 5, "role": "user", "content": "and half?"},
        {"turn_idx": 6, "role": "assistant", "content": "2"},
    ]
    assert row["input"]["raw"] == "2+2?\nand twice?\nand half?"
    assert row["evaluation"] == {"score": 0.5, "is_correct": False, "num_turns": 7}
    found = [(a["turn_idx"], a["source"], a["extracted_value"], a["is_terminal"]) for a in row["answer_attribution"]]
    assert found == [
        (2, "messages[2].content", "4", False),
        (4, "messages[4].content", "8", False),
        (6, "messages[6].content", "2", True),
    ]
    assert "output" not in row
    assert "other_responses" not in row["metadata"]


def test_what_a_filter_takes_from_a_dialogue_is_shown_at_the_last_answer(tmp_path: Path):
    row = logged_dialogue(tmp_path, [turns("4", "8", "2")], "2.0")
    (found,) = row["answer_attribution"]
    assert (found["turn_idx"], found["extracted_value"], found["is_terminal"]) == (6, "2.0", True)


def test_a_prefill_is_the_beginning_of_the_first_answer(tmp_path: Path):
    said = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "It is "}]
    row = logged_dialogue(tmp_path, [turns("4", "8", "2")], "", arg_2={"messages": said})
    assert [message["content"] for message in row["messages"][:4]] == ["2+2?", "It is 4", "and twice?", "8"]


def test_the_dialogues_of_repeats_are_kept(tmp_path: Path):
    first, second = turns("4", "8", "2"), turns("5", "6", "7")
    row = logged_dialogue(tmp_path, [first, second], first)
    assert [message["content"] for message in row["messages"]][2::2] == ["4", "8", "2"]
    assert json.loads(row["metadata"]["other_responses"]) == [second]


@pytest.mark.parametrize("response", ["no JSON", "[]", '{"turns": 4}', turns("4", "8")])
def test_a_response_without_an_answer_to_each_turn_is_exported_as_it_is(tmp_path: Path, response: str):
    row = logged_dialogue(tmp_path, [response], response)
    assert (row["interaction_type"], row["output"]) == ("single_turn", {"raw": [response]})
    assert "messages" not in row


def test_a_damaged_chat_of_a_dialogue_is_one_sentence(tmp_path: Path):
    with pytest.raises(RecordError, match=r"samples_t_.*jsonl: a task changed the chat context"):
        logged_dialogue(tmp_path, [turns("4", "8", "2")], "", arg_0='{"aft_chat": 3}', arg_2={})


def test_a_length_is_neither_better_nor_worse(tmp_path: Path):
    make_run(tmp_path / "a", [9, 7], metric="avg_length", higher_is_better={"t": {"avg_length": None}})
    write_every_eval_ever(tmp_path / "out", read_entries([tmp_path / "a"]), Publisher(), NOW)
    ((_, record),) = records(tmp_path / "out")
    config = record["evaluation_results"][0]["metric_config"]
    assert "score_type" not in config
    assert config["additional_details"]["direction"] == "neither more nor less is better"


def test_a_run_of_another_model_has_no_cost(tmp_path: Path):
    make_run(tmp_path / "a", [1, 0], k=None)
    write_every_eval_ever(tmp_path / "out", read_entries([tmp_path / "a"]), Publisher(), NOW)
    ((_, record),) = records(tmp_path / "out")
    assert record["evaluation_results"][0]["score_details"]["details"] == {}
    assert "k" not in record["model_info"]["additional_details"]


@pytest.mark.parametrize("option", ["--format", "--output"])
def test_wandb_writes_no_files_so_their_options_are_refused(tmp_path: Path, option: str):
    make_run(tmp_path / "run", [0, 1])
    sentence = f"{option} is for files, and --wandb writes none: leave one of them out."
    assert refused(tmp_path / "run", "--wandb", "p", option, "csv") == sentence

"""Reading lm-eval's files: values come back, and a damaged or foreign file is named in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.usage import Usage
from lm_eval_aft.storage.results import Score, read_run, read_runs, read_samples

STAMP = "2026-01-02T03-04-05.000006"
USAGE = {"generations": 22, "prompt_tokens": 900, "computed_prompt_tokens": 400, "generated_tokens": 300, "flops": 7}


def results(k: int | None = 5, value: float = 0.5, **changes: Any) -> dict[str, Any]:
    """A results file of two questions. With ``k=None`` it is of another model."""
    aft = {"k": k, "layers": 2, "generations_per_question": 11, "model": "m", "seed": 1, "spent": USAGE}
    aft["usage"] = {**USAGE, "shared_prompt_tokens": 500}
    row = {
        "alias": "t",
        "name": "t",
        "acc,none": value,
        "acc_stderr,none": 0.1,
        "ppl,none": 3,
        "ppl_stderr,none": "N/A",
    }
    return {
        "results": {"t": row, "suite": {"alias": "suite", "acc,none": 0.9}},
        "n-samples": {"t": {"original": 9, "effective": 2}},
        "higher_is_better": {"t": {"acc": True, "ppl": False}},
        "config": {"model": "hf", "model_args": {}, **({"aft": aft} if k else {})},
        "model_name": "gpt2",
        **changes,
    }


def sample(doc_id: int = 0, acc: Any = 1.0, **changes: Any) -> dict[str, Any]:
    row = {"doc_id": doc_id, "doc_hash": f"h{doc_id}", "filter": "none", "target": "18", "acc": acc}
    return {**row, "resps": [["so 18"]], "filtered_resps": ["18"], "metrics": ["acc"], **changes}


def write(folder: Path, data: Any, stamp: str = STAMP, rows: list[dict[str, Any]] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"results_{stamp}.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    if rows is not None:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"samples_t_{stamp}.jsonl").write_text(lines, encoding="utf-8")
    return path


def test_a_run_of_ours(tmp_path: Path):
    path = write(tmp_path / "out" / "m", results())
    run = read_run(tmp_path)
    assert (run.path, run.model, run.k, run.layers, run.answers, run.tasks) == (path, "m", 5, 2, 2, ("t",))
    assert run.usage == Usage(**USAGE)
    assert run.settings is not None
    assert run.settings["seed"] == 1
    assert run.scores == (
        Score("t", "acc", "none", 0.5, 0.1, 2, True),
        Score("t", "ppl", "none", 3.0, None, 2, False),
    )


def test_a_run_of_another_model(tmp_path: Path):
    run = read_run(write(tmp_path, results(k=None)))
    assert (run.model, run.k, run.layers, run.settings, run.usage, run.answers) == ("gpt2", *[None] * 5)
    assert len(run.scores) == 2


def test_names_that_lm_eval_0_5_gives_members_of_a_group_become_those_of_0_4(tmp_path: Path):
    named = {"results": {"suite": {}, "suite::t": results()["results"]["t"]}, "group_subtasks": {"suite": ["suite::t"]}}
    counts = {"n-samples": {"suite::t": {"original": 9, "effective": 2}}, "configs": {"suite::t": {}}}
    better = {"higher_is_better": {"suite::t": {"acc": True, "ppl": False}}}
    run = read_run(write(tmp_path, results(**named, **counts, **better)))
    assert run.scores == read_run(write(tmp_path / "0.4", results())).scores
    assert (run.groups["suite"].members, run.groups["suite"].tasks) == (("t",), ("t",))
    assert run.samples_file("t").name == f"samples_suite::t_{STAMP}.jsonl"


def test_a_task_of_two_groups_keeps_both_names_of_lm_eval_0_5(tmp_path: Path):
    row, counts = results()["results"]["t"], {"original": 9, "effective": 2}
    data = results(results={"a::t": row, "b::t": row}, **{"n-samples": {"a::t": counts, "b::t": counts}})
    assert read_run(write(tmp_path, data)).tasks == ("a::t", "b::t")


def test_unknown_flops_are_none_in_the_file_and_zero_here(tmp_path: Path):
    data = results()
    data["config"]["aft"]["usage"]["flops"] = None
    usage = read_run(write(tmp_path, data)).usage
    assert usage is not None
    assert usage.flops == 0


def test_of_equal_runs_in_one_folder_the_newest_wins(tmp_path: Path):
    write(tmp_path / "m", results(value=0.1), "2026-01-01T00-00-00.0")
    write(tmp_path / "m", results(value=0.2), "2026-01-03T00-00-00.0")
    # lm-eval writes runs with another k into the same folder.
    write(tmp_path / "m", results(k=1, value=0.3), "2026-01-02T00-00-00.0")
    write(tmp_path / "n", results(value=0.4), "2026-01-01T00-00-00.0")
    assert [run.scores[0].value for run in read_runs(tmp_path)] == [0.2, 0.3, 0.4]
    assert read_run(tmp_path).scores[0].value == 0.2


def test_a_run_again_is_left_out_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for day in (1, 2):
        write(tmp_path, results(), f"2026-01-0{day}T00-00-00.0")
    for _ in range(2):
        assert len(read_runs(tmp_path)) == 1
    older = tmp_path / "results_2026-01-01T00-00-00.0.json"
    assert caplog.messages == [
        f"{older} is left out: results_2026-01-02T00-00-00.0.json beside it is a later run of the same command."
    ]


@pytest.mark.parametrize(
    ("older", "newer", "count"),
    [
        ("0.1.1.dev5+g1a2b3c4d5", "0.1.1.dev6+gf00ba4000.d20260101", 1),
        ("0.1.0", "0.1.1.dev5+g1a2b3c4d5", 2),
        ("0.1.0", "0.2.0", 2),
    ],
)
def test_development_versions_before_one_release_are_one_version(tmp_path: Path, older: str, newer: str, count: int):
    for day, version in ((1, older), (2, newer)):
        data = results()
        data["config"]["aft"]["version"] = version
        write(tmp_path, data, f"2026-01-0{day}T00-00-00.0")
    assert len(read_runs(tmp_path)) == count


def test_a_warning_reaches_stderr_of_a_command_as_it_stands(tmp_path: Path):
    for day in (1, 2):
        write(tmp_path, results(), f"2026-01-0{day}T00-00-00.0")
    code = f"from lm_eval_aft.storage.results import read_runs; read_runs({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    older = tmp_path / "results_2026-01-01T00-00-00.0.json"
    assert done.stderr.startswith(f"{older} is left out: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "changes",
    [
        # Another --limit.
        {"n-samples": {"t": {"effective": 1}}},
        {"n-shot": {"t": 5}},
        {"chat_template": "x"},
        {"system_instruction_sha": "ff"},
        {"versions": {"t": 2.0}},
        {"configs": {"t": {"generation_kwargs": {"max_gen_toks": 9}}}},
    ],
)
def test_another_test_in_the_same_folder_is_a_run_of_its_own(
    tmp_path: Path, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
):
    write(tmp_path, results(value=0.1), "2026-01-01T00-00-00.0")
    write(tmp_path, results(value=0.2, **changes), "2026-01-02T00-00-00.0")
    assert [run.scores[0].value for run in read_runs(tmp_path)] == [0.1, 0.2]
    assert caplog.messages == []


def judged_by(model: str, value: float) -> dict[str, Any]:
    return results(value=value, configs={"t": {"metadata": {"judge_model": model}}})


@pytest.mark.parametrize("judged_first", [True, False])
def test_a_judged_run_stands_for_the_same_run_without_a_judge(
    tmp_path: Path, judged_first: bool, caplog: pytest.LogCaptureFixture
):
    stamps = ["2026-01-01T00-00-00.0", "2026-01-02T00-00-00.0"][:: 1 if judged_first else -1]
    judged = write(tmp_path, judged_by("j", 0.1), stamps[0])
    plain = write(tmp_path, results(value=0.2), stamps[1])
    assert [run.path for run in read_runs(tmp_path)] == [judged]
    assert caplog.messages == [f"{plain} is left out: {judged.name} beside it is the same run with a judge."]


def test_two_judges_are_two_runs(tmp_path: Path):
    for day, judge in enumerate("ij", 1):
        write(tmp_path, judged_by(judge, 0.1 * day), f"2026-01-0{day}T00-00-00.0")
    assert [run.conditions["t"].judge for run in read_runs(tmp_path)] == ["i", "j"]


@pytest.mark.parametrize("changes", [{"model": "vllm"}, {"fewshot_seed": 2}, {"torch_seed": 7}])
def test_another_engine_or_seed_in_the_same_folder_is_a_run_of_its_own(tmp_path: Path, changes: dict[str, Any]):
    first, second = results(value=0.1), results(value=0.2)
    second["config"] |= changes
    write(tmp_path, first, "2026-01-01T00-00-00.0")
    write(tmp_path, second, "2026-01-02T00-00-00.0")
    assert [run.scores[0].value for run in read_runs(tmp_path)] == [0.1, 0.2]


def test_samples_are_keyed_and_scored(tmp_path: Path):
    run = read_run(write(tmp_path, results(), rows=[sample(0), sample(1, False, target=5), sample(1, filter="x")]))
    rows = read_samples(run, "t")
    assert [(row.key.doc_id, row.key.doc_hash, row.key.filter) for row in rows] == [
        (0, "h0", "none"),
        (1, "h1", "none"),
        (1, "h1", "x"),
    ]
    assert [row.score("acc") for row in rows] == [1.0, 0.0, 1.0]
    assert (rows[1].target, rows[0].resps, rows[0].filtered) == ("5", ("so 18",), ("18",))
    with pytest.raises(RecordError, match=r"f1 of t is not one number per question in .*: its metrics are acc"):
        rows[0].score("f1")


@pytest.mark.parametrize(
    ("arguments", "gold"),
    [
        # A choice, logged by its number.
        ({"gen_args_0": {"arg_1": " no"}, "gen_args_1": {"arg_1": " yes"}}, "yes"),
        # A generated answer.
        ({"gen_args_0": {"arg_1": {"until": []}}, "gen_args_1": {"arg_1": {"until": []}}}, "1"),
        ({"gen_args_0": {"arg_1": " no"}}, "1"),
        # The form of another version of lm-eval.
        ([["q", " no"], ["q", " yes"]], "1"),
    ],
)
def test_the_gold_answer_of_a_multiple_choice_is_its_text(tmp_path: Path, arguments: Any, gold: str):
    run = read_run(write(tmp_path, results(), rows=[sample(0, target="1", arguments=arguments), sample(1)]))
    assert read_samples(run, "t")[0].target == gold


def test_a_metric_that_gives_a_list_is_no_score(tmp_path: Path):
    run = read_run(write(tmp_path, results(), rows=[sample(0, [True, False])]))
    with pytest.raises(RecordError, match="acc of t is not one number"):
        read_samples(run, "t")[0].score("acc")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        '{"foo": 1}',
        '{"config": [], "results": {}}',
        json.dumps(results() | {"results": []}),
        json.dumps(results() | {"n-samples": {"t": {}}}),
        json.dumps(results()).replace('"k": 5', '"k": null'),
        json.dumps(results()).replace('"usage"', '"uses"'),
    ],
)
def test_a_broken_or_foreign_results_file_is_named(tmp_path: Path, content: str):
    path = write(tmp_path, content)
    for read in (read_run, read_runs):
        with pytest.raises(RecordError) as refusal:
            read(tmp_path)
        assert str(path) in str(refusal.value)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("line", ["{", "[]", '{"doc_id": 0}', json.dumps(sample(resps=3)), json.dumps(sample())[:-9]])
def test_a_broken_samples_file_is_named(tmp_path: Path, line: str):
    run = read_run(write(tmp_path, results(), rows=[sample(1)]))
    with run.samples_file("t").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RecordError, match=r"samples_t_.* line 2 is not "):
        read_samples(run, "t")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path):
    (tmp_path / "results_x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match=r"results_x\.json is not a results file"):
        read_run(tmp_path)


def test_what_is_missing_says_how_to_get_it(tmp_path: Path):
    for read in (read_run, read_runs):
        with pytest.raises(RecordError, match=r"nowhere does not exist: .*--output_path"):
            read(tmp_path / "nowhere")
    with pytest.raises(RecordError, match="--log_samples"):
        read_samples(read_run(write(tmp_path, results())), "t")


def test_a_question_that_is_there_twice_is_refused(tmp_path: Path):
    run = read_run(write(tmp_path, results(), rows=[sample(), sample()]))
    with pytest.raises(RecordError, match="holds a question twice"):
        read_samples(run, "t")


def test_importing_loads_nothing_heavy():
    code = "import sys, lm_eval_aft.storage.results; print(sorted({'numpy', 'torch', 'lm_eval'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def save_as_lm_eval(output_path: Path, data: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Save results and samples of t with lm-eval's own writer, to a folder or to DIR/FILE.json."""
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(output_path))
    tracker.general_config_tracker.model_name_sanitized = "m"
    tracker.save_results_aggregated(results=dict(data), samples=None)
    logged = [{"arguments": [("q", {})], **row} for row in rows]
    tracker.save_results_samples(task_name="t", samples=logged)


@pytest.mark.parametrize("name", ["out", "out/llama.json", "out/results.json", "out/a_b.c.json"])
def test_runs_are_found_wherever_output_path_puts_them(tmp_path: Path, name: str):
    save_as_lm_eval(tmp_path / name, results(), [sample(0), sample(1, 0.0)])
    # These are no results.
    (tmp_path / "out" / "other_2026-01-02T03-04-05.000006.json").write_text('{"results": 3}')
    (tmp_path / "out" / "config.json").write_text("{}")
    for path in (tmp_path, tmp_path / "out", tmp_path / name):
        for run in (read_run(path), *read_runs(path)):
            assert [row.score("acc") for row in read_samples(run, "t")] == [1.0, 0.0]


def test_files_of_two_names_in_one_folder_are_two_runs(tmp_path: Path):
    for name, value in (("a", 0.1), ("b", 0.2), ("a", 0.3)):
        save_as_lm_eval(tmp_path / f"{name}.json", results(value=value), [sample(0, value)])
    assert [run.scores[0].value for run in read_runs(tmp_path)] == [0.3, 0.2]
    (run,) = read_runs(tmp_path / "b.json")
    assert (run.scores[0].value, read_samples(run, "t")[0].score("acc")) == (0.2, 0.2)
    # The newest has the latest stamp, whatever its name begins with.
    assert read_run(tmp_path).scores[0].value == 0.3


def test_a_file_without_a_stamp_is_found_by_its_content(tmp_path: Path):
    write(tmp_path, results()).rename(tmp_path / "renamed.json")
    assert [run.path.name for run in read_runs(tmp_path)] == ["renamed.json"]


def test_a_damaged_file_with_a_stamp_is_named(tmp_path: Path):
    (tmp_path / f"llama_{STAMP}.json").write_text('{"results": {')
    with pytest.raises(RecordError, match=rf"llama_{STAMP}\.json is not a results file"):
        read_runs(tmp_path)


def test_a_task_of_any_name_has_no_samples_elsewhere(tmp_path: Path):
    run = read_run(write(tmp_path, results()))
    assert run.samples_file("../../x").parent == tmp_path

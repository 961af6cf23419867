"""``aft grade``: stored traces get the grades of the run. Traces that cannot be graded stay as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.graded_tasks import DOCUMENTS, scripted_model, texts, write_task
from helpers.lm_eval_runs import run_lm_eval
from lm_eval_aft.cli import aft
from lm_eval_aft.core.errors import AFTError, ConfigError, RecordError
from lm_eval_aft.storage.traces import read_traces, trace_files

pytestmark = pytest.mark.usefixtures("quick_lm_eval")


def run(out: Path, tasks: Path, grade_drafts: bool, name: str = "numbers") -> Path:
    model = scripted_model(
        texts("#### 1", "so 2", ""), k=3, layers=1, record=str(out / "traces"), grade_drafts=grade_drafts
    )
    run_lm_eval(out, [name], tasks, model=model, pretrained="x")
    return out


def grade(*words: object) -> str:
    result = CliRunner().invoke(aft, ["grade", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return write_task(tmp_path / "tasks")


def test_stored_texts_get_the_grades_of_the_run(tmp_path: Path, tasks: Path):
    plain = run(tmp_path / "plain", tasks, grade_drafts=False)
    printed = grade(plain, "--include_path", tasks)
    (file,) = trace_files(plain / "traces")
    assert printed == f"{file}: 12 texts of numbers are graded; 3 without an answer are wrong.\n"
    graded = run(tmp_path / "graded", tasks, grade_drafts=True)
    assert [trace.grades for trace in read_traces(plain)] == [trace.grades for trace in read_traces(graded)]
    again = grade(plain, "--include_path", tasks)
    assert again == f"{file}: The texts of numbers are graded already; --again grades them anew.\n"
    assert "12 texts of numbers are graded" in grade(plain, "--include_path", tasks, "--again")


def test_votes_follow_the_grades(tmp_path: Path, tasks: Path):
    out = run(tmp_path / "out", tasks, grade_drafts=False)
    refused = CliRunner().invoke(aft, ["votes", str(out)])
    assert isinstance(refused.exception, ConfigError)
    assert "run aft grade" in str(refused.exception)
    grade(out, "--include_path", tasks)
    shown = CliRunner().invoke(aft, ["votes", str(out)], catch_exceptions=False).stdout
    assert "Answers by the task's filter flexible-extract; 33.3% of the drafts hold no answer." in shown


def refused(out: Path, *words: object) -> str:
    before = {file: file.read_bytes() for file in trace_files(out)}
    result = CliRunner().invoke(aft, ["grade", str(out), *map(str, words)])
    assert isinstance(result.exception, AFTError)
    assert {file: file.read_bytes() for file in trace_files(out)} == before
    return str(result.exception)


def test_a_task_that_cannot_be_found_is_refused(tmp_path: Path, tasks: Path):
    out = run(tmp_path / "out", write_task(tmp_path / "tasks", "unheard_of"), False, "unheard_of")
    message = refused(out)
    assert "The task unheard_of cannot be loaded" in message
    assert "give its folder with --include_path" in message


def test_a_document_that_has_changed_is_refused(tmp_path: Path, tasks: Path):
    out = run(tmp_path / "out", tasks, grade_drafts=False)
    changed = write_task(tmp_path / "changed", documents=[{**each, "answer": "9"} for each in DOCUMENTS])
    assert "Document 0 of numbers is not in the task's data" in refused(out, "--include_path", changed)


def test_code_of_the_model_runs_only_if_the_user_allows_it(tmp_path: Path, tasks: Path):
    out = run(tmp_path / "out", tasks, grade_drafts=False)
    write_task(tasks, unsafe_code=True)
    assert "which needs --confirm_run_unsafe_code" in refused(out, "--include_path", tasks)
    assert "12 texts of numbers are graded" in grade(out, "--include_path", tasks, "--confirm_run_unsafe_code")


def test_one_task_of_several(tmp_path: Path, tasks: Path):
    out = run(tmp_path / "out", tasks, grade_drafts=False)
    write_task(tasks, "others")
    run(out, tasks, False, "others")
    assert "12 texts of others are graded" in grade(out, "--include_path", tasks, "--task", "others")
    assert {trace.question.task: bool(trace.grades) for trace in read_traces(out)} == {"numbers": False, "others": True}
    assert "holds no traces of --task poems" in refused(out, "--task", "poems")


def test_a_task_is_built_as_its_group_has_it(tmp_path: Path, tasks: Path):
    # The group reads other data than the task of this name.
    other = write_task(tmp_path / "other", documents=[{"question": f"q{n}", "answer": "1"} for n in range(3)])
    data = {"test": str(other / "numbers.jsonl")}
    member = {"task": "numbers", "dataset_path": "json", "dataset_kwargs": {"data_files": data}}
    (tasks / "suite.yaml").write_text(json.dumps({"group": "suite", "task": [member]}))
    out = run(tmp_path / "out", tasks, False, "suite")
    assert "12 texts of numbers are graded" in grade(out, "--include_path", tasks)
    assert [trace.grades[0][0].metrics["exact_match"] for trace in read_traces(out)] == [1.0] * 3


def test_a_path_without_traces_is_refused(tmp_path: Path):
    def refused(path: Path) -> str:
        with pytest.raises(RecordError) as error:
            CliRunner().invoke(aft, ["grade", str(path)], catch_exceptions=False)
        return str(error.value)

    advice = "give the folder that record= named."
    assert refused(tmp_path) == f"there are no traces in {tmp_path}: {advice}"
    assert refused(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'} does not exist: {advice}"
    # A file of traces that holds none.
    (tmp_path / "traces.jsonl").touch()
    assert refused(tmp_path) == f"there are no traces in {tmp_path}: {advice}"


def test_traces_of_version_0_1_0_are_read_and_graded(tmp_path: Path):
    fixture = Path(__file__).parents[1] / "fixtures" / "version_0_1_0" / "aft"
    (old,) = trace_files(fixture / "traces")
    file = tmp_path / old.name
    file.write_bytes(old.read_bytes())
    assert "grades" not in json.loads(old.read_text().splitlines()[0])
    assert "32 texts of aft_arith are graded" in grade(file)
    (samples,) = fixture.glob("*/samples_aft_arith_*.jsonl")
    scores = {row["doc_id"]: row["exact"] for row in map(json.loads, samples.read_text().splitlines())}
    assert {trace.question.doc_id: trace.grades[-1][0].metrics["exact"] for trace in read_traces(file)} == scores

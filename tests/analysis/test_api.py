"""The Python API: runs, votes, comparisons and diagnoses as objects, and runs as pandas frames."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import lm_eval_aft
from helpers.fake_judge import quick_judge
from helpers.lm_eval_runs import run_lm_eval
from helpers.made_runs import log_targets, make_run
from helpers.made_traces import trace_of_texts, with_grades
from helpers.mt_bench_suite import write_suite
from helpers.paths import ROOT
from lm_eval_aft.analysis.frames import DRAFT_COLUMNS, JUDGEMENT_COLUMNS, RUN_COLUMNS, SAMPLE_COLUMNS
from lm_eval_aft.cli import aft
from lm_eval_aft.core.errors import ConfigError, RecordError
from lm_eval_aft.core.records import Confidence
from lm_eval_aft.storage.traces import write_traces

FILES = ROOT / "tests" / "fixtures" / "version_0_1_0"
HALF_A_PAIR = "\ud800"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A run of SFT and one of AFT, 8 questions each."""
    for name in ("sft", "aft"):
        shutil.copytree(FILES / name, tmp_path / name)
    return tmp_path


def test_the_objects_are_those_of_the_commands(runs: Path):
    assert [entry.label for entry in lm_eval_aft.read_runs(runs / "sft", str(runs / "aft"))] == [
        "bundled:sft (1, 0)",
        "bundled:aft (3, 1)",
    ]
    assert len(list(lm_eval_aft.read_traces(str(runs / "aft")))) == 8
    (comparison,) = lm_eval_aft.compare(runs / "sft", runs / "aft", tasks="aft_arith").comparisons
    assert (comparison.n, comparison.verdict) == (8, "no difference shown")
    (counted,) = lm_eval_aft.votes(runs / "aft")
    assert [point.n for point in counted.points] == [1, 2, 3]
    (diagnosis,) = lm_eval_aft.diagnose(str(runs / "aft"), task="aft_arith")
    assert (diagnosis.diagnostics.questions, len(diagnosis.traces)) == (8, 8)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: lm_eval_aft.read_runs(), "no folder is given"),
        (lambda: lm_eval_aft.frames("nowhere"), "nowhere does not exist"),
        (lambda: lm_eval_aft.frames(""), "the path of out is empty"),
        (lambda: lm_eval_aft.compare(FILES / "sft"), "nothing to compare the baseline with"),
        (lambda: lm_eval_aft.compare(FILES / "sft", FILES / "aft", level=2), "between 0 and 1"),
        (lambda: lm_eval_aft.votes(FILES / "aft", task="mmlu"), "no traces of --task mmlu"),
        (lambda: lm_eval_aft.diagnose(FILES / "aft", task="mmlu"), "no traces of --task mmlu"),
        (lambda: lm_eval_aft.diagnose(FILES / "aft", regex="("), "regex"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence: str):
    with pytest.raises(lm_eval_aft.AFTError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_file_without_traces_is_refused(tmp_path: Path):
    (tmp_path / "traces.jsonl").touch()
    with pytest.raises(RecordError, match="there are no traces in"):
        lm_eval_aft.diagnose(tmp_path)
    with pytest.raises(ConfigError, match="holds no traces of --task poems: "):
        lm_eval_aft.diagnose(tmp_path, "poems")


def test_frames_of_two_runs(runs: Path):
    frames = lm_eval_aft.frames(runs)
    assert list(frames.runs) == list(RUN_COLUMNS)
    scores = frames.runs.set_index("run")
    assert scores.loc["bundled:sft (1, 0)", ["k", "layers", "generations", "score"]].tolist() == [1, 0, 1, 0.375]
    assert scores.loc["bundled:aft (3, 1)", ["k", "layers", "generations", "score"]].tolist() == [3, 1, 4, 0.5]
    samples = frames.samples[frames.samples["run"] == "bundled:aft (3, 1)"]
    assert list(samples) == list(SAMPLE_COLUMNS)
    assert samples["score"].mean() == 0.5
    assert samples["generations"].tolist() == [4] * 8
    drafts = frames.drafts[frames.drafts["run"] == "bundled:aft (3, 1)"]
    assert list(drafts) == list(DRAFT_COLUMNS)
    answers = drafts[drafts["layer"] == 1]
    assert answers["right"].tolist() == [bool(score) for score in samples["score"]]
    assert drafts["generated_tokens"].sum() == samples["generated_tokens"].sum()
    assert drafts["grades"].isna().all()
    assert frames.judgements.empty
    assert list(frames.judgements) == list(JUDGEMENT_COLUMNS)


def test_frames_hold_the_confidence_of_drafts(tmp_path: Path):
    made = trace_of_texts(["7", "9"], ["8"], task="t")
    sure = replace(made.drafts[0].completion, confidence=Confidence(-9.0, -0.5, -0.25, -2.0))
    made = replace(made, drafts=(replace(made.drafts[0], completion=sure), *made.drafts[1:]))
    write_traces(str(tmp_path / "traces"), {"k": 2, "layers": 1, "model": "m"}, [made])
    make_run(tmp_path, [1], k=2, layers=1)
    columns = [f"confidence_{name}" for name in ("sum", "mean", "tail", "window")]
    cells = lm_eval_aft.frames(tmp_path).drafts[columns]
    assert cells.iloc[0].tolist() == [-9.0, -0.5, -0.25, -2.0]
    assert cells.iloc[1:].isna().all(axis=None)


def test_another_model_has_no_settings_and_no_cost(tmp_path: Path):
    make_run(tmp_path, [1, [0, 1], 0], k=None)
    frames = lm_eval_aft.frames(tmp_path)
    (row,) = frames.runs.to_dict("records")
    assert (row["engine"], row["n"]) == ("hf", 3)
    assert frames.runs[["strategy", "k", "layers", "seed", "flops", "judge"]].isna().all(axis=None)
    assert frames.samples["score"].tolist() == [1, 0.5, 0]
    assert frames.samples["generated_tokens"].isna().all()
    assert frames.drafts.empty


def write_trace(folder: Path, *layers: list[str]) -> None:
    """Write the trace of one question of the task t, and its results. HALF becomes half a surrogate pair."""
    (file,) = write_traces(
        str(folder / "traces"), {"k": 2, "layers": 1, "model": "m"}, [trace_of_texts(*layers, task="t")]
    )
    file.write_text(file.read_text().replace("HALF", r"\ud800"))
    make_run(folder, [1], k=2, layers=1)


def test_answers_are_found_by_a_regex_and_graded_by_the_samples_of_other_runs(tmp_path: Path):
    write_trace(tmp_path / "a", ["it is <7>", "no"], ["<8>"])
    for file in (tmp_path / "a").glob("samples_*"):
        file.unlink()
    log_targets(tmp_path / "gold", {0: "<7>"}, task="t")
    frames = lm_eval_aft.frames(tmp_path / "a", tmp_path / "gold", regex="<(.)>")
    assert frames.drafts["answer"].tolist() == ["7", None, "8"]
    assert frames.drafts["right"].tolist() == [True, False, False]
    assert lm_eval_aft.frames(tmp_path / "a").drafts["right"].isna().all()


def test_grades_of_the_task_are_kept(tmp_path: Path):
    trace = with_grades(trace_of_texts(["7", "9"], ["8"], task="t"), "exact_match", [1, 0, 0])
    write_traces(str(tmp_path / "traces"), {"k": 2, "layers": 1, "model": "m"}, [trace])
    make_run(tmp_path, [1], k=2, layers=1)
    drafts = lm_eval_aft.frames(tmp_path).drafts
    assert drafts["right"].tolist() == [True, False, False]
    assert drafts["grades"][0] == {"none": {"exact_match": 1}}


def test_text_that_is_no_unicode_is_kept(tmp_path: Path):
    write_trace(tmp_path, ["7", "HALF"], ["8"])
    assert lm_eval_aft.frames(tmp_path).drafts["text"].tolist() == ["7", HALF_A_PAIR, "8"]


def test_a_number_that_fits_no_column_is_named(tmp_path: Path):
    make_run(tmp_path, [1], tokens=1)
    (file,) = tmp_path.glob("results_*.json")
    file.write_text(file.read_text().replace('"seed": 1,', '"seed": 99999999999999999999999,'))
    with pytest.raises(RecordError, match="a value of seed is no Int64"):
        _ = lm_eval_aft.frames(tmp_path).runs


def test_without_pandas_the_extra_is_named(runs: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"frames need pandas.*lm_eval_aft\[report\]"):
        lm_eval_aft.frames(runs)


@pytest.mark.usefixtures("quick_lm_eval")
def test_frames_of_a_judged_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model_args = {"engine": "scripted", "k": 2, "layers": 0, "record": str(tmp_path / "out" / "traces")}
    run_lm_eval(tmp_path / "out", ["offline_suite"], write_suite(tmp_path), **model_args)
    with quick_judge(monkeypatch) as judge:
        judge.say = lambda body: "[[8]]" if "second of" in body["messages"][-1]["content"] else "[[6]]"
        words = ["judge", "mt_bench", str(tmp_path / "out"), "--judge-model", "m", "--judge-base-url", judge.url]
        assert CliRunner().invoke(aft, words).exit_code == 0
    frames = lm_eval_aft.frames(tmp_path / "out")
    (rating,) = frames.runs.query("metric == 'aft-v1_score'").to_dict("records")
    assert (rating["score"], rating["judge"]) == (7, "m")
    assert frames.judgements.groupby("turn")["score"].mean().tolist() == [6, 8]
    assert set(frames.drafts["turn"]) == {0, 1}

"""``aft votes`` of drafts files, and of traces without a run beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.made_traces import trace_of_texts, with_grades
from lm_eval_aft.analysis.api import diagnose, votes
from lm_eval_aft.cli import aft
from lm_eval_aft.core.errors import AFTError, ConfigError, RecordError
from lm_eval_aft.storage.traces import trace_files, write_traces

ROWS = [
    {"query": "2+5?", "drafts": ["is 7", "is 8", "<think>7"], "ends": ["stop", "stop", "length"], "gold": 7},
    {"query": "2+6?", "drafts": ["is 8", "so 8", "is 9"], "ends": ["stop"] * 3, "gold": "8"},
    {"query": "too long?", "drafts": [], "ends": [], "gold": "1"},
]


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_regex_finds_the_answers_of_a_drafts_file(tmp_path: Path):
    (counted,) = votes(write(tmp_path / "drafts.jsonl", *ROWS), regex=r"\d")
    one, _, three = counted.points
    assert (counted.task, counted.k, counted.questions, counted.aggregate) == ("drafts", 3, 2, None)
    assert one.mean.estimate == pytest.approx((1 / 3 + 2 / 3) / 2)
    # A thought that was cut holds no answer, so the first vote is a tie.
    assert three.majority.estimate == pytest.approx((1 / 2 + 1) / 2)
    assert (three.oracle.estimate, three.generated_tokens, counted.silent) == (1.0, None, pytest.approx(1 / 6))
    shown = CliRunner().invoke(aft, ["votes", str(tmp_path / "drafts.jsonl"), "--regex", r"\d"]).stdout
    assert shown.startswith("drafts, k=3: 2 questions\n")
    assert "answer" not in shown.split("Answers by")[0].split("oracle %")[1]


def test_a_verifier_says_what_is_right_in_a_drafts_file(tmp_path: Path):
    rights = [[True, False, True], [1, 1, 0], []]
    rows = [{**row, "right": right} for row, right in zip(ROWS, rights, strict=True)]
    (counted,) = votes(write(tmp_path / "drafts.jsonl", *rows))
    # The third draft of the first row is a bare thought, which is wrong whatever the verifier said.
    assert counted.points[0].mean.estimate == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert (counted.points[0].majority, counted.empty) == (None, pytest.approx(1 / 6))
    shown = CliRunner().invoke(aft, ["votes", str(tmp_path / "drafts.jsonl")]).stdout
    assert "There is no answer string to vote on; 16.7% of the drafts are empty." in shown
    assert "Right by a verifier; a draft that is empty or only a thought is wrong." in shown


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"query": "q", "drafts": ["a"]}, r"does not say which drafts are right: give --regex"),
        ({"query": "q", "drafts": []}, "has no row with drafts"),
        ({"query": "q", "drafts": "a"}, "line 1 is not a row with drafts"),
        ({"query": "q", "drafts": ["a"], "right": [1, 0]}, "1 drafts with 0 ends and 2 grades"),
    ],
)
def test_a_drafts_file_that_cannot_be_counted_is_refused(tmp_path: Path, row: dict, error: str):
    with pytest.raises(AFTError, match=error):
        votes(write(tmp_path / "drafts.jsonl", row))


def test_graded_traces_need_no_run_beside_them(tmp_path: Path):
    traces = [with_grades(trace_of_texts(["a", "b"], ["c"], task="t"), "acc", [1, 0, 1], ["x", "y", "x"])]
    write_traces(str(tmp_path), traces[0].settings, traces)
    (file,) = trace_files(tmp_path)
    for place in (tmp_path, file):
        (counted,) = votes(place)
        assert (counted.points[0].mean.estimate, counted.aggregate.estimate) == (0.5, 1.0)
        (diagnosis,) = diagnose(place)
        assert diagnosis.diagnostics.judged == 1


def test_a_path_without_traces_and_runs_is_refused(tmp_path: Path):
    with pytest.raises(RecordError, match="there is no results_"):
        votes(tmp_path)
    traces = [trace_of_texts(["a"], ["b"], task="poem")]
    write_traces(str(tmp_path), traces[0].settings, traces)
    with pytest.raises(ConfigError, match="that are graded or whose answers can be found"):
        votes(tmp_path)


@pytest.mark.parametrize("option", [{"task": "gsm8k"}, {"traces": "rec"}])
def test_a_drafts_file_has_no_tasks_and_traces(tmp_path: Path, option: dict):
    file = write(tmp_path / "drafts.jsonl", *ROWS)
    with pytest.raises(ConfigError, match=rf"is a drafts file, .*: leave --{next(iter(option))} out\."):
        votes(file, regex=r"\d", **option)

"""Trace files: which files are traces, what their names tell apart, and that no reader sees half a file."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.made_runs import make_run
from helpers.made_traces import SETTINGS, trace_of_texts
from helpers.made_traces import trace_of_tokens as trace
from lm_eval_aft.analysis.runs import RunEntry, read_entries
from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.files import atomic_write
from lm_eval_aft.core.records import Confidence, Grade, LookAhead, Trace
from lm_eval_aft.storage.traces import read_traces, trace_files, write_traces


def test_files_of_judging_are_no_traces_and_a_folder_may_have_any_name(tmp_path: Path):
    folder = tmp_path / "mt_bench"
    kept = [folder / "model_answer/m.jsonl", folder / "model_judgment/j.jsonl", folder / "question.jsonl"]
    for file in (*kept, tmp_path / "samples_t_1.jsonl"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}\n")
    assert trace_files(tmp_path) == trace_files(folder) == []
    (file,) = write_traces(str(folder / "traces"), SETTINGS, [trace()])
    assert trace_files(tmp_path) == trace_files(folder) == [file]
    assert len(list(read_traces(tmp_path))) == 1


@pytest.mark.parametrize("other", [trace(max_tokens=4), trace(temperature=0.0), trace(turn=1)])
def test_another_sampling_or_turn_is_another_file(tmp_path: Path, other: Trace):
    for _ in range(2):
        write_traces(str(tmp_path), SETTINGS, [trace()])
    write_traces(str(tmp_path), SETTINGS, [other])
    assert len(trace_files(tmp_path)) == 2


def entry_of(folder: Path, traces: Path) -> RunEntry:
    (entry,) = read_entries([folder], traces)
    return entry


def test_each_run_finds_the_traces_of_its_own_gen_kwargs(tmp_path: Path):
    for bound in (64, 4):
        write_traces(str(tmp_path / "traces"), SETTINGS, [trace(doc, bound, tokens=bound) for doc in range(2)])
        task = {"generation_kwargs": {"max_gen_toks": bound, "temperature": 0.7}}
        make_run(tmp_path / str(bound), [1, 0], k=1, layers=0, tokens=bound, configs={"t": task})
    for bound in (64, 4):
        cost = entry_of(tmp_path / str(bound), tmp_path / "traces").costs["t"]
        assert (cost.own, cost.texts, cost.generated_tokens) == (True, 2, bound)


def test_a_task_may_choose_a_temperature_by_question(tmp_path: Path):
    write_traces(str(tmp_path / "traces"), SETTINGS, [trace(0), trace(1, temperature=0.0)])
    make_run(tmp_path / "run", [1, 0], k=1, layers=0, configs={"t": {"generation_kwargs": {"max_gen_toks": 64}}})
    traces = list(entry_of(tmp_path / "run", tmp_path / "traces").traces())
    assert {each.question.final.temperature for each in traces} == {0.7, 0.0}


def test_if_the_results_state_another_sampling_than_was_used_all_traces_count(tmp_path: Path):
    write_traces(str(tmp_path / "traces"), SETTINGS, [trace(0), trace(1)])
    # lm-eval writes these settings for tasks in Python.
    greedy = {"generation_kwargs": {"do_sample": False, "max_gen_toks": 256}}
    make_run(tmp_path / "run", [1, 0], k=1, layers=0, configs={"t": greedy})
    assert len(list(entry_of(tmp_path / "run", tmp_path / "traces").traces())) == 2


def test_two_processes_write_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "t.jsonl"
    with atomic_write(file) as mine:
        mine.write_text("mine")
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with atomic_write(file) as theirs:
            theirs.write_text("theirs")
        assert file.read_text() == "theirs"
    assert file.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [file]


def test_what_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (file,) = write_traces(str(tmp_path), SETTINGS, [trace()])
    before = file.read_text()
    monkeypatch.setattr(Trace, "to_json", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_traces(str(tmp_path), SETTINGS, [trace()])
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_text() == before


@pytest.mark.parametrize(
    "grades",
    [
        [[]],
        [[], 7],
        [[7], []],
        [[{"filter": "none", "metrics": []}], []],
        [[{"filter": "none", "metrics": {"acc": "1"}}], []],
        [[{"filter": "none", "metrics": {"acc": 1e999}}], []],
        [[{"filter": 1, "metrics": {}}], []],
        [[{"filter": "none", "answer": 7}], []],
        [[{"filter": "none", "more": 7}], []],
    ],
)
def test_grades_of_another_shape_are_refused_in_one_sentence(tmp_path: Path, grades: list):
    row = json.loads(trace_of_texts(["a"], ["b"]).to_json())
    (tmp_path / "t.jsonl").write_text(json.dumps({**row, "grades": grades}))
    with pytest.raises(RecordError, match=r"t\.jsonl line 1 is not a trace"):
        list(read_traces(tmp_path))
    (tmp_path / "t.jsonl").write_text(json.dumps(row | {"grades": [[{"filter": "none", "metrics": {"acc": 1}}], []]}))
    (trace,) = read_traces(tmp_path)
    assert trace.grades == ((Grade("none", {"acc": 1}),), ())
    (tmp_path / "t.jsonl").write_text(trace.to_json())
    assert list(read_traces(tmp_path)) == [trace]


@pytest.mark.parametrize(
    "damage",
    [{"proposers": "x"}, {"proposers": [{"model": "m"}]}, {"aggregator": 7}, {"drafts_from": {"proposers": 1}}],
)
def test_settings_with_models_of_another_shape_are_refused_in_one_sentence(tmp_path: Path, damage: dict):
    row = json.loads(trace_of_texts(["a"], ["b"]).to_json())
    (tmp_path / "t.jsonl").write_text(json.dumps({**row, "settings": {**row["settings"], **damage}}))
    with pytest.raises(RecordError, match=r"t\.jsonl line 1 is not a trace"):
        list(read_traces(tmp_path))


def with_confidence(confidence: Confidence | None) -> Trace:
    made = trace()
    drafts = (replace(d, completion=replace(d.completion, confidence=confidence)) for d in made.drafts)
    return replace(made, drafts=tuple(drafts), settings=SETTINGS)


def refuse_damaged(folder: Path, written: Trace, field: str, damage: object) -> None:
    """Damage a field of the first text in a file of one trace. Reading the file must name the line."""
    (file,) = write_traces(str(folder), SETTINGS, [written])
    row = json.loads(file.read_text())
    completion = row["drafts"][0]["completion"]
    completion[field] = {**completion[field], **damage} if isinstance(damage, dict) else damage
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(RecordError, match="line 1 is not a trace"):
        list(read_traces(file))


class TestConfidence:
    @pytest.mark.parametrize("confidence", [None, Confidence(-1.5, -0.5, -0.25, -0.75)])
    def test_it_is_read_as_it_was_written(self, tmp_path: Path, confidence: Confidence | None):
        made = with_confidence(confidence)
        (file,) = write_traces(str(tmp_path), SETTINGS, [made])
        assert list(read_traces(file)) == [made]

    def test_a_line_of_an_older_version_has_none(self, tmp_path: Path):
        (file,) = write_traces(str(tmp_path), SETTINGS, [trace()])
        row = json.loads(file.read_text())
        for draft in row["drafts"]:
            del draft["completion"]["confidence"]
        file.write_text(json.dumps(row) + "\n")
        assert list(read_traces(file)) == [with_confidence(None)]

    @pytest.mark.parametrize(
        "damage", [{"mean": "NaN"}, {"mean": float("nan")}, {"tail": None}, {"other": 1.0}, "mean", 3]
    )
    def test_a_damaged_one_is_refused(self, tmp_path: Path, damage: object):
        refuse_damaged(tmp_path, with_confidence(Confidence(-1.5, -0.5, -0.25, -0.75)), "confidence", damage)


class TestLookAhead:
    def with_passes(self) -> Trace:
        made = trace()
        drafts = (replace(d, completion=replace(d.completion, look_ahead=LookAhead(7, 12))) for d in made.drafts)
        return replace(made, drafts=tuple(drafts), settings=SETTINGS)

    def test_it_is_read_as_it_was_written(self, tmp_path: Path):
        (file,) = write_traces(str(tmp_path), SETTINGS, [self.with_passes()])
        assert list(read_traces(file)) == [self.with_passes()]
        assert '"look_ahead":{"forward_passes":7,"proposed_tokens":12}' in file.read_text()

    @pytest.mark.parametrize("damage", [{"forward_passes": -1}, {"proposed_tokens": "3"}, {"more": 1}, 3, [1, 2]])
    def test_a_damaged_one_is_refused(self, tmp_path: Path, damage: object):
        refuse_damaged(tmp_path, self.with_passes(), "look_ahead", damage)

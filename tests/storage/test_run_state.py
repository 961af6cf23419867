"""The state of a run: what the run writes beside its traces, and what its reader refuses."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from helpers.graded_tasks import graded_task, scripted_model
from helpers.instances import make_instance
from helpers.lm_eval_runs import run_lm_eval
from helpers.scripted_runs import make_question, run
from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.engines.scripted import ScriptedEngine
from lm_eval_aft.model import AFTLM
from lm_eval_aft.storage.run_state import MeanGrade, RunState, read_run_states, recording

STATE = RunState("m", "scripted", "aggregate", {"t": 2}, k=3, layers=1, generations=8)


def ask(folder: Path, questions: int = 3, **settings: object) -> AFTLM:
    requests = [make_instance("generate_until", {"n": n}, (f"{n}?", {}), 0, ("t", n, 1)) for n in range(questions)]
    model = AFTLM(engine="scripted", **{"k": 2, "layers": 2, "record": str(folder), **settings})
    model.generate_until(requests, disable_tqdm=True)
    return model


def only(folder: Path) -> RunState:
    ((_, state),) = read_run_states(folder)
    return state


def test_a_finished_run_has_counted_everything(tmp_path):
    ask(tmp_path)
    state = only(tmp_path)
    (trace_file,) = tmp_path.glob("*.jsonl")
    assert (state.status, state.questions, state.k, state.layers) == ("finished", {"t": 3}, 2, 2)
    assert (state.done, state.generations, state.reused, state.layer) == (15, 15, 0, "answers")
    assert (state.layer_done, state.layer_generations) == (3, 3)
    drafts = [draft for line in trace_file.read_text().splitlines() for draft in json.loads(line)["drafts"]]
    assert state.generated_tokens == sum(draft["completion"]["generated_tokens"] for draft in drafts)
    assert state.traces == (trace_file.name,)


def test_the_same_command_writes_the_same_file_and_says_what_it_reused(tmp_path):
    ask(tmp_path)
    ask(tmp_path)
    state = only(tmp_path)
    assert (state.done, state.reused, state.generated_tokens) == (15, 15, 0)


def test_runs_with_other_settings_or_questions_have_files_of_their_own(tmp_path):
    ask(tmp_path)
    ask(tmp_path, k=3)
    ask(tmp_path, questions=2)
    states = [state for _, state in read_run_states(tmp_path)]
    runs = sorted((state.k, state.questions["t"], state.reused) for state in states)
    assert runs == [
        (2, 2, 10),
        (2, 3, 0),
        (3, 3, 6),
    ]


@pytest.mark.parametrize(
    ("settings", "generations"),
    [({"strategy": "majority", "k": 3, "layers": 1, "vote_regex": "[0-9]+"}, 9), ({"layers": 0}, 3)],
)
def test_every_generation_that_is_written_is_planned(tmp_path, settings, generations):
    ask(tmp_path, **settings)
    state = only(tmp_path)
    assert (state.done, state.generations) == (generations, generations)


def test_the_plan_is_there_before_the_first_generation(tmp_path, monkeypatch):
    seen = []

    def generate(self, requests):
        seen.append(only(tmp_path))
        return original(self, requests)

    original = ScriptedEngine.generate
    monkeypatch.setattr(ScriptedEngine, "generate", generate)
    ask(tmp_path)
    assert (seen[0].status, seen[0].questions, seen[0].generations, seen[0].done) == ("running", {"t": 3}, 15, 0)


def test_later_turns_of_a_dialogue_are_planned(tmp_path):
    request = make_instance("generate_until", {}, ("?", {"turns": ["and then?", "and then?"]}), 0, ("t", 0, 1))
    AFTLM(engine="scripted", k=2, layers=1, record=str(tmp_path)).generate_until([request], disable_tqdm=True)
    state = only(tmp_path)
    assert (state.questions, state.done, state.generations) == ({"t": 1}, 9, 9)


def test_given_drafts_are_not_planned(tmp_path):
    ask(tmp_path / "first")
    ask(tmp_path / "second", drafts_from=str(tmp_path / "first"), temperature=0.5)
    state = only(tmp_path / "second")
    assert (state.done, state.generations) == (9, 9)


@pytest.mark.usefixtures("quick_lm_eval")
def test_graded_runs_keep_the_mean_grades_of_answers_and_drafts(tmp_path):
    texts = iter(["#### 1", "so 1", "no idea"] * 3 + ["is 1", "#### 1", "#### 0"])
    model = scripted_model(lambda request: next(texts), k=3, layers=1, record=str(tmp_path / "traces"))
    run_lm_eval(tmp_path / "out", [graded_task()], model=model, pretrained="x")
    # The answer to question 1 is 1. Of its drafts the strict filter finds one and the other filter two.
    assert only(tmp_path / "traces").grades == (
        MeanGrade("numbers", "exact_match,strict-match", 1 / 3, 1 / 9, 3),
        MeanGrade("numbers", "exact_match,flexible-extract", 1 / 3, pytest.approx(2 / 9), 3),
    )


def test_a_run_that_fails_is_stopped(tmp_path, monkeypatch):
    def fail(self, requests):
        yield from list(ScriptedEngine.answer(self, requests))[:4]
        raise OSError("the machine is gone")

    monkeypatch.setattr(ScriptedEngine, "answer", ScriptedEngine.generate, raising=False)
    monkeypatch.setattr(ScriptedEngine, "generate", fail)
    with pytest.raises(OSError, match="gone"):
        ask(tmp_path)
    state = only(tmp_path)
    assert (state.status, state.done, state.layer, state.layer_generations) == ("stopped", 4, "drafts", 6)


def test_secrets_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "abc123def456ghi789")
    model = ask(tmp_path / "first", questions=1)
    model.name = "model-abc123def456ghi789"
    model.config = type(model.config)(engine="scripted", k=2, layers=2, record=str(tmp_path / "second"))
    model.generate_until([make_instance("generate_until", {}, ("?", {}), 0, ("t", 0, 1))], disable_tqdm=True)
    assert only(tmp_path / "second").model == "model-***"


def test_a_run_without_a_folder_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ask(tmp_path, record=None)
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.touch()
    with caplog.at_level(logging.WARNING, "lm_eval.aft"), recording(STATE, blocked / "run_t.json") as recorder:
        recorder.begin_layer("drafts", 6)
    assert caplog.text.count("aft watch cannot show this run") == 1


def test_counting_needs_no_file():
    assert len(run([make_question("2+2?")])) == 1
    with recording(STATE, None) as recorder:
        recorder.begin_layer("drafts", 6)
        assert recorder.state.layer_generations == 6


@pytest.mark.parametrize(
    "change",
    [
        {"done": -1},
        {"done": "1"},
        {"generations": 10**400},
        {"started": float("nan")},
        {"status": "\x1b[2J"},
        {"model": 3},
        {"questions": [1]},
        {"questions": {"t": None}},
        {"traces": [1]},
        {"traces": 1},
        {"grades": [{"task": "t", "metric": "m", "answers": "0.5", "drafts": 0.5, "questions": 2}]},
        {"grades": [{"task": "t", "metric": "m", "answers": float("inf"), "drafts": 0.5, "questions": 2}]},
        {"grades": [{"task": "t"}]},
        {"grades": [1]},
    ],
)
def test_a_damaged_state_is_refused_by_name(tmp_path, change):
    path = tmp_path / "run_t.json"
    path.write_text(json.dumps({**json.loads(STATE.to_json()), **change}))
    with pytest.raises(RecordError, match=r"run_t\.json is not the state of a run"):
        read_run_states(tmp_path)


def test_other_files_are_left_out_and_newer_states_are_read(tmp_path):
    (tmp_path / "run_other.json").write_text('{"loss": 1}')
    (tmp_path / "run_list.json").write_text("[1]")
    (tmp_path / "run_folder.json").mkdir()
    (tmp_path / "below").mkdir()
    row = {**json.loads(STATE.to_json()), "a field of the future": 1}
    (tmp_path / "below" / "run_t.json").write_text(json.dumps(row))
    assert read_run_states(tmp_path) == [(tmp_path / "below" / "run_t.json", STATE)]

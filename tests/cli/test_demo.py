"""``make demo``: the commands that it shows, what it does for them, and the older files that it replaces."""

from __future__ import annotations

import json
import os
import shlex
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.evaluator
import pytest
from lm_eval._cli import HarnessCLI
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

from lm_eval_aft import register, tasks_path
from lm_eval_aft.cli import demo
from lm_eval_aft.cli.evaluation import evaluate


def test_an_older_demonstration_is_replaced_by_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    old = tmp_path / "out" / "demo" / "sft" / "m" / "results_1.json"
    old.parent.mkdir(parents=True)
    old.write_text("{}")
    (tmp_path / "out" / "other").mkdir()
    seen: list[tuple[str, bool]] = []
    monkeypatch.setattr(demo, "run_lm_eval", lambda model_args, out: seen.append((f"lm_eval {out}", old.exists())))
    monkeypatch.setattr(demo, "run_aft", lambda *words: seen.append((f"aft {words[0]}", old.exists())))
    monkeypatch.setattr(demo, "read_traces", lambda folder: [None])
    monkeypatch.setattr(demo, "choose", lambda traces: traces[0])
    monkeypatch.setattr(demo, "show_question", lambda trace: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert demo.main() == 0
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert seen == [
        ("lm_eval out/demo/sft", False),
        ("lm_eval out/demo/aft", False),
        ("aft compare", False),
        ("aft report", False),
    ]
    assert (tmp_path / "out" / "other").is_dir()


def test_the_command_that_is_shown_does_what_the_demonstration_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[dict[str, Any]] = []

    class Ended(Exception):
        pass

    def end(**settings: Any) -> None:
        calls.append(settings)
        raise Ended

    defaults = signature(lm_eval.simple_evaluate).parameters
    monkeypatch.setattr(lm_eval, "simple_evaluate", end)
    monkeypatch.setenv("LMEVAL_LOG_LEVEL", "ERROR")
    with pytest.raises(Ended):
        demo.run_lm_eval("pretrained=bundled:aft,k=5,layers=2", tmp_path / "out")
    program, *words = shlex.split(capsys.readouterr().out.removeprefix("$ "))
    assert program == "lm_eval"
    monkeypatch.setattr("sys.argv", [program, *words])
    parser = HarnessCLI()
    with pytest.raises(Ended):
        parser.execute(parser.parse_args())
    ours, theirs = calls
    assert theirs.keys() >= ours.keys()
    for name, value in ours.items():
        if name == "task_manager":
            assert value.metadata == theirs[name].metadata
        elif name == "evaluation_tracker":
            assert isinstance(value, EvaluationTracker)
            assert value.output_path == theirs[name].output_path
        else:
            assert value == theirs[name], name
    # lm-eval's command line gives the metadata to the task manager too.
    further = {name for name in theirs.keys() - ours.keys() - {"metadata"} if theirs[name]}
    assert all(theirs[name] == defaults[name].default for name in further)


def test_the_demonstration_does_not_wait_for_a_description_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(out: Path, machine: dict[str, Any], **settings: Any) -> None:
        # lm-eval describes the machine if this is empty.
        assert machine["lm_eval_version"] == version("lm_eval")
        raise StopIteration

    monkeypatch.setattr(demo, "evaluate", end)
    with pytest.raises(StopIteration):
        demo.run_lm_eval("pretrained=bundled:sft,layers=0", tmp_path / "out")


@pytest.mark.usefixtures("quick_lm_eval")
def test_lm_eval_describes_the_machine_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described: list[dict[str, Any]] = []

    def describe(storage: dict[str, Any]) -> None:
        described.append(storage)
        storage["pretty_env_info"] = "a machine"

    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", describe)
    register()
    manager = TaskManager(include_path=str(tasks_path()), include_defaults=False)
    machine: dict[str, Any] = {}
    settings = {"model": "aft", "model_args": {"engine": "scripted", "k": 1}, "tasks": ["aft_demo"], "limit": 1}
    for name in ("one", "two"):
        evaluate(tmp_path / name, machine, task_manager=manager, apply_chat_template=True, **settings)
        (file,) = (tmp_path / name).rglob("results_*.json")
        assert json.loads(file.read_text())["pretty_env_info"] == "a machine"
    assert described == [machine]
    assert lm_eval.evaluator.add_env_info is describe

"""aft train in several processes, and with several GPUs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.training_runs import log_of, settings_of, weights
from trainers.fitting import loop
from trainers.settings import TrainConfig
from trainers.train import run_training

REPORTS_GROUP = """
import atexit, runpy, sys

# This is registered before the trainer's handler, so it is called after it.
def report_group():
    import torch.distributed as group
    print("a process group is left:", group.is_initialized(), file=sys.stderr)

atexit.register(report_group)
runpy.run_module("trainers.train", run_name="__main__")
"""


STOPS_AT_STEP = """
import os, runpy
from trainers.fitting.callbacks import RunLog

whole = RunLog.on_log

def on_log(self, args, state, control, **rest):
    whole(self, args, state, control, **rest)
    if state.global_step == int(os.environ["STOP"]):
        os._exit(9)

RunLog.on_log = on_log
runpy.run_module("trainers.train", run_name="__main__")
"""


def written(config: TrainConfig, folder: Path, script: str) -> list[str]:
    """Write a program. Returns the words that run it."""
    (folder / "c.yaml").write_text(json.dumps(settings_of(config)))
    (folder / "script.py").write_text(script)
    return [str(folder / "script.py"), "sft", "--config", str(folder / "c.yaml")]


def test_two_processes_do_what_one_does_with_twice_the_batches(warm, config, tmp_path):
    done = warm.ranks(written(config, tmp_path, REPORTS_GROUP))
    assert done.returncode == 0, done.stderr
    # A process group that outlives the interpreter may abort a finished process.
    assert done.stderr.count("a process group is left: False") == 2
    assert done.stdout.count("8 rows, 8 examples") == 1
    one = replace(config, output=str(tmp_path / "one"), accumulate=2, log_every=1)
    run_training("sft", one)
    steps = [(row["step"], row["tokens"]) for row in log_of(config)]
    assert steps == [(row["step"], row["tokens"]) for row in log_of(one)]
    # Two processes with two examples a step need two steps for eight examples.
    assert [step for step, _ in steps] == [1, 2]
    assert [row["loss"] for row in log_of(config)] == pytest.approx([row["loss"] for row in log_of(one)], rel=1e-3)
    ours, theirs = weights(config.output), weights(one.output)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)


@pytest.mark.long
def test_two_processes_resume_in_the_second_epoch_as_if_they_had_not_stopped(warm, config, tmp_path):
    def train(settings: TrainConfig, stop: str):
        return warm.ranks(written(settings, tmp_path, STOPS_AT_STEP), {"STOP": stop})

    config = replace(config, batch_size=1, epochs=2, learning_rate=0.01)
    whole = replace(config, output=str(tmp_path / "whole"))
    assert train(whole, "0").returncode == 0
    assert train(config, "7").returncode == 9
    assert not Path(config.output, "adapter_model.safetensors").exists()
    done = train(config, "0")
    # An epoch has four steps.
    assert "resumes after checkpoint 6" in done.stdout
    ours, theirs = weights(config.output), weights(whole.output)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


def test_one_of_several_gpus_is_used_without_a_launcher(config, monkeypatch, capsys):
    arguments = loop.arguments

    def with_two_gpus(*settings):
        training_arguments = arguments(*settings)
        training_arguments._n_gpu = 2
        return training_arguments

    monkeypatch.setattr(loop, "arguments", with_two_gpus)
    run_training("sft", config)
    assert "2 GPUs are visible and one is used: accelerate launch" in capsys.readouterr().out
    assert json.loads(Path(config.output, "run.json").read_text())["finished"]

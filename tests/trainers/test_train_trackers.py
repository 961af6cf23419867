"""report_to: the log for trackers, in their offline modes."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from helpers.training_runs import log_of
from lm_eval_aft.core.errors import ConfigError
from trainers import train
from trainers.train import run_training

ALLOWED = pytest.mark.filterwarnings("ignore")


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed")


@needs("tensorboard")
@ALLOWED
def test_tensorboard_gets_the_losses_of_the_log(config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_training("sft", replace(config, report_to="tensorboard", validation=config.data))
    (events,) = Path(config.output).rglob("events.out.tfevents.*")
    read = EventAccumulator(str(events)).Reload()
    for ours, theirs in (("loss", "train/loss"), ("eval_loss", "eval/loss")):
        logged = [(row["step"], pytest.approx(row[ours])) for row in log_of(config) if ours in row]
        assert [(event.step, event.value) for event in read.Scalars(theirs)] == logged


@needs("mlflow")
@ALLOWED
def test_mlflow_gets_the_losses_of_the_log(config, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run_training("sft", replace(config, report_to="mlflow"))
    (losses,) = (tmp_path / "mlruns").rglob("metrics/loss")
    found = [float(line.split()[1]) for line in losses.read_text().splitlines()]
    assert found == pytest.approx([row["loss"] for row in log_of(config) if "loss" in row])


@needs("wandb")
@ALLOWED
def test_wandb_gets_the_losses_of_the_log(config, tmp_path, monkeypatch):
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_DIR", str(tmp_path)), ("WANDB_SILENT", "true")):
        monkeypatch.setenv(name, value)
    run_training("sft", replace(config, report_to="wandb", max_steps=2))
    import wandb

    wandb.finish()
    (history,) = tmp_path.rglob("run-*.wandb")
    assert b"train/loss" in history.read_bytes()


class Refused(Exception):
    """An error of a tracker."""


@needs("tensorboard")
def test_a_tracker_that_fails_is_one_sentence(config, monkeypatch):
    def fail(self, *given, **named):
        raise Refused("no key")

    monkeypatch.setattr(Refused, "__module__", "tensorboard.errors")
    monkeypatch.setattr("transformers.integrations.TensorBoardCallback.on_train_begin", fail)
    with pytest.raises(ConfigError, match=r"report_to=tensorboard failed \(Refused: no key\): configure it"):
        run_training("sft", replace(config, report_to="tensorboard"))


def test_a_tracker_that_is_missing_is_one_sentence(config, monkeypatch):
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="report_to=wandb needs wandb, which is not installed: pip install wandb"):
        run_training("sft", replace(config, report_to="wandb"))
    assert not Path(config.output).exists()


def test_without_report_to_nothing_is_reported(config):
    run_training("sft", replace(config, max_steps=1))
    assert json.loads((Path(config.output) / "run.json").read_text())["config"]["report_to"] == "none"
    assert not list(Path(config.output).rglob("events.out*"))

"""Training runs in tests: their settings, logs and weights, and a run that is killed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainers.fitting.callbacks import RunLog
from trainers.settings import Kind, TrainConfig
from trainers.train import run_training

SHORT = "{% block draft %}{% endblock %}{% block aggregate %}{{ drafts | join(' / ') }}{% endblock %}"


class Killed(BaseException):
    """A kill in the middle of a run."""


def settings_of(config: TrainConfig) -> dict:
    return {name: value for name, value in config.to_dict().items() if value not in (None, ())}


def weights(folder: str | Path, name: str = "adapter_model.safetensors") -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(Path(folder, name))


def log_of(config: TrainConfig) -> list[dict]:
    return [json.loads(line) for line in Path(config.output, "log.jsonl").read_text().splitlines()]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def contradicted(config: TrainConfig) -> TrainConfig:
    """Settings whose validation loss soon rises: the validation file has other answers to the same questions."""
    text = Path(config.data).read_text().replace('"sft_target": "', '"sft_target": "no ')
    other = Path(config.data).with_name("other.jsonl")
    other.write_text(text)
    return replace(config, validation=str(other), learning_rate=0.03, schedule="constant", save_every=2, epochs=5)


def run_until(monkeypatch: pytest.MonkeyPatch, config: TrainConfig, step: int, kind: Kind = "aft") -> None:
    """Train, and raise ``Killed`` when a step is logged."""
    whole = RunLog.on_log

    def on_log(self, args, state, control, logs=None, **rest):
        whole(self, args, state, control, logs=logs, **rest)
        if state.global_step == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "on_log", on_log)
        with pytest.raises(Killed):
            run_training(kind, config)

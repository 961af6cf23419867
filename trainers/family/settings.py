"""The settings of the bundled family. Every number of the recipe is here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainers.settings import Kind

# Curves and cards of earlier families hold these keys, so they stay.
RECORDED_KEYS = {
    "mismatched_share": "misses",
    "shared_numbers_share": "siblings",
    "extra_stage": "again",
    "copy_accuracy_goal": "exact",
}


@dataclass(frozen=True)
class Stage:
    """One stage of the base's training; see ``pretrain.train_base``.

    Attributes:
        steps: Optimizer steps.
        rate: Highest learning rate of a cosine schedule.
        mismatched_share: Share of examples whose question names another target than their answer reaches.
        shared_numbers_share: Share of documents whose problems have the same numbers and different targets.
    """

    steps: int
    rate: float
    mismatched_share: float = 0.0
    shared_numbers_share: float = 0.0


@dataclass(frozen=True)
class FamilyConfig:
    """All settings of the family. The defaults are those of the bundled checkpoints.

    Attributes:
        width, depth, heads: Hidden size, layers and attention heads of the model.
        stages: Stages of the base's training, in order.
        extra_stage: Stage that is repeated after them until the base copies answers exactly.
        copy_accuracy_goal: Mean probability of copying a whole answer at which it does. Gains from aggregation need it.
        rounds: Repetitions of ``extra_stage`` at most.
        documents: Documents a training step.
        problems: Different problems a document.
        repeats: Answered problems that a document repeats at its end.
        repeat_weight: Weight in the loss of a token of a repeated answer; a token of a first answer has weight 1.
        queries: Problems for which the base writes drafts.
        drafts: Drafts a problem.
        sets: Rows with drafts a problem.
        mixed: Share of rows with right and wrong drafts, of the problems that have both.
        temperature: Sampling temperature of drafts.
        train_epochs, train_batch: Epochs and batch size of the four trainings. Of 12 epochs of SFT, the third had the
            lowest validation loss.
        plain_rate, aft_rate: Learning rates of trainings without and with drafts.
        plain_share: Share of examples without drafts in trainings with drafts.
        seed: Seed of the weights and the problems.
    """

    width: int = 96
    depth: int = 4
    heads: int = 4
    stages: tuple[Stage, ...] = (Stage(2200, 1.5e-3), Stage(400, 6e-4, 0.3), Stage(1200, 2e-3, 0.3, 0.7))
    extra_stage: Stage = Stage(400, 2e-3, 0.3, 0.7)
    copy_accuracy_goal: float = 0.95
    rounds: int = 6
    documents: int = 72
    problems: int = 4
    repeats: int = 2
    repeat_weight: float = 3.0
    queries: int = 8_000
    drafts: int = 8
    sets: int = 3
    mixed: float = 0.7
    temperature: float = 0.7
    train_epochs: float = 3.0
    train_batch: int = 128
    plain_rate: float = 3e-4
    aft_rate: float = 6e-4
    plain_share: float = 0.35
    seed: int = 0


def recorded(settings: Stage | FamilyConfig) -> dict[str, Any]:
    """Settings as curves and cards hold them."""
    return asdict(settings, dict_factory=lambda items: {RECORDED_KEYS.get(name, name): value for name, value in items})


def training_settings(config: FamilyConfig, out: Path, kind: Kind, seed: int) -> dict[str, Any]:
    """The settings of a training on the base, without its files.

    The family trains all weights. LoRA reaches the same accuracy (docs/lab-notes).
    """
    return {
        "model": str(out / "base"),
        "template": str(out / "template.j2"),
        "lora_rank": 0,
        "learning_rate": config.plain_rate if kind in ("sft", "aft-no-drafts") else config.aft_rate,
        "epochs": config.train_epochs,
        "batch_size": config.train_batch,
        "plain_share": config.plain_share,
        "max_length": 512,
        "seed": seed,
        "log_every": 50,
    }

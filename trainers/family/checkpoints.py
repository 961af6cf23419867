"""The checkpoints of the family: the four trainings on the base, and the copies that ship in the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval_aft import bundled
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.files import atomic_write
from trainers.family.settings import FamilyConfig
from trainers.settings import Kind, make_config

SHIPPED = (
    *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("chat_template.jinja", "aft_config.json", "README.md"),
)


def train_all(config: FamilyConfig, out: Path, kinds: Sequence[Kind], seed: int) -> None:
    """Train each kind on the base, as ``aft train`` does."""
    from trainers.train import run_training

    for kind in kinds:
        suffix = "_sft" if kind == "sft" else ""
        settings = training_settings(config, out, kind, seed) | {
            "data": str(out / f"train{suffix}.jsonl"),
            "validation": str(out / f"validation{suffix}.jsonl"),
            "output": str(out / f"{kind}-{seed}"),
        }
        run_training(kind, make_config(settings, "trainers.family"))


def training_settings(config: FamilyConfig, out: Path, kind: Kind, seed: int) -> dict[str, Any]:
    """The settings of a training on the base, without its files.

    The family trains all weights. LoRA reaches the same accuracy (docs/experiments.md).
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


def ship(out: Path, seed: int) -> None:
    """Copy base, SFT and AFT into the package, without the names of local folders.

    Raises:
        ConfigError: If a file of a checkpoint is missing.
    """
    sources = {name: out / ("base" if name == "base" else f"{name}-{seed}") for name in bundled.NAMES}
    for path in (source / file for source in sources.values() for file in SHIPPED):
        if not path.is_file():
            raise ConfigError(f"{path} is not there: run trainers.family base, rows and train on {out} first.")
    for name, source in sources.items():
        target = bundled.FOLDER / name
        target.mkdir(parents=True, exist_ok=True)
        for file in SHIPPED:
            content = (source / file).read_bytes()
            if file.endswith((".json", ".md")):
                # The trainings may have had an absolute path and this command a relative one.
                for folder in (out.resolve(), out):
                    content = content.replace(f"{folder}/base".encode(), b"bundled:base")
                    content = content.replace(f"{folder}/".encode(), b"")
            # A run that reads the old file keeps a whole one.
            with atomic_write(target / file) as partial:
                partial.write_bytes(content)

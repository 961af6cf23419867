"""The commands of ``python -m trainers.family``, the four trainings on the base, and the copies that ship."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click

from lm_eval_aft import bundled
from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.cli.runner import run
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.files import atomic_write, write_text
from lm_eval_aft.core.terminal import show
from trainers.family import pretrain
from trainers.family import rows as family_rows
from trainers.family.settings import FamilyConfig, training_settings
from trainers.settings import KINDS, Kind, make_config
from trainers.train import run_training

SHIPPED = (
    *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("chat_template.jinja", "aft_config.json", "README.md"),
)
FOLDER = click.argument("out", type=PATH)


def seed_option(meaning: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The --seed option of a command."""
    return click.option("--seed", default=0, show_default=True, help=meaning)


@click.group()
def main() -> None:
    """Build the bundled family."""


@main.command()
@FOLDER
@seed_option("Seed of the base's weights and problems.")
def base(out: Path, seed: int) -> None:
    """Train the base from scratch."""
    pretrain.train_base(FamilyConfig(seed=seed), out)


@main.command()
@FOLDER
@seed_option("Seed that the base was trained with.")
def rows(out: Path, seed: int) -> None:
    """Write drafts with the base, and the rows of all trainings."""
    config = FamilyConfig(seed=seed)
    # This refuses a base that was trained with another seed.
    pretrain.read_curve(out / "base", config)
    counts = family_rows.make_rows(config, out)
    write_text(out / "rows.json", json.dumps(counts, indent=1) + "\n")
    show(json.dumps(counts))


@main.command()
@FOLDER
@click.option("--kind", "kinds", multiple=True, type=click.Choice(list(KINDS)), help="Train this kind only.")
@seed_option("Seed of the trainings.")
def train(out: Path, kinds: tuple[Kind, ...], seed: int) -> None:
    """Train sft, aft, aft-no-drafts and aft-pseudo on the base."""
    for kind in kinds or tuple(KINDS):
        suffix = "_sft" if kind == "sft" else ""
        settings = training_settings(FamilyConfig(), out, kind, seed) | {
            "data": str(out / f"train{suffix}.jsonl"),
            "validation": str(out / f"validation{suffix}.jsonl"),
            "output": str(out / f"{kind}-{seed}"),
        }
        run_training(kind, make_config(settings, "trainers.family"))


@main.command()
@FOLDER
@seed_option("Seed of the trainings.")
def ship(out: Path, seed: int) -> None:
    """Copy base, SFT and AFT into the package, without the names of local folders."""
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


if __name__ == "__main__":
    run(main, "python -m trainers.family")

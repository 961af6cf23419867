"""The commands of ``python -m trainers.family``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import click

from lm_eval_aft.core.errors import AFTError
from lm_eval_aft.core.files import write_text
from trainers.family import checkpoints, pretrain
from trainers.family import rows as family_rows
from trainers.family.settings import FamilyConfig
from trainers.settings import KINDS, Kind

FOLDER = click.argument("out", type=click.Path(path_type=Path))


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
    click.echo(json.dumps(counts))


@main.command()
@FOLDER
@click.option(
    "--kind", "kinds", multiple=True, type=click.Choice(list(KINDS)), help="Train this kind only; repeatable."
)
@seed_option("Seed of the trainings.")
def train(out: Path, kinds: tuple[Kind, ...], seed: int) -> None:
    """Train sft, aft, aft-no-drafts and aft-pseudo on the base."""
    checkpoints.train_all(FamilyConfig(), out, kinds or tuple(KINDS), seed)


@main.command()
@FOLDER
@seed_option("Seed of the trainings.")
def ship(out: Path, seed: int) -> None:
    """Copy base, SFT and AFT into the package, without the names of local folders."""
    checkpoints.ship(out, seed)


if __name__ == "__main__":
    from lm_eval_aft import _autoload

    try:
        main()
    except AFTError as failure:
        _autoload.print_error(failure)
        sys.exit(failure.exit_code)

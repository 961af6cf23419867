"""``aft export``: runs as files for other programs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import click

from lm_eval_aft.analysis.every_eval_ever import (
    RELATIONSHIPS,
    UNKNOWN,
    Publisher,
    Relationship,
    write_every_eval_ever,
)
from lm_eval_aft.analysis.frame_files import FRAME_FORMS, FrameForm, write_frames
from lm_eval_aft.analysis.frames import frames
from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.analysis.wandb_tables import log_tables
from lm_eval_aft.cli.options import REGEX, traces_option
from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.terminal import note


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PATH)
@traces_option("RUNS")
@click.option("--output", type=PATH, help="Folder of the files. The default is export.")
@click.option(
    "--format",
    "form",
    type=click.Choice(FRAME_FORMS),
    help="Write runs, samples and drafts as tables, a file each. The default is parquet.",
)
@click.option("--wandb", metavar="PROJECT", help="Log the same tables to this project of W&B instead of files.")
@REGEX
@click.option("--every-eval-ever", is_flag=True, help="Write a record of Every Eval Ever for each task of each run.")
@click.option("--organization", help="Who publishes the records. The default is unknown.")
@click.option(
    "--relationship",
    type=click.Choice(RELATIONSHIPS),
    help="How the publisher is related to whoever made the model. The default is other.",
)
@click.option("--developer", help="Who made a model whose name is not OWNER/NAME. The default is unknown.")
def export(
    runs: tuple[Path, ...],
    traces: Path | None,
    output: Path | None,
    form: FrameForm | None,
    wandb: str | None,
    regex: str | None,
    every_eval_ever: bool,
    organization: str | None,
    relationship: Relationship | None,
    developer: str | None,
) -> None:
    """Write the runs below RUNS as files for other programs.

    The tables are those of lm_eval_aft.frames(RUNS): runs, samples and drafts. Files of an earlier export are replaced.
    """
    publishing = {"--organization": organization, "--relationship": relationship, "--developer": developer}
    tables = {"--format": form, "--regex": regex, "--wandb": wandb}
    _refuse(tables if every_eval_ever else publishing, every_eval_ever)
    if wandb is not None:
        files = {"--format": form, "--output": output}
        if unused := [name for name, value in files.items() if value is not None]:
            raise ConfigError(f"{unused[0]} is for files, and --wandb writes none: leave one of them out.")
        names = log_tables(wandb, frames(*runs, traces=traces, regex=regex))
        note(f"Logged to W&B: {', '.join(names)}")
        return
    folder = output or Path("export")
    if every_eval_ever:
        publisher = Publisher(organization or UNKNOWN, relationship or "other", developer or UNKNOWN)
        paths = write_every_eval_ever(folder, read_entries(runs, traces), publisher, time.time())
    else:
        paths = write_frames(folder, frames(*runs, traces=traces, regex=regex), form or "parquet")
    for path in paths:
        note(f"Written: {path}")


def _refuse(options: Mapping[str, str | None], every_eval_ever: bool) -> None:
    """Refuse options of the other kind of export."""
    if given := [name for name, value in options.items() if value is not None]:
        kind = "tables: leave out it or --every-eval-ever" if every_eval_ever else "--every-eval-ever: add it"
        raise ConfigError(f"{given[0]} is for {kind}.")

"""``aft votes``: what the drafts alone would score."""

from __future__ import annotations

from pathlib import Path

import click

from lm_eval_aft.analysis import api
from lm_eval_aft.analysis.report.tables import FORMS, Form, render
from lm_eval_aft.analysis.report.vote_tables import vote_table
from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.terminal import show


@click.command()
@click.argument("out", type=PATH)
@click.option("--traces", type=PATH, help="Folder that record= named, if it is not below OUT.")
@click.option("--task", help="Count this task or group alone.")
@click.option("--regex", help="Find answers by this regex: its last match, or that match's first group.")
@click.option("--level", type=float, default=0.95, show_default=True, help="Confidence of the intervals.")
@click.option("--format", "form", type=click.Choice(FORMS), default="text", show_default=True)
def votes(out: Path, traces: Path | None, task: str | None, regex: str | None, level: float, form: Form) -> None:
    """Score the drafts themselves: the mean draft, the majority vote and the oracle of n drafts.

    OUT is the --output_path of runs with record= and --log_samples. Each score is the exact mean over all choices of n
    drafts.
    """
    counted = api.votes(out, task, regex, level, traces)
    show(render([vote_table(each) for each in counted], form))

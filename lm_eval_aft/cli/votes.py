"""``aft votes``: what the drafts alone would score."""

from __future__ import annotations

from pathlib import Path

import click

from lm_eval_aft.analysis import api
from lm_eval_aft.analysis.report.tables import Form, render
from lm_eval_aft.analysis.report.vote_tables import replay_table, vote_table
from lm_eval_aft.cli.options import LEVEL, REGEX, format_option, traces_option
from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.terminal import show


@click.command()
@click.argument("out", type=PATH)
@traces_option("OUT")
@click.option("--task", help="Task or group to score. The default is all.")
@REGEX
@LEVEL
@click.option(
    "--stop-when",
    multiple=True,
    help="Rules such as agree:0.9,agree:0.95,window:4. The command shows what each would have scored and saved on the "
    "stored drafts. Repeat the option for several.",
)
@format_option()
def votes(
    out: Path,
    traces: Path | None,
    task: str | None,
    regex: str | None,
    level: float,
    stop_when: tuple[str, ...],
    form: Form,
) -> None:
    """Score the drafts alone: the mean draft, the majority vote and the oracle of n drafts.

    OUT is the --output_path of runs with record=, or a drafts file of aft data. Each score is the
    exact mean over all choices of n of the k drafts.
    """
    counted = api.votes(out, task, regex, level, traces, stop_when)
    show(render([replay_table(each) if each.replays else vote_table(each) for each in counted], form))

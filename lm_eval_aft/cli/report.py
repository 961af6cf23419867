"""``aft report``: a leaderboard of runs with cost, as a table, a block for a model card, or a page."""

from __future__ import annotations

from pathlib import Path

import click

from lm_eval_aft.analysis.report.leaderboard import leaderboard
from lm_eval_aft.analysis.report.tables import FORMS, Form, render
from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.terminal import note, show


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option("--traces", type=PATH, help="Folder that record= named, if it is not below RUNS.")
@click.option("--every", is_flag=True, help="Show all metrics and filters, not one for each task or group.")
@click.option("--members", is_flag=True, help="Also show the tasks and groups within each group.")
@click.option("--format", "form", type=click.Choice(FORMS), default="text", show_default=True)
@click.option(
    "--baseline",
    type=PATH,
    help="One of RUNS, with which --html and --model-card compare the others.",
)
@click.option("--html", type=PATH, help="Write a page of tables, curves and all samples there.")
@click.option("--model-card", "card", is_flag=True, help="Print Markdown with table, settings and commands.")
def report(
    runs: tuple[Path, ...],
    traces: Path | None,
    every: bool,
    members: bool,
    form: Form,
    baseline: Path | None,
    html: Path | None,
    card: bool,
) -> None:
    """Show the runs below RUNS as one table of scores and cost.

    RUNS are folders that --output_path named, with runs of any lm-eval model. Rows that were another test than most are
    marked with the reason.
    """
    if baseline and not (html or card):
        raise ConfigError("--baseline is for --html and --model-card; aft compare BASELINE OTHER prints comparisons.")
    entries = read_entries(runs, traces, keep=html is not None)
    table = leaderboard(entries, every, members)
    # Each form imports what it needs, so that the table alone starts quickly.
    if card:
        from lm_eval_aft.analysis.report.model_card import model_card

        show(model_card(entries, table, baseline))
    else:
        show(render([table], form))
    if html:
        from lm_eval_aft.analysis.report.page.build import write_report

        write_report(html, entries, table, baseline, members)
        note(f"The page is in {html}.")

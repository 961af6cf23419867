"""``aft report``: a leaderboard of runs with cost, as a table, a block for a model card, or a page."""

from __future__ import annotations

from pathlib import Path

import click

from lm_eval_aft.analysis.report.hub_results import read_benchmarks, write_eval_results
from lm_eval_aft.analysis.report.leaderboard import leaderboard, models_table
from lm_eval_aft.analysis.report.tables import Form, render
from lm_eval_aft.analysis.report.vote_tables import drafts_table, votes_by_run
from lm_eval_aft.analysis.runs import read_entries, with_token_costs
from lm_eval_aft.analysis.votes import read_ballots
from lm_eval_aft.cli.options import MEMBERS, format_option, given_costs, money_options, traces_option
from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.terminal import note, show


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PATH)
@traces_option("RUNS")
@click.option(
    "--every", is_flag=True, help="Show all metrics and filters. The default is the main metric of each task or group."
)
@MEMBERS
@format_option()
@click.option(
    "--baseline",
    type=PATH,
    help="Run with which --html and --model-card compare the others. It is one of RUNS.",
)
@click.option(
    "--html", type=PATH, help="File to write a page into. The page has tables, curves, comparisons and all samples."
)
@click.option(
    "--model-card",
    "card",
    is_flag=True,
    help="Print a model card: the scores as model-index, then the table, the settings and the commands in Markdown.",
)
@click.option(
    "--eval-results",
    type=PATH,
    help="Folder of a model's repository. Its .eval_results/ gets a file of scores a run, as the hub reads them.",
)
@click.option(
    "--benchmark",
    "benchmarks",
    multiple=True,
    metavar="TASK=OWNER/NAME:TASK_ID",
    help="Leaderboard of a task, for --eval-results. The default is the dataset that the task loads from the hub.",
)
@money_options
def report(
    runs: tuple[Path, ...],
    traces: Path | None,
    every: bool,
    members: bool,
    form: Form,
    baseline: Path | None,
    html: Path | None,
    card: bool,
    eval_results: Path | None,
    benchmarks: tuple[str, ...],
    price_in: float | None,
    price_out: float | None,
) -> None:
    """Show the runs below RUNS as one table of scores and cost.

    RUNS are folders that --output_path named. They may hold runs of any lm-eval model. If a run used other settings
    of a task than most runs, its row states the difference. A second table has avg@k, maj@k, pass@k and the gap closed
    of runs with traces. CSV has the first table alone.
    """
    if baseline and not (html or card):
        raise ConfigError("--baseline is for --html and --model-card; aft compare BASELINE OTHER prints comparisons.")
    if benchmarks and not eval_results:
        raise ConfigError("--benchmark is for --eval-results: give the folder of the model's repository.")
    leaderboards = read_benchmarks(benchmarks)
    costs = given_costs(price_in, price_out)
    entries = with_token_costs(read_entries(runs, traces, keep=html is not None), costs)
    # One table, so that programs that read CSV get one table.
    alone = form == "csv" and not card
    if not alone:
        read_ballots(entries)
    table = leaderboard(entries, every, members)
    found = () if alone else (models_table(entries), drafts_table(votes_by_run(entries)))
    further = [each for each in found if each]
    # Each form imports what it needs, so that the table alone starts quickly.
    if card:
        from lm_eval_aft.analysis.report.model_card import model_card

        show(model_card(entries, table, baseline, further))
    else:
        show(render([table, *further], form))
    if html:
        from lm_eval_aft.analysis.report.page.build import write_report

        write_report(html, entries, table, baseline, members)
        note(f"The page is in {html}.")
    if eval_results:
        for path in write_eval_results(eval_results, entries, leaderboards):
            note(f"The scores are in {path}.")

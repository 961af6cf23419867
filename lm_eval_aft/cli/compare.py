"""``aft compare BASELINE OTHER...``: paired tests, intervals and cost of runs against a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from lm_eval_aft.analysis import api
from lm_eval_aft.analysis.comparison import compare_entries, compare_judgements
from lm_eval_aft.analysis.judgements import is_judgement_file
from lm_eval_aft.analysis.report.comparison_tables import (
    comparison_sentences,
    comparison_tables,
    comparisons_json,
    paired_table,
)
from lm_eval_aft.analysis.report.strategy_tables import strategy_table
from lm_eval_aft.analysis.report.tables import Form, Table, render
from lm_eval_aft.analysis.report.vote_tables import votes_by_run
from lm_eval_aft.analysis.runs import RunEntry, with_token_costs
from lm_eval_aft.analysis.votes import read_ballots
from lm_eval_aft.cli.options import LEVEL, MEMBERS, REGEX, format_option, given_costs, money_options, traces_option
from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.terminal import message, note, show
from lm_eval_aft.core.usage import TokenCosts


@click.command()
@click.argument("baseline", type=PATH)
@click.argument("others", nargs=-1, type=PATH)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    help="Task or group to compare. Repeat the option for several. The default is all.",
)
@MEMBERS
@click.option("--metric", help="Metric to compare, as NAME or NAME,FILTER. The default is each task's main metric.")
@click.option(
    "--common",
    is_flag=True,
    help="Compare only the questions that both runs answered. Without it, runs on different questions are refused.",
)
@LEVEL
@traces_option("the runs")
@click.option(
    "--drafts",
    type=PATH,
    multiple=True,
    help="Further run whose drafts are counted in the votes. Repeat the option for several.",
)
@REGEX
@click.option(
    "--strategies",
    is_flag=True,
    help="Show all strategies on the drafts of one run in one table. The first argument is the run whose drafts they "
    "are, and OTHERS are runs of further strategies, if there are any.",
)
@click.option(
    "--stop-when",
    multiple=True,
    help="Rules that --strategies replays on the drafts, such as agree:0.9,window:4. The default is "
    f"{','.join(api.STOP_WHEN)}.",
)
@money_options
@format_option()
@click.option(
    "--fail-on-regression",
    is_flag=True,
    help="Exit with code 1 if a run is worse than the baseline: p after Holm's correction is at most 0.05. The "
    "baseline of --strategies is the vote at equal tokens.",
)
def compare(
    baseline: Path,
    others: tuple[Path, ...],
    tasks: tuple[str, ...],
    members: bool,
    metric: str | None,
    common: bool,
    level: float,
    traces: Path | None,
    drafts: tuple[Path, ...],
    regex: str | None,
    strategies: bool,
    stop_when: tuple[str, ...],
    price_in: float | None,
    price_out: float | None,
    form: Form,
    fail_on_regression: bool,
) -> None:
    """Compare runs with BASELINE: a paired test, an interval, the cost, and votes at equal cost.

    BASELINE is one run. Every run below OTHERS is compared with it, question by question. Run lm_eval with
    --log_samples. To compare judged models, give their files instead: FastChat's model_judgment/*.jsonl, or
    alpaca_eval's annotations.json.

    With --strategies, BASELINE is the run whose drafts are the pool. The table shows one draft, the votes, stop rules
    and the oracle on these drafts, and the runs below OTHERS. Each is tested against the vote at equal tokens.
    """
    if not strategies:
        _refuse({"--stop-when": stop_when}, "it needs --strategies")
        costs = given_costs(price_in, price_out)
        if is_judgement_file(baseline):
            of_runs = {"--traces": traces, "--drafts": drafts, "--members": members, "--regex": regex}
            _refuse(of_runs | {"--price-in": costs}, "files of judgements have no use for it")
        regressed = _compare_runs(
            baseline, others, tasks, members, metric, common, level, traces, drafts, regex, costs, form
        )
    else:
        useless = {"--drafts": drafts, "--members": members, "--price-in": price_in, "--price-out": price_out}
        _refuse(useless, "--strategies has no use for it")
        rules = stop_when or api.STOP_WHEN
        found, left_out = api.strategies(
            baseline,
            *others,
            stop_when=rules,
            tasks=tasks,
            metric=metric,
            regex=regex,
            common=common,
            level=level,
            traces=traces,
        )
        show(render([strategy_table(each) for each in found], form))
        for sentence in left_out:
            note(sentence)
        regressed = any(row.verdict == "worse" for each in found for row in each.rows if row.source == "run")
    if fail_on_regression and regressed:
        raise SystemExit(1)


def _refuse(options: Mapping[str, object], reason: str) -> None:
    for name, value in options.items():
        # A cost of 0 is given, too.
        if value or isinstance(value, float):
            raise ConfigError(f"{name} is given, and {reason}: leave it out.")


def _compare_runs(
    baseline: Path,
    others: tuple[Path, ...],
    tasks: tuple[str, ...],
    members: bool,
    metric: str | None,
    common: bool,
    level: float,
    traces: Path | None,
    drafts: tuple[Path, ...],
    regex: str | None,
    costs: TokenCosts | None,
    form: Form,
) -> bool:
    """Print the comparison with a baseline. Returns whether a run is worse."""
    entries: Sequence[RunEntry] = ()
    tables: Sequence[Table] = []
    if is_judgement_file(baseline):
        compared = compare_judgements(baseline, others, common, level, tasks, metric)
        tables = [paired_table(compared.comparisons[0].baseline, compared.comparisons)]
    else:
        read_base, read_rest = api.read_sides(baseline, others, traces, drafts)
        base, *rest = with_token_costs((read_base, *read_rest), costs)
        read_ballots((base, *rest), regex)
        entries = api.entries_below(rest, others)
        compared = compare_entries(base, entries, tasks, metric, common, level, members)
        if form != "json":
            tables = comparison_tables(base, entries, compared.comparisons, [base, *rest], regex, level)
    sentences = [*comparison_sentences(compared.comparisons), *compared.left_out]
    if form == "json":
        show(comparisons_json(compared.comparisons, votes_by_run(entries, regex, level)))
    elif form == "csv":
        show(render(tables, form))
    else:
        show("\n\n".join([*map(message, sentences), render(tables, form)]))
    # Programs read the tables alone.
    for sentence in compared.left_out if form in ("json", "csv") else ():
        note(sentence)
    return compared.regressed

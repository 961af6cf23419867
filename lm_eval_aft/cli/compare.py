"""``aft compare BASELINE OTHER...``: paired tests, intervals and cost of runs against a baseline."""

from __future__ import annotations

from collections.abc import Sequence
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
from lm_eval_aft.analysis.report.tables import Form, Table, render
from lm_eval_aft.analysis.report.vote_tables import votes_by_run
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.cli.options import LEVEL, MEMBERS, REGEX, format_option, traces_option
from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.terminal import message, note, show


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
@format_option(["text", "markdown", "json"])
@click.option(
    "--fail-on-regression",
    is_flag=True,
    help="Exit with code 1 if a run is worse than the baseline: p after Holm's correction is at most 0.05.",
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
    form: Form,
    fail_on_regression: bool,
) -> None:
    """Compare runs with BASELINE: a paired test, an interval, the cost, and votes at equal cost.

    BASELINE is one run. Every run below OTHERS is compared with it, question by question. Run lm_eval with
    --log_samples. To compare judged models, give their files instead: FastChat's model_judgment/*.jsonl, or
    alpaca_eval's annotations.json.
    """
    if is_judgement_file(baseline):
        compared = compare_judgements(baseline, others, common, level, tasks, metric)
        entries: Sequence[RunEntry] = ()
        tables: Sequence[Table] = [paired_table(compared.comparisons[0].baseline, compared.comparisons)]
    else:
        base, rest = api.read_sides(baseline, others, traces, drafts)
        entries = api.entries_below(rest, others)
        compared = compare_entries(base, entries, tasks, metric, common, level, members)
        voters = [base, *rest]
        tables = [] if form == "json" else comparison_tables(base, entries, compared.comparisons, voters, regex, level)
    if form == "json":
        show(comparisons_json(compared.comparisons, votes_by_run(entries, regex, level)))
        for sentence in compared.left_out:
            note(sentence)
    else:
        sentences = [*comparison_sentences(compared.comparisons), *compared.left_out]
        show("\n\n".join([*map(message, sentences), render(tables, form)]))
    if fail_on_regression and compared.regressed:
        raise SystemExit(1)

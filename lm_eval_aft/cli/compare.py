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
from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.terminal import message, note, show


@click.command()
@click.argument("baseline", type=PATH)
@click.argument("others", nargs=-1, type=PATH)
@click.option("--task", "tasks", multiple=True, help="Compare this task or group alone; can be given several times.")
@click.option("--members", is_flag=True, help="Also compare the tasks and groups within each group.")
@click.option("--metric", help="NAME or NAME,FILTER instead of each task's first score, or its flexible one.")
@click.option("--common", is_flag=True, help="Compare the questions that both answered, if they are not the same ones.")
@click.option("--level", type=float, default=0.95, show_default=True, help="Confidence of the intervals.")
@click.option("--traces", type=PATH, help="Folder that record= named, if not below the runs.")
@click.option("--drafts", type=PATH, multiple=True, help="Further runs whose drafts vote.")
@click.option("--regex", help="How votes find answers; see aft votes.")
@click.option("--format", "form", type=click.Choice(["text", "markdown", "json"]), default="text", show_default=True)
@click.option("--fail-on-regression", is_flag=True, help="Exit 1 if a run is worse than the baseline (Holm p <= 0.05).")
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
    """Compare runs with BASELINE question by question: test, interval, cost, and votes at equal cost.

    BASELINE is one run. Every run below OTHERS is compared with it. Samples must have been logged (--log_samples).
    Judged models are compared by their files: FastChat's model_judgment/*.jsonl, or alpaca_eval's annotations.json.
    """
    if is_judgement_file(baseline):
        compared = compare_judgements(baseline, others, common, level)
        tables: Sequence[Table] = [paired_table(compared.comparisons[0].baseline, compared.comparisons)]
    else:
        base, rest = api.read_sides(baseline, others, traces, drafts)
        entries = api.entries_below(rest, others)
        compared = compare_entries(base, entries, tasks, metric, common, level, members)
        voters = [base, *rest]
        tables = [] if form == "json" else comparison_tables(base, entries, compared.comparisons, voters, regex, level)
    if form == "json":
        show(comparisons_json(compared.comparisons))
        for sentence in compared.left_out:
            note(sentence)
    else:
        sentences = [*comparison_sentences(compared.comparisons), *compared.left_out]
        show("\n\n".join([*map(message, sentences), render(tables, form)]))
    if fail_on_regression and compared.regressed:
        raise SystemExit(1)

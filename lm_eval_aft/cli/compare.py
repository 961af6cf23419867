"""``aft compare BASELINE OTHER...``: paired tests, intervals and cost of runs against a baseline.

All formulas are in ``stats``, the comparisons in ``compare``, their sentences and tables in ``compare_tables``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from lm_eval_aft.analysis.comparison import Comparison, compare_entries, compare_judgements
from lm_eval_aft.analysis.judgements import is_judgement_file
from lm_eval_aft.analysis.report.tables import Form, to_json
from lm_eval_aft.analysis.runs import RunEntry, read_entries
from lm_eval_aft.core.errors import ConfigError, RecordError
from lm_eval_aft.storage.results import read_runs


def read_sides(baseline: Path, others: Sequence[Path], traces: Path | None) -> tuple[RunEntry, tuple[RunEntry, ...]]:
    """The one run below ``baseline``, and every other run below ``others``, all with different labels.

    Raises:
        ConfigError: There is nothing to compare the baseline with.
        RecordError: The baseline is not one run, or a folder holds none; the message names it.
    """
    runs = read_runs(baseline)
    if len(runs) > 1:
        files = ", ".join(str(run.path) for run in runs[:3])
        raise RecordError(f"{baseline} holds {len(runs)} runs and the baseline is one: give its file, such as {files}.")
    base, *rest = read_entries([runs[0].path, *others], traces)
    if not rest:
        raise _no_other(others[0])
    return base, tuple(rest)


def _no_other(folder: Path) -> ConfigError:
    return ConfigError(f"{folder} holds no other run than the baseline: give another folder.")


@click.command()
@click.argument("baseline", type=click.Path(path_type=Path))
@click.argument("others", nargs=-1, type=click.Path(path_type=Path))
@click.option("--task", "tasks", multiple=True, help="Compare this task alone; can be given again.")
@click.option("--metric", help="NAME or NAME,FILTER instead of each task's first (or flexible) one.")
@click.option("--common", is_flag=True, help="Compare the questions both answered, where they are not the same ones.")
@click.option("--level", type=float, default=0.95, show_default=True, help="Confidence of the intervals.")
@click.option("--traces", type=click.Path(path_type=Path), help="Where record= put the traces, if not below the runs.")
@click.option("--drafts", type=click.Path(path_type=Path), multiple=True, help="Further runs whose drafts vote.")
@click.option("--regex", help="How votes find answers; see aft votes.")
@click.option("--format", "form", type=click.Choice(["text", "markdown", "json"]), default="text", show_default=True)
@click.option("--fail-on-regression", is_flag=True, help="Exit 1 if a run is worse than the baseline (Holm p <= 0.05).")
def compare(
    baseline: Path,
    others: tuple[Path, ...],
    tasks: tuple[str, ...],
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

    BASELINE is one run; of OTHERS every run below them is compared. Samples must have been logged (--log_samples).
    Judged models are compared by their files: FastChat's model_judgment/*.jsonl, or alpaca_eval's annotations.json.
    """
    from lm_eval_aft.analysis.report.comparison_tables import comparison_sentences, comparison_tables
    from lm_eval_aft.analysis.report.tables import render

    if is_judgement_file(baseline):
        _show_judged(compare_judgements(baseline, others, common, level), form, fail_on_regression)
        return
    if not others:
        raise ConfigError("there is nothing to compare the baseline with: give one run or more after it.")
    base, rest = read_sides(baseline, [*others, *drafts], traces)
    asked = {run.path.resolve() for folder in others for run in read_runs(folder)}
    entries = [entry for entry in rest if entry.run.path.resolve() in asked]
    if not entries:
        raise _no_other(others[0])
    found = compare_entries(base, entries, tasks, metric, common, level)
    if form == "json":
        click.echo(to_json(found))
    else:
        tables = comparison_tables(base, entries, found, [base, *rest], regex, level)
        click.echo("\n\n".join([*comparison_sentences(found), render(tables, form)]))
    if fail_on_regression and any(row.worse for row in found if not row.category):
        raise SystemExit(1)


def _show_judged(found: Sequence[Comparison], form: Form, fail_on_regression: bool) -> None:
    from lm_eval_aft.analysis.report.comparison_tables import comparison_sentences, paired_table
    from lm_eval_aft.analysis.report.tables import render

    if form == "json":
        click.echo(to_json(found))
    else:
        table = paired_table(found[0].baseline, found)
        click.echo("\n\n".join([*comparison_sentences(found), render([table], form)]))
    if fail_on_regression and any(row.worse for row in found):
        raise SystemExit(1)

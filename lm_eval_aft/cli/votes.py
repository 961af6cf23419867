"""``aft votes``: what the drafts alone would score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.analysis.votes import Order, count_votes, show
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.records import Trace
from lm_eval_aft.inference.extraction import has_extraction
from lm_eval_aft.storage.traces import read_traces


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--traces", type=click.Path(path_type=Path), help="Where record= put the traces, if not below OUT.")
@click.option("--task", help="Count this task alone.")
@click.option("--regex", help="Instead of the task's own extraction: the last match (its first group) is the answer.")
@click.option("--order", type=click.Choice(["subsets", "prefix"]), default="subsets", show_default=True)
@click.option("--level", type=float, default=0.95, show_default=True, help="Confidence of the intervals.")
def votes(out: Path, traces: Path | None, task: str | None, regex: str | None, order: Order, level: float) -> None:
    """Score the drafts themselves: mean draft, majority vote and oracle of n drafts, beside their aggregate.

    OUT is the --output_path of runs with record= and --log_samples. --order subsets is exact over all choices of n
    drafts, prefix takes the first n.
    """
    countable = _countable(read_traces(traces or out), task, regex)
    counted = count_votes(countable, read_entries([out]), regex, order, level)
    if not counted:
        which = f"no traces of --task {task}" if task else "no traces of tasks"
        raise ConfigError(f"{traces or out} holds {which} whose answers can be found: give --regex or another --task.")
    click.echo("\n\n".join(show(each, order) for each in counted))


def _countable(traces: Iterable[Trace], task: str | None, regex: str | None) -> Iterator[Trace]:
    """The traces of one task, or of every task whose answers can be found. A message names each task left out."""
    left_out: set[str] = set()
    for trace in traces:
        name = trace.question.task
        if task not in (None, name):
            continue
        if regex is not None or has_extraction(name):
            yield trace
        elif name not in left_out:
            left_out.add(name)
            click.echo(
                f"{name} is left out: it has no extraction of its own here; give --task {name} --regex.", err=True
            )

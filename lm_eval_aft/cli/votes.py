"""``aft votes``: what the drafts alone would score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from pathlib import Path

import click

from lm_eval_aft.analysis.groups import tasks_named
from lm_eval_aft.analysis.report.tables import FORMS, Form, render
from lm_eval_aft.analysis.report.vote_tables import vote_table
from lm_eval_aft.analysis.runs import read_entries, stored_traces
from lm_eval_aft.analysis.votes import count_votes
from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.records import Trace
from lm_eval_aft.core.terminal import note, show
from lm_eval_aft.inference.extraction import has_extraction


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
    entries = read_entries([out])
    tasks = tasks_named((entry.run for entry in entries), task)
    counted = count_votes(_countable(stored_traces(out, entries, traces), tasks, regex), entries, regex, level)
    if not counted:
        which = f"no traces of --task {task}" if task else "no traces of tasks"
        raise ConfigError(f"{traces or out} holds {which} whose answers can be found: give --regex or another --task.")
    show(render([vote_table(each) for each in counted], form))


def _countable(traces: Iterable[Trace], tasks: Set[str] | None, regex: str | None) -> Iterator[Trace]:
    """The traces of these tasks, or of every task, whose answers can be found. A message names each task left out."""
    left_out: set[str] = set()
    for trace in traces:
        name = trace.question.task
        if tasks is not None and name not in tasks:
            continue
        if regex is not None or has_extraction(name):
            yield trace
        elif name not in left_out:
            left_out.add(name)
            note(f"{name} is left out: it has no extraction of its own here; give --task {name} --regex.")

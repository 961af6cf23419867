"""``aft grade``: grades for the drafts of stored runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from lm_eval_aft.analysis.runs import RunEntry, no_task, read_entries, stored_trace_files
from lm_eval_aft.cli.options import traces_option
from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.terminal import show, visible
from lm_eval_aft.storage.results import results_files


@click.command()
@click.argument("out", type=PATH)
@traces_option("OUT")
@click.option("--task", help="Task to grade. The default is all.")
@click.option("--again", is_flag=True, help="Grade texts anew that have grades.")
@click.option(
    "--include_path", "folders", type=PATH, multiple=True, help="Folder of tasks. Can be given several times."
)
@click.option("--confirm_run_unsafe_code", "unsafe_code", is_flag=True, help="Allow tasks that run what a model wrote.")
def grade(
    out: Path, traces: Path | None, task: str | None, again: bool, folders: tuple[Path, ...], unsafe_code: bool
) -> None:
    """Grade every draft and hidden text of stored runs by their task.

    OUT is the --output_path of runs with record=. The task is built by its name through
    lm-eval, from data on this machine. The grades are added to the trace files.
    """
    # huggingface_hub and datasets read these when lm-eval imports them.
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.setdefault(name, "1")
    from lm_eval_aft import register, tasks_path
    from lm_eval_aft.inference.stored_grades import GradeOptions, grade_files

    register()
    entries = read_entries([out], traces) if out.suffix != ".jsonl" and results_files(out) else ()
    options = GradeOptions(
        task=task,
        again=again,
        folders=(str(tasks_path()), *map(str, folders)),
        unsafe_code=unsafe_code,
        model_args={name: arguments for entry in entries for name, arguments in _model_args(entry)},
        groups={name: _groups(entry, name) for entry in entries for name in entry.run.tasks},
    )
    done, refused = 0, []
    for each in grade_files(stored_trace_files(out, entries, traces), options):
        if each.refused:
            refused.append(each)
        else:
            done += 1
            show(visible(f"{each.file}: {each.outcome}"))
    if refused:
        more = f" {len(refused)} of {len(refused) + done} files are not graded." if len(refused) > 1 else ""
        raise RecordError(f"{refused[0].file}: {refused[0].outcome}{more}")
    if not done:
        raise no_task(traces or out, task)


def _model_args(entry: RunEntry) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each task of a run with the run's model arguments."""
    arguments = entry.run.config.get("model_args")
    if isinstance(arguments, Mapping):
        yield from ((name, arguments) for name in entry.run.tasks)


def _groups(entry: RunEntry, task: str) -> list[str]:
    """The groups of a run that a task is in, the outer ones first."""
    return [name for name, group in reversed(tuple(entry.run.groups.items())) if task in group.tasks]

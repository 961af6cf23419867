"""The Python API for runs on disk. Each function takes the paths that a command of ``aft`` takes and returns objects.

``lm_eval_aft`` exports these functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lm_eval_aft.analysis.comparison import ComparedRuns, compare_entries, compare_judgements
from lm_eval_aft.analysis.diagnosis import Diagnosis, diagnose_traces
from lm_eval_aft.analysis.groups import tasks_named
from lm_eval_aft.analysis.judgements import is_judgement_file
from lm_eval_aft.analysis.runs import RunEntry, entries_at, no_task, read_entries, stored_traces
from lm_eval_aft.analysis.strategies import Strategies, strategies_by_task
from lm_eval_aft.analysis.votes import Votes, count_row_votes, count_votes
from lm_eval_aft.core.early_stopping import StopRule, stop_rule
from lm_eval_aft.core.errors import ConfigError, RecordError
from lm_eval_aft.core.paths import check_path
from lm_eval_aft.core.records import Trace
from lm_eval_aft.storage import results
from lm_eval_aft.storage.draft_files import is_draft_file

AnyPath = str | Path
# The rules that ``aft compare --strategies`` replays if none is given.
STOP_WHEN = ("agree:0.95", "window:4")


def read_runs(*out: AnyPath, traces: AnyPath | None = None, keep: bool = False) -> tuple[RunEntry, ...]:
    """Read every run below some folders.

    Args:
        *out: Folders that ``--output_path`` named, or results files.
        traces: Folder that ``record=`` named, if it is not below ``out``.
        keep: Whether a run keeps its samples and traces in memory. Otherwise files are read at each use.

    Returns:
        The runs, each once, under different labels. Samples and traces are read when they are used.

    Raises:
        ConfigError: No path is given, or no file can have the path.
        RecordError: A folder holds no run, or a file cannot be read.
    """
    if not out:
        raise ConfigError("no folder is given: give the --output_path of a run.")
    return read_entries([_path("out", each) for each in out], _path_or_none("traces", traces), keep)


def compare(
    baseline: AnyPath,
    *others: AnyPath,
    tasks: str | Sequence[str] = (),
    metric: str | None = None,
    common: bool = False,
    level: float = 0.95,
    members: bool = False,
    traces: AnyPath | None = None,
) -> ComparedRuns:
    """Compare runs with a baseline question by question, as ``aft compare`` does.

    Args:
        baseline: One run, or a file of judgements.
        *others: Folders of the runs that are compared with it, or further files of judgements.
        tasks: Compare this task or group, or these; all by default.
        metric: ``NAME`` or ``NAME,FILTER`` instead of each task's first score.
        common: Compare the questions that both runs answered, if they answered different ones.
        level: Confidence of the intervals, in (0, 1).
        members: Whether the tasks and groups within each group are compared too.
        traces: Folder that ``record=`` named, if it is not below the runs.

    Raises:
        ConfigError: An argument is wrong, or there is nothing to compare.
        RecordError: The runs cannot be paired, or a file cannot be read.
    """
    base_path, paths = _path("baseline", baseline), [_path("others", each) for each in others]
    names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    if is_judgement_file(base_path):
        return compare_judgements(base_path, paths, common, level, names, metric)
    base, rest = read_sides(base_path, paths, _path_or_none("traces", traces))
    return compare_entries(base, rest, names, metric, common, level, members)


def strategies(
    pool: AnyPath,
    *runs: AnyPath,
    stop_when: str | Sequence[str] = STOP_WHEN,
    tasks: str | Sequence[str] = (),
    metric: str | None = None,
    regex: str | None = None,
    common: bool = False,
    level: float = 0.95,
    traces: AnyPath | None = None,
) -> tuple[tuple[Strategies, ...], tuple[str, ...]]:
    """Compare all strategies on one pool of drafts, as ``aft compare --strategies`` does.

    Args:
        pool: A run with ``record=`` and several drafts a question.
        *runs: Folders of further runs, which are rows as they are.
        stop_when: Rules that are replayed on the drafts, as ``votes`` takes them.
        tasks: Compare on this task or group, or these; all by default.
        metric: ``NAME`` or ``NAME,FILTER`` instead of each task's first score.
        regex: Finds answers instead of the tasks' own filters.
        common: Compare the questions that all runs answered, if they answered different ones.
        level: Confidence of the intervals, in (0, 1).
        traces: Folder that ``record=`` named, if it is not below the runs.

    Returns:
        The strategies of each task, and a sentence for each task that is left out.

    Raises:
        ConfigError: An argument is wrong.
        RecordError: No task can be compared, or a file cannot be read.
    """
    names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    paths, folder = [_path("runs", each) for each in runs], _path_or_none("traces", traces)
    base, rest = read_sides(_path("pool", pool), paths, folder, alone=not paths)
    return strategies_by_task(base, rest, stop_rules(stop_when), names, metric, regex, common, level)


def votes(
    out: AnyPath,
    task: str | None = None,
    regex: str | None = None,
    level: float = 0.95,
    traces: AnyPath | None = None,
    stop_when: str | Sequence[str] = (),
) -> tuple[Votes, ...]:
    """Score the drafts themselves: the mean draft, the majority vote and the oracle of n drafts.

    Args:
        out: The ``--output_path`` of runs with ``record=``, a folder or file of traces, or a drafts file.
        task: Count this task or group alone.
        regex: Finds answers instead of the task's filter: its last match, or that match's first group.
        level: Confidence of the intervals, in (0, 1).
        traces: Folder that ``record=`` named, if it is not below ``out``.
        stop_when: Rules such as ``agree:0.95`` or ``window:4``, in one string with commas or in several. They are
            replayed on the drafts (``Votes.replays``).

    Returns:
        One result for each task and setting. A warning names each task whose answers cannot be found.

    Raises:
        ConfigError: An argument is wrong, or no task is left.
        RecordError: A file cannot be read, or a task has no gold answers.
    """
    path = _path("out", out)
    rules = stop_rules(stop_when)
    if is_draft_file(path):
        options = (("--task", task), ("--traces", traces), ("--stop-when", rules or None))
        if given := [name for name, value in options if value is not None]:
            raise ConfigError(
                f"{path} is a drafts file, which has no tasks or traces: leave {' and '.join(given)} out."
            )
        return (count_row_votes(path, regex, level),)
    entries, stored = _stored(out, task, traces)
    counted = count_votes(stored, entries, regex, level, rules=rules)
    if not counted:
        which = f"no traces of --task {task}" if task else "no traces of tasks"
        raise ConfigError(
            f"{traces or out} holds {which} that are graded or whose answers can be found: run aft grade, give --regex "
            "or another --task."
        )
    return counted


def stop_rules(given: str | Sequence[str]) -> tuple[StopRule, ...]:
    """Read rules of ``stop_when``, each once.

    Args:
        given: Rules with commas between them, or several such strings.

    Raises:
        ConfigError: One is not a rule.
    """
    texts = [given] if isinstance(given, str) else given
    parts = [part.strip() for text in texts for part in text.split(",")]
    return tuple(dict.fromkeys(stop_rule("--stop-when", part) for part in parts))


def diagnose(
    out: AnyPath,
    task: str | None = None,
    regex: str | None = None,
    level: float = 0.95,
    traces: AnyPath | None = None,
) -> tuple[Diagnosis, ...]:
    """Report what aggregation did: what it selected, fixed, broke or copied, and how it changed diversity and length.

    Args:
        out: The ``--output_path`` of runs with ``record=`` and ``--log_samples``.
        task: Diagnose this task or group alone.
        regex: Finds answers instead of the task's filter: its last match, or that match's first group.
        level: Confidence of the intervals, in (0, 1).
        traces: Folder that ``record=`` named, if it is not below ``out``.

    Returns:
        One result for each task and setting, with the graded traces.

    Raises:
        ConfigError: An argument is wrong, or no trace is of the task.
        RecordError: A file cannot be read, or there are no traces.
    """
    entries, stored = _stored(out, task, traces)
    diagnosed = diagnose_traces(stored, entries, regex, level)
    if not diagnosed:
        raise no_task(Path(traces or out), task)
    return diagnosed


def _stored(out: AnyPath, task: str | None, traces: AnyPath | None) -> tuple[tuple[RunEntry, ...], Iterator[Trace]]:
    """The runs below ``out``, and their traces of one task or group, or of all tasks."""
    path = _path("out", out)
    entries = entries_at(path)
    tasks = tasks_named((entry.run for entry in entries), task)
    stored = stored_traces(path, entries, _path_or_none("traces", traces))
    return entries, (trace for trace in stored if tasks is None or trace.question.task in tasks)


def read_sides(
    baseline: Path,
    others: Sequence[Path],
    traces: Path | None = None,
    more: Sequence[Path] = (),
    alone: bool = False,
) -> tuple[RunEntry, tuple[RunEntry, ...]]:
    """The one run below ``baseline``, and every other run below ``others`` and ``more``, all with different labels.

    Args:
        baseline: Where the baseline is.
        others: Where the runs are that are compared with it.
        traces: Folder of traces that are not below the runs.
        more: Where further runs are, whose drafts vote.
        alone: Whether there may be no other run.

    Raises:
        ConfigError: There is nothing to compare the baseline with.
        RecordError: The baseline is not one run, or a folder holds none; the message names it.
    """
    if not others and not alone:
        raise ConfigError("there is nothing to compare the baseline with: give one run or more after it.")
    runs = results.read_runs(baseline)
    if len(runs) > 1:
        files = ", ".join(str(run.path) for run in runs[:3])
        raise RecordError(f"{baseline} holds {len(runs)} runs and the baseline is one: give its file, such as {files}.")
    # The folder rather than the file in it: the traces may lie elsewhere in the folder.
    base, *rest = read_entries([baseline, *others, *more], traces)
    if not rest and not alone:
        raise _no_other_run(others[0])
    return base, tuple(rest)


def entries_below(entries: Sequence[RunEntry], folders: Sequence[Path]) -> list[RunEntry]:
    """The runs among ``entries`` that are below some folders.

    Raises:
        ConfigError: There are none.
    """
    paths = {run.path.resolve() for folder in folders for run in results.read_runs(folder)}
    below = [entry for entry in entries if entry.run.path.resolve() in paths]
    if not below:
        raise _no_other_run(folders[0])
    return below


def _no_other_run(folder: Path) -> ConfigError:
    return ConfigError(f"{folder} holds no other run than the baseline: give another folder.")


def _path(name: str, value: AnyPath) -> Path:
    return Path(check_path(name, str(value)))


def _path_or_none(name: str, value: AnyPath | None) -> Path | None:
    return None if value is None else _path(name, value)

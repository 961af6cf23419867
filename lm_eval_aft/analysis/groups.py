"""Groups of tasks: the names under which results are listed, and how a group's tasks are weighted.

lm-eval gives some groups a score of their own, such as mmlu, and others none, such as our group aft.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import isclose
from typing import Literal

from lm_eval_aft.storage.results import EvalRun, Score

# By size: each question counts once. Alike: each task counts once, whatever its size.
Weighting = Literal["by size", "alike"]


def listed_names(run: EvalRun, members: bool = False) -> tuple[str, ...]:
    """The names under which the results of a run are listed, in the order of its tasks.

    A group with a score stands in place of its tasks and groups. The tasks of a group without a score stand for
    themselves.

    Args:
        run: The run.
        members: Whether the members of a group with a score follow it.
    """
    scored = [group for group in run.groups.values() if group.scores]
    inner = {name for group in scored for name in _below(run, group.name)}
    heads = [group.name for group in scored if group.name not in inner]
    heads += [task for task in run.tasks if task not in inner]
    heads.sort(key=lambda name: run.tasks.index(_first_task(run, name)))
    if not members:
        return tuple(heads)
    return tuple(dict.fromkeys(name for head in heads for name in (head, *members_of(run, head))))


def members_of(run: EvalRun, name: str) -> tuple[str, ...]:
    """What is listed below a name: the tasks of a group, and the groups in it that have a score; none below a task."""
    below = _below(run, name)
    return tuple(dict.fromkeys(each for each in below if run.scores_of(each)))


def _below(run: EvalRun, name: str) -> Iterator[str]:
    """The tasks and groups within a group, each group before its members."""
    if name in run.groups:
        for member in run.groups[name].members:
            yield member
            yield from _below(run, member)


def _first_task(run: EvalRun, name: str) -> str:
    scored = [task for task in run.tasks_of(name) if task in run.tasks]
    return scored[0] if scored else run.tasks[0]


def tasks_named(runs: Iterable[EvalRun], name: str | None) -> frozenset[str] | None:
    """The tasks that ``--task NAME`` stands for in some runs: those in a group, or the task itself; None for all."""
    return None if name is None else frozenset((name, *(task for run in runs for task in run.tasks_of(name))))


def question_count(run: EvalRun, name: str) -> int:
    """The questions of a task or of all tasks in a group."""
    return sum(run.conditions[task].questions for task in run.tasks_of(name))


def group_weighting(run: EvalRun, score: Score) -> Weighting | None:
    """How lm-eval weights the tasks of a group in one of its scores; None if it is neither way.

    A results file does not say it. So both means are computed and compared with the score. If both agree with it, each
    question counts once.
    """
    parts = member_scores(run, score)
    if not parts:
        return None
    by_size = sum(part.value * part.n for part in parts) / sum(part.n for part in parts)
    if _equal(by_size, score.value):
        return "by size"
    return "alike" if _equal(sum(part.value for part in parts) / len(parts), score.value) else None


def member_scores(run: EvalRun, score: Score) -> Sequence[Score]:
    """The scores of a group's tasks by the metric and filter of its own score. lm-eval leaves out tasks without one."""
    return [
        each
        for task in run.tasks_of(score.task)
        for each in run.scores_of(task)
        if (each.metric, each.filter) == (score.metric, score.filter)
    ]


def _equal(a: float, b: float) -> bool:
    return isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)

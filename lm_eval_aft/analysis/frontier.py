"""The best score at each budget: every stored point of one or several models, and where one model overtakes another.

A point is a run (any strategy), or the majority vote of the first n of its drafts where traces are there. The
frontier of a model is its best score at a cost or less; a crossing is the budget from which another model is ahead.
Knows nothing of engines. Called by ``plot``; ``figure`` draws it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lm_eval_aft.analysis.conditions import primary
from lm_eval_aft.analysis.cost import Cost
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.analysis.stats import Interval
from lm_eval_aft.analysis.votes import Votes
from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.storage.results import Score


@dataclass(frozen=True, slots=True)
class Spot:
    """One way to answer, with what it costs.

    Attributes:
        model: Whose frontier it counts for: the last part of its folder or hub name, all of it where two share that.
        label: Model and setting, as in reports.
        cost: Tokens generated or FLOPs, a question.
        score: With its interval.
    """

    model: str
    label: str
    cost: float
    score: Interval


@dataclass(frozen=True, slots=True)
class Crossing:
    """From a budget on another model's best is ahead; ``before`` is None where nothing costs less."""

    cost: float
    before: Spot | None
    after: Spot


@dataclass(frozen=True, slots=True)
class Frontier:
    """All points of one task, and what is best at each budget.

    Attributes:
        task: Name of the task.
        measure: Metric and filter.
        kind: What a budget is counted in.
        higher_is_better: Of the metric.
        spots: By cost.
        best: For each model, its spots that no cheaper one of it equals, by cost.
        crossings: Where the lead changes from one model to another, by cost.
    """

    task: str
    measure: str
    kind: Cost
    higher_is_better: bool
    spots: tuple[Spot, ...]
    best: dict[str, tuple[Spot, ...]]
    crossings: tuple[Crossing, ...]


def frontiers(
    scored: Sequence[tuple[RunEntry, dict[str, Interval]]], votes: Sequence[Votes], kind: Cost
) -> list[Frontier]:
    """One frontier a task.

    Args:
        scored: Runs, and the interval of each task's primary score.
        votes: Of their traces; those of runs that aggregate count as points of their model.
        kind: FLOPs can be compared between models, tokens between settings of one.

    Raises:
        RecordError: A run does not know such a cost.
    """
    tasks = dict.fromkeys(task for _, intervals in scored for task in intervals)
    made = []
    for task in tasks:
        rows = [(entry, found[task]) for entry, found in scored if task in found]
        names = _names([entry.run.model for entry, _ in rows])
        spots = [Spot(names[entry.run.model], entry.label, _cost(entry, task, kind), score) for entry, score in rows]
        spots += [spot for model, name in names.items() for spot in _voted(task, model, name, votes, kind)]
        score = primary(rows[0][0].run, task)
        made.append(_frontier(task, _measure(score), kind, score.higher_is_better, spots))
    return made


def _frontier(task: str, measure: str, kind: Cost, higher: bool, spots: Sequence[Spot]) -> Frontier:
    ordered = tuple(sorted(spots, key=lambda spot: (spot.cost, -_worth(spot, higher))))
    models = dict.fromkeys(spot.model for spot in ordered)
    best = {model: tuple(rising([s for s in ordered if s.model == model], higher)) for model in models}
    lead = list(rising(ordered, higher))
    crossings = tuple(
        Crossing(after.cost, before, after)
        for before, after in zip([None, *lead], lead, strict=False)
        if before is None or before.model != after.model
    )
    return Frontier(task, measure, kind, higher, ordered, best, crossings)


def rising(spots: Sequence[Spot], higher: bool) -> Iterator[Spot]:
    """Of spots by cost, those better than all cheaper ones."""
    best = float("-inf")
    for spot in spots:
        if _worth(spot, higher) > best:
            best = _worth(spot, higher)
            yield spot


def _worth(spot: Spot, higher: bool) -> float:
    return spot.score.estimate if higher else -spot.score.estimate


def _measure(score: Score) -> str:
    return score.metric if score.filter == "none" else f"{score.metric}, {score.filter}"


def _names(models: Sequence[str]) -> dict[str, str]:
    """What each model is called: the last part of its folder or hub name, all of it where two share that."""
    last = {model: Path(model).name or model for model in models}
    return {model: name if list(last.values()).count(name) == 1 else model for model, name in last.items()}


def _cost(entry: RunEntry, task: str, kind: Cost) -> float:
    cost = entry.cost_per_answer(task, kind)
    if cost is None:
        raise RecordError(
            f"{entry.run.path} does not say what it cost in {kind}: a frontier needs runs of --model aft."
        )
    return cost


def _voted(task: str, model: str, name: str, votes: Sequence[Votes], kind: Cost) -> Iterator[Spot]:
    """The majority votes of 2 to k drafts of a model, from its run with the most questions, then drafts."""
    fitting = [each for each in votes if each.task == task and json.loads(each.settings)["model"] == model]
    if not fitting:
        return
    most = max(fitting, key=lambda each: (each.aggregate.n, each.k))
    for point in most.points[1:]:
        cost = point.generated_tokens if kind == "tokens" else point.flops
        if cost:
            yield Spot(name, f"{name} vote of {point.n}", cost, point.majority)

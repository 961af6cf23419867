"""The best score at each budget, over all runs of one or several models, and where one model overtakes another.

A point is a run of any strategy, or the majority vote of the first n drafts of a run with traces. The frontier of a
model is its best score at a cost or less. A crossing is the budget from which another model is ahead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lm_eval_aft.analysis.conditions import measure_name, primary_score, unusual_conditions
from lm_eval_aft.analysis.cost import Cost
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.analysis.stats import Interval
from lm_eval_aft.analysis.votes import Votes, drafter_of
from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.storage.results import EvalRun


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """One way to answer, with its cost.

    Attributes:
        model: The model whose frontier it counts for, by a name that no other model has.
        label: Model and settings, as in reports.
        cost: Generated tokens or FLOPs, a question.
        score: With its interval.
        name: What the point is beside the others of its model, such as "k=5, layers=2", for figures.
        drafts: Number of drafts of a vote; 0 if the point is a run.
    """

    model: str
    label: str
    cost: float
    score: Interval
    name: str = ""
    drafts: int = 0


@dataclass(frozen=True, slots=True)
class Crossing:
    """The budget from which another model is ahead.

    Attributes:
        cost: The budget.
        before: The best point at a lower budget; None if no point costs less.
        after: The best point at this budget.
    """

    cost: float
    before: FrontierPoint | None
    after: FrontierPoint


@dataclass(frozen=True, slots=True)
class Frontier:
    """All points of one task, and the best of them at each budget.

    Attributes:
        task: Name of the task.
        measure: Metric and filter.
        kind: What a budget counts.
        higher_is_better: Of the metric.
        points: By cost.
        best: For each model its points that are better than all its cheaper points, by cost.
        crossings: Where the lead changes from one model to another, by cost.
    """

    task: str
    measure: str
    kind: Cost
    higher_is_better: bool
    points: tuple[FrontierPoint, ...]
    best: dict[str, tuple[FrontierPoint, ...]]
    crossings: tuple[Crossing, ...]


def frontiers(
    scored: Sequence[tuple[RunEntry, dict[str, Interval]]], votes: Sequence[Votes], kind: Cost
) -> list[Frontier]:
    """One frontier for each task.

    Args:
        scored: Runs, each with the interval of its primary score of each task.
        votes: Votes over the drafts of these runs, which count as points of their model.
        kind: FLOPs can be compared between models, tokens between settings of one model.

    Raises:
        RecordError: A run does not know such a cost.
    """
    tasks = dict.fromkeys(task for _, intervals in scored for task in intervals)
    results = []
    for task in tasks:
        rows = [(entry, intervals[task]) for entry, intervals in scored if task in intervals]
        runs = [entry.run for entry, _ in rows]
        names = _names([entry.run.model for entry, _ in rows])
        points = [
            FrontierPoint(
                names[entry.run.model], entry.label, _cost(entry, task, kind), score, _name(entry.run, runs, task)
            )
            for entry, score in rows
        ]
        points += [point for model, name in names.items() for point in _vote_points(task, model, name, votes, kind)]
        score = primary_score(rows[0][0].run, task)
        results.append(
            make_frontier(task, measure_name(score.metric, score.filter), kind, score.higher_is_better, points)
        )
    return results


def make_frontier(task: str, measure: str, kind: Cost, higher: bool, points: Sequence[FrontierPoint]) -> Frontier:
    """The frontier of some points.

    Args:
        task: Name of the task.
        measure: Metric and filter.
        kind: What a budget counts.
        higher: Whether a higher score is better.
        points: At least one.
    """
    ordered = tuple(sorted(points, key=lambda point: (point.cost, -_merit(point, higher))))
    models = dict.fromkeys(point.model for point in ordered)
    best = {model: tuple(rising([p for p in ordered if p.model == model], higher)) for model in models}
    lead = list(rising(ordered, higher))
    crossings = tuple(
        Crossing(after.cost, before, after)
        for before, after in zip([None, *lead], lead, strict=False)
        if before is None or before.model != after.model
    )
    return Frontier(task, measure, kind, higher, ordered, best, crossings)


def rising(points: Sequence[FrontierPoint], higher: bool) -> Iterator[FrontierPoint]:
    """The points that are better than all cheaper ones.

    Args:
        points: By cost.
        higher: Whether a higher score is better.
    """
    best = float("-inf")
    for point in points:
        if _merit(point, higher) > best:
            best = _merit(point, higher)
            yield point


def _merit(point: FrontierPoint, higher: bool) -> float:
    return point.score.estimate if higher else -point.score.estimate


def _names(models: Sequence[str]) -> dict[str, str]:
    """A name for each model: the last part of its folder or hub name, or all of it if two models share that part."""
    last = {model: Path(model).name or model for model in models}
    return {model: name if list(last.values()).count(name) == 1 else model for model, name in last.items()}


def _name(run: EvalRun, runs: Sequence[EvalRun], task: str) -> str:
    """What a run is beside the others of its model, and why it is another test than most of the runs."""
    k, layers = run.k or 0, run.layers or 0
    names = {
        "aggregate": f"k={k}, layers={layers}" if layers else "single answer",
        "majority": f"majority vote of {k}",
        "weighted": f"weighted vote of {k}",
        "best_of_n": f"best of {k} by a reward model",
        "refine": f"refined {layers} times",
        "beam": f"{k} beams",
    }
    strategy = str((run.settings or {}).get("strategy", "aggregate"))
    return ", ".join([names.get(strategy, strategy), *unusual_conditions(run, runs, task)])


def _cost(entry: RunEntry, task: str, kind: Cost) -> float:
    cost = entry.cost_per_answer(task, kind)
    if cost is None:
        raise RecordError(
            f"{entry.run.path} does not say what it cost in {kind}: a frontier needs runs of --model aft."
        )
    return cost


def _vote_points(task: str, model: str, name: str, votes: Sequence[Votes], kind: Cost) -> Iterator[FrontierPoint]:
    """The majority votes of 2 to k drafts that a model wrote.

    They come from the run with the most questions, and of equal runs from the one with the most drafts.
    """
    of_task = (each for each in votes if each.task == task and each.extraction)
    of_model = [each for each in of_task if drafter_of(json.loads(each.settings)).get("model") == model]
    if not of_model:
        return
    largest = max(of_model, key=lambda each: (each.questions, each.k))
    for point in largest.points[1:]:
        cost = point.generated_tokens if kind == "tokens" else point.flops
        if cost and point.majority:
            short = f"vote of {point.n}"
            yield FrontierPoint(name, f"{name} {short}", cost, point.majority, short, point.n)

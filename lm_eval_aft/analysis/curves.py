"""Score against k, layers and cost: the points and intervals of each figure, and the drafts' majority vote beside them.

Each metric and filter of a task or group has a figure of its own. It holds all runs that differ in k and layers alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from lm_eval_aft.analysis.conditions import measure_name, unusual_conditions, votable
from lm_eval_aft.analysis.cost import Cost
from lm_eval_aft.analysis.groups import listed_names
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.analysis.scores import score_interval
from lm_eval_aft.analysis.stats import Interval
from lm_eval_aft.analysis.votes import VotePoint, Votes, count_votes
from lm_eval_aft.core.errors import AFTError, RecordError
from lm_eval_aft.core.files import file_name
from lm_eval_aft.core.log import log, warn_once
from lm_eval_aft.core.records import Trace
from lm_eval_aft.storage.results import MEASURED, EvalRun, Score

# The settings in which runs of one figure may differ.
VARIED = ("k", "layers", "version", "generations_per_question", "model_shape", "prompting", *MEASURED)


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One run in one figure.

    Attributes:
        k: Texts per layer.
        layers: Aggregation layers.
        score: With its interval.
        generated_tokens: For an answer of the task, or the mean over all tasks of a run without traces; None if it is
            not known.
        flops: For an answer, in the same way.
    """

    k: int
    layers: int
    score: Interval
    generated_tokens: float | None
    flops: float | None

    def cost(self, kind: Cost) -> float | None:
        """Generated tokens or FLOPs of an answer; None if they are not known."""
        return self.generated_tokens if kind == "tokens" else self.flops


@dataclass(frozen=True, slots=True)
class Curves:
    """The content of one figure.

    Attributes:
        key: Task or group, metric and filter.
        name: Stem of its file.
        title: Its title.
        measure: Metric and filter.
        higher_is_better: Of the metric.
        points: By layers, then k.
        voted: Majority vote of 1 to k drafts; empty if there is none.
        extraction: How answers were found for the vote.
    """

    key: tuple[str, str, str]
    name: str
    title: str
    measure: str
    higher_is_better: bool
    points: tuple[CurvePoint, ...]
    voted: tuple[VotePoint, ...] = ()
    extraction: str = ""

    def costs(self, kind: Cost) -> bool:
        """Whether every point's cost of that kind is known."""
        return all(point.cost(kind) for point in self.points)

    @property
    def single_point(self) -> bool:
        """Whether there is nothing to join: one point and no vote. All single answers are one point, whatever k was."""
        return len({(point.layers, point.k if point.layers else 1) for point in self.points}) < 2 and not self.voted


def curves(
    entries: Sequence[RunEntry], votes: Sequence[Votes] = (), level: float = 0.95, members: bool = False
) -> tuple[Curves, ...]:
    """One figure for each task, metric, filter, and set of runs that differ in k and layers alone.

    A group to which lm-eval gives a score has figures in place of its tasks.

    Runs of equal settings may have been evaluated under several conditions, such as another limit or other shots. Each
    condition then has a figure without a vote, since traces do not say to which condition they belong.

    Args:
        entries: Runs; those of other models are left out.
        votes: Votes over the drafts of these runs. The one with the most drafts is shown.
        level: Confidence of the intervals, in (0, 1).
        members: Whether the members of each group have figures too.

    Raises:
        RecordError: None of the runs is ours, or the samples of a run are damaged.
    """
    runs = drawable_runs(finished_runs(entries))
    if not runs:
        raise RecordError(
            f"{_paths(entries)}: no run aggregates or gives a single answer, so there is no curve: add "
            "--frontier for other strategies."
        )
    families = list(dict.fromkeys(_family(entry.run.settings or {}) for entry in runs))
    groups: dict[tuple[str, str, str, int], list[tuple[RunEntry, Score]]] = {}
    for entry in runs:
        number = families.index(_family(entry.run.settings or {}))
        for score in _drawable_scores(entry, members):
            groups.setdefault((*score.key, number), []).append((entry, score))
    figures = []
    for (*_, number), scores in groups.items():
        conditions = _by_conditions(scores)
        for place, (reasons, alike) in enumerate(conditions.items(), 1):
            figure = _curves(alike, number if len(families) > 1 else None, level)
            if len(conditions) > 1:
                figure = replace(figure, name=f"{figure.name}_{place}", title=", ".join([figure.title, *reasons]))
            else:
                figure = _with_votes(figure, votes, families[number], alike[0][1])
            figures.append(figure)
    return tuple(figures)


def _drawable_scores(entry: RunEntry, members: bool) -> Iterator[Score]:
    """The scores of each task or group. A warning names those that are not numbers."""
    for name in listed_names(entry.run, members):
        for score in entry.run.scores_of(name):
            if isfinite(score.value):
                yield score
            else:
                warn_once(f"{name}: {score.metric} of {entry.label} is not a finite number, so it is not drawn.")


def _by_conditions(scores: Sequence[tuple[RunEntry, Score]]) -> dict[tuple[str, ...], list[tuple[RunEntry, Score]]]:
    """Scores of one task by how their conditions differ from those of most runs."""
    runs, name = [entry.run for entry, _ in scores], scores[0][1].task
    groups: dict[tuple[str, ...], list[tuple[RunEntry, Score]]] = {}
    for run, score in zip(runs, scores, strict=True):
        groups.setdefault(unusual_conditions(run, runs, name), []).append(score)
    return groups


def drawable_runs(entries: Sequence[RunEntry]) -> list[RunEntry]:
    """The runs of ours that answered something, by a single answer or by aggregation."""
    return [entry for entry in _answering(entries) if _strategy(entry) == "aggregate"]


def finished_runs(entries: Sequence[RunEntry]) -> list[RunEntry]:
    """The runs of ours that answered something.

    Raises:
        RecordError: There are none.
    """
    runs = _answering(entries)
    if not runs:
        raise RecordError(f"{_paths(entries)}: no finished run of --model aft; aft sweep makes a folder of them.")
    return runs


def _answering(entries: Sequence[RunEntry]) -> list[RunEntry]:
    return [entry for entry in entries if entry.run.settings is not None and entry.run.answers]


def _strategy(entry: RunEntry) -> Any:
    return (entry.run.settings or {}).get("strategy", "aggregate")


def _paths(entries: Sequence[RunEntry]) -> str:
    return ", ".join(dict.fromkeys(str(entry.run.path) for entry in entries)) or "the folders given"


def _family(settings: Mapping[str, Any]) -> str:
    """The settings that all runs of one figure share."""
    return json.dumps({name: value for name, value in settings.items() if name not in VARIED}, sort_keys=True)


def _curves(scores: Sequence[tuple[RunEntry, Score]], number: int | None, level: float) -> Curves:
    run, score = scores[0][0].run, scores[0][1]
    # Of two runs with the same k and layers, the later folder's counts.
    points = {(point.layers, point.k): point for point in (_point(*each, level) for each in scores)}
    parts = [score.task, score.metric, score.filter, *([] if number is None else [str(number + 1)])]
    return Curves(
        key=score.key,
        name=file_name(re.sub(r"[^A-Za-z0-9_.-]", "-", "_".join(parts))),
        title=f"{score.task}, {score.n:,} questions: {Path(run.model).name}" + _seed(run, number),
        measure=measure_name(score.metric, score.filter),
        higher_is_better=score.higher_is_better,
        points=tuple(points[place] for place in sorted(points)),
    )


def _seed(run: EvalRun, number: int | None) -> str:
    return "" if number is None or not run.settings else f", seed {run.settings.get('seed')} (settings {number + 1})"


def _point(entry: RunEntry, score: Score, level: float) -> CurvePoint:
    run = entry.run
    if run.k is None or run.layers is None:
        raise RecordError(f"{run.path} does not say how many texts it wrote: a figure needs runs of --model aft.")
    tokens, flops = entry.cost_per_answer(score.task, "tokens"), entry.cost_per_answer(score.task, "flops")
    return CurvePoint(run.k, run.layers, score_interval(entry, score, level), tokens, flops)


def _with_votes(figure: Curves, votes: Sequence[Votes], family: str, score: Score) -> Curves:
    """The figure with the vote of the most drafts, if there is one that can be compared with the score."""
    of_family = [each for each in votes if each.task == score.task and _family(json.loads(each.settings)) == family]
    measure = measure_name(score.metric, score.filter)
    drafted = [each for each in of_family if each.layers > 0 and each.extraction and not each.drafter]
    drafted = [each for each in drafted if votable(score) or each.measure == measure]
    if not drafted:
        return figure
    widest = max(drafted, key=lambda each: (each.k, each.questions))
    return replace(figure, voted=widest.points, extraction=widest.extraction)


def votes_of(entries: Sequence[RunEntry], traces: Iterable[Trace], regex: str | None = None) -> tuple[Votes, ...]:
    """The votes over the drafts of traces. If they cannot be counted, there are none, and a warning says why.

    Args:
        entries: Runs whose logged samples hold the gold answers.
        traces: Of any runs. Tasks whose texts are not graded and whose answers cannot be found are left out.
        regex: Finds answers instead of the tasks' own filters.
    """
    try:
        return count_votes(traces, entries, regex)
    except AFTError as error:
        # The figure is complete without the line of the vote.
        log.warning("No line for the majority vote: %s", error)
        return ()

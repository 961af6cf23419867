"""``aft plot``: score against k, layers and cost, with intervals, and the drafts' majority vote beside it.

Gathers the points of every run below a folder into one figure a task, metric and filter; ``figure`` draws it. Knows
nothing of engines and imports neither torch nor lm_eval. Called by ``cli``; ``report_page`` calls
``curves``. Over 200 lines, as the command and what it leaves out stand here too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm_eval_aft.analysis.conditions import differences, usual_conditions, votable
from lm_eval_aft.analysis.cost import Cost
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.analysis.scores import score_interval
from lm_eval_aft.analysis.stats import Interval
from lm_eval_aft.analysis.votes import VotePoint, Votes, count_votes
from lm_eval_aft.core.errors import AFTError, RecordError
from lm_eval_aft.core.log import log
from lm_eval_aft.core.records import Trace
from lm_eval_aft.inference.extraction import has_extraction
from lm_eval_aft.storage.results import MEASURED, EvalRun, Score

VARIED = ("k", "layers", "version", "generations_per_question", "model_shape", *MEASURED)  # within one figure


@dataclass(frozen=True, slots=True)
class Point:
    """One run in one figure.

    Attributes:
        k: Texts per layer.
        layers: Aggregation passes.
        score: With its interval.
        generated_tokens: An answer of the task, or the mean over all tasks of a run without traces; None where it is
            not known.
        flops: Likewise.
    """

    k: int
    layers: int
    score: Interval
    generated_tokens: float | None
    flops: float | None

    def cost(self, kind: Cost) -> float | None:
        """Tokens generated or FLOPs, a question."""
        return self.generated_tokens if kind == "tokens" else self.flops


@dataclass(frozen=True, slots=True)
class Curves:
    """All that one figure shows.

    Attributes:
        name: Stem of its file.
        title: Over the figure.
        measure: Metric and filter.
        higher_is_better: Of the metric.
        points: By layers, then k.
        voted: Majority vote of 1 to k drafts; empty where it cannot be had.
        extraction: How answers were found for the vote.
    """

    name: str
    title: str
    measure: str
    higher_is_better: bool
    points: tuple[Point, ...]
    voted: tuple[VotePoint, ...] = ()
    extraction: str = ""

    def costs(self, kind: Cost) -> bool:
        """Whether every point's cost of that kind is known."""
        return all(point.cost(kind) for point in self.points)


def curves(entries: Sequence[RunEntry], votes: Sequence[Votes] = (), level: float = 0.95) -> tuple[Curves, ...]:
    """One figure for each task, metric, filter, and group of runs that differ in k and layers alone.

    Where the same settings were put in several ways (another limit, other shots) none of their figures has a vote:
    traces do not say which of them they are of.

    Args:
        entries: Runs with their cost; those of other models are left out.
        votes: Of their traces; the one with the most drafts is shown.
        level: Of the intervals.

    Raises:
        RecordError: None of the runs is ours, or the samples of one are damaged.
    """
    ours = drawable(finished(entries))
    if not ours:
        raise RecordError(f"{_where(entries)}: no run aggregates or answers plainly: aft plot --frontier takes any.")
    families = list(dict.fromkeys(_family(entry.run.settings or {}) for entry in ours))
    figures: dict[tuple[str, str, str, int], list[tuple[RunEntry, Score]]] = {}
    for entry in ours:
        number = families.index(_family(entry.run.settings or {}))
        for score in entry.run.scores:
            figures.setdefault((score.task, score.metric, score.filter, number), []).append((entry, score))
    made = []
    for (*_, number), rows in figures.items():
        ways = _ways(rows)
        for place, (way, alike) in enumerate(ways.items(), 1):
            figure = _curves(alike, number if len(families) > 1 else None, level)
            if len(ways) > 1:
                figure = replace(figure, name=f"{figure.name}_{place}", title=", ".join([figure.title, *way]))
            else:
                figure = _with_votes(figure, votes, families[number], alike[0][1])
            made.append(figure)
    return tuple(made)


def _ways(rows: Sequence[tuple[RunEntry, Score]]) -> dict[tuple[str, ...], list[tuple[RunEntry, Score]]]:
    """Scores of one task by how it was put: what differs from how most runs put it."""
    runs, task = [entry.run for entry, _ in rows], rows[0][1].task
    usual = usual_conditions(runs, task)
    ways: dict[tuple[str, ...], list[tuple[RunEntry, Score]]] = {}
    for run, row in zip(runs, rows, strict=True):
        ways.setdefault(differences(usual, run.conditions[task]), []).append(row)
    return ways


def drawable(entries: Sequence[RunEntry]) -> list[RunEntry]:
    """Runs of ours that answered something, plainly or by aggregation."""
    ours = [entry for entry in entries if entry.run.settings is not None and entry.run.answers]
    return [entry for entry in ours if (entry.run.settings or {}).get("strategy", "aggregate") == "aggregate"]


def _where(entries: Sequence[RunEntry]) -> str:
    return ", ".join(dict.fromkeys(str(entry.run.path) for entry in entries)) or "the folders given"


def finished(entries: Sequence[RunEntry]) -> list[RunEntry]:
    """Runs of ours that answered something.

    Raises:
        RecordError: There are none.
    """
    ours = [entry for entry in entries if entry.run.settings is not None and entry.run.answers]
    if not ours:
        raise RecordError(f"{_where(entries)}: no finished run of --model aft; aft sweep makes a folder of them.")
    return ours


def _family(settings: Mapping[str, Any]) -> str:
    """What runs in one figure have in common."""
    return json.dumps({name: value for name, value in settings.items() if name not in VARIED}, sort_keys=True)


def _curves(rows: Sequence[tuple[RunEntry, Score]], number: int | None, level: float) -> Curves:
    run, score = rows[0][0].run, rows[0][1]
    filtered = "" if score.filter == "none" else f", {score.filter}"
    points = {(p.layers, p.k): p for p in (_point(*row, level) for row in rows)}  # of equal ones the later folder's
    parts = [score.task, score.metric, score.filter, *([] if number is None else [str(number + 1)])]
    return Curves(
        name=re.sub(r"[^A-Za-z0-9_.-]", "-", "_".join(parts)),
        title=f"{score.task}, {score.n:,} questions: {Path(run.model).name}" + _seed(run, number),
        measure=f"{score.metric}{filtered}",
        higher_is_better=score.higher_is_better,
        points=tuple(points[place] for place in sorted(points)),
    )


def _seed(run: EvalRun, number: int | None) -> str:
    return "" if number is None or not run.settings else f", seed {run.settings.get('seed')} (settings {number + 1})"


def _point(entry: RunEntry, score: Score, level: float) -> Point:
    run = entry.run
    if run.k is None or run.layers is None:
        raise RecordError(f"{run.path} does not say how many texts it wrote: a figure needs runs of --model aft.")
    tokens, flops = (entry.cost_per_answer(score.task, kind) for kind in ("tokens", "flops"))
    return Point(run.k, run.layers, score_interval(entry, score, level), tokens, flops)


def _with_votes(figure: Curves, votes: Sequence[Votes], family: str, score: Score) -> Curves:
    """The figure with the vote of the most drafts, if any and if it may stand beside the score."""
    fitting = [each for each in votes if each.task == score.task and _family(json.loads(each.settings)) == family]
    drafted = [each for each in fitting if each.layers > 0]
    if not drafted or not votable(score):
        return figure
    most = max(drafted, key=lambda each: (each.k, each.aggregate.n))
    return replace(figure, voted=most.points, extraction=most.extraction)


def votes_of(entries: Sequence[RunEntry], traces: Iterable[Trace], regex: str | None = None) -> tuple[Votes, ...]:
    """The votes of the traces, or none and a warning that says why."""
    try:
        countable = (trace for trace in traces if regex or has_extraction(trace.question.task))
        return count_votes(countable, entries, regex)
    except AFTError as error:
        # The figure is complete without the line of the vote.
        log.warning("No line for the majority vote: %s", error)
        return ()

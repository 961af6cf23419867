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
from math import isclose
from pathlib import Path
from statistics import NormalDist
from typing import Any

import click

from lm_eval_aft.analysis.conditions import differences, primary, usual_conditions, votable
from lm_eval_aft.analysis.cost import Cost
from lm_eval_aft.analysis.report.leaderboard import RunEntry, read_entries
from lm_eval_aft.analysis.stats import Interval, mean_interval
from lm_eval_aft.analysis.votes import VotePoint, Votes, count_votes
from lm_eval_aft.core.errors import AFTError, RecordError
from lm_eval_aft.core.records import Trace
from lm_eval_aft.inference.extraction import has_extraction
from lm_eval_aft.storage.results import MEASURED, EvalRun, Score, read_samples
from lm_eval_aft.storage.traces import read_traces

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
    tokens, flops = entry.price(score.task, "tokens"), entry.price(score.task, "flops")
    return Point(run.k, run.layers, score_interval(run, score, level), tokens, flops)


def score_interval(run: EvalRun, score: Score, level: float = 0.95) -> Interval:
    """Interval of a reported score: from its samples where they are logged and it is their mean, else ± z·stderr."""
    if run.samples_file(score.task).is_file():
        rows = [row for row in read_samples(run, score.task) if row.key.filter == score.filter]
        values = [row.metrics.get(score.metric) for row in rows]
        numbers = [float(value) for value in values if isinstance(value, int | float)]
        if numbers and len(numbers) == len(values) and isclose(sum(numbers) / len(numbers), score.value, abs_tol=1e-9):
            return mean_interval(numbers, level)
    half = NormalDist().inv_cdf((1 + level) / 2) * (score.stderr or 0.0)
    method = "none" if score.stderr is None else "stderr"
    return Interval(score.value, score.value - half, score.value + half, level, method, score.n)


def _with_votes(figure: Curves, votes: Sequence[Votes], family: str, score: Score) -> Curves:
    """The figure with the vote of the most drafts, if any and if it may stand beside the score."""
    fitting = [each for each in votes if each.task == score.task and _family(json.loads(each.settings)) == family]
    drafted = [each for each in fitting if each.layers > 0]
    if not drafted or not votable(score):
        return figure
    most = max(drafted, key=lambda each: (each.k, each.aggregate.n))
    return replace(figure, voted=most.points, extraction=most.extraction)


def votes_of(runs: Sequence[EvalRun], traces: Iterable[Trace], regex: str | None = None) -> tuple[Votes, ...]:
    """The votes of the traces, or none and a line that says why."""
    try:
        countable = (trace for trace in traces if regex or has_extraction(trace.question.task))
        return count_votes(countable, runs, regex)
    except AFTError as error:  # the figure is whole without this line
        click.echo(f"No line for the majority vote: {error}", err=True)
        return ()


@click.command()
@click.argument("out", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--traces", type=click.Path(path_type=Path), help="Where record= put the traces, if not below OUT.")
@click.option("--png", type=click.Path(path_type=Path), help="Folder of the figures; the first OUT by default.")
@click.option("--cost", type=click.Choice(["tokens", "flops"]), help="Of the third panel; FLOPs where they are known.")
@click.option("--regex", help="How the majority vote finds answers; see aft votes.")
@click.option("--frontier", is_flag=True, help="Instead: the best of all points at each budget, model against model.")
@click.option("--training", is_flag=True, help="Instead: the loss curves of the training runs below OUT.")
def plot(
    out: tuple[Path, ...],
    traces: Path | None,
    png: Path | None,
    cost: Cost | None,
    regex: str | None,
    frontier: bool,
    training: bool,
) -> None:
    """Draw score against k, layers and cost of all runs below OUT: one PNG for each task, metric and filter."""
    if training:
        _plot_losses(out, png or out[0])
        return
    entries = read_entries(out, traces)
    found = (trace for folder in ([traces] if traces else out) for trace in read_traces(folder))
    votes = votes_of([entry.run for entry in entries], found, regex)
    if frontier:
        _plot_frontiers(finished(entries), votes, cost, png or out[0])
        return
    from lm_eval_aft.analysis.report.figures import draw

    for each in curves(entries, votes):
        kind: Cost = cost or ("flops" if each.costs("flops") else "tokens")
        click.echo(draw(each, kind, (png or out[0]) / f"{each.name}.png"))


def _plot_losses(out: Sequence[Path], folder: Path) -> None:
    from lm_eval_aft.analysis.losses import read_losses
    from lm_eval_aft.analysis.report.figures import draw_losses

    click.echo(draw_losses(read_losses(out), folder / "training.png"))


def _probed(settings: Mapping[str, Any]) -> bool:
    return settings.get("probe", "none") != "none" or bool(settings.get("drafts_from"))


def _plot_frontiers(entries: Sequence[RunEntry], votes: Sequence[Votes], cost: Cost | None, folder: Path) -> None:
    """Print and draw one frontier a task, of each task's primary score."""
    from lm_eval_aft.analysis.frontier import frontiers, show
    from lm_eval_aft.analysis.report.figures import draw_frontier

    probed = [entry for entry in entries if _probed(entry.run.settings or {})]
    if probed:
        click.echo(
            f"{len(probed)} run{'s' * (len(probed) > 1)} with probe= or drafts_from= left out: no way to answer.",
            err=True,
        )
    entries = [entry for entry in entries if entry not in probed]
    known = all(entry.run.usage is not None and entry.run.usage.flops for entry in entries)
    best = [(entry, {task: primary(entry.run, task) for task in entry.run.tasks}) for entry in entries]
    lengths = [f"{entry.label} on {task}" for entry, scores in best for task in scores if not scores[task].ranked]
    if lengths:
        text = f"{', '.join(lengths)}: no score is better or worse yet, so no point: judge the answers first."
        if not any(score.ranked for _, scores in best for score in scores.values()):
            raise RecordError(text)
        click.echo(text, err=True)
    scored = [(e, {t: score_interval(e.run, s) for t, s in scores.items() if s.ranked}) for e, scores in best]
    for each in frontiers(scored, votes, cost or ("flops" if known else "tokens")):
        name = re.sub(r"[^A-Za-z0-9_.-]", "-", f"{each.task}_frontier")
        click.echo(show(each))
        click.echo(draw_frontier(each, folder / f"{name}.png"))

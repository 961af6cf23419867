"""The table of the best score at each budget, and where one model overtakes another."""

from __future__ import annotations

from collections.abc import Iterator

from lm_eval_aft.analysis.frontier import Frontier
from lm_eval_aft.analysis.report.tables import Cell, Column, Row, Table, Unit, interval_cell, short_number, unit_of

# The key and the head of the column of costs.
COSTS = {"tokens": ("generated_tokens", "generated tokens"), "flops": ("flops", "FLOPs")}


def frontier_table(frontier: Frontier) -> Table:
    """One row for each point on the frontier of a model, from the cheapest. The notes say which model is ahead."""
    points = [point for best in frontier.best.values() for point in best]
    unit = unit_of(end for point in points for end in (point.score.low, point.score.high))
    key, head = COSTS[frontier.kind]
    columns = (
        Column("model", "model"),
        Column(key, head, True, f"{head} a question from which this is the best of the model"),
        Column("score", frontier.measure + unit.mark, True, "the score, with its interval", ("low", "high")),
        Column("run", "run", title="the run, or the vote over some of its drafts"),
    )
    rows = tuple(
        Row(
            (
                Cell(point.model),
                Cell(short_number(point.cost), point.cost),
                interval_cell(point.score, unit),
                Cell(point.label),
            )
        )
        for point in points
    )
    title = f"{frontier.task}, {frontier.measure}: the best of {len(frontier.points)} points at each budget"
    return Table(title, columns, rows, tuple(_notes(frontier, unit)))


def _notes(frontier: Frontier, unit: Unit) -> Iterator[str]:
    _, counted = COSTS[frontier.kind]
    for crossing in frontier.crossings[1:]:
        after, before = crossing.after, crossing.before
        against = f" against {before.label}" if before else ""
        yield (
            f"From {short_number(crossing.cost)} {counted} a question on, {after.model} is ahead: {after.label} "
            f"({unit.interval(after.score)}){against}."
        )
    if len(frontier.best) > 1 and len(frontier.crossings) == 1:
        yield f"{frontier.crossings[0].after.model} is ahead at every budget: no crossing."

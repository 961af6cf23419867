"""The page's charts: score against layers, k and cost, made from the curves of ``analysis.curves``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from lm_eval_aft.analysis.cost import Cost
from lm_eval_aft.analysis.curves import CurvePoint, Curves
from lm_eval_aft.analysis.report.figures import AXES, known_cost
from lm_eval_aft.analysis.report.page.data import Chart, ChartPoint, Curve
from lm_eval_aft.analysis.report.tables import Unit, short_number, unit_of
from lm_eval_aft.analysis.stats import Interval


def charts(curves: Curves) -> Iterator[Chart]:
    """Score against layers, against k and against cost; a chart that would have single points only is left out."""
    unit = unit_of(point.score.estimate for point in curves.points)
    y_label = curves.measure + (", %" if unit.mark else "") + ("" if curves.higher_is_better else ", less is better")
    by_k, by_layers = _lines(curves, "k", unit), _lines(curves, "layers", unit)
    if any(len(line.points) > 1 for line in by_k):
        yield Chart(f"{curves.title}, by layers", "aggregation layers", y_label, by_k)
    if any(len(line.points) > 1 for line in by_layers):
        yield Chart(f"{curves.title}, by k", "k, drafts", y_label, by_layers)
    if kind := known_cost(curves):
        lines = tuple(_cost_lines(curves, kind, unit))
        yield Chart(f"{curves.title}, by cost", AXES[kind], y_label, lines, log_x=True)


def _lines(curves: Curves, by: Literal["k", "layers"], unit: Unit) -> tuple[Curve, ...]:
    """One line for each k, over layers and from the single answer on, or one for each number of layers, over k."""
    values = sorted({_coordinate(point, by) for point in _aggregated(curves)})
    start = _single_answer(curves) if by == "k" else []
    lines = []
    for value in values:
        points = [*start, *(point for point in _aggregated(curves) if _coordinate(point, by) == value)]
        xs = [point.layers if by == "k" else point.k for point in points]
        chart_points = (_chart_point(unit, x, point.score) for x, point in zip(xs, points, strict=True))
        lines.append(Curve(f"{by}={value}", tuple(sorted(chart_points, key=lambda each: each.x))))
    return tuple(lines)


def _cost_lines(curves: Curves, kind: Cost, unit: Unit) -> Iterator[Curve]:
    """One line for each k, the single answer with each, and the majority vote as a reference."""
    for k in sorted({point.k for point in _aggregated(curves)}):
        points = [*_single_answer(curves), *(point for point in _aggregated(curves) if point.k == k)]
        chart_points = [
            _chart_point(unit, cost, point.score, _point_label(point)) for point in points if (cost := point.cost(kind))
        ]
        yield Curve(f"k={k}", tuple(sorted(chart_points, key=lambda each: each.x)))
    votes = [
        _chart_point(unit, cost, vote.majority, f"vote of {vote.n}")
        for vote in curves.voted
        if vote.majority and (cost := vote.flops if kind == "flops" else vote.generated_tokens)
    ]
    if votes:
        yield Curve("majority vote", tuple(votes), dashed=True)


def _point_label(point: CurvePoint) -> str:
    return f"k={point.k}, layers={point.layers}" if point.layers else "single answer"


def _coordinate(point: CurvePoint, name: Literal["k", "layers"]) -> int:
    return point.k if name == "k" else point.layers


def _aggregated(curves: Curves) -> Sequence[CurvePoint]:
    return [point for point in curves.points if point.layers]


def _single_answer(curves: Curves) -> Sequence[CurvePoint]:
    """The point with layers=0, of which k does not matter; empty if there is none."""
    return [point for point in curves.points if point.layers == 0][:1]


def _chart_point(unit: Unit, x: float, score: Interval, label: str = "") -> ChartPoint:
    return ChartPoint(x, *unit.drawn(score), label, short_number(x), unit.interval(score))

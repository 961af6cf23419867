"""Figures of costs, curves, frontiers and training losses, drawn by matplotlib as PNG and SVG.

A colour has one meaning in a figure. Names are beside what they name. The text of an SVG stays text.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_aft.analysis.losses import FIGURES
from lm_eval_aft.analysis.report.tables import is_share
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.files import atomic_write, writing
from lm_eval_aft.core.terminal import shortened, visible

if TYPE_CHECKING:
    from lm_eval_aft.analysis.cost import Cost
    from lm_eval_aft.analysis.curves import CurvePoint, Curves
    from lm_eval_aft.analysis.frontier import Frontier, FrontierPoint
    from lm_eval_aft.analysis.losses import LossCurve
    from lm_eval_aft.analysis.stats import Interval

VOTE_COLOUR, SINGLE_COLOUR = "#444444", "#777777"
# Okabe and Ito's colours, which people of every colour vision tell apart, without the yellow.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
# Characters. Longer labels would leave no room for the panel.
MAX_TITLE, MAX_LABEL = 150, 60
# A figure of more points names the best points only.
MAX_NAMED_POINTS = 24
FONT_SIZE = 8.0
AXES = {"tokens": "generated tokens a question", "flops": "FLOPs a question"}
# In the order in which one is chosen.
COSTS: tuple[Cost, ...] = ("flops", "tokens")


def draw_costs(costs: Frontier, path: Path, title: str = "") -> tuple[Path, ...]:
    """Write the figure of all runs and votes of a task against their cost. Points at the same x cost the same.

    Args:
        costs: The points.
        path: The PNG. The SVG is beside it. Their folder is made.
        title: The default names the task.

    Returns:
        The files.

    Raises:
        ConfigError: matplotlib is missing.
        RecordError: A file cannot be written.
    """
    figure = _figure(width=9)
    panel = figure.subplots()
    names: list[_Name] = []
    crowded = len(costs.points) > MAX_NAMED_POINTS
    best = {point for points in costs.best.values() for point in points}
    for shift, colour, runs, votes in _by_model(costs):
        _points(panel, runs, shift, colour, marker="o", linestyle="none")
        _points(panel, votes, shift, colour, marker="s", markersize=4, linestyle="--", linewidth=1)
        named = [point for point in runs if point in best or not crowded] + votes[0 if len(votes) < 4 else -1 :]
        names += [_Name(point.cost * shift, point.score.estimate, point.name, colour) for point in named]
    _cost_axes(panel, costs)
    _legend(panel, costs, squares=True)
    _write_names(figure, (panel, names))
    _set_title(figure, title or f"{_subject(costs)}: score and cost of each run; bars are 95% intervals")
    return _save(figure, path)


def draw_frontier(frontier: Frontier, path: Path, title: str = "") -> tuple[Path, ...]:
    """Write the figure of all points, and for each model its best at a cost or less as steps, with their names.

    Args:
        frontier: The points.
        path: The PNG. The SVG is beside it. Their folder is made.
        title: The default names the task.

    Raises:
        ConfigError: matplotlib is missing.
        RecordError: A file cannot be written.
    """
    figure = _figure(width=9)
    panel = figure.subplots()
    names: list[_Name] = []
    for (model, best), (shift, colour, runs, votes) in zip(frontier.best.items(), _by_model(frontier), strict=True):
        others = [point for point in (*runs, *votes) if point not in best]
        _points(panel, others, shift, colour, marker=".", linestyle="none", alpha=0.35)
        _points(panel, best, shift, colour, marker="o", linestyle="none")
        steps = _steps([(point.cost * shift, point.score.estimate) for point in best], frontier.points[-1].cost * shift)
        panel.plot(*zip(*steps, strict=True), color=colour, linewidth=1.2)
        names += [_Name(point.cost * shift, point.score.estimate, point.name or model, colour) for point in best]
    _cost_axes(panel, frontier)
    bottom, _ = panel.get_ylim()
    for crossing in frontier.crossings[1:]:
        panel.axvline(crossing.cost, color=SINGLE_COLOUR, linestyle=":", linewidth=1)
        names.append(_Name(crossing.cost, bottom, f"{crossing.after.model} is ahead", SINGLE_COLOUR))
    _legend(panel, frontier, squares=False)
    _write_names(figure, (panel, names))
    _set_title(figure, title or f"{_subject(frontier)}: the best of each model at each cost; bars are 95% intervals")
    return _save(figure, path)


def draw_curves(curves: Curves, kind: Cost | None, path: Path) -> tuple[Path, ...]:
    """Write a figure with a panel each for score against k, against layers and against cost.

    Args:
        curves: More than a single point.
        kind: The cost of the third panel. None takes FLOPs if all runs know them, else tokens, and leaves the panel
            out if a run knows neither.
        path: The PNG. The SVG is beside it. Their folder is made.

    Raises:
        ConfigError: matplotlib is missing, or the runs do not know the cost that was chosen.
        RecordError: A file cannot be written.
    """
    figure = _figure()
    if kind and not curves.costs(kind):
        raise ConfigError(f"the runs of {curves.name} do not know their {AXES[kind]}: use --cost tokens.")
    known = kind or known_cost(curves)
    panels = figure.subplots(1, 3 if known else 2, sharey=True)
    named = [_against_k(panels[0], curves), _against_layers(panels[1], curves)]
    if known:
        named.append(_against_cost(panels[2], curves, known))
    panels[0].set_ylabel(_y_label(curves))
    _percent_axis(panels[0], [point.score for point in curves.points])
    for panel in panels:
        _plain_frame(panel)
        # Room for the names at the ends of lines.
        panel.margins(x=0.18)
    _write_names(figure, *zip(panels, named, strict=True))
    # A name in the title may hold $, which matplotlib would read as math.
    _set_title(figure, f"{curves.title}; bars are 95% intervals")
    return _save(figure, path)


def draw_losses(curves: Sequence[LossCurve], path: Path) -> tuple[Path, ...]:
    """Write the figure of training losses as lines and validation losses as dashed lines, against the tokens seen.

    Rewards, copies and the other figures of a log have panels below.

    Args:
        curves: A curve for each run.
        path: The PNG. The SVG is beside it. Their folder is made.

    Raises:
        ConfigError: matplotlib is missing.
        RecordError: A file cannot be written.
    """
    shown = [key for key in FIGURES if any(key in curve.figures for curve in curves)]
    figure = _figure(width=9, height=5 + 3 * len(shown))
    from matplotlib.ticker import EngFormatter

    panels = figure.subplots(1 + len(shown), squeeze=False, sharex=True)[:, 0]
    panel, colours = panels[0], _model_colours(len(curves))
    named: list[list[_Name]] = [[] for _ in panels]
    for curve, colour in zip(curves, colours, strict=True):
        # A line of one point cannot be seen.
        marker = "." if len(curve.training) == 1 else ""
        panel.plot(*zip(*curve.training, strict=True), color=colour, linewidth=1.2, marker=marker)
        named[0].append(_Name(*curve.training[-1], curve.name, colour))
        if curve.validation:
            panel.plot(*zip(*curve.validation, strict=True), color=colour, linewidth=1, marker="o", linestyle="--")
        for place, key in enumerate(shown, 1):
            if points := curve.figures.get(key):
                panels[place].plot(*zip(*points, strict=True), color=colour, linewidth=1.2, marker=".")
                named[place].append(_Name(*points[-1], curve.name, colour))
    # The loss of rewards is no likelihood of tokens.
    loss = "loss" if "reward" in shown else "loss per target token, nats"
    for each, label in zip(panels, [loss, *(FIGURES[key] for key in shown)], strict=True):
        each.set_ylabel(label)
        _plain_frame(each)
        each.margins(x=0.12)
    panels[-1].xaxis.set_major_formatter(EngFormatter(sep=""))
    panels[-1].set_xlabel("tokens seen")
    _write_names(figure, *zip(panels, named, strict=True))
    validated = " (lines) and validation loss (dashed, with dots)" * any(curve.validation for curve in curves)
    _set_title(figure, f"Training loss{validated}" + ", and rewards" * ("reward" in shown))
    return _save(figure, path)


# ---------------------------------------------------------------- names beside points


@dataclass(frozen=True, slots=True)
class _Name:
    """A text beside a point of a panel."""

    x: float
    y: float
    text: str
    colour: Any


# The corners of a drawn line: an array of shape (corner, 2), or a list of points (x, y).
_Line = Any
# A rectangle in pixels: left, bottom, right, top.
_Box = tuple[float, float, float, float]
# Where a name may be, as (right, up), nearest first.
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
_DISTANCES = (7.0, 16.0, 28.0, 42.0)  # points
_MAX_BOXES = 300
# What it costs to take the next place. Covering a tenth of a name costs 1.
_FAR = 0.03


def _write_names(figure: Any, *named: tuple[Any, Sequence[_Name]]) -> None:
    """Write each name beside its point, where it covers the least of what is drawn.

    A thin line leads to a point that is not near.

    Args:
        figure: The figure.
        named: Panels with their names. Their axes are set.
    """
    with warnings.catch_warnings():
        # See ``_save``.
        warnings.simplefilter("ignore")
        figure.draw_without_rendering()
    pixels = figure.dpi / 72
    for panel, names in named:
        frame = panel.get_window_extent()
        taken = [box for line in _drawn_lines(panel) for box in _line_boxes(line, pixels)]
        for name in names:
            text = shortened(visible(name.text), MAX_LABEL)
            places = list(_places(panel, name, text, pixels))
            covered = _covered([box for box, *_ in places], taken)
            costs = [covered[rank] + _outside(box, frame) + _FAR * rank for rank, (box, *_) in enumerate(places)]
            box, offset, align = places[costs.index(min(costs))]
            _write_name(panel, name, text, offset, align)
            taken.append(box)


def _write_name(panel: Any, name: _Name, text: str, offset: tuple[float, float], align: str) -> None:
    far = max(map(abs, offset)) > _DISTANCES[0]
    panel.annotate(
        text,
        (name.x, name.y),
        offset,
        textcoords="offset points",
        ha=align,
        va="center",
        fontsize=FONT_SIZE,
        color=name.colour,
        parse_math=False,
        arrowprops={"arrowstyle": "-", "color": name.colour, "linewidth": 0.5} if far else None,
    )


def _places(panel: Any, name: _Name, text: str, pixels: float) -> Iterator[tuple[_Box, tuple[float, float], str]]:
    """Where a name may be: its box in pixels, its offset in points, and its alignment."""
    x, y = panel.transData.transform((name.x, name.y))
    width, height = 0.56 * FONT_SIZE * len(text) * pixels, 1.25 * FONT_SIZE * pixels
    for distance in _DISTANCES:
        for right, up in _DIRECTIONS:
            offset = (right * distance, up * distance)
            left = x + offset[0] * pixels - (width if right < 0 else width / 2 if right == 0 else 0.0)
            bottom = y + offset[1] * pixels - height / 2
            box = (left, bottom, left + width, bottom + height)
            yield box, offset, ("right", "center", "left")[right + 1]


def _drawn_lines(panel: Any) -> Iterator[_Line]:
    """The lines and the bars of a panel, in pixels."""
    from matplotlib.collections import LineCollection

    for line in panel.lines:
        corners = line.get_transform().transform(line.get_xydata())
        # Markers without a line between them, such as the caps of bars.
        yield from ([corner] for corner in corners) if line.get_linestyle() == "None" else [corners]
    for bars in panel.collections:
        if isinstance(bars, LineCollection):
            yield from (bars.get_transform().transform(segment) for segment in bars.get_segments())


def _line_boxes(line: _Line, pixels: float) -> Iterator[_Box]:
    """Small boxes along a line, three points in size."""
    for start, end in zip(line, (*line[1:], *line[-1:]), strict=True):
        length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
        if not isfinite(length):
            continue
        count = min(_MAX_BOXES, 1 + int(length / (3 * pixels)))
        for place in range(count):
            x, y = (float(start[i] + (end[i] - start[i]) * place / count) for i in (0, 1))
            yield x - 1.5 * pixels, y - 1.5 * pixels, x + 1.5 * pixels, y + 1.5 * pixels


def _steps(points: _Line, end: float) -> _Line:
    """The line that keeps each height until the next point, and the last height until ``end``."""
    corners = [points[0]]
    for x, y in points[1:]:
        corners += [(x, corners[-1][1]), (x, y)]
    return [*corners, (end, corners[-1][1])]


def _covered(boxes: Sequence[_Box], taken: Sequence[_Box]) -> list[float]:
    """How much of each box the others cover, in tenths of its area."""
    import numpy as np

    left, bottom, right, top = np.array(boxes, dtype=float).T[:, :, None]  # (box, 1)
    others = np.array(taken, dtype=float).reshape(-1, 4).T[:, None, :]  # (side, 1, other)
    width = np.clip(np.minimum(right, others[2]) - np.maximum(left, others[0]), 0, None)
    height = np.clip(np.minimum(top, others[3]) - np.maximum(bottom, others[1]), 0, None)
    area = ((right - left) * (top - bottom))[:, 0]
    shares: list[float] = (10 * (width * height).sum(axis=1) / np.maximum(area, 1)).tolist()
    return shares


def _outside(box: _Box, frame: Any) -> float:
    """A penalty for a box that leaves the panel."""
    inside = frame.x0 <= box[0] and box[2] <= frame.x1 and frame.y0 <= box[1] and box[3] <= frame.y1
    return 0.0 if inside else 10.0


# ---------------------------------------------------------------- parts of figures


def _by_model(costs: Frontier) -> Iterator[tuple[float, Any, list[FrontierPoint], list[FrontierPoint]]]:
    """For each model the factor that moves it aside, its colour, its runs, and its votes by the number of drafts.

    Points of several models often cost the same. The factor keeps their bars apart.
    """
    count = len(costs.best)
    for place, (model, colour) in enumerate(zip(costs.best, _model_colours(count), strict=True)):
        points = [point for point in costs.points if point.model == model]
        votes = sorted((point for point in points if point.drafts), key=lambda point: point.drafts)
        yield 1 + 0.012 * (place - (count - 1) / 2), colour, [each for each in points if not each.drafts], votes


def _points(panel: Any, points: Sequence[FrontierPoint], shift: float, colour: Any, **style: Any) -> None:
    if points:
        _line(panel, [point.cost * shift for point in points], [point.score for point in points], colour, **style)


def _cost_axes(panel: Any, costs: Frontier) -> None:
    _log_axis(panel)
    panel.margins(x=0.12)
    panel.set_xlabel(f"{AXES[costs.kind]} (log scale)")
    panel.set_ylabel(_y_label(costs))
    _percent_axis(panel, [point.score for point in costs.points])
    _plain_frame(panel)


def _legend(panel: Any, costs: Frontier, *, squares: bool) -> None:
    """The names of the models in their colours, above the panel. ``squares`` says that squares are votes."""
    from matplotlib.lines import Line2D

    models = [
        Line2D([], [], color=colour, marker="o", linestyle="none", label=_label(model))
        for model, (_, colour, *_) in zip(costs.best, _by_model(costs), strict=True)
    ]
    if squares and any(point.drafts for point in costs.points):
        square: dict[str, Any] = {"marker": "s", "markersize": 4, "linestyle": "--", "linewidth": 1}
        models.append(Line2D([], [], color=SINGLE_COLOUR, label="majority vote of its drafts", **square))
    panel.legend(
        handles=models,
        labelcolor="linecolor",
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=4,
        handletextpad=0.2,
        borderaxespad=0.2,
        fontsize=FONT_SIZE + 1,
        frameon=False,
    )


def _subject(costs: Frontier) -> str:
    """The task, and its number of questions if all runs answered equally many."""
    sizes = {point.score.n for point in costs.points if not point.drafts}
    return costs.task + (f", {sizes.pop():,} questions" if len(sizes) == 1 else "")


def _set_title(figure: Any, title: str) -> None:
    figure.suptitle(_title(title), fontsize=11, x=0.01, ha="left", parse_math=False)


def _label(name: str) -> str:
    """A name from a file as matplotlib shows it literally: without math, and also if it starts with an underscore."""
    text = shortened(visible(name), MAX_LABEL).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _title(text: str) -> str:
    return shortened(visible(text), MAX_TITLE)


def _save(figure: Any, path: Path) -> tuple[Path, ...]:
    """Write a PNG and an SVG, each whole or not at all. Equal figures are equal files."""
    from matplotlib import rc_context

    files = (path, path.with_suffix(".svg"))
    with writing(path), warnings.catch_warnings(), rc_context({"svg.fonttype": "none", "svg.hashsalt": "aft"}):
        # They are about letters that the fonts lack, which are drawn as boxes, and about labels that are too large.
        warnings.simplefilter("ignore")
        path.parent.mkdir(parents=True, exist_ok=True)
        for file, metadata in zip(files, ({}, {"Date": None}), strict=True):
            with atomic_write(file) as partial:
                figure.savefig(partial, dpi=150, format=file.suffix[1:], metadata=metadata)
    return files


def _figure(width: float = 13, height: float = 5) -> Any:
    """An empty figure that needs no display."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("figures need matplotlib: pip install lm_eval_aft[report]") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def known_cost(curves: Curves) -> Cost | None:
    """The first of ``COSTS`` that all runs know; None if there is none."""
    return next((kind for kind in COSTS if curves.costs(kind)), None)


def _plain_frame(panel: Any) -> None:
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def _y_label(figure: Curves | Frontier) -> str:
    return _label(figure.measure) + ("" if figure.higher_is_better else " (lower is better)")


def _percent_axis(panel: Any, scores: Sequence[Interval]) -> None:
    """Label the y axis in percent if the scores are shares."""
    if is_share(score.estimate for score in scores):
        panel.yaxis.set_major_formatter(_percent_label)


def _percent_label(value: float, _place: int) -> str:
    return f"{100 * value:.0f}%" if is_share([value]) else ""


def _log_axis(panel: Any) -> None:
    """Label the x axis at 1, 2 and 5 times a power of ten, as 200G or 1.5k: matplotlib's own labels overlap."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.xaxis.set_minor_formatter(NullFormatter())


def _model_colours(count: int) -> list[Any]:
    return list(PALETTE[:count]) if count <= len(PALETTE) else _colours(count)


def _colours(count: int) -> list[Any]:
    """From dark to light."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.7 * place / max(count - 1, 1)) for place in range(count)]


def _line(panel: Any, xs: Sequence[float], scores: Sequence[Interval], colour: Any, **style: Any) -> None:
    """A line with whiskers; an end of an interval that is not bounded has none."""
    lows = [score.estimate - score.low for score in scores]
    highs = [score.high - score.estimate for score in scores]
    whiskers = [[length if length < float("inf") else 0.0 for length in side] for side in (lows, highs)]
    from matplotlib.colors import to_rgba

    bars = {"ecolor": to_rgba(colour, 0.55), "elinewidth": 1, "capsize": 2}
    look = {"marker": "o", "markersize": 5, "linewidth": 1.6, **bars, **style}
    panel.errorbar(xs, [score.estimate for score in scores], yerr=whiskers, color=colour, **look)


# ---------------------------------------------------------------- the panels of curves


def _layer_colours(curves: Curves) -> dict[int, Any]:
    """The colour of each number of layers, which all panels share. A single answer is grey."""
    depths = sorted({point.layers for point in curves.points if point.layers > 0})
    return {0: SINGLE_COLOUR, **dict(zip(depths, _colours(len(depths)), strict=True))}


def _vote_line(panel: Any, xs: Sequence[float], curves: Curves) -> Iterator[_Name]:
    scores = [point.majority for point in curves.voted if point.majority]
    if scores:
        _line(panel, xs, scores, VOTE_COLOUR, marker="s", markersize=4, linestyle="--", elinewidth=0.6)
        yield _Name(xs[-1], scores[-1].estimate, "majority vote", VOTE_COLOUR)


def _by_layers(curves: Curves) -> dict[int, list[CurvePoint]]:
    """The points with aggregation layers, by their number."""
    depths = sorted({point.layers for point in curves.points if point.layers > 0})
    return {depth: [point for point in curves.points if point.layers == depth] for depth in depths}


def _single_answer(curves: Curves) -> list[CurvePoint]:
    """The point with layers=0, of which k does not matter; empty if there is none."""
    return [point for point in curves.points if point.layers == 0][:1]


def _against_k(panel: Any, curves: Curves) -> list[_Name]:
    names, lines, colours = [], _by_layers(curves), _layer_colours(curves)
    for place, (depth, points) in enumerate(lines.items()):
        xs = [point.k + _offset(place, len(lines)) for point in points]
        _line(panel, xs, [point.score for point in points], colours[depth])
        names.append(_Name(xs[-1], points[-1].score.estimate, f"layers={depth}", colours[depth]))
    widths = {point.k for point in curves.points} | {point.n for point in curves.voted}
    for point in _single_answer(curves):
        panel.axhline(point.score.estimate, color=SINGLE_COLOUR, linewidth=1.2, linestyle=":")
        if point.score.bounded:
            panel.axhspan(point.score.low, point.score.high, color=SINGLE_COLOUR, alpha=0.12, linewidth=0)
        names.append(_Name(max(widths), point.score.estimate, "single answer", SINGLE_COLOUR))
    if curves.voted:
        names += _vote_line(panel, [point.n for point in curves.voted], curves)
    panel.set_xlabel("k (drafts)")
    panel.set_xticks(sorted(widths))
    return names


def _against_layers(panel: Any, curves: Curves) -> list[_Name]:
    """A grey line for each k; each starts at the single answer. Its points have the colours of the layers."""
    names, colours = [], _layer_colours(curves)
    widths = sorted({point.k for point in curves.points if point.layers > 0})
    for place, width in enumerate(widths):
        aggregated = [point for point in curves.points if point.layers > 0 and point.k == width]
        points = [*_single_answer(curves), *aggregated]
        xs = [point.layers + _offset(place, len(widths)) for point in points]
        panel.plot(xs, [point.score.estimate for point in points], color=SINGLE_COLOUR, linewidth=1)
        for x, point in zip(xs, points, strict=True):
            _line(panel, [x], [point.score], colours[point.layers])
        names.append(_Name(xs[-1], points[-1].score.estimate, f"k={width}", SINGLE_COLOUR))
    depths = sorted({point.layers for point in curves.points})
    last = curves.voted[-1] if curves.voted else None
    if last and last.majority:
        panel.axhline(last.majority.estimate, color=VOTE_COLOUR, linestyle="--")
        names.append(_Name(depths[0], last.majority.estimate, f"majority vote of {last.n} drafts", VOTE_COLOUR))
    panel.set_xlabel("layers (aggregation layers)")
    panel.set_xticks(depths)
    return names


def _against_cost(panel: Any, curves: Curves, kind: Cost) -> list[_Name]:
    names, colours = [], _layer_colours(curves)
    for depth, points in _by_layers(curves).items():
        known = [(point, cost) for point in points if (cost := point.cost(kind))]
        _line(panel, [cost for _, cost in known], [point.score for point, _ in known], colours[depth])
        # Between the settings of one line only k differs.
        names += [_Name(cost, point.score.estimate, f"k={point.k}", colours[depth]) for point, cost in known]
    for point in _single_answer(curves):
        cost = point.cost(kind) or 1.0
        _line(panel, [cost], [point.score], SINGLE_COLOUR)
        names.append(_Name(cost, point.score.estimate, "single answer", SINGLE_COLOUR))
    costs = [point.generated_tokens if kind == "tokens" else point.flops for point in curves.voted]
    if costs and all(costs):
        names += _vote_line(panel, [cost for cost in costs if cost], curves)
    _log_axis(panel)
    panel.set_xlabel(f"{AXES[kind]} (log scale)")
    return names


def _offset(place: int, count: int) -> float:
    """How far a line moves to the side, so that whiskers do not hide each other."""
    return 0.05 * (place - (count - 1) / 2)

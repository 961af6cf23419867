"""Figures of curves, frontiers and training losses, drawn by matplotlib."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_aft.analysis.report.tables import is_share
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.files import atomic_write, writing
from lm_eval_aft.core.terminal import shortened, visible

if TYPE_CHECKING:
    from lm_eval_aft.analysis.cost import Cost
    from lm_eval_aft.analysis.curves import CurvePoint, Curves
    from lm_eval_aft.analysis.frontier import Frontier
    from lm_eval_aft.analysis.losses import LossCurve
    from lm_eval_aft.analysis.stats import Interval

VOTE_COLOUR, SINGLE_COLOUR = "#444444", "#999999"
# Characters. A legend of longer labels would leave no room for the panel.
MAX_TITLE, MAX_LABEL = 150, 60
AXES = {"tokens": "generated tokens a question", "flops": "FLOPs a question"}
# In the order in which one is chosen.
COSTS: tuple[Cost, ...] = ("flops", "tokens")


def draw(curves: Curves, kind: Cost | None, path: Path) -> Path:
    """Write one PNG with a panel each for score against k, against layers and against cost. Its folder is made.

    Args:
        curves: More than a single point.
        kind: The cost of the third panel. None takes FLOPs if all runs know them, else tokens, and leaves the panel
            out if a run knows neither.
        path: The file.

    Raises:
        ConfigError: matplotlib is missing, or the runs do not know the cost that was chosen.
        RecordError: The file cannot be written.
    """
    figure = _figure()
    if kind and not curves.costs(kind):
        raise ConfigError(f"the runs of {curves.name} do not know their {AXES[kind]}: use --cost tokens.")
    known = kind or next((each for each in COSTS if curves.costs(each)), None)
    panels = figure.subplots(1, 3 if known else 2, sharey=True)
    _against_k(panels[0], curves)
    _against_layers(panels[1], curves)
    if known:
        _against_cost(panels[2], curves, known)
    panels[0].set_ylabel(_y_label(curves))
    for panel in panels:
        _plain_frame(panel)
        panel.legend(
            fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, columnspacing=1
        )
    _percent_axis(panels[0], [point.score for point in curves.points])
    vote = f"; vote by {curves.extraction}" if curves.voted else ""
    # A regex in the title may hold $, which matplotlib would read as math.
    figure.suptitle(_title(f"{curves.title}; 95% intervals{vote}"), fontsize=11, parse_math=False)
    return _save(figure, path)


def draw_frontier(frontier: Frontier, path: Path) -> Path:
    """Write one PNG of all points, and for each model its best at a cost or less as steps.

    Raises:
        ConfigError: matplotlib is missing.
        RecordError: The file cannot be written.
    """
    figure = _figure(width=8)
    panel = figure.subplots()
    for (model, best), colour in zip(frontier.best.items(), _colours(len(frontier.best)), strict=True):
        points = [point for point in frontier.points if point.model == model]
        costs = [point.cost for point in points]
        _line(panel, costs, [point.score for point in points], colour, model, linestyle="none")
        heights = [point.score.estimate for point in best]
        ends = [*(point.cost for point in best), frontier.points[-1].cost]
        panel.step(ends, [*heights, heights[-1]], where="post", color=colour)
    for crossing in frontier.crossings[1:]:
        panel.axvline(crossing.cost, color=SINGLE_COLOUR, linestyle=":")
    _log_axis(panel)
    panel.set_xlabel(f"{AXES[frontier.kind]} (log scale)")
    panel.set_ylabel(_y_label(frontier))
    _percent_axis(panel, [point.score for point in frontier.points])
    _plain_frame(panel)
    panel.legend(fontsize=8, frameon=False)
    title = _title(f"{frontier.task}: the best at each budget; 95% intervals")
    figure.suptitle(title, fontsize=11, parse_math=False)
    return _save(figure, path)


def draw_losses(curves: Sequence[LossCurve], path: Path) -> Path:
    """Write one PNG of training losses as lines and validation losses as dots, against the tokens seen.

    Raises:
        ConfigError: matplotlib is missing.
        RecordError: The file cannot be written.
    """
    figure = _figure(width=8)
    from matplotlib.ticker import EngFormatter

    panel = figure.subplots()
    for curve, colour in zip(curves, _colours(len(curves)), strict=True):
        # A line of one point cannot be seen.
        marker = "." if len(curve.training) == 1 else ""
        panel.plot(
            *zip(*curve.training, strict=True), color=colour, linewidth=1.2, marker=marker, label=_label(curve.name)
        )
        if curve.validation:
            panel.plot(*zip(*curve.validation, strict=True), color=colour, marker="o", linestyle="none")
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.set_xlabel("tokens seen")
    panel.set_ylabel("loss per target token, nats")
    _plain_frame(panel)
    panel.legend(fontsize=8, frameon=False)
    figure.suptitle("training loss; dots: validation", fontsize=11)
    return _save(figure, path)


def _label(name: str) -> str:
    """A name from a file as matplotlib shows it literally: without math, and also if it starts with an underscore."""
    text = shortened(visible(name), MAX_LABEL).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _title(text: str) -> str:
    return shortened(visible(text), MAX_TITLE)


def _save(figure: Any, path: Path) -> Path:
    with writing(path), warnings.catch_warnings():
        # They are about letters that the fonts lack, which are drawn as boxes, and about labels that are too large.
        warnings.simplefilter("ignore")
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            figure.savefig(partial, dpi=150, format="png")
    return path


def _figure(width: float = 13) -> Any:
    """An empty figure that needs no display."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("figures need matplotlib: pip install lm_eval_aft[report]") from error
    figure = Figure(figsize=(width, 5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


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


def _colours(count: int, scale: str = "viridis") -> list[Any]:
    """From dark to light. Lines of K and lines of L use different scales, so that no colour means both."""
    from matplotlib import colormaps

    return [colormaps[scale](0.85 * place / max(count - 1, 1)) for place in range(count)]


def _line(panel: Any, xs: Sequence[float], scores: Sequence[Interval], colour: Any, label: str, **style: Any) -> None:
    """A line with whiskers; an end of an interval that is not bounded has none."""
    lows = [score.estimate - score.low for score in scores]
    highs = [score.high - score.estimate for score in scores]
    whiskers = [[length if length < float("inf") else 0.0 for length in side] for side in (lows, highs)]
    look = {"marker": "o", "markersize": 5, "linewidth": 1.6, "elinewidth": 1, "capsize": 2.5, **style}
    panel.errorbar(xs, [score.estimate for score in scores], yerr=whiskers, color=colour, label=_label(label), **look)


def _vote_line(panel: Any, xs: Sequence[float], curves: Curves) -> None:
    scores = [point.majority for point in curves.voted if point.majority]
    _line(panel, xs, scores, VOTE_COLOUR, "majority vote", marker="s", markersize=4, linestyle="--", elinewidth=0.6)


def _by_layers(curves: Curves) -> dict[int, list[CurvePoint]]:
    """The points with aggregation layers, by their number."""
    depths = sorted({point.layers for point in curves.points if point.layers > 0})
    return {depth: [point for point in curves.points if point.layers == depth] for depth in depths}


def _single_answer(curves: Curves) -> list[CurvePoint]:
    """The point with layers=0, of which k does not matter; empty if there is none."""
    return [point for point in curves.points if point.layers == 0][:1]


def _against_k(panel: Any, curves: Curves) -> None:
    lines = _by_layers(curves)
    for place, ((depth, points), colour) in enumerate(zip(lines.items(), _colours(len(lines)), strict=True)):
        xs = [point.k + _offset(place, len(lines)) for point in points]
        _line(panel, xs, [point.score for point in points], colour, f"L={depth}")
    for point in _single_answer(curves):
        panel.axhline(point.score.estimate, color=SINGLE_COLOUR, linewidth=1.2, linestyle=":", label="single answer")
        if point.score.bounded:
            panel.axhspan(point.score.low, point.score.high, color=SINGLE_COLOUR, alpha=0.12, linewidth=0)
    if curves.voted:
        _vote_line(panel, [point.n for point in curves.voted], curves)
    panel.set_xlabel("K, drafts")
    panel.set_xticks(sorted({point.k for point in curves.points} | {point.n for point in curves.voted}))


def _against_layers(panel: Any, curves: Curves) -> None:
    """One line for each k; each starts at the single answer."""
    widths = sorted({point.k for point in curves.points if point.layers > 0})
    for place, (width, colour) in enumerate(zip(widths, _colours(len(widths), "plasma"), strict=True)):
        aggregated = [point for point in curves.points if point.layers > 0 and point.k == width]
        points = [*_single_answer(curves), *aggregated]
        xs = [point.layers + _offset(place, len(widths)) for point in points]
        _line(panel, xs, [point.score for point in points], colour, f"K={width}")
    last = curves.voted[-1] if curves.voted else None
    if last and last.majority:
        label = f"majority vote of {last.n} drafts"
        panel.axhline(last.majority.estimate, color=VOTE_COLOUR, linestyle="--", label=label)
    panel.set_xlabel("L, aggregation layers")
    panel.set_xticks(sorted({point.layers for point in curves.points}))


def _against_cost(panel: Any, curves: Curves, kind: Cost) -> None:
    lines = _by_layers(curves)
    for (depth, points), colour in zip(lines.items(), _colours(len(lines)), strict=True):
        known = [(point, cost) for point in points if (cost := point.cost(kind))]
        widths = ", ".join(str(point.k) for point, _ in known)
        _line(panel, [cost for _, cost in known], [point.score for point, _ in known], colour, f"L={depth}, K={widths}")
    for point in _single_answer(curves):
        _line(panel, [point.cost(kind) or 1.0], [point.score], SINGLE_COLOUR, "single answer")
    costs = [point.generated_tokens if kind == "tokens" else point.flops for point in curves.voted]
    if costs and all(costs):
        _vote_line(panel, [cost for cost in costs if cost], curves)
    _log_axis(panel)
    panel.set_xlabel(f"{AXES[kind]} (log scale)")


def _offset(place: int, count: int) -> float:
    """How far a line moves to the side, so that whiskers do not hide each other."""
    return 0.05 * (place - (count - 1) / 2)

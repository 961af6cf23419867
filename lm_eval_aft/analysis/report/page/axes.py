"""Linear axes for the page: their ends, and ticks at round numbers with their texts."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, floor, isfinite, log10

from lm_eval_aft.analysis.report.page.data import Axis, Tick

# The steps between ticks, times a power of ten.
_STEPS = (1, 2, 2.5, 5, 10)


def linear_axis(
    values: Iterable[float],
    label: str = "",
    signed: bool = False,
    within: tuple[float, float] | None = None,
    most_ticks: int = 7,
) -> Axis:
    """An axis that shows these values with a little room at both ends.

    Args:
        values: In the shown unit; values that are not finite are left out.
        label: What the axis shows.
        signed: Whether ticks have a plus sign, as for differences.
        within: Bounds that the room does not cross, such as 0 and 100 for percentages.
        most_ticks: About as many ticks fit beside each other.
    """
    finite = [value for value in values if isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    room = 0.06 * (high - low) or abs(high) or 1.0
    low, high = low - room, high + room
    if within:
        low, high = max(low, min(within[0], min(finite))), min(high, max(within[1], max(finite)))
    places = _round_numbers(low, high, most_ticks)
    return Axis(low, high, tuple(Tick(value, _tick_text(value, signed)) for value in places), label)


def _round_numbers(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / (most - 1)
    power = 10.0 ** floor(log10(rough))
    step = power * next(factor for factor in _STEPS if factor * power >= rough * 0.999)
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def _tick_text(value: float, signed: bool) -> str:
    return f"{value:+g}" if signed and value else f"{value:g}"

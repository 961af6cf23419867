"""The plan of a sweep over k and layers: its points, and how many distinct generations they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lm_eval_aft.core.config import AFTConfig, samplings
from lm_eval_aft.core.records import Sampling


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """The cost of a grid per question.

    Attributes:
        distinct: Generations that the sweep makes.
        separate: Generations that one run per point would make.
        reason: Why the two differ, in words.
    """

    distinct: int
    separate: int
    reason: str


# A number of texts for all layers, or one for each, such as (32, 4).
K = int | tuple[int, ...]
Point = tuple[K, int]


def widths_of(k: K, layers: int) -> tuple[int, ...]:
    """Texts of each layer but the last. The last number holds for all further layers."""
    numbers = k if isinstance(k, tuple) else (k,)
    return (numbers + numbers[-1:] * layers)[:layers]


def shown_k(k: K) -> str:
    """``k`` as it is given: 5, or 32/4."""
    return "/".join(map(str, k)) if isinstance(k, tuple) else str(k)


def grid(ks: Sequence[K], layers: Sequence[int]) -> list[Point]:
    """The points (k, layers) from the cheapest. ``layers=0`` does not depend on k, so it is one point.

    A point with fewer layers than k has numbers needs only the first of them.
    """
    points: dict[tuple[int, ...], Point] = {}
    for depth in layers:
        for k in ks:
            widths = widths_of(k, depth)
            given: K = widths[: len(k)] if isinstance(k, tuple) and len(set(widths)) > 1 else next(iter(widths), 1)
            points.setdefault((depth, *widths), (given, depth))
    return sorted(points.values(), key=lambda point: (sum(widths_of(*point)), point[1]))


def plan_of(ks: Sequence[K], layers: Sequence[int], drafts: Sampling, final: Sampling) -> SweepPlan:
    """Count the distinct generations of a grid, for one question.

    A text depends on its place (layer and index) and its sampling. From layer 1 on it also depends on the numbers of
    texts in the layers before, which decide what it reads. If both are sampled alike, the answer of (k, L) is text 0 of
    layer L of a deeper point.

    Args:
        ks: Values of k.
        layers: Values of layers.
        drafts: Sampling of all layers but the last.
        final: Sampling of the last layer.
    """
    places = set()
    for k, depth in grid(ks, layers):
        for layer in range(depth + 1):
            last = layer == depth
            sampling = final if last else drafts
            # As in the key of the draft store, a greedy text depends on neither its index nor the nucleus.
            greedy = not sampling.temperature
            sampling = replace(sampling, top_p=1.0, top_k=0) if greedy else sampling
            widths = widths_of(k, depth)
            for index in range(1 if last else widths[layer]):
                places.add((layer, 0 if greedy else index, widths[:layer], sampling))
    separate = sum(sum(widths_of(k, depth)) + 1 for k in ks for depth in layers)
    reason = "drafts depend on neither k nor layers"
    if final == drafts:
        reason += ", and the answer of a shallow point is the first text of that layer in a deeper one"
    else:
        reason += "; the last layer has a sampling of its own, so an answer is not a hidden text of a deeper point"
    return SweepPlan(len(places), separate, reason)


def plans_of(tasks: dict[str, Any], config: AFTConfig, ks: Sequence[K], layers: Sequence[int]) -> dict[str, SweepPlan]:
    """The plan of each generate_until task, by its own generation settings."""
    return {
        name: plan_of(ks, layers, *samplings(config, task.config.generation_kwargs))
        for name, task in tasks.items()
        if task.config.output_type == "generate_until"
    }

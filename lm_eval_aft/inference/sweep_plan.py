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


def grid(ks: Sequence[int], layers: Sequence[int]) -> list[tuple[int, int]]:
    """The points (k, layers) from the cheapest. ``layers=0`` does not depend on k, so it is one point."""
    points = {(k if depth else 1, depth) for k in ks for depth in layers}
    return sorted(points, key=lambda point: (point[0] * point[1], point[1]))


def plan_of(ks: Sequence[int], layers: Sequence[int], drafts: Sampling, final: Sampling) -> SweepPlan:
    """Count the distinct generations of a grid, for one question.

    A text depends on its place (layer and index) and its sampling. From layer 1 on it also depends on k, which decides
    what it reads. If both are sampled alike, the answer of (k, L) is text 0 of layer L of a deeper point.

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
            for index in range(1 if last else k):
                places.add((layer, 0 if greedy else index, k if layer else 0, sampling))
    separate = sum(k * depth + 1 for k in ks for depth in layers)
    reason = "drafts depend on neither k nor layers"
    if final == drafts:
        reason += ", and the answer of a shallow point is the first text of that layer in a deeper one"
    else:
        reason += "; the last layer has a sampling of its own, so an answer is not a hidden text of a deeper point"
    return SweepPlan(len(places), separate, reason)


def plans_of(
    tasks: dict[str, Any], config: AFTConfig, ks: Sequence[int], layers: Sequence[int]
) -> dict[str, SweepPlan]:
    """The plan of each generate_until task, by its own generation settings."""
    return {
        name: plan_of(ks, layers, *samplings(config, task.config.generation_kwargs))
        for name, task in tasks.items()
        if task.config.output_type == "generate_until"
    }

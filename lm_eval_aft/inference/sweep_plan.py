"""What a grid of k and layers costs before it runs: its points, and the generations that are distinct.

Pure counting; knows nothing of engines or stores. Called by ``sweep``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lm_eval_aft.core.config import AFTConfig, samplings
from lm_eval_aft.core.records import Sampling


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """What a grid costs per question.

    Attributes:
        distinct: Generations that have to be made.
        separate: Generations that one run per point would make.
        reason: Why the two differ, in words.
    """

    distinct: int
    separate: int
    reason: str


def grid(ks: Sequence[int], layers: Sequence[int]) -> list[tuple[int, int]]:
    """The points (k, layers) from the cheapest; layers=0 does not depend on k and comes once."""
    points = {(k if depth else 1, depth) for k in ks for depth in layers}
    return sorted(points, key=lambda point: (point[0] * point[1], point[1]))


def plan_of(ks: Sequence[int], layers: Sequence[int], drafts: Sampling, final: Sampling) -> SweepPlan:
    """Count the distinct generations of a grid, for one question.

    A text is decided by its place (layer, index), by its sampling, and from layer 1 on by k, which decides what it
    reads. The last text of (k, L) is text 0 of layer L of a deeper point where both are sampled alike.
    """
    places = set()
    for k, depth in grid(ks, layers):
        for layer in range(depth + 1):
            last = layer == depth
            sampling = final if last else drafts
            for index in range(1 if last else k):
                greedy = not sampling.temperature  # one text, whatever its index and nucleus: as in the store's key
                drawn = replace(sampling, top_p=1.0, top_k=0) if greedy else sampling
                places.add((layer, 0 if greedy else index, k if layer else 0, drawn))
    separate = sum(k * depth + 1 for k in ks for depth in layers)
    reason = "drafts depend on neither k nor layers"
    if final == drafts:
        reason += ", and the answer of a shallow point is the first text of that layer in a deeper one"
    else:
        reason += "; the last layer is sampled in its own way, so no answer stands in for a hidden text"
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

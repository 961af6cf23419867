"""Which cases of a grid of parameters run first. ``make test`` runs these, and ``make test-long`` runs the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

import pytest

# Cases that another command runs are no part of a grid.
ELSEWHERE = ("faults", "gpu", "long", "slow", "vllm", "zoo")


def covering(cases: Sequence[Mapping[str, Hashable]]) -> set[int]:
    """Choose cases that together have each value of each parameter.

    Args:
        cases: For each case, the value of each parameter.

    Returns:
        The places of the chosen cases.
    """
    values, seen, chosen = [set(case.items()) for case in cases], set[tuple[str, Hashable]](), set[int]()
    # Cases with the most new values come first: they lie on the diagonal of the grid, so few cases have all values.
    for count in range(max(map(len, values), default=0), 0, -1):
        for place, own in enumerate(values):
            if len(own - seen) >= count:
                seen |= own
                chosen.add(place)
    return chosen


def parameters(case: pytest.Function) -> dict[str, Hashable]:
    """The parameters of a case, and which of their values it has. Names of one ``parametrize`` are one parameter."""
    values = {name: id(value) for name, value in case.callspec.params.items()}
    together: list[Sequence[str]] = []
    for mark in case.iter_markers("parametrize"):
        names = mark.args[0] if mark.args else mark.kwargs["argnames"]
        together.append([name.strip() for name in names.split(",")] if isinstance(names, str) else names)
    rest = [[name] for name in values if not any(name in names for names in together)]
    return {",".join(names): tuple(values[name] for name in names) for names in [*together, *rest]}


def mark_further_cases(items: Iterable[pytest.Item]) -> None:
    """Give the marker ``long`` to each case of a test whose values the chosen cases have already."""
    grids = defaultdict[str, list[pytest.Function]](list)
    for item in items:
        here = not any(item.get_closest_marker(name) for name in ELSEWHERE)
        if here and isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            grids[item.nodeid.partition("[")[0]].append(item)
    for cases in grids.values():
        first = covering([parameters(case) for case in cases])
        for place, case in enumerate(cases):
            if place not in first:
                case.add_marker(pytest.mark.long)

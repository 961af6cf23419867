"""Which cases of a grid ``make test`` runs: few, and each value of each parameter."""

from __future__ import annotations

from itertools import product

import pytest

from helpers.first_line import covering, parameters


@pytest.mark.parametrize("sizes", [(3, 4), (4, 3), (2, 5, 3)])
def test_each_value_of_each_parameter_is_in_as_few_cases_as_the_longest_axis_has(sizes: tuple[int, ...]) -> None:
    cases = [dict(zip("abc", place, strict=False)) for place in product(*map(range, sizes))]
    chosen = [cases[place] for place in covering(cases)]
    assert {pair for case in chosen for pair in case.items()} == {pair for case in cases for pair in case.items()}
    assert len(chosen) == max(sizes)


def test_each_case_of_one_parameter_is_chosen() -> None:
    assert covering([{"a": 0}, {"a": 1}, {"a": 2}]) == {0, 1, 2}
    assert covering([{"a": 0, "b": 0}, {"a": 1, "b": 1}]) == {0, 1}
    assert covering([]) == set()


LETTERS, PAIRS = ("a", "b", "c"), [(1, "x"), (1, "y"), (2, "x"), (2, "y")]


@pytest.mark.parametrize("letter", LETTERS)
@pytest.mark.parametrize(("number", "sign"), PAIRS)
def test_names_of_one_parametrize_are_one_parameter(request: pytest.FixtureRequest, letter, number, sign) -> None:
    assert parameters(request.node) == {"letter": (id(letter),), "number,sign": (id(number), id(sign))}


@pytest.mark.parametrize("letter", LETTERS)
@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.long), 1, 2])
def test_a_case_is_left_to_test_long_if_another_has_its_values(request: pytest.FixtureRequest, letter, number) -> None:
    first = {"a": 1, "b": 2, "c": 1}[letter] == number
    assert (request.node.get_closest_marker("long") is None) == first

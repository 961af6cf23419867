"""Verifiers: is a text right, given the row it answers?

``exact:REGEX`` takes the last match in a text and in the row's gold field and compares the two, as numbers where both
are; ``exact:`` alone takes the last number. ``module:function`` calls function(text, row). Called by the data commands.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from lm_eval_aft.core.errors import ConfigError

Verifier = Callable[[str, Mapping[str, Any]], bool]
NUMBER = r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+"


def load_verifier(spec: str, gold: str = "gold") -> Verifier:
    """The verifier that a command line names.

    Args:
        spec: ``exact:``, ``exact:REGEX`` or ``module:function``.
        gold: Key of a row that holds the right answer; used by ``exact``.

    Raises:
        ConfigError: If it cannot be loaded or called, or the expression does not compile.
    """
    module, separator, name = spec.partition(":")
    if not separator:
        raise ConfigError(f"--verifier {spec} is not allowed: give exact:REGEX or module:function.")
    if module == "exact":
        return _exact(name or NUMBER, gold)
    try:
        if "" not in sys.path:
            sys.path.insert(0, "")  # a console script does not look in the current folder
        function: Verifier = getattr(import_module(module), name)
    except Exception as error:  # whatever the user's module raises
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"--verifier {spec} cannot be loaded ({reason}): give exact:REGEX or module:function."
        ) from error
    if not callable(function):
        raise ConfigError(f"--verifier {spec} is no function: give exact:REGEX or module:function.")
    return function


def _exact(expression: str, gold: str) -> Verifier:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise ConfigError(f"--verifier exact:{expression} is no regular expression ({error}).") from error

    def verify(text: str, row: Mapping[str, Any]) -> bool:
        answer, wanted = last_match(pattern, text), _gold(row, gold)
        return answer is not None and same(answer, last_match(pattern, wanted) or wanted)

    return verify


def _gold(row: Mapping[str, Any], key: str) -> str:
    if row.get(key) is None:
        raise ConfigError(
            f"a row has no {key!r} to compare with: name its key with --gold (query: {row['query']!r:.60})."
        )
    return str(row[key])


def right_answer(spec: str | None, row: Mapping[str, Any], gold: str) -> str:
    """What a teacher is told when it is to repair: the result alone where ``exact`` can tell it from the solution.

    Raises:
        ConfigError: If the row has none.
    """
    wanted = _gold(row, gold)
    module, _, expression = (spec or "").partition(":")
    return (last_match(re.compile(expression or NUMBER), wanted) if module == "exact" else None) or wanted


def last_match(pattern: re.Pattern[str], text: str) -> str | None:
    """The first group of the last match that took part in it, else the whole of it; None where nothing matches."""
    found = list(pattern.finditer(text))
    return next((group for group in found[-1].groups() if group is not None), found[-1].group()) if found else None


def same(one: str, other: str) -> bool:
    """Equal as numbers, else as words."""
    try:
        return float(one.replace(",", "")) == float(other.replace(",", ""))
    except ValueError:
        return one.split() == other.split()

"""Verifiers: functions that say whether a text is right, given the row that it answers.

``exact:REGEX`` compares the last match in the text with the last match in the row's gold field, as numbers if both are
numbers. ``exact:`` alone takes the last number. ``module:function`` calls ``function(text, row)``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib import import_module

from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.regexes import compile_regex, last_match
from trainers.rows.row import DataRow

Verifier = Callable[[str, DataRow], bool]
FORMS = "give exact:REGEX or module:function"
NUMBER = r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+"


def load_verifier(spec: str, gold: str = "gold") -> Verifier:
    """The verifier that a command line names.

    Args:
        spec: ``exact:``, ``exact:REGEX`` or ``module:function``.
        gold: Key of a row that holds the right answer; only ``exact`` uses it.

    Raises:
        ConfigError: If the function cannot be loaded or called, or the expression does not compile.
    """
    module, separator, name = spec.partition(":")
    if not separator:
        raise ConfigError(f"--verifier {spec} is not allowed: {FORMS}.")
    if module == "exact":
        return _exact(name or NUMBER, gold)
    try:
        # A console script does not search the current folder by itself.
        if "" not in sys.path:
            sys.path.insert(0, "")
        function: Verifier = getattr(import_module(module), name)
    # The user's module may raise anything.
    except Exception as error:
        raise ConfigError(f"--verifier {spec} cannot be loaded ({type(error).__name__}: {error}): {FORMS}.") from error
    if not callable(function):
        raise ConfigError(f"--verifier {spec} is not a function: {FORMS}.")
    return function


def _exact(expression: str, gold: str) -> Verifier:
    pattern = compile_regex(expression, "--verifier exact:")

    def verify(text: str, row: DataRow) -> bool:
        answer, wanted = last_answer(pattern, text), _gold(row, gold)
        return answer is not None and same(answer, last_answer(pattern, wanted) or wanted)

    return verify


def _gold(row: DataRow, key: str) -> str:
    if row.get(key) is None:
        raise ConfigError(
            f"a row has no {key!r} to compare with: name its key with --gold (query: {row['query']!r:.60})."
        )
    return str(row[key])


def right_answer(spec: str | None, row: DataRow, gold: str) -> str:
    """The right answer that a teacher gets for a repair: the result alone if ``exact`` finds it in the solution.

    Raises:
        ConfigError: If the row has none.
    """
    wanted = _gold(row, gold)
    module, _, expression = (spec or "").partition(":")
    if module != "exact":
        return wanted
    return last_answer(compile_regex(expression or NUMBER, "--verifier exact:"), wanted) or wanted


def last_answer(pattern: re.Pattern[str], text: str) -> str | None:
    """The last match in a text: its first group that matched, or the whole match if none did; None without a match."""
    match = last_match(pattern, text)
    if match is None:
        return None
    return next((group for group in match.groups() if group is not None), match.group())


def same(one: str, other: str) -> bool:
    """Whether two answers are equal as numbers, or else as words."""
    try:
        return float(one.replace(",", "")) == float(other.replace(",", ""))
    except ValueError:
        return one.split() == other.split()

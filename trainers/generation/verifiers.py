"""Verifiers: functions that say whether a text is right, given the row that it answers.

``exact:REGEX`` compares the last match in the text with the last match in the row's gold field, as numbers if both are
numbers. ``exact:`` alone takes the last number. ``task:NAME`` grades with a task of lm-eval; its document is the row's
``doc``, or else the row. ``module:function`` calls ``function(text, row)``.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module

from lm_eval_aft.core.errors import ConfigError, RecordError
from lm_eval_aft.core.regexes import compile_regex, last_match
from trainers.rows.grades import Verifier
from trainers.rows.row import DataRow

FORMS = "give exact:REGEX, task:NAME or module:function"
NUMBER = r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+"


def load_verifier(spec: str, gold: str = "gold", option: str = "--verifier ", forms: str = FORMS) -> Verifier:
    """The verifier that a command line names.

    Args:
        spec: ``exact:``, ``exact:REGEX``, ``task:NAME`` or ``module:function``.
        gold: Key of a row that holds the right answer; only ``exact`` uses it.
        option: What messages write before the spec.
        forms: What messages say is allowed.

    Raises:
        ConfigError: If the function cannot be loaded or called, or the expression does not compile.
    """
    module, separator, name = spec.partition(":")
    if not separator:
        raise ConfigError(f"{option}{spec} is not allowed: {forms}.")
    if module == "exact":
        return _exact(name or NUMBER, gold, option)
    if module == "task":
        return _task(name, option)
    try:
        # A console script does not search the current folder by itself.
        if "" not in sys.path:
            sys.path.insert(0, "")
        function: Verifier = getattr(import_module(module), name)
    # The user's module may raise anything, and a script may end with sys.exit.
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{option}{spec} cannot be loaded ({type(error).__name__}: {error}): {forms}.") from error
    if not callable(function):
        raise ConfigError(f"{option}{spec} is not a function: {forms}.")
    return function


def _exact(expression: str, gold: str, option: str) -> Verifier:
    pattern = compile_regex(expression, f"{option}exact:")
    setting = "--gold KEY" if option.startswith("--") else "gold: KEY"

    def verify(text: str, row: DataRow) -> bool:
        answer, wanted = last_answer(pattern, text), _gold(row, gold, setting)
        return answer is not None and same(answer, last_answer(pattern, wanted) or wanted)

    return verify


def _task(name: str, option: str) -> Verifier:
    """The first metric of a task's first filter."""
    from lm_eval_aft import register, tasks_path
    from lm_eval_aft.inference.task_grading import TaskLoader

    register()
    try:
        grader = TaskLoader([str(tasks_path())]).load(name, (), {})
    except RecordError as error:
        raise ConfigError(f"{option}task:{name} cannot be used: {error}") from error
    # Code that a model wrote is never run here.
    if reason := grader.refusal(unsafe_code=False):
        raise ConfigError(f"{option}task:{name} cannot be used: {reason}.")

    def verify(text: str, row: DataRow) -> float:
        metrics = grader.grade(row.get("doc", row), [text])[0][0].metrics
        return next(iter(metrics.values()))

    return verify


def _gold(row: DataRow, key: str, setting: str = "--gold KEY") -> str:
    if row.get(key) is None:
        raise ConfigError(
            f"a row has no {key!r} to compare with: name its key with {setting} (query: {row['query']!r:.60})."
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

"""Regular expressions that users give."""

from __future__ import annotations

import re

from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.limits import MAX_SECONDS, OutOfTime, time_limit

MAX_LENGTH = 10_000  # characters


def compile_regex(expression: str, option: str) -> re.Pattern[str]:
    """Compile a regular expression.

    Args:
        expression: The expression.
        option: What gave it, such as "--regex"; messages begin with it.

    Raises:
        ConfigError: If it cannot be compiled.
    """
    if len(expression) > MAX_LENGTH:
        raise ConfigError(f"{option} has {len(expression):,} characters, and at most {MAX_LENGTH:,} are allowed.")
    try:
        with time_limit(MAX_SECONDS):
            return re.compile(expression)
    # OverflowError: a{99999999999}. RecursionError: hundreds of nested groups.
    except (re.error, OverflowError, RecursionError, MemoryError, ValueError, OutOfTime) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error) or type(error).__name__
        raise ConfigError(f"{option} {expression[:100]!r} is not a valid regular expression ({reason}).") from error


def last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The last match of a user's expression in a text.

    Raises:
        ConfigError: If the search takes longer than ``MAX_SECONDS``, as (a+)+$ does.
    """
    last = None
    try:
        with time_limit(MAX_SECONDS):
            for match in pattern.finditer(text):
                last = match
    except (OutOfTime, RecursionError, MemoryError) as error:
        raise ConfigError(
            f"the regular expression {pattern.pattern[:100]!r} cannot be searched in a text of "
            f"{len(text):,} characters ({error or type(error).__name__}): give one without nested repeats."
        ) from error
    return last

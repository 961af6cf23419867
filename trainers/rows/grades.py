"""The grade of a text by a function: a verifier, or a reward of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite

from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.loading import named_reason_of
from trainers.rows.row import DataRow

Verifier = Callable[[str, DataRow], bool | float]


def grade_of(verify: Verifier, text: str, row: DataRow) -> tuple[float, str]:
    """The grade of a text, and why it has none. A text without a grade gets 0.

    Raises:
        ConfigError: If the row has no right answer.
    """
    try:
        grade = float(verify(text, row))
        if not isfinite(grade):
            raise ValueError(f"it returned {grade}")
    except ConfigError:
        raise
    # The user's function may raise anything, or end with sys.exit.
    except (Exception, SystemExit) as error:
        return 0.0, named_reason_of(error)
    return grade, ""


def is_right(verify: Verifier, text: str, row: DataRow) -> tuple[bool, str]:
    """Whether a text is right, and why the verifier failed, if it did. Such a text counts as wrong.

    Raises:
        ConfigError: If the row has no right answer.
    """
    grade, reason = grade_of(lambda *given: bool(verify(*given)), text, row)
    return bool(grade), reason

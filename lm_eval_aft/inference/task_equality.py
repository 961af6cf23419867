"""Equality of answers by a task's own code: ½ and 0.5 are one answer if the task says so.

Tasks such as hendrycks_math and minerva_math have no filter that extracts answers. Their ``process_results`` finds the
answer in a text and compares it with the gold answer by ``is_equiv``, a function of the same module. So the first
argument of that call is the answer, and ``is_equiv`` says which answers vote together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from types import FunctionType
from typing import Any

from lm_eval_aft.core.limits import time_limit

EQUALITY = "is_equiv"
# Seconds for one comparison, and for all answers of a question. sympy may need hours for two short expressions.
COMPARISON_SECONDS = 5.0
QUESTION_SECONDS = 20.0
# Characters. A task without a mark for answers takes the whole text as the answer; a long one is none.
MAX_ANSWER = 1_000
# Stands for the gold answer, so that no task finds the answer equal to it without calling ``is_equiv``.
_NO_GOLD = "\u2205 no gold answer"


class _Compared(BaseException):
    """The task has found the answer and compares it. Not an Exception, since tasks catch those."""


class TaskEquality:
    """Finds and compares answers by the code of one task."""

    def __init__(self, process_results: FunctionType) -> None:
        """Take the function of a task that ``has_equality``."""
        self._compared: list[Any] = []
        self._find = FunctionType(
            process_results.__code__,
            {**process_results.__globals__, EQUALITY: self._compare},
            argdefs=process_results.__defaults__,
            closure=process_results.__closure__,
        )
        # Votes and grades compare the same answers.
        self._equal = lru_cache(maxsize=1 << 14)(_bounded(process_results.__globals__[EQUALITY]))

    def answer(self, document: Mapping[str, Any], text: Any) -> str | None:
        """The answer that the task finds in a text; None if it finds none.

        Args:
            document: The document of the question.
            text: The text, after the task's filter.
        """
        found = self._raw(document, text)
        if found is None or (found not in str(text) and found == self._raw(document, "")):
            # A task that finds nothing compares a text of its own, such as [invalidanswer].
            return None
        return found

    def _raw(self, document: Mapping[str, Any], text: Any) -> str | None:
        gold = {name: _NO_GOLD for name, value in document.items() if name.lower() == "answer" and value}
        self._compared.clear()
        # The text may have a form that the task's code does not expect.
        with suppress(Exception, _Compared):
            self._find({**document, **gold}, [text])
        first = next(iter(self._compared), None)
        answer = first.strip() if isinstance(first, str) else ""
        return answer if 0 < len(answer) <= MAX_ANSWER else None

    def _compare(self, answer: Any, *_: Any, **__: Any) -> bool:
        """Keep the answer instead of comparing it, and end the task's function."""
        self._compared.append(answer)
        raise _Compared

    def spellings(self, answers: Sequence[str | None]) -> list[str | None]:
        """One spelling for answers that the task takes as equal: the shortest of them.

        The order of the answers changes nothing. If comparing takes longer than ``QUESTION_SECONDS``, the answers that
        are left count as different.
        """
        spellings: dict[str, str] = {}
        end = time.monotonic() + QUESTION_SECONDS
        for answer in sorted(set(_present(answers)), key=lambda answer: (len(answer), answer)):
            known = list(dict.fromkeys(spellings.values()))
            same = (other for other in known if time.monotonic() < end and self._equal(other, answer))
            spellings[answer] = next(same, answer)
        return [None if answer is None else spellings[answer] for answer in answers]


def equality_of(task: Any) -> TaskEquality | None:
    """The equality of a task of lm-eval; None if its code has none."""
    function = task.get_config("process_results")
    return TaskEquality(function) if has_equality(function) else None


def has_equality(process_results: Any) -> bool:
    """Whether a task's ``process_results`` compares answers by an ``is_equiv`` of its own module."""
    if not isinstance(process_results, FunctionType) or EQUALITY not in process_results.__code__.co_names:
        return False
    return callable(process_results.__globals__.get(EQUALITY))


def _bounded(is_equiv: Callable[[str, str], bool]) -> Callable[[str, str], bool]:
    """The comparison within its time. One that fails or takes longer says that the answers differ.

    minerva_math sets an alarm of its own and switches it off, and with it every other alarm of the process. The limit
    here sets the outer alarm again.
    """

    def equal(first: str, second: str) -> bool:
        try:
            with time_limit(COMPARISON_SECONDS):
                return bool(is_equiv(first, second))
        except (Exception, SystemExit):
            return False

    return equal


def _present(answers: Iterable[str | None]) -> Iterable[str]:
    return (answer for answer in answers if answer is not None)

"""Answers inside texts: how a task's answer is found in one, and which of several drafts' answers a vote elects.

Plain functions on text and counts; knows nothing of traces, files or intervals. Called by ``votes``.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from operator import eq
from typing import Any

from lm_eval_aft import tasks_path
from lm_eval_aft.bundled import arith
from lm_eval_aft.core.errors import ConfigError

ARITH = ("aft_arith", "aft_arith_validation", "aft_arith_fresh")
NUMERIC = ("aft_gsm8k", "aft_demo", "gsm8k")  # tasks, and those whose names go on with _, that end in one number


@dataclass(frozen=True, slots=True)
class Extraction:
    """How an answer is read from a text, the gold answer from lm-eval's target, and whether the one is right.

    Attributes:
        name: For tables.
        answer: The answer in a text, in one spelling for equal answers; None where there is none.
        gold: The gold answer in a target.
        right: Whether an answer is right by the gold one; equality, but for tasks where many answers are.
    """

    name: str
    answer: Callable[[str], str | None]
    gold: Callable[[str], str | None]
    right: Callable[[str, str], bool] = eq

    def rights(self, answers: Iterable[str | None], gold: str) -> frozenset[str]:
        """The right ones among these answers."""
        return frozenset(answer for answer in set(answers) if answer is not None and self.right(answer, gold))


def has_extraction(task: str) -> bool:
    """Whether a task's answers can be found without a regex."""
    return task in ARITH or any(task == name or task.startswith(name + "_") for name in NUMERIC)


@lru_cache(maxsize=64)
def choose_extraction(task: str, regex: str | None = None) -> Extraction:
    """The extraction of a task, or one by regex: the first group (or all) of the last match.

    Raises:
        ConfigError: The task has none of its own and no regex is given, or that is not valid.
    """
    if regex is not None:
        return _by_regex(regex)
    if not has_extraction(task):
        raise ConfigError(f"{task} has no extraction of its own here: give --regex, whose last match is the answer.")
    if task in ARITH:
        return Extraction("the way written, in one spelling", arith.spelling, str.strip, arith.solves)
    path = tasks_path() / "aft_gsm8k" / "utils.py"
    spec = importlib.util.spec_from_file_location("lm_eval_aft_gsm8k_answers", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"{path} is missing: install lm_eval_aft again.")
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Extraction(
        "extract_flexible of aft_gsm8k",
        module.extract_flexible,
        lambda target: module.normalise(target.rsplit("####", 1)[-1]),
    )


def _by_regex(regex: str) -> Extraction:
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise ConfigError(f"the regex {regex!r} is not valid ({error}).") from error

    def answer(text: str) -> str | None:
        found = list(pattern.finditer(text))
        return (found[-1].group(1 if pattern.groups else 0) or "").strip() or None if found else None

    return Extraction(f"regex {regex}", answer, lambda target: answer(target) or target.strip())

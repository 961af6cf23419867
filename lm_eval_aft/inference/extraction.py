"""Answers inside texts: how a task's answer is found in one, and which of several drafts' answers a vote elects.

Plain functions on text and counts; knows nothing of traces, files or intervals. Called by ``votes``.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import comb
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


def score_drafts(answers: Sequence[str | None], rights: Set[str], n: int) -> tuple[float, float, float]:
    """Expected score of one draft, of the majority and of the oracle, over all choices of n of these drafts.

    Args:
        answers: One a draft; None where it holds none.
        rights: Those of them that are right; equal answers vote together, two different right ones apart.
        n: Drafts chosen.
    """
    votes = Counter(answers)
    silent = votes.pop(None, 0)
    right = sum(votes[answer] for answer in rights)
    missed = comb(len(answers) - right, n) / comb(len(answers), n)
    won = sum(
        majority_chance(count, tuple(sorted(c for other, c in votes.items() if other != answer)), silent, n)
        for answer, count in votes.items()
        if answer in rights
    )
    return right / len(answers), won, 1 - missed


@lru_cache(maxsize=1 << 16)
def majority_chance(right: int, others: tuple[int, ...], silent: int, n: int) -> float:
    """Chance that n drafts, chosen at random without replacement, elect the right answer.

    Exact: sums over the votes v that it gets the number of choices in which no other answer has more than v, each
    divided by 1 + the answers that also have v, since a tie is drawn by lot.

    Args:
        right: Drafts with the right answer.
        others: Drafts with each other answer.
        silent: Drafts without an answer, which do not vote; if none of the n votes, nothing is elected.
        n: Drafts chosen.
    """
    won = Fraction(0)
    for votes in range(1, min(right, n) + 1):
        for (taken, ties), ways in _ways(others, votes, n - votes).items():
            won += Fraction(comb(right, votes) * ways * comb(silent, n - votes - taken), ties + 1)
    return float(won / comb(right + sum(others) + silent, n))


def _ways(others: tuple[int, ...], most: int, size: int) -> Counter[tuple[int, int]]:
    """In how many ways up to ``size`` drafts of other answers can be chosen, none ``most`` times exceeded.

    Returns:
        Ways by (drafts chosen, answers chosen exactly ``most`` times).
    """
    table = Counter({(0, 0): 1})
    for count in others:
        longer: Counter[tuple[int, int]] = Counter()
        for (taken, ties), ways in table.items():
            for chosen in range(min(count, most, size - taken) + 1):
                longer[taken + chosen, ties + (chosen == most)] += ways * comb(count, chosen)
        table = longer
    return table

"""Exact expected scores of one draft, of the majority vote and of the oracle, over all choices of n drafts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from fractions import Fraction
from functools import lru_cache
from math import comb


def score_drafts(answers: Sequence[str | None], rights: Set[str], n: int) -> tuple[float, float, float]:
    """Expected score of one draft, of the majority vote and of the oracle, over all choices of n of these drafts.

    Args:
        answers: The answer in each draft; None if there is none.
        rights: The answers that are right. Equal answers vote together, two different right answers vote apart.
        n: Number of drafts that are chosen.
    """
    votes = Counter(answers)
    silent = votes.pop(None, 0)
    right = sum(votes[answer] for answer in rights)
    all_wrong = comb(len(answers) - right, n) / comb(len(answers), n)
    won = sum(
        majority_chance(count, tuple(sorted(c for other, c in votes.items() if other != answer)), silent, n)
        for answer, count in votes.items()
        if answer in rights
    )
    return right / len(answers), won, 1 - all_wrong


@lru_cache(maxsize=1 << 16)
def majority_chance(right: int, others: tuple[int, ...], silent: int, n: int) -> float:
    """Chance that the right answer wins the vote of n drafts, which are chosen at random without replacement.

    The chance is exact. For each number v of votes for the right answer, it counts the choices in which no other answer
    has more than v. Each choice is divided by 1 + the number of other answers with v votes, since lots decide a tie.

    Args:
        right: Drafts with the right answer.
        others: Drafts with each other answer.
        silent: Drafts without an answer, which do not vote. If none of the n drafts votes, no answer wins.
        n: Number of drafts that are chosen.
    """
    won = Fraction(0)
    for votes in range(1, min(right, n) + 1):
        for (taken, ties), ways in _ways(others, votes, n - votes).items():
            won += Fraction(comb(right, votes) * ways * comb(silent, n - votes - taken), ties + 1)
    return float(won / comb(right + sum(others) + silent, n))


def _ways(others: tuple[int, ...], most: int, size: int) -> Counter[tuple[int, int]]:
    """The number of ways to choose up to ``size`` drafts of other answers, at most ``most`` of each answer.

    Returns:
        Ways by (drafts chosen, answers of which exactly ``most`` drafts are chosen).
    """
    ways_so_far = Counter({(0, 0): 1})
    for count in others:
        extended: Counter[tuple[int, int]] = Counter()
        for (taken, ties), ways in ways_so_far.items():
            for chosen in range(min(count, most, size - taken) + 1):
                extended[taken + chosen, ties + (chosen == most)] += ways * comb(count, chosen)
        ways_so_far = extended
    return ways_so_far

"""Exact expected scores of one draft, of the majority vote and of the oracle, over all choices of n drafts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from fractions import Fraction
from functools import lru_cache
from math import comb


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

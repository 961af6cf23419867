"""Exact expected scores of one draft, of the majority vote and of the oracle, over all choices of n drafts.

Others call these scores avg@n, maj@n and pass@n. The last one is the unbiased estimator of Chen et al. 2021,
"Evaluating Large Language Models Trained on Code" (arXiv 2107.03374), section 2.1: 1 - C(k - c, n) / C(k, n) for c
right drafts of k.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import comb
from statistics import fmean


def score_texts(
    answers: Sequence[str | None] | None, values: Sequence[float], n: int
) -> tuple[float, float | None, float]:
    """Expected score of one draft, of the majority vote and of the oracle, over all choices of n of these drafts.

    Args:
        answers: The answer in each draft; None for a draft without one. Equal answers vote together, two different
            right answers vote apart. None if there is nothing to vote on, and then there is no majority.
        values: The score of each draft, in [0, 1].
        n: Number of drafts that are chosen.
    """
    return fmean(values), None if answers is None else _majority(answers, values, n), _oracle(values, n)


def _majority(answers: Sequence[str | None], values: Sequence[float], n: int) -> float:
    """Expected score of a draft with the most frequent answer. If no draft has an answer, the vote scores 0."""
    votes = Counter(answers)
    silent = votes.pop(None, 0)
    won = 0.0
    for answer, count in votes.items():
        score = fmean(value for other, value in zip(answers, values, strict=True) if other == answer)
        if score:
            others = tuple(sorted(other for name, other in votes.items() if name != answer))
            won += score * majority_chance(count, others, silent, n)
    return won


def _oracle(values: Sequence[float], n: int) -> float:
    """Expected highest score. The i-th lowest of k values is the highest of C(i-1, n-1) of the C(k, n) choices."""
    if set(values) <= {0.0, 1.0}:
        wrong = len(values) - int(sum(values))
        return 1 - comb(wrong, n) / comb(len(values), n)
    ways = comb(len(values), n)
    return sum(value * comb(place, n - 1) / ways for place, value in enumerate(sorted(values)))


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

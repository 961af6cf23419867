"""The majority vote over the answers of texts. Seeds decide ties, in a run and in every reader of its traces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol


class Seeded(Protocol):
    """A text, as far as ties are concerned."""

    @property
    def seed(self) -> int:
        """The seed of its generation."""


def best(scores: Sequence[float], drafts: Sequence[Seeded]) -> int:
    """The index of the highest score. Of equal scores the text with the lowest seed wins.

    Seeds are hashes, so that is a draw by lot which depends on no text's position. A run that is repeated draws the
    same.
    """
    return max(range(len(scores)), key=lambda index: (scores[index], -drafts[index].seed))


def votes_for(answers: Sequence[str | None], weights: Sequence[float] | None = None) -> tuple[float, ...]:
    """For each text, the votes for its answer. A text without an answer (None) has no vote.

    Args:
        answers: The answer in each text.
        weights: What the vote of each text counts; 1 if there are none.
    """
    given: dict[str | None, list[float]] = {None: []}
    for answer, weight in zip(answers, weights or [1.0] * len(answers), strict=True):
        if answer is not None:
            given.setdefault(answer, []).append(weight)
    # Unlike sum(), fsum() depends on no order.
    totals = {answer: math.fsum(parts) for answer, parts in given.items()}
    return tuple(totals[answer] for answer in answers)


def weights_of(numbers: Sequence[float | None]) -> list[float]:
    """What the vote of each text counts: exp(its confidence), divided by the highest of them.

    The division changes no order of answers. Without it, the probability of a long text would be 0 in floating point.

    Args:
        numbers: The confidence of each text, a mean or a sum of log-probabilities; None weighs 0.
    """
    highest = max((number for number in numbers if number is not None), default=0.0)
    return [0.0 if number is None else math.exp(number - highest) for number in numbers]

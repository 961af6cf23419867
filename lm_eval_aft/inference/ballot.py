"""The majority vote over the answers of texts. Seeds decide ties, in a run and in every reader of its traces."""

from __future__ import annotations

from collections import Counter
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


def votes_for(answers: Sequence[str | None]) -> tuple[float, ...]:
    """For each text, the number of texts with its answer. A text without an answer (None) has no vote."""
    counts = Counter(answers)
    return tuple(float(counts[answer]) if answer is not None else 0.0 for answer in answers)

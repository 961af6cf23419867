"""Counts questions whose sampled drafts are all equal, as they are if a server ignores the seed of a call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

from lm_eval_aft.core.records import Draft, Question

# A model may be certain of a shorter text, such as the letter of a choice.
MIN_TOKENS = 8
# Fewer questions may be equal by chance.
MIN_QUESTIONS = 3
# A server that ignores seeds gives equal drafts to every question.
WARNED_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class EqualDrafts:
    """Counts of questions; they add with ``+``.

    Attributes:
        questions: Number of questions with two or more seeded drafts of 8 tokens or more, at a temperature above 0.
        equal: Number of those whose drafts are all the same text.
    """

    questions: int = 0
    equal: int = 0

    def __add__(self, other: EqualDrafts) -> EqualDrafts:
        return EqualDrafts(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def sentence(self) -> str:
        """What is equal, without a full stop; "" if it is too little to blame the seeds."""
        if self.questions < MIN_QUESTIONS or self.equal < WARNED_SHARE * self.questions:
            return ""
        return (
            f"all drafts of a question are equal in {self.equal:,} of {self.questions:,} questions "
            f"({self.equal / self.questions:.1%}), although each has a seed of its own and the temperature is above 0"
        )


def equal_drafts(drafted: Iterable[tuple[Question, Sequence[Draft]]]) -> EqualDrafts:
    """Count the questions whose drafts are all equal.

    Args:
        drafted: Questions, each with its drafts.
    """
    return sum((_count(question, drafts) for question, drafts in drafted), EqualDrafts())


def _count(question: Question, drafts: Sequence[Draft]) -> EqualDrafts:
    drawn = question.drafts.seeded and question.drafts.temperature > 0
    long = all(draft.completion.generated_tokens >= MIN_TOKENS for draft in drafts)
    if not drawn or not long or len(drafts) < 2:
        return EqualDrafts()
    return EqualDrafts(1, len({draft.completion.text for draft in drafts}) == 1)

"""``stop_when``: a question gets no further drafts once its answers agree.

    agree:P     stop if the most frequent answer is ahead of the second one with probability P (Adaptive-Consistency,
                arXiv 2305.11860, section 3)
    window:W    stop if the last W drafts all have one answer (Early-Stopping Self-Consistency, arXiv 2401.10480)

A rule sees the answers in the order of the drafts. So the drafts that are kept are the first ones of a run without a
rule, and stored drafts show what a rule would have saved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import comb
from typing import Any, Literal

from lm_eval_aft.core.arguments import integer, real
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.secrets import public

Answers = Sequence[str | None]


@dataclass(frozen=True, slots=True)
class StopRule:
    """When a question has enough drafts.

    Attributes:
        kind: "agree" or "window".
        threshold: The probability of "agree", in (0.5, 1); the number of drafts of "window", at least 2.
    """

    kind: Literal["agree", "window"]
    threshold: float

    def __str__(self) -> str:
        """The rule as it is given."""
        return f"{self.kind}:{self.threshold}"

    def stops(self, answers: Answers) -> bool:
        """Whether a question with these answers needs no further draft. A draft without an answer (None) has no vote.

        Args:
            answers: The answers of the drafts so far, in their order.
        """
        if self.kind == "window":
            size = int(self.threshold)
            window = set(answers[-size:])
            return bool(answers) and len(answers) % size == 0 and len(window) == 1 and None not in window
        first, second = _two_largest(answers)
        return first > 0 and probability_ahead(first, second) >= self.threshold

    def fewest_more(self, answers: Answers, most: int) -> int:
        """The fewest further drafts after which the rule can stop; ``most`` if it takes more.

        So a round of that size generates no draft too many.
        """
        if self.kind == "window":
            return min(most, int(self.threshold) - len(answers) % int(self.threshold))
        first, second = _two_largest(answers)
        enough = (more for more in range(1, most) if probability_ahead(first + more, second) >= self.threshold)
        return next(enough, most)

    def kept(self, answers: Answers) -> int:
        """How many of these drafts a run with the rule would have generated."""
        counts = range(1, len(answers) + 1)
        return next((count for count in counts if self.stops(answers[:count])), len(answers))

    def rounds(self, answers: Answers) -> int:
        """In how many rounds a run with the rule would have generated those of these drafts that it keeps."""
        done = rounds = 0
        while done < len(answers) and not self.stops(answers[:done]):
            done += self.fewest_more(answers[:done], len(answers) - done)
            rounds += 1
        return rounds


def stop_rule(name: str, value: Any) -> StopRule:
    """Read a rule such as ``agree:0.95`` or ``window:4``.

    Args:
        name: Name of the argument, for messages.
        value: The rule.

    Raises:
        ConfigError: If it is neither.
    """
    kind, _, number = value.partition(":") if isinstance(value, str) else ("", "", "")
    with suppress(ConfigError):
        if kind == "agree" and (threshold := real(0.5, 1, above=True)(name, number)) < 1:
            return StopRule("agree", threshold)
        if kind == "window":
            return StopRule("window", integer(2)(name, number))
    raise ConfigError(
        f"{name}={public(name, value)} is not allowed: give agree:P with a probability P above 0.5 and below 1, or "
        "window:W with a number of drafts W of at least 2."
    )


def _two_largest(answers: Answers) -> tuple[int, int]:
    counts = [count for _, count in Counter(answer for answer in answers if answer is not None).most_common(2)]
    return counts[0] if counts else 0, counts[1] if len(counts) > 1 else 0


def probability_ahead(first: int, second: int) -> float:
    """The probability that an answer with ``first`` votes is more frequent than one with ``second`` votes.

    It is the posterior probability that p > 1/2, if p has a uniform prior and ``first`` of ``first + second`` drafts
    have the first answer: the upper half of Beta(first + 1, second + 1). For whole numbers that is a sum of binomials.
    """
    trials = first + second + 1
    ways = sum(comb(trials, wins) for wins in range(first + 1))
    return float(ways / 2**trials)

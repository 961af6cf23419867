"""Gap closed: how far a run gets from the majority vote of its drafts to their oracle."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from lm_eval_aft.analysis.stats import Interval, ratio_interval

# Least chance, as a share of all resamples, that a resample without a gap counts as possible: one of 20,000.
_SELDOM = 1 / 20_000


@dataclass(frozen=True, slots=True)
class Gap:
    """The gap between vote and oracle, and how much of it a run closes. All three are of the same drafts.

    Attributes:
        closed: (run - vote) / (oracle - vote), with its interval. It is 0 for a run as good as the vote and 1 for
            one as good as the oracle, and may be negative. None if the gap is too near to 0.
        size: Oracle minus vote, as a mean over questions.
        apart: Questions on which the oracle is better than the vote.
        questions: All questions.
    """

    closed: Interval | None
    size: float
    apart: int
    questions: int

    @property
    def sentence(self) -> str:
        """Why there is no ratio; "" if there is one."""
        if self.closed is not None:
            return ""
        return (
            f"The oracle is better than the vote on {self.apart:,} of {self.questions:,} questions. This gap is too "
            "near to 0 for a ratio, so no gap closed is shown."
        )


def gap_closed(
    runs: Sequence[float],
    votes: Sequence[float],
    oracles: Sequence[float],
    groups: Sequence[Hashable],
    level: float = 0.95,
) -> Gap:
    """How much of the gap between vote and oracle a run closes.

    The interval comes from resampled questions. Each is drawn with all of its scores, so that numerator and denominator
    change together. The ratio means nothing if a resample may hold no question with a gap. For m such questions of n,
    its chance is (1 - m/n)^n, and the limit is one of 20,000. So about ten of many questions need a gap.

    Args:
        runs: The run's score of each question, in [0, 1].
        votes: The score of the majority vote of its drafts.
        oracles: The score of the best of these drafts.
        groups: The question of each score. The repeats of a question are drawn together.
        level: Confidence in (0, 1).
    """
    gaps = [oracle - vote for oracle, vote in zip(oracles, votes, strict=True)]
    questions = set(groups)
    apart = {group for group, gap in zip(groups, gaps, strict=True) if gap > 1e-12}
    size = sum(gaps) / len(gaps)
    if (1 - len(apart) / len(questions)) ** len(questions) > _SELDOM:
        return Gap(None, size, len(apart), len(questions))
    gains = [run - vote for run, vote in zip(runs, votes, strict=True)]
    return Gap(ratio_interval(gains, gaps, groups=groups, level=level), size, len(apart), len(questions))

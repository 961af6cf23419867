"""MT-Bench's scores: the mean rating over all turns, of each turn and of each category, with their uncertainty.

A judgement without a rating is left out and counted. If there is one, the others are scored only if you allow it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from lm_eval_aft.core.errors import JudgeError
from lm_eval_aft.judging.mt_bench.data import CATEGORIES, QUESTION_COUNT
from lm_eval_aft.judging.mt_bench.prompts import FASTCHAT_PROMPTS
from lm_eval_aft.judging.mt_bench.replies import Judgement

PUBLIC_JUDGES = ("gpt-4", "gpt-4-0314", "gpt-4-0613")


class MissingRatings(JudgeError):
    """Judgements without a rating, although ``allow_missing`` is off.

    Attributes:
        missing: How many.
    """

    def __init__(self, message: str, missing: int) -> None:
        super().__init__(message)
        self.missing = missing


@dataclass(frozen=True, slots=True)
class MTBenchScores:
    """The scores of one model by one judge.

    Attributes:
        model: The model's name.
        judge: Name of the judge.
        prompts: Name of the set of judge prompts.
        mean: Mean rating over all turns.
        turns: Mean rating of each turn.
        categories: Mean rating of each category with a rating.
        stderr: Standard error of ``mean`` over questions; None for a single question.
        spread: Standard deviation of the mean over repeats; None without repeats.
        repeats: How often each turn was judged.
        questions: Number of questions.
        ratings: Number of ratings.
        missing: Number of judgements without a rating.
    """

    model: str
    judge: str
    prompts: str
    mean: float
    turns: tuple[float, ...]
    categories: Mapping[str, float]
    stderr: float | None
    spread: float | None
    repeats: int
    questions: int
    ratings: int
    missing: int

    def metrics(self) -> dict[str, float]:
        """The scores by name. The set of judge prompts is part of each name."""
        named = {"score": self.mean}
        named |= {f"turn_{number}": mean for number, mean in enumerate(self.turns, 1)}
        named |= dict(self.categories)
        if self.spread is not None:
            named["spread"] = self.spread
        return {f"{self.prompts}_{name}": value for name, value in named.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the scores file."""
        return asdict(self)

    @property
    def caveat(self) -> str:
        """Why the scores are not comparable with published ones, as one sentence; empty if they are."""
        if self.prompts != FASTCHAT_PROMPTS:
            return "Not comparable with published scores: those were made with FastChat's prompts and references."
        return "" if self.judge in PUBLIC_JUDGES else "Published scores were judged by gpt-4."

    @property
    def coverage(self) -> str:
        """How much was judged, as one sentence."""
        part = f"All {QUESTION_COUNT}" if self.questions == QUESTION_COUNT else f"{self.questions} of {QUESTION_COUNT}"
        return f"{part} questions, {self.ratings} ratings, {self.missing} judgements missing and left out."

    def describe(self) -> str:
        """The scores as a paragraph, for the log of a run."""
        means = {f"turn {number}": mean for number, mean in enumerate(self.turns, 1)} | dict(self.categories)
        numbers = [f"mean {self.mean:.3f}", *(f"{name} {mean:.3f}" for name, mean in means.items())]
        if self.stderr is not None:
            numbers.append(f"standard error of the mean over questions {self.stderr:.3f}")
        if self.spread is not None:
            numbers.append(f"standard deviation of the mean over {self.repeats} repeats {self.spread:.3f}")
        head = f"MT-Bench: {self.model}, judged by {self.judge} with the prompts {self.prompts}"
        return " ".join(filter(None, [f"{head}: {', '.join(numbers)}.", self.coverage, self.caveat]))


def score_judgements(
    judgements: Sequence[Judgement], categories: Mapping[int, str], allow_missing: bool = False
) -> MTBenchScores:
    """The scores of one model's judgements, all by one judge with one set of prompts.

    Args:
        judgements: All judgements, with and without a rating.
        categories: The category of each question. A question without one still counts in the means.
        allow_missing: Whether to score even if ratings are missing.

    Raises:
        MissingRatings: If ratings are missing and that is not allowed, or there is none.
    """
    rated = [j for j in judgements if j.score is not None]
    missing = [j for j in judgements if j.score is None]
    if not rated or (missing and not allow_missing):
        raise _missing_ratings(judgements, missing)
    by_question = [_mean(rated, question_id=number) for number in sorted({j.question_id for j in rated})]
    repeats = sorted({j.repeat for j in judgements})
    spread = stdev(_mean(rated, repeat=repeat) for repeat in repeats) if len(repeats) > 1 else None
    rated_categories = {categories.get(j.question_id) for j in rated}
    return MTBenchScores(
        model=judgements[0].model,
        judge=judgements[0].judge,
        prompts=judgements[0].prompts,
        mean=_mean(rated),
        turns=tuple(_mean(rated, turn=turn) for turn in sorted({j.turn for j in rated})),
        categories={
            name: fmean(j.score or 0.0 for j in rated if categories.get(j.question_id) == name)
            for name in CATEGORIES
            if name in rated_categories
        },
        stderr=stdev(by_question) / len(by_question) ** 0.5 if len(by_question) > 1 else None,
        spread=spread,
        repeats=len(repeats),
        questions=len({j.question_id for j in judgements}),
        ratings=len(rated),
        missing=len(missing),
    )


def _missing_ratings(judgements: Sequence[Judgement], missing: Sequence[Judgement]) -> MissingRatings:
    examples = ", ".join(f"question {j.question_id} turn {j.turn}" for j in missing[:3])
    others = " and others" if len(missing) > 3 else ""
    return MissingRatings(
        f"{len(missing)} of {len(judgements)} judgements of {judgements[0].model} hold no rating ({examples}{others}), "
        "so there is no score: take a judge that keeps to the form, or give --allow-missing to score the others.",
        len(missing),
    )


def _mean(judgements: Iterable[Judgement], **where: int) -> float:
    """Mean rating of the judgements whose fields have the values in ``where``; nan if there is none."""
    values = [
        j.score
        for j in judgements
        if j.score is not None and all(getattr(j, name) == value for name, value in where.items())
    ]
    return fmean(values) if values else float("nan")

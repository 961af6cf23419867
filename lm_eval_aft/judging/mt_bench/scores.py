"""Ratings of MT-Bench as numbers: flat means over turns, a turn, a category; their error and their spread.

A judgement that is no rating is left out and counted, and no headline is made of what is left unless that is asked for.
Knows nothing of servers. Called by ``mt_bench_judge``, ``mt_bench_cli`` and the task aft_mt_bench.
Over 200 lines because each number says what it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lm_eval_aft.core.errors import JudgeError, RecordError
from lm_eval_aft.core.jsonl import read_jsonl
from lm_eval_aft.judging.mt_bench.data import CATEGORIES, WHOLE
from lm_eval_aft.judging.mt_bench.prompts import FASTCHAT, NAMES

RATING, SINGLE = re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]")
LOWEST, HIGHEST = 1.0, 10.0
PUBLIC_JUDGES = ("gpt-4", "gpt-4-0314", "gpt-4-0613")
NO_RATING = -1  # FastChat's mark of a judgement without one


class MissingRatings(JudgeError):
    """Judgements without a rating where each is wanted."""

    def __init__(self, message: str, missing: int) -> None:
        super().__init__(message)
        self.missing = missing


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge said about one turn.

    Attributes:
        question_id: Which question.
        model: Whose answer.
        judge: Who judged.
        prompts: Name of the set of judge prompts.
        template: Name of the prompt of them.
        turn: From 1.
        repeat: Which of the repeats, from 0.
        prompt: What the judge was asked.
        text: What it said.
        score: Its rating; None where there is none.
    """

    question_id: int
    model: str
    judge: str
    prompts: str
    template: str
    turn: int
    repeat: int
    prompt: str
    text: str
    score: float | None

    def row(self, now: float) -> dict[str, Any]:
        """A line of FastChat's model_judgment file."""
        return {
            "question_id": self.question_id,
            "model": self.model,
            "judge": [self.judge, self.template],
            "user_prompt": self.prompt,
            "judgment": self.text,
            "score": NO_RATING if self.score is None else self.score,
            "turn": self.turn,
            "repeat": self.repeat,
            "prompts": self.prompts,
            "tstamp": now,
        }


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one model.

    Attributes:
        model: Its name.
        judge: Who judged.
        prompts: Name of the set of judge prompts.
        mean: Flat mean over all turns.
        turns: Mean of each turn, the first first.
        categories: Mean of each category that was asked.
        stderr: Standard error of the mean over questions; None for a single one.
        spread: Standard deviation of the mean from repeat to repeat; None without repeats.
        repeats: How often each turn was judged.
        questions: How many were judged.
        ratings: How many ratings there are.
        missing: How many judgements hold none.
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
        """The scores by name; the set of judge prompts is part of each name."""
        named = {"score": self.mean}
        named |= {f"turn_{number}": mean for number, mean in enumerate(self.turns, 1)}
        named |= dict(self.categories)
        if self.spread is not None:
            named["spread"] = self.spread
        return {f"{self.prompts}_{name}": value for name, value in named.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the results file."""
        return asdict(self)


def rating(text: str) -> float | None:
    """The rating in a judge's words: the first [[x]], else the first [x]; None where that is not from 1 to 10."""
    found = RATING.search(text) or SINGLE.search(text)
    value = float(found[1]) if found else 0.0
    return value if LOWEST <= value <= HIGHEST else None


def score(judgements: Sequence[Judgement], categories: Mapping[int, str], allow_missing: bool = False) -> Scores:
    """The scores of one model's judgements, all by one judge with one set of prompts.

    Args:
        judgements: All of them, those without a rating too.
        categories: By question; those that are not there count in the means all the same.
        allow_missing: Score although ratings are missing.

    Raises:
        MissingRatings: If ratings are missing and that is not allowed, or there is none.
    """
    rated = [j for j in judgements if j.score is not None]
    missing = [j for j in judgements if j.score is None]
    if not rated or (missing and not allow_missing):
        where = ", ".join(f"question {j.question_id} turn {j.turn}" for j in missing[:3])
        raise MissingRatings(
            f"{len(missing)} of {len(judgements)} judgements of {judgements[0].model} hold no rating ({where}"
            f"{' and others' if len(missing) > 3 else ''}), so there is no score: take a judge that keeps to the form, "
            "or give --allow-missing to score the others.",
            len(missing),
        )
    by_question = [_mean(rated, question_id=number) for number in sorted({j.question_id for j in rated})]
    repeats = sorted({j.repeat for j in judgements})
    spread = stdev(_mean(rated, repeat=repeat) for repeat in repeats) if len(repeats) > 1 else None
    asked = {categories.get(j.question_id) for j in rated}
    return Scores(
        model=judgements[0].model,
        judge=judgements[0].judge,
        prompts=judgements[0].prompts,
        mean=_mean(rated),
        turns=tuple(_mean(rated, turn=turn) for turn in sorted({j.turn for j in rated})),
        categories={
            name: fmean(j.score or 0.0 for j in rated if categories.get(j.question_id) == name)
            for name in CATEGORIES
            if name in asked
        },
        stderr=stdev(by_question) / len(by_question) ** 0.5 if len(by_question) > 1 else None,
        spread=spread,
        repeats=len(repeats),
        questions=len({j.question_id for j in judgements}),
        ratings=len(rated),
        missing=len(missing),
    )


def read_judgements(file: Path) -> list[list[Judgement]]:
    """A model_judgment file of single-answer grading, FastChat's or ours; one list for each model, judge and prompts.

    Raises:
        RecordError: If it is none.
    """
    found: dict[tuple[str, str, str], list[Judgement]] = {}
    for number, row in enumerate(read_jsonl(file), 1):
        try:
            judge, template = row["judge"]
            stated = float(row["score"])
            one = Judgement(
                int(row["question_id"]),
                str(row["model"]),
                str(judge),
                str(row.get("prompts") or _set_of(str(template))),
                str(template),
                int(row["turn"]),
                int(row.get("repeat", 0)),
                str(row.get("user_prompt", "")),
                str(row["judgment"]),
                None if stated == NO_RATING else stated,
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RecordError(
                f"line {number} of {file} is no single-answer judgement ({type(error).__name__}: {error}): give a file "
                "of FastChat's model_judgment, or of aft judge mt_bench."
            ) from error
        found.setdefault((one.model, one.judge, one.prompts), []).append(one)
    return list(found.values())


def show(scores: Scores) -> str:
    """The scores as a few lines for the terminal."""
    note = "; not comparable with published scores" if scores.prompts != FASTCHAT else ""
    if scores.prompts == FASTCHAT and scores.judge not in PUBLIC_JUDGES:
        note = "; published scores were judged by gpt-4"
    lines = [f"MT-Bench: {scores.model}, judged by {scores.judge} with the prompts {scores.prompts}{note}"]
    error = "" if scores.stderr is None else f" (standard error over questions {scores.stderr:.2f})"
    lines.append(f"  {'mean':<12}{scores.mean:7.3f}{error}")
    lines += [f"  {f'turn {number}':<12}{mean:7.3f}" for number, mean in enumerate(scores.turns, 1)]
    lines += [f"  {name:<12}{mean:7.3f}" for name, mean in scores.categories.items()]
    if scores.spread is not None:
        lines.append(
            f"  {'spread':<12}{scores.spread:7.3f} (standard deviation of the mean over {scores.repeats} repeats)"
        )
    part = f"{scores.questions} of {WHOLE} questions" if scores.questions != WHOLE else f"all {WHOLE} questions"
    lines.append(f"  {part}, {scores.ratings} ratings, {scores.missing} judgements missing and left out")
    return "\n".join(lines)


def _mean(judgements: Iterable[Judgement], **where: int) -> float:
    """Mean rating of those that agree with the fields given; nan where there is none."""
    values = [
        j.score
        for j in judgements
        if j.score is not None and all(getattr(j, name) == value for name, value in where.items())
    ]
    return fmean(values) if values else float("nan")


def _set_of(template: str) -> str:
    """The set of a template in a file that names no set: FastChat's own files do not."""
    return FASTCHAT if template in NAMES.values() else template

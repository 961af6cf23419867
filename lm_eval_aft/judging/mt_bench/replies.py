"""A judge's reply as a rating, and judgements in FastChat's model_judgment format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.jsonl import read_jsonl
from lm_eval_aft.core.thinking import without_thoughts
from lm_eval_aft.judging.mt_bench.prompts import FASTCHAT_PROMPTS, TEMPLATE_NAMES

LOWEST, HIGHEST = 1.0, 10.0
# FastChat's score of a judgement without a rating
NO_RATING = -1
_DOUBLE_BRACKET, _BRACKET = re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]")


@dataclass(frozen=True, slots=True)
class Judgement:
    """The judge's reply about one turn of one answer.

    Attributes:
        question_id: Number of the question.
        model: The model that answered.
        judge: Name of the judge.
        prompts: Name of the set of judge prompts.
        template: Name of the prompt in this set.
        turn: From 1.
        repeat: Number of the repeat, from 0.
        prompt: The user turn of the judge prompt.
        text: The reply.
        score: Its rating; None if it holds none.
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


def parse_rating(text: str, opened: str = "") -> float | None:
    """The rating in a reply: the first [[x]], else the first [x]; None unless it is from 1 to 10.

    A rating in the judge's thought does not count.

    Args:
        text: The reply.
        opened: The mark of a thought in which the reply begins; "" if it begins in none.
    """
    text = without_thoughts(text, opened)
    match = _DOUBLE_BRACKET.search(text) or _BRACKET.search(text)
    value = float(match[1]) if match else 0.0
    return value if LOWEST <= value <= HIGHEST else None


def read_judgements(file: Path) -> list[list[Judgement]]:
    """A model_judgment file of single-answer grading, FastChat's or ours.

    Returns:
        A list for each model, judge and set of judge prompts.

    Raises:
        RecordError: If the file is of another kind.
    """
    groups: dict[tuple[str, str, str], list[Judgement]] = {}
    for number, row in enumerate(read_jsonl(file), 1):
        try:
            judgement = _judgement(row)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RecordError(
                f"line {number} of {file} is not a single-answer judgement ({type(error).__name__}: {error}): give a "
                "file of FastChat's model_judgment, or of aft judge mt_bench."
            ) from error
        groups.setdefault((judgement.model, judgement.judge, judgement.prompts), []).append(judgement)
    return list(groups.values())


def _judgement(row: Mapping[str, Any]) -> Judgement:
    judge, template = row["judge"]
    score = float(row["score"])
    return Judgement(
        question_id=int(row["question_id"]),
        model=str(row["model"]),
        judge=str(judge),
        prompts=str(row.get("prompts") or _set_of(str(template))),
        template=str(template),
        turn=int(row["turn"]),
        repeat=int(row.get("repeat", 0)),
        prompt=str(row.get("user_prompt", "")),
        text=str(row["judgment"]),
        # FastChat writes NO_RATING. A number that no rating can be, such as NaN or 95, is none either.
        score=score if LOWEST <= score <= HIGHEST else None,
    )


def _set_of(template: str) -> str:
    """The set of a template. FastChat's own files name templates and no sets."""
    return FASTCHAT_PROMPTS if template in TEMPLATE_NAMES.values() else template

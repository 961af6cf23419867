"""The prompt, the gold answer and the two filters of ``aft_gsm8k``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lm_eval_aft.core.thinking import without_thoughts
from lm_eval_aft.inference.extraction import extract_flexible, extract_strict, normalise

INVALID = "[invalid]"
QUESTION = (
    "{question}\n\nReason step by step. On the last line write your result in this form, with a number alone in the "
    "place of N:\nThe answer is N."
)


def doc_to_text(doc: dict[str, Any]) -> str:
    """The user turn: the question and the form of the answer."""
    return QUESTION.format(question=doc["question"].strip())


def doc_to_target(doc: dict[str, Any]) -> str:
    """The gold number, in the spelling of ``normalise``."""
    return normalise(doc["answer"].rsplit("####", 1)[-1]) or INVALID


def worked_solution(doc: dict[str, Any]) -> str:
    """The answer of a few-shot example: the solution without calculator notes, in the form that the prompt names."""
    steps = re.sub(r"<<[^<>]*>>", "", doc["answer"].rsplit("####", 1)[0]).strip()
    return f"{steps}\nThe answer is {doc_to_target(doc)}."


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 if the extracted number is the gold number, 0 otherwise."""
    # The metric of lm-eval 0.5 compares the text with a whole number, and finds every text wrong.
    return {"exact_match": float(results[0] == doc_to_target(doc))}


def strict(resps: Iterable[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """lm-eval filter: ``extract_strict`` of each response."""
    return _filter(extract_strict, resps)


def flexible(resps: Iterable[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """lm-eval filter: ``extract_flexible`` of each response."""
    return _filter(extract_flexible, resps)


def _filter(extract: Callable[[str], str | None], resps: Iterable[Sequence[str]]) -> list[list[str]]:
    # Other models of lm-eval than --model aft return an answer with its thought.
    return [[extract(without_thoughts(text)) or INVALID for text in responses] for responses in resps]

"""Traces made of plain texts or plain numbers."""

from __future__ import annotations

from dataclasses import replace

from lm_eval_aft.core.records import Chat, Completion, Draft, Grade, Message, Question, Sampling, Trace
from lm_eval_aft.core.usage import Usage

SETTINGS = {"k": 1, "layers": 0, "model": "m"}
PLAIN = Sampling(0.7, 0.95, 0, 64)


def trace_of_tokens(
    doc_id: int = 0, max_tokens: int = 64, temperature: float = 0.7, turn: int = 0, tokens: int = 8
) -> Trace:
    """The trace of a single answer of this many generated tokens."""
    drafts, final = Sampling(0.7, 0.95, 0, max_tokens), Sampling(temperature, 0.95, 0, max_tokens)
    chat = Chat((Message("user", f"q{doc_id}"),))
    question = Question(chat, drafts, final, "t", doc_id, f"h{doc_id}", turn=turn)
    draft = Draft(0, 0, 0, Completion("is 7", (), "stop", 5, 5, tokens), False, 0.0)
    return Trace(question, (draft,), (), "is 7", Usage(1, 5, 5, tokens), Usage(), SETTINGS)


def trace_of_texts(
    *layers: list[str], doc: int = 0, task: str = "gsm8k", cut: bool = False, **settings: object
) -> Trace:
    """A trace of these texts, layer by layer. A text has as many tokens as words."""
    question = Question(Chat((Message("user", f"q{doc}"),)), PLAIN, PLAIN, task, doc, f"h{doc}")
    drafts = tuple(
        Draft(layer, i, i, Completion(text, (), "length" if cut else "stop", 5, 5, len(text.split())), False, 0.0)
        for layer, texts in enumerate(layers)
        for i, text in enumerate(texts)
    )
    values = {"k": len(layers[0]), "layers": len(layers) - 1, "model": "some/model", **settings}
    return Trace(question, drafts, (), layers[-1][-1], Usage(), Usage(), values)


def with_grades(trace: Trace, metric: str, values: list[float], answers: list[str | None] | None = None) -> Trace:
    """The trace with one grade a text, under the filter flexible-extract, which extracts if there are answers."""
    found = answers or [None] * len(values)
    grades = tuple(
        (Grade("flexible-extract" if answers else "none", {metric: value}, answer, answers is not None),)
        for value, answer in zip(values, found, strict=True)
    )
    return replace(trace, grades=grades)

"""Traces made of plain texts or plain numbers."""

from __future__ import annotations

from lm_eval_aft.core.records import Chat, Completion, Draft, Message, Question, Sampling, Trace
from lm_eval_aft.core.usage import Usage

SETTINGS = {"k": 1, "layers": 0, "model": "m"}


def trace_of_tokens(
    doc_id: int = 0, bound: int = 64, temperature: float = 0.7, turn: int = 0, tokens: int = 8
) -> Trace:
    drafts, final = Sampling(0.7, 0.95, 0, bound), Sampling(temperature, 0.95, 0, bound)
    asked = Question(Chat((Message("user", f"q{doc_id}"),)), drafts, final, "t", doc_id, f"h{doc_id}", turn=turn)
    text = Completion("is 7", (), "stop", 5, 5, tokens)
    return Trace(asked, (Draft(0, 0, 0, text, False, 0.0),), (), "is 7", Usage(1, 5, 5, tokens), Usage(), SETTINGS)


PLAIN = Sampling(0.7, 0.95, 0, 64)


def trace_of_texts(
    *layers: list[str], doc: int = 0, task: str = "gsm8k", cut: bool = False, **settings: object
) -> Trace:
    """A trace of these texts, layer by layer. A text has as many tokens as words."""
    asked = Question(Chat((Message("user", f"q{doc}"),)), PLAIN, PLAIN, task, doc, f"h{doc}")
    drafts = tuple(
        Draft(layer, i, i, Completion(text, (), "length" if cut else "stop", 5, 5, len(text.split())), False, 0.0)
        for layer, texts in enumerate(layers)
        for i, text in enumerate(texts)
    )
    made = {"k": len(layers[0]), "layers": len(layers) - 1, "model": "some/model", **settings}
    return Trace(asked, drafts, (), layers[-1][-1], Usage(), Usage(), made)

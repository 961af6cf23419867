"""Questions, and runs of them with the scripted engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Chat, Completion, Draft, Message, Question, Request, Sampling, Trace
from lm_eval_aft.engines.scripted import ScriptedEngine, numbered_answer
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.storage.draft_store import NoStore

SAMPLED, GREEDY = Sampling(0.7, 0.95, 0, 64), Sampling(0.0, 1.0, 0, 64)


TEMPLATE = Template.load(None)


def make_question(text: str, *, repeat: int = 0, final: Sampling = SAMPLED, doc_id: int = 0) -> Question:
    return Question(Chat((Message("user", text),)), SAMPLED, final, "t", doc_id, "h", repeat)


def make_drafts(*texts: str, seeds: Sequence[int] = ()) -> list[Draft]:
    """Drafts of these texts, with rising seeds if none are given."""
    return [
        Draft(0, index, seeds[index] if seeds else index, Completion(text, (), "stop", 1, 1, 1), False, 0.0)
        for index, text in enumerate(texts)
    ]


class Recorder(ScriptedEngine):
    """A scripted engine that records its requests, one list a layer."""

    def __init__(self, script: Callable[[Request], str] = numbered_answer, max_length: int = 8192) -> None:
        super().__init__(script, max_length)
        self.layers: list[list[Request]] = []

    def generate(self, requests):
        self.layers.append(list(requests))
        return super().generate(requests)


def run(questions, k=3, layers=2, engine=None, store=None, **settings) -> list[Trace]:
    config = AFTConfig(k=k, layers=layers, **settings)
    return propose_and_aggregate(questions, engine or Recorder(), TEMPLATE, config, store or NoStore(), quiet=True)

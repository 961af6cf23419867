"""Rows, chats and encoders for tests of what is trained."""

from __future__ import annotations

from helpers.tiny_models import CHATML, tiny_tokenizer
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Chat, Message
from trainers.fitting.examples import Encoder
from trainers.rows.row import TrainingRow
from trainers.settings import TrainConfig

CONFIG = TrainConfig(model="m", data="d", output="o")


def row(number: int = 0, **changes) -> TrainingRow:
    fields = {
        "query": f"What is {number} + 1?",
        "drafts": [f"draft {number} {letter}" for letter in "abcde"],
        "target": f"It is {number + 1}, all told.",
        "sft_target": f"{number + 1}",
    }
    return TrainingRow.of({**fields, **changes}, f"d row {number}")


def ask(text: str) -> Chat:
    return Chat((Message("user", text),))


def make_encoder(
    max_length: int = 2048, chat_template: str | None = CHATML, template: Template | None = None
) -> Encoder:
    return Encoder(tiny_tokenizer(chat_template), template or Template.load(None), max_length)

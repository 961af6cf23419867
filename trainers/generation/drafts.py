"""On-policy drafts: n samples a query, from the model that will aggregate or any other.

Knows nothing of files. Called by ``aft data drafts``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from lm_eval_aft.core.errors import ConfigError, PromptTooLong
from lm_eval_aft.core.prompts import draft_prompt
from lm_eval_aft.core.records import Chat, Message, Request
from trainers.generation.generator import TextGenerator
from trainers.rows.row import ALIGNED, naming, query_chat, visible


def keep_drafts(row: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """A row with some of its drafts, in the order given, and what is known of them."""
    lists = {name: [row[name][i] for i in kept] for name in ALIGNED if row.get(name)}
    if row.get("sources"):
        lists["sources"] = [list(kept).index(source) for source in row["sources"] if source in kept]
    return {**row, **lists}


def demonstrations(rows: Sequence[Mapping[str, Any]], ask: str | None) -> tuple[Message, ...]:
    """Solved examples as turns before the query.

    Args:
        rows: With ``query`` and ``target`` (or ``response``).
        ask: How a query is put, with {query} in it; None leaves it as it is.
    """
    turns: list[Message] = []
    for number, row in enumerate(rows, 1):
        answer = row.get("target") or row.get("response")
        if not isinstance(answer, str):
            raise ConfigError(f"demonstration {number} has no target: give rows with query and target.")
        turns += [*_asked(query_chat(row, f"demonstration {number}"), ask).messages, Message("assistant", answer)]
    return tuple(turns)


def _asked(chat: Chat, ask: str | None) -> Chat:
    if ask is None:
        return chat
    last = chat.messages[-1]
    return replace(chat, messages=(*chat.messages[:-1], Message(last.role, ask.replace("{query}", last.content))))


def sample_drafts(
    rows: Sequence[Mapping[str, Any]], writer: TextGenerator, n: int, shots: Sequence[Message], ask: str | None
) -> list[dict[str, Any]]:
    """The rows with n drafts each, or none where the query does not fit; ``ends`` says how each ended.

    Raises:
        PromptTooLong: If no query fits beside the tokens to generate.
        ChatError: If the model's chat template refuses a query.
    """
    requests: list[Request] = []
    counts, too_long = [], None
    for number, row in enumerate(rows, 1):
        chat = _asked(query_chat(row, f"row {number}"), ask)
        head = [message for message in chat.messages[:1] if message.role == "system"]
        chat = Chat((*head, *shots, *chat.messages[len(head) :]))
        own: list[Request] = []
        try:
            with naming(f"row {number}"):
                prompt = draft_prompt(writer.template, writer.engine.renderer, chat, writer.budget).prompt
            own = [writer.request(prompt, chat, 0, index) for index in range(n)]
        except PromptTooLong as error:
            too_long = error
        requests += own
        counts.append(len(own))
    if too_long and not requests:
        raise too_long
    written = iter(writer.write(requests, "drafts"))
    made = []
    for row, count in zip(rows, counts, strict=True):
        texts = list(islice(written, count))
        rest = {name: value for name, value in row.items() if name not in (*ALIGNED, "sources")}
        made.append({**rest, "drafts": [c.text.strip() for c in texts], "ends": [c.finish_reason for c in texts]})
    return made


def whole_only(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows without drafts that are empty or were cut."""
    return [
        keep_drafts(row, [i for i, end in enumerate(row["ends"]) if end == "stop" and visible(row["drafts"][i])])
        for row in rows
    ]

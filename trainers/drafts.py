"""On-policy drafts: n samples a query, from the model that will aggregate or any other.

Knows nothing of files. Called by ``aft data drafts``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lm_eval_aft.errors import ConfigError
from lm_eval_aft.prompts import draft_prompt
from lm_eval_aft.records import Chat, Message
from trainers.rows import query_chat
from trainers.writer import Writer

ALIGNED = ("drafts", "ends", "scores", "right", "models")  # lists with one entry a draft


def keep_drafts(row: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """A row with some of its drafts, in the order given, and what is known of them."""
    lists = {name: [row[name][i] for i in kept] for name in ALIGNED if name in row}
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
    rows: Sequence[Mapping[str, Any]], writer: Writer, n: int, shots: Sequence[Message], ask: str | None
) -> list[dict[str, Any]]:
    """The rows with n drafts each; ``ends`` says how each ended, "length" being cut.

    Raises:
        PromptTooLong: If a query does not fit beside the tokens to generate.
    """
    budget = writer.engine.max_length - writer.sampling.max_tokens
    requests = []
    for number, row in enumerate(rows, 1):
        chat = _asked(query_chat(row, f"row {number}"), ask)
        head = [message for message in chat.messages[:1] if message.role == "system"]
        chat = Chat((*head, *shots, *chat.messages[len(head) :]))
        prompt = draft_prompt(writer.template, writer.engine.renderer, chat, budget).prompt
        requests += [writer.request(prompt, chat, 0, index) for index in range(n)]
    written = writer.write(requests, "drafts")
    made = []
    for number, row in enumerate(rows):
        own = written[number * n : (number + 1) * n]
        rest = {name: value for name, value in row.items() if name not in ALIGNED}
        made.append({**rest, "drafts": [c.text.strip() for c in own], "ends": [c.finish_reason for c in own]})
    return made


def whole_only(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows without drafts that are empty or were cut."""
    return [
        keep_drafts(row, [i for i, end in enumerate(row["ends"]) if end == "stop" and row["drafts"][i].strip()])
        for row in rows
    ]

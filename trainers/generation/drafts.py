"""On-policy drafts: n samples a query, from the model that will aggregate them or from any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from lm_eval_aft.core.arguments import refuse_count
from lm_eval_aft.core.chat import whole_characters
from lm_eval_aft.core.errors import ConfigError, PromptTooLong
from lm_eval_aft.core.jsonl import read_jsonl
from lm_eval_aft.core.prompts import draft_prompt
from lm_eval_aft.core.records import Chat, Message, Request
from trainers.generation.generator import DRAFT_SAMPLING, MAX_TEXTS, GeneratorOptions, TextGenerator
from trainers.rows.result import DataResult
from trainers.rows.row import (
    ALIGNED_KEYS,
    DataRow,
    keep_drafts,
    query_chat,
    read_rows,
    shown_text,
    template_errors_name,
)


def sample_drafts(
    source: Path,
    model: GeneratorOptions,
    *,
    count: int = 8,
    demonstrations: Path | None = None,
    ask: str | None = None,
    whole: bool = False,
) -> DataResult:
    """Sample drafts for each query, with ``DRAFT_SAMPLING`` unless the model's arguments say otherwise.

    A row's ``ends`` hold the finish reason of each draft. A query that does not fit gets no drafts. The options are
    those of ``aft data drafts``.

    Raises:
        ConfigError: If a row or an option is wrong.
        PromptTooLong: If no query fits beside the tokens to generate.
        ChatError: If the model's chat template refuses a query.
    """
    rows = read_rows(source)
    shots = _demonstrations(read_jsonl(demonstrations, strict=True) if demonstrations else [], ask)
    if ask and "{query}" not in ask:
        raise ConfigError(f"--ask {ask!r} must hold {{query}}.")
    if ask and whole_characters(ask) != ask:
        raise ConfigError(f"--ask {ask!r} is not UTF-8: write it again.")
    refuse_count(
        len(rows) * count, MAX_TEXTS, f"-n {count} of {len(rows):,} queries would be {{}} generations", "lower it"
    )
    generator = model.open(DRAFT_SAMPLING)
    drafted = _sample(rows, generator, count, shots, ask)
    cut = sum(end == "length" for row in drafted for end in row["ends"])
    empty = sum(not shown_text(draft) for row in drafted for draft in row["drafts"])
    too_long = sum(not row["drafts"] for row in drafted)
    drafted = [_whole_only(row) for row in drafted] if whole else drafted
    facts = [
        f"{count} drafts for each of {len(rows) - too_long} queries; cut at the token limit {cut}, empty {empty}, "
        f"queries that did not fit {too_long}"
    ]
    if without := sum(not row["drafts"] for row in drafted) - too_long:
        facts.append(f"warning: {without} of {len(drafted)} queries have no whole draft: raise max_gen_toks")
    settings = {"n": count, "ask": ask, "whole": whole, "writer": generator.facts()}
    return DataResult(drafted, facts, settings, [source, *([demonstrations] if demonstrations else [])])


def _demonstrations(rows: Sequence[DataRow], ask: str | None) -> tuple[Message, ...]:
    """Solved examples as turns."""
    turns: list[Message] = []
    for number, row in enumerate(rows, 1):
        answer = row.get("target") or row.get("response")
        if not isinstance(answer, str):
            raise ConfigError(f"demonstration {number} has no target: give rows with query and target.")
        chat = _phrased(query_chat(row, f"demonstration {number}"), ask)
        turns += [*chat.messages, Message("assistant", shown_text(answer))]
    return tuple(turns)


def _phrased(chat: Chat, ask: str | None) -> Chat:
    if ask is None:
        return chat
    last = chat.messages[-1]
    return replace(chat, messages=(*chat.messages[:-1], Message(last.role, ask.replace("{query}", last.content))))


def _sample(
    rows: Sequence[DataRow], generator: TextGenerator, count: int, shots: Sequence[Message], ask: str | None
) -> list[dict[str, Any]]:
    requests: list[Request] = []
    counts, too_long = [], None
    for number, row in enumerate(rows, 1):
        chat = _phrased(query_chat(row, f"row {number}"), ask)
        system = [message for message in chat.messages[:1] if message.role == "system"]
        chat = Chat((*system, *shots, *chat.messages[len(system) :]))
        row_requests: list[Request] = []
        try:
            with template_errors_name(f"row {number}"):
                prompt = draft_prompt(generator.template, generator.engine.renderer, chat, generator.budget).prompt
            row_requests = [generator.request(prompt, chat, 0, index) for index in range(count)]
        except PromptTooLong as error:
            too_long = error
        requests += row_requests
        counts.append(len(row_requests))
    if too_long and not requests:
        raise too_long
    # The mark of a thought that the prompt opened is part of the draft, so that readers can tell the thought apart.
    marks = [request.prompt.unshown_mark for request in requests]
    written = iter(zip(marks, generator.write(requests, "drafts"), strict=True))
    drafted = []
    for row, row_count in zip(rows, counts, strict=True):
        texts = list(islice(written, row_count))
        rest = {name: value for name, value in row.items() if name not in (*ALIGNED_KEYS, "sources")}
        ends = [completion.finish_reason for _, completion in texts]
        drafted.append({**rest, "drafts": [(mark + c.text).strip() for mark, c in texts], "ends": ends})
    return drafted


def _whole_only(row: DataRow) -> dict[str, Any]:
    """A row without the drafts that are empty or cut."""
    kept = [i for i, end in enumerate(row["ends"]) if end == "stop" and shown_text(row["drafts"][i])]
    return keep_drafts(row, kept)

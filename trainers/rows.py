"""JSONL rows: read, checked with a sentence that names the line, written, digested.

A row is a JSON object with ``query`` (a text, or a list of messages), ``drafts`` (texts), ``target`` and perhaps
``sft_target``; other keys pass through untouched. Knows nothing of tokens. Called by ``train`` and the data commands.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from lm_eval_aft.errors import ConfigError
from lm_eval_aft.records import Chat, Message


@dataclass(frozen=True, slots=True)
class Row:
    """One row of training data.

    Attributes:
        chat: The query.
        drafts: Responses to it; those without text are left out.
        target: What aggregation should write; "" where the row has none.
        sft_target: What a plain answer should be; "" where the row has none.
        sources: Drafts the target was made from, as positions in ``drafts``; every draw holds them.
        where: File and line, for messages.
    """

    chat: Chat
    drafts: tuple[str, ...]
    target: str
    sft_target: str
    sources: tuple[int, ...]
    where: str

    @property
    def plain_target(self) -> str:
        """What a plain answer should be: sft_target, else the target."""
        return self.sft_target or self.target

    @classmethod
    def of(cls, row: Mapping[str, Any], where: str) -> Row:
        """Check one object of a data file.

        Raises:
            ConfigError: If a key is missing or of another type.
        """
        drafts = row.get("drafts") or []
        if not isinstance(drafts, list) or not all(isinstance(draft, str) for draft in drafts):
            raise ConfigError(f"drafts of {where} must be a list of texts.")
        texts = {name: _text(row, name, where) for name in ("target", "sft_target")}
        full = [number for number, draft in enumerate(drafts) if draft.strip()]
        sources = row.get("sources") or []
        if not isinstance(sources, list) or not all(source in range(len(drafts)) for source in sources):
            raise ConfigError(f"sources of {where} must be a list of positions in drafts, from 0 to {len(drafts) - 1}.")
        return cls(
            chat=query_chat(row, where),
            drafts=tuple(drafts[number] for number in full),
            sources=tuple(full.index(source) for source in sources if source in full),
            where=where,
            **texts,
        )


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{name} of {where} is {value!r}: it must be a text.")
    return (value or "").strip()


def query_chat(row: Mapping[str, Any], where: str) -> Chat:
    """The query of a row as a chat.

    Raises:
        ConfigError: If it is missing, empty, or does not end with the user.
    """
    query = row.get("query")
    if isinstance(query, str) and query.strip():
        return Chat((Message("user", query),))
    try:
        messages = tuple(Message(str(turn["role"]), str(turn["content"])) for turn in query or ())
    except (TypeError, KeyError):
        messages = ()
    if not messages or messages[-1].role != "user" or not messages[-1].content.strip():
        raise ConfigError(
            f"query of {where} must be a text, or a list of messages (role, content) that ends with the user: "
            "aft data import turns other layouts into this one."
        )
    return Chat(messages)


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, in order.

    Raises:
        ConfigError: If the file cannot be read, is empty, or a line is not a JSON object.
    """
    rows = []
    try:
        with Path(path).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    rows.append(_object(line, f"{path} line {number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): give a JSONL file.") from error
    if not rows:
        raise ConfigError(f"{path} has no rows: give a JSONL file with one object a line.")
    return rows


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON ({error}): mend or remove the line.") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{where} is not a JSON object: one object with query, drafts and target a line.")
    return row


def load_rows(path: str | Path) -> list[Row]:
    """Read and check the rows of a data file."""
    return [Row.of(row, f"{path} row {number}") for number, row in enumerate(read_jsonl(path), 1)]


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows, whole or not at all; returns how many.

    Raises:
        ConfigError: If the file cannot be written.
    """
    target, count = Path(path), 0
    waiting = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with waiting.open("w", encoding="utf-8") as lines:
            for row in rows:
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
        waiting.replace(target)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}): free the disk or give another path.") from error
    finally:
        waiting.unlink(missing_ok=True)
    return count


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file."""
    return sha256(Path(path).read_bytes()).hexdigest()

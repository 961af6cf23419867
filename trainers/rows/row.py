"""Rows of training data: what one must be, checked with a sentence that names it.

A row is a JSON object with ``query`` (a text, or a list of messages), ``drafts`` (texts), ``target`` and perhaps
``sft_target``; other keys pass through untouched. Knows nothing of tokens. Called by ``train`` and the data commands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError as JinjaError

from lm_eval_aft.core.chat import strip_control
from lm_eval_aft.core.errors import ChatError, ConfigError
from lm_eval_aft.core.jsonl import read_jsonl
from lm_eval_aft.core.records import Chat, Message


def _finite(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and isfinite(value)
    except OverflowError:  # a whole number too large for a float
        return False


ABOUT_DRAFTS: dict[str, tuple[str, Callable[[Any], bool]]] = {  # lists with one entry a draft, and what it must be
    "ends": ("text", lambda value: isinstance(value, str)),
    "scores": ("finite number", _finite),
    "right": ("true or false", lambda value: value in (0, 1)),
    "models": ("entry", lambda value: True),
}
ALIGNED = ("drafts", *ABOUT_DRAFTS)


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
            raise ConfigError(
                f"drafts of {where} must be a list of texts: mend the row, or import it with --field drafts=KEY."
            )
        texts = {name: _text(row, name, where) for name in ("target", "sft_target")}
        full = [number for number, draft in enumerate(drafts) if draft.strip()]
        sources = row.get("sources") or []
        if not isinstance(sources, list) or not all(source in range(len(drafts)) for source in sources):
            raise ConfigError(f"sources of {where} must be a list of positions in drafts, from 0 to {len(drafts) - 1}.")
        if len(set(sources)) < len(sources):
            raise ConfigError(f"sources of {where} are {sources}: name each position once, or remove them.")
        return cls(
            chat=query_chat(row, where),
            drafts=tuple(drafts[number] for number in full),
            sources=tuple(full.index(source) for source in sources if source in full),
            where=where,
            **texts,
        )


def visible(draft: str) -> str:
    """What a prompt shows of a draft: it has no thoughts (and no control tokens, which only a tokenizer knows)."""
    return strip_control(draft, ()).strip()


def check_row(row: Mapping[str, Any], where: str) -> None:
    """What the data commands ask of a row: what ``Row.of`` asks, and one entry a draft in lists about drafts.

    Raises:
        ConfigError: If a key is missing or of another type, or a list of another length.
    """
    Row.of(row, where)
    drafts = row.get("drafts")
    for name, (what, fits) in ABOUT_DRAFTS.items():
        if drafts is None or row.get(name) in (None, []):  # without drafts it is a key of others
            continue
        values = row[name]
        if not isinstance(values, list) or len(values) != len(drafts) or not all(map(fits, values)):
            raise ConfigError(
                f"{name} of {where} must be a list with one {what} for each of its {len(drafts)} drafts: mend it, or "
                "remove it."
            )


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Name the row that a model's chat template refuses.

    Raises:
        ChatError: If it refuses one.
    """
    try:
        yield
    except (JinjaError, ChatError) as error:
        raise ChatError(
            f"{where} is refused by the model's chat template ({error}): mend its messages, or leave it out."
        ) from error


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
        messages = tuple(Message(turn["role"], turn["content"]) for turn in query or ())
    except (TypeError, KeyError):
        messages = ()
    texts = all(isinstance(part, str) for message in messages for part in (message.role, message.content))
    if not messages or not texts or messages[-1].role != "user" or not messages[-1].content.strip():
        raise ConfigError(
            f"query of {where} must be a text, or a list of messages (role and content, both texts) that ends with the "
            "user: aft data import turns other layouts into this one, and an answer at the end belongs in sft_target."
        )
    return Chat(messages)


def load_rows(path: str | Path) -> list[Row]:
    """Read and check the rows of a data file.

    Raises:
        ConfigError: If the file cannot be read, or a row is wrong.
    """
    return [Row.of(row, f"{path} row {number}") for number, row in enumerate(read_jsonl(path, strict=True), 1)]


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read the rows of a data file with all their keys, and check them.

    Raises:
        ConfigError: If the file cannot be read, or a row is wrong.
    """
    rows = read_jsonl(path, strict=True)
    for number, row in enumerate(rows, 1):
        check_row(row, f"{path} row {number}")
    return rows

"""Rows of training data, and the checks that a row must pass.

A row is a JSON object with ``query`` (a text or a list of messages), ``drafts`` (texts), ``target`` and ``sft_target``.
Only the query is always required. Other keys are kept as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from lm_eval_aft.core.chat import strip_control
from lm_eval_aft.core.errors import ChatError, ConfigError
from lm_eval_aft.core.jsonl import read_jsonl
from lm_eval_aft.core.records import Chat, Message

# One object of a data file, with all its keys.
DataRow = Mapping[str, Any]


def _finite(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and isfinite(value)
    except OverflowError:
        # The whole number is too large for a float.
        return False


# Lists with one entry a draft: what an entry is called in messages, and its check.
DRAFT_LISTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "ends": ("text", lambda value: isinstance(value, str)),
    "scores": ("finite number or null", lambda value: value is None or _finite(value)),
    "right": ("true or false", lambda value: value in (0, 1)),
    "models": ("entry", lambda value: True),
}
ALIGNED_KEYS = ("drafts", *DRAFT_LISTS)
QUERY_ADVICE = "aft data import turns other layouts into this one, and an answer at the end belongs in sft_target."


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One checked row, with what training needs of it.

    Attributes:
        chat: The query.
        drafts: Responses to the query; those without text are left out.
        target: Text that aggregation should write; "" if the row has none.
        sft_target: Text that a model should write without drafts; "" if the row has none.
        sources: Positions in ``drafts`` of the drafts that the target was made from. Every draw holds them.
        where: File and row number, for messages.
        data: The object of the data file, with all its keys.
    """

    chat: Chat
    drafts: tuple[str, ...]
    target: str
    sft_target: str
    sources: tuple[int, ...]
    where: str
    data: DataRow = field(default_factory=dict, repr=False)

    @property
    def single_answer_target(self) -> str:
        """Text that a model should write without drafts: sft_target, else the target."""
        return self.sft_target or self.target

    @classmethod
    def of(cls, row: DataRow, where: str, advice: str = QUERY_ADVICE) -> TrainingRow:
        """Check one object of a data file.

        Args:
            row: The object.
            where: File and row number, for messages.
            advice: The end of the message about a query of another form.

        Raises:
            ConfigError: If a key is missing or has another type.
        """
        drafts = row.get("drafts") or []
        if not isinstance(drafts, list) or not all(isinstance(draft, str) for draft in drafts):
            raise ConfigError(f"drafts of {where} must be a list of texts: correct it, or import it anew.")
        texts = {name: _text(row, name, where) for name in ("target", "sft_target")}
        full = [number for number, draft in enumerate(drafts) if draft.strip()]
        sources = row.get("sources") or []
        if not isinstance(sources, list) or not all(source in range(len(drafts)) for source in sources):
            raise ConfigError(f"sources of {where} must be a list of positions in drafts, from 0 to {len(drafts) - 1}.")
        if len(set(sources)) < len(sources):
            raise ConfigError(f"sources of {where} are {sources}: name each position once, or remove them.")
        return cls(
            chat=query_chat(row, where, advice),
            drafts=tuple(drafts[number] for number in full),
            sources=tuple(full.index(source) for source in sources if source in full),
            where=where,
            data=row,
            **texts,
        )


def shown_text(draft: str) -> str:
    """The part of a draft that a prompt shows: no thoughts.

    A prompt leaves out control tokens too, but only a tokenizer knows them.
    """
    return strip_control(draft, ()).strip()


def keep_drafts(row: DataRow, kept: Sequence[int]) -> dict[str, Any]:
    """A row with some of its drafts, in the order of ``kept``. Lists about drafts and sources follow."""
    lists = {name: [row[name][i] for i in kept] for name in ALIGNED_KEYS if row.get(name)}
    if row.get("sources"):
        lists["sources"] = [list(kept).index(source) for source in row["sources"] if source in kept]
    return {**row, **lists}


def check_row(row: DataRow, where: str, advice: str = QUERY_ADVICE) -> None:
    """Check a row for the data commands: as for training, and each list about drafts has one entry a draft.

    Args:
        row: The row.
        where: File and row number, for messages.
        advice: The end of the message about a query of another form.

    Raises:
        ConfigError: If a key is missing or has another type, or a list has another length.
    """
    TrainingRow.of(row, where, advice)
    drafts = row.get("drafts")
    for name, (entry, fits) in DRAFT_LISTS.items():
        # In a row without drafts the key has another meaning.
        if drafts is None or row.get(name) in (None, []):
            continue
        values = row[name]
        if not isinstance(values, list) or len(values) != len(drafts) or not all(map(fits, values)):
            raise ConfigError(
                f"{name} of {where} must be a list with one {entry} for each of its {len(drafts)} drafts: correct it, "
                "or remove it."
            )


@contextmanager
def template_errors_name(where: str) -> Iterator[None]:
    """Name the row in the error if the model's chat template refuses it.

    Raises:
        ChatError: If the template refuses the row.
    """
    try:
        yield
    except ChatError as error:
        raise ChatError(
            f"{where} is refused by the model's chat template ({error}): correct its messages, or leave it out."
        ) from error


def _text(row: DataRow, name: str, where: str) -> str:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{name} of {where} is {value!r}: it must be a text.")
    return (value or "").strip()


def query_chat(row: DataRow, where: str, advice: str = QUERY_ADVICE) -> Chat:
    """The query of a row as a chat.

    Raises:
        ConfigError: If it is missing or empty, or does not end with the user.
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
            f"user: {advice}"
        )
    return Chat(messages)


def read_training_rows(path: str | Path) -> list[TrainingRow]:
    """Read and check the rows of a data file, for training.

    Raises:
        AFTError: If the file cannot be read or a row is wrong.
    """
    return [TrainingRow.of(row, f"{path} row {number}") for number, row in enumerate(read_jsonl(path, strict=True), 1)]


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read and check the rows of a data file, with all their keys.

    Raises:
        AFTError: If the file cannot be read or a row is wrong.
    """
    rows = read_jsonl(path, strict=True)
    for number, row in enumerate(rows, 1):
        check_row(row, f"{path} row {number}")
    return rows


def read_drafted_rows(path: Path) -> list[dict[str, Any]]:
    """Read and check rows that must all have a list of drafts.

    Raises:
        AFTError: If the file cannot be read, or a row is wrong or has no list of drafts.
    """
    rows = read_rows(path)
    for number, row in enumerate(rows, 1):
        if row.get("drafts") is None:
            raise ConfigError(f"row {number} of {path} has no list of drafts: run aft data drafts or import first.")
    if not any(row["drafts"] for row in rows):
        raise ConfigError(f"no row of {path} has a draft: run aft data drafts, or import the file's own drafts.")
    return rows

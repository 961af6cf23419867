"""Reads drafts files, which ``aft data`` writes: one row of JSON a query, with its drafts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_aft.core.files import reading
from lm_eval_aft.core.jsonl import iterate_jsonl
from lm_eval_aft.core.thinking import without_thoughts


@dataclass(frozen=True, slots=True)
class DraftRow:
    """One query with its drafts.

    Attributes:
        number: Row of the file, from 0.
        answers: The answer in each draft, without its thought; "" if there is none.
        right: Whether each draft is right, as a verifier said; None if none did.
        gold: The gold answer, or "".
    """

    number: int
    answers: tuple[str, ...]
    right: tuple[bool, ...] | None
    gold: str


def is_draft_file(path: Path) -> bool:
    """Whether a path is a drafts file, by its first row.

    Raises:
        RecordError: If it is a JSONL file that cannot be read.
    """
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    first = next((row for _, row in iterate_jsonl(path)), {})
    return "query" in first and "settings" not in first


def read_draft_rows(path: Path) -> Iterator[DraftRow]:
    """The rows of a drafts file, in its order. Rows without drafts are left out.

    Raises:
        RecordError: If the file cannot be read, or a row is not one of a drafts file.
    """
    for number, (where, row) in enumerate(iterate_jsonl(path)):
        with reading(where, "a row with drafts"):
            drafts, ends, right = _list(row, "drafts", str), _list(row, "ends", str), _list(row, "right", bool | int)
            if any(values and len(values) != len(drafts) for values in (ends, right)):
                raise ValueError(f"{len(drafts)} drafts with {len(ends)} ends and {len(right)} grades")
        if not drafts:
            continue
        cuts = [end == "length" for end in ends] or [False] * len(drafts)
        answers = (without_thoughts(draft, cut=cut).strip() for draft, cut in zip(drafts, cuts, strict=True))
        gold = row.get("gold")
        yield DraftRow(
            number=number,
            answers=tuple(answers),
            right=tuple(map(bool, right)) if right else None,
            gold="" if gold is None else str(gold),
        )


def _list(row: dict[str, Any], name: str, kind: Any) -> list[Any]:
    values = row.get(name) or []
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise TypeError(f"{name} is not a list of the right kind")
    return values

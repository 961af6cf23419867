"""JSON and JSON lines: the one parser, the one reader and the one writer of the package."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lm_eval_aft.core.errors import AFTError, RecordError
from lm_eval_aft.core.files import atomic_write, read_bytes, reading, refuse_stream, writing

# Levels of lists and objects. Python's own limit for nested calls is 1,000, and readers walk what they read.
MAX_DEPTH = 200


def parse_json(text: str | bytes) -> Any:
    """Parse JSON that a file, a server, a model or a user made.

    Args:
        text: UTF-8 if bytes, with or without a byte order mark.

    Raises:
        ValueError: If it is not JSON, or nested more than ``MAX_DEPTH`` levels deep.
    """
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
    try:
        value = json.loads(text)
    except RecursionError as cause:
        raise ValueError("it is nested too deeply") from cause
    if text.count("[") + text.count("{") > MAX_DEPTH:
        check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Raise ValueError if lists and objects are nested more than ``MAX_DEPTH`` levels deep."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list))
        level = [part for parts in inner for part in parts if isinstance(part, dict | list)]
        if not level:
            return
    if level:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")


def read_json(path: Path, what: str, error: type[AFTError] = RecordError) -> Any:
    """The value in a JSON file.

    Args:
        path: The file.
        what: What it should be, such as "a list of rows", for the message.
        error: The class to raise.

    Raises:
        AFTError: If the file cannot be read or is not JSON.
    """
    refuse_stream(path)
    with reading(path, what, error):
        return parse_json(read_bytes(path))


def iterate_jsonl(path: str | Path, *, strict: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a JSON lines file, one at a time. Blank lines are skipped.

    Args:
        path: UTF-8, with or without a byte order mark.
        strict: Also refuse half a surrogate pair (see ``check_characters``).

    Yields:
        Where the object stands ("FILE line 3", for messages), and the object.

    Raises:
        RecordError: If the file cannot be read or a line is not a JSON object.
    """
    refuse_stream(path)
    try:
        with Path(path).open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    where = f"{path} line {number}"
                    row = parse_object(_decode(line, where), where)
                    if strict and b"\\u" in line:
                        check_characters(row, where)
                    yield where, row
    except OSError as cause:
        raise RecordError(f"{path} cannot be read ({cause.strerror}): give a JSONL file.") from cause


def _decode(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise RecordError(f"{where} cannot be read ({cause}): give a JSONL file.") from cause


def read_jsonl(path: str | Path, *, strict: bool = False) -> list[dict[str, Any]]:
    """The objects of a JSON lines file, in order; see ``iterate_jsonl``.

    Raises:
        RecordError: If the file cannot be read, is empty, or a line is not a JSON object.
    """
    rows = [row for _, row in iterate_jsonl(path, strict=strict)]
    if not rows:
        raise RecordError(f"{path} has no rows: give a JSONL file with one object a line.")
    return rows


def parse_object(text: str, where: str) -> dict[str, Any]:
    """Parse one JSON object.

    Raises:
        RecordError: If the text is not JSON or not an object.
    """
    try:
        row = parse_json(text)
    except ValueError as cause:
        raise RecordError(f"{where} is not JSON ({cause}): correct or remove it.") from cause
    if not isinstance(row, dict):
        raise RecordError(f"{where} is not a JSON object: write one object a line.")
    return row


def check_characters(row: Mapping[str, Any], where: str) -> None:
    """Refuse half a surrogate pair: JSON can hold one, but neither a file nor a tokenizer takes it.

    Raises:
        RecordError: If there is one anywhere in the row.
    """
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError) as cause:
        raise RecordError(f"{where} cannot be written as UTF-8 ({cause}): correct or remove it.") from cause


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]], *, errors: str = "strict") -> int:
    """Write rows as JSON lines, whole or not at all. Returns how many.

    Args:
        path: The file.
        rows: Its objects.
        errors: See ``open``. For half a surrogate pair "strict" refuses the rows, and "replace" writes ``?``.

    Raises:
        RecordError: If the file cannot be written.
    """
    target, count = Path(path), 0
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as partial, partial.open("w", encoding="utf-8", errors=errors) as lines:
            for row in rows:
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
    return count

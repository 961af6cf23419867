"""JSONL files: read with a sentence that names the line, written whole or not at all, digested.

Knows nothing of rows. Called by all that reads or writes data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.files import whole


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, in order.

    Raises:
        ConfigError: If the file cannot be read, is empty, or a line is not a JSON object.
    """
    rows = []
    refuse_stream(path)
    try:
        with Path(path).open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    rows.append(_object(line, f"{path} line {number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): give a JSONL file.") from error
    if not rows:
        raise ConfigError(f"{path} has no rows: give a JSONL file with one object a line.")
    return rows


def refuse_stream(path: str | Path) -> None:
    """Refuse what can be read only once: a file is read again for its digest.

    Raises:
        ConfigError: If there is something else than a file.
    """
    if Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir():
        raise ConfigError(f"{path} is no file but a stream: write it to a file first, it is read more than once.")


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON ({error}): mend or remove the line.") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{where} is not a JSON object: one object with query, drafts and target a line.")
    if "\\u" in line:
        check_characters(row, where)
    return row


def check_characters(row: Mapping[str, Any], where: str) -> None:
    """Refuse half a surrogate pair, which JSON can hold and neither a file nor a tokenizer takes.

    Raises:
        ConfigError: If there is one anywhere in the row.
    """
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError) as error:
        raise ConfigError(f"{where} cannot be written as UTF-8 ({error}): mend it, or remove it.") from error


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows, whole or not at all; returns how many.

    Raises:
        ConfigError: If the file cannot be written.
    """
    target, count = Path(path), 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole(target) as partial, partial.open("w", encoding="utf-8") as lines:
            for row in rows:
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}): free the disk or give another path.") from error
    return count


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file."""
    return sha256(Path(path).read_bytes()).hexdigest()

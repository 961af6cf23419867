"""Reading and writing files: each is written whole or not at all, and each failure is one sentence."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from lm_eval_aft.core.errors import AFTError, RecordError

MAX_NAME_LENGTH = 100  # characters; file systems allow 255 bytes, and stamps and suffixes are added


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path`` that replaces it when the block ends without an error.

    Each process has its own temporary file.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str, error: type[AFTError] = RecordError) -> Path:
    """Write a text file, whole or not at all, and make its folder. Returns ``path``.

    Half a surrogate pair, which JSON can hold and UTF-8 cannot, is written as ``?``.

    Raises:
        AFTError: The one given, if the file cannot be written; the message names it.
    """
    with writing(path, error):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            partial.write_text(text, encoding="utf-8", errors="replace")
    return path


@contextmanager
def writing(path: Path, error: type[AFTError] = RecordError) -> Iterator[None]:
    """Turn an operating-system error while ``path`` is written into one sentence."""
    try:
        yield
    except (OSError, ValueError) as cause:  # ValueError: a NUL in the name
        reason = getattr(cause, "strerror", None) or cause
        raise error(f"{path} cannot be written ({reason}): free the disk or give another path.") from cause


@contextmanager
def reading(path: Path | str, what: str, error: type[AFTError] = RecordError) -> Iterator[None]:
    """Turn every way in which a file can be unreadable or of another kind into one sentence that names it.

    Args:
        path: The file that is read, or a line of it ("FILE line 3").
        what: What it should be, such as "a results file".
        error: The class to raise.
    """
    try:
        yield
    except OSError as cause:
        raise error(f"{path} cannot be read ({cause.strerror}).") from cause
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as cause:
        raise error(
            f"{path} is not {what} ({type(cause).__name__}: {cause}): it is damaged, or another program's; remove it "
            "or give another."
        ) from cause


def file_name(text: str) -> str:
    """A text as part of a file's name: ASCII letters, digits and ``_.+-``, at most ``MAX_NAME_LENGTH`` characters."""
    name = re.sub(r"[^A-Za-z0-9_.+-]", "_", text) or "model"
    if len(name) <= MAX_NAME_LENGTH:
        return name
    return f"{name[: MAX_NAME_LENGTH - 9]}-{sha256(text.encode(errors='replace')).hexdigest()[:8]}"


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    return sha256(Path(path).read_bytes()).hexdigest()

"""Paths that users give: checked before anything opens them, so that each failure is one sentence."""

from __future__ import annotations

from pathlib import Path

from lm_eval_aft.core.errors import AFTError, ConfigError

# What Linux and macOS allow, in bytes.
MAX_PART, MAX_PATH = 255, 4095


def check_path(name: str, value: str, error: type[AFTError] = ConfigError) -> str:
    """Return a path, or refuse one that no file can have.

    Args:
        name: The option or argument that gave it, such as "record=" or "--html".
        value: The path.
        error: The class to raise.

    Raises:
        AFTError: If the path is empty, too long, or not UTF-8, or holds a NUL.
    """
    if reason := _fault(value):
        raise error(f"the path of {name} {reason}: give another.")
    return value


def missing_or(path: str | Path, otherwise: str) -> str:
    """The beginning of a message about a path: that it does not exist, or else what is wrong with it."""
    return otherwise if Path(path).exists() else f"{path} does not exist"


def _fault(value: str) -> str:
    """Why no file can have this path; empty if one can."""
    if not value.strip():
        return "is empty"
    if "\0" in value:
        return f"{value[:100]!r} holds a NUL"
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        return f"{value[:100]!r} is not UTF-8"
    if len(encoded) > MAX_PATH:
        return f"{value[:60]!r}... has {len(encoded):,} bytes, and at most {MAX_PATH:,} are allowed"
    longest = max(encoded.split(b"/"), key=len)
    if len(longest) > MAX_PART:
        return f"{value[:60]!r}... has a part of {len(longest):,} bytes, and at most {MAX_PART} are allowed"
    return ""

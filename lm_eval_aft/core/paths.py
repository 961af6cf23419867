"""Paths that users give: checked before anything opens them, so that each failure is one sentence."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lm_eval_aft.core.errors import AFTError, ConfigError

# What Linux and macOS allow, in bytes.
MAX_PART, MAX_PATH = 255, 4095


def check_path(name: str, value: str, error: type[AFTError] = ConfigError) -> str:
    """Return a path with the home folder for ``~``, or refuse one that no file can have or that is an address.

    Args:
        name: The option or argument that gave it, such as "record=" or "--html".
        value: The path.
        error: The class to raise.

    Raises:
        AFTError: If the path is empty, too long, or not UTF-8, holds a NUL, is an address, or names an unknown user.
    """
    expanded = os.path.expanduser(value)
    if reason := _fault(value, expanded):
        raise error(f"the path of {name} {reason}: give another.")
    return expanded


def missing_or(path: str | Path, otherwise: str) -> str:
    """The beginning of a message about a path: that it does not exist, or else what is wrong with it."""
    return otherwise if Path(path).exists() else f"{path} does not exist"


def _fault(value: str, expanded: str) -> str:
    """Why no file can have this path; empty if one can."""
    if not value.strip():
        return "is empty"
    if "\0" in value:
        return f"{value[:100]!r} holds a NUL"
    try:
        encoded = expanded.encode()
    except UnicodeEncodeError:
        return f"{value[:100]!r} is not UTF-8"
    if expanded.startswith("~"):
        user = expanded.partition("/")[0]
        return f"{value[:100]!r} names the home of an unknown user (write ./{user[:60]} for a folder of that name)"
    # SQLite keeps everything in memory if its file has the second name.
    if re.match(r"[A-Za-z][\w+.-]*://|:memory:$", value):
        return f"{value[:100]!r} is not the path of a file"
    if len(encoded) > MAX_PATH:
        return f"{value[:60]!r}... has {len(encoded):,} bytes, and at most {MAX_PATH:,} are allowed"
    longest = max(encoded.split(b"/"), key=len)
    if len(longest) > MAX_PART:
        return f"{value[:60]!r}... has a part of {len(longest):,} bytes, and at most {MAX_PART} are allowed"
    return ""

"""Settings as frozen dataclasses: each field has a parser and a meaning, and tables and hints are made from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field, fields
from difflib import get_close_matches
from typing import Any

from lm_eval_aft.core.arguments import Parse


def setting(default: Any, parse: Parse, meaning: str) -> Any:
    """A dataclass field with a parser and a meaning for the documentation."""
    return field(default=default, metadata={"parse": parse, "meaning": meaning})


def parsers(settings: type) -> dict[str, Parse]:
    """The parser of each setting, by name, in the order of the definition. A field without a parser is no setting."""
    return {f.name: f.metadata["parse"] for f in fields(settings) if "parse" in f.metadata}


def markdown_table(settings: type, head: str) -> str:
    """The settings as a Markdown table of name, default and meaning; ``head`` names the first column."""
    lines = [f"| {head} | default | meaning |", "|---|---|---|"]
    for f in fields(settings):
        if "parse" not in f.metadata:
            continue
        default = "" if f.default in (None, (), "") else f.default
        default = ", ".join(map(str, default)) if isinstance(default, tuple) else default
        lines.append(f"| `{f.name}` | {default} | {f.metadata['meaning']} |")
    return "\n".join(lines)


def nearest(name: str, known: Iterable[str], otherwise: str) -> str:
    """The end of a message about an unknown name: the nearest known one, or ``otherwise``."""
    # Upper case is a habit (K=5), and so are hyphens, which no name of ours has.
    names = {each.lower(): each for each in known}
    near = get_close_matches(name.lower().replace("-", "_"), names, n=1)
    return f"did you mean {names[near[0]]}?" if near else otherwise

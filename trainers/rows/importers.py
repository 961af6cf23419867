"""Sets that others have made, as rows of ours: query, drafts, and what else they hold.

Layouts: ``generic`` (keys found by their usual names, or named by the user), ``ultrafeedback`` (instruction and
completions, each with a response and a score) and ``qa_feedback`` (a question with passages, four predictions and
pairwise preferences). Called by ``aft data import``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.jsonl import check_characters, read_jsonl, refuse_stream
from trainers.rows.row import check_row

QUERY_NAMES = ("query", "question", "prompt", "instruction", "messages")
DRAFT_NAMES = ("drafts", "responses", "completions", "answers")
PAIRS = ((1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4))  # order of the preferences in qa_feedback


def read_objects(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, or of a file that is one JSON list.

    Raises:
        ConfigError: If it is neither, or has no rows.
    """
    refuse_stream(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = json.loads(text) if text.lstrip().startswith("[") else read_jsonl(path, strict=True)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): give a JSONL file or a JSON list.") from error
    if not rows:
        raise ConfigError(f"{path} is an empty list: give rows with a query and responses.")
    if not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path} is a list of something else than objects: give rows with a query and responses.")
    for number, row in enumerate(rows, 1):
        check_characters(row, f"row {number} of {path}")
    return list(rows)


def convert(rows: list[dict[str, Any]], layout: str, names: Mapping[str, str], path: Path) -> list[dict[str, Any]]:
    """Turn rows of a layout into ours.

    Args:
        rows: As read.
        layout: A key of ``LAYOUTS``, or "auto".
        names: Of our keys, those that the file calls otherwise (generic only).
        path: For messages.

    Raises:
        ConfigError: If a row does not have the layout, or does not make a row of ours.
    """
    layout = _recognise(rows[0]) if layout == "auto" else layout
    made = []
    for number, row in enumerate(rows, 1):
        try:
            new = LAYOUTS[layout](row, names)
        except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"row {number} of {path} does not have the layout {layout} ({type(error).__name__}: {error}): give "
                f"--layout {' or '.join(LAYOUTS)}, or name its keys with --field ours=theirs."
            ) from error
        check_row(new, f"row {number} of {path}")
        made.append(new)
    return made


def _recognise(row: Mapping[str, Any]) -> str:
    if "prediction 1" in row:
        return "qa_feedback"
    completions = row.get("completions")
    if isinstance(completions, list) and completions and isinstance(completions[0], dict):
        return "ultrafeedback"
    return "generic"


def _generic(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    taken = dict(names)
    for ours, usual in (("query", QUERY_NAMES), ("drafts", DRAFT_NAMES)):
        if ours not in taken:
            theirs = next((name for name in usual if name in row), None)
            if theirs:
                taken[ours] = theirs
    if "query" not in taken:
        raise KeyError("query")
    new = {ours: row[theirs] for ours, theirs in taken.items()}
    rest = {name: value for name, value in row.items() if name not in taken.values() and name not in new}
    return {**new, **rest}


def _ultrafeedback(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    completions = row["completions"]
    scores = [completion.get("overall_score", completion.get("fine-grained_score")) for completion in completions]
    new: dict[str, Any] = {
        "query": row["instruction"],
        "drafts": [completion["response"] for completion in completions],
        "models": [completion.get("model") for completion in completions],
        "source": row.get("source"),
    }
    return new if None in scores else {**new, "scores": [float(score) for score in scores]}


def _qa_feedback(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    passages = "\n\n".join("\n".join([passage[0], "".join(passage[1:])]) for passage in row["passages"])
    wins = dict.fromkeys(range(1, 5), 0.0)
    for (first, second), better in zip(PAIRS, row["preference"], strict=True):
        for number in (first, second) if better == 0 else ((first, second)[better - 1],):
            wins[number] += 0.5 if better == 0 else 1.0
    return {
        "query": f"{passages}\n\nAnswer from the passages above: {row['question']}",
        "drafts": [row[f"prediction {number}"] for number in range(1, 5)],
        "scores": [wins[number] for number in range(1, 5)],
        "sft_target": row["gold"],
    }


LAYOUTS: dict[str, Callable[[Mapping[str, Any], Mapping[str, str]], dict[str, Any]]] = {
    "generic": _generic,
    "ultrafeedback": _ultrafeedback,
    "qa_feedback": _qa_feedback,
}

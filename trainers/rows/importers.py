"""Data sets in other layouts, turned into rows.

The layouts are:

- ``generic``: keys with usual names, or names that you give;
- ``ultrafeedback``: an instruction, and completions that each have a response and a score;
- ``qa_feedback``: a question with passages, four predictions and their preferences in pairs (FineGrainedRLHF).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.files import refuse_stream
from lm_eval_aft.core.jsonl import check_characters, parse_json, read_jsonl
from trainers.rows.result import DataResult
from trainers.rows.row import DataRow, check_row

QUERY_NAMES = ("query", "question", "prompt", "instruction", "messages")
DRAFT_NAMES = ("drafts", "responses", "completions", "answers")
# Predictions that each preference of qa_feedback compares, in the order of the file.
PAIRS = ((1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4))


def import_rows(source: Path, layout: str = "auto", names: Mapping[str, str] | None = None) -> DataResult:
    """Turn a data set with queries, and perhaps several responses each, into rows.

    Args:
        source: A JSONL file, or a file that is one JSON list.
        layout: A key of ``LAYOUTS``, or "auto" to recognise it by the first row.
        names: Keys of rows, and the names that the file has for them (``generic`` only).

    Raises:
        ConfigError: If the layout is unknown, a row does not have it, or the row that it makes is wrong.
        RecordError: If the file cannot be read.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise ConfigError(f"--layout {layout} is unknown: use auto, {', '.join(LAYOUTS)}.")
    objects = _read_objects(source)
    chosen = _recognise(objects[0]) if layout == "auto" else layout
    rows = [_convert(row, chosen, names or {}, f"row {number} of {source}") for number, row in enumerate(objects, 1)]
    drafts = sum(len(row.get("drafts", [])) for row in rows)
    settings = {"layout": layout, "fields": dict(names or {})}
    return DataResult(rows, [f"{len(rows)} rows with {drafts} drafts"], settings, [source])


def _read_objects(path: Path) -> list[dict[str, Any]]:
    refuse_stream(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = parse_json(text) if text.lstrip().startswith("[") else read_jsonl(path, strict=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): give a JSONL file or a JSON list.") from error
    if not rows:
        raise ConfigError(f"{path} is an empty list: give rows with a query and responses.")
    if not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path} is a list of something else than objects: give rows with a query and responses.")
    for number, row in enumerate(rows, 1):
        check_characters(row, f"row {number} of {path}")
    return list(rows)


def _convert(row: DataRow, layout: str, names: Mapping[str, str], where: str) -> dict[str, Any]:
    try:
        converted = LAYOUTS[layout](row, names)
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{where} does not have the layout {layout} ({type(error).__name__}: {error}): give "
            f"--layout {' or '.join(LAYOUTS)}, or name its keys with --field ours=theirs."
        ) from error
    check_row(converted, where)
    return converted


def _recognise(row: DataRow) -> str:
    if "prediction 1" in row:
        return "qa_feedback"
    completions = row.get("completions")
    if isinstance(completions, list) and completions and isinstance(completions[0], dict):
        return "ultrafeedback"
    return "generic"


def _generic(row: DataRow, names: Mapping[str, str]) -> dict[str, Any]:
    theirs_of = dict(names)
    for ours, usual in (("query", QUERY_NAMES), ("drafts", DRAFT_NAMES)):
        present = [name for name in usual if name in row]
        if ours not in theirs_of and present:
            theirs_of[ours] = present[0]
    if "query" not in theirs_of:
        raise KeyError("query")
    converted = {ours: row[theirs] for ours, theirs in theirs_of.items()}
    rest = {name: value for name, value in row.items() if name not in theirs_of.values() and name not in converted}
    return {**converted, **rest}


def _ultrafeedback(row: DataRow, names: Mapping[str, str]) -> dict[str, Any]:
    completions = row["completions"]
    scores = [completion.get("overall_score", completion.get("fine-grained_score")) for completion in completions]
    converted: dict[str, Any] = {
        "query": row["instruction"],
        "drafts": [completion["response"] for completion in completions],
        "models": [completion.get("model") for completion in completions],
        "source": row.get("source"),
    }
    return converted if None in scores else {**converted, "scores": [float(score) for score in scores]}


def _qa_feedback(row: DataRow, names: Mapping[str, str]) -> dict[str, Any]:
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


LAYOUTS: dict[str, Callable[[DataRow, Mapping[str, str]], dict[str, Any]]] = {
    "generic": _generic,
    "ultrafeedback": _ultrafeedback,
    "qa_feedback": _qa_feedback,
}

"""Data sets in other layouts, turned into rows.

The layouts are:

- ``generic``: keys with usual names, or names that you give. Rows of Alpaca and ShareGPT, chats that end with the
  assistant, and rows of prompt and completion are generic;
- ``ultrafeedback``: an instruction, and completions that each have a response and a score;
- ``qa_feedback``: a question with passages, four predictions and their preferences in pairs (FineGrainedRLHF).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.files import refuse_stream
from lm_eval_aft.core.jsonl import check_characters, parse_json, read_jsonl
from trainers.rows.result import DataResult
from trainers.rows.row import ALIGNED_KEYS, DataRow, check_row

# A chat holds more than the prompt that some data sets give beside it.
CHAT_NAMES = ("messages", "conversations", "conversation")
QUERY_NAMES = ("query", *CHAT_NAMES, "question", "prompt", "instruction")
DRAFT_NAMES = ("drafts", "responses", "completions", "answers")
ANSWER_NAMES = ("sft_target", "completion", "output", "response")
# The text that an instruction is about, and the system message of a chat.
INPUT_NAMES, SYSTEM_NAMES = ("input", "context"), ("system", "system_prompt")
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "bing", "bard"), "assistant"),
}
OUR_KEYS = {"query", "target", "sft_target", "sources", "gold", *ALIGNED_KEYS}
# A name, then names after dots, each followed by [] for all entries of a list or by [N] for one entry.
FIELD_PATH = re.compile(r"[^.\[\]]+(\[\d*\])*(\.[^.\[\]]+(\[\d*\])*)*")
ADVICE = "name another key with --field query=THEIRS."
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
        raise ConfigError(
            f"--layout {layout} is unknown: use auto, {', '.join(LAYOUTS)}. Rows of Alpaca and ShareGPT, chats, and "
            "rows of prompt and completion are generic."
        )
    names = dict(names or {})
    for ours, theirs in names.items():
        if not ours or not theirs:
            raise ConfigError(f"--field {ours}={theirs} is not allowed: write OURS=THEIRS, such as gold=answer.")
    objects = _read_objects(source)
    chosen = _recognise(objects[0]) if layout == "auto" else layout
    rows = [_convert(row, chosen, names, f"row {number} of {source}") for number, row in enumerate(objects, 1)]
    drafts = sum(len(row.get("drafts") or ()) for row in rows)
    if not drafts and (chosen != "generic" or "drafts" in names):
        raise ConfigError(f"no row of {source} has drafts: correct --field drafts=THEIRS, or leave it out.")
    settings = {"layout": layout, "fields": names}
    return DataResult(rows, _facts(rows, drafts), settings, [source])


def _facts(rows: Sequence[Mapping[str, Any]], drafts: int) -> list[str]:
    """What was found, and what is not shown to any model."""
    facts = [f"{len(rows)} rows with {drafts} drafts"]
    if not drafts:
        facts.append("aft data drafts samples drafts; --field drafts=THEIRS names those of the file")
    others = list(dict.fromkeys(name for row in rows for name in row if name not in OUR_KEYS))
    if others:
        more = f" and {len(others) - 10} more" if len(others) > 10 else ""
        facts.append(f"keys that are kept but shown to no model: {', '.join(others[:10])}{more}")
    unscored = sum(row["scores"].count(None) for row in rows if row.get("scores"))
    if unscored:
        facts.append(f"{unscored} drafts have no score")
    return facts


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
        if layout != "generic":
            converted |= {ours: field_of(row, theirs) for ours, theirs in names.items()}
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = str(error) if type(error) is LookupError else f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"{where} does not have the layout {layout} ({reason}): give --layout {' or '.join(LAYOUTS)}, or name its "
            "keys with --field ours=theirs."
        ) from error
    check_row(converted, where, ADVICE)
    return converted


def field_of(row: DataRow, path: str) -> Any:
    """A value of a row by its key, or by a path such as ``a.b[].solution`` or ``choices[0].text``.

    Raises:
        LookupError: If the row has no such value. The message names the step that it lacks.
    """
    if path in row:
        return row[path]
    if not FIELD_PATH.fullmatch(path):
        raise LookupError(f"it has no key {path!r}, and a path is written like a.b[].c")
    return _at(row, re.findall(r"\[\d*\]|[^.\[\]]+", path), path)


def _at(value: Any, steps: Sequence[str], path: str) -> Any:
    if not steps:
        return value
    step, rest = steps[0], steps[1:]
    if step == "[]" and isinstance(value, list):
        found = [_at(each, rest, path) for each in value]
        # Lists in a list are one list.
        return [each for part in found for each in part] if "[]" in rest else found
    if step != "[]" and step[0] == "[" and isinstance(value, list) and int(step[1:-1]) < len(value):
        return _at(value[int(step[1:-1])], rest, path)
    if step[0] != "[" and isinstance(value, Mapping) and step in value:
        return _at(value[step], rest, path)
    has = f"keys {', '.join(list(map(str, value))[:10])}" if isinstance(value, Mapping) else type(value).__name__
    raise LookupError(f"{path} does not lead to a value: there is no {step}, but {has}")


def _recognise(row: DataRow) -> str:
    if "prediction 1" in row:
        return "qa_feedback"
    completions = row.get("completions")
    if isinstance(completions, list) and completions and isinstance(completions[0], dict):
        return "ultrafeedback"
    return "generic"


def _generic(row: DataRow, names: Mapping[str, str]) -> dict[str, Any]:
    usual = {"query": QUERY_NAMES, "drafts": DRAFT_NAMES, "sft_target": ANSWER_NAMES}
    theirs = {ours: found for ours, keys in usual.items() if (found := next((key for key in keys if key in row), ""))}
    theirs |= names
    if "query" not in theirs:
        raise LookupError(f"none of its keys names a query; it has {', '.join(list(row)[:10]) or 'no keys'}")
    converted = {ours: field_of(row, path) for ours, path in theirs.items()}
    used = set(theirs.values())
    if "sft_target" in converted and "sft_target" not in names:
        converted["sft_target"] = _answer(converted["sft_target"])
        if not isinstance(converted["sft_target"], str | None):
            # It is something else of the same name.
            used.discard(theirs["sft_target"])
            del converted["sft_target"]
    if theirs["query"] == "instruction" and "query" not in names:
        used |= _join_input(converted, row)
    if isinstance(converted["query"], list):
        messages = [_message(turn) for turn in converted["query"]]
        if messages and isinstance(messages[-1], dict) and messages[-1]["role"] == "assistant":
            converted.setdefault("sft_target", messages.pop()["content"])
        converted["query"] = messages
    if "query" not in names:
        used |= _put_system(converted, row)
    rest = {name: value for name, value in row.items() if name not in used and name not in converted}
    return {**converted, **rest}


def _answer(value: Any) -> Any:
    """An answer as a text; some data sets write it as a list of one message."""
    if isinstance(value, list) and len(value) == 1 and isinstance(message := _message(value[0]), dict):
        return message["content"]
    return value


def _message(turn: Any) -> Any:
    """A turn with role and content. ShareGPT calls them from and value."""
    if not isinstance(turn, Mapping):
        return turn
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    return {"role": ROLES.get(role, role) if isinstance(role, str) else role, "content": content}


def _join_input(converted: dict[str, Any], row: DataRow) -> set[str]:
    """Put Alpaca's input below its instruction, and return its key."""
    for name in INPUT_NAMES:
        if isinstance(row.get(name), str):
            converted["query"] = "\n\n".join(filter(None, (converted["query"], row[name].strip())))
            return {name}
    return set()


def _put_system(converted: dict[str, Any], row: DataRow) -> set[str]:
    """Put the system message that stands beside a query before it, and return its key."""
    query = converted["query"]
    messages = [{"role": "user", "content": query}] if isinstance(query, str) else query
    for name in SYSTEM_NAMES:
        if isinstance(text := row.get(name), str) and isinstance(messages, list):
            has_system = any(isinstance(each, dict) and each["role"] == "system" for each in messages)
            if text.strip() and not has_system:
                converted["query"] = [{"role": "system", "content": text}, *messages]
            return {name}
    return set()


def _ultrafeedback(row: DataRow, names: Mapping[str, str]) -> dict[str, Any]:
    completions = row["completions"]
    scores = [_first_score(completion) for completion in completions]
    converted: dict[str, Any] = {
        "query": row["instruction"],
        "drafts": [completion["response"] for completion in completions],
        "models": [completion.get("model") for completion in completions],
        "source": row.get("source"),
    }
    known = any(score is not None for score in scores)
    return {**converted, "scores": scores} if known else converted


def _first_score(completion: Mapping[str, Any]) -> float | None:
    """The score of a completion; None if it has none."""
    scores = (completion.get(name) for name in ("overall_score", "fine-grained_score"))
    return next((float(score) for score in scores if score is not None), None)


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

"""Trace files: one JSON line per question, one file per task and settings, in the folder that record= names.

A file is written beside its final name and renamed when complete, so a reader never sees half a line, and the same
command run again replaces its file instead of growing it; what a killed run had generated is in the store. Called
by ``model`` (writes) and by everything that reads traces.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.files import atomic_write
from lm_eval_aft.core.records import Trace
from lm_eval_aft.core.usage import MAX_COUNT

MOST_NAME = 100  # characters of a task's name in a file's; the digest behind it tells tasks apart


def write_traces(folder: str, settings: dict[str, Any], traces: Sequence[Trace], suffix: str = "") -> list[Path]:
    """Write one file per task, in the order of the traces.

    Args:
        folder: Where the files go; it is made.
        settings: What was run; kept in each trace. Its digest and that of the questions with their sampling are in
            the file names, so that another run does not replace these.
        traces: What to write.
        suffix: Tells processes apart.

    Returns:
        The files.

    Raises:
        RecordError: If they cannot be written; a file that was there stays as it was.
    """
    make_folder(Path(folder))
    by_task: dict[str, list[Trace]] = {}
    for trace in traces:
        by_task.setdefault(trace.question.task, []).append(trace)
    paths = []
    for task, group in by_task.items():
        path = Path(folder, _name(task, settings, group) + suffix + ".jsonl")
        with _errors(path.parent), atomic_write(path) as partial, partial.open("w", encoding="utf-8") as file:
            file.writelines(replace(trace, settings=settings).to_json() + "\n" for trace in group)
        paths.append(path)
    return paths


def _name(task: str, settings: dict[str, Any], traces: Sequence[Trace]) -> str:
    asked = sorted(
        f"{q.chat.identity}/{q.doc_id}/{q.repeat}/{q.turn}/{q.drafts}/{q.final}" for q in (t.question for t in traces)
    )
    digest = sha256(json.dumps([settings, task, asked], sort_keys=True).encode()).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", task)[:MOST_NAME] or "task"
    return f"{name}_k{settings['k']}_l{settings['layers']}_{digest}"


def make_folder(folder: Path) -> None:
    """Make a folder for traces and see that it can be written.

    Raises:
        RecordError: If it cannot.
    """
    with _errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()


def read_traces(path: str | Path) -> Iterator[Trace]:
    """Read a trace file, or all of a folder (its subfolders included), in the order of their names.

    Raises:
        RecordError: If there is none, or a line is not a trace; the message names file and line.
    """
    path = Path(path)
    files = trace_files(path) if path.is_dir() else [path]
    if not files:
        raise RecordError(f"there are no traces in {path}: give the folder that record= named.")
    for file in files:
        yield from _read(file)


def trace_files(folder: Path) -> list[Path]:
    """The trace files below a folder, by name: without lm-eval's own logs, and what judging MT-Bench keeps."""
    return [file for file in sorted(folder.rglob("*.jsonl")) if not _is_foreign(file.absolute())]


def _is_foreign(file: Path) -> bool:
    *_, above, folder, name = "", *file.parts
    if above == "mt_bench" and folder in ("model_answer", "model_judgment"):
        return True
    return (folder, name) == ("mt_bench", "question.jsonl") or name.startswith("samples_")


def _read(file: Path) -> Iterator[Trace]:
    with _errors(file, reading=True), file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                trace = _checked(Trace.from_json(line.decode()))
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
                raise RecordError(
                    f"line {number} of {file} is not a trace ({type(error).__name__}: {error}): give files that a "
                    "run with record= wrote."
                ) from error
            yield trace


def _checked(trace: Trace) -> Trace:
    """The trace, if its texts are texts in places that so many can have: a layer of 2**63 would be counted up to."""
    most = len(trace.drafts)
    if not trace.drafts or not trace.question.chat.messages:
        raise ValueError("a trace has at least one text, and a question")
    for draft in trace.drafts:
        if not all(isinstance(place, int) and 0 <= place < most for place in (draft.layer, draft.index)):
            raise ValueError(f"layer {draft.layer!r}, index {draft.index!r} in a trace of {most} texts")
        if not isinstance(draft.completion.text, str):
            raise TypeError("a draft is not a text")
        _counted(draft.completion.generated_tokens)
    passes = {draft.layer for draft in trace.drafts}
    if passes != set(range(len(passes))):
        raise ValueError(f"texts of the layers {sorted(passes)} and of none between")
    for usage in (trace.usage, trace.computed_usage):
        _counted(*asdict(usage).values())
    asked = trace.question
    names = asked.task, asked.doc_id, asked.doc_hash, asked.repeat, asked.turn
    if not all(isinstance(name, str | int | None) for name in names):
        raise TypeError("task, doc_id, doc_hash, repeat or turn is neither a text nor a number")
    if not isinstance(trace.answer, str) or not isinstance(trace.settings, dict):
        raise TypeError("the answer is not a text, or the settings have no names")
    _counted(trace.settings["k"], trace.settings["layers"])
    return trace


def _counted(*counts: Any) -> None:
    for count in counts:
        if not isinstance(count, int | float) or not 0 <= count < MAX_COUNT:
            raise ValueError(f"a count is {count!r}")


@contextmanager
def _errors(path: Path, reading: bool = False) -> Iterator[None]:
    """Turn an OSError into a RecordError that names the path."""
    what, cure = ("read", "the folder that record= named") if reading else ("kept", "record= a folder you can write to")
    try:
        yield
    except OSError as error:
        raise RecordError(f"traces cannot be {what} at {path} ({error.strerror}): give {cure}.") from error

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
from hashlib import sha256
from pathlib import Path
from typing import Any, TextIO

from lm_eval_aft.errors import RecordError
from lm_eval_aft.records import Question, Trace


class TraceWriter:
    """Writes the traces of one batch of requests; use as a context manager."""

    def __init__(self, folder: str, settings: dict[str, Any], questions: Sequence[Question], suffix: str = "") -> None:
        """Prepare to write.

        Args:
            folder: Where the files go; it is made.
            settings: What was run, kept in each trace; its digest and the questions' are in the file name.
            questions: All that will be written.
            suffix: Tells processes apart.

        Raises:
            RecordError: If the folder cannot be made.
        """
        self._folder = Path(folder)
        self._settings, self._suffix = settings, suffix
        self._asked: dict[str, list[str]] = {}
        for question in questions:
            self._asked.setdefault(question.task, []).append(f"{question.chat.identity}/{question.doc_id}/{question.repeat}")
        self._files: dict[str, TextIO] = {}
        make_folder(self._folder)

    def __enter__(self) -> TraceWriter:
        return self

    def write(self, trace: Trace) -> None:
        """Append a trace to its task's file."""
        task = trace.question.task
        with _errors(self._folder):
            if task not in self._files:
                self._files[task] = self._path(task).with_suffix(".partial").open("w", encoding="utf-8")
            self._files[task].write(trace.to_json() + "\n")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with _errors(self._folder):
            for task, file in self._files.items():
                file.close()
                if kind is None:
                    os.replace(file.name, self._path(task))

    def _path(self, task: str) -> Path:
        parts = json.dumps([self._settings, sorted(self._asked[task])], sort_keys=True)
        digest = sha256(parts.encode()).hexdigest()[:8]
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", task) or "task"
        return self._folder / f"{name}_k{self._settings['k']}_l{self._settings['layers']}_{digest}{self._suffix}.jsonl"


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
    files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    files = [file for file in files if not file.name.startswith("samples_")]  # lm-eval's own logs
    if not files:
        raise RecordError(f"there are no traces in {path}: give the folder that record= named.")
    for file in files:
        yield from _read(file)


def _read(file: Path) -> Iterator[Trace]:
    with _errors(file), file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield Trace.from_json(line)
            except (ValueError, KeyError, TypeError) as error:
                raise RecordError(
                    f"line {number} of {file} is not a trace ({type(error).__name__}: {error}): give files that a "
                    "run with record= wrote."
                ) from error


class _errors:
    """Turns an OSError into a RecordError that names the path."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, OSError):
            raise RecordError(
                f"traces cannot be kept at {self._path} ({error.strerror}): give record= a folder you can write to."
            ) from error

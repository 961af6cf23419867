"""Trace files: one line of JSON per question, one file per task and settings, in the folder that ``record=`` names.

A file replaces an older one only when it is complete, so a reader never sees half a line. The same command run again
replaces its own file. What a killed run has generated is in the draft store.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any

from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.files import atomic_write, files_below, reading
from lm_eval_aft.core.jsonl import iterate_jsonl
from lm_eval_aft.core.names import check_models
from lm_eval_aft.core.paths import missing_or
from lm_eval_aft.core.records import Draft, Grade, Question, Sampling, Trace
from lm_eval_aft.core.usage import MAX_COUNT

# Characters of a task's name in a file name. The digest behind the name tells tasks apart.
MAX_TASK_LENGTH = 100
# What fields of samplings, drafts and completions may be. JSON may hold whole numbers as floats.
_NUMBERS = (
    "temperature",
    "top_p",
    "top_k",
    "max_tokens",
    "beams",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "seed",
    "elapsed_s",
    "prompt_tokens",
    "computed_prompt_tokens",
)
_TYPES: dict[str, Any] = {
    **dict.fromkeys(_NUMBERS, (int, float)),
    **dict.fromkeys(("seeded", "reused"), int),
    "finish_reason": str,
}


def write_traces(folder: str, settings: dict[str, Any], traces: Sequence[Trace], suffix: str = "") -> list[Path]:
    """Write one file per task, in the order of the traces.

    Args:
        folder: Where the files go. It is made if it is missing.
        settings: Settings of the run, kept in each trace. The name of a file holds a digest of them and of the
            questions with their sampling, so that another run does not replace the file.
        traces: The traces to write.
        suffix: Tells the files of several processes apart.

    Returns:
        The files.

    Raises:
        RecordError: If a file cannot be written. A file that was there stays as it was.
    """
    make_folder(Path(folder))
    by_task: dict[str, list[Trace]] = {}
    for trace in traces:
        by_task.setdefault(trace.question.task, []).append(trace)
    paths = []
    for task, group in by_task.items():
        questions = [trace.question for trace in group]
        path = Path(folder, file_stem(task, settings, questions) + suffix + ".jsonl")
        with _writing(path.parent), atomic_write(path) as partial, partial.open("w", encoding="utf-8") as file:
            file.writelines(replace(trace, settings=settings).to_json() + "\n" for trace in group)
        paths.append(path)
    return paths


def file_stem(task: str, settings: dict[str, Any], questions: Sequence[Question]) -> str:
    """The name of a run's files of a task. Runs with other settings or questions have another name."""
    asked = sorted(f"{q.chat.identity}/{q.doc_id}/{q.repeat}/{q.turn}/{q.drafts}/{q.final}" for q in questions)
    digest = sha256(json.dumps([settings, task, asked], sort_keys=True).encode()).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", task)[:MAX_TASK_LENGTH] or "task"
    return f"{name}_k{settings['k']}_l{settings['layers']}_{digest}"


def make_folder(folder: Path) -> None:
    """Make a folder for traces and check that it can be written.

    Raises:
        RecordError: If it cannot.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()


def read_traces(path: str | Path) -> Iterator[Trace]:
    """Read a trace file, or every trace file in a folder and its subfolders, in the order of their names.

    Yields:
        One trace at a time.

    Raises:
        RecordError: If there are no traces, or a line is not a trace. The message names the file and the line.
    """
    path = Path(path)
    files = trace_files(path) if path.is_dir() else [path] if path.exists() else []
    if not files:
        raise no_traces(path)
    for file in files:
        for where, row in iterate_jsonl(file):
            with reading(where, "a trace"):
                trace = Trace.from_dict(row)
                _check(trace)
            yield trace


def rewrite_traces(file: Path, change: Callable[[Trace], Trace]) -> None:
    """Replace the traces of a file, whole or not at all. If ``change`` raises, the file stays as it was.

    Args:
        file: A trace file.
        change: Makes the new trace from the old one.

    Raises:
        RecordError: If the file cannot be read or written.
    """
    with _writing(file), atomic_write(file) as partial, partial.open("w", encoding="utf-8") as lines:
        lines.writelines(change(trace).to_json() + "\n" for trace in read_traces(file))


def no_traces(path: Path) -> RecordError:
    """The error for a path without traces."""
    return RecordError(f"{missing_or(path, f'there are no traces in {path}')}: give the folder that record= named.")


def trace_files(folder: Path) -> list[Path]:
    """The trace files in a folder and its subfolders, by name. lm-eval's samples and MT-Bench's files are left out."""
    return [file for file in files_below(folder, "*.jsonl") if not _is_foreign(file.absolute())]


def _is_foreign(file: Path) -> bool:
    *_, above, folder, name = "", *file.parts
    if above == "mt_bench" and folder in ("model_answer", "model_judgment"):
        return True
    return (folder, name) == ("mt_bench", "question.jsonl") or name.startswith("samples_")


def _check(trace: Trace) -> None:
    """Raise ValueError or TypeError if a value has a wrong type, or a number is out of range.

    Readers count up to some of these numbers, so a layer of 2**63 would never end.
    """
    if not trace.drafts or not trace.question.chat.messages:
        raise ValueError("a trace has at least one text, and a question")
    for draft in trace.drafts:
        _check_draft(draft, len(trace.drafts))
    for record in (trace.question.drafts, trace.question.final, *trace.drafts, *(d.completion for d in trace.drafts)):
        _check_types(record)
    layers = {draft.layer for draft in trace.drafts}
    if layers != set(range(len(layers))):
        raise ValueError(f"texts of the layers {sorted(layers)} and of none between")
    for usage in (trace.usage, trace.computed_usage, *trace.usage_by_model.values()):
        _check_counts(*_values(usage))
    _check_names(trace.question)
    if not isinstance(trace.answer, str) or not isinstance(trace.settings, dict):
        raise TypeError("the answer is not a text, or the settings have no names")
    for settings in (trace.settings, trace.settings.get("drafts_from")):
        check_models(settings if isinstance(settings, dict) else {})
    _check_counts(trace.settings["k"], trace.settings["layers"], *trace.draft_tokens)
    for layer in trace.cut_tokens:
        _check_counts(*layer)
    if trace.grades and len(trace.grades) != len(trace.drafts):
        raise ValueError(f"grades of {len(trace.grades)} texts in a trace of {len(trace.drafts)}")
    for grade in (grade for text in trace.grades for grade in text):
        _check_grade(grade)


def _check_types(record: Any) -> None:
    for name, allowed in _TYPES.items():
        if name in record.__slots__ and not isinstance(value := getattr(record, name), allowed):
            raise TypeError(f"{name} is {value!r:.100}")
    if isinstance(record, Sampling) and not all(isinstance(mark, str) for mark in record.until):
        raise TypeError(f"until is {record.until!r:.100}")


def _values(record: Any) -> list[Any]:
    """The values of a record with slots. ``asdict`` would copy each of them."""
    return [getattr(record, name) for name in record.__slots__]


def _check_draft(draft: Draft, count: int) -> None:
    if not all(isinstance(place, int) and 0 <= place < count for place in (draft.layer, draft.index)):
        raise ValueError(f"layer {draft.layer!r}, index {draft.index!r} in a trace of {count} texts")
    if not isinstance(draft.completion.text, str) or not isinstance(draft.opened_thought, str):
        raise TypeError("a draft or its opened thought is not a text")
    _check_counts(draft.completion.generated_tokens)
    look_ahead = draft.completion.look_ahead
    _check_counts(*(_values(look_ahead) if look_ahead else ()))
    confidence = draft.completion.confidence
    for number in _values(confidence) if confidence else ():
        if not isinstance(number, int | float) or not isfinite(number):
            raise ValueError(f"a confidence is {number!r:.100}")


def _check_grade(grade: Grade) -> None:
    if not isinstance(grade.filter, str) or not isinstance(grade.answer, str | None):
        raise TypeError("a filter's name or answer is not a text")
    if not all(isinstance(value, int | float) and isfinite(value) for value in grade.metrics.values()):
        raise ValueError(f"a grade is {grade.metrics!r}")


def _check_names(question: Question) -> None:
    names = question.task, question.doc_id, question.doc_hash, question.repeat, question.turn
    if not all(isinstance(name, str | int | None) for name in names):
        raise TypeError("task, doc_id, doc_hash, repeat or turn is neither a text nor a number")
    texts = [part for message in question.chat.messages for part in (message.role, message.content)]
    texts += [question.task, question.think_end, question.chat.prefill, *question.until]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a message, the task, think_end, prefill or until is not a text")


def _check_counts(*counts: Any) -> None:
    for count in counts:
        if not isinstance(count, int | float) or not 0 <= count < MAX_COUNT:
            raise ValueError(f"a count is {count!r}")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecordError(
            f"traces cannot be kept at {path} ({error.strerror}): give record= a folder you can write to."
        ) from error

"""Grades for the traces of runs that are over: the task is built by its name and grades every stored text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.records import Trace
from lm_eval_aft.inference.task_grading import (
    GradingLog,
    StoredDocuments,
    TaskGrader,
    TaskLoader,
    grade_trace,
    ungradable,
)
from lm_eval_aft.storage.traces import read_traces, rewrite_traces


@dataclass(frozen=True, slots=True)
class GradeOptions:
    """What the user says about grading.

    Attributes:
        task: Grade the traces of this task alone; None for all.
        again: Grade texts anew that have grades.
        folders: Folders of tasks, besides those of lm-eval and of this package.
        unsafe_code: Whether tasks may run what a model wrote.
        model_args: For each task the model arguments of its run, which lm-eval hands to its tasks.
        groups: For each task the groups that it was in, the outer ones first.
    """

    task: str | None = None
    again: bool = False
    folders: tuple[str, ...] = ()
    unsafe_code: bool = False
    model_args: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GradedFile:
    """What was done to the traces of one task in one file.

    Attributes:
        file: The trace file.
        task: Name of the task.
        outcome: A sentence.
        refused: Whether the texts were not graded.
    """

    file: Path
    task: str
    outcome: str
    refused: bool = False


def grade_files(files: Sequence[Path], options: GradeOptions) -> Iterator[GradedFile]:
    """Grade the texts of stored traces, file by file. Files whose texts are graded stay as they are.

    Args:
        files: Trace files.
        options: What to grade, and how.

    Yields:
        What was done, for each file and task.

    Raises:
        RecordError: If a file cannot be read.
    """
    loader = TaskLoader(options.folders)
    sources: dict[str, tuple[TaskGrader, StoredDocuments]] = {}
    refused: dict[str, str] = {}
    for file in files:
        for task, (reason, refuses) in _tasks(file, options).items():
            if reason:
                yield GradedFile(file, task, reason, refuses)
                continue
            try:
                if task in refused:
                    raise RecordError(refused[task])
                if task not in sources:
                    sources[task] = _source(task, loader, options)
                yield GradedFile(file, task, _grade_file(file, task, *sources[task], options.again))
            except RecordError as error:
                refused[task] = str(error)
                yield GradedFile(file, task, f"{str(error)[0].upper()}{str(error)[1:]}", refused=True)


def _tasks(file: Path, options: GradeOptions) -> dict[str, tuple[str, bool]]:
    """The tasks of a file, each with why its texts are not graded now, or "", and whether they are refused."""
    reasons: dict[str, str] = {}
    seen: set[tuple[str, int, int, int]] = set()
    graded: dict[str, bool] = {}
    for trace in read_traces(file):
        question = trace.question
        task, key = question.task, (question.task, question.doc_id, question.repeat, question.turn)
        if options.task not in (None, task):
            continue
        reason = "its task makes several requests of one document" if key in seen else ungradable(trace)
        seen.add(key)
        graded[task] = graded.get(task, True) and bool(trace.grades)
        reasons[task] = reasons.get(task) or (f"The texts of {task} cannot be graded: {reason}." if reason else "")
    outcomes = {task: (reason, bool(reason)) for task, reason in reasons.items()}
    for task, whole in graded.items():
        if whole and not options.again:
            outcomes[task] = f"The texts of {task} are graded already; --again grades them anew.", False
    return outcomes


def _source(task: str, loader: TaskLoader, options: GradeOptions) -> tuple[TaskGrader, StoredDocuments]:
    """The task and its documents.

    Raises:
        RecordError: If the task cannot be loaded, or must not be.
    """
    grader = loader.load(task, options.groups.get(task, ()), options.model_args.get(task, {}))
    if reason := grader.refusal(options.unsafe_code):
        raise RecordError(f"the texts of {task} are not graded: {reason}.")
    return grader, StoredDocuments(grader)


def _grade_file(file: Path, task: str, grader: TaskGrader, documents: StoredDocuments, again: bool) -> str:
    """Grade the texts of one task in a file, and write the file. Returns a sentence."""
    done, before = GradingLog(), 0

    def graded(trace: Trace) -> Trace:
        nonlocal before
        if trace.question.task != task:
            return trace
        if trace.grades and not again:
            before += 1
            return trace
        return grade_trace(trace, grader, documents.find(trace.question), done)

    rewrite_traces(file, graded)
    parts = [f"{done.texts:,} texts of {task} are graded; {done.without_answer:,} without an answer are wrong."]
    if before:
        parts.append(f"Those of {before:,} questions had grades.")
    if done.unscored:
        parts.append(f"{done.unscored:,} documents have no metric that is a number, so no grades.")
    if done.failed:
        parts.append(done.sentence(task))
    return " ".join(parts)

"""The state of a run: what it will generate and what it has done, in a small file of the folder that ``record=`` names.

``aft watch`` reads the file. The run writes it at its start, every two seconds while something changes, every ten
seconds otherwise, and at its end. A killed run leaves its last state. The same command writes the same file again.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any

from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.files import files_below, reading, write_text
from lm_eval_aft.core.jsonl import read_json
from lm_eval_aft.core.log import warn_once
from lm_eval_aft.core.records import Draft, Trace
from lm_eval_aft.core.usage import MAX_COUNT

# A JSON file is a state if its field "format" says so.
FORMAT = "lm_eval_aft run state"
PREFIX = "run_"
WRITE_AFTER_S = 2.0
# A run that changes nothing, such as one whose first batch takes minutes, still shows that it is alive.
SIGN_OF_LIFE_S = 10.0
RUNNING, STOPPED, FINISHED = STATUSES = ("running", "stopped", "finished")


@dataclass(frozen=True, slots=True)
class MeanGrade:
    """The mean of one metric over the graded questions of a task.

    Attributes:
        task: Name of the task.
        metric: Name of the metric and of lm-eval's filter, such as "exact_match,flexible-extract".
        answers: Mean of the answers.
        drafts: Mean of the drafts, all drafts of a question first.
        questions: Number of questions.
    """

    task: str
    metric: str
    answers: float
    drafts: float
    questions: int


@dataclass(frozen=True, slots=True)
class RunState:
    """What one process of a run will generate, and what it has done.

    Attributes:
        model: Name of the model.
        engine: Name of the engine.
        strategy: Name of the strategy.
        questions: Number of questions of each task.
        k: Drafts a question.
        layers: Aggregation layers.
        generations: Generations of the whole run.
        rank: Number of this process, from 0.
        processes: Number of processes that share the run. Each has a state of its own.
        status: "running", "stopped" by a signal or an error, or "finished". A killed run stays at "running".
        started: When the run began, in seconds since 1970.
        updated: When the state was written, in seconds since 1970.
        layer: What is written now, such as "drafts" or "layer 1 of 2".
        layer_generations: Generations of that layer.
        layer_done: How many of them are done.
        layer_new: How many of them were generated now, not reused.
        layer_s: Seconds from the start of the layer to its newest generation.
        done: Generations done in all layers.
        reused: How many of them came from the draft store, or from an equal request.
        generated_tokens: Tokens of the generations that were not reused.
        generating_s: Seconds in which those were generated.
        cut: How many of the texts ended at their token limit.
        empty: How many of the texts hold no answer.
        traces: Names of the trace files, once they are written.
        grades: What the task makes of the answers and drafts, once they are graded.
    """

    model: str
    engine: str
    strategy: str
    questions: Mapping[str, int]
    k: int
    layers: int
    generations: int
    rank: int = 0
    processes: int = 1
    status: str = RUNNING
    started: float = 0.0
    updated: float = 0.0
    layer: str = ""
    layer_generations: int = 0
    layer_done: int = 0
    layer_new: int = 0
    layer_s: float = 0.0
    done: int = 0
    reused: int = 0
    generated_tokens: int = 0
    generating_s: float = 0.0
    cut: int = 0
    empty: int = 0
    traces: tuple[str, ...] = ()
    grades: tuple[MeanGrade, ...] = ()

    def to_json(self) -> str:
        """The state as the text of its file."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> RunState:
        """Make a state from a parsed file. Fields of a newer version are left out.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: If the row is not a state. Callers name the file.
        """
        known = {each.name: row[each.name] for each in fields(cls) if each.name in row}
        grades = tuple(MeanGrade(**grade) for grade in row.get("grades", ()))
        state = cls(**{**known, "traces": tuple(row.get("traces", ())), "grades": grades})
        _check(state)
        return state


def _check(state: RunState) -> None:
    """Raise ValueError or TypeError if a value has a wrong type, or a number is out of range."""
    for each in fields(RunState):
        value = getattr(state, each.name)
        if each.type == "str" and not isinstance(value, str):
            raise TypeError(f"{each.name} is not a text")
        if each.type in ("int", "float"):
            _check_count(each.name, value)
    for task, count in state.questions.items():
        _check_count(task, count)
    if state.status not in STATUSES:
        raise ValueError(f"status is {state.status!r}")
    if not all(isinstance(name, str) for name in state.traces):
        raise TypeError("a trace file has no name")
    for grade in state.grades:
        if not isinstance(grade.task, str) or not isinstance(grade.metric, str):
            raise TypeError("a grade names no task or metric")
        _check_count("questions", grade.questions)
        if not all(isinstance(value, int | float) and isfinite(value) for value in (grade.answers, grade.drafts)):
            raise ValueError(f"a grade is {grade!r}")


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < MAX_COUNT:
        raise ValueError(f"{name} is {value!r}")


def read_run_states(folder: Path) -> list[tuple[Path, RunState]]:
    """The states of all runs in a folder and its subfolders, by path. Other JSON files are left out.

    Raises:
        RecordError: If a file cannot be read, or is damaged.
    """
    states = []
    for path in [path for path in files_below(folder, f"{PREFIX}*.json") if path.is_file()]:
        row = read_json(path, "the state of a run")
        if isinstance(row, dict) and row.get("format") == FORMAT:
            with reading(path, "the state of a run"):
                states.append((path, RunState.from_dict(row)))
    return states


def mean_grades(traces: Sequence[Trace]) -> tuple[MeanGrade, ...]:
    """The mean of each metric of each task, over the traces that hold grades."""
    values: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for trace in traces:
        drafts = [grades for draft, grades in zip(trace.drafts, trace.grades, strict=False) if draft.layer == 0]
        for place, grade in enumerate(trace.grades[-1] if trace.grades else ()):
            for metric, value in grade.metrics.items():
                written = [text[place].metrics[metric] for text in drafts if metric in text[place].metrics]
                means = values.setdefault((trace.question.task, f"{metric},{grade.filter}"), [])
                means.append((value, sum(written) / len(written) if written else value))
    grades = []
    for (task, metric), means in values.items():
        answers, drafts = (sum(column) / len(means) for column in zip(*means, strict=True))
        grades.append(MeanGrade(task, metric, answers, drafts, len(means)))
    return tuple(grades)


class RunRecorder:
    """Counts what a run does. With a path, the counts are kept in a file."""

    def __init__(self, state: RunState | None = None, path: Path | None = None) -> None:
        """Begin to count.

        Args:
            state: What the run will do.
            path: The file, or None.
        """
        self.path = path
        self._state = state or RunState("", "", "", {}, 0, 0, 0)
        # Counting takes a microsecond a generation. Making a state takes twenty.
        self._counts: dict[str, Any] = {each.name: getattr(self._state, each.name) for each in fields(RunState)}
        self._written: dict[str, Any] = {}
        self._layer_began = self._earlier_s = 0.0

    @property
    def state(self) -> RunState:
        """The state so far."""
        return replace(self._state, **self._counts)

    def begin_layer(self, name: str, generations: int) -> None:
        """Begin a layer.

        Args:
            name: What progress bars call it.
            generations: How many it has.
        """
        self._layer_began, self._earlier_s = time.monotonic(), self._counts["generating_s"]
        self._counts |= {"layer": name, "layer_generations": generations}
        self._counts |= {"layer_done": 0, "layer_new": 0, "layer_s": 0.0}

    def add(self, draft: Draft, *, empty: bool) -> None:
        """Count a generation that is done; ``empty`` says that its text holds no answer."""
        counts = self._counts
        counts["done"] += 1
        counts["layer_done"] += 1
        counts["reused"] += draft.reused
        counts["cut"] += draft.cut
        counts["empty"] += empty
        if not draft.reused:
            counts["layer_new"] += 1
            counts["layer_s"] = time.monotonic() - self._layer_began
            counts["generating_s"] = self._earlier_s + counts["layer_s"]
            counts["generated_tokens"] += draft.completion.generated_tokens

    def add_traces(self, files: Sequence[Path]) -> None:
        """Name the trace files of the run."""
        self._counts["traces"] += tuple(file.name for file in files)

    def add_grades(self, traces: Sequence[Trace]) -> None:
        """Keep the mean grades of a run's traces."""
        self._counts["grades"] = mean_grades(traces)

    def write(self, status: str = RUNNING) -> None:
        """Write the file. If that fails, a warning says so once, and the run continues."""
        if self.path is None:
            return
        self._counts |= {"status": status, "updated": time.time()}
        self._written = dict(self._counts)
        try:
            write_text(self.path, replace(self._state, **self._written).to_json())
        except RecordError as error:
            warn_once(f"aft watch cannot show this run: {error}")

    def write_if_due(self) -> None:
        """Write the file if the counts changed, or if it is time for a sign of life."""
        if self._counts != self._written or time.time() - self._counts["updated"] >= SIGN_OF_LIFE_S:
            self.write()


@contextmanager
def recording(state: RunState, path: Path | None) -> Iterator[RunRecorder]:
    """Keep the state of a run in a file while a block runs.

    Args:
        state: What the run will do.
        path: The file. None keeps nothing.

    Yields:
        What counts the generations.
    """
    recorder = RunRecorder(replace(state, started=time.time()), path)
    ended = threading.Event()
    recorder.write()

    def write_regularly() -> None:
        while not ended.wait(WRITE_AFTER_S):
            recorder.write_if_due()

    thread = threading.Thread(target=write_regularly, name="run state", daemon=True)
    started, status = path is not None and _start(thread), STOPPED
    try:
        yield recorder
        status = FINISHED
    finally:
        ended.set()
        if started:
            thread.join()
        recorder.write(status)


def _start(thread: threading.Thread) -> bool:
    try:
        thread.start()
    # Memory has run out. The file is then written at the start and the end only.
    except RuntimeError:
        return False
    return True

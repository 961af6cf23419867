"""What runs are doing now: their counts, speed and time left, from the states that they write and from draft stores.

Nothing is written, and no lock is waited for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.files import files_below
from lm_eval_aft.core.terminal import message
from lm_eval_aft.storage.draft_store import StoreCounts, count_store
from lm_eval_aft.storage.run_state import (
    FINISHED,
    RUNNING,
    SIGN_OF_LIFE_S,
    STOPPED,
    MeanGrade,
    RunState,
    read_run_states,
)

# The name of the draft store in the folder of record=.
STORE_NAME = "drafts.sqlite"
# A run without a sign of life for this long was killed.
KILLED_AFTER_S = 3 * SIGN_OF_LIFE_S
KILLED = "killed"
# In the order in which runs are shown.
_ORDER = (RUNNING, KILLED, STOPPED, FINISHED)
_LONGEST_S = 1000 * 86_400
_LABEL_WIDTH = 10
# A run of more tasks shows their number instead of their names.
MAX_NAMES = 4


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at one moment.

    Attributes:
        seconds: When, in seconds since 1970.
        runs: The state of each run.
        stores: What each draft store holds, by its path.
    """

    seconds: float
    runs: tuple[RunState, ...]
    stores: dict[str, StoreCounts]

    @property
    def over(self) -> bool:
        """Whether every run has finished. A store alone does not say so."""
        return bool(self.runs) and all(state.status == FINISHED for state in self.runs)


@dataclass(frozen=True, slots=True)
class Line:
    """One line about a run; ``share`` is the part that is done, in [0, 1], or None."""

    label: str
    text: str
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """The lines about one run or store."""

    title: str
    lines: tuple[Line, ...]


def look_at(path: Path) -> Look:
    """Look at a folder of runs, or at a draft store.

    Args:
        path: The folder that ``record=`` names or one above it, or the file of a draft store.

    Raises:
        RecordError: If there is neither a run nor a store, or the state of a run is damaged.
        StoreError: If the file is not a draft store, or is damaged.
    """
    if path.is_file():
        return Look(time.time(), (), {str(path): count_store(path)})
    if not path.exists():
        raise RecordError(f"{path} does not exist: give the folder that record= names, or the file that cache= names.")
    runs = tuple(state for _, state in read_run_states(path)) if path.is_dir() else ()
    files = [file for file in files_below(path, STORE_NAME) if file.is_file()]
    stores = {str(file.relative_to(path)): count_store(file) for file in files}
    if not runs and not stores:
        raise RecordError(
            f"there is neither a run nor a draft store in {path}: give the folder that record= named, or the file that "
            "cache= named."
        )
    return Look(time.time(), runs, stores)


def status_of(state: RunState, now: float) -> str:
    """What a run is doing: its own word, or "killed" if it should be running and shows no sign of life."""
    lost = state.status == RUNNING and now - state.updated > KILLED_AFTER_S
    return KILLED if lost else state.status


def blocks(look: Look, first: Look | None = None) -> list[Block]:
    """The lines about each run, those under way first, and about each store.

    Args:
        look: What was seen.
        first: What the same command saw first. The speed of a store is counted from there.
    """
    order = {status: place for place, status in enumerate(_ORDER)}
    runs = sorted(look.runs, key=lambda state: (order.get(status_of(state, look.seconds), 0), -state.started))
    shown = [_run_block(state, look.seconds) for state in runs]
    for name, counts in look.stores.items():
        before = first.stores.get(name) if first else None
        waited_s = look.seconds - first.seconds if first else 0.0
        shown.append(Block(message(name), tuple(_store_lines(counts, before, waited_s, look))))
    return shown


def as_lines(shown: list[Block]) -> str:
    """Blocks as plain text."""
    lines = []
    for block in shown:
        lines += [block.title, *(f"  {line.label:<{_LABEL_WIDTH}}  {line.text}".rstrip() for line in block.lines)]
    return "\n".join(lines)


# ---------------------------------------------------------------- runs


def _run_block(state: RunState, now: float) -> Block:
    settings = f"k={state.k}, layers={state.layers}"
    settings += f", {state.strategy}" if state.strategy != "aggregate" else ""
    part = f", process {state.rank + 1} of {state.processes}" if state.processes > 1 else ""
    title = message(f"{_questions(state)}: {state.model}, {state.engine}, {settings}{part}")
    status = status_of(state, now)
    lines = [Line(status, _status_text(state, status, now))]
    if status != FINISHED:
        lines += [Line("now", *_progress(f"{state.layer}: ", state.layer_done, state.layer_generations))]
        lines += [Line("whole run", *_progress("", state.done, state.generations))]
    new = state.done - state.reused
    lines += [
        Line("generated", f"{new:,.0f} new ({state.generated_tokens:,.0f} tokens), {state.reused:,.0f} reused"),
        Line("speed", _speed(state.generated_tokens, new, state.generating_s)),
        Line("texts", f"{state.cut:,.0f} cut at the token limit, {state.empty:,.0f} without an answer"),
    ]
    lines += [Line("score", _grade_text(grade, state)) for grade in state.grades]
    return Block(title, tuple(Line(line.label, message(line.text), line.share) for line in lines))


def _grade_text(grade: MeanGrade, state: RunState) -> str:
    task = f"{grade.task} " if len(state.questions) > 1 else ""
    drafts = f", drafts {grade.drafts:.3f}" if state.layers else ""
    return f"{task}{grade.metric} {grade.answers:.3f}{drafts} (n = {grade.questions:,.0f})"


def _questions(state: RunState) -> str:
    if len(state.questions) > MAX_NAMES:
        return f"{len(state.questions):,} tasks ({sum(state.questions.values()):,.0f} questions)"
    return ", ".join(f"{task} ({count:,.0f} questions)" for task, count in state.questions.items())


def _status_text(state: RunState, status: str, now: float) -> str:
    if status == RUNNING:
        left_s = _left_s(state)
        return f"for {duration(now - state.started)}" + ("" if left_s is None else f", about {duration(left_s)} left")
    took = f"after {duration(state.updated - state.started)}"
    if status == KILLED:
        return f"{took}: no sign of life for {duration(now - state.updated)}; the same command resumes the run"
    return f"{took}: the same command resumes the run" if status == STOPPED else took


def _progress(name: str, done: int, generations: int) -> tuple[str, float]:
    share = min(1.0, done / generations) if generations else 1.0
    left = max(0, generations - done)
    # 99.9% is not 100%.
    return f"{name}{done:,.0f} of {generations:,.0f} generations ({int(100 * share)}%), {left:,.0f} left", share


def _left_s(state: RunState) -> float | None:
    """Seconds until the run ends, if all that is left is generated at the speed of the layer; None if not known."""
    left = max(0, state.generations - state.done)
    new = state.done - state.reused
    if state.layer_new > 0:
        return left * state.layer_s / state.layer_new
    return left * state.generating_s / new if new > 0 else None


def _speed(tokens: float, generations: float, seconds: float) -> str:
    if seconds <= 0 or generations <= 0:
        return "not known yet"
    return f"{tokens / seconds:,.0f} tokens/s, {generations / seconds:,.1f} generations/s"


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds, such as 1:02:03."""
    if seconds > _LONGEST_S:
        return "more than 1,000 days"
    whole = int(max(0.0, seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


# ---------------------------------------------------------------- stores


def _store_lines(counts: StoreCounts, before: StoreCounts | None, waited_s: float, look: Look) -> list[Line]:
    kept = f"{counts.generations:,.0f} generations, {counts.generated_tokens:,.0f} tokens"
    age = duration(look.seconds - counts.changed)
    lines = [Line("stored", f"{kept}, {counts.file_bytes / 1e6:,.1f} MB, last written {age} ago")]
    if look.runs:
        return lines
    if before:
        tokens = counts.generated_tokens - before.generated_tokens
        lines.append(Line("speed", _speed(tokens, counts.generations - before.generations, waited_s)))
    return [*lines, Line("texts", f"{counts.cut:,.0f} cut at the token limit, {counts.blank:,.0f} empty")]

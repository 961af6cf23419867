"""The folder of a training run: what it holds, and whether a run can go on in it.

    run.json          kind, settings, data digest, state
    log.jsonl         loss and learning rate by step
    checkpoints/      Trainer's own, to go on from; whole ones hold aft_config.json, which is written last
    aft_config.json   what lm_eval_aft reads; beside it the adapter or the weights, the tokenizer and README.md
    merged/           the full checkpoint that --merge writes

Knows nothing of models. Called by ``train`` and ``loop``.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm_eval_aft import __version__
from lm_eval_aft.checkpoint import FILE
from lm_eval_aft.errors import ConfigError, EngineError
from trainers.config import BAKED, Kind, TrainConfig, make_config
from trainers.rows import file_digest, write_jsonl

FULL_DISK = ("No space left", "os error 28", "PytorchStreamWriter failed")


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is about to start or to go on.

    Attributes:
        kind: Which of the four trainings.
        config: The settings that count, after those of a started run have won where they must.
        data_digest: SHA-256 of the data file.
        resume_from: Checkpoint to go on from, or None.
        finished: Nothing is left to train.
        notes: What was decided, in sentences.
    """

    kind: Kind
    config: TrainConfig
    data_digest: str
    resume_from: Path | None = None
    finished: bool = False
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return Path(self.config.output)

    @property
    def log(self) -> Path:
        """The JSONL log."""
        return self.folder / "log.jsonl"

    def write_state(self, finished: bool) -> None:
        """Write run.json."""
        state = {
            "kind": self.kind,
            "finished": finished,
            "data_digest": self.data_digest,
            "version": __version__,
            "config": self.config.to_dict(),
        }
        write_jsonl(self.folder / "run.json", [state])


def open_run(kind: Kind, config: TrainConfig) -> Run:
    """Begin a run, or find where one was interrupted.

    Raises:
        ConfigError: If the folder holds something else, another kind of training, or a run on other data.
    """
    try:
        digest = file_digest(config.data)
    except OSError as error:
        raise ConfigError(f"data={config.data} cannot be read ({error}): give a JSONL file.") from error
    folder = Path(config.output)
    if not (folder / "run.json").is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"output={folder} exists and is not the folder of a training run: give another.")
        return Run(kind, config, digest)
    state = _read_state(folder / "run.json")
    for name, before, now in (("kind", state["kind"], kind), ("data", state["data_digest"], digest)):
        if before != now:
            raise ConfigError(
                f"the run in {folder} was started with {name} {before[:12]}, now it is {now[:12]}: give another output."
            )
    return _resume(Run(kind, config, digest), state)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        make_config(state["config"], str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): give another output.") from error
    return state


def _resume(run: Run, state: dict[str, Any]) -> Run:
    """Settings that are baked into the started run win over the new ones, the others lose."""
    before = make_config({k: v for k, v in state["config"].items() if v not in (None, [])}, "run.json")
    old, new = before.to_dict(), run.config.to_dict()
    changed = [name for name in new if name != "output" and new[name] != old[name]]
    baked = [name for name in changed if name in BAKED]
    notes = [f"{name} stays {old[name]}: the run was started with it, {new[name]} does not count." for name in baked]
    notes += [f"{name} is now {new[name]} (was {old[name]})." for name in changed if name not in baked]
    config = replace(run.config, **{name: getattr(before, name) for name in baked})
    newest = _newest_checkpoint(run.folder)
    if not state["finished"]:
        where = (
            f"goes on after {newest.name.replace('-', ' ')}" if newest else "starts again: no checkpoint was written"
        )
        notes.append(f"the run in {run.folder} {where}.")
    return replace(run, config=config, resume_from=newest, finished=state["finished"], notes=tuple(notes))


@contextmanager
def disk_guard(run: Run) -> Iterator[None]:
    """Turn a full disk into a sentence: what was saved before is whole, and the run goes on from there.

    Raises:
        EngineError: If a file could not be written for want of space.
    """
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if not full and not any(sign in str(error) for sign in FULL_DISK):  # torch and safetensors have no errno
            raise
        raise EngineError(
            f"the disk is full: a checkpoint could not be written to {run.folder} ({error}); free some space and give "
            "the same command, it goes on from the last whole checkpoint."
        ) from error


def _newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; halves of one are removed."""
    whole: list[Path] = []
    for path in folder.glob("checkpoints/checkpoint-*"):
        if (path / FILE).is_file():
            whole.append(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def trim_log(path: Path, step: int) -> None:
    """Remove the lines after a step: a run that goes on writes them again."""
    if path.is_file():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        write_jsonl(path, [row for row in rows if row["step"] <= step])

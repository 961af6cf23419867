"""The folder of a training run: what it holds, and how it is kept whole.

    run.json          kind, settings, digests of data and template, number of processes, state
    log.jsonl         loss and learning rate by step
    checkpoints/      Trainer's own, to go on from; whole ones hold aft_config.json, which is written last
    aft_config.json   what lm_eval_aft reads; beside it the adapter or the weights, the tokenizer and README.md
    merged/           the full checkpoint that --merge writes

Knows nothing of models. Called by ``resume``, ``loop`` and what writes into it.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lm_eval_aft import __version__
from lm_eval_aft.core.errors import ConfigError, EngineError
from lm_eval_aft.core.jsonl import write_jsonl
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.inference.checkpoint import FILE
from trainers.settings import Kind, TrainConfig

FULL_DISK = ("No space left", "os error 28", "PytorchStreamWriter failed")


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A run that is about to start or to go on.

    Attributes:
        kind: Which of the four trainings.
        config: The settings that count, after those of a started run have won where they must.
        data_digest: SHA-256 of the data file.
        template: What makes its prompts.
        processes: How many train together.
        validation_digest: SHA-256 of the validation file; None where there has been none.
        resume_from: Checkpoint to go on from, or None.
        finished: Nothing is left to train.
        most_drafts: That an example shows; known once they are drawn.
        notes: What was decided, in sentences.
    """

    kind: Kind
    config: TrainConfig
    data_digest: str
    template: Template
    processes: int
    validation_digest: str | None = None
    resume_from: Path | None = None
    finished: bool = False
    most_drafts: int = 0
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return Path(self.config.output)

    @property
    def log(self) -> Path:
        """The JSONL log."""
        return self.folder / "log.jsonl"

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step lies, or would."""
        return self.folder / "checkpoints" / f"checkpoint-{step}"

    def make_folder(self) -> None:
        """Make the folder, and find out now whether it can be written.

        Raises:
            ConfigError: If it cannot.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise ConfigError(f"output={self.folder} cannot be written ({error}): give another folder.") from error

    def remove_checkpoints(self, newest: int, best: str | None) -> None:
        """Remove all checkpoints but so many of the newest, and the best."""
        found = sorted(self.folder.glob("checkpoints/checkpoint-*"), key=_step, reverse=True)
        for path in found[newest:]:
            if path.name != Path(best or "").name:
                shutil.rmtree(path, ignore_errors=True)

    def write_state(self, finished: bool) -> None:
        """Write run.json."""
        state = {
            "kind": self.kind,
            "finished": finished,
            "data_digest": self.data_digest,
            "validation_digest": self.validation_digest,
            "template_digest": self.template.digest,
            "processes": self.processes,
            "version": __version__,
            "config": self.config.to_dict() | {"model": place(self.config.model)},
        }
        write_jsonl(self.folder / "run.json", [state])


@contextmanager
def disk_guard(run: TrainingRun) -> Iterator[None]:
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


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; halves of one are removed."""
    whole: list[Path] = []
    for path in folder.glob("checkpoints/checkpoint-*"):
        if (path / FILE).is_file():
            whole.append(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    return max(whole, key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def trim_log(path: Path, step: int) -> None:
    """Remove the lines after a step: a run that goes on writes them again."""
    if path.is_file():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        write_jsonl(path, [row for row in rows if row["step"] <= step])


def place(model: str) -> str:
    """Where a model is, for whoever starts the command from another folder; the name of one that is no folder here."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model

"""The folder of a training run: its files, and the rules that keep them whole.

run.json          kind, settings, digests of data and template, number of processes, state
log.jsonl         loss and learning rate by step
checkpoints/      Trainer's own, to resume from; aft_config.json is written last and marks a whole one
aft_config.json   what lm_eval_aft reads; beside it the adapter or the weights, the tokenizer and README.md
merged/           the full checkpoint that --merge writes
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lm_eval_aft import __version__
from lm_eval_aft.core.errors import ConfigError, EngineError
from lm_eval_aft.core.files import is_full, read_bytes, reading, refuse_stream
from lm_eval_aft.core.jsonl import parse_json, write_jsonl
from lm_eval_aft.core.loading import reason_of
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.shards import refused_shard
from lm_eval_aft.inference.checkpoint import FILE
from trainers.settings import Kind, TrainConfig

Say = Callable[[str], None]
# Tokenizer, settings, state and cards of a checkpoint.
SMALL_FILES_BYTES = 1 << 20
# What Trainer needs to continue as it would have, and the names that FSDP, DeepSpeed and several processes give it.
STATE_FILES = (
    ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*"),
    ("scheduler.pt", "global_step*"),
    ("trainer_state.json",),
    ("rng_state.pth", "rng_state_*.pth"),
)


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A training run.

    Attributes:
        kind: One of the four kinds of training.
        config: Settings in force. A resumed run keeps those of its start if they are in ``FROZEN_ON_RESUME``.
        data_digest: SHA-256 of the data file.
        template: Prompt template.
        processes: Number of processes that train together.
        validation_digest: SHA-256 of the validation file; None if the run never had one.
        resume_from: Checkpoint to resume from, or None.
        finished: Whether nothing is left to train.
        most_drafts: Most drafts of an example; 0 until they are drawn.
        notes: Decisions about the run, in sentences.
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
        """Folder of the run."""
        return Path(self.config.output)

    @property
    def log(self) -> Path:
        """The JSONL log."""
        return self.folder / "log.jsonl"

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint of a step, whether it exists or not."""
        return self.folder / "checkpoints" / f"checkpoint-{step}"

    def make_folder(self) -> None:
        """Make the folder, and check that it can be written.

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
        """Remove all checkpoints except the ``newest`` last ones and the best."""
        checkpoints = sorted(self.folder.glob("checkpoints/checkpoint-*"), key=step_of, reverse=True)
        for path in checkpoints[newest:]:
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
            "config": self.config.to_dict() | {"model": absolute(self.config.model)},
        }
        write_jsonl(self.folder / "run.json", [state])


@contextmanager
def disk_guard(folder: Path, model: Any) -> Iterator[None]:
    """Turn a full disk into one sentence. Earlier checkpoints stay whole, and the run can resume from them.

    Args:
        folder: The run's folder.
        model: The model whose weights, and perhaps optimizer, are written.

    Raises:
        EngineError: If a file could not be written for want of space.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or not is_full(folder, _checkpoint_bytes(model), error):
            raise
        raise EngineError(
            f"the disk is full: a checkpoint could not be written to {folder} ({reason_of(error)}); free some space "
            "and give the same command, it resumes from the last whole checkpoint."
        ) from error


def _checkpoint_bytes(model: Any) -> int:
    """About the size of a checkpoint: the trained weights, two moments of each for the optimizer, and small files."""
    weights = [each for each in model.parameters() if each.requires_grad] or list(model.parameters())
    return 3 * sum(int(each.numel() * each.element_size()) for each in weights) + SMALL_FILES_BYTES


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run. Others are removed."""
    whole: list[Path] = []
    for path in folder.glob("checkpoints/checkpoint-*"):
        if (path / FILE).is_file():
            whole.append(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    return max(whole, key=step_of, default=None)


def kept_in(folder: Path) -> str:
    """What a run has kept if it stops now, and how to resume; see ``core.stops``."""
    whole = [path for path in folder.glob("checkpoints/checkpoint-*") if (path / FILE).is_file()]
    if not whole:
        return f"no checkpoint is in {folder} yet: the same command resumes the run from its start."
    return f"the same command resumes in {folder} after step {max(map(step_of, whole))}."


def check_checkpoint(checkpoint: Path) -> None:
    """Refuse to resume from a checkpoint with a file that is cut, of another kind or gone.

    Raises:
        ConfigError: If there is one; the message names it.
    """
    if gone := [names[0] for names in STATE_FILES if not any(any(checkpoint.glob(name)) for name in names)]:
        raise ConfigError(damaged(checkpoint, f"it has no {' and no '.join(gone)}, so the training would differ"))
    if reason := refused_shard(str(checkpoint)):
        raise ConfigError(damaged(checkpoint, reason.rstrip(".")))
    for path in sorted(checkpoint.iterdir()):
        refuse_stream(path)
        try:
            if path.suffix == ".json":
                parse_json(read_bytes(path))
            elif path.suffix in (".pt", ".pth", ".bin"):
                # What torch.save writes is a zip archive, whose table stands at its end.
                zipfile.ZipFile(path).close()
            elif path.suffix == ".safetensors":
                # It maps the file, and compares its size with the offsets in its header.
                with safe_open(path, "numpy"):
                    pass
        except (OSError, ValueError, zipfile.BadZipFile, SafetensorError) as error:
            raise ConfigError(damaged(checkpoint, f"{path.name}: {reason_of(error)}")) from error


def damaged(checkpoint: Path, reason: str) -> str:
    """The sentence about a checkpoint from which a run cannot resume."""
    return (
        f"{checkpoint} is damaged ({reason}): remove this folder, and the same command resumes from an older "
        "checkpoint or starts again."
    )


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def trim_log(path: Path, step: int) -> None:
    """Remove the lines after a step: a resumed run writes them again."""
    if path.is_file():
        with reading(path, "the log of a training run", ConfigError):
            rows = [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
            kept = [row for row in rows if row["step"] <= step]
        write_jsonl(path, kept)


def absolute(model: str) -> str:
    """Absolute path of a local model, so that a run resumes from any working directory. Hub names stay as they are."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model

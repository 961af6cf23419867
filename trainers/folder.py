"""The folder of a training run: what it holds, and whether a run can go on in it.

    run.json          kind, settings, digests of data and template, number of processes, state
    log.jsonl         loss and learning rate by step
    checkpoints/      Trainer's own, to go on from; whole ones hold aft_config.json, which is written last
    aft_config.json   what lm_eval_aft reads; beside it the adapter or the weights, the tokenizer and README.md
    merged/           the full checkpoint that --merge writes

Knows nothing of models. Called by ``train`` and ``loop``. A little over 200 lines, as whether a run goes on is decided
here alone.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm_eval_aft import __version__
from lm_eval_aft.checkpoint import FILE, choose_template
from lm_eval_aft.config import AFTConfig
from lm_eval_aft.errors import ConfigError, EngineError
from lm_eval_aft.prompts import Template
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
        template: What makes its prompts.
        processes: How many train together.
        resume_from: Checkpoint to go on from, or None.
        finished: Nothing is left to train.
        notes: What was decided, in sentences.
    """

    kind: Kind
    config: TrainConfig
    data_digest: str
    template: Template
    processes: int
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
            "template_digest": self.template.digest,
            "processes": self.processes,
            "version": __version__,
            "config": self.config.to_dict(),
        }
        write_jsonl(self.folder / "run.json", [state])


def open_run(kind: Kind, config: TrainConfig) -> Run:
    """Begin a run, or find where one was interrupted.

    Raises:
        ConfigError: If the folder holds something else, another kind of training, a run on other data or with another
            template, or an unfinished one of another number of processes.
        TemplateError: If the template cannot be loaded.
    """
    try:
        digest = file_digest(config.data)
    except OSError as error:
        raise ConfigError(f"data={config.data} cannot be read ({error}): give a JSONL file.") from error
    folder, processes = Path(config.output), int(os.environ.get("WORLD_SIZE", "1"))
    if not (folder / "run.json").is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"output={folder} exists and is not the folder of a training run: give another.")
        return Run(kind, config, digest, template_of(config), processes)
    state, before = _read_state(folder / "run.json")
    kept = replace(config, **{name: getattr(before, name) for name in BAKED})
    if state["template_digest"] is None:  # a run of version 0.1.0: nothing else says which it was
        kept = replace(kept, template=before.template)
    run = Run(kind, kept, digest, template_of(kept), processes, finished=state["finished"])
    _refuse_another(run, state)
    return _resume(run, config, before)


def template_of(config: TrainConfig) -> Template:
    """The template that the settings name, else the one that the model was trained with, else ours."""
    asked = AFTConfig(template=config.template, template_override=True)
    return choose_template(asked, {"pretrained": config.model, "revision": config.revision})


def _read_state(path: Path) -> tuple[dict[str, Any], TrainConfig]:
    """What run.json says, and its settings: those without a value are left to their defaults."""
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if lacking := {"kind", "finished", "data_digest", "config"} - state.keys():
            raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
        given = {name: value for name, value in state["config"].items() if value not in (None, [])}
        return {"template_digest": None, "processes": None, **state}, make_config(given, str(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): give another output.") from error


def _refuse_another(run: Run, state: dict[str, Any]) -> None:
    """A run goes on as it was started; one of before the template and the processes were written down is trusted."""
    for name, before, now in (
        ("kind", state["kind"], run.kind),
        ("data", state["data_digest"], run.data_digest),
        ("template", state["template_digest"], run.template.digest),
    ):
        if before not in (None, now):
            raise ConfigError(
                f"the run in {run.folder} was started with {name} {before[:12]}, now it is {now[:12]}: give another "
                "output."
            )
    if not run.finished and state["processes"] not in (None, run.processes):
        raise ConfigError(
            f"the run in {run.folder} was started with WORLD_SIZE={state['processes']}, now it is {run.processes}: "
            "start as many processes again, or give another output."
        )


def _resume(run: Run, asked: TrainConfig, before: TrainConfig) -> Run:
    """Say which settings of the started run win over those asked for, and where it goes on unless it is finished."""
    old, new = before.to_dict(), asked.to_dict()
    changed = [name for name in new if name != "output" and new[name] != old[name]]
    baked = [name for name in changed if name in BAKED]
    notes = [f"{name} stays {old[name]}: the run was started with it, {new[name]} does not count." for name in baked]
    if run.finished:
        return replace(run, notes=tuple(notes))
    notes += [f"{name} is now {new[name]} (was {old[name]})." for name in changed if name not in baked]
    newest = _newest_checkpoint(run.folder)
    where = f"goes on after {newest.name.replace('-', ' ')}" if newest else "starts again: no checkpoint was written"
    return replace(run, resume_from=newest, notes=(*notes, f"the run in {run.folder} {where}."))


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
    return max(whole, key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def trim_log(path: Path, step: int) -> None:
    """Remove the lines after a step: a run that goes on writes them again."""
    if path.is_file():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        write_jsonl(path, [row for row in rows if row["step"] <= step])

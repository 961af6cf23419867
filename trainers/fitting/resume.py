"""Whether a training run begins, goes on or is refused, and which settings count.

Called by ``train`` and ``family``.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.files import file_digest
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.inference.checkpoint import choose_template
from trainers.fitting.run import TrainingRun, newest_checkpoint, place
from trainers.settings import FROZEN_ON_RESUME, Kind, TrainConfig, make_config


def open_run(kind: Kind, config: TrainConfig) -> TrainingRun:
    """Begin a run, or find where one was interrupted.

    Raises:
        ConfigError: If the folder holds something else, another kind of training, a run on other data or with another
            template or validation file, or an unfinished one of another number of processes.
        TemplateError: If the template cannot be loaded.
    """
    digest = _digest("data", config.data)
    held_out = _digest("validation", config.validation) if config.validation else None
    folder, processes = Path(config.output), int(os.environ.get("WORLD_SIZE", "1"))
    if not (folder / "run.json").is_file():
        if folder.exists() and (not folder.is_dir() or any(path.is_file() for path in folder.rglob("*"))):
            raise ConfigError(f"output={folder} exists and is not the folder of a training run: give another.")
        return TrainingRun(kind, config, digest, template_of(config), processes, held_out)
    state, before = _read_state(folder / "run.json")
    kept = replace(config, **{name: getattr(before, name) for name in FROZEN_ON_RESUME})
    kept = replace(kept, model=_same_place(before.model, config.model))
    if state["template_digest"] is None:  # a run of version 0.1.0: nothing else says which it was
        kept = replace(kept, template=before.template)
    held_out = held_out or state["validation_digest"]  # taken out, it is still what the best so far was measured on
    run = TrainingRun(kind, kept, digest, template_of(kept), processes, held_out, finished=state["finished"])
    _refuse_another(run, state)
    return _resume(run, config, before)


def _digest(name: str, path: str) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise ConfigError(f"{name}={path} cannot be read ({error}): give a JSONL file.") from error


def _same_place(before: str, asked: str) -> str:
    """The name asked for, where it is the folder of before or that one is gone; else the one of before."""
    moved = Path(before).is_absolute() and not Path(before).is_dir() and Path(asked).is_dir()
    return asked if moved or place(asked) == place(before) else before


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
        unknown = {"template_digest": None, "processes": None, "validation_digest": None}
        return {**unknown, **state}, make_config(given, str(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): give another output.") from error


def _refuse_another(run: TrainingRun, state: dict[str, Any]) -> None:
    """A run goes on as it was started; one of before the template and the processes were written down is trusted."""
    for name, before, now in (
        ("kind", state["kind"], run.kind),
        ("data", state["data_digest"], run.data_digest),
        ("validation", state["validation_digest"], run.validation_digest),
        ("template", state["template_digest"], run.template.digest),
    ):
        if before is not None and now is not None and before != now:
            raise ConfigError(
                f"the run in {run.folder} was started with {name} {before[:12]}, now it is {now[:12]}: give another "
                "output."
            )
    if not run.finished and state["processes"] not in (None, run.processes):
        raise ConfigError(
            f"the run in {run.folder} was started with WORLD_SIZE={state['processes']}, now it is {run.processes}: "
            "start as many processes again, or give another output."
        )


def _resume(run: TrainingRun, asked: TrainConfig, before: TrainConfig) -> TrainingRun:
    """Say which settings of the started run win over those asked for, and where it goes on unless it is finished."""
    old, new, kept = (each.to_dict() | {"model": place(each.model)} for each in (before, asked, run.config))
    changed = [name for name in new if name != "output" and new[name] != old[name]]
    won = [name for name in changed if kept[name] == old[name]]
    notes = [f"{name} stays {old[name]}: the run was started with it, {new[name]} does not count." for name in won]
    if run.finished:
        return replace(run, notes=tuple(notes))
    notes += [f"{name} is now {new[name]} (was {old[name]})." for name in changed if name not in won]
    newest = newest_checkpoint(run.folder)
    where = f"goes on after {newest.name.replace('-', ' ')}" if newest else "starts again: no checkpoint was written"
    return replace(run, resume_from=newest, notes=(*notes, f"the run in {run.folder} {where}."))

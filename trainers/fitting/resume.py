"""Whether a training run starts, resumes or is refused, and which settings are in force."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.files import file_digest, read_bytes
from lm_eval_aft.core.jsonl import parse_json
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.inference.checkpoint import choose_template
from trainers.fitting.run import TrainingRun, absolute, check_checkpoint, newest_checkpoint
from trainers.settings import Kind, RLConfig, TrainConfig, make_config


def open_run(kind: Kind, config: TrainConfig) -> TrainingRun:
    """Start a run, or find where an interrupted one resumes. One without a checkpoint starts again.

    Raises:
        ConfigError: If the folder holds something else, another kind of training, a run with other data, template or
            validation file, or an unfinished one of another number of processes.
        TemplateError: If the template cannot be loaded.
    """
    digest = _digest("data", config.data)
    validation_digest = _digest("validation", config.validation) if config.validation else None
    folder, processes = Path(config.output), int(os.environ.get("WORLD_SIZE", "1"))
    if not (folder / "run.json").is_file():
        if folder.exists() and (not folder.is_dir() or any(path.is_file() for path in folder.rglob("*"))):
            raise ConfigError(f"output={folder} exists and is not the folder of a training run: give another.")
        return TrainingRun(kind, config, digest, template_of(config), processes, validation_digest)
    state, before = _read_state(folder / "run.json")
    newest = None if state["finished"] else newest_checkpoint(folder)
    if not state["finished"] and not newest:
        # Nothing that was learnt depends on the settings of before.
        note = f"the run in {folder} starts again: no checkpoint was written."
        return TrainingRun(kind, config, digest, template_of(config), processes, validation_digest, notes=(note,))
    _refuse_changed(folder, "kind", state["kind"], kind)
    if isinstance(config, RLConfig) and isinstance(before, RLConfig):
        # Texts that were learnt by one reward are no start for another one.
        _refuse_changed(folder, "reward", before.reward, config.reward)
    kept = replace(config, **{name: getattr(before, name) for name in config.frozen_on_resume})
    kept = replace(kept, model=_same_model(before.model, config.model))
    # A run of version 0.1.0 has no digest, so nothing else identifies its template.
    if state["template_digest"] is None:
        kept = replace(kept, template=before.template)
    # The best checkpoint was chosen with this file, even if the setting is gone now.
    validation_digest = validation_digest or state["validation_digest"]
    run = TrainingRun(kind, kept, digest, template_of(kept), processes, validation_digest, finished=state["finished"])
    _refuse_another(run, state)
    return _resume(run, config, before, newest)


def _digest(name: str, path: str) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise ConfigError(f"{name}={path} cannot be read ({error}): give a JSONL file.") from error


def _same_model(before: str, requested: str) -> str:
    """The requested name if it is the model of before, or that folder has moved; else the name of before."""
    moved = Path(before).is_absolute() and not Path(before).is_dir() and Path(requested).is_dir()
    return requested if moved or absolute(requested) == absolute(before) else before


def template_of(config: TrainConfig) -> Template:
    """The template that the settings name, else the one that the model was trained with, else the default."""
    override = AFTConfig(template=config.template, template_override=True)
    return choose_template(override, {"pretrained": config.model, "revision": config.revision})


def _read_state(path: Path) -> tuple[dict[str, Any], TrainConfig]:
    """Contents of run.json, and its settings."""
    try:
        state: dict[str, Any] = parse_json(read_bytes(path))
        if missing := {"kind", "finished", "data_digest", "config"} - state.keys():
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        settings = {name: value for name, value in state["config"].items() if value not in (None, [])}
        unknown = {"template_digest": None, "processes": None, "validation_digest": None}
        return {**unknown, **state}, make_config(settings, str(path), state["kind"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): give another output.") from error


def _refuse_another(run: TrainingRun, state: dict[str, Any]) -> None:
    """Refuse to resume a run that was started otherwise. What an old run.json does not say is trusted."""
    for name, before, now in (
        ("data", state["data_digest"], run.data_digest),
        ("validation", state["validation_digest"], run.validation_digest),
        ("template", state["template_digest"], run.template.digest),
    ):
        if before is not None and now is not None:
            _refuse_changed(run.folder, name, before[:12], now[:12])
    if not run.finished and state["processes"] not in (None, run.processes):
        raise ConfigError(
            f"the run in {run.folder} was started with WORLD_SIZE={state['processes']} and has "
            f"{run.processes} now: start {state['processes']} processes, or give another output."
        )


def _refuse_changed(folder: Path, name: str, before: str, now: str) -> None:
    if before != now:
        raise ConfigError(
            f"the run in {folder} was started with {name} {before}, now it is {now}: give another output."
        )


def _resume(run: TrainingRun, requested: TrainConfig, before: TrainConfig, newest: Path | None) -> TrainingRun:
    """Note which settings are kept or changed. ``newest`` is the checkpoint of an unfinished run."""
    old, new, kept = (each.to_dict() | {"model": absolute(each.model)} for each in (before, requested, run.config))
    changed = [name for name in new if name != "output" and new[name] != old[name]]
    frozen = [name for name in changed if kept[name] == old[name]]
    notes = [f"{name} stays {old[name]}: the run was started with it, {new[name]} does not count." for name in frozen]
    if newest is None:
        return replace(run, notes=tuple(notes))
    check_checkpoint(newest)
    notes += [f"{name} is now {new[name]} (was {old[name]})." for name in changed if name not in frozen]
    where = f"the run in {run.folder} resumes after {newest.name.replace('-', ' ')}."
    return replace(run, resume_from=newest, notes=(*notes, where))

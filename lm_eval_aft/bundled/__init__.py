"""The small family in the package: which checkpoint stands for ``pretrained`` where none is given, and where they lie.

Trained on ``aft_arith`` by ``trainers.family`` (``make checkpoints``) and good for nothing else; ``base`` is what the
other two were trained on, for trainings of one's own. Knows paths only. Called by ``model`` and ``sweep``,
which choose, and by whoever opens a checkpoint: ``engines``, ``checkpoint``, the trainers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.log import log

FOLDER = Path(__file__).with_name("checkpoints")
NAMES = ("aft", "base", "sft")
PREFIX = "bundled:"
TASKS = ("aft_arith", "aft_arith_validation", "aft_arith_fresh")


def choose_checkpoint(engine: str, engine_args: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The engine's arguments with ``pretrained`` filled in, and the name by which results call the model.

    Args:
        engine: Its name; servers and the scripted engine have no checkpoint here.
        engine_args: As given; ``pretrained=bundled:aft``, ``bundled:base`` and ``bundled:sft`` name ours.
    """
    args = dict(engine_args)
    given = args.get("pretrained")
    name = str(given or args.get("model") or engine)
    if engine not in ("hf", "vllm"):
        return args, name
    if given is None:
        args["pretrained"] = name = f"{PREFIX}aft"
        log.warning("pretrained is not given: %s is used, a tiny model that knows the task aft_arith alone.", name)
    return args, name


def locate(name: str) -> str:
    """The folder of a ``bundled:`` name; any other name as it is.

    Raises:
        ConfigError: If none of ours is called so.
    """
    if not name.startswith(PREFIX):
        return name
    if name.removeprefix(PREFIX) not in NAMES:
        have = " or ".join(PREFIX + each for each in NAMES)
        raise ConfigError(f"{name} is not in the package: give {have}, a folder or a hub name.")
    return str(FOLDER / name.removeprefix(PREFIX))


def warn_elsewhere(name: str, tasks: set[str]) -> None:
    """Say once a run that a bundled checkpoint knows nothing of these tasks."""
    foreign = sorted(tasks - set(TASKS))
    if name.startswith(PREFIX) and foreign:
        log.warning("%s knows aft_arith alone: its scores on %s mean nothing.", name, ", ".join(foreign))

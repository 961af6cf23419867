"""The three small checkpoints in the package: their names, their folders and the default.

``trainers.family`` trained them on ``aft_arith`` (``make checkpoints``), and they know nothing else. ``sft`` and
``aft`` were trained from ``base``, which you can train too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.log import log
from lm_eval_aft.core.paths import check_path

FOLDER = Path(__file__).with_name("checkpoints")
NAMES = ("aft", "base", "sft")
PREFIX = "bundled:"
# The tasks that the checkpoints know.
TASKS = ("aft_arith", "aft_arith_validation", "aft_arith_fresh")


def choose_checkpoint(engine: str, engine_args: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Fill in ``pretrained`` if it is not given.

    Args:
        engine: Name of the engine. Only ``hf`` and ``vllm`` load a checkpoint.
        engine_args: The arguments of the engine.

    Returns:
        The arguments, and the model's name in the results file.
    """
    args = dict(engine_args)
    pretrained = args.get("pretrained")
    name = str(pretrained or args.get("model") or engine)
    if engine not in ("hf", "vllm"):
        return args, name
    if pretrained is None:
        args["pretrained"] = name = f"{PREFIX}aft"
        log.warning("pretrained is not given: %s is used, a tiny model that knows only the task aft_arith.", name)
    return args, name


def locate(name: str) -> str:
    """The folder of a ``bundled:`` name. Any other name is returned unchanged.

    Raises:
        ConfigError: If there is no checkpoint of that name in the package, or no file can have this name.
    """
    if not name.startswith(PREFIX):
        return check_path("the model", name)
    if name.removeprefix(PREFIX) not in NAMES:
        have = " or ".join(PREFIX + each for each in NAMES)
        raise ConfigError(f"{name} is not in the package: give {have}, a folder or a hub name.")
    return str(FOLDER / name.removeprefix(PREFIX))


def warn_elsewhere(name: str, tasks: set[str]) -> None:
    """Warn if a bundled checkpoint is run on other tasks than those it knows."""
    foreign = sorted(tasks - set(TASKS))
    if name.startswith(PREFIX) and foreign:
        log.warning("%s knows only aft_arith: its scores on %s mean nothing.", name, ", ".join(foreign))

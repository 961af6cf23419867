"""Loading checkpoints with other packages: whatever they raise about a folder becomes one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lm_eval_aft.core.errors import AFTError, ConfigError
from lm_eval_aft.core.files import read_bytes
from lm_eval_aft.core.jsonl import parse_json

MAX_REASON = 300  # characters


@contextmanager
def loading(refuse: Callable[[Exception], AFTError]) -> Iterator[None]:
    """Turn an error of a block that loads a checkpoint into one of ours.

    A damaged or foreign checkpoint makes loaders raise nearly anything, since its numbers are used before they are
    checked. MemoryError is left to the caller.

    Args:
        refuse: Makes our error from the loader's.
    """
    try:
        yield
    except (AFTError, MemoryError):
        raise
    except Exception as error:
        raise refuse(error) from error


def reason_of(error: BaseException) -> str:
    """What an error says, on one line: its first line, and the next one if the first ends with a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    for line in lines[1:]:
        if not reason.endswith(":"):
            break
        reason = f"{reason} {line}"
    if isinstance(error, KeyError | ArithmeticError) and lines:
        # "0" or "'q'" alone says nothing.
        reason = f"{type(error).__name__}: {reason}"
    return reason[:MAX_REASON]


def named_reason_of(error: BaseException) -> str:
    """What an error says, after its type."""
    name, reason = type(error).__name__, reason_of(error)
    return reason if reason.startswith(name) else f"{name}: {reason}"


def refuse_no_checkpoint(argument: str, name: str) -> None:
    """Refuse a name that neither a folder nor a model of the hub can have, before a loader asks the hub.

    Args:
        argument: The argument that gave it, such as "pretrained".
        name: The name.

    Raises:
        ConfigError: If it is the placeholder of an example, or a path without a file or folder.
    """
    if Path(name).exists():
        return
    if re.fullmatch("[A-Z][A-Z_]+", name):
        raise ConfigError(
            f"{argument}={name} is the placeholder of an example, and there is no folder {name}: give the folder of a "
            "checkpoint or its name on the hub."
        )
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name, re.ASCII):
        raise ConfigError(f"{argument}={name} does not exist: give the folder of a checkpoint or its name on the hub.")


def refuse_adapter(folder: str, argument: str) -> None:
    """Refuse a folder that holds an adapter and no whole model as ``pretrained``.

    Args:
        folder: Folder or hub name.
        argument: The argument that takes an adapter.

    Raises:
        ConfigError: If it is one. The message names the adapter's base model.
    """
    file = Path(folder, "adapter_config.json")
    if not file.is_file() or Path(folder, "config.json").exists():
        return
    base = None
    with suppress(OSError, ValueError, AttributeError):
        base = parse_json(read_bytes(file)).get("base_model_name_or_path")
    shown = base if isinstance(base, str) and base.strip() else "BASE"
    raise ConfigError(
        f"pretrained={folder} holds adapter_config.json, so it is an adapter: give "
        f"pretrained={shown},{argument}={folder}."
    )


def load_reason(error: BaseException, name: str) -> str:
    """Why a checkpoint cannot be loaded. If there is no folder of this name, the reason begins with that."""
    missing = "" if Path(name).exists() else f"there is no folder {name}, and the hub's model cannot be loaded: "
    return missing + reason_of(error)

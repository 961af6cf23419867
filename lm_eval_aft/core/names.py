"""What a model is called in tables, cards and judgement files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def display_name(model: str, k: int | None = None, layers: int | None = None) -> str:
    """The last part of a model's hub name or folder, and how it was run: ``model-k5-l2``."""
    base = model.rstrip("/").rpartition("/")[2]
    return base if k is None or layers is None else f"{base}-k{k}-l{layers}"


def check_models(settings: Mapping[str, Any]) -> None:
    """Raise TypeError or KeyError if the settings of a file describe further models in another form than ours."""
    aggregator, proposers = settings.get("aggregator"), settings.get("proposers") or []
    if not isinstance(proposers, list):
        raise TypeError("proposers is not a list")
    for model in [*proposers, *([] if aggregator is None else [aggregator])]:
        if not all(isinstance(model[name], str) for name in ("model", "fingerprint")):
            raise TypeError("the model or the fingerprint of a further model is not a text")


def joined_name(main: str, settings: Mapping[str, Any]) -> str:
    """The models of a run, such as "bundled:sft -> bundled:aft"; the name of the main model if it is the only one.

    Args:
        main: Name of the main model.
        settings: Settings of the run. Those of an ordinary run have no further models.
    """
    aggregator, proposers = settings.get("aggregator"), settings.get("proposers") or ()
    drafters = [display_name(str(each["model"])) for each in proposers] or [display_name(main)]
    readers = [display_name(str(aggregator["model"]))] if aggregator else [display_name(main)] if proposers else []
    return " -> ".join([" + ".join(drafters), *readers]) if readers else main


def plain_task(name: str) -> str:
    """A task's name without the groups that lm-eval 0.5 puts before it, as in "group::task"."""
    return name.rpartition("::")[2] or name

"""The curves of training runs, read from the ``log.jsonl`` that ``aft train`` keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.files import files_below
from lm_eval_aft.core.jsonl import iterate_jsonl
from lm_eval_aft.core.paths import missing_or

LOG = "log.jsonl"
# The keys of a line: mean training loss, and loss on the validation rows.
LOSSES = ("loss", "eval_loss")
# The keys of figures about the texts that a model writes while it trains, and what each is.
FIGURES = {
    "reward": "mean reward",
    "grade": "mean grade",
    "length": "mean tokens of a text",
    "copy_rate": "share of copies of a draft",
    "right_where_disputed": "right where drafts disagree",
}


@dataclass(frozen=True, slots=True)
class LossCurve:
    """Mean loss per target token, in nats.

    Attributes:
        name: Folder of the run, or its whole path if two runs have one name.
        training: (tokens seen, loss), by step.
        validation: (tokens seen, loss), by step.
        figures: By the keys of ``FIGURES``, for those that the log has: (tokens seen, value), by step.
    """

    name: str
    training: tuple[tuple[int, float], ...]
    validation: tuple[tuple[int, float], ...]
    figures: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)


def read_losses(folders: Sequence[Path]) -> list[LossCurve]:
    """One curve for each log in these folders or below, by path. A step that a resumed run made again counts once.

    Raises:
        RecordError: A folder has no log, or a line of a log is damaged.
    """
    logs: dict[Path, Path] = {}
    for folder in folders:
        below = files_below(folder, LOG)
        if not below:
            if (folder / "run.json").is_file():
                raise RecordError(
                    f"{folder} has no {LOG}: the run has logged no step yet, or an older version trained fewer steps "
                    "than log_every."
                )
            raise RecordError(f"{missing_or(folder, f'{folder} has no {LOG}')}: give the output folder of aft train.")
        logs |= {log.resolve(): log for log in below}
    names = [log.parent.name for log in logs]
    return [
        _read(log, name if names.count(name) == 1 else str(log.parent))
        for log, name in zip(logs.values(), names, strict=True)
    ]


def _read(log: Path, name: str) -> LossCurve:
    curves: dict[str, dict[int, tuple[int, float]]] = {key: {} for key in (*LOSSES, *FIGURES)}
    for where, row in iterate_jsonl(log):
        for key in curves.keys() & row.keys():
            step, point = _point(row, key, where)
            curves[key][step] = point
    training, validation, *others = (tuple(curve[step] for step in sorted(curve)) for curve in curves.values())
    if not training:
        raise RecordError(f"{log} has no loss yet: wait for the run's first report, or set log_every lower.")
    figures = {key: points for key, points in zip(FIGURES, others, strict=True) if points}
    return LossCurve(name, training, validation, figures)


def _point(row: Mapping[str, Any], key: str, where: str) -> tuple[int, tuple[int, float]]:
    """The step of a line, and its point: (tokens seen, value)."""
    try:
        step, tokens, value = int(row["step"]), int(row["tokens"]), float(row[key])
        if not isfinite(value):
            raise ValueError("the value is not a number")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise RecordError(f"{where} is damaged: remove the line, or train again.") from error
    return step, (tokens, value)

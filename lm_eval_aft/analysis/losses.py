"""The loss curves of training runs, read from the ``log.jsonl`` that ``aft train`` keeps.

Knows nothing of models, and draws nothing. Called by ``plot``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from lm_eval_aft.core.errors import RecordError

LOG = "log.jsonl"


@dataclass(frozen=True, slots=True)
class LossCurve:
    """Mean loss per target token, in nats.

    Attributes:
        name: Folder of the run; with those above it where two runs have one name.
        training: (tokens seen, loss), by step.
        validation: Likewise.
    """

    name: str
    training: tuple[tuple[int, float], ...]
    validation: tuple[tuple[int, float], ...]


def read_losses(folders: Sequence[Path]) -> list[LossCurve]:
    """One curve for each log in these folders or below, by path; a step that a resumed run made again counts once.

    Raises:
        RecordError: A folder has no log, or a line of one is damaged.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        logs = sorted(folder.rglob(LOG))
        if not logs:
            why = "of one that had more steps than log_every" if (folder / "run.json").is_file() else "of aft train"
            raise RecordError(f"{folder} has no {LOG}: give the output folder {why}.")
        found |= {log.resolve(): log for log in logs}
    names = [log.parent.name for log in found]
    return [
        _read(log, name if names.count(name) == 1 else str(log.parent))
        for log, name in zip(found.values(), names, strict=True)
    ]


def _read(log: Path, name: str) -> LossCurve:
    curves: dict[str, dict[int, tuple[int, float]]] = {"loss": {}, "eval_loss": {}}
    try:
        lines = log.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{log} cannot be read ({error}).") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            for kind in curves.keys() & row.keys():
                tokens, loss = int(row["tokens"]), float(row[kind])
                if not isfinite(loss):
                    raise ValueError("a loss that is no number")
                curves[kind][int(row["step"])] = tokens, loss
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise RecordError(f"{log} line {number} is damaged: remove the line, or train again.") from error
    training, validation = (tuple(curve[step] for step in sorted(curve)) for curve in curves.values())
    if not training:
        raise RecordError(f"{log} has no loss yet: wait for the run's first report, or set log_every lower.")
    return LossCurve(name, training, validation)

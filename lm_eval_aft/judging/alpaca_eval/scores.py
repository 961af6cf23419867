"""Win rates out of AlpacaEval annotations, by the alpaca_eval package itself, and where they stand on its leaderboard.

Knows the package's metrics and the leaderboard's columns; nothing of judges. Called by ``alpaca``.
"""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lm_eval_aft.core.errors import JudgeError, RecordError
from lm_eval_aft.judging.alpaca_eval.data import Annotation, eval_set
from lm_eval_aft.judging.alpaca_eval.package import Difficulty, package

COLUMNS = (
    "win_rate",
    "standard_error",
    "n_wins",
    "n_wins_base",
    "n_draws",
    "n_total",
    "discrete_win_rate",
    "mode",
    "avg_length",
    "length_controlled_winrate",
    "lc_standard_error",
)


PERCENTAGES = {"win_rate", "standard_error", "discrete_win_rate", "length_controlled_winrate", "lc_standard_error"}


@dataclass(frozen=True, slots=True)
class Scores:
    """One row of the leaderboard, under its names; percentages, and characters for avg_length.

    The length-controlled pair is None where it cannot be had, and so is the spread of a single comparison. ``missing``
    comparisons have no preference and count for nothing.
    """

    win_rate: float
    standard_error: float | None
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    discrete_win_rate: float
    avg_length: int
    length_controlled_winrate: float | None
    lc_standard_error: float | None
    missing: int
    mode: str = "community"

    def row(self) -> dict[str, Any]:
        """The values of the public leaderboard's columns, in its order."""
        values = asdict(self)
        return {name: values[name] for name in COLUMNS}


@dataclass(frozen=True, slots=True)
class Rank:
    """Place among published rows by length-controlled win rate (or win rate), and the neighbours."""

    place: int
    of: int
    column: str
    above: str
    below: str


def score(annotations: Sequence[Annotation], difficulty: Difficulty | None) -> Scores:
    """Metrics of the package over what was judged.

    Args:
        annotations: One a pair, in eval-set order.
        difficulty: What length control needs; None leaves it out, and so does anything but the whole eval set.

    Raises:
        JudgeError: If nothing was judged.
    """
    judged = [row for row in annotations if row.preference is not None]
    if not judged:
        raise JudgeError(f"none of {len(annotations)} comparisons has a preference: there is nothing to score.")
    whole, _ = eval_set([row.instruction for row in annotations])
    controlled = difficulty is not None and whole
    with package() as alpaca_eval:
        import pandas

        frame = pandas.DataFrame.from_records([asdict(row) for row in annotations])
        frame["preference"] = frame["preference"].astype(float)
        numbers = _length_controlled(frame, difficulty) if controlled else alpaca_eval.metrics.get_winrate(frame)
    lengths = [len(row.output_2) for row in annotations]
    return Scores(
        win_rate=float(numbers["win_rate"]),
        standard_error=_spread(numbers["standard_error"]),
        n_wins=int(numbers["n_wins"]),
        n_wins_base=int(numbers["n_wins_base"]),
        n_draws=int(numbers["n_draws"]),
        n_total=int(numbers["n_total"]),
        discrete_win_rate=float(numbers["discrete_win_rate"]),
        avg_length=int(sum(lengths) / len(lengths)),
        length_controlled_winrate=float(numbers["length_controlled_winrate"]) if controlled else None,
        lc_standard_error=_spread(numbers["lc_standard_error"]) if controlled else None,
        missing=len(annotations) - len(judged),
    )


def leaderboard() -> dict[str, dict[str, str]]:
    """The rows of the public AlpacaEval 2 leaderboard that ships with the package, by model name."""
    with package() as alpaca_eval:
        folder = Path(alpaca_eval.constants.ALPACAEVAL_2_LEADERBOARD_PATHS)
    text = (folder / "weighted_alpaca_eval_gpt4_turbo_leaderboard.csv").read_text(encoding="utf-8")
    return {row.pop(""): row for row in csv.DictReader(io.StringIO(text))}


def rank(scores: Scores, name: str, rows: dict[str, dict[str, str]]) -> Rank:
    """Where a row would stand; a published row of the same name is left out."""
    column = "win_rate" if scores.length_controlled_winrate is None else "length_controlled_winrate"
    mine = scores.row()[column]
    others = sorted(((float(row[column]), other) for other, row in rows.items() if other != name), reverse=True)
    better = [other for value, other in others if value > mine]
    worse = [other for value, other in others if value <= mine]
    return Rank(len(better) + 1, len(others) + 1, column, better[-1] if better else "", worse[0] if worse else "")


def write_row(file: Path, name: str, scores: Scores, prefix: str = "") -> None:
    """Write the row as a leaderboard csv of its own; another method's percentages keep their own names in it.

    Raises:
        RecordError: If the file cannot be written.
    """
    values = ["" if value is None else value for value in scores.row().values()]
    head = [prefix + column if column in PERCENTAGES else column for column in COLUMNS]
    try:
        with file.open("w", encoding="utf-8", newline="") as out:
            csv.writer(out, lineterminator="\n").writerows([["", *head], [name, *values]])
    except OSError as error:
        raise RecordError(f"{file} cannot be written ({error.strerror}).") from error


def _spread(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)  # of a single comparison


def _length_controlled(frame: Any, difficulty: Difficulty | None) -> Any:
    """The package's fit, reading our file where it would download, and keeping the weights out of site-packages."""
    from alpaca_eval.metrics import glm_winrate

    assert difficulty is not None
    with patch.object(glm_winrate, "hf_hub_download", lambda **_: str(difficulty.file)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="sklearn")  # 1.10 changes what it passes
        return glm_winrate.get_length_controlled_winrate(frame, save_weights_dir=None)

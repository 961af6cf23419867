"""AlpacaEval's scores from annotations, by the alpaca_eval package, and what can be concluded from them.

A win rate with missing judgements is refused unless you allow it. A place on the public leaderboard is given only to
scores by its judge, its baseline and the whole eval set.
"""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lm_eval_aft.core.errors import JudgeError
from lm_eval_aft.core.files import write_text
from lm_eval_aft.core.terminal import spreadsheet_text
from lm_eval_aft.judging.alpaca_eval.annotate import (
    PUBLIC_ANNOTATOR,
    PUBLIC_TOP_LOGPROBS,
    AnnotationMethod,
    regex_method,
    weighted_method,
)
from lm_eval_aft.judging.alpaca_eval.data import (
    Annotation,
    ModelOutput,
    OutputPairs,
    is_baseline,
    is_eval_set,
    part_notes,
)
from lm_eval_aft.judging.alpaca_eval.files import SCORES_FILE
from lm_eval_aft.judging.alpaca_eval.package import Difficulty, package

LEADERBOARD_COLUMNS = (
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
class ScoringOptions:
    """How to compare and score.

    Attributes:
        length_control: Whether to fit the length-controlled win rate, if the whole eval set is there.
        difficulty: Folder with df_gamed.csv; None downloads it from the hub.
        allow_missing: Whether to score even if judgements are missing.
        regex: Whether to read the letter that the judge writes instead of its probabilities.
        top_logprobs: Number of likely first tokens to request.
    """

    length_control: bool = True
    difficulty: Path | None = None
    allow_missing: bool = False
    regex: bool = False
    top_logprobs: int = PUBLIC_TOP_LOGPROBS

    @property
    def method(self) -> AnnotationMethod:
        """How replies are read."""
        return regex_method() if self.regex else weighted_method(self.top_logprobs)


@dataclass(frozen=True, slots=True)
class AlpacaScores:
    """One row of the leaderboard, under its names. Rates and errors are percentages.

    Attributes:
        win_rate: Mean preference for the model.
        standard_error: Standard error of ``win_rate``; None for a single comparison.
        n_wins: Comparisons that the model won.
        n_wins_base: Comparisons that the reference won.
        n_draws: Draws.
        n_total: Comparisons with a preference.
        discrete_win_rate: Share of wins, with draws as half a win.
        avg_length: Mean length of the model's answers in characters.
        length_controlled_winrate: Win rate at the reference's length; None if it cannot be fitted.
        lc_standard_error: Standard error of ``length_controlled_winrate``.
        missing: Comparisons without a preference, which no other field counts.
        mode: The leaderboard's kind of entry.
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

    def leaderboard_row(self) -> dict[str, Any]:
        """The values of the public leaderboard's columns, in its order."""
        values = asdict(self)
        return {name: values[name] for name in LEADERBOARD_COLUMNS}

    def rates(self) -> dict[str, tuple[float, float | None]]:
        """The rates that are known, in percent, each with its standard error if it has one."""
        rates = {
            "win_rate": (self.win_rate, self.standard_error),
            "length_controlled_winrate": (self.length_controlled_winrate, self.lc_standard_error),
            "discrete_win_rate": (self.discrete_win_rate, None),
        }
        return {name: (rate, error) for name, (rate, error) in rates.items() if rate is not None}


@dataclass(frozen=True, slots=True)
class LeaderboardPlace:
    """A place among the published rows.

    Attributes:
        place: From 1.
        of: Number of rows, this one included.
        column: The score that rows are ordered by.
        above: Name of the next better row; empty if there is none.
        below: Name of the next worse row; empty if there is none.
    """

    place: int
    of: int
    column: str
    above: str
    below: str

    def describe(self) -> str:
        """The place as one sentence."""
        neighbours = {"below": self.above, "above": self.below}
        between = " and ".join(f"{side} {name}" for side, name in neighbours.items() if name)
        return (
            f"Place {self.place} of {self.of} by {self.column} on the public leaderboard that ships with alpaca_eval, "
            f"{between}."
        )


@dataclass(frozen=True, slots=True)
class AlpacaSummary:
    """Scores, and all that must be stated with them.

    Attributes:
        name: The model.
        reference: The model it was compared with.
        annotator: Who compared, in alpaca_eval's words.
        prefix: Stands before the name of each rate and error; empty for AlpacaEval's own method.
        scores: The scores.
        rank: Place on the public leaderboard; None if the scores are not comparable with it.
        notes: Sentences for the user.
        difficulty: Name of the file that length control was fitted with.
    """

    name: str
    reference: str
    annotator: str
    prefix: str
    scores: AlpacaScores
    rank: LeaderboardPlace | None
    notes: tuple[str, ...]
    difficulty: str | None = None

    def metric_name(self, name: str) -> str:
        """The name of a score, which differs by method for rates and errors."""
        return self.prefix + name if name in PERCENTAGES else name

    def metrics(self) -> dict[str, float]:
        """The scores that are numbers, by ``metric_name``."""
        values = asdict(self.scores)
        return {self.metric_name(name): value for name, value in values.items() if isinstance(value, int | float)}

    @property
    def title(self) -> str:
        """What was compared, and how many comparisons count."""
        total = self.scores.n_total
        count = f"{total} of {total + self.scores.missing}" if self.scores.missing else str(total)
        return f"{self.name} against {self.reference}, judged by {self.annotator}: {count} comparisons"

    @property
    def remarks(self) -> tuple[str, ...]:
        """The place on the public leaderboard and the notes, a sentence each."""
        return (*([self.rank.describe()] if self.rank else []), *self.notes)

    def describe(self) -> str:
        """The scores as a paragraph, for the log of a run."""
        scores = self.scores
        parts = []
        for name, (rate, error) in scores.rates().items():
            spread = "" if error is None else f" (standard error {error:.2f})"
            parts.append(f"{self.metric_name(name)} {rate:.2f} %{spread}")
        counts = f"{scores.n_wins} won, {scores.n_wins_base} lost, {scores.n_draws} drawn"
        length = f"answers of {scores.avg_length:,} characters on average."
        return " ".join([f"{self.title}; {', '.join(parts)}; {counts}; {length}", *self.remarks])


def summarize(
    annotations: Sequence[Annotation],
    difficulty: Difficulty | None,
    options: ScoringOptions,
    prefix: str = "",
    pairs: OutputPairs | None = None,
) -> AlpacaSummary:
    """Score annotations and state what can be concluded from the scores.

    Args:
        annotations: The comparisons, in eval-set order.
        difficulty: See ``compute_scores``.
        options: How to score.
        prefix: See ``AlpacaSummary``.
        pairs: The answers that were compared, if the annotations are new.

    Raises:
        JudgeError: If judgements are missing and ``options`` does not allow it, or all are missing.
    """
    first, missing = annotations[0], sum(row.preference is None for row in annotations)
    if missing and not options.allow_missing:
        raise JudgeError(
            f"{missing} of {len(annotations)} comparisons have no usable judgement{_example(annotations)}, "
            "so there is no AlpacaEval score: run the same command again, which repeats only failed "
            "calls, use another judge, or score the rest with --allow-missing (in a run: --metadata "
            "alpaca_allow_missing=true)."
        )
    scores = compute_scores(annotations, difficulty)
    instructions = [row.instruction for row in annotations]
    notes = [*(pairs.notes if pairs else part_notes(instructions)), *_warnings(scores, difficulty, options)]
    reasons = _incomparable(annotations, scores, prefix)
    if reasons:
        notes.append(f"not comparable with the public leaderboard: {'; '.join(reasons)}.")
    rank = None if reasons else find_place(scores, first.generator_2, public_leaderboard())
    file = difficulty.file.name if difficulty else None
    return AlpacaSummary(
        first.generator_2, first.generator_1, first.annotator, prefix, scores, rank, tuple(notes), file
    )


def compute_scores(annotations: Sequence[Annotation], difficulty: Difficulty | None) -> AlpacaScores:
    """The package's metrics over the comparisons that have a preference.

    Args:
        annotations: The comparisons, in eval-set order.
        difficulty: What length control is fitted with; None leaves it out. A part of the eval set has none either.

    Raises:
        JudgeError: If no comparison has a preference.
    """
    judged = [row for row in annotations if row.preference is not None]
    if not judged:
        raise JudgeError(f"none of {len(annotations)} comparisons has a preference: there is nothing to score.")
    controlled = difficulty is not None and is_eval_set([row.instruction for row in annotations])
    with package() as alpaca_eval:
        import pandas

        frame = pandas.DataFrame.from_records([asdict(row) for row in annotations])
        frame["preference"] = frame["preference"].astype(float)
        numbers = _length_controlled(frame, difficulty) if controlled else alpaca_eval.metrics.get_winrate(frame)
    lengths = [len(row.output_2) for row in annotations]
    return AlpacaScores(
        win_rate=float(numbers["win_rate"]),
        standard_error=_number(numbers["standard_error"]),
        n_wins=int(numbers["n_wins"]),
        n_wins_base=int(numbers["n_wins_base"]),
        n_draws=int(numbers["n_draws"]),
        n_total=int(numbers["n_total"]),
        discrete_win_rate=float(numbers["discrete_win_rate"]),
        avg_length=int(sum(lengths) / len(lengths)),
        length_controlled_winrate=float(numbers["length_controlled_winrate"]) if controlled else None,
        lc_standard_error=_number(numbers["lc_standard_error"]) if controlled else None,
        missing=len(annotations) - len(judged),
    )


def public_leaderboard() -> dict[str, dict[str, str]]:
    """The rows of the public AlpacaEval 2 leaderboard that comes with the package, by model name."""
    with package() as alpaca_eval:
        folder = Path(alpaca_eval.constants.ALPACAEVAL_2_LEADERBOARD_PATHS)
    text = (folder / "weighted_alpaca_eval_gpt4_turbo_leaderboard.csv").read_text(encoding="utf-8")
    return {row.pop(""): row for row in csv.DictReader(io.StringIO(text))}


def find_place(scores: AlpacaScores, name: str, rows: Mapping[str, Mapping[str, str]]) -> LeaderboardPlace:
    """The place of scores among published rows, by length-controlled win rate if there is one, else by win rate.

    A published row of the same name is left out.
    """
    column = "win_rate" if scores.length_controlled_winrate is None else "length_controlled_winrate"
    score = scores.leaderboard_row()[column]
    others = sorted(((float(row[column]), other) for other, row in rows.items() if other != name), reverse=True)
    better = [other for value, other in others if value > score]
    worse = [other for value, other in others if value <= score]
    above, below = better[-1] if better else "", worse[0] if worse else ""
    return LeaderboardPlace(len(better) + 1, len(others) + 1, column, above, below)


def write_summary(folder: Path, summary: AlpacaSummary, judge: str = "") -> None:
    """Write scores.json, and the leaderboard row as leaderboard.csv.

    Args:
        folder: Where they go.
        summary: The scores.
        judge: The server's name of the judge; empty if the annotations are not ours.

    Raises:
        RecordError: If they cannot be written.
    """
    facts = {
        "model": summary.name,
        "reference": summary.reference,
        "annotator": summary.annotator,
        "judge": judge or None,
        "metrics": summary.metrics(),
        "rank": asdict(summary.rank) if summary.rank else None,
        "notes": summary.notes,
        "difficulty": summary.difficulty,
        "versions": {name: version(name) for name in ("alpaca_eval", "scikit-learn")},
    }
    write_text(folder / SCORES_FILE, json.dumps(facts, indent=2, allow_nan=False) + "\n")
    head = [summary.metric_name(column) for column in LEADERBOARD_COLUMNS]
    values = ["" if value is None else value for value in summary.scores.leaderboard_row().values()]
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([["", *head], [spreadsheet_text(summary.name), *values]])
    write_text(folder / "leaderboard.csv", lines.getvalue())


def _example(annotations: Sequence[Annotation]) -> str:
    """The first reply that names neither answer, if one is kept."""
    replies = (row.raw_completion for row in annotations if row.preference is None and row.raw_completion)
    reply = next(replies, None)
    return f" (the first reply that names neither answer: {str(reply)[:40]!r})" if reply else ""


def _warnings(scores: AlpacaScores, difficulty: Difficulty | None, options: ScoringOptions) -> list[str]:
    notes = []
    if scores.missing:
        notes.append(f"{scores.missing} comparisons have no usable judgement and count for nothing (--allow-missing).")
    if not options.length_control:
        notes.append("no length-controlled win rate (--no-lc).")
    if difficulty and not difficulty.published:
        notes.append(
            f"length control was fitted with {difficulty.file.name}, which is not the published df_gamed.csv: the "
            "length-controlled win rate may differ from the published procedure's by some tenths of a point."
        )
    return notes


def _incomparable(annotations: Sequence[Annotation], scores: AlpacaScores, prefix: str) -> list[str]:
    """Why the scores are not comparable with the public leaderboard; empty if they are."""
    first = annotations[0]
    references = [ModelOutput(row.instruction, row.output_1, row.generator_1) for row in annotations]
    whole = is_eval_set([row.instruction for row in annotations])
    other_judge = bool(prefix) or first.annotator != PUBLIC_ANNOTATOR
    reasons = {
        "it is not the whole eval set": not whole,
        "another baseline, whatever its name": whole and not is_baseline(references),
        f"another judge ({first.annotator}, not {PUBLIC_ANNOTATOR})": other_judge,
        f"{scores.missing} judgements are missing": bool(scores.missing),
    }
    return [reason for reason, holds in reasons.items() if holds]


def _number(value: Any) -> float | None:
    """A standard error as a number; the package gives nan for a single comparison."""
    return None if math.isnan(value) else float(value)


def _length_controlled(frame: Any, difficulty: Difficulty | None) -> Any:
    """The package's fit, with our file instead of a download, and without writing weights into site-packages."""
    from alpaca_eval.metrics import glm_winrate

    assert difficulty is not None
    with patch.object(glm_winrate, "hf_hub_download", lambda **_: str(difficulty.file)), warnings.catch_warnings():
        # scikit-learn 1.10 changes an argument that the package passes
        warnings.filterwarnings("ignore", category=FutureWarning, module="sklearn")
        return glm_winrate.get_length_controlled_winrate(frame, save_weights_dir=None)

"""What AlpacaEval's scores are worth: refused, ranked or qualified, then shown and written.

Knows when a win rate is no headline number and when it may stand in the public list; nothing of judges at work. Called
by ``alpaca``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from lm_eval_aft.core.errors import JudgeError, RecordError
from lm_eval_aft.judging.alpaca_eval.data import Annotation, Output, Pairs, eval_set
from lm_eval_aft.judging.alpaca_eval.methods import PUBLIC_ANNOTATOR, Method, regex, weighted
from lm_eval_aft.judging.alpaca_eval.package import Difficulty
from lm_eval_aft.judging.alpaca_eval.scores import PERCENTAGES, Rank, Scores, leaderboard, rank, score, write_row


@dataclass(frozen=True, slots=True)
class ScoringOptions:
    """What is to be scored how.

    Attributes:
        length_control: Whether to fit the length-controlled win rate where the whole eval set is there.
        difficulty: Folder with df_gamed.csv; None asks the hub.
        allow_missing: Whether to score although judgements are missing.
        regex: Read the letter the judge writes instead of its probabilities.
        top_logprobs: Likely first tokens to ask the judge for.
    """

    length_control: bool = True
    difficulty: Path | None = None
    allow_missing: bool = False
    regex: bool = False
    top_logprobs: int = 5

    @property
    def method(self) -> Method:
        """How replies are read."""
        return regex() if self.regex else weighted(self.top_logprobs)


@dataclass(frozen=True, slots=True)
class AlpacaSummary:
    """Scores, and all that must be said with them.

    Attributes:
        name: The model.
        reference: What it was compared with.
        annotator: Who compared, in alpaca_eval's words.
        prefix: Stands before each metric's name; empty for AlpacaEval's own method.
        scores: Percentages.
        rank: Place on the public leaderboard; None where it cannot be compared.
        notes: Sentences for the user.
        difficulty: The file that length control was fitted with.
    """

    name: str
    reference: str
    annotator: str
    prefix: str
    scores: Scores
    rank: Rank | None
    notes: tuple[str, ...]
    difficulty: str | None = None

    def metrics(self) -> dict[str, float]:
        """The scores that are numbers, under names of their own for every method."""
        found = {name: value for name, value in asdict(self.scores).items() if isinstance(value, int | float)}
        return {self.prefix * (name in PERCENTAGES) + name: value for name, value in found.items()}


def assess(
    annotations: Sequence[Annotation],
    difficulty: Difficulty | None,
    plan: ScoringOptions,
    prefix: str = "",
    pairs: Pairs | None = None,
) -> AlpacaSummary:
    """Score annotations and say what the scores are worth.

    Raises:
        JudgeError: If judgements are missing and the plan does not allow that.
    """
    first, missing = annotations[0], sum(row.preference is None for row in annotations)
    if missing and not plan.allow_missing:
        raise JudgeError(
            f"{missing} of {len(annotations)} comparisons have no usable judgement{_such_as(annotations)}, and a win "
            "rate over the rest is no AlpacaEval score: run the same command again if the judge refused calls, which "
            "asks only those anew, take another judge, or score the rest with --allow-missing (in a run: --metadata "
            "alpaca_allow_missing=true), which then says so."
        )
    scores = score(annotations, difficulty)
    notes = [*(pairs.notes if pairs else _notes(annotations)), *_warnings(scores, difficulty, plan)]
    strange = _incomparable(annotations, scores, prefix)
    if strange:
        notes.append(f"not comparable with the public leaderboard: {'; '.join(strange)}.")
    place = None if strange else rank(scores, first.generator_2, leaderboard())
    used = difficulty.file.name if difficulty else None
    return AlpacaSummary(
        first.generator_2, first.generator_1, first.annotator, prefix, scores, place, tuple(notes), used
    )


def show(verdict: AlpacaSummary) -> str:
    """The verdict as text."""
    scores, prefix = verdict.scores, verdict.prefix
    of = f" of {scores.n_total + scores.missing}" if scores.missing else ""
    lines = [
        f"{verdict.name} against {verdict.reference}, judged by {verdict.annotator}: {scores.n_total}{of} comparisons",
        f"  {'':<36}{'%':>7}{'std. error':>12}",
        _line(prefix + "win_rate", scores.win_rate, scores.standard_error),
    ]
    if scores.length_controlled_winrate is not None:
        name = prefix + "length_controlled_winrate"
        lines.append(_line(name, scores.length_controlled_winrate, scores.lc_standard_error))
    lines.append(_line(prefix + "discrete_win_rate", scores.discrete_win_rate, None))
    lines.append(f"{scores.n_wins} won, {scores.n_wins_base} lost, {scores.n_draws} drawn")
    lines.append(f"answers of {scores.avg_length:,} characters on average")
    if verdict.rank:
        lines.append(_placed(verdict.rank))
    return "\n".join([*lines, *(f"note: {note}" for note in verdict.notes)])


def write_verdict(folder: Path, verdict: AlpacaSummary) -> None:
    """Write scores.json and leaderboard.csv beside the annotations.

    Raises:
        RecordError: If they cannot be written.
    """
    told = {
        "model": verdict.name,
        "reference": verdict.reference,
        "annotator": verdict.annotator,
        "metrics": verdict.metrics(),
        "rank": asdict(verdict.rank) if verdict.rank else None,
        "notes": verdict.notes,
        "difficulty": verdict.difficulty,
        "versions": {name: version(name) for name in ("alpaca_eval", "scikit-learn")},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scores.json").write_text(json.dumps(told, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise RecordError(f"{folder} cannot be written ({error.strerror}).") from error
    write_row(folder / "leaderboard.csv", verdict.name, verdict.scores, verdict.prefix)


def _line(name: str, value: float, spread: float | None) -> str:
    return f"  {name:<36}{value:>7.2f}" + ("" if spread is None else f"{spread:>12.2f}")


def _such_as(annotations: Sequence[Annotation]) -> str:
    """The first reply that could not be read, if one is kept."""
    words = next((row.raw_completion for row in annotations if row.preference is None and row.raw_completion), None)
    return f" (the first reply that names neither answer: {str(words)[:40]!r})" if words else ""


def _notes(annotations: Sequence[Annotation]) -> tuple[str, ...]:
    _, note = eval_set([row.instruction for row in annotations])
    return (note,) if note else ()


def _warnings(scores: Scores, difficulty: Difficulty | None, plan: ScoringOptions) -> list[str]:
    notes = []
    if scores.missing:
        notes.append(f"{scores.missing} comparisons have no usable judgement and count for nothing (--allow-missing).")
    if not plan.length_control:
        notes.append("no length-controlled win rate (--no-lc).")
    if difficulty and not difficulty.published:
        notes.append(
            f"length control was fitted with {difficulty.file.name}, which is not the published df_gamed.csv: the "
            "length-controlled win rate may differ from the published procedure's by some tenths of a point."
        )
    return notes


def _incomparable(annotations: Sequence[Annotation], scores: Scores, prefix: str) -> list[str]:
    """Why the scores may not stand in the public list; nothing if they may."""
    first = annotations[0]
    references = tuple(Output(row.instruction, row.output_1, row.generator_1) for row in annotations)
    whole, _ = eval_set([row.instruction for row in annotations])
    reasons = {
        "it is not the whole eval set": not whole,
        "another baseline, whatever its name": whole and not Pairs(references, (), whole).baseline,
        f"another judge ({first.annotator}, not {PUBLIC_ANNOTATOR})": bool(prefix)
        or first.annotator != PUBLIC_ANNOTATOR,
        f"{scores.missing} judgements are missing": bool(scores.missing),
    }
    return [reason for reason, holds in reasons.items() if holds]


def _placed(place: Rank) -> str:
    between = [f"below {place.above}" if place.above else "", f"above {place.below}" if place.below else ""]
    return (
        f"place {place.place} of {place.of} by {place.column} on the public leaderboard that ships with alpaca_eval, "
        f"{' and '.join(filter(None, between))}"
    )

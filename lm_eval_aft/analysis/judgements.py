"""Judged runs for ``aft compare``: FastChat's judgement files and alpaca_eval's annotations, one entry a judged model.

A judge's verdicts lie in files of their own, not in lm-eval's samples. Here they become scores by question, so that the
same paired tests hold for them: MT-Bench's ratings, a pair a turn, whole questions drawn together; AlpacaEval's
preferences for the model over one reference. Knows no test. Called by ``compare``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lm_eval_aft.analysis.pairing import PairedScores
from lm_eval_aft.core.errors import RecordError


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdicts on one model.

    Attributes:
        path: Of the file.
        model: Whose answers.
        task: "mt_bench" or "alpaca_eval".
        metric: What a score is.
        setting: Judge, and prompts or reference: two models are comparable where it is equal.
        scores: By question and turn; the mean of repeats.
        missing: Verdicts without a score.
    """

    path: Path
    model: str
    task: str
    metric: str
    setting: str
    scores: Mapping[tuple[str, int], float]
    missing: int


def is_judged(path: Path) -> bool:
    """Whether a path is a file of verdicts rather than a run of lm-eval."""
    return path.is_file() and (path.suffix == ".jsonl" or path.name.startswith("annotations"))


def read_judged(path: Path) -> tuple[Judged, ...]:
    """Every judged model in a file.

    Raises:
        RecordError: If it is neither FastChat's nor alpaca_eval's.
    """
    return _ratings(path) if path.suffix == ".jsonl" else _preferences(path)


def _ratings(path: Path) -> tuple[Judged, ...]:
    from lm_eval_aft.judging.mt_bench.replies import read_judgements

    found = []
    for group in read_judgements(path):
        given: dict[tuple[str, int], list[float]] = {}
        for one in group:
            if one.score is not None:
                given.setdefault((str(one.question_id), one.turn), []).append(one.score)
        scores = {place: sum(values) / len(values) for place, values in given.items()}
        setting = f"judge {group[0].judge}, prompts {group[0].prompts}"
        missing = sum(one.score is None for one in group)
        found.append(Judged(path, group[0].model, "mt_bench", "rating", setting, scores, missing))
    return tuple(found)


def _preferences(path: Path) -> tuple[Judged, ...]:
    from lm_eval_aft.judging.alpaca_eval.files import read_annotations

    rows = read_annotations(path)
    scores = {(row.instruction, 1): row.preference - 1 for row in rows if row.preference is not None}
    setting = f"judge {rows[0].annotator}, reference {rows[0].generator_1}"
    missing = len(rows) - len(scores)
    return (Judged(path, rows[0].generator_2, "alpaca_eval", "preference", setting, scores, missing),)


def pair_judged(baseline: Judged, other: Judged, common: bool) -> PairedScores:
    """Pair two models' verdicts by question and turn.

    Raises:
        RecordError: They were judged differently, or on other questions.
    """
    for name, mine, theirs in (("task", baseline.task, other.task), ("setting", baseline.setting, other.setting)):
        if mine != theirs:
            raise RecordError(
                f"{baseline.path} ({baseline.model}) and {other.path} ({other.model}) were not judged alike: {mine} "
                f"against {theirs}; judge both with the same {'benchmark' if name == 'task' else 'judge and prompts'}."
            )
    shared = [place for place in baseline.scores if place in other.scores]
    apart = baseline.scores.keys() ^ other.scores.keys()
    if (apart and not common) or not shared:
        ids = ", ".join(sorted({question[:40] for question, _ in apart})[:8])
        raise RecordError(
            f"{baseline.model} and {other.model} have verdicts on other questions ({len(apart)} differ: {ids}): judge "
            f"what is missing, or give --common to compare the {len(shared)} they share."
        )
    numbers = {question: number for number, question in enumerate(dict.fromkeys(q for q, _ in shared))}
    return PairedScores(
        task=baseline.task,
        metric=baseline.metric,
        filter="none",
        documents=tuple((numbers[question], question) for question, _ in shared),
        categories=("",) * len(shared),
        baseline=tuple(baseline.scores[place] for place in shared),
        other=tuple(other.scores[place] for place in shared),
        left_out=len(apart),
    )

"""The interval of a score: one that lm-eval reports, or the accuracy of some texts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import inf, isclose
from statistics import NormalDist, fmean

from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.analysis.stats import Interval, mean_interval
from lm_eval_aft.storage.results import Score


def score_interval(entry: RunEntry, score: Score, level: float = 0.95) -> Interval:
    """Interval of a reported score.

    It comes from the logged samples if the score is their mean, else from lm-eval's standard error: ± z·stderr. Without
    either it has no ends.

    Args:
        entry: The run.
        score: One of its scores.
        level: Confidence in (0, 1).

    Raises:
        RecordError: If the samples are damaged.
    """
    if entry.logged(score.task):
        samples = [sample for sample in entry.scored(score.task) if sample.key.filter == score.filter]
        values = [sample.metrics.get(score.metric) for sample in samples]
        numbers = [float(value) for value in values if isinstance(value, int | float)]
        if numbers and len(numbers) == len(values) and isclose(fmean(numbers), score.value, abs_tol=1e-9):
            return mean_interval(numbers, level)
    if score.stderr is None:
        return Interval(score.value, -inf, inf, level, "none", score.n)
    half, method = NormalDist().inv_cdf((1 + level) / 2) * score.stderr, "stderr"
    return Interval(score.value, score.value - half, score.value + half, level, method, score.n)


def accuracy_interval(doc_ids: Iterable[int], scores: Iterable[float], level: float) -> Interval:
    """Interval of an accuracy, within 0 and 1.

    Repeats of one question are not independent, so their mean counts as one score.

    Args:
        doc_ids: The question of each score.
        scores: Each in [0, 1].
        level: Confidence in (0, 1).
    """
    groups: dict[int, list[float]] = {}
    for doc_id, score in zip(doc_ids, scores, strict=True):
        groups.setdefault(doc_id, []).append(score)
    interval = mean_interval([fmean(group) for group in groups.values()], level)
    # Student's t knows no bounds.
    return replace(interval, low=max(0.0, interval.low), high=min(1.0, interval.high))

"""Is a difference real, how large can it be, and what did it cost: one comparison a task of two runs.

Pairs the runs question by question. 0/1 scores: exact McNemar test, Tango's interval; others: sign-flip test, bootstrap
interval, questions with several parts drawn whole. Holm's correction over the tasks of each other run. All formulas
are in ``stats``. Called by ``compare_cli`` and ``report_page``. A little over 200 lines for the fields' meanings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from statistics import stdev

from lm_eval_aft.analysis.conditions import differences, primary
from lm_eval_aft.analysis.judgements import pair_judged, read_judged
from lm_eval_aft.analysis.pairing import PairedScores, pair_scores
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.analysis.stats import (
    Interval,
    WinTieLoss,
    holm,
    mcnemar_exact,
    minimum_detectable_effect,
    minimum_detectable_effect_graded,
    paired_bootstrap,
    paired_difference_interval,
    paired_permutation,
    win_tie_loss,
)
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.storage.results import EvalRun, Score

ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Comparison:
    """Another run against the baseline on one metric of one task, or one category of it.

    Attributes:
        baseline: Label of the baseline run.
        other: Label of the other run.
        score: The other run's score as lm-eval reports it: task, metric, filter and direction.
        category: Empty for the whole task.
        n: Pairs; a question with several parts has one for each.
        baseline_mean: Mean of the baseline's scores.
        other_mean: Mean of the other run's.
        difference: Other minus baseline, with its interval.
        p_value: Two-sided.
        p_holm: Corrected over the tasks of this other run; None for a category, which is exploration, and for a metric
            that is neither better nor worse.
        test: Name of the test.
        counts: Questions above, level with and below the baseline.
        detectable: Least true difference that a test of this many questions finds with a chance of 80%; None where
            even the largest would be found too seldom.
        cost_ratio: Generated tokens a question of the other run by the baseline's; None where one is unknown.
        notes: In what the two runs were not the same test.
    """

    baseline: str
    other: str
    score: Score
    category: str
    n: int
    baseline_mean: float
    other_mean: float
    difference: Interval
    p_value: float
    p_holm: float | None
    test: str
    counts: WinTieLoss
    detectable: float | None
    cost_ratio: float | None
    notes: tuple[str, ...] = ()

    @property
    def worse(self) -> bool:
        """Whether the other run is worse, and the difference is no chance at the 5% level after correction."""
        gain = self.difference.estimate * (1 if self.score.higher_is_better else -1)
        return self.score.ranked and gain < 0 and (self.p_value if self.p_holm is None else self.p_holm) <= ALPHA


def compare_entries(
    baseline: RunEntry,
    others: Sequence[RunEntry],
    tasks: Sequence[str] = (),
    metric: str | None = None,
    common: bool = False,
    level: float = 0.95,
) -> tuple[Comparison, ...]:
    """Compare each of the others with the baseline on every task they share, categories after the whole task.

    Args:
        baseline: What the others are measured against.
        others: One or more.
        tasks: Only these.
        metric: ``NAME`` or ``NAME,FILTER`` instead of each task's primary one.
        common: See ``pair_scores``.
        level: Of the intervals.

    Raises:
        ConfigError: A task or metric is not in both runs.
        RecordError: The runs cannot be paired.
    """
    found: list[Comparison] = []
    for other in others:
        measures = _measures(baseline.run, other.run, tasks, metric)
        pairs = [pair_scores(baseline, other, s.task, s.metric, s.filter, common) for s in measures]
        rows = [_compare(baseline, other, s, p, "", level) for s, p in zip(measures, pairs, strict=True)]
        ranked = [row.p_value for row in rows if row.score.ranked]
        corrected = iter(holm(ranked) if ranked else ())
        for row, p in zip(rows, pairs, strict=True):
            found.append(replace(row, p_holm=next(corrected)) if row.score.ranked else row)
            found += _by_category(baseline, other, row.score, p, level)
    return tuple(found)


def _measures(baseline: EvalRun, other: EvalRun, tasks: Sequence[str], metric: str | None) -> list[Score]:
    """The other run's score of each shared task that is compared."""
    shared = [task for task in other.tasks if task in baseline.tasks]
    missing = [task for task in tasks if task not in shared]
    if missing or not shared:
        have = "; ".join(f"{run.path} has {', '.join(run.tasks) or 'none'}" for run in (baseline, other))
        asked = f"task {missing[0]} is not" if missing else "no task is"
        raise ConfigError(f"{asked} in both runs: {have}; give {'a task' if missing else 'runs'} that both have.")
    return [_measure(other, task, metric) for task in shared if not tasks or task in tasks]


def _measure(run: EvalRun, task: str, metric: str | None) -> Score:
    if metric is None:
        return primary(run, task)
    name, _, filter_name = metric.partition(",")
    scores = [score for score in run.scores if score.task == task]
    for score in scores:
        if score.metric == name and filter_name in ("", score.filter):
            return score
    have = " ".join(f"{score.metric},{score.filter}" for score in scores)
    raise ConfigError(f"--metric {metric} is not a metric of {task} in {run.path}: it has {have}.")


def _by_category(
    baseline: RunEntry, other: RunEntry, score: Score, pairs: PairedScores, level: float
) -> Iterator[Comparison]:
    names = sorted(set(pairs.categories))
    if len(names) > 1:
        yield from (_compare(baseline, other, score, pairs.of(name), name or "(none)", level) for name in names)


def _compare(
    baseline: RunEntry, other: RunEntry, score: Score, pairs: PairedScores, category: str, level: float
) -> Comparison:
    usual, asked = baseline.run.conditions.get(score.task), other.run.conditions.get(score.task)
    notes = [f"not the same test: {phrase}" for phrase in (differences(usual, asked) if usual and asked else ())]
    if pairs.left_out:
        notes.append(f"{pairs.left_out} questions that only one of the runs answered are left out")
    found = _tested(baseline.label, other.label, score, pairs, level)
    shown = () if category else tuple(notes)
    return replace(found, category=category, cost_ratio=_cost_ratio(baseline, other, score.task), notes=shown)


def _tested(baseline: str, other: str, score: Score, pairs: PairedScores, level: float) -> Comparison:
    """The test of some pairs; where from they are and what they cost is the caller's to add."""
    test, p_value, difference, detectable = _graded(pairs, level) if not pairs.binary else _binary(pairs, level)
    questions = pairs.questions
    return Comparison(
        baseline=baseline,
        other=other,
        score=score,
        category="",
        n=len(pairs.baseline),
        baseline_mean=sum(pairs.baseline) / len(pairs.baseline),
        other_mean=sum(pairs.other) / len(pairs.other),
        difference=difference,
        p_value=p_value,
        p_holm=None,
        test=test,
        counts=win_tie_loss(questions.baseline, questions.other),
        detectable=detectable if isfinite(detectable) else None,
        cost_ratio=None,
    )


def compare_judged(
    baseline: Path, others: Sequence[Path], common: bool = False, level: float = 0.95
) -> tuple[Comparison, ...]:
    """Compare judged models, from FastChat's judgement files or alpaca_eval's annotations.

    Args:
        baseline: A file; the first model in it is the baseline, any further ones are compared with it.
        others: Further files.
        common: Compare the questions that both have verdicts on.
        level: Of the intervals.

    Raises:
        ConfigError: There is one model only.
        RecordError: A file is of another kind, or two models were not judged alike.
    """
    base, *rest = [model for path in (baseline, *others) for model in read_judged(path)]
    rest = [model for model in rest if (model.path, model.model) != (base.path, base.model)]
    if not rest:
        raise ConfigError(f"{baseline} holds verdicts on {base.model} alone: give another file too.")
    found = []
    for other in rest:
        pairs = pair_judged(base, other, common)
        score = Score(other.task, other.metric, "none", sum(pairs.other) / len(pairs.other), None, len(pairs.other))
        notes = [f"{other.setting}"]
        if base.missing or other.missing:
            notes.append(f"verdicts without a score: {base.missing} of the baseline, {other.missing} of this one")
        found.append(replace(_tested(base.model, other.model, score, pairs, level), notes=tuple(notes)))
    corrected = holm([row.p_value for row in found])
    return tuple(replace(row, p_holm=adjusted) for row, adjusted in zip(found, corrected, strict=True))


def _binary(pairs: PairedScores, level: float) -> tuple[str, float, Interval, float]:
    test = mcnemar_exact(pairs.baseline, pairs.other)
    interval = paired_difference_interval(pairs.baseline, pairs.other, level)
    rate = max(test.discordant, 1) / test.n  # none seen is not none possible
    return "exact McNemar", test.p_value, interval, minimum_detectable_effect(test.n, rate)


def _graded(pairs: PairedScores, level: float) -> tuple[str, float, Interval, float]:
    groups = pairs.documents
    test = paired_permutation(pairs.baseline, pairs.other, groups=groups)
    interval = paired_bootstrap(pairs.baseline, pairs.other, level=level, groups=groups)
    questions = pairs.questions  # parts of one are not independent
    deltas = [b - a for a, b in zip(questions.baseline, questions.other, strict=True)]
    sd = stdev(deltas) if len(deltas) > 1 else 0.0
    return "sign-flip permutation", test.p_value, interval, minimum_detectable_effect_graded(len(deltas), sd)


def _cost_ratio(baseline: RunEntry, other: RunEntry, task: str) -> float | None:
    a, b = baseline.costs.get(task), other.costs.get(task)
    return b.generated_tokens / a.generated_tokens if a and b and a.generated_tokens else None

"""Comparisons of runs with a baseline: whether a difference is real, how large it can be, and what it cost.

Runs are paired question by question. Scores of 0 and 1 get an exact McNemar test and Tango's interval. Other scores get
a sign-flip test and a bootstrap interval, which draws a question with several parts whole. Holm's correction covers the
tasks of each other run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from statistics import fmean, stdev

from lm_eval_aft.analysis.conditions import differences, primary_score
from lm_eval_aft.analysis.judgements import pair_judgements, read_judged_models
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

# The level of every test.
ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Comparison:
    """Another run against the baseline on one metric of one task, or one category of it.

    Attributes:
        baseline: Label of the baseline run.
        other: Label of the other run.
        score: The other run's score as lm-eval reports it: task, metric, filter and direction.
        category: Empty for the whole task.
        n: Pairs; a question with several parts has a pair for each.
        baseline_mean: Mean of the baseline's scores.
        other_mean: Mean of the other run's.
        difference: Other minus baseline, with its interval.
        p_value: Two-sided.
        p_holm: Corrected over the tasks of this other run. None for a category, which is exploration, and for a metric
            that is neither better nor worse.
        test: Name of the test.
        counts: Questions above, level with and below the baseline.
        detectable: Least true difference that a test of this many questions finds with a chance of 80%. None if even
            the largest would be found too seldom.
        cost_ratio: Generated tokens a question of the other run, divided by the baseline's; None if one is unknown.
        notes: How the two runs differ as tests, and whose drafts were cut.
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
        """Whether the other run is worse, significantly at the 5% level after correction."""
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
    """Compare each of the others with the baseline on every shared task, categories after the whole task.

    Args:
        baseline: The run with which the others are compared.
        others: One run or more.
        tasks: Compare these tasks only; empty for all.
        metric: ``NAME`` or ``NAME,FILTER`` instead of each task's primary score.
        common: See ``pair_scores``.
        level: Confidence of the intervals.

    Raises:
        ConfigError: A task or metric is not in both runs.
        RecordError: The runs cannot be paired.
    """
    comparisons: list[Comparison] = []
    for other in others:
        scores = _scores(baseline.run, other.run, tasks, metric)
        pairs = [pair_scores(baseline, other, s.task, s.metric, s.filter, common) for s in scores]
        whole = [_compare(baseline, other, s, p, "", level) for s, p in zip(scores, pairs, strict=True)]
        ranked = [comparison.p_value for comparison in whole if comparison.score.ranked]
        corrected = iter(holm(ranked) if ranked else ())
        for comparison, p in zip(whole, pairs, strict=True):
            comparisons.append(replace(comparison, p_holm=next(corrected)) if comparison.score.ranked else comparison)
            comparisons += _by_category(baseline, other, comparison.score, p, level)
    return tuple(comparisons)


def _scores(baseline: EvalRun, other: EvalRun, tasks: Sequence[str], metric: str | None) -> list[Score]:
    """The other run's score of each task that is compared."""
    shared = [task for task in other.tasks if task in baseline.tasks]
    missing = [task for task in tasks if task not in shared]
    if missing or not shared:
        have = "; ".join(f"{run.path} has {', '.join(run.tasks) or 'none'}" for run in (baseline, other))
        reason = f"task {missing[0]} is not" if missing else "no task is"
        raise ConfigError(f"{reason} in both runs: {have}; give {'a task' if missing else 'runs'} that both have.")
    return [_score(other, task, metric) for task in shared if not tasks or task in tasks]


def _score(run: EvalRun, task: str, metric: str | None) -> Score:
    if metric is None:
        return primary_score(run, task)
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
        yield from (
            _compare(baseline, other, score, pairs.in_category(name), name or "(none)", level) for name in names
        )


def _compare(
    baseline: RunEntry, other: RunEntry, score: Score, pairs: PairedScores, category: str, level: float
) -> Comparison:
    ours, theirs = baseline.run.conditions.get(score.task), other.run.conditions.get(score.task)
    notes = [f"not the same test: {phrase}" for phrase in (differences(ours, theirs) if ours and theirs else ())]
    if pairs.left_out:
        notes.append(f"{pairs.left_out} questions that only one of the runs answered are left out")
    notes += [f"{entry.label}: {cut}" for entry in (baseline, other) if (cut := entry.cuts(score.task).sentence())]
    return replace(
        _test(baseline.label, other.label, score, pairs, level),
        category=category,
        cost_ratio=_cost_ratio(baseline, other, score.task),
        notes=() if category else tuple(notes),
    )


def _test(baseline: str, other: str, score: Score, pairs: PairedScores, level: float) -> Comparison:
    """The comparison of some pairs, without category, cost and notes."""
    run_test = _test_binary if pairs.binary else _test_graded
    test, p_value, difference, detectable = run_test(pairs, level)
    questions = pairs.questions
    return Comparison(
        baseline=baseline,
        other=other,
        score=score,
        category="",
        n=len(pairs.baseline),
        baseline_mean=fmean(pairs.baseline),
        other_mean=fmean(pairs.other),
        difference=difference,
        p_value=p_value,
        p_holm=None,
        test=test,
        counts=win_tie_loss(questions.baseline, questions.other),
        detectable=detectable if isfinite(detectable) else None,
        cost_ratio=None,
    )


def compare_judgements(
    baseline: Path, others: Sequence[Path], common: bool = False, level: float = 0.95
) -> tuple[Comparison, ...]:
    """Compare judged models, from FastChat's judgement files or alpaca_eval's annotations.

    Args:
        baseline: A file. The first model in it is the baseline, and its other models are compared with it.
        others: Further files.
        common: Compare the questions on which both models have a score, if they are not the same ones.
        level: Confidence of the intervals.

    Raises:
        ConfigError: There is one model only.
        RecordError: A file is of another kind, or two models were not judged alike.
    """
    base, *rest = [model for path in (baseline, *others) for model in read_judged_models(path)]
    rest = [model for model in rest if (model.path, model.model) != (base.path, base.model)]
    if not rest:
        raise ConfigError(f"{baseline} holds judgements on {base.model} alone: give another file too.")
    comparisons = []
    for other in rest:
        pairs = pair_judgements(base, other, common)
        score = Score(other.task, other.metric, "none", fmean(pairs.other), None, len(pairs.other))
        notes = [other.setting]
        if base.missing or other.missing:
            notes.append(f"judgements without a score: {base.missing} of the baseline, {other.missing} of this one")
        comparisons.append(replace(_test(base.model, other.model, score, pairs, level), notes=tuple(notes)))
    corrected = holm([comparison.p_value for comparison in comparisons])
    return tuple(replace(each, p_holm=p_holm) for each, p_holm in zip(comparisons, corrected, strict=True))


def _test_binary(pairs: PairedScores, level: float) -> tuple[str, float, Interval, float]:
    test = mcnemar_exact(pairs.baseline, pairs.other)
    interval = paired_difference_interval(pairs.baseline, pairs.other, level)
    # A discordant pair is possible even if none was seen.
    rate = max(test.discordant, 1) / test.n
    return "exact McNemar", test.p_value, interval, minimum_detectable_effect(test.n, rate)


def _test_graded(pairs: PairedScores, level: float) -> tuple[str, float, Interval, float]:
    groups = pairs.documents
    test = paired_permutation(pairs.baseline, pairs.other, groups=groups)
    interval = paired_bootstrap(pairs.baseline, pairs.other, level=level, groups=groups)
    # The parts of one question are not independent.
    questions = pairs.questions
    deltas = [b - a for a, b in zip(questions.baseline, questions.other, strict=True)]
    sd = stdev(deltas) if len(deltas) > 1 else 0.0
    return "sign-flip permutation", test.p_value, interval, minimum_detectable_effect_graded(len(deltas), sd)


def _cost_ratio(baseline: RunEntry, other: RunEntry, task: str) -> float | None:
    a, b = baseline.costs.get(task), other.costs.get(task)
    return b.generated_tokens / a.generated_tokens if a and b and a.generated_tokens else None

"""Comparisons of runs with a baseline: whether a difference is real, how large it can be, and what it cost.

Runs are paired question by question. Scores of 0 and 1 get an exact McNemar test and Tango's interval. Other scores get
a sign-flip test and a bootstrap interval, which draws a question with several parts whole.

A group to which lm-eval gives a score is one test over the questions of all its tasks. If the score weights the tasks
by size, each question counts once. If the tasks count alike, the test flips the signs of weighted differences, and the
interval is stratified by task. Holm's correction covers the tests of each other run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf, isclose, isfinite, sqrt
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Literal

from lm_eval_aft.analysis.conditions import conditions_of, group_differences, primary_score
from lm_eval_aft.analysis.groups import listed_names, members_of
from lm_eval_aft.analysis.judgements import judgements_of, pair_judgements, pair_stored_judgements, read_judged_models
from lm_eval_aft.analysis.pairing import PairedScores, UnusableScores, pair_group, pair_scores
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
    stratified_difference_interval,
    win_tie_loss,
)
from lm_eval_aft.core.errors import AFTError, ConfigError, RecordError
from lm_eval_aft.storage.results import EvalRun, Score, results_files

# The level of every test.
ALPHA = 0.05

Verdict = Literal["better", "worse", "no difference shown", "neither better nor worse"]


def verdict_of(p_value: float, difference: Interval, higher_is_better: bool) -> Verdict:
    """Whether a difference is for the better or the worse. This rule is the only one.

    The p-value must be at most 5%, and the interval, if there is one, must leave out zero.

    Args:
        p_value: The p-value that counts: the corrected one if there is one.
        difference: Other minus baseline.
        higher_is_better: Of the metric.
    """
    holds_zero = difference.bounded and difference.low <= 0 <= difference.high
    if p_value > ALPHA or holds_zero or not difference.estimate:
        return "no difference shown"
    return "better" if (difference.estimate > 0) == higher_is_better else "worse"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Another run against the baseline on one metric of one task or group, or one category of a task.

    Attributes:
        baseline: Label of the baseline run.
        other: Label of the other run.
        score: The other run's score as lm-eval reports it: task, metric, filter and direction.
        category: Empty for the whole task or group.
        n: Pairs; a question with several parts has a pair for each.
        baseline_mean: Mean of the baseline's scores.
        other_mean: Mean of the other run's.
        difference: Other minus baseline, with its interval.
        p_value: Two-sided.
        p_holm: Corrected over the tests of this other run. None for a category or a member, which is exploration, and
            for a metric that is neither better nor worse.
        test: Name of the test.
        counts: Questions above, level with and below the baseline.
        detectable: Least true difference that a test of this many questions finds with a chance of 80%. None if even
            the largest would be found too seldom.
        cost_ratio: Generated tokens a question of the other run, divided by the baseline's; None if one is unknown.
        notes: How the two runs differ as tests, whose drafts were cut, and how a group's tasks are weighted.
        member_of: The group below which a task or group is listed; empty if it is compared by itself.
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

    member_of: str = ""

    @property
    def explores(self) -> bool:
        """Whether this is a part of another comparison: a category, or a member of a group."""
        return bool(self.category or self.member_of)

    @property
    def p(self) -> float:
        """The p-value that counts: the corrected one if there is one."""
        return self.p_value if self.p_holm is None else self.p_holm

    @property
    def verdict(self) -> Verdict:
        """Whether the other run is better or worse; see ``verdict_of``."""
        if not self.score.ranked:
            return "neither better nor worse"
        return verdict_of(self.p, self.difference, self.score.higher_is_better)


@dataclass(frozen=True, slots=True)
class ComparedRuns:
    """All comparisons with one baseline.

    Attributes:
        comparisons: Each task or group of each other run, followed by its categories and members.
        left_out: What could not be compared and why, a sentence each.
    """

    comparisons: tuple[Comparison, ...]
    left_out: tuple[str, ...] = ()

    @property
    def regressed(self) -> bool:
        """Whether a run is worse than the baseline on a task or a group."""
        return any(each.verdict == "worse" for each in self.comparisons if not each.explores)


def compare_entries(
    baseline: RunEntry,
    others: Sequence[RunEntry],
    tasks: Sequence[str] = (),
    metric: str | None = None,
    common: bool = False,
    level: float = 0.95,
    members: bool = False,
) -> ComparedRuns:
    """Compare each of the others with the baseline on every shared task and group.

    Args:
        baseline: The run with which the others are compared.
        others: One run or more.
        tasks: Compare these tasks and groups only; empty for all.
        metric: ``NAME`` or ``NAME,FILTER`` instead of each task's primary score.
        common: See ``pair_scores``.
        level: Confidence of the intervals.
        members: Whether the members of each group are compared too.

    Raises:
        ConfigError: A task or metric is not in both runs.
        RecordError: The runs cannot be paired, or no score can be compared.
    """
    comparisons: list[Comparison] = []
    left_out: list[str] = []
    for other in others:
        names = _shared_names(baseline.run, other.run, tasks)
        left_out += () if tasks else _unshared(baseline, other)
        pairs = list(_pair(baseline, other, names, metric, common, left_out))
        whole = [_compare(baseline, other, score, paired, level) for score, paired in pairs]
        ranked = [comparison.p_value for comparison in whole if comparison.score.ranked]
        corrected = iter(holm(ranked) if ranked else ())
        for comparison, (score, paired) in zip(whole, pairs, strict=True):
            comparisons.append(replace(comparison, p_holm=next(corrected)) if score.ranked else comparison)
            comparisons += _by_category(baseline, other, score, paired, level)
            if members:
                below = [name for name in members_of(other.run, score.task) if baseline.run.scores_of(name)]
                for member_score, part in _pair(baseline, other, below, metric, common, left_out):
                    member = _compare(baseline, other, member_score, part, level)
                    comparisons.append(replace(member, member_of=score.task))
    if not comparisons:
        raise RecordError(" ".join(dict.fromkeys(left_out)))
    return ComparedRuns(tuple(comparisons), tuple(dict.fromkeys(left_out)))


def compare_all(entries: Sequence[RunEntry], baseline: Path | None, members: bool = False) -> ComparedRuns:
    """Compare all runs with one of them.

    Args:
        entries: The runs.
        baseline: What names the baseline: a results file, its folder, or the path that --output_path named. If it is
            None, the first run is the baseline, and a run that cannot be compared with it is left out.
        members: See ``compare_entries``.

    Raises:
        ConfigError: ``baseline`` is none of the runs.
        RecordError: ``baseline`` cannot be paired with the others.
    """
    if baseline is not None:
        base = _named_entry(entries, baseline)
        return compare_entries(base, [entry for entry in entries if entry is not base], members=members)
    comparisons: list[Comparison] = []
    left_out: list[str] = []
    for other in entries[1:]:
        try:
            compared = compare_entries(entries[0], [other], members=members)
        except AFTError as error:
            left_out.append(f"{other.label} is not compared with {entries[0].label}: {error}")
        else:
            comparisons += compared.comparisons
            left_out += compared.left_out
    return ComparedRuns(tuple(comparisons), tuple(dict.fromkeys(left_out)))


def _named_entry(entries: Sequence[RunEntry], baseline: Path) -> RunEntry:
    files = {file.resolve() for file in results_files(baseline)}
    named = [entry for entry in entries if entry.run.path.resolve() in files]
    if len(named) != 1:
        paths = ", ".join(str(entry.run.path) for entry in (named or entries)[:4])
        raise ConfigError(
            f"--baseline {baseline} matches {len(named)} of these runs and must match one: give one of {paths}."
        )
    return named[0]


def _shared_names(baseline: EvalRun, other: EvalRun, tasks: Sequence[str]) -> list[str]:
    """The tasks and groups to compare, in the order of the other run."""
    listed = dict.fromkeys((*listed_names(other), *listed_names(baseline)))
    shared = {name: _scored_in_both(baseline, other, name) for name in tasks or listed}
    missing = [name for name in tasks if not shared[name]]
    if missing or not any(shared.values()):
        have = "; ".join(f"{run.path} has {', '.join(_known_names(run)) or 'none'}" for run in (baseline, other))
        reason = f"task {missing[0]} is not" if missing else "no task is"
        raise ConfigError(f"{reason} in both runs: {have}; give {'a task' if missing else 'runs'} that both have.")
    return list(dict.fromkeys(name for names in shared.values() for name in names))


def _known_names(run: EvalRun) -> list[str]:
    """The names that ``--task`` takes, as far as a message shows them."""
    return list(dict.fromkeys((*listed_names(run), *run.groups)))


def _scored_in_both(baseline: EvalRun, other: EvalRun, name: str) -> list[str]:
    """The name itself if both runs have scores of it, else the names within a group for which this holds."""
    if baseline.scores_of(name) and other.scores_of(name):
        return [name]
    group = other.groups.get(name) or baseline.groups.get(name)
    return [each for member in (group.members if group else ()) for each in _scored_in_both(baseline, other, member)]


def _unshared(baseline: RunEntry, other: RunEntry) -> Iterator[str]:
    """A sentence about the tasks and groups that only one of the runs has."""
    for entry, counterpart in ((baseline, other), (other, baseline)):
        theirs = set(counterpart.run.tasks)
        names = [name for name in listed_names(entry.run) if not theirs & set(entry.run.tasks_of(name))]
        if names:
            yield f"Only {entry.label} has {', '.join(names)}, so there is no comparison with {counterpart.label}."


def _pair(
    baseline: RunEntry,
    other: RunEntry,
    names: Sequence[str],
    metric: str | None,
    common: bool,
    left_out: list[str],
) -> Iterator[tuple[Score, PairedScores]]:
    """The score of each name in the other run, and the paired scores of the questions.

    A name whose scores cannot be compared is skipped, and the reason is appended to ``left_out``.
    """
    for name in names:
        judged = _judged_score(baseline, other, name, metric)
        score = judged or named_score(other.run, name, metric)
        try:
            if judged:
                yield score, pair_stored_judgements(baseline, other, name, common)
            elif name in other.run.groups:
                yield score, pair_group(baseline, other, score, common)
            else:
                yield score, pair_scores(baseline, other, name, score.metric, score.filter, common)
        except UnusableScores as error:
            left_out.append(str(error))


def _judged_score(baseline: RunEntry, other: RunEntry, name: str, metric: str | None) -> Score | None:
    """The score of a judged task whose parts are the judgements; None if it is not the one to compare.

    A judge's scores are in lm-eval's results, and its judgements are in files of their own.
    """
    for entry in (other, baseline):
        if name in entry.judged and metric in (None, entry.judged[name].paired):
            return next(score for score in entry.run.scores_of(name) if score.metric == entry.judged[name].paired)
    return None


def named_score(run: EvalRun, name: str, metric: str | None) -> Score:
    """The score of a task or a group that ``NAME`` or ``NAME,FILTER`` names, or the primary one.

    Raises:
        ConfigError: The run has no such metric.
    """
    if metric is None:
        return primary_score(run, name)
    wanted, _, filter_name = metric.partition(",")
    scores = run.scores_of(name)
    for score in scores:
        if score.metric == wanted and filter_name in ("", score.filter):
            return score
    have = " ".join(f"{score.metric},{score.filter}" for score in scores)
    raise ConfigError(f"--metric {metric} is not a metric of {name} in {run.path}: it has {have}.")


def _by_category(
    baseline: RunEntry, other: RunEntry, score: Score, pairs: PairedScores, level: float
) -> Iterator[Comparison]:
    names = sorted(set(pairs.categories))
    if len(names) > 1:
        for name in names:
            part = _compare(baseline, other, score, pairs.in_category(name), level)
            yield replace(part, category=name or "(none)", notes=())


def _compare(baseline: RunEntry, other: RunEntry, score: Score, pairs: PairedScores, level: float) -> Comparison:
    ours, theirs = (conditions_of(run, score.task) for run in (baseline.run, other.run))
    notes = [f"not the same test: {phrase}" for phrase in (group_differences(ours, theirs) if ours and theirs else ())]
    if pairs.left_out:
        notes.append(f"{pairs.left_out} questions that only one of the runs answered are left out")
    notes += [f"{entry.label}: {cut}" for entry in (baseline, other) if (cut := entry.cuts(score.task).sentence())]
    if score.task in other.run.groups:
        notes += _weights(baseline.run, other.run, score, pairs)
    return replace(
        _test(baseline.label, other.label, score, pairs, level),
        cost_ratio=cost_ratio(baseline, other, score.task),
        notes=tuple(notes),
    )


def _weights(baseline: EvalRun, other: EvalRun, score: Score, pairs: PairedScores) -> Iterator[str]:
    """How the tasks of a group are weighted, and whether that gives the scores that lm-eval reports."""
    count = "each task counts alike" if pairs.strata else "each question counts once"
    option = f"weight_by_size: {str(not pairs.strata).lower()}"
    reported = [
        next((each.value for each in run.scores_of(score.task) if each.key == score.key), None)
        for run in (baseline, other)
    ]
    means = pairs.mean(pairs.baseline), pairs.mean(pairs.other)
    pairs_of_values = zip(reported, means, strict=True)
    if all(value is not None and isclose(value, mean, abs_tol=1e-9) for value, mean in pairs_of_values):
        yield f"{count}, as in lm-eval's score of the group ({option})"
    else:
        values = " and ".join("no score" if value is None else f"{value:.4g}" for value in reported)
        yield f"{count} ({option}); lm-eval reports {values}"


@dataclass(frozen=True, slots=True)
class PairedTest:
    """The test of a difference.

    Attributes:
        name: Name of the test.
        p_value: Two-sided.
        difference: Other minus baseline, with its interval.
        detectable: Least true difference that a test of this many questions finds with a chance of 80%; inf if even
            the largest would be found too seldom.
    """

    name: str
    p_value: float
    difference: Interval
    detectable: float


def paired_test(pairs: PairedScores, level: float = 0.95) -> PairedTest:
    """Test a difference: exactly if scores are 0 or 1, else by flipped signs."""
    run_test = _test_stratified if pairs.strata else _test_binary if pairs.binary else _test_graded
    return PairedTest(*run_test(pairs, level))


def _test(baseline: str, other: str, score: Score, pairs: PairedScores, level: float) -> Comparison:
    """The comparison of some pairs, without category, cost and notes."""
    test = paired_test(pairs, level)
    questions = pairs.questions
    return Comparison(
        baseline=baseline,
        other=other,
        score=score,
        category="",
        n=len(pairs.baseline),
        baseline_mean=pairs.mean(pairs.baseline),
        other_mean=pairs.mean(pairs.other),
        difference=test.difference,
        p_value=test.p_value,
        p_holm=None,
        test=test.name,
        counts=win_tie_loss(questions.baseline, questions.other),
        detectable=test.detectable if isfinite(test.detectable) else None,
        cost_ratio=None,
    )


def compare_judgements(
    baseline: Path,
    others: Sequence[Path],
    common: bool = False,
    level: float = 0.95,
    tasks: Sequence[str] = (),
    metric: str | None = None,
) -> ComparedRuns:
    """Compare judged models, from FastChat's judgement files or alpaca_eval's annotations.

    Args:
        baseline: A file. The first model in it is the baseline, and its other models are compared with it.
        others: Further files.
        common: Compare the questions on which both models have a score, if they are not the same ones.
        level: Confidence of the intervals.
        tasks: Compare judgements of these benchmarks alone, such as mt_bench; all by default.
        metric: The name of the score, if it is given: rating or preference.

    Raises:
        ConfigError: There is one model only, or the files have no such task or metric.
        RecordError: A file is of another kind, or two models were not judged alike.
    """
    models = [model for path in (baseline, *others) for model in read_judged_models(path)]
    base, *rest = judgements_of(models, tasks, metric)
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
    return ComparedRuns(
        tuple(replace(each, p_holm=p_holm) for each, p_holm in zip(comparisons, corrected, strict=True))
    )


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
    return "sign-flip permutation", test.p_value, interval, _detectable(deltas)


def _test_stratified(pairs: PairedScores, level: float) -> tuple[str, float, Interval, float]:
    """The test of a group whose tasks count alike, so that a question of a small task weighs more."""
    questions = pairs.questions
    sizes = Counter(questions.strata)
    weights = [len(questions.strata) / (len(sizes) * sizes[task]) for task in questions.strata]
    first, second = (
        [weight * score for weight, score in zip(weights, scores, strict=True)]
        for scores in (questions.baseline, questions.other)
    )
    interval = stratified_difference_interval(questions.baseline, questions.other, questions.strata, level)
    detectable = inf
    if isfinite(interval.high):
        # The standard deviation of a question that gives about the interval's standard error.
        error = (interval.high - interval.estimate) / NormalDist().inv_cdf((1 + level) / 2)
        detectable = minimum_detectable_effect_graded(len(weights), error * sqrt(len(weights)))
    return "weighted sign-flip permutation", paired_permutation(first, second).p_value, interval, detectable


def _detectable(deltas: Sequence[float]) -> float:
    """The least effect that questions with these differences show; inf if the differences have no spread."""
    sd = stdev(deltas) if len(deltas) > 1 else 0.0
    return minimum_detectable_effect_graded(len(deltas), sd) if sd else inf


def cost_ratio(baseline: RunEntry, other: RunEntry, task: str) -> float | None:
    """Generated tokens of a run, divided by those of the baseline; None if one is unknown."""
    a, b = baseline.cost_of(task), other.cost_of(task)
    return b.generated_tokens / a.generated_tokens if a and b and a.generated_tokens else None

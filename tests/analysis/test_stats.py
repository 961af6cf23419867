"""Statistics compared with scipy, statsmodels, published numbers, hand counts and the coverage that they promise.

The coverage of the discrete intervals is summed over every outcome, so it has no noise. The coverage of t and of the
bootstrap is simulated with fixed seeds.
"""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import pairwise
from math import comb, inf, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from scipy import stats as scipy_stats

from lm_eval_aft.analysis import stats
from lm_eval_aft.core.errors import ConfigError

BITS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=12)
GRADED = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=1, max_size=10)


def pairs(gained: int, lost: int, n: int) -> tuple[list[int], list[int]]:
    """Scores of a baseline and another run with these numbers of pairs gained and lost; the rest is right in both."""
    kept = [1] * (n - gained - lost)
    return [0] * gained + [1] * lost + kept, [1] * gained + [0] * lost + kept


def judged(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Scores like those of a judge: 1 to 10, most of them 7 to 9."""
    return rng.choice(np.arange(1.0, 11), shape, p=[0.04, 0.04, 0.05, 0.05, 0.07, 0.08, 0.12, 0.2, 0.25, 0.1])


# Counts


def test_win_tie_loss_counts_for_the_other_run():
    assert stats.win_tie_loss([1, 2, 3, 4], [2, 2, 1, 9]) == stats.WinTieLoss(wins=2, ties=1, losses=1)


def test_mcnemar_counts_the_four_cells():
    result = stats.mcnemar_exact([1, 1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 1, 1, 0])
    assert (result.both_right, result.only_baseline, result.only_other, result.both_wrong) == (2, 1, 3, 1)
    assert (result.n, result.discordant) == (7, 4)
    assert result.difference == pytest.approx(2 / 7)
    assert result.p_value == pytest.approx(2 * (1 + 4) / 2**4)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (0, 1), (5, 5), (9, 1), (60, 31), (700, 600)])
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(gained: int, lost: int):
    tail = sum(comb(gained + lost, i) for i in range(min(gained, lost) + 1))
    by_hand = min(1.0, 2 * tail / 2 ** (gained + lost))
    assert stats.mcnemar_exact(*pairs(gained, lost, 1400)).p_value == pytest.approx(by_hand)


def test_mcnemar_equals_statsmodels():
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 50, 1319):
        a, b = rng.integers(0, 2, (2, n))
        result = stats.mcnemar_exact(a, b)
        cells = [[result.both_right, result.only_baseline], [result.only_other, result.both_wrong]]
        expected = contingency.mcnemar(cells, exact=True).pvalue if result.discordant else 1.0
        assert result.p_value == pytest.approx(expected)


# The sign-flip test


@given(BITS)
def test_on_right_or_wrong_the_sign_flip_test_is_mcnemar(rows: list[tuple[int, int]]):
    a, b = zip(*rows, strict=True)
    flipped = stats.paired_permutation(a, b)
    assert flipped.exact
    assert flipped.p_value == pytest.approx(stats.mcnemar_exact(a, b).p_value)


@given(GRADED)
def test_exact_permutation_counts_every_pattern(rows: list[tuple[int, int]]):
    a, b = zip(*rows, strict=True)
    differences = [y - x for x, y in rows]
    totals = [0]
    for value in differences:
        totals = [total + sign * value for total in totals for sign in (1, -1)]
    hits = sum(abs(total) >= abs(sum(differences)) for total in totals)
    # Sums of tenths are rounded, and equal sums must still be equal.
    tenths = stats.paired_permutation(np.array(a) / 10, np.array(b) / 10)
    assert tenths.p_value == stats.paired_permutation(a, b).p_value == pytest.approx(hits / len(totals))


def test_exact_permutation_equals_scipy():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 10))
    expected = scipy_stats.permutation_test(
        (b, a), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", n_resamples=np.inf
    )
    result = stats.paired_permutation(a, b)
    assert (result.p_value, result.difference) == pytest.approx((expected.pvalue, expected.statistic))
    assert (result.exact, result.patterns) == (True, 1024)


@pytest.mark.parametrize("shift", [0.0, 0.2, 0.5])
def test_sampled_permutation_equals_scipy_but_for_the_draws(shift: float):
    rng = np.random.default_rng(2)
    a, b = judged(rng, (120,)), judged(rng, (120,)) + shift
    expected = scipy_stats.permutation_test(
        (b, a), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", n_resamples=20_000, rng=rng
    )
    result = stats.paired_permutation(a, b, seed=3)
    assert not result.exact
    assert result.p_value == pytest.approx(expected.pvalue, abs=0.015)


def test_a_sampled_p_value_is_never_zero_and_depends_on_the_seed_alone():
    a, b = np.zeros(200), np.ones(200)
    assert stats.paired_permutation(a, b, seed=5, resamples=999).p_value == 1 / 1000
    noisy = np.random.default_rng(4).normal(0.1, 1, 200)
    first = stats.paired_permutation(a, noisy, seed=5)
    assert first == stats.paired_permutation(a, noisy, seed=5)
    assert first != stats.paired_permutation(a, noisy, seed=6)


def test_permutation_and_mcnemar_err_no_more_often_than_they_say():
    rng, graded, binary = np.random.default_rng(7), 0, 0
    for trial in range(600):
        a, b = judged(rng, (2, 40))
        graded += stats.paired_permutation(a, b, seed=trial, resamples=199).p_value <= 0.05
        binary += stats.mcnemar_exact(a > 7, b > 7).p_value <= 0.05
    assert 0.03 <= graded / 600 <= 0.07
    assert binary / 600 <= 0.05


def test_repeats_of_one_question_are_flipped_together():
    a, b = [0.0] * 12, [0.3, 0.3, 0.3, 0.5, 0.5, 0.5, 0.4, 0.4, 0.4, 0.6, 0.6, 0.6]
    questions = ["p", "p", "p", "q", "q", "q", "r", "r", "r", "s", "s", "s"]
    assert stats.paired_permutation(a, b).p_value == 2 / 2**12
    assert stats.paired_permutation(a, b, groups=questions).p_value == 2 / 2**4


# The bootstrap


@pytest.mark.parametrize("skew", [False, True])
def test_bca_equals_scipy_but_for_the_draws(skew: bool):
    rng = np.random.default_rng(8)
    a = rng.normal(size=80)
    b = a + (rng.exponential(size=80) ** 2 if skew else rng.normal(size=80))
    expected = scipy_stats.bootstrap((b - a,), np.mean, n_resamples=20_000, method="BCa", rng=rng).confidence_interval
    result = stats.paired_bootstrap(a, b, seed=9)
    assert result.method == "bca"
    width = result.high - result.low
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=0.03 * width)
    percentile = np.quantile((b - a)[rng.integers(0, 80, (20_000, 80))].mean(axis=1), [0.025, 0.975])
    # BCa moves the end only if the values are skewed.
    assert (abs(result.high - percentile[1]) > 0.05 * width) == skew


def test_the_bootstrap_where_nothing_varies():
    same = stats.paired_bootstrap([0.3] * 9, [0.4] * 9)
    # Equal differences say nothing of their spread.
    assert (same.estimate, same.low, same.high, same.method) == (pytest.approx(0.1), -inf, inf, "none")
    zero = stats.paired_bootstrap([0.5, 0.2], [0.5, 0.2])
    assert (zero.estimate, zero.bounded) == (0.0, False)
    # The mean is over pairs, not over groups of different sizes.
    unequal = stats.paired_bootstrap([0.3] * 5, [0.4] * 5, groups=["p", "q", "q", "q", "r"])
    assert (unequal.estimate, unequal.bounded) == (pytest.approx(0.1), False)
    one = stats.paired_bootstrap([0.3], [0.4])
    assert (one.low, one.high, one.method) == (-inf, inf, "none")
    one_group = stats.paired_bootstrap([0.3, 0.2], [0.4, 0.9], groups=["q", "q"])
    assert (one_group.low, one_group.high) == (-inf, inf)


def test_one_discordant_pair_leaves_zero_in_the_bootstrap_interval():
    result = stats.paired_bootstrap(*pairs(1, 0, 50), seed=1)
    assert result.low <= 0.02 <= result.high
    assert result.low == 0


def test_groups_of_one_change_nothing_and_copies_add_no_certainty():
    rng = np.random.default_rng(10)
    a, b = rng.random((2, 60))
    plain = stats.paired_bootstrap(a, b, seed=2)
    assert stats.paired_bootstrap(a, b, seed=2, groups=range(60)) == plain
    thrice = stats.paired_bootstrap(np.repeat(a, 3), np.repeat(b, 3), seed=2, groups=np.repeat(range(60), 3).tolist())
    assert (thrice.low, thrice.high) == pytest.approx((plain.low, plain.high))
    fooled = stats.paired_bootstrap(np.repeat(a, 3), np.repeat(b, 3), seed=2)
    assert fooled.high - fooled.low < 0.65 * (plain.high - plain.low)


def test_a_ratio_of_sums_has_the_interval_of_its_resamples():
    rng = np.random.default_rng(0)
    bottoms = rng.integers(0, 2, 400).astype(float)
    tops = bottoms * (rng.random(400) < 0.6) - 0.02
    interval = stats.ratio_interval(tops, bottoms, resamples=4000)
    assert interval.estimate == pytest.approx(tops.sum() / bottoms.sum())
    # The interval of the delta method: the residuals top - ratio * bottom have this standard error.
    error = np.std(tops - interval.estimate * bottoms) * sqrt(400) / bottoms.sum()
    assert (interval.low, interval.high) == pytest.approx(
        (interval.estimate - 1.96 * error, interval.estimate + 1.96 * error), abs=0.01
    )
    doubled = stats.ratio_interval([*tops, *tops], [*bottoms, *bottoms], groups=[*range(400)] * 2, resamples=4000)
    assert (doubled.estimate, doubled.low) == pytest.approx((interval.estimate, interval.low))


def test_a_ratio_without_a_denominator_has_no_value_and_no_ends():
    assert stats.ratio_interval([1, 0], [0, 0]) is None
    # A draw of the second question alone has a denominator of 0.
    rare = stats.ratio_interval([1, 0], [1, 0])
    assert (rare.estimate, rare.low, rare.high) == (1, -inf, inf)


def test_large_samples_are_drawn_in_chunks(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(11)
    a, b = rng.random((2, 300))
    whole = stats.paired_bootstrap(a, b), stats.paired_permutation(a, b)
    monkeypatch.setattr(stats, "CHUNK_CELLS", 1000)
    small = stats.paired_bootstrap(a, b), stats.paired_permutation(a, b)
    assert (small[0].low, small[0].high) == pytest.approx((whole[0].low, whole[0].high), abs=0.002)
    assert small[1].p_value == pytest.approx(whole[1].p_value, abs=0.02)


def test_a_full_gsm8k_comparison_takes_less_than_three_seconds():
    rng = np.random.default_rng(12)
    a, b = rng.random((2, 1319))
    start = time.perf_counter()
    stats.paired_permutation(a, b, resamples=20_000)
    stats.paired_bootstrap(a, b, resamples=20_000)
    # Each of the two takes far less than 3 seconds.
    assert time.perf_counter() - start < 6


# Intervals of one run


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (1, 30), (37, 100), (900, 1319)])
def test_accuracy_intervals_equal_scipy(right: int, n: int):
    scores = [1] * right + [0] * (n - right)
    exact = scipy_stats.binomtest(right, n)
    for ours, theirs in (("wilson", "wilson"), ("clopper-pearson", "exact")):
        result = stats.mean_interval(scores, method=ours)
        expected = exact.proportion_ci(0.95, method=theirs)
        assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert (result.estimate, result.n, result.method) == (pytest.approx(right / n), n, ours)


def test_intervals_equal_statsmodels():
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    for right, n in ((3, 9), (50, 64), (1000, 1319)):
        scores = [1] * right + [0] * (n - right)
        for ours, theirs in (("wilson", "wilson"), ("clopper-pearson", "beta")):
            result = stats.mean_interval(scores, 0.9, method=ours)
            assert (result.low, result.high) == pytest.approx(proportion.proportion_confint(right, n, 0.1, theirs))
    values = judged(np.random.default_rng(13), (80,))
    result = stats.mean_interval(values)
    assert (result.low, result.high) == pytest.approx(weightstats.DescrStatsW(values).tconfint_mean())


def test_auto_takes_the_exact_interval_where_an_outcome_is_rare():
    def method(right: int, n: int) -> str:
        return stats.mean_interval([1] * right + [0] * (n - right)).method

    assert [method(15, 100), method(16, 100), method(84, 100), method(85, 100), method(0, 1)] == [
        "clopper-pearson",
        "wilson",
        "wilson",
        "clopper-pearson",
        "clopper-pearson",
    ]


@pytest.mark.parametrize("method", ["auto", "wilson", "clopper-pearson"])
def test_counts_give_the_interval_of_their_scores(method: str):
    for right, n in ((0, 1), (3, 40), (50, 100)):
        scores = [1] * right + [0] * (n - right)
        assert stats.proportion_interval(right, n, 0.9, method=method) == stats.mean_interval(
            scores, 0.9, method=method
        )


def test_graded_means_take_students_t():
    values = judged(np.random.default_rng(14), (50,))
    expected = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.9)
    result = stats.mean_interval(values, 0.9)
    assert (result.low, result.high, result.method) == (pytest.approx(expected.low), pytest.approx(expected.high), "t")
    assert stats.mean_interval([0, 1, 1, 0], method="t").method == "t"
    same = stats.mean_interval([0.5] * 4)
    assert (same.low, same.high) == (0.5, 0.5)
    one = stats.mean_interval([0.5])
    assert (one.estimate, one.low, one.high) == (0.5, -inf, inf)


@pytest.mark.parametrize("n", [1, 2, 7, 33, 100, 250])
def test_accuracy_intervals_are_ordered_and_mirror_each_other(n: int):
    ends = [stats.mean_interval([1] * right + [0] * (n - right)) for right in range(n + 1)]
    assert all(x.low <= y.low and x.high <= y.high for x, y in pairwise(ends))
    for x, y in zip(ends, reversed(ends), strict=True):
        assert 0 <= x.low <= x.estimate <= x.high <= 1
        assert (x.low, x.high) == pytest.approx((1 - y.high, 1 - y.low))


# The interval of two accuracies


@pytest.mark.parametrize(
    ("gained", "lost", "n", "level", "low", "high"),
    [
        # The airway data of Fagerland, Lydersen and Laake 2014, Stat Med 33:2850.
        (7, 1, 21, 0.95, 0.026, 0.517),
        # R: PropCIs::scoreci.mp(25, 28, 618, 0.90).
        (28, 25, 618, 0.90, -0.0148, 0.0247),
    ],
)
def test_tangos_interval_equals_published_numbers(gained, lost, n, level, low, high):
    result = stats.paired_difference_interval(*pairs(gained, lost, n), level)
    assert (result.low, result.high) == (pytest.approx(low, abs=6e-4), pytest.approx(high, abs=6e-4))


@pytest.mark.parametrize(("gained", "lost", "n"), [(1, 0, 10), (3, 3, 12), (12, 5, 64), (90, 61, 400), (2, 1, 1319)])
def test_tangos_ends_solve_the_score_equation_with_a_numerical_likelihood(gained: int, lost: int, n: int):
    def score(delta: float) -> float:
        def surprise(q: float) -> float:
            return -(gained * np.log(q + delta) + lost * np.log(q) + (n - gained - lost) * np.log(1 - 2 * q - delta))

        lowest, highest = max(0.0, -delta), (1 - delta) / 2
        q = optimize.minimize_scalar(surprise, bounds=(lowest, highest), method="bounded", options={"xatol": 1e-12}).x
        return (gained - lost - n * delta) / sqrt(n * (2 * q + delta - delta**2))

    result = stats.paired_difference_interval(*pairs(gained, lost, n))
    z = scipy_stats.norm.ppf(0.975)
    assert (score(result.low), score(result.high)) == pytest.approx((z, -z), abs=1e-3)


@given(BITS)
def test_a_difference_changes_its_sign_when_the_runs_change_places(rows: list[tuple[int, int]]):
    a, b = zip(*rows, strict=True)
    one, two = stats.paired_difference_interval(a, b), stats.paired_difference_interval(b, a)
    assert -1 <= one.low <= one.estimate <= one.high <= 1
    assert (one.low, one.high) == pytest.approx((-two.high, -two.low))
    assert stats.mcnemar_exact(a, b).p_value == stats.mcnemar_exact(b, a).p_value
    assert stats.win_tie_loss(a, b).wins == stats.win_tie_loss(b, a).losses


def test_no_discordant_pair_is_not_certainty():
    z2 = scipy_stats.norm.ppf(0.975) ** 2
    for n in (1, 40, 1319):
        for scores in ([1] * n, [0] * n):
            result = stats.paired_difference_interval(scores, scores)
            assert (result.low, result.high) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)))
    only = stats.paired_difference_interval([0], [1])
    assert (only.estimate, only.high) == (1, 1)
    assert only.low < 0


# Coverage, summed over every outcome


@pytest.mark.parametrize("n", [1, 2, 5, 10, 20, 31, 32, 40, 64, 80, 99, 100, 164, 250, 541])
def test_the_accuracy_interval_covers_what_it_says(n: int):
    ends = [stats.mean_interval([1] * right + [0] * (n - right)) for right in range(n + 1)]
    truth = np.linspace(0.0005, 0.9995, 1000)[:, None]  # (truths, 1)
    holds = (np.array([e.low for e in ends]) <= truth) & (truth <= np.array([e.high for e in ends]))
    cover = (scipy_stats.binom.pmf(np.arange(n + 1), n, truth) * holds).sum(axis=1)
    assert cover.min() >= 0.93
    if n >= 100:
        assert cover[(truth[:, 0] >= 0.1) & (truth[:, 0] <= 0.9)].max() <= 0.97


@pytest.mark.parametrize("n", [1, 2, 4, 7, 10, 20, 40, 80, 100, 200])
def test_the_interval_of_two_accuracies_covers_what_it_says(n: int):
    # More than 120 discordant pairs have no chance at these rates.
    counts = [(g, x) for g in range(n + 1) for x in range(min(n - g, 120 - g) + 1)]
    gained, lost = np.array(counts).T
    intervals = [stats.paired_difference_interval(*pairs(g, x, n)) for g, x in counts]
    low, high = np.array([(interval.low, interval.high) for interval in intervals]).T
    for rate in (0.01, 0.03, 0.08, 0.15, 0.3, 0.4, 0.5)[: 7 if n < 200 else 6]:
        for one_way in (0.0, 0.3, 0.6, 0.9, 1.0):
            chance = scipy_stats.binom.pmf(gained + lost, n, rate) * scipy_stats.binom.pmf(
                gained, gained + lost, (1 + one_way) / 2
            )
            truth = rate * one_way
            cover = chance[(low <= truth + 1e-9) & (truth <= high + 1e-9)].sum()
            assert cover >= 0.93 or (one_way == 1 and cover >= 0.929)
            if n >= 100 and rate * n >= 5 and one_way < 1:
                assert cover <= 0.97


# Coverage, simulated


def test_intervals_of_paired_runs_cover_by_simulation():
    rng, n, trials = np.random.default_rng(15), 300, 1500
    # Two runs share the difficulty of a question.
    skill = rng.normal(size=(trials, n))
    a = skill + rng.normal(size=(trials, n)) > 0.2
    b = skill + rng.normal(size=(trials, n)) > 0.0
    spread = sqrt(2)
    truth = scipy_stats.norm.cdf(0.2 / spread) - 0.5
    results = [stats.paired_difference_interval(x, y) for x, y in zip(a, b, strict=True)]
    assert 0.93 <= np.mean([r.low <= truth <= r.high for r in results]) <= 0.97
    means = [stats.mean_interval(x) for x in b]
    assert 0.93 <= np.mean([r.low <= 0.5 <= r.high for r in means]) <= 0.97


@pytest.mark.parametrize("n", [30, 100, 300])
def test_students_interval_covers_by_simulation(n: int):
    rng = np.random.default_rng(16)
    truth = np.arange(1, 11) @ [0.04, 0.04, 0.05, 0.05, 0.07, 0.08, 0.12, 0.2, 0.25, 0.1]
    results = [stats.mean_interval(values) for values in judged(rng, (2000, n))]
    assert 0.93 <= np.mean([r.low <= truth <= r.high for r in results]) <= 0.97


@pytest.mark.parametrize("kind", ["judged", "ceiling", "groups"])
def test_the_bootstrap_interval_covers_by_simulation(kind: str):
    rng, covered, trials = np.random.default_rng(17), 0, 800
    for trial in range(trials):
        truth, groups = 0.0, None
        a, b = judged(rng, (2, 100))
        if kind == "ceiling":
            # Nine answers in ten have the top score.
            truth, a, b = -0.05, np.ones(100), 1 - 0.5 * (rng.random(100) < 0.1)
        if kind == "groups":
            # 60 questions with 3 seeds each; most of the noise belongs to the question.
            a, groups = np.zeros(180), np.repeat(range(60), 3).tolist()
            b = np.repeat(rng.normal(size=60), 3) + 0.3 * rng.normal(size=180)
        result = stats.paired_bootstrap(a, b, seed=trial, resamples=800, groups=groups)
        covered += result.low <= truth <= result.high
    assert (0.92 if kind == "groups" else 0.93) <= covered / trials <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("n", [100, 300, 1000])
def test_the_bootstrap_interval_covers_by_longer_simulation(n: int):
    rng, trials = np.random.default_rng(18), 4000
    shared = [stats.paired_bootstrap(*judged(rng, (2, n)), seed=i, resamples=2000) for i in range(trials)]
    assert 0.935 <= np.mean([r.low <= 0 <= r.high for r in shared]) <= 0.965


# Many tasks, and power


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert stats.holm([0.6, 0.5]) == (1.0, 1.0)
    assert stats.holm([0.02, 0.02, 0.02]) == pytest.approx((0.06, 0.06, 0.06))
    assert stats.holm([0.2]) == (0.2,)


def test_holm_equals_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    rng = np.random.default_rng(19)
    for size in (1, 2, 9, 40):
        p = rng.random(size) ** 2
        assert stats.holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1])


@pytest.mark.parametrize(("n", "rate"), [(164, 0.3), (541, 0.15), (1319, 0.2), (1319, 0.02)])
def test_the_detectable_effect_is_found_with_the_power_that_was_set(n: int, rate: float):
    effect = stats.minimum_detectable_effect(n, rate)
    # The normal approximation of Connor 1987, Biometrics 43:207, solved for the effect, is a little too small.
    z, zb = scipy_stats.norm.ppf([0.975, 0.8])
    approximate = sqrt(rate) * (z * sqrt(n) + zb * sqrt(n + zb**2 - z**2)) / (n + zb**2)
    assert approximate < effect < 1.12 * approximate
    rng = np.random.default_rng(20)
    discordant = rng.binomial(n, rate, 2000)
    gained = rng.binomial(discordant, (1 + effect / rate) / 2)
    rejected = [
        scipy_stats.binomtest(g, d).pvalue <= 0.05 if d else False for g, d in zip(gained, discordant, strict=True)
    ]
    assert np.mean(rejected) == pytest.approx(0.8, abs=0.03)


def test_effects_that_cannot_be_found():
    # Five of five pairs still have p = 0.0625.
    assert stats.minimum_detectable_effect(5, 1.0) == inf
    assert stats.minimum_detectable_effect(6, 1.0) < inf
    assert stats.minimum_detectable_effect(1319, 0.0) == inf
    assert stats.minimum_detectable_effect(100, 0.05) == inf
    assert stats.minimum_detectable_effect_graded(1, 1.0) == inf
    assert stats.minimum_detectable_effect_graded(50, 0.0) == 0


def test_more_questions_more_power_and_less_noise_find_smaller_effects():
    effects = [stats.minimum_detectable_effect(n, 0.2) for n in (100, 400, 1600)]
    assert effects == sorted(effects, reverse=True)
    assert stats.minimum_detectable_effect(400, 0.2, power=0.9) > effects[1]
    assert stats.minimum_detectable_effect(400, 0.2, alpha=0.01) > effects[1]
    assert stats.minimum_detectable_effect_graded(400, 2.0) == 2 * stats.minimum_detectable_effect_graded(400, 1.0)


@pytest.mark.parametrize("n", [10, 80, 1319])
def test_the_graded_effect_has_the_power_of_the_t_test(n: int):
    effect = stats.minimum_detectable_effect_graded(n, 1.0)
    edge = scipy_stats.t.ppf(0.975, n - 1)
    assert scipy_stats.nct.sf(edge, n - 1, effect * sqrt(n)) == pytest.approx(0.8, abs=0.015)


def test_the_graded_effect_equals_statsmodels():
    power = pytest.importorskip("statsmodels.stats.power")
    for n in (20, 80, 1319):
        expected = power.TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8)
        assert stats.minimum_detectable_effect_graded(n, 1.0) == pytest.approx(expected, rel=0.01)


# Refusals


@pytest.mark.parametrize(
    "test",
    [
        stats.mcnemar_exact,
        stats.paired_permutation,
        stats.paired_bootstrap,
        stats.paired_difference_interval,
        stats.win_tie_loss,
    ],
)
@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ([0, 1], [1], "baseline has 2 scores and other 1"),
        ([], [], "baseline is empty"),
        ([0, 1], [1, float("nan")], "other holds 1 of 2 values that are NaN"),
        ([0, inf], [1, 1], "baseline holds 1 of 2"),
        ([0, None], [1, 1], "baseline must be one row of numbers"),
        (["0", "1"], [1, 1], "baseline must be one row of numbers"),
        ([[0, 1]], [1, 1], "baseline must be one row of numbers"),
        ([[0], [1, 0]], [1, 1], "baseline must be one row of numbers"),
    ],
)
def test_scores_that_cannot_be_paired_are_refused_in_one_sentence(test, a, b, words):
    with pytest.raises(ConfigError, match=words) as refusal:
        test(a, b)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("test", [stats.mcnemar_exact, stats.paired_difference_interval])
def test_right_or_wrong_is_needed_where_it_is(test):
    with pytest.raises(ConfigError, match=r"other must hold 0 .* 1 of 2 differ, the first being 0.5"):
        test([0, 1], [1, 0.5])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: stats.mean_interval([]), "values is empty"),
        (lambda: stats.mean_interval([0.5, 1], method="wilson"), "values must hold 0"),
        (lambda: stats.mean_interval([0, 1], method="wald"), "'wald' is unknown; use auto"),
        (lambda: stats.mean_interval([0, 1], 95), "give a confidence between 0 and 1"),
        (lambda: stats.proportion_interval(3, 2), "given were 3 of 2"),
        (lambda: stats.proportion_interval(0, 0), "n >= 1"),
        (lambda: stats.mean_interval([0.2, 1], 95), "give a confidence"),
        (lambda: stats.paired_bootstrap([0, 1], [1, 1], level=0), "give a confidence"),
        (lambda: stats.paired_bootstrap([0, 1], [1, 1], resamples=0), "resamples 1 or more"),
        (lambda: stats.paired_permutation([0, 1], [1, 1], seed=-1), "seed must be 0 or more"),
        (lambda: stats.paired_permutation([0, 1], [1, 1], groups=["q"]), "1 labels were given for 2 pairs"),
        (lambda: stats.holm([]), "p_values is empty"),
        (lambda: stats.holm([0.1, 1.2]), "p-values lie between 0 and 1"),
        (lambda: stats.holm([0.1, float("nan")]), "p_values holds 1 of 2"),
        (lambda: stats.minimum_detectable_effect(0, 0.2), "n >= 1"),
        (lambda: stats.minimum_detectable_effect(10, 1.2), "between 0 and 1; given was 1.2"),
        (lambda: stats.minimum_detectable_effect(10, 0.2, power=0.01), "alpha < power"),
        (lambda: stats.minimum_detectable_effect_graded(10, -1.0), "standard deviation"),
        (lambda: stats.minimum_detectable_effect_graded(10, float("nan")), "standard deviation"),
    ],
)
def test_settings_out_of_range_are_refused(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


def test_importing_loads_nothing_heavy():
    code = "import sys, lm_eval_aft.analysis.stats\n"
    code += "print(sorted({'numpy', 'scipy', 'torch', 'lm_eval'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"

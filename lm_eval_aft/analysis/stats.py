"""Every interval and test of a reported score, for one run or for two runs that answered the same questions.

The functions take plain sequences of scores, one for each question, and return frozen results. A difference is always
other minus baseline, in the metric's own unit. So it is positive if the other run is better and more is better. All
random numbers come from ``seed``, so that the same call returns the same digits. numpy and scipy are imported on first
use.

Which function to use:
    one run     0/1 or graded       ``mean_interval``; ``proportion_interval`` if only counts are known
    two runs    0/1                 ``mcnemar_exact`` (test), ``paired_difference_interval`` (interval)
                graded or judged    ``paired_permutation`` (test), ``paired_bootstrap`` (interval)
                repeats, seeds      the last two with ``groups``, since answers to one question are not independent
                tasks count alike   ``stratified_difference_interval``
    many tasks                      ``holm`` over their p-values
    before a run                    ``minimum_detectable_effect``, ``minimum_detectable_effect_graded``
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

from lm_eval_aft.core.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]
    Scores = Sequence[float] | NDArray[Any]

IntervalMethod = Literal["auto", "wilson", "clopper-pearson", "t", "bca"]

# Up to this many pairs all sign patterns are counted. 2^14 patterns take a millisecond.
EXACT_PAIRS = 14
# Resampled scores in memory at once: 8 MiB an array.
CHUNK_CELLS = 1 << 20
# Least count of the rarer outcome for Wilson's interval; see ``mean_interval``.
RARE = 16


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its confidence interval.

    Attributes:
        estimate: The mean, or the mean difference.
        low: Lower end; ``-inf`` if the observations say nothing about their spread, as a single one does not.
        high: Upper end; ``inf`` in the same case.
        level: Confidence in (0, 1).
        method: How the ends were computed: wilson, clopper-pearson, t, bca, percentile, tango, stratified or none.
        n: Number of scores, or of pairs of scores.
    """

    estimate: float
    low: float
    high: float
    level: float
    method: str
    n: int

    @property
    def bounded(self) -> bool:
        """Whether there is an interval at all."""
        return isfinite(self.low) or isfinite(self.high)


@dataclass(frozen=True, slots=True)
class McNemar:
    """How often two runs were right on the same questions, and the test of their difference.

    Attributes:
        both_right: Questions that both runs answered correctly.
        only_baseline: Questions that the baseline alone answered correctly.
        only_other: Questions that the other run alone answered correctly.
        both_wrong: Questions that neither run answered correctly.
        p_value: Two-sided and exact.
    """

    both_right: int
    only_baseline: int
    only_other: int
    both_wrong: int
    p_value: float

    @property
    def n(self) -> int:
        """Number of pairs."""
        return self.both_right + self.discordant + self.both_wrong

    @property
    def discordant(self) -> int:
        """Pairs in which the runs differ. The test depends on these alone."""
        return self.only_baseline + self.only_other

    @property
    def difference(self) -> float:
        """Accuracy of the other run minus that of the baseline."""
        return (self.only_other - self.only_baseline) / self.n


@dataclass(frozen=True, slots=True)
class Permutation:
    """A sign-flip test of the mean difference.

    Attributes:
        difference: Mean of other minus baseline.
        p_value: Two-sided.
        patterns: Number of sign patterns that were counted.
        exact: Whether these were all sign patterns.
    """

    difference: float
    p_value: float
    patterns: int
    exact: bool


@dataclass(frozen=True, slots=True)
class WinTieLoss:
    """The number of questions on which the other run scored above, level with and below the baseline."""

    wins: int
    ties: int
    losses: int


def win_tie_loss(baseline: Scores, other: Scores) -> WinTieLoss:
    """Count the questions on which ``other`` is better, equal and worse. Higher scores are better."""
    a, b = _pair(baseline, other)
    return WinTieLoss(int((b > a).sum()), int((b == a).sum()), int((b < a).sum()))


def mcnemar_exact(baseline: Scores, other: Scores) -> McNemar:
    """Exact McNemar test of two 0/1 runs over the same questions.

    If both runs are equally good, each discordant pair falls to either side with chance 1/2. The smaller count then
    follows Binomial(discordant, 1/2), and p is the mass of all outcomes that are not likelier than the observed one.
    Without a discordant pair p is 1.

    Sources: McNemar 1947, Psychometrika 12:153. The exact form: Fagerland, Lydersen and Laake 2013, BMC Med Res
    Methodol 13:91.

    Args:
        baseline: 0 or 1 for each question, shape (n,).
        other: The other run's scores, in the same order.
    """
    from scipy.stats import binomtest

    a, b = _pair(baseline, other, binary=True)
    both, lost, gained = int((a * b).sum()), int((a > b).sum()), int((b > a).sum())
    p_value = float(binomtest(gained, lost + gained, 0.5).pvalue) if lost + gained else 1.0
    return McNemar(both, lost, gained, a.size - both - lost - gained, p_value)


def paired_permutation(
    baseline: Scores,
    other: Scores,
    *,
    seed: int = 0,
    resamples: int = 20_000,
    groups: Sequence[Hashable] | None = None,
) -> Permutation:
    """Test a mean difference by flipping the signs of the differences.

    If the runs are exchangeable, every difference is equally likely to have the other sign. So p is the share of sign
    patterns whose absolute mean is at least the observed one. If at most 14 differences are not zero, all patterns are
    counted; on 0/1 scores this is McNemar's exact p. Otherwise ``resamples`` patterns are drawn and
    p = (hits + 1) / (resamples + 1), which keeps the test valid and is never 0.

    Sources: Fisher 1935, The Design of Experiments, 21. The sampled p: Phipson and Smyth 2010, SAGMB 9:39.

    Args:
        baseline: Scores, shape (n,).
        other: The other run's scores, in the same order.
        seed: Seed of the drawn patterns.
        resamples: Number of patterns to draw.
        groups: A label for each pair. Pairs of one label keep their signs relative to each other.
    """
    import numpy as np

    _check_draws(seed, resamples)
    a, b = _pair(baseline, other)
    sums, _ = _by_group(b - a, groups)
    flips = sums[sums != 0]  # (m,)
    # Equal sums that were added in another order differ in the last bits and must count as equal.
    bound = abs(flips.sum()) - 1e-9 * np.abs(flips).sum()
    difference = float((b - a).mean())
    if flips.size <= EXACT_PAIRS:
        patterns = np.arange(2**flips.size)[:, None] >> np.arange(flips.size) & 1  # (2^m, m)
        hits = int((np.abs((1 - 2 * patterns) @ flips) >= bound).sum())
        return Permutation(difference, hits / len(patterns), len(patterns), exact=True)
    hits = _sampled_hits(flips, bound, np.random.default_rng(seed), resamples)
    return Permutation(difference, (hits + 1) / (resamples + 1), resamples, exact=False)


def _sampled_hits(flips: FloatArray, bound: float, rng: np.random.Generator, resamples: int) -> int:
    """The number of ``resamples`` random sign patterns whose absolute sum reaches ``bound``."""
    import numpy as np

    hits, rows = 0, max(1, CHUNK_CELLS // flips.size)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        packed = rng.integers(0, 256, (count, -(-flips.size // 8)), dtype=np.uint8)
        kept = np.unpackbits(packed, axis=1, count=flips.size).astype(np.float64)  # (count, m)
        hits += int((np.abs(2 * (kept @ flips) - flips.sum()) >= bound).sum())
    return hits


def paired_bootstrap(
    baseline: Scores,
    other: Scores,
    *,
    seed: int = 0,
    resamples: int = 20_000,
    level: float = 0.95,
    groups: Sequence[Hashable] | None = None,
) -> Interval:
    """Bootstrap interval of the mean difference: BCa, or percentile if BCa is undefined.

    Pairs are drawn with replacement and kept together. BCa moves the two percentiles for bias and for skewness. The
    bias comes from the share of resampled means below the estimate, ties halved, and the skewness from the jackknife.
    BCa is undefined if every resampled mean lies on one side of the estimate. The interval is then that of the
    percentiles. One pair or one group gives (-inf, inf), and so do equal differences: neither says anything of their
    spread.

    Sources: Efron 1987, JASA 82:171. Groups: Field and Welsh 2007, JRSS B 69:369.

    Args:
        baseline: Scores, shape (n,).
        other: The other run's scores, in the same order.
        seed: Seed of the resampling.
        resamples: Number of resamples.
        level: Confidence in (0, 1).
        groups: A label for each pair, such as the question's id if several training seeds answered each question. Whole
            groups are drawn, so that repeats of a question do not narrow the interval.
    """
    a, b = _pair(baseline, other)
    return _bootstrap(b - a, seed, resamples, level, groups)


def stratified_difference_interval(
    baseline: Scores, other: Scores, strata: Sequence[Hashable], level: float = 0.95
) -> Interval:
    """Interval of a difference in which each stratum counts alike, whatever its size.

    The estimate is the mean over the H strata of their mean differences. Its variance is Σ s_h²/n_h / H², with s_h the
    standard deviation and n_h the number of differences in stratum h. The interval is Student's t with Satterthwaite's
    degrees of freedom. It is (-inf, inf) if a stratum has one pair, or if no stratum has a spread.

    Sources: Cochran 1977, Sampling Techniques, 5.4. Satterthwaite 1946, Biometrics 2:110.

    Args:
        baseline: Scores, shape (n,), one for each question.
        other: The other run's scores, in the same order.
        strata: The stratum of each pair.
        level: Confidence in (0, 1).
    """
    from scipy.stats import t

    a, b = _pair(baseline, other)
    _critical(level)
    sums, sizes = _by_group(b - a, strata)
    squares, _ = _by_group((b - a) ** 2, strata)
    estimate = float((sums / sizes).mean())
    if sizes.min() < 2:
        return Interval(estimate, -inf, inf, level, "none", a.size)
    # (H,) each: the squared sums of the differences, and the parts of the variance.
    spreads = (squares - sums**2 / sizes).clip(min=0)
    variances = spreads / (sizes - 1) / sizes / sizes.size**2
    if variances.sum() <= 1e-24 * float(squares.max()):
        return Interval(estimate, -inf, inf, level, "none", a.size)
    freedom = variances.sum() ** 2 / (variances**2 / (sizes - 1)).sum()
    half = float(t.ppf((1 + level) / 2, freedom) * sqrt(variances.sum()))
    return Interval(estimate, estimate - half, estimate + half, level, "stratified", a.size)


def _bootstrap(
    values: FloatArray, seed: int, resamples: int, level: float, groups: Sequence[Hashable] | None
) -> Interval:
    """BCa or percentile interval of the mean of ``values``, shape (n,), resampled by groups."""
    import numpy as np

    _check_draws(seed, resamples)
    z = _critical(level)
    estimate = float(values.mean())
    sums, sizes = _by_group(values, groups)  # (g,) each
    if np.allclose(sums / sizes, estimate, rtol=1e-12, atol=0):
        return Interval(estimate, -inf, inf, level, "none", values.size)
    means = _resampled_means(sums, sizes, np.random.default_rng(seed), resamples)
    shares = _bca_shares(means, sums, sizes, z)
    method = "bca" if shares else "percentile"
    low, high = np.quantile(means, shares or ((1 - level) / 2, (1 + level) / 2))
    return Interval(estimate, float(low), float(high), level, method, values.size)


def ratio_interval(
    numerators: Scores,
    denominators: Scores,
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = 20_000,
    level: float = 0.95,
) -> Interval | None:
    """Bootstrap interval of a ratio of two sums over the same questions: BCa, or percentile if BCa is undefined.

    Questions are drawn with replacement, each with its two numbers. If a draw can have a denominator of 0, the ends are
    -inf and inf. See ``paired_bootstrap`` for the method.

    Args:
        numerators: Shape (n,).
        denominators: Shape (n,), none below 0.
        groups: A label for each question. Whole groups are drawn.
        seed: Seed of the resampling.
        resamples: Number of resamples.
        level: Confidence in (0, 1).

    Returns:
        The ratio with its interval; None if the denominators are all 0.
    """
    import numpy as np

    _check_draws(seed, resamples)
    z = _critical(level)
    above, below = _pair(numerators, denominators)
    tops, _ = _by_group(above, groups)
    bottoms, _ = _by_group(below, groups)
    if not bottoms.sum():
        return None
    estimate = float(tops.sum() / bottoms.sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = _resampled_ratios(tops, bottoms, np.random.default_rng(seed), resamples)
        defined = bool(np.isfinite(ratios).all()) and float(np.ptp(ratios)) > 0
        shares = _bca_shares(ratios, tops, bottoms, z) if defined else None
    if not defined:
        return Interval(estimate, -inf, inf, level, "none", above.size)
    low, high = np.quantile(ratios, shares or ((1 - level) / 2, (1 + level) / 2))
    return Interval(estimate, float(low), float(high), level, "bca" if shares else "percentile", above.size)


def _resampled_ratios(tops: FloatArray, bottoms: FloatArray, rng: np.random.Generator, resamples: int) -> FloatArray:
    """Ratios of two sums of ``resamples`` draws of the same groups, shape (resamples,).

    Most groups have one of a few pairs of numbers. Drawing how often each pair occurs is the same as drawing groups,
    and much faster.
    """
    import numpy as np

    # Sums of equal scores differ in their last digits, and one more pair would change every draw.
    rounded = np.column_stack((tops, bottoms)).round(12)  # (groups, 2)
    pairs, counts = np.unique(rounded, axis=0, return_counts=True)  # (p, 2), (p,)
    ratios, rows = np.empty(resamples), max(1, CHUNK_CELLS // len(pairs))
    for start in range(0, resamples, rows):
        drawn = rng.multinomial(tops.size, counts / tops.size, min(rows, resamples - start))  # (rows, p)
        ratios[start : start + rows] = (drawn @ pairs[:, 0]) / (drawn @ pairs[:, 1])
    return ratios


def _resampled_means(sums: FloatArray, sizes: FloatArray, rng: np.random.Generator, resamples: int) -> FloatArray:
    """Means of ``resamples`` draws of whole groups, shape (resamples,): the drawn sums divided by the drawn sizes."""
    import numpy as np

    means, rows = np.empty(resamples), max(1, CHUNK_CELLS // sums.size)
    for start in range(0, resamples, rows):
        drawn = rng.integers(0, sums.size, (min(rows, resamples - start), sums.size))  # (rows, g)
        means[start : start + rows] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return means


def _bca_shares(means: FloatArray, sums: FloatArray, sizes: FloatArray, z: float) -> tuple[float, float] | None:
    """The two quantiles of the resampled means that BCa takes; None if they do not exist."""
    import numpy as np

    normal, estimate = NormalDist(), sums.sum() / sizes.sum()
    # Resampled means within this margin equal the estimate but for rounding.
    margin = 1e-12 * float(np.abs(means).max())
    below = float((means < estimate - margin).mean() + (means <= estimate + margin).mean()) / 2
    # How much the mean falls if a group is left out.
    pulls = (sums - estimate * sizes) / (sizes.sum() - sizes)
    spread = float((pulls**2).sum())
    if not 0 < below < 1 or spread <= margin**2:
        return None
    bias, acceleration = normal.inv_cdf(below), float((pulls**3).sum()) / (6 * spread**1.5)
    moved = [(bias + side, 1 - acceleration * (bias + side)) for side in (-z, z)]
    if any(scale <= 0 for _, scale in moved):
        return None
    low, high = (normal.cdf(bias + shift / scale) for shift, scale in moved)
    return low, high


def mean_interval(
    values: Scores, level: float = 0.95, *, method: IntervalMethod = "auto", seed: int = 0, resamples: int = 20_000
) -> Interval:
    """Interval of a mean score.

    For 0/1 scores ``auto`` takes Wilson's score interval, (p + z²/2n ± z√(p(1-p)/n + z²/4n²)) / (1 + z²/n). If fewer
    than 16 answers are right, or fewer than 16 wrong, it takes the exact interval of Clopper and Pearson. Wilson's
    coverage falls to 84% there. The coverage of ``auto``, summed exactly, is at least 93.4% at any n and accuracy. For
    n >= 100 and accuracies of 10 to 90% it is 93.4 to 96.7%.

    For graded scores ``auto`` takes Student's t, mean ± t·sd/√n. It covers 94 to 95% on judge-like scores from n = 30,
    but 92% at n = 100 if nine answers in ten have the top score. ``bca`` (see ``paired_bootstrap``) then covers 95%.
    Equal graded scores give a single point, and one score gives (-inf, inf).

    Sources: Wilson 1927, JASA 22:209. Clopper and Pearson 1934, Biometrika 26:404. Wilson's coverage: Brown, Cai and
    DasGupta 2001, Stat Sci 16:101.

    Args:
        values: Scores, shape (n,).
        level: Confidence in (0, 1).
        method: ``auto``, ``wilson`` or ``clopper-pearson`` (0/1 only), ``t`` or ``bca`` (any scores).
        seed: Seed of ``bca``.
        resamples: Number of resamples of ``bca``.
    """
    scores = _scores(values, "values")
    # Refuses a wrong level whatever the method.
    _critical(level)
    if method == "auto" and ((scores == 0) | (scores == 1)).all():
        return proportion_interval(int(scores.sum()), scores.size, level)
    if method == "auto":
        method = "t"
    if method == "bca":
        return _bootstrap(scores, seed, resamples, level, None)
    if method == "t":
        return _student(scores, level)
    if method not in ("wilson", "clopper-pearson"):
        raise ConfigError(f"Interval method {method!r} is unknown; use auto, wilson, clopper-pearson, t or bca.")
    return proportion_interval(int(_binary(scores, "values").sum()), scores.size, level, method=method)


def proportion_interval(
    successes: int, n: int, level: float = 0.95, *, method: Literal["auto", "wilson", "clopper-pearson"] = "auto"
) -> Interval:
    """Interval of a share of right answers of which only the counts are known. ``auto`` is as in ``mean_interval``.

    Args:
        successes: Number of right answers.
        n: Number of answers.
        level: Confidence in (0, 1).
        method: ``auto``, ``wilson`` or ``clopper-pearson``.
    """
    from scipy.stats import binomtest

    _critical(level)
    if n < 1 or not 0 <= successes <= n:
        raise ConfigError(f"A share needs n >= 1 and successes from 0 to n; given were {successes!r} of {n!r}.")
    if method == "auto":
        method = "wilson" if min(successes, n - successes) >= RARE else "clopper-pearson"
    interval = binomtest(successes, n).proportion_ci(level, method="wilson" if method == "wilson" else "exact")
    return Interval(successes / n, float(interval.low), float(interval.high), level, method, n)


def _student(scores: FloatArray, level: float) -> Interval:
    """Student's t interval. It is unbounded for one score."""
    from scipy.stats import t

    estimate, n = float(scores.mean()), scores.size
    if n == 1:
        return Interval(estimate, -inf, inf, level, "none", n)
    half = float(t.ppf((1 + level) / 2, n - 1) * scores.std(ddof=1) / sqrt(n))
    return Interval(estimate, estimate - half, estimate + half, level, "t", n)


def paired_difference_interval(baseline: Scores, other: Scores, level: float = 0.95) -> Interval:
    """Score interval of the difference of two accuracies over the same questions.

    The interval has every difference Δ at which |g - l - nΔ| <= z√(n(2q + Δ(1-Δ))), with g pairs gained and l lost.
    The likeliest chance of a loss given Δ is q = (√(B² - 4AC) - B) / 2A. In it A = 2n, B = (2n - g + l)Δ - g - l, and
    C = -lΔ(1-Δ).

    The coverage, summed exactly, is at least 92.9% at any n if up to half of the pairs differ. It is at most 96.3% for
    n >= 100 if five pairs or more are expected to differ. It is lower if nearly all pairs differ in one direction. The
    interval inverts the asymptotic test, so it can leave out 0 if the exact McNemar p is a little above 1 - level.
    Without a discordant pair the interval is ±z²/(n + z²).

    Source: Tango 1998, Stat Med 17:891.

    Args:
        baseline: 0 or 1 for each question, shape (n,).
        other: The other run's scores, in the same order.
        level: Confidence in (0, 1).
    """
    a, b = _pair(baseline, other, binary=True)
    gained, lost, z = int((b > a).sum()), int((a > b).sum()), _critical(level)
    low, high = _tango_low(gained, lost, a.size, z), -_tango_low(lost, gained, a.size, z)
    return Interval((gained - lost) / a.size, low, high, level, "tango", a.size)


def _tango_low(gained: int, lost: int, n: int, z: float) -> float:
    """Lower end of Tango's interval by bisection. The upper end is its mirror image.

    Numerator and variance can vanish together at the estimate. A root finder stops there, and bisection does not.
    """
    low, high = -1.0, (gained - lost) / n
    while high - low > 1e-13:
        delta = (low + high) / 2
        b, c = (2 * n - gained + lost) * delta - gained - lost, -lost * delta * (1 - delta)
        loss_chance = (sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        variance = max(n * (2 * loss_chance + delta * (1 - delta)), 0.0)
        if gained - lost - n * delta > z * sqrt(variance):
            low = delta
        else:
            high = delta
    return high


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjust p-values for their number by Holm's step-down rule. The order stays the same.

    The i-th smallest of m p-values, counted from 0, becomes the largest of (m - j)·p_j over j <= i, at most 1. If all
    tests with an adjusted p of at most alpha are rejected, the chance of any false rejection is at most alpha. This
    holds however the tests depend on each other.

    Source: Holm 1979, Scand J Stat 6:65.
    """
    p = _scores(p_values, "p_values").tolist()
    if not all(0 <= value <= 1 for value in p):
        raise ConfigError(f"p-values lie between 0 and 1; given were values from {min(p)} to {max(p)}.")
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = largest
    return tuple(adjusted)


def minimum_detectable_effect(n: int, discordant_rate: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest difference of accuracies that the exact McNemar test of n pairs finds with the given power.

    The number of discordant pairs follows Binomial(n, ψ), and a share (1 + δ/ψ)/2 of them falls to the better run. The
    result is the least δ at which the chance of p <= alpha reaches ``power``. It is ``inf`` if even δ = ψ, at which
    every discordant pair falls to one run, is found too seldom.

    Source of the exact unconditional power: Duffy 1984, Biometrics 40:1005.

    Args:
        n: Number of questions.
        discordant_rate: ψ, the share of questions on which the runs differ, in [0, 1].
        alpha: Two-sided level of the test.
        power: Chance of finding the effect, between alpha and 1.
    """
    import numpy as np
    from scipy.optimize import brentq
    from scipy.stats import binom

    _check_power(n, alpha, power)
    if not 0 <= discordant_rate <= 1:
        raise ConfigError(f"discordant_rate is a share of questions between 0 and 1; given was {discordant_rate!r}.")
    discordant = np.arange(n + 1)
    weights = binom.pmf(discordant, n, discordant_rate)  # (n + 1,)
    # The fewest pairs on one side for p <= alpha, out of m discordant pairs; m + 1 if no number is enough.
    needed = binom.isf(alpha / 2, discordant, 0.5) + 1  # (n + 1,)

    def lacking(one_way: float) -> float:
        share = (1 + one_way) / 2
        chances = binom.sf(needed - 1, discordant, share) + binom.cdf(discordant - needed, discordant, share)
        return power - float(weights @ chances)

    return discordant_rate * float(brentq(lacking, 0.0, 1.0)) if lacking(1.0) <= 0 else inf


def minimum_detectable_effect_graded(n: int, sd: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest mean difference of graded scores that a paired test of n questions finds with the given power.

    It is (t(1 - alpha/2) + t(power))·sd/√n with n - 1 degrees of freedom, and ``inf`` for n = 1. This is the power of
    the t test; the sign-flip test has nearly the same.

    Source: Cohen 1988, Statistical Power Analysis, ch. 2.

    Args:
        n: Number of questions.
        sd: Standard deviation of the differences, in the metric's unit.
        alpha: Two-sided level of the test.
        power: Chance of finding the effect, between alpha and 1.
    """
    from scipy.stats import t

    _check_power(n, alpha, power)
    if not (isfinite(sd) and sd >= 0):
        raise ConfigError(f"sd is a standard deviation, 0 or more; given was {sd!r}.")
    return float((t.ppf(1 - alpha / 2, n - 1) + t.ppf(power, n - 1)) * sd / sqrt(n)) if n > 1 else inf


def _by_group(values: FloatArray, groups: Sequence[Hashable] | None) -> tuple[FloatArray, FloatArray]:
    """Sum and size of every group, shape (g,) each, in order of first appearance.

    Without labels each value is a group of its own.
    """
    import numpy as np

    if groups is None:
        return values, np.ones_like(values)
    if len(groups) != values.size:
        raise ConfigError(f"groups needs one label a pair: {len(groups)} labels were given for {values.size} pairs.")
    places: dict[Hashable, int] = {}
    codes = [places.setdefault(label, len(places)) for label in groups]
    sums: FloatArray = np.bincount(codes, weights=values).astype(np.float64)
    return sums, np.bincount(codes).astype(np.float64)


def _pair(baseline: Scores, other: Scores, *, binary: bool = False) -> tuple[FloatArray, FloatArray]:
    """The scores of both runs, checked and of one length."""
    a, b = _scores(baseline, "baseline"), _scores(other, "other")
    if a.size != b.size:
        raise ConfigError(f"baseline has {a.size} scores and other {b.size}; give one pair a question, in one order.")
    return (_binary(a, "baseline"), _binary(b, "other")) if binary else (a, b)


def _scores(values: Scores, name: str) -> FloatArray:
    """``values`` as a float array of shape (n,).

    Raises:
        ConfigError: ``values`` is not one row of finite numbers.
    """
    import numpy as np

    try:
        array = np.asarray(values)
    except ValueError as error:
        # The rows have different lengths.
        raise ConfigError(f"{name} must be one row of numbers, one a question.") from error
    if array.ndim != 1 or (array.size and array.dtype.kind not in "biuf"):
        raise ConfigError(f"{name} must be one row of numbers, one a question; given was {array.dtype}{array.shape}.")
    if not array.size:
        raise ConfigError(f"{name} is empty; at least one question is needed.")
    if bad := int((~np.isfinite(array)).sum()):
        raise ConfigError(f"{name} holds {bad} of {array.size} values that are NaN or infinite; score or drop those.")
    return array.astype(np.float64)


def _binary(scores: FloatArray, name: str) -> FloatArray:
    """``scores``, if all are 0 or 1.

    Raises:
        ConfigError: A score is neither.
    """
    odd = scores[(scores != 0) & (scores != 1)]
    if odd.size:
        raise ConfigError(
            f"{name} must hold 0 (wrong) and 1 (right) alone, but {odd.size} of {scores.size} differ, the first being "
            f"{odd[0]:g}; for graded scores use the permutation test, the bootstrap or method='t'."
        )
    return scores


def _critical(level: float) -> float:
    """The normal quantile z of a two-sided interval.

    Raises:
        ConfigError: ``level`` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ConfigError(f"level={level!r} is not allowed: give a confidence between 0 and 1, such as 0.95.")
    return NormalDist().inv_cdf((1 + level) / 2)


def _check_draws(seed: int, resamples: int) -> None:
    """Refuse a seed that numpy would refuse, and fewer than one resample."""
    if seed < 0 or resamples < 1:
        raise ConfigError(f"seed must be 0 or more and resamples 1 or more; given were {seed!r} and {resamples!r}.")


def _check_power(n: int, alpha: float, power: float) -> None:
    """Refuse a number of questions, a level or a power for which no detectable effect is defined."""
    if n < 1 or not 0 < alpha < power < 1:
        raise ConfigError(f"Power needs n >= 1 and 0 < alpha < power < 1; given were {n!r}, {alpha!r} and {power!r}.")

"""Intervals, tests and verdicts for paired experiments with few blocks; scipy wherever scipy has it.

An interval over fewer than `FEW` blocks is Student's t. Of normal samples, a 95 % interval by BCa bootstrap covers 71 %
with three values, 89 % with ten, 92 % with twenty; t covers 95 %, and loses less than BCa where values are skewed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

FEW = 20


class Estimate(NamedTuple):
    """A value, its two-sided interval, the number of independent units behind it, and how it was found."""

    value: float
    low: float
    high: float
    n: int
    method: str


class Trend(NamedTuple):
    """Page's test: the statistic L, its one-sided p, the blocks and treatments it rests on."""

    statistic: float
    p: float
    blocks: int
    treatments: int


class Crossover(NamedTuple):
    """Where an advantage changes sign, with its interval (0 or inf: it may lie outside the range measured).

    `rises`: the advantage turns positive there. `crossings`: how often the mean curve does that or the
    reverse; `value` is the first. `missing_fraction`: resamples over blocks without such a change of sign.
    """

    value: float
    low: float
    high: float
    rises: bool
    crossings: int
    missing_fraction: float
    n: int
    method: str


class Crossings(NamedTuple):
    """What resamples over blocks say of an advantage that may change its sign: the shares of them in which it never
    does and in which it does several times; of the others' first change the median and the interval (NaN: none has
    one), within the range measured.
    """

    median: float
    low: float
    high: float
    none_fraction: float
    multiple_fraction: float
    n: int
    method: str


class Verdict(StrEnum):
    """What the data say of a claim."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    UNDECIDED = "undecided"


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable = np.mean,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """A statistic of independent values with its BCa bootstrap interval (Efron 1987; scipy.stats.bootstrap).

    Where BCa is undefined (its acceleration or bias cannot be estimated) the percentile interval is given, and `method`
    says so; identical values have an interval of no width.
    """
    values = _sample(values)
    value, n = float(statistic(values)), len(values)
    if np.ptp(values) == 0:
        return Estimate(value, value, value, n, "bootstrap of identical values")
    for method in ("BCa", "percentile"):
        with np.errstate(all="ignore"):
            found = stats.bootstrap(
                (values,),
                statistic,
                confidence_level=confidence,
                n_resamples=resamples,
                batch=max(1, 100_000 // n),  # what fits a cache; the draws are the same in batches of any size
                method=method,
                random_state=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite(found).all():
            break
    name = "BCa bootstrap" if method == "BCa" else "percentile bootstrap (BCa undefined)"
    return Estimate(value, float(found.low), float(found.high), n, f"{name}, {resamples} resamples")


def t_interval(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """The mean of independent values with Student's t interval (scipy.stats.t)."""
    values = _sample(values)
    mean, n = float(values.mean()), len(values)
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n, "t interval")


def mean_interval(values: ArrayLike, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """The mean with the interval that its n allows: t below `FEW` values, BCa bootstrap from there on."""
    values = _sample(values)
    return (
        t_interval(values, confidence)
        if len(values) < FEW
        else bootstrap_interval(values, np.mean, confidence, seed=seed)
    )


def mean_ratio(log_ratios: ArrayLike, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """The geometric mean of ratios, from their natural logarithms, a value per block; interval as `mean_interval`.

    Speed-ups are averaged on the log scale: there x2 and x0.5 cancel (Fleming and Wallace, CACM 1986).
    """
    log = mean_interval(log_ratios, confidence, seed)
    value, low, high = (math.exp(x) for x in log[:3])
    return Estimate(value, low, high, log.n, f"geometric mean, {log.method} on logs")


def median_sequence(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """The median with an interval that holds at every n at once: look after each value, stop when it suits.

    What it needs: that each value lies above the true median or below it like the toss of a fair coin, whatever came
    before. Then under the uniform mixture of all other coins, 2^n / ((n + 1) C(n, k)) after k of n above is a
    martingale from 1, which ever reaches 1 / (1 - confidence) with a probability of 1 - confidence at most (Ville's
    inequality); the interval holds the medians for which it has not, and ends at values seen. Infinite while n < 8
    (of 95 %). Darling and Robbins, PNAS 58 (1967) 66; Howard and Ramdas, Bernoulli 28 (2022) 1704.
    """
    values = np.sort(np.asarray(values, dtype=float))
    n = len(values)
    if n == 0 or np.isnan(values).any():
        raise ValueError(f"the median of {n} values, {int(np.isnan(values).sum())} of them NaN, is unknown")
    k = np.arange(n // 2 + 1)
    log_wealth = n * math.log(2) + special.betaln(k + 1, n - k + 1)
    least = int(np.argmax(log_wealth < -math.log1p(-confidence)))  # values that must lie on either side
    low, high = (float(values[least - 1]), float(values[n - least])) if least else (-math.inf, math.inf)
    return Estimate(float(np.median(values)), low, high, n, "always-valid sign interval of the median")


def mean_p(values: ArrayLike, null: float = 0.0) -> float:
    """Two-sided p that the mean of paired differences is `null` (scipy.stats.ttest_1samp)."""
    values = _sample(values)
    if np.ptp(values) == 0:
        return 1.0 if values[0] == null else 0.0
    return float(stats.ttest_1samp(values, null).pvalue)


def sign_flip_p(values: ArrayLike) -> float:
    """Two-sided p that paired differences are as likely negative as positive, from all their signs
    (scipy.stats.permutation_test; a random 2 ** 14 of them from 15 values on).

    It assumes nothing else, and so n differences reach no p below 2 / 2 ** n: 0.0625 with five.
    """
    values = _sample(values)
    if not values.any():
        return 1.0
    rng = np.random.default_rng(0)
    return float(
        stats.permutation_test(
            (values,), np.mean, permutation_type="samples", vectorized=True, n_resamples=2**14, rng=rng
        ).pvalue
    )


def tie_set(table: ArrayLike, confidence: float = 0.95) -> np.ndarray:
    """Which treatments cannot be told from the one with the lowest mean, in a table of blocks x treatments.

    Left out is what a one-sided paired t test at (1 - confidence) / (treatments - 1) finds worse than the lowest. The
    truly lowest is then kept with at least that confidence, whichever happens to come out lowest (by Bonferroni over
    the others; subset selection as in Gupta, Technometrics 1965).
    """
    table = _matrix(table, least=(2, 2))
    behind = table - table[:, [table.mean(axis=0).argmin()]]
    mean, error = behind.mean(axis=0), behind.std(axis=0, ddof=1) / math.sqrt(len(table))
    bar = stats.t.ppf(1 - (1 - confidence) / (table.shape[1] - 1), len(table) - 1)
    return mean <= bar * error


def crossed_interval(
    table: ArrayLike,
    weights: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """The weighted mean of a table of runs x items, all runs over the same items, for runs and items that are both
    samples: the spread of a bootstrap that draws both (Owen, AOAS 2007), times Student's t for the runs.

    With few runs the percentiles of a bootstrap are too near each other; the spread is corrected by n / (n - 1).
    """
    table = _matrix(table, least=(2, 2))
    runs, items = table.shape
    weights = np.ones(items) if weights is None else np.asarray(weights, dtype=float)
    if weights.shape != (items,) or not (weights > 0).all():
        raise ValueError(f"weights: give {items} numbers above 0, one an item")
    rng = np.random.default_rng(seed)
    drawn_runs = rng.multinomial(runs, [1 / runs] * runs, resamples) / runs
    drawn_items = rng.multinomial(items, [1 / items] * items, resamples) * weights
    means = (drawn_runs @ table * drawn_items).sum(1) / drawn_items.sum(1)
    value = float(np.average(table.mean(axis=0), weights=weights))
    half = float(stats.t.ppf(0.5 + confidence / 2, runs - 1) * means.std(ddof=1) * math.sqrt(runs / (runs - 1)))
    return Estimate(value, value - half, value + half, runs, f"bootstrap over runs and {items} items, t")


def signal_to_noise(table: ArrayLike) -> float:
    """Spread of the treatments' means over the spread that remains within blocks, in a table of blocks x treatments."""
    table = _matrix(table, least=(2, 2))
    rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    noise = math.sqrt((rest**2).sum() / ((table.shape[0] - 1) * (table.shape[1] - 1)))
    return float(table.mean(axis=0).std(ddof=1) / noise) if noise else math.inf


def holm(pvalues: Mapping[str, float] | ArrayLike) -> dict[str, float] | np.ndarray:
    """P-values adjusted for their number, family-wise (Holm 1979), in the order and by the names given."""
    if isinstance(pvalues, Mapping):
        return dict(zip(pvalues, map(float, holm(list(pvalues.values()))), strict=True))
    p = np.asarray(pvalues, dtype=float)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():  # NaN fails both
        raise ValueError(f"p-values must be a flat list of numbers in [0, 1], not {p.tolist()!r:.80}")
    order = np.argsort(p, kind="stable")
    adjusted = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted[np.argsort(order, kind="stable")]


def page_trend(matrix: ArrayLike) -> Trend:
    """Whether values rise along ordered treatments, one-sided (Page 1963; scipy.stats.page_trend_test).

    `matrix` is blocks x treatments, the treatments in the order in which the claim says that they rise. Negate it to
    test a fall.
    """
    matrix = _matrix(matrix, least=(2, 3))
    found = stats.page_trend_test(matrix)
    return Trend(float(found.statistic), float(found.pvalue), *matrix.shape)


def block_slopes(size: ArrayLike, ratio: ArrayLike) -> np.ndarray:
    """Per block, the least-squares slope of log(ratio) against log(size): ratio ~ size ** slope."""
    size, ratio = np.asarray(size, dtype=float), _matrix(ratio, least=(1, 2))
    if size.shape != ratio.shape[1:]:
        raise ValueError(f"{len(np.atleast_1d(size))} sizes for {ratio.shape[1]} columns of ratios")
    if not (size > 0).all() or not (ratio > 0).all() or np.ptp(size) == 0:
        raise ValueError("a slope on log scales needs positive ratios and at least two different positive sizes")
    x = np.log(size) - np.log(size).mean()
    return np.log(ratio) @ x / (x @ x)


def slope_per_block(size: ArrayLike, ratio: ArrayLike, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """The mean over blocks of the exponent in ratio ~ size ** slope; blocks, not points, are what is resampled.

    `ratio` is blocks x sizes. The summary-statistics approach to repeated measures (Matthews et al., BMJ 1990).
    """
    found = mean_interval(block_slopes(size, ratio), confidence, seed)
    return found._replace(method=f"mean of per-block log-log slopes, {found.method}")


def crossover(
    x: ArrayLike, advantage_by_block: ArrayLike, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Crossover | None:
    """Where the mean advantage changes sign, linear in log x between the points measured; None where it does not.

    `advantage_by_block` is blocks x points. Below `FEW` blocks the interval holds every x at which a t test does not
    tell the advantage from 0 (Fieller 1954, inverted test by test); from there on percentiles of resampled blocks.
    """
    log_x, table = _curves(x, advantage_by_block)
    found = _crossings(log_x, table.mean(axis=0))
    if not found:
        return None
    value, rises = found[0]
    rng = np.random.default_rng(seed)
    draws = [_resampled(log_x, table[rng.integers(len(table), size=len(table))], rises) for _ in range(resamples)]
    if len(table) < FEW:
        (low, high), method = _not_told_from_zero(log_x, table, confidence), "t test inverted over x"
    else:
        tail = (1 - confidence) / 2
        low, high = np.quantile(draws, [tail, 1 - tail], method="inverted_cdf")
        method = f"percentile bootstrap over blocks, {resamples} resamples"
    with np.errstate(over="ignore"):
        value, low, high = (float(np.exp(at)) for at in (value, low, high))
    missing = float(np.isinf(draws).mean())
    return Crossover(value, low, high, rises, len(found), missing, len(table), method)


def crossings(
    x: ArrayLike, advantage_by_block: ArrayLike, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Crossings:
    """How sure it is that the mean advantage changes its sign, and how often it does: percentiles of resampled blocks.

    The same interpolation as `crossover`, also where the mean curve itself has no change of sign. With few blocks the
    interval is too narrow (see this file's head); the fractions are a description, not a test.
    """
    log_x, table = _curves(x, advantage_by_block)
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(table), size=(resamples, len(table)))
    found = [_crossings(log_x, table[blocks].mean(axis=0)) for blocks in draws]
    first = [np.exp(where[0][0]) for where in found if where]
    tail = (1 - confidence) / 2
    low, median, high = np.quantile(first, [tail, 0.5, 1 - tail]) if first else (math.nan,) * 3
    counts = np.array([len(where) for where in found])
    none, several = float(np.mean(counts == 0)), float(np.mean(counts > 1))
    method = f"percentile bootstrap over blocks, {resamples} resamples"
    return Crossings(float(median), float(low), float(high), none, several, len(table), method)


def _curves(x: ArrayLike, advantage_by_block: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """(log x, blocks x points), checked."""
    x, table = np.asarray(x, dtype=float), _matrix(advantage_by_block, least=(2, 2))
    if x.shape != table.shape[1:] or not (np.diff(x) > 0).all() or not (x > 0).all():
        raise ValueError(f"x must be {table.shape[1]} positive numbers in rising order, not {x.tolist()!r:.80}")
    return np.log(x), table


def _crossings(log_x: np.ndarray, y: np.ndarray) -> list[tuple[float, bool]]:
    """Each change of sign along y: where, by linear interpolation, and whether upwards. Touching 0 is none."""
    found, last = [], None
    for i in np.flatnonzero(y):
        if last is not None and y[last] * y[i] < 0:
            zeros = log_x[last + 1 : i]
            at = zeros.mean() if len(zeros) else np.interp(0, *_rising(y[[last, i]], log_x[[last, i]]))
            found.append((float(at), bool(y[i] > 0)))
        last = i
    return found


def _rising(y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (y, x) if y[0] < y[1] else (y[::-1], x[::-1])


def _resampled(log_x: np.ndarray, table: np.ndarray, rises: bool) -> float:
    """The crossing of one resample; -inf or inf where it lies before or beyond the range."""
    mean = table.mean(axis=0)
    for at, upwards in _crossings(log_x, mean):
        if upwards == rises:
            return at
    return -math.inf if (mean.mean() > 0) == rises else math.inf


def _not_told_from_zero(log_x: np.ndarray, table: np.ndarray, confidence: float) -> tuple[float, float]:
    """The ends of the set of x where the t interval of the interpolated advantage holds 0."""
    grid = np.unique(np.concatenate([log_x, np.linspace(log_x[0], log_x[-1], 4001)]))
    at = np.array([np.interp(grid, log_x, block) for block in table])
    half = stats.t.ppf(0.5 + confidence / 2, len(at) - 1) * at.std(axis=0, ddof=1) / math.sqrt(len(at))
    inside = np.flatnonzero(np.abs(at.mean(axis=0)) <= half)
    if not len(inside):  # no spread at all between blocks
        inside = np.flatnonzero(np.diff(np.sign(at.mean(axis=0))))[[0, 0]]
    low, high = grid[inside[0]], grid[inside[-1]]
    return (-math.inf if inside[0] == 0 else low), (math.inf if inside[-1] == len(grid) - 1 else high)


def verdict(interval: Estimate | Sequence[float], null: float = 0.0, least: float = 0.0) -> Verdict:
    """Of the claim that a quantity lies above `null`: supported where the whole interval does, refuted where none does.

    `least` is the smallest excess worth the name: an interval that ends below `null + least` refutes the claim, even if
    it lies above `null`.
    """
    low, high = _ends(interval)
    if high <= null or high < null + least:
        return Verdict.REFUTED
    return Verdict.SUPPORTED if low > null else Verdict.UNDECIDED


def verdict_within(interval: Estimate | Sequence[float], band: tuple[float, float]) -> Verdict:
    """Of the claim that a quantity lies within `band`: supported by an interval inside it, refuted by one outside."""
    low, high = _ends(interval)
    if band[0] <= low and high <= band[1]:
        return Verdict.SUPPORTED
    return Verdict.REFUTED if high < band[0] or low > band[1] else Verdict.UNDECIDED


def minimum_detectable(sd: float, n: int, confidence: float = 0.95, power: float = 0.8) -> float:
    """The smallest mean difference that n paired differences of this spread would show, with this power.

    The usual approximation (t_alpha + t_power) * sd / sqrt(n) (Bloom, Evaluation Review 1995).
    """
    if n < 2 or not sd >= 0:
        raise ValueError(f"n = {n}, sd = {sd}: give at least two pairs and a spread of 0 or more")
    return float((stats.t.ppf(0.5 + confidence / 2, n - 1) + stats.t.ppf(power, n - 1)) * sd / math.sqrt(n))


def _ends(interval: Estimate | Sequence[float]) -> tuple[float, float]:
    low, high = interval[1:3] if isinstance(interval, Estimate | Crossover) else interval
    if math.isnan(low) or math.isnan(high) or low > high:
        raise ValueError(f"({low}, {high}) is not an interval")
    return low, high


def _sample(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"an interval needs a flat list of at least 2 values, not {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(
            f"{int((~np.isfinite(values)).sum())} of {len(values)} values are NaN or infinite; drop them knowingly"
        )
    return values


def _matrix(values: ArrayLike, least: tuple[int, int]) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or values.shape[0] < least[0] or values.shape[1] < least[1]:
        raise ValueError(f"give at least {least[0]} blocks x {least[1]} columns, not an array of shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(
            f"{int((~np.isfinite(values)).sum())} cells of the table are NaN or infinite; keep complete blocks only"
        )
    return values

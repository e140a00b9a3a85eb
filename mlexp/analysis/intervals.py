"""Intervals of what is no plain mean over blocks: shares, values in time, timings of one process, crossed samples."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from mlexp.analysis.stats import Estimate, half_width, matrix, sample, t_bar


def share_interval(count: int, n: int, confidence: float = 0.95) -> Estimate:
    """A share of independent trials with its exact interval (Clopper and Pearson 1934; scipy.stats.binomtest)."""
    if n < 1:
        raise ValueError(f"a share of {n} trials is not known")
    low, high = stats.binomtest(int(count), int(n)).proportion_ci(confidence, method="exact")
    return Estimate(count / n, float(low), float(high), n, "exact interval of a share")


def correlated_interval(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """The mean of values that follow each other in time, with a t interval for as many independent ones as they are
    worth: n (1 - r) / (1 + r), r their correlation from one to the next (Bartlett 1946), at most n.
    """
    values = sample(values)
    n, centred = len(values), values - values.mean()
    square = float(centred @ centred)
    r = float(centred[1:] @ centred[:-1]) / square if square else 0.0
    worth = max(2, min(n, math.floor(n * (1 - max(r, 0.0)) / (1 + max(r, 0.0)))))
    half = half_width(float(values.std(ddof=1)), worth, confidence)
    mean = float(values.mean())
    return Estimate(mean, mean - half, mean + half, worth, f"t interval, {n} values in time worth {worth}")


def timing_spread(median: float, iqr: float, rounds: int) -> float:
    """Standard error of the logarithm of a median of normal rounds: 1.253 sd / sqrt(rounds), sd = IQR / 1.349."""
    return 1.253 / 1.349 * iqr / median / math.sqrt(rounds)


def around(value: float, spread: float, confidence: float = 0.95) -> tuple[float, float]:
    """The normal interval of a positive estimate whose logarithm has this standard error."""
    half = float(stats.norm.ppf(0.5 + confidence / 2)) * spread
    return value * math.exp(-half), value * math.exp(half)


def timed_interval(value: float, spread: float, rounds: int, confidence: float = 0.95) -> Estimate:
    """A ratio of timings of one process with its normal interval, from the standard error of its logarithm."""
    return Estimate(value, *around(value, spread, confidence), rounds, "spread of the rounds of one process")


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
    table = matrix(table, smallest=(2, 2))
    runs, items = table.shape
    weights = np.ones(items) if weights is None else np.asarray(weights, dtype=float)
    if weights.shape != (items,) or not (weights > 0).all():
        raise ValueError(f"weights: give {items} numbers above 0, one an item")
    rng = np.random.default_rng(seed)
    drawn_runs = rng.multinomial(runs, [1 / runs] * runs, resamples) / runs
    drawn_items = rng.multinomial(items, [1 / items] * items, resamples) * weights
    means = (drawn_runs @ table * drawn_items).sum(1) / drawn_items.sum(1)
    value = float(np.average(table.mean(axis=0), weights=weights))
    half = float(t_bar(runs - 1, confidence) * means.std(ddof=1) * math.sqrt(runs / (runs - 1)))
    return Estimate(value, value - half, value + half, runs, f"bootstrap over runs and {items} items, t")

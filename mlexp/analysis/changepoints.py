"""Where the level of a series changes: hierarchical E-divisive, allowing for values that resemble the one before.

The split of a series with the largest energy distance is tested by permutation, and both sides are searched in turn
(Matteson and James, JASA 2014; on benchmarks Daly et al., ICPE 2020, Fleming et al., ICPE 2023). Where values are
independent, their order says nothing under no change, and a series raises a false alarm with probability `alpha` at
most. Where each resembles the one before (a machine that warms up), shuffled values are smoother than real ones, and
that test alone finds a change in 33 to 62 % of series without one (first-order correlation .7, 10 to 40 values). So a
split must also be larger, beside what is left around the means on its two sides, than those of simulated normal
autoregressions are. Their coefficient is the smaller of two estimates, each corrected to the median of simulated series
of the same length (Andrews, Econometrica 1993): one from the residuals on both sides of the split, one from differences
of neighbours, the largest left out, which further steps do not move. Of such series 15 to 22 % then raise an alarm, of
independent ones no more than before.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

SHORTEST = 2  # commits of a level: one alone is an outlier until a second says the same
COEFFICIENTS = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.97])
BATCH = 500_000  # distances at a time, which fit a cache

Array = NDArray[np.float64]


class Change(NamedTuple):
    """A new level: the index of its first value, and the p of the split (0 where values are exact)."""

    at: int
    p: float


def change_points(values: ArrayLike, alpha: float = 0.05, seed: int = 0) -> list[Change]:
    """Where the level of a series of finite numbers changes, in order; in a series without change none, with
    probability 1 - `alpha` at least.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"a series is a flat list of finite numbers, not {values.tolist()!r:.80}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it lies between 0 and 1")
    rng, found, left = np.random.default_rng(seed), [], [(0, len(values))]
    while left:
        low, high = left.pop()
        if (change := _split(values[low:high], alpha, rng)) is not None:
            found.append(Change(low + change.at, change.p))
            left += [(low, found[-1].at), (found[-1].at, high)]
    return sorted(found)


def commits_needed(alpha: float) -> int:
    """The fewest values of which a clean step in the middle can have a p of `alpha` or less."""
    n = 2 * SHORTEST
    while 2 / math.comb(n, n // 2) > alpha:
        n += 1
    return n


def energies(distances: Array) -> Array:
    """The scaled energy distance between both sides of every split: (..., n, n) distances -> (..., splits).

    A split stands before value i, SHORTEST <= i <= n - SHORTEST. m n / (m + n) (2 E|X-Y| - E|X-X'| - E|Y-Y'|), the
    expectations without the zeros on the diagonal.
    """
    n = distances.shape[-1]
    m = np.arange(SHORTEST, n - SHORTEST + 1)
    sums = distances.cumsum(axis=-1).cumsum(axis=-2)
    left, rows, total = sums[..., m - 1, m - 1], sums[..., m - 1, -1], sums[..., -1, -1, None]
    between, right = rows - left, total - 2 * rows + left
    other = n - m
    within = left / (m * (m - 1)) + right / (other * (other - 1))
    found: Array = m * other / n * (2 * between / (m * other) - within)
    return found


def _split(values: Array, alpha: float, rng: np.random.Generator) -> Change | None:
    """The best split of a segment where its p is `alpha` or less; drawing stops once that is out of reach."""
    n = len(values)
    if n < commits_needed(alpha) or np.ptp(values) == 0:
        return None
    best = _best(values[None])
    draws, beaten, done = math.ceil(5 / alpha) - 1, 0, 0
    while done < draws:
        batch = min(max(1, BATCH // n**2), draws - done)
        shuffled = rng.permuted(np.tile(values, (batch, 1)), axis=1)
        beaten += int((_best(shuffled).energy >= best.energy * (1 - 1e-9)).sum())
        done += batch
        if (1 + beaten) / (1 + draws) > alpha:
            return None
    estimates = zip(_estimates(values[None]), _medians(n), strict=True)
    coefficient = min(float(np.interp(found[0], medians, COEFFICIENTS)) for found, medians in estimates)
    by_chance = _sharpness(n, min(0.95, round(20 * coefficient) / 20))
    p = (1 + int((by_chance >= best.sharpness * (1 - 1e-9)).sum())) / (1 + len(by_chance))
    p = max(p, (1 + beaten) / (1 + draws))
    return Change(int(best.at[0]), p) if p <= alpha else None


class Best(NamedTuple):
    """Of each series: the largest energy distance over its splits, the same over the mean absolute residual around the
    means on both sides, where that split is, and the correlation from one residual to the next."""

    energy: Array
    sharpness: Array
    at: NDArray[np.intp]
    correlation: Array


def _best(series: Array) -> Best:
    found = energies(np.abs(series[:, :, None] - series[:, None, :]))
    at = SHORTEST + found.argmax(axis=1)
    before = np.arange(series.shape[1]) < at[:, None]
    means = [(series * side).sum(axis=1) / side.sum(axis=1) for side in (before, ~before)]
    rest = series - np.where(before, means[0][:, None], means[1][:, None])
    size, square = np.abs(rest).mean(axis=1), (rest**2).sum(axis=1)
    correlation = (rest[:, 1:] * rest[:, :-1]).sum(axis=1) / np.where(square > 0, square, 1.0)
    energy = found.max(axis=1)
    sharpness = np.divide(
        energy, size, out=np.full(len(energy), np.inf), where=size > 1e-12 * np.abs(series).max(axis=1)
    )
    return Best(energy, sharpness, at, correlation)


def _autoregression(innovations: Array, coefficient: float) -> Array:
    """Rows whose values are `coefficient` times the one before, and an innovation; as spread out from the first on."""
    rows = innovations.copy()
    rows[:, 0] /= math.sqrt(1 - coefficient**2)
    for i in range(1, rows.shape[1]):
        rows[:, i] += coefficient * rows[:, i - 1]
    return rows


def _estimates(series: Array) -> tuple[Array, Array]:
    """Two estimates of each row's coefficient, both biased: the correlation of the residuals of its best split, and the
    ratio of the variances of differences over two places and over one, less 1, without the largest fifth of them."""
    variances = []
    for lag in (1, 2):
        steps = np.sort(np.abs(series[:, lag:] - series[:, :-lag]), axis=1)
        variances.append((steps[:, : max(3, int(0.8 * steps.shape[1]))] ** 2).mean(axis=1))
    return _best(series).correlation, variances[1] / np.maximum(variances[0], np.finfo(float).tiny) - 1


@functools.cache
def _medians(n: int) -> tuple[Array, Array]:
    """The median of either estimate over normal autoregressions of n values, by their coefficient."""
    rng, count = np.random.default_rng(1), min(400, max(40, BATCH * 8 // n**2))
    medians = []
    for coefficient in COEFFICIENTS:
        rows = _autoregression(rng.standard_normal((count, n)), float(coefficient))
        parts = [_estimates(part) for part in np.array_split(rows, max(1, count * n**2 // BATCH))]
        medians.append([float(np.median(np.concatenate(column))) for column in zip(*parts, strict=True)])
    first, second = np.maximum.accumulate(np.array(medians), axis=0).T
    return first, second


@functools.cache
def _sharpness(n: int, coefficient: float) -> Array:
    """Of the best splits of normal autoregressions of n values."""
    rng, count = np.random.default_rng(2), 999
    rows = _autoregression(rng.standard_normal((count, n)), coefficient)
    return np.concatenate([_best(part).sharpness for part in np.array_split(rows, max(1, count * n**2 // BATCH))])

"""Curves over a size: trends, slopes and changes of sign, a value per block and point; scipy wherever scipy has it."""

import functools
import itertools
import math
from collections import Counter
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from mlexp.analysis.stats import matrix, t_bar

EXACT_TREATMENTS = 7  # 5,040 orders of a block


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


class _Changes(NamedTuple):
    """The changes of sign of several curves: of which row each is, where (log x), whether upwards; left to right."""

    row: np.ndarray
    at: np.ndarray
    rises: np.ndarray


def page_trend(table: ArrayLike) -> Trend:
    """Whether values rise along ordered treatments, one-sided (Page, JASA 1963), exact for up to seven treatments.

    `table` is blocks x treatments, the treatments in the order in which the claim says that they rise. Negate it to
    test a fall. Tied values share their mean rank, and p is exact for the ranks as they are: the distribution of L over
    all orders of each block's ranks. Beyond seven treatments p is Page's normal approximation, corrected for ties.
    """
    table = matrix(table, smallest=(2, 3))
    ranks, m = stats.rankdata(table, axis=1), table.shape[1]
    place = np.arange(1, m + 1)
    statistic = float((ranks @ place).sum())
    if m <= EXACT_TREATMENTS:
        p = _at_least(statistic, [np.sort(row) for row in ranks])
    else:
        spread = (place.var(ddof=1) * ranks.var(axis=1, ddof=1) * (m - 1)).sum()
        expected = len(table) * m * (m + 1) ** 2 / 4
        p = float(stats.norm.sf((statistic - expected) / math.sqrt(spread))) if spread else 1.0
    return Trend(statistic, p, *table.shape)


def _at_least(statistic: float, blocks: list[np.ndarray]) -> float:
    """P(sum over blocks of ranks x places >= statistic) where every order of a block's ranks is equally likely."""
    total = {0: 1.0}
    for ranks, count in Counter(map(tuple, blocks)).items():
        one = _distribution(ranks)
        for _ in range(count):
            grown: dict[int, float] = {}
            for a, p in total.items():
                for b, q in one.items():
                    grown[a + b] = grown.get(a + b, 0.0) + p * q
            total = grown
    return min(1.0, sum(p for doubled, p in total.items() if doubled >= round(2 * statistic)))


@functools.cache
def _distribution(ranks: tuple[float, ...]) -> dict[int, float]:
    """Twice a block's sum of ranks x places (an integer, ties or not) -> its probability."""
    orders = np.array(list(itertools.permutations(ranks)))
    doubled = np.rint(2 * orders @ np.arange(1, len(ranks) + 1)).astype(int)
    values, counts = np.unique(doubled, return_counts=True)
    return dict(zip(values.tolist(), (counts / len(orders)).tolist(), strict=True))


def crossover(
    x: ArrayLike, advantage_by_block: ArrayLike, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Crossover | None:
    """Where the mean advantage changes sign, linear in log x between the points measured; None where it does not.

    `advantage_by_block` is blocks x points. The interval holds every x at which a t test does not tell the advantage
    from 0 (Fieller 1954, inverted test by test).
    """
    log_x, table = _curves(x, advantage_by_block)
    own = _changes(log_x, table.mean(axis=0, keepdims=True))
    if not len(own.at):
        return None
    value, rises = own.at[0], bool(own.rises[0])
    drawn = _changes(log_x, _means(table, resamples, seed))
    missing = 1 - len(np.unique(drawn.row[drawn.rises == rises])) / resamples
    (low, high), method = _undecided_range(log_x, table, confidence), "t test inverted over x"
    with np.errstate(over="ignore"):
        value, low, high = (float(np.exp(at)) for at in (value, low, high))
    return Crossover(value, low, high, rises, len(own.at), missing, len(table), method)


def crossings(
    x: ArrayLike, advantage_by_block: ArrayLike, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Crossings:
    """How sure it is that the mean advantage changes its sign, and how often it does: percentiles of resampled blocks.

    The same interpolation as `crossover`, also where the mean curve itself has no change of sign. With few blocks the
    interval is too narrow (see this file's head); the fractions are a description, not a test.
    """
    log_x, table = _curves(x, advantage_by_block)
    found = _changes(log_x, _means(table, resamples, seed))
    counts = np.bincount(found.row, minlength=resamples)
    first = np.exp(found.at[np.unique(found.row, return_index=True)[1]])
    tail = (1 - confidence) / 2
    low, median, high = np.quantile(first, [tail, 0.5, 1 - tail]) if len(first) else (math.nan,) * 3
    none, several = float(np.mean(counts == 0)), float(np.mean(counts > 1))
    method = f"percentile bootstrap over blocks, {resamples} resamples"
    return Crossings(float(median), float(low), float(high), none, several, len(table), method)


def _curves(x: ArrayLike, advantage_by_block: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """(log x, blocks x points), checked."""
    x, table = np.asarray(x, dtype=float), matrix(advantage_by_block, smallest=(2, 2))
    if x.shape != table.shape[1:] or not (np.diff(x) > 0).all() or not (x > 0).all():
        raise ValueError(f"x must be {table.shape[1]} positive numbers in rising order, not {x.tolist()!r:.80}")
    return np.log(x), table


def _means(table: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Mean curves of resampled blocks, resamples x points."""
    draws = np.random.default_rng(seed).integers(len(table), size=(resamples, len(table)))
    return np.asarray(table[draws].mean(axis=1))


def _changes(log_x: np.ndarray, y: np.ndarray) -> _Changes:
    """Each change of sign along each row of y, by linear interpolation. Touching 0 is none; a stretch of zeros in which
    the sign changes counts as its middle."""
    place = np.arange(y.shape[1])
    last = np.maximum.accumulate(np.where(y != 0, place, -1), axis=1)[:, :-1]  # that is not 0, left of each point
    left = np.take_along_axis(y, np.maximum(last, 0), axis=1)
    row, before = np.nonzero((last >= 0) & (y[:, 1:] != 0) & ((left < 0) != (y[:, 1:] < 0)))
    i, j = before + 1, last[row, before]
    with np.errstate(over="ignore"):
        share = 1 / (1 - y[row, i] / y[row, j])  # of the way from j to i
    sums = np.concatenate([[0.0], np.cumsum(log_x)])
    zeros = (sums[i] - sums[j + 1]) / np.maximum(i - j - 1, 1)
    at = np.where(i - j > 1, zeros, log_x[j] + share * (log_x[i] - log_x[j]))
    return _Changes(row, at, y[row, i] > 0)


def _undecided_range(log_x: np.ndarray, table: np.ndarray, confidence: float) -> tuple[float, float]:
    """The ends of the set of x where the t interval of the interpolated advantage holds 0."""
    grid = np.unique(np.concatenate([log_x, np.linspace(log_x[0], log_x[-1], 4001)]))
    at = np.array([np.interp(grid, log_x, block) for block in table])
    half = t_bar(len(at) - 1, confidence) * at.std(axis=0, ddof=1) / math.sqrt(len(at))
    inside = np.flatnonzero(np.abs(at.mean(axis=0)) <= half)
    if not len(inside):  # no spread at all between blocks
        inside = np.flatnonzero(np.diff(np.sign(at.mean(axis=0))))[[0, 0]]
    low, high = grid[inside[0]], grid[inside[-1]]
    return (-math.inf if inside[0] == 0 else low), (math.inf if inside[-1] == len(grid) - 1 else high)

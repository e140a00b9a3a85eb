"""Families of comparisons: Holm's adjustment, and arms without blocks by their pooled variance (Tukey, Dunnett)."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

Key = TypeVar("Key")


@overload
def holm(pvalues: Mapping[Key, float]) -> dict[Key, float]: ...
@overload
def holm(pvalues: ArrayLike) -> np.ndarray: ...
def holm(pvalues: Mapping[Key, float] | ArrayLike) -> dict[Key, float] | np.ndarray:
    """P-values adjusted for their number, family-wise (Holm 1979), in the order and by the names given."""
    if isinstance(pvalues, Mapping):
        return dict(zip(pvalues, map(float, holm(list(pvalues.values()))), strict=True))
    p = np.asarray(pvalues, dtype=float)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():  # NaN fails both
        raise ValueError(f"p-values must be a flat list of numbers in [0, 1], not {p.tolist()!r:.80}")
    order = np.argsort(p, kind="stable")
    adjusted = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    found: np.ndarray = adjusted[np.argsort(order, kind="stable")]
    return found


class Pool(NamedTuple):
    """Independent samples of several arms and what they share: means, sizes, pooled standard deviation, its degrees."""

    names: tuple[str, ...]
    means: np.ndarray
    sizes: np.ndarray
    sd: float
    df: int

    def without(self, names: Sequence[str]) -> "Pool":
        """The layout of the other arms, with the spread of all."""
        keep = [i for i, name in enumerate(self.names) if name not in names]
        return self._replace(names=tuple(self.names[i] for i in keep), means=self.means[keep], sizes=self.sizes[keep])


def pool(samples: Mapping[str, ArrayLike]) -> Pool:
    """The one-way layout of independent samples by arm, of equal variance; arms with a single value give a mean alone.

    Raises ValueError where no arm has two values: then nothing is known of the spread.
    """
    arrays = {name: np.asarray(values, dtype=float) for name, values in samples.items()}
    empty = [name for name, values in arrays.items() if not len(values) or not np.isfinite(values).all()]
    if empty:
        raise ValueError(f"no finite values of {', '.join(empty)}; drop such arms knowingly")
    df = sum(len(values) - 1 for values in arrays.values())
    if df < 1:
        raise ValueError("no arm has two values: the spread is not known")
    square = sum(float(((values - values.mean()) ** 2).sum()) for values in arrays.values()) / df
    means = np.array([values.mean() for values in arrays.values()])
    return Pool(tuple(arrays), means, np.array([len(v) for v in arrays.values()]), math.sqrt(square), df)


def tukey_bar(layout: Pool, confidence: float = 0.95) -> float:
    """What a difference of two arms must exceed, in its standard errors, among all pairs (scipy.stats.tukey_hsd's).

    Tukey and Kramer's: the studentized range of as many arms as the layout has, over the square root of 2.
    """
    return _range_quantile(confidence, len(layout.names), layout.df) / math.sqrt(2)


@functools.cache
def _range_quantile(confidence: float, arms: int, df: int) -> float:
    """Of the studentized range; takes scipy a tenth of a second."""
    return float(stats.studentized_range.ppf(confidence, arms, df))


def tukey_p(layout: Pool, arm: str, other: str) -> float:
    """Two-sided p of a difference of two arms, adjusted for all pairs of the layout."""
    i, j = layout.names.index(arm), layout.names.index(other)
    error = layout.sd * math.sqrt(1 / layout.sizes[i] + 1 / layout.sizes[j])
    if not error:
        return 1.0
    range_ = abs(layout.means[i] - layout.means[j]) / error * math.sqrt(2)
    return _range_p(float(range_), len(layout.names), layout.df)


@functools.cache
def _range_p(range_: float, arms: int, df: int) -> float:
    """Above a studentized range; an integral that scipy solves anew for every number."""
    return float(stats.studentized_range.sf(range_, arms, df))


def difference(layout: Pool, arm: str, other: str, bar: float) -> tuple[float, float, float]:
    """(mean of arm minus that of the other, low, high), `bar` standard errors to either side."""
    i, j = layout.names.index(arm), layout.names.index(other)
    value = float(layout.means[i] - layout.means[j])
    half = bar * layout.sd * math.sqrt(1 / layout.sizes[i] + 1 / layout.sizes[j])
    return value, value - half, value + half


def tied(layout: Pool, confidence: float = 0.95) -> list[str]:
    """The arms that cannot be told from the one with the lowest mean: Tukey's interval of the difference holds 0.

    The interval is simultaneous over all pairs, so it allows for the lowest having been picked because it is lowest.
    """
    best, bar = layout.names[int(layout.means.argmin())], tukey_bar(layout, confidence)
    return [name for name in layout.names if name == best or difference(layout, name, best, bar)[1] <= 0]

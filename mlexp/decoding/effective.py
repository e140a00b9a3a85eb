"""How many independent samples the correlated samples of one tree are worth; plain numpy.

A functional f maps a sample to C numbers: a token to its indicator vector, a surprisal to itself. R trees, each with
the mean of f over its own samples; M independent samples.

    effective samples = Var(f) / E |tree's mean of f - E f|^2

with variances summed over components. N independent samples are worth N; the bias of a tree's mean counts against it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

MIN_REPLICATES = 16
MAX_RELATIVE_VARIANCE = 1 / 16  # of the mean squared error, if each of the R trees were one sample
LOW = 0.3  # weight of the low value of the worst: what balances its bias over small models whose truth is known


@dataclass(frozen=True)
class Estimate:
    """Effective samples of one functional, and their jackknife standard error."""

    samples: float
    error: float
    parts: np.ndarray  # (R,) jackknife pseudo-values, one for each tree; their mean is `samples`


def functionals(
    tokens: np.ndarray, surprisals: np.ndarray, lengths: np.ndarray, answered: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The functionals of each of n samples: tokens (n, G), surprisals (n, G) nats, lengths (n,), answered (n,) bool.

    Values (n,): integers are categories, floats are quantities. Tokens are those at the first and second position, a
    quarter of the way, halfway and last.
    """
    G = tokens.shape[1]
    found = {f"token_{i}": tokens[:, i] for i in sorted({0, 1, G // 4, G // 2, G - 1}) if i < G}
    nats = surprisals.sum(1).round(3)  # what is finer differs between equal texts: arithmetic, not variance
    found |= {"surprisal": nats, "length": lengths.astype(float)}
    return found if answered is None else found | {"answer": np.asarray(answered, float)}


def columns(*values: np.ndarray) -> list[np.ndarray]:
    """Values (n,) of several groups of samples as (n, C): categories as indicators of those that occur in any group."""
    if not np.issubdtype(values[0].dtype, np.integer):
        return [value[:, None].astype(float) for value in values]
    seen = np.unique(np.concatenate(values))
    return [(value[:, None] == seen).astype(float) for value in values]


def tree_means(values: np.ndarray, tree: np.ndarray) -> np.ndarray:
    """The mean of values (n, C) over the samples of each tree, whose number may differ from tree to tree: (R, C)."""
    counts = np.bincount(tree)
    first = np.r_[0, counts.cumsum()[:-1]]
    return np.add.reduceat(values[np.argsort(tree, kind="stable")], first) / counts[:, None]


def effective(means: np.ndarray, iid: np.ndarray, exact: np.ndarray | None = None) -> Estimate | None:
    """Effective samples of a functional from its tree means (R, C) and its values (M, C) of independent samples.

    The squared error is taken about the exact mean (C,), or else about the mean of the independent samples, less the
    variance of that mean. A ratio is biased where its parts are noisy: the jackknife leaves out each tree, then each
    independent sample. None below 16 of either; where the functional has no variance, or only that of samples so rare
    that this many trees cannot measure it; and where the trees show no error.
    """
    R, M = len(means), len(iid)
    if min(R, M) < MIN_REPLICATES:
        return None
    apart = iid - iid.mean(0)
    square = (apart**2).sum(1)
    if not square.any() or square.var(ddof=1) > MAX_RELATIVE_VARIANCE * R * square.mean() ** 2:
        return None
    means = means - (iid.mean(0) if exact is None else exact)
    error, variance = (means**2).sum(1), square.sum() / (M - 1)
    variances = (square.sum() - square * M / (M - 1)) / (M - 2)  # without each independent sample
    less, errors = 0.0, error.mean()
    if exact is None:
        less = variance / M
        errors = errors + 2 * apart @ means.mean(0) / (M - 1) + square / (M - 1) ** 2 - variances / (M - 1)
    without_tree = (error.sum() - error) / (R - 1) - less
    if without_tree.min() <= 0 or np.min(errors) <= 0:
        return None
    whole, by_tree, by_sample = variance / (error.mean() - less), variance / without_tree, variances / errors
    parts = R * whole - (R - 1) * by_tree - (M - 1) * (by_sample.mean() - whole)
    spread = parts.var(ddof=1) / R + by_sample.var() * (M - 1)
    return Estimate(float(parts.mean()), float(np.sqrt(spread)), parts)


def worst(found: Mapping[str, Estimate]) -> tuple[str, float] | None:
    """The functional with the fewest effective samples, and their number.

    The minimum of several noisy estimates is too low. Choosing the functional without one tree and reading it off that
    tree, for each in turn, is too high, as the choice may miss. The value lies between the two, within 2 % of the truth
    for 128 trees of small models; where several functionals are alike it is low, by 5 % where all six are.
    """
    if not found:
        return None
    parts = np.stack([each.parts for each in found.values()])  # (F, R)
    total = parts.sum(1)
    chosen = (total[:, None] - parts).argmin(0)  # without each tree
    low, high = total.min() / parts.shape[1], np.take_along_axis(parts, chosen[None], 0).mean()
    value = float(LOW * low + (1 - LOW) * high)
    return (list(found)[total.argmin()], value) if value > 0 else None


def compare(trees: Mapping[str, np.ndarray], tree: np.ndarray, iid: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
    """Effective samples by functional, as far as they can be measured.

    `trees` and `iid` are the `functionals` of the samples of trees and of independent samples; tree (n,) is the number
    of each sample's tree.
    """
    found = {}
    for name, values in trees.items():
        own, independent = columns(values, iid[name])
        if estimate := effective(tree_means(own, tree), independent):
            found[name] = estimate
    return found

"""Contrasts of arms, evaluated block by block: from the records of a study to the quantities that its claims name.

Every quantity here is linear in a table whose rows are blocks and whose columns are pairs (level of the curve axis,
arm): a `Leaf` is a weight for some of these columns. The values of a leaf, one a block, are what its interval is made
from.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mlexp.analysis.data import Data, Missing
from mlexp.analysis.stats import Estimate, half_width, known_interval, t_bar, t_interval
from mlexp.study import At, Contrast, FromMean, Given, Mean, Quantity, Slope, Steps

Column = tuple[str, str]  # (level, arm)


@dataclass(frozen=True)
class Leaf:
    """One scalar per block: its name, metric, whether of logarithms, and a weight for each (level, arm)."""

    label: str
    metric: str
    log: bool
    weights: tuple[tuple[Column, float], ...]
    axis: str = ""
    level: str = ""  # what tells it from the quantity's other scalars: a level, a step
    exponent: bool = False  # a slope of logarithms on logarithms
    arms: str = ""  # its contrast in words

    @property
    def where(self) -> str:
        """Its level, or its step, in words: at size n100; empty where it is over all levels."""
        return self.level if not self.level or self.level.startswith("from ") else f"at {self.axis} {self.level}"

    @property
    def is_pair(self) -> bool:
        """Whether it is a plain difference of two columns."""
        return sorted(weight for _, weight in self.weights) == [-1.0, 1.0]


def leaves(quantity: Quantity, data: Data) -> list[Leaf]:
    """The scalars of a quantity. Raises Missing for levels that the records lack."""
    if isinstance(quantity, Given):
        raise TypeError("a given quantity is not made of contrasts")
    contrast = quantity.contrast
    axis, levels = data.axis(quantity.levels), data.levels(quantity.levels, [name for name, _ in contrast.weights])
    metric = contrast.metric or data.study.outcome
    name = describe(contrast)

    def leaf(label: str, weights: Mapping[str, float], level: str = "") -> Leaf:
        columns: dict[tuple[str, str], float] = {}
        for at, factor in weights.items():
            for arm, weight in contrast.weights:
                columns[at, arm] = columns.get((at, arm), 0.0) + factor * weight
        weighted = tuple((c, w) for c, w in columns.items() if w)
        return Leaf(label, metric, contrast.log, weighted, axis, level, arms=name)

    if isinstance(quantity, At):
        return [leaf(f"{name} at {level}" if level else name, {level: 1.0}, level) for level in levels]
    if isinstance(quantity, Mean):
        return [leaf(name, {level: 1 / len(levels) for level in levels})]
    if isinstance(quantity, Steps):
        pairs = list(itertools.pairwise(levels))
        if not pairs:
            raise Missing(f"two values of {axis} are needed, {levels[0]} alone is there")
        return [leaf(f"{name} from {a} to {b}", {a: -1.0, b: 1.0}, f"from {a} to {b}") for a, b in pairs]
    needed = quantity.points if isinstance(quantity, Slope) else 3
    if len(levels) < needed:
        raise Missing(f"{needed} values of {axis} are needed, there are {len(levels)}: {', '.join(levels)}")
    if isinstance(quantity, FromMean):
        share = 1 / len(levels)
        return [leaf(f"{name} at {level}, from its mean", {at: (at == level) - share for at in levels}, level)
                for level in levels]  # fmt: skip
    x = np.log(data.sizes(axis, quantity.size, levels))
    x = x - x.mean()
    slope = leaf(f"slope of {name}", dict(zip(levels, (x / (x @ x)).tolist(), strict=True)))
    return [replace(slope, exponent=contrast.log)]


def describe(contrast: Contrast) -> str:
    """A contrast in words: what is added, minus (or over) what is taken away."""
    plus = [name for name, weight in contrast.weights if weight > 0]
    minus = [name for name, weight in contrast.weights if weight < 0]
    whole = all(abs(weight) == 1 for _, weight in contrast.weights)
    sides = [" + ".join(side) if len(side) == 1 or whole else f"mean of {len(side)}" for side in (plus, minus) if side]
    return (" over " if contrast.log else " minus ").join(sides)


def values(leaf: Leaf, data: Data) -> np.ndarray:
    """The leaf's value in every block that is complete. Raises Missing where a column has no record at all."""
    table = data.columns(leaf.metric, leaf.axis)
    columns = [column for column, _ in leaf.weights]
    absent = [column for column in columns if column not in table]
    if absent:
        raise Missing(f"no {leaf.metric} of " + ", ".join(f"{arm} at {at}" if at else arm for at, arm in absent))
    cells = np.column_stack([table[column] for column in columns])
    cells = cells[~np.isnan(cells).any(axis=1)]
    if leaf.log:
        if (cells <= 0).any():
            (at, arm), worst = columns[int(cells.min(axis=0).argmin())], f"{cells.min():.6g}"
            where = f"{arm} at {at}" if at else arm
            raise Missing(f"{leaf.metric} of {where} is {worst}: a ratio is of values above 0")
        cells = np.log(cells)
    found: np.ndarray = cells @ np.array([weight for _, weight in leaf.weights])
    return found


def noise_floor(leaf: Leaf, data: Data) -> float:
    """The standard deviation that a leaf of shares has in a block from the finite number of items alone; 0 where the
    study does not say of how many items the metric is a share. Shares are pulled to one half by two items of each kind
    (Agresti and Coull 1998), or a share of 0 would have no noise at all."""
    setting = data.study.items.get(leaf.metric)
    if setting is None or leaf.log:
        return 0.0
    n = float(data.settings[setting])
    table = data.table(leaf.metric, leaf.axis)
    variance = 0.0
    for column, weight in leaf.weights:
        share = (table[column].mean() * n + 2) / (n + 4)
        variance += weight**2 * share * (1 - share) / n
    return math.sqrt(variance)


def estimate(leaf: Leaf, data: Data, confidence: float = 0.95) -> Estimate | None:
    """A leaf's mean with its interval, paired or pooled as the study has it; of one block the interval is not known
    (NaN); None where a column has no record."""
    try:
        if data.study.independent and not leaf.log:
            return pooled_estimate(leaf, data, confidence)
        sample = values(leaf, data)
    except Missing:
        return None
    if not len(sample):
        return None
    return Estimate(*known_interval(sample, confidence), len(sample), "t interval")


def paired_estimate(sample: np.ndarray, floor: float, confidence: float) -> Estimate:
    """The mean of a value per block with its t interval, its spread at least that of the noise floor."""
    found = t_interval(sample, confidence)
    if float(np.std(sample, ddof=1)) >= floor:
        return found
    half = half_width(floor, len(sample), confidence)
    return Estimate(
        found.value, found.value - half, found.value + half, found.n, f"{found.method}, binomial noise floor"
    )


def pooled_estimate(leaf: Leaf, data: Data, confidence: float, bar: float | None = None) -> Estimate:
    """The leaf of independent arms: means combined, the variance pooled over all arms, t with its degrees or `bar`."""
    layout = data.layout(leaf.metric)
    place = {name: i for i, name in enumerate(layout.names)}
    absent = [arm for (_, arm), _ in leaf.weights if arm not in place]
    if absent:
        raise Missing(f"no {leaf.metric} of {', '.join(absent)}")
    index = [place[arm] for (_, arm), _ in leaf.weights]
    weights, sizes = np.array([weight for _, weight in leaf.weights]), layout.sizes[index]
    value = float(weights @ layout.means[index])
    error = layout.sd * math.sqrt(float((weights**2 / sizes).sum()))
    half = (t_bar(layout.df, confidence) if bar is None else bar) * error
    return Estimate(value, value - half, value + half, int(sizes.min()), f"pooled variance, {layout.df} degrees")

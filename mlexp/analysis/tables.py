"""The tables that every study needs: what each arm reached and cost, and differences and ratios between arms."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from mlexp.analysis import multiple, stats
from mlexp.analysis.contrasts import Leaf, estimate, leaves, values
from mlexp.analysis.data import ONE, Data, Missing
from mlexp.study import Quantity

Key = TypeVar("Key")
COUNT = "blocks"  # complete blocks behind a row: seeds, prompts


def levels_of(data: Data, axis: str) -> list[str]:
    """The levels of a curve axis that have records, in order; one nameless level where there is no such axis."""
    return data.order(axis)


def cells_of(data: Data, axis: str, level: str, arm: str) -> pd.DataFrame:
    """The records of an arm at a level."""
    return data.cells(axis, level, arm)


def arm_table(data: Data, axis: str = "", metrics: Sequence[str] = (), outcome: str = "") -> pd.DataFrame:
    """A row a level and arm: the outcome's mean over blocks with its 95 % interval, and the means of other metrics."""
    name, rows = outcome or data.study.outcome, []
    for level in levels_of(data, axis):
        for arm in data.arms:
            cells = cells_of(data, axis, level, arm)
            if cells.empty:
                continue
            value, low, high = stats.known_interval(cells[name].dropna())
            row: dict[str, Any] = {axis: level} if axis else {}
            row |= {data.study.arm: arm, name: value, "low": low, "high": high, COUNT: len(cells)}
            rows.append(row | {m: cells[m].astype(float).mean() for m in metrics if m in cells and m != name})
    return pd.DataFrame(rows)


def pair_table(
    data: Data,
    pairs: Mapping[str, tuple[str, str]],
    axis: str = "",
    metric: str = "",
    ratio: bool = False,
    apart: Iterable[str] = (),
) -> pd.DataFrame:
    """A row a level and named pair (arm, against): arm minus the other, or over it, block by block.

    `low` and `high` are the 95 % interval; `p_adjusted` allows for all rows of the table (Holm; of independent arms
    Tukey over all arms), those named in `apart` excepted. `sd` is that of a block's value.
    """
    rows: list[dict[str, Any]] = []
    p: dict[tuple[str, str], float] = {}
    for level in levels_of(data, axis):
        for name, (arm, against) in pairs.items():
            found = _pair(data, level, axis, arm, against, metric or data.study.outcome, ratio)
            if found is None:
                continue
            if math.isfinite(found["p"]) and name not in apart:
                p[level, name] = found["p"]
            rows.append(({axis: level} if axis else {}) | {"name": name, "arm": arm, "against": against} | found)
    adjusted = p if data.study.independent else holm_by_name(p)
    for row in rows:
        row["p_adjusted"] = adjusted.get((row.get(axis, ONE) if axis else ONE, row["name"]), math.nan)
    columns = [*([axis] if axis else []), "name", "arm", "against", "value", "low", "high", "p_adjusted", COUNT, "sd"]
    return pd.DataFrame(rows, columns=columns)


def holm_by_name(p: Mapping[Key, float]) -> dict[Key, float]:
    """Holm's adjustment of p-values by any key."""
    return dict(zip(p, map(float, multiple.holm(list(p.values()))), strict=True)) if p else {}


def _pair(
    data: Data, level: str, axis: str, arm: str, against: str, metric: str, ratio: bool
) -> dict[str, float] | None:
    """value, low, high, blocks, sd, p of one pair; None where an arm has no records at this level."""
    leaf = Leaf("", metric, ratio, (((level, arm), 1.0), ((level, against), -1.0)), axis)
    known = estimate(leaf, data)
    if known is None:
        return None
    ends = (math.exp(end) for end in known[:3]) if ratio else known[:3]
    row = dict(zip(("value", "low", "high"), ends, strict=True)) | {COUNT: known.n}
    if data.study.independent and not ratio:
        layout = data.layout(metric)
        competing = layout.without([name for name in data.study.apart if name not in (arm, against)])
        return row | {"sd": layout.sd * math.sqrt(2), "p": multiple.tukey_p(competing, arm, against)}
    sample = values(leaf, data)
    if len(sample) < 2:
        return row | {"sd": math.nan, "p": math.nan}
    return row | {"sd": float(np.std(sample, ddof=1)), "p": stats.mean_p(sample)}


def against_baseline(data: Data, axis: str = "") -> pd.DataFrame:
    """Every arm against the baseline: difference of the outcome, and ratios of what each costs (above 1: more)."""
    study = data.study
    pairs = {name: (name, study.baseline) for name in data.arms if name != study.baseline}
    timed = data.metrics[study.outcome].unit == "s" if study.outcome in data.metrics else False
    table = pair_table(data, pairs, axis, ratio=timed).drop(columns=["arm", "sd"])
    table = table.rename(columns={"name": study.arm, "value": "ratio" if timed else "difference"})
    for cost in (name for name in study.costs if name in data.records and name != study.outcome):
        ratios = pair_table(data, pairs, axis, cost, ratio=True)
        keys = [*([axis] if axis else []), "name"]
        found = dict(zip(ratios[keys].itertuples(index=False, name=None), ratios["value"], strict=True))
        own = table[[*([axis] if axis else []), study.arm]].itertuples(index=False, name=None)
        table[f"{cost}_ratio"] = [found.get(key, math.nan) for key in own]
    return table


def series_curves(
    data: Data, series: Callable[[str], Mapping[str, np.ndarray]], name: str, axis: str, level: str
) -> dict[str, np.ndarray]:
    """A series of each arm, blocks x points, where all its records have that series in one length."""
    found = {}
    for arm in data.arms:
        arrays = [series(key).get(name) for key in cells_of(data, axis, level, arm)["key"]]
        shapes = {None if array is None else array.shape for array in arrays}
        if len(shapes) == 1 and (shape := shapes.pop()) is not None and len(shape) == 1 and shape[0] > 1:
            found[arm] = np.array([array for array in arrays if array is not None])
    return found


def quantity_table(data: Data, quantity: Quantity) -> pd.DataFrame:
    """A row for each scalar of a quantity that the records can answer: its value with the 95 % interval (of one block
    not known), in the columns label, value, low, high, blocks."""
    try:
        found = leaves(quantity, data)
    except Missing:
        found = []
    rows = []
    for leaf in found:
        if (known := estimate(leaf, data)) is not None:
            ends = (math.exp(end) for end in known[:3]) if leaf.log and not leaf.exponent else known[:3]
            rows.append((leaf.level, *ends, known.n))
    return pd.DataFrame(rows, columns=["label", "value", "low", "high", COUNT])

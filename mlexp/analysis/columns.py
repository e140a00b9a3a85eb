"""Columns of a table as people read them: one unit and one number of decimals a column, intervals in one cell.

The CSV file beside a table has every number in full; this is what stands on the page and in `summary.md`.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mlexp.record import Metric

Writer = Callable[[float], str]

MISSING, MINUS = "–", "\u2212"
SHOWN = 7  # columns that are seen at first
PREFIXES = {  # of a unit, and of what has none
    "bytes": (("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12)),
    "s": (("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)),
    "FLOP": (("MFLOP", 1e6), ("GFLOP", 1e9), ("TFLOP", 1e12), ("PFLOP", 1e15)),
    "J": (("mJ", 1e-3), ("J", 1.0), ("kJ", 1e3)),
    "count": (("million", 1e6), ("billion", 1e9)),
    "tokens": (("million tokens", 1e6),),
}
WIDE = 1e5  # largest over smallest: beyond it no number of decimals suits a column
RATIOS = ("ratio", "speedup")


class Column(NamedTuple):
    """A column: its heading, its unit, its cells as text; `more`: not among those that are seen at first."""

    name: str
    unit: str
    cells: list[str]
    numeric: bool
    more: bool = False


def columns(df: pd.DataFrame, metrics: Mapping[str, Metric], first: str = "") -> list[Column]:
    """The columns of a table. `metrics` says their units; the column `first`, where there is one, comes first."""
    every = [str(name) for name in df]
    names, ends, found = sorted(every, key=lambda name: name != first), intervals(every), []
    highs = {high for _, high in ends}
    for name in (name for name in names if name not in highs):
        unit = metrics[name].unit if name in metrics else ""
        pair = next((pair for pair in ends if pair[0] == name), None)
        if pair is None:
            found.append(column(name, df[name], unit))
        else:
            of = ends[pair]
            found.append(interval(of, df.get(of), df[pair[0]], df[pair[1]], metrics))
    return [each._replace(more=i >= SHOWN) for i, each in enumerate(found)]


def intervals(names: Sequence[str]) -> dict[tuple[str, str], str]:
    """Which neighbours are the ends of an interval, and of what: `low` and `high` of the column before them, `x_low`
    and `x_high` of x."""
    found = {}
    for i, (low, high) in enumerate(itertools.pairwise(names)):
        if "low" in low.split("_") and low.replace("low", "high") == high:
            stem = "_".join(part for part in low.split("_") if part != "low")
            found[low, high] = stem or (names[i - 1] if i else "")
    return found


def column(name: str, values: pd.Series, unit: str = "") -> Column:
    """A column of its own."""
    if pd.api.types.is_bool_dtype(values) or not pd.api.types.is_numeric_dtype(values):
        return Column(name, "", [text(value) for value in values], numeric=False)
    numbers = values.to_numpy(float, na_value=math.nan)
    write, shown = writer(name, numbers, unit)
    return Column(name, shown, [write(value) for value in numbers], numeric=True)


def interval(
    of: str, values: pd.Series | None, low: pd.Series, high: pd.Series, metrics: Mapping[str, Metric]
) -> Column:
    """An interval in one cell, in the unit and with the decimals of the column that it is an interval of."""
    unit = metrics[of].unit if of in metrics else ""
    ends = [end.to_numpy(float, na_value=math.nan) for end in (low, high)]
    known = np.concatenate(ends) if values is None else values.to_numpy(float, na_value=math.nan)
    write, shown = writer(of, known, unit)
    cells = []
    for a, b in zip(*ends, strict=True):
        cells.append(MISSING if math.isnan(a) and math.isnan(b) else f"{write(a)} to {write(b)}")
    return Column(f"interval of {of}" if of else "interval", shown, cells, numeric=True)


def writer(name: str, values: np.ndarray, unit: str) -> tuple[Writer, str]:
    """(how each number of a column is written, the unit in its heading)."""
    sizes = np.abs(values[np.isfinite(values)])
    sizes = sizes[sizes > 0]
    if name == "p" or name.startswith("p_"):
        return probability, ""
    if unit == "fraction":
        return fixed(1, 100.0), "%"
    shown = "" if unit in ("count", "name", "ratio", "exponent") else unit
    if not len(sizes):
        return fixed(0), shown
    if name in RATIOS or name.endswith(tuple(f"_{ratio}" for ratio in RATIOS)):
        return fixed(2 if sizes.max() < 100 else 0, suffix="x"), ""
    scale = 1.0
    for label, size in PREFIXES.get(unit, ()):
        if size <= sizes.max():
            shown, scale = label, size
    if scale == 1.0 and (sizes == np.round(sizes)).all():
        return fixed(0), shown
    if sizes.max() / sizes.min() > WIDE:
        return digits(scale), shown
    typical = float(np.median(sizes)) / scale
    return fixed(min(6, max(0, 2 - math.floor(math.log10(typical)))), 1 / scale), shown


def fixed(decimals: int, factor: float = 1.0, suffix: str = "") -> Writer:
    """Writes numbers with so many decimals, times a factor."""
    return lambda value: special(value) or f"{value * factor:,.{decimals}f}{suffix}".replace("-", MINUS)


def digits(scale: float) -> Writer:
    """Writes numbers with four significant digits, over a scale."""
    return lambda value: special(value) or f"{value / scale:,.4g}".replace("-", MINUS)


def probability(value: float) -> str:
    """A p-value: three decimals, or that it is below."""
    return special(value) or ("<0.001" if value < 0.001 else f"{value:.3f}")


def special(value: float) -> str:
    """What is no finite number, in words; empty for a number."""
    return "" if math.isfinite(value) else MISSING if math.isnan(value) else f"{MINUS if value < 0 else ''}inf"


def text(value: Any) -> str:
    """A cell that is no number."""
    if value is None or (not isinstance(value, str | list | dict | tuple) and pd.isna(value)):
        return MISSING
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | float | np.number):
        return digits(1.0)(float(value)) if not float(value).is_integer() else fixed(0)(float(value))
    return str(value)

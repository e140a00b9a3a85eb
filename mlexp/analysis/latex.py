"""LaTeX tables in the manner of booktabs: means with intervals, or records; every name escaped."""

import math
from collections.abc import Iterable, Sequence

import pandas as pd

import mlexp
from mlexp.analysis.data import plural
from mlexp.analysis.summaries import Summary
from mlexp.record import PROVENANCE

ESCAPES = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"}
    | {">": r"\textgreater{}", "|": r"\textbar{}", "·": r"\textperiodcentered{}", "×": r"$\times$", "±": r"$\pm$"}
    | {"\n": " ", "\r": " ", "–": "--", "…": r"\dots{}", "≥": r"$\geq$", "≤": r"$\leq$", "µ": r"$\mu$"}
)
PAGE = 40  # rows; longer tables break over pages
PLAIN = (1e-3, 1e5)  # a column of numbers within these is printed without powers of ten
UNITLESS = ("", "count", "ratio", "exponent", "name")


def document(df: pd.DataFrame, several: list[Summary] | None = None) -> bytes:
    """What a paper takes with `\\input`: a table for each summary, else one of the rows of `df`."""
    tables = [summary(each, number) for number, each in enumerate(several, 1)] if several is not None else [rows(df)]
    packages = "booktabs" + (", longtable" if any("longtable" in table for table in tables) else "")
    head = f"% made by mlexp {mlexp.__version__} (mlexp export); needs the packages {packages}\n"
    return "\n".join((head, *tables)).encode()


def escape(text: object) -> str:
    """A text as LaTeX prints it, on one line."""
    return str(text).translate(ESCAPES)


def summary(found: Summary, place: int = 1) -> str:
    """A row a level and arm, a column a metric: mean and half the width of its interval. `place`: of the table among
    those of its document, which its label ends in."""
    table = found.table.reset_index(drop=True)
    powers = {name: any(map(_needs_power, group)) for name, group in table.groupby("metric")["value"]}
    numbers = table[["value", "low", "high", "metric"]].itertuples(index=False, name=None)
    table["cell"] = [quantity(value, low, high, powers[name]) for value, low, high, name in numbers]
    table["metric"] = [headed(name, unit) for name, unit in zip(table["metric"], table["unit"], strict=True)]
    wide = table.pivot(index=["level", "arm"], columns="metric", values="cell").fillna("--")
    wide = wide.reindex(pd.MultiIndex.from_frame(table[["level", "arm"]].drop_duplicates()))[table["metric"].unique()]
    wide.insert(0, escape(found.arm), [escape(arm) for _, arm in wide.index])
    if found.axis:
        levels = pd.Series([level for level, _ in wide.index])
        wide.insert(0, escape(found.axis), levels.where(levels != levels.shift(), "").map(escape).to_numpy())
    names = 2 if found.axis else 1
    label = "-".join(filter(None, (found.question, found.axis, str(place)))).replace("_", "-")
    return _booktabs(wide, "l" * names + "r" * (len(wide.columns) - names), caption(found), f"tab:{label}")


def caption(found: Summary) -> str:
    """What the numbers are, and where they come from."""
    counts, table = sorted(set(found.table["n"])), found.table
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    unit = " x ".join(f"{name}{plural(name)}" if counts != [1] else name for name in found.replicates) or "records"
    interval = r" $\pm$ half the width of the 95\,\% interval (Student's t)"
    means = f"Means over {n} {escape(unit)}{interval}." if counts[-1] > 1 else f"Values of one {escape(unit)}."
    bare = ["equal values"] if (table["low"] == table["high"]).any() else []
    bare += ["a single value"] if counts[0] < 2 <= counts[-1] else []
    means += f" Without an interval: {' or '.join(bare)}." if bare else ""
    by = f" by {found.arm}" + (f" and {found.axis}" if found.axis else "")
    return f"{escape(found.question + by)}. {means} {escape(found.about)}."


def rows(df: pd.DataFrame) -> str:
    """The rows of a table at full precision; without a choice of columns, its axes and metrics."""
    names = list(df.columns)
    if len(names) > len(PROVENANCE):
        names = [name for name in names if name not in PROVENANCE and df[name].notna().any()]
    shown = pd.DataFrame({escape(name): ["" if pd.isna(v) else escape(v) for v in df[name]] for name in names})
    kinds = "".join("r" if pd.api.types.is_numeric_dtype(df[name]) else "l" for name in names)
    return _booktabs(shown, kinds, f"{len(df)} records.", "tab:records", long=len(df) > PAGE)


def _booktabs(table: pd.DataFrame, kinds: str, caption: str, label: str, long: bool = False) -> str:
    """A table of texts that are LaTeX already."""
    style = table.reset_index(drop=True).style.hide(axis="index")
    return style.to_latex(
        hrules=True,
        column_format=kinds,
        caption=caption,
        label=label,
        environment="longtable" if long else None,
        position=None if long else "t",
        position_float=None if long else "centering",
    )


def headed(name: str, unit: str) -> str:
    """A metric with its unit, where it has one."""
    return escape(name if unit in UNITLESS else f"{name} ({unit})")


def _needs_power(value: float) -> bool:
    return value != 0 and not PLAIN[0] <= abs(value) < PLAIN[1]


def quantity(value: float, low: float, high: float, powers: bool | None = None) -> str:
    """A mean with half the width of its interval, to two digits of the latter; the mean alone where there is none.
    `powers`: whether with a power of ten, as the other numbers of its column; None: where the number needs one."""
    with_power = value != 0 and (_needs_power(value) if powers is None else powers)
    power = math.floor(math.log10(abs(value))) if with_power else 0
    times = rf" \times 10^{{{power}}}" if with_power else ""
    scaled, half = value / 10**power, (high - low) / 2 / 10**power
    if not math.isfinite(half) or half == 0:
        return f"${scaled:.5g}{times}$"
    digits = min(12, max(0, 1 - math.floor(math.log10(float(f"{half:.1e}")))))
    both = rf"{scaled:.{digits}f} \pm {half:.{digits}f}"
    return f"$({both}){times}$" if with_power else f"${both}$"


def check_known(names: Sequence[str], known: Iterable[str]) -> None:
    """Raises ValueError for a column that is not there."""
    there = list(map(str, known))
    unknown = [name for name in names if name not in there]
    if unknown:
        raise ValueError(f"unknown column {unknown[0]!r}; choose from {', '.join(there)}")

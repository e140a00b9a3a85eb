"""Which cells ran beside or under something that may have moved their times, and what their peak memory leaves out.

The raw conditions are in the records (record.CONDITIONS); the bounds beyond which they are worth a mark are here.
"""

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd


class Bound(NamedTuple):
    """Beyond `above` a cell is marked; `what` happened to it, `shown` how much of it."""

    above: float
    what: str
    shown: Callable[[float], str]


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %"


def _count(value: float) -> str:
    return f"{value:.0f}"


BOUNDS = {
    # A round lasts longer by what its threads wait. Alone on a machine they wait for 0.03 % of the time; beside a busy
    # loop on each core for 40 %. A gate on time looks for 5 %: 2 % is less than half of that.
    "core_wait_fraction": Bound(0.02, "waited for a core", _percent),
    "steal_fraction": Bound(0.02, "CPU time stolen by the hypervisor", _percent),  # the same, outside of this system
    # Others that leave a core free still take memory bandwidth, cache and turbo clocks: a tenth of a core on two cores,
    # more on more of them. System services of an idle machine use less than 1 %.
    "others_fraction": Bound(0.05, "other processes used the CPU", _percent),
    # What stops or slows the processor is never noise: once is enough.
    "quota_throttled_s": Bound(0.0, "stopped by a CPU quota", lambda value: f"{value:.2g} s"),
    "cpu_throttles": Bound(0.0, "the CPU throttled itself", _count),
    "compilations": Bound(0.0, "torch compiled within the rounds", _count),
}
GPU = "the GPU was throttled"  # by what is a text; its bound is that there is something


def disturbances(df: pd.DataFrame) -> list[tuple[str, str]]:
    """(cell, what disturbed it and how much) of every record beyond a bound."""
    found = []
    for cell, row in zip(df["cell"], _beyond(df).to_dict("records"), strict=True):
        if marks_of_cell := [f"{what} ({shown})" for what, shown in row.items() if isinstance(shown, str)]:
            found.append((cell, "; ".join(marks_of_cell)))
    return found


def listed(df: pd.DataFrame) -> list[tuple[str, str]]:
    """The rows of a list of them: (cell, by what); where every cell was disturbed one row, with each cause once."""
    found = disturbances(df)
    if len(found) < max(2, len(df)):
        return found
    causes = []
    for name, bound in BOUNDS.items():
        values = _numbers(df, name)
        if len(values := values[values > bound.above]):
            ends = dict.fromkeys((bound.shown(float(values.min())), bound.shown(float(values.max()))))
            causes.append(f"{bound.what}{_in_some(values, df)} ({' to '.join(ends)})")
    if GPU in (marks := _beyond(df)) and len(texts := marks[GPU].dropna()):
        causes.append(f"{GPU}{_in_some(texts, df)} ({', '.join(dict.fromkeys(texts))})")
    return [(f"all {len(df)}", "; ".join(causes))]


def _in_some(found: pd.Series, df: pd.DataFrame) -> str:
    return "" if len(found) == len(df) else f" in {len(found)}"


def remarks(df: pd.DataFrame) -> str:
    """What a reader of these records must know: how many were disturbed, by what; empty: none was."""
    marks = _beyond(df)
    counts = marks.notna().sum()
    listed = ", ".join(f"{count} {what}" for what, count in counts[counts > 0].items())
    disturbed = int(marks.notna().any(axis=1).sum())
    parts = [f"{disturbed} of {len(df)} cells disturbed while timed: {listed}"] if disturbed else []
    children = _numbers(df, "child_processes").where(_numbers(df, "peak_bytes").notna())
    if count := int((children > 0).sum()):
        parts.append(f"peak memory of {count} of {len(df)} cells is without their child processes")
    return " · ".join(parts)


def _beyond(df: pd.DataFrame) -> pd.DataFrame:
    """A row a record, a column for what may have happened: how much of it, missing where within the bound."""
    marks = {}
    for name, bound in BOUNDS.items():
        values = _numbers(df, name)
        marks[bound.what] = values[values > bound.above].map(bound.shown)
    if "gpu_throttled_by" in df:
        texts = df["gpu_throttled_by"].astype(object)
        marks[GPU] = texts[texts.map(lambda text: isinstance(text, str) and text != "")]
    return pd.DataFrame({what: shown.astype(object) for what, shown in marks.items()}, index=df.index)


def _numbers(df: pd.DataFrame, name: str) -> pd.Series:
    """A column as numbers; NaN where it has none, as records have that were made before there was such a field."""
    values = df[name] if name in df else pd.Series(index=df.index, dtype=float)
    return pd.to_numeric(values, errors="coerce").astype(float)

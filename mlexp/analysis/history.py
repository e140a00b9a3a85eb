"""Key metrics over commits, one context at a time, with the commits marked at which a level changed (changepoints)."""

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mlexp.analysis import plots
from mlexp.analysis.changepoints import SHORTEST, Change, change_points, commits_needed
from mlexp.analysis.output import Output
from mlexp.analysis.results import axes
from mlexp.record import Metric

ALPHA = 0.05  # of any false alarm in a question's context: shared by its series (Bonferroni)
DRAWN_FROM, LONGEST = 3, 200  # commits, below which there is no history to draw; the last that are looked at
EXACT = ("FLOP", "tokens", "count", "rows")  # units of what a program counts: no noise to tell a change from
VERSIONS = ("torch", "transformers", "python")
PANELS, TICKS = 8, 12
COLUMNS = ("metric", "arm", "commit", "time", "change", "better_or_worse", "p", "before", "after", "changed_with_it")

ABOUT = """
Each line is an arm: the mean over its cells of each cell's value beside that cell's median over all commits, as a
ratio (shares, and what is not positive, as a difference). Commits stand in the order of their times, the last {longest}
at most, one context and machine at a time.

A change is marked where a permutation test of the largest energy distance (E-divisive) finds one, at {alpha:.0f} % over
all {series} series together, allowing for values that resemble the one before; a level lasts at least {shortest}
commits. A clean step can be told from noise with {needed} commits; there are {commits}. What a program counts has no
noise: there every difference is marked. A change is the largest of many splits, so that its size is rather over- than
understated, and a machine that drifts looks like code that changed: `mlexp ab` measures two commits side by side.
"""


class Series(NamedTuple):
    """A metric of an arm over commits: `values` relative to the cells' medians, NaN where nothing was measured."""

    metric: str
    arm: str
    ratio: bool  # values are logarithms of ratios, otherwise differences
    values: np.ndarray
    moved: np.ndarray  # whether any cell's value differs from its last one


def _instants(texts: pd.Series) -> pd.Series:
    """Texts as instants; what is no time becomes NaT."""
    return pd.to_datetime(texts, utc=True, errors="coerce", format="ISO8601")


def in_order(df: pd.DataFrame, times: Mapping[str, str]) -> pd.Series:
    """The time of each commit in `df`, earliest first: its own where `times` has it, else of its first record."""
    first = _instants(df["when"]).groupby(df["commit"]).min()
    own = _instants(pd.Series([times.get(commit) for commit in first.index], index=first.index, dtype=object))
    return own.fillna(first).dropna().sort_values(kind="stable")


def series_of(df: pd.DataFrame, metrics: Mapping[str, Metric], commits: pd.Index) -> list[Series]:
    """Every metric that has a better and a worse, of every arm, over `commits`. The arm is the last axis."""
    names = [name for name, metric in metrics.items() if metric.better != "none" and name in df]
    names = [name for name in names if pd.api.types.is_numeric_dtype(df[name])]
    arm = axes(df)[-1:] or ["question"]
    found = []
    for value, group in df.groupby(arm[0], sort=False):
        medians = group.groupby(["commit", "cell"])[names].median()  # where measured twice, the middle
        tables: Any = medians.unstack("cell").reindex(commits)
        for name in names:
            table: pd.DataFrame = tables[name].astype(float)
            table = table.where(np.isfinite(table))
            if table.notna().any(axis=1).sum() >= DRAWN_FROM:
                found.append(_series(name, str(value), metrics[name], table))
    return found


def _series(name: str, arm: str, metric: Metric, table: pd.DataFrame) -> Series:
    """`table` is commits x cells."""
    ratio = metric.unit != "fraction" and bool((table.min() > 0).all())
    scaled = pd.DataFrame(np.log(table)) if ratio else table
    before = table.ffill().shift()
    moved = (table.notna() & before.notna() & (table != before)).any(axis=1)
    return Series(name, arm, ratio, (scaled - scaled.median()).mean(axis=1).to_numpy(), moved.to_numpy())


def changes_of(series: Series, unit: str, alpha: float) -> list[Change]:
    """The changes of one series. What is counted, and mostly stays as it was, changes wherever it moves."""
    known = np.flatnonzero(np.isfinite(series.values))
    if unit in EXACT and series.moved.sum() * 2 <= len(known) - 1:
        return [Change(int(at), 0.0) for at in np.flatnonzero(series.moved)]
    return [Change(int(known[change.at]), change.p) for change in change_points(series.values[known], alpha)]


def levels(series: Series, changes: list[Change]) -> list[tuple[int, int, float]]:
    """(first, after the last, mean) of each level between changes."""
    ends = [0, *(change.at for change in changes), len(series.values)]
    return [(low, high, float(np.nanmean(series.values[low:high]))) for low, high in itertools.pairwise(ends)]


def change_rows(
    series: Series, changes: list[Change], metric: Metric, when: pd.Series, df: pd.DataFrame
) -> list[dict[str, Any]]:
    """A row a change, with the levels on both sides of it and what else differs between its two commits."""
    rows, parts = [], levels(series, changes)
    for change, (start, _, before), (_, end, after) in zip(changes, parts, parts[1:], strict=False):
        size = after - before
        good = "better" if (size > 0) == (metric.better == "higher") else "worse"
        commit, last = when.index[change.at], when.index[change.at - 1]
        other = [
            f"{name} {was} to {now}"
            for name in VERSIONS
            if (was := _all(df, last, name)) != (now := _all(df, commit, name))
        ]
        known = np.isfinite(series.values)
        rows.append(dict(zip(COLUMNS, (
            series.metric, series.arm, commit[:10], f"{when.iloc[change.at]:%Y-%m-%d %H:%M}",
            f"{100 * (_ratio(size) - 1):+.3g} %" if series.ratio else f"{size:+.4g}", good if size else "neither",
            change.p, int(known[start : change.at].sum()), int(known[change.at : end].sum()), "; ".join(other),
        ), strict=True)))  # fmt: skip
    return rows


def _ratio(log: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(log))


def _all(df: pd.DataFrame, commit: str, name: str) -> str:
    return ", ".join(sorted(df.loc[df["commit"] == commit, name].dropna().astype(str).unique())) if name in df else ""


def add(df: pd.DataFrame, metrics: Mapping[str, Metric], times: Mapping[str, str], out: Output) -> str:
    """Add the history of one context's records to its report: a figure, a table, the changes in words.

    `df` holds every record of the context, the older ones too; `times` the time of a commit where one is known. Returns
    a line for the card; empty, and nothing added, below `DRAWN_FROM` commits.
    """
    committed = df["commit"].notna() & ~df["dirty"].fillna(False).astype(bool)
    clean = df[(df["status"] == "passed") & committed].astype({"commit": str})
    when = in_order(clean, times)[-LONGEST:]
    every = series_of(clean, metrics, when.index) if len(when) >= DRAWN_FROM else []
    if not every:
        return ""
    moving = [one for one in every if np.nanmax(one.values) > np.nanmin(one.values) or one.moved.any()]
    alpha = ALPHA / max(1, len(moving))
    changes = [changes_of(one, metrics[one.metric].unit, alpha) for one in moving]
    rows = [
        row
        for one, group in zip(moving, changes, strict=True)
        for row in change_rows(one, group, metrics[one.metric], when, clean)
    ]
    arm = (axes(df)[-1:] or ["arm"])[0]
    table = pd.DataFrame(rows, columns=COLUMNS).rename(columns={"arm": arm})
    out.heading("History")
    about = {
        "alpha": 100 * ALPHA,
        "series": len(moving),
        "shortest": SHORTEST,
        "needed": commits_needed(alpha),
        "longest": LONGEST,
    }
    out.text(ABOUT.format(**about, commits=len(when)))
    out.text("\n".join(_lines(rows, every, moving, len(df) - len(clean))))
    if moving:
        found = _changes(rows)
        figure = _figure(moving, changes, metrics, when)
        out.figure(figure, "history.svg", found, "Key metrics by commit, as ratios to the median commit",
                   n=f"{len(when)} commits", shown="open" if rows else "folded")  # fmt: skip
    if rows:
        out.table(table, "history.csv", "Changes found; before and after count the commits of the levels beside it.")
    return f"{len(when)} commits, {_changes(rows)}"


def _changes(rows: list[dict[str, Any]]) -> str:
    worse = sum(row["better_or_worse"] == "worse" for row in rows)
    return f"{len(rows)} change{'s' * (len(rows) != 1)} of level ({worse} for the worse)"


def _lines(rows: list[dict[str, Any]], every: list[Series], moving: list[Series], aside: int) -> list[str]:
    lines = [
        f"- {row['metric']} of {row['arm']}: {row['change']} from {row['commit']} on, {row['better_or_worse']} "
        + (f"(p = {row['p']:.2g})" if row["p"] else "(exact)")
        for row in rows[:20]
    ] or ["- No change of level found."]
    lines += [f"- {len(rows) - 20} more in the table."] if len(rows) > 20 else []
    still = sorted({one.metric for one in every} - {one.metric for one in moving})
    lines += [f"- The same at every commit: {', '.join(still)}."] if still else []
    shown = list(dict.fromkeys(one.metric for one in moving))
    lines += [f"- Not drawn, though searched: {', '.join(shown[PANELS:])}."] if len(shown) > PANELS else []
    return lines + ([f"- Left out: {aside} records that failed or whose code was of no commit."] if aside else [])


def _figure(
    moving: list[Series], changes: list[list[Change]], metrics: Mapping[str, Metric], when: pd.Series
) -> Figure:
    """A panel a metric, a line an arm; its levels drawn through, a triangle where one begins."""
    names = list(dict.fromkeys(one.metric for one in moving))[:PANELS]
    looks = plots.looks(one.arm for one in moving)
    columns = 1 if len(names) == 1 else 2
    rows = math.ceil(len(names) / columns)
    fig, panels = plots.figures(columns, rows=rows, size=(11, 3.1 * rows + 0.6))
    for ax, name in zip(panels, names, strict=False):
        group = [(one, found) for one, found in zip(moving, changes, strict=True) if one.metric == name]
        for one, found in group:
            _draw(ax, one, found, looks[one.arm])
        metric, logs = metrics[name], all(one.ratio for one, _ in group)
        ax.set(title=name, ylabel=("ratio to" if logs else f"{metric.unit}, less") + " the median commit")
        step = math.ceil(len(when) / TICKS)
        ax.set_xticks(range(0, len(when), step), [commit[:7] for commit in when.index[::step]], rotation=45, ha="right")
    for ax in panels[len(names) :]:
        ax.remove()
    handles = [
        panels[0].plot([], [], color=look.colour, marker=look.marker, linestyle=look.dash, label=arm)[0]
        for arm, look in looks.items()
    ]
    fig.legend(
        handles=handles, loc="outside upper center", ncols=min(6, len(handles)), frameon=False, labelcolor=plots.INK
    )
    return fig


def _draw(ax: Axes, one: Series, found: list[Change], look: plots.Look) -> None:
    values = np.exp(one.values) if one.ratio else one.values
    known = np.flatnonzero(np.isfinite(values))
    style: dict[str, Any] = {"color": look.colour, "linestyle": look.dash}
    ax.plot(known, values[known], **style, marker=look.marker, markersize=3.2, linewidth=0.7, alpha=0.8)
    for low, high, mean in levels(one, found) if found else ():
        ax.plot([low - 0.4, high - 0.6], [_ratio(mean) if one.ratio else mean] * 2, **style, linewidth=2.2)
    for change in found:
        ax.axvline(change.at - 0.5, color=look.colour, linewidth=0.9, linestyle=":")
        top: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "clip_on": False}
        ax.plot(change.at - 0.5, 1.0, "v", color=look.colour, markersize=7, **top)

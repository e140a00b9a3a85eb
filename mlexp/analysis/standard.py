"""The report that every study has: each arm's outcome and cost, the difference to the baseline, its curves."""

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mlexp.analysis import plots
from mlexp.analysis.curves import page_trend
from mlexp.analysis.data import Data, number, plural
from mlexp.analysis.findings import Finding
from mlexp.analysis.output import Output
from mlexp.analysis.shown import amount, digits, span
from mlexp.analysis.tables import COUNT, against_baseline, arm_table, holm_by_name, levels_of, series_curves
from mlexp.record import PROVENANCE
from mlexp.study import Study

MAX_PANELS = 5
MAX_POINTS = 200  # of a curve; of a longer series the means of so many parts are drawn
DECADE = 10.0  # times the smallest value: from there on an axis of times, sizes or ratios is logarithmic
DODGE = 1.03  # how much further right each arm's points stand than the last's


def report(records: pd.DataFrame, out: Output) -> None:
    """Tables and figures of a study that has no report.py; its claims and answer come from the driver."""
    data = out.data
    assert data is not None, "the standard report is of a declared study"
    for axis in data.study.over or ("",):
        if len(data.rows(axis)):
            arms(data, out, axis)
    curves(data, out)


def answer(findings: Mapping[str, Finding], arms: pd.DataFrame) -> str:
    """The answer of a study that does not word its own: its first primary claim with what decided it."""
    found = next((each for each in findings.values() if each.claim.primary), next(iter(findings.values())))
    basis = found.reason if not found.effect else found.effect + (f" [{found.interval}]" if found.interval else "")
    if found.extent:
        return f"{found.claim.text}: {found.verdict}, {basis} {found.extent}."
    return f"{found.claim.text}: {found.verdict} ({basis})."


def arms(data: Data, out: Output, axis: str) -> None:
    """One grid: the arms, the differences to the baseline, the outcome against the curve axis."""
    study, tag = data.study, f"_{axis}" if len(data.study.over) > 1 else ""
    outcome = data.metrics.get(study.outcome)
    out.heading(f"{study.outcome} by {study.arm}" + (f" and {axis}" if axis else ""))
    table = arm_table(data, axis, measured(data))
    out.table(
        known_columns(table), f"arms{tag}.csv", f"Means over {unit(data)} with the 95 % interval of {study.outcome}."
    )
    others = against_baseline(data, axis)
    if len(others):
        note = against_note(study, others := known_columns(others))
        out.table(others, f"against_baseline{tag}.csv", f"{note}; p after {family(study)}.")
    if axis and len(levels_of(data, axis)) > 2 and (lines := list(trends(data, axis))):
        out.text("\n".join(lines))
    value = "ratio" if "ratio" in others else "difference"
    beside = "; arms of one level are drawn side by side" if _is_curve(data, axis) and len(data.arms) > 1 else ""
    if len(known := others.dropna(subset=[value])):
        name, against = f"against_baseline{tag}.svg", against_label(data, value)
        out.figure(
            against_figure(data, known, axis, value, against), name, against_finding(data, known, axis, value),
            f"{against}, block by block", f"95 % interval over {unit(data)}{beside}",
        )  # fmt: skip
        out.lead = out.lead or name
    label = f"{study.outcome}, {outcome.unit}" if outcome else study.outcome
    out.figure(
        outcome_figure(data, table, axis, label), f"outcome{tag}.svg", finding(data, table, axis),
        f"{label}, mean over {unit(data)}", f"95 % t interval over {unit(data)}{beside}",
    )  # fmt: skip


def known_columns(table: pd.DataFrame) -> pd.DataFrame:
    """A table without the costs that no row has, such as FLOPs where no torch ran."""
    costs = list(table)[list(table).index(COUNT) + 1 :]
    return table.drop(columns=[name for name in costs if table[name].isna().all()])


def against_note(study: Study, others: pd.DataFrame) -> str:
    """What a table of the arms beside the baseline holds, and which way its ratios go."""
    over = f"{study.arm} over {study.baseline}, above 1 is more"
    if "ratio" in others:
        return f"Block by block each {over}"
    note = f"Block by block each {study.arm} minus {study.baseline}"
    return f"{note}; ratios are each {over}" if any(str(name).endswith("_ratio") for name in others) else note


def against_label(data: Data, value: str) -> str:
    """What is drawn of the arms beside the baseline, and which way it goes."""
    study, metric = data.study, data.metrics.get(data.study.outcome)
    if value == "ratio":
        return f"{study.outcome}, each {study.arm} over {study.baseline} (above 1 is more)"
    return f"{study.outcome}, each {study.arm} minus {study.baseline}" + (f", {metric.unit}" if metric else "")


def against_finding(data: Data, others: pd.DataFrame, axis: str, value: str) -> str:
    """How far the best arm is from the baseline at the largest level, with its interval."""
    study, metric = data.study, data.metrics.get(data.study.outcome)
    last = others[others[axis] == others[axis].iloc[-1]] if axis else others
    best = np.argmin if metric and metric.better == "lower" else np.argmax
    row: dict[Hashable, Any] = last.to_dict("records")[int(best(last[value].to_numpy(float)))]
    where = f" at {axis} {row[axis]}" if axis else ""
    known = math.isfinite(row["low"]) and math.isfinite(row["high"])
    if value == "ratio":
        ends = f" [{digits(row['low'])}x to {digits(row['high'])}x]" if known else ""
        return f"{study.outcome} of {row[study.arm]} is {digits(row[value])}x that of {study.baseline}{where}{ends}"
    of = metric.unit if metric else ""
    ends = f" [{span(row['low'], row['high'], of)}]" if known else ""
    return f"{study.outcome} of {row[study.arm]} minus {study.baseline}{where}: {amount(row[value], of)}{ends}"


def finding(data: Data, table: pd.DataFrame, axis: str) -> str:
    """Which arm is best at the largest level, by the outcome's direction, and by how much the baseline differs."""
    study, metric = data.study, data.metrics.get(data.study.outcome)
    last = table[table[axis] == table[axis].iloc[-1]] if axis else table
    where = f" at {axis} {table[axis].iloc[-1]}" if axis else ""
    known = last.dropna(subset=[study.outcome])
    values: dict[str, float] = dict(zip(known[study.arm].astype(str), known[study.outcome].astype(float), strict=True))
    if metric is None or not values:
        return f"{study.outcome} by {study.arm}{where}"
    best = (min if metric.better == "lower" else max)(values, key=lambda name: values[name])
    extreme = {"lower": "Lowest", "higher": "Highest"}.get(metric.better, "Highest")
    text = f"{extreme} mean {study.outcome}{where}: {best}, {amount(values[best], metric.unit, is_level=True)}"
    if study.baseline in values and study.baseline != best:
        text += f" ({study.baseline}: {amount(values[study.baseline], metric.unit, is_level=True)})"
    return text


def family(study: Study) -> str:
    """What adjusts the p-values of a table of pairs."""
    return "Tukey over all arms" if study.independent else "Holm over the rows"


def trends(data: Data, axis: str) -> Iterator[str]:
    """Whether each arm's outcome rises or falls along the curve axis: Page's test over complete blocks."""
    table, levels = data.table(data.study.outcome, axis), levels_of(data, axis)
    found = {}
    for arm in data.arms:
        columns = [(level, arm) for level in levels]
        if set(columns) <= set(table) and len(blocks := table[columns].dropna()) > 1:
            rise, fall = (page_trend(sign * blocks.to_numpy()) for sign in (1, -1))
            found[arm] = ("rises", rise) if rise.p <= fall.p else ("falls", fall)
    adjusted = holm_by_name({arm: min(1.0, 2 * test.p) for arm, (_, test) in found.items()})
    for arm, (direction, test) in found.items():
        sure = "" if adjusted[arm] < 0.05 else ", not told from a flat curve"
        basis = f"Page's p {adjusted[arm]:.2g}, two-sided, after Holm over {len(found)} arms; {test.blocks} blocks"
        yield f"- {arm}: {data.study.outcome} {direction} with {axis} ({basis}){sure}."


def unit(data: Data) -> str:
    """What the blocks are."""
    return " and ".join(f"{name}{plural(name)}" for name in data.study.replicates) or "records"


def measured(data: Data) -> list[str]:
    """The numeric metrics of the records, the declared costs first."""
    numeric = [str(name) for name in data.records.select_dtypes("number") if name in data.metrics]
    wanted = [name for name in numeric if data.metrics[name].better != "none" and name not in PROVENANCE]
    return [*(name for name in data.study.costs if name in numeric), *(n for n in wanted if n not in data.study.costs)]


def outcome_figure(data: Data, table: pd.DataFrame, axis: str, label: str) -> Figure:
    """Along a curve axis a line an arm, else a row an arm."""
    metric = data.metrics.get(data.study.outcome)
    log = metric is not None and metric.unit in ("s", "bytes") and spread(table[data.study.outcome]) > DECADE
    if _is_curve(data, axis):
        return curve_figure(data, table, axis, data.study.outcome, label, log)
    fig, ax = plots.figure(xlabel=label, size=(7.6, 0.3 * len(table) + 1.4))
    plots.intervals(ax, table.rename(columns={data.study.outcome: "value"}), data.study.arm, data.looks)
    if log:
        plots.log_x(ax)
    return fig


def against_figure(data: Data, others: pd.DataFrame, axis: str, value: str, label: str) -> Figure:
    """The arms beside the baseline, which is a dashed line: along a curve axis, else a row an arm."""
    null, log = (1.0, spread(others[value]) > DECADE) if value == "ratio" else (0.0, False)
    if _is_curve(data, axis):
        fig = curve_figure(data, others, axis, value, label, log)
        plots.reference(fig.axes[0], y=null)
        return fig
    fig, ax = plots.figure(xlabel=label, size=(7.6, 0.3 * len(others) + 1.4))
    plots.intervals(ax, others.rename(columns={value: "value"}), data.study.arm, data.looks, null)
    if log:
        plots.log_x(ax)
    return fig


def curve_figure(data: Data, table: pd.DataFrame, axis: str, column: str, label: str, log: bool) -> Figure:
    """A line an arm along a curve axis: by the numbers in the names of levels, on a logarithmic axis, where they have
    different ones; there the arms stand side by side."""
    fig, ax = plots.figure(xlabel=axis, ylabel=label)
    levels = levels_of(data, axis)
    numbers = [number(level) if any(c.isdigit() for c in level) else 0.0 for level in levels]
    numeric = min(numbers) > 0 and len(set(numbers)) == len(levels)
    x = dict(zip(levels, numbers if numeric else map(float, range(len(levels))), strict=True))
    placed = table.assign(x=table[axis].map(x))
    plots.curves(ax, placed, "x", column, data.study.arm, data.looks, dodge=DODGE if numeric else 1.0)
    if numeric:
        plots.log_x(ax, ticks=x.values())
    else:
        ax.set_xticks(list(x.values()), levels)
    if log:
        plots.log_y(ax)
    return fig


def spread(values: pd.Series) -> float:
    """How many times the smallest of some values the largest is; 0 where one is not above 0."""
    known = values.dropna()
    return float(known.max() / known.min()) if len(known) and known.min() > 0 else 0.0


def _is_curve(data: Data, axis: str) -> bool:
    return bool(axis) and len(levels_of(data, axis)) > 1


def curves(data: Data, out: Output) -> None:
    """A figure for every series of one dimension: a panel a level, a line an arm, means over blocks."""
    axis = data.study.over[0] if data.study.over else ""
    levels = levels_of(data, axis)[:MAX_PANELS]
    keys: Iterable[str] = data.records.get("key", ())
    names = dict.fromkeys(name for key in keys for name in out.series(key))
    for name in names:
        drawn = {level: series_curves(data, out.series, name, axis, level) for level in levels}
        drawn = {level: lines for level, lines in drawn.items() if lines}
        if drawn:
            over = unit(data)
            out.figure(
                series_figure(data, name, axis, drawn), f"series_{name}.svg", series_finding(name, drawn),
                f"{name}, mean over {over}{in_parts(drawn)}", f"95 % t interval of each point over {over}",
            )  # fmt: skip


def series_finding(name: str, drawn: dict[str, dict[str, np.ndarray]]) -> str:
    """Where the curves end at the last level."""
    level, lines = list(drawn.items())[-1]
    where = f" at {level}" if level else ""
    ends = {arm: float(runs[:, -1].mean()) for arm, runs in lines.items()}
    shown = list(ends.items())[:4]
    more = f" and {len(ends) - len(shown)} more" if len(ends) > len(shown) else ""
    return f"{name} ends{where} at " + ", ".join(f"{digits(value)} ({arm})" for arm, value in shown) + more


def in_parts(drawn: dict[str, dict[str, np.ndarray]]) -> str:
    """That long series are drawn in parts; empty where none is."""
    longest = max(runs.shape[1] for lines in drawn.values() for runs in lines.values())
    return f"; each point the mean of a {MAX_POINTS}th of the series" if longest > MAX_POINTS else ""


def series_figure(data: Data, name: str, axis: str, drawn: dict[str, dict[str, np.ndarray]]) -> Figure:
    fig, panels = plots.figures(len(drawn), sharey=True, size=(3.6 * len(drawn) + 3, 3.8))
    for ax, (level, lines) in zip(panels, drawn.items(), strict=True):
        for arm, runs in lines.items():
            x, parts = shortened(runs)
            plots.averages(ax, x, parts, arm, data.looks[arm])
            if parts is not runs:
                ax.lines[-1].set_linewidth(1.0)
        ax.set(title=f"{axis} = {level}" if level else "", xlabel="position in the series")
    panels[0].set_ylabel(name)
    plots.name_lines(panels, data.looks)
    return fig


def shortened(runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places from 1 on, curves): those given, or the means of `MAX_POINTS` parts of about equal length."""
    places, n = np.arange(1.0, runs.shape[1] + 1), runs.shape[1]
    if n <= MAX_POINTS:
        return places, runs
    starts = np.linspace(0, n, MAX_POINTS, endpoint=False).astype(int)
    sizes = np.diff([*starts, n])
    return np.add.reduceat(places, starts) / sizes, np.add.reduceat(runs, starts, axis=1) / sizes

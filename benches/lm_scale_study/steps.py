"""Single steps and gradients of lm_scale_study: time against its limit, memory, and how true the gradients are."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from mlexp.analysis import intervals, plots
from mlexp.analysis.findings import counted
from mlexp.study import load

declared = load(Path(__file__).with_name("study.py"))
BEST, SETTLED, TRUSTED, VARIANTS = declared.BEST, declared.SETTLED, declared.TRUSTED, declared.VARIANTS
MIN_ROUNDS = 3  # of a step whose time is judged


def grid(records, axis) -> pd.DataFrame:
    """The records of the cells that have this axis."""
    return records[records[axis].notna()] if axis in records else records.iloc[:0]


def checked(records) -> pd.DataFrame:
    """Trainings whose gradient was checked."""
    trained = records[records["learner"].notna() & (records["learner"] != BEST)]
    return trained[trained["gradient_cosine"].notna()]


def estimates(records) -> dict[str, Callable | str]:
    """The quantities of the engineering checks: those of G, L, K and M."""
    found, gradients = {}, checked(records)
    if len(gradients):
        smallest = float(gradients["gradient_cosine"].min())
        found["smallest gradient cosine"] = lambda confidence: counted(smallest, len(gradients))
    timed = step_table(grid(records, "sweep"))
    for name, rows in timed[timed["limit"].notna()].groupby("stepper", sort=False):
        if len(rows) > 1:
            grows = rows["saved_bytes"].max() / rows["saved_bytes"].min()
            found[f"bytes stored by {name}, most sweeps over fewest"] = lambda confidence, grows=grows: counted(grows)
        if (row := nearest(rows, records, name)) is not None:
            found[f"step of {name} over its limit"] = timing(row.over, row.spread, row.rounds)
    plain = timed[(timed["stepper"] == "full_kappa0") & (timed["sweeps"] == 2) & timed["spread_backprop"].notna()]
    for row in plain.itertuples():  # two nudged sweeps: what it makes in training
        found["step of full_kappa0 over backprop's"] = timing(row.over_backprop, row.spread_backprop, row.rounds)
    return found


def timing(value, spread, rounds) -> Callable:
    return lambda confidence: intervals.timed_interval(value, spread, int(rounds), confidence)


def nearest(rows, records, name):
    """The step at the sweeps nearest to those that training makes, the worst where nothing was trained; None where none
    was timed often enough."""
    rows = rows[rows["spread"].notna()]
    if rows.empty:
        return None
    made = records.loc[records["learner"] == name, "nudged_sweeps"].astype(float).mean()
    at = rows["over"].idxmax() if np.isnan(made) else np.log(rows["sweeps"] / made).abs().idxmin()
    return rows.loc[at]


def step_table(steps) -> pd.DataFrame:
    """Each step's time over backprop's in its block, and over its limit in steps through one sweep.

    A step through one sweep is timed at s1; backprop, the same in every block, says how fast the machine was. `spread`
    and `spread_backprop` are the standard errors of the logarithms of `over` and `over_backprop`.
    """
    rows, cells = [], {(row.sweep, row.stepper): row for row in steps.itertuples()}
    for row in sorted(cells.values(), key=lambda row: (row.stepper, declared.number(row.sweep))):
        plain, one = cells.get((row.sweep, "backprop")), cells.get(("s1", "backprop"))
        first = cells.get(("s1", f"{row.stepper}_unrolled"))
        of_unit = [first, plain, one]
        unit = first.wall_s * plain.wall_s / one.wall_s if all(of_unit) else math.nan
        limit = row.step_limit if row.step_limit is not None else math.nan
        line = {"stepper": row.stepper, "sweeps": int(declared.number(row.sweep)), "wall_s": row.wall_s,
                "over_backprop": row.wall_s / plain.wall_s if plain else math.nan, "in_units": row.wall_s / unit,
                "limit": limit, "over": row.wall_s / unit / limit, "saved_bytes": row.saved_bytes,
                "peak_bytes": row.peak_bytes, "flops": row.flops, "rounds": row.rounds,
                "spread": spread(row, *of_unit), "spread_backprop": spread(row, plain)}  # fmt: skip
        rows.append(line)
    names = ["stepper", "sweeps", "wall_s", "over_backprop", "in_units", "limit", "over", "saved_bytes", "peak_bytes",
             "flops", "rounds", "spread", "spread_backprop"]  # fmt: skip
    return pd.DataFrame(rows, columns=names)


def spread(*cells) -> float:
    """Standard error of the logarithm of a product or ratio of timings."""
    if any(cell is None or cell.rounds < MIN_ROUNDS for cell in cells):
        return math.nan
    return math.hypot(*(intervals.timing_spread(cell.wall_s, cell.wall_iqr_s, cell.rounds) for cell in cells))


def trust_table(records) -> pd.DataFrame:
    """Gradient and settling in training, the worst cell of each learner."""
    trained = records[records["free_sweeps"].notna() & records["learner"].notna() & (records["learner"] != BEST)]
    grouped = trained.groupby("learner", sort=False)
    table = grouped.agg(
        cells=("cell", "size"), gradient_cosine=("gradient_cosine", "min"), inner_cosine=("inner_cosine", "min"),
        free_sweeps=("free_sweeps", "mean"), nudged_sweeps=("nudged_sweeps", "mean"),
        free_residual=("free_residual", "max"), nudged_residual=("nudged_residual", "max"),
        unconverged_fraction=("unconverged_fraction", "max"),
    ).reset_index()  # fmt: skip
    bad = grouped["gradient_cosine"].apply(lambda values: int((values < TRUSTED).sum()))
    table["not_trusted"] = table["learner"].map(bad)
    return table


def gradient_table(gradients):
    axes = ["variant", "nudge", "beta", "tolerance"]
    names = ["gradient_cosine", "inner_cosine", "gradient_ratio", "free_sweeps", "nudged_sweeps", "wall_s", "flops"]
    table = gradients[axes + names].copy()
    table["note"] = np.where(table["gradient_cosine"] < TRUSTED, "gradient not trusted", "")
    return table.sort_values(axes, kind="stable")


def course_figure(data, out):
    """1 - cosine at the checks of each EqProp cell, as a share of training; None where nothing was checked."""
    trained = checked(data.records)
    names = [name for name in data.arms if name in set(trained["learner"])]
    if not names:
        return None
    fig, panels = plots.figures(len(names), sharey=True, size=(2.9 * len(names) + 0.8, 3.6))
    for ax, name in zip(panels, names, strict=True):
        for row in trained[trained["learner"] == name].itertuples():
            series = out.series(row.key)
            share = np.asarray(series["checked_steps"]) / row.updates
            error = np.maximum(1 - np.asarray(series["gradient_cosine"]), 1e-7)
            ax.plot(share, error, color=data.looks[name].colour, alpha=0.5, linewidth=1)
        plots.log_y(ax)
        plots.reference(ax, y=1 - TRUSTED)
        ax.set(title=name, xlabel="share of the updates")
    panels[0].set_ylabel("1 - cosine")
    return fig


def gradient_finding(gradients) -> str:
    """How many of the settings give a gradient that is trusted."""
    good = int((gradients["gradient_cosine"] >= TRUSTED).sum())
    return f"{good} of {len(gradients)} settings give a gradient with a cosine of at least {TRUSTED:g} to the true one"


def gradient_figure(gradients):
    """Colour: the nudge; marker and dash: beta."""
    names = list(dict.fromkeys(gradients["variant"]))
    betas = sorted(gradients["beta"].unique(), key=lambda beta: declared.number(beta))
    nudges = ("symmetric", "split", "positive")
    looks = {
        f"{nudge}, {declared.number(beta):g}": plots.Look(plots.COLOURS[i], plots.MARKERS[j], plots.DASHES[j % 4])
        for i, nudge in enumerate(nudges) for j, beta in enumerate(betas)
    }  # fmt: skip
    fig, panels = plots.figures(len(names), sharey=True, size=(4 * len(names) + 2.2, 4.2))
    for ax, name in zip(panels, names, strict=True):
        for nudge in nudges:
            for beta in betas:
                keep = (gradients["variant"] == name) & (gradients["nudge"] == nudge) & (gradients["beta"] == beta)
                rows, label = gradients[keep].sort_values("flops"), f"{nudge}, {declared.number(beta):g}"
                style = {"color": looks[label].colour, "marker": looks[label].marker, "linestyle": looks[label].dash}
                error = np.maximum(1 - rows["gradient_cosine"], 1e-7)
                ax.plot(rows["flops"], error, **style, linewidth=1, markersize=4.5, label=label)
        plots.log_x(ax)
        plots.log_y(ax)
        plots.reference(ax, y=1 - TRUSTED, label=f"cosine {TRUSTED:g}")
        ax.set(title=name, xlabel="FLOPs of a step")
    panels[0].set_ylabel("1 - cosine")
    plots.name_lines(panels, looks)
    return fig


ABOUT_FRONTIER = (
    "What looser settling costs and saves, at each variant's own nudge and beta: `over` is a step's time over that at "
    "the tolerance of training."
)
TRAINING = 0.1  # the nudged phase's tolerance in training, as test_gradient has it too


def frontier_table(gradients) -> pd.DataFrame:
    """Each variant's steps as it trains, from the loosest tolerance to the tightest: cosine, sweeps, time."""
    names = ["free_sweeps", "nudged_sweeps", "gradient_cosine", "wall_s"]
    rows = []
    for row in gradients.assign(level=gradients["tolerance"].map(declared.number)).itertuples():
        own = declared.LEARNERS[row.variant]
        if (row.nudge, declared.number(row.beta)) == (own.nudge, own.beta):
            rows.append({"variant": row.variant, "tolerance": row.level} | {name: getattr(row, name) for name in names})
    table = pd.DataFrame(rows, columns=["variant", "tolerance", *names])
    table = table.sort_values(["variant", "tolerance"], ascending=[True, False], ignore_index=True)
    base = table[table["tolerance"] == TRAINING].set_index("variant")["wall_s"]
    return table.assign(over=table["wall_s"] / table["variant"].map(base))


def frontier_finding(table) -> str:
    """The cheapest tolerance whose gradient is trusted, variant by variant."""
    good = table[(table["gradient_cosine"] >= TRUSTED) & table["over"].notna()]
    best = good.loc[good.groupby("variant", sort=False)["over"].idxmin()]
    texts = [f"{row.variant} {row.over:.2f}x at {row.tolerance:g}" for row in best.itertuples()]
    return (
        f"The least time of a step with a trusted gradient: {', '.join(texts)}" if texts else "No gradient is trusted"
    )


def frontier_figure(data, table):
    fig, ax = plots.figure(xlabel="time of a step over that at training's tolerance", ylabel="1 - cosine")
    shown = table.assign(error=np.maximum(1 - table["gradient_cosine"], 1e-7)).dropna(subset=["over", "error"])
    for name, rows in shown.groupby("variant", sort=False):
        look = data.looks[name]
        ax.plot(
            rows["over"], rows["error"], look.marker, color=look.colour, linestyle=look.dash, linewidth=1.2, label=name
        )
        for row in rows.itertuples():
            ax.annotate(
                f"{row.tolerance:g}", (row.over, row.error), xytext=(4, 4), textcoords="offset points", fontsize=7
            )
    plots.log_y(ax)
    plots.reference(ax, y=1 - TRUSTED, label=f"cosine {TRUSTED:g}")
    plots.name_lines([ax], {name: data.looks[name] for name in shown["variant"].unique()})
    return fig


def step_finding(timed) -> str:
    """What a step of each settled network costs at its most sweeps, in steps of backprop."""
    rows = timed[timed["stepper"].isin(SETTLED) & timed["over_backprop"].notna()]
    last = rows.loc[rows.groupby("stepper", sort=False)["sweeps"].idxmax()] if len(rows) else rows
    texts = [f"{row.stepper} {row.over_backprop:.3g}x at {row.sweeps} sweeps" for row in last.itertuples()]
    return f"A step over one of backprop: {', '.join(texts)}" if texts else "No step of a settled network was timed"


def step_figure(data, timed):
    apart = ("backprop_matched", "full_kappa0_unrolled")  # sweeps change nothing in the one, and are idle in the other
    names = [name for name in timed["stepper"].unique() if name not in apart]
    looks = {name: data.looks[name.removesuffix("_unrolled")] for name in names}
    looks = {name: look._replace(dash=":" if name.endswith("_unrolled") else "-") for name, look in looks.items()}
    fig, (left, right) = plots.figures(2, size=(11.4, 4.4))
    shown = timed[timed["stepper"].isin(names)]
    for ax, column, scale in ((left, "over_backprop", 1), (right, "saved_bytes", 1e-6)):
        table = shown.assign(y=shown[column] * scale)
        plots.curves(ax, table, "sweeps", "y", "stepper", looks, labels=ax is right)
        plots.log_x(ax, ticks=timed["sweeps"])
        plots.log_y(ax)
        ax.set(xlabel="sweeps of each phase")
    plots.reference(left, y=1.0)
    left.set(title="Time of a step", ylabel="times backprop's")
    right.set(title="Saved for backward", ylabel="MB")
    return fig

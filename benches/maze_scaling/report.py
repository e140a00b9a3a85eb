"""What no row of the declaration says: learning, walks, generalisation, cost, and the original's own outputs."""

from pathlib import Path

import numpy as np
import pandas as pd

from mlexp.analysis import plots, stats
from mlexp.analysis.tables import arm_table, levels_of, pair_table
from mlexp.study import load

original = load(Path(__file__).parent / "original" / "outputs.py")
MAIN = ("baseline", "poh_hrm")
NAMED = {
    "iterating (effective depth)": "iterating alone gives",
    "routing, of any kind": "routing adds",
    "the slow state (hierarchy)": "the slow state adds",
}
COSTS = ("n_params", "wall_s", "flops", "peak_bytes")
SHARES = ("optimality", "strict_accuracy", "cell_accuracy", "excess", "larger_accuracy")
FLOORS = ("random", "manhattan", "oracle")
BARS = "95 % t interval over seeds"

ABOUT = """
Means over seeds. `random`, `manhattan` and `oracle` are walks without a model on the same test mazes. On perfect mazes
(`dfs`) one simple path exists: accuracy and optimality are one number by construction.
"""
ABOUT_PARTS = """
Each row pairs two arms by seed, on the same mazes: the difference in accuracy with its 95 % interval and p after Holm
over all rows. A part whose interval holds 0 has not been shown to matter.
"""


def report(records, out):
    data = out.data
    side = data.settings["maze_size"]
    gains = gain_table(data)
    out.heading("Accuracy")
    out.text(ABOUT)
    out.table(accuracy_table(data), "accuracy.csv", "Every size and arm, with its cost; floors and ceiling.")
    out.figure(
        original.four_panels(data), f"scaling_plot_maze{side}.png", whole_finding(gains),
        "The original's four panels: accuracy and optimality by parameters, and PoH-HRM's advantage by size", BARS,
        shown="folded",
    )  # fmt: skip
    out.heading("What the gain is due to")
    out.text(ABOUT_PARTS)
    out.text("\n".join(sentences(gains)))
    out.table(gains, "gains.csv", "Differences in accuracy between arms, paired by seed.")
    if len(known := gains.dropna(subset=["low"])):
        out.lead = "gains.svg"
        out.figure(
            gain_figure(known), "gains.svg", whole_finding(gains),
            "Difference in accuracy between two arms, percentage points, paired by seed", BARS,
        )  # fmt: skip
    out.table(probe_table(records), "probes.csv", "The trained PoH-HRM with a part of it switched off.")
    out.heading("How it learns, walks and generalises")
    for draw, name, what, measure in CURVES:
        if drawn := draw(data, out):
            fig, ends = drawn
            out.figure(fig, name, f"{what}: {ends}", f"{measure}, mean over seeds", f"{BARS} at each point")
    if drawn := larger_figure(data, out, side):
        fig, ends = drawn
        out.figure(
            fig, "larger.svg", f"On the largest mazes: {ends}", "Accuracy on mazes larger than those trained on", BARS
        )
    fig, solved = sample_figure(data, out)
    out.figure(fig, "mazes.svg", solved, "Sample test mazes with the models' walks", n="the first seed")
    out.heading("Cost")
    out.table(efficiency_table(data), "efficiency.csv", "PoH against a baseline of 1.5 and 2 times its parameters.")
    out.heading("The original's checklist")
    out.text("\n".join(original.checklist(data, efficiency_table(data))))
    original.files(data, out)


def cells(data, size, arch):
    return data.records[(data.records["size"] == size) & (data.records["arch"] == arch)]


def accuracy_table(data):
    table = arm_table(data, "size", (*SHARES, "loss_nats", *COSTS))
    table.insert(2, "seeds", table.pop("blocks"))
    seeds, floors = data.records.groupby("seed"), []
    for name in FLOORS:
        mean, low, high = stats.known_interval(seeds[f"{name}_accuracy"].first())
        floors.append({"size": "-", "arch": name, "seeds": len(seeds), "accuracy": mean, "low": low, "high": high})
    return pd.concat([table, pd.DataFrame(floors)], ignore_index=True)


def gain_table(data):
    table = pair_table(data, data.study.parts, "size").drop(columns="sd")
    names = {"name": "part", "value": "difference", "blocks": "seeds", "p_adjusted": "p_holm"}
    table = table.rename(columns=names)
    return table[["size", "part", "arm", "against", "difference", "low", "high", "seeds", "p_holm"]]


def sentences(gains):
    """Which part has been shown to matter, size by size."""
    for size, rows in gains.groupby("size", sort=False):
        known = rows.dropna(subset=["low"]).set_index("part")
        if "the whole of PoH-HRM" not in known.index:
            yield f"- {size}: no two seeds of both main arms: nothing can be said."
            continue
        whole = known.loc["the whole of PoH-HRM"]
        span = f"[{100 * whole.low:+.1f}, {100 * whole.high:+.1f}]"
        texts = [f"- {size}: PoH-HRM is {100 * whole.difference:+.1f} points over the baseline {span}"]
        for part, name in NAMED.items():
            if part in known.index:
                row = known.loc[part]
                sure = "" if row.low > 0 or row.high < 0 else ", not told from 0"
                texts.append(f"{name} {100 * row.difference:+.1f}{sure}")
        yield "; ".join(texts) + "."


def probe_table(records):
    names = ["accuracy", "uniform_gates_accuracy", "frozen_slow_accuracy", "routing_entropy"]
    if names[1] not in records:  # none of a gated arm
        return pd.DataFrame(columns=["size", "arch", "as_trained", *names[1:]])
    probed = records[records[names[1]].notna()]
    table = probed.groupby(["size", "arch"], as_index=False)[names].mean()
    return table.rename(columns={"accuracy": "as_trained"})


def whole_finding(gains) -> str:
    """What PoH-HRM is over the baseline at each size."""
    rows = gains[gains["part"] == "the whole of PoH-HRM"]
    texts = []
    for row in rows.itertuples():
        sure = "" if row.low > 0 or row.high < 0 else " (not told from 0)"
        texts.append(f"{100 * row.difference:+.1f} points at {row.size}{sure}")
    return f"PoH-HRM over the baseline: {', '.join(texts)}" if texts else "The main arms are not both in these records"


def gain_figure(gains):
    """A row a size and part."""
    several = gains["size"].nunique() > 1
    rows = gains.assign(
        name=gains["size"] + ": " + gains["part"] if several else gains["part"], value=100 * gains["difference"],
        low=100 * gains["low"], high=100 * gains["high"],
    )  # fmt: skip
    fig, ax = plots.figure(xlabel="points of accuracy", size=(7.6, 0.3 * len(rows) + 1.0))
    plots.intervals(ax, rows, "name", null=0.0)
    return fig


def ends_of(drawn, digits=2) -> str:
    """Where the curves of the last size end."""
    size = list(drawn)[-1]
    texts = [f"{arm} {np.mean([run[-1] for run in runs]):.{digits}f}" for arm, (_, runs) in drawn[size].items()]
    return f"{', '.join(texts)} ({size})"


def learning_figure(data, out):
    def curve(series, row):
        losses = smooth(series["losses"])
        return (np.arange(len(losses)) + 0.5) / len(losses), losses

    return size_figure(data, out, curve, "share of the steps", "training loss, nats", marks=False)


def accuracy_figure(data, out):
    """None where a record is older than this series."""
    if not all("accuracy_by_step" in out.series(key) for key in data.records["key"]):
        return None

    def curve(series, row):
        return np.array(series["judged_steps"]) / row.steps, series["accuracy_by_step"]

    return size_figure(data, out, curve, "share of the steps", "accuracy", whole=False)


def smooth(losses, parts=50):
    """The means of consecutive parts of a curve."""
    return np.array([part.mean() for part in np.array_split(losses, min(parts, len(losses)))])


def iteration_figure(data, out):
    def curve(series, row):
        accuracy = series["accuracy_by_iteration"]
        return np.arange(1, len(accuracy) + 1), accuracy

    return size_figure(data, out, curve, "iteration r", "accuracy")


def length_figure(data, out):
    """Quarters of the test mazes by length of their solution."""

    def curve(series, row):
        length, solved = np.asarray(series["length"]), np.asarray(series["solved"])
        quarters = np.array_split(np.argsort(length, kind="stable"), min(4, len(length)))
        return [length[q].mean() for q in quarters], [solved[q].mean() for q in quarters]

    return size_figure(data, out, curve, "cells of the solution", "accuracy")


def size_figure(data, out, curve, xlabel, ylabel, marks=True, whole=True):
    """(a panel a size, a line an arm, where the lines end): `curve` gives the x and y of a record's series."""
    names, drawn = levels_of(data, "size"), {}
    fig, panels = plots.figures(len(names), sharey=True, size=(3.4 * len(names) + 2, 3.8))
    for ax, size in zip(panels, names, strict=True):
        for arm, look in data.looks.items():
            found = [curve(out.series(row.key), row) for row in cells(data, size, arm).itertuples()]
            if found:
                x, runs = np.mean([each[0] for each in found], axis=0), np.array([each[1] for each in found], float)
                plots.averages(ax, x, runs, arm, look, marks=marks)
                drawn.setdefault(size, {})[arm] = x, runs
        ax.set(title=size, xlabel=xlabel)
        ax.xaxis.get_major_locator().set_params(integer=marks and whole)
    panels[0].set_ylabel(ylabel)
    plots.name_lines(panels, data.looks)
    return fig, ends_of(drawn)


def larger_figure(data, out, trained):
    """(accuracy by side of the maze, where the lines end); None where no larger maze was tried."""
    rows = []
    for row in data.records.itertuples():
        series = out.series(row.key)
        pairs = zip([trained, *series["larger_sizes"]], [row.accuracy, *series["larger_accuracy"]], strict=True)
        rows += [(row.size, row.arch, n, accuracy) for n, accuracy in pairs]
    table = pd.DataFrame(rows, columns=["size", "arch", "n", "accuracy"])
    if table["n"].nunique() < 2:
        return None
    names, drawn = levels_of(data, "size"), {}
    fig, panels = plots.figures(len(names), sharey=True, size=(3.4 * len(names) + 2, 3.8))
    for ax, size in zip(panels, names, strict=True):
        for arm, look in data.looks.items():
            runs = [list(group["accuracy"]) for _, group in runs_of(table, size, arm)]
            if runs:
                x = sorted(table["n"].unique())
                plots.averages(ax, x, runs, arm, look, marks=True)
                drawn.setdefault(size, {})[arm] = x, np.array(runs)
        ax.set(title=size, xlabel="side of the maze", xticks=sorted(table["n"].unique()))
    panels[0].set_ylabel("accuracy")
    plots.name_lines(panels, data.looks)
    return fig, ends_of(drawn)


def runs_of(table, size, arm):
    """The rows of each record of an arm at a size: one a side of the maze, in order."""
    rows = table[(table["size"] == size) & (table["arch"] == arm)]
    return rows.groupby(rows.groupby("n").cumcount())


def sample_figure(data, out):
    """(walls with the walks of both main arms over them, of the largest size; who solved how many)."""
    size, arms = levels_of(data, "size")[-1], [a for a in MAIN if a in data.arms] or data.arms[:1]
    first = {arm: cells(data, size, arm)["key"].head(1) for arm in arms}
    walks = {arm: out.series(key) for arm, keys in first.items() for key in keys}
    count = min(len(series["sample_open"]) for series in walks.values())
    fig, panels = plots.figures(count, size=(3.2 * count, 4.4))
    solved = dict.fromkeys(walks, 0)
    for i, ax in enumerate(panels):
        maze, words = next(iter(walks.values())), []
        goal = maze["sample_goal"][i]
        draw_maze(ax, maze["sample_open"][i], maze["sample_start"][i], goal)
        for shift, (arm, series) in enumerate(walks.items()):
            path = series["sample_path"][i]
            path = path[path >= 0]
            n = round(len(series["sample_open"][i]) ** 0.5)
            look = data.looks[arm]
            offset = 0.12 * (2 * shift - len(walks) + 1)
            drawn = ax.plot(path % n + offset, path // n + offset, color=look.colour, linestyle=look.dash, linewidth=2,
                            label=arm)  # fmt: skip
            plots.mark(arm, *drawn)
            arrived = len(path) > 0 and int(path[-1]) == int(goal)
            solved[arm] += arrived
            words.append(f"{arm} {'solved' if arrived else 'failed'}")
        ax.set_title("\n".join(words), fontsize=9)
    panels[0].legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2)
    counts = ", ".join(f"{arm} {n} of {count}" for arm, n in solved.items())
    return fig, f"Sample mazes solved ({size}): {counts}"


def draw_maze(ax, open, start, goal):
    n = round(len(open) ** 0.5)
    for cell, (up, down, left, right) in enumerate(np.asarray(open, bool)):
        y, x = divmod(cell, n)
        sides = ((up, (-1, 1), (-1, -1)), (down, (-1, 1), (1, 1)), (left, (-1, -1), (-1, 1)), (right, (1, 1), (-1, 1)))
        for free, dx, dy in sides:
            if not free:
                ax.plot([x + d / 2 for d in dx], [y + d / 2 for d in dy], color="0.25", linewidth=1.5)
    for cell, mark, what in ((start, "o", "start"), (goal, "*", "goal")):
        ax.plot(cell % n, cell // n, mark, color="0.1", markersize=9)
        ax.annotate(what, (cell % n, cell // n), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=7)
    ax.set(aspect="equal", xticks=[], yticks=[])
    ax.invert_yaxis()
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def efficiency_table(data):
    """PoH at N parameters beside the baseline at 1.5 N and 2 N, interpolated between its sizes in log parameters."""
    rows, baseline = [], data.records[data.records["arch"] == "baseline"]
    base = baseline.groupby("size")[["n_params", "accuracy"]].mean().sort_values("n_params")
    for size in levels_of(data, "size"):
        poh = cells(data, size, "poh_hrm")
        for times in (1.5, 2.0) if len(poh) and len(base) else ():
            count, accuracy = poh[["n_params", "accuracy"]].mean()
            if base["n_params"].min() <= times * count <= base["n_params"].max():
                there = np.interp(np.log(times * count), np.log(base["n_params"]), base["accuracy"])
                rows.append((size, count, accuracy, times, there, accuracy - there))
    columns = ["size", "poh_params", "poh_accuracy", "times", "baseline_accuracy", "difference"]
    return pd.DataFrame(rows, columns=columns)


CURVES = (
    (learning_figure, "learning.svg", "Training loss at the end", "Training loss"),
    (accuracy_figure, "accuracy_by_step.svg", "Accuracy at the end", "Accuracy on the test mazes over training"),
    (iteration_figure, "iterations.svg", "After all iterations", "Accuracy if the answer is read after iteration r"),
    (length_figure, "length.svg", "In the mazes of the longest solutions",
     "Accuracy by length of the solution, quarters of the test mazes"),
)  # fmt: skip

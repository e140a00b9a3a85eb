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
    out.figure(original.four_panels(data), f"scaling_plot_maze{side}.png", "The original's four panels.")
    out.heading("What the gain is due to")
    out.text(ABOUT_PARTS)
    out.text("\n".join(sentences(gains)))
    out.table(gains, "gains.csv", "Differences in accuracy between arms, paired by seed.")
    out.table(probe_table(records), "probes.csv", "The trained PoH-HRM with a part of it switched off.")
    out.heading("How it learns, walks and generalises")
    out.figure(learning_figure(data, out), "learning.png", "Training loss, mean over seeds.")
    if figure := accuracy_figure(data, out):
        out.figure(figure, "accuracy_by_step.png", "Accuracy on the test mazes over training, mean over seeds.")
    out.figure(iteration_figure(data, out), "iterations.png", "Accuracy if the answer is read after iteration r.")
    out.figure(
        length_figure(data, out), "length.png", "Accuracy by length of the solution, quarters of the test mazes."
    )
    if figure := larger_figure(data, out, side):
        out.figure(figure, "larger.png", "Accuracy on mazes larger than those trained on.")
    out.figure(sample_figure(data, out), "mazes.png", "Sample test mazes and the models' walks, first seed.")
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


def learning_figure(data, out):
    def line(records):
        mean = np.mean([smooth(out.series(key)["losses"]) for key in records["key"]], axis=0)
        return (np.arange(len(mean)) + 0.5) / len(mean), mean

    return size_figure(data, line, "share of the steps", "training loss, nats", marks=False)


def accuracy_figure(data, out):
    """None where a record is older than this series."""
    if not all("accuracy_by_step" in out.series(key) for key in data.records["key"]):
        return None

    def line(records):
        series = [out.series(key) for key in records["key"]]
        steps = np.array(series[0]["judged_steps"])
        return steps / records["steps"].iloc[0], np.mean([s["accuracy_by_step"] for s in series], axis=0)

    return size_figure(data, line, "share of the steps", "accuracy", whole=False)


def smooth(losses, parts=50):
    """The means of consecutive parts of a curve."""
    return np.array([part.mean() for part in np.array_split(losses, min(parts, len(losses)))])


def iteration_figure(data, out):
    def line(records):
        mean = np.mean([out.series(key)["accuracy_by_iteration"] for key in records["key"]], axis=0)
        return np.arange(1, len(mean) + 1), mean

    return size_figure(data, line, "iteration r", "accuracy")


def length_figure(data, out):
    """Quarters of the test mazes by length of their solution."""

    def line(records):
        series = [out.series(key) for key in records["key"]]
        length, solved = (np.concatenate([s[name] for s in series]) for name in ("length", "solved"))
        quarters = np.array_split(np.argsort(length, kind="stable"), min(4, len(length)))
        return [length[q].mean() for q in quarters], [solved[q].mean() for q in quarters]

    return size_figure(data, line, "cells of the solution", "accuracy")


def size_figure(data, line, xlabel, ylabel, marks=True, whole=True):
    """A panel a size, a line an arm: `line` gives the x and y of the records of both."""
    names = levels_of(data, "size")
    fig, panels = plots.figures(len(names), sharey=True, size=(3.4 * len(names) + 2, 3.8))
    for ax, size in zip(panels, names, strict=True):
        for arm, look in data.looks.items():
            records = cells(data, size, arm)
            if len(records):
                style = {"color": look.colour, "linestyle": look.dash, "marker": look.marker if marks else None}
                ax.plot(*line(records), **style, label=arm)
        ax.set(title=size, xlabel=xlabel)
        ax.xaxis.get_major_locator().set_params(integer=marks and whole)
    panels[0].set_ylabel(ylabel)
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.02))
    return fig


def larger_figure(data, out, trained):
    rows = []
    for row in data.records.itertuples():
        series = out.series(row.key)
        pairs = zip([trained, *series["larger_sizes"]], [row.accuracy, *series["larger_accuracy"]], strict=True)
        rows += [(row.size, row.arch, n, accuracy) for n, accuracy in pairs]
    table = pd.DataFrame(rows, columns=["size", "arch", "n", "accuracy"])
    if table["n"].nunique() < 2:
        return None
    names = levels_of(data, "size")
    fig, panels = plots.figures(len(names), sharey=True, size=(3.4 * len(names) + 2, 3.8))
    for ax, size in zip(panels, names, strict=True):
        mean = table[table["size"] == size].groupby(["arch", "n"], as_index=False)["accuracy"].mean()
        plots.curves(ax, mean, "n", "accuracy", "arch", data.looks, labels=size == names[-1])
        ax.set(title=size, xlabel="side of the maze")
    panels[0].set_ylabel("accuracy")
    return fig


def sample_figure(data, out):
    """Walls in black, the walks of both main arms over them, of the largest size."""
    size, arms = levels_of(data, "size")[-1], [a for a in MAIN if a in data.arms] or data.arms[:1]
    first = {arm: cells(data, size, arm)["key"].head(1) for arm in arms}
    walks = {arm: out.series(key) for arm, keys in first.items() for key in keys}
    count = min(len(series["sample_open"]) for series in walks.values())
    fig, panels = plots.figures(count, size=(3.2 * count, 4.4))
    for i, ax in enumerate(panels):
        maze = next(iter(walks.values()))
        draw_maze(ax, maze["sample_open"][i], maze["sample_start"][i], maze["sample_goal"][i])
        for shift, (arm, series) in enumerate(walks.items()):
            path = series["sample_path"][i]
            path = path[path >= 0]
            n = round(len(series["sample_open"][i]) ** 0.5)
            look = data.looks[arm]
            offset = 0.12 * (2 * shift - len(walks) + 1)
            ax.plot(
                path % n + offset, path // n + offset, color=look.colour, linestyle=look.dash, linewidth=2, label=arm
            )
        ax.set_title(f"{size}, maze {i + 1}")
    panels[0].legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2)
    return fig


def draw_maze(ax, open, start, goal):
    n = round(len(open) ** 0.5)
    for cell, (up, down, left, right) in enumerate(np.asarray(open, bool)):
        y, x = divmod(cell, n)
        sides = ((up, (-1, 1), (-1, -1)), (down, (-1, 1), (1, 1)), (left, (-1, -1), (-1, 1)), (right, (1, 1), (-1, 1)))
        for free, dx, dy in sides:
            if not free:
                ax.plot([x + d / 2 for d in dx], [y + d / 2 for d in dy], color="0.25", linewidth=1.5)
    for cell, mark in ((start, "o"), (goal, "*")):
        ax.plot(cell % n, cell // n, mark, color="0.1", markersize=9)
    ax.set(aspect="equal", xticks=[], yticks=[])
    ax.invert_yaxis()
    ax.grid(False)


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

"""The original's outputs from these records: its four panels, its checklist, its JSON and text."""

import json

import numpy as np

from mlexp.analysis import plots
from mlexp.analysis.tables import arm_table, cells_of, levels_of, quantity_table
from mlexp.study import At, Mean, Steps, arm

MAIN = ("baseline", "poh_hrm")
GAIN = arm("poh_hrm") - arm("baseline")
CONFIG = {"maze_size": "maze_size", "n_train": "train", "n_test": "test", "epochs": "epochs", "R": "R", "T": "T"}


def four_panels(data):
    fig, panels = plots.figures(2, rows=2, size=(10, 7.6))
    for metric, curve_ax, bar_ax in zip(("accuracy", "optimality"), panels[:2], panels[2:], strict=True):
        table = arm_table(data, "size", ("n_params",), metric)
        table = table[table["arch"].isin(MAIN)]
        plots.curves(curve_ax, table, "n_params", metric, "arch", data.looks, labels=False)
        plots.log_x(curve_ax, ticks=data.records["n_params"])
        curve_ax.set(title=metric, xlabel="parameters", ylim=(-0.02, 1.02))
        gains = quantity_table(data, At(GAIN.of(metric)))
        for i, row in enumerate(gains.itertuples()):
            bars = None if np.isnan(row.low) else [[100 * (row.value - row.low)], [100 * (row.high - row.value)]]
            bar_ax.bar(i, 100 * row.value, color=plots.COLOURS[2 if row.value > 0 else 1], yerr=bars, capsize=3)
        bar_ax.set_xticks(range(len(gains)), list(gains["label"]))
        plots.reference(bar_ax, y=0.0)
        bar_ax.set(title=f"PoH advantage, {metric}", ylabel="points")
    panels[0].legend(loc="best")
    return fig


def points(row) -> str:
    """A difference in accuracy with its interval, in points."""
    sure = "one seed" if np.isnan(row.low) else f"[{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
    return f"{100 * row.value:+.1f} points {sure}"


def checklist(data, efficiency):
    """The original's questions, each with what these records say."""
    gains = quantity_table(data, At(GAIN))
    if gains.empty:
        yield "- Both main arms are needed for every question of the list; they are not in these records."
        return
    each = "; ".join(f"{row.label} {points(row)}" for row in gains.itertuples())
    yield f"- Does the advantage exist at all sizes? {each}."
    won = next((f"from {row.label}" for row in gains.itertuples() if row.low > 0), "at none with an interval above 0")
    yield f"- At what size does PoH-HRM start winning? {won.capitalize()}."
    yield f"- Does the advantage grow with size, is there a saturation point? {growth(data, len(gains))}."
    means = {metric: quantity_table(data, Mean(GAIN.of(metric))) for metric in ("accuracy", "optimality")}
    both = ", ".join(f"{points(row)} in {metric}" for metric, table in means.items() for row in table.itertuples())
    yield f"- Accuracy or optimality? {both or 'no seed has all sizes'} (one number on perfect mazes)."
    better = [f"{row.size} {100 * row.difference:+.1f} points" for row in efficiency.itertuples() if row.times == 2]
    yield f"- PoH at N against the baseline at 2N: {'; '.join(better) or 'no larger baseline in these records'}."


def growth(data, sizes: int) -> str:
    if sizes < 3:
        return f"{sizes} size(s): cannot be said"
    steps = "; ".join(f"by {points(row)} {row.label}" for row in quantity_table(data, Steps(GAIN)).itertuples())
    last = [(name, quantity_table(data, Steps(arm(name))).tail(1)) for name in MAIN]
    ends = "; ".join(f"{name} {points(row)}" for name, table in last for row in table.itertuples())
    return f"The advantage changes {steps}; accuracy changes in the last step in size: {ends}"


def files(data, out):
    """The original's own JSON and text, ours beside its keys; accuracies in percent, means over seeds."""
    rows = [row for size in levels_of(data, "size") if (row := size_row(data, size))]
    seeds, side = data.records.groupby("seed"), data.settings["maze_size"]
    floors = {name: 100 * seeds[f"{name}_accuracy"].first().mean() for name in ("random", "manhattan")}
    known = {"seeds": len(seeds), "scale": data.records["scale"].iloc[0]}
    config = {name: data.settings[setting] for name, setting in CONFIG.items()}
    content = {"config": config, "results": rows, **known, "floors": floors}
    out.file(f"scaling_results_maze{side}.json", json.dumps(content, indent=2) + "\n")
    out.file(f"scaling_summary_maze{side}.txt", "\n".join(summary(data.settings, rows, floors, known)) + "\n")


def size_row(data, size) -> dict:
    """A size as the original's JSON has it; empty where an arm is missing."""
    row = {"size": size}
    for name, arch in zip(("baseline", "poh"), MAIN, strict=True):
        cells = cells_of(data, "size", size, arch)
        if cells.empty:
            return {}
        row |= {f"{name}_params": int(cells["n_params"].iloc[0]), f"{name}_acc": 100 * cells["accuracy"].mean(),
                f"{name}_opt": 100 * cells["optimality"].mean()}  # fmt: skip
    return row | {f"poh_advantage_{m}": row[f"poh_{m}"] - row[f"baseline_{m}"] for m in ("acc", "opt")}


def summary(settings, rows, floors, known):
    """The original's text."""
    side = settings["maze_size"]
    yield f"PoH-HRM against a baseline transformer, {side} x {side} mazes, means over {known['seeds']} seed(s), percent"
    yield (
        f"scale {known['scale']}; {settings['test']} test mazes a seed; a walk without a model: random "
        f"{floors['random']:.1f}, manhattan {floors['manhattan']:.1f}; intervals and controls are in summary.md"
    )
    yield ""
    yield f"{'size':8}{'baseline':>22}{'PoH-HRM':>22}{'advantage':>12}"
    for row in rows:
        sides = [f"{row[f'{a}_acc']:.1f} / {row[f'{a}_opt']:.1f} ({plots.si(row[f'{a}_params'])})"
                 for a in ("baseline", "poh")]  # fmt: skip
        yield f"{row['size']:8}" + "".join(f"{side:>22}" for side in sides) + f"{row['poh_advantage_acc']:>+12.1f}"
    if rows:
        best = {name: max(rows, key=lambda row, n=name: row[f"{n}_acc"])["size"] for name in ("baseline", "poh")}
        yield ""
        yield f"average PoH advantage: {np.mean([row['poh_advantage_acc'] for row in rows]):+.1f} points"
        yield f"best: baseline at {best['baseline']}, PoH-HRM at {best['poh']}"

"""Accuracy against size and cost, what the gain is due to, the seed's own outputs, its checklist and its hypotheses."""

import json

import numpy as np
import pandas as pd

from mlexp.analysis import plots, stats
from mlexp.analysis.results import paired

ARMS = (
    *("baseline", "poh_hrm", "poh_r1", "poh_uniform", "poh_static", "poh_t_inf"),
    *("baseline_wide", "baseline_deep", "baseline_long"),
)
MAIN = ("baseline", "poh_hrm")
PARTS = {  # what the gain could be due to: (arm with it, arm without it)
    "the whole of PoH-HRM": ("poh_hrm", "baseline"),
    "iterating (effective depth)": ("poh_uniform", "baseline"),
    "routing, of any kind": ("poh_hrm", "poh_uniform"),
    "routing by input": ("poh_hrm", "poh_static"),
    "the slow state (hierarchy)": ("poh_hrm", "poh_t_inf"),
    "a controller without iterations": ("poh_r1", "baseline"),
    "as many parameters in a wider baseline": ("poh_hrm", "baseline_wide"),
    "as many layers, untied": ("poh_hrm", "baseline_deep"),
    "as many FLOPs in more steps": ("poh_hrm", "baseline_long"),
}
NAMED = {
    "iterating (effective depth)": "iterating alone gives",
    "routing, of any kind": "routing adds",
    "the slow state (hierarchy)": "the slow state adds",
}
MARGIN = 0.02  # differences in accuracy below this are the same for practical purposes
COSTS = ("n_params", "wall_s", "flops", "peak_bytes")
SHARES = ("accuracy", "optimality", "strict_accuracy", "cell_accuracy", "excess", "larger_accuracy")

ABOUT = """
Means over seeds. `random`, `manhattan` and `oracle` are walks without a model on the same test mazes. On perfect mazes
(`dfs`) one simple path exists: accuracy and optimality are one number by construction.
"""
ABOUT_PARTS = """
Each row pairs two arms by seed, on the same mazes: the difference in accuracy with its 95 % interval and p after Holm
over all rows. A part whose interval holds 0 has not been shown to matter.
"""


def report(records, out):
    setting = json.loads(records["settings"].iloc[0])
    table = accuracy_table(records)
    gains = gain_table(records)
    verdicts(records, out)
    out.heading("Accuracy")
    out.text(ABOUT)
    out.table(table, "accuracy.csv", "Every size and arm, with its cost; floors and ceiling.")
    out.figure(scaling_figure(records), f"scaling_plot_maze{setting['maze_size']}.png", "The seed's four panels.")
    out.heading("What the gain is due to")
    out.text(ABOUT_PARTS)
    out.text("\n".join(cause_words(gains)))
    out.table(gains, "gains.csv", "Differences in accuracy between arms, paired by seed.")
    out.table(probe_table(records), "probes.csv", "The trained PoH-HRM with a part of it switched off.")
    out.heading("How it learns, walks and generalises")
    out.figure(learning_figure(records, out), "learning.png", "Training loss, mean over seeds.")
    if figure := accuracy_figure(records, out):
        out.figure(figure, "accuracy_by_step.png", "Accuracy on the test mazes over training, mean over seeds.")
    out.figure(iteration_figure(records, out), "iterations.png", "Accuracy if the answer is read after iteration r.")
    out.figure(
        length_figure(records, out), "length.png", "Accuracy by length of the solution, quarters of the test mazes."
    )
    if figure := larger_figure(records, out, setting["maze_size"]):
        out.figure(figure, "larger.png", "Accuracy on mazes larger than those trained on.")
    out.figure(sample_figure(records, out), "mazes.png", "Sample test mazes and the models' walks, first seed.")
    out.heading("Cost")
    out.table(
        efficiency_table(records),
        "efficiency.csv",
        "PoH against a baseline of 1.5 and 2 times its parameters.",
    )
    out.heading("The seed's checklist")
    out.text("\n".join(checklist(records)))
    seed_files(records, setting, out)


def sizes(records) -> list[str]:
    """Sizes present, smallest baseline first."""
    return list(records.groupby("size")["n_params"].min().sort_values().index)


def of(records, size, arch):
    return records[(records["size"] == size) & (records["arch"] == arch)]


def interval(values) -> tuple[float, float, float]:
    values = np.asarray(values, float)
    if len(values) < 2:
        return (float(values[0]) if len(values) else np.nan, np.nan, np.nan)
    return stats.mean_interval(values)[:3]


def difference(records, size, arm, without, metric="accuracy") -> np.ndarray:
    """Arm minus the other, a value a seed; empty where either is missing."""
    mine = records[records["size"] == size]
    if not {arm, without} <= set(mine["arch"]):
        return np.array([])
    return paired(mine, metric, arm="arch", of=without, to=arm, over=["seed"])["difference"].to_numpy()


def accuracy_table(records):
    rows = []
    for size in sizes(records):
        for arm in (a for a in ARMS if len(of(records, size, a))):
            some = of(records, size, arm)
            mean, low, high = interval(some["accuracy"])
            row = {"size": size, "arch": arm, "seeds": len(some), "accuracy": mean, "low": low, "high": high}
            rows.append(row | {name: some[name].astype(float).mean() for name in (*SHARES[1:], "loss_nats", *COSTS)})
    for name in ("random", "manhattan", "oracle"):
        mean, low, high = interval(records.groupby("seed")[f"{name}_accuracy"].first())
        rows.append(
            {"size": "-", "arch": name, "seeds": records["seed"].nunique(), "accuracy": mean, "low": low, "high": high}
        )
    return pd.DataFrame(rows)


def gain_table(records):
    rows, tests = [], {}
    for size in sizes(records):
        for what, (arm, without) in PARTS.items():
            values = difference(records, size, arm, without)
            if len(values):
                mean, low, high = interval(values)
                rows.append({"size": size, "part": what, "arm": arm, "against": without, "difference": mean, "low": low,
                             "high": high, "seeds": len(values)})  # fmt: skip
                if len(values) > 1:
                    tests[size, what] = stats.mean_p(values)
    adjusted = stats.holm(tests) if tests else {}
    for row in rows:
        row["p_holm"] = adjusted.get((row["size"], row["part"]), np.nan)
    columns = ["size", "part", "arm", "against", "difference", "low", "high", "seeds", "p_holm"]
    return pd.DataFrame(rows, columns=columns)


def cause_words(gains):
    """Which part has been shown to matter, size by size, in words."""
    for size, mine in gains.groupby("size", sort=False):
        known = mine.dropna(subset=["low"]).set_index("part")
        if "the whole of PoH-HRM" not in known.index:
            yield f"- {size}: no two seeds of both main arms: nothing can be said."
            continue
        whole = known.loc["the whole of PoH-HRM"]
        span = f"[{100 * whole.low:+.1f}, {100 * whole.high:+.1f}]"
        words = [f"- {size}: PoH-HRM is {100 * whole.difference:+.1f} points over the baseline {span}"]
        for part, name in NAMED.items():
            if part in known.index:
                row = known.loc[part]
                sure = "" if row.low > 0 or row.high < 0 else ", not told from 0"
                words.append(f"{name} {100 * row.difference:+.1f}{sure}")
        yield "; ".join(words) + "."


def probe_table(records):
    names = ["accuracy", "uniform_gates_accuracy", "frozen_slow_accuracy", "routing_entropy"]
    some = records[records["uniform_gates_accuracy"].notna()]
    table = some.groupby(["size", "arch"], as_index=False)[names].mean()
    return table.rename(columns={"accuracy": "as_trained"})


def advantages(records, metric="accuracy") -> pd.DataFrame:
    """Seeds x sizes: PoH-HRM minus baseline; sizes that have both arms in every seed."""
    columns = {size: difference(records, size, "poh_hrm", "baseline", metric) for size in sizes(records)}
    most = max(map(len, columns.values()), default=0)
    return pd.DataFrame({size: values for size, values in columns.items() if most and len(values) == most})


def verdicts(records, out):
    table = advantages(records)
    each = {size: interval(table[size]) for size in table}
    if len(table):
        whole = interval(table.mean(axis=1))
        floor = records[["random_accuracy", "manhattan_accuracy"]].max(axis=1)
        for arm in (a for a in MAIN if a in set(records["arch"])):
            some = records["arch"] == arm
            ratio = (records.loc[some, "accuracy"] / floor[some]).to_numpy()
            mean, low, high = interval(ratio)
            verdict = "undecided" if np.isnan(low) else stats.verdict((low, high), null=3.0)
            out.verdict(f"H0 {arm}", f"{arm} learns: at least 3 times the better floor", verdict, f"x{mean:.1f}",
                        None if np.isnan(low) else (low, high), f"{some.sum()} cells")  # fmt: skip
        if not np.isnan(whole[1]):
            out.verdict("Q", "PoH-HRM solves more mazes than the baseline", stats.verdict(whole[1:]),
                        f"{100 * whole[0]:+.1f} points", (100 * whole[1], 100 * whole[2]),
                        f"{len(table)} seeds, mean over {len(table.columns)} sizes, same mazes")  # fmt: skip
    claims = {
        "H1": "U-shape: the baseline wins at the smallest size, PoH-HRM from medium on",
        "H2": "Linear scaling: both improve with size at a constant advantage of PoH-HRM",
        "H3": "Early saturation: both are flat from medium size on",
    }
    if len(table.columns) < 3 or len(table) < 2:
        why = f"needs three sizes and two seeds of both arms; has {len(table.columns)} and {len(table)}"
        for id, claim in claims.items():
            out.verdict(id, claim, "undecided", why=why)
        return
    small, large = table.columns[0], table.columns[-1]
    first, last = each[small], each[large]
    u_shape = "supported" if first[2] < 0 < last[1] else "refuted" if first[1] > 0 or last[2] < 0 else "undecided"
    effect = f"{100 * first[0]:+.1f} points at {small}, {100 * last[0]:+.1f} at {large}"
    out.verdict("H1", claims["H1"], u_shape, effect, percent(first), "points; interval at the smallest size")
    change = interval(table[large] - table[small])
    growth = {arm: growth_of(records, arm, (small, large)) for arm in MAIN}
    parts = [stats.verdict_within(change[1:], (-MARGIN, MARGIN)), *(stats.verdict(g[1:]) for g in growth.values())]
    why = "; ".join(f"{arm} {100 * g[0]:+.1f} points from smallest to largest" for arm, g in growth.items())
    effect = f"advantage changes by {100 * change[0]:+.1f} points"
    out.verdict("H2", claims["H2"], all_of(parts), effect, percent(change), why)
    middle = "medium" if "medium" in table.columns else table.columns[len(table.columns) // 2]
    flat = {arm: growth_of(records, arm, (middle, large)) for arm in MAIN}
    parts = [stats.verdict_within(g[1:], (-MARGIN, MARGIN)) for g in flat.values()]
    why = f"points from {middle} to {large}; flat means within {100 * MARGIN:.0f}"
    effect = "; ".join(f"{arm} {100 * g[0]:+.1f}" for arm, g in flat.items())
    out.verdict("H3", claims["H3"], all_of(parts), effect, why=why)


def percent(value) -> tuple[float, float]:
    return 100 * value[1], 100 * value[2]


def all_of(parts) -> str:
    """The verdict of a claim that needs each of its parts."""
    if "refuted" in parts:
        return "refuted"
    return "supported" if set(parts) == {"supported"} else "undecided"


def growth_of(records, arm, columns):
    """Accuracy at the last size minus that at the first, over seeds."""
    ends = [of(records, size, arm).set_index("seed")["accuracy"] for size in (columns[0], columns[-1])]
    return interval((ends[1] - ends[0]).dropna())


def mean_curve(records, arms, metric):
    rows = []
    for size in sizes(records):
        for arm in arms:
            some = of(records, size, arm)
            if len(some):
                mean, low, high = interval(some[metric])
                rows.append((some["n_params"].iloc[0], arm, mean, low, high))
    return pd.DataFrame(rows, columns=["n_params", "arch", metric, "low", "high"])


def scaling_figure(records):
    fig, panels = plots.figures(2, rows=2, size=(10, 7.6))
    for ax, metric in zip(panels[:2], ("accuracy", "optimality"), strict=True):
        plots.curves(ax, mean_curve(records, MAIN, metric), "n_params", metric, "arch", plots.looks(MAIN), labels=False)
        plots.log_x(ax, ticks=records["n_params"])
        ax.set(title=metric, xlabel="parameters", ylim=(-0.02, 1.02))
    panels[0].legend(loc="best")
    for ax, metric in zip(panels[2:], ("accuracy", "optimality"), strict=True):
        table = advantages(records, metric)
        for i, size in enumerate(table):
            mean, low, high = interval(table[size])
            bars = None if np.isnan(low) else [[100 * (mean - low)], [100 * (high - mean)]]
            ax.bar(i, 100 * mean, color=plots.OKABE_ITO[2 if mean > 0 else 1], yerr=bars, capsize=3)
        ax.set_xticks(range(len(table.columns)), list(table.columns))
        plots.reference(ax, y=0.0)
        ax.set(title=f"PoH advantage, {metric}", ylabel="points")
    return fig


def learning_figure(records, out):
    def line(some):
        mean = np.mean([smooth(out.series(key)["losses"]) for key in some["key"]], axis=0)
        return (np.arange(len(mean)) + 0.5) / len(mean), mean

    return size_figure(records, line, "share of the steps", "training loss, nats", marks=False)


def accuracy_figure(records, out):
    """None where a record is older than this series."""
    if not all("accuracy_by_step" in out.series(key) for key in records["key"]):
        return None

    def line(some):
        kept = [out.series(key) for key in some["key"]]
        steps = np.array(kept[0]["judged_steps"])
        return steps / some["steps"].iloc[0], np.mean([s["accuracy_by_step"] for s in kept], axis=0)

    return size_figure(records, line, "share of the steps", "accuracy", whole=False)


def smooth(losses, parts=50):
    """The means of consecutive parts of a curve."""
    return np.array([part.mean() for part in np.array_split(losses, min(parts, len(losses)))])


def iteration_figure(records, out):
    def line(some):
        mean = np.mean([out.series(key)["accuracy_by_iteration"] for key in some["key"]], axis=0)
        return np.arange(1, len(mean) + 1), mean

    return size_figure(records, line, "iteration r", "accuracy")


def length_figure(records, out):
    """Quarters of the test mazes by length of their solution."""

    def line(some):
        kept = [out.series(key) for key in some["key"]]
        length, solved = (np.concatenate([s[name] for s in kept]) for name in ("length", "solved"))
        quarters = np.array_split(np.argsort(length, kind="stable"), min(4, len(length)))
        return [length[q].mean() for q in quarters], [solved[q].mean() for q in quarters]

    return size_figure(records, line, "cells of the solution", "accuracy")


def size_figure(records, line, xlabel, ylabel, marks=True, whole=True):
    """A panel a size, a line an arm: `line` gives the x and y of the records of both."""
    names = sizes(records)
    fig, panels = plots.figures(len(names), sharey=True, size=(3.4 * len(names) + 2, 3.8))
    for ax, size in zip(panels, names, strict=True):
        for arm, look in plots.looks(ARMS).items():
            some = of(records, size, arm)
            if len(some):
                style = {"color": look.colour, "linestyle": look.dash, "marker": look.marker if marks else None}
                ax.plot(*line(some), **style, label=arm)
        ax.set(title=size, xlabel=xlabel)
        ax.xaxis.get_major_locator().set_params(integer=marks and whole)
    panels[0].set_ylabel(ylabel)
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.02))
    return fig


def larger_figure(records, out, trained):
    rows = []
    for row in records.itertuples():
        kept = out.series(row.key)
        pairs = zip([trained, *kept["larger_sizes"]], [row.accuracy, *kept["larger_accuracy"]], strict=True)
        rows += [(row.size, row.arch, n, accuracy) for n, accuracy in pairs]
    table = pd.DataFrame(rows, columns=["size", "arch", "n", "accuracy"])
    if table["n"].nunique() < 2:
        return None
    names = sizes(records)
    fig, panels = plots.figures(len(names), sharey=True, size=(3.4 * len(names) + 2, 3.8))
    for ax, size in zip(panels, names, strict=True):
        mean = table[table["size"] == size].groupby(["arch", "n"], as_index=False)["accuracy"].mean()
        plots.curves(ax, mean, "n", "accuracy", "arch", plots.looks(ARMS), labels=size == names[-1])
        ax.set(title=size, xlabel="side of the maze")
    panels[0].set_ylabel("accuracy")
    return fig


def sample_figure(records, out):
    """Walls in black, the walks of both main arms over them, of the largest size."""
    size, arms = sizes(records)[-1], [a for a in MAIN if a in set(records["arch"])] or list(ARMS[:1])
    rows = {arm: of(records, size, arm) for arm in arms}
    rows = {arm: some.iloc[0] for arm, some in rows.items() if len(some)}
    kept = {arm: out.series(row["key"]) for arm, row in rows.items()}
    count = min(len(k["sample_open"]) for k in kept.values())
    fig, panels = plots.figures(count, size=(3.2 * count, 4.4))
    for i, ax in enumerate(panels):
        first = next(iter(kept.values()))
        draw_maze(ax, first["sample_open"][i], first["sample_start"][i], first["sample_goal"][i])
        for shift, (arm, k) in enumerate(kept.items()):
            path = k["sample_path"][i]
            path = path[path >= 0]
            n = round(len(k["sample_open"][i]) ** 0.5)
            look = plots.looks(ARMS)[arm]
            offset = 0.12 * (2 * shift - len(kept) + 1)
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


def efficiency_table(records):
    """PoH at N parameters beside the baseline at 1.5 N and 2 N, interpolated between its sizes in log parameters."""
    rows = []
    base = (
        records[records["arch"] == "baseline"].groupby("size")[["n_params", "accuracy"]].mean().sort_values("n_params")
    )
    for size in sizes(records):
        mine = of(records, size, "poh_hrm")
        for times in (1.5, 2.0) if len(mine) and len(base) else ():
            count, accuracy = mine[["n_params", "accuracy"]].mean()
            if base["n_params"].min() <= times * count <= base["n_params"].max():
                there = np.interp(np.log(times * count), np.log(base["n_params"]), base["accuracy"])
                rows.append((size, count, accuracy, times, there, accuracy - there))
    columns = ["size", "poh_params", "poh_accuracy", "times", "baseline_accuracy", "difference"]
    return pd.DataFrame(rows, columns=columns)


def checklist(records):
    """The seed's questions, each with what these records say."""
    table = advantages(records)
    if table.empty:
        yield "- Both main arms are needed for every question of the list; they are not in these records."
        return
    means = {size: interval(table[size]) for size in table}

    def told(value):
        mean, low, high = value
        sure = "one seed" if np.isnan(low) else f"[{100 * low:+.1f}, {100 * high:+.1f}]"
        return f"{100 * mean:+.1f} points {sure}"

    yield (
        "- Does the advantage exist at all sizes? " + "; ".join(f"{size} {told(v)}" for size, v in means.items()) + "."
    )
    won = next((f"from {size}" for size, (_, low, _) in means.items() if low > 0), "at none with an interval above 0")
    yield f"- At what size does PoH-HRM start winning? {won.capitalize()}."
    if len(means) > 2:
        grow = interval(table.iloc[:, -1] - table.iloc[:, 0])
        yield f"- Does the advantage grow with size? From smallest to largest by {told(grow)}."
        flat = {arm: growth_of(records, arm, [table.columns[-2], table.columns[-1]]) for arm in MAIN}
        yield (
            "- Is there a saturation point? Last step in size: "
            + "; ".join(f"{a} {told(g)}" for a, g in flat.items())
            + "."
        )
    else:
        yield f"- Does the advantage grow with size, is there a saturation point? {len(means)} size(s): cannot be said."
    optimality = interval(advantages(records, "optimality").mean(axis=1))
    accuracy = interval(table.mean(axis=1))
    both = f"{told(accuracy)} in accuracy, {told(optimality)} in optimality"
    yield f"- Accuracy or optimality? {both} (one number on perfect mazes)."
    table = efficiency_table(records)
    better = [f"{r.size} {100 * r.difference:+.1f} points" for r in table.itertuples() if r.times == 2]
    yield f"- PoH at N against the baseline at 2N: {'; '.join(better) or 'no larger baseline in these records'}."


def seed_files(records, setting, out):
    """The seed's own JSON and text, and beside its keys ours; accuracies in percent, means over seeds."""
    keys = {"maze_size": "maze_size", "n_train": "train", "n_test": "test", "epochs": "epochs", "R": "R", "T": "T"}
    rows = []
    for size in sizes(records):
        base, poh = of(records, size, "baseline"), of(records, size, "poh_hrm")
        if len(base) and len(poh):
            row = {"size": size}
            for name, some in (("baseline", base), ("poh", poh)):
                row |= {f"{name}_params": int(some["n_params"].iloc[0]), f"{name}_acc": 100 * some["accuracy"].mean(),
                        f"{name}_opt": 100 * some["optimality"].mean()}  # fmt: skip
            row |= {f"poh_advantage_{m}": row[f"poh_{m}"] - row[f"baseline_{m}"] for m in ("acc", "opt")}
            rows.append(row)
    known = {"seeds": int(records["seed"].nunique()), "scale": records["scale"].iloc[0]}
    floors = {
        name: 100 * records.groupby("seed")[f"{name}_accuracy"].first().mean() for name in ("random", "manhattan")
    }
    config = {name: setting[field] for name, field in keys.items()}
    content = {"config": config, "results": rows, **known, "floors": floors}
    n = setting["maze_size"]
    out.file(f"scaling_results_maze{n}.json", json.dumps(content, indent=2) + "\n")
    lines = [
        f"PoH-HRM against a baseline transformer, {n} x {n} mazes, means over {known['seeds']} seed(s), percent",
        f"scale {known['scale']}; {setting['test']} test mazes a seed; a walk without a model: random "
        f"{floors['random']:.1f}, manhattan {floors['manhattan']:.1f}; intervals and controls are in summary.md",
        "",
    ]
    lines.append(f"{'size':8}{'baseline':>22}{'PoH-HRM':>22}{'advantage':>12}")
    for row in rows:
        sides = (
            f"{row[f'{a}_acc']:.1f} / {row[f'{a}_opt']:.1f} ({plots.si(row[f'{a}_params'])})"
            for a in ("baseline", "poh")
        )
        lines.append(
            f"{row['size']:8}" + "".join(f"{side:>22}" for side in sides) + f"{row['poh_advantage_acc']:>+12.1f}"
        )
    if rows:
        mean = np.mean([row["poh_advantage_acc"] for row in rows])
        best = {arm: max(rows, key=lambda r, a=arm: r[f"{a}_acc"])["size"] for arm in ("baseline", "poh")}
        lines += [
            "",
            f"average PoH advantage: {mean:+.1f} points",
            f"best: baseline at {best['baseline']}, PoH-HRM at {best['poh']}",
        ]
    out.file(f"scaling_summary_maze{n}.txt", "\n".join(lines) + "\n")

"""Ratio of the time of a plain eager loop to that of each of ours, and the rates of all."""

from pathlib import Path

from mlexp.analysis import plots
from mlexp.analysis.tables import pair_table
from mlexp.study import load

TARGETS = load(Path(__file__).with_name("bench_training_speed.py")).TARGETS
ABOUT = """
Ratio of times, plain over ours, the same steps of the same model in one run: above 1 ours is faster. Compilation is not
in it. FLOP/s of the plain loop show what there is to win.
"""


def report(records, out):
    table, device = ratio_table(out.data), records["device"].iloc[0]
    out.heading("Speed")
    out.text(ABOUT)
    out.table(table, "training_speed.csv", f"Speed-up over a plain eager loop, geometric mean over blocks, {device}.")
    out.table(rate_table(records), "rates.csv", "Rates of every loop, medians over blocks.")
    out.figure(
        ratio_figure(out.data, table, device), "training_speed.svg", finding(table),
        f"Time of a plain eager loop over ours, geometric mean over blocks, {device}; dotted: what was asked for",
        "95 % t interval over blocks",
    )  # fmt: skip


def ratio_table(data):
    """A row a workload and loop of ours, in the order in which they were measured."""
    pairs = {name: ("plain", name) for name in data.arms if name != "plain"}
    table = pair_table(data, pairs, "workload", "wall_s", ratio=True)
    table = table.rename(columns={"name": "loop", "value": "ratio"})
    order = {name: i for i, name in enumerate(data.records["workload"].unique())}
    table = table.sort_values("workload", key=lambda names: names.map(order), kind="stable", ignore_index=True)
    return table[["workload", "loop", "ratio", "low", "high", "blocks"]]


def rate_table(records):
    rates = records.assign(
        step_ms=1e3 * records["wall_s"] / records["steps"],
        tokens_per_s=records["n_tokens"] / records["wall_s"],
        gflop_per_s=records["flops"] / records["wall_s"] / 1e9,
    )
    columns = ["step_ms", "tokens_per_s", "gflop_per_s", "peak_bytes"]
    return rates.groupby(["workload", "loop"], as_index=False, sort=False)[columns].median()


def finding(table) -> str:
    """The better loop's speed-up in each workload."""
    best = table.loc[table.groupby("workload", sort=False)["ratio"].idxmax()] if len(table) else table
    texts = [f"{row.workload} {row.ratio:.2f}x" for row in best.itertuples()]
    return (
        f"The better of our loops over a plain eager one: {', '.join(texts)}" if texts else "No loop but the plain one"
    )


def ratio_figure(data, table, device):
    """A row a workload and loop, with the workload's target beside it."""
    fig, ax = plots.figure(xlabel="plain / ours", size=(7.2, 0.36 * len(table) + 1.2))
    rows = table.assign(name=table["workload"] + " " + table["loop"], value=table["ratio"])
    looks = {row.name: data.looks[row.loop] for row in rows.itertuples(index=False)}
    plots.intervals(ax, rows, "name", looks, null=1.0)
    for i, workload in enumerate(table["workload"]):
        if target := TARGETS.get(workload.partition("_")[0], {}).get(device.partition(":")[0]):
            ax.plot([target] * 2, [i - 0.45, i + 0.45], color=plots.INK, linestyle=":", linewidth=1.2)
    return fig

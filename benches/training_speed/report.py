"""Ratio of the time of a plain eager loop to that of the shared loop, as it is and compiled, and the verdicts."""

import numpy as np
import pandas as pd

from mlexp.analysis import plots, stats
from mlexp.analysis.results import paired

LOOPS = ("plain", "shared", "compiled")
LEAST = {"maze": {"cpu": 1.5, "cuda": 3.0}, "attention": {"cpu": 1.3, "cuda": 1.3}}  # what was asked for


def report(records, out):
    table = ratio_table(records)
    device = records["device"].iloc[0]
    for subject, least in LEAST.items():
        mine = table[table["workload"].str.startswith(subject)]
        for workload, arms in mine.groupby("workload", sort=False):
            best = arms.loc[arms["ratio"].idxmax()]
            known = not np.isnan(best["low"])
            verdict = stats.verdict((best["low"], best["high"]), null=least[device]) if known else "undecided"
            claim = f"{workload}: the better of our loops is at least {least[device]}x a plain eager one"
            out.verdict(workload, claim, verdict, f"x{best['ratio']:.2f} ({best['loop']})",
                        (best["low"], best["high"]) if known else None, f"{best['blocks']} blocks")  # fmt: skip
    out.heading("Speed")
    out.text("Ratio of times, plain over ours, the same steps of the same model in one run: above 1 ours is faster. "
             "Compilation is not in it. FLOP/s of the plain loop tell what there is to win.")  # fmt: skip
    out.table(table, "training_speed.csv", f"Speed-up over a plain eager loop, geometric mean over blocks, {device}.")
    out.table(rate_table(records), "rates.csv", "Rates of every loop, medians over blocks.")
    out.figure(ratio_figure(table), "training_speed.png", f"Speed-up over a plain eager loop, 95 % interval, {device}.")


def ratio_table(records) -> pd.DataFrame:
    rows = []
    for workload in records["workload"].unique():
        mine = records[records["workload"] == workload]
        for loop in (a for a in LOOPS[1:] if {a, "plain"} <= set(mine["loop"])):
            ratio = paired(mine, "wall_s", arm="loop", of="plain", to=loop, over=["repeat"])["ratio"].to_numpy()
            one = (float(ratio[0]), np.nan, np.nan)
            mean, low, high = stats.mean_ratio(np.log(ratio))[:3] if len(ratio) > 1 else one
            rows.append({"workload": workload, "loop": loop, "ratio": mean, "low": low, "high": high,
                         "blocks": len(ratio)})  # fmt: skip
    return pd.DataFrame(rows, columns=["workload", "loop", "ratio", "low", "high", "blocks"])


def rate_table(records) -> pd.DataFrame:
    rates = records.assign(
        step_ms=1e3 * records["wall_s"] / records["steps"],
        tokens_per_s=records["n_tokens"] / records["wall_s"],
        gflop_per_s=records["flops"] / records["wall_s"] / 1e9,
    )
    columns = ["step_ms", "tokens_per_s", "gflop_per_s", "peak_bytes"]
    return rates.groupby(["workload", "loop"], as_index=False, sort=False)[columns].median()


def ratio_figure(table):
    fig, ax = plots.figure(xlabel="plain / ours", size=(7.2, 0.5 * len(table) + 1.4))
    rows = table.assign(name=table["workload"] + " " + table["loop"], value=table["ratio"])
    plots.intervals(ax, rows, "name", null=1.0)
    return fig

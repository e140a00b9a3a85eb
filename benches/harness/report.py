"""What the harness costs and how often each rule of its gate is wrong: the tables and figures behind the claims."""

from pathlib import Path

import numpy as np
import pandas as pd

from mlexp.analysis import plots
from mlexp.study import load

declared = load(Path(__file__).with_name("study.py"))
RULES, MEAN_RULE = declared.RULES, declared.MEAN_RULE


def report(records, out):
    if "trial" in records and records["trial"].notna().any():
        gate(records, out)
    else:
        overhead(records, out)


def overhead(records, out):
    """What the harness adds, from the runs within the cells."""
    names = ("share added to a 100 ms cell", "seconds added to an empty cell")
    found = {name: out.data.estimates[name](0.95) for name in names if name in out.data.estimates}
    rows, names = [(name, *estimate) for name, estimate in found.items()], ["value", "low", "high", "n", "method"]
    out.table(pd.DataFrame(rows, columns=["what", *names]), "overhead.csv", "Costs.")
    for row in records[records["work"] == "spin"].itertuples():
        series = out.series(row.key)
        ratios = series["cell_s"] / series["bare_s"]
        out.figure(
            pairs_figure(ratios), "share.svg",
            f"A recorded duration is {np.median(ratios):.4f}x that of its bare neighbour, in the median",
            f"cell.time over bare benchmark.pedantic, a mark a pair; dashed: 1 and {1 + declared.SHARE:g}",
            n=f"{len(ratios)} pairs", shown="folded",
        )  # fmt: skip


def gate(records, out):
    """The rules on the same comparisons."""
    seen = rules(records, out)
    counts = seen.groupby(["truth", "rule"], sort=False)["worse"].agg(comparisons="size", worse="sum").reset_index()
    verdicts = records.groupby(["truth", "ab_verdict"]).size().unstack(fill_value=0)
    out.table(
        counts.replace({"rule": RULES}), "rules.csv",
        "How often a rule says WORSE of identical code (same) and of slower code.",
    )  # fmt: skip
    out.table(verdicts.reset_index(), "ab.csv", "What mlexp ab says; AMBIGUOUS is no failure.")
    out.figure(
        ratios(seen), "ratios.svg", gate_finding(seen),
        "Head over base by rule, in rising order; above the line mean:5% fails",
        n=f"{records['trial'].nunique()} comparisons of each kind",
    )  # fmt: skip


def rules(records, out):
    """A row a comparison and rule: the ratio that it sees, and whether it says WORSE."""
    rows = []
    for record in records.itertuples():
        series = out.series(record.key)
        mean = float(np.mean(series["head_step_mean_s"]) / np.mean(series["base_step_mean_s"]))
        separate = record.head_mean_s / record.base_mean_s
        for rule, ratio, worse in (
            ("ab", record.ab_ratio, record.ab_verdict == "WORSE"),
            ("mean", mean, mean > MEAN_RULE),
            ("separate", separate, separate > MEAN_RULE),
        ):
            rows.append({"trial": record.trial, "truth": record.truth, "rule": rule, "ratio": ratio, "worse": worse})
    return pd.DataFrame(rows)


def gate_finding(seen) -> str:
    """How often each rule says WORSE of identical code."""
    same = seen[seen["truth"] == "same"].groupby("rule", sort=False)["worse"]
    texts = [f"{RULES[rule]} {int(worse.sum())} of {len(worse)}" for rule, worse in same]
    return f"WORSE of identical code: {', '.join(texts)}" if texts else "No comparison of identical code"


def ratios(seen):
    """Identical code on the left, slower code on the right."""
    truths = list(seen["truth"].unique())
    fig, panels = plots.figures(len(truths), sharey=True)
    looks = plots.looks(RULES.values())
    titles = {"same": "identical code", "longer": "slower code"}
    for ax, truth in zip(panels, truths, strict=True):
        ranked = seen[seen["truth"] == truth].replace({"rule": RULES}).sort_values("ratio")
        ranked = ranked.assign(rank=ranked.groupby("rule").cumcount() + 1)
        plots.curves(ax, ranked, "rank", "ratio", "rule", looks, labels=ax is panels[-1])
        plots.reference(ax, y=MEAN_RULE)
        ax.set(title=titles[truth], xlabel="comparison, by rank", ylabel="head / base")
    return fig


def pairs_figure(ratios):
    """The pairs, one mark each."""
    fig, ax = plots.figure(xlabel="pair", ylabel="cell.time / bare pedantic")
    ax.plot(ratios, "o", color=plots.COLOURS[0])
    plots.reference(ax, y=1.0)
    plots.reference(ax, y=1 + declared.SHARE, label="2 %")
    return fig

"""What the ruler costs (its share of a 100 ms cell, what it adds to an empty one), and how often its gate is wrong."""

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from mlexp.analysis import plots, stats

SHARE, PER_CELL_S = 0.02, 0.050  # the bounds that the claims name


RULES = {"ab": "mlexp ab", "mean": "mean:5%, same rounds", "separate": "mean:5%, two runs"}
MEAN_RULE = 1.05


def report(records, out):
    if "trial" in records and records["trial"].notna().any():
        gate(records, out)
    else:
        overhead(records, out)


def overhead(records, out):
    """H1 and H2."""
    works = {row.work: out.series(row.key) for row in records.itertuples()}
    rows = []
    if "spin" in works:
        ratios = works["spin"]["cell_s"] / works["spin"]["bare_s"]  # neighbours in one run
        cost = stats.mean_ratio(np.log(ratios))
        rows.append(("share of a 100 ms cell", cost.value - 1, cost.low - 1, cost.high - 1, cost.n, cost.method))
        out.verdict(
            "H1",
            "The ruler adds less than 2 % to a 100 ms cell, against bare benchmark.pedantic in the same run",
            stats.verdict((-cost.high, -cost.low), null=-(1 + SHARE)),
            effect=f"{100 * (cost.value - 1):+.3f} %",
            interval=(100 * (cost.low - 1), 100 * (cost.high - 1)),
            why=f"{cost.n} interleaved pairs, {cost.method}; interval in percent",
        )
        out.figure(histogram(ratios), "share.png", "A recorded duration over that of its bare neighbour.")
    if "noop" in works:
        bare, ours = (np.diff(works["noop"][f"{name}_began_s"]) for name in ("bare", "cell"))
        added = stats.mean_interval(ours - np.median(bare))
        rows.append(("added to a cell, s", added.value, added.low, added.high, added.n, added.method))
        out.verdict(
            "H2",
            "The ruler adds less than 50 ms to a cell that does nothing, peak-memory pass included",
            stats.verdict((-added.high, -added.low), null=-PER_CELL_S),
            effect=f"{1e3 * added.value:.1f} ms",
            interval=(1e3 * added.low, 1e3 * added.high),
            why=f"from one cell's start to the next, {added.n} of each; interval in ms",
        )
    out.table(pd.DataFrame(rows, columns=["what", "value", "low", "high", "n", "method"]), "overhead.csv", "Costs.")


def gate(records, out):
    """H3 to H5: the rules on the same comparisons."""
    told = rules(records, out)
    counts = told.groupby(["truth", "rule"], sort=False)["worse"].agg(comparisons="size", worse="sum").reset_index()
    said = {(row.truth, row.rule): (row.worse, row.comparisons) for row in counts.itertuples()}
    verdicts = records.groupby(["truth", "ab_verdict"]).size().unstack(fill_value=0)
    out.table(
        counts.replace({"rule": RULES}),
        "rules.csv",
        "How often a rule says WORSE of identical code (same) and of slower code.",
    )
    out.table(verdicts.reset_index(), "ab.csv", "What mlexp ab says; AMBIGUOUS is no failure.")
    out.figure(ratios(told), "ratios.png", "Head over base by rule, in rising order; above the line mean:5% fails.")
    share(
        out, "H3", "Of identical code `mlexp ab` says WORSE in fewer than one comparison of ten",
        *said["same", "ab"], below=0.1,
    )  # fmt: skip
    if ("longer", "ab") in said:
        claim = "`mlexp ab` finds code that was made slower in more than two comparisons of three"
        share(out, "H4", claim, *said["longer", "ab"], above=2 / 3)
    wide = told[told["truth"] == "same"].pivot(index="trial", columns="rule", values="worse")
    only = int((wide["separate"] & ~wide["ab"]).sum()), int((wide["ab"] & ~wide["separate"]).sum())
    claim = "Of identical code, mean:5% of two runs says WORSE more often than `mlexp ab` (of those where one does)"
    share(out, "H5", claim, only[0], sum(only), above=0.5)


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


def share(out, id, claim, count, total, above=None, below=None):
    """The verdict on a share of comparisons, by its exact interval (Clopper and Pearson 1934)."""
    low, high = binomtest(int(count), int(total)).proportion_ci(method="exact") if total else (0.0, 1.0)
    verdict = stats.verdict((low, high), null=above) if below is None else stats.verdict((-high, -low), null=-below)
    out.verdict(
        id, claim, verdict, effect=f"{count} of {total}", interval=(low, high), why="exact interval of the share"
    )


def ratios(told):
    """Identical code on the left, slower code on the right."""
    truths = list(told["truth"].unique())
    fig, panels = plots.figures(len(truths), sharey=True)
    looks = plots.looks(RULES.values())
    titles = {"same": "identical code", "longer": "slower code"}
    for ax, truth in zip(panels, truths, strict=True):
        ranked = told[told["truth"] == truth].replace({"rule": RULES}).sort_values("ratio")
        ranked = ranked.assign(rank=ranked.groupby("rule").cumcount() + 1)
        plots.curves(ax, ranked, "rank", "ratio", "rule", looks, labels=ax is panels[-1])
        plots.reference(ax, y=MEAN_RULE)
        ax.set(title=titles[truth], xlabel="comparison, by rank", ylabel="head / base")
    return fig


def histogram(ratios):
    """The pairs, one mark each."""
    fig, ax = plots.figure("A 100 ms cell, ruler over bare", xlabel="pair", ylabel="cell.time / bare pedantic")
    ax.plot(ratios, "o", color=plots.OKABE_ITO[0])
    plots.reference(ax, y=1.0)
    plots.reference(ax, y=1 + SHARE, label="2 %")
    return fig

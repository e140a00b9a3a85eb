"""What the ruler costs: its share of a 100 ms cell, and the time it adds to a cell that does nothing."""

import numpy as np
import pandas as pd

from mlexp.analysis import plots, stats

SHARE, PER_CELL_S = 0.02, 0.050  # the bounds that the claims name


def report(records, out):
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


def histogram(ratios):
    """The pairs, one mark each."""
    fig, ax = plots.figure("A 100 ms cell, ruler over bare", xlabel="pair", ylabel="cell.time / bare pedantic")
    ax.plot(ratios, "o", color=plots.OKABE_ITO[0])
    plots.reference(ax, y=1.0)
    plots.reference(ax, y=1 + SHARE, label="2 %")
    return fig

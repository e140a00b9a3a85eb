"""Time of each kernel on each backend, its ratio to eager torch, its share of the copy bandwidth, and the verdicts."""

import math
from statistics import NormalDist

import numpy as np
import pandas as pd

from mlexp.analysis import plots, stats
from mlexp.analysis.results import paired

KERNELS = ("entropy_sample", "fork", "tree_attention")
BACKENDS = ("eager", "compile", "triton", "cuda")
OURS = ("triton", "cuda")
LEAST_SPEEDUP, LEAST_SHARE = 3.0, 0.7  # the bounds that the claims name
CLAIMS = {
    "H1": "entropy_sample in Triton or CUDA is at least 3x faster than the eager chain at 20 x 50257",
    "H2": "entropy_sample in Triton or CUDA reaches at least 70 % of the copy bandwidth at 4096 x 50257",
    "H3": "tree_attention beats the eager reference at every shape",
}
ABOUT = """
`time_us` is the median round, `low_us` and `high_us` its 95 % interval from the spread of the rounds of one process.
`speedup` is eager's time over the backend's, paired by shape, with its own interval. `share` is bytes_moved / time /
copy bandwidth: 1 would be as fast as a copy of as many bytes, and what fits a cache can exceed it.
"""


def report(records, out):
    table = speed_table(records)
    verdicts(records, table, out)
    out.heading("Speed")
    out.text(ABOUT + timer_words(records))
    out.table(table, "kernel_speed.csv", f"Every kernel, shape and backend on {where(records)}.")
    for kernel in (k for k in KERNELS if k in set(table["kernel"])):
        caption = f"{kernel} on {where(records)}: time of a call and share of the copy bandwidth, by shape and backend."
        out.figure(kernel_figure(table[table["kernel"] == kernel], kernel, records), f"{kernel}.png", caption)


def where(records) -> str:
    return f"{records['device'].iloc[0]}, {records['dtype'].iloc[0]}"


def timer_words(records) -> str:
    timers = set(records["timer"])
    told = {
        "cuda_events": "Times are the device's own (CUDA events, L2 flushed, launches queued ahead).",
        "host_clock": "Times are the host's clock: there is no GPU in these records.",
    }
    copies = records["copy_bytes_per_s"]
    return " ".join(told[t] for t in sorted(timers)) + f" A large copy moves {copies.median() / 1e9:.4g} GB/s."


def log_spread(record) -> float:
    """Standard error of the log of a record's median, for normal rounds: 1.253 sd / sqrt(rounds), sd = IQR / 1.349."""
    return 1.253 / 1.349 * record["wall_iqr_s"] / record["wall_s"] / math.sqrt(record["rounds"])


def around(value: float, spread: float, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a positive estimate whose logarithm has this standard error."""
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * spread
    return value * math.exp(-half), value * math.exp(half)


def speed_table(records) -> pd.DataFrame:
    """A row for each record, by kernel, then bytes, then backend."""
    rows = []
    eager = speedups(records)
    spreads = {(r["kernel"], r["shape"], r["backend"]): log_spread(r) for r in records.to_dict("records")}
    for r in records.to_dict("records"):
        block, backend = (r["kernel"], r["shape"]), r["backend"]
        low, high = around(r["wall_s"], spreads[*block, backend])
        row = {"kernel": r["kernel"], "shape": r["shape"], "backend": backend, "time_us": 1e6 * r["wall_s"]}
        row |= {"low_us": 1e6 * low, "high_us": 1e6 * high, "rounds": r["rounds"]}
        row |= dict.fromkeys(("speedup", "speedup_low", "speedup_high"), math.nan)
        if (ratio := eager.get((*block, backend))) is not None:
            ends = around(ratio, math.hypot(spreads[*block, "eager"], spreads[*block, backend]))
            row |= {"speedup": ratio, "speedup_low": ends[0], "speedup_high": ends[1]}
        rate = r["bytes_moved"] / r["wall_s"]
        row |= {"share": rate / r["copy_bytes_per_s"], "gb_per_s": rate / 1e9, "bytes_moved": r["bytes_moved"]}
        rows.append(row | {"kernel_backend": r["kernel_backend"]})
    order = {name: i for i, name in enumerate((*KERNELS, *BACKENDS))}
    return pd.DataFrame(rows).sort_values(
        ["kernel", "bytes_moved", "shape", "backend"],
        key=lambda column: column.map(order) if column.name in ("kernel", "backend") else column,
        ignore_index=True,
    )


def speedups(records) -> dict[tuple, float]:
    """(kernel, shape, backend) -> eager's time over the backend's, where both were measured."""
    found = {}
    if "eager" in set(records["backend"]):
        for backend in set(records["backend"]) - {"eager"}:
            pairs = paired(records, "wall_s", arm="backend", of="eager", to=backend, over=["kernel", "shape"])
            found |= {(p.kernel, p.shape, backend): p.ratio for p in pairs.itertuples()}
    return found


def kernel_figure(table, kernel, records):
    """Marks side by side at each shape: left the time, right the share of a copy's bandwidth."""
    shapes, present = list(dict.fromkeys(table["shape"])), [b for b in BACKENDS if b in set(table["backend"])]
    fig, (times, shares) = plots.figures(2, size=(12.4, 4.2))
    for i, backend in enumerate(present):
        look, mine = plots.looks(BACKENDS)[backend], table[table["backend"] == backend]
        x = mine["shape"].map(shapes.index).to_numpy(float) + 0.16 * (i - (len(present) - 1) / 2)
        style = {"color": look.colour, "marker": look.marker, "linestyle": "none", "capsize": 2.5, "label": backend}
        spread = np.array([mine["time_us"] - mine["low_us"], mine["high_us"] - mine["time_us"]])
        times.errorbar(x, mine["time_us"], spread, **style)
        ends = mine["share"] * (mine["time_us"] / mine["high_us"]), mine["share"] * (mine["time_us"] / mine["low_us"])
        shares.errorbar(x, mine["share"], np.array([mine["share"] - ends[0], ends[1] - mine["share"]]), **style)
    for ax in (times, shares):
        ax.set_xticks(range(len(shapes)), [shape.replace("_", "\n") for shape in shapes])
        ax.set_xlim(-0.5, len(shapes) - 0.5)
        plots.log_y(ax)
    times.set(title=f"{kernel} on {where(records)}", ylabel="microseconds a call, median")
    shares.set(title="Share of the copy bandwidth", ylabel="bytes moved / time / copy bandwidth")
    plots.reference(shares, y=1.0)
    shares.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False)
    return fig


def verdicts(records, table, out):
    if records["device"].iloc[0] != "cuda":
        for id, claim in CLAIMS.items():
            out.verdict(id, claim, "undecided", why="no GPU records: these are of a CPU, where only the reference runs")
        return
    best(out, table, "H1", "rows20", "speedup", LEAST_SPEEDUP, "x{:.2f}")
    best(out, table, "H2", "rows4096", "share", LEAST_SHARE, "{:.0%} of a copy")
    everywhere(out, table)


def best(out, table, id, shape, quantity, least, words):
    """A claim of the faster of our backends. Picking it is a second look: each interval is Bonferroni's."""
    mine = table[(table["kernel"] == "entropy_sample") & (table["shape"] == shape) & table["backend"].isin(OURS)]
    mine = mine.dropna(subset=[quantity])
    if mine.empty:
        needed = f"entropy_sample at {shape} in triton or cuda" + (", and eager" if quantity == "speedup" else "")
        out.verdict(id, CLAIMS[id], "undecided", why=f"no records of {needed}")
        return
    row = mine.loc[mine[quantity].idxmax()]
    spread = math.log(
        row["speedup_high"] / row["speedup"] if quantity == "speedup" else row["high_us"] / row["time_us"]
    )
    interval = around(row[quantity], spread / NormalDist().inv_cdf(0.975), 1 - 0.05 / len(mine))
    why = f"{row['backend']}, the faster of {len(mine)}; {row['rounds']} rounds of one process"
    effect = words.format(row[quantity])
    out.verdict(id, CLAIMS[id], stats.verdict(interval, null=least), effect, interval, why)


def everywhere(out, table):
    """Supported if every shape's interval lies above 1 (a claim of all needs no correction), refuted by one below."""
    attention = table[table["kernel"] == "tree_attention"]
    mine = attention[attention["backend"] == "triton"].dropna(subset=["speedup"])
    left = sorted(set(attention["shape"]) - set(mine["shape"]))
    if mine.empty:
        out.verdict("H3", CLAIMS["H3"], "undecided", why="no records of tree_attention in triton, and eager")
        return
    each = [stats.verdict(tuple(ends), null=1.0) for ends in mine[["speedup_low", "speedup_high"]].to_numpy()]
    verdict = stats.Verdict.UNDECIDED
    if stats.Verdict.REFUTED in each:
        verdict = stats.Verdict.REFUTED
    elif set(each) == {stats.Verdict.SUPPORTED} and not left:
        verdict = stats.Verdict.SUPPORTED
    worst = mine.loc[mine["speedup"].idxmin()]
    why = f"triton, {len(mine)} shapes, least at {worst['shape']}" + (
        f"; not measured: {', '.join(left)}" if left else ""
    )
    interval = worst["speedup_low"], worst["speedup_high"]
    out.verdict("H3", CLAIMS["H3"], verdict, f"at least x{worst['speedup']:.2f}", interval, why)

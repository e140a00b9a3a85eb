"""Time of each kernel on each backend, its ratio to eager torch, its share of the copy bandwidth."""

import math

import numpy as np
import pandas as pd

from mlexp.analysis import intervals, plots
from mlexp.analysis.shown import reach

KERNELS = ("entropy_sample", "fork", "tree_attention")
ABOUT = """
`time_us` is the median round, `low_us` and `high_us` its 95 % interval from the spread of the rounds of one process.
`speedup` is eager's time over the backend's, paired by shape, with its own interval. `share` is bytes_moved / time /
copy bandwidth: 1 would be as fast as a copy of as many bytes, and what fits a cache can exceed it.
"""
TIMERS = {
    "cuda_events": "Times are the device's own (CUDA events, L2 flushed, launches queued ahead).",
    "host_clock": "Times are the host's clock: there is no GPU in these records.",
}


def report(records, out):
    table = speed_table(records)
    out.heading("Speed")
    out.text(ABOUT + timer_sentence(records))
    out.table(table, "kernel_speed.csv", f"Every kernel, shape and backend on {where(records)}.")
    for kernel in dict.fromkeys(table["kernel"]):
        rows = table[table["kernel"] == kernel]
        measure = f"Time of a call of {kernel} on {where(records)}, and its share of the copy bandwidth"
        bars = "95 % interval from the spread of the rounds of one process"
        figure = kernel_figure(out.data, rows, kernel, records)
        out.figure(
            figure, f"{kernel}.svg", kernel_finding(rows, kernel), measure, bars, n=f"{rows['shape'].nunique()} shapes"
        )


def where(records) -> str:
    return f"{records['device'].iloc[0]}, {records['dtype'].iloc[0]}"


def timer_sentence(records) -> str:
    copy = records["copy_bytes_per_s"].median() / 1e9
    return " ".join(TIMERS[timer] for timer in sorted(set(records["timer"]))) + f" A large copy moves {copy:.4g} GB/s."


def spread_of(record) -> float:
    return intervals.timing_spread(record["wall_s"], record["wall_iqr_s"], record["rounds"])


def speed_table(records) -> pd.DataFrame:
    """A row for each record, by kernel, then bytes, then backend."""
    cells = {(r["kernel"], r["shape"], r["backend"]): r for r in records.to_dict("records")}
    rows = []
    for (kernel, shape, backend), r in cells.items():
        low, high = intervals.around(r["wall_s"], spread_of(r))
        row = {"kernel": kernel, "shape": shape, "backend": backend, "time_us": 1e6 * r["wall_s"]}
        row |= {"low_us": 1e6 * low, "high_us": 1e6 * high, "rounds": r["rounds"]}
        row |= dict.fromkeys(("speedup", "speedup_low", "speedup_high"), math.nan)
        if backend != "eager" and (eager := cells.get((kernel, shape, "eager"))):
            ratio = eager["wall_s"] / r["wall_s"]
            ends = intervals.around(ratio, math.hypot(spread_of(eager), spread_of(r)))
            row |= {"speedup": ratio, "speedup_low": ends[0], "speedup_high": ends[1]}
        rate = r["bytes_moved"] / r["wall_s"]
        row |= {"share": rate / r["copy_bytes_per_s"], "gb_per_s": rate / 1e9, "bytes_moved": r["bytes_moved"]}
        rows.append(row | {"kernel_backend": r["kernel_backend"]})
    order = {name: i for i, name in enumerate((*KERNELS, "eager", "compile", "triton", "cuda"))}
    return pd.DataFrame(rows).sort_values(
        ["kernel", "bytes_moved", "shape", "backend"],
        key=lambda column: (
            column.map(lambda name: order.get(name, len(order))) if column.name in ("kernel", "backend") else column
        ),
        ignore_index=True,
    )


def kernel_finding(rows, kernel) -> str:
    """How much faster than eager torch each backend is, over the shapes."""
    known = rows.dropna(subset=["speedup"]).groupby("backend", sort=False)["speedup"]
    texts = [f"{backend} {reach(values, 'ratio')}" for backend, values in known]
    return f"{kernel} over eager torch: {', '.join(texts)}" if texts else f"{kernel}: eager torch alone was timed"


def kernel_figure(data, table, kernel, records):
    """Marks side by side at each shape: left the time, right the share of a copy's bandwidth."""
    shapes, present = list(dict.fromkeys(table["shape"])), [b for b in data.arms if b in set(table["backend"])]
    fig, (times, shares) = plots.figures(2, size=(12.4, 4.2))
    for i, backend in enumerate(present):
        look, rows = data.looks[backend], table[table["backend"] == backend]
        x = rows["shape"].map(shapes.index).to_numpy(float) + 0.16 * (i - (len(present) - 1) / 2)
        style = {"color": look.colour, "marker": look.marker, "linestyle": "none", "capsize": 2.5, "label": backend}
        spread = np.array([rows["time_us"] - rows["low_us"], rows["high_us"] - rows["time_us"]])
        times.errorbar(x, rows["time_us"], spread, **style)
        ends = rows["share"] * (rows["time_us"] / rows["high_us"]), rows["share"] * (rows["time_us"] / rows["low_us"])
        shares.errorbar(x, rows["share"], np.array([rows["share"] - ends[0], ends[1] - rows["share"]]), **style)
    for ax in (times, shares):
        ax.set_xticks(range(len(shapes)), [shape.replace("_", "\n") for shape in shapes])
        ax.set_xlim(-0.5, len(shapes) - 0.5)
        plots.log_y(ax)
    times.set(title=f"{kernel} on {where(records)}", ylabel="microseconds a call, median")
    shares.set(title="Share of the copy bandwidth", ylabel="bytes moved / time / copy bandwidth")
    plots.reference(shares, y=1.0)
    shares.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False)
    return fig

"""The figures of attention_search: losses by arm, cache against loss, curves over position, length and training."""

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd

from mlexp.analysis import plots
from mlexp.analysis.tables import arm_table, pair_table
from mlexp.study import load

HERE = Path(__file__).parent
published = load(HERE / "original" / "published.py")
CONTROLS, AGAIN, APART = ("mla_plain", "baseline"), "again", ("again", "half_size")
FLOORS = ("uniform", "unigram", "bigram", "bayes")


def aa_band(data) -> tuple[float, float] | None:
    """Where an arm may lie that is the control: its mean loss, give or take the A/A interval."""
    pair = pair_table(data, {AGAIN: (AGAIN, CONTROLS[0])}).dropna(subset=["low"])
    if pair.empty:
        return None
    rows = data.rows("")
    middle, half = (
        rows[rows["variant"] == CONTROLS[0]]["loss_nats"].mean(),
        pair[["low", "high"]].abs().to_numpy().max(),
    )
    return middle - half, middle + half


def floor_lines(ax, data, axis="y", band=True):
    """Floors and the A/A band. A floor far from all losses would flatten the rest: it is named at the edge instead."""
    rows = data.rows("")
    values = rows["loss_nats"].astype(float)
    near, far = (values.min() - 1.2, values.max() + 1.2), []
    for name in FLOORS:
        column = rows.get(f"{name}_loss_nats")
        if column is None or column.isna().all():
            continue
        at = float(column.astype(float).mean())
        if not near[0] <= at <= near[1]:
            far.append(f"{name} {at:.2f}")
        elif axis == "y":
            plots.reference(ax, y=at, label=f"{name} {at:.2f}")
        else:
            plots.reference(ax, x=at)
            ax.annotate(f"{name} {at:.2f}", (at, 0.01), xycoords=("data", "axes fraction"), xytext=(2, 0),
                        textcoords="offset points", fontsize=8, rotation=90, va="bottom")  # fmt: skip
    if band and (ends := aa_band(data)):
        (ax.axhspan if axis == "y" else ax.axvspan)(*ends, color=plots.FAINT, alpha=0.6, zorder=0, linewidth=0)
    if far:
        corner = (0.99, 0.01 if axis == "y" else 0.985)
        ax.annotate(f"out of sight: {', '.join(far)}", corner, xycoords="axes fraction", ha="right", fontsize=7.5)


def arms_figure(data, table):
    fig, ax = plots.figure("Test loss by arm", xlabel="nats a token", size=(7.6, 0.25 * len(table) + 1.6))
    plots.intervals(ax, table.rename(columns={"loss_nats": "value"}), "variant", data.looks)
    floor_lines(ax, data, axis="x")
    return fig


def unbeaten(table, cost) -> list[str]:
    """The arms that no other beats in both a cost and loss, cheapest first."""
    order = table.sort_values([cost, "loss_nats"])
    return list(order["variant"][order["loss_nats"] < order["loss_nats"].cummin().shift(fill_value=np.inf)])


def front_figure(data):
    """Cache against loss, the arms that no other beats in both joined by a line."""
    fig, ax = plots.figure("What a smaller cache costs", xlabel="bytes of cache per token (bfloat16)",
                           ylabel="test loss, nats a token", size=(8.6, 5.2))  # fmt: skip
    table = arm_table(data, "", ("kv_bytes_per_token",))
    table = table[~table["variant"].isin(APART)]
    for row in table.itertuples():
        look = data.looks[row.variant]
        bars = None if np.isnan(row.low) else [[row.loss_nats - row.low], [row.high - row.loss_nats]]
        ax.errorbar(row.kv_bytes_per_token, row.loss_nats, bars, color=look.colour, marker=look.marker, capsize=2,
                    elinewidth=0.8)  # fmt: skip
    best = table.set_index("variant").loc[unbeaten(table, "kv_bytes_per_token")]
    ax.plot(best["kv_bytes_per_token"], best["loss_nats"], color=plots.INK, linewidth=0.9, zorder=1)
    named = table[table["variant"].isin([*best.index, *CONTROLS, "nope"])].sort_values("kv_bytes_per_token")
    for i, row in enumerate(named.itertuples()):
        ax.annotate(row.variant, (row.kv_bytes_per_token, row.loss_nats), xytext=(4, -12 - 10 * (i % 2)),
                    textcoords="offset points", fontsize=7.5)  # fmt: skip
    floor_lines(ax, data)
    plots.log_x(ax, ticks=table["kv_bytes_per_token"])
    return fig


def shown_arms(data) -> list[str]:
    """Few enough to be read: best of each family, the controls, and arms that the study has never heard of."""
    means = data.rows("").groupby("variant")["loss_nats"].mean()
    families = pd.Series({name: published.family(name) for name in means.index})
    best = [means[families == family].idxmin() for family in dict.fromkeys(families)]
    known = load(HERE / "study.py").STUDY.arms
    wanted = {*best, "baseline", "mla_plain", "mla_true", "nope", "rope_small", *(set(data.arms) - set(known))}
    return [name for name in data.arms if name in wanted]


def lines(ax, data, out, curve):
    """A line an arm: `curve(series)` gives x and y of a record, averaged over seeds."""
    rows = data.rows("")
    for name in shown_arms(data):
        look = data.looks[name]
        drawn = [curve(out.series(key)) for key in rows[rows["variant"] == name]["key"]]
        ax.plot(drawn[0][0], np.mean([y for _, y in drawn], axis=0), color=look.colour, linestyle=look.dash, label=name,
                marker=look.marker if len(drawn[0][0]) < 10 else None)  # fmt: skip
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False)
    floor_lines(ax, data, band=False)


def position_figure(data, out):
    fig, ax = plots.figure("Loss by position", xlabel="tokens of context", ylabel="nats a token", size=(8, 4.4))
    lines(ax, data, out, lambda series: by_octave(series["loss_by_position"]))
    plots.log_x(ax)
    return fig


def by_octave(losses) -> tuple[list[float], list[float]]:
    """Means over the first position, the next, the two after, the four after, ...: (their middles, their losses)."""
    ends = [0, *(2**i for i in range(64) if 2**i < len(losses)), len(losses)]
    parts = list(itertools.pairwise(ends))
    return [math.sqrt((a + 1) * b) for a, b in parts], [float(np.mean(losses[a:b])) for a, b in parts]


def length_figure(data, out):
    fig, ax = plots.figure("Beyond the trained length", xlabel="context / trained context", ylabel="nats a token",
                           size=(8, 4.4))  # fmt: skip
    lines(ax, data, out, lambda series: (series["factors"], series["loss_by_factor"]))
    plots.log_x(ax, ticks=out.series(data.rows("")["key"].iloc[0])["factors"])
    return fig


def learning_figure(data, out):
    def curve(series):
        parts = np.array_split(series["losses"], min(50, len(series["losses"])))
        return (np.arange(len(parts)) + 0.5) / len(parts), [part.mean() for part in parts]

    fig, ax = plots.figure("Learning", xlabel="share of the steps", ylabel="training loss, nats", size=(8, 4.4))
    lines(ax, data, out, curve)
    return fig


CURVES = (
    (position_figure, "loss_by_position.png", "Test loss by position (means over octaves), mean over seeds."),
    (length_figure, "length.png", "The same targets read with more context than in training."),
    (learning_figure, "learning.png", "Training loss, mean over seeds."),
)

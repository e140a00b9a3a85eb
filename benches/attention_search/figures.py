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


def floor_lines(ax, data):
    """Floors and the A/A band. A floor far from all losses would flatten the rest: it is named at the edge instead."""
    rows = data.rows("")
    values = rows["loss_nats"].astype(float)
    near, far = (values.min() - 0.1, values.max() + 0.1), []
    for name in FLOORS:
        column = rows.get(f"{name}_loss_nats")
        if column is None or column.isna().all():
            continue
        at = float(column.astype(float).mean())
        if near[0] <= at <= near[1]:
            plots.reference(ax, y=at, label=f"{name} {at:.2f}")
        else:
            far.append(f"{name} {at:.2f}")
    if ends := aa_band(data):
        ax.axhspan(*ends, color=plots.FAINT, alpha=0.6, zorder=0, linewidth=0)
    if far:
        ax.annotate(f"out of sight: {', '.join(far)}", (0.99, 0.01), xycoords="axes fraction", ha="right", fontsize=7.5)


def arms_figure(data, table):
    """Each arm's difference to the control, best first, filled where tied with the best. `table`: every arm, ranked."""
    control = CONTROLS[0] if CONTROLS[0] in data.arms else table["variant"].iloc[0]
    rows = pair_table(data, {name: (name, control) for name in table["variant"] if name != control}, apart=APART)
    rows["filled"] = rows["arm"].map(table.set_index("variant")["tied"]).fillna(False).astype(bool)
    fig, ax = plots.figure(xlabel=f"nats a token, arm minus {control}", size=(7.6, 0.22 * len(rows) + 1.2))
    plots.intervals(ax, rows, "arm", data.looks, null=0.0)
    return fig


def unbeaten(table, cost) -> list[str]:
    """The arms that no other beats in both a cost and loss, cheapest first."""
    order = table.sort_values([cost, "loss_nats"])
    return list(order["variant"][order["loss_nats"] < order["loss_nats"].cummin().shift(fill_value=np.inf)])


def front_figure(data):
    """Cache against loss, the arms that no other beats in both joined by a line."""
    fig, ax = plots.figure(xlabel="bytes of cache per token (bfloat16)", ylabel="test loss, nats a token",
                           size=(9.6, 6.2))  # fmt: skip
    table = arm_table(data, "", ("kv_bytes_per_token",))
    table = table[~table["variant"].isin(APART)]
    for row in table.itertuples():
        look = data.looks[row.variant]
        bars = None if np.isnan(row.low) else [[row.loss_nats - row.low], [row.high - row.loss_nats]]
        drawn = ax.errorbar(row.kv_bytes_per_token, row.loss_nats, bars, color=look.colour, marker=look.marker,
                            capsize=2, elinewidth=0.8)  # fmt: skip
        plots.mark(row.variant, *drawn.get_children())
    best = table.set_index("variant").loc[unbeaten(table, "kv_bytes_per_token")]
    ax.plot(best["kv_bytes_per_token"], best["loss_nats"], color=plots.INK, linewidth=0.9, zorder=1)
    plots.name_points(ax, table, "kv_bytes_per_token", "loss_nats", "variant", data.looks)
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


def front_finding(data) -> str:
    """The cheapest arm that no other beats, and the best of all."""
    table = arm_table(data, "", ("kv_bytes_per_token",))
    table = table[~table["variant"].isin(APART)].set_index("variant")
    first, *_, last = [*unbeaten(table.reset_index(), "kv_bytes_per_token")] * 2
    ends = [f"{name} at {table['kv_bytes_per_token'][name]:,.0f} bytes, {table['loss_nats'][name]:.3f} nats"
            for name in dict.fromkeys((first, last))]  # fmt: skip
    return "Unbeaten in cache and loss: from " + " to ".join(ends) if len(ends) > 1 else f"Unbeaten: {ends[0]}"


def curves(data, out, curve) -> dict[str, tuple]:
    """arm -> (x, runs x points) of the arms shown, and of the baseline; `curve(series)` gives x and y of a record."""
    rows, found = data.rows(""), {}
    for name in dict.fromkeys((*shown_arms(data), reference_arm(data))):
        drawn = [curve(out.series(key)) for key in rows[rows["variant"] == name]["key"]]
        found[name] = drawn[0][0], np.array([y for _, y in drawn], float)
    return found


def reference_arm(data) -> str:
    """The arm that curves are drawn against: the baseline, else the first there is."""
    return next((name for name in ("baseline", *CONTROLS) if name in data.arms), data.arms[0])


def lines(ax, data, drawn):
    """A line an arm: its difference to the baseline, whose runs are others, so that both vary."""
    base = reference_arm(data)
    for name, (x, runs) in drawn.items():
        if name != base:
            plots.averages(ax, x, runs, name, data.looks[name], marks=len(x) < 10, against=drawn[base][1])
    plots.reference(ax, y=0.0)
    plots.name_lines([ax], data.looks)


def lead_finding(data, drawn, where) -> str:
    """Which of the arms shown is best at the end of its curve, against the baseline."""
    base = reference_arm(data)
    ends = {name: float(runs[:, -1].mean() - drawn[base][1][:, -1].mean()) for name, (_, runs) in drawn.items()}
    best, worst = min(ends, key=ends.get), max(ends, key=ends.get)
    if best == worst:
        return f"{base} alone has curves here"
    return f"{where}: from {ends[best]:+.3f} nats ({best}) to {ends[worst]:+.3f} ({worst}) against {base}"


def position_figure(data, out):
    drawn = curves(data, out, lambda series: by_octave(series["loss_by_position"]))
    fig, ax = plots.figure(xlabel="tokens of context", ylabel="nats a token", size=(8, 4.4))
    lines(ax, data, drawn)
    plots.log_x(ax)
    return fig, lead_finding(data, drawn, "At the end of the context")


def by_octave(losses) -> tuple[list[float], list[float]]:
    """Means over the first position, the next, the two after, the four after, ...: (their middles, their losses)."""
    ends = [0, *(2**i for i in range(64) if 2**i < len(losses)), len(losses)]
    parts = list(itertools.pairwise(ends))
    return [math.sqrt((a + 1) * b) for a, b in parts], [float(np.mean(losses[a:b])) for a, b in parts]


def length_figure(data, out):
    drawn = curves(data, out, lambda series: (series["factors"], series["loss_by_factor"]))
    fig, ax = plots.figure(xlabel="context / trained context", ylabel="nats a token", size=(8, 4.4))
    lines(ax, data, drawn)
    factors = next(iter(drawn.values()))[0]
    plots.log_x(ax, ticks=factors)
    return fig, lead_finding(data, drawn, f"At {factors[-1]:g} times the trained context")


def learning_figure(data, out):
    def curve(series):
        parts = np.array_split(series["losses"], min(50, len(series["losses"])))
        return (np.arange(len(parts)) + 0.5) / len(parts), [part.mean() for part in parts]

    drawn = curves(data, out, curve)
    fig, ax = plots.figure(xlabel="share of the steps", ylabel="nats a token", size=(8, 4.4))
    lines(ax, data, drawn)
    return fig, lead_finding(data, drawn, "At the last steps")


CURVES = (
    (position_figure, "loss_by_position.svg", "Test loss by position (means over octaves)"),
    (length_figure, "length.svg", "The same targets read with more context than in training"),
    (learning_figure, "learning.svg", "Training loss"),
)

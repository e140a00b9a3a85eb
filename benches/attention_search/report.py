"""Which arms can be told apart, at what cost; the seed's outputs and claims; what its published numbers support.

`python benches/attention_search/report.py` prints the analysis of the published numbers alone, without any record.
"""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import integrate
from scipy import stats as scipy_stats

from mlexp.analysis import plots, stats
from mlexp.analysis.results import paired

SEED_ARMS = (
    *("baseline", "lora_small", "lora_medium", "lora_large", "lora_xl"),
    *("enhanced_small", "enhanced_medium", "enhanced_large", "enhanced_xl"),
    *("rope_only", "rope_small", "rope_large", "bias_only"),
)
FAMILIES = ("rope", "enhanced", "lora", "bias", "baseline", "control")
CONTROLS, AGAIN, HALF = ("mla_plain", "baseline"), "again", "half_size"
OTHERS = (AGAIN, HALF)  # arms that compete with none: the A/A pair and a smaller model
FACTORS = {  # what one thing does: (arm with it, the same arm without it)
    "positions at all": ("baseline", "nope"),
    "interpolation, multi-head": ("mha_pi", "baseline"),
    "interpolation, latent": ("mla_only_pi", "mla_plain"),
    "biases, multi-head": ("mha_bias", "baseline"),
    "biases, latent": ("bias_only", "mla_plain"),
    "a query rank of 32": ("lora_small", "mla_plain"),
    "a latent for values, one shared key": ("mla_plain", "baseline"),
    "half the key without positions": ("mla_true", "mla_plain"),
    "one head of keys and values": ("mqa", "baseline"),
    "two heads of keys and values": ("gqa", "baseline"),
    "half the model": ("half_size", "baseline"),
}
FACTORIAL = {  # (query rank, interpolation, bias) -> arm
    (0, 0, 0): "mla_plain",
    (1, 0, 0): "lora_small",
    (0, 1, 0): "mla_only_pi",
    (0, 0, 1): "bias_only",
    (1, 1, 0): "mla_q_pi",
    (1, 0, 1): "mla_q_bias",
    (0, 1, 1): "mla_bias_pi",
    (1, 1, 1): "mla_all_three",
}
FLOORS = ("uniform", "unigram", "bigram", "bayes")
EQUAL = 0.005  # nats: below this a difference does not matter


class Claim(NamedTuple):
    """That some arms' mean loss is above that of others by more than -margin; `range_of_arms`: by more than the
    distance from the best to the worst of the seed's 13."""

    text: str
    worse: tuple[str, ...]
    better: tuple[str, ...]
    margin: float = 0.0
    range_of_arms: bool = False


ROPE, LORA = SEED_ARMS[9:12], SEED_ARMS[1:5]
ENHANCED = SEED_ARMS[5:9]
CLAIMS = {
    "C2": Claim("RoPE variants do well throughout: their mean beats the baseline", ("baseline",), ROPE),
    "C3": Claim("RoPE scaling by itself helps: interpolation, all else equal", ("baseline",), ("mha_pi",)),
    "C4": Claim("Larger LoRA ranks do not help", ("lora_xl",), ("lora_small",), EQUAL),
    "C6": Claim("LoRA, RoPE and bias work well together", ("lora_medium",), ("enhanced_medium",)),
    "C7": Claim("XL underperforms the smaller enhanced arms", ("enhanced_xl",), ENHANCED[:3]),
    "C9": Claim("Just adding a bias helps", ("mla_plain",), ("bias_only",)),
    "C10": Claim("RoPE variants rank before LoRA variants", LORA, ROPE),
    "C13": Claim("Model size matters more than attention: halving it costs more than choosing the worst of the 13",
                 (HALF,), ("baseline",), range_of_arms=True),
}  # fmt: skip
BEST = {
    "C1": ("RoPE scaling is the winner: rope_small is the best of the 13", "rope_small", SEED_ARMS),
    "C5": ("The sweet spot is medium: enhanced_medium is the best enhanced arm", "enhanced_medium", ENHANCED),
}
PARAM_BYTES = 4  # peak_bytes is above what was resident, which the model was
STATE_BYTES = 16  # a parameter, its gradient and Adam's two moments
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "4090": 165e12}  # bfloat16, dense, by the vendor
PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text())

ABOUT_TESTS = f"""
Differences in test loss, arm minus control, paired by seed: every arm of a seed trains on the same tokens and starts
from the same values where it shares parameters. `low`, `high`: Student's t over seeds; `low_documents`,
`high_documents`: seeds and documents both resampled. `p_holm`: paired t, after Holm over the arms of a control;
`p_sign`: all sign flips, which five seeds cannot bring below 0.0625. `detectable`: the smallest difference that so many
seeds would show with 80 % power at that correction. `steps`: the difference in training steps of the control, at its
slope over the second half of its training. `equal`: whether the 90 % interval lies within {EQUAL} nats.
"""
ABOUT_FAIR = """
"The same size" can mean several things. `same_shape` is the seed's: width, layers, heads, feed-forward; parameters and
FLOPs differ by arm. `same_params` gives every arm the baseline's parameters by another feed-forward width, `same_flops`
the baseline's FLOPs by another number of steps, each trained to the end of its own schedule (`--set matches=...`).
Differences are to `mla_plain` under the same terms.
"""
ABOUT_CUT = """
Without runs of their own, equal FLOPs and equal time are read off the learning curves: training loss, mean of a tenth
of the steps, where an arm has spent what the cheapest arm spends in all. Curves are cut before their schedule ends, so
this favours cheap arms; the time is the clock's on this machine, shared or not.
"""
ABOUT_CACHE = """
What decoding must keep of every token against what the model has learnt: up and to the right is worse. The line joins
the arms that no other arm beats in both. The band is where an arm may lie that differs from the control by nothing but
its initial values (A/A).
"""
ABOUT_PUBLISHED = """
The original's 13 cells, one seed each. No test across seeds is possible; its noise is known only from four arms that a
predecessor of the same commit ran too. These are what the numbers can and cannot carry, whatever was measured here.
"""
SIX_PANELS = (
    "The seed's six panels, means over seeds. Grey: what a control under two names differs by. Memory to train is "
    "computed: activations kept for backward, and parameters with gradient and optimiser state."
)


def report(records, out):
    records = records.assign(variant=records["variant"].astype(str))
    terms = {(b, m): mine for (b, m), mine in records.groupby(["budget", "match"], sort=False)}
    first = max(terms, key=lambda term: (term[1] == "same_shape", term[0] == "finished"))
    mine = terms[first]
    if set(mine["variant"]) <= set(OTHERS):
        out.text(f"Only {', '.join(OTHERS)} here, which compete with nothing: no report.")
        return
    claims = judge(mine)
    for row in claims:
        out.verdict(*row)
    for (budget, match), some in terms.items():
        if match == "same_shape":
            out.heading(f"Which arms can be told apart: {budget} budget")
            told_apart(some, out, budget)
    out.heading("Cache against loss")
    out.text(ABOUT_CACHE)
    out.figure(front_figure(mine), "kv_bytes_vs_loss.png", "Bytes of cache per token against test loss.")
    out.heading("Which single thing does what")
    out.table(factor_table(mine, out), "factors.csv", "Arm minus the same arm without it, Holm over the rows.")
    factorial = factorial_table(mine)
    out.text(factorial_words(factorial))
    if len(factorial):
        out.table(factorial, "factorial.csv", "Main effects and interactions of query rank, interpolation, biases.")
    out.heading("Fair on other terms")
    out.text(ABOUT_FAIR)
    out.table(fair_table(terms, first[0]), "fair.csv", "Differences in loss to mla_plain, by what is held equal.")
    out.table(same_cache_table(mine), "same_cache.csv", "Arms that keep equally many bytes of a token.")
    out.text(ABOUT_CUT)
    out.table(cut_table(mine, out), "same_flops_same_time.csv", "Curves cut at equal FLOPs and at equal time.")
    out.heading("Where in the context, and beyond it")
    out.figure(
        position_figure(mine, out),
        "loss_by_position.png",
        "Test loss by position (means over octaves), mean over seeds.",
    )
    out.figure(length_figure(mine, out), "length.png", "The same targets read with more context than in training.")
    out.figure(learning_figure(mine, out), "learning.png", "Training loss, mean over seeds.")
    out.heading("Cost")
    out.text(cost_words(mine))
    out.table(cost_table(mine), "cost.csv", "Means over seeds; training_bytes is a micro-batch's and 16 a parameter.")
    out.heading("The original's published numbers")
    out.text(ABOUT_PUBLISHED)
    out.table(published_table(), "published.csv", "What the 13 published numbers can and cannot support.")
    out.table(published_claims(), "published_claims.csv", "The seed's claims by its own numbers.")
    out.heading("The seed's outputs")
    seed_files(mine, claims, out)


# --- pairing


def arms(mine) -> list[str]:
    """Arms present, in the grid's order: the seed's, then the rest."""
    present = dict.fromkeys(mine["variant"])
    return [*(a for a in SEED_ARMS if a in present), *(a for a in present if a not in SEED_ARMS)]


def family(arm: str) -> str:
    return arm.partition("_")[0] if arm in SEED_ARMS else "control"


def table_of(mine, names=None, metric="loss_nats") -> pd.DataFrame:
    """Seeds x arms: the seeds that most arms have, and the arms that have all of these; attrs["incomplete"] has the
    others."""
    table = mine.pivot(index="seed", columns="variant", values=metric).astype(float)
    table = table[[a for a in arms(mine) if names is None or a in names]]
    table = table[table.notna().mean(axis=1) > 0.5]
    incomplete = [a for a in table if table[a].isna().any()]
    table = table.drop(columns=incomplete)
    table.attrs = {"incomplete": incomplete}
    return table


def difference(mine, arm, without, metric="loss_nats") -> np.ndarray:
    """Arm minus the other, a value a seed; empty where either is missing."""
    if not {arm, without} <= set(mine["variant"]):
        return np.array([])
    return paired(mine, metric, arm="variant", of=without, to=arm, over=["seed"])["difference"].to_numpy()


def interval(values) -> tuple[float, float, float]:
    """(mean, low, high); an interval of one value is not known."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return (float(values[0]) if len(values) else np.nan, np.nan, np.nan)
    return stats.mean_interval(values)[:3]


def by_document(mine, arm, without, out) -> tuple[float, float]:
    """Interval of the difference with documents resampled too; (nan, nan) where they were not kept."""
    one, two = (mine[mine["variant"] == a].sort_values("seed") for a in (arm, without))
    kept = [[out.series(key) for key in some["key"]] for some in (one, two)]
    whole = all("document_losses" in series for some in kept for series in some)
    if not whole or len(one) < 2 or list(one["seed"]) != list(two["seed"]):
        return np.nan, np.nan
    losses = [np.array([series["document_losses"] for series in some]) for some in kept]
    weights = kept[0][0]["document_tokens"]
    return stats.crossed_interval(losses[0] - losses[1], weights)[1:3] if len(weights) > 1 else (np.nan, np.nan)


def slope(mine, control, out) -> float:
    """Nats a step that the control's training loss falls by over the second half of its steps."""
    curves = [out.series(key).get("losses", []) for key in mine[mine["variant"] == control]["key"]]
    halves = [curve[len(curve) // 2 :] for curve in curves if len(curve) >= 4]
    return -float(np.mean([np.polyfit(range(len(half)), half, 1)[0] for half in halves])) if halves else np.nan


def tested(mine, pairs: dict, out) -> pd.DataFrame:
    """A row a pair (arm, without): every test of its difference in loss, Holm over all of them but A/A."""
    rows, p = [], {}
    for name, (arm, without) in pairs.items():
        values = difference(mine, arm, without)
        if not len(values):
            continue
        row = dict(zip(("difference", "low", "high"), interval(values), strict=True))
        row = {"name": name, "arm": arm, "against": without, **row, "seeds": len(values)}
        if len(values) > 1:
            row |= dict(zip(("low_documents", "high_documents"), by_document(mine, arm, without, out), strict=True))
            narrow = stats.t_interval(values, 0.90)
            within = stats.verdict_within(narrow, (-EQUAL, EQUAL)) == "supported"
            row |= {"p_sign": stats.sign_flip_p(values), "equal": within, "sd": float(np.std(values, ddof=1))}
            if arm != AGAIN:
                p[name] = stats.mean_p(values)
        rows.append(row)
    adjusted = stats.holm(p) if p else {}
    per_step = {without: slope(mine, without, out) for without in {row["against"] for row in rows}}
    for row in rows:
        row["p_holm"] = adjusted.get(row["name"], np.nan)
        row["detectable"] = (
            stats.minimum_detectable(row["sd"], row["seeds"], 1 - 0.05 / max(1, len(p))) if "sd" in row else np.nan
        )
        row["steps"] = row["difference"] / per_step[row["against"]] if per_step[row["against"]] > 0 else np.nan
    columns = ["name", "arm", "against", "difference", "low", "high", "low_documents", "high_documents", "p_holm",
               "p_sign", "detectable", "steps", "equal", "seeds"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


# --- who is told apart


def told_apart(mine, out, budget):
    out.text(ABOUT_TESTS)
    table = arm_table(mine)
    out.text("\n".join(tie_words(mine)))
    out.table(table, f"arms_{budget}.csv", "Every arm, best first; `tied` with the best, means over seeds.")
    for control in CONTROLS:
        pairs = {arm: (arm, control) for arm in arms(mine) if arm != control}
        contrasts = tested(mine, pairs, out).drop(columns="name")
        out.table(contrasts, f"against_{control}_{budget}.csv", f"Arm minus {control}, in nats a token.")
    out.figure(arms_figure(mine), f"losses_{budget}.png", "Test loss, 95 % interval over seeds; band: A/A; floors.")


def compared(mine) -> pd.DataFrame:
    """Seeds x arms of those that compete for the lowest loss."""
    return table_of(mine, [a for a in arms(mine) if a not in OTHERS])


def tied(mine) -> list[str]:
    """The arms that cannot be told from the best, among those that compete; empty where nothing can be told."""
    table = compared(mine)
    if min(table.shape) < 2:
        return []
    return [arm for arm, kept in zip(table, stats.tie_set(table.to_numpy()), strict=True) if kept]


def not_told(same: list[str], mine) -> str:
    """The arms tied with the best, in words."""
    if not same:
        return f"{mine['seed'].nunique()} seed cannot tell any arm from another"
    return ", ".join(same) if len(same) > 1 else "none"


def arm_table(mine) -> pd.DataFrame:
    same, whole, rows = set(tied(mine)), compared(mine), []
    for arm in arms(mine):
        some = mine[mine["variant"] == arm]
        mean, low, high = interval(some["loss_nats"])
        row = {"variant": arm, "family": family(arm), "loss_nats": mean, "low": low, "high": high,
               "tied": arm in same if arm in whole and same else None}  # fmt: skip
        names = ("validation_loss_nats", "train_loss_nats", "accuracy", "perplexity", "bits_per_byte", "n_params",
                 "attention_params", "active_params", "kv_bytes_per_token", "lr")  # fmt: skip
        rows.append(row | {name: some[name].astype(float).mean() for name in names} | {"seeds": len(some)})
    table = pd.DataFrame(rows).sort_values("loss_nats", ignore_index=True)
    never_text = table["bits_per_byte"].isna().all()
    return table.drop(columns="bits_per_byte") if never_text else table


def tie_words(mine) -> Iterator[str]:
    whole = compared(mine)
    if whole.attrs["incomplete"]:
        yield f"- Not every seed finished, left out of the tie set: {', '.join(whole.attrs['incomplete'])}."
    same, best = tied(mine), whole.mean().idxmin() if len(whole.columns) else None
    if not same:
        yield "- Fewer than two seeds or arms: nothing can be told apart."
    elif len(same) == 1:
        yield f"- {best} is best; every other arm is worse beyond doubt."
    else:
        rest = ", ".join(a for a in same if a != best)
        yield f"- No single winner: {best} has the lowest loss, and {len(same) - 1} more of {len(whole.columns)} arms "\
              f"cannot be told from it: {rest}."  # fmt: skip
    value, low, high = interval(difference(mine, AGAIN, CONTROLS[0]))
    if np.isfinite(low):
        how = "tie, as they must" if low <= 0 <= high else "do NOT tie: the ruler is off, or this is one run in twenty"
        span = f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"
        yield f"- A/A: the control from other initial values differs by {span}: they {how}."
    for metric in ("loss_nats", "accuracy") if same else ():
        table = table_of(mine, list(whole), metric)
        ratio = stats.signal_to_noise(table)
        yield f"- Signal to noise of {metric}: {ratio:.1f} (spread of arms over what is left within seeds)."
    low = mine["loss_nats"].min()
    for name in ("bigram", "unigram"):
        floor = mine[f"{name}_loss_nats"].astype(float).mean()
        above = [a for a in arms(mine) if mine[mine["variant"] == a]["loss_nats"].mean() > floor]
        if above and low < floor + 1:
            yield f"- Not below the {name} floor ({floor:.3f}): {', '.join(above)}: attention has not mattered yet."


def aa_band(mine) -> tuple[float, float] | None:
    """Where an arm may lie that is the control: its mean loss, give or take the A/A interval."""
    ends = interval(difference(mine, AGAIN, CONTROLS[0]))[1:]
    if not np.isfinite(ends).all():
        return None
    middle = mine[mine["variant"] == CONTROLS[0]]["loss_nats"].mean()
    return middle - max(map(abs, ends)), middle + max(map(abs, ends))


def floor_lines(ax, mine, axis="y", band=True):
    """Floors and the A/A band. A floor far from all losses would flatten the rest: it is named at the edge instead."""
    values = mine["loss_nats"].astype(float)
    near = (values.min() - 1.2, values.max() + 1.2)
    far = []
    for name in FLOORS:
        column = mine.get(f"{name}_loss_nats")
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
    if band and (ends := aa_band(mine)):
        (ax.axhspan if axis == "y" else ax.axvspan)(*ends, color=plots.FAINT, alpha=0.6, zorder=0, linewidth=0)
    if far:
        corner = (0.99, 0.01 if axis == "y" else 0.985)
        ax.annotate(f"out of sight: {', '.join(far)}", corner, xycoords="axes fraction", ha="right", fontsize=7.5)


def looks_of(mine) -> dict:
    """Arms in the colour of their family, a marker each."""
    families, count, found = plots.looks(FAMILIES), dict.fromkeys(FAMILIES, 0), {}
    for arm in arms(mine):
        colour = families[family(arm)].colour
        n = count[family(arm)]
        count[family(arm)] += 1
        found[arm] = plots.Look(colour, plots.MARKERS[n % len(plots.MARKERS)], plots.DASHES[n // 2 % 3])
    return found


def arms_figure(mine):
    table = arm_table(mine).rename(columns={"loss_nats": "value"})
    fig, ax = plots.figure("Test loss by arm", xlabel="nats a token", size=(7.6, 0.25 * len(table) + 1.6))
    plots.intervals(ax, table, "variant", looks_of(mine))
    floor_lines(ax, mine, axis="x")
    return fig


def front(mine) -> pd.DataFrame:
    """Arms that no other beats in both cache and mean loss, smallest cache first."""
    competing = mine[~mine["variant"].isin(OTHERS)]
    means = competing.groupby("variant")[["kv_bytes_per_token", "loss_nats"]].mean().reset_index()
    best = unbeaten(means, "kv_bytes_per_token")
    return means.set_index("variant").loc[best].reset_index()


def unbeaten(table, cost) -> list[str]:
    """The arms that no other beats in both a cost and loss, cheapest first."""
    order = table.sort_values([cost, "loss_nats"])
    return list(order["variant"][order["loss_nats"] < order["loss_nats"].cummin().shift(fill_value=np.inf)])


def least_cache(table, arms) -> str:
    """The arm of these that keeps least of a token, and how much."""
    least = table[table["variant"].isin(arms)].sort_values(["kv_bytes_per_token", "loss_nats"]).iloc[0]
    return f"{least['variant']} ({least['kv_bytes_per_token']:,.0f} bytes a token)"


def front_figure(mine):
    fig, ax = plots.figure("What a smaller cache costs", xlabel="bytes of cache per token (bfloat16)",
                           ylabel="test loss, nats a token", size=(8.6, 5.2))  # fmt: skip
    table = arm_table(mine[~mine["variant"].isin(OTHERS)])
    families = plots.looks(FAMILIES)
    # arms of one cache size stand side by side, not on top of each other
    turn = table.sort_values("loss_nats").groupby("kv_bytes_per_token").cumcount()
    size = table.groupby("kv_bytes_per_token")["variant"].transform("size")
    table["x"] = table["kv_bytes_per_token"] * 1.035 ** (turn - (size - 1) / 2)
    for row in table.itertuples():
        look = families[row.family]
        bars = None if np.isnan(row.low) else [[row.loss_nats - row.low], [row.high - row.loss_nats]]
        ax.errorbar(row.x, row.loss_nats, bars, color=look.colour, marker=look.marker, capsize=2, elinewidth=0.8)
    best = front(mine)
    ax.plot(best["kv_bytes_per_token"], best["loss_nats"], color=plots.INK, linewidth=0.9, zorder=1)
    named = table[table["variant"].isin([*best["variant"], *CONTROLS, "nope"])].sort_values("x")
    for i, row in enumerate(named.itertuples()):
        ax.annotate(row.variant, (row.x, row.loss_nats), xytext=(4, -12 - 10 * (i % 2)), textcoords="offset points",
                    fontsize=7.5)  # fmt: skip
    floor_lines(ax, mine)
    plots.log_x(ax, ticks=table["kv_bytes_per_token"])
    shown = [name for name in FAMILIES if name in set(table["family"])]
    handles = [ax.plot([], [], color=families[n].colour, marker=families[n].marker, linestyle="")[0] for n in shown]
    ax.legend(handles, shown, loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False)
    return fig


# --- factors, fairness, curves


def factor_table(mine, out) -> pd.DataFrame:
    return tested(mine, FACTORS, out).rename(columns={"name": "what"})


def factorial_table(mine) -> pd.DataFrame:
    """Effects in a 2 x 2 x 2 design, paired by seed; empty where an arm is missing."""
    table = table_of(mine, FACTORIAL.values())
    if set(table) != set(FACTORIAL.values()):
        return pd.DataFrame()
    rows, p = [], {}
    names = ("query rank", "interpolation", "biases")
    for which in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)):
        name = " x ".join(names[i] for i in which)
        sign = {levels: math.prod(2 * levels[i] - 1 for i in which) for levels in FACTORIAL}
        effect = sum(sign[levels] * table[arm] for levels, arm in FACTORIAL.items()).to_numpy() / 4
        rows.append({"effect": name, **dict(zip(("difference", "low", "high"), interval(effect), strict=True))})
        if len(effect) > 1:
            p[name] = stats.mean_p(effect)
    adjusted = stats.holm(p) if p else {}
    return pd.DataFrame(rows).assign(p_holm=lambda d: d["effect"].map(adjusted), seeds=len(table))


def factorial_words(table) -> str:
    if len(table):
        return (
            "Eight arms with every combination of a query rank of 32, interpolation by 2 and biases, all else "
            "`mla_plain`: each effect is the mean difference between having it and not, over the other two."
        )
    missing = ", ".join(FACTORIAL.values())
    return f"Main effects need all of {missing} in every seed: not in these records."


def fair_table(terms, budget) -> pd.DataFrame:
    """A row an arm: its difference to mla_plain on each set of terms, with its interval."""
    rows = {}
    for (b, match), some in terms.items():
        for arm in (a for a in arms(some) if b == budget and a not in (*OTHERS, CONTROLS[0])):
            values = difference(some, arm, CONTROLS[0])
            if len(values):
                names = (match, f"{match}_low", f"{match}_high")
                rows.setdefault(arm, {"variant": arm}).update(zip(names, interval(values), strict=True))
    return pd.DataFrame(rows.values())


def same_cache_table(mine) -> pd.DataFrame:
    """Best and worst of the arms of each cache size that has several."""
    rows = []
    competing = mine[~mine["variant"].isin(OTHERS)]
    for size, some in competing.groupby("kv_bytes_per_token"):
        table = table_of(some)
        if len(table.columns) > 1:
            order = table.mean().sort_values()
            same = tied(some)
            rows.append({"kv_bytes_per_token": size, "arms": len(order), "best": order.index[0],
                         "best_loss_nats": order.iloc[0], "worst": order.index[-1], "worst_loss_nats": order.iloc[-1],
                         "tied_with_best": ", ".join(a for a in same if a != order.index[0]) or "none"})  # fmt: skip
    return pd.DataFrame(rows, columns=["kv_bytes_per_token", "arms", "best", "best_loss_nats", "worst",
                                       "worst_loss_nats", "tied_with_best"])  # fmt: skip


def cut_table(mine, out) -> pd.DataFrame:
    """Training loss where every arm has spent as much as the cheapest does in all."""
    competing = mine[~mine["variant"].isin(OTHERS)]
    means = competing.groupby("variant")[["flops", "wall_s"]].mean()
    rows = {arm: {"variant": arm} for arm in arms(competing)}
    for cost, word in (("flops", "flops"), ("wall_s", "time")):
        share = means[cost].min() / means[cost]
        ends = {
            arm: np.array(
                [
                    cut(out.series(key)["losses"], share[arm])
                    for key in competing[competing["variant"] == arm].sort_values("seed")["key"]
                ]
            )
            for arm in rows
        }
        for arm, row in rows.items():
            row[f"steps_share_{word}"], row[f"loss_{word}"] = share[arm], ends[arm].mean()
            if CONTROLS[0] in ends and len(ends[arm]) == len(ends[CONTROLS[0]]):
                found = interval(ends[arm] - ends[CONTROLS[0]])
                row |= dict(zip((f"difference_{word}", f"low_{word}", f"high_{word}"), found, strict=True))
    return pd.DataFrame(rows.values()).sort_values("loss_flops", ignore_index=True)


def cut(losses, share: float) -> float:
    """The mean of the last tenth of the steps before this share of them."""
    last = max(1, round(share * len(losses)))
    return float(np.mean(losses[max(0, last - max(1, len(losses) // 10)) : last]))


def shown_arms(mine) -> list[str]:
    """Few enough to be read: best of each family, the controls, and what was planted."""
    means = mine.groupby("variant")["loss_nats"].mean()
    best = [min((a for a in means.index if family(a) == f), key=means.get, default=None) for f in FAMILIES]
    wanted = dict.fromkeys([*best, "baseline", "mla_plain", "mla_true", "nope", "rope_small"])
    return [a for a in arms(mine) if a in wanted]


def lines(ax, mine, out, curve):
    """A line an arm: `curve(series)` gives x and y of a record, averaged over seeds."""
    shown = shown_arms(mine)
    for arm, look in plots.looks(shown).items():
        kept = [curve(out.series(key)) for key in mine[mine["variant"] == arm]["key"]]
        ax.plot(kept[0][0], np.mean([y for _, y in kept], axis=0), color=look.colour, linestyle=look.dash, label=arm,
                marker=look.marker if len(kept[0][0]) < 10 else None)  # fmt: skip
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False)
    floor_lines(ax, mine, band=False)


def position_figure(mine, out):
    fig, ax = plots.figure("Loss by position", xlabel="tokens of context", ylabel="nats a token", size=(8, 4.4))
    lines(ax, mine, out, lambda s: by_octave(s["loss_by_position"]))
    plots.log_x(ax)
    return fig


def by_octave(losses) -> tuple[list[float], list[float]]:
    """Means over the first position, the next, the two after, the four after, ...: (their middles, their losses)."""
    ends = [0, *(2**i for i in range(64) if 2**i < len(losses)), len(losses)]
    parts = list(itertools.pairwise(ends))
    return [math.sqrt((a + 1) * b) for a, b in parts], [float(np.mean(losses[a:b])) for a, b in parts]


def length_figure(mine, out):
    fig, ax = plots.figure("Beyond the trained length", xlabel="context / trained context", ylabel="nats a token",
                           size=(8, 4.4))  # fmt: skip
    lines(ax, mine, out, lambda s: (s["factors"], s["loss_by_factor"]))
    plots.log_x(ax, ticks=out.series(mine["key"].iloc[0])["factors"])
    return fig


def learning_figure(mine, out):
    def curve(series):
        parts = np.array_split(series["losses"], min(50, len(series["losses"])))
        return (np.arange(len(parts)) + 0.5) / len(parts), [part.mean() for part in parts]

    fig, ax = plots.figure("Learning", xlabel="share of the steps", ylabel="training loss, nats", size=(8, 4.4))
    lines(ax, mine, out, curve)
    return fig


# --- cost


def peak_flops(mine) -> float | None:
    """What the vendor says that the device can do in bfloat16; None where the table does not know it."""
    machine = str(mine["machine"].iloc[0])
    known = (flops for name, flops in PEAK_FLOPS.items() if name in machine)
    return next(known, None) if (mine["device"].iloc[0], mine["dtype"].iloc[0]) == ("cuda", "bfloat16") else None


def cost_table(mine) -> pd.DataFrame:
    peak = peak_flops(mine)
    costs = mine.assign(
        tokens_per_s=mine["n_tokens"] / mine["wall_s"],
        flop_per_s=mine["flops"] / mine["wall_s"],
        flops_per_token=mine["flops"] / mine["n_tokens"],
        counted_over_closed_form=mine["flops"] / mine["flops_closed_form"],
        peak_with_params_bytes=mine["peak_bytes"] + PARAM_BYTES * mine["n_params"],
        training_bytes=mine["micro_activation_bytes"] + STATE_BYTES * mine["n_params"],
        mfu=mine["flops"] / mine["wall_s"] / (peak or np.nan),
    )
    names = ["tokens_per_s", "flop_per_s", "mfu", "flops_per_token", "counted_over_closed_form",
             "peak_with_params_bytes", "saved_activation_bytes", "training_bytes", "kv_bytes_per_token",
             "n_params"]  # fmt: skip
    table = costs.groupby("variant", sort=False)[names].mean().loc[arms(mine)].reset_index()
    table["attention_kernel"] = table["variant"].map(mine.groupby("variant")["attention_kernel"].first())
    return table.dropna(axis=1, how="all")


def cost_words(mine) -> str:
    kernels = ", ".join(sorted(mine["attention_kernel"].unique()))
    if peak_flops(mine):
        mfu = f"`mfu` is FLOPs executed (active experts alone) over the vendor's {peak_flops(mine) / 1e12:.0f} TFLOP/s."
    else:
        mfu = "No MFU: it is only said of GPUs in bfloat16 whose peak is known."
    return f"Attention kernel of every arm: {kernels}. {mfu}"


# --- the seed's claims


def judge(mine) -> list[tuple]:
    """(id, claim, verdict, effect, interval, why) of every claim of the seed, from these records."""
    losses = table_of(mine)
    gaps = {id: gap_of(losses, row) for id, row in CLAIMS.items()}
    p = {id: stats.mean_p(gap, -CLAIMS[id].margin) for id, gap in gaps.items() if len(gap) > 1}
    adjusted = stats.holm(p) if p else {}
    best = {id: best_of(id, *row, losses) for id, row in BEST.items()}
    said = [*best.values(), *(paired_claim(id, gap, adjusted.get(id)) for id, gap in gaps.items()),
            not_worst(losses), *counted(mine)]  # fmt: skip
    return sorted(said, key=lambda row: int(row[0][1:]))


def gap_of(losses, claim) -> np.ndarray:
    """The arms that the claim calls worse minus those it calls better, a value a seed; empty where one is missing."""
    worse, better = list(claim.worse), list(claim.better)
    ends = losses[[a for a in losses if a in SEED_ARMS]].mean()
    if not {*worse, *better} <= set(losses) or len(ends) < 2:
        return np.array([])
    if claim.range_of_arms:
        return (losses[worse].mean(axis=1) - losses[better].mean(axis=1) - losses[ends.idxmax()]
                + losses[ends.idxmin()]).to_numpy()  # fmt: skip
    return (losses[worse].mean(axis=1) - losses[better].mean(axis=1)).to_numpy()


def paired_claim(id, gap, p) -> tuple:
    """Supported or refuted by the interval of the gap, and only where its p survives Holm over these claims."""
    claim = CLAIMS[id]
    if p is None:
        return id, claim.text, "undecided", "", None, "needs two seeds of every arm that it names"
    mean, low, high = interval(gap)
    verdict = stats.verdict((low, high), -claim.margin) if p < 0.05 else "undecided"
    names = " minus ".join(", ".join(side) if len(side) < 3 else f"mean of {len(side)}" for side in claim[1:3])
    more = (", less the best-to-worst of the 13" if claim.range_of_arms else "") + (
        f", to {claim.margin}" if claim.margin else ""
    )
    return id, claim.text, verdict, f"{mean:+.4f} nats", (low, high), f"{names}{more}; {len(gap)} seeds, p {p:.2g}"


def best_of(id, text, arm, others, losses) -> tuple:
    """A claim that an arm beats all others: supported if it does after Holm, refuted if one beats it after Holm."""
    found = against_all(losses, arm, others)
    if found is None:
        return id, text, "undecided", "", None, "needs two seeds of every arm that it names"
    rank, beats, beaten, n = found
    verdict = "refuted" if beaten else "supported" if len(beats) == n else "undecided"
    why = f"after Holm it beats {len(beats)} of {n}" + (f", is beaten by {', '.join(beaten)}" if beaten else "")
    return id, text, verdict, f"rank {rank} of {n + 1}", None, f"{why}; {len(losses)} seeds"


def not_worst(losses) -> tuple:
    text, found = "The baseline is competitive: not the worst of the 13", against_all(losses, "baseline", SEED_ARMS)
    if found is None:
        return "C8", text, "undecided", "", None, "needs two seeds of the baseline and of other arms"
    rank, beats, beaten, n = found
    verdict = "supported" if beats else "refuted" if len(beaten) == n else "undecided"
    why = f"after Holm {len(beats)} of {n} arms are worse, {len(beaten)} better; {len(losses)} seeds"
    return "C8", text, verdict, f"rank {rank} of {n + 1}", None, why


def against_all(losses, arm, others) -> tuple[int, list, list, int] | None:
    """(rank by mean, arms beaten, arms it is beaten by, number of others), after Holm; None where it cannot be said."""
    others = [a for a in others if a != arm and a in losses]
    if arm not in losses or not others or len(losses) < 2:
        return None
    gaps = {a: (losses[a] - losses[arm]).to_numpy() for a in others}
    sure = [a for a, p in stats.holm({a: stats.mean_p(values) for a, values in gaps.items()}).items() if p < 0.05]
    rank = 1 + sum(gap.mean() < 0 for gap in gaps.values())
    return rank, [a for a in sure if gaps[a].mean() > 0], [a for a in sure if gaps[a].mean() < 0], len(others)


def counted(mine) -> Iterator[tuple]:
    """Claims about counts, which have no noise."""
    first = mine.groupby("variant")[["attention_params", "micro_activation_bytes", "n_params"]].first()
    lora = [a for a in first.index if a.startswith("lora_")]
    claim = "LoRA adds parameters: its arms have more than the baseline"
    if lora and "baseline" in first.index:
        more = [a for a in lora if first.loc[a, "attention_params"] > first.loc["baseline", "attention_params"]]
        verdict = "supported" if len(more) == len(lora) else "refuted"
        yield "C11", claim, verdict, f"{len(more)} of {len(lora)} arms", None, "counted; a low rank mostly saves them"
    else:
        yield "C11", claim, "undecided", "", None, "needs baseline and lora arms"
    claim = "enhanced_small needs the least memory to train"
    seeds = first[first.index.isin(SEED_ARMS)]
    if "enhanced_small" in seeds.index and len(seeds) > 1:
        needs = seeds["micro_activation_bytes"] + STATE_BYTES * seeds["n_params"]
        least = needs.idxmin()
        verdict = "supported" if least == "enhanced_small" else "refuted"
        why = "saved activations, parameters, gradients, moments; one kernel for all"
        effect = f"{least} has {needs.min() / 1e6:.4g} MB, enhanced_small {needs['enhanced_small'] / 1e6:.4g} MB"
        yield "C12", claim, verdict, effect, None, why
    else:
        yield "C12", claim, "undecided", "", None, "needs enhanced_small and another arm"


# --- the published numbers


def published() -> pd.DataFrame:
    return pd.DataFrame(PUBLISHED["cells"]).set_index("variant")


def published_noise() -> tuple[float, float, float, int]:
    """SD of a run, its 95 % interval, the arms behind it; the difference of two runs has twice the variance of one."""
    now, before = published()["loss_nats"], pd.Series(PUBLISHED["predecessor_loss_nats"])
    square = (now[before.index] - before) ** 2 / 2
    n = len(square)
    ends = [math.sqrt(square.sum() / scipy_stats.chi2.ppf(q, n)) for q in (0.975, 0.025)]
    return math.sqrt(square.mean()), *ends, n


def published_tests() -> pd.DataFrame:
    """Every arm against bias_only and against the best, by that noise: t with as many degrees as it has pairs."""
    losses, (sd, _, _, n) = published()["loss_nats"], published_noise()
    error = sd * math.sqrt(2)
    others = losses.drop("bias_only")
    p = 2 * scipy_stats.t.sf(np.abs(others - losses["bias_only"]) / error, n)
    table = pd.DataFrame({"difference": others - losses["bias_only"], "p_holm": stats.holm(p)}, index=others.index)
    bar = scipy_stats.t.ppf(1 - 0.05 / (len(losses) - 1), n) * error
    table.attrs = {"tied": list(losses.index[losses - losses.min() <= bar]), "bar": bar}
    return table


def published_table() -> pd.DataFrame:
    cells, (sd, low, high, n) = published(), published_noise()
    losses, size = cells["loss_nats"], cells["attention_params_per_layer"]
    slope_of, tests = PUBLISHED["slope_nats_per_step"], published_tests()
    first, second = losses.nsmallest(2)
    pearson, spearman = scipy_stats.pearsonr(size, losses), scipy_stats.spearmanr(size, losses)
    families = [losses[[a for a in losses.index if family(a) == f]] for f in ("rope", "lora", "enhanced")]
    kruskal = scipy_stats.kruskal(*families)
    now, before = losses[list(PUBLISHED["predecessor_loss_nats"])], list(PUBLISHED["predecessor_loss_nats"].values())
    order = scipy_stats.spearmanr(now, before).statistic
    span = normal_range(len(losses)) * sd
    known = tests.index[tests["p_holm"] < 0.05]
    mha, least = cells.loc["baseline"], cells.loc["rope_small"]
    rows = [
        ("noise of one run", f"{sd:.4f} nats, 95 % {low:.4f} to {high:.4f}", f"{n} arms that were run twice"),
        ("do the two runs agree on the order?", f"Spearman {order:+.2f}", "no: it is nearly reversed"),
        ("range of 13 identical arms, expected", f"{span:.3f} nats", f"all 13 span {losses.max() - losses.min():.3f}"),
        ("first against second", f"{second - first:.4f} nats", f"{(second - first) / slope_of:.1f} steps of training"),
        ("arms told from bias_only, Holm over 12", ", ".join(known) or "none",
         f"largest p {tests['p_holm'].max():.2g}, rope_small {tests['p_holm']['rope_small']:.2g}"),
        ("arms not told from the best", f"{len(tests.attrs['tied'])} of {len(losses)}",
         ", ".join(tests.attrs["tied"])),
        ("families rope, lora, enhanced", f"Kruskal p {kruskal.pvalue:.2f}", "no family is shown to be better"),
        ("attention parameters against loss", f"Pearson {pearson.statistic:+.2f} (p {pearson.pvalue:.1g}), Spearman "
         f"{spearman.statistic:+.2f}", "after 50 steps at one rate more parameters are worse: they learn more slowly"),
        ("cache of a token, baseline to rope_small",
         f"{mha['kv_bytes_per_token']:,.0f} to {least['kv_bytes_per_token']:,.0f} bytes",
         f"{mha['kv_bytes_per_token'] / least['kv_bytes_per_token']:.1f} times smaller; its report never says so"),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["question", "answer", "meaning"])


def normal_range(n: int) -> float:
    """The expected range of n standard normal values (Tippett 1925)."""
    return integrate.quad(lambda x: 1 - scipy_stats.norm.cdf(x) ** n - scipy_stats.norm.sf(x) ** n, -9, 9)[0]


def published_claims() -> pd.DataFrame:
    """Sentences of the original's report beside its own table."""
    cells = published()
    rank = cells["loss_nats"].rank().astype(int)
    memory, params = cells["memory_gb"], cells["n_params"] / 1e6
    tests = published_tests()
    p = tests["p_holm"]
    ranks = ", ".join(f"{a} {rank[a]}" for a in ("rope_small", "rope_only", "rope_large"))
    smaller = [a for a in cells.index if params[a] < params["rope_only"] and rank[a] < rank["rope_only"]]
    rows = [
        ("RoPE scaling is the winner", "undecided", f"p {p['rope_small']:.2f} against bias_only; all 13 have RoPE"),
        ("RoPE variants performed consistently", "undecided", f"ranks {ranks} of 13"),
        ("memory range 15.2-17.0 GB", "refuted", f"{memory.min():.2f} to {memory.max():.2f}: the baseline is left out"),
        ("enhanced_small is the most memory-efficient", "refuted", f"{memory.idxmin()} {memory.min()}, then "
         f"{memory.drop(memory.idxmin()).idxmin()}"),
        ("parameters 162.6-177.8M", "refuted", f"{params.min():.2f} to {params.max():.2f}"),
        ("rope_only is the most parameter-efficient", "refuted", f"smaller and better: {', '.join(smaller)}"),
        ("bias_only: just adding attention bias helps", "undecided", "no arm without the bias was run"),
        ("XL variants underperform", "supported" if p["enhanced_xl"] < 0.05 else "undecided",
         f"enhanced_xl p {p['enhanced_xl']:.3f} against bias_only, at that rate and step count"),
        ("larger LoRA ranks do not help", "undecided", "the four lie within "
         f"{np.ptp(cells.loc[[a for a in cells.index if family(a) == 'lora'], 'loss_nats']):.3f} nats"),
        ("model size matters more than attention", "undecided", "one size was run"),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["claim", "verdict", "its own numbers"])


# --- the seed's files


def seed_files(mine, claims, out):
    table = arm_table(mine[mine["variant"].isin(SEED_ARMS)]) if set(SEED_ARMS) & set(mine["variant"]) else None
    if table is None:
        out.text("None of the seed's 13 arms is in these records: its files are not written.")
        return
    table = table.merge(cost_table(mine)[["variant", "training_bytes"]], on="variant")
    table["wall_s"] = table["variant"].map(mine.groupby("variant")["wall_s"].mean())
    out.file("architecture_search_results_fast.json", json.dumps(seed_json(mine, table), indent=2) + "\n")
    out.figure(seed_figure(mine, table), "architecture_search_comprehensive_fast.png", SIX_PANELS)
    out.file("architecture_search_report_fast.md", seed_report(mine, table, claims))


def seed_json(mine, table) -> list[dict]:
    """As the seed's: a row an arm, best first, with our intervals and seeds beside its fields."""
    return [
        {"config_name": f"medium_{row.variant}", "success": True, "eval_loss": row.loss_nats,
         "eval_accuracy": row.accuracy, "eval_perplexity": row.perplexity, "training_time_minutes": row.wall_s / 60,
         "peak_memory_gb": row.training_bytes / 1e9, "parameters_millions": row.n_params / 1e6,
         "eval_loss_low": None if np.isnan(row.low) else row.low,
         "eval_loss_high": None if np.isnan(row.high) else row.high, "tied_with_best": bool(row.tied),
         "seeds": int(row.seeds)}
        for row in table.itertuples()
    ]  # fmt: skip


def seed_figure(mine, table):
    families = plots.looks(FAMILIES)
    table = table.assign(millions=table["n_params"] / 1e6, minutes=table["wall_s"] / 60,
                         megabytes=table["training_bytes"] / 1e6)  # fmt: skip
    fig, panels = plots.figures(3, rows=2, size=(14, 8))
    axes = (
        ("millions", "loss_nats"), ("millions", "accuracy"), ("millions", "perplexity"),
        ("minutes", "megabytes"), ("minutes", "loss_nats"),
    )  # fmt: skip
    names = {"millions": "parameters, millions", "loss_nats": "test loss, nats", "minutes": "training time, minutes",
             "megabytes": "memory to train, MB", "accuracy": "accuracy", "perplexity": "perplexity"}  # fmt: skip
    for ax, (x, y) in zip(panels, axes, strict=False):
        for row in table.itertuples():
            look = families[row.family]
            ax.plot(getattr(row, x), getattr(row, y), color=look.colour, marker=look.marker, linestyle="")
            if y != "loss_nats":  # between the floors there is no room for names
                left = getattr(row, x) > table[x].quantile(0.9)
                ax.annotate(row.variant, (getattr(row, x), getattr(row, y)), xytext=(-4 if left else 4, 3),
                            textcoords="offset points", ha="right" if left else "left", fontsize=6)  # fmt: skip
        title = f"{names[y].partition(',')[0]} against {names[x].partition(',')[0]}"
        ax.set(title=title, xlabel=names[x], ylabel=names[y])
    floor_lines(panels[0], mine)
    floor_lines(panels[4], mine)
    shown = [f for f in FAMILIES if f in set(table["family"])]
    panels[5].boxplot([table[table["family"] == f]["loss_nats"] for f in shown], tick_labels=shown)
    panels[5].set(title="loss by family", ylabel=names["loss_nats"])
    floor_lines(panels[5], mine)
    return fig


def seed_report(mine, table, claims) -> str:
    """The seed's report under its own headings, with what these records say."""
    setting, top = json.loads(mine["settings"].iloc[0]), table.head(5)
    said = {row[0]: row for row in claims}
    same, whole = tied(mine[mine["variant"].isin(SEED_ARMS)]), table_of(mine, SEED_ARMS)

    def told(*ids):
        return [f"- **{said[i][2]}**: {said[i][1]} ({', '.join(filter(None, (said[i][3], said[i][5])))})" for i in ids]

    def spread(name, scale=1.0, digits=4):
        values = table[name] * scale
        mean, sd, low, high = (f"{v:.{digits}f}" for v in (values.mean(), values.std(), values.min(), values.max()))
        return f"{mean} +- {sd} ({low} to {high})"

    rank = [f"{i}. **{r.variant}**: loss {r.loss_nats:.4f}, accuracy {r.accuracy:.4f}, time {r.wall_s / 60:.2f} min, "
            f"memory {r.training_bytes / 1e6:.0f} MB, parameters {r.n_params / 1e6:.2f}M"
            for i, r in enumerate(top.itertuples(), 1)]  # fmt: skip
    gaps = {what: interval(difference(mine, *pair)) for what, pair in FACTORS.items()}
    effects = [f"- {what}: {mean:+.4f} nats" + ("" if np.isnan(low) else f" [{low:+.4f}, {high:+.4f}]")
               for what, (mean, low, high) in gaps.items() if not np.isnan(mean)]  # fmt: skip
    by_family = table.groupby("family")["loss_nats"].agg(["min", "max", "mean"]).sort_values("mean")
    lines = [
        "# Fair architecture search (fixed model size)", "",
        "## Overview", "", "Arms differ in their attention alone. Each claim of the first report stands below with "
        "what these records say of it.", "",
        "## Experimental Setup", "", "### Fixed model configuration", "",
        f"Shape {setting['shape']}, text {mine['corpus'].iloc[0]}, {setting['steps']} steps of batch "
        f"{setting['batch']}, budget {mine['budget'].iloc[0]}, {mine['seed'].nunique()} seeds; "
        f"{mine['machine'].iloc[0]}, {mine['dtype'].iloc[0]}.", "",
        "### Attention mechanisms tested", "", ", ".join(table["variant"]) + ".", "",
        "## Results Summary", "", f"Arms finished: {len(table)} of {len(SEED_ARMS)}.", "",
        "### Top 5 by loss", "", *rank, "",
        f"Not told from the best: {not_told(same, mine)}.", "",
        "### Statistics", "",
        f"- Loss: {spread('loss_nats')}", f"- Accuracy: {spread('accuracy')}",
        f"- Time, minutes: {spread('wall_s', 1 / 60, 2)}",
        f"- Memory to train, MB: {spread('training_bytes', 1e-6, 1)}",
        f"- Parameters, millions: {spread('n_params', 1e-6, 2)}", "",
        "## Key Findings", "",
        "### 1. RoPE scaling", "", *told("C1", "C2", "C3"), "", "### 2. LoRA", "", *told("C4", "C11"), "",
        "### 3. Enhanced configurations", "", *told("C5", "C6", "C7"), "", "### 4. Baseline", "", *told("C8"), "",
        "### 5. Bias only", "", *told("C9"), "",
        "## Architecture Insights", "", "### Performance ranking by attention type", "",
        *(f"{i}. {f}: {r['min']:.4f} to {r['max']:.4f}" for i, (f, r) in enumerate(by_family.iterrows(), 1)), "",
        *told("C10"), "", "### Parameter efficiency", "", *told("C11"),
        "- Not beaten in both parameters and loss: " + ", ".join(unbeaten(table, "n_params")) + ".", "",
        "### Memory usage", "", *told("C12"), "",
        "## Technical Analysis", "", "One thing at a time, arm minus the same arm without it (tests in `factors.csv`):",
        "", *effects, "",
        "## Recommendations", "",
        "- Among the arms tied with the best, the smallest cache: "
        + (least_cache(table, same) if same else "cannot be said of one seed") + ".",
        "- Avoid, worse than the best beyond doubt: "
        + (", ".join(a for a in table["variant"] if a in whole and a not in same) or "none" if same
           else "cannot be said") + ".", "",
        "## Conclusion", "", "### Model size against attention", "", *told("C13"), "",
        "## Files Generated", "", "- `architecture_search_results_fast.json`",
        "- `architecture_search_comprehensive_fast.png`", "- this report", "",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    for each in (published_table(), published_claims()):
        print(each.to_string(index=False), end="\n\n")

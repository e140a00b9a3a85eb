"""What no row of the declaration says: who ties with the best, factors, fair terms, curves, cost, the original's
outputs.

`python benches/attention_search/report.py` prints the analysis of the published numbers alone, without any record.
"""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from mlexp.analysis import intervals, multiple, stats
from mlexp.analysis.data import Missing
from mlexp.analysis.tables import arm_table, pair_table, quantity_table
from mlexp.study import At, Contrast, load

HERE = Path(__file__).parent
declared = load(HERE / "study.py")
cost, figures = (load(HERE / f"{name}.py") for name in ("cost", "figures"))
published, original = (load(HERE / "original" / f"{name}.py") for name in ("published", "outputs"))
AGAIN, CONTROL, EQUAL, ORIGINAL = declared.AGAIN, declared.CONTROL, declared.EQUAL, declared.ORIGINAL
CONTROLS, APART = (CONTROL, "baseline"), declared.STUDY.apart
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
BARS = "95 % t interval over seeds"
MEANS = ("validation_loss_nats", "train_loss_nats", "accuracy", "perplexity", "bits_per_byte", "n_params",
         "attention_params", "active_params", "kv_bytes_per_token", "lr")  # fmt: skip

ABOUT_TESTS = f"""
Differences in test loss, arm minus control. Runs of two arms with one seed are no more alike than with two, so the
variance is pooled over all arms instead of pairing by seed. `low`, `high`: Student's t with its degrees of freedom;
`low_documents`, `high_documents`: seeds and documents both resampled. `p_tukey` allows for all pairs of arms, and is
the one test by which the tie set, the tables and the claims are judged. `detectable`: the smallest difference that so
many seeds would show with 80 % power at 5 %. `steps`: the difference in training steps of the control, at its slope
over the second half of its training. `equal`: whether the 90 % interval lies within {EQUAL} nats.
"""
ABOUT_FAIR = """
"The same size" can mean several things. `same_shape` is the original's: width, layers, heads, feed-forward; parameters
and FLOPs differ by arm. `same_params` gives every arm the baseline's parameters by another feed-forward width,
`same_flops` the baseline's FLOPs by another number of steps, each trained to the end of its own schedule (`--set
matches=...`).
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


def report(records, out):
    data = out.data
    if set(data.arms) <= set(APART):
        out.text(
            f"These records contain only {', '.join(data.arms)}, which compete with no arm: there is nothing to rank."
        )
        return
    terms = list(records.groupby(["budget", "match"], sort=False).groups)
    for budget, match in terms:
        if match == "same_shape":
            out.heading(f"Which arms can be told apart: {budget} budget")
            comparisons(data.under(fixed={"budget": budget, "match": match}), out, budget)
    out.heading("Cache against loss")
    out.text(ABOUT_CACHE)
    out.figure(
        figures.front_figure(data), "kv_bytes_vs_loss.svg", figures.front_finding(data),
        "Bytes of cache per token against test loss; band: A/A; the line joins what no other arm beats in both", BARS,
    )  # fmt: skip
    out.heading("Which single thing does what")
    parts = tested(data, data.study.parts, out).rename(columns={"name": "what"})
    out.table(parts, "factors.csv", "Arm minus the same arm without it.")
    factorial = factorial_table(data)
    out.text(factorial_sentence(factorial))
    if len(factorial):
        out.table(factorial, "factorial.csv", "Main effects and interactions of query rank, interpolation, biases.")
    out.heading("Fair on other terms")
    out.text(ABOUT_FAIR)
    out.table(fair_table(data, terms), "fair.csv", "Differences in loss to mla_plain, by what is held equal.")
    out.table(same_cache_table(data), "same_cache.csv", "Arms that keep equally many bytes of a token.")
    out.text(ABOUT_CUT)
    out.table(cost.cut_table(data, out), "same_flops_same_time.csv", "Curves cut at equal FLOPs and at equal time.")
    out.heading("Where in the context, and beyond it")
    for draw, name, measure in figures.CURVES:
        fig, finding = draw(data, out)
        measure = f"{measure}, minus {figures.reference_arm(data)}'s; best of each family and the controls"
        out.figure(fig, name, finding, measure, "95 % t interval of the difference of means over seeds")
    out.heading("Cost")
    out.text(cost.cost_sentence(data))
    out.table(
        cost.cost_table(data), "cost.csv", "Means over seeds; training_bytes is a micro-batch's and 16 a parameter."
    )
    out.heading("The original's published numbers")
    out.text(ABOUT_PUBLISHED)
    out.table(published.table(), "published.csv", "What the 13 published numbers can and cannot support.")
    out.table(published.claims(), "published_claims.csv", "The original's claims by its own numbers.")
    out.heading("The original's outputs")
    original.files(data, ranked(data).merge(cost.cost_table(data)[["variant", "training_bytes"]], on="variant"), out)


def competing(data) -> list[str]:
    """The arms that compete for the lowest loss."""
    return [name for name in data.arms if name not in APART]


def tied(data) -> list[str]:
    """The arms that cannot be told from the best; empty where nothing can be told."""
    try:
        layout = data.layout("loss_nats").without(APART)
    except Missing:
        return []
    return multiple.tied(layout) if len(layout.names) > 1 else []


def comparisons(data, out, budget):
    """Who ties with the best, and every arm against each control, under one budget."""
    out.text(ABOUT_TESTS)
    out.text("\n".join(tie_sentences(data)))
    out.table(ranked(data), f"arms_{budget}.csv", "Every arm, best first; `tied` with the best, means over seeds.")
    for control in CONTROLS:
        pairs = {name: (name, control) for name in data.arms if name != control}
        table = tested(data, pairs, out).drop(columns="name")
        out.table(table, f"against_{control}_{budget}.csv", f"Arm minus {control}, in nats a token.")
    out.figure(
        figures.arms_figure(data, ranked(data)), f"losses_{budget}.svg", tie_finding(data),
        f"Test loss minus {CONTROL}'s; filled: tied with the best by Tukey's test over all pairs",
        "95 % t interval of one difference, variance pooled over all arms",
    )  # fmt: skip


def ranked(data) -> pd.DataFrame:
    """A row an arm, best first."""
    table, same = arm_table(data, "", MEANS), tied(data)
    table["tied"] = [name in same if same and name not in APART else None for name in table["variant"]]
    table.insert(1, "family", table["variant"].map(published.family))
    names = ["variant", "family", "loss_nats", "low", "high", "tied", *(m for m in MEANS if m in table), "blocks"]
    table = table[names].rename(columns={"blocks": "seeds"}).sort_values("loss_nats", ignore_index=True)
    return table.drop(columns="bits_per_byte") if table["bits_per_byte"].isna().all() else table


def tested(data, pairs, out) -> pd.DataFrame:
    """A row a pair (arm, without) with every test of its difference in loss."""
    table = pair_table(data, pairs, apart=(AGAIN,))
    known = table[["arm", "against"]].itertuples(index=False, name=None)
    ends = [by_document(data, *pair, out) for pair in known]
    table["low_documents"], table["high_documents"] = zip(*ends, strict=True) if ends else ((), ())
    slopes = {control: slope(data, control, out) for control in dict.fromkeys(table["against"])}
    table["detectable"] = [detectable(data, row.sd, row.blocks) for row in table.itertuples()]
    table["steps"] = table["value"] / table["against"].map(slopes)
    table["equal"] = [equal(row, data) for row in table.itertuples()]
    table = table.rename(columns={"value": "difference", "p_adjusted": "p_tukey", "blocks": "seeds"})
    return table[["name", "arm", "against", "difference", "low", "high", "low_documents", "high_documents", "p_tukey",
                  "detectable", "steps", "equal", "seeds"]]  # fmt: skip


def detectable(data, sd, seeds) -> float:
    df = data.layout("loss_nats").df if math.isfinite(sd) else 0
    return stats.minimum_detectable(sd, seeds, df=df) if df > 0 and seeds > 1 else math.nan


def equal(row, data) -> bool | None:
    """Whether the 90 % interval lies within what does not matter; None where there is no interval."""
    if not math.isfinite(row.low):
        return None
    df = data.layout("loss_nats").df
    half = (row.high - row.value) * stats.t_bar(df, 0.90) / stats.t_bar(df)
    return stats.verdict_within((row.value - half, row.value + half), (-EQUAL, EQUAL)) == "supported"


def by_document(data, name, without, out) -> tuple[float, float]:
    """Interval of the difference with documents resampled too; (nan, nan) where their losses were not stored."""
    rows = data.rows("")
    one, two = (rows[rows["variant"] == a].sort_values("seed") for a in (name, without))
    series = [[out.series(key) for key in part["key"]] for part in (one, two)]
    whole = all("document_losses" in arrays for part in series for arrays in part)
    if not whole or len(one) < 2 or list(one["seed"]) != list(two["seed"]):
        return math.nan, math.nan
    losses = [np.array([arrays["document_losses"] for arrays in part]) for part in series]
    weights = series[0][0]["document_tokens"]
    return intervals.crossed_interval(losses[0] - losses[1], weights)[1:3] if len(weights) > 1 else (math.nan, math.nan)


def slope(data, control, out) -> float:
    """Nats a step that the control's training loss falls by over the second half of its steps; NaN where it rises."""
    rows = data.rows("")
    curves = [out.series(key).get("losses", []) for key in rows[rows["variant"] == control]["key"]]
    halves = [curve[len(curve) // 2 :] for curve in curves if len(curve) >= 4]
    fall = -float(np.mean([np.polyfit(range(len(half)), half, 1)[0] for half in halves])) if halves else math.nan
    return fall if fall > 0 else math.nan


def tie_finding(data) -> str:
    """Whether one arm is best, and how many cannot be told from it."""
    table, same = ranked(data), tied(data)
    best = table.loc[~table["variant"].isin(APART)].iloc[0]
    loss = f"{best['variant']} has the lowest loss ({best['loss_nats']:.3f} nats)"
    if not same:
        return f"{loss}; fewer than two seeds or arms, so nothing can be told apart"
    others = len(same) - 1
    ties = f"{others} of the {len(competing(data)) - 1} others cannot be told from it" if others else "alone"
    return f"{loss}; {ties}"


def tie_sentences(data) -> Iterator[str]:
    table, same = ranked(data), tied(data)
    best = table.loc[~table["variant"].isin(APART), "variant"].head(1).item()
    if not same:
        yield "- Fewer than two seeds or arms: nothing can be told apart."
    elif len(same) == 1:
        yield f"- {best} is best; every other arm is worse beyond doubt."
    else:
        rest = ", ".join(name for name in same if name != best)
        count = f"{len(same) - 1} more of {len(competing(data))} arms"
        yield f"- No single winner: {best} has the lowest loss, and {count} cannot be told from it: {rest}."
    for row in pair_table(data, {AGAIN: (AGAIN, CONTROL)}).dropna(subset=["low"]).itertuples():
        inside = row.low <= 0 <= row.high
        how = "tie, as they must" if inside else "do NOT tie: the harness is off, or this is one run in twenty"
        span = f"{row.value:+.4f} [{row.low:+.4f}, {row.high:+.4f}]"
        yield f"- A/A: the control from other initial values differs by {span}: they {how}."
    means, low = table.set_index("variant")["loss_nats"], data.rows("")["loss_nats"].min()
    for name in ("bigram", "unigram"):
        floor = data.rows("")[f"{name}_loss_nats"].astype(float).mean()
        above = [a for a in data.arms if means[a] > floor]
        if above and low < floor + 1:
            yield f"- Not below the {name} floor ({floor:.3f}): {', '.join(above)}: attention has not mattered yet."


def factorial_table(data) -> pd.DataFrame:
    """Main effects and interactions in a 2 x 2 x 2 design; empty where an arm is missing."""
    if not set(FACTORIAL.values()) <= set(data.arms):
        return pd.DataFrame()
    rows, names = [], ("query rank", "interpolation", "biases")
    for which in (c for size in (1, 2, 3) for c in itertools.combinations(range(3), size)):
        sign = {a: math.prod(2 * levels[i] - 1 for i in which) / 4 for levels, a in FACTORIAL.items()}
        effect = quantity_table(data, At(Contrast(tuple(sign.items()))))
        rows.append(effect.assign(label=" x ".join(names[i] for i in which)))
    return pd.concat(rows).rename(columns={"label": "effect", "value": "difference", "blocks": "seeds"})


def factorial_sentence(table) -> str:
    if len(table):
        return (
            "Eight arms with every combination of a query rank of 32, interpolation by 2 and biases, all else "
            "`mla_plain`: each effect is the mean difference between having it and not, over the other two."
        )
    return f"Main effects need all of {', '.join(FACTORIAL.values())}: not in these records."


def fair_table(data, terms) -> pd.DataFrame:
    """A row an arm: its difference to mla_plain on each set of terms, with its interval."""
    rows, first = {}, data.rows("")["budget"].iloc[0]
    for budget, match in terms:
        if budget == first:
            there = data.under(fixed={"budget": budget, "match": match})
            pairs = {a: (a, CONTROL) for a in competing(data) if a != CONTROL}
            for row in pair_table(there, pairs).itertuples():
                ends = {match: row.value, f"{match}_low": row.low, f"{match}_high": row.high}
                rows.setdefault(row.arm, {"variant": row.arm}).update(ends)
    return pd.DataFrame(rows.values())


def same_cache_table(data) -> pd.DataFrame:
    """Best and worst of the arms of each cache size that has several."""
    rows, table, same = [], ranked(data), tied(data)
    for size, group in table[~table["variant"].isin(APART)].groupby("kv_bytes_per_token"):
        if len(group) > 1:
            best, worst = group.iloc[0], group.iloc[-1]
            ties = [a for a in group["variant"][1:] if best["variant"] in same and a in same]
            rows.append((size, len(group), best["variant"], best["loss_nats"], worst["variant"], worst["loss_nats"],
                         ", ".join(ties) or "none"))  # fmt: skip
    names = ["kv_bytes_per_token", "arms", "best", "best_loss_nats", "worst", "worst_loss_nats", "both_tied_with_best"]
    return pd.DataFrame(rows, columns=names)


if __name__ == "__main__":
    for each in (published.table(), published.claims()):
        print(each.to_string(index=False), end="\n\n")

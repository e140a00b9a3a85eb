"""What no row of the declaration says: every baseline, what theory allows, the samples, prompts decoded together."""

from pathlib import Path

import numpy as np
import pandas as pd

from mlexp.analysis import plots
from mlexp.analysis.shown import amount, reach
from mlexp.analysis.tables import cells_of, levels_of, pair_table
from mlexp.study import load

METHODS, SHARED = ("eab_particles", "eab_paper"), "shared_prefill"
BANDS = load(Path(__file__).with_name("study.py")).BANDS
BARS = "95 % t interval over prompts"
COSTS = {"token_forwards": "token forwards", "flops": "FLOPs counted", "peak_bytes": "peak bytes above the model"}
NUMBERS = (
    *("branch_rate", "branch_count", "branch_position_first", "branch_position_mean", "branch_position_last"),
    *("final_paths", "n_samples", "worst_effective_samples", "worst_functional", "surprisal_effective_samples"),
    *("first_token_effective_samples", "effective_samples", "unique_samples", "mean_surprisal_nats"),
    *("distinct_1", "distinct_2", "self_bleu", "accuracy", "bytes_per_sample", "kv_bytes"),
)

ABOUT_SPEEDUP = """
Each ratio is a baseline's time over the method's, paired by prompt: the geometric mean over prompts with a 95 %
interval (Student's t). Above 1 favours branching.
`per_effective_sample` multiplies it by worst_effective_samples / N, over the prompts for which that was measured:
correlated samples carry less.
"""
ABOUT_COST = """
What theory allows: `tokens` is the ratio of token forwards, `flops` that of counted FLOPs, `time` what was
measured. Against the arms that share the prompt, branching can save only what its tree shares after the prompt;
and where a step costs one read of the weights whatever its rows, that saves no time at all.
"""
ABOUT_SAMPLES = """
`surprisal_vs_sequential` is the mean difference in nats a sample, paired by prompt; an exact sampler differs
from 0 only by chance. The uniform mean over the leaves of eab_paper is biased by construction: what stands here
is measured, not corrected. `worst_effective_samples` says how many independent samples would estimate as well as the
N of a tree what these estimate worst, which is `worst_functional` (with the number of prompts where it is that one);
by surprisal and by the first token alone stand beside it. A bias counts as an error. N for independent samples.
"""
OLD = """
These records are older: their `effective_samples` looks at the path's surprisal alone and at no bias, which flatters
branching, and is some per cent too high besides. It is shown, `per_effective_sample_by_surprisal` follows from it, and
no verdict does.
"""


ABOUT_THROUGHPUT = """
All prompts of a batch decoded together: prompts a second, mean over batches, and `shared_prefill`'s time over the
arm's, paired by batch. Where a step costs one read of the weights, its rows are free for one prompt; with the rows of
many prompts they are not, and what a tree saves becomes time.
"""


def report(records, out):
    data = out.data
    batches = data.under(replicates=("batch",))
    if len(data.rows("model")):
        prompts(data, out)
    if "batch" in records and len(batches.rows("model")):
        out.heading("Throughput")
        out.text(ABOUT_THROUGHPUT)
        table = throughput_table(batches)
        out.table(table, "throughput.csv", "Batches of prompts decoded together.")
        if len(levels_of(batches, "model")) > 1:
            out.figure(
                throughput_figure(batches, table), "throughput.svg", throughput_finding(table),
                "Prompts a second against model size, both scales logarithmic; mean over batches",
                n=batches.blocks_in_words(),
            )  # fmt: skip


def prompts(data, out):
    speedups, limits, records = speedup_table(data), limit_table(data), data.rows("model")
    out.heading("Speed-up")
    out.text(ABOUT_SPEEDUP)
    out.table(speedups, "speedup.csv", "Branching against every baseline.")
    several = len(levels_of(data, "model")) > 1
    if len(speedups):
        measure = "Baseline's time over the method's, paired by prompt, geometric mean"
        if several:
            out.figure(
                speedup_figure(data, speedups), "speedup_vs_params.png", speedup_finding(speedups),
                f"{measure}; both scales logarithmic, points of one size set side by side; grey: what the original "
                "predicts of sequential", BARS,
            )  # fmt: skip
            out.figure(
                saved_figure(data), "time_saved.png", saved_finding(data), "Seconds saved a prompt by eab_particles",
                BARS, shown="folded",
            )  # fmt: skip
        else:
            out.figure(pairs_figure(data, speedups), "speedup.svg", speedup_finding(speedups), measure, BARS)
    out.heading("Cost")
    out.text(ABOUT_COST)
    if len(limits):
        out.text("\n".join(limit_sentences(limits)))
    out.table(limits, "limits.csv", "Ratios baseline / eab_particles: the limit and what was reached.")
    costs = cost_table(data)
    if several and len(costs):
        out.figure(
            cost_figure(data, costs), "cost.svg", cost_finding(costs),
            f"What an arm spends over what {SHARED} spends, paired by prompt, geometric mean; both scales logarithmic",
            BARS,
        )  # fmt: skip
    elif len(costs):
        out.text(cost_sentence(costs))
    out.heading("Samples")
    out.text(ABOUT_SAMPLES)
    if "effective_samples" in records:
        out.text(OLD)
    out.table(behaviour_table(data), "quality.csv", "Branching behaviour and sample quality, mean over prompts.")
    if drawn := live_figure(data, out):
        out.figure(*drawn, shown="folded")


def baselines(data) -> list[str]:
    """The arms that the branching ones are compared with."""
    return [name for name in data.arms if name not in METHODS]


def ratios(data, metric, methods=METHODS[:1]) -> pd.DataFrame:
    """Each baseline over each method, a row a model and pair."""
    pairs = {f"{m} {b}": (b, m) for m in methods for b in baselines(data)}
    return pair_table(data, pairs, "model", metric, ratio=True)


def n_params(data, model):
    return cells_by_model(data, model)["n_params"].iloc[0]


def cells_by_model(data, model):
    rows = data.rows("model")
    return rows[rows["model"] == model]


def speedup_table(data):
    table = ratios(data, "wall_s", METHODS)
    columns = {"against": "method", "arm": "baseline", "value": "speedup", "blocks": "prompts"}
    table = table.rename(columns=columns)
    table.insert(1, "n_params", [n_params(data, model) for model in table["model"]])
    table["per_effective_sample"] = values_of(ratios(data, "seconds_per_effective_sample", METHODS), table)
    names = ["model", "n_params", "method", "baseline", "speedup", "low", "high", "per_effective_sample", "prompts"]
    if "effective_samples" in data.records:
        table["per_effective_sample_by_surprisal"] = by_surprisal(data, table)
        names.insert(-1, "per_effective_sample_by_surprisal")
    return table[names]


def values_of(found, table) -> list[float]:
    """The value of each of the table's rows in another table of the same pairs."""
    values = {(row.model, row.name): row.value for row in found.itertuples(index=False)}
    return [values.get(key, np.nan) for key in zip(table["model"], table["name"], strict=True)]


def by_surprisal(data, table) -> list[float]:
    """The same by the surprisal's effective samples, which older records alone have."""
    known = data.records.get("worst_effective_samples", pd.Series(np.nan, data.records.index))
    old = data.records["effective_samples"].where(known.isna()).astype(float)
    seconds = data.records["wall_s"] / old
    whole = data.records["decoder"].isin(baselines(data))  # independent samples: worth as many as there are
    seconds = seconds.where(~whole, data.records["wall_s"] / data.settings["samples"])
    older = data.with_records(data.records.assign(seconds_by_surprisal=seconds))
    return values_of(ratios(older, "seconds_by_surprisal", METHODS), table)


def throughput_table(data):
    """A row a model and arm; `speedup` is over shared_prefill, which shares what is free to share."""
    pairs = {name: ("shared_prefill", name) for name in data.arms if name != "shared_prefill"}
    speedups = pair_table(data, pairs, "model", "wall_s", ratio=True).set_index(["model", "name"])
    rows = []
    for model in levels_of(data, "model"):
        for decoder in data.arms:
            cells = cells_of(data, "model", model, decoder)
            if cells.empty:
                continue
            row = {"model": model, "n_params": cells["n_params"].iloc[0], "decoder": decoder,
                   "prompts": int(cells["n_prompts"].iloc[0]),
                   "prompts_per_s": (cells["n_prompts"] / cells["wall_s"]).mean()}  # fmt: skip
            if (model, decoder) in speedups.index:
                pair = speedups.loc[(model, decoder)]
                row |= {"speedup": pair["value"], "low": pair["low"], "high": pair["high"]}
            rows.append(row | {"batches": len(cells)})
    return pd.DataFrame(rows)


def throughput_figure(data, table):
    fig, ax = plots.figure(xlabel="parameters", ylabel="prompts a second")
    shown = table.drop(columns=["low", "high"], errors="ignore")
    plots.curves(ax, shown, "n_params", "prompts_per_s", "decoder", data.looks)
    plots.log_x(ax, ticks=table["n_params"])
    plots.log_y(ax)
    return fig


def limit_table(data):
    """What was computed less, beside what was faster."""
    table = ratios(data, "wall_s").rename(columns={"arm": "baseline"})
    names = {"token_forwards": "tokens", "flops": "flops", "wall_s": "time", "peak_bytes": "peak_bytes"}
    for metric, name in names.items():
        table[name] = values_of(ratios(data, metric), table)
    return table[["model", "baseline", "tokens", "flops", "time", "low", "high", "peak_bytes"]]


def limit_sentences(limits):
    """Against the arms that encode the prompt once: what the tree can save at most, and what it did."""
    for row in limits.itertuples():
        if row.baseline in ("shared_prefill", "dedup"):
            verb = "faster" if row.time > 1 else "slower: its bookkeeping costs more than the tree saves"
            if not (row.low > 1 or row.high < 1):  # NaN: too few prompts
                verb = "and whether that is faster or slower is open"
            elif row.time > max(row.flops, row.tokens):
                verb = "faster than the saving explains: the rest is the other arm's overhead, or noise"
            allows = f"theory allows {row.flops:.2f}x (FLOPs) to {row.tokens:.2f}x (tokens)"
            yield f"- {row.model} against {row.baseline}: {allows}; measured {row.time:.2f}x, {verb}"


def behaviour_table(data):
    pairs = {name: (name, "sequential") for name in data.arms if name != "sequential"}
    surprisal = pair_table(data, pairs, "model", "mean_surprisal_nats").dropna(subset=["low"])
    surprisal = surprisal.set_index(["model", "name"])[["value", "low", "high"]]
    rows = []
    for model in levels_of(data, "model"):
        for decoder in data.arms:
            cells = cells_of(data, "model", model, decoder)
            if cells.empty:
                continue
            row = {"model": model, "decoder": decoder} | {n: summary(cells[n]) for n in NUMBERS if n in cells}
            if (model, decoder) in surprisal.index:
                value, low, high = surprisal.loc[(model, decoder)]
                row |= {"surprisal_vs_sequential": value, "low": low, "high": high}
            rows.append(row)
    return pd.DataFrame(rows).dropna(axis=1, how="all")


def summary(values):
    """The mean of numbers; of names the most frequent, and how often it stands there."""
    names = values.dropna()
    if not len(names) or pd.api.types.is_numeric_dtype(names.infer_objects()):
        return values.astype(float).mean()
    counts = names.value_counts()
    return f"{counts.index[0]} ({counts.iloc[0]} of {len(values)})"


def speedup_finding(speedups) -> str:
    """How much faster branching is than sequential sampling, and than the baseline that is hardest to beat."""
    method = METHODS[0] if METHODS[0] in set(speedups["method"]) else speedups["method"].iloc[0]
    rows = speedups[speedups["method"] == method]
    hardest = rows.groupby("baseline")["speedup"].max().idxmin()
    texts = []
    for baseline in dict.fromkeys(("sequential", hardest)):
        against = rows[rows["baseline"] == baseline]
        if len(against):
            apart = int(((against["low"] > 1) | (against["high"] < 1)).sum())
            at = f" at {apart} of {len(against)} sizes" if apart else ""
            sure = "" if apart == len(against) else f" (told from 1{at})" if apart else " (not told from 1)"
            texts.append(f"{reach(against['speedup'], 'ratio')} over {baseline}{sure}")
    return f"Speed-up of {method}: {' and '.join(texts)}"


def speedup_figure(data, speedups):
    fig, panels = plots.figures(2, sharey=True, size=(10, 4.4))
    for ax, method in zip(panels, METHODS, strict=True):
        table = speedups[speedups["method"] == method]
        for model, (low, high) in BANDS.items():
            at = table.loc[table["model"] == model, "n_params"]
            if len(at):
                ax.fill_between([at.iloc[0] / 1.12, at.iloc[0] * 1.12], low, high, color=plots.FAINT, linewidth=0)
        plots.curves(ax, table, "n_params", "speedup", "baseline", data.looks, dodge=1.05)
        plots.log_x(ax, ticks=speedups["n_params"])
        plots.log_y(ax)
        plots.reference(ax, y=1.0)
        ax.set(title=f"{method} against", xlabel="parameters")
    panels[0].set_ylabel("baseline's time / method's time")
    return fig


def pairs_figure(data, speedups):
    """A row a method and baseline, where there is one model."""
    rows = speedups.assign(pair=speedups["method"] + " over " + speedups["baseline"])
    looks = {row.pair: data.looks[row.baseline] for row in rows.itertuples()}
    fig, ax = plots.figure(xlabel="baseline's time / method's time", size=(7.6, 0.3 * len(rows) + 1.0))
    plots.intervals(ax, rows.rename(columns={"speedup": "value"}), "pair", looks, null=1.0)
    plots.log_x(ax)
    return fig


def saved_table(data):
    pairs = {name: (name, "eab_particles") for name in baselines(data)}
    table = pair_table(data, pairs, "model", "wall_s")
    table["n_params"] = [n_params(data, model) for model in table["model"]]
    return table


def saved_finding(data) -> str:
    table = saved_table(data)
    last = table[table["n_params"] == table["n_params"].max()]
    texts = [f"{amount(row.value, 's')} against {row.name}" for row in last.itertuples(index=False)]
    return f"Saved a prompt at {last['model'].iloc[0]}: {', '.join(texts)}" if len(last) else "Nothing to compare"


def saved_figure(data):
    fig, ax = plots.figure(xlabel="parameters", ylabel="seconds a prompt")
    plots.curves(ax, saved_table(data), "n_params", "value", "name", data.looks)
    plots.log_x(ax, ticks=data.rows("model")["n_params"])
    plots.reference(ax, y=0.0)
    return fig


def cost_table(data):
    """Each cost of each arm over that of the arm that shares the prompt and nothing else; empty without it."""
    pairs = {name: (name, SHARED) for name in data.arms if name != SHARED}
    known = [metric for metric in COSTS if metric in data.records and data.records[metric].notna().any()]
    tables = [pair_table(data, pairs, "model", metric, ratio=True).assign(metric=metric) for metric in known]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["model"])
    return table.assign(n_params=[n_params(data, model) for model in table["model"]])


def cost_finding(costs) -> str:
    method = METHODS[0] if METHODS[0] in set(costs["name"]) else costs["name"].iloc[0]
    rows = costs[costs["name"] == method].groupby("metric", sort=False)["value"]
    return f"{method} over {SHARED}: " + ", ".join(f"{reach(v, 'ratio')} of {COSTS[name]}" for name, v in rows)


def cost_sentence(costs) -> str:
    """The same where there is one model: nothing to draw a line through."""
    rows = costs.groupby("metric", sort=False)
    texts = [
        f"{COSTS[metric]}: " + ", ".join(f"{row.name} {amount(row.value, 'ratio', is_level=True)}"
                                         for row in table.itertuples(index=False))
        for metric, table in rows
    ]  # fmt: skip
    return f"What an arm spends over what {SHARED} spends, geometric mean over prompts. " + ". ".join(texts) + "."


def cost_figure(data, costs):
    metrics = list(dict.fromkeys(costs["metric"]))
    fig, panels = plots.figures(len(metrics), size=(4 * len(metrics), 4.2))
    for ax, metric in zip(panels, metrics, strict=True):
        shown = costs[costs["metric"] == metric]
        plots.curves(ax, shown, "n_params", "value", "name", data.looks, labels=ax is panels[-1], dodge=1.04)
        plots.log_x(ax, ticks=costs["n_params"])
        plots.log_y(ax)
        plots.reference(ax, y=1.0)
        ax.set(title=COSTS[metric], xlabel="parameters")
    panels[0].set_ylabel(f"arm / {SHARED}")
    return fig


def live_figure(data, out):
    """(figure, name, finding, measure, bars) of the live paths a step of the tree arms (those whose records have a
    tree), a panel a model."""
    rows = data.rows("model")
    trees = rows[rows["decoder"].isin(("dedup", *METHODS))]
    models = [model for model in levels_of(data, "model") if model in set(trees["model"])]
    if not models or any("live_paths" not in out.series(key) for key in trees["key"]):
        return None
    fig, panels = plots.figures(len(models), sharey=True, size=(3 * len(models) + 1.6, 3.6))
    ends = {}
    for ax, model in zip(panels, models, strict=True):
        for decoder, look in data.looks.items():
            keys = trees[(trees["model"] == model) & (trees["decoder"] == decoder)]["key"]
            if len(keys):
                paths = np.array([out.series(key)["live_paths"] for key in keys], float)
                plots.averages(ax, np.arange(1, paths.shape[1] + 1), paths, decoder, look)
                ends.setdefault(decoder, []).append(paths[:, -1].mean())
        ax.set(title=model, xlabel="step")
        ax.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylabel("live paths")
    plots.name_lines(panels, data.looks)
    finding = "Live paths at the end: " + ", ".join(f"{name} {reach(values)}" for name, values in ends.items())
    return fig, "live_paths.svg", finding, "Live paths a step, mean over prompts", BARS


def throughput_finding(table) -> str:
    last = table[table["n_params"] == table["n_params"].max()].sort_values("prompts_per_s", ascending=False)
    best = last.iloc[0]
    rate = amount(best["prompts_per_s"], "", is_level=True)
    return f"At {best['model']} {best['decoder']} decodes most prompts a second: {rate}"

"""Speed-up of branching over every baseline, what it costs, what it does to the samples, and the verdicts."""

import json

import numpy as np
import pandas as pd

from mlexp.analysis import plots, stats
from mlexp.analysis.results import paired

SIZES = ("gpt2_small", "gpt2_medium", "gpt2_large", "gpt2_xl")  # the trend is over these; gpt2_nano takes no part
BASELINES = ("sequential", "hf_batched", "shared_prefill", "dedup")
METHODS = ("eab_particles", "eab_paper")
DECODERS = (*BASELINES, *METHODS)
BANDS = {"gpt2_small": (1.8, 2.2), "gpt2_medium": (2.0, 2.5), "gpt2_large": (2.2, 2.8), "gpt2_xl": (2.5, 3.2)}
SEED = {"prompt_tokens": 200, "samples": 20, "max_new_tokens": 50, "temperature": 0.8, "threshold": 0.4}
COSTS = {"token_forwards": "token forwards", "flops": "FLOPs counted", "peak_bytes": "peak bytes above the model"}

ABOUT_SPEEDUP = """
Each ratio is a baseline's time over the method's, paired by prompt: the geometric mean over prompts with a 95 %
interval (Student's t below 20 prompts, BCa bootstrap from there on). Above 1 favours branching.
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
    one = records["prompt"].notna() if "prompt" in records else pd.Series(False, index=records.index)
    together, records = records[~one], records[one]
    if len(records):
        single(records, out)
    if len(together):
        out.heading("Throughput")
        out.text(ABOUT_THROUGHPUT)
        table = throughput_table(together)
        out.table(table, "throughput.csv", "Batches of prompts decoded together.")
        out.figure(throughput_figure(table), "throughput.png", "Prompts a second against model size.")


def single(records, out):
    speedups = speedup_table(records)
    behaviour = behaviour_table(records)
    limits = limit_table(records)
    verdicts(records, speedups, out)
    out.heading("Speed-up")
    out.text(ABOUT_SPEEDUP)
    out.table(speedups, "speedup.csv", "Branching against all four baselines.")
    if len(speedups):
        out.figure(
            speedup_figure(speedups), "speedup_vs_params.png", "Speed-up against model size, both scales logarithmic."
        )
        out.figure(
            saved_figure(records), "time_saved.png", "Seconds saved a prompt by eab_particles, against model size."
        )
    out.heading("Cost")
    out.text(ABOUT_COST)
    if len(limits):
        out.text("\n".join(limit_words(limits)))
    out.table(limits, "limits.csv", "Ratios baseline / eab_particles: the limit and what was reached.")
    out.figure(cost_figure(records), "cost.png", "What each arm spends, mean over prompts.")
    out.heading("Samples")
    out.text(ABOUT_SAMPLES)
    if "effective_samples" in records:
        out.text(OLD)
    out.table(behaviour, "quality.csv", "Branching behaviour and sample quality, mean over prompts.")
    if figure := live_figure(records, out):
        out.figure(figure, "live_paths.png", "Live paths a step, mean over prompts.")


def has(records, *decoders) -> bool:
    return set(decoders) <= set(records["decoder"])


def by_model(records):
    """(name, records) of each model, smallest first."""
    sizes = records.groupby("model")["n_params"].first().sort_values()
    return [(model, records[records["model"] == model]) for model in sizes.index]


def ratios(records, metric, baseline, method):
    """Baseline over method, a row a prompt; empty where either was not measured."""
    if not has(records, baseline, method) or records[metric].isna().all():
        return pd.DataFrame(columns=["prompt", "ratio"])
    return paired(records, metric, arm="decoder", of=baseline, to=method, over=["prompt"])


def geometric(values) -> tuple[float, float, float]:
    """(mean, low, high); an interval of one value is not known."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return (float(values[0]), np.nan, np.nan) if len(values) else (np.nan,) * 3
    return stats.mean_ratio(np.log(values))[:3]


def worth(records, method, metric="worst_effective_samples") -> pd.Series:
    """Effective samples over the N asked for, by prompt: a method with fewer leaves is worth less, not more."""
    rows = records[records["decoder"] == method].set_index("prompt")
    if metric not in rows:
        return pd.Series(dtype=float)
    return (rows[metric].astype(float) / settings(records)["samples"]).dropna()


def worth_by_surprisal(records, method) -> pd.Series:
    """The same as older records have it, for the prompts of which nothing else is known."""
    old = worth(records, method, "effective_samples")
    return old.drop(worth(records, method).index, errors="ignore")


def settings(records) -> dict:
    return json.loads(records["settings"].iloc[0])


def speedup_table(records):
    rows = []
    for model, mine in by_model(records):
        for method in METHODS:
            for baseline in BASELINES:
                wall = ratios(mine, "wall_s", baseline, method)
                if wall.empty:
                    continue
                value, low, high = geometric(wall["ratio"])
                ratio = wall.set_index("prompt")["ratio"]
                per_sample, by_surprisal = ratio * worth(mine, method), ratio * worth_by_surprisal(mine, method)
                rows.append(
                    {
                        "model": model,
                        "n_params": mine["n_params"].iloc[0],
                        "method": method,
                        "baseline": baseline,
                        "speedup": value,
                        "low": low,
                        "high": high,
                        "per_effective_sample": geometric(per_sample.dropna())[0],
                        "per_effective_sample_by_surprisal": geometric(by_surprisal.dropna())[0],
                        "prompts": len(wall),
                    }
                )
    table = pd.DataFrame(rows)
    unused = [name for name in table if name.endswith("_by_surprisal") and table[name].isna().all()]
    return table.drop(columns=unused)


def throughput_table(records):
    """A row a model and arm; `speedup` is over shared_prefill, which shares what is free to share."""
    rows = []
    for model, mine in by_model(records):
        for decoder in (d for d in DECODERS if has(mine, d)):
            some = mine[mine["decoder"] == decoder]
            row = {
                "model": model,
                "n_params": some["n_params"].iloc[0],
                "decoder": decoder,
                "prompts": int(some["n_prompts"].iloc[0]),
                "prompts_per_s": (some["n_prompts"] / some["wall_s"]).mean(),
            }
            if has(mine, "shared_prefill") and decoder != "shared_prefill":
                pairs = paired(mine, "wall_s", arm="decoder", of="shared_prefill", to=decoder, over=["batch"])
                row |= dict(zip(("speedup", "low", "high"), geometric(pairs["ratio"]), strict=True))
            rows.append(row | {"batches": len(some)})
    return pd.DataFrame(rows)


def throughput_figure(table):
    fig, ax = plots.figure("Prompts decoded together", xlabel="parameters", ylabel="prompts a second")
    shown = table.drop(columns=["low", "high"], errors="ignore")
    plots.curves(ax, shown, "n_params", "prompts_per_s", "decoder", plots.looks(DECODERS))
    plots.log_x(ax, ticks=table["n_params"])
    plots.log_y(ax)
    return fig


def limit_table(records):
    """What was computed less, beside what was faster."""
    rows = []
    for model, mine in by_model(records):
        for baseline in BASELINES:
            each = {metric: ratios(mine, metric, baseline, "eab_particles") for metric in ("wall_s", *COSTS)}
            if not each["wall_s"].empty:
                means = {metric: geometric(pairs["ratio"])[0] for metric, pairs in each.items()}
                names = {"token_forwards": "tokens", "flops": "flops", "wall_s": "time", "peak_bytes": "peak_bytes"}
                rows.append({"model": model, "baseline": baseline} | {names[m]: means[m] for m in names})
    return pd.DataFrame(rows)


def limit_words(limits):
    """Against the arms that encode the prompt once: what the tree can save at most, and what it did."""
    for row in limits.itertuples():
        if row.baseline in ("shared_prefill", "dedup"):
            verb = "faster" if row.time > 1 else "slower: its bookkeeping costs more than the tree saves"
            if row.time > max(row.flops, row.tokens):
                verb = "faster than the saving explains: the rest is the other arm's overhead, or noise"
            allows = f"theory allows x{row.flops:.2f} (FLOPs) to x{row.tokens:.2f} (tokens)"
            yield f"- {row.model} against {row.baseline}: {allows}; measured x{row.time:.2f}, {verb}"


def behaviour_table(records):
    numbers = [
        *("branch_rate", "branch_count", "branch_position_first", "branch_position_mean", "branch_position_last"),
        *("final_paths", "n_samples", "worst_effective_samples", "worst_functional", "surprisal_effective_samples"),
        *("first_token_effective_samples", "effective_samples", "unique_samples", "mean_surprisal_nats"),
        *("distinct_1", "distinct_2", "self_bleu", "accuracy", "bytes_per_sample", "kv_bytes"),
    ]
    rows = []
    for model, mine in by_model(records):
        for decoder in (d for d in DECODERS if has(mine, d)):
            some = mine[mine["decoder"] == decoder]
            row = {"model": model, "decoder": decoder} | {name: summary(some[name]) for name in numbers if name in some}
            if decoder != "sequential" and has(mine, "sequential"):
                pairs = paired(mine, "mean_surprisal_nats", "decoder", "sequential", decoder, ["prompt"])
                if len(pairs) > 1:
                    mean = stats.mean_interval(pairs["difference"])
                    row |= {"surprisal_vs_sequential": mean.value, "low": mean.low, "high": mean.high}
            rows.append(row)
    return pd.DataFrame(rows).dropna(axis=1, how="all")


def summary(values):
    """The mean of numbers; of names the most frequent, and how often it stands there."""
    names = values.dropna()
    if not len(names) or pd.api.types.is_numeric_dtype(names.infer_objects()):
        return values.astype(float).mean()
    counts = names.value_counts()
    return f"{counts.index[0]} ({counts.iloc[0]} of {len(values)})"


def speedup_figure(speedups):
    fig, panels = plots.figures(2, sharey=True, size=(10, 4.4))
    for ax, method in zip(panels, METHODS, strict=True):
        table = speedups[speedups["method"] == method]
        plots.curves(ax, table, "n_params", "speedup", "baseline", plots.looks(BASELINES), labels=method == METHODS[-1])
        plots.log_x(ax, ticks=speedups["n_params"])
        plots.log_y(ax)
        plots.reference(ax, y=1.0)
        ax.set(title=f"{method} against", xlabel="parameters")
    panels[0].set_ylabel("baseline's time / method's time")
    return fig


def saved_figure(records):
    rows = []
    for _, mine in by_model(records):
        for baseline in BASELINES:
            pairs = ratios(mine, "wall_s", baseline, "eab_particles")
            if not pairs.empty:
                saved = -pairs["difference"]
                value, low, high = stats.mean_interval(saved)[:3] if len(saved) > 1 else (saved.iloc[0], np.nan, np.nan)
                rows.append((mine["n_params"].iloc[0], baseline, value, low, high))
    fig, ax = plots.figure("Time saved by eab_particles", xlabel="parameters", ylabel="seconds a prompt")
    table = pd.DataFrame(rows, columns=["n_params", "baseline", "value", "low", "high"])
    plots.curves(ax, table, "n_params", "value", "baseline", plots.looks(BASELINES))
    plots.log_x(ax, ticks=records["n_params"])
    plots.reference(ax, y=0.0)
    return fig


def cost_figure(records):
    fig, panels = plots.figures(3, size=(12, 4.2))
    for ax, (metric, title) in zip(panels, COSTS.items(), strict=True):
        table = records.groupby(["n_params", "decoder"], as_index=False)[metric].mean()
        plots.curves(ax, table, "n_params", metric, "decoder", plots.looks(DECODERS), labels=metric == "peak_bytes")
        plots.log_x(ax, ticks=records["n_params"])
        plots.log_y(ax)
        ax.set(title=title, xlabel="parameters")
    return fig


def live_figure(records, out):
    """Live paths a step of the tree arms, a panel a model."""
    trees = records[records["decoder"].isin(("dedup", *METHODS))]
    models = [model for model, _ in by_model(trees)]
    if not models or any("live_paths" not in out.series(key) for key in trees["key"]):
        return None
    fig, panels = plots.figures(len(models), sharey=True, size=(3 * len(models) + 1.6, 3.6))
    for ax, model in zip(panels, models, strict=True):
        for decoder, look in plots.looks(DECODERS).items():
            keys = trees[(trees["model"] == model) & (trees["decoder"] == decoder)]["key"]
            if len(keys):
                mean = np.mean([out.series(key)["live_paths"] for key in keys], axis=0)
                ax.plot(range(1, len(mean) + 1), mean, color=look.colour, linestyle=look.dash, label=decoder)
        ax.set(title=model, xlabel="step")
        ax.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylabel("live paths")
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.02))
    return fig


def verdicts(records, speedups, out):
    standing_in = (records["weights"] != "pretrained").any()
    trend(records, standing_in, out)
    bands(records, speedups, out)
    per_sample(records, out)


def trend(records, standing_in, out):
    """H1: Page's trend test and the per-prompt slope of log speed-up against log parameters."""
    claim = "The speed-up over sequential sampling grows with model size" + (
        " (cost at equal branch rate)" if standing_in else ""
    )
    four = records[records["model"].isin(SIZES)]
    table = pd.DataFrame(
        {m: ratios(r, "wall_s", "sequential", "eab_particles").set_index("prompt")["ratio"] for m, r in by_model(four)}
    ).dropna()
    if len(table.columns) < 3 or len(table) < 2:
        out.verdict(
            "H1", claim, "undecided", why=f"needs three sizes and two prompts; has {len(table.columns)}, {len(table)}"
        )
        return
    size = [four[four["model"] == model]["n_params"].iloc[0] for model in table]
    slope, page = stats.slope_per_block(size, table.to_numpy()), stats.page_trend(np.log(table.to_numpy()))
    again = stats.bootstrap_interval(stats.block_slopes(size, table.to_numpy()))
    verdict = stats.verdict(slope)
    if verdict == "supported" and page.p >= 0.05:
        verdict = stats.Verdict.UNDECIDED
    why = (
        f"speedup ~ params ** exponent; {len(size)} sizes, {slope.n} prompts, {slope.method}; bootstrap over prompts "
        f"{again.low:+.3f} to {again.high:+.3f}; Page's p = {page.p:.2g}"
    )
    out.verdict("H1", claim, verdict, f"exponent {slope.value:+.3f}", slope[1:3], why)
    if standing_in:
        why = (
            "the stand-in has one branch rate at every size by construction; give pretrained weights (`--weights PATH`)"
        )
        out.verdict("H1b", "Larger models branch in a way that helps more", "undecided", why=why)


def bands(records, speedups, out):
    """H2: the seed's predicted band for each size, against the seed's own baseline."""
    has_now = settings(records)
    other = {name: has_now[name] for name, value in SEED.items() if has_now[name] != value}
    for model in (m for m in SIZES if len(speedups) and m in set(speedups["model"])):
        row = speedups[
            (speedups["model"] == model)
            & (speedups["method"] == "eab_particles")
            & (speedups["baseline"] == "sequential")
        ]
        if row.empty:
            continue
        value, low, high = row[["speedup", "low", "high"]].iloc[0]
        band, interval, why = BANDS[model], (low, high), f"{row['prompts'].iloc[0]} prompts"
        if np.isnan(low):
            verdict, interval, why = "undecided", None, "one prompt has no interval"
        elif other:
            verdict, why = "undecided", f"the prediction is for {listed(SEED)}; this run has {listed(other)}"
        else:
            verdict = stats.verdict_within(interval, band)
        claim = f"{model}: the speed-up over sequential lies in the predicted {band[0]}-{band[1]}"
        out.verdict(f"H2 {model}", claim, verdict, f"x{value:.2f}", interval, why)


def listed(values: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def per_sample(records, out):
    """H3: time for the same information, against the two arms that share as much as is free of charge."""
    tests, old = {}, []
    for model, mine in by_model(records):
        for baseline in ("dedup", "shared_prefill"):
            wall = ratios(mine, "wall_s", baseline, "eab_particles")
            each = (wall.set_index("prompt")["ratio"].astype(float) * worth(mine, "eab_particles")).dropna()
            if len(each) > 1:
                tests[model, baseline] = np.log(each.to_numpy())
            elif len(wall) and len(worth_by_surprisal(mine, "eab_particles")):
                old.append((model, baseline))
    for model, baseline in old:
        why = "these records count effective samples by surprisal alone, which flatters branching; measure them anew"
        claim = f"{model}: eab_particles beats {baseline}, per effective sample"
        out.verdict(f"H3 {model} {baseline}", claim, "undecided", why=why)
    if not tests and not old:
        why = "worst_effective_samples was measured for no two prompts here (`--set replicate_models=gpt2_small,...`)"
        out.verdict("H3", "EAB beats the lossless tree and shared prefill, per effective sample", "undecided", why=why)
    adjusted = stats.holm({key: stats.mean_p(logs) for key, logs in tests.items()})
    for (model, baseline), logs in tests.items():
        ratio = stats.mean_ratio(logs)
        verdict = stats.verdict(ratio, null=1.0)
        if verdict == "supported" and adjusted[model, baseline] >= 0.05:
            verdict = stats.Verdict.UNDECIDED
        why = f"{ratio.n} prompts, {ratio.method}; p = {adjusted[model, baseline]:.2g} after Holm over {len(tests)}"
        claim = f"{model}: eab_particles beats {baseline}, per effective sample"
        out.verdict(f"H3 {model} {baseline}", claim, verdict, f"x{ratio.value:.2f}", ratio[1:3], why)

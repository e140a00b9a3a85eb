"""From how much text on EqProp beats backprop, what that is due to, what it costs, and the seed's own outputs."""

import json
import math

import numpy as np
import pandas as pd

from mlexp.analysis import plots, stats
from mlexp.analysis.results import paired

VARIANTS = ("looped_mlp", "recurrent_core", "full")
MAIN = ("backprop", *VARIANTS)
BEST = "eqprop_best"  # in each block the variant of the best validation perplexity
FLOORS = ("bigram", "unigram")
LEARNERS = (*MAIN, "backprop_matched", "full_kappa0", *(f"{name}_twin" for name in VARIANTS))
LOOKS = plots.looks((*MAIN, BEST, *LEARNERS[len(MAIN) :])) | {
    name: plots.Look("#6e7781", "", dash) for name, dash in zip(FLOORS, ("--", ":"), strict=True)
}
PARTS = {  # what an advantage could be due to: (with it, without it)
    **{f"the rule, {name}": (name, f"{name}_twin") for name in VARIANTS},
    **{f"the network, {name}": (f"{name}_twin", "backprop") for name in VARIANTS},
    "feedback in full": ("full", "full_kappa0"),
    "full without feedback": ("full_kappa0", "backprop"),
    "recurrent_core, equal parameters": ("recurrent_core", "backprop_matched"),
}
SETTLING = (
    *("gradient_cosine", "inner_cosine", "free_sweeps", "nudged_sweeps", "free_residual", "nudged_residual"),
    *("unconverged_fraction", "step_limit"),
)
TRUSTED = 0.99  # least cosine of an estimate to the true gradient
SAME = 0.02  # nats; below this two losses are the same for practical purposes (2 % of the perplexity)
ROOM = 1.3  # a step may take so many times its limit
PLAIN = 4  # and without feedback so many backprop steps
LEAST_ROUNDS = 3  # of a step whose time is judged
LATE = 0.9  # share of the updates after which a best state says that training was cut short
FLAT = 1.01  # and save for backward so many times as much after more sweeps

ABOUT = """
Perplexity on the test text, the geometric mean over seeds with its 95 % interval, of the state of the best validation
loss; `validation` is that state's, `last` the state after the last update, `train` on the text trained on. `bigram` and
`unigram` are floors: counts on the same training text. `eqprop_best` is, seed by seed, the variant of the best
validation perplexity: chosen on validation, judged on test, at the price of three trainings.
"""
UNTUNED = """
**Not tuned:** at this scale learning rate, dropout and weight decay are defaults (`tune.py` finds better ones). What is
said of winning and losing holds for these alone.
"""
ABOUT_PARTS = """
A correct equilibrium propagation has the same gradient as its twin, the same network under the exact gradient of its
fixed point. A crossover with backprop therefore cannot come from the learning rule: it can come from the network and
from how well it is settled. Differences in test loss, paired by seed, p after Holm over all rows; negative: what is
named first is better.
"""
ABOUT_GRADIENT = """
`gradient_cosine` is the least, over training, of the cosine between the estimate and the true gradient of the free
fixed point (implicit differentiation) on held-out text; `inner_cosine` leaves out the head, whose part needs no rule.
Cells below 0.99 are flagged "gradient not trusted".
"""
ABOUT_COST = """
Ratios to backprop, paired by block, over the training cells: time includes validation and, for EqProp, the checks of
its gradient. `free` and `nudged` are sweeps, means over training.
"""
ABOUT_STEP = """
One gradient with each phase swept so many times exactly. The unit of the limit is one backprop step through one sweep
of the same network, three forwards: (free + 4 nudged + 6) / 3 where both signs are nudged, (free + 2 nudged + 3) / 3
where one is. `over` is the time in that unit over the limit: 1 is no waste. `_unrolled` is backprop through all sweeps.
"""


def report(records, out):
    data, lengths = grid(records, "n_chars"), grid(records, "seq_len")
    steps, gradients = grid(records, "sweep"), grid(records, "variant")
    if len(data):
        table = advantage_table(data)
        crossed = crossover_table(data)
        data_verdicts(data, out)
        out.heading("Amount of text")
        out.text(ABOUT)
        if not data["tuned"].all():
            out.text(UNTUNED)
        out.text("\n".join(answers(data, lengths)))
        out.table(perplexity_table(data), "perplexity.csv", "Every size and learner, and the floors.")
        out.figure(
            scaling_figure(data, "characters of training text"), "data_size.png", "Perplexity and advantage by size."
        )
        out.table(table, "advantage.csv", "Backprop's perplexity over the learner's; above 1 the learner is better.")
        out.table(crossed, "crossover.csv", "Where the advantage over backprop changes its sign.")
    if len(lengths):
        sequence_verdict(lengths, out)
        out.heading("Length of the sequences")
        out.table(perplexity_table(lengths), "sequence_perplexity.csv", "The same targets at every length.")
        out.figure(
            scaling_figure(lengths, "characters of a sequence"), "sequence_length.png", "Perplexity and advantage."
        )
        out.table(advantage_table(lengths), "sequence_advantage.csv", "Backprop's perplexity over the learner's.")
    if len(data):
        parts = part_table(data)
        rule_verdicts(parts, data, out)
        out.heading("The rule or the network")
        out.text(ABOUT_PARTS)
        out.table(parts, "parts.csv", "Differences in test loss, nats.")
        if len(parts.dropna(subset=["low"])):
            out.figure(part_figure(parts), "parts.png", "What the difference to backprop is due to.")
        out.heading("How it learns")
        out.figure(
            learning_figure(data, out), "learning.png", "Validation perplexity over training, mean over seeds; the dot "
            "is the state that was kept.",
        )  # fmt: skip
    trained = pd.concat([data, lengths])
    if len(trained) or len(gradients):
        out.heading("The gradient")
        out.text(ABOUT_GRADIENT)
    if len(trained):
        trust_verdict(trained, out)
        out.table(trust_table(trained), "trust.csv", "Gradient and settling in training, the worst cell of each.")
        if figure := course_figure(trained, out):
            out.figure(figure, "gradient_course.png", "1 - cosine over training; the line is the bar of trust.")
    if len(gradients):
        out.table(gradient_table(gradients), "gradient.csv", "A step's gradient by nudge, beta and tolerance.")
        out.figure(
            gradient_figure(gradients), "gradient.png", "1 - cosine against the cost of a step: each line goes from "
            "the loosest tolerance to the tightest.",
        )  # fmt: skip
    if len(trained) or len(steps):
        out.heading("Cost")
    if len(trained):
        out.text(ABOUT_COST)
        out.table(cost_table(trained), "cost.csv", "Of a training, as ratios to backprop's.")
    if len(steps):
        timed = step_table(steps)
        step_verdicts(timed, trained, out)
        out.text(ABOUT_STEP)
        out.table(timed, "step.csv", "One step.")
        out.figure(step_figure(timed), "step.png", "Time and memory of a step against its sweeps.")
    seed_files(records, data, lengths, out)


def grid(records, axis):
    """The records of the grid that has this axis, with `x`, its number; controls are learners like the others."""
    if axis not in records or records[axis].isna().all():
        return records.iloc[:0]
    some = records[records[axis].notna()].copy()
    if "control" in some and "learner" in some:
        some["learner"] = some["learner"].fillna(some["control"])
    elif "control" in some:
        some["learner"] = some["control"]
    if axis != "variant":
        some["x"] = some[axis].str.extract(r"(\d+)", expand=False).astype(float)
    axes = records.attrs.get("axes", [])
    gone = [name for name in axes if name == "control" or (name in some and some[name].isna().all())]
    some = some.drop(columns=[name for name in gone if name in some])
    some.attrs["axes"] = [name for name in axes if name not in gone]
    for name in SETTLING:  # no column where all the cells are backprop's
        if name not in some:
            some[name] = np.nan
    if axis in ("n_chars", "seq_len"):
        some["last_nats"] = np.log(some["last_validation_perplexity"])
        some = with_best(some)
    return some


def with_best(some):
    """`some` and, for every block with all the variants that there are, the one of the best validation perplexity as an
    arm of its own; its `picked` says which."""
    mine = some[some["learner"].isin(VARIANTS)]
    counts = mine.groupby(["x", "seed"])["learner"].transform("nunique")
    mine = mine[counts == mine["learner"].nunique()]
    if mine["learner"].nunique() < 2:
        return some
    best = mine.loc[mine.groupby(["x", "seed"])["validation_perplexity"].idxmin()]
    both = pd.concat([some, best.assign(learner=BEST, picked=best["learner"])], ignore_index=True)
    both.attrs = some.attrs
    return both


def points(some) -> list[float]:
    return sorted(some["x"].unique())


def present(some, names=LEARNERS) -> list[str]:
    return [name for name in names if name in set(some["learner"])]


def interval(values) -> tuple[float, float, float]:
    values = np.asarray(values, float)
    if len(values) < 2:
        return (float(values[0]) if len(values) else np.nan, np.nan, np.nan)
    return stats.mean_interval(values)[:3]


def ratio_interval(logs) -> tuple[float, float, float]:
    return tuple(math.exp(value) for value in interval(logs))


def difference(some, arm, without, metric="loss_nats") -> pd.Series:
    """`without` minus `arm` by seed: above 0 the arm is better; empty where either is missing."""
    if not {arm, without} <= set(some["learner"]):
        return pd.Series(dtype=float)
    pairs = paired(some, metric, arm="learner", of=arm, to=without, over=["seed"])
    return pairs.set_index("seed")["difference"]


def advantages(some, arm, metric="loss_nats") -> pd.DataFrame:
    """Seeds x points: nats by which `arm` is better than backprop; the seeds that are complete."""
    columns = {x: difference(some[some["x"] == x], arm, "backprop", metric) for x in points(some)}
    return pd.DataFrame({x: values for x, values in columns.items() if len(values)}).dropna()


def enough(table, columns=2) -> bool:
    return len(table) >= 2 and len(table.columns) >= columns


def axis_of(some) -> str:
    return "n_chars" if "n_chars" in some else "seq_len"


def perplexity_table(some):
    axis, rows = axis_of(some), []
    for x in points(some):
        at = some[some["x"] == x]
        for name in present(at, (*LEARNERS, BEST)):
            mine = at[at["learner"] == name]
            value, low, high = ratio_interval(mine["loss_nats"])
            row = {axis: int(x), "learner": name, "seeds": len(mine), "perplexity": value, "low": low, "high": high}
            for short in ("validation", "last", "train"):
                column = {"last": "last_validation"}.get(short, short) + "_perplexity"
                row[short] = math.exp(np.log(mine[column]).mean())
            row |= {"best_step": mine["best_step"].mean(), "updates": mine["updates"].iloc[0],
                    "n_params": mine["n_params"].iloc[0], "note": note(mine)}  # fmt: skip
            rows.append(row)
        for name in FLOORS:
            rows.append(
                {axis: int(x), "learner": name, "seeds": at["seed"].nunique(), "perplexity": floors_of(at)[name]}
            )
    return pd.DataFrame(rows)


def note(mine) -> str:
    """What a reader must know of these cells before believing their number."""
    bad = int((mine["gradient_cosine"] < TRUSTED).sum())
    said = [f"gradient not trusted ({bad} of {len(mine)})"] if bad else []
    if "picked" in mine and mine["picked"].notna().any():
        said.append(", ".join(f"{name} {n}" for name, n in mine["picked"].value_counts().items()))
    return "; ".join(said)


def advantage_table(some):
    axis, rows, tests = axis_of(some), [], {}
    for x in points(some):
        at = some[some["x"] == x]
        for name in present(at, (*LEARNERS[1:], BEST)):
            nats = difference(at, name, "backprop")
            if len(nats):
                value, low, high = ratio_interval(nats)
                row = {axis: int(x), "learner": name, "seeds": len(nats), "ratio": value, "low": low, "high": high}
                rows.append(row | floors_of(at))
                if len(nats) > 1:
                    tests[x, name] = stats.mean_p(nats)
    adjusted = stats.holm(tests) if tests else {}
    for row in rows:
        row["p_holm"] = adjusted.get((row[axis], row["learner"]), np.nan)
    columns = [axis, "learner", "seeds", "ratio", "low", "high", "p_holm", *FLOORS]
    return pd.DataFrame(rows, columns=columns)


def floors_of(at) -> dict[str, float]:
    return {floor: math.exp(np.log(at[f"{floor}_perplexity"]).mean()) for floor in FLOORS}


def crossover_table(data):
    """A row for each learner and for what it is judged on."""
    rows = []
    for name in present(data, (BEST, *LEARNERS[1:])):
        for judged, metric in {"test, early stopped": "loss_nats", "validation, last update": "last_nats"}.items():
            table = advantages(data, name, metric)
            if enough(table) and not (name == BEST and metric == "last_nats"):
                rows.append({"learner": name, "judged_on": judged} | crossing(table))
    return pd.DataFrame(rows, columns=["learner", "judged_on", *CROSSING])


CROSSING = (
    "crossover",
    "low",
    "high",
    "median",
    "bootstrap_low",
    "bootstrap_high",
    "p_none",
    "p_multiple",
    "seeds",
    "says",
)


def crossing(table) -> dict[str, object]:
    """Where the mean advantage (seeds x sizes) changes its sign: t test inverted, and a bootstrap over seeds."""
    found, drawn = stats.crossover(table.columns, table), stats.crossings(table.columns, table)
    value, low, high = found[:3] if found else (np.nan,) * 3
    numbers = (value, low, high, *drawn[:5], len(table), crossing_words(table, found))
    return dict(zip(CROSSING, numbers, strict=True))


def crossing_words(table, found) -> str:
    if found:
        who = "wins above" if found.rises else "wins below"
        more = f", and {found.crossings - 1} more" if found.crossings > 1 else ""
        return f"{who} {plots.si(found.value)}{more}"
    ahead = "ahead" if table.mean().mean() > 0 else "behind"
    return f"no crossover: {ahead} from {plots.si(table.columns[0])} to {plots.si(table.columns[-1])}"


def all_of(parts) -> str:
    """The verdict of a claim that needs each of its parts."""
    if "refuted" in parts:
        return "refuted"
    return "supported" if parts and set(parts) == {"supported"} else "undecided"


def champion(some) -> str | None:
    """The arm that stands for EqProp: the best variant by block, or the only one that there is."""
    names = present(some, (BEST, *VARIANTS))
    return names[0] if names else None


def data_verdicts(data, out):
    arm = champion(data)
    claims = {
        "Q": "There is an amount of text below which backprop wins and above which EqProp does",
        "E1": "The seed: below 5K characters backprop wins",
        "E2": "The seed: EqProp begins to win at 10-20K characters",
        "E3": "The seed: above 20K characters EqProp is twice better",
        "T": "The advantage of EqProp grows with the amount of text",
    }
    table = advantages(data, arm) if arm else pd.DataFrame()
    if not enough(table):
        why = f"needs two sizes and two seeds of backprop and of EqProp; has {len(table.columns)} and {len(table)}"
        for id, claim in claims.items():
            out.verdict(id, claim, "undecided", why=why)
        return
    each = {x: interval(table[x]) for x in table}
    found = crossing(table)
    first, last = each[table.columns[0]], each[table.columns[-1]]
    verdict = "supported" if first[2] < 0 < last[1] else "refuted" if first[1] > 0 or last[2] < 0 else "undecided"
    span = None if np.isnan(found["crossover"]) else (found["low"], found["high"])
    why = f"{arm}, {len(table)} seeds; bootstrap over them: P(no crossover) = {found['p_none']:.2f}, P(several) = "
    why += f"{found['p_multiple']:.2f}"
    if not np.isnan(found["median"]):
        median, low, high = (plots.si(found[name]) for name in ("median", "bootstrap_low", "bootstrap_high"))
        why += f", median {median}, 95 % {low} to {high}"
    out.verdict("Q", claims["Q"], verdict, f"EqProp {found['says']}", span, why)
    rest = (arm, out, each)
    backprop_wins, eqprop_wins = -1, 1
    small, large = [x for x in each if x < 5000], [x for x in each if x > 20_000]
    before, begins = [x for x in each if x < 10_000][-1:], [x for x in each if 10_000 <= x <= 20_000]
    expect("E1", claims["E1"], dict.fromkeys(small, backprop_wins), 0.0, *rest)
    starts = dict.fromkeys(before, backprop_wins) | dict.fromkeys(begins, eqprop_wins)
    expect("E2", claims["E2"], starts if before and begins else {}, 0.0, *rest)
    expect("E3", claims["E3"], dict.fromkeys(large, eqprop_wins), math.log(2), *rest)
    trend_verdict("T", claims["T"], table, out)


def expect(id, claim, signs, least, arm, out, each):
    """A claim on EqProp's advantage at some sizes: above `least` nats where its sign is 1, below -`least` where -1."""
    if not signs:
        out.verdict(id, claim, "undecided", why="no such size in these records")
        return
    parts = []
    for x, sign in signs.items():
        low, high = each[x][1:] if sign > 0 else (-each[x][2], -each[x][1])
        parts.append(stats.verdict((low, high), null=least))
    ratios = {x: [math.exp(value) for value in each[x]] for x in signs}
    effect = "; ".join(f"x{ratio[0]:.2f} at {plots.si(x)}" for x, ratio in ratios.items())
    spans = "; ".join(f"{low:.2f} to {high:.2f} at {plots.si(x)}" for x, (_, low, high) in ratios.items())
    out.verdict(id, claim, all_of(parts), effect, why=f"backprop's perplexity over {arm}'s, 95 %: {spans}")


def trend_verdict(id, claim, table, out):
    """Of the slope of log ratio on log x, by seed."""
    slope = stats.slope_per_block(list(table.columns), np.exp(table))
    why = f"ratio of perplexities ~ x ** slope; {slope.n} seeds, {slope.method}"
    verdict = stats.verdict(slope)
    if len(table.columns) > 2:
        page = stats.page_trend(table)
        why += f"; Page's p = {page.p:.2g}"
        if verdict == "supported" and page.p >= 0.05:
            verdict = stats.Verdict.UNDECIDED
    ends = " to ".join(f"x{math.exp(table[x].mean()):.2f} at {plots.si(x)}" for x in table.columns[[0, -1]])
    out.verdict(id, claim, verdict, f"slope {slope.value:+.3f}: {ends}", slope[1:3], why)


def sequence_verdict(lengths, out):
    claim = "Longer sequences favour EqProp"
    arm = champion(lengths)
    table = advantages(lengths, arm) if arm else pd.DataFrame()
    if enough(table):
        trend_verdict("S", claim, table, out)
    else:
        why = f"needs two lengths and two seeds of both; has {len(table.columns)} and {len(table)}"
        out.verdict("S", claim, "undecided", why=why)


def answers(data, lengths):
    """The seed's four questions, each with what these records say."""
    arm = champion(data)
    table = advantages(data, arm) if arm else pd.DataFrame()
    if not enough(table, 1):
        yield "- Two seeds of backprop and of an EqProp variant are needed for every question; they are not here."
        return
    says = crossing(table)["says"] if enough(table) else "needs two sizes"
    yield f"- **Crossover point.** EqProp ({arm}) {says}."
    losses = data[data["learner"].isin(VARIANTS)].pivot_table(
        index=["x", "seed"], columns="learner", values="loss_nats"
    )
    mean = losses.dropna().mean().map(math.exp).sort_values()
    picks = data["picked"].value_counts() if "picked" in data else {}
    chosen = f"; chosen on validation: {', '.join(f'{k} {v} times' for k, v in picks.items())}" if len(picks) else ""
    means = ", ".join(f"{name} {value:.2f}" for name, value in mean.items())
    yield f"- **Best variant.** Test perplexity, mean over sizes and seeds that have all: {means}{chosen}."
    yield f"- **Scale.** {told(table)}."
    arm = champion(lengths) if len(lengths) else None
    longer = advantages(lengths, arm) if arm else pd.DataFrame()
    yield f"- **Sequences.** {told(longer) if enough(longer, 1) else 'No two seeds of both in these records'}."
    if late := still_learning(data):
        yield (
            f"- **Budget.** All learners make the same updates. At {', '.join(late)} backprop was best at its "
            "last ones: longer training would have helped it there, and who wins is said of this budget alone."
        )


def still_learning(data, name="backprop") -> list[str]:
    """Amounts of text at which a learner's best state is, in the mean, within the last tenth of its updates."""
    some = data[data["learner"] == name]
    share = (some["best_step"] / some["updates"]).groupby(some["x"]).mean()
    return [plots.si(x) for x in share.index[share > LATE]]


def told(table) -> str:
    each = {x: ratio_interval(table[x]) for x in table}
    return "Backprop's perplexity over EqProp's: " + "; ".join(
        f"x{value:.2f} [{low:.2f}, {high:.2f}] at {plots.si(x)}" for x, (value, low, high) in each.items()
    )


def part_table(data):
    rows, tests = [], {}
    for x in points(data):
        at = data[data["x"] == x]
        for what, (arm, without) in PARTS.items():
            nats = -difference(at, arm, without)
            if len(nats):
                value, low, high = interval(nats)
                cosine = at.loc[at["learner"].isin((arm, without)), "gradient_cosine"].min()
                row = {"n_chars": int(x), "part": what, "arm": arm, "against": without, "value": value, "low": low}
                rows.append(row | {"high": high, "seeds": len(nats), "least_cosine": cosine} | floors_of(at))
                if len(nats) > 1:
                    tests[x, what] = stats.mean_p(nats)
    adjusted = stats.holm(tests) if tests else {}
    for row in rows:
        row["p_holm"] = adjusted.get((row["n_chars"], row["part"]), np.nan)
    columns = ["n_chars", "part", "arm", "against", "value", "low", "high", "p_holm", "seeds", "least_cosine", *FLOORS]
    return pd.DataFrame(rows, columns=columns)


def rule_verdicts(parts, data, out):
    """Whether the rule makes a difference, variant by variant, over all sizes at which the twin was trained."""
    for name in VARIANTS:
        claim = f"{name}: the rule costs nothing, EqProp ends within {SAME:g} nats of the exact gradient"
        mine = parts[(parts["arm"] == name) & (parts["against"] == f"{name}_twin")]
        if mine.empty:
            continue
        nats = pd.concat([-difference(data[data["x"] == x], name, f"{name}_twin") for x in mine["n_chars"]])
        value, low, high = interval(nats.groupby(level=0).mean())
        where = ", ".join(map(plots.si, mine["n_chars"]))
        seeds, cosine = nats.index.nunique(), mine["least_cosine"].min()
        why = f"EqProp minus twin at {where}, {seeds} seeds; least cosine {cosine:.4f}"
        if np.isnan(low):
            out.verdict(f"R {name}", claim, "undecided", f"{value:+.4f} nats", why=why + "; one seed has no interval")
        else:
            verdict = stats.verdict_within((low, high), (-SAME, SAME))
            out.verdict(f"R {name}", claim, verdict, f"{value:+.4f} nats", (low, high), why)


def settled(some):
    """Cells whose gradient was checked."""
    return some[some["gradient_cosine"].notna() & (some["learner"] != BEST)]


def trust_verdict(trained, out):
    mine = settled(trained)
    if mine.empty:
        return
    bad = mine[mine["gradient_cosine"] < TRUSTED]
    ids = bad["cell"].str.extract(r"\[(.*)\]", expand=False)
    named = "; ".join(f"{id} {cosine:.4f}" for id, cosine in zip(ids, bad["gradient_cosine"], strict=True))
    worst = f"least cosine {mine['gradient_cosine'].min():.4f}"
    why = f"gradient not trusted in {named}" if len(bad) else f"all {len(mine)} cells"
    out.verdict("G", f"Every EqProp gradient has a cosine of at least {TRUSTED} to the true one, all through training",
                "refuted" if len(bad) else "supported", worst, why=why)  # fmt: skip


def trust_table(trained):
    mine = trained[trained["free_sweeps"].notna() & (trained["learner"] != BEST)]
    grouped = mine.groupby("learner", sort=False)
    table = grouped.agg(
        cells=("cell", "size"), gradient_cosine=("gradient_cosine", "min"), inner_cosine=("inner_cosine", "min"),
        free_sweeps=("free_sweeps", "mean"), nudged_sweeps=("nudged_sweeps", "mean"),
        free_residual=("free_residual", "max"), nudged_residual=("nudged_residual", "max"),
        unconverged_fraction=("unconverged_fraction", "max"),
    ).reset_index()  # fmt: skip
    bad = grouped["gradient_cosine"].apply(lambda values: int((values < TRUSTED).sum()))
    table["not_trusted"] = table["learner"].map(bad)
    return table


def gradient_table(gradients):
    axes = ["variant", "nudge", "beta", "tolerance"]
    names = ["gradient_cosine", "inner_cosine", "gradient_ratio", "free_sweeps", "nudged_sweeps", "wall_s", "flops"]
    table = gradients[axes + names].copy()
    table["note"] = np.where(table["gradient_cosine"] < TRUSTED, "gradient not trusted", "")
    return table.sort_values(axes, kind="stable")


def cost_table(trained):
    """Ratios to backprop over all blocks, and what the settling took."""
    rows = []
    for name in present(trained):
        row = {"learner": name, "cells": int((trained["learner"] == name).sum())}
        mine = trained[trained["learner"] == name]
        row |= {short: mine[f"{short}_sweeps"].mean() for short in ("free", "nudged")}
        for short, metric in {"time": "wall_s", "flops": "flops", "peak": "peak_bytes", "saved": "saved_bytes"}.items():
            logs = [] if name == "backprop" else block_ratios(trained, name, metric)
            if len(logs):
                names = (short, f"{short}_low", f"{short}_high")
                row |= dict(zip(names, ratio_interval(logs), strict=True))
        rows.append(row)
    return pd.DataFrame(rows).dropna(axis=1, how="all")


def block_ratios(trained, name, metric) -> np.ndarray:
    """Log of the learner's metric over backprop's: a value a seed, the mean over its blocks."""
    logs = []
    for axis in ("n_chars", "seq_len"):
        for x in trained[axis].dropna().unique() if axis in trained else ():
            at = trained[trained[axis] == x]
            if {name, "backprop"} <= set(at["learner"]) and (at[metric] > 0).all():
                pairs = paired(at, metric, arm="learner", of=name, to="backprop", over=["seed"])
                logs.append(np.log(pairs.set_index("seed")["ratio"]))
    return pd.concat(logs).groupby(level=0).mean().to_numpy() if logs else np.array([])


def step_table(steps):
    """Each step's time over backprop's in its block, and over its limit in steps through one sweep.

    A step through one sweep is timed at s1; backprop, the same in every block, says how fast the machine was.
    """
    rows, times = [], steps.set_index(["sweep", "stepper"])["wall_s"]
    for row in steps.sort_values(["stepper", "x"]).itertuples():
        plain = times.get((row.sweep, "backprop"), np.nan)
        unit = times.get(("s1", f"{row.stepper}_unrolled"), np.nan) * plain / times.get(("s1", "backprop"), np.nan)
        limit = row.step_limit if row.step_limit is not None else np.nan
        line = {"stepper": row.stepper, "sweeps": int(row.x), "wall_s": row.wall_s, "over_backprop": row.wall_s / plain}
        line |= {"in_units": row.wall_s / unit, "limit": limit, "over": row.wall_s / unit / limit}
        rows.append(line | {"saved_bytes": row.saved_bytes, "peak_bytes": row.peak_bytes, "flops": row.flops,
                            "rounds": row.rounds})  # fmt: skip
    return pd.DataFrame(rows)


def step_verdicts(timed, trained, out):
    """Judged at the sweeps nearest to those that training makes; at the worst where nothing was trained."""
    for name, mine in timed[timed["over"].notna() & (timed["rounds"] >= LEAST_ROUNDS)].groupby("stepper", sort=False):
        made = trained.loc[trained["learner"] == name, "nudged_sweeps"].mean() if len(trained) else np.nan
        row = mine.loc[mine["over"].idxmax() if np.isnan(made) else np.log(mine["sweeps"] / made).abs().idxmin()]
        claim = f"{name}: a step takes at most {ROOM} times the limit for the sweeps that it makes"
        effect = f"x{row['over']:.2f} at {row['sweeps']} sweeps"
        why = "" if np.isnan(made) else f"training makes {made:.1f} nudged ones; "
        why += f"x{mine['over'].min():.2f} to x{mine['over'].max():.2f} over {listed(mine['sweeps'])} sweeps; "
        why += f"a step is x{row['over_backprop']:.1f} of backprop's"
        out.verdict(f"L {name}", claim, "supported" if row["over"] <= ROOM else "refuted", effect, why=why)
    plain = timed[(timed["stepper"] == "full_kappa0") & (timed["sweeps"] == 2) & (timed["rounds"] >= LEAST_ROUNDS)]
    if len(plain):  # two nudged sweeps: what it makes in training
        times = plain["over_backprop"].iloc[0]
        claim = f"full_kappa0: without feedback a step takes at most {PLAIN} backprop steps"
        out.verdict("K", claim, "supported" if times <= PLAIN else "refuted", f"x{times:.2f}", why="two nudged sweeps")
    for name, mine in timed[timed["limit"].notna()].groupby("stepper", sort=False):
        if len(mine) > 1:
            grows = mine["saved_bytes"].max() / mine["saved_bytes"].min()
            plain = timed.loc[timed["stepper"] == "backprop", "saved_bytes"]
            beside = f"; backprop {plots.si(plain.iloc[0])}B" if len(plain) else ""
            why = f"saved for backward: {plots.si(mine['saved_bytes'].max())}B{beside}"
            verdict = "supported" if grows <= FLAT else "refuted"
            claim = f"{name}: memory for backward is flat in the number of sweeps"
            out.verdict(f"M {name}", claim, verdict, f"x{grows:.3f} from fewest to most", why=why)


def listed(values) -> str:
    return ", ".join(f"{value:g}" for value in sorted(values))


def scaling_figure(some, label):
    """Perplexity with the floors, and the ratio to backprop."""
    fig, (left, right) = plots.figures(2, size=(13, 4.4))
    axis, curves = axis_of(some), perplexity_table(some)
    plots.curves(left, curves[curves["learner"].isin((*MAIN, *FLOORS))], axis, "perplexity", "learner", LOOKS)
    table = advantage_table(some)
    names = table["learner"].isin((*VARIANTS, BEST))
    if names.any():
        plots.curves(right, table[names], axis, "ratio", "learner", LOOKS)
    plots.reference(right, y=1.0)
    for ax in (left, right):
        plots.log_x(ax, ticks=some["x"])
        ax.set(xlabel=label)
    plots.log_y(left)
    left.set(title="Test perplexity", ylabel="perplexity")
    right.set(title="Advantage over backprop", ylabel="backprop's perplexity / the learner's")
    return fig


def part_figure(parts):
    sizes = parts["n_chars"].unique()
    fig, panels = plots.figures(len(sizes), size=(5.2 * len(sizes) + 2.4, 4.2), sharex=True)
    for ax, x in zip(panels, sizes, strict=True):
        plots.intervals(ax, parts[parts["n_chars"] == x], "part", null=0.0)
        ax.set(title=f"{plots.si(x)} characters", xlabel="nats of test loss; below 0: better with it")
    return fig


def learning_figure(data, out):
    names = points(data)
    fig, panels = plots.figures(len(names), sharey=True, size=(3.6 * len(names) + 2, 3.8))
    for ax, x in zip(panels, names, strict=True):
        at = data[data["x"] == x]
        for name in present(at, MAIN):
            kept = [out.series(key) for key in at.loc[at["learner"] == name, "key"]]
            curve = np.exp(np.mean([s["held_out"] for s in kept], axis=0))
            steps, look = np.asarray(kept[0]["held_out_steps"]), LOOKS[name]
            ax.plot(steps, curve, color=look.colour, linestyle=look.dash, label=name)
            best = int(np.argmin(curve))
            ax.plot(steps[best], curve[best], look.marker, color=look.colour)
        plots.log_y(ax)
        ax.set(title=f"{plots.si(x)} characters", xlabel="updates")
    panels[0].set_ylabel("validation perplexity")
    lines = {line.get_label(): line for ax in panels for line in ax.get_lines() if line.get_label() in LOOKS}
    panels[-1].legend(lines.values(), lines, loc="upper left", bbox_to_anchor=(1.01, 1.02))
    return fig


def course_figure(trained, out):
    """1 - cosine at the checks of each EqProp cell, as a share of training; None where nothing was checked."""
    mine = settled(trained)
    if mine.empty:
        return None
    names = present(mine)
    fig, panels = plots.figures(len(names), sharey=True, size=(2.9 * len(names) + 0.8, 3.6))
    for ax, name in zip(panels, names, strict=True):
        for row in mine[mine["learner"] == name].itertuples():
            kept = out.series(row.key)
            share = np.asarray(kept["checked_steps"]) / row.updates
            error = np.maximum(1 - np.asarray(kept["gradient_cosine"]), 1e-7)
            ax.plot(share, error, color=LOOKS[name].colour, alpha=0.5, linewidth=1)
        plots.log_y(ax)
        plots.reference(ax, y=1 - TRUSTED)
        ax.set(title=name, xlabel="share of the updates")
    panels[0].set_ylabel("1 - cosine")
    return fig


def gradient_figure(gradients):
    names = [name for name in VARIANTS if name in set(gradients["variant"])]
    betas = sorted(gradients["beta"].unique(), key=lambda beta: float(beta[4:].replace("_", ".")))
    colours = dict(zip(("symmetric", "split", "positive"), plots.OKABE_ITO, strict=False))
    fig, panels = plots.figures(len(names), sharey=True, size=(4 * len(names) + 2.2, 4.2))
    for ax, name in zip(panels, names, strict=True):
        for nudge, colour in colours.items():
            for beta, mark in zip(betas, plots.MARKERS, strict=False):
                keep = (gradients["variant"] == name) & (gradients["nudge"] == nudge) & (gradients["beta"] == beta)
                mine = gradients[keep].sort_values("flops")
                error = np.maximum(1 - mine["gradient_cosine"], 1e-7)
                label = f"{nudge}, {beta[4:].replace('_', '.')}"
                ax.plot(mine["flops"], error, color=colour, marker=mark, linewidth=1, markersize=4.5, label=label)
        plots.log_x(ax)
        plots.log_y(ax)
        plots.reference(ax, y=1 - TRUSTED)
        ax.set(title=name, xlabel="FLOPs of a step")
    panels[0].set_ylabel("1 - cosine")
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), title="nudge, beta", fontsize=8)
    return fig


def step_figure(timed):
    apart = ("backprop_matched", "full_kappa0_unrolled")  # sweeps change nothing in the one, and are idle in the other
    names = [name for name in timed["stepper"].unique() if name not in apart]
    looks = {name: LOOKS[name.removesuffix("_unrolled")] for name in names}
    looks = {name: look._replace(dash=":" if name.endswith("_unrolled") else "-") for name, look in looks.items()}
    fig, (left, right) = plots.figures(2, size=(11.4, 4.4))
    shown = timed[timed["stepper"].isin(names)]
    for ax, column, scale in ((left, "over_backprop", 1), (right, "saved_bytes", 1e-6)):
        table = shown.assign(y=shown[column] * scale)
        plots.curves(ax, table, "sweeps", "y", "stepper", looks, labels=ax is right)
        plots.log_x(ax, ticks=timed["sweeps"])
        plots.log_y(ax)
        ax.set(xlabel="sweeps of each phase")
    plots.reference(left, y=1.0)
    left.set(title="Time of a step", ylabel="times backprop's")
    right.set(title="Saved for backward", ylabel="MB")
    return fig


def seed_files(records, data, lengths, out):
    """The seed's own JSON and CSV: a row a trained cell; intermediate where the study is not finished."""
    setting = json.loads(records["settings"].iloc[0])
    names = {"perplexity": "perplexity", "val_perplexity": "validation_perplexity",
             "final_epoch_perplexity": "last_validation_perplexity", "train_perplexity": "train_perplexity",
             "bigram_perplexity": "bigram_perplexity", "unigram_perplexity": "unigram_perplexity",
             "params": "n_params", "updates": "updates", "best_step": "best_step", "time_s": "wall_s", "flops": "flops",
             "peak_bytes": "peak_bytes", "saved_bytes": "saved_bytes", "gradient_cosine": "gradient_cosine",
             "free_sweeps": "free_sweeps", "nudged_sweeps": "nudged_sweeps",
             "unconverged_fraction": "unconverged_fraction"}  # fmt: skip
    rows = []
    for what, some in (("data_size", data), ("sequence_length", lengths)):
        for row in (some[some["learner"] != BEST] if len(some) else some).to_dict("records"):
            sizes = {"n_chars": setting["sequence_chars"], "seq_len": setting["length"]}
            line = {"experiment": what} | sizes | {axis_of(some): int(row["x"])}
            line |= {"learner": row["learner"], "seed": row["seed"]}
            rows.append(line | {mine: plain(row.get(theirs)) for mine, theirs in names.items()})
    if not rows:
        return
    planned = int(pd.concat([data, lengths])["planned_cells"].max())
    arm = champion(data) if len(data) else None
    table = advantages(data, arm) if arm else pd.DataFrame()
    found = {name: plain(value) for name, value in crossing(table).items()} if enough(table) else None
    config = {"hidden": setting["width"], "layers": setting["layers"], "seq_len": setting["length"],
              "epochs": None if setting["updates"] else setting["epochs"], "updates": setting["updates"]}  # fmt: skip
    done = len(rows) >= planned
    content = {"config": config, "finished": done, "cells": len(rows), "planned_cells": planned, "crossover": found,
               "results": rows}  # fmt: skip
    out.file(f"results_{'final' if done else 'intermediate'}.json", json.dumps(content, indent=2) + "\n")
    out.table(pd.DataFrame(rows), "results_final.csv", f"The seed's spreadsheet: {len(rows)} of {planned} trainings.")


def plain(value):
    """As JSON can hold it."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value.item() if hasattr(value, "item") else value

"""What no row of the declaration says: the crossover, the rule or the network, learning, cost."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from mlexp.analysis import curves, plots, stats
from mlexp.analysis.shown import thousands
from mlexp.analysis.tables import arm_table, cells_of, levels_of, pair_table
from mlexp.study import load

HERE = Path(__file__).parent
declared, steps = load(HERE / "study.py"), load(HERE / "steps.py")
original = load(HERE / "original" / "outputs.py")
BEST, MAIN, TRUSTED, VARIANTS = declared.BEST, declared.MAIN, declared.TRUSTED, declared.VARIANTS
BARS = "95 % t interval over seeds"
SCALING = "Test perplexity, and backprop's over the learner's (above 1 the learner is better), geometric means"
FLOORS = {name: plots.Look("#6e7781", "", dash) for name, dash in (("bigram", "--"), ("unigram", ":"))}

ABOUT = """
Perplexity on the test text, the geometric mean over seeds with its 95 % interval, of the state of the best validation
loss; `validation` is that state's, `last` the state after the last update, `train` on the text trained on. `bigram` and
`unigram` are floors: counts on the same training text. `eqprop_best` is, seed by seed, the variant of the best
validation perplexity: chosen on validation, scored on test, at the price of three trainings. No claim is about it: the
claims compare each variant with backprop, under intervals that hold for all three at once.
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
Ratios to backprop, paired by block, over the training cells: `time` is all of a training's, `scoring` its validations'
alone, `training` the rest, for EqProp with the checks of its gradient. `free`, `nudged` and `prediction` are sweeps,
means over training and over validations.
"""
ABOUT_STEP = """
One gradient with each phase swept so many times exactly. The unit of the limit is one backprop step through one sweep
of the same network, three forwards: (free + 4 nudged + 6) / 3 where both signs are nudged, (free + 2 nudged + 3) / 3
where one is. `over` is the time in that unit over the limit: 1 is no waste. `_unrolled` is backprop through all sweeps.
"""


def report(records, out):
    data, crossovers = out.data, crossover_table(out.data)
    for axis, fill in (("n_chars", amount), ("seq_len", length)):
        if axis in records and len(data.rows(axis)):
            fill(data, crossovers, out)
    gradients, single = steps.grid(records, "variant"), steps.grid(records, "sweep")
    trained = records["learner"].notna().any()
    if trained or len(gradients):
        out.heading("The gradient")
        out.text(ABOUT_GRADIENT)
    if trained:
        out.table(steps.trust_table(records), "trust.csv", "Gradient and settling in training, the worst cell of each.")
        if figure := steps.course_figure(data, out):
            worst = steps.checked(records)["gradient_cosine"].min()
            out.figure(
                figure, "gradient_course.svg",
                f"The worst gradient in training has a cosine of {worst:.4f} to the true one",
                f"1 - cosine over training, a line a cell; dashed: the bar of trust, cosine {TRUSTED:g}",
            )  # fmt: skip
    if len(gradients):
        out.table(steps.gradient_table(gradients), "gradient.csv", "A step's gradient by nudge, beta and tolerance.")
        out.figure(
            steps.gradient_figure(gradients), "gradient.svg", steps.gradient_finding(gradients),
            "1 - cosine against the cost of a step; each line goes from the loosest tolerance to the tightest",
        )  # fmt: skip
        frontier = steps.frontier_table(gradients)
        if frontier["over"].notna().any():
            out.table(frontier, "frontier.csv", steps.ABOUT_FRONTIER)
            out.figure(
                steps.frontier_figure(data, frontier), "frontier.svg", steps.frontier_finding(frontier),
                "1 - cosine to the true gradient against a step's time over that at the tolerance of training; a "
                "line a variant at its own nudge, from the loosest tolerance to the tightest",
                n="one step of each, its rounds' median",
            )  # fmt: skip
    if trained or len(single):
        out.heading("Cost")
    if trained:
        out.text(ABOUT_COST)
        out.table(cost_table(data), "cost.csv", "Of a training, as ratios to backprop's.")
    if len(single):
        timed = steps.step_table(single)
        out.text(ABOUT_STEP)
        out.table(timed.drop(columns=["spread", "spread_backprop"]), "step.csv", "One step.")
        out.figure(
            steps.step_figure(data, timed), "step.svg", steps.step_finding(timed),
            "Time of a step over backprop's, and bytes saved for backward, against its sweeps",
        )  # fmt: skip
    original.files(data, crossovers, out)


def amount(data, crossovers, out):
    """The grid over the amount of training text."""
    rows = data.rows("n_chars")
    out.heading("Amount of text")
    out.text(ABOUT)
    if not rows["tuned"].all():
        out.text(UNTUNED)
    out.text("\n".join(original.answers(data, advantage_table)))
    out.table(perplexity_table(data, "n_chars"), "perplexity.csv", "Every size and learner, and the floors.")
    out.figure(
        scaling_figure(data, "n_chars", "characters of training text", crossovers), "data_size.svg",
        scaling_finding(data, "n_chars"), f"{SCALING}; shaded: where each crossover may lie, 95 %", BARS,
    )  # fmt: skip
    table = advantage_table(data, "n_chars")
    out.table(table, "advantage.csv", "Backprop's perplexity over the learner's; above 1 the learner is better.")
    out.table(crossovers, "crossover.csv", "Where the advantage over backprop changes its sign.")
    parts = part_table(data)
    out.heading("The rule or the network")
    out.text(ABOUT_PARTS)
    out.table(parts, "parts.csv", "Differences in test loss, nats.")
    if len(parts.dropna(subset=["low"])):
        out.lead = "parts.svg"
        out.figure(
            part_figure(parts), "parts.svg", part_finding(parts),
            "Difference in test loss between two learners, paired by seed; below 0: better with it", BARS,
        )  # fmt: skip
    out.heading("How it learns")
    out.figure(
        learning_figure(data, out), "learning.svg", learning_finding(data),
        "Validation loss over training minus backprop's, paired by seed; the mark is the best state, which is scored",
        "95 % t interval of each point over seeds",
    )  # fmt: skip


def length(data, crossovers, out):
    """The grid over the length of the sequences."""
    out.heading("Length of the sequences")
    out.table(perplexity_table(data, "seq_len"), "sequence_perplexity.csv", "The same targets at every length.")
    if len(levels_of(data, "seq_len")) > 2:
        out.figure(
            scaling_figure(data, "seq_len", "characters of a sequence", crossovers), "sequence_length.svg",
            scaling_finding(data, "seq_len"), SCALING, BARS,
        )  # fmt: skip
    out.table(advantage_table(data, "seq_len"), "sequence_advantage.csv", "Backprop's perplexity over the learner's.")


def floors_of(data, axis, level) -> dict[str, float]:
    rows = data.rows(axis)
    at = rows[rows[axis] == level]
    return {floor: math.exp(np.log(at[f"{floor}_perplexity"]).mean()) for floor in FLOORS}


def perplexity_table(data, axis):
    rows, table = [], arm_table(data, axis)
    for row in table.itertuples():
        level, cells = getattr(row, axis), cells_of(data, axis, getattr(row, axis), row.learner)
        line = {axis: int(declared.number(level)), "learner": row.learner, "seeds": row.blocks,
                "perplexity": math.exp(row.loss_nats)}  # fmt: skip
        line |= {"low": math.exp(row.low), "high": math.exp(row.high)}
        for name in ("validation", "last", "train"):
            column = {"last": "last_validation"}.get(name, name) + "_perplexity"
            line[name] = math.exp(np.log(cells[column]).mean())
        line |= {"best_step": cells["best_step"].mean(), "updates": cells["updates"].iloc[0],
                 "n_params": cells["n_params"].iloc[0], "note": note(cells)}  # fmt: skip
        rows.append(line)
        if row.Index + 1 == len(table) or table[axis][row.Index + 1] != level:
            seeds = data.rows(axis).loc[data.rows(axis)[axis] == level, "seed"].nunique()
            rows += [{axis: line[axis], "learner": floor, "seeds": seeds, "perplexity": value}
                     for floor, value in floors_of(data, axis, level).items()]  # fmt: skip
    return pd.DataFrame(rows)


def note(cells) -> str:
    """What a reader must know of these cells before believing their number."""
    bad = int((cells["gradient_cosine"] < TRUSTED).sum())
    notes = [f"gradient not trusted ({bad} of {len(cells)})"] if bad else []
    if "picked" in cells and cells["picked"].notna().any():
        notes.append(", ".join(f"{name} {n}" for name, n in cells["picked"].value_counts().items()))
    return "; ".join(notes)


def advantage_table(data, axis):
    pairs = {name: ("backprop", name) for name in data.arms if name != "backprop"}
    table = pair_table(data, pairs, axis, "perplexity", ratio=True)
    floors = [floors_of(data, axis, level) for level in table[axis]]
    table = table.rename(columns={"value": "ratio", "blocks": "seeds", "p_adjusted": "p_holm"}).assign(
        **{axis: table[axis].map(lambda level: int(declared.number(level)))}, learner=table["name"],
        **{floor: [row[floor] for row in floors] for floor in FLOORS},
    )  # fmt: skip
    return table[[axis, "learner", "seeds", "ratio", "low", "high", "p_holm", *FLOORS]]


CROSSING = ("crossover", "low", "high", "median", "bootstrap_low", "bootstrap_high", "p_none", "p_multiple", "seeds",
            "outcome")  # fmt: skip


def crossover_table(data) -> pd.DataFrame:
    """A row for each learner and for what it is scored on."""
    rows, axis = [], "n_chars"
    if axis in data.records:
        for name in sorted((a for a in data.arms if a != "backprop"), key=lambda a: a != BEST):
            for scored, metric in (("test, early stopped", "loss_nats"), ("validation, last update", "last_nats")):
                table = advantages(data, name, metric)
                if min(table.shape) > 1 and not (name == BEST and metric == "last_nats"):
                    rows.append({"learner": name, "scored_on": scored} | crossing(table))
    return pd.DataFrame(rows, columns=["learner", "scored_on", *CROSSING])


def advantages(data, name, metric) -> pd.DataFrame:
    """Seeds x sizes (numbers): nats by which a learner is better than backprop; the seeds that have all sizes."""
    table = data.table(metric, "n_chars")
    levels = [level for level in levels_of(data, "n_chars") if {(level, name), (level, "backprop")} <= set(table)]
    columns = {declared.number(level): table[level, "backprop"] - table[level, name] for level in levels}
    return pd.DataFrame(columns).dropna()


def crossing(table) -> dict[str, object]:
    """Where the mean advantage (seeds x sizes) changes its sign: t test inverted, and a bootstrap over seeds."""
    found, drawn = curves.crossover(table.columns, table), curves.crossings(table.columns, table)
    value, low, high = found[:3] if found else (math.nan,) * 3
    numbers = (value, low, high, *drawn[:5], len(table), crossing_text(table, found))
    return dict(zip(CROSSING, numbers, strict=True))


def crossing_text(table, found) -> str:
    if found:
        who = "wins above" if found.rises else "wins below"
        more = f", and {found.crossings - 1} more" if found.crossings > 1 else ""
        return f"{who} {thousands(found.value)}{more}"
    ahead = "ahead" if table.mean().mean() > 0 else "behind"
    return f"no crossover: {ahead} from {thousands(table.columns[0])} to {thousands(table.columns[-1])}"


def part_table(data) -> pd.DataFrame:
    table, rows = pair_table(data, data.study.parts, "n_chars"), data.rows("n_chars")
    cosine = [rows.loc[(rows["n_chars"] == row.n_chars) & rows["learner"].isin((row.arm, row.against)),
                       "gradient_cosine"].min() for row in table.itertuples()]  # fmt: skip
    floors = [floors_of(data, "n_chars", level) for level in table["n_chars"]]
    table = table.rename(columns={"name": "part", "p_adjusted": "p_holm", "blocks": "seeds"}).assign(
        n_chars=table["n_chars"].map(lambda level: int(declared.number(level))), smallest_cosine=cosine,
        **{floor: [row[floor] for row in floors] for floor in FLOORS},
    )  # fmt: skip
    return table[["n_chars", "part", "arm", "against", "value", "low", "high", "p_holm", "seeds", "smallest_cosine",
                  *FLOORS]]  # fmt: skip


COSTS = {"time": "wall_s", "training": "training_s", "scoring": "scoring_s", "flops": "flops", "peak": "peak_bytes",
         "saved": "saved_bytes"}  # fmt: skip


def cost_table(data) -> pd.DataFrame:
    """Ratios to backprop over all blocks, and what the settling took."""
    rows, trained = [], data.records[data.records["learner"].notna()]
    for name in (name for name in data.arms if name != BEST):
        cells = trained[trained["learner"] == name]
        row = {"learner": name, "cells": len(cells)}
        row |= {phase: cells[f"{phase}_sweeps"].astype(float).mean() for phase in ("free", "nudged", "prediction")}
        for short, metric in COSTS.items():
            logs = block_ratios(data, name, metric) if name != "backprop" else ()
            if len(logs):
                ends = stats.known_ratio(logs)
                row |= dict(zip((short, f"{short}_low", f"{short}_high"), ends, strict=True))
        rows.append(row)
    return pd.DataFrame(rows).dropna(axis=1, how="all")


def block_ratios(data, name, metric) -> np.ndarray:
    """Log of the learner's metric over backprop's: a value a seed, the mean over its cells in both grids."""
    logs = []
    for axis in (axis for axis in data.study.over if axis in data.records and len(data.rows(axis))):
        table = data.table(metric, axis)
        for level in levels_of(data, axis):
            if {(level, name), (level, "backprop")} <= set(table) and (table[level] > 0).to_numpy().any():
                pair = table[[(level, name), (level, "backprop")]].dropna()
                logs.append(np.log(pair[level, name] / pair[level, "backprop"]))
    return pd.concat(logs).groupby(level=0).mean().to_numpy() if logs else np.array([])


def scaling_finding(data, axis) -> str:
    """How the variants stand against backprop at the largest level."""
    table = advantage_table(data, axis)
    table = table[~table["learner"].isin((*declared.CONTROLS, BEST))]
    if table.empty:
        return "Backprop and a variant are not both in these records"
    last = table[table[axis] == table[axis].max()]
    texts = [f"{row.learner} {row.ratio:.2f}x" + ("" if row.low > 1 or row.high < 1 else " (not told from 1)")
             for row in last.itertuples()]  # fmt: skip
    return f"Backprop's perplexity over the variant's at {thousands(table[axis].max())}: {', '.join(texts)}"


def scaling_figure(data, axis, label, crossovers):
    """Perplexity with the floors, and the ratio to backprop with the crossovers."""
    fig, (left, right) = plots.figures(2, size=(13, 4.4))
    drawn, table = perplexity_table(data, axis), advantage_table(data, axis)
    apart = (*declared.CONTROLS, BEST)  # the best of three lies on one of the three
    plots.curves(left, drawn[~drawn["learner"].isin(apart)], axis, "perplexity", "learner", data.looks | FLOORS,
                 dodge=1.03)  # fmt: skip
    shown = table[~table["learner"].isin(apart)]
    if len(shown):
        plots.curves(right, shown, axis, "ratio", "learner", data.looks, dodge=1.03)
    if axis == "n_chars":
        for row in crossovers.dropna(subset=["low", "high"]).itertuples():
            if row.learner not in apart and row.scored_on.startswith("test"):
                colour = data.looks[row.learner].colour
                right.axvspan(row.low, row.high, color=colour, alpha=0.1, linewidth=0, label=plots.BAND)
    plots.reference(right, y=1.0)
    for ax in (left, right):
        plots.log_x(ax, ticks=drawn[axis])
        ax.set(xlabel=label)
    plots.log_y(left)
    left.set(title="Test perplexity", ylabel="perplexity")
    right.set(title="Advantage over backprop", ylabel="backprop's perplexity / the learner's")
    return fig


def part_finding(parts) -> str:
    """Whether the rule makes a difference that can be told from none, and whether the network does."""
    known = parts.dropna(subset=["low"])
    rule = known[known["part"].str.contains("rule")]
    apart = rule[(rule["low"] > 0) | (rule["high"] < 0)]
    if rule.empty:
        return "What the difference to backprop is due to"
    if apart.empty:
        return f"The learning rule makes no measurable difference: {len(rule)} of {len(rule)} intervals hold 0"
    worst = apart.loc[apart["value"].abs().idxmax(), "value"]
    count = f"{len(apart)} of {len(rule)} comparisons"
    return f"The learning rule makes a difference in {count}, up to {worst:+.3f} nats"


def part_figure(parts):
    sizes = parts["n_chars"].unique()
    fig, panels = plots.figures(len(sizes), size=(5.2 * len(sizes) + 2.4, 4.2), sharex=True)
    for ax, x in zip(panels, sizes, strict=True):
        plots.intervals(ax, parts[parts["n_chars"] == x], "part", null=0.0)
        ax.set(title=f"{thousands(x)} characters", xlabel="nats of test loss")
    return fig


def learning_finding(data) -> str:
    """Which learner has the lowest loss at the largest amount of text."""
    level = levels_of(data, "n_chars")[-1]
    names = [name for name in data.arms if name not in {*declared.CONTROLS, BEST}]
    losses = {name: cells_of(data, "n_chars", level, name)["validation_perplexity"] for name in names}
    means = {name: math.exp(np.log(values.astype(float)).mean()) for name, values in losses.items() if len(values)}
    best, size = min(means, key=means.get), thousands(declared.number(level))
    return f"At {size} characters {best} has the lowest validation perplexity: {means[best]:.2f}"


def learning_figure(data, out):
    levels, controls = levels_of(data, "n_chars"), {*declared.CONTROLS, BEST}
    fig, panels = plots.figures(len(levels), sharey=True, size=(3.6 * len(levels) + 2, 3.8))
    for ax, level in zip(panels, levels, strict=True):
        base = by_seed(data, out, level, "backprop")
        for name in (name for name in data.arms if name not in controls and name != "backprop"):
            runs = by_seed(data, out, level, name)
            both = [seed for seed in runs if seed in base and len(runs[seed][1]) == len(base[seed][1])]
            if not both:
                continue
            updates, look = runs[both[0]][0], data.looks[name]
            gaps = np.array([runs[seed][1] - base[seed][1] for seed in both])
            plots.averages(ax, updates, gaps, name, look)
            best = int(np.argmin(np.mean([runs[seed][1] for seed in both], axis=0)))
            ax.plot(updates[best], gaps.mean(axis=0)[best], look.marker, color=look.colour)
        plots.reference(ax, y=0.0)
        ax.set(title=f"{thousands(declared.number(level))} characters", xlabel="updates")
    panels[0].set_ylabel("nats, minus backprop's")
    plots.name_lines(panels, data.looks)
    return fig


def by_seed(data, out, level, name) -> dict[object, tuple[np.ndarray, np.ndarray]]:
    """seed -> (updates, held-out losses) of a learner at a level."""
    found = {}
    for row in cells_of(data, "n_chars", level, name).itertuples():
        series = out.series(row.key)
        found[row.seed] = np.asarray(series["held_out_steps"]), np.asarray(series["held_out"], float)
    return found

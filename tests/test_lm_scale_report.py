"""The language-model report on made-up records whose answers are known: every table, ratio, difference and verdict."""

import json
import math
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from .lm_scale import module

SIZES, LENGTHS, SEEDS = (1000, 5000, 20_000, 50_000), (16, 32), (42, 43, 44, 45)
LEARNERS = ("backprop", "looped_mlp", "recurrent_core", "full", "backprop_matched", "full_kappa0", "looped_mlp_twin",
            "recurrent_core_twin", "full_twin")  # fmt: skip
SETTLED = ("looped_mlp", "recurrent_core", "full", "full_kappa0")
RULED = (*SETTLED, "looped_mlp_twin", "recurrent_core_twin", "full_twin")
SETTING = {"width": 16, "layers": 2, "length": 32, "epochs": 30, "updates": 100, "sequence_chars": 10_000}


class Out:
    """Collects what a report says."""

    def __init__(self):
        self.tables, self.verdicts, self.figures, self.files, self.texts = {}, {}, {}, {}, []

    def table(self, df, name, caption=""):
        self.tables[name] = df

    def verdict(self, id, claim, verdict, effect="", interval=None, why=""):
        self.verdicts[id] = SimpleNamespace(
            claim=claim, verdict=str(verdict), effect=effect, interval=interval, why=why
        )

    def figure(self, fig, name, caption=""):
        self.figures[name] = fig
        plt.close(fig)

    def file(self, name, text):
        self.files[name] = text

    def heading(self, text):
        pass

    def text(self, text):
        self.texts.append(text)

    def series(self, key):
        k = float(key)
        return {
            "held_out": np.array([4.0, 2.0, 3.0]) + k / 100, "held_out_steps": np.array([25, 50, 75]),
            "checked_steps": np.array([0, 50, 100]), "gradient_cosine": np.array([0.999, 0.99, 0.9]),
            "inner_cosine": np.array([0.99, 0.9, 0.5]),
        }  # fmt: skip


def trained(seed=0):
    """Records of both training grids: every metric of every record is another number."""
    rng, rows = np.random.default_rng(seed), []
    grid = [("n_chars", f"n{n}", n) for n in SIZES] + [("seq_len", f"len{n}", n) for n in LENGTHS]
    for axis, value, n in grid:
        for learner in LEARNERS:
            for s in SEEDS:
                row = {"n_chars": None, "seq_len": None, "control": None, "learner": learner, "seed": s, axis: value}
                if learner == "full_twin":
                    row |= {"control": learner, "learner": None}
                row |= {"loss_nats": 3 - 0.1 * math.log(n) + rng.normal(0, 0.05)}
                for name in ("validation", "last_validation", "train"):
                    row[f"{name}_perplexity"] = float(rng.uniform(5, 30))
                row |= {"bigram_perplexity": 9 + s % 10 + n / 1e4, "unigram_perplexity": 20 + 2 * (s % 10) + n / 1e4}
                for name in ("wall_s", "flops", "peak_bytes", "saved_bytes", "n_params"):
                    row[name] = float(rng.uniform(1, 9) * 1e6)
                row |= {"best_step": float(rng.integers(20, 100)), "updates": 100, "tuned": False}
                for name in ("free_sweeps", "nudged_sweeps", "free_residual", "nudged_residual"):
                    row[name] = float(rng.uniform(1, 9)) if learner in RULED else None
                row["unconverged_fraction"] = float(rng.uniform()) if learner in RULED else None
                for name in ("gradient_cosine", "inner_cosine"):
                    row[name] = float(rng.uniform(0.985, 1)) if learner in SETTLED else None
                row |= {"planned_cells": 216, "key": str(len(rows)), "cell": f"test_{axis}[{value}-seed{s}-{learner}]"}
                rows.append(row | {"settings": json.dumps(SETTING)})
    axes = ["n_chars", "seq_len", "seed", "learner", "control"]
    records = pd.DataFrame(rows)
    records = records[list(dict.fromkeys([*axes, "wall_s", *records]))]  # as the loader orders them
    records.attrs["axes"] = axes
    return records


def stepped(factor=1.0):
    """Records of the step grid. A backprop step is 1 s, on a machine that is twice as slow at s4."""
    rows = []
    for sweep, slow in (("s1", 1.0), ("s2", 1.0), ("s4", 2.0)):
        n = int(sweep[1:])
        for stepper in ("backprop", "full", "full_unrolled", "full_kappa0", "full_kappa0_unrolled"):
            limit = (n + 2 * n + 3) / 3 if stepper in ("full", "full_kappa0") else None
            wall = 1.0 if stepper == "backprop" else 1.5 if stepper.endswith("_unrolled") else 1.5 * limit * factor * n
            if stepper == "full_kappa0":
                wall = {1: 2.0, 2: 3.0 * factor, 4: 9.0}[n]
            rows.append({
                "sweep": sweep, "stepper": stepper, "wall_s": wall * slow, "step_limit": limit, "rounds": 5,
                "saved_bytes": 1e6 * (1 + (n if "unrolled" in stepper else 0.001 * n)), "peak_bytes": 1e7 * n,
                "flops": 1e8 * n, "n_params": 10, "settings": json.dumps(SETTING),
            })  # fmt: skip
    records = pd.DataFrame(rows)
    records.attrs["axes"] = ["sweep", "stepper"]
    return records


@pytest.fixture(scope="module")
def report():
    return module("report")


@pytest.fixture(scope="module")
def records():
    return trained()


@pytest.fixture(scope="module")
def out(report, records):
    out = Out()
    report.report(records, out)
    return out


def of(records, axis, x, learner):
    """The records of a learner at a point, by seed; `eqprop_best` is chosen on validation, seed by seed."""
    name = records["learner"].fillna(records["control"])
    at = records[records[axis] == x].assign(learner=name)
    if learner != "eqprop_best":
        return at[at["learner"] == learner].set_index("seed")
    mine = at[at["learner"].isin(("looped_mlp", "recurrent_core", "full"))].sort_values("validation_perplexity")
    return mine.drop_duplicates("seed").set_index("seed").sort_index()


def t_interval(values):
    values = np.asarray(values, float)
    half = scipy_stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return values.mean(), values.mean() - half, values.mean() + half


def row_of(table, **where):
    for name, value in where.items():
        table = table[table[name] == value]
    assert len(table) == 1, where
    return table.iloc[0]


POINTS = [("n_chars", n) for n in SIZES] + [("seq_len", n) for n in LENGTHS]
FILES = {"n_chars": ("perplexity.csv", "advantage.csv"), "seq_len": ("sequence_perplexity.csv",
                                                                     "sequence_advantage.csv")}  # fmt: skip


def value_of(axis, n):
    return f"n{n}" if axis == "n_chars" else f"len{n}"


@pytest.mark.parametrize(("axis", "n"), POINTS)
def test_perplexities_are_geometric_means_of_the_records(out, records, axis, n):
    table = out.tables[FILES[axis][0]]
    assert len(table) == (len(LEARNERS) + 3) * len({"n_chars": SIZES, "seq_len": LENGTHS}[axis])
    for learner in (*LEARNERS, "eqprop_best"):
        mine, row = of(records, axis, value_of(axis, n), learner), row_of(table, **{axis: n, "learner": learner})
        want = np.exp(t_interval(mine["loss_nats"]))
        assert [row["perplexity"], row["low"], row["high"]] == pytest.approx(list(want)), learner
        for short, column in (("validation", "validation"), ("last", "last_validation"), ("train", "train")):
            assert row[short] == pytest.approx(scipy_stats.gmean(mine[f"{column}_perplexity"])), (learner, short)
        assert row["best_step"] == pytest.approx(mine["best_step"].mean()) and row["seeds"] == 4
        bad = int((mine["gradient_cosine"] < 0.99).sum())
        assert (f"gradient not trusted ({bad} of 4)" in row["note"]) is (bad > 0)
    for floor in ("bigram", "unigram"):
        at = records[records[axis] == value_of(axis, n)]
        row = row_of(table, **{axis: n, "learner": floor})
        assert row["perplexity"] == pytest.approx(scipy_stats.gmean(at[f"{floor}_perplexity"]))


@pytest.mark.parametrize("axis", FILES)
def test_advantages_are_backprop_s_perplexity_over_the_learner_s_paired_by_seed(out, records, axis):
    table, ps = out.tables[FILES[axis][1]], []
    points = {"n_chars": SIZES, "seq_len": LENGTHS}[axis]
    for n in points:
        for learner in (*LEARNERS[1:], "eqprop_best"):
            value, row = value_of(axis, n), row_of(table, **{axis: n, "learner": learner})
            nats = of(records, axis, value, "backprop")["loss_nats"] - of(records, axis, value, learner)["loss_nats"]
            assert [row["ratio"], row["low"], row["high"]] == pytest.approx(list(np.exp(t_interval(nats))))
            ps.append((scipy_stats.ttest_1samp(nats, 0).pvalue, row["p_holm"]))
    ps.sort()
    adjusted = np.maximum.accumulate([min(1, p * (len(ps) - i)) for i, (p, _) in enumerate(ps)])
    assert [p for _, p in ps] == pytest.approx(list(adjusted)) and len(ps) == len(table)


PAIRS = {
    "the rule, looped_mlp": ("looped_mlp", "looped_mlp_twin"),
    "the rule, recurrent_core": ("recurrent_core", "recurrent_core_twin"),
    "the rule, full": ("full", "full_twin"),
    "the network, looped_mlp": ("looped_mlp_twin", "backprop"),
    "the network, recurrent_core": ("recurrent_core_twin", "backprop"),
    "the network, full": ("full_twin", "backprop"),
    "feedback in full": ("full", "full_kappa0"),
    "full without feedback": ("full_kappa0", "backprop"),
    "recurrent_core, equal parameters": ("recurrent_core", "backprop_matched"),
}


def test_parts_are_differences_of_what_is_named_first_minus_the_other(out, records):
    table, ps = out.tables["parts.csv"], []
    assert len(table) == len(SIZES) * len(PAIRS)
    for n in SIZES:
        for part, (arm, against) in PAIRS.items():
            one, other = (of(records, "n_chars", f"n{n}", name) for name in (arm, against))
            row = row_of(table, n_chars=n, part=part)
            nats = one["loss_nats"] - other["loss_nats"]
            assert [row["value"], row["low"], row["high"]] == pytest.approx(list(t_interval(nats)))
            least = pd.concat([one, other])["gradient_cosine"].astype(float).min()
            assert row["least_cosine"] == pytest.approx(least, nan_ok=True)
            ps.append((scipy_stats.ttest_1samp(nats, 0).pvalue, row["p_holm"]))
    ps.sort()
    adjusted = np.maximum.accumulate([min(1, p * (len(ps) - i)) for i, (p, _) in enumerate(ps)])
    assert [p for _, p in ps] == pytest.approx(list(adjusted))


def test_the_rule_is_judged_over_seeds_after_the_mean_over_sizes(out, records):
    for name in ("looped_mlp", "recurrent_core", "full"):
        rule, twin = (
            {n: of(records, "n_chars", f"n{n}", arm)["loss_nats"] for n in SIZES} for arm in (name, f"{name}_twin")
        )
        nats = pd.DataFrame(rule) - pd.DataFrame(twin)
        value, low, high = t_interval(nats.mean(axis=1))
        said = out.verdicts[f"R {name}"]
        assert said.effect == f"{value:+.4f} nats" and said.interval == pytest.approx((low, high))
        inside, apart = low >= -0.02 and high <= 0.02, high < -0.02 or low > 0.02
        assert said.verdict == ("supported" if inside else "refuted" if apart else "undecided")


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "supported"), (0.1, "refuted"), (-0.1, "refuted")])
def test_a_rule_that_costs_a_tenth_of_a_nat_is_found(report, records, shift, verdict):
    some = records.copy()
    twins = some["control"] == "full_twin"
    mine = some[some["learner"] == "full"].set_index(["n_chars", "seq_len", "seed"])["loss_nats"]
    keys = pd.MultiIndex.from_frame(some.loc[twins, ["n_chars", "seq_len", "seed"]])
    some.loc[twins, "loss_nats"] = mine.reindex(keys).to_numpy() - shift + 1e-4 * np.arange(twins.sum()) % 3e-4
    some.attrs = records.attrs
    out, data = Out(), report.grid(some, "n_chars")
    report.rule_verdicts(report.part_table(data), data, out)
    assert out.verdicts["R full"].verdict == verdict


def test_trust_is_of_the_worst_cells(out, records):
    table = out.tables["trust.csv"]
    named = records.assign(learner=records["learner"].fillna(records["control"]))
    assert set(table["learner"]) == set(RULED)
    for learner, mine in named[named["learner"].isin(RULED)].groupby("learner"):
        row = row_of(table, learner=learner)
        assert row["cells"] == len(mine) == 24
        for name, how in (("gradient_cosine", "min"), ("inner_cosine", "min"), ("free_sweeps", "mean"),
                          ("nudged_sweeps", "mean"), ("free_residual", "max"), ("nudged_residual", "max"),
                          ("unconverged_fraction", "max")):  # fmt: skip
            assert row[name] == pytest.approx(getattr(mine[name].astype(float), how)(), nan_ok=True), (learner, name)
        assert row["not_trusted"] == (mine["gradient_cosine"].astype(float) < 0.99).sum()
    bad = named[named["gradient_cosine"].astype(float) < 0.99]
    said = out.verdicts["G"]
    assert said.verdict == "refuted" and said.effect == f"least cosine {named['gradient_cosine'].min():.4f}"
    assert said.why.count(";") == len(bad) - 1


def test_costs_are_ratios_to_backprop_within_a_block(out, records):
    table = out.tables["cost.csv"]
    metrics = {"time": "wall_s", "flops": "flops", "peak": "peak_bytes", "saved": "saved_bytes"}
    for learner in LEARNERS[1:]:
        row = row_of(table, learner=learner)
        for short, metric in metrics.items():
            logs = pd.DataFrame({(axis, n): np.log(of(records, axis, value_of(axis, n), learner)[metric]
                                                   / of(records, axis, value_of(axis, n), "backprop")[metric])
                                 for axis, n in POINTS})  # fmt: skip
            want = np.exp(t_interval(logs.mean(axis=1)))
            assert [row[short], row[f"{short}_low"], row[f"{short}_high"]] == pytest.approx(list(want)), short
    assert math.isnan(row_of(table, learner="backprop")["time"]) and set(table["cells"]) == {24}


def test_the_crossover_table_is_of_test_losses_and_of_the_last_validation(report, records, out):
    table = out.tables["crossover.csv"]
    for judged, nats in (("test, early stopped", lambda df: df["loss_nats"]),
                         ("validation, last update", lambda df: np.log(df["last_validation_perplexity"]))):  # fmt: skip
        advantage = pd.DataFrame({n: nats(of(records, "n_chars", f"n{n}", "backprop"))
                                  - nats(of(records, "n_chars", f"n{n}", "full")) for n in SIZES})  # fmt: skip
        mean, row = advantage.mean(), row_of(table, learner="full", judged_on=judged)
        changes = [i for i in range(3) if mean.iloc[i] * mean.iloc[i + 1] < 0]
        if not changes:
            assert row["says"].startswith("no crossover")
            continue
        i = changes[0]
        share = mean.iloc[i] / (mean.iloc[i] - mean.iloc[i + 1])
        assert row["crossover"] == pytest.approx(math.exp(np.interp(share, [0, 1], np.log(SIZES[i : i + 2]))))


def test_figures_draw_the_means_over_seeds_and_the_whole_gradient(out):
    ax = out.figures["learning.png"].axes[0]
    (line,) = [line for line in ax.get_lines() if line.get_label() == "backprop"]
    want = np.exp(np.mean([Out().series(str(k))["held_out"] for k in range(4)], axis=0))  # the first four records
    assert line.get_ydata() == pytest.approx(want) and list(line.get_xdata()) == [25, 50, 75]
    course = out.figures["gradient_course.png"].axes[0].get_lines()[0]
    assert course.get_ydata() == pytest.approx([0.001, 0.01, 0.1])
    assert list(course.get_xdata()) == pytest.approx([0, 0.5, 1])
    assert len(out.figures["gradient_course.png"].axes[0].get_lines()) == 24 + 1  # a line a cell, and the bar


def test_the_seed_s_files_hold_every_training_once(out, records):
    content = json.loads(out.files["results_final.json"])
    assert content["finished"] and content["cells"] == content["planned_cells"] == len(content["results"]) == 216
    assert content["config"] == {"hidden": 16, "layers": 2, "seq_len": 32, "epochs": None, "updates": 100}
    columns = {"perplexity": "perplexity", "val_perplexity": "validation_perplexity", "time_s": "wall_s",
               "final_epoch_perplexity": "last_validation_perplexity", "train_perplexity": "train_perplexity",
               "params": "n_params", "gradient_cosine": "gradient_cosine", "nudged_sweeps": "nudged_sweeps",
               "saved_bytes": "saved_bytes", "peak_bytes": "peak_bytes", "flops": "flops"}  # fmt: skip
    for line in content["results"]:
        what = line["experiment"]
        axis, n = ("n_chars", line["n_chars"]) if what == "data_size" else ("seq_len", line["seq_len"])
        mine = of(records, axis, value_of(axis, n), line["learner"]).loc[line["seed"]]
        assert line["n_chars"] == (n if what == "data_size" else 10_000)
        for name, column in columns.items():
            want = mine.get(column)
            assert line[name] == (None if want is None or pd.isna(want) else pytest.approx(want)), name
    part = Out()
    report, some = module("report"), records.iloc[:9].copy()
    report.seed_files(some, report.grid(some, "n_chars"), report.grid(some, "seq_len"), part)
    assert not json.loads(part.files["results_intermediate.json"])["finished"]


def test_the_answers_name_means_over_blocks_that_have_all_variants(report, records):
    some = records.drop(index=records.index[(records["learner"] == "full") & (records["n_chars"] == "n1000")][:1])
    some.attrs = records.attrs
    data = report.grid(some, "n_chars")
    best = next(line for line in report.answers(data, data.iloc[:0]) if "Best variant" in line)
    blocks = [(n, s) for n in SIZES for s in SEEDS if (n, s) != (1000, SEEDS[0])]
    for name in ("looped_mlp", "recurrent_core", "full"):
        losses = [of(some, "n_chars", f"n{n}", name).loc[s, "loss_nats"] for n, s in blocks]
        assert f"{name} {math.exp(np.mean(losses)):.2f}" in best
    chosen = data[data["learner"] == "eqprop_best"]
    assert len(chosen) == 15  # a block without all variants has no best one


def test_a_baseline_s_last_improvement_is_averaged_over_seeds(report, records):
    some = records.assign(best_step=np.where(records["seed"] == 42, 100.0, 80.0))
    some.attrs = records.attrs
    assert report.still_learning(report.grid(some, "n_chars")) == []
    some["best_step"] = 95.0
    assert report.still_learning(report.grid(some, "n_chars")) == ["1k", "5k", "20k", "50k"]


def judged(report, steps, trained=()):
    """(what is said of them, the table of the steps)."""
    out, timed = Out(), report.step_table(report.grid(steps, "sweep"))
    report.step_verdicts(timed, trained, out)
    return out, timed


def test_steps_are_in_backprop_s_of_their_block_and_in_units_of_one_sweep(report):
    out, table = judged(report, stepped())
    for n, slow in ((1, 1), (2, 1), (4, 2)):
        limit = (3 * n + 3) / 3
        row = row_of(table, stepper="full", sweeps=n)
        assert row["over_backprop"] == pytest.approx(1.5 * limit * n) and row["limit"] == pytest.approx(limit)
        assert row["in_units"] == pytest.approx(limit * n) and row["over"] == pytest.approx(n)
        assert row["wall_s"] == pytest.approx(1.5 * limit * n * slow)
        assert row_of(table, stepper="backprop", sweeps=n)["over_backprop"] == 1
    assert out.verdicts["L full"].verdict == "refuted" and out.verdicts["L full"].effect == "x4.00 at 4 sweeps"
    assert out.verdicts["K"].verdict == "supported" and out.verdicts["K"].effect == "x3.00"
    assert out.verdicts["M full"].verdict == "supported" and out.verdicts["M full"].effect.startswith("x1.003")
    for factor, verdict in ((0.3, "supported"), (0.34, "refuted")):
        out, _ = judged(report, stepped(factor))  # at its worst 4 times this factor of the limit
        assert out.verdicts["L full"].verdict == verdict, factor
    few, _ = judged(report, stepped().assign(rounds=2))
    assert not {id for id in few.verdicts if id[0] in "LK"}


def test_a_step_is_judged_at_the_sweeps_that_training_makes(report, records):
    trained = report.grid(records.assign(nudged_sweeps=2.2), "n_chars")
    out, _ = judged(report, stepped(), trained)
    assert out.verdicts["L full"].effect == "x2.00 at 2 sweeps"


@pytest.mark.parametrize(("grows", "verdict"), [(1.005, "supported"), (1.05, "refuted")])
def test_memory_that_grows_with_the_sweeps_is_found(report, grows, verdict):
    some = stepped()
    some["saved_bytes"] = np.where(some["sweep"] == "s4", grows, 1.0) * 1e6
    out, _ = judged(report, some)
    assert out.verdicts["M full"].verdict == verdict


def test_gradients_below_the_bar_are_noted(report):
    some = pd.DataFrame([
        {"variant": "full", "nudge": nudge, "beta": "beta0_1", "tolerance": "tol0_1", "gradient_cosine": cosine,
         "inner_cosine": 0.5, "gradient_ratio": 1.0, "free_sweeps": 3, "nudged_sweeps": 4, "wall_s": 1.0, "flops": 1e6,
         "settings": json.dumps(SETTING)}
        for nudge, cosine in (("split", 0.9899), ("symmetric", 0.9901), ("positive", 0.5))
    ])  # fmt: skip
    some.attrs["axes"] = ["variant", "nudge", "beta", "tolerance"]
    table = report.gradient_table(report.grid(some, "variant"))
    notes = dict(zip(table["nudge"], table["note"], strict=True))
    assert notes == {"split": "gradient not trusted", "positive": "gradient not trusted", "symmetric": ""}
    assert list(table["inner_cosine"]) == [0.5] * 3


def test_the_floors_are_each_their_own(report, records):
    at = records[records["n_chars"] == "n1000"]
    want = {name: scipy_stats.gmean(at[f"{name}_perplexity"]) for name in ("bigram", "unigram")}
    assert report.floors_of(at) == pytest.approx(want) and re.match("bigram", next(iter(want)))

"""The maze report on made-up records: every table, figure, file and verdict found again by plain arithmetic."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mlexp.study import load

from .command import ROOT
from .referees import adjusted, t_interval
from .stand_ins import lines
from .study.filled import check, filled

SIZES = {"tiny": 4e5, "small": 2e6, "medium": 1e7, "large": 4e7}
BETTER = {"poh_hrm": 0.2, "poh_r1": 0.01, "poh_uniform": 0.15, "poh_static": 0.13, "poh_t_inf": 0.17,
          "baseline_wide": 0.02, "baseline_deep": 0.09, "baseline_long": 0.05}  # fmt: skip
PARTS = {
    "the whole of PoH-HRM": ("poh_hrm", "baseline"),
    "iterating (effective depth)": ("poh_uniform", "baseline"),
    "routing, of any kind": ("poh_hrm", "poh_uniform"),
    "routing by input": ("poh_hrm", "poh_static"),
    "the slow state (hierarchy)": ("poh_hrm", "poh_t_inf"),
    "a controller without iterations": ("poh_r1", "baseline"),
    "as many parameters in a wider baseline": ("poh_hrm", "baseline_wide"),
    "as many layers, untied": ("poh_hrm", "baseline_deep"),
    "as many FLOPs in more steps": ("poh_hrm", "baseline_long"),
}


report = load(ROOT / "benches/maze_scaling/report.py")


def made_up(sizes=SIZES, seeds=4, arms=("baseline", *BETTER), rng=1):
    """(records, series by key) in no order: accuracy .2 and the arm's own, all else noise of known mean."""
    random, rows, series = np.random.default_rng(rng), [], {}
    for place, size in enumerate(sizes):
        for seed in range(seeds):
            of_seed = random.normal(0, 0.05)
            for arm in arms:
                accuracy = 0.2 + 0.03 * place + of_seed + BETTER.get(arm, 0) * (1 + place / 10)
                probed = arm in ("poh_hrm", "poh_r1", "poh_t_inf")
                row = {"size": size, "seed": seed, "arch": arm, "key": f"{size}-{seed}-{arm}", "scale": "smoke",
                       "n_params": int(sizes[size] * (1.05 if arm.startswith("poh") else 1)), "steps": 40,
                       "accuracy": accuracy + random.normal(0, 0.01), "random_accuracy": 0.05 + 0.01 * seed,
                       "manhattan_accuracy": 0.07 - 0.01 * seed, "oracle_accuracy": 1.0,
                       "settings": json.dumps({"maze_size": 5, "train": 32, "test": 8, "epochs": 3, "R": 4, "T": 2}),
                       **{name: random.exponential() if probed else None for name in
                          ("uniform_gates_accuracy", "frozen_slow_accuracy", "routing_entropy")},
                       **{name: random.exponential() for name in
                          ("optimality", "strict_accuracy", "cell_accuracy", "excess", "larger_accuracy", "loss_nats",
                           "wall_s", "flops", "peak_bytes")}}  # fmt: skip
                rows.append(row)
                series[row["key"]] = {
                    "losses": random.exponential(size=120), "accuracy_by_step": random.random(3),
                    "judged_steps": np.array([13, 26, 39]), "accuracy_by_iteration": random.random(4),
                    "length": random.integers(5, 25, 8), "solved": random.integers(0, 2, 8),
                    "larger_sizes": np.array([6, 8]), "larger_accuracy": random.random(2),
                    "sample_open": np.ones((2, 25, 4)), "sample_start": np.array([0, 4]),
                    "sample_goal": np.array([7, 9]), "sample_path": np.array([[0, 1, 2, 7, -1], [4, 9, -1, -1, -1]]),
                }  # fmt: skip
    records = pd.DataFrame(rows).sample(frac=1, random_state=rng, ignore_index=True)
    records.attrs["axes"] = ["size", "seed", "arch"]
    return records, series


@pytest.fixture(scope="module")
def all_of_it():
    records, series = made_up()
    return records, series, filled("maze_scaling", records, series, scale="smoke")


def values(records, size, arm, metric="accuracy"):
    """A metric of an arm, by seed."""
    rows = records[(records["size"] == size) & (records["arch"] == arm)]
    return rows.set_index("seed")[metric].sort_index()


def test_the_accuracy_table_is_means_over_seeds(all_of_it):
    records, _, pages = all_of_it
    table = pages.tables["accuracy.csv"].set_index(["size", "arch"])
    assert len(table) == 4 * 9 + 3
    columns = ("accuracy", "optimality", "strict_accuracy", "cell_accuracy", "excess", "larger_accuracy", "loss_nats",
               "n_params", "wall_s", "flops", "peak_bytes")  # fmt: skip
    for size in SIZES:
        for arm in ("baseline", *BETTER):
            row = table.loc[size, arm]
            for metric in columns:
                assert row[metric] == pytest.approx(values(records, size, arm, metric).mean()), metric
            assert (row["low"], row["high"]) == pytest.approx(t_interval(values(records, size, arm)))
            assert row["seeds"] == 4
    means = [table.loc["-", name]["accuracy"] for name in ("random", "manhattan", "oracle")]
    assert means == pytest.approx([0.065, 0.055, 1.0])


def test_gains_are_paired_differences_with_the_arm_first(all_of_it):
    records, _, pages = all_of_it
    table, p = pages.tables["gains.csv"], []
    assert len(table) == 4 * len(PARTS)
    for row in table.itertuples():
        arm, without = PARTS[row.part]
        gaps = values(records, row.size, arm) - values(records, row.size, without)
        assert (row.arm, row.against, row.seeds) == (arm, without, 4)
        assert (row.difference, row.low, row.high) == pytest.approx((gaps.mean(), *t_interval(gaps)))
        p.append(stats.ttest_1samp(gaps, 0).pvalue)
    np.testing.assert_allclose(table["p_holm"], adjusted(p))


def test_parts_are_given_in_points_and_those_that_may_be_nothing_are_marked():
    base = {"arm": "", "against": "", "seeds": 3, "p_holm": 0.01}
    rows = [("the whole of PoH-HRM", 0.2, 0.1, 0.3), ("iterating (effective depth)", 0.15, 0.05, 0.25),
            ("routing, of any kind", 0.05, -0.01, 0.11),
            ("the slow state (hierarchy)", -0.03, -0.05, -0.01)]  # fmt: skip
    gains = pd.DataFrame([base | {"size": "tiny", "part": p, "difference": d, "low": lo, "high": hi}
                          for p, d, lo, hi in rows])  # fmt: skip
    (line,) = report.sentences(gains)
    assert line == ("- tiny: PoH-HRM is +20.0 points over the baseline [+10.0, +30.0]; iterating alone gives +15.0; "
                    "routing adds +5.0, not told from 0; the slow state adds -3.0.")  # fmt: skip
    (line,) = report.sentences(gains.assign(low=np.nan))
    assert "nothing can be said" in line


def test_the_probe_table_is_means_of_the_trained_and_the_probed(all_of_it):
    records, _, pages = all_of_it
    table = pages.tables["probes.csv"].set_index(["size", "arch"])
    assert set(table.index) == {(size, arm) for size in SIZES for arm in ("poh_hrm", "poh_r1", "poh_t_inf")}
    names = {"as_trained": "accuracy", **{n: n for n in ("uniform_gates_accuracy", "frozen_slow_accuracy",
                                                         "routing_entropy")}}  # fmt: skip
    for (size, arm), row in table.iterrows():
        for column, metric in names.items():
            assert row[column] == pytest.approx(values(records, size, arm, metric).astype(float).mean())


def test_efficiency_reads_the_baseline_between_its_sizes_on_a_log_scale():
    records, series = made_up({"tiny": 100, "small": 200, "medium": 800}, arms=("baseline", "poh_hrm"))
    records["n_params"] = records["size"].map({"tiny": 100, "small": 200, "medium": 800})
    out = filled("maze_scaling", records, series)
    table = out.tables["efficiency.csv"].set_index(["size", "times"])
    base, poh = ({size: values(records, size, arm).mean() for size in ("tiny", "small", "medium")}
                 for arm in ("baseline", "poh_hrm"))  # fmt: skip
    assert set(table.index) == {("tiny", 1.5), ("tiny", 2.0), ("small", 1.5), ("small", 2.0)}
    between = {("tiny", 1.5): base["tiny"] + np.log2(1.5) * (base["small"] - base["tiny"]),
               ("tiny", 2.0): base["small"],
               ("small", 1.5): base["small"] + np.log2(1.5) / 2 * (base["medium"] - base["small"]),
               ("small", 2.0): (base["small"] + base["medium"]) / 2}  # fmt: skip
    for (size, times), want in between.items():
        row = table.loc[size, times]
        assert row["baseline_accuracy"] == pytest.approx(want) and row["poh_accuracy"] == pytest.approx(poh[size])
        assert row["difference"] == pytest.approx(poh[size] - want)


# --- verdicts


def main_arms(baseline, poh, seeds=5, spread=0.001, test=10**8, floor=0.1):
    """Records of the two main arms by accuracy at tiny, small, medium, large: exact means, the same spread of pairs."""
    rows = []
    for arm, accuracies in (("baseline", baseline), ("poh_hrm", poh)):
        for (size, n), mean in zip(SIZES.items(), accuracies, strict=False):
            for seed in range(seeds):
                off = spread * (seed - (seeds - 1) / 2) * (1 if arm == "poh_hrm" else -1)
                rows.append({"size": size, "arch": arm, "seed": seed, "n_params": n, "accuracy": mean + off,
                             "optimality": (mean + off) / 2, "random_accuracy": floor / 2, "manhattan_accuracy": floor,
                             "settings": json.dumps({"maze_size": 5, "test": test})})  # fmt: skip
    records = pd.DataFrame(rows)
    records.attrs["axes"] = ["size", "seed", "arch"]
    return records


def found(records):
    return filled("maze_scaling", records, report=False).findings


@pytest.mark.parametrize(
    ("baseline", "poh", "want"),
    [
        ((0.4, 0.5, 0.6, 0.7), (0.3, 0.5, 0.7, 0.8), {"H1": "supported", "H2": "refuted", "H3": "refuted"}),
        ((0.4, 0.5, 0.6, 0.7), (0.3, 0.5, 0.6, 0.7), {"H1": "undecided"}),
        ((0.4, 0.5, 0.6, 0.7), (0.3, 0.5, 0.5, 0.9), {"H1": "refuted"}),  # not at medium
        ((0.4, 0.5, 0.6, 0.7), (0.3, 0.5, 0.6, 0.6), {"H1": "refuted", "Q": "refuted"}),
        ((0.4, 0.5, 0.6, 0.7), (0.5, 0.6, 0.7, 0.8), {"H1": "refuted", "H2": "supported", "H3": "refuted"}),
        ((0.4, 0.5, 0.6, 0.7), (0.5, 0.6, 0.7, 0.83), {"H2": "refuted"}),  # the advantage grows
        ((0.4, 0.5, 0.6, 0.3), (0.5, 0.6, 0.7, 0.4), {"H2": "refuted"}),  # they fall in the end
        ((0.4, 0.5, 0.51, 0.7), (0.5, 0.6, 0.61, 0.8), {"H2": "refuted"}),  # a step of one point
        ((0.4, 0.5, 0.52, 0.7), (0.5, 0.6, 0.62, 0.8), {"H2": "undecided"}),  # of two, the bound
        ((0.4, 0.6, 0.7, 0.7), (0.5, 0.7, 0.8, 0.8), {"H1": "refuted", "H3": "supported", "Q": "supported"}),
        ((0.4, 0.6, 0.7, 0.73), (0.5, 0.7, 0.8, 0.8), {"H3": "refuted"}),
        ((0.4, 0.6, 0.7, 0.66), (0.5, 0.7, 0.8, 0.8), {"H3": "refuted"}),
        ((0.4, 0.6, 0.7, 0.72), (0.5, 0.7, 0.8, 0.8), {"H3": "undecided"}),
        ((0.2, 0.4, 0.9), (0.2, 0.4, 0.9), {"H3": "refuted"}),  # 20 -> 40 -> 90 %: the last of three is medium
        ((0.2, 0.9, 0.9), (0.2, 0.9, 0.9), {"H3": "supported"}),
        ((0.4, 0.4, 0.4, 0.4), (0.4, 0.4, 0.4, 0.4), {"H1": "undecided", "H3": "supported", "Q": "undecided"}),
        ((0.2, 0.2, 0.2, 0.2), (0.5, 0.5, 0.5, 0.5), {"H0 baseline": "refuted", "H0 poh_hrm": "supported"}),
        ((0.5, 0.5, 0.5, 0.5), (0.2, 0.2, 0.2, 0.2), {"H0 baseline": "supported", "H0 poh_hrm": "refuted"}),
        ((0.28, 0.28, 0.28, 0.28), (0.32, 0.32, 0.32, 0.32), {"H0 baseline": "refuted", "H0 poh_hrm": "supported"}),
        ((0.3, 0.3, 0.3, 0.3), (0.3, 0.3, 0.3, 0.3), {"H0 baseline": "undecided", "H0 poh_hrm": "undecided"}),
    ],
)  # fmt: skip
def test_curves_planted_on_either_side_of_a_claim(baseline, poh, want):
    verdicts = found(main_arms(baseline, poh))
    assert {id: str(verdicts[id].verdict) for id in want} == want


@pytest.mark.parametrize(
    ("keep", "missing"),
    [
        ("arch == 'baseline'", dict.fromkeys(("Q", "H1", "H2", "H3"), "no accuracy of poh_hrm")),
        ("arch == 'baseline'", {"H0 poh_hrm": "no accuracy_over_floor of poh_hrm at tiny", "H0 baseline": ""}),
        ("arch == 'poh_hrm'", {"H0 baseline": "no accuracy_over_floor of baseline at tiny", "H0 poh_hrm": ""}),
        ("size in ('tiny', 'small')", dict.fromkeys(("H1", "H3"), "three values of size are needed, there are 2")),
        ("size in ('tiny', 'small')", {"H2": "3 values of size are needed, there are 2", "Q": ""}),
        ("size != 'large' or arch == 'baseline'", {"H1": "no accuracy of poh_hrm at large", "H0 baseline": ""}),
        ("seed < 2", dict.fromkeys(("Q", "H1", "H2", "H3", "H0 baseline"), "3 complete seeds are needed for")),
        ("seed < 3 or arch == 'baseline'", {"Q": ""}),
    ],
)
def test_a_claim_without_its_arms_sizes_or_seeds_is_not_tested(keep, missing):
    verdicts = found(main_arms((0.4, 0.5, 0.6, 0.7), (0.3, 0.5, 0.7, 0.8)).query(keep))
    for id, message in missing.items():
        assert (verdicts[id].verdict == "not tested") == bool(message), id
        assert message in verdicts[id].reason


def test_without_mazes_that_a_walk_solves_nobody_learns_or_not():
    """A floor of 0 in every cell; in those of one seed alone, that seed is left out."""
    records = main_arms((0.4,) * 4, (0.4,) * 4, floor=0.0)
    for arm in ("baseline", "poh_hrm"):
        finding = found(records)[f"H0 {arm}"]
        assert finding.verdict == "not tested" and f"no accuracy_over_floor of {arm} at tiny" in finding.reason
    known = records["seed"] > 0
    finding = found(records.assign(manhattan_accuracy=known * 0.1))["H0 baseline"]
    of_seeds = records[known & (records["arch"] == "baseline")].groupby("seed")["accuracy"].mean() / 0.1
    check(finding, {"baseline": of_seeds}, (3.0, math.inf))


def test_the_floor_is_the_better_of_both_in_each_cell():
    records = main_arms((0.4,) * 4, (0.4,) * 4)
    first = records["seed"] == 0
    records.loc[first, ["random_accuracy", "manhattan_accuracy"]] = [0.2, 0.1]
    own = records["arch"] == "baseline"
    ratio = (records["accuracy"] / np.where(first, 0.2, 0.1))[own].groupby(records["seed"][own]).mean()
    check(found(records)["H0 baseline"], {"baseline": ratio}, (3.0, math.inf))


GAP = "poh_hrm minus baseline"


def wanted(records):
    """Claim -> (its quantities by block, its bounds), by plain arithmetic."""
    y = {arm: np.array([values(records, size, arm) for size in SIZES]) for arm in ("baseline", "poh_hrm")}
    gap = y["poh_hrm"] - y["baseline"]
    names = list(SIZES)
    step = lambda arm, i: (f"{arm} from {names[i]} to {names[i + 1]}", y[arm][i + 1] - y[arm][i])  # noqa: E731
    at = {size: f"{GAP} at {size}" for size in SIZES}
    from_mean = {f"{GAP} at {size}, from its mean": gap[i] - gap.mean(axis=0) for i, size in enumerate(SIZES)}
    steps = dict(step(arm, i) for arm in y for i in range(3))
    wins = {at[size]: gap[i] for i, size in ((0, "tiny"), (2, "medium"), (3, "large"))}
    over = {arm: y[arm].mean(axis=0) / 0.1 for arm in y}
    return {
        "Q": ({GAP: gap.mean(axis=0)}, (0, math.inf)),
        "H0 baseline": ({"baseline": over["baseline"]}, (3, math.inf)),
        "H0 poh_hrm": ({"poh_hrm": over["poh_hrm"]}, (3, math.inf)),
        "H1": (wins, {name: (-math.inf, 0) if name == at["tiny"] else (0, math.inf) for name in wins}),
        "H2": (
            steps | from_mean,
            {n: (-0.02, 0.02) if n in from_mean else (0.02, math.inf) for n in steps | from_mean},
        ),
        "H3": (dict(step(arm, 2) for arm in y), (-0.02, 0.02)),
    }


@settings(max_examples=30)
@given(st.integers(0, 2**31 - 1))
def test_every_interval_and_verdict_is_scipy_s(seed):
    rng = np.random.default_rng(seed)
    base, gap = rng.uniform(0.25, 0.35) + np.cumsum(rng.uniform(-0.01, 0.1, 4)), rng.uniform(-0.05, 0.1, 4)
    records = main_arms(base, base + gap)
    records["accuracy"] += rng.choice([0.001, 0.01, 0.05]) * rng.standard_normal(len(records))
    verdicts, claims = found(records), wanted(records)
    assert list(verdicts) == list(claims)
    for id, (quantities, bounds) in claims.items():
        check(verdicts[id], quantities, bounds)
    assert [verdicts["H2"].verdict, verdicts["H3"].verdict] != ["supported"] * 2


def test_verdicts_have_the_effects_that_they_rest_on():
    records = main_arms((0.4, 0.5, 0.6, 0.7), (0.3, 0.45, 0.75, 0.9))
    out = filled("maze_scaling", records, report=False)
    whole = sum(values(records, size, "poh_hrm") - values(records, size, "baseline") for size in SIZES) / 4
    low, high = t_interval(whole)
    q = out.findings["Q"]
    assert (q.effect, q.interval) == ("+5.0 points", f"{100 * low:+.1f} to {100 * high:+.1f}")
    assert q.reason == "poh_hrm minus baseline; 5 seeds; 95 % interval" and q.rank == "primary"
    assert out.answer.startswith(f"PoH-HRM solves more mazes than the baseline: +5.0 points [{q.interval}]")
    assert out.findings["H3"].effect in ("+10.0 points", "+15.0 points")  # a step that refutes it
    assert out.findings["H0 baseline"].effect == "5.50x"  # of the better floor, .1
    for keep, text in (("arch == 'baseline'", "Not answered by these records: no accuracy of poh_hrm at tiny"),):
        assert filled("maze_scaling", records.query(keep), report=False).answer.startswith(text)


@pytest.mark.parametrize(
    ("poh", "text"),
    [(0.3, "does not solve more mazes than the baseline: -10.0 points"), (0.4, "cannot be told from the baseline")],
)
def test_the_answer_is_that_of_the_main_claim(poh, text):
    out = filled("maze_scaling", main_arms((0.4,) * 4, (poh,) * 4), report=False)
    assert out.answer.startswith(f"PoH-HRM {text}")


def test_few_test_mazes_hide_a_difference_that_seeds_agree_on():
    """The spread of a seed's difference is at least that of counting 100 mazes an arm at each of four sizes."""
    records = main_arms((0.4,) * 4, (0.43,) * 4, seeds=3, test=100)
    q = found(records)["Q"]
    near = [(100 * p + 2) / 104 for p in (0.4, 0.43)]
    sd = math.sqrt(sum(4 * p * (1 - p) / 100 / 16 for p in near))
    half = stats.t.ppf(0.975, 2) * sd / math.sqrt(3)
    assert q.parts[0].estimate[:3] == pytest.approx((0.03, 0.03 - half, 0.03 + half)) and q.verdict == "undecided"
    assert found(main_arms((0.4,) * 4, (0.43,) * 4, seeds=3))["Q"].verdict == "supported"


# --- files that lack cells


def test_blocks_are_paired_by_the_name_of_their_seed():
    """Five seeds an arm, three of them in common: what the others say counts in no difference."""
    records, series = made_up(seeds=5, arms=("baseline", "poh_hrm"))
    records["seed"] += 2 * (records["arch"] == "poh_hrm")
    out = filled("maze_scaling", records, series)
    gaps = [values(records, size, "poh_hrm") - values(records, size, "baseline") for size in SIZES]
    assert all(list(gap.dropna().index) == [2, 3, 4] for gap in gaps)
    floor_free = found(records.assign(settings=json.dumps({"maze_size": 5, "test": 10**8})))["Q"]
    check(floor_free, {GAP: sum(gaps).dropna() / 4}, (0, math.inf))
    for row, gap in zip(out.tables["gains.csv"].itertuples(), gaps, strict=True):
        assert (row.difference, row.low, row.high) == pytest.approx((gap.mean(), *t_interval(gap.dropna())))
        assert row.seeds == 3
    counts = out.tables["accuracy.csv"].set_index(["size", "arch"])["seeds"]
    assert counts["tiny", "baseline"] == counts["large", "poh_hrm"] == 5


@pytest.mark.parametrize(
    "keep",
    [
        "not (size == 'large' and arch == 'poh_hrm')",
        "seed == 0 or arch != 'poh_hrm'",
        "arch != 'baseline'",
        "size == 'tiny' and seed == 0",
        "seed < 3 or size == 'tiny'",
    ],
)
def test_an_unbalanced_file_has_its_whole_report(keep, all_of_it):
    records, series, whole = all_of_it
    out = filled("maze_scaling", records.query(keep).reset_index(drop=True), series, scale="smoke")
    lead = {"gains.svg"} if out.tables["gains.csv"]["low"].notna().any() else set()  # without an interval a table alone
    assert set(out.tables) == set(whole.tables) and set(out.figures) == set(whole.figures) - {"gains.svg"} | lead
    assert out.headings == whole.headings and set(out.findings) == set(whole.findings) and out.answer
    table = out.tables["accuracy.csv"].set_index(["size", "arch"])["accuracy"]
    part = records.query(keep)
    for size, arm in part[["size", "arch"]].drop_duplicates().itertuples(index=False):
        assert table[size, arm] == pytest.approx(values(part, size, arm).mean())


# --- figures and files


def mean_of(series, records, size, arm, name):
    keys = records[(records["size"] == size) & (records["arch"] == arm)]["key"]
    return np.mean([series[key][name] for key in keys], axis=0)


def test_figures_draw_means_over_seeds(all_of_it):
    records, series, pages = all_of_it
    drawn = {name: [lines(ax) for ax in pages.figures[f"{name}.svg"].axes]
             for name in ("learning", "accuracy_by_step", "iterations", "length")}  # fmt: skip
    for place, size in enumerate(SIZES):
        for arm in ("baseline", *BETTER):
            x, y = drawn["learning"][place][arm]
            parts = np.array_split(mean_of(series, records, size, arm, "losses"), 50)
            np.testing.assert_allclose(y, [part.mean() for part in parts])
            np.testing.assert_allclose(x, (np.arange(50) + 0.5) / 50)
            x, y = drawn["accuracy_by_step"][place][arm]
            np.testing.assert_allclose(x, np.array([13, 26, 39]) / 40)
            np.testing.assert_allclose(y, mean_of(series, records, size, arm, "accuracy_by_step"))
            x, y = drawn["iterations"][place][arm]
            assert x.tolist() == [1, 2, 3, 4]
            np.testing.assert_allclose(y, mean_of(series, records, size, arm, "accuracy_by_iteration"))
            x, y = drawn["length"][place][arm]
            keys = records[(records["size"] == size) & (records["arch"] == arm)]["key"]
            quarters = []
            for k in keys:  # a seed's own mazes, in quarters by length
                mazes = sorted((n, i) for i, n in enumerate(series[k]["length"]))
                parts = [mazes[i : i + 2] for i in range(0, 8, 2)]
                quarters.append([(np.mean([n for n, _ in q]), np.mean([series[k]["solved"][i] for _, i in q]))
                                 for q in parts])  # fmt: skip
            np.testing.assert_allclose(np.transpose([x, y]), np.mean(quarters, axis=0))


def test_larger_mazes_stand_beside_the_trained_size(all_of_it):
    records, series, pages = all_of_it
    for ax, size in zip(pages.figures["larger.svg"].axes, SIZES, strict=True):
        drawn = [line for line in ax.get_lines() if len(line.get_xdata()) == 3]
        want = [[values(records, size, arm).mean(), *mean_of(series, records, size, arm, "larger_accuracy")]
                for arm in ("baseline", *BETTER)]  # fmt: skip
        assert all(list(line.get_xdata()) == [5, 6, 8] for line in drawn)
        np.testing.assert_allclose(sorted(list(line.get_ydata()) for line in drawn), sorted(want))


def test_the_four_panels_are_both_arms_and_their_difference_in_points(all_of_it):
    records, _, pages = all_of_it
    panels = pages.figures["scaling_plot_maze5.png"].axes
    for ax, metric in zip(panels[:2], ("accuracy", "optimality"), strict=True):
        drawn = [list(line.get_ydata()) for line in ax.get_lines() if len(line.get_xdata()) == 4]
        want = [[values(records, size, arm, metric).mean() for size in SIZES] for arm in ("baseline", "poh_hrm")]
        assert all(any(np.allclose(line, row) for line in drawn) for row in want)
    for ax, metric in zip(panels[2:4], ("accuracy", "optimality"), strict=True):
        bars = [bar.get_height() for bar in ax.patches]
        gaps = [values(records, s, "poh_hrm", metric) - values(records, s, "baseline", metric) for s in SIZES]
        np.testing.assert_allclose(bars, [100 * gap.mean() for gap in gaps])


def test_walks_of_both_arms_are_drawn_over_the_largest_size_s_mazes(all_of_it):
    panels = all_of_it[2].figures["mazes.svg"].axes
    assert [ax.get_title() for ax in panels] == ["baseline solved\npoh_hrm solved"] * 2
    walks = lines(panels[0])
    assert set(walks) == {"baseline", "poh_hrm"}
    for x, y in walks.values():  # cells 0, 1, 2, 7 of five a row
        assert np.abs(x - [0, 1, 2, 2]).max() < 0.2 and np.abs(y - [0, 0, 0, 1]).max() < 0.2


def test_the_original_s_files_hold_means_in_percent(all_of_it):
    records, _, pages = all_of_it
    content = json.loads(pages.files["scaling_results_maze5.json"])
    assert content["config"] == {"maze_size": 5, "n_train": 32, "n_test": 8, "epochs": 3, "R": 4, "T": 2}
    assert (content["seeds"], content["scale"]) == (4, "smoke")
    assert content["floors"] == pytest.approx({"random": 6.5, "manhattan": 5.5})
    assert [row["size"] for row in content["results"]] == list(SIZES)
    for row in content["results"]:
        want = {"size": row["size"]}
        for name, arm in (("baseline", "baseline"), ("poh", "poh_hrm")):
            want[f"{name}_params"] = values(records, row["size"], arm, "n_params").iloc[0]
            want[f"{name}_acc"] = 100 * values(records, row["size"], arm).mean()
            want[f"{name}_opt"] = 100 * values(records, row["size"], arm, "optimality").mean()
        for m in ("acc", "opt"):
            want[f"poh_advantage_{m}"] = want[f"poh_{m}"] - want[f"baseline_{m}"]
        assert row == pytest.approx(want)
    text, rows = pages.files["scaling_summary_maze5.txt"].decode(), content["results"]
    assert f"average PoH advantage: {np.mean([row['poh_advantage_acc'] for row in rows]):+.1f} points" in text
    best = [max(rows, key=lambda row: row[f"{name}_acc"])["size"] for name in ("baseline", "poh")]
    assert "best: baseline at {}, PoH-HRM at {}".format(*best) in text
    for row in rows:
        (line,) = (line for line in text.splitlines() if line.startswith(row["size"]))
        sides = [f"{row[f'{a}_acc']:.1f} / {row[f'{a}_opt']:.1f}" for a in ("baseline", "poh")]
        assert re.findall(r"\d+\.\d / \d+\.\d", line) == sides and line.endswith(f"{row['poh_advantage_acc']:+.1f}")


def test_the_checklist_says_what_the_gaps_are():
    baseline, poh = (0.4, 0.5, 0.6, 0.7), (0.3, 0.45, 0.75, 0.9)
    records = main_arms(baseline, poh)
    records["n_params"] = records["size"].map({"tiny": 100, "small": 200, "medium": 400, "large": 800})
    text = checklist(records)
    gap = values(records, "tiny", "poh_hrm") - values(records, "tiny", "baseline")
    low, high = (100 * end for end in t_interval(gap))
    assert f"all sizes? tiny -10.0 points [{low:+.1f}, {high:+.1f}]" in text
    assert "small -5.0" in text and "large +20.0" in text
    assert "start winning? From medium." in text
    changes = re.search(r"The advantage changes (.*?); accuracy", text)[1]
    assert re.sub(r"\[.*?\] ", "", changes) == (
        "by +5.0 points from tiny to small; by +20.0 points from small to medium; by +5.0 points from medium to large"
    )
    assert "in the last step in size: baseline +10.0 points" in text and "poh_hrm +15.0 points" in text
    assert "+5.0 points" in text and "+2.5 points" in text.partition("in accuracy,")[2]
    assert "against the baseline at 2N: tiny -20.0 points; small -15.0 points; medium +5.0 points." in text
    steep = checklist(main_arms((0.1, 0.5, 0.6, 0.7), poh))
    assert "in the last step in size: baseline +10.0 points" in steep
    text = checklist(records[records["size"].isin(["tiny", "small"])])
    assert "At none with an interval above 0" in text and "2 size(s): cannot be said" in text
    assert "not in these records" in checklist(records[records["arch"] == "baseline"])
    assert "tiny -9.8 points one seed" in checklist(records[records["seed"] == 3])


def checklist(records):
    data = filled("maze_scaling", records, report=False).data
    return "\n".join(report.original.checklist(data, report.efficiency_table(data)))


def test_the_words_name_what_the_tables_show(all_of_it):
    text = all_of_it[2].words
    assert "Does the advantage exist at all sizes?" in text and "- tiny: PoH-HRM is" in text
    assert set(all_of_it[2].tables) == {"accuracy.csv", "gains.csv", "probes.csv", "efficiency.csv"}

"""The maze report on made-up records: every table, figure, file and verdict found again by plain arithmetic."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from .referees import adjusted, t_interval
from .stand_ins import Pages, lines, load

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


@pytest.fixture(scope="module")
def report():
    return load("maze_scaling", "report")


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
def all_of_it(report):
    records, series = made_up()
    pages = Pages(series)
    report.report(records, pages)
    return records, series, pages


def values(records, size, arm, metric="accuracy"):
    """A metric of an arm, by seed."""
    mine = records[(records["size"] == size) & (records["arch"] == arm)]
    return mine.set_index("seed")[metric].sort_index()


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


def test_the_cause_is_said_in_points_and_what_is_not_told_from_nothing_is_marked(report):
    base = {"arm": "", "against": "", "seeds": 3, "p_holm": 0.01}
    rows = [("the whole of PoH-HRM", 0.2, 0.1, 0.3), ("iterating (effective depth)", 0.15, 0.05, 0.25),
            ("routing, of any kind", 0.05, -0.01, 0.11),
            ("the slow state (hierarchy)", -0.03, -0.05, -0.01)]  # fmt: skip
    gains = pd.DataFrame([base | {"size": "tiny", "part": p, "difference": d, "low": lo, "high": hi}
                          for p, d, lo, hi in rows])  # fmt: skip
    (line,) = report.cause_words(gains)
    assert line == ("- tiny: PoH-HRM is +20.0 points over the baseline [+10.0, +30.0]; iterating alone gives +15.0; "
                    "routing adds +5.0, not told from 0; the slow state adds -3.0.")  # fmt: skip
    (line,) = report.cause_words(gains.assign(low=np.nan))
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


def test_efficiency_reads_the_baseline_between_its_sizes_on_a_log_scale(report):
    records, _ = made_up({"tiny": 100, "small": 200, "medium": 800}, arms=("baseline", "poh_hrm"))
    records["n_params"] = records["size"].map({"tiny": 100, "small": 200, "medium": 800})
    table = report.efficiency_table(records).set_index(["size", "times"])
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


def arms_of(baseline, poh, seeds=5, spread=0.001):
    """Records of the two main arms by accuracy at tiny, small, medium, large; exact means, the same spread of pairs."""
    rows = []
    for arm, accuracies in (("baseline", baseline), ("poh_hrm", poh)):
        for (size, n), mean in zip(SIZES.items(), accuracies, strict=False):
            for seed in range(seeds):
                off = spread * (seed - (seeds - 1) / 2) * (1 if arm == "poh_hrm" else -1)
                rows.append({"size": size, "arch": arm, "seed": seed, "n_params": n, "accuracy": mean + off,
                             "random_accuracy": 0.05, "manhattan_accuracy": 0.1})  # fmt: skip
    records = pd.DataFrame(rows)
    records.attrs["axes"] = ["size", "seed", "arch"]
    return records


def said(report, *curves, **more):
    pages = Pages()
    report.verdicts(arms_of(*curves, **more), pages)
    return pages.verdicts


@pytest.mark.parametrize(
    ("baseline", "poh", "want"),
    [
        ((0.4, 0.5, 0.6, 0.7), (0.3, 0.5, 0.7, 0.8), {"H1": "supported", "H2": "refuted", "H3": "refuted"}),
        ((0.4, 0.5, 0.6, 0.7), (0.3, 0.5, 0.6, 0.7), {"H1": "undecided"}),
        ((0.4, 0.5, 0.6, 0.7), (0.3, 0.5, 0.6, 0.6), {"H1": "refuted", "Q": "refuted"}),
        ((0.4, 0.5, 0.6, 0.7), (0.5, 0.6, 0.7, 0.8), {"H1": "refuted", "H2": "supported", "H3": "refuted"}),
        ((0.4, 0.5, 0.6, 0.7), (0.5, 0.6, 0.7, 0.83), {"H2": "refuted"}),
        ((0.4, 0.5, 0.6, 0.3), (0.5, 0.6, 0.7, 0.4), {"H2": "refuted"}),
        ((0.4, 0.6, 0.7, 0.7), (0.5, 0.7, 0.8, 0.8), {"H1": "refuted", "H3": "supported", "Q": "supported"}),
        ((0.4, 0.6, 0.7, 0.73), (0.5, 0.7, 0.8, 0.8), {"H3": "refuted"}),
        ((0.4, 0.4, 0.4, 0.4), (0.4, 0.4, 0.4, 0.4), {"H1": "undecided", "H3": "supported", "Q": "undecided"}),
        ((0.2, 0.2, 0.2, 0.2), (0.5, 0.5, 0.5, 0.5), {"H0 baseline": "refuted", "H0 poh_hrm": "supported"}),
        ((0.28, 0.28, 0.28, 0.28), (0.32, 0.32, 0.32, 0.32), {"H0 baseline": "refuted", "H0 poh_hrm": "supported"}),
    ],
)
def test_the_hypotheses_are_told_from_each_other(report, baseline, poh, want):
    found = said(report, baseline, poh)
    assert {id: found[id].said for id in want} == want


def test_verdicts_carry_the_effects_that_they_rest_on(report):
    baseline, poh = (0.4, 0.5, 0.6, 0.7), (0.3, 0.45, 0.75, 0.9)
    found, records = said(report, baseline, poh), arms_of(baseline, poh)
    gaps = {size: values(records, size, "poh_hrm") - values(records, size, "baseline") for size in SIZES}
    whole = sum(gaps.values()) / 4
    assert found["Q"].effect == "+5.0 points"
    assert found["Q"].interval == pytest.approx([100 * end for end in t_interval(whole)])
    assert found["H1"].effect == "-10.0 points at tiny, +20.0 at large"
    assert found["H1"].interval == pytest.approx([100 * end for end in t_interval(gaps["tiny"])])
    assert found["H2"].effect == "advantage changes by +30.0 points"
    assert "baseline +30.0 points" in found["H2"].why and "poh_hrm +60.0 points" in found["H2"].why
    assert found["H3"].effect == "baseline +10.0; poh_hrm +15.0" and "from medium to large" in found["H3"].why
    assert (found["H0 baseline"].effect, found["H0 poh_hrm"].effect) == ("x5.5", "x6.0")  # of the better floor, .1
    ratio = values(records, "tiny", "poh_hrm")
    assert found["H0 poh_hrm"].interval == pytest.approx(
        t_interval(records[records["arch"] == "poh_hrm"]["accuracy"] / 0.1), rel=0.15
    )
    assert len(ratio) == 5


def test_the_floor_is_the_better_of_both_in_each_cell(report):
    records = arms_of((0.4,) * 4, (0.4,) * 4)
    first = records["seed"] == 0
    records.loc[first, ["random_accuracy", "manhattan_accuracy"]] = [0.2, 0.1]
    pages = Pages()
    report.verdicts(records, pages)
    ratio = records["accuracy"] / np.where(first, 0.2, 0.1)
    assert pages.verdicts["H0 baseline"].effect == f"x{ratio[records['arch'] == 'baseline'].mean():.1f}"


@pytest.mark.parametrize(("sizes", "seeds"), [(2, 5), (4, 1)])
def test_little_decides_nothing(report, sizes, seeds):
    found = said(report, (0.4,) * sizes, (0.9,) * sizes, seeds=seeds)
    assert {found[id].said for id in ("H1", "H2", "H3")} == {"undecided"}
    assert f"has {sizes} and {seeds}" in found["H2"].why
    assert ("Q" in found) == (seeds > 1)


# --- figures and files


def mean_of(series, records, size, arm, name):
    keys = records[(records["size"] == size) & (records["arch"] == arm)]["key"]
    return np.mean([series[key][name] for key in keys], axis=0)


def test_figures_draw_means_over_seeds(all_of_it):
    records, series, pages = all_of_it
    drawn = {name: [lines(ax) for ax in pages.figures[f"{name}.png"].axes]
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
            mazes = sorted(((n, i) for i, n in enumerate(np.concatenate([series[k]["length"] for k in keys]))))
            solved = np.concatenate([series[k]["solved"] for k in keys])
            quarters = [mazes[i : i + 8] for i in range(0, 32, 8)]
            np.testing.assert_allclose(x, [np.mean([n for n, _ in q]) for q in quarters])
            np.testing.assert_allclose(y, [np.mean([solved[i] for _, i in q]) for q in quarters])


def test_larger_mazes_stand_beside_the_trained_size(all_of_it):
    records, series, pages = all_of_it
    for ax, size in zip(pages.figures["larger.png"].axes, SIZES, strict=True):
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
    panels = all_of_it[2].figures["mazes.png"].axes
    assert [ax.get_title() for ax in panels] == ["large, maze 1", "large, maze 2"]
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
    text, rows = pages.files["scaling_summary_maze5.txt"], content["results"]
    assert f"average PoH advantage: {np.mean([row['poh_advantage_acc'] for row in rows]):+.1f} points" in text
    best = [max(rows, key=lambda row: row[f"{name}_acc"])["size"] for name in ("baseline", "poh")]
    assert "best: baseline at {}, PoH-HRM at {}".format(*best) in text
    for row in rows:
        (line,) = (line for line in text.splitlines() if line.startswith(row["size"]))
        sides = [f"{row[f'{a}_acc']:.1f} / {row[f'{a}_opt']:.1f}" for a in ("baseline", "poh")]
        assert re.findall(r"\d+\.\d / \d+\.\d", line) == sides and line.endswith(f"{row['poh_advantage_acc']:+.1f}")


def test_the_checklist_says_what_the_gaps_are(report):
    baseline, poh = (0.4, 0.5, 0.6, 0.7), (0.3, 0.45, 0.75, 0.9)
    records = arms_of(baseline, poh).assign(optimality=lambda d: d["accuracy"] / 2)
    records["n_params"] = records["size"].map({"tiny": 100, "small": 200, "medium": 400, "large": 800})
    text = "\n".join(report.checklist(records))
    assert "all sizes? tiny -10.0 points [" in text and "small -5.0" in text and "large +20.0" in text
    assert "start winning? From medium." in text
    assert "grow with size? From smallest to largest by +30.0 points" in text
    assert "Last step in size: baseline +10.0 points" in text and "poh_hrm +15.0 points" in text
    assert "+5.0 points" in text and "+2.5 points" in text.partition("in accuracy")[2]
    assert "against the baseline at 2N: tiny -20.0 points; small -15.0 points; medium +5.0 points." in text
    text = "\n".join(report.checklist(records[records["size"].isin(["tiny", "small"])]))
    assert "At none with an interval above 0" in text and "2 size(s): cannot be said" in text
    assert "not in these records" in "\n".join(report.checklist(records[records["arch"] == "baseline"]))


def test_the_words_name_what_the_tables_show(all_of_it):
    words = all_of_it[2].words
    assert "Does the advantage exist at all sizes?" in words and "- tiny: PoH-HRM is" in words
    assert set(all_of_it[2].tables) == {"accuracy.csv", "gains.csv", "probes.csv", "efficiency.csv"}

"""The standard report: a study without report.py, from its declaration or from the records alone."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from mlexp.analysis import page, report, standard
from mlexp.analysis.tables import arm_table
from tests.analysis import conftest as make
from tests.referees import adjusted
from tests.study.made import data, records, study
from tests.study.reported import reported, summary_of, verdicts

BENCH = """
from mlexp.study import Above, At, Claim, Levels, Study, arm

STUDY = Study(
    asks="Is new better than base, at every size?", arm="arch", arms=("base", "new", "spare"), baseline="base",
    over=("size",), outcome="loss_nats",
    claims={
        "H1": Claim("New is better at every size", Above(At(arm("base") - arm("new"))), primary=True),
        "H2": Claim("Spare is worse than base", Above(At(arm("spare") - arm("base")))),
    },
    answer=lambda findings, arms: f"H1 is {findings['H1'].verdict}; {len(arms)} rows.",
)
"""
LOSS = {"base": 3.0, "new": 2.5, "late": 2.0}


def entries(arms=("base", "new", "late"), seeds=5):
    """Records over three sizes; `late` is an arm that the study has never heard of."""
    rng, made = np.random.default_rng(0), []
    for i, size in enumerate(("n100", "n1000", "n10000")):
        for seed in range(seeds):
            for arm in arms:
                params = {"size": size, "seed": seed, "arch": arm}
                loss = LOSS[arm] - 0.2 * i + 0.01 * rng.standard_normal()
                wall = (1 + list(LOSS).index(arm)) * (1 + 0.01 * rng.standard_normal())
                made.append(make.bench(params, (wall,), loss_nats=loss, flops=100 * (i + 1), seed=seed))
    return made


@pytest.fixture
def place(tmp_path):
    (tmp_path / "benches" / "speed").mkdir(parents=True)
    (tmp_path / "benches" / "speed" / "bench_speed.py").write_text(BENCH)
    return tmp_path


def report_of(place, made, folder="benches/speed", **extra):
    file = make.write_json(place / "a.json", made, **extra)
    ((section, figures),) = reported("speed", file, folder=place / folder if folder else None)
    return section, figures


def csv(section, name):
    from io import BytesIO

    return pd.read_csv(BytesIO(section.out.files[name]))


def test_a_study_without_report_py_is_reported_whole(place):
    made = entries()
    section, figures = report_of(place, made)
    df = pd.DataFrame([{**e["params"], **e["extra_info"], "wall_s": e["stats"]["median"]} for e in made])
    table = csv(section, "arms.csv")
    assert list(table["arch"]) == ["base", "new", "late"] * 3  # as declared, then what is new
    for row in table.itertuples():
        values = df[(df["size"] == row.size) & (df["arch"] == row.arch)]["loss_nats"]
        want = scipy_stats.ttest_1samp(values, 0).confidence_interval()
        assert (row.loss_nats, row.low, row.high, row.blocks) == pytest.approx((values.mean(), *want, 5))
        assert row.flops == 100 * (["n100", "n1000", "n10000"].index(row.size) + 1)
    against, p = csv(section, "against_baseline.csv"), {}
    for row in against.itertuples():
        wide = df[df["size"] == row.size].pivot(index="seed", columns="arch", values="loss_nats")
        test = scipy_stats.ttest_1samp(wide[row.arch] - wide["base"], 0)
        p[row.Index] = test.pvalue
        want = test.confidence_interval()
        assert (row.difference, row.low, row.high) == pytest.approx(((wide[row.arch] - wide["base"]).mean(), *want))
        times = df[df["size"] == row.size].pivot(index="seed", columns="arch", values="wall_s")
        assert row.wall_s_ratio == pytest.approx(np.exp(np.log(times[row.arch] / times["base"]).mean()))
    assert list(against["p_adjusted"]) == pytest.approx(list(adjusted(list(p.values()))))
    assert list(against["arch"]) == ["new", "late"] * 3
    assert all("late" in text for text in figures.values()) and "outcome.svg" in figures
    assert verdicts(section) == {"H1": "supported", "H2": "not tested"}
    text = summary_of(section)
    assert "**Answer.** H1 is supported; 9 rows." in text and "no loss_nats of spare at n100" in text
    p = {}
    for arm, cells in df.groupby("arch"):
        by_size = cells.pivot(index="seed", columns="size", values="loss_nats")[["n100", "n1000", "n10000"]]
        p[arm] = min(1, 2 * scipy_stats.page_trend_test(-by_size.to_numpy(), method="exact").pvalue)  # two-sided
    for arm, p_holm in zip(p, adjusted(list(p.values())), strict=True):
        line = f"{arm}: loss_nats falls with size (Page's p {p_holm:.2g}, two-sided, after Holm over 3 arms; 5 blocks)"
        assert line in text


def test_page_summary_and_terminal_name_the_level_of_an_effect(place, capsys):
    section, _ = report_of(place, entries())
    verdict = section.out.verdicts[0]
    assert re.fullmatch(r"at size n\d+ \(all 3 supported\)", verdict["extent"])
    assert f"| {verdict['effect']} {verdict['extent']} | {verdict['interval']} |" in summary_of(section)
    assert f">{verdict['extent']}<" in page.index([section], [])
    report._print([section], place)
    assert f"{verdict['effect']} [{verdict['interval']}] {verdict['extent']} (primary" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("outcome", "caption"),
    [
        ("wall_s", "Block by block each arch over base, above 1 is more; p after Holm over the rows."),
        ("loss_nats", "Block by block each arch minus base; ratios are each arch over base, above 1 is more; p after "),
    ],
)
def test_a_table_of_ratios_says_which_way_they_go(place, outcome, caption):
    (place / "benches/speed/bench_speed.py").write_text(BENCH.replace('outcome="loss_nats"', f'outcome="{outcome}"'))
    section, _ = report_of(place, entries())
    block = next(each for each in section.out.blocks if each.get("name") == "against_baseline.csv")
    assert block["caption"].startswith(caption) and block["caption"] in summary_of(section)


def test_costs_that_nobody_recorded_have_no_column(place):
    made = entries()
    for entry in made:
        entry["extra_info"] |= {"flops": None, "energy_j": None}
    section, _ = report_of(place, made)
    assert list(csv(section, "arms.csv")) == ["size", "arch", "loss_nats", "low", "high", "blocks", "wall_s"]
    assert list(csv(section, "against_baseline.csv"))[-2:] == ["blocks", "wall_s_ratio"]


def test_the_curve_of_every_series_is_drawn(place):
    made = entries()
    series = {e["extra_info"]["key"]: {"losses": [3.0, 2.0, 1.0 * i], "one": [1.0]} for i, e in enumerate(made)}
    _, figures = report_of(place, made, series=series)
    drawn = figures["series_losses.svg"]
    assert "series_one.svg" not in figures and drawn.count("panel") == 3
    first = np.mean([i for i, e in enumerate(made) if e["params"]["arch"] == "new" and e["params"]["size"] == "n1000"])
    assert f"(3, {first:.5g})" in drawn


def test_a_long_series_is_drawn_in_200_parts_whose_means_are_those_of_its_points(place):
    made = entries(arms=("base",))
    series = {
        e["extra_info"]["key"]: {"losses": list(np.random.default_rng(i).random(1001))} for i, e in enumerate(made)
    }
    section, figures = report_of(place, made, series=series)
    panels = figures["series_losses.svg"].split("panel")[1:]
    assert [panel.split(" | ")[1:3] for panel in panels] == [
        [f"size = {size}", "position in the series"] for size in ("n100", "n1000", "n10000")
    ]
    points = re.findall(r"\(([^,]*), ([^)]*)\)", panels[0].partition("line ")[2].partition("\n")[0])
    runs = np.array([series[e["extra_info"]["key"]]["losses"] for e in made if e["params"]["size"] == "n100"])
    x, parts = standard.shortened(runs)
    assert len(points) == 200 == len(x) and parts.shape == (5, 200)
    np.testing.assert_allclose(np.array(points, float)[:, 1], parts.mean(axis=0), rtol=1e-4)
    sizes = np.diff([*(np.arange(200) * 1001 // 200), 1001])
    assert (x * sizes).sum() == pytest.approx(1001 * 1002 / 2)
    np.testing.assert_allclose((parts * sizes).sum(axis=1), runs.sum(axis=1))
    assert "each point the mean of a 200th of the series" in figure_of(section, "series_losses.svg")["caption"]
    assert standard.shortened(runs[:, :200])[1].shape == (5, 200)


def figure_of(section, name):
    return next(block for block in section.out.blocks if block["kind"] == "figure" and block["name"] == name)


def test_the_arms_beside_the_baseline_lead_with_the_numbers_of_their_table(place):
    (place / "benches/speed/bench_speed.py").write_text(BENCH.replace('outcome="loss_nats"', 'outcome="wall_s"'))
    section, figures = report_of(place, entries())
    rows = csv(section, "against_baseline.csv")
    drawn, block = figures["against_baseline.svg"], figure_of(section, "against_baseline.svg")
    assert section.out.lead == "against_baseline.svg" and section.lead is block
    for i, arm in enumerate(("new", "late")):  # side by side, by a factor of 1.03, around the level
        for row in rows[rows["arch"] == arm].itertuples():
            at = float(row.size[1:]) * 1.03 ** (i - 0.5)
            assert f"({at:.5g}, {row.ratio:.5g})" in drawn
            assert f"({at:.5g}, {row.low:.5g}) ({at:.5g}, {row.high:.5g})" in drawn
    assert "wall_s, each arch over base (above 1 is more)" in drawn and "(0, 1) (1, 1)" in drawn
    best = rows[(rows["size"] == "n10000") & (rows["arch"] == "new")].iloc[0]
    found = f"{best['ratio']:.2f}x that of base at size n10000 [{best['low']:.2f}x to {best['high']:.2f}x]"
    assert block["finding"] == f"wall_s of new is {found}"
    assert "drawn side by side" in block["caption"] and "Bars: 95 % interval over seeds" in block["caption"]


def test_a_difference_to_the_baseline_has_its_unit_and_its_sign(place):
    section, figures = report_of(place, entries())
    rows = csv(section, "against_baseline.csv")
    best = rows[(rows["size"] == "n10000") & (rows["arch"] == "late")].iloc[0]
    block = figure_of(section, "against_baseline.svg")
    assert block["finding"].startswith(f"loss_nats of late minus base at size n10000: {best['difference']:+.4f} nats [")
    assert "loss_nats, each arch minus base, nats" in figures["against_baseline.svg"]
    assert "(0, 0) (1, 0)" in figures["against_baseline.svg"]


@pytest.mark.parametrize(("factor", "scale"), [(30.0, "log"), (2.0, "linear")])
def test_times_over_more_than_a_decade_are_on_a_log_axis(place, factor, scale):
    table = pd.DataFrame({"size": ["n1", "n2"] * 2, "arm": ["a", "a", "b", "b"], "wall_s": [1.0, 1.5, 1.0, factor]})
    declared = study(outcome="wall_s", arms=("a", "b"), baseline="a")
    means = {(size, arm): 1.0 for size in ("n1", "n2") for arm in ("a", "b")}
    known = data(records(means, seeds=3), declared)
    for axis, axes_of in (("size", "yaxis"), ("", "xaxis")):
        drawn = table.assign(low=table["wall_s"], high=table["wall_s"])
        (ax,) = standard.outcome_figure(known, drawn, axis, "wall_s").axes
        assert getattr(ax, axes_of).get_scale() == scale
    (ax,) = standard.outcome_figure(data(records(means, 3), study(arms=("a", "b"), baseline="a")),
                                    drawn.rename(columns={"wall_s": "loss_nats"}), "size", "").axes  # fmt: skip
    assert ax.get_yscale() == "linear"  # a loss has no natural ratio


@pytest.mark.parametrize(
    ("levels", "scale"),
    [(("d0", "d1"), "linear"), (("a1", "b1"), "linear"), (("d1", "d9"), "log"), (("x", "y"), "linear")],
)
def test_levels_stand_by_their_numbers_where_they_have_different_ones_above_0(levels, scale):
    means = {(level, arm): 1.0 for level in levels for arm in ("base", "new")}
    known = data(records(means, seeds=3, noise=0.1))
    table = arm_table(known, "size")
    (ax,) = standard.outcome_figure(known, table, "size", "loss").axes
    assert ax.get_xscale() == scale
    if scale == "linear":
        assert [label.get_text() for label in ax.get_xticklabels()] == list(levels)


def test_records_that_carry_their_study_are_reported_without_its_folder(place):
    declared = {"arm": "arch", "arms": ["late", "base", "new"], "baseline": "late", "over": ["size"],
                "replicates": ["seed"], "outcome": "loss_nats", "claims": {}}  # fmt: skip
    section, figures = report_of(place, entries(), folder="", studies={"speed": declared})
    assert list(csv(section, "arms.csv")["arch"][:3]) == ["late", "base", "new"]
    assert set(csv(section, "against_baseline.csv")["arch"]) == {"base", "new"}
    assert verdicts(section) == {} and "outcome.svg" in figures


def test_arms_of_the_file_stand_behind_those_of_the_folder(place):
    declared = {"arm": "arch", "arms": ["late", "base", "new"], "baseline": "late", "over": ["size"],
                "replicates": ["seed"], "outcome": "wall_s", "claims": {}}  # fmt: skip
    section, _ = report_of(place, entries(), studies={"speed": declared})
    assert section.out.data.study.arms == ("base", "new", "spare", "late")
    assert section.out.data.study.outcome == "loss_nats"  # the folder knows what the study is


@pytest.mark.parametrize(("stored", "mark"), [("same", "registered"), ("other", "post hoc"), ("none", "post hoc")])
def test_a_claim_is_registered_where_every_record_carries_it(place, stored, mark):
    from mlexp.study import load

    claims = {
        name: claim.fingerprint for name, claim in load(place / "benches/speed/bench_speed.py").STUDY.claims.items()
    }
    claims = {"same": claims, "other": dict.fromkeys(claims, "0" * 16), "none": {}}[stored]
    declared = {"arm": "arch", "arms": [], "baseline": "", "outcome": "loss_nats", "claims": claims}
    section, _ = report_of(place, entries(), studies={"speed": declared})
    assert [v["marks"] for v in section.out.verdicts] == [["primary", mark], ["secondary", mark]]
    found = json.loads(section.out.files["claims.json"])
    assert [row["registered"] for row in found] == [mark == "registered"] * 2
    assert [row["id"] for row in found] == ["H1", "H2"] and found[0]["parts"][0]["n"] == 5


def test_an_outcome_in_seconds_is_compared_as_a_ratio(place):
    (place / "benches/speed/bench_speed.py").write_text(BENCH.replace('outcome="loss_nats"', 'outcome="wall_s"'))
    made = entries()
    section, _ = report_of(place, made)
    df = pd.DataFrame([{**e["params"], "wall_s": e["stats"]["median"]} for e in made])
    for row in csv(section, "against_baseline.csv").itertuples():
        wide = np.log(df[df["size"] == row.size].pivot(index="seed", columns="arch", values="wall_s"))
        logs = wide[row.arch] - wide["base"]
        want = scipy_stats.ttest_1samp(logs, 0).confidence_interval()
        assert (row.ratio, row.low, row.high) == pytest.approx(np.exp([logs.mean(), *want]))


def test_half_a_grid_and_a_single_seed_are_reported_with_what_they_have(place):
    section, _ = report_of(place, [e for e in entries(seeds=1) if e["params"]["size"] != "n1000"])
    table = csv(section, "arms.csv")
    assert len(table) == 6 and table["low"].isna().all()
    assert verdicts(section)["H1"] == "not tested"
    assert "3 complete seeds are needed for base minus new at n100, there are 1" in summary_of(section)

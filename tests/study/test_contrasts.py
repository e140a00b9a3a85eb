"""Contrasts: what each quantity is in closed form, what is missing, what is refused."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from mlexp.analysis.contrasts import estimate, leaves, noise_floor, paired_estimate, values
from mlexp.analysis.data import Missing, number, ordered
from mlexp.analysis.sections import derived
from mlexp.analysis.tables import pair_table, quantity_table
from mlexp.study import Above, At, Contrast, FromMean, Levels, Mean, Slope, Steps, Within, arm, mean, ratio
from tests.referees import adjusted
from tests.study.made import SIZES, data, records, study

SIZE_NAMES = tuple(SIZES)
FOUR = {(size, name): 1.0 for size in SIZES for name in ("base", "new")}


def draw(seed, sizes=SIZE_NAMES, arms=("base", "new", "other"), seeds=4):
    """Records whose every value is its own, and these values as an array sizes x arms x seeds."""
    df = records({(size, name): 0.0 for size in sizes for name in arms}, seeds)
    df["loss_nats"] = np.random.default_rng(seed).uniform(1, 3, len(df))
    return df, df["loss_nats"].to_numpy().reshape(len(sizes), len(arms), seeds)


def all_values(quantity, df, **more):
    found = data(df, **more)
    return [values(leaf, found) for leaf in leaves(quantity, found)]


@settings(max_examples=25)
@given(st.integers(0, 2**31 - 1))
def test_every_quantity_is_its_closed_form(seed):
    df, y = draw(seed)
    gain, logs = y[:, 0] - y[:, 1], np.log(y[:, 0] / y[:, 1])
    difference, quotient = arm("base") - arm("new"), ratio("base", "new")
    x = np.log(list(SIZES.values()))
    slope = np.array([scipy_stats.linregress(x, block).slope for block in logs.T])
    expected = {
        At(difference): list(gain),
        At(difference, Levels(("small",))): [gain[1]],
        At(difference, Levels(place="first")): [gain[0]],
        At(difference, Levels(place="last")): [gain[3]],
        At(difference, Levels(place="upper half")): [gain[2], gain[3]],
        At(difference, Levels(("small",), place="upper half")): list(gain[1:]),
        Mean(difference): [gain.mean(axis=0)],
        Mean(quotient): [logs.mean(axis=0)],
        Steps(arm("new")): list(np.diff(y[:, 1], axis=0)),
        FromMean(difference): list(gain - gain.mean(axis=0)),
        Slope(quotient, "n_params"): [slope],
        Mean(arm("base") - mean("new", "other")): [(y[:, 0] - (y[:, 1] + y[:, 2]) / 2).mean(axis=0)],
    }
    for quantity, want in expected.items():
        found = all_values(quantity, df)
        assert len(found) == len(want)
        for one, other in zip(found, want, strict=True):
            assert one == pytest.approx(other)


def test_the_slope_of_differences_is_theirs_on_the_number_in_the_level_s_name():
    df, y = draw(3, sizes=("n100", "n1000", "n20000"))
    (found,) = all_values(Slope(arm("new")), df)
    want = [scipy_stats.linregress(np.log([100, 1000, 20000]), block).slope for block in y[:, 1].T]
    assert found == pytest.approx(want)


def test_every_quantity_of_a_table_is_named_by_its_level_or_step():
    df, y = draw(6)
    rows = {quantity: quantity_table(data(df), quantity(arm("new"))) for quantity in (At, Steps, FromMean, Mean)}
    assert list(rows[At]["label"]) == list(SIZES)
    assert list(rows[Steps]["label"]) == ["from tiny to small", "from small to medium", "from medium to large"]
    assert list(rows[FromMean]["label"]) == list(SIZES) and list(rows[Mean]["label"]) == [""]
    want = [scipy_stats.ttest_1samp(step, 0).confidence_interval() for step in np.diff(y[:, 1], axis=0)]
    assert rows[Steps][["low", "high"]].to_numpy() == pytest.approx(np.array([tuple(each) for each in want]))
    assert list(rows[Steps]["value"]) == pytest.approx(list(np.diff(y[:, 1].mean(axis=1))))
    assert quantity_table(data(df), At(arm("gone"))).empty


def test_levels_are_chosen_by_number_with_the_low_end_in_and_the_high_end_out():
    df, y = draw(4, sizes=("n100", "n1000", "n20000"))
    gain = y[:, 0] - y[:, 1]
    difference = arm("base") - arm("new")
    for levels, want in (
        (Levels(high=1000), [0]),
        (Levels(low=1000), [1, 2]),
        (Levels(low=1000, high=20000), [1]),
        (Levels(high=20001, place="last"), [2]),
        (Levels(high=20000, place="last"), [1]),
    ):
        assert np.array(all_values(At(difference, levels), df)) == pytest.approx(gain[want])


def test_levels_stand_by_number_or_by_size_whatever_their_order_in_the_file():
    df, _ = draw(0, sizes=("large", "tiny", "medium", "small"))
    assert ordered(df, "size") == list(SIZES)
    df, _ = draw(0, sizes=("n20000", "n500", "n1000"))
    assert ordered(df, "size") == ["n500", "n1000", "n20000"]
    assert number("beta0_03") == 0.03
    with pytest.raises(ValueError, match="'tiny' holds no number"):
        number("tiny")


def test_blocks_are_aligned_by_name_and_incomplete_ones_left_out():
    df, y = draw(5)
    df = df.sample(frac=1, random_state=0).drop(columns="key")  # whatever the order of the file
    lost = (df["size"] == "small") & (df["arm"] == "new") & (df["seed"] == 41)
    found = data(df[~lost])
    (leaf,) = leaves(At(arm("base") - arm("new"), Levels(("small",))), found)
    assert values(leaf, found) == pytest.approx((y[1, 0] - y[1, 1])[[0, 2, 3]])
    (other,) = leaves(At(arm("base") - arm("new"), Levels(("tiny",))), found)
    assert len(values(other, found)) == 4  # what is missing at one size is nothing to another


@pytest.mark.parametrize(
    ("quantity", "message"),
    [
        (At(arm("base") - arm("gone")), "no loss_nats of gone at tiny"),
        (At(arm("base"), Levels(("huge",))), "no size huge"),
        (At(arm("base"), Levels(("tiny", "huge"))), "no size huge"),
        (At(arm("base").of("nothing")), "nothing is not recorded"),
        (Mean(arm("base") - arm("gone"), Levels(place="complete")), "no size has all of base, gone"),
        (
            Slope(arm("base"), "n_params", Levels(("tiny", "small"))),
            "3 values of size are needed, there are 2: tiny, small",
        ),
        (Steps(arm("base"), Levels(place="last")), "two values of size are needed, large alone is there"),
    ],
)
def test_what_is_missing_is_named(quantity, message):
    df, _ = draw(0)
    with pytest.raises(Missing, match=message):
        all_values(quantity, df)


def test_the_upper_half_needs_three_sizes():
    df, _ = draw(0, sizes=("tiny", "small"))
    with pytest.raises(Missing, match="three values of size are needed, there are 2"):
        all_values(At(arm("base"), Levels(place="upper half")), df)


def test_a_ratio_of_a_zero_is_not_defined():
    df, _ = draw(0)
    df.loc[0, "loss_nats"] = 0.0
    with pytest.raises(Missing, match=r"loss_nats of \w+ at \w+ is 0: a ratio is of values above 0"):
        all_values(At(ratio("base", "new")), df)


def test_two_records_in_a_cell_and_unequal_work_are_refused():
    df, _ = draw(0)
    with pytest.raises(ValueError, match=r"several records of base in block .*at size tiny.*add the axis"):
        all_values(At(arm("base")), pd.concat([df, df.head(1)]))
    df["corpus_hash"] = np.where(df["arm"] == "new", "a", "b")
    with pytest.raises(ValueError, match="did not do the same work: corpus_hash differs"):
        all_values(At(arm("base")), df)


def test_contrasts_add_up_and_keep_to_one_metric():
    both = arm("a") - mean("b", "c") + arm("b")
    assert dict(both.weights) == {"a": 1.0, "b": 0.5, "c": -0.5}
    with pytest.raises(ValueError, match="the study's outcome and 'wall_s' do not add up"):
        arm("a") - arm("b").of("wall_s")
    with pytest.raises(ValueError, match="a ratio and a plain contrast do not add up"):
        ratio("a", "b") + arm("c")
    assert ratio("a", "b", "wall_s") == Contrast((("a", 1.0), ("b", -1.0)), "wall_s", log=True)


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        (lambda: Above(At(ratio("a", "b"))), "the bound of a ratio is 0; .*1 means no difference"),
        (lambda: Within(Mean(ratio("a", "b")), -0.1, 0.1), "the bound of a ratio is -0.1"),
        (lambda: Within(At(arm("a")), 3, 1), "low is 3, high is 1"),
    ],
)
def test_a_bound_that_means_nothing_is_refused(statement, told):
    with pytest.raises(ValueError, match=told):
        statement()
    assert Above(Slope(ratio("a", "b")), 0.0).low == 0.0  # an exponent


def test_the_interval_of_a_share_is_no_narrower_than_its_items_allow():
    """Against the binomial variance of a difference, shares pulled to one half by two items of each kind."""
    share = {"base": 0.4, "new": 0.5}
    df = records({("tiny", name): value for name, value in share.items()}, metric="accuracy")
    declared = study(outcome="accuracy", items={"accuracy": "test"})
    found = data(df, declared, {"test": 100})
    (leaf,) = leaves(At(arm("new") - arm("base")), found)
    near = [(100 * p + 2) / 104 for p in share.values()]
    floor = math.sqrt(sum(p * (1 - p) / 100 for p in near))
    assert noise_floor(leaf, found) == pytest.approx(floor)
    flat = paired_estimate(values(leaf, found), floor, 0.95)
    half = scipy_stats.t.ppf(0.975, 4) * floor / math.sqrt(5)
    assert (flat.low, flat.high) == pytest.approx((0.1 - half, 0.1 + half))
    wide = np.array([0.1, -0.3, 0.5, 0.2, -0.1])
    assert paired_estimate(wide, 0.01, 0.95)[1:3] == pytest.approx(
        scipy_stats.ttest_1samp(wide, 0).confidence_interval()
    )
    assert noise_floor(leaf, data(df, study(outcome="accuracy"))) == 0


@given(st.integers(0, 2**31 - 1))
def test_independent_arms_share_their_variance(seed):
    """Against the textbook contrast of a one-way layout of unequal sizes."""
    rng = np.random.default_rng(seed)
    groups = {name: rng.normal(i, 1, n) for i, (name, n) in enumerate((("base", 5), ("new", 4), ("other", 6)))}
    rows = [{"seed": i, "arm": name, "loss_nats": v} for name, g in groups.items() for i, v in enumerate(g)]
    found = data(pd.DataFrame(rows), study(over=(), independent=True))
    (leaf,) = leaves(At(arm("other") - mean("base", "new")), found)
    got = estimate(leaf, found, 0.9)
    s2 = sum(((g - g.mean()) ** 2).sum() for g in groups.values()) / 12
    error = math.sqrt(s2 * (0.25 / 5 + 0.25 / 4 + 1 / 6))
    value = groups["other"].mean() - (groups["base"].mean() + groups["new"].mean()) / 2
    half = scipy_stats.t.ppf(0.95, 12) * error
    assert got[:3] == pytest.approx((value, value - half, value + half)) and got.n == 4


def test_one_block_has_a_value_and_no_interval():
    df, y = draw(1, seeds=1)
    found = data(df)
    got = estimate(leaves(At(arm("base")), found)[0], found)
    assert got.value == pytest.approx(y[0, 0, 0]) and math.isnan(got.low) and got.n == 1
    assert estimate(leaves(At(arm("gone")), found)[0], found) is None


def test_claims_are_about_the_fixed_value_of_a_further_axis_or_the_only_one_there_is():
    df, y = draw(7)
    both = pd.concat([df.assign(match="a"), df.assign(match="b", loss_nats=df["loss_nats"] + 1)], ignore_index=True)
    declared = study(fixed={"match": "b"})
    (found,) = all_values(Mean(arm("new")), both, declared=declared)
    assert found == pytest.approx(y[:, 1].mean(axis=0) + 1)
    (found,) = all_values(Mean(arm("new")), both[both["match"] == "a"], declared=declared)
    assert found == pytest.approx(y[:, 1].mean(axis=0))


def test_a_level_is_as_large_as_its_smallest_arm():
    df, y = draw(8)
    df["n_params"] *= np.where(df["arm"] == "other", df["size"].map({"large": 9.0}).fillna(1.0), 1.0)
    (found,) = all_values(Slope(arm("new"), "n_params"), df)
    want = [scipy_stats.linregress(np.log(list(SIZES.values())), block).slope for block in y[:, 1].T]
    assert found == pytest.approx(want)


def test_an_exponent_is_shown_as_it_is_and_a_mean_of_logarithms_as_a_ratio():
    df, y = draw(9)
    logs = np.log(y[:, 0] / y[:, 1])
    (row,) = quantity_table(data(df), Slope(ratio("base", "new"), "n_params")).itertuples()
    slopes = [scipy_stats.linregress(np.log(list(SIZES.values())), block).slope for block in logs.T]
    assert (row.value, row.low, row.high) == pytest.approx(
        (np.mean(slopes), *scipy_stats.ttest_1samp(slopes, 0).confidence_interval())
    )
    (row,) = quantity_table(data(df), Mean(ratio("base", "new"))).itertuples()
    means = logs.mean(axis=0)
    assert (row.value, row.low, row.high) == pytest.approx(
        tuple(np.exp([means.mean(), *scipy_stats.ttest_1samp(means, 0).confidence_interval()]))
    )


def test_pairs_named_apart_have_no_part_in_the_correction():
    df, y = draw(10)
    pairs = {"new": ("new", "base"), "other": ("other", "base")}
    table = pair_table(data(df), pairs, "size", apart=("other",)).set_index(["size", "name"])
    p = [scipy_stats.ttest_1samp(y[i, 1] - y[i, 0], 0).pvalue for i in range(4)]
    assert list(table.xs("new", level="name")["p_adjusted"]) == pytest.approx(list(adjusted(p)))
    assert table.xs("other", level="name")["p_adjusted"].isna().all()


def test_the_p_of_independent_arms_is_tukey_s_over_those_that_compete():
    rng = np.random.default_rng(0)
    groups = {name: rng.normal(i, 1, 5) for i, name in enumerate(("base", "new", "other", "half"))}
    rows = [{"seed": i, "arm": name, "loss_nats": v} for name, g in groups.items() for i, v in enumerate(g)]
    declared = study(over=(), independent=True, apart=("half",), arms=tuple(groups))
    table = pair_table(data(pd.DataFrame(rows), declared), {name: (name, "base") for name in ("new", "other", "half")})
    s = math.sqrt(sum(g.var(ddof=1) for g in groups.values()) / 4)
    for row, arms in zip(table.itertuples(), (3, 3, 4), strict=True):
        gap = groups[row.name].mean() - groups["base"].mean()
        range_ = abs(gap) / (s / math.sqrt(5))
        assert row.p_adjusted == pytest.approx(scipy_stats.studentized_range.sf(range_, arms, 16))
        assert row.value == pytest.approx(gap) and row.sd == pytest.approx(s * math.sqrt(2))


def test_what_a_study_derives_still_knows_the_axes_of_its_records():
    df, _ = draw(11)
    made = derived(study(derive=lambda records: pd.DataFrame({**records, "double": 2 * records["loss_nats"]})), df)
    assert made.attrs == df.attrs and list(made["double"]) == pytest.approx(list(2 * df["loss_nats"]))
    assert "double" not in df and derived(study(), df) is df

"""The rules of a verdict, each with the records that break it; verdicts against intervals worked out here."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from mlexp.analysis import standard
from mlexp.analysis.claims import all_of, any_of, evaluate, switched, unit_of
from mlexp.analysis.findings import Finding, counted
from mlexp.analysis.intervals import share_interval
from mlexp.analysis.output import Output
from mlexp.analysis.sections import registered
from mlexp.analysis.stats import Estimate, Verdict
from mlexp.study import (
    Above,
    All,
    Any,
    At,
    Below,
    Claim,
    FromMean,
    Given,
    Levels,
    Mean,
    Slope,
    Steps,
    Switch,
    Within,
    arm,
    mean,
    ratio,
)
from tests.study.made import SIZES, data, records, study

SUPPORTED, REFUTED, UNDECIDED, NOT_TESTED = Verdict
WRONG = {"wrong": ("items", "lower", "how many it got wrong")}
GAIN = arm("base") - arm("new")
OVER = ratio("base", "new")
FIRST = At(GAIN, Levels(place="first"))


def verdict(statement, df, stand_in="", declared=None, settings=None, given_=None, **claim):
    """The finding of one claim."""
    declared = declared or study()
    declared = study(**{**vars(declared), "claims": {"C": Claim("A claim", statement, **claim)}})
    return evaluate(data(df, declared, settings, **(given_ or {})), stand_in, {})["C"]


def curve(gains, noise=0.01, seeds=5, **more):
    """Records in which `new` is better than `base` by so much at each size."""
    means = {(size, "base"): 2.0 for size in list(SIZES)[: len(gains)]}
    means |= {(size, "new"): 2.0 - gain for size, gain in zip(SIZES, gains, strict=False)}
    return records(means, seeds, noise, **more)


@pytest.mark.parametrize(("gain", "word"), [(0.5, "supported"), (-0.5, "refuted"), (0.0, "undecided")])
def test_one_quantity_is_judged_by_the_interval_that_is_printed(gain, word):
    df = curve([gain], noise=0.1)
    found = verdict(Above(FIRST), df)
    table = df.pivot(index="seed", columns="arm", values="loss_nats")
    want = scipy_stats.ttest_1samp(table["base"] - table["new"], 0).confidence_interval()
    (part,) = found.parts
    assert (part.estimate.low, part.estimate.high, part.estimate.n) == pytest.approx((want.low, want.high, 5))
    assert found.verdict == word and found.confidence == 0.95
    assert found.interval == f"{want.low:+.4f} to {want.high:+.4f}" and found.effect.endswith(" nats")
    assert "base minus new at tiny; 5 seeds; 95 % interval" in found.reason


@pytest.mark.parametrize(
    ("statement", "gains", "words"),
    [
        (Above(At(GAIN)), (0.5, 0.5, 0.5), SUPPORTED),
        (Above(At(GAIN)), (0.5, -0.5, 0.5), REFUTED),
        (Above(At(GAIN)), (0.5, 0.0, 0.5), UNDECIDED),
        (Below(At(GAIN)), (-0.5, -0.5, -0.5), SUPPORTED),
        (Within(At(GAIN), 0.4, 0.6), (0.5, 0.5, 0.5), SUPPORTED),
        (Within(At(GAIN), 0.4, 0.6), (0.5, 0.7, 0.5), REFUTED),
        (Above(At(GAIN), 0.4), (0.5, 0.5, 0.5), SUPPORTED),
        (Above(At(GAIN), 0.6), (0.5, 0.5, 0.5), REFUTED),
        (Above(Mean(GAIN)), (1.0, -0.1, -0.1), SUPPORTED),
        (Within(Steps(GAIN), -0.1, 0.1), (0.5, 0.5, 0.5), SUPPORTED),
        (Within(Steps(GAIN), -0.1, 0.1), (0.1, 0.5, 0.1), REFUTED),  # at the two ends it is the same
        (Within(FromMean(GAIN), -0.1, 0.1), (0.5, 0.5, 0.5), SUPPORTED),
        (Within(FromMean(GAIN), -0.1, 0.1), (0.1, 0.5, 0.1), REFUTED),
        (Above(Slope(GAIN, "n_params")), (0.1, 0.2, 0.3), SUPPORTED),
        (Above(Slope(GAIN, "n_params")), (0.3, 0.2, 0.1), REFUTED),
        (All(Below(FIRST), Above(At(GAIN, Levels(place="last")))), (-0.5, 0.0, 0.5), SUPPORTED),
        (All(Below(FIRST), Above(At(GAIN, Levels(place="upper half")))), (-0.5, -0.5, 0.5), REFUTED),
        (Any(Above(FIRST), Above(At(GAIN, Levels(place="last")))), (-0.5, 0.0, 0.5), SUPPORTED),
        (Any(Above(FIRST), Above(At(GAIN, Levels(place="last")))), (-0.5, 0.0, -0.5), REFUTED),
        (Switch(At(GAIN)), (-0.5, -0.5, 0.5, 0.5), SUPPORTED),
        (Switch(At(GAIN)), (-0.5, 0.0, 0.5, 0.5), SUPPORTED),  # where it lies is open, that it is there is not
        (Switch(At(GAIN)), (-0.5, 0.5, -0.5, 0.5), REFUTED),
        (Switch(At(GAIN)), (0.5, 0.5, 0.5, 0.5), REFUTED),
        (Switch(At(GAIN)), (-0.5, -0.5, -0.5, -0.5), REFUTED),
        (Switch(At(GAIN)), (-0.5, 0.5, 0.0, 0.5), UNDECIDED),
        (Switch(At(GAIN)), (0.0, 0.0, 0.0, 0.5), UNDECIDED),
        (Switch(At(ratio("base", "new"))), (-0.5, -0.5, 0.5, 0.5), SUPPORTED),
        (Above(At(ratio("base", "new")), 1.2), (0.5, 0.5, 0.5), SUPPORTED),  # 2 / 1.5
        (Above(At(ratio("base", "new")), 1.4), (0.5, 0.5, 0.5), REFUTED),
        (Within(At(ratio("base", "new")), 1.3, 1.36), (0.5, 0.5, 0.5), SUPPORTED),
    ],
)
def test_statements_about_curves_look_at_every_size_they_speak_of(statement, gains, words):
    assert verdict(statement, curve(gains)).verdict == words


def test_a_saturation_of_20_to_40_to_90_percent_is_none():
    """With three sizes of which the last is `medium`: the upper half begins at `small`, not at the end."""
    means = {(size, name): acc for size, acc in zip(SIZES, (0.2, 0.4, 0.9), strict=False) for name in ("base", "new")}
    df = records(means, noise=0.01, metric="accuracy")
    flat = All(*(Within(Steps(arm(n), Levels(("medium",), place="upper half")), -0.02, 0.02) for n in ("base", "new")))
    assert verdict(flat, df, declared=study(outcome="accuracy")).verdict == REFUTED


# --- 1: needs


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (lambda df: df[df["arm"] != "new"], "no loss_nats of new at tiny"),
        (lambda df: df[(df["arm"] != "new") | (df["size"] != "small")], "no loss_nats of new at small"),
        (lambda df: df[df["seed"] < 42], "3 complete seeds are needed for base minus new at tiny, there are 2"),
        (lambda df: df[(df["seed"] < 42) | (df["arm"] == "base")], "3 complete seeds are needed"),
    ],
)
def test_a_claim_that_lacks_something_is_not_tested_and_names_it(keep, message):
    found = verdict(Above(At(GAIN)), keep(curve([0.5, 0.5, 0.5])))
    assert found.verdict == NOT_TESTED and message in found.reason and not found.parts
    assert (found.effect, found.interval) == ("", "")


def test_what_is_missing_at_one_size_changes_no_claim_about_another():
    df = curve([0.5, 0.5, 0.5])
    lost = df[(df["arm"] != "new") | (df["size"] != "medium")]
    small = Above(At(GAIN, Levels(("tiny",))))
    whole, part = verdict(small, df), verdict(small, lost)
    assert whole == part and part.verdict == SUPPORTED
    assert "new at medium" in verdict(Above(At(GAIN, Levels(("medium",)))), lost).reason


def test_blocks_are_paired_by_name_never_by_position():
    """Seeds 40 to 44 of one arm and 42 to 46 of the other: three pairs, whose differences are exactly planted."""
    df = curve([0.5], shared=3.0, noise=0.001)
    moved = df.assign(seed=np.where(df["arm"] == "new", df["seed"] + 2, df["seed"]))
    moved.loc[moved["arm"] == "new", "loss_nats"] += 1  # as if it were another run
    found = verdict(Above(FIRST), moved)
    pairs = moved.pivot(index="seed", columns="arm", values="loss_nats").dropna()
    want = scipy_stats.ttest_1samp(pairs["base"] - pairs["new"], 0).confidence_interval()
    assert found.parts[0].estimate[1:4] == pytest.approx((want.low, want.high, 3))


# --- 2: blocks, spread, noise floor


def test_identical_values_decide_nothing():
    found = verdict(Above(FIRST), curve([0.5], noise=0.0))
    assert found.verdict == UNDECIDED and found.parts[0].estimate.value == pytest.approx(0.5)


def test_shares_of_few_items_decide_nothing_that_their_binomial_noise_hides():
    """Three seeds that happen to agree on 5 points of 100 mazes: the spread over seeds is below the noise of each."""
    df = records({("tiny", "base"): 0.50, ("tiny", "new"): 0.45}, seeds=3, noise=0.001, metric="accuracy")
    shares = study(outcome="accuracy", items={"accuracy": "test"})
    assert verdict(Above(FIRST), df, declared=study(outcome="accuracy")).verdict == SUPPORTED
    assert verdict(Above(FIRST), df, declared=shares).verdict == UNDECIDED
    assert verdict(Above(FIRST), df, declared=shares, settings={"test": 100_000}).verdict == SUPPORTED


# --- 3: one error budget


def test_primary_claims_share_five_percent_and_parts_share_the_claim_s():
    df = curve([0.5, 0.5])
    claims = {f"P{i}": Claim("", Above(FIRST), primary=True) for i in range(3)}
    claims |= {"S": Claim("", Above(FIRST)), "two": Claim("", Above(At(GAIN)))}
    claims["again"] = Claim("", All(Above(FIRST), Below(FIRST, 9.0)))  # one quantity, asked twice
    found = evaluate(data(df, study(claims=claims)), "", {})
    assert [f.confidence for f in found.values()] == pytest.approx([1 - 0.05 / 3] * 3 + [0.95, 0.975, 0.95])
    assert [f.rank for f in found.values()] == ["primary"] * 3 + ["secondary"] * 3
    assert all(f"; {100 * each.confidence:.4g} % interval" in each.reason for each in found.values())
    for each in found.values():
        table = df.pivot(index=["size", "seed"], columns="arm", values="loss_nats").loc["tiny"]
        sample = table["base"] - table["new"]
        want = scipy_stats.ttest_1samp(sample, 0).confidence_interval(each.confidence)
        assert each.parts[0].estimate[1:3] == pytest.approx((want.low, want.high))


def test_more_than_three_primary_claims_are_refused():
    with pytest.raises(ValueError, match=r"4 primary claims .*at most 3"):
        study(claims={f"P{i}": Claim("", Above(FIRST), primary=True) for i in range(4)})
    with pytest.raises(ValueError, match="an engineering check is not a primary hypothesis"):
        Claim("", Above(FIRST), primary=True, check=True)


# --- 4: units


def test_sizes_are_no_further_seeds():
    """Seeds whose luck all sizes share: over 3 seeds x 4 sizes the mean is known no better than over 3 seeds."""
    df = curve([0.5] * 4, noise=0.001)
    luck = df["seed"].map({40: -1.0, 41: 0.2, 42: 1.1, 43: 0.4, 44: -0.7})
    df["loss_nats"] += np.where(df["arm"] == "new", luck, 0.0)
    found = verdict(Above(Mean(GAIN)), df)
    table = df.pivot(index=["seed", "size"], columns="arm", values="loss_nats")
    by_seed = (table["base"] - table["new"]).groupby("seed").mean()
    want = scipy_stats.ttest_1samp(by_seed, 0).confidence_interval()
    assert found.parts[0].estimate[1:4] == pytest.approx((want.low, want.high, 5))
    assert found.verdict == UNDECIDED


# --- 5: selection


def independent(gaps, seeds=5, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    rows = [{"seed": i, "arm": name, "loss_nats": 2 + gap + noise * rng.standard_normal()}
            for name, gap in gaps.items() for i in range(seeds)]  # fmt: skip
    return pd.DataFrame(rows).assign(wall_s=1.0, rounds=1)


def best(name, names):
    return All(*(Above(At(arm(other) - arm(name))) for other in names if other != name))


def test_the_best_of_many_is_judged_by_intervals_that_hold_for_all_pairs():
    names = tuple("abcdef")
    declared = study(arms=names, baseline="a", over=(), independent=True)
    df = independent(dict.fromkeys(names, 0.0))
    found = verdict(best("a", names), df, declared=declared)
    groups = {name: g["loss_nats"].to_numpy() for name, g in df.groupby("arm")}
    want = scipy_stats.tukey_hsd(*groups.values()).confidence_interval()
    for part, other in zip(found.parts, range(1, 6), strict=True):
        assert part.estimate[1:3] == pytest.approx((want.low[other, 0], want.high[other, 0]), rel=1e-5)
    clear = independent(dict(zip(names, (0, 9, 9, 9, 9, 9), strict=True)))
    assert verdict(best("a", names), clear, declared=declared).verdict == SUPPORTED
    assert verdict(best("b", names), clear, declared=declared).verdict == REFUTED


def test_arms_that_compete_with_none_take_no_part_in_the_family():
    names = ("a", "b", "c")
    declared = study(arms=(*names, "half"), baseline="a", over=(), independent=True, apart=("half",))
    df = independent({"a": 0, "b": 1, "c": 2, "half": 5})
    part = verdict(best("a", names), df, declared=declared).parts[0]
    groups = [g["loss_nats"].to_numpy() for _, g in df.groupby("arm")]
    s = math.sqrt(sum(g.var(ddof=1) for g in groups) / 4)  # the spread of all four
    half = scipy_stats.studentized_range.ppf(0.95, 3, 16) * s / math.sqrt(5)  # but the range of three
    assert part.estimate.high - part.estimate.value == pytest.approx(half)


@pytest.mark.parametrize(("seeds", "word"), [(5, NOT_TESTED), (6, UNDECIDED)])
def test_every_independent_arm_needs_three_seeds(seeds, word):
    declared = study(over=(), independent=True)
    df = independent({"base": 0.0, "new": 0.0}, seeds=3)
    df = df[(df["arm"] == "base") | (df["seed"] < (3 if seeds == 6 else 2))]
    found = verdict(Above(At(GAIN)), df, declared=declared)
    assert found.verdict == word
    if word == NOT_TESTED:
        assert found.reason == "3 seeds of every arm are needed, one has 2"


# --- 7: stand-ins and settings


def test_behaviour_is_not_tested_on_stand_in_weights_and_cost_is():
    df = curve([0.5])
    found = verdict(Above(FIRST), df, "stand-in weights", about="behaviour")
    assert (found.verdict, found.reason) == (NOT_TESTED, "a claim about behaviour is not tested on stand-in weights")
    assert verdict(Above(FIRST), df, "stand-in weights", about="cost").verdict == SUPPORTED
    assert verdict(Above(FIRST), df, "", about="behaviour").verdict == SUPPORTED
    with pytest.raises(ValueError, match="about is 'speed'; choose from cost, behaviour"):
        Claim("", Above(FIRST), about="speed")


def test_a_claim_about_other_settings_is_not_tested():
    df = curve([0.5])
    found = verdict_with_settings(df, {"length": 200, "test": 100}, {"test": 100, "length": 50})
    assert found.verdict == NOT_TESTED and found.reason == "the claim is about length 200, test 100; here length is 50"
    assert verdict_with_settings(df, {"test": 100}, {"test": 100}).verdict == SUPPORTED


def verdict_with_settings(df, claimed, actual):
    declared = study(claims={"C": Claim("", Above(FIRST), settings=claimed)})
    return evaluate(data(df, declared, actual), "", {})["C"]


# --- 8: power


@pytest.mark.parametrize("seed", range(5))
def test_an_undecided_claim_says_how_many_seeds_would_decide_it(seed):
    df = curve([0.08], noise=0.1, seed=seed)
    found = verdict(Above(FIRST), df)
    if found.verdict != UNDECIDED:
        return
    table = df.pivot(index="seed", columns="arm", values="loss_nats")
    sample = table["base"] - table["new"]
    sd, n = sample.std(ddof=1), 5 + found.more_blocks
    half = lambda n: scipy_stats.t.ppf(0.975, n - 1) * sd / math.sqrt(n)  # noqa: E731
    assert half(n) < abs(sample.mean()) and half(n - 1) >= abs(sample.mean())
    assert found.more_seconds == found.more_blocks * 4.0  # two arms of two seconds a seed
    assert f"about {found.more_blocks} more seed{'' if found.more_blocks == 1 else 's'} would decide" in found.reason


@pytest.mark.parametrize(
    ("replicates", "more", "told"),
    [
        (("seed",), 1, "about 1 more seed would decide"),
        (("seed",), 2, "about 2 more seeds would decide"),
        (("batch",), 3, "about 3 more batches would decide"),
        (("seed", "prompt"), 2, "about 2 more seeds x prompts would decide"),
        ((), 1, "about 1 more record would decide"),
    ],
)
def test_what_more_are_needed_of_is_named(replicates, more, told):
    declared = study(replicates=replicates)
    words = {"unit": unit_of(declared), "one": unit_of(declared, 1)}
    assert Finding("C", Claim("", Above(FIRST)), UNDECIDED, 0.95, more_blocks=more, **words).to_decide == told


def decides(distance, sd, confidence=0.95):
    """The fewest blocks whose t interval is narrower than this."""
    half = lambda n: scipy_stats.t.ppf(0.5 + confidence / 2, n - 1) * sd / math.sqrt(n)  # noqa: E731
    return next(n for n in range(2, 10_000) if half(n) < distance)


def test_the_least_certain_of_several_quantities_says_how_many_seeds_are_needed():
    df = curve([0.05, 0.03], noise=0.1, seed=3).assign(rounds=3)
    found = verdict(Above(At(GAIN)), df)
    table = df.pivot(index="seed", columns=["size", "arm"], values="loss_nats")
    samples = [table[size, "base"] - table[size, "new"] for size in ("tiny", "small")]
    needed = [decides(abs(sample.mean()), sample.std(ddof=1), 0.975) for sample in samples]
    assert found.verdict == UNDECIDED and needed[0] != needed[1]
    assert found.more_blocks == max(needed) - 5 and found.more_seconds == found.more_blocks * 2 * 2 * 2.0 * 3


def test_further_seeds_of_few_items_are_counted_with_the_noise_of_the_items():
    df = records({("tiny", "base"): 0.50, ("tiny", "new"): 0.45}, seeds=3, noise=0.001, metric="accuracy")
    found = verdict(Above(FIRST), df, declared=study(outcome="accuracy", items={"accuracy": "test"}))
    means = df.groupby("arm")["accuracy"].mean()
    floor = math.sqrt(sum(p * (1 - p) / 100 for p in (100 * means + 2) / 104))
    assert found.more_blocks == decides(means["base"] - means["new"], floor) - 3


def test_further_seeds_of_independent_arms():
    found = verdict(Above(At(GAIN)), independent({"base": 0.1, "new": 0.0}), declared=study(over=(), independent=True))
    (part,) = found.parts
    half = (part.estimate.high - part.estimate.low) / 2
    assert found.verdict == UNDECIDED
    assert found.more_blocks == max(1, math.ceil(5 * (half / abs(part.estimate.value)) ** 2) - 5)


@pytest.mark.parametrize("seeds", [3, 5, 12])
def test_of_values_without_spread_no_number_of_seeds_is_said_to_decide(seeds):
    df = records({("tiny", "new"): 0.0}, seeds=seeds, metric="wrong")
    found = verdict(Within(At(arm("new").of("wrong")), None, 0.5), df, declared=study(metrics=WRONG))
    assert (found.verdict, found.more_blocks, found.to_decide) == (UNDECIDED, None, "")
    told = f"no spread in {seeds} seeds: every value is 0 items; more of them cannot decide it by an interval"
    assert found.reason.endswith(told) and "would decide" not in found.reason
    out = Output("speed", {}, pd.DataFrame(), lambda key: {})
    out.claims({"C": found})
    assert out.verdicts[0]["more"] == told  # the terminal line ends in it


def test_one_quantity_without_spread_among_several_is_named():
    df = pd.concat([curve([0.08], noise=0.1, seed=3), curve([0.5, 0.5], noise=0.0).query("size == 'small'")])
    df.attrs["axes"] = ["size", "seed", "arm"]
    found = verdict(Above(At(GAIN)), df)
    assert found.verdict == UNDECIDED and found.more_blocks is None
    assert "no spread in 5 seeds of base minus new at small: every value is +0.5000 nats; more" in found.reason


@pytest.mark.parametrize(
    ("statement", "gains", "told"),
    [
        (Above(At(GAIN)), (0.5, 0.0, 0.5), "at size small (1 of 3 undecided, 2 supported)"),
        (Above(At(GAIN)), (0.5, -0.5, 0.0), "at size small (1 of 3 refuted, 1 supported, 1 undecided)"),
        (Above(At(GAIN)), (0.5, 0.3, 0.4), "at size small (all 3 supported)"),
        (Above(Steps(GAIN)), (0.5, 0.7, 0.8), "from small to medium (all 2 supported)"),
        (All(Above(At(GAIN)), Below(At(GAIN), 1.0)), (0.5,), "for base minus new at tiny (all 2 supported)"),
        (All(Above(Mean(GAIN)), Above(Mean(arm("base")))), (0.5,), "for base minus new (all 2 supported)"),
        (Above(At(OVER), 1.0), (0.5, 0.1), "base over new at size small (all 2 supported)"),
        (Above(At(OVER), 1.0), (0.5,), "base over new"),
        (Above(Mean(OVER), 1.0), (0.5, 0.4), "base over new"),
        (All(Above(At(OVER), 1.0), Above(At(GAIN))), (0.5,), "base over new at tiny (all 2 supported)"),
        (Above(Slope(OVER, "n_params")), (0.1, 0.3, 0.5), ""),
        (Above(At(GAIN)), (0.5,), ""),
        (Above(Mean(GAIN)), (0.5, 0.4), ""),
    ],
)
def test_the_effect_of_several_quantities_says_which_it_is_and_how_all_ended(statement, gains, told):
    found = verdict(statement, curve(gains))
    assert found.extent == told
    answer = standard.answer({"C": found}, pd.DataFrame())
    effect = f"{found.effect} [{found.interval}]"
    assert answer == f"A claim: {found.verdict}" + (f", {effect} {told}." if told else f" ({effect}).")


def test_what_a_claim_shows_is_the_quantity_nearest_to_its_bound():
    for gains, word, shown in (
        ((0.5, 0.1, 0.9), SUPPORTED, "small"),
        ((0.5, -0.5, 0.9), REFUTED, "small"),
        ((0.5, 0.9, 0.0), UNDECIDED, "medium"),
    ):
        found = verdict(Above(At(GAIN)), curve(gains))
        assert found.verdict == word and found.deciding.label == f"base minus new at {shown}"


def test_the_distance_that_counts_is_to_the_nearer_bound():
    for low, high, distance in ((0.4, 0.7, 0.1), (0.2, 0.55, 0.05), (0.4, None, 0.1), (None, 0.55, 0.05)):
        (part,) = verdict(Within(FIRST, low, high), curve([0.5], noise=0.0)).parts
        assert part.distance == pytest.approx(distance)


def test_quantities_that_are_no_plain_differences_have_no_range_of_tukey():
    names = ("a", "b", "c")
    declared = study(arms=names, baseline="a", over=(), independent=True)
    df = independent(dict.fromkeys(names, 0.0))
    found = verdict(All(Above(At(arm("a") - mean("b", "c"))), Above(At(arm("a") - arm("b")))), df, declared=declared)
    groups = {name: g["loss_nats"] for name, g in df.groupby("arm")}
    s = math.sqrt(sum(g.var(ddof=1) for g in groups.values()) / 3)
    for part, share in zip(found.parts, (1 / 5 + 2 * 0.25 / 5, 2 / 5), strict=True):
        half = scipy_stats.t.ppf(1 - 0.05 / 4, 12) * s * math.sqrt(share)
        assert part.estimate.high - part.estimate.value == pytest.approx(half)


# --- quantities that a study computes itself


def test_given_quantities_are_counts_shares_and_reasons():
    given_ = {
        "count": lambda confidence: counted(3),
        "share": lambda confidence: share_interval(19, 20, confidence),
        "absent": "no GPU here",
        "unknown": lambda confidence: Estimate(1.0, math.nan, math.nan, 1, "one round"),
    }
    df = curve([0.5])
    assert verdict(Above(Given("count"), 2.9), df, given_=given_).verdict == SUPPORTED  # a count is what it is
    assert verdict(Above(Given("count"), 3), df, given_=given_).verdict == REFUTED
    assert verdict(Below(Given("count"), 2.9), df, given_=given_).verdict == REFUTED
    assert verdict(Above(Given("share"), 0.7), df, given_=given_).verdict == SUPPORTED
    low = scipy_stats.beta.ppf(0.0125, 19, 2)
    both = verdict(All(Above(Given("share"), 0.7), Above(Given("count"))), df, given_=given_)
    assert both.parts[0].estimate.low == pytest.approx(low)
    assert verdict(Above(Given("absent")), df, given_=given_).reason == "no GPU here"
    assert verdict(Above(Given("never")), df, given_=given_).reason == "no never in these records"
    unknown = verdict(Above(Given("unknown")), df, given_=given_)
    assert (unknown.verdict, unknown.reason) == (NOT_TESTED, "the interval of unknown is not known")


# --- logic


@given(st.lists(st.sampled_from([SUPPORTED, REFUTED, UNDECIDED]), min_size=1, max_size=5))
def test_the_logic_is_what_holds_however_the_open_parts_turn_out(parts):
    """By enumeration: every way in which the undecided parts may be true or false."""
    ways = [[]]
    for part in parts:
        ways = [
            [*way, value] for way in ways for value in {SUPPORTED: [True], REFUTED: [False]}.get(part, [True, False])
        ]
    for combine, rule in ((all_of, all), (any_of, any)):
        outcomes = {rule(way) for way in ways}
        assert combine(parts) == (UNDECIDED if len(outcomes) == 2 else SUPPORTED if outcomes == {True} else REFUTED)


@given(st.lists(st.sampled_from([SUPPORTED, REFUTED, UNDECIDED]), min_size=2, max_size=6))
def test_a_switch_is_refuted_just_where_no_turn_of_the_open_signs_is_one(signs):
    ways = [[]]
    for sign in signs:
        ways = [[*way, value] for way in ways for value in {SUPPORTED: [1], REFUTED: [0]}.get(sign, [0, 1])]
    is_switch = [sorted(way) == way and 0 < sum(way) < len(way) for way in ways]
    found = switched(signs)
    assert (found == REFUTED) == (not any(is_switch))
    if found == SUPPORTED:
        assert signs[0] == REFUTED and signs[-1] == SUPPORTED


@pytest.mark.parametrize(
    ("statement", "gains", "shown"),
    [
        (Above(At(GAIN)), (0.5, -0.9, -0.2), "small"),  # each of two refutes alone: the surer
        (Any(Above(At(GAIN, Levels(("tiny",)))), Above(At(GAIN, Levels(("small",))))), (0.0, 0.9), "small"),
        (Any(Above(At(GAIN, Levels(("tiny",)))), Above(At(GAIN, Levels(("small",))))), (0.2, -0.9), "tiny"),
        (Above(At(GAIN)), (0.5, 0.2, 0.9), "small"),  # only all together support: the weakest
        (Above(At(GAIN)), (0.5, 0.0, 0.9), "small"),
    ],
)
def test_the_part_that_is_shown_is_the_one_that_decides(statement, gains, shown):
    found = verdict(statement, curve(gains, noise=0.02))
    assert found.deciding.label == f"base minus new at {shown}"
    part = found.deciding
    assert found.interval == f"{part.estimate.low:+.4f} to {part.estimate.high:+.4f}"


# --- registration


def test_a_claim_is_registered_where_each_record_has_its_fingerprint():
    rows = [SimpleNamespace(study={"claims": claims}) for claims in ({"A": "1", "B": "2"}, {"A": "1", "B": "3"})]
    assert registered(rows) == {"A": "1"} and registered(rows[:1]) == {"A": "1", "B": "2"}
    assert registered([*rows, SimpleNamespace(study={})]) == registered([]) == {}


def test_a_claim_that_is_new_or_was_changed_is_post_hoc():
    claim = Claim("It helps", Above(FIRST))
    df, declared = curve([0.5]), study(claims={"C": claim})
    known = evaluate(data(df, declared), "", {"C": claim.fingerprint})["C"]
    assert known.registered
    assert not evaluate(data(df, declared), "", {})["C"].registered
    for changed in (
        Claim("It helps a lot", Above(FIRST)),
        Claim("It helps", Above(FIRST, 0.1)),
        Claim("It helps", Above(At(GAIN))),
        Claim("It helps", Above(FIRST), primary=True),
        Claim("It helps", Above(FIRST), about="behaviour"),
        Claim("It helps", Above(FIRST), settings={"test": 100}),
        Claim("It helps", Above(FIRST), source="original"),
    ):
        assert changed.fingerprint != claim.fingerprint
        found = evaluate(data(df, study(claims={"C": changed})), "", {"C": claim.fingerprint})["C"]
        assert not found.registered
    assert Claim("It helps", Above(FIRST)).fingerprint == claim.fingerprint


def test_a_finding_as_json_has_every_part_and_no_infinity():
    found = verdict(All(Above(FIRST), Within(At(GAIN), -1, 1)), curve([0.5, 0.2])).as_json()
    assert found["verdict"] == "supported" and found["rank"] == "secondary" and found["needs"] is None
    assert [(p["quantity"], p["above"], p["below"]) for p in found["parts"]] == [
        ("base minus new at tiny", 0.0, None),
        ("base minus new at tiny", -1, 1),
        ("base minus new at small", -1, 1),
    ]
    missing = verdict(Above(At(arm("gone"))), curve([0.5]), declared=study(arms=("base", "gone"))).as_json()
    assert missing["needs"] == "no loss_nats of gone at tiny" and missing["parts"] == []


def test_the_logic_of_a_claim_names_its_parts_by_number():
    """Read back as Python over the parts' own verdicts it gives the verdict."""
    df = curve([-0.5, 0.5, 0.5])
    statement = All(Below(FIRST), Any(Above(At(GAIN)), Above(At(GAIN, Levels(place="last")))))
    found = verdict(statement, df)
    assert found.logic == "all(1, any(all(2, 3, 4), 5))" and len(found.parts) == 5
    holds = {i: part.verdict == SUPPORTED for i, part in enumerate(found.parts, 1)}
    assert holds == {1: True, 2: False, 3: True, 4: True, 5: True} and found.verdict == SUPPORTED
    assert verdict(Switch(At(GAIN)), df).logic == "switch(1, 2, 3)"
    assert verdict(Above(FIRST), df).logic == "1"

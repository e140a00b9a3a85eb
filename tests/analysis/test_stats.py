"""Statistics: published or closed-form values, coverage by simulation, and refusal of what cannot be answered."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from scipy import stats as scipy_stats

from mlexp.analysis import stats

RUNS = 1000


def coverage(interval, n, draw=None, truth=0.0):
    """The share of `RUNS` simulated samples of size n whose interval holds the truth."""
    rng = np.random.default_rng(5)
    draw = draw or (lambda: rng.standard_normal(n))
    found = (interval(draw()) for _ in range(RUNS))
    return np.mean([low <= truth <= high for _, low, high, *_ in found])


def test_t_interval_is_the_textbook_one():
    found = stats.t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.value == 3.0
    assert found.high - 3 == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)  # t(0.975, 4)
    assert found.n == 5


@pytest.mark.parametrize("n", [3, 5, 10])
def test_t_interval_covers_what_it_says(n):
    assert coverage(stats.t_interval, n) == pytest.approx(0.95, abs=0.02)


def test_a_bootstrap_of_three_undercovers_which_is_why_few_blocks_get_t():
    assert coverage(lambda x: stats.bootstrap_interval(x, resamples=500), 3) < 0.85
    assert coverage(stats.mean_interval, 3) > 0.93


def test_the_bootstrap_of_twenty_covers():
    assert coverage(lambda x: stats.bootstrap_interval(x, resamples=500), 20) == pytest.approx(0.93, abs=0.025)


def test_bootstrap_is_the_same_for_the_same_seed_and_names_its_method():
    values = np.random.default_rng(0).exponential(size=15)
    assert stats.bootstrap_interval(values) == stats.bootstrap_interval(values)
    assert stats.bootstrap_interval(values).method == "BCa bootstrap, 10000 resamples"
    assert stats.bootstrap_interval([2.0, 2.0, 2.0])[:3] == (2.0, 2.0, 2.0)
    fallen_back = stats.bootstrap_interval([1.0] * 5 + [2.0] * 6, np.median, resamples=500)
    assert np.isfinite(fallen_back[1:3]).all()


def test_mean_ratio_is_geometric_and_turns_with_its_sign():
    logs = np.log([2.0, 0.5, 4.0])
    found, inverse = stats.mean_ratio(logs), stats.mean_ratio(-logs)
    assert found.value == pytest.approx(4 ** (1 / 3))
    assert (1 / inverse.high, 1 / inverse.low) == pytest.approx((found.low, found.high))
    assert "t interval on logs" in found.method
    assert "BCa" in stats.mean_ratio(np.random.default_rng(0).standard_normal(20)).method


def test_the_wealth_of_the_median_sequence_is_the_mixture_of_coins():
    """Against the integral: n values, k below; the interval leaves out a median as soon as 20 is reached."""
    for n, least in [(7, 0), (8, 1), (20, 4), (50, 15)]:
        found = stats.median_sequence(np.arange(n, dtype=float))
        assert (found.low, found.high) == ((least - 1, n - least) if least else (-math.inf, math.inf))
        wealth = [integrate.quad(lambda p: (2 * p) ** k * (2 - 2 * p) ** (n - k), 0, 1)[0] for k in range(n // 2)]  # noqa: B023
        assert sum(w >= 20 for w in wealth) == least


def looked_at(draw, interval, looks=120, runs=300):
    """The share of runs in which some look at the values so far leaves out the true median, 0."""
    rng, wrong = np.random.default_rng(8), 0
    for _ in range(runs):
        values = draw(rng, looks)
        ends = (interval(values[:n])[1:3] for n in range(2, looks + 1))
        wrong += any(low > 0 or high < 0 for low, high in ends)
    return wrong / runs


def bursts(rng, n):
    """Fair signs, and sizes that come in bursts with Cauchy tails."""
    sizes = np.abs(np.cumsum(rng.standard_cauchy(n)))
    return rng.choice([-1, 1], n) * sizes


@pytest.mark.parametrize("draw", [bursts, lambda rng, n: rng.standard_normal(n)], ids=["bursts", "normal"])
def test_the_median_sequence_may_be_looked_at_after_every_value(draw):
    assert looked_at(draw, stats.median_sequence) <= 0.05


def test_an_interval_for_one_look_may_not():
    assert looked_at(lambda rng, n: rng.standard_normal(n), stats.t_interval, runs=100) > 0.15


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.sampled_from([0.9, 0.95, 0.999]))
def test_the_median_sequence_holds_the_median_and_turns_with_its_sign(values, confidence):
    found, mirrored = (stats.median_sequence(sign * np.array(values), confidence) for sign in (1, -1))
    assert found.low <= found.value <= found.high
    assert (-mirrored.high, -mirrored.low) == (found.low, found.high)
    wider = stats.median_sequence(values, 0.9999)
    assert wider.low <= found.low and found.high <= wider.high


@pytest.mark.parametrize("n", [4, 8])
def test_page_trend_keeps_its_level_under_no_trend(n):
    rng = np.random.default_rng(9)
    found = [stats.page_trend(rng.standard_normal((n, 4))).p < 0.05 for _ in range(400)]
    assert np.mean(found) == pytest.approx(0.05, abs=0.03)


def test_holm_keeps_the_family_s_level_where_raw_p_values_do_not():
    rng = np.random.default_rng(10)
    p = rng.random((RUNS, 8))
    p[:, 0] /= 1000  # one claim is true
    assert np.mean([(stats.holm(row)[1:] < 0.05).any() for row in p]) <= 0.06
    assert np.mean((p[:, 1:] < 0.05).any(axis=1)) > 0.25


def test_mean_p_is_the_paired_t_test():
    a, b = np.random.default_rng(2).standard_normal((2, 8))
    assert stats.mean_p(a - b) == pytest.approx(scipy_stats.ttest_rel(a, b).pvalue)
    assert stats.mean_p([0.0, 0.0]) == 1.0


def test_holm_gives_the_known_adjustment():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])  # R: p.adjust
    assert stats.holm({"a": 0.5, "b": 0.01}) == {"a": 0.5, "b": 0.02}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_the_raw_p_and_bonferroni_and_keeps_the_order(p):
    adjusted = stats.holm(p)
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= np.minimum(1, np.array(p) * len(p)) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


def test_page_trend_is_the_published_example():
    table = [
        [3, 4, 3],
        [2, 4, 4],
        [3, 3, 5],
        [1, 3, 2],
        [2, 3, 2],
        [2, 4, 5],
        [1, 2, 4],
        [3, 4, 4],
        [2, 4, 5],
        [1, 3, 4],
    ]
    found = stats.page_trend(table)  # the student ratings of scipy's documentation
    assert found.statistic == 133.5
    assert found.p == pytest.approx(0.0018191161948127822)
    assert (found.blocks, found.treatments) == (10, 3)


def test_page_trend_finds_a_rise_and_not_a_fall():
    table = np.arange(12).reshape(3, 4)
    assert stats.page_trend(table).p < 0.001
    assert stats.page_trend(-table).p > 0.99


def test_slopes_are_the_exponents_planted():
    size, true = np.array([1e8, 3e8, 1e9]), np.array([0.1, 0.2, 0.3, 0.25])
    ratio = 2 * size ** true[:, None]
    assert stats.block_slopes(size, ratio) == pytest.approx(true)
    found = stats.slope_per_block(size, ratio)
    assert found[:3] == pytest.approx(stats.t_interval(true)[:3])
    assert found.n == 4


def test_an_a_a_slope_holds_zero_as_often_as_it_should():
    rng, size = np.random.default_rng(4), np.array([1.0, 2.0, 4.0, 8.0])
    draw = lambda: np.exp(0.1 * rng.standard_normal((4, 4)))  # noqa: E731
    assert coverage(lambda ratio: stats.slope_per_block(size, ratio), 4, draw) == pytest.approx(0.95, abs=0.02)


def advantages(blocks, at=5.0, x=(1, 2, 4, 8, 16), noise=0.2, seed=0):
    rng = np.random.default_rng(seed)
    return np.array(x, float), np.log(x) - np.log(at) + noise * rng.standard_normal((blocks, len(x)))


@pytest.mark.parametrize("blocks", [4, 24])
def test_crossover_is_found_where_it_was_planted(blocks):
    found = stats.crossover(*advantages(blocks))
    assert found.low < 5 < found.high
    assert found.high / found.low < 2
    assert (found.rises, found.crossings, found.n) == (True, 1, blocks)
    assert found.missing_fraction == 0


@pytest.mark.parametrize("blocks", [3, 24])
def test_crossover_intervals_cover(blocks):
    found = [stats.crossover(*advantages(blocks, noise=0.3, seed=seed), resamples=200) for seed in range(200)]
    assert np.mean([f.low <= 5 <= f.high for f in found]) > 0.9


def test_crossover_without_noise_is_exact_and_directed():
    x, table = advantages(3, noise=0)
    assert stats.crossover(x, table)[:4] == pytest.approx((5, 5, 5, True), rel=1e-3)
    assert stats.crossover(x, -table)[:4] == pytest.approx((5, 5, 5, False), rel=1e-3)


@pytest.mark.parametrize(("means", "open_end"), [((-0.02, 1, 2), "low"), ((-2, -1, 0.02), "high")])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_crossover_near_an_end_of_the_range_may_lie_beyond_that_end(means, open_end, sign):
    """Blocks enough for a bootstrap, in a third of whose resamples the advantage has no change of sign."""
    noise = 0.3 * np.random.default_rng(0).standard_normal((25, 3))
    table = sign * (np.array(means) + noise - noise.mean(axis=0))
    found = stats.crossover([1, 2, 4], table)
    assert (found.low, found.high)[open_end == "high"] == {"low": 0.0, "high": math.inf}[open_end]
    assert 1 <= (found.high if open_end == "low" else found.low) <= 4 and found.missing_fraction > 0.1


@pytest.mark.parametrize(
    ("values", "null", "p"), [([2, 2, 2], 2, 1.0), ([2, 2], 0, 0.0), ([0, 0], 2, 0.0), ([0, 0], 0, 1.0)]
)
def test_identical_values_are_the_null_or_not(values, null, p):
    assert stats.mean_p(values, null) == p


def test_no_crossover_is_none_and_a_touch_is_none():
    x = [1.0, 2.0, 4.0]
    assert stats.crossover(x, [[1, 2, 3], [2, 2, 2]]) is None
    assert stats.crossover(x, [[1, 0, 3], [2, 0, 2]]) is None
    assert stats.crossover(x, [[0, 0, 0], [0, 0, 0]]) is None
    assert stats.crossover(x, [[-1, 0, 3], [-2, 0, 2]]).value == pytest.approx(2)


def test_several_crossovers_are_counted_and_an_open_end_is_open():
    x = [1.0, 2.0, 4.0, 8.0]
    assert stats.crossover(x, [[-1, 1, -1, 1], [-1, 1, -1, 1]]).crossings == 3
    vague = stats.crossover(x, [[-3, -2, -1, 2], [1, 0, -1, -1.5], [-2, -1, 0, 3]])
    assert vague.high == math.inf


@given(
    blocks=st.integers(2, 8), points=st.integers(3, 7), where=st.floats(0.1, 0.9), noise=st.floats(0, 0.05),
    rises=st.booleans(), seed=st.integers(0, 2**31 - 1),
)  # fmt: skip
def test_crossings_find_one_none_and_two(blocks, points, where, noise, rises, seed):
    x = np.geomspace(1, 100, points)
    share, rng = np.linspace(0, 1, points), np.random.default_rng(seed)
    one = (share - where) * (1 if rises else -1) + rng.uniform(-noise, noise, (blocks, 1))
    found = stats.crossings(x, one, resamples=200)
    assert found.low <= found.median <= found.high and found.n == blocks
    assert (found.none_fraction, found.multiple_fraction) == (0, 0)
    assert abs(math.log(found.median) - where * math.log(100)) <= (noise + 1e-6) * math.log(100)
    never = stats.crossings(x, one + 2, resamples=50)
    assert never[3:5] == (1, 0) and math.isnan(never.median)
    bump = np.where((np.arange(points) > 0) & (np.arange(points) < points - 1), 1.0, -1.0)
    twice = stats.crossings(x, bump + rng.uniform(-noise, noise, (blocks, points)), resamples=50)
    assert twice[3:5] == (0, 1) and x[0] < twice.low <= twice.high < x[1]


def test_crossings_of_doubtful_curves_are_shares_of_the_resamples():
    found = stats.crossings([1, 2], [[-1.0, 1.0], [1.0, 1.0]], resamples=4000)  # crosses unless block 2 is drawn twice
    assert found.none_fraction == pytest.approx(0.25 + 0.5, abs=0.03)  # and mixed draws touch 0 at the start: no change
    assert found.multiple_fraction == 0


@pytest.mark.parametrize(
    ("interval", "options", "expected"),
    [
        ((0.1, 0.3), {}, "supported"),
        ((-0.3, -0.1), {}, "refuted"),
        ((-0.1, 0.3), {}, "undecided"),
        ((0.0, 0.3), {}, "undecided"),
        ((1.05, 1.3), {"null": 1.0}, "supported"),
        ((0.01, 0.02), {"least": 0.05}, "refuted"),
        ((-0.01, 0.02), {"least": 0.05}, "refuted"),
    ],
)
def test_verdicts_follow_the_interval(interval, options, expected):
    assert stats.verdict(interval, **options) == expected
    assert stats.verdict(stats.Estimate(0.0, *interval, 5, "t"), **options) == expected


def test_verdict_within_a_band():
    assert stats.verdict_within((0.98, 1.02), (0.95, 1.05)) == "supported"
    assert stats.verdict_within((1.1, 1.2), (0.95, 1.05)) == "refuted"
    assert stats.verdict_within((0.9, 1.0), (0.95, 1.05)) == "undecided"


def test_an_a_a_is_called_supported_no_more_often_than_two_and_a_half_percent():
    rng = np.random.default_rng(6)
    called = [stats.verdict(stats.t_interval(rng.standard_normal(4))) for _ in range(RUNS)]
    assert called.count("supported") / RUNS == pytest.approx(0.025, abs=0.015)


def test_the_minimum_detectable_effect_is_detected_with_its_power():
    rng = np.random.default_rng(7)
    effect = stats.minimum_detectable(sd=1.0, n=8)
    found = [stats.mean_p(effect + rng.standard_normal(8)) < 0.05 for _ in range(RUNS)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: stats.t_interval([1.0]), "at least 2 values"),
        (lambda: stats.mean_ratio([0.1, math.nan, 0.2]), "1 of 3 values are NaN or infinite"),
        (lambda: stats.bootstrap_interval([[1, 2], [3, 4]]), "flat list"),
        (lambda: stats.holm([0.1, math.nan]), r"numbers in \[0, 1\]"),
        (lambda: stats.page_trend([[1, 2, 3]]), "at least 2 blocks x 3 columns"),
        (lambda: stats.page_trend([[1, 2, 3], [1, math.nan, 3]]), "keep complete blocks only"),
        (lambda: stats.block_slopes([1, 2], [[1, 2, 3]]), "2 sizes for 3 columns"),
        (lambda: stats.block_slopes([1, 2], [[1, -2]]), "positive ratios"),
        (lambda: stats.crossover([2, 1], [[1, 2], [1, 2]]), "rising order"),
        (lambda: stats.crossings([1, 2], [[1, math.nan], [1, 2]]), "NaN or infinite"),
        (lambda: stats.verdict((math.nan, 1)), "not an interval"),
        (lambda: stats.verdict((2, 1)), "not an interval"),
        (lambda: stats.minimum_detectable(1.0, 1), "two pairs"),
        (lambda: stats.median_sequence([]), "median of 0 values"),
        (lambda: stats.median_sequence([1.0, math.nan]), "1 of them NaN"),
    ],
)
def test_what_has_no_answer_is_refused(call, told):
    with pytest.raises(ValueError, match=told):
        call()


def test_sign_flips_are_all_counted():
    values = [0.3, 0.1, 0.4, 0.2, -0.05]
    signs = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1).T
    as_far = np.abs(signs @ values) >= abs(sum(values)) - 1e-12
    assert stats.sign_flip_p(values) == pytest.approx(as_far.mean())
    assert stats.sign_flip_p([1.0, 2.0, 3.0, 4.0, 5.0]) == 2 / 2**5  # five pairs never reach 0.05
    assert stats.sign_flip_p([0.0, 0.0]) == 1


def test_sign_flips_reject_as_often_as_they_say():
    rng = np.random.default_rng(0)
    rejected = np.mean([stats.sign_flip_p(rng.standard_t(2, 8)) <= 0.05 for _ in range(400)])
    assert 0.02 < rejected < 0.08


@pytest.mark.parametrize("gap", [0.0, 0.5, 2.0])
def test_the_tie_set_keeps_the_best_and_drops_what_is_far_behind(gap):
    """Five blocks of six treatments whose means are `gap` noises apart, on top of what a block has in common."""
    rng, kept, sizes = np.random.default_rng(1), 0, []
    for _ in range(RUNS):
        table = rng.standard_normal((5, 1)) * 9 + rng.standard_normal((5, 6)) + gap * np.arange(6)
        tied = stats.tie_set(table)
        kept += tied[0]
        sizes.append(tied.sum())
    assert kept / RUNS > 0.94
    assert np.mean(sizes) < (2.5 if gap == 2 else 6.01)


def test_one_clear_winner_is_alone_and_identical_treatments_tie():
    table = np.random.default_rng(0).standard_normal((5, 3)) * 1e-3 + [0, 1, 1]
    assert stats.tie_set(table).tolist() == [True, False, False]
    assert stats.tie_set(np.ones((3, 4))).all()


def test_the_crossed_interval_covers_where_that_of_items_alone_does_not():
    """Six runs over 40 items: each run is off by its own noise, each item is as hard as it is for all of them."""
    rng = np.random.default_rng(2)

    def draw():
        return 0.5 * rng.standard_normal((6, 1)) + rng.standard_normal((1, 40)) + rng.standard_normal((6, 40))

    assert coverage(lambda x: stats.crossed_interval(x, resamples=300), 6, draw) > 0.93
    assert coverage(lambda x: stats.bootstrap_interval(x.mean(0), resamples=300), 6, draw) < 0.9


@given(st.integers(3, 8), st.integers(0, 2**31 - 1))
@settings(max_examples=10)
def test_where_items_do_not_differ_the_crossed_interval_is_student_s_of_the_runs(runs, seed):
    effects = np.random.default_rng(seed).standard_normal(runs)
    found = stats.crossed_interval(np.repeat(effects[:, None], 5, axis=1), resamples=8000)
    want = scipy_stats.ttest_1samp(effects, 0).confidence_interval()
    assert (found.high - found.low) == pytest.approx(want.high - want.low, rel=0.05)


def test_the_crossed_interval_weighs_its_items():
    table = np.array([[1.0, 5.0], [1.2, 5.1], [0.9, 5.2]])
    assert stats.crossed_interval(table, [3, 1]).value == pytest.approx((3 * 3.1 / 3 + 15.3 / 3) / 4)
    with pytest.raises(ValueError, match="give 2 numbers above 0"):
        stats.crossed_interval(table, [1, 0])


def test_signal_to_noise_is_the_root_of_the_f_of_two_way_anova_over_blocks():
    rng = np.random.default_rng(0)
    table = rng.standard_normal((5, 1)) * 4 + rng.standard_normal((5, 6)) + np.arange(6)
    between = 5 * table.mean(0).var(ddof=1)
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    f = between / ((rest**2).sum() / 20)
    assert stats.signal_to_noise(table) == pytest.approx(math.sqrt(f / 5))
    assert stats.signal_to_noise(np.array([[1.0, 2.0], [2.0, 3.0]])) == math.inf

"""Statistics: published or closed-form values, coverage by simulation, and refusal of what cannot be answered."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize
from scipy import stats as scipy_stats

from mlexp.analysis import curves, intervals, multiple, stats

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


@pytest.mark.parametrize("n", [3, 20])
def test_t_covers_what_the_bca_bootstrap_does_not_with_few_blocks_and_with_many(n):
    rng = np.random.default_rng(3)

    def bca(values):
        found = scipy_stats.bootstrap((values,), np.mean, n_resamples=300, batch=300, rng=rng).confidence_interval
        return 0.0, found.low, found.high

    with np.errstate(all="ignore"):
        assert coverage(bca, n) < 0.93 < 0.94 < coverage(stats.t_interval, n)


def test_ratio_interval_is_geometric_and_turns_with_its_sides():
    ratios = np.array([2.0, 0.5, 4.0])
    found, inverse = stats.ratio_interval(ratios), stats.ratio_interval(1 / ratios)
    assert found.value == pytest.approx(4 ** (1 / 3))
    assert (1 / inverse.high, 1 / inverse.low) == pytest.approx((found.low, found.high))
    assert "t interval on logs" in found.method
    assert stats.ratio_interval(np.arange(1.0, 31.0)).method == found.method  # at any number of blocks


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
    found = [curves.page_trend(rng.standard_normal((n, 4))).p < 0.05 for _ in range(400)]
    assert np.mean(found) == pytest.approx(0.05, abs=0.03)


def test_holm_keeps_the_family_s_level_where_raw_p_values_do_not():
    rng = np.random.default_rng(10)
    p = rng.random((RUNS, 8))
    p[:, 0] /= 1000  # one claim is true
    assert np.mean([(multiple.holm(row)[1:] < 0.05).any() for row in p]) <= 0.06
    assert np.mean((p[:, 1:] < 0.05).any(axis=1)) > 0.25


def test_mean_p_is_the_paired_t_test():
    a, b = np.random.default_rng(2).standard_normal((2, 8))
    assert stats.mean_p(a - b) == pytest.approx(scipy_stats.ttest_rel(a, b).pvalue)
    assert stats.mean_p([0.0, 0.0]) == 1.0


def test_holm_gives_the_known_adjustment():
    assert multiple.holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])  # R: p.adjust
    assert multiple.holm({"a": 0.5, "b": 0.01}) == {"a": 0.5, "b": 0.02}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_the_raw_p_and_bonferroni_and_keeps_the_order(p):
    adjusted = multiple.holm(p)
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
    found = curves.page_trend(table)  # the student ratings of scipy's documentation, which have ties
    assert found.statistic == 133.5 == scipy_stats.page_trend_test(table).statistic
    rng, ranks = np.random.default_rng(0), scipy_stats.rankdata(table, axis=1)
    drawn = np.array([(rng.permuted(ranks, axis=1) @ [1, 2, 3]).sum() for _ in range(20_000)])
    assert found.p == pytest.approx((drawn >= 133.5 - 1e-9).mean(), abs=5e-4)
    assert found.p < scipy_stats.page_trend_test(table).pvalue  # which takes the ties for untied ranks
    assert (found.blocks, found.treatments) == (10, 3)


@given(blocks=st.integers(2, 3), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=15)
def test_page_trend_is_exact_with_ties_too(blocks, seed):
    """By enumeration: every order of every block's ranks, ties at their mean rank."""
    table = np.random.default_rng(seed).integers(0, 3, (blocks, 4)).astype(float)
    ranks = scipy_stats.rankdata(table, axis=1)
    orders = [[np.array(order) @ np.arange(1, 5) for order in itertools.permutations(row)] for row in ranks]
    sums = np.array([sum(parts) for parts in itertools.product(*orders)])
    found = curves.page_trend(table)
    assert found.statistic == pytest.approx((ranks @ np.arange(1, 5)).sum())
    assert found.p == pytest.approx((sums >= found.statistic - 1e-9).mean())


def test_page_trend_of_many_treatments_is_the_normal_approximation():
    table = np.random.default_rng(0).standard_normal((6, 9)) + np.arange(9) / 8
    want = scipy_stats.page_trend_test(table, method="asymptotic")
    assert curves.page_trend(table)[:2] == pytest.approx((want.statistic, want.pvalue))


def test_page_trend_finds_a_rise_and_not_a_fall():
    table = np.arange(12).reshape(3, 4)
    assert curves.page_trend(table).p < 0.001
    assert curves.page_trend(-table).p > 0.99


def advantages(blocks, at=5.0, x=(1, 2, 4, 8, 16), noise=0.2, seed=0):
    rng = np.random.default_rng(seed)
    return np.array(x, float), np.log(x) - np.log(at) + noise * rng.standard_normal((blocks, len(x)))


@pytest.mark.parametrize("blocks", [4, 24])
def test_crossover_is_found_where_it_was_planted(blocks):
    found = curves.crossover(*advantages(blocks))
    assert found.low < 5 < found.high
    assert found.high / found.low < 2
    assert (found.rises, found.crossings, found.n) == (True, 1, blocks)
    assert found.missing_fraction == 0


@pytest.mark.parametrize("blocks", [3, 24])
def test_crossover_intervals_cover(blocks):
    found = [curves.crossover(*advantages(blocks, noise=0.3, seed=seed), resamples=200) for seed in range(200)]
    assert np.mean([f.low <= 5 <= f.high for f in found]) > 0.9


def test_crossover_without_noise_is_exact_and_directed():
    x, table = advantages(3, noise=0)
    assert curves.crossover(x, table)[:4] == pytest.approx((5, 5, 5, True), rel=1e-3)
    assert curves.crossover(x, -table)[:4] == pytest.approx((5, 5, 5, False), rel=1e-3)


@pytest.mark.parametrize(("means", "open_end"), [((-0.02, 1, 2), "low"), ((-2, -1, 0.02), "high")])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_crossover_near_an_end_of_the_range_may_lie_beyond_that_end(means, open_end, sign):
    """In a third of whose resamples the advantage has no change of sign."""
    noise = 0.3 * np.random.default_rng(0).standard_normal((25, 3))
    table = sign * (np.array(means) + noise - noise.mean(axis=0))
    found = curves.crossover([1, 2, 4], table)
    assert (found.low, found.high)[open_end == "high"] == {"low": 0.0, "high": math.inf}[open_end]
    assert 1 <= (found.high if open_end == "low" else found.low) <= 4 and found.missing_fraction > 0.1


@pytest.mark.parametrize(
    ("values", "null", "p"), [([2, 2, 2], 2, 1.0), ([2, 2], 0, 0.0), ([0, 0], 2, 0.0), ([0, 0], 0, 1.0)]
)
def test_identical_values_are_the_null_or_not(values, null, p):
    assert stats.mean_p(values, null) == p


def test_no_crossover_is_none_and_a_touch_is_none():
    x = [1.0, 2.0, 4.0]
    assert curves.crossover(x, [[1, 2, 3], [2, 2, 2]]) is None
    assert curves.crossover(x, [[1, 0, 3], [2, 0, 2]]) is None
    assert curves.crossover(x, [[0, 0, 0], [0, 0, 0]]) is None
    assert curves.crossover(x, [[-1, 0, 3], [-2, 0, 2]]).value == pytest.approx(2)


def test_resamples_that_cross_the_other_way_alone_miss_the_crossover():
    found = curves.crossover([1, 2], [[-3.0, 3.0], [1.0, -1.0]], resamples=4000)  # the second block drawn twice falls
    assert found.rises and found.missing_fraction == pytest.approx(0.25, abs=0.03)


def test_several_crossovers_are_counted_and_an_open_end_is_open():
    x = [1.0, 2.0, 4.0, 8.0]
    assert curves.crossover(x, [[-1, 1, -1, 1], [-1, 1, -1, 1]]).crossings == 3
    vague = curves.crossover(x, [[-3, -2, -1, 2], [1, 0, -1, -1.5], [-2, -1, 0, 3]])
    assert vague.high == math.inf


@given(
    blocks=st.integers(2, 8), points=st.integers(3, 7), where=st.floats(0.1, 0.9), noise=st.floats(0, 0.05),
    rises=st.booleans(), seed=st.integers(0, 2**31 - 1),
)  # fmt: skip
def test_crossings_find_one_none_and_two(blocks, points, where, noise, rises, seed):
    x = np.geomspace(1, 100, points)
    share, rng = np.linspace(0, 1, points), np.random.default_rng(seed)
    one = (share - where) * (1 if rises else -1) + rng.uniform(-noise, noise, (blocks, 1))
    found = curves.crossings(x, one, resamples=200)
    assert found.low <= found.median <= found.high and found.n == blocks
    assert (found.none_fraction, found.multiple_fraction) == (0, 0)
    assert abs(math.log(found.median) - where * math.log(100)) <= (noise + 1e-6) * math.log(100)
    never = curves.crossings(x, one + 2, resamples=50)
    assert never[3:5] == (1, 0) and math.isnan(never.median)
    bump = np.where((np.arange(points) > 0) & (np.arange(points) < points - 1), 1.0, -1.0)
    twice = curves.crossings(x, bump + rng.uniform(-noise, noise, (blocks, points)), resamples=50)
    assert twice[3:5] == (0, 1) and x[0] < twice.low <= twice.high < x[1]


@given(points=st.integers(2, 8), seed=st.integers(0, 2**31 - 1))
def test_changes_of_sign_with_zeros_between_are_those_that_a_walk_along_the_curve_meets(points, seed):
    rng = np.random.default_rng(seed)
    y, log_x = rng.integers(-2, 3, points).astype(float), np.sort(rng.uniform(0, 5, points)) + np.arange(points)
    wanted, last = [], None  # (where, upwards)
    for i in range(points):
        if y[i] == 0:
            continue
        if last is not None and y[last] * y[i] < 0:
            zeros = log_x[last + 1 : i]
            at = zeros.mean() if len(zeros) else optimize.brentq(np.interp, *log_x[[last, i]], (log_x, y))
            wanted.append((at, y[i] > 0))
        last = i
    found = curves.crossover(np.exp(log_x), np.stack([y, y]), resamples=2)
    assert (found is None) == (not wanted)
    if found:
        assert (found.crossings, found.missing_fraction) == (len(wanted), 0)
        assert (math.log(found.value), found.rises) == (pytest.approx(wanted[0][0], abs=1e-9), wanted[0][1])


def test_crossings_of_doubtful_curves_are_shares_of_the_resamples():
    found = curves.crossings([1, 2], [[-1.0, 1.0], [1.0, 1.0]], resamples=4000)  # crosses unless block 2 is drawn twice
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
        ((0.01, 0.02), {"null": 0.05}, "refuted"),
        ((0.2, 0.2), {}, "undecided"),  # no spread: unknown, not none
        ((0.2, 0.2 + 1e-16), {}, "undecided"),
    ],
)
def test_verdicts_follow_the_interval(interval, options, expected):
    assert stats.verdict(interval, **options) == expected
    assert stats.verdict(stats.Estimate(0.0, *interval, 5, "t"), **options) == expected


def test_verdict_within_a_band():
    assert stats.verdict_within((0.98, 1.02), (0.95, 1.05)) == "supported"
    assert stats.verdict_within((1.1, 1.2), (0.95, 1.05)) == "refuted"
    assert stats.verdict_within((0.9, 1.0), (0.95, 1.05)) == "undecided"
    assert stats.verdict_within((1.05, 1.2), (0.95, 1.05)) == "refuted"
    assert stats.verdict_within((0.95, 1.0), (0.95, 1.05)) == "undecided"
    assert stats.verdict_within((1.0, 1.0), (0.95, 1.05)) == "undecided"


def test_an_a_a_is_called_supported_no_more_often_than_two_and_a_half_percent():
    rng = np.random.default_rng(6)
    called = [stats.verdict(stats.t_interval(rng.standard_normal(4))) for _ in range(RUNS)]
    assert called.count("supported") / RUNS == pytest.approx(0.025, abs=0.015)


@pytest.mark.parametrize(("n", "df"), [(3, None), (5, None), (12, None), (5, 96)])
def test_the_minimum_detectable_effect_is_detected_with_its_power(n, df):
    """By simulation of the t statistic: a normal mean over an independent spread of its degrees of freedom."""
    rng, runs = np.random.default_rng(7), 40_000
    effect = stats.minimum_detectable(sd=1.0, n=n, df=df)
    degrees = df or n - 1
    mean, sd = effect + rng.standard_normal(runs) / math.sqrt(n), np.sqrt(rng.chisquare(degrees, runs) / degrees)
    found = mean / (sd / math.sqrt(n)) > scipy_stats.t.ppf(0.975, degrees)
    assert np.mean(found) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(("distance", "sd", "confidence"), [(0.1, 0.3, 0.95), (1.0, 0.2, 0.95), (0.05, 0.2, 0.99)])
def test_blocks_to_decide_are_the_fewest_whose_interval_is_narrow_enough(distance, sd, confidence):
    n = stats.blocks_to_decide(distance, sd, confidence)
    half = lambda n: scipy_stats.t.ppf(0.5 + confidence / 2, n - 1) * sd / math.sqrt(n)  # noqa: E731
    assert half(n) < distance and (n == 2 or half(n - 1) >= distance)
    assert stats.blocks_to_decide(0.0, sd) is None and stats.blocks_to_decide(1e-9, sd) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.t_interval([1.0]), "at least 2 values"),
        (lambda: stats.ratio_interval([0.1, math.nan, 0.2]), "1 of 3 values are NaN or infinite"),
        (lambda: stats.ratio_interval(np.log([2.0, 0.5])), "value 2 of 2 is -0.69.*not their logarithms"),
        (lambda: stats.ratio_interval([2.0, 0.0]), "value 2 of 2 is 0 "),
        (lambda: stats.t_interval([[1, 2], [3, 4]]), "flat list"),
        (lambda: multiple.holm([0.1, math.nan]), r"numbers in \[0, 1\]"),
        (lambda: curves.page_trend([[1, 2, 3]]), "at least 2 blocks x 3 columns"),
        (lambda: curves.page_trend([[1, 2, 3], [1, math.nan, 3]]), "keep complete blocks only"),
        (lambda: intervals.share_interval(0, 0), "share of 0 trials"),
        (lambda: curves.crossover([2, 1], [[1, 2], [1, 2]]), "rising order"),
        (lambda: curves.crossings([1, 2], [[1, math.nan], [1, 2]]), "NaN or infinite"),
        (lambda: stats.verdict((math.nan, 1)), "not an interval"),
        (lambda: stats.verdict((2, 1)), "not an interval"),
        (lambda: stats.minimum_detectable(1.0, 1), "two pairs"),
        (lambda: stats.median_sequence([]), "median of 0 values"),
        (lambda: stats.median_sequence([1.0, math.nan]), "1 of them NaN"),
    ],
)
def test_what_has_no_answer_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def samples(rng, means, n=5):
    return {f"a{i}": mean + rng.standard_normal(n) for i, mean in enumerate(means)}


@given(arms=st.integers(2, 6), sizes=st.integers(2, 7), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=15)
def test_pooled_differences_are_scipy_s_tukey(arms, sizes, seed):
    rng = np.random.default_rng(seed)
    groups = {f"a{i}": rng.normal(i / 3, 1, sizes + i % 2) for i in range(arms)}
    layout, want = multiple.pool(groups), scipy_stats.tukey_hsd(*groups.values())
    ends, bar = want.confidence_interval(), multiple.tukey_bar(layout)
    for i in range(arms):
        for j in range(i):
            value, low, high = multiple.difference(layout, f"a{i}", f"a{j}", bar)
            assert value == pytest.approx(want.statistic[i, j])
            assert (low, high) == pytest.approx((ends.low[i, j], ends.high[i, j]), rel=1e-6)
            assert multiple.tukey_p(layout, f"a{i}", f"a{j}") == pytest.approx(want.pvalue[i, j], abs=1e-6)


@pytest.mark.parametrize("gap", [0.0, 0.5, 2.0])
def test_the_tie_set_keeps_the_best_and_drops_what_is_far_behind(gap):
    """Five values of six arms with means `gap` noises apart: the lowest, picked for it, stays in the set."""
    rng, kept, sizes = np.random.default_rng(1), 0, []
    for _ in range(300):
        tied = multiple.tied(multiple.pool(samples(rng, gap * np.arange(6))))
        kept += "a0" in tied
        sizes.append(len(tied))
    assert kept / 300 > 0.94
    assert np.mean(sizes) < (2.7 if gap == 2 else 6.01)


def test_one_clear_winner_is_alone_and_identical_arms_tie():
    rng = np.random.default_rng(0)
    clear = {name: 1e-3 * rng.standard_normal(5) + mean for name, mean in (("a", 0), ("b", 1), ("c", 1))}
    assert multiple.tied(multiple.pool(clear)) == ["a"]
    assert multiple.tied(multiple.pool(dict.fromkeys("abc", np.ones(3)))) == ["a", "b", "c"]
    assert multiple.tied(multiple.pool(clear).without(["a"])) == ["b", "c"]
    with pytest.raises(ValueError, match="no arm has two values"):
        multiple.pool({"a": [1.0], "b": [2.0]})
    with pytest.raises(ValueError, match="no finite values of b"):
        multiple.pool({"a": [1.0, 2.0], "b": [math.nan]})


@given(n=st.integers(1, 40), data=st.data())
def test_a_share_s_interval_is_the_set_of_shares_that_its_tails_allow(n, data):
    count = data.draw(st.integers(0, n))
    found = intervals.share_interval(count, n, 0.9)
    if count:
        assert scipy_stats.binom.sf(count - 1, n, found.low) == pytest.approx(0.05, abs=1e-6)
    if count < n:
        assert scipy_stats.binom.cdf(count, n, found.high) == pytest.approx(0.05, abs=1e-6)
    assert (found.low == 0) == (count == 0) and (found.high == 1) == (count == n)


@pytest.mark.parametrize("r", [0.0, 0.5, 0.7])
def test_values_that_follow_each_other_are_worth_fewer(r):
    """An AR(1) of sixty: the interval for independent values covers far less than it says."""
    rng = np.random.default_rng(8)

    def draw():
        noise, values = rng.standard_normal(90), np.zeros(90)
        for i in range(1, 90):
            values[i] = r * values[i - 1] + noise[i]
        return values[30:]

    assert coverage(intervals.correlated_interval, 60, draw) > 0.9
    if r:
        assert coverage(stats.t_interval, 60, draw) < 0.8


def test_a_timing_s_interval_is_normal_on_the_log_scale():
    """The median of many normal rounds: its spread by simulation, its interval in closed form."""
    rng = np.random.default_rng(9)
    rounds = 1 + 0.05 * rng.standard_normal((4000, 51))
    quartiles = np.quantile(rounds, (0.25, 0.5, 0.75), axis=1)
    spread = [intervals.timing_spread(m, high - low, 51) for low, m, high in quartiles.T]
    assert np.mean(spread) == pytest.approx(np.log(quartiles[1]).std(), rel=0.05)
    found = intervals.timed_interval(2.0, 0.1, 51, 0.95)
    assert (found.low, found.high) == pytest.approx((2 * math.exp(-0.1959964), 2 * math.exp(0.1959964)))


def test_the_crossed_interval_covers_where_that_of_items_alone_does_not():
    """Six runs over 40 items: each run is off by its own noise, each item is as hard as it is for all of them."""
    rng = np.random.default_rng(2)

    def draw():
        return 0.5 * rng.standard_normal((6, 1)) + rng.standard_normal((1, 40)) + rng.standard_normal((6, 40))

    assert coverage(lambda x: intervals.crossed_interval(x, resamples=300), 6, draw) > 0.93
    assert coverage(lambda x: stats.t_interval(x.mean(0)), 6, draw) < 0.9


@given(st.integers(3, 8), st.integers(0, 2**31 - 1))
@settings(max_examples=10)
def test_where_items_do_not_differ_the_crossed_interval_is_student_s_of_the_runs(runs, seed):
    effects = np.random.default_rng(seed).standard_normal(runs)
    found = intervals.crossed_interval(np.repeat(effects[:, None], 5, axis=1), resamples=8000)
    want = scipy_stats.ttest_1samp(effects, 0).confidence_interval()
    assert (found.high - found.low) == pytest.approx(want.high - want.low, rel=0.05)


def test_the_crossed_interval_weighs_its_items():
    table = np.array([[1.0, 5.0], [1.2, 5.1], [0.9, 5.2]])
    assert intervals.crossed_interval(table, [3, 1]).value == pytest.approx((3 * 3.1 / 3 + 15.3 / 3) / 4)
    with pytest.raises(ValueError, match="give 2 numbers above 0"):
        intervals.crossed_interval(table, [1, 0])

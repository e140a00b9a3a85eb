"""Tests over seeds and groups: how often identical code fails, and what is found. The slow ones hold the rates."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from mlexp.analysis import gate, quality

TOLERANCE = 0.005
BUDGET = 0.05
NOISE = 0.052  # sd of a loss's change as a share: what made the former gate find +5 % everywhere in 17 % of runs


def pairs(base, head, fraction=False, name="study"):
    """One metric's cells, from groups x replicates of both sides: a fraction that is better higher, or a loss."""
    groups, replicates = base.shape
    group = np.repeat([f"benches/{name}/b.py::test_run[g{i:03d}-*]" for i in range(groups)], replicates)
    pair = pd.DataFrame({"group": group, "replicate": np.tile([f"seed{i}" for i in range(replicates)], groups)})
    pair["cell"] = pair["group"].str.replace("*", "", regex=False) + pair["replicate"]
    return pair.assign(
        base=base.ravel(), head=head.ravel(), question=name, context=0, amount=TOLERANCE, relative=not fraction,
        points=fraction, sign=-1 if fraction else 1, gated=True, asked=False,
    )  # fmt: skip


def judged(*families):
    """The corrected rows of a comparison of these metrics."""
    parts = [quality.quality(pair, f"metric{i}", "quality") for i, pair in enumerate(families)]
    return quality.corrected(pd.concat(parts, ignore_index=True))


def accuracies(rng, groups, seeds, items=100, low=0.3, high=0.99):
    """Two runs of the same models over so many items: nothing but luck differs."""
    share = np.repeat(rng.uniform(low, high, (groups, 1)), seeds, axis=1)
    return tuple(rng.binomial(items, share) / items for _ in range(2))


def losses(rng, groups, seeds, noise="normal"):
    """Two runs' losses: `noise` says how their difference is distributed over groups and seeds."""
    base = np.repeat(rng.uniform(0.3, 4, (groups, 1)), seeds, axis=1)
    change = rng.standard_normal((groups, seeds))
    if noise == "heavy tails":
        change = rng.standard_t(3, (groups, seeds)) / np.sqrt(3)
    elif noise == "outliers":
        change = change * np.where(rng.random((groups, seeds)) < 0.05, 10, 1)
    elif noise == "shared seeds":
        change = np.sqrt(0.5) * (change + rng.standard_normal(seeds))
    elif noise == "unequal":
        change = change * np.exp(rng.standard_normal((groups, 1)))
    elif noise == "two kinds":
        change = change * np.where(np.arange(groups) % 10 == 0, 6, 0.6)[:, None]
    elif noise == "half constant":
        change[::2] = 0
    return base, base * (1 + NOISE * change)


def fails(base, head, fraction=False, families=1):
    """Whether a test of this family finds it worse; tolerances aside, which only let more pass."""
    found = quality.family_tests(base, head, -1 if fraction else 1, fraction)
    change = quality.mean(head - base) * (-1 if fraction else 1)
    cell = np.nanmin(np.where(change > 0, found.p, 1.0)) * families * (1 if found.test == "only" else 2)
    return cell < BUDGET or bool(found.pooled and found.pooled.p_worse * families * 2 < BUDGET)


def failing(rng, runs, make, effect=lambda base, head: head, fraction=False):
    """The share of comparisons with any failure."""
    failed = 0
    for _ in range(runs):
        base, head = make(rng)
        failed += fails(base, effect(base, head), fraction)
    return failed / runs


def limit(runs, rate=BUDGET):
    """The most failures, as a share, that so many runs show with a probability of 0.999 where the rate is `rate`."""
    return scipy_stats.binom.ppf(0.999, runs, rate) / runs


KINDS = ("normal", "heavy tails", "outliers", "shared seeds", "unequal", "two kinds", "half constant")
ITEMS = ((20, 0.3), (100, 0.3), (300, 0.3), (100, 0.95))  # items, the lowest accuracy


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("groups", [1, 2, 5, 20, 100])
def test_identical_code_fails_in_one_comparison_of_twenty_at_most(groups, seeds):
    rng, runs, found = np.random.default_rng(groups * 10 + seeds), 400, {}
    for items, low in ITEMS:
        make = partial(accuracies, groups=groups, seeds=seeds, items=items, low=low)
        found[f"accuracy of {items} items, from {low}"] = failing(rng, runs, make, fraction=True)
    for kind in KINDS:
        found[f"loss, {kind}"] = failing(rng, runs, partial(losses, groups=groups, seeds=seeds, noise=kind))
    print(groups, "groups", seeds, "seeds", {name: round(100 * rate, 1) for name, rate in found.items()})
    assert max(found.values()) <= limit(runs), found
    assert np.mean(list(found.values())) <= limit(runs * len(found)), found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "half constant"])
def test_what_got_worse_in_all_of_a_hundred_groups_or_in_one_is_found(kind):
    rng, runs = np.random.default_rng(0), 200

    def everywhere(base, head):
        return head + 0.05 * base

    def one_ruined(base, head):
        ruined = np.arange(len(base)) == rng.integers(50) * 2 + 1
        return head + 0.3 * base * ruined[:, None]

    found = [failing(rng, runs, lambda rng: losses(rng, 100, 3, kind), effect) for effect in (everywhere, one_ruined)]
    print(kind, found)
    assert min(found) >= 0.8


@pytest.mark.slow
def test_five_metrics_share_the_budget():
    rng, runs, failed = np.random.default_rng(1), 400, 0
    for _ in range(runs):
        failed += any(
            [fails(*losses(rng, 20, 3), families=5) for _ in range(3)]
            + [fails(*accuracies(rng, 20, 3), fraction=True, families=5) for _ in range(2)]
        )
    assert failed / runs <= limit(runs)


def test_two_seeds_of_a_ruin_are_never_green():
    """Among many metrics no p of two seeds is small enough; the ruin is then undecided, not passed."""
    rng = np.random.default_rng(3)
    noise = [pairs(*accuracies(rng, 2, 2, 1000), True) for _ in range(9)]
    base = np.array([[0.86, 0.84], [0.85, 0.84]])
    ruined = pairs(base, base - [[0.81, 0.80], [0.82, 0.79]], True)
    assert (judged(ruined)["exit"] == gate.REGRESSION).any()
    rows = judged(ruined, *noise)
    undecided = rows[rows["exit"] != gate.OK]
    assert set(undecided["exit"]) == {gate.INCOMPLETE} and set(undecided["metric"]) == {"metric0"}
    (pooled,) = undecided["why"][undecided["test"] == "pooled"]
    assert quality.PAIR in pooled


@pytest.mark.slow
def test_two_seeds_of_identical_code_are_rarely_undecided():
    rng, runs = np.random.default_rng(4), 150
    exits = []
    for _ in range(runs):
        rows = judged(
            *(pairs(*losses(rng, 5, 2)) for _ in range(3)), *(pairs(*accuracies(rng, 5, 2), True) for _ in "12")
        )
        exits.append(set(rows["exit"]))
    failed, undecided = (sum(status in found for found in exits) for status in (gate.REGRESSION, gate.INCOMPLETE))
    print("failed", failed, "undecided", undecided, "of", runs)
    assert failed / runs <= limit(runs) and undecided / runs <= limit(runs)


@pytest.mark.slow
def test_the_rows_of_a_comparison_fail_where_the_tests_do():
    rng, failed, runs = np.random.default_rng(2), 0, 60
    for i in range(runs):
        base, head = losses(rng, 100, 3)
        head = head + (i % 2) * 0.03 * base
        rows = judged(pairs(base, head))
        assert rows["fails"].any() == fails(base, head)  # the base has no spread: nothing is far from it
        assert set(rows.loc[rows["fails"], "test"]) <= {"pooled", "cell"}
        failed += rows["fails"].any()
    assert failed >= runs // 3


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ([0.4233333468437195, 0.5099999904632568], 1 / 300),  # float32
        ([0.86, 0.02], 1 / 50),
        ([12.0, 15.0], 1.0),
        ([1.234, 1.5], 1 / 500),
        ([0.0, 0.0], 0.0),
        ([0.12345678912, 0.2718281828, 0.314159265], 0.0),
        ([np.nan, 0.5], 0.5),
    ],
)
def test_the_grid_of_what_is_counted_is_recognised(values, step):
    assert quality.grid_step(np.array(values)) == pytest.approx(step)


def test_a_group_borrows_the_variance_of_groups_that_are_alike_and_of_no_others():
    rng = np.random.default_rng(0)
    alike = rng.chisquare(2, 500) / 2
    df, common = quality.prior(alike, np.full(500, 2.0))
    assert df > 5 and common == pytest.approx(1, abs=0.2)
    df, _ = quality.prior(alike * np.exp(2 * rng.standard_normal(500)), np.full(500, 2.0))
    assert df < 1.5


def test_groups_may_lack_replicates():
    rng = np.random.default_rng(0)
    base, head = losses(rng, 12, 4)
    head[0, 0] = base[3, 2] = np.nan
    head[5] *= 1.5
    found = quality.family_tests(base, head, 1, False)
    assert np.isfinite(found.p).all() and found.pooled.df == 3
    assert np.argmin(found.p) == 5 and found.p[5] * 2 < BUDGET


@pytest.mark.parametrize("factor", [1e-320, 1e-160, 1e160, 1e300])
def test_values_of_any_size_are_tested(factor):
    rng = np.random.default_rng(0)
    base, head = losses(rng, 12, 3)
    head[5] *= factor
    base[7] *= factor
    assert judged(pairs(base, head))["p"].between(0, 1).all()


@pytest.mark.parametrize("seeds", [2, 3, 4])
@pytest.mark.parametrize("groups", [1, 3])
def test_one_seed_that_collapses_is_not_outvoted_by_the_others(groups, seeds):
    """Student's t cannot decide it: the mean and its error are of one size."""
    base = 0.9 + 0.01 * np.arange(seeds) + np.zeros((groups, 1))
    head = base.copy()
    head[0, 0] = 0.1
    rows = judged(pairs(base, head, fraction=True))
    broken = rows[rows["exit"] != gate.OK]
    assert set(broken["exit"]) == {gate.INCOMPLETE} and broken["why"].str.contains(quality.FELL, regex=False).all()
    assert (judged(pairs(base, base, fraction=True))["exit"] == gate.OK).all()
    head[0, 0] = base[0, 0] - 0.02  # as far as two seeds lie apart
    assert (judged(pairs(base, head, fraction=True))["exit"] == gate.OK).all()
    assert (judged(pairs(head, base, fraction=True))["exit"] == gate.OK).all()  # it got better


@pytest.mark.parametrize("noise", ["normal", "heavy tails", "unequal", "accuracy"])
def test_two_runs_of_noisy_models_rarely_look_like_a_collapse(noise):
    rng, found = np.random.default_rng(7), 0
    for _ in range(200):
        scale = 0.05 * (np.exp(rng.standard_normal((20, 1))) if noise == "unequal" else 1)
        if noise == "accuracy":
            base, head = accuracies(rng, 20, 3)
        elif noise == "heavy tails":
            base, head = (2 + scale * rng.standard_t(3, (20, 3)) for _ in range(2))
        else:
            base, head = (2 + scale * rng.standard_normal((20, 3)) for _ in range(2))
        found += quality.far_worse(base, head, 1).any()
    assert found <= 10

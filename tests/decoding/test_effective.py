"""The estimator of effective samples against enumeration and closed forms, and the one it replaced beside it.

The truth is Var / E |tree mean - mean|^2 with the exact mean and variance, from all texts of a small model: for
`eab_particles` the error is enumerated too, for `eab_paper` it is that of many trees.
"""

import itertools
import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlexp.decoding.effective import compare, effective, functionals, tree_means, worst
from mlexp.decoding.engine import grow
from mlexp.decoding.settings import Sampling

from .models import exact_paths, prompt_of, tiny

VOCAB, PROMPT, ANSWER = 6, 4, 2
REPLICATES = 128  # as many as the study uses at `full`


def old_estimate(means, iid):
    """What was reported before: the ratio of two variances."""
    return iid.var(0, ddof=1).sum() / means.var(0, ddof=1).sum()


# Small models: (kind, seed, sharpness), and what is sampled from them.


@dataclass(frozen=True)
class Case:
    model: tuple = ("gpt2", 0, 8.0)
    threshold: float = 0.75
    samples: int = 6
    branch_factor: int = 3
    tokens: int = 3
    decoder: str = "eab_particles"

    @property
    def sampling(self):
        return Sampling(samples=self.samples, max_new_tokens=self.tokens, max_paths=self.samples,
                        threshold=self.threshold, branch_factor=self.branch_factor)  # fmt: skip


def asked(tokens, surprisals):
    return functionals(tokens, surprisals, np.full(*tokens.shape), (tokens == ANSWER).any(1))


def vectors(values):
    """Values of functionals as (n, C), tokens over the whole vocabulary."""
    return {name: (value[:, None] == np.arange(VOCAB)).astype(float) if value.dtype == int else value[:, None]
            for name, value in values.items()}  # fmt: skip


@cache
def texts(model, tokens):
    """All texts of a model, as functionals of them, with their probabilities (V^G,): {name: (V^G, C)}, (V^G,)."""
    kind, seed, sharpness = model
    lm = tiny(kind, VOCAB, seed=seed, sharpness=sharpness)
    paths, p = exact_paths(lm.model, prompt_of(PROMPT, VOCAB, seed), VOCAB, tokens)
    return vectors(asked(paths, -np.log(p)[:, None])), p / p.sum()


@cache
def forest(case, trees):
    """Tree means of every functional: {name: (trees, C)}."""
    kind, seed, sharpness = case.model
    lm, parts = tiny(kind, VOCAB, seed=seed, sharpness=sharpness), []
    for start in range(0, trees, 4096):
        tree, _ = grow(lm.model, prompt_of(PROMPT, VOCAB, seed), case.sampling, case.decoder, 1000 + start, 4096)
        values = vectors(asked(tree.tokens(), tree.surprisals()))
        parts.append({name: tree_means(value, tree.leaf_tree) for name, value in values.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def moments(case):
    """Exact mean and variance (summed over components) of the functionals that have one: {name: ((C,), float)}."""
    values, p = texts(case.model, case.tokens)
    means = {name: p @ value for name, value in values.items()}
    variances = {name: p @ ((value - means[name]) ** 2).sum(1) for name, value in values.items()}
    return {name: (means[name], variances[name]) for name in values if variances[name] > 1e-12}


def truth(case, trees):
    """Effective samples with exact mean and variance, and the squared error of `trees` trees."""
    means = forest(case, trees)
    return {
        name: variance / ((means[name] - mean) ** 2).sum(1).mean() for name, (mean, variance) in moments(case).items()
    }


def sum_variance(p, f, particles, case):
    """Variance of the sum of f over the particles of one node of eab_particles, by enumeration of their moves.

    p (V, ..., V) probabilities of the texts behind the node, up to a factor, f (V, ..., V, C). Particles move in
    groups; behind a child, they are independent of all that are not at it.
    """
    child = p.reshape(VOCAB, -1).sum(1)
    means = (p[..., None] * f).reshape(VOCAB, -1, f.shape[-1]).sum(1) / child[:, None]
    child = child / child.sum()
    entropy = -(child * np.log(child)).sum() / math.log(VOCAB)
    parts = min(case.branch_factor, particles) if entropy >= case.threshold else 1
    groups = [particles // parts + (i < particles % parts) for i in range(parts)]
    total = sum(g * g for g in groups) * (child @ ((means - child @ means) ** 2).sum(1))
    if p.ndim > 1:
        for v in range(VOCAB):
            chances = Counter()  # of so many particles at the child
            for taken in itertools.product((0, 1), repeat=parts):
                here = sum(taken)
                chances[np.dot(groups, taken)] += child[v] ** here * (1 - child[v]) ** (parts - here)
            del chances[0]
            total += sum(chance * sum_variance(p[v], f[v], m, case) for m, chance in chances.items())
    return total


def enumerated(case):
    """Effective samples of eab_particles, exactly."""
    values, p = texts(case.model, case.tokens)
    shape = (VOCAB,) * case.tokens
    return {name: case.samples**2 * variance
            / sum_variance(p.reshape(shape), values[name].reshape(*shape, -1), case.samples, case)
            for name, (_, variance) in moments(case).items()}  # fmt: skip


def experiments(case, trees, replicates=REPLICATES, estimate=effective):
    """Estimates {name: estimate} from disjoint sets of replicates, with independent samples drawn anew for each."""
    (values, p), means = texts(case.model, case.tokens), forest(case, trees)
    draws = np.random.default_rng(7).choice(len(p), (trees // replicates, replicates * case.samples), p=p)
    for i, draw in enumerate(draws):
        block = slice(i * replicates, (i + 1) * replicates)
        found = {name: estimate(means[name][block], values[name][draw]) for name in moments(case)}
        yield {name: value for name, value in found.items() if value is not None}


def bias(case, trees, want):
    """Relative bias of the estimate of every functional that is always measured, and of the reported worst."""
    found = list(experiments(case, trees))
    always = [name for name in want if all(name in each for each in found)]
    by = {name: np.mean([each[name].samples for each in found]) / want[name] - 1 for name in always}
    least = np.mean([min(want[name] for name in each) for each in found])
    return by | {"worst": np.mean([worst(each)[1] for each in found]) / least - 1}


def old_bias(case, trees, want, replicates=REPLICATES):
    """The same of the estimator before: relative bias by functional."""
    found = list(experiments(case, trees, replicates, old_estimate))
    return {name: np.mean([each[name] for each in found]) / want[name] - 1 for name in want}


FAST = [
    Case(),
    Case(("gpt2", 0, 4.0), 0.6),
    Case(("gpt2", 17, 5.0), 0.8, tokens=4, decoder="eab_paper"),
    Case(("llama", 14, 12.0), 0.45, tokens=4, decoder="eab_paper"),
]
SLOW = [
    *FAST,
    Case(decoder="eab_paper"),
    Case(("llama", 14, 12.0), 0.45, decoder="eab_paper"),  # 1.75, 1.79: a choice that is often missed
    Case(("gpt2", 0, 4.0), 0.6, decoder="eab_paper"),  # 5.4, 5.6, 6.2
    Case(("gpt2", 0, 12.0), 0.5, tokens=4),
    Case(("llama", 0, 8.0), 0.6, samples=8, branch_factor=2, decoder="eab_paper"),
    Case(("llama", 3, 10.0), 0.5, samples=10, tokens=4),
]
TREES = 16384


def name_of(case):
    kind, seed, sharpness = case.model
    return f"{case.decoder}-{kind}{seed}-{sharpness:g}-{case.samples}-{case.tokens}"


@pytest.mark.parametrize("case", FAST, ids=name_of)
def test_estimates_are_within_two_percent_of_the_truth(case):
    """The truth is that of the same trees, with exact mean and variance: only the estimator's own error is left."""
    off = bias(case, TREES, truth(case, TREES))
    print({name: f"{100 * value:+.1f}" for name, value in off.items()})
    assert len(off) >= 5 and all(abs(value) < 0.02 for value in off.values())


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW, ids=name_of)
def test_estimates_are_within_two_percent_of_the_enumerated_truth(case):
    """Of eab_paper, the error is that of very many trees. Where the choice is often missed, the worst is read low."""
    trees = 2**17
    off = bias(case, trees, enumerated(case) if case.decoder == "eab_particles" else truth(case, trees))
    print({name: f"{100 * value:+.1f}" for name, value in off.items()})
    assert -0.03 < off.pop("worst") < 0.02
    assert len(off) >= 4 and all(abs(value) < 0.02 for value in off.values())


@pytest.mark.slow
def test_where_functionals_are_all_alike_the_worst_is_read_low():
    """Particles that all part are independent, and worth N for every functional: no choice among them is right."""
    case = Case(("gpt2", 20, 9.0), 0.0, branch_factor=6, tokens=4)
    want = enumerated(case)
    assert all(value == pytest.approx(6) for value in want.values())
    off = bias(case, 2**16, want)
    assert -0.07 < off.pop("worst") < -0.03 and all(abs(value) < 0.02 for value in off.values())


def test_the_old_estimator_fails_where_the_new_one_passes():
    particles, paper, other = FAST[0], replace(FAST[0], decoder="eab_paper"), FAST[3]
    assert old_bias(particles, TREES, truth(particles, TREES), 32)["surprisal"] > 0.05  # its ratio is biased
    assert old_bias(paper, TREES, truth(paper, TREES))["surprisal"] > 0.02  # and the arm's bias is free of charge
    assert old_bias(other, TREES, truth(other, TREES))["token_0"] > 0.3
    # surprisal alone flatters in any case
    exact = enumerated(FAST[1])
    assert exact["surprisal"] > 4.3 and exact["token_0"] == pytest.approx(3)


@pytest.mark.parametrize("case", [Case(), FAST[1]], ids=name_of)
def test_the_engine_s_trees_are_those_of_the_enumeration(case):
    for name, (mean, variance) in moments(case).items():
        error = ((forest(case, TREES)[name] - mean) ** 2).sum(1) / variance
        assert error.mean() == pytest.approx(1 / enumerated(case)[name], abs=4 * error.std() / TREES**0.5)


def test_the_first_token_has_as_many_draws_as_the_prompt_has_groups():
    """N^2 over the sum of the groups' squares: 3 of 6 if the prompt branches, or 1."""
    assert enumerated(Case(threshold=0.0))["token_0"] == pytest.approx(3)
    assert enumerated(Case(threshold=0.0, samples=20, tokens=2))["token_0"] == pytest.approx(400 / (36 + 49 + 49))
    assert enumerated(Case(threshold=1.0))["token_0"] == pytest.approx(1)


# The estimator over arrays alone.


def pairs(count):
    """Independent samples with variance M / (M - 1) about their mean, each at the same distance from it."""
    return np.resize([-1.0, 1.0], (count, 1))


@pytest.mark.parametrize("replicates", [16, 32])
def test_normal_theory(replicates):
    """With E 1 / chi^2_r = 1 / (r - 2) the old estimate is high by 2 / (r - 3), the new low by 4 / (r - 2)(r - 3)."""
    r, experiments, iid = replicates, 8000, pairs(64)
    means = np.random.default_rng(1).standard_normal((experiments, r, 1)) / 2
    truth = iid.var(ddof=1) * 4
    new = np.mean([effective(each, iid, np.zeros(1)).samples for each in means]) / truth
    old = np.mean([old_estimate(each, iid) for each in means]) / truth
    assert new == pytest.approx(1 - 4 / ((r - 2) * (r - 3)), abs=0.015)
    assert old == pytest.approx((r - 1) / (r - 3), abs=0.015)


@pytest.mark.parametrize("known", [False, True], ids=["mean estimated", "mean known"])
@given(seed=st.integers(0, 2**31 - 1), components=st.integers(1, 3), trees=st.integers(32, 40))
def test_the_jackknife_is_that_of_its_definition(known, seed, components, trees):
    random = np.random.default_rng(seed)
    means, iid = random.normal(0.3, 1, (trees, components)), random.uniform(-1, 1, (60, components))
    exact = np.full(components, 0.1) if known else None

    def ratio(means, iid):
        variance = iid.var(0, ddof=1).sum()
        centre, less = (exact, 0) if known else (iid.mean(0), variance / len(iid))
        return variance / (((means - centre) ** 2).sum(1).mean() - less)

    def without(values):
        return [np.delete(values, i, 0) for i in range(len(values))]

    R, M, whole = trees, 60, ratio(means, iid)
    by_tree, by_sample = [ratio(m, iid) for m in without(means)], [ratio(means, x) for x in without(iid)]
    got = effective(means, iid, exact)
    want = whole - (R - 1) * (np.mean(by_tree) - whole) - (M - 1) * (np.mean(by_sample) - whole)
    assert got.samples == pytest.approx(want) and got.parts.mean() == pytest.approx(want)
    assert got.error == pytest.approx(math.sqrt((R - 1) * np.var(by_tree) + (M - 1) * np.var(by_sample)))


@given(seed=st.integers(0, 2**31 - 1), scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_units_and_order_do_not_matter(seed, scale, shift):
    random = np.random.default_rng(seed)
    means, iid = random.standard_normal((32, 2)), random.uniform(-1, 1, (64, 2))
    want = effective(means, iid)
    got = effective(scale * random.permutation(means) + shift, scale * random.permutation(iid) + shift)
    assert (got.samples, got.error) == pytest.approx((want.samples, want.error), rel=1e-6)


def test_a_bias_is_paid_for():
    random = np.random.default_rng(3)
    means, iid = random.standard_normal((400, 1)) / 2, pairs(4000)
    assert effective(means, iid).samples == pytest.approx(4, rel=0.15)
    assert effective(means + 0.5, iid).samples == pytest.approx(2, rel=0.15)
    assert old_estimate(means + 0.5, iid) == pytest.approx(4, rel=0.15)


def test_the_standard_error_is_the_spread_of_the_estimates():
    found = list(experiments(FAST[0], TREES))
    for name in ("token_0", "token_1", "surprisal"):
        spread = np.std([each[name].samples for each in found])
        assert np.mean([each[name].error for each in found]) == pytest.approx(spread, rel=0.2)


def test_what_cannot_be_measured_is_none():
    means, iid = np.random.default_rng(0).standard_normal((32, 1)), pairs(32)
    assert effective(means, iid) and effective(means[:16], iid[:16])
    assert effective(means[:15], iid) is None and effective(means, iid[:15]) is None
    assert effective(means, np.ones((32, 1))) is None  # no variance
    assert effective(np.zeros((32, 1)), iid, np.zeros(1)) is None  # no error
    rare = (np.arange(1000) % 50 == 0).astype(float)[:, None]  # 1 in 50: 32 trees see none or one
    assert effective(means, rare) is None and effective(np.resize(means, (900, 1)), rare) is not None


def test_functionals_are_those_of_each_sample():
    tokens = np.array([[5, 6, 7, 8, 9, 10, 11, 12]] * 2)
    found = functionals(tokens, np.ones((2, 8)), np.array([8, 3]), np.array([True, False]))
    assert list(found) == ["token_0", "token_1", "token_2", "token_4", "token_7", "surprisal", "length", "answer"]
    assert found["token_4"].tolist() == [9, 9] and found["surprisal"].tolist() == [8.0, 8.0]
    assert found["length"].tolist() == [8.0, 3.0] and found["answer"].tolist() == [1.0, 0.0]
    assert list(functionals(tokens[:, :1], np.ones((2, 1)), np.ones(2))) == ["token_0", "surprisal", "length"]


def test_trees_with_different_numbers_of_samples_count_alike():
    values, tree = np.array([[1.0], [2.0], [3.0], [10.0], [2.0]]), np.array([0, 1, 1, 2, 1])
    assert tree_means(values, tree)[:, 0].tolist() == [1.0, pytest.approx(7 / 3), 10.0]


def test_samples_that_are_compared_share_their_categories():
    random = np.random.default_rng(2)
    trees, tree = {"token_0": random.integers(0, 4, 320), "length": np.full(320, 5.0)}, np.arange(320) // 10
    iid = {"token_0": random.integers(2, 6, 320), "length": np.full(320, 5.0)}
    found = compare(trees, tree, iid)
    assert list(found) == ["token_0"]  # one length has no variance
    assert found["token_0"].samples == pytest.approx(0.75 / (0.075 + 0.25), rel=0.3)


def test_the_worst_is_named_and_lies_between_its_bounds():
    random = np.random.default_rng(4)
    found = {name: effective(random.standard_normal((128, 1)) / worth**0.5, pairs(1280))
             for name, worth in (("surprisal", 4.0), ("token_0", 3.6), ("token_1", 12.0))}  # fmt: skip
    name, value = worst(found)
    assert name == min(found, key=lambda name: found[name].samples) and value >= found[name].samples
    assert worst({"length": found["token_1"]}) == ("length", pytest.approx(found["token_1"].samples))
    assert worst({}) is None

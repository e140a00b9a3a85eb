"""The policies: their invariants on any tree, exactness where they claim it, and the bias of the one that has it."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mlexp.decoding.engine import grow
from mlexp.decoding.kernels.reference import fork_paths, particle_groups
from mlexp.decoding.policies import POLICIES
from mlexp.decoding.settings import BranchRule, Sampling

from .models import exact_paths, prompt_of, tiny

V, PROMPT, SHARP = 6, 4, 8.0
COUNTS = st.integers(1, 6)


def run(decoder, sampling, trees=1, seed=0, sharpness=SHARP, vocab=V):
    lm = tiny(vocab=vocab, sharpness=sharpness)
    return grow(lm.model, prompt_of(PROMPT, vocab=vocab), sampling, decoder, seed, trees)[0]


@pytest.mark.parametrize("decoder", POLICIES)
@given(samples=COUNTS, new=COUNTS, k=COUNTS, paths=COUNTS, trees=st.integers(1, 3), seed=st.integers(0, 2**31 - 1),
       threshold=st.floats(0, 1), sharpness=st.sampled_from([0.0, 4.0, 12.0]))  # fmt: skip
@settings(max_examples=40)
def test_invariants_of_any_tree(decoder, samples, new, k, paths, trees, seed, threshold, sharpness):
    sampling = Sampling(samples=samples, max_new_tokens=new, branch_factor=k, max_paths=paths, threshold=threshold)
    tree = run(decoder, sampling, trees, seed, sharpness)
    live = np.zeros((new, trees), int)
    np.add.at(live, (tree.depth, tree.tree), 1)
    assert (live >= 1).all() and live.max() <= (samples if decoder == "dedup" else paths)
    assert tree.tokens().shape == (len(tree.leaf), new) and (tree.depth[tree.leaf] == new - 1).all()
    inner = tree.parent >= 0
    assert (tree.depth[inner] == tree.depth[tree.parent[inner]] + 1).all()
    assert (tree.tree[inner] == tree.tree[tree.parent[inner]]).all()
    assert len(set(zip(np.where(inner, tree.parent, -1 - tree.tree), tree.token, strict=True))) == len(tree.token)
    statistics = tree.branch_statistics()
    assert statistics["final_paths"] == live[-1].sum() and 0 <= statistics["branch_rate"] <= 1
    assert (statistics["branch_count"] == 0) == (statistics["branch_position_first"] is None)
    if decoder == "eab_paper":
        assert (tree.multiplicity == 1).all() and len(tree.leaf) == live[-1].sum()
    else:
        totals = np.zeros((new, trees), int)
        np.add.at(totals, (tree.depth, tree.tree), tree.multiplicity)
        assert (totals == samples).all() and len(tree.leaf) == samples * trees
    if decoder != "dedup":
        assert (tree.split <= tree.high).all()


def test_particles_part_into_contiguous_near_equal_groups():
    count = torch.tensor([[20, 2, 9, 1]])
    tip = torch.arange(4).repeat_interleave(count[0])[None]
    entropy = torch.tensor([5.0, 5.0, 1.0, 5.0])[tip]
    parts, lead = particle_groups(entropy, tip, count, BranchRule(4.0, 3, 20))
    assert parts.tolist() == [[3, 2, 1, 1]]
    assert torch.unique(lead[0, :20], return_counts=True)[1].sort().values.tolist() == [6, 7, 7]
    assert (lead.diff() >= 0).all() and lead[0, 20:].tolist() == [20, 21, *[22] * 9, 31]
    # one path more is all that the tree may have
    assert particle_groups(entropy, tip, count, BranchRule(4.0, 3, 5))[0].tolist() == [[2, 1, 1, 1]]
    assert particle_groups(entropy, tip, count, BranchRule(4.0, 3, 5, lossless=True))[0].tolist() == count.tolist()


@pytest.mark.parametrize("decoder", ["eab_particles", "eab_paper"])
@pytest.mark.parametrize(("entropy", "high"), [(1.0, True), (1.0 - 1e-12, False)])
def test_an_entropy_at_the_threshold_branches_and_counts_as_high(decoder, entropy, high):
    policy = POLICIES[decoder](Sampling(samples=4, branch_factor=2, max_paths=4), torch.arange(4)[None], 1.0)
    entropy, k = torch.full((1, 4), entropy, dtype=torch.float64), policy.k
    tokens, logprobs = torch.arange(4 * k).view(1, 4, k), torch.full((1, 4, k), -1.0, dtype=torch.float64)
    needed = policy.needed(entropy)
    grown = policy.advance(entropy, tokens, logprobs, torch.zeros(4, 3, dtype=torch.int32), 0, 9)
    assert grown.high[0, 0] == grown.split[0, 0] == high
    assert (grown.multiplicity > 0).sum() == (2 if high else 1)
    assert decoder == "eab_paper" or needed.sum() == (2 if high else 1)


def test_uniform_model_branches_wherever_it_may_and_a_sure_one_never():
    sampling = Sampling(samples=9, max_new_tokens=3, branch_factor=3, max_paths=9)
    wide = run("eab_particles", sampling, sharpness=0.0, vocab=4096)
    assert wide.live_paths() == [3, 9, 9]
    assert run("eab_paper", sampling, sharpness=0.0, vocab=4096).live_paths() == [3, 9, 9]
    assert run("eab_particles", Sampling(samples=9, max_new_tokens=3, temperature=1e-3)).live_paths() == [1, 1, 1]


def test_paper_prunes_to_the_most_likely_ties_to_the_lowest():
    live = torch.tensor([[True, True, False], [True, False, False]])
    entropy = torch.tensor([[9.0, 9.0, 0.0], [9.0, 0.0, 0.0]])
    logprobs = torch.full((2, 3, 3), -1.0)
    logprobs[0, 0], logprobs[1, 0] = torch.tensor([-3.0, -1.0, -1.0]), torch.tensor([-9.0, -2.0, -4.0])
    tokens, total = torch.zeros(2, 3, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.float64)
    tokens[1, 0, 2] = -1  # a third possible token does not exist
    seeds, table = torch.arange(6).view(2, 3), torch.zeros(6, 2, dtype=torch.int32)
    source, alive, sums, own, split, _ = fork_paths(entropy, live, total, seeds, tokens, logprobs, table, 0, 9, 4.0)
    assert source[0].tolist() == [1, 2, 3] and sums[0].tolist() == [-1.0, -1.0, -1.0]
    assert alive.tolist() == [[True] * 3, [True, True, False]] and source[1, :2].tolist() == [0, 1]
    assert own[0, 2] == 1 and own[1, 0] == 3 and len(set(own[alive].tolist())) == 5  # a first child keeps the seed
    assert split.tolist() == live.tolist()
    overshoot = run("eab_paper", Sampling(max_new_tokens=3, branch_factor=3, max_paths=4), sharpness=0.0)
    assert overshoot.live_paths() == [3, 4, 4]


def test_paper_does_not_branch_once_the_limit_is_reached():
    """Not even where a path's second draw is more likely than another path's first."""
    live, entropy = torch.ones(1, 2, dtype=torch.bool), torch.full((1, 2), 9.0)
    logprobs = torch.tensor([[[-1.0, -1.5], [-8.0, -9.0]]])
    state = (torch.zeros(1, 2, dtype=torch.float64), torch.arange(2)[None], torch.arange(4).view(1, 2, 2), logprobs)
    source, alive, sums, seeds, split, _ = fork_paths(entropy, live, *state, torch.zeros(2, 2).int(), 0, 9, 4.0)
    assert source.tolist() == [[0, 2]] and alive.all() and not split.any()
    assert sums.tolist() == [[-1.0, -8.0]] and seeds.tolist() == [[0, 1]]


def test_a_path_is_as_likely_as_its_tokens_and_children_draw_anew_at_every_depth():
    live, entropy = torch.tensor([[True, True, False]]), torch.full((1, 3), 9.0)
    logprobs = torch.tensor([[[-1.0, -2.0], [-1.0, -2.0], [0.0, 0.0]]])
    total, tokens = torch.tensor([[-5.0, 0.0, 0.0]], dtype=torch.float64), torch.arange(6).view(1, 3, 2)
    found = {}
    for depth in (0, 1):
        state = (total, torch.arange(3)[None], tokens, logprobs, torch.zeros(3, 2).int(), depth, 9, 4.0)
        source, _, sums, seeds, _, _ = fork_paths(entropy, live, *state)
        assert source.tolist() == [[0, 2, 3]] and sums.tolist() == [[-6.0, -1.0, -2.0]]
        found[depth] = seeds[0].tolist()
    assert found[0][:2] == found[1][:2] == [0, 1] and len({found[0][2], found[1][2], 0, 1}) == 4


def test_the_rows_of_a_tree_are_what_its_policy_can_need():
    sampling = Sampling(samples=5, max_paths=3)
    assert {name: policy.width(sampling) for name, policy in POLICIES.items()} == {
        "dedup": 5, "eab_paper": 3, "eab_particles": 3
    }  # fmt: skip
    assert POLICIES["eab_particles"].width(Sampling(samples=2, max_paths=3)) == 2


def exact(new):
    """Every path of the small model and its probability: (V^G, G), (V^G,)."""
    return exact_paths(tiny(vocab=V, sharpness=SHARP).model, prompt_of(PROMPT, vocab=V), V, new)


def g_test(samples, paths, p):
    """p-value of a G-test of samples (n, G) against exact path probabilities; rare outcomes pooled to 5 expected."""
    place = V ** np.arange(paths.shape[1])
    seen = np.bincount(samples @ place, minlength=len(p))
    want = np.empty(len(p))
    want[paths @ place] = p * len(samples)
    order = np.argsort(-want)
    often = int((want[order] >= 5).sum())
    rest = [order[often:]] if often < len(p) else []
    f, e = (np.r_[x[order[:often]], [x[r].sum() for r in rest]] for x in (seen, want))
    return stats.power_divergence(f, e * f.sum() / e.sum(), lambda_=0).pvalue


SETTINGS = Sampling(samples=6, max_new_tokens=3, max_paths=4, threshold=0.75)


@pytest.mark.parametrize("decoder", ["dedup", "eab_particles"])
def test_every_particle_is_an_exact_sample(decoder):
    paths, p = exact(3)
    trees = 4000
    tree = run(decoder, SETTINGS, trees, seed=5)
    samples = tree.tokens().reshape(trees, 6, 3)
    # particles of one tree are dependent under eab_particles: one of each tree at a time
    assert min(g_test(samples[:, i], paths, p) for i in range(6)) > 1e-3 / 6
    assert g_test(samples[:, 0] * 0 + samples[:1, 0], paths, p) < 1e-9  # the test can fail
    means = tree.surprisals().sum(1).reshape(trees, 6).mean(1)
    expected, error = -(p * np.log(p)).sum(), means.std(ddof=1) / math.sqrt(trees)
    assert abs(means.mean() - expected) < 3 * error
    split = tree.split.mean()
    assert 0.1 < split < 0.9 or decoder == "dedup"  # both rules were at work


def paper_exact(p, k, limit):
    """Expected uniform mean surprisal of one eab_paper step: k distinct draws, the `limit` most likely kept."""
    total = 0.0
    for draw in itertools.permutations(range(len(p)), k):
        chance, left = 1.0, 1.0
        for i in draw:
            chance, left = chance * p[i] / left, left - p[i]
        total += chance * -np.log(sorted((p[i] for i in draw), reverse=True)[:limit]).mean()
    return total


@pytest.mark.parametrize(("k", "limit"), [(2, 9), (3, 9), (3, 2)])
def test_the_bias_of_eab_paper_is_the_one_that_enumeration_gives(k, limit):
    _, p = exact(1)
    sampling, trees = Sampling(max_new_tokens=1, branch_factor=k, max_paths=limit, threshold=0.0), 6000
    tree = run("eab_paper", sampling, trees, seed=2)
    means = np.bincount(tree.leaf_tree, tree.surprisals()[:, 0]) / np.bincount(tree.leaf_tree)
    error, entropy = means.std(ddof=1) / math.sqrt(trees), -(p * np.log(p)).sum()
    assert abs(means.mean() - paper_exact(p, k, limit)) < 4 * error
    assert abs(means.mean() - entropy) > 10 * error  # biased
    assert means.mean() > entropy or limit < k  # distinct children overweigh the unlikely; pruning undoes it and more


@pytest.mark.parametrize(("limit", "sign"), [(27, 1), (4, -1)], ids=["never pruned", "pruned"])
def test_eab_paper_is_biased_over_whole_paths(limit, sign):
    _, p = exact(3)
    tree = run("eab_paper", Sampling(max_new_tokens=3, max_paths=limit, threshold=0.5), 3000, seed=3)
    means = np.bincount(tree.leaf_tree, tree.surprisals().sum(1)) / np.bincount(tree.leaf_tree)
    bias, error = means.mean() + (p * np.log(p)).sum(), means.std(ddof=1) / math.sqrt(3000)
    print(f"eab_paper, max_paths={limit}: mean path surprisal off by {bias:+.3f} +- {error:.3f} nats")
    assert sign * bias > 8 * error and abs(bias) > 0.1

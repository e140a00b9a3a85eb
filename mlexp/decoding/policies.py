"""Who goes where: a policy turns the distributions at the tips of a forest into the next tips.

n tips, M particles (samples) of all trees, k = branch factor. The engine knows only `step` and `leaves`.
`dedup` and `eab_particles` are one rule: the particles at a tip are cut into groups, each group follows the draw of its
first particle, equal tokens share a child. A particle's own draw is never reused, so each path is an exact sample.
"""

from dataclasses import dataclass

import numpy as np
import torch

from .rng import mix, path_seeds, uniform
from .sampler import Distribution
from .settings import Sampling


@dataclass(frozen=True)
class Children:
    """The next tips, and which of the present ones were split."""

    parent: np.ndarray  # (c,) present tip
    token: np.ndarray  # (c,)
    logprob: np.ndarray  # (c,)
    multiplicity: np.ndarray  # (c,)
    split: np.ndarray  # (n,)


class Particles:
    """Particles move together where the model is sure and part where it is not (spec section 1, `eab_particles`)."""

    def __init__(self, sampling: Sampling, seed: int, trees: int):
        self.sampling, N = sampling, sampling.samples
        self.seeds = path_seeds(seed, trees, N)  # (M,)
        self.tip = np.repeat(np.arange(trees), N)  # (M,) tip of every particle
        self.tree = np.arange(trees)  # (n,) tree of every tip
        self.max_live = trees * N

    def parts(self, high: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Groups per tip: min(k, m) where uncertain, as far as the tree's max_paths allows, else one."""
        extra = np.where(high, np.minimum(self.sampling.branch_factor, count) - 1, 0)
        before = np.cumsum(extra) - extra
        first = np.searchsorted(self.tree, self.tree)  # tips stand tree by tree
        live = np.bincount(self.tree)[self.tree]
        left = self.sampling.max_paths - live - (before - before[first])
        return 1 + np.clip(left, 0, extra)

    def step(self, position: int, at: Distribution, high: np.ndarray) -> Children:
        order = np.argsort(self.tip, kind="stable")  # particles tip by tip, lowest first
        tip = self.tip[order]
        count = np.bincount(tip, minlength=len(self.tree))
        parts = self.parts(high, count)
        rank = np.arange(len(tip)) - np.searchsorted(tip, tip)
        group = rank * parts[tip] // count[tip]  # contiguous, sizes differ by one at most
        leads = np.r_[True, (tip[1:] != tip[:-1]) | (group[1:] != group[:-1])]
        rows = tip[leads]
        tokens = at.draw(rows, uniform(self.seeds[order[leads]], position))
        pair, which = _first_seen(rows, tokens)  # equal tokens of a tip merge
        child = which[np.cumsum(leads) - 1]  # child of every sorted particle
        self.tip = np.empty_like(tip)
        self.tip[order] = child
        self.tree = self.tree[rows[pair]]
        return _children(at, rows[pair], tokens[pair], np.bincount(child), parts > 1)

    def leaves(self) -> np.ndarray:
        return self.tip


class Dedup(Particles):
    """Every particle draws for itself; equal prefixes are computed once. Lossless."""

    def parts(self, high, count):
        return count


class Paper:
    """The original's policy: k distinct children, none once max_paths is reached, the least likely pruned (biased)."""

    def __init__(self, sampling: Sampling, seed: int, trees: int):
        self.sampling = sampling
        self.seeds = path_seeds(seed, trees, 1)  # (n,) one per live path
        self.tree, self.logprob = np.arange(trees), np.zeros(trees)
        self.max_live = trees * sampling.max_paths

    def step(self, position: int, at: Distribution, high: np.ndarray) -> Children:
        k, limit = self.sampling.branch_factor, self.sampling.max_paths
        split = high & (np.bincount(self.tree)[self.tree] < limit) & (k > 1)
        tokens = np.full((len(self.tree), k), -1)
        if split.any():
            u = uniform(self.seeds[split][:, None], position, np.arange(k)[None])
            tokens[split] = at.draw_distinct(np.flatnonzero(split), u)
        if not split.all():
            tokens[~split, 0] = at.draw(np.flatnonzero(~split), uniform(self.seeds[~split], position))
        parent, draw = np.nonzero(tokens >= 0)
        found = _children(at, parent, tokens[parent, draw], np.ones(len(parent), np.int64), split)
        total = self.logprob[parent] + found.logprob
        kept = _most_likely(self.tree[parent], total, limit)
        # the first child goes on with its parent's seed, the others start streams of their own
        seeds = np.where(draw == 0, self.seeds[parent], mix(self.seeds[parent], position, draw, 1))
        self.seeds, self.tree, self.logprob = seeds[kept], self.tree[parent][kept], total[kept]
        return Children(parent[kept], found.token[kept], found.logprob[kept], found.multiplicity[kept], split)

    def leaves(self) -> np.ndarray:
        return np.arange(len(self.tree))


def _first_seen(rows, tokens):
    """Distinct (row, token) pairs in the order of their first appearance: (their positions, the pair of every draw)."""
    _, first, inverse = np.unique(np.stack([rows, tokens]), axis=1, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order], place[inverse.ravel()]


def _most_likely(tree, total, limit):
    """Per tree the `limit` most likely paths, ties to the lowest index; the order of paths is kept."""
    order = np.lexsort((np.arange(len(total)), -total, tree))
    rank = np.arange(len(order)) - np.searchsorted(tree[order], tree[order])
    return np.sort(order[rank < limit])


def _children(at, rows, tokens, multiplicity, split):
    logprob = at.log_prob(torch.from_numpy(rows), torch.from_numpy(tokens))
    return Children(rows, tokens, logprob.double().cpu().numpy(), multiplicity, split)


POLICIES = {"dedup": Dedup, "eab_paper": Paper, "eab_particles": Particles}

"""Branching policies: dedup, particles, the original's. Each turns the distributions at a forest's tips into new tips.

T trees, W rows (most live tips) and N draws a tree, R = T * W. A policy is a handful of tensors of fixed shape that
are written in place, so that a step can be captured once and replayed: no value decides a shape and nothing waits for
the device. `dedup` and `eab_particles` are one rule: the particles at a tip are cut into groups, each group follows
the draw of its first particle, equal tokens share a child. A particle's own draw is never reused, so each path is an
exact sample.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import kernels
from .kernels import reference
from .settings import BranchRule, Sampling


@dataclass(frozen=True)
class Grown:
    """One step of all trees: the new rows, and which of the old rows were split. All (T, W)."""

    parent: Tensor  # old row
    token: Tensor
    entropy: Tensor  # nats, of the distribution that the token is from
    logprob: Tensor
    multiplicity: Tensor  # samples that run through the row, 0 = not in use
    high: Tensor  # of the old row: its entropy reaches the threshold
    split: Tensor  # of the old row: the policy gave it more than one draw


class Particles:
    """Particles stay together where the model is certain and part where it is not (spec section 1, `eab_particles`)."""

    k = 1
    lossless = False
    groups: tuple[Tensor, Tensor] | None = None  # of this step, where `needed` has found them

    @staticmethod
    def width(sampling: Sampling) -> int:
        return min(sampling.samples, sampling.max_paths)

    def __init__(self, sampling: Sampling, seeds: Tensor, threshold_nats: float, backend: str = "auto") -> None:
        """seeds (T, N): one for every particle."""
        (T, N), self.W = seeds.shape, self.width(sampling)
        self.rule = BranchRule(threshold_nats, sampling.branch_factor, sampling.max_paths, self.lossless)
        self.backend, self.seeds = backend, seeds
        self.tip: Tensor = seeds.new_zeros(T, N)  # row that every particle is at
        self.multiplicity = seeds.new_zeros(T, self.W)
        self.reset()

    def reset(self) -> None:
        self.tip.zero_()
        self.multiplicity.zero_()[:, 0].fill_(self.tip.shape[1])

    def rows(self) -> Tensor:  # (T, N) row of its tree that each draw is from
        return self.tip

    def needed(self, entropy: Tensor) -> Tensor:
        """Which of the draws decide anything, given the entropy of each draw's row: (T, N), bool."""
        self.groups = reference.particle_groups(entropy, self.tip, self.multiplicity, self.rule)
        return self.groups[1] == torch.arange(self.tip.shape[1], device=self.tip.device)

    def advance(
        self, entropy: Tensor, tokens: Tensor, logprobs: Tensor, ancestors: Tensor, depth: Tensor | int,
        first_slot: int,
    ) -> Grown:  # fmt: skip
        """Take the step: entropy (T, N), tokens and logprobs (T, N, 1), ancestors (R, L), written in place."""
        state = entropy, self.tip, self.multiplicity, tokens[..., 0], ancestors, depth, first_slot, self.rule
        groups, self.groups = self.groups, None
        forked = reference.fork(*state, groups) if groups else kernels.fork(*state, self.backend)
        tip, source, counts, parts, below = forked
        at_rows = torch.zeros_like(self.multiplicity, dtype=entropy.dtype).scatter_(1, self.tip, entropy)
        grown = Grown(
            self.tip.gather(1, source), tokens[..., 0].gather(1, source), entropy.gather(1, source),
            logprobs[..., 0].gather(1, source), counts, at_rows >= self.rule.threshold_nats, parts > 1,
        )  # fmt: skip
        for buffer, new in ((self.tip, tip), (self.multiplicity, counts), (ancestors, below)):
            buffer.copy_(new)
        return grown

    def leaves(self) -> tuple[Tensor, Tensor]:
        """Row and tree of every sample: (n,), (n,)."""
        return self.tip.flatten(), _trees(self.tip).flatten()


class Dedup(Particles):
    """Every particle draws for itself; equal prefixes are computed once. Lossless."""

    lossless = True

    @staticmethod
    def width(sampling: Sampling) -> int:
        return sampling.samples


class Paper:
    """The original's policy: k distinct children, none once max_paths is reached, the least likely pruned (biased)."""

    @staticmethod
    def width(sampling: Sampling) -> int:
        return sampling.max_paths

    def __init__(self, sampling: Sampling, seeds: Tensor, threshold_nats: float, backend: str = "auto") -> None:
        """seeds (T, N), of which a tree's first path takes the first."""
        self.W, self.k = self.width(sampling), sampling.branch_factor
        self.threshold_nats, self.first = threshold_nats, seeds
        self.seeds = seeds.new_zeros(len(seeds), self.W)  # of every path
        self.multiplicity = torch.zeros_like(self.seeds)
        self.total = torch.zeros_like(self.seeds, dtype=torch.float64)  # log-probability of every path
        self.reset()

    def reset(self) -> None:
        self.seeds[:, 0].copy_(self.first[:, 0])
        self.multiplicity.zero_()[:, 0].fill_(1)
        self.total.zero_()

    def rows(self) -> Tensor:
        return torch.arange(self.W, device=self.seeds.device).expand_as(self.seeds)

    def needed(self, entropy: Tensor) -> Tensor:
        return self.multiplicity > 0

    def advance(
        self, entropy: Tensor, tokens: Tensor, logprobs: Tensor, ancestors: Tensor, depth: Tensor | int,
        first_slot: int,
    ) -> Grown:  # fmt: skip
        """Take the step: entropy (T, W), tokens and logprobs (T, W, k), ancestors (R, L), written in place."""
        source, live, total, seeds, split, below = reference.fork_paths(
            entropy, self.multiplicity > 0, self.total, self.seeds, tokens, logprobs, ancestors, depth, first_slot,
            self.threshold_nats,
        )  # fmt: skip
        parent = source // self.k
        grown = Grown(
            parent, tokens.flatten(1).gather(1, source), entropy.gather(1, parent),
            logprobs.flatten(1).gather(1, source), live.long(), entropy >= self.threshold_nats, split,
        )  # fmt: skip
        updates = (self.multiplicity, live), (self.total, total), (self.seeds, seeds), (ancestors, below)
        for buffer, new in updates:
            buffer.copy_(new)
        return grown

    def leaves(self) -> tuple[Tensor, Tensor]:
        tree, row = self.multiplicity.nonzero(as_tuple=True)
        return row, tree


def _trees(x: Tensor) -> Tensor:
    """The tree of every entry: (T, n)."""
    return torch.arange(len(x), device=x.device)[:, None].expand_as(x)


Policy = Particles | Paper
POLICIES: dict[str, type[Policy]] = {"dedup": Dedup, "eab_paper": Paper, "eab_particles": Particles}

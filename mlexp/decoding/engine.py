"""The engine: a forest of samples decoded as one growing sequence.

B prompts of P tokens, T trees (T / B behind each prompt), W rows a tree, R = T * W, G new tokens. All trees of a
prompt share its keys and values; the tips of all trees are the tokens of one forward of batch 1; an ancestor table
says which slots each tip sees. A fork copies a row of integers. One prompt forward and G - 1 steps: the last tips are
not forwarded. A text that has drawn a stop token has ended: its row stays in the tree, and nothing is computed for it.

On a CPU only the live rows are forwarded, so token forwards = B P + sum of live paths. On a CUDA device every step
forwards all R rows, of which some may be idle: shapes are fixed, all decisions stay on the device, and a step is
captured once as a CUDA graph and replayed. Slots are numbered alike: row r of depth d has slot B P + d R + r.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mlexp import flops

from . import kernels
from .attention import TreeView, tree_attention_on
from .filters import restrict
from .kernels import reference
from .policies import POLICIES, Policy
from .pool import Counts, Pool, counting
from .rng import path_seeds
from .settings import Sampling
from .support import check
from .tree import Tree, read_tree

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WARM_UP = 3  # steps before a capture: libraries choose algorithms and allocate workspaces in their first calls


class Forest:
    """The state of a run and its two moves: `begin` reads the prompts, `step` forwards the tips; both then decide.

    seeds (T, N) are those of every particle; they, the prompts (B, P) and all state are written in place, never
    replaced. Each prompt stands in the pool `copies` times: once for all its trees, or once for each where nothing is
    to be shared.
    """

    def __init__(self, model: "PreTrainedModel", prompts: Tensor, seeds: Tensor, sampling: Sampling, policy: str,
                 copies: int = 1, backend: str = "auto", idle_rows: bool | None = None) -> None:  # fmt: skip
        self.model, self.sampling, self.prompts, self.seeds, self.backend = model, sampling, prompts, seeds, backend
        (self.B, self.P), self.T = prompts.shape, len(seeds)
        self.idle_rows = prompts.is_cuda if idle_rows is None else idle_rows
        behind = self.B * copies  # prompts in the pool
        threshold_nats = sampling.threshold * math.log(model.config.get_text_config().vocab_size)
        self.policy: Policy = POLICIES[policy](sampling, seeds, threshold_nats, backend)
        W, G = self.policy.W, sampling.max_new_tokens
        self.R, self.first_slot = self.T * W, behind * self.P
        self.group = self.R // behind if behind > 1 else None
        self.pool = Pool(model, self.first_slot + self.R * (G - 1), copies)
        self.depth = seeds.new_zeros(())
        self.row = torch.arange(self.R, device=seeds.device)
        self.tree = self.row.view(self.T, W)[:, :1]  # first row of every tree
        self.prompt_row = self.tree // (self.R // self.B)  # the prompt that it stands behind: its logits, at first
        self.token = seeds.new_zeros(self.R)
        self.ended = torch.zeros(self.T, W, dtype=torch.bool, device=seeds.device)  # rows whose text has ended
        self.stop = seeds.new_tensor(sampling.stop_tokens)
        self.ancestors = torch.zeros(self.R, G - 1, dtype=torch.int32, device=seeds.device)
        self.steps: dict[str, Tensor] = {}

    @torch.no_grad()
    def begin(self) -> None:
        self.depth.zero_()
        self.ended.zero_()
        self.policy.reset()
        self.decide(self.pool.prefill(self.prompts), self.prompt_row.expand_as(self.policy.rows()))

    def live(self) -> Tensor:
        """Rows that the next step has to forward: (T, W) bool."""
        return (self.policy.multiplicity > 0) & ~self.ended

    def finished(self) -> bool:
        """Whether no row is left to forward, where the host may know it."""
        return len(self.stop) > 0 and not self.idle_rows and not bool(self.live().any())

    @torch.no_grad()
    def step(self) -> None:
        row, place, lengths, sizes = self.row, self.row, None, None
        if self.idle_rows:
            ancestors, lengths = self.ancestors, (self.depth + 1).expand(self.R)
        else:
            live = self.live()
            row = live.view(-1).nonzero()[:, 0]
            place = torch.zeros_like(self.row).index_copy_(0, row, self.row[: len(row)])  # row of the logits
            ancestors = self.ancestors[row, : int(self.depth) + 1]
            sizes = live.view(-1, self.group).sum(1).tolist() if self.group else None
        view = TreeView(self.P, ancestors, lengths, self.group, sizes, self.backend)
        slots = self.first_slot + self.depth * self.R + row
        logits = self.pool.forward(self.token[row], (self.P + self.depth).expand(len(row)), slots, view)
        self.depth += 1
        self.decide(logits, place[self.tree + self.policy.rows()])

    def decide(self, logits: Tensor, rows: Tensor) -> None:
        """Draw from the logits, rows (T, N) saying which of them each draw is from, and take the policy's step."""
        over = self.ended.gather(1, self.policy.rows())
        entropy, tokens, logprobs = (self.draw_all if self.idle_rows else self.draw_needed)(logits, rows, over)
        if len(self.stop):  # an ended text goes on as its end token, for sure, in one piece
            first = torch.arange(self.policy.k, device=tokens.device) == 0
            tokens = torch.where(over[..., None], torch.where(first, self.stop[0], -1), tokens)
            logprobs = torch.where(over[..., None], torch.where(first, 0.0, -math.inf), logprobs)
        grown = self.policy.advance(entropy, tokens, logprobs, self.ancestors, self.depth, self.first_slot)
        self.token.copy_(grown.token.view(-1))
        if len(self.stop):
            ends = (grown.token[..., None] == self.stop).any(-1)
            self.ended.copy_(self.ended.gather(1, grown.parent) | ends)
        self.store(vars(grown) | {"ended": self.ended})

    def draw_all(self, logits: Tensor, rows: Tensor, over: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Every draw, in one pass: which of them are needed is known only on the device."""
        s, k, shape = self.sampling, self.policy.k, rows.shape
        if s.top_k or s.top_p < 1:
            allowed = restrict(reference.tempered(logits, s.temperature), s.top_k, s.top_p)
            logits = logits.masked_fill(allowed == -math.inf, -math.inf)
        sampled = kernels.entropy_sample(
            logits, s.temperature, self.policy.seeds.view(-1), self.depth, k, rows.reshape(-1), self.backend
        )
        entropy, _, tokens, logprobs = sampled
        return entropy.view(shape).masked_fill(over, -math.inf), tokens.view(*shape, k), logprobs.view(*shape, k)

    def draw_needed(self, logits: Tensor, rows: Tensor, over: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The draws that decide something; the others are left at token -1."""
        s, k = self.sampling, self.policy.k
        x = restrict(reference.tempered(logits, s.temperature), s.top_k, s.top_p)
        h, log_z = reference.entropy(x)
        entropy = h[rows].masked_fill(over, -math.inf)
        needed = (self.policy.needed(entropy) & ~over).view(-1).nonzero()[:, 0]
        seeds, at = self.policy.seeds.reshape(-1)[needed], rows.reshape(-1)[needed]
        drawn = reference.draw(x, seeds, int(self.depth), k, at)
        tokens = drawn.new_full((rows.numel(), k), -1).index_copy_(0, needed, drawn)
        logprobs = x.new_zeros(tokens.shape).index_copy_(0, needed, reference.log_probs(x, log_z, drawn, at))
        return entropy, tokens.view(*rows.shape, k), logprobs.view(*rows.shape, k)

    def store(self, columns: dict[str, Tensor]) -> None:
        """Write what a step decided into the buffers of the run, at its depth."""
        for name, value in columns.items():
            if name not in self.steps:
                self.steps[name] = value.new_zeros(self.sampling.max_new_tokens, *value.shape)
            self.steps[name].index_copy_(0, self.depth.view(1), value[None])

    def harvest(self) -> Tree:
        """The tree of the run that has ended: the first time that the host waits for the device."""
        steps = {name: value[: int(self.depth) + 1].cpu().numpy() for name, value in self.steps.items()}
        steps |= {name: steps[name].astype(np.float64) for name in ("entropy", "logprob")}
        end = self.sampling.stop_tokens[0] if self.sampling.stop_tokens else -1
        row, tree = (x.cpu().numpy() for x in self.policy.leaves())
        return read_tree(steps, row, tree, new=self.sampling.max_new_tokens, end=end)


class Graphs:
    """A forest whose two moves are CUDA graphs: captured once, replayed for other prompts and seeds of their shapes."""

    def __init__(self, forest: Forest) -> None:
        self.forest = forest
        self.moves: list[tuple[torch.cuda.CUDAGraph, Counts, int]] = []  # graph, what a hook saw in it, replays a run
        steps = forest.sampling.max_new_tokens - 1
        with tree_attention_on(forest.model):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's own
            # what a capture uses has to be warm, on a stream that is not the default one
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                forest.begin()
                for _ in range(min(WARM_UP, steps)):
                    forest.step()
            torch.cuda.current_stream().wait_stream(side)
            memory = torch.cuda.graph_pool_handle()
            moves: tuple[tuple[Callable[[], None], int], ...] = (forest.begin, 1), (forest.step, steps)
            for move, times in moves:
                graph = torch.cuda.CUDAGraph()
                if times:
                    with counting(forest.model) as counts, torch.cuda.graph(graph, pool=memory):
                        move()
                    self.moves.append((graph, counts, times))

    def run(self, prompts: Tensor, seeds: Tensor) -> Counts:
        """Replay a run; nothing in it waits for the device. Counts are a hook's, per move, times its replays."""
        self.forest.prompts.copy_(prompts, non_blocking=True)
        self.forest.seeds.copy_(seeds, non_blocking=True)
        total = Counts()
        for graph, counts, times in self.moves:
            for _ in range(times):
                graph.replay()
            total.add(counts, times)
        return total


GraphCache = dict[tuple[object, ...], Graphs]
"""Captured graphs by all that shapes them."""


def decode(model: "PreTrainedModel", prompts: Tensor, seeds: Tensor, sampling: Sampling, policy: str, copies: int = 1,
           graphs: GraphCache | None = None, backend: str = "auto", idle_rows: bool | None = None,
           ) -> tuple[Tree, Counts]:  # fmt: skip
    """Decode the trees whose particles have `seeds` (T, N) behind prompts (B, P): trees 0 to T / B - 1 behind the
    first.

    graphs: a dict in which a CUDA run stores its captured graphs for the caller's next run of the same shapes. Without
    it, and while FLOPs are counted (a replay executes no operator that could be counted), steps run eagerly.
    """
    prompts, seeds = prompts.to(model.device), seeds.to(model.device)
    arguments = (sampling, policy, copies, backend, idle_rows)
    if graphs is None or not prompts.is_cuda or flops.counting():
        with tree_attention_on(model), counting(model) as counts:
            forest = Forest(model, prompts, seeds, *arguments)
            forest.begin()
            for _ in range(sampling.max_new_tokens - 1):
                if forest.finished():
                    break
                forest.step()
        return forest.harvest(), counts
    key = (id(model), prompts.shape, seeds.shape, arguments)
    if key not in graphs:
        graphs.clear()  # the memory of another shape's pool goes first
        graphs[key] = Graphs(Forest(model, prompts.clone(), seeds.clone(), *arguments))
    counts = graphs[key].run(prompts, seeds)
    return graphs[key].forest.harvest(), counts


def grow(model: "PreTrainedModel", prompt: Tensor, sampling: Sampling, policy: str, seed: int, trees: int = 1,
         graphs: GraphCache | None = None, backend: str = "auto", idle_rows: bool | None = None,
         ) -> tuple[Tree, Counts]:  # fmt: skip
    """Decode `trees` independent trees over one prompt (P,), or over each of several (B, P), with a policy.

    The policy draws from path seeds alone, so tree r of a forest is the tree that `trees=r+1` grows.
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown policy {policy!r}; choose from {', '.join(POLICIES)}")
    check(model, prompt, sampling)
    prompts = prompt[None] if prompt.ndim == 1 else prompt
    seeds = path_seeds(seed, len(prompts) * trees, sampling.samples)
    return decode(model, prompts, seeds, sampling, policy, 1, graphs, backend, idle_rows)


def alone(sampling: Sampling) -> Sampling:
    """The settings of a tree that is one sample: a row of its own."""
    return replace(sampling, samples=1, max_paths=1)

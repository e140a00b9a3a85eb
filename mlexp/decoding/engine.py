"""The engine: a forest of samples decoded as one growing sequence.

B prompts of P tokens, T trees (T / B behind each prompt), W rows a tree, R = T * W, G new tokens. All trees of a
prompt share its keys and values; the tips of all trees are the tokens of one forward of batch 1; an ancestor table
says which slots each tip sees. A fork copies a row of integers. One prompt forward and G - 1 steps: the last tips are
not forwarded.

On a CPU only the live rows are forwarded, so token forwards = B P + sum of live paths. On a CUDA device every step
forwards all R rows, of which some may be idle: shapes are fixed, all decisions stay on the device, and a step is
captured once as a CUDA graph and replayed. Slots are numbered alike: row r of depth d has slot B P + d R + r.
"""

import contextlib
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mlexp import flops

from . import kernels
from .attention import TreeView, tree_attention_on
from .caches import PoolLayer, new_cache
from .kernels import reference
from .policies import POLICIES, Grown
from .rng import path_seeds
from .settings import Sampling
from .tree import Tree, read_tree

WARM_UP = 3  # steps before a capture: libraries choose algorithms and allocate workspaces in their first calls


@dataclass
class Counts:
    """What a forward hook saw the model do."""

    model_forwards: int = 0
    token_forwards: int = 0
    logit_rows: int = 0

    def add(self, other: "Counts", times: int = 1):
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + times * value)


@contextlib.contextmanager
def counting(model):
    """Count forwards, tokens forwarded and rows of logits by a hook on the model, never from the samples."""
    counts = Counts()

    def hook(_, args, kwargs, output):
        ids = args[0] if args else kwargs["input_ids"]
        counts.add(Counts(1, ids.numel(), output.logits.shape[:-1].numel()))

    handle = model.register_forward_hook(hook, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()


class Pool:
    """Prompts and the growing trees behind them in one flat cache of `capacity` slots."""

    def __init__(self, model, capacity: int, copies: int = 1):
        self.model, self.cache = model, new_cache(PoolLayer, model.config, capacity)
        for layer in self.cache.layers:
            layer.copies = copies

    def prefill(self, prompts: Tensor) -> Tensor:  # (B, P) -> (B, V)
        self._write_to(None)
        out = self.model(prompts, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, 0]

    def forward(self, tokens: Tensor, positions: Tensor, slots: Tensor, tree: TreeView) -> Tensor:  # (n,) x 3 -> (n, V)
        """Logits behind n tokens, whose keys and values go to `slots`."""
        self._write_to(slots)
        out = self.model(
            tokens[None], past_key_values=self.cache, use_cache=True, position_ids=positions[None], tree=tree
        )
        return out.logits[0]

    def _write_to(self, slots):
        for layer in self.cache.layers:
            layer.slots = slots


def check_room(model, prompt: Tensor, new: int):
    """Raise ValueError unless prompts (P,) or (B, P) and `new` tokens fit the model's positions."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if prompt.ndim not in (1, 2) or not prompt.numel():
        raise ValueError(f"prompt of shape {tuple(prompt.shape)}: expected (P,) or (B, P) with P >= 1")
    if limit and prompt.shape[-1] + new > limit:
        raise ValueError(f"{prompt.shape[-1]} prompt + {new} new tokens: {type(model).__name__} has {limit} positions")


class Forest:
    """The state of a run and its two moves: `begin` reads the prompts, `step` forwards the tips; both then decide.

    seeds (T, N) are those of every particle; they, the prompts (B, P) and all state are written in place, never
    replaced. Each prompt stands in the pool `copies` times: once for all its trees, or once for each where nothing is
    to be shared.
    """

    def __init__(self, model, prompts: Tensor, seeds: Tensor, sampling: Sampling, decoder: str, copies: int = 1,
                 backend: str = "auto", idle_rows: bool | None = None):  # fmt: skip
        self.model, self.sampling, self.prompts, self.seeds, self.backend = model, sampling, prompts, seeds, backend
        (self.B, self.P), self.T = prompts.shape, len(seeds)
        self.idle_rows = prompts.is_cuda if idle_rows is None else idle_rows
        behind = self.B * copies  # prompts in the pool
        threshold = sampling.threshold * math.log(model.config.get_text_config().vocab_size)
        self.policy = POLICIES[decoder](sampling, seeds, threshold, backend)
        W, G = self.policy.W, sampling.max_new_tokens
        self.R, self.first_slot = self.T * W, behind * self.P
        self.group = self.R // behind if behind > 1 else None
        self.pool = Pool(model, self.first_slot + self.R * (G - 1), copies)
        self.depth = seeds.new_zeros(())
        self.row = torch.arange(self.R, device=seeds.device)
        self.tree = self.row.view(self.T, W)[:, :1]  # first row of every tree
        self.prompt_row = self.tree // (self.R // self.B)  # the prompt that it stands behind: its logits, at first
        self.token = seeds.new_zeros(self.R)
        self.ancestors = torch.zeros(self.R, G - 1, dtype=torch.int32, device=seeds.device)
        self.steps: dict[str, Tensor] = {}

    @torch.no_grad()
    def begin(self):
        self.depth.zero_()
        self.policy.reset()
        self.decide(self.pool.prefill(self.prompts), self.prompt_row.expand_as(self.policy.rows()))

    @torch.no_grad()
    def step(self):
        row, place, lengths, sizes = self.row, self.row, None, None
        if self.idle_rows:
            ancestors, lengths = self.ancestors, (self.depth + 1).expand(self.R)
        else:
            live = self.policy.multiplicity > 0
            row = live.view(-1).nonzero()[:, 0]
            place = torch.zeros_like(self.row).index_copy_(0, row, self.row[: len(row)])  # row of the logits
            ancestors = self.ancestors[row, : int(self.depth) + 1]
            sizes = live.view(-1, self.group).sum(1).tolist() if self.group else None
        view = TreeView(self.P, ancestors, lengths, self.group, sizes, self.backend)
        slots = self.first_slot + self.depth * self.R + row
        logits = self.pool.forward(self.token[row], (self.P + self.depth).expand(len(row)), slots, view)
        self.depth += 1
        self.decide(logits, place[self.tree + self.policy.rows()])

    def decide(self, logits: Tensor, rows: Tensor):
        """Draw from the logits, rows (T, N) saying which of them each draw is from, and take the policy's step."""
        draw = self.draw_all if self.idle_rows else self.draw_needed
        grown = self.policy.advance(*draw(logits, rows), self.ancestors, self.depth, self.first_slot)
        self.token.copy_(grown.token.view(-1))
        self.keep(grown)

    def draw_all(self, logits, rows):
        """Every draw, in one pass: which of them are needed is known only on the device."""
        k, shape = self.policy.k, rows.shape
        sampled = kernels.entropy_sample(
            logits, self.sampling.temperature, self.policy.seeds.view(-1), self.depth, k, rows.reshape(-1), self.backend
        )
        entropy, _, tokens, logprobs = sampled
        return entropy.view(shape), tokens.view(*shape, k), logprobs.view(*shape, k)

    def draw_needed(self, logits, rows):
        """The draws that decide something; the others are left at token -1."""
        x = reference.tempered(logits, self.sampling.temperature)
        h, log_z = reference.entropy(x)
        entropy, k = h[rows], self.policy.k
        needed = self.policy.needed(entropy).view(-1).nonzero()[:, 0]
        seeds, at = self.policy.seeds.reshape(-1)[needed], rows.reshape(-1)[needed]
        drawn = reference.draw(x, seeds, int(self.depth), k, at)
        tokens = drawn.new_full((rows.numel(), k), -1).index_copy_(0, needed, drawn)
        logprobs = x.new_zeros(tokens.shape).index_copy_(0, needed, reference.log_probs(x, log_z, drawn, at))
        return entropy, tokens.view(*rows.shape, k), logprobs.view(*rows.shape, k)

    def keep(self, grown: Grown):
        """Write the step into the buffers of the run, at its depth."""
        for name, value in vars(grown).items():
            if name not in self.steps:
                self.steps[name] = value.new_zeros(self.sampling.max_new_tokens, *value.shape)
            self.steps[name].index_copy_(0, self.depth.view(1), value[None])

    def harvest(self) -> Tree:
        """The tree of the run that has ended: the first time that the host waits for the device."""
        steps = {name: value.cpu().numpy() for name, value in self.steps.items()}
        steps |= {name: steps[name].astype(np.float64) for name in ("entropy", "logprob")}
        return read_tree(steps, *(x.cpu().numpy() for x in self.policy.leaves()))


class Graphs:
    """A forest whose two moves are CUDA graphs: captured once, replayed for other prompts and seeds of their shapes."""

    def __init__(self, forest: Forest):
        self.forest, self.moves = forest, []  # (graph, what a hook saw in it, replays a run)
        steps = forest.sampling.max_new_tokens - 1
        with tree_attention_on(forest.model):
            side = torch.cuda.Stream()  # what a capture uses has to be warm, on a stream that is not the default one
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                forest.begin()
                for _ in range(min(WARM_UP, steps)):
                    forest.step()
            torch.cuda.current_stream().wait_stream(side)
            memory = torch.cuda.graph_pool_handle()
            for move, times in ((forest.begin, 1), (forest.step, steps)):
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


def decode(model, prompts: Tensor, seeds: Tensor, sampling: Sampling, decoder: str, copies: int = 1,
           held: dict | None = None, backend: str = "auto", idle_rows: bool | None = None,
           ) -> tuple[Tree, Counts]:  # fmt: skip
    """Decode the trees whose particles have `seeds` (T, N) behind prompts (B, P): trees 0 to T / B - 1 behind the
    first.

    held: a dict in which a CUDA run keeps its captured graphs for the caller's next run of the same shapes; without it,
    and while FLOPs are counted (a replay executes no operator that could be), steps run eagerly.
    """
    prompts, seeds = prompts.to(model.device), seeds.to(model.device)
    arguments = (sampling, decoder, copies, backend, idle_rows)
    if held is None or not prompts.is_cuda or flops.counting():
        with tree_attention_on(model), counting(model) as counts:
            forest = Forest(model, prompts, seeds, *arguments)
            forest.begin()
            for _ in range(sampling.max_new_tokens - 1):
                forest.step()
        return forest.harvest(), counts
    key = (id(model), prompts.shape, seeds.shape, arguments)
    if key not in held:
        held.clear()  # the memory of another shape's pool goes first
        held[key] = Graphs(Forest(model, prompts.clone(), seeds.clone(), *arguments))
    counts = held[key].run(prompts, seeds)
    return held[key].forest.harvest(), counts


def grow(model, prompt: Tensor, sampling: Sampling, decoder: str, seed: int, trees: int = 1, held: dict | None = None,
         backend: str = "auto", idle_rows: bool | None = None) -> tuple[Tree, Counts]:  # fmt: skip
    """Decode `trees` independent trees over one prompt (P,), or over each of several (B, P), with a tree decoder's
    policy.

    The policy draws from path seeds alone, so tree r of a forest is the tree that `trees=r+1` grows.
    """
    if decoder not in POLICIES:
        raise ValueError(f"unknown tree decoder {decoder!r}; choose from {', '.join(POLICIES)}")
    check_room(model, prompt, sampling.max_new_tokens)
    prompts = prompt[None] if prompt.ndim == 1 else prompt
    seeds = path_seeds(seed, len(prompts) * trees, sampling.samples)
    return decode(model, prompts, seeds, sampling, decoder, 1, held, backend, idle_rows)


def alone(sampling: Sampling) -> Sampling:
    """The settings of a tree that is one sample: a row of its own."""
    return replace(sampling, samples=1, max_paths=1)


@torch.no_grad()
def score(model, prompt: Tensor, tokens: np.ndarray, temperature: float, chunk: int = 128) -> np.ndarray:
    """-log p of every token of every sample under the tempered model, nats: (n, G).

    Equal prefixes are one node of a trie; its nodes go through the engine `chunk` at a time, by depth, so that at most
    `chunk` rows of logits exist at once.
    """
    check_room(model, prompt, tokens.shape[1])
    n, G = tokens.shape
    node, parent, depth, token = _trie(tokens)
    asked = np.full((n, G), -1)  # node whose logits give each token
    asked[:, 1:] = node[:, :-1]
    inner = int((depth < G - 1).sum())  # nodes stand by depth: leaves come last
    result, prompt = np.empty((n, G)), prompt.to(model.device)
    P, slots = len(prompt), np.zeros((inner, max(G - 1, 1)), np.int64)
    for i in range(inner):
        if parent[i] >= 0:
            slots[i] = slots[parent[i]]
        slots[i, depth[i]] = P + i
    with tree_attention_on(model):
        pool = Pool(model, P + inner)
        _read(result, asked, -1, pool.prefill(prompt[None]), tokens, temperature)
        for start in range(0, inner, chunk):
            part = slice(start, min(start + chunk, inner))
            width = depth[part].max() + 1
            ids, at, rows, own = (
                torch.from_numpy(np.ascontiguousarray(x)).to(model.device)
                for x in (token[part], depth[part], slots[part, :width], P + np.arange(inner)[part])
            )
            logits = pool.forward(ids, P + at, own, TreeView(P, rows.int(), at + 1))
            _read(result, asked, start, logits, tokens, temperature)
    return result


def _read(result, asked, first, logits, tokens, temperature):
    """Fill in the tokens whose distribution is row (asked - first) of these logits."""
    where = np.nonzero((asked >= first) & (asked < first + len(logits)))
    if len(where[0]):
        rows, ids = (torch.from_numpy(x).to(logits.device) for x in (asked[where] - first, tokens[where]))
        x = reference.tempered(logits, temperature)
        result[where] = (reference.entropy(x)[1][rows] - x[rows, ids]).double().cpu().numpy()


def _trie(tokens: np.ndarray):
    """Distinct prefixes, numbered by depth: (node of every token (n, G), parent, depth, token of every node)."""
    n, G = tokens.shape
    node, above, parents, depths, ids, size = np.empty((n, G), np.int64), np.full(n, -1), [], [], [], 0
    for d in range(G):
        pairs, inverse = np.unique(np.stack([above, tokens[:, d]], 1), axis=0, return_inverse=True)
        node[:, d] = above = inverse.ravel() + size
        parents.append(pairs[:, 0])
        ids.append(pairs[:, 1])
        depths.append(np.full(len(pairs), d))
        size += len(pairs)
    return node, np.concatenate(parents), np.concatenate(depths), np.concatenate(ids)

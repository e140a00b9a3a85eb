"""The engine: a forest of samples decoded as one growing sequence.

P prompt tokens, n live tips, G new tokens. All trees share the prompt's keys and values; the tips of all trees are the
n tokens of one forward of batch 1; an ancestor table says which slots each tip sees. A fork copies a row of integers.
One prompt forward and G - 1 steps: the last tips are not forwarded, so token forwards = P + sum of live paths.
"""

import contextlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .attention import TreeView, tree_attention_on
from .caches import PoolLayer, new_cache
from .policies import POLICIES
from .sampler import Distribution
from .settings import Sampling
from .tree import Tree, TreeBuilder


@dataclass
class Counts:
    """What a forward hook saw the model do."""

    model_forwards: int = 0
    token_forwards: int = 0
    logit_rows: int = 0


@contextlib.contextmanager
def counting(model):
    """Count forwards, tokens forwarded and rows of logits by a hook on the model, never from the samples."""
    counts = Counts()

    def hook(_, args, kwargs, output):
        ids = args[0] if args else kwargs["input_ids"]
        counts.model_forwards += 1
        counts.token_forwards += ids.numel()
        counts.logit_rows += output.logits.shape[:-1].numel()

    handle = model.register_forward_hook(hook, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()


class Pool:
    """A prompt and a growing tree behind it in one flat cache of `capacity` slots."""

    def __init__(self, model, capacity: int):
        self.model, self.cache, self.used = model, new_cache(PoolLayer, model.config, capacity), 0

    def prefill(self, prompt: Tensor) -> Tensor:  # (P,) -> (1, V)
        self.used = self.prompt_len = len(prompt)
        out = self.model(prompt[None], past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return out.logits[0]

    def claim(self, n: int) -> Tensor:
        """The slots that the next n tokens forwarded will take: (n,)."""
        self.used += n
        return torch.arange(self.used - n, self.used, device=self.model.device)

    def forward(self, tokens, depth, ancestors, lengths=None) -> Tensor:
        """Logits (n, V) behind n tokens at `depth` (int or (n,)); each sees the prompt and its row of `ancestors`."""
        position = torch.as_tensor(depth, device=tokens.device).expand(len(tokens)) + self.prompt_len
        view = TreeView(self.prompt_len, ancestors, lengths)
        out = self.model(
            tokens[None], past_key_values=self.cache, use_cache=True, position_ids=position[None], tree=view
        )
        return out.logits[0]


def check_room(model, prompt: Tensor, new: int):
    """Raise ValueError unless prompt (P,) and `new` tokens fit the model's positions."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if prompt.ndim != 1 or not len(prompt):
        raise ValueError(f"prompt of shape {tuple(prompt.shape)}: expected (P,) with P >= 1")
    if limit and len(prompt) + new > limit:
        raise ValueError(f"{len(prompt)} prompt + {new} new tokens: {type(model).__name__} has {limit} positions")


@torch.no_grad()
def grow(model, prompt: Tensor, sampling: Sampling, decoder: str, seed: int, trees: int = 1) -> tuple[Tree, Counts]:
    """Decode `trees` independent trees over one prompt (P,) with the policy of a tree decoder.

    The policy draws from path seeds alone, so tree r of a forest is the tree that `trees=r+1` grows.
    """
    if decoder not in POLICIES:
        raise ValueError(f"unknown tree decoder {decoder!r}; choose from {', '.join(POLICIES)}")
    check_room(model, prompt, sampling.max_new_tokens)
    G, prompt = sampling.max_new_tokens, prompt.to(model.device)
    policy, record = POLICIES[decoder](sampling, seed, trees), TreeBuilder(trees)
    with tree_attention_on(model), counting(model) as counts:
        pool = Pool(model, len(prompt) + policy.max_live * (G - 1))
        logits = pool.prefill(prompt).expand(trees, -1)
        ancestors = torch.empty(trees, 0, dtype=torch.int32, device=model.device)
        for depth in range(G):
            children = _decide(policy, record, depth, logits, sampling)
            if depth == G - 1:
                break
            tokens, parent = (torch.from_numpy(x).to(model.device) for x in (children.token, children.parent))
            ancestors = torch.cat([ancestors[parent], pool.claim(len(tokens))[:, None].int()], 1)
            logits = pool.forward(tokens, depth, ancestors)
    return record.finish(policy.leaves()), counts


def _decide(policy, record: TreeBuilder, depth: int, logits: Tensor, sampling: Sampling):
    at = Distribution(logits, sampling.temperature)
    entropy = at.entropy().double().cpu().numpy()  # (n,)
    high = entropy >= sampling.threshold * math.log(logits.shape[-1])
    children = policy.step(depth, at, high)
    record.grow(depth, children, entropy, high)
    return children


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
    slots = np.zeros((inner, max(G - 1, 1)), np.int64)
    for i in range(inner):
        if parent[i] >= 0:
            slots[i] = slots[parent[i]]
        slots[i, depth[i]] = len(prompt) + i
    with tree_attention_on(model):
        pool = Pool(model, len(prompt) + inner)
        _read(result, asked, -1, pool.prefill(prompt), tokens, temperature)
        for start in range(0, inner, chunk):
            part = slice(start, min(start + chunk, inner))
            width = depth[part].max() + 1
            ids, at, rows = (
                torch.from_numpy(x).to(model.device) for x in (token[part], depth[part], slots[part, :width])
            )
            pool.claim(len(ids))
            _read(result, asked, start, pool.forward(ids, at, rows, at + 1), tokens, temperature)
    return result


def _read(result, asked, first, logits, tokens, temperature):
    """Fill in the tokens whose distribution is row (asked - first) of these logits."""
    where = np.nonzero((asked >= first) & (asked < first + len(logits)))
    if len(where[0]):
        rows, ids = (torch.from_numpy(x).to(logits.device) for x in (asked[where] - first, tokens[where]))
        result[where] = -Distribution(logits, temperature).log_prob(rows, ids).double().cpu().numpy()


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

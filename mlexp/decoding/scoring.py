"""Log-probabilities of given samples: a trie of their prefixes goes through the engine.

n samples of G tokens behind a prompt of P.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .attention import TreeView, tree_attention_on
from .filters import restrict
from .kernels import reference
from .pool import Pool
from .settings import Sampling
from .support import check

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Array = NDArray[Any]


@torch.no_grad()
def score(model: "PreTrainedModel", prompt: Tensor, tokens: Array, temperature: float, chunk: int = 128,
          top_k: int = 0, top_p: float = 1.0, lengths: Array | None = None) -> NDArray[np.float64]:  # fmt: skip
    """-log p of every token of every sample under the tempered and filtered model, nats, 0 behind its end: (n, G).

    tokens (n, G); lengths (n,): tokens of each sample that count, None = all. Equal prefixes are one node of a trie;
    its nodes go through the engine `chunk` at a time, by depth, so that at most `chunk` rows of logits exist at once.
    """
    check(model, prompt, Sampling(max_new_tokens=tokens.shape[1]))
    n, G = tokens.shape
    node, parent, depth, token = _trie(tokens)
    source = np.full((n, G), -1)  # node whose logits give each token
    source[:, 1:] = node[:, :-1]
    inner = int((depth < G - 1).sum())  # nodes stand by depth: leaves come last
    result, prompt, rule = np.empty((n, G)), prompt.to(model.device), (temperature, top_k, top_p)
    P, slots = len(prompt), np.zeros((inner, max(G - 1, 1)), np.int64)
    for i in range(inner):
        if parent[i] >= 0:
            slots[i] = slots[parent[i]]
        slots[i, depth[i]] = P + i
    with tree_attention_on(model):
        pool = Pool(model, P + inner)
        _read(result, source, -1, pool.prefill(prompt[None]), tokens, *rule)
        for start in range(0, inner, chunk):
            part = slice(start, min(start + chunk, inner))
            width = depth[part].max() + 1
            ids, at, rows, own = (
                torch.from_numpy(np.ascontiguousarray(x)).to(model.device)
                for x in (token[part], depth[part], slots[part, :width], P + np.arange(inner)[part])
            )
            logits = pool.forward(ids, P + at, own, TreeView(P, rows.int(), at + 1))
            _read(result, source, start, logits, tokens, *rule)
    if lengths is not None:
        result[np.arange(G) >= np.asarray(lengths)[:, None]] = 0
    return result


def _read(
    result: NDArray[np.float64], source: Array, first: int, logits: Tensor, tokens: Array, temperature: float,
    top_k: int, top_p: float,
) -> None:  # fmt: skip
    """Fill in the tokens whose distribution is row (source - first) of these logits."""
    where = np.nonzero((source >= first) & (source < first + len(logits)))
    if len(where[0]):
        rows, ids = (torch.from_numpy(x).to(logits.device) for x in (source[where] - first, tokens[where]))
        x = restrict(reference.tempered(logits, temperature), top_k, top_p)
        result[where] = (reference.entropy(x)[1][rows] - x[rows, ids]).double().cpu().numpy()


def _trie(tokens: Array) -> tuple[Array, Array, Array, Array]:
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

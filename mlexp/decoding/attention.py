"""Attention of the tips of a tree over one flat pool of keys and values, and its place inside transformers.

n tips, S slots of the pool, P prompt slots (the first ones), L most ancestors of a tip, H query heads, K cached heads,
g = H / K, D head width. Every tip sees the whole prompt, densely (one product for all tips), and its own ancestors,
gathered. `tree_attention` is the specification in plain torch; faster ones take its place and its arguments.
"""

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME = "mlexp_tree"


@dataclass(frozen=True)
class TreeView:
    """What the attention of one forward has to know; passed down through the model's keyword arguments."""

    prompt_len: int
    ancestors: Tensor  # (n, L) slots of the pool; a tip is its own last ancestor
    lengths: Tensor | None = None  # (n,) ancestors that count, None = all of them


def tree_attention(q, k_pool, v_pool, prompt_len, ancestors, lengths=None, scale=None) -> Tensor:
    """softmax(q k^T) v of n tips, each over the prompt and its first `lengths` ancestors. Accumulates in float32 at
    least.

    q (n, H, D), k_pool and v_pool (S, K, D) slot-major, ancestors (n, L) integer slots -> (n, H, D).
    """
    n, H, D = q.shape
    P, L, K = prompt_len, ancestors.shape[1], k_pool.shape[1]
    g, kind = H // K, torch.promote_types(q.dtype, torch.float32)
    q = q.to(kind) * (D**-0.5 if scale is None else scale)
    head = torch.arange(K, device=q.device)
    rows = (ancestors.long()[:, None, :] * K + head[:, None]).reshape(-1)  # (n * K * L) rows of the pool
    k_own, v_own = (x.reshape(-1, D).index_select(0, rows).view(n * K, L, D).to(kind) for x in (k_pool, v_pool))
    q_heads = q.view(n, K, g, D).transpose(0, 1).reshape(K, n * g, D)
    prompt = q_heads @ k_pool[:P].to(kind).permute(1, 2, 0)  # (K, n * g, P)
    own = q.view(n * K, g, D) @ k_own.transpose(1, 2)  # (n * K, g, L)
    if lengths is not None:
        unseen = torch.arange(L, device=q.device) >= lengths[:, None]  # (n, L)
        own = own.view(n, K, g, L).masked_fill(unseen[:, None, None], float("-inf"))
    own = own.view(n, K, g, L).transpose(0, 1).reshape(K, n * g, L)
    weight = torch.cat([prompt, own], -1).softmax(-1)  # (K, n * g, P + L)
    out = weight[..., :P] @ v_pool[:P].to(kind).transpose(0, 1)  # (K, n * g, D)
    own = weight[..., P:].view(K, n, g, L).transpose(0, 1).reshape(n * K, g, L) @ v_own
    out = out.view(K, n, g, D).transpose(0, 1) + own.view(n, K, g, D)
    return out.reshape(n, H, D).to(v_pool.dtype)


def _forward(module, query, key, value, attention_mask, scaling=None, dropout=0.0, tree: TreeView | None = None, **_):
    """transformers' attention interface: (B, heads, tokens, D) in, (B, tokens, heads, D) out, no mask is ever built."""
    if tree is not None:
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        return tree_attention(q, k, v, tree.prompt_len, tree.ancestors, tree.lengths, scaling)[None], None
    tokens, grouped = query.shape[2], query.shape[1] != key.shape[1]
    assert tokens in (1, key.shape[2]), f"{tokens} queries over {key.shape[2]} keys: neither a prompt nor one step"
    out = scaled_dot_product_attention(query, key, value, scale=scaling, is_causal=tokens > 1, enable_gqa=grouped)
    return out.transpose(1, 2), None


@contextlib.contextmanager
def tree_attention_on(model):
    """Run any transformers causal LM on the attention above, and leave it as it was.

    Raises ValueError for a model whose attention cannot be exchanged or that has other than full attention layers.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _forward)
    kinds = set(getattr(model.config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        raise ValueError(
            f"{type(model).__name__} has layers of type {sorted(kinds)}; the tree engine needs full_attention"
        )
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise ValueError(f"{type(model).__name__} does not go through transformers' AttentionInterface")
    try:
        yield
    finally:
        model.set_attn_implementation(before)

"""Where the branch kernels meet transformers: attention of the tips of trees over one flat pool of keys and values."""

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from . import kernels

NAME = "mlexp_tree"


@dataclass(frozen=True)
class TreeView:
    """What the attention of one forward has to know; passed down through the model's keyword arguments.

    Tips stand prompt by prompt: `group` of them to each, or, where the host knows how many are live, `sizes`.
    """

    prompt_len: int
    ancestors: Tensor  # (n, L) slots of the pool; a tip is its own last ancestor
    lengths: Tensor | None = None  # (n,) ancestors that count, None = all of them
    group: int | None = None  # None = one prompt
    sizes: list[int] | None = None
    backend: str = "auto"


def _forward(module, query, key, value, attention_mask, scaling=None, dropout=0.0, tree: TreeView | None = None, **_):
    """transformers' attention interface: (B, heads, tokens, D) in, (B, tokens, heads, D) out, no mask is ever built."""
    if tree is not None:
        return _tree_forward(*(x[0].transpose(0, 1) for x in (query, key, value)), tree, scaling)[None], None
    tokens, grouped = query.shape[2], query.shape[1] != key.shape[1]
    assert tokens in (1, key.shape[2]), f"{tokens} queries over {key.shape[2]} keys: neither a prompt nor one step"
    out = scaled_dot_product_attention(query, key, value, scale=scaling, is_causal=tokens > 1, enable_gqa=grouped)
    return out.transpose(1, 2), None


def _tree_forward(q, k_pool, v_pool, tree, scaling):
    if tree.sizes is None:
        return kernels.tree_attention(
            q, k_pool, v_pool, tree.prompt_len, tree.ancestors, tree.lengths, tree.group, scaling, tree.backend
        )
    parts, first = [], 0
    for b, n in enumerate(tree.sizes):  # the pool from prompt b on is a pool with one prompt
        mine, skip = slice(first, first + n), b * tree.prompt_len
        lengths = None if tree.lengths is None else tree.lengths[mine]
        args = q[mine], k_pool[skip:], v_pool[skip:], tree.prompt_len, tree.ancestors[mine] - skip, lengths
        parts.append(kernels.tree_attention(*args, None, scaling, tree.backend))
        first += n
    return torch.cat(parts)


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

"""Where the branch kernels meet transformers: attention of the tips of trees over one flat pool of keys and values."""

import contextlib
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from . import kernels

NAME = "mlexp_tree"


@dataclass(frozen=True)
class TreeView:
    """What the attention of one forward has to know; passed down through the model's keyword arguments.

    Tips stand prompt by prompt, `group` of them to each. Where only some of these tips are forwarded, `live` says which.
    """

    prompt_len: int
    ancestors: Tensor  # (n, L) slots of the pool; a tip is its own last ancestor
    lengths: Tensor | None = None  # (n,) ancestors that count, None = all of them
    group: int | None = None  # None = one prompt
    live: Tensor | None = None  # rows of `ancestors` that the forward's tokens are, None = all
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
    if tree.live is not None:  # the kernel counts tips by prompt: those that are not forwarded get an idle query
        n, some = len(tree.ancestors), q
        q = some.new_zeros(n, *some.shape[1:]).index_copy_(0, tree.live, some)
    out = kernels.tree_attention(
        q, k_pool, v_pool, tree.prompt_len, tree.ancestors, tree.lengths, tree.group, scaling, tree.backend
    )
    return out if tree.live is None else out[tree.live]


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

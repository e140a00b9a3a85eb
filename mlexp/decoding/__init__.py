"""Subject: entropy-adaptive branching. Models, prompts, six decoders, what they cost and how good their samples are.

Importing this package imports no torch: MODELS, DECODER_NAMES, Sampling, identity, read_prompts and the closed forms
are for collecting cells and making keys. What decodes (DECODERS, load, quality) is imported when first asked for.
"""

from importlib import import_module

from .costs import Cost, Shape, cost, kv_bytes_per_token
from .models import MODELS, Model
from .prompts import MadePrompt, Prompt, make_prompts, prompt_ids, read_prompts
from .recipes import Nano, StandIn
from .settings import DECODER_NAMES, TREE_DECODERS, Sampling
from .weights import checkpoint_identity, identity

_HEAVY = {
    "DECODERS": "decoders", "Samples": "decoders", "LanguageModel": "loading", "load": "loading",
    "load_checkpoint": "loading", "surprisal": "quality", "distinct_n": "quality", "self_bleu": "quality",
    "unique_sequences": "quality", "contains_answer": "quality", "answer_hits": "quality",
    "effective_samples": "quality", "Effective": "quality", "grow": "engine", "score": "scoring", "sample": "generate",
    "branching": "generate",
}  # fmt: skip

__all__ = [
    "DECODER_NAMES", "MODELS", "TREE_DECODERS", "Cost", "MadePrompt", "Model", "Nano", "Prompt", "Sampling", "Shape",
    "StandIn", "checkpoint_identity", "cost", "identity", "kv_bytes_per_token", "make_prompts", "prompt_ids",
    "read_prompts", *_HEAVY,
]  # fmt: skip


def __getattr__(name: str):
    if name in _HEAVY:
        return getattr(import_module(f".{_HEAVY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

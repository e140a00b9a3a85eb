"""Models ready to decode: weights, tokenizer, and what both are, so that a stand-in never passes for the real thing."""

from dataclasses import dataclass
from typing import Any

import torch

from mlexp.store import Progress, say

from .models import model_row
from .nano import trained
from .recipes import NANO, STANDIN, Nano, StandIn
from .standin import standin
from .text import bpe_tokenizer, load_corpus
from .weights import find_weights, identity, own_tokenizer

BPE_VOCAB = 2048  # of the tokenizer trained here, for every model: gpt2_nano's own vocabulary


@dataclass
class LanguageModel:
    """A causal LM in eval mode and its tokenizer. `weights`: pretrained, random (it alone has a `gain`) or trained."""

    model: Any
    tokenizer: Any
    name: str
    n_params: int
    weights: str
    weights_hash: str
    gain: float | None = None
    corpus: str | None = None
    corpus_hash: str | None = None


def load(
    name: str,
    weights="auto",
    device="cpu",
    dtype: torch.dtype = torch.float32,
    corpus=None,
    progress: Progress = None,
    nano: Nano = NANO,
    recipe: StandIn = STANDIN,
) -> LanguageModel:
    """Load a model of MODELS. `weights`: auto, random, or a folder; `corpus`: None or a UTF-8 text file (see text.py).

    Raises ValueError for an unknown name, FileNotFoundError or ValueError for a folder without the model's weights.
    """
    row, source = model_row(name), find_weights(name, weights)
    who = identity(name, weights, corpus, nano, recipe)
    gain = None
    if source.kind == "pretrained":
        model, tokenizer = _pretrained(source.folder, dtype, device)
    else:
        text = load_corpus(corpus)
        if source.kind == "trained":
            model = trained(row, nano, text, dtype, device, progress)
        else:
            say(progress, f"{name}: no pretrained weights used; random stand-in of the same architecture")
            model, gain = standin(name, row, recipe, dtype, device, progress)
        tokenizer = _tokenizer(row, text, progress)
    n_params = sum(p.numel() for p in model.parameters())
    return LanguageModel(model.eval().requires_grad_(False), tokenizer, name, n_params, gain=gain, **who)


def _pretrained(folder, dtype, device):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    safe = any(folder.glob("*.safetensors"))
    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=dtype, use_safetensors=safe, attn_implementation="sdpa", weights_only=True
    )
    return model.to(device), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _tokenizer(row, corpus, progress):
    from transformers import AutoTokenizer

    folder = own_tokenizer(row)
    if folder:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return bpe_tokenizer(corpus, min(row.vocab, BPE_VOCAB), progress)

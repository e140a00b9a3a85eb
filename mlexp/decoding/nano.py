"""gpt2_nano: a small GPT-2 trained at first use on natural text, and cached by recipe, corpus and code.

T tokens of a part of the corpus, B rows of a batch, W window.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from mlexp.store import Progress, announce, cache_dir, cached
from mlexp.text import ngrams
from mlexp.training import Recipe, fit

from .initial import build
from .models import Model
from .recipes import Nano, nano_hash
from .text import Corpus, bpe_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

INIT_STD = 0.02


def trained(
    row: Model, recipe: Nano, corpus: Corpus, dtype: torch.dtype, device: torch.device | str, progress: Progress = None
) -> nn.Module:
    """The trained model: from the cache, or trained now (on the CPU, with progress) and stored as safetensors."""
    from safetensors.torch import load as parse

    path = cache_dir() / "nano" / f"{nano_hash(row, recipe, corpus.hash)}.safetensors"

    def read(content: bytes) -> nn.Module:
        try:
            state = parse(content)
        except Exception as error:  # safetensors raises its own bare class
            raise ValueError(str(error)) from None
        model: nn.Module = build(row, recipe.seed, INIT_STD)
        own = dict(model.named_parameters())  # not the head's, which is the embedding's
        if _layout(state) != _layout(own):
            raise ValueError(f"expected the {len(own)} parameters of the model, got {len(state)} others")
        with torch.no_grad():
            for name, p in own.items():
                p.copy_(state[name])
        return model

    model: nn.Module = cached(path, lambda: _train(row, recipe, corpus, progress), read, progress)
    return model.to(device, dtype)


def _layout(state: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (x.shape, x.dtype) for name, x in state.items()}


def _train(row: Model, recipe: Nano, corpus: Corpus, progress: Progress) -> bytes:
    from safetensors.torch import save

    size = f"{row.n_params / 1e6:.1f}M parameters, {recipe.steps} steps"
    announce(progress, f"training gpt2_nano ({size}) on {corpus.name}")
    tokenizer = bpe_tokenizer(corpus, row.vocab, progress)
    train, held_out = (encode(tokenizer, text) for text in (corpus.train, corpus.held_out))
    model: nn.Module = build(row, recipe.seed, INIT_STD).train()
    rng = np.random.default_rng(recipe.seed)
    starts = rng.integers(0, len(train) - recipe.window, (recipe.steps, recipe.batch))

    def batch(step: int) -> tuple[Tensor]:
        return (torch.from_numpy(train[starts[step][:, None] + np.arange(recipe.window + 1)]),)

    done = fit(model, next_token_loss, batch, Recipe(recipe.steps, recipe.lr, recipe.warmup, recipe.weight_decay),
               evaluate=lambda: held_out_loss(model, held_out, recipe.window), evaluate_every=recipe.evaluate_every,
               progress=progress)  # fmt: skip
    best = done.held_out[done.best_step]
    floor = ngrams.loss(train, held_out, row.vocab, 2)
    announce(progress, f"gpt2_nano: held-out loss {best:.3f} nats a token (bigram {floor:.3f})")
    state = {name: p.detach().contiguous() for name, p in model.named_parameters()}
    content: bytes = save(state, metadata={"held_out_nats": json.dumps(best)})
    return content


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> np.ndarray:
    """Token ids of a text of any length, no special tokens: (T,) int64."""
    return np.array(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)


def next_token_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Mean nats a token of windows (B, W + 1)."""
    logits = model(ids[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: nn.Module, held_out: np.ndarray, window: int, rows: int = 8) -> float:
    """Mean nats a token over consecutive windows of a held-out text."""
    window = min(window, len(held_out) - 1)
    count = (len(held_out) - 1) // window
    ids = torch.from_numpy(held_out[np.arange(count)[:, None] * window + np.arange(window + 1)])
    model.eval()
    total = sum(next_token_loss(model, part).item() * len(part) for part in torch.split(ids, rows))
    model.train()
    return total / count

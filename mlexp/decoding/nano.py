"""gpt2_nano: a small GPT-2 that is really trained, at first use, on natural text; kept by recipe, corpus and code.

T tokens of a part of the corpus, B rows of a batch, W window.
"""

import json

import numpy as np
import torch

from mlexp.store import Progress, cache_dir, kept, say
from mlexp.text import ngrams
from mlexp.training import Recipe, fit

from .initial import build
from .models import Model
from .recipes import Nano, nano_hash
from .text import Corpus, bpe_tokenizer

INIT_STD = 0.02


def trained(row: Model, recipe: Nano, corpus: Corpus, dtype, device, progress: Progress = None):
    """The trained model: from the cache, or trained now (on the CPU, with progress) and stored as safetensors."""
    from safetensors.torch import load as parse

    path = cache_dir() / "nano" / f"{nano_hash(row, recipe, corpus.hash)}.safetensors"

    def read(content: bytes):
        try:
            state = parse(content)
        except Exception as error:  # safetensors raises its own bare class
            raise ValueError(str(error)) from None
        model = build(row, recipe.seed, INIT_STD)
        own = dict(model.named_parameters())  # the head, tied to the embedding, is none of its own
        if _layout(state) != _layout(own):
            raise ValueError(f"expected the {len(own)} parameters of the model, got {len(state)} others")
        with torch.no_grad():
            for name, p in own.items():
                p.copy_(state[name])
        return model

    return kept(path, lambda: _train(row, recipe, corpus, progress), read, progress).to(device, dtype)


def _layout(state: dict[str, torch.Tensor]):
    return {name: (x.shape, x.dtype) for name, x in state.items()}


def _train(row: Model, recipe: Nano, corpus: Corpus, progress: Progress) -> bytes:
    from safetensors.torch import save

    say(progress, f"training gpt2_nano ({row.n_params / 1e6:.1f}M parameters, {recipe.steps} steps) on {corpus.name}")
    tokenizer = bpe_tokenizer(corpus, row.vocab, progress)
    train, held = (encode(tokenizer, text) for text in (corpus.train, corpus.held_out))
    model, rng = build(row, recipe.seed, INIT_STD).train(), np.random.default_rng(recipe.seed)
    starts = rng.integers(0, len(train) - recipe.window, (recipe.steps, recipe.batch))

    def batch(step):
        return (torch.from_numpy(train[starts[step][:, None] + np.arange(recipe.window + 1)]),)

    done = fit(model, next_token_loss, batch, Recipe(recipe.steps, recipe.lr, recipe.warmup, recipe.weight_decay),
               evaluate=lambda: held_out_loss(model, held, recipe.window), evaluate_every=recipe.evaluate_every,
               progress=progress)  # fmt: skip
    best = done.held_out[done.best_step]
    floor = ngrams.loss(train, held, row.vocab, 2)
    say(progress, f"gpt2_nano: held-out loss {best:.3f} nats a token (bigram {floor:.3f})")
    state = {name: p.detach().contiguous() for name, p in model.named_parameters()}
    return save(state, metadata={"held_out_nats": json.dumps(best)})


def encode(tokenizer, text: str) -> np.ndarray:
    """Token ids of a text of any length, no special tokens: (T,) int64."""
    return np.array(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)


def next_token_loss(model, ids):  # (B, W + 1) -> mean nats a token
    logits = model(ids[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model, held: np.ndarray, window: int, rows: int = 8) -> float:
    """Mean nats a token over consecutive windows of a held-out text."""
    window = min(window, len(held) - 1)
    count = (len(held) - 1) // window
    ids = torch.from_numpy(held[np.arange(count)[:, None] * window + np.arange(window + 1)])
    model.eval()
    total = sum(next_token_loss(model, part).item() * len(part) for part in ids.split(rows))
    model.train()
    return total / count

"""The six decoders: (lm, prompt, sampling, seed) -> Samples of fixed length over the full vocabulary, no early stop.

N samples, P prompt tokens, G new tokens. The arms without a tree have the same sampler and caches allocated once, so
that what separates the arms is what they share, not how well they are written.
"""

import contextlib
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .attention import tree_attention_on
from .caches import RowsLayer, new_cache, rewind
from .engine import check_room, counting, grow
from .rng import path_seeds, uniform
from .sampler import Distribution
from .settings import DECODER_NAMES, Sampling
from .tree import Tree


@dataclass(frozen=True)
class Samples:
    """Samples and what they cost, counted by a hook on the model."""

    tokens: Tensor  # (n, G) int64, CPU
    model_forwards: int
    token_forwards: int
    logit_rows: int
    live_paths: tuple[int, ...]  # rows of each of the G - 1 steps after the prompt
    kv_slots: int  # cache slots in use at the end, over all rows
    tree: Tree | None = None


@torch.no_grad()
def sequential(lm, prompt: Tensor, sampling: Sampling, seed: int) -> Samples:
    """N generations at batch 1, one after the other, the prompt encoded anew for each: the seed's baseline."""
    N, G = sampling.samples, sampling.max_new_tokens
    with _own(lm, prompt, sampling) as (prompt, cache, counts):
        draws = uniform(path_seeds(seed, 1, N)[:, None], np.arange(G)[None])
        rows = []
        for u in draws:
            rewind(cache)
            rows.append(_rows(lm.model, cache, _prefill(lm.model, cache, prompt), u[None], sampling, len(prompt)))
    return _samples(torch.cat(rows), counts, N, len(prompt) + G - 1)


@torch.no_grad()
def shared_prefill(lm, prompt: Tensor, sampling: Sampling, seed: int) -> Samples:
    """The prompt once, its cache copied to N rows, N rows decoded together."""
    N, G = sampling.samples, sampling.max_new_tokens
    with _own(lm, prompt, sampling) as (prompt, cache, counts):
        logits = _prefill(lm.model, cache, prompt)
        for layer in cache.layers:
            layer.spread(N)
        draws = uniform(path_seeds(seed, 1, N)[:, None], np.arange(G)[None])
        tokens = _rows(lm.model, cache, logits.expand(N, -1), draws, sampling, len(prompt))
    return _samples(tokens, counts, N, N * (len(prompt) + G - 1))


def hf_batched(lm, prompt: Tensor, sampling: Sampling, seed: int) -> Samples:
    """`model.generate(num_return_sequences=N)`, as a transformers user has it, over the full vocabulary."""
    from transformers import GenerationConfig

    N, G, model = sampling.samples, sampling.max_new_tokens, lm.model
    check_room(model, prompt, G)
    prompt = prompt.to(model.device)[None]
    ask = GenerationConfig(do_sample=True, num_return_sequences=N, max_new_tokens=G, min_new_tokens=G, top_k=0,
                           top_p=1.0, temperature=sampling.temperature, eos_token_id=None, pad_token_id=0)  # fmt: skip
    with _seeded(model, seed), _defaults(model, ask), counting(model) as counts:
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=ask)
    return _samples(out[:, prompt.shape[1] :].cpu(), counts, N, N * (prompt.shape[1] + G - 1))


def _tree(decoder: str):
    def decode(lm, prompt: Tensor, sampling: Sampling, seed: int) -> Samples:
        tree, counts = grow(lm.model, prompt, sampling, decoder, seed)
        live = tuple(tree.live_paths()[:-1])
        tokens = torch.from_numpy(tree.tokens())
        return Samples(tokens, **vars(counts), live_paths=live, kv_slots=len(prompt) + sum(live), tree=tree)

    decode.__name__ = decode.__qualname__ = decoder
    decode.__doc__ = f"The {decoder} policy on the tree engine."
    return decode


DECODERS = {
    "sequential": sequential,
    "hf_batched": hf_batched,
    "shared_prefill": shared_prefill,
    "dedup": _tree("dedup"),
    "eab_paper": _tree("eab_paper"),
    "eab_particles": _tree("eab_particles"),
}
assert tuple(DECODERS) == DECODER_NAMES


@contextlib.contextmanager
def _own(lm, prompt, sampling):
    """The set-up of our own arms: (prompt on the device, an empty cache that is long enough, counts)."""
    check_room(lm.model, prompt, sampling.max_new_tokens)
    cache = new_cache(RowsLayer, lm.model.config, len(prompt) + sampling.max_new_tokens - 1)
    with tree_attention_on(lm.model), counting(lm.model) as counts:
        yield prompt.to(lm.model.device), cache, counts


def _prefill(model, cache, prompt):  # (P,) -> (1, V)
    return model(prompt[None], past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0]


def _rows(model, cache, logits, draws, sampling, start) -> Tensor:
    """Decode the rows behind logits (n, V) with uniforms (n, G): tokens (n, G) on the CPU."""
    n, G = draws.shape
    lines, tokens = np.arange(n), []
    for t in range(G):
        tokens.append(Distribution(logits, sampling.temperature).draw(lines, draws[:, t]))
        if t < G - 1:
            ids = torch.from_numpy(tokens[-1]).to(model.device)[:, None]
            position = torch.full((1, 1), start + t, device=model.device)
            logits = model(ids, past_key_values=cache, use_cache=True, position_ids=position).logits[:, 0]
    return torch.from_numpy(np.stack(tokens, 1))


def _samples(tokens, counts, rows, slots) -> Samples:
    return Samples(tokens, **vars(counts), live_paths=(rows,) * (tokens.shape[1] - 1), kv_slots=slots)


@contextlib.contextmanager
def _seeded(model, seed):
    """Seed torch's global generators for `generate`, which knows no other, and leave them as they were."""
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
        yield


@contextlib.contextmanager
def _defaults(model, ask):
    """generate() fills what a request leaves None (here: no EOS) from the model's defaults: they are set aside."""
    before, model.generation_config = model.generation_config, ask
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        model.generation_config = before

"""The six decoders: (lm, prompt, sampling, seed) -> Samples of fixed length over the full vocabulary, no early stop.

N samples, P prompt tokens, G new tokens. The arms without a tree have the same sampler and caches allocated once, so
that what separates the arms is what they share, not how well they are written.
"""

import contextlib
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import tree_attention_on
from .caches import RowsLayer, new_cache, rewind
from .engine import Counts, alone, check_room, counting, decode, grow
from .kernels import reference
from .policies import POLICIES
from .rng import path_seeds
from .settings import DECODER_NAMES, Sampling
from .tree import Tree


@dataclass(frozen=True)
class Samples:
    """Samples and what they cost, counted by a hook on the model."""

    tokens: Tensor  # (n, G) int64, CPU
    model_forwards: int
    token_forwards: int
    logit_rows: int
    live_paths: tuple[int, ...]  # distinct paths of each of the G - 1 steps after the prompt
    rows: tuple[int, ...]  # rows forwarded in each: on a CUDA device trees have idle ones too
    kv_slots: int  # cache slots in use at the end, over all rows
    tree: Tree | None = None


@torch.no_grad()
def sequential(lm, prompt: Tensor, sampling: Sampling, seed: int, held: dict | None = None) -> Samples:
    """N generations at batch 1, one after the other, the prompt encoded anew for each: the seed's baseline."""
    N, P, G, model = sampling.samples, len(prompt), sampling.max_new_tokens, lm.model
    check_room(model, prompt, G)
    seeds = path_seeds(seed, 1, N)[0]
    if model.device.type == "cuda":
        one, counts, rows = alone(sampling), Counts(), []
        held = {} if held is None else held  # N runs of one shape: worth a capture whoever asks
        for i in range(N):
            tree, seen = decode(model, prompt[None], seeds[i : i + 1, None], one, "dedup", held=held)
            rows.append(torch.from_numpy(tree.tokens()))
            counts.add(seen)
        return _samples(torch.cat(rows), counts, N, P + G - 1)
    with _own(lm, prompt, sampling) as (prompt, cache, counts):
        rows = []
        for own in seeds.split(1):
            rewind(cache)
            rows.append(_rows(model, cache, _prefill(model, cache, prompt), own, sampling, P))
    return _samples(torch.cat(rows), counts, N, P + G - 1)


@torch.no_grad()
def shared_prefill(lm, prompt: Tensor, sampling: Sampling, seed: int, held: dict | None = None) -> Samples:
    """The prompt once, its cache copied to N rows, N rows decoded together."""
    N, P, G, model = sampling.samples, len(prompt), sampling.max_new_tokens, lm.model
    check_room(model, prompt, G)
    seeds = path_seeds(seed, 1, N)[0]
    if model.device.type == "cuda":
        tree, counts = decode(model, prompt[None], seeds[:, None], alone(sampling), "dedup", N, held)
        return _samples(torch.from_numpy(tree.tokens()), counts, N, N * (P + G - 1))
    with _own(lm, prompt, sampling) as (prompt, cache, counts):
        logits = _prefill(model, cache, prompt)
        for layer in cache.layers:
            layer.spread(N)
        tokens = _rows(model, cache, logits.expand(N, -1), seeds, sampling, P)
    return _samples(tokens, counts, N, N * (P + G - 1))


def hf_batched(lm, prompt: Tensor, sampling: Sampling, seed: int, held: dict | None = None) -> Samples:
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
    def decode_tree(lm, prompt: Tensor, sampling: Sampling, seed: int, held: dict | None = None) -> Samples:
        tree, counts = grow(lm.model, prompt, sampling, decoder, seed, held=held)
        live = tuple(tree.live_paths()[:-1])
        idle = lm.model.device.type == "cuda"
        rows = (POLICIES[decoder].width(sampling),) * len(live) if idle else live
        tokens = torch.from_numpy(tree.tokens())
        return Samples(tokens, **vars(counts), live_paths=live, rows=rows, kv_slots=len(prompt) + sum(rows), tree=tree)

    decode_tree.__name__ = decode_tree.__qualname__ = decoder
    decode_tree.__doc__ = f"The {decoder} policy on the tree engine."
    return decode_tree


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
    """The set-up of our own arms on a CPU: (prompt, an empty cache that is long enough, counts)."""
    cache = new_cache(RowsLayer, lm.model.config, len(prompt) + sampling.max_new_tokens - 1)
    with tree_attention_on(lm.model), counting(lm.model) as counts:
        yield prompt.to(lm.model.device), cache, counts


def _prefill(model, cache, prompt):  # (P,) -> (1, V)
    return model(prompt[None], past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0]


def _rows(model, cache, logits, seeds, sampling, start) -> Tensor:
    """Decode the rows behind logits (n, V) with path seeds (n,): tokens (n, G)."""
    tokens, line = [], torch.arange(len(seeds))
    for t in range(sampling.max_new_tokens):
        tokens.append(reference.draw(reference.tempered(logits, sampling.temperature), seeds, t, 1, line))
        if t < sampling.max_new_tokens - 1:
            position = torch.full((1, 1), start + t, device=model.device)
            logits = model(tokens[-1], past_key_values=cache, use_cache=True, position_ids=position).logits[:, 0]
    return torch.cat(tokens, 1)


def _samples(tokens, counts, rows, slots) -> Samples:
    steps = (rows,) * (tokens.shape[1] - 1)
    return Samples(tokens, **vars(counts), live_paths=steps, rows=steps, kv_slots=slots)


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

"""The six decoders: (lm, prompt, sampling, seed) -> Samples of fixed length over the full vocabulary, no early stop.

N samples, P prompt tokens, G new tokens. `prompt` is (P,), or (B, P): several prompts decoded together. The arms
without a tree have the same sampler and caches allocated once, so that what separates the arms is what they share,
not how well they are written; on a CUDA device all but `hf_batched` are the tree engine's captured graphs. Those a
caller can keep from call to call in a dict, `held`.
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

    tokens: Tensor  # (n, G) int64, CPU, prompt by prompt
    prompt: Tensor  # (n,) index of each sample's prompt
    model_forwards: int
    token_forwards: int
    logit_rows: int
    live_paths: tuple[int, ...]  # distinct paths of each of the G - 1 steps after the prompt, over all prompts
    rows: tuple[int, ...]  # rows forwarded in each: on a CUDA device trees have idle ones too
    kv_slots: int  # cache slots in use at the end, over all rows
    tree: Tree | None = None


@torch.no_grad()
def sequential(lm, prompt: Tensor, sampling: Sampling, seed: int, held: dict | None = None) -> Samples:
    """N generations at batch 1, one after the other, the prompt encoded anew for each: the seed's baseline."""
    prompts, seeds = _asked(lm, prompt, sampling, seed)
    rows, P, G = [], prompts.shape[1], sampling.max_new_tokens
    if lm.model.device.type == "cuda":
        counts = Counts()
        held = {} if held is None else held  # many runs of one shape: worth a capture whoever asks
        for ids, own in _each(prompts, seeds):
            tree, seen = decode(lm.model, ids, own[:, None], alone(sampling), "dedup", held=held)
            rows.append(torch.from_numpy(tree.tokens()))
            counts.add(seen)
    else:
        with _own(lm, P + G - 1) as (cache, counts):
            for ids, own in _each(prompts, seeds):
                rewind(cache)
                rows.append(_rows(lm.model, cache, _prefill(lm.model, cache, ids), own, sampling, P))
    return _samples(torch.cat(rows), counts, seeds, P + G - 1)


def _each(prompts, seeds):
    """A prompt (1, P) and a seed (1,) for every sample."""
    return ((ids[None], own) for ids, row in zip(prompts, seeds, strict=True) for own in row.split(1))


@torch.no_grad()
def shared_prefill(lm, prompt: Tensor, sampling: Sampling, seed: int, held: dict | None = None) -> Samples:
    """The prompt once, its cache copied to N rows, N rows decoded together."""
    prompts, seeds = _asked(lm, prompt, sampling, seed)
    N, P, G = sampling.samples, prompts.shape[1], sampling.max_new_tokens
    if lm.model.device.type == "cuda":
        tree, counts = decode(lm.model, prompts, seeds.view(-1, 1), alone(sampling), "dedup", N, held)
        tokens = torch.from_numpy(tree.tokens())
    else:
        with _own(lm, P + G - 1) as (cache, counts):
            logits = _prefill(lm.model, cache, prompts).repeat_interleave(N, 0)
            for layer in cache.layers:
                layer.spread(N)
            tokens = _rows(lm.model, cache, logits, seeds.view(-1), sampling, P)
    return _samples(tokens, counts, seeds, seeds.numel() * (P + G - 1))


def hf_batched(lm, prompt: Tensor, sampling: Sampling, seed: int, held: dict | None = None) -> Samples:
    """`model.generate(num_return_sequences=N)`, as a transformers user has it, over the full vocabulary."""
    from transformers import GenerationConfig

    prompts, seeds = _asked(lm, prompt, sampling, seed)
    (B, P), N, G, model = prompts.shape, sampling.samples, sampling.max_new_tokens, lm.model
    ask = GenerationConfig(do_sample=True, num_return_sequences=N, max_new_tokens=G, min_new_tokens=G, top_k=0,
                           top_p=1.0, temperature=sampling.temperature, eos_token_id=None, pad_token_id=0)  # fmt: skip
    with _seeded(model, seed), _defaults(model, ask), counting(model) as counts:
        out = model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=ask)
    return _samples(out[:, P:].cpu(), counts, seeds, B * N * (P + G - 1))


def _tree(decoder: str):
    def decode_tree(lm, prompt: Tensor, sampling: Sampling, seed: int, held: dict | None = None) -> Samples:
        tree, counts = grow(lm.model, prompt, sampling, decoder, seed, held=held)
        live, B = tuple(tree.live_paths()[:-1]), prompt[..., 0].numel()
        idle = lm.model.device.type == "cuda"
        rows = (B * POLICIES[decoder].width(sampling),) * len(live) if idle else live
        return Samples(torch.from_numpy(tree.tokens()), torch.from_numpy(tree.leaf_tree), **vars(counts),
                       live_paths=live, rows=rows, kv_slots=prompt.numel() + sum(rows), tree=tree)  # fmt: skip

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


def _asked(lm, prompt, sampling, seed):
    """Prompts (B, P) on the model's device, and a seed for every sample (B, N)."""
    check_room(lm.model, prompt, sampling.max_new_tokens)
    prompts = torch.atleast_2d(prompt).to(lm.model.device)
    return prompts, path_seeds(seed, len(prompts), sampling.samples)


@contextlib.contextmanager
def _own(lm, slots):
    """The set-up of our own arms on a CPU: (an empty cache of so many slots a row, counts)."""
    with tree_attention_on(lm.model), counting(lm.model) as counts:
        yield new_cache(RowsLayer, lm.model.config, slots), counts


def _prefill(model, cache, prompts):  # (B, P) -> (B, V)
    return model(prompts, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, 0]


def _rows(model, cache, logits, seeds, sampling, start) -> Tensor:
    """Decode the rows behind logits (n, V) with path seeds (n,): tokens (n, G)."""
    tokens, line = [], torch.arange(len(seeds))
    for t in range(sampling.max_new_tokens):
        tokens.append(reference.draw(reference.tempered(logits, sampling.temperature), seeds, t, 1, line))
        if t < sampling.max_new_tokens - 1:
            position = torch.full((1, 1), start + t, device=model.device)
            logits = model(tokens[-1], past_key_values=cache, use_cache=True, position_ids=position).logits[:, 0]
    return torch.cat(tokens, 1)


def _samples(tokens, counts, seeds, slots) -> Samples:
    (B, N), n = seeds.shape, len(tokens)
    steps, prompt = (n,) * (tokens.shape[1] - 1), torch.arange(B).repeat_interleave(N)
    return Samples(tokens, prompt, **vars(counts), live_paths=steps, rows=steps, kv_slots=slots)


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

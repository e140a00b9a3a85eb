"""The six decoders: (lm, prompt, sampling, seed) -> Samples, of G tokens or up to a stop token where there are such.

N samples, P prompt tokens, G new tokens. `prompt` is (P,), or (B, P): several prompts decoded together. On a CPU no
arm but `hf_batched`, which is transformers' own, forwards a text that has ended. The arms
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
from .engine import alone, decode, grow
from .filters import restrict
from .kernels import reference
from .policies import POLICIES
from .pool import Counts, counting, last_logits
from .rng import path_seeds
from .settings import DECODER_NAMES, Sampling
from .support import check, check_request
from .tree import Tree


@dataclass(frozen=True)
class Samples:
    """Samples and what they cost, counted by a hook on the model."""

    tokens: Tensor  # (n, G) int64, CPU, prompt by prompt; the first stop token behind a text's end
    lengths: Tensor  # (n,) tokens of each text, its stop token included
    prompt: Tensor  # (n,) index of each sample's prompt
    model_forwards: int
    token_forwards: int
    logit_rows: int
    live_paths: tuple[int, ...]  # paths that go on in each of the G - 1 steps after the prompt, over all prompts
    rows: tuple[int, ...]  # rows forwarded in each: idle and ended ones too where shapes are fixed
    kv_slots: int  # cache slots in use at the end, over all rows
    tree: Tree | None = None


@torch.no_grad()
def sequential(lm, prompt: Tensor, sampling: Sampling, seed: int, held: dict | None = None) -> Samples:
    """N generations at batch 1, one after the other, the prompt encoded anew for each: the original's baseline."""
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
                rows.append(_rows(lm.model, cache, last_logits(lm.model, ids, cache), own, sampling, P))
    return _samples(lm, torch.cat(rows), counts, seeds, sampling, P, apart=True)


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
            logits = last_logits(lm.model, prompts, cache).repeat_interleave(N, 0)
            for layer in cache.layers:
                layer.spread(N)
            tokens = _rows(lm.model, cache, logits, seeds.view(-1), sampling, P)
    return _samples(lm, tokens, counts, seeds, sampling, P)


def hf_batched(lm, prompt: Tensor, sampling: Sampling, seed: int, held: dict | None = None) -> Samples:
    """`model.generate(num_return_sequences=N)`, as a transformers user has it."""
    from transformers import GenerationConfig

    prompts, seeds = _asked(lm, prompt, sampling, seed, own=False)
    P, N, G, model = prompts.shape[1], sampling.samples, sampling.max_new_tokens, lm.model
    stop = list(sampling.stop_tokens) or None
    ask = GenerationConfig(do_sample=True, num_return_sequences=N, max_new_tokens=G,
                           min_new_tokens=None if stop else G, top_k=sampling.top_k, top_p=sampling.top_p,
                           temperature=sampling.temperature, eos_token_id=stop,
                           pad_token_id=stop[0] if stop else 0)  # fmt: skip
    with _seeded(model, seed), _defaults(model, ask), counting(model) as counts:
        out = model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=ask)[:, P:]
    tokens = torch.full((len(out), G), _end(sampling))
    tokens[:, : out.shape[1]] = out
    return _samples(lm, tokens, counts, seeds, sampling, P, rows=(len(out),) * (out.shape[1] - 1))


def _tree(decoder: str):
    def decode_tree(lm, prompt: Tensor, sampling: Sampling, seed: int, held: dict | None = None) -> Samples:
        tree, counts = grow(lm.model, prompt, sampling, decoder, seed, held=held)
        live, B = tuple(tree.live_paths()[:-1]), prompt[..., 0].numel()
        idle = lm.model.device.type == "cuda"
        rows = (B * POLICIES[decoder].width(sampling),) * len(live) if idle else live
        tokens, lengths, owner = (torch.from_numpy(x) for x in (tree.tokens(), tree.lengths(), tree.leaf_tree))
        return Samples(tokens, lengths, owner, **vars(counts), live_paths=live, rows=rows,
                       kv_slots=prompt.numel() + sum(rows), tree=tree)  # fmt: skip

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


def _asked(lm, prompt, sampling, seed, own=True):
    """Prompts (B, P) on the model's device, and a seed for every sample (B, N). own: the engine decodes them."""
    if own:
        check(lm.model, prompt, sampling, "tree" if lm.model.device.type == "cuda" else "rows")
    else:
        check_request(lm.model, prompt, sampling)
    prompts = torch.atleast_2d(prompt).to(lm.model.device)
    return prompts, path_seeds(seed, len(prompts), sampling.samples)


@contextlib.contextmanager
def _own(lm, slots):
    """The set-up of our own arms on a CPU: (an empty cache of so many slots a row, counts)."""
    with tree_attention_on(lm.model), counting(lm.model) as counts:
        yield new_cache(RowsLayer, lm.model.config, slots), counts


def _rows(model, cache, logits, seeds, sampling, start) -> Tensor:
    """Decode the rows behind logits (n, V) with path seeds (n,): tokens (n, G). Ended rows leave the batch."""
    n, G, stop = len(seeds), sampling.max_new_tokens, torch.tensor(sampling.stop_tokens, dtype=torch.int64)
    tokens, sample = torch.full((n, G), _end(sampling)), torch.arange(n)
    for t in range(G):
        x = restrict(reference.tempered(logits, sampling.temperature), sampling.top_k, sampling.top_p)
        drawn = reference.draw(x, seeds[sample], t, 1, torch.arange(len(sample)))
        tokens[sample, t] = drawn[:, 0]
        goes_on = ~torch.isin(drawn[:, 0], stop)
        if t == G - 1 or not goes_on.any():
            break
        if not goes_on.all():
            sample, drawn = sample[goes_on], drawn[goes_on]
            for layer in cache.layers:
                layer.keep(goes_on)
        position = torch.full((1, 1), start + t, device=model.device)
        logits = model(drawn, past_key_values=cache, use_cache=True, position_ids=position).logits[:, -1]
    return tokens


def _end(sampling: Sampling) -> int:
    """The token that stands behind the end of a text."""
    return sampling.stop_tokens[0] if sampling.stop_tokens else -1


def _samples(lm, tokens, counts, seeds, sampling, P, rows=None, apart=False) -> Samples:
    """The samples of an arm without a tree. rows: forwarded in each step, None = those that go on (CPU) or all (CUDA);
    apart: each sample had the cache to itself."""
    (B, N), (n, G) = seeds.shape, tokens.shape
    ends = torch.isin(tokens, torch.tensor(sampling.stop_tokens, dtype=torch.int64))
    lengths = torch.where(ends.any(1), ends.int().argmax(1) + 1, G)
    live = tuple(int((lengths > t).sum()) for t in range(1, G))
    if rows is None:
        rows = (n,) * (G - 1) if lm.model.device.type == "cuda" else live
    steps = sum(r > 0 for r in rows)
    slots = P + steps if apart else n * P + sum(rows)
    return Samples(tokens, lengths, torch.arange(B).repeat_interleave(N), **vars(counts), live_paths=live,
                   rows=rows + (0,) * (G - 1 - len(rows)), kv_slots=slots)  # fmt: skip


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

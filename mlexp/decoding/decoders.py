"""The functions of the decoders: (lm, prompt, sampling, seed) -> Samples of G tokens each, or up to a stop token.

N samples, P prompt tokens, G new tokens. `prompt` is (P,), or (B, P): several prompts decoded together. On a CPU no
arm but `hf_batched`, which is transformers' own, forwards a text that has ended. The arms without a tree have the same
sampler and caches allocated once, so that the arms differ in what they share, not in how well they are written. On a
CUDA device all arms but `hf_batched` and `ctranslate2` are the tree engine's captured graphs; a caller that passes the
same dict as `graphs` again reuses them.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from . import ctranslate
from .attention import tree_attention_on
from .caches import RowsCache
from .engine import GraphCache, alone, decode, grow
from .filters import restrict
from .kernels import reference
from .policies import POLICIES
from .pool import Counts, counting, last_logits
from .rng import path_seeds
from .settings import DECODERS, Sampling
from .support import check, check_request
from .tree import Tree

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

    from .loading import LanguageModel


@dataclass(frozen=True)
class Samples:
    """Samples and what they cost, counted by a hook on the model; of `ctranslate2`, which has none, by formula."""

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


class Decode(Protocol):
    """A decoder's function."""

    def __call__(
        self, lm: "LanguageModel", prompt: Tensor, sampling: Sampling, seed: int, graphs: GraphCache | None = None
    ) -> Samples: ...


@torch.no_grad()
def sequential(
    lm: "LanguageModel", prompt: Tensor, sampling: Sampling, seed: int, graphs: GraphCache | None = None
) -> Samples:
    """N generations at batch 1, one after the other, the prompt encoded anew for each: the original's baseline."""
    prompts, seeds = _inputs(lm, prompt, sampling, seed)
    rows, P, G = [], prompts.shape[1], sampling.max_new_tokens
    if lm.model.device.type == "cuda":
        counts = Counts()
        graphs = {} if graphs is None else graphs  # many runs of one shape: a capture pays off within this call
        for ids, own in _each(prompts, seeds):
            tree, seen = decode(lm.model, ids, own[:, None], alone(sampling), "dedup", graphs=graphs)
            rows.append(torch.from_numpy(tree.tokens()))
            counts.add(seen)
    else:
        with _rows_cache(lm, P + G - 1) as (cache, counts):
            for ids, own in _each(prompts, seeds):
                cache.rewind()
                rows.append(_rows(lm.model, cache, last_logits(lm.model, ids, cache), own, sampling, P))
    return _samples(lm, torch.cat(rows), counts, seeds, sampling, P, apart=True)


def _each(prompts: Tensor, seeds: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """A prompt (1, P) and a seed (1,) for every sample."""
    return ((ids[None], own) for ids, row in zip(prompts, seeds, strict=True) for own in row.split(1))


@torch.no_grad()
def shared_prefill(
    lm: "LanguageModel", prompt: Tensor, sampling: Sampling, seed: int, graphs: GraphCache | None = None
) -> Samples:
    """The prompt once, its cache copied to N rows, N rows decoded together."""
    prompts, seeds = _inputs(lm, prompt, sampling, seed)
    N, P, G = sampling.samples, prompts.shape[1], sampling.max_new_tokens
    if lm.model.device.type == "cuda":
        tree, counts = decode(lm.model, prompts, seeds.view(-1, 1), alone(sampling), "dedup", N, graphs)
        tokens = torch.from_numpy(tree.tokens())
    else:
        with _rows_cache(lm, P + G - 1) as (cache, counts):
            logits = last_logits(lm.model, prompts, cache).repeat_interleave(N, 0)
            cache.spread(N)
            tokens = _rows(lm.model, cache, logits, seeds.view(-1), sampling, P)
    return _samples(lm, tokens, counts, seeds, sampling, P)


def hf_batched(
    lm: "LanguageModel", prompt: Tensor, sampling: Sampling, seed: int, graphs: GraphCache | None = None
) -> Samples:
    """`model.generate(num_return_sequences=N)`, as a transformers user has it."""
    from transformers import GenerationConfig

    prompts, seeds = _inputs(lm, prompt, sampling, seed, engine=False)
    P, N, G, model = prompts.shape[1], sampling.samples, sampling.max_new_tokens, lm.model
    stop = list(sampling.stop_tokens) or None
    ask = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers' own
        do_sample=True, num_return_sequences=N, max_new_tokens=G, min_new_tokens=None if stop else G,
        top_k=sampling.top_k, top_p=sampling.top_p, temperature=sampling.temperature, eos_token_id=stop,
        pad_token_id=stop[0] if stop else 0,
    )  # fmt: skip
    with _seeded(model, seed), _defaults(model, ask), counting(model) as counts:
        generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]  # of a class that is not typed
        out = generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=ask)[:, P:]
    tokens = torch.full((len(out), G), _end(sampling))
    tokens[:, : out.shape[1]] = out
    return _samples(lm, tokens, counts, seeds, sampling, P, rows=(len(out),) * (out.shape[1] - 1))


def ctranslate2(
    lm: "LanguageModel", prompt: Tensor, sampling: Sampling, seed: int, graphs: GraphCache | None = None
) -> Samples:
    """CTranslate2's `generate_batch`, the prompt encoded once. Raises ValueError where it cannot stand beside the
    others (ctranslate.refusal).

    A caller that passes the same dict as `graphs` again reuses the loaded model, whose draws then go on.
    """
    prompts, seeds = _inputs(lm, prompt, sampling, seed, engine=False)
    if reason := unavailable("ctranslate2", lm, prompt, sampling):
        raise ValueError(reason)
    engines: dict[Any, Any] = {} if graphs is None else graphs
    key = ("ctranslate2", id(lm.model), seed, torch.get_num_threads())
    if key not in engines:
        engines.clear()
        engines[key] = ctranslate.generator(lm, seed)
    texts = ctranslate.generate(engines[key], prompts, sampling)
    tokens = torch.full((len(texts), sampling.max_new_tokens), _end(sampling))
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    (B, P), steps = prompts.shape, [sum(len(text) > t for text in texts) for t in range(1, sampling.max_new_tokens)]
    counts = Counts(1 + sum(n > 0 for n in steps), B * P + sum(steps), B + sum(steps))
    return _samples(lm, tokens, counts, seeds, sampling, P, rows=tuple(steps))


def unavailable(decoder: str, lm: "LanguageModel", prompt: Tensor, sampling: Sampling) -> str | None:
    """Why a decoder that is a library's cannot decode this, as a sentence; None where it can, and for all others. What
    the library makes of the model once is made here."""
    return ctranslate.refusal(lm, prompt, sampling) if DECODERS[decoder].library else None


def _tree(decoder: str, policy: str) -> Decode:
    row = DECODERS[decoder]

    def decode_tree(
        lm: "LanguageModel", prompt: Tensor, sampling: Sampling, seed: int, graphs: GraphCache | None = None
    ) -> Samples:
        sampling = row.settings(sampling)
        tree, counts = grow(lm.model, prompt, sampling, policy, seed, graphs=graphs)
        live, B = tuple(tree.live_paths()[:-1]), prompt[..., 0].numel()
        idle = lm.model.device.type == "cuda"
        rows = (B * POLICIES[policy].width(sampling),) * len(live) if idle else live
        tokens, lengths, owner = (torch.from_numpy(x) for x in (tree.tokens(), tree.lengths(), tree.leaf_tree))
        return Samples(tokens, lengths, owner, **vars(counts), live_paths=live, rows=rows,
                       kv_slots=prompt.numel() + sum(rows), tree=tree)  # fmt: skip

    decode_tree.__name__ = decode_tree.__qualname__ = decoder
    decode_tree.__doc__ = f"{row.what}: the {policy} policy on the tree engine."
    return decode_tree


WITHOUT_TREE: dict[str, Decode] = {
    "sequential": sequential, "hf_batched": hf_batched, "ctranslate2": ctranslate2, "shared_prefill": shared_prefill,
}  # fmt: skip


def decode_functions() -> dict[str, Decode]:
    """The function of every row of DECODERS, in its order. Raises KeyError for a row that has neither policy nor
    function."""
    return {name: _tree(name, row.policy) if row.policy else WITHOUT_TREE[name] for name, row in DECODERS.items()}


DECODE = decode_functions()
assert {name for name, row in DECODERS.items() if not row.policy} == set(WITHOUT_TREE)


def _inputs(
    lm: "LanguageModel", prompt: Tensor, sampling: Sampling, seed: int, engine: bool = True
) -> tuple[Tensor, Tensor]:
    """Prompts (B, P) on the model's device, and a seed for every sample (B, N). engine: whether ours decodes them."""
    if engine:
        check(lm.model, prompt, sampling, "tree" if lm.model.device.type == "cuda" else "rows")
    else:
        check_request(lm.model, prompt, sampling)
    prompts = prompt.reshape(-1, prompt.shape[-1]).to(lm.model.device)
    return prompts, path_seeds(seed, len(prompts), sampling.samples)


@contextlib.contextmanager
def _rows_cache(lm: "LanguageModel", slots: int) -> Iterator[tuple[RowsCache, Counts]]:
    """The set-up of our own arms on a CPU: (an empty cache of so many slots a row, counts)."""
    with tree_attention_on(lm.model), counting(lm.model) as counts:
        yield RowsCache(lm.model.config, slots), counts


def _rows(
    model: "PreTrainedModel", cache: RowsCache, logits: Tensor, seeds: Tensor, sampling: Sampling, start: int
) -> Tensor:
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
            cache.select(goes_on)
        position = torch.full((1, 1), start + t, device=model.device)
        logits = model(drawn, past_key_values=cache, use_cache=True, position_ids=position).logits[:, -1]
    return tokens


def _end(sampling: Sampling) -> int:
    """The token that stands behind the end of a text."""
    return sampling.stop_tokens[0] if sampling.stop_tokens else -1


def _samples(
    lm: "LanguageModel", tokens: Tensor, counts: Counts, seeds: Tensor, sampling: Sampling, P: int,
    rows: tuple[int, ...] | None = None, apart: bool = False,
) -> Samples:  # fmt: skip
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
def _seeded(model: "PreTrainedModel", seed: int) -> Iterator[None]:
    """Seed torch's global generators for `generate`, which uses no other, and restore them afterwards."""
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
        yield


@contextlib.contextmanager
def _defaults(model: "PreTrainedModel", ask: "GenerationConfig") -> Iterator[None]:
    """generate() fills what a request leaves None (here: no EOS) from the model's defaults: they are set aside."""
    before, model.generation_config = model.generation_config, ask
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        model.generation_config = before

"""Which models the engine decodes: others are refused by name; a model is compared with plain forwards at first use.

P prompt tokens, G new tokens, V vocabulary.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mlexp import flops

from .attention import TreeView, attention_as, tree_attention_on
from .caches import RowsCache
from .pool import Pool, accepts, last_logits
from .settings import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
ALIBI = {"bloom", "mpt"}  # and Falcon and others by a flag of their configuration
BOUNDS = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.25}
"""Nats by which the engine's log-probabilities may differ from a plain forward's, root mean square under the model.

In float64 too, many models compute norms, routers and the softmax of attention in float32."""
DEPTH = 64  # new tokens that a comparison goes through at most
EAGER = 1024  # tokens up to which a plain forward may hold all scores of a layer at once

Run = tuple[str, torch.device, torch.dtype]  # the path through the engine, device, type of the weights
_compared: "WeakKeyDictionary[PreTrainedModel, dict[Run, int]]" = WeakKeyDictionary()  # tokens of the longest text


def check(model: "PreTrainedModel", prompts: Tensor, sampling: Sampling, path: str = "tree") -> None:
    """Raise ValueError unless the engine decodes prompts, (P,) or (B, P), exactly as the model would.

    A model that cannot be decoded is refused, with the reason. At the first use of a model in a process, and again for
    a text twice as long, the log-probabilities on `path` ("tree" or "rows", a cache of independent rows) are compared
    with plain forwards of whole sequences; FLOPs of the comparison are not counted. See BOUNDS.
    """
    if reason := refusal(model):
        raise ValueError(f"{type(model).__name__} {reason}")
    check_request(model, prompts, sampling)
    compared, new = _compared.setdefault(model, {}), sampling.max_new_tokens
    key, length = (path, model.device, model.dtype), prompts.shape[-1] + new
    if compared.get(key, 0) * 2 <= length:
        with torch.no_grad(), flops.uncounted():
            _compare(model, prompts.view(-1, prompts.shape[-1])[0].to(model.device), new, path)
        compared[key] = length


def refusal(model: "PreTrainedModel") -> str | None:
    """Why the engine cannot decode a model, as the end of a sentence that begins with its name; None where it may."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - ATTENTION_LAYERS
    if getattr(model.config, "is_encoder_decoder", False):
        return "is an encoder-decoder; the engine decodes causal language models"
    if config.model_type in ALIBI or getattr(config, "alibi", False):
        return "has ALiBi positions, which depend on distances that a tree does not keep"
    if getattr(model, "_is_stateful", False):
        return "keeps a recurrent state, which a tree of keys and values cannot share"
    if kinds:
        return f"has layers of type {', '.join(sorted(kinds))}; the engine needs {', '.join(sorted(ATTENTION_LAYERS))}"
    if not accepts(model, "position_ids"):
        return "takes no position_ids, so the tips of a tree cannot be placed"
    if model.training:
        return "is in training mode, with dropout; call .eval() first"
    if model.dtype not in BOUNDS:
        return f"has weights of type {model.dtype}; allowed: {', '.join(map(str, BOUNDS))}"
    return None


def check_request(model: "PreTrainedModel", prompts: Tensor, sampling: Sampling) -> None:
    """Raise ValueError unless prompts, stop tokens and lengths are such as the model has."""
    name, config, new = type(model).__name__, model.config.get_text_config(), sampling.max_new_tokens
    if prompts.ndim not in (1, 2) or not prompts.numel():
        raise ValueError(f"prompt of shape {tuple(prompts.shape)}: expected (P,) or (B, P) with P >= 1")
    for what, tokens in (("prompt", prompts.flatten().tolist()), ("stop", sampling.stop_tokens)):
        if tokens and not 0 <= min(tokens) <= max(tokens) < config.vocab_size:
            wrong = next(token for token in tokens if not 0 <= token < config.vocab_size)
            raise ValueError(f"{what} token {wrong}: {name} has tokens 0 to {config.vocab_size - 1}")
    P, limit = prompts.shape[-1], getattr(config, "max_position_embeddings", None)
    last = P + new - 1  # positions in use: the last new token is drawn and never forwarded
    if limit and last > limit:
        room = f"for {limit + 1 - P} new tokens" if limit >= P else "fewer than the prompt has tokens"
        raise ValueError(f"{P} prompt + {new} new tokens: {name} has {limit} positions, {room}")
    for kind, switch in _rope_switches(config):
        if P <= switch < last or (kind == "dynamic" and last > switch):
            raise ValueError(
                f"{P} prompt + {new} new tokens: {name} has other ({kind}) rotary frequencies for texts of more than "
                f"{switch} tokens, so keys cannot be reused across that length"
            )


def _rope_switches(config: "PreTrainedConfig") -> Iterator[tuple[str, int]]:
    """(kind, position) behind which a model's rotary frequencies change with the length of the text."""
    rope = getattr(config, "rope_parameters", None) or {}
    for row in [rope, *rope.values()]:
        if isinstance(row, dict) and row.get("rope_type") in ("dynamic", "longrope"):
            yield (
                row["rope_type"],
                row.get("original_max_position_embeddings")
                or getattr(config, "original_max_position_embeddings", None)
                or config.max_position_embeddings,
            )


def _compare(model: "PreTrainedModel", prompt: Tensor, new: int, path: str) -> None:
    """Compare two branches behind a prompt (P,) with plain forwards of each whole branch."""
    name, steps = type(model).__name__, min(new - 1, DEPTH)
    vocabulary = model.config.get_text_config().vocab_size
    branches = torch.randint(vocabulary, (2, steps), generator=torch.Generator().manual_seed(0))
    branches[1, :1] = branches[0, :1]  # they part behind their first token
    branches = branches.to(model.device)
    with tree_attention_on(model):
        pass  # a model whose attention cannot be exchanged is refused here
    with _one_line(f"{name}: its own forward fails"):
        want = plain_logits(model, torch.cat([prompt.expand(2, -1), branches], 1), steps + 1)
    with _one_line(f"{name} cannot be decoded by the engine"), tree_attention_on(model):
        got = {"tree": tree_logits, "rows": row_logits}[path](model, prompt, branches)
    error, bound = distance(got, want[:, : got.shape[1]]), BOUNDS[model.dtype]
    if not error <= bound:  # NaN is no agreement either
        raise ValueError(
            f"{name} cannot be decoded exactly: the engine's log-probabilities differ from a plain forward's by "
            f"{error:.2g} nats over {len(prompt)} prompt + {steps + 1} new tokens (allowed in {model.dtype}: {bound:g})"
        )


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turn any error that a model may raise into one ValueError."""
    try:
        yield
    except (ValueError, RuntimeError, TypeError, LookupError, AttributeError, AssertionError) as error:
        raise ValueError(f"{what}: {(str(error) or type(error).__name__).splitlines()[0]}") from error


def plain_logits(model: "PreTrainedModel", ids: Tensor, last: int) -> Tensor:
    """Logits behind the last tokens of whole sequences, without a cache: (n, T) -> (n, last, V).

    By `eager` attention, which is every architecture's definition (sdpa leaves Gemma 2's soft-capping out); texts of
    over EAGER tokens, whose scores it would hold at once, by the model's own choice unless that drops something.
    """
    keep = {"logits_to_keep": last} if accepts(model, "logits_to_keep") else {}
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    with attention_as(model, "eager" if capped or ids.shape[1] <= EAGER else model.config._attn_implementation):
        logits: Tensor = model(ids, use_cache=False, **keep).logits
    return logits[:, -last:]


def tree_logits(model: "PreTrainedModel", prompt: Tensor, branches: Tensor) -> Tensor:
    """Logits behind a prompt (P,) and every token of two branches (2, G), decoded as a tree: (2, G + 1, V).

    The first token is a step of one tip. All others are the tips of one forward, whatever their depth.
    """
    (n, G), P = branches.shape, len(prompt)
    pool = Pool(model, P + n * G)
    logits = [pool.prefill(prompt[None]).expand(n, -1)[:, None]]
    slots = P + torch.arange(n * G, device=prompt.device).view(n, G)
    slots[1:, :1] = P
    depth = torch.arange(G, device=prompt.device)
    for part in (depth[:1], depth[1:]):
        if len(part):
            rows = 1 if part[0] == 0 else n  # the branches share their first token
            own, lengths = slots[:rows, part].reshape(-1), (part + 1).repeat(rows)
            view = TreeView(P, slots[:rows].repeat_interleave(len(part), 0).int(), lengths)
            out = pool.forward(branches[:rows, part].reshape(-1), P + lengths - 1, own, view)
            logits.append(out.view(rows, len(part), -1).expand(n, -1, -1))
    return torch.cat(logits, 1)


def row_logits(model: "PreTrainedModel", prompt: Tensor, branches: Tensor) -> Tensor:
    """The same of the first three tokens of branches as rows of their own, a step a token: (2, min(G, 3) + 1, V)."""
    n, G = len(branches), min(branches.shape[1], 3)
    rows = RowsCache(model.config, len(prompt) + G)
    logits = [last_logits(model, prompt[None], rows).expand(n, -1)]
    rows.spread(n)
    for t in range(G):
        position = torch.full((1, 1), len(prompt) + t, device=prompt.device)
        out = model(branches[:, t : t + 1], past_key_values=rows, use_cache=True, position_ids=position)
        logits.append(out.logits[:, -1])
    return torch.stack(logits, 1)


def distance(got: Tensor, want: Tensor) -> float:
    """The largest root mean square difference of log-probabilities, (..., V) each, in nats, weighted by `want`'s."""
    got, want = (x.double().log_softmax(-1) for x in (got, want))
    p = want.exp()
    difference = torch.where(p > 0, got - want, 0)
    return (p * difference**2).sum(-1).sqrt().max().item()

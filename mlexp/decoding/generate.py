"""Draw n continuations of a prompt in one call, or through transformers' `model.generate`.

P prompt tokens, n samples, G new tokens.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers.generation.utils import GenerateDecoderOnlyOutput

from .engine import grow
from .policies import POLICIES
from .settings import Sampling, is_int
from .tree import Tree

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

Tokens = int | Iterable[int] | None
"""A token id, several, or none."""


@dataclass(frozen=True, eq=False)
class Continuations:
    """Samples of one prompt; behind the end of a text stand the end token and log-probabilities 0.

    `eab_paper` may return fewer or more than n, with one row for each path of its tree.

    Attributes:
        texts: without the end; None where there was no tokenizer.
        tokens: (n, G) int64, on the CPU.
        lengths: (n,) tokens of each, its end token included.
        logprobs: (n, G) float64, nats, of each token under the distribution that it was drawn from.
        token_forwards: tokens pushed through the model, the prompt's included.
        tree: what was shared, node by node.
    """

    texts: list[str] | None
    tokens: Tensor
    lengths: Tensor
    logprobs: Tensor
    token_forwards: int
    tree: Tree


@dataclass
class BranchingOutput(GenerateDecoderOnlyOutput):
    """generate()'s output, B prompts with n samples each, G' tokens in the longest."""

    logprobs: Tensor | None = None  # (B * n, G') float64, nats, 0 behind the end of a text
    lengths: Tensor | None = None  # (B * n,) tokens of each, its end token included


def sample(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None", prompt: Any, n: int = 20,
           policy: str = "eab_particles", max_new_tokens: int = 50, temperature: float = 0.8, threshold: float = 0.4,
           branch_factor: int = 3, max_paths: int | None = None, top_k: int = 0, top_p: float = 1.0,
           eos_token_id: "Tokens | str" = "auto", stop_tokens: Tokens = (), seed: int = 0,
           backend: str = "auto") -> Continuations:  # fmt: skip
    """Sample n continuations as one tree that shares what they have in common.

    Args:
        model: a transformers causal LM in eval mode (docs/models.md).
        tokenizer: may be None if the prompt is no text.
        prompt: a text, token ids as a list or a tensor, (P,) or (1, P), or a tokenizer's BatchEncoding of one text.
        n: how many samples.
        policy: `dedup` (n independent samples), `eab_particles` (paths part only where the entropy of the next token
            reaches `threshold`, into `branch_factor` groups) or `eab_paper` (the original's, biased).
        max_new_tokens: of a text, at most.
        temperature: divides the logits.
        threshold: a fraction of ln V in [0, 1].
        branch_factor: into how many groups paths part, at most.
        max_paths: of the tree; None: n.
        top_k: as in transformers; 0: all tokens.
        top_p: as in transformers; 1.0: all tokens.
        eos_token_id: what ends a text; "auto": the model's own, None: max_new_tokens alone.
        stop_tokens: further tokens that end one.
        seed: of all draws.
        backend: of the kernels: `auto`, `reference` or `triton`.

    Raises:
        ValueError: for a model that cannot be decoded exactly, and for any argument that is not one of these.
    """
    if policy not in list(POLICIES):
        raise ValueError(f"unknown policy {policy!r}; choose from {', '.join(POLICIES)}")
    if not is_int(n) or n < 1:
        raise ValueError(f"n={n!r}: expected an integer of at least 1")
    if not is_int(seed):
        raise ValueError(f"seed={seed!r}: expected an integer")
    if not hasattr(model, "get_output_embeddings"):
        raise ValueError(f"model is a {type(model).__name__}; expected a transformers causal LM")
    ids, own = prompt_tokens(tokenizer, prompt), _ends(model) if eos_token_id == "auto" else eos_token_id
    stop = tuple(dict.fromkeys([*_as_tuple("eos_token_id", own), *_as_tuple("stop_tokens", stop_tokens)]))
    sampling = Sampling(n, max_new_tokens, temperature, threshold, branch_factor, n if max_paths is None else max_paths,
                        top_k, top_p, stop)  # fmt: skip
    tree, counts = grow(model, ids, sampling, policy, seed, backend=backend)
    tokens, lengths = torch.from_numpy(tree.tokens()), torch.from_numpy(tree.lengths())
    return Continuations(
        texts=None if tokenizer is None else _texts(tokenizer, tokens, lengths, stop),
        tokens=tokens,
        lengths=lengths,
        logprobs=torch.from_numpy(tree.logprobs()),
        token_forwards=counts.token_forwards,
        tree=tree,
    )


def prompt_tokens(tokenizer: "PreTrainedTokenizerBase | None", prompt: Any) -> Tensor:
    """The token ids (P,) of one prompt. Raises ValueError for anything else, and for padded prompts."""
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError("the prompt is a text and tokenizer is None; give a tokenizer, or token ids")
        prompt = tokenizer(prompt)
    if hasattr(prompt, "keys"):
        if not bool(torch.as_tensor(prompt.get("attention_mask", 1)).all()):
            raise ValueError("the prompt's attention_mask has zeros: padding is not supported; give one text alone")
        prompt = prompt["input_ids"]
    try:
        ids = torch.as_tensor(prompt)
    except (TypeError, ValueError, RuntimeError):
        what = f"{type(prompt).__name__} {str(prompt)[:60]!r}"
        raise ValueError(f"a prompt that is a {what}; expected one text, or token ids of one length") from None
    if not ids.numel():
        raise ValueError("the prompt is empty; expected at least one token")
    if ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool:
        raise ValueError(f"a prompt of type {ids.dtype}; expected a text, or token ids as integers")
    if ids.ndim == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.ndim != 1:
        raise ValueError(f"a prompt of shape {tuple(ids.shape)}; expected (P,) or (1, P): one prompt a call")
    return ids.long()


def _ends(model: "PreTrainedModel") -> Tokens:
    """The token or tokens with which the model itself ends a text."""
    own: Tokens = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if own is None:
        own = model.config.get_text_config().eos_token_id
    return own


def _as_tuple(name: str, tokens: "Tokens | str") -> tuple[int, ...]:
    """A token id, several, or None as a tuple."""
    if tokens is None:
        return ()
    several: list[Any] = [tokens] if isinstance(tokens, (int, float, str)) else list(tokens)
    if any(isinstance(token, (str, float)) for token in several):
        raise ValueError(f"{name}={tokens!r}: expected token ids, as integers")
    return tuple(int(token) for token in several)


def _texts(tokenizer: "PreTrainedTokenizerBase", tokens: Tensor, lengths: Tensor, stop: tuple[int, ...]) -> list[str]:
    """The texts without their end token."""
    rows = (row[:length].tolist() for row, length in zip(tokens, lengths, strict=True))
    return [str(tokenizer.decode(row[:-1] if row[-1] in stop else row, skip_special_tokens=True)) for row in rows]


def branching(policy: str = "eab_particles", threshold: float = 0.4, branch_factor: int = 3,
              max_paths: int | None = None, seed: int | None = None,
              ) -> Callable[..., Tensor | BranchingOutput]:  # fmt: skip
    """A function for `model.generate(ids, custom_generate=branching(...), do_sample=True, num_return_sequences=n)`.

    Everything else is as in the call of generate(): length, temperature, top_k and top_p (generate's own default is
    top_k=50), end tokens, several prompts of one length. generate() then returns the sequences (B * n, P + G'), or with
    return_dict_in_generate an output that also has `logprobs` (B * n, G') and `lengths` (B * n,); G' is the length of
    the longest.

    Args:
        policy: `dedup` or `eab_particles`.
        threshold: as `sample` has it, and so the next two.
        branch_factor: into how many groups paths part, at most.
        max_paths: of a prompt's tree; None: n.
        seed: None: drawn from torch's global generator, as generate() does.

    Raises:
        ValueError: for another policy; in generate(), for what cannot be done in a tree (beams, penalties, padding).
    """
    if policy not in list(POLICIES):
        raise ValueError(f"unknown policy {policy!r}; choose from {', '.join(POLICIES)}")
    if seed is not None and not is_int(seed):
        raise ValueError(f"seed={seed!r}: expected an integer, or None")
    if policy == "eab_paper":
        raise ValueError(
            "policy 'eab_paper' cannot return a given number of sequences; choose from dedup, eab_particles"
        )

    def decoding_method(
        model: "PreTrainedModel", input_ids: Tensor, logits_processor: Iterable[object],
        stopping_criteria: Iterable[object], generation_config: "GenerationConfig", **model_kwargs: Any,
    ) -> Tensor | BranchingOutput:  # fmt: skip
        _refuse(generation_config, stopping_criteria)
        _refuse_inputs(input_ids, model_kwargs)
        n, P = generation_config.num_return_sequences or 1, input_ids.shape[1]
        new = generation_config.max_length - P
        sampling = Sampling(n, new, threshold=threshold, branch_factor=branch_factor,
                            max_paths=n if max_paths is None else max_paths, **_filters(logits_processor),
                            stop_tokens=_as_tuple("eos_token_id", generation_config.eos_token_id))  # fmt: skip
        chosen = int(torch.randint(2**62, ())) if seed is None else seed
        tree, _ = grow(model, input_ids[::n], sampling, policy, chosen)  # generate() repeats each prompt n times
        tokens, lengths = torch.from_numpy(tree.tokens()), torch.from_numpy(tree.lengths())
        tokens[torch.arange(new) >= lengths[:, None]] = _pad(generation_config, sampling)
        longest = int(lengths.max())
        sequences = torch.cat([input_ids, tokens[:, :longest].to(input_ids.device)], 1)
        if not generation_config.return_dict_in_generate:
            return sequences
        logprobs = torch.from_numpy(tree.logprobs())[:, :longest]
        return BranchingOutput(cast(torch.LongTensor, sequences), logprobs=logprobs, lengths=lengths)

    return decoding_method


def _pad(generation_config: "GenerationConfig", sampling: Sampling) -> int:
    """The token that generate() puts behind the end of a text."""
    own: int | None = generation_config.pad_token_id
    return own if own is not None else sampling.stop_tokens[0] if sampling.stop_tokens else -1


def _filters(processors: Iterable[object]) -> dict[str, Any]:
    """Temperature, top_k and top_p as generate() resolved them. Raises ValueError for any other logits processor."""
    found = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    known = {"TemperatureLogitsWarper": "temperature", "TopKLogitsWarper": "top_k", "TopPLogitsWarper": "top_p"}
    for processor in processors:
        name = known.get(type(processor).__name__)
        if name is None:
            raise ValueError(f"{type(processor).__name__} is not supported by branching; known: {', '.join(known)}")
        found[name] = getattr(processor, name)
    return found


# Arguments of generate() for anything but sampling: constraints, other strategies, reading ahead
OTHER_STRATEGIES = ("force_words_ids", "constraints", "dola_layers", "prompt_lookup_num_tokens", "penalty_alpha",
                    "prefill_chunk_size", "assistant_early_exit")  # fmt: skip


def _refuse(config: "GenerationConfig", criteria: Iterable[object]) -> None:
    """Raise ValueError for arguments of generate() that a tree cannot obey."""
    if not config.do_sample or (config.num_beams or 1) > 1:
        given = f"do_sample={config.do_sample}, num_beams={config.num_beams}"
        raise ValueError(f"{given}: branching samples; set do_sample=True and num_beams=1")
    for name in OTHER_STRATEGIES:
        if value := getattr(config, name, None):
            raise ValueError(f"{name}={value!r} is not supported by branching")
    for criterion in criteria:
        if type(criterion).__name__ not in ("MaxLengthCriteria", "EosTokenCriteria"):
            raise ValueError(f"{type(criterion).__name__} is not supported by branching; known: length and end tokens")
    for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
        if config.return_dict_in_generate and getattr(config, name):
            raise ValueError(f"{name}=True is not supported by branching; its output has sequences, logprobs, lengths")


def _refuse_inputs(ids: Tensor, given: Mapping[str, Any]) -> None:
    """Raise ValueError for inputs of the model that would change its logits: only whole, unpadded prompts are read."""
    P = ids.shape[1]
    if (mask := given.get("attention_mask")) is not None and (mask.shape != ids.shape or not bool((mask == 1).all())):
        raise ValueError(
            "attention_mask has zeros or another shape: padding is not supported; give prompts of one length"
        )
    if (at := given.get("position_ids")) is not None and not torch.equal(
        at.long(), torch.arange(P, device=at.device).expand_as(at)
    ):
        raise ValueError("position_ids is not supported by branching: a prompt's tokens stand at 0, 1, 2, ...")
    if (cache := given.get("past_key_values")) is not None and cache.get_seq_length():
        raise ValueError(f"past_key_values holds {cache.get_seq_length()} tokens; branching starts from an empty cache")
    known = {"attention_mask", "position_ids", "past_key_values", "use_cache", "cache_position", "logits_to_keep"}
    for name, value in given.items():
        if name not in known and value is not None and value is not False:
            raise ValueError(f"{name} is not supported by branching; it reads token ids alone")

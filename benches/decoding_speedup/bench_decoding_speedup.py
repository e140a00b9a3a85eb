"""Does branching help larger models more?  Fixed: 200-token prompts, 20 samples, 50 new tokens, T = 0.8."""

import functools
import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path

from mlexp.decoding.costs import Shape, cost, kv_bytes_per_token
from mlexp.decoding.models import MODELS
from mlexp.decoding.prompts import make_prompts, read_prompts
from mlexp.decoding.recipes import Nano
from mlexp.decoding.settings import DECODER_NAMES, Sampling
from mlexp.decoding.weights import identity

CORRELATED = ("eab_paper", "eab_particles")
PROMPTS = Path(__file__).with_name("prompts.jsonl")


def p(count: int) -> tuple[str, ...]:
    """The names of the first prompts; the generator makes any number of them."""
    return tuple(f"p{i:02d}" for i in range(count))


@dataclass(frozen=True)
class Settings(Sampling):
    """The seed's numbers: Sampling's, and these. `replicates`: trees a prompt behind effective_samples, untimed."""

    models: tuple[str, ...] = tuple(MODELS)
    prompts: tuple[str, ...] = p(10)
    decoders: tuple[str, ...] = DECODER_NAMES
    prompt_tokens: int = 200
    rounds: int = 3
    replicates: int = 32
    replicate_models: tuple[str, ...] = tuple(MODELS)
    nano_steps: int = Nano.steps

    def __post_init__(self):
        super().__post_init__()
        one_of("models", self.models, MODELS)
        one_of("replicate_models", self.replicate_models, ("none", *MODELS))
        one_of("decoders", self.decoders, DECODER_NAMES)
        for name in self.prompts:
            if not (name[:1] == "p" and name[1:].isdigit()):
                raise ValueError(f"unknown prompt {name!r}; choose from p00, p01, p02, ... (any number)")
        for name in ("prompt_tokens", "rounds", "nano_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1")
        if self.replicates < 2:
            raise ValueError(f"replicates is {self.replicates}; a variance needs at least 2")


def one_of(what: str, values: tuple[str, ...], known) -> None:
    for value in values:
        if value not in known:
            raise ValueError(f"unknown {what[:-1]} {value!r}; choose from {', '.join(known)}")


# Below full, replicates are grown for gpt2_nano alone: for the larger ones they would cost more than all that is timed.
NANO = ("gpt2_nano",)
SMALL = Settings(
    prompts=p(3), prompt_tokens=24, samples=4, max_new_tokens=4, max_paths=4, rounds=1, replicate_models=NANO
)
TINY = {"prompts": p(1), "prompt_tokens": 16, "samples": 2, "max_new_tokens": 3, "replicates": 4, "nano_steps": 20}
SETTINGS = {"smoke": replace(SMALL, **TINY), "quick": replace(SMALL, replicates=64), "full": Settings()}
AXES = {"model": "models", "prompt": "prompts", "decoder": "decoders"}
METRICS = {
    "token_forwards": ("tokens", "lower", "tokens pushed through the model, counted by a hook on it"),
    "model_forwards": ("count", "lower", "calls of the model"),
    "logit_rows": ("rows", "lower", "rows for which the head was computed"),
    "flops_arm_closed_form": ("FLOP", "none", "linear layers, attention and head by the arm's formula"),
    "n_samples": ("samples", "none", "samples returned; eab_paper cannot fix their number"),
    "bytes_per_sample": ("bytes", "lower", "peak_bytes over n_samples"),
    "kv_bytes": ("bytes", "lower", "keys and values held at the end, over all rows"),
    "branch_count": ("nodes", "none", "nodes with at least two children, the prompt included"),
    "branch_rate": ("fraction", "none", "share of decided positions whose entropy reaches the threshold"),
    "branch_position_first": ("tokens", "none", "new tokens before the first branching"),
    "branch_position_mean": ("tokens", "none", "new tokens before a branching, mean"),
    "branch_position_last": ("tokens", "none", "new tokens before the last branching"),
    "final_paths": ("paths", "none", "live paths at the end"),
    "unique_samples": ("samples", "higher", "distinct sequences among the samples"),
    "mean_surprisal_nats": ("nats", "none", "mean of -log p(sample) under the tempered model, over whole samples"),
    "distinct_1": ("fraction", "higher", "distinct unigrams over all unigrams of the samples"),
    "distinct_2": ("fraction", "higher", "distinct bigrams over all bigrams of the samples"),
    "self_bleu": ("fraction", "lower", "mean BLEU-4 of each sample against the others"),
    "logit_gain": ("ratio", "none", "what the logits of random weights were multiplied by"),
}


def inputs(params, settings, options) -> dict[str, object]:
    """What the cell will read, known before it runs: part of its key and of its record. Loads nothing."""
    who = identity(params["model"], options.weights or "auto", options.corpus, Nano(steps=settings.nano_steps))
    return who | {"prompts_hash": prompts_hash(options.prompts or PROMPTS)}


@functools.cache
def prompts_hash(path: str | Path) -> str:
    read_prompts(path)  # a broken file is told of before the first cell
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


LOADED = {}  # cells of a model follow one another: one model in memory at a time


def language_model(cell, name: str):
    """The model of a cell, loaded (nano: trained at first use) unless it is the one in memory."""
    import torch

    from mlexp.decoding.loading import load

    nano = Nano(steps=cell.settings.nano_steps)
    key = (name, cell.device, cell.dtype, cell.options.weights, cell.options.corpus, nano)
    if key not in LOADED:
        LOADED.clear()
        weights, corpus = cell.options.weights or "auto", cell.options.corpus
        LOADED[key] = load(name, weights, cell.device, getattr(torch, cell.dtype), corpus, cell.progress, nano)
    return LOADED[key]


def test_decode(cell, model, prompt, decoder):
    import torch

    from mlexp.decoding.decoders import DECODERS

    s = cell.settings
    lm = language_model(cell, model)
    items, count = read_prompts(cell.options.prompts or PROMPTS), int(prompt[1:]) + 1
    asked = make_prompts(items, lm.tokenizer, count, s.prompt_tokens)[-1]
    ids = torch.tensor(asked.ids)
    out = cell.time(lambda: DECODERS[decoder](lm, ids, s, cell.seed), rounds=s.rounds)
    cell.record(**costs(cell, lm, decoder, out))
    cell.record(**quality(cell, lm, decoder, ids, out, asked.answer))
    cell.series(live_paths=out.live_paths)
    if out.tree:
        cell.record(**out.tree.branch_statistics())
        cell.series(
            **{name: getattr(out.tree, name) for name in ("parent", "token", "entropy", "logprob", "multiplicity")}
        )
    assert out.tokens.shape[1] == s.max_new_tokens


def costs(cell, lm, decoder, out) -> dict[str, object]:
    """What the arm spent, beside the formula for it and the seed's own (2 * params * tokens)."""
    s, width = cell.settings, {"float32": 4, "bfloat16": 2}[cell.dtype]
    formula = cost(lm.model.config, decoder, s.prompt_tokens, s, out.live_paths, width)
    return {
        "n_params": lm.n_params,
        "n_samples": len(out.tokens),
        "n_tokens": out.tokens.numel(),
        "token_forwards": out.token_forwards,
        "model_forwards": out.model_forwards,
        "logit_rows": out.logit_rows,
        "flops_closed_form": 2 * lm.n_params * out.token_forwards,
        "flops_arm_closed_form": formula.flops,
        "bytes_per_sample": cell.values["peak_bytes"] / len(out.tokens),
        "kv_bytes": out.kv_slots * kv_bytes_per_token(Shape.of(lm.model.config), width),
        "logit_gain": lm.gain,
    }


def quality(cell, lm, decoder, ids, out, answer) -> dict[str, object]:
    """How good the samples are, in untimed passes that are the same for every arm."""
    from mlexp.decoding import quality as q

    s = cell.settings
    worth = s.samples if decoder not in CORRELATED else None  # independent by construction
    if decoder in CORRELATED and lm.name in s.replicate_models:
        cell.progress(0, s.replicates, "replicates for effective_samples")
        worth = q.effective_samples(lm, ids, s, decoder, s.replicates, cell.seed, s.replicates).samples
    return {
        "mean_surprisal_nats": q.surprisal(lm, ids, out.tokens, s.temperature).sum(1).mean(),
        "effective_samples": worth,
        "unique_samples": q.unique_sequences(out.tokens),
        "distinct_1": finite(q.distinct_n(out.tokens, 1)),
        "distinct_2": finite(q.distinct_n(out.tokens, 2)),
        "self_bleu": finite(q.self_bleu(out.tokens)),
        "accuracy": q.contains_answer(lm, out.tokens, answer) if lm.weights == "pretrained" else None,
    }


def finite(value: float) -> float | None:
    """NaN says that a statistic is not defined for so few samples; in a record that is null."""
    return None if math.isnan(value) else value

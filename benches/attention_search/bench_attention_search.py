"""Which of 13 attentions is best at one model size?  Fixed: shape, text, steps, batch; each has its own rate."""

import functools
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from mlexp.attention.variants import (
    SHAPES,
    VARIANTS,
    Shape,
    Variant,
    active_params,
    attention_params,
    halved,
    kv_bytes_per_token,
    of_same_params,
    training_flops_per_token,
)
from mlexp.text.corpus import read_corpus

CONTROL, REFERENCE = "mla_plain", "baseline"  # what arms differ from; whose parameters or FLOPs they are given
AGAIN, HALF = "again", "half_size"  # the control from other initial values (A/A); the reference at half of everything
PLAIN = VARIANTS[CONTROL]
FACTORIAL = {  # with mla_plain, lora_small and bias_only: every combination of query rank, interpolation and bias
    "mla_only_pi": replace(PLAIN, factor=2.0),
    "mla_q_pi": replace(PLAIN, q_rank=32, factor=2.0),
    "mla_q_bias": replace(PLAIN, q_rank=32, bias=True),
    "mla_bias_pi": replace(PLAIN, bias=True, factor=2.0),
    "mla_all_three": replace(PLAIN, q_rank=32, bias=True, factor=2.0),
}
KINDS = {**VARIANTS, AGAIN: PLAIN, HALF: VARIANTS[REFERENCE], **FACTORIAL}
ARMS = (*VARIANTS, AGAIN, HALF)
MATCHES = ("same_shape", "same_params", "same_flops")
BUDGETS = {"original": "seed", "finished": "finished"}  # budget -> recipe of mlexp.attention.learn
SEED_LR = 1e-4  # the original's, constant, for all arms
TEXTS = ("synthetic", "natural")
SINGULAR = {"budgets": "budget", "matches": "match", "variants": "variant"}
PARTS = ("tune", "validation", "test")  # the same for every seed; the training text is the seed's
RATES = Path(__file__).with_name("learning_rates.json")
ANEW = 1_000_000  # added to the seed that the A/A arm's parameters are drawn from
TAIL = 10  # the last tenth of the steps is what train_loss_nats is the mean of


@dataclass(frozen=True)
class Settings:
    """The seed's numbers. matches: what arms have in common; same_params: the reference's parameters, by another
    feed-forward width; same_flops: its FLOPs, by another number of steps (an epoch that ends early begins again).
    held_out: characters of each held-out part of natural text; tokenizer: a tokenizer.json for it instead of one
    trained on it; micro_batch: items that a step takes at a time; compile: train by torch.compile; lr: for every arm,
    instead of the tuned ones; untuned_lr: where none was tuned."""

    budgets: tuple[str, ...] = tuple(BUDGETS)
    matches: tuple[str, ...] = ("same_shape",)
    seeds: tuple[int, ...] = (42, 43, 44, 45, 46)
    variants: tuple[str, ...] = ARMS
    shape: str = "full"
    text: str = "natural"
    steps: int = 50
    batch: int = 16
    eval_batches: int = 10
    held_out: int = 40_000
    tokenizer: str | None = None
    micro_batch: int | None = None
    compile: bool = False
    lr: float | None = None
    untuned_lr: float = 1e-3
    factors: tuple[int, ...] = (1, 2, 4)
    longer_windows: int = 16

    def __post_init__(self):
        lists = (("budgets", BUDGETS), ("matches", MATCHES), ("variants", KINDS), ("shape", SHAPES), ("text", TEXTS))
        for what, known in lists:
            values = getattr(self, what)
            for value in (values,) if isinstance(values, str) else values:
                if value not in known:
                    raise ValueError(f"unknown {SINGULAR.get(what, what)} {value!r}; choose from {', '.join(known)}")
        for name in ("steps", "batch", "eval_batches", "held_out", "longer_windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1")
        for name in ("lr", "untuned_lr"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; above 0")
        if min(self.factors) < 1:
            raise ValueError(f"factors is {self.factors}; each at least 1")


QUICK = Settings(budgets=("finished",), variants=(*ARMS, *FACTORIAL), shape="quick", text="synthetic", steps=100,
                 batch=32, untuned_lr=1e-2, longer_windows=64)  # fmt: skip
SETTINGS = {
    "smoke": replace(QUICK, seeds=(42, 43), steps=6, batch=8, eval_batches=2, longer_windows=4),
    "quick": QUICK,
    "full": Settings(micro_batch=8),
}
AXES = {"budget": "budgets", "match": "matches", "seed": "seeds", "variant": "variants"}
METRICS = {
    "train_loss_nats": ("nats", "lower", "training loss (with a mixture's balance loss), mean over the last tenth"),
    "validation_loss_nats": ("nats", "lower", "loss on the validation part; loss_nats is on the test part"),
    "validation_accuracy": ("fraction", "higher", "share of validation tokens guessed"),
    "bits_per_byte": ("bits", "lower", "test loss by UTF-8 byte; null where the tokens were never text"),
    "evaluation_tokens": ("tokens", "none", "test tokens scored (as many of the validation part, where it has them)"),
    "attention_params": ("count", "none", "parameters of all attention layers"),
    "active_params": ("count", "none", "parameters that one token meets"),
    "saved_activation_bytes": ("bytes", "lower", "kept by autograd for a step, from batches of 1 and 2 extrapolated"),
    "micro_activation_bytes": ("bytes", "lower", "the same of a micro-batch"),
    "kv_bytes_per_token": ("bytes", "lower", "cache per token in bfloat16, read off a decode step"),
    "kv_bytes_closed_form": ("bytes", "none", "the same in closed form"),
    "attention_kernel": ("name", "none", "torch's attention kernel"),
    "steps": ("steps", "none", "optimiser steps"),
    "micro_batch": ("items", "none", "items that a step took at a time"),
    "lr": ("ratio", "none", "peak learning rate"),
    "lr_tuned": ("flag", "none", "whether that rate was found for this arm, text and budget by tune.py"),
    "shared_windows": ("count", "none", "stretches of 32 tokens that held-out parts and training text have in common"),
    "text_hash": ("name", "none", "of all tokens of the cell's text: the same for all arms of a seed"),
    "uniform_loss_nats": ("nats", "none", "floor: guessing"),
    "unigram_loss_nats": ("nats", "none", "floor: frequencies of the training text"),
    "bigram_loss_nats": ("nats", "none", "floor: its pairs"),
    "bayes_loss_nats": ("nats", "none", "the best possible loss, where the source is known"),
}  # fmt: skip


def inputs(params, settings, options) -> dict[str, object]:
    """Which text the cell will read: part of its key and of its record."""
    check_together(settings)
    if settings.text == "synthetic":
        if options.corpus:
            raise ValueError(f"--corpus {options.corpus}: text=synthetic reads none; give --set text=natural too")
        return {"corpus": "multi_lag_v64"}
    return dict(zip(("corpus", "corpus_hash"), corpus_identity(options.corpus, settings.tokenizer), strict=True))


def check_together(s: Settings):
    """What no one field can say: `--set` changes them one by one."""
    if s.micro_batch is not None and not 1 <= s.micro_batch <= s.batch:
        raise ValueError(f"micro_batch is {s.micro_batch}; 1 to batch={s.batch}, or none for the whole batch")
    vocab = SHAPES[s.shape].vocab
    if s.text == "synthetic" and vocab != SHAPES["quick"].vocab:
        raise ValueError(f"text=synthetic has 64 tokens; shape={s.shape} has {vocab}: give --set text=natural too")
    if s.text == "synthetic" and s.tokenizer:
        raise ValueError(f"tokenizer={s.tokenizer}: text=synthetic was never text; give --set text=natural too")
    if s.text == "natural" and vocab < 257:
        raise ValueError(
            f"text=natural needs 257 tokens or more; shape={s.shape} has {vocab}: give --set shape=natural"
        )


@functools.cache
def corpus_identity(path: str | None, tokenizer: str | None) -> tuple[str, str]:
    corpus, file = read_corpus(path), tokenizer and Path(tokenizer)
    if not file:
        return corpus.name, corpus.hash
    file = file / "tokenizer.json" if file.is_dir() else file
    return corpus.name, f"{corpus.hash}-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}"


def place(settings: Settings, corpus: str) -> str:
    """Where in learning_rates.json the rates for these settings stand."""
    return f"{settings.shape}-{corpus}-{settings.steps}x{settings.batch}"


def rate(settings: Settings, budget: str, variant: str, corpus: str) -> tuple[float, bool]:
    """(peak learning rate, whether it was tuned for this arm)."""
    if settings.lr is not None:
        return settings.lr, False
    if budget == "original":
        return SEED_LR, False
    tuned = json.loads(RATES.read_text()).get(place(settings, corpus), {"rates": {}})["rates"]
    arm = CONTROL if variant == AGAIN else variant
    return (tuned[arm], True) if arm in tuned else (settings.untuned_lr, False)


def build_plan(settings: Settings, match: str, variant: str) -> tuple[Variant, Shape, int]:
    """(arm, shape, steps) of a cell: what `match` asks for. Half the size is that on any terms."""
    arm, shape, steps = KINDS[variant], SHAPES[settings.shape], settings.steps
    reference = VARIANTS[REFERENCE]
    if variant == HALF:
        return arm, halved(shape), steps
    if match == "same_params":
        shape = of_same_params(arm, shape, reference)
    if match == "same_flops":
        steps = round(steps * training_flops_per_token(reference, shape) / training_flops_per_token(arm, shape))
    return arm, shape, steps


@functools.lru_cache(maxsize=2)
def material(settings: Settings, seed: int, corpus: str | None = None):
    """The text of a seed: on synthetic text a training stream of its own, on natural text an order of its own."""
    from mlexp.attention import text

    shape, s = SHAPES[settings.shape], settings
    if s.text == "natural":
        return natural(s.held_out, shape.vocab, corpus, s.tokenizer)
    length = max(s.eval_batches * s.batch, s.longer_windows + max(s.factors)) * shape.context + 1
    held = text.synthetic_text(dict.fromkeys(PARTS, length))
    train = text.synthetic_text({"train": s.steps * s.batch * shape.context + 1}, seed).parts["train"]
    parts = {"train": train, **held.parts}
    floors = text.floors(parts, shape.vocab) | {"bayes": held.floors["bayes"]}
    return text.Text(held.name, shape.vocab, parts, floors)


@functools.lru_cache(maxsize=1)
def natural(held_out: int, vocab: int, corpus: str | None, tokenizer: str | None):
    """Natural text is one for all seeds: it is read and tokenised once."""
    from mlexp.attention import text

    return text.natural_text(dict.fromkeys(PARTS, held_out), vocab, corpus, tokenizer)


def test_train(cell, budget, match, seed, variant):
    import torch

    from mlexp.attention.learn import loss_in, train
    from mlexp.attention.model import build
    from mlexp.attention.text import Batches

    s, dtype, device = cell.settings, getattr(torch, cell.dtype), cell.device
    arm, shape, steps = build_plan(s, match, variant)
    text = material(s, seed, cell.options.corpus)
    model = build(arm, shape, seed + ANEW * (variant == AGAIN), device)
    batches = Batches(text.parts["train"], shape.context, s.batch, seed, device)
    _, flops = cell.count(lambda: loss_in(dtype)(model.train(), *batches(0)).backward())
    model.zero_grad(set_to_none=True)
    lr, tuned = rate(s, budget, variant, text.name)
    how = {"micro_batch": s.micro_batch, "compiled": s.compile, "progress": cell.progress}
    if s.compile:  # what is compiled at first use is no part of the training's time
        torch.compile(loss_in(dtype))(model, *batches(0)).backward()
    result = cell.time(lambda: train(model, batches, steps, lr, BUDGETS[budget], dtype, **how), warmup=False)
    n_tokens, last = steps * s.batch * shape.context, result.losses[-max(1, steps // TAIL) :]
    cell.record(
        flops=flops * steps,
        flops_closed_form=n_tokens * training_flops_per_token(arm, shape),
        n_tokens=n_tokens,
        steps=steps,
        micro_batch=result.micro_batch or s.batch,
        lr=lr,
        lr_tuned=tuned,
        train_loss_nats=sum(last) / len(last),
        **{f"{name}_loss_nats": loss for name, loss in text.floors.items()},
    )
    cell.series(losses=result.losses)
    judge(cell, model, text, dtype)
    cell.record(
        n_params=sum(p.numel() for p in model.parameters()),
        attention_params=shape.layers * attention_params(arm, shape),
        active_params=active_params(arm, shape),
        kv_bytes_closed_form=kv_bytes_per_token(arm, shape),
        **kept_bytes(arm, shape, s.batch, result.micro_batch or s.batch, dtype, device),
    )
    shared = shared_windows(s, seed, cell.options.corpus)
    cell.record(shared_windows=shared, text_hash=text.hash)
    assert shared == 0, f"{shared} stretches of 32 tokens stand in the training text and in a held-out part"


def judge(cell, model, text, dtype):
    """What the trained model is worth on text that it has not seen."""
    from mlexp.attention import evaluate as ev

    s, context = cell.settings, model.shape.context
    windows = s.eval_batches * s.batch
    known, test = (ev.evaluate(model, text.parts[p], context, s.batch, windows, dtype) for p in ("validation", "test"))
    longer = ev.extrapolate(model, text.parts["test"], context, s.batch, s.longer_windows, s.factors, dtype)
    cell.record(
        loss_nats=test.loss_nats,
        accuracy=test.accuracy,
        perplexity=test.perplexity,
        bits_per_byte=test.bits_per_byte,
        evaluation_tokens=test.n_tokens,
        validation_loss_nats=known.loss_nats,
        validation_accuracy=known.accuracy,
    )
    cell.series(
        loss_by_position=test.by_position,
        document_losses=test.document_losses,
        document_tokens=test.document_tokens,
        factors=list(longer),
        loss_by_factor=list(longer.values()),
    )


@functools.cache
def kept_bytes(arm: Variant, shape: Shape, batch: int, micro: int, dtype, device) -> dict[str, object]:
    """What an arm keeps of a step and of a token, and by which kernel: the same whatever it was trained on."""
    from mlexp.attention import evaluate as ev
    from mlexp.attention.model import build

    model = build(arm, shape, 0, device)
    one, two = (ev.saved_activation_bytes(model, n, shape.context, dtype) for n in (1, 2))
    return {
        "saved_activation_bytes": one + (batch - 1) * (two - one),
        "micro_activation_bytes": one + (micro - 1) * (two - one),
        "kv_bytes_per_token": ev.kv_bytes_per_token(model),
        "attention_kernel": model.kernel(micro, dtype),
    }


@functools.lru_cache(maxsize=2)
def shared_windows(settings: Settings, seed: int, corpus: str | None) -> int:
    """Stretches of 32 tokens of the training text that stand in a held-out part too."""
    from mlexp.attention import text

    parts = material(settings, seed, corpus).parts
    return sum(text.shared_windows(parts["train"].tokens, parts[part].tokens) for part in PARTS)

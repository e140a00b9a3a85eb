"""Which of 13 attentions is best at one model size?  Fixed: shape, text, steps, batch; each has its own rate."""

import functools
import hashlib
import json
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
from mlexp.study import beside
from mlexp.text.corpus import read_corpus

declared = beside(__file__)
STUDY = declared.STUDY
AGAIN, BUDGETS, CONTROL, HALF, KINDS, REFERENCE = (
    getattr(declared, name) for name in ("AGAIN", "BUDGETS", "CONTROL", "HALF", "KINDS", "REFERENCE")
)
ORIGINAL_LR = 1e-4  # constant, for all arms
PARTS = ("tune", "validation", "test")  # the same for every seed; the training text is the seed's
RATES = Path(__file__).with_name("learning_rates.json")
ANEW = 1_000_000  # added to the seed that the A/A arm's parameters are drawn from
TAIL = 10  # the last tenth of the steps is what train_loss_nats is the mean of


def inputs(params, settings, options) -> dict[str, object]:
    """Which text the cell will read: part of its key and of its record."""
    check_together(settings)
    if settings.text == "synthetic":
        if options.corpus:
            raise ValueError(f"--corpus {options.corpus}: text=synthetic reads none; give --set text=natural too")
        return {"corpus": "multi_lag_v64"}
    return dict(zip(("corpus", "corpus_hash"), corpus_identity(options.corpus, settings.tokenizer), strict=True))


def check_together(s):
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


def place(settings, corpus: str) -> str:
    """Where in learning_rates.json the rates for these settings stand."""
    return f"{settings.shape}-{corpus}-{settings.steps}x{settings.batch}"


def rate(settings, budget: str, variant: str, corpus: str) -> tuple[float, bool]:
    """(peak learning rate, whether it was tuned for this arm)."""
    if settings.lr is not None:
        return settings.lr, False
    if budget == "original":
        return ORIGINAL_LR, False
    tuned = json.loads(RATES.read_text()).get(place(settings, corpus), {"rates": {}})["rates"]
    arm = CONTROL if variant == AGAIN else variant
    return (tuned[arm], True) if arm in tuned else (settings.untuned_lr, False)


def build_plan(settings, match: str, variant: str) -> tuple[Variant, Shape, int]:
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
def material(settings, seed: int, corpus: str | None = None):
    """The text of a seed: on synthetic text a training stream of its own, on natural text an order of its own."""
    from mlexp.attention import text

    shape, s = SHAPES[settings.shape], settings
    if s.text == "natural":
        return natural(s.held_out, shape.vocab, corpus, s.tokenizer)
    length = max(s.eval_batches * s.batch, s.longer_windows + max(s.factors)) * shape.context + 1
    made = text.synthetic_text(dict.fromkeys(PARTS, length))
    train = text.synthetic_text({"train": s.steps * s.batch * shape.context + 1}, seed).parts["train"]
    parts = {"train": train, **made.parts}
    floors = text.floors(parts, shape.vocab) | {"bayes": made.floors["bayes"]}
    return text.Text(made.name, shape.vocab, parts, floors)


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
    evaluate(cell, model, text, dtype)
    cell.record(
        n_params=sum(p.numel() for p in model.parameters()),
        attention_params=shape.layers * attention_params(arm, shape),
        active_params=active_params(arm, shape),
        kv_bytes_closed_form=kv_bytes_per_token(arm, shape),
        **memory_of(arm, shape, s.batch, result.micro_batch or s.batch, dtype, device),
    )
    shared = shared_windows(s, seed, cell.options.corpus)
    cell.record(shared_windows=shared, text_hash=text.hash)
    assert shared == 0, f"{shared} stretches of 32 tokens stand in the training text and in a held-out part"


def evaluate(cell, model, text, dtype):
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
def memory_of(arm: Variant, shape: Shape, batch: int, micro: int, dtype, device) -> dict[str, object]:
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
def shared_windows(settings, seed: int, corpus: str | None) -> int:
    """Stretches of 32 tokens of the training text that stand in a held-out part too."""
    from mlexp.attention import text

    parts = material(settings, seed, corpus).parts
    return sum(text.shared_windows(parts["train"].tokens, parts[part].tokens) for part in PARTS)

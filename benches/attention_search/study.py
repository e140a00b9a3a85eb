"""Which of 13 attentions is best at one model size?  The declaration: arms, settings, metrics, claims."""

from dataclasses import dataclass, replace
from typing import Annotated

from mlexp.attention.variants import SHAPES, VARIANTS
from mlexp.settings import AtLeast, MoreThan, OneOf
from mlexp.settings import Settings as Base
from mlexp.study import Above, All, Any, At, Claim, Given, Study, arm, mean

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
TEXTS = ("synthetic", "natural")


@dataclass(frozen=True)
class Settings(Base):
    """The original's numbers. matches: what arms have in common; same_params: the reference's parameters, by another
    feed-forward width; same_flops: its FLOPs, by another number of steps (an epoch that ends early begins again).
    held_out: characters of each held-out part of natural text; tokenizer: a tokenizer.json for it instead of one
    trained on it; micro_batch: items that a step takes at a time; compile: train by torch.compile; lr: for every arm,
    instead of the tuned ones; untuned_lr: where none was tuned."""

    budgets: Annotated[tuple[str, ...], OneOf(BUDGETS)] = tuple(BUDGETS)
    matches: Annotated[tuple[str, ...], OneOf(MATCHES)] = ("same_shape",)
    seeds: tuple[int, ...] = (42, 43, 44, 45, 46)
    variants: Annotated[tuple[str, ...], OneOf(KINDS)] = ARMS
    shape: Annotated[str, OneOf(SHAPES)] = "full"
    text: Annotated[str, OneOf(TEXTS)] = "natural"
    steps: Annotated[int, AtLeast(1)] = 50
    batch: Annotated[int, AtLeast(1)] = 16
    eval_batches: Annotated[int, AtLeast(1)] = 10
    held_out: Annotated[int, AtLeast(1)] = 40_000
    tokenizer: str | None = None
    micro_batch: int | None = None
    compile: bool = False
    lr: Annotated[float | None, MoreThan(0)] = None
    untuned_lr: Annotated[float, MoreThan(0)] = 1e-3
    factors: Annotated[tuple[int, ...], AtLeast(1)] = (1, 2, 4)
    longer_windows: Annotated[int, AtLeast(1)] = 16


QUICK = Settings(budgets=("finished",), variants=(*ARMS, *FACTORIAL), shape="quick", text="synthetic", steps=100,
                 batch=32, untuned_lr=1e-2, longer_windows=64)  # fmt: skip
SETTINGS = {
    "smoke": replace(QUICK, seeds=(42, 43), steps=6, batch=8, eval_batches=2, longer_windows=4),
    "quick": QUICK,
    "full": Settings(micro_batch=8),
}
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
    "lr": ("rate", "none", "peak learning rate"),
    "lr_tuned": ("flag", "none", "whether that rate was found for this arm, text and budget by tune.py"),
    "shared_windows": ("count", "none", "stretches of 32 tokens that held-out parts and training text have in common"),
    "text_hash": ("name", "none", "of all tokens of the cell's text: the same for all arms of a seed"),
    "uniform_loss_nats": ("nats", "none", "floor: guessing"),
    "unigram_loss_nats": ("nats", "none", "floor: frequencies of the training text"),
    "bigram_loss_nats": ("nats", "none", "floor: its pairs"),
    "training_bytes": ("bytes", "lower", "derived: activations of a micro-batch, and 16 bytes a parameter"),
    "bayes_loss_nats": ("nats", "none", "the best possible loss, where the source is known"),
}  # fmt: skip

ORIGINAL = tuple(VARIANTS)[:13]  # the original's arms; controls follow
LORA, ENHANCED, ROPE = ORIGINAL[1:5], ORIGINAL[5:9], ORIGINAL[9:12]
EQUAL = 0.005  # nats: below this a difference does not matter
STATE_BYTES = 16  # a parameter, its gradient and Adam's two moments
PARTS = {  # what one thing does: (arm with it, the same arm without it)
    "positions at all": ("baseline", "nope"),
    "interpolation, multi-head": ("mha_pi", "baseline"),
    "interpolation, latent": ("mla_only_pi", "mla_plain"),
    "biases, multi-head": ("mha_bias", "baseline"),
    "biases, latent": ("bias_only", "mla_plain"),
    "a query rank of 32": ("lora_small", "mla_plain"),
    "a latent for values, one shared key": ("mla_plain", "baseline"),
    "half the key without positions": ("mla_true", "mla_plain"),
    "one head of keys and values": ("mqa", "baseline"),
    "two heads of keys and values": ("gqa", "baseline"),
    "half the model": ("half_size", "baseline"),
}


def best(name: str, names: tuple[str, ...]) -> All:
    """An arm has a lower loss than every other one."""
    return All(*(Above(At(arm(other) - arm(name))) for other in names if other != name))


def claim(text: str, statement, **more) -> Claim:
    """What the original says of its arms' losses, or of their cost."""
    return Claim(text, statement, **{"source": "original", "about": "behaviour"} | more)


CLAIMS = {
    "C1": claim("RoPE scaling is the winner: rope_small is the best of the 13", best("rope_small", ORIGINAL),
                primary=True),
    "C2": claim("RoPE variants do well throughout: their mean beats the baseline",
                Above(At(arm("baseline") - mean(*ROPE)))),
    "C3": claim("RoPE scaling by itself helps: interpolation, all else equal",
                Above(At(arm("baseline") - arm("mha_pi")))),
    "C4": claim(f"Larger LoRA ranks do not help: lora_xl is no more than {EQUAL} nats better than lora_small",
                Above(At(arm("lora_xl") - arm("lora_small")), -EQUAL)),
    "C5": claim("The sweet spot is medium: enhanced_medium is the best enhanced arm",
                best("enhanced_medium", ENHANCED)),
    "C6": claim("LoRA, RoPE and bias work well together: enhanced_medium beats lora_medium",
                Above(At(arm("lora_medium") - arm("enhanced_medium")))),
    "C7": claim("XL underperforms the smaller enhanced arms", Above(At(arm("enhanced_xl") - mean(*ENHANCED[:3])))),
    "C8": claim("The baseline is competitive: not the worst of the 13",
                Any(*(Above(At(arm(other) - arm("baseline"))) for other in ORIGINAL if other != "baseline"))),
    "C9": claim("Just adding a bias helps", Above(At(arm("mla_plain") - arm("bias_only")))),
    "C10": claim("RoPE variants rank before LoRA variants", Above(At(mean(*LORA) - mean(*ROPE))), primary=True),
    "C11": claim("LoRA adds parameters: its arms have more than the baseline", about="cost", statement=
                 All(*(Above(Given(f"attention parameters of {name} over the baseline"), 1) for name in LORA))),
    "C12": claim("enhanced_small needs the least memory to train", about="cost", statement=
                 All(*(Above(Given(f"bytes to train {name} over enhanced_small")) for name in ORIGINAL
                       if name != "enhanced_small"))),
    "C13": claim("Model size matters more than attention: halving it costs more than choosing the worst of the 13 for "
                 "the best", primary=True, statement=
                 All(*(Above(At(arm(HALF) - arm(REFERENCE) - arm(worse) + arm(better)))
                       for worse in ORIGINAL for better in ORIGINAL if worse != better))),
}  # fmt: skip


def derive(records):
    """`training_bytes`: what training needs, one attention kernel for all arms."""
    return records.assign(
        variant=records["variant"].astype(str),
        training_bytes=records["micro_activation_bytes"] + STATE_BYTES * records["n_params"],
    )


def estimates(records, out):
    """The counts that C11 and C12 are about, which have no noise."""
    from mlexp.analysis.findings import counted

    first = out.data.rows("").groupby("variant")[["attention_params", "training_bytes"]].first()
    found = {}
    for name in first.index:
        for what, other, metric in (
            ("attention parameters of {} over the baseline", "baseline", "attention_params"),
            ("bytes to train {} over enhanced_small", "enhanced_small", "training_bytes"),
        ):
            if other in first.index and name != other:
                value = first.at[name, metric] - first.at[other, metric]
                found[what.format(name)] = lambda confidence, value=value: counted(value)
    return found


def answer(findings, arms) -> str:
    """One sentence: whether there is a winner, and whether the original's is it."""
    winner = {
        "supported": "rope_small, the original's winner, is the best of the 13",
        "refuted": "The original's winner, rope_small, is not the best of the 13",
        "undecided": "Whether rope_small is the best of the 13 cannot be told",
        "not tested": f"Whether rope_small is the best of the 13 is not tested ({findings['C1'].reason})",
    }[findings["C1"].verdict]
    competing = arms[~arms["variant"].isin((AGAIN, HALF))] if len(arms) else arms
    if not len(competing):
        return winner + "."
    lowest = competing.nsmallest(1, "loss_nats").iloc[0]
    return f"{winner}; {lowest['variant']} has the lowest mean loss, {lowest['loss_nats']:.4f} nats."


STUDY = Study(
    asks="Which of 13 attentions is best at one model size, and is any of it more than noise?",
    arm="variant",
    arms=(*ARMS, *FACTORIAL),
    baseline=REFERENCE,
    apart=(AGAIN, HALF),
    independent=True,
    fixed={"match": "same_shape", "budget": "finished"},
    outcome="loss_nats",
    costs=("wall_s", "flops", "training_bytes", "kv_bytes_per_token"),
    settings=SETTINGS,
    axes={"budget": "budgets", "match": "matches", "seed": "seeds", "variant": "variants"},
    metrics=METRICS,
    parts=PARTS,
    claims=CLAIMS,
    derive=derive,
    estimates=estimates,
    answer=answer,
)

"""Does branching help larger models more?  The declaration: arms, settings, metrics, claims."""

from dataclasses import dataclass, replace
from typing import Annotated

from mlexp.decoding.models import MODELS
from mlexp.decoding.recipes import Nano
from mlexp.decoding.settings import DECODER_NAMES, Sampling
from mlexp.settings import AtLeast, OneOf
from mlexp.settings import Settings as Base
from mlexp.study import Above, At, Claim, Levels, Slope, Study, Within, ratio


def p(count: int) -> tuple[str, ...]:
    """The names of the first prompts; the generator makes any number of them."""
    return tuple(f"p{i:02d}" for i in range(count))


def b(count: int) -> tuple[str, ...]:
    """The names of the first batches of prompts that are decoded together."""
    return tuple(f"b{i:02d}" for i in range(count))


@dataclass(frozen=True)
class Settings(Sampling, Base):
    """The original's numbers: Sampling's, and these. `replicates`: trees a prompt behind worst_effective_samples,
    untimed; it is null for fewer than 16. `packed`: layers as in mlexp/decoding/packed.py; false: transformers' own.

    `whole_models` have lengths, samples and replicates of their own, the original's, and are decoded by
    `whole_decoders` alone: what real weights say is read, and of a text four tokens say nothing.

    Batch j of `batches` is `batch_prompts` prompts decoded together: those behind batch j - 1's.
    """

    models: Annotated[tuple[str, ...], OneOf(MODELS)] = tuple(MODELS)
    prompts: tuple[str, ...] = p(10)
    decoders: Annotated[tuple[str, ...], OneOf(DECODER_NAMES)] = DECODER_NAMES
    prompt_tokens: Annotated[int, AtLeast(1)] = 200
    batches: tuple[str, ...] = b(3)
    batch_prompts: Annotated[int, AtLeast(1)] = 10
    batch_models: Annotated[tuple[str, ...], OneOf(("none", *MODELS))] = tuple(MODELS)
    rounds: Annotated[int, AtLeast(1)] = 3
    replicates: Annotated[int, AtLeast(2)] = 128
    replicate_models: Annotated[tuple[str, ...], OneOf(("none", *MODELS))] = tuple(MODELS)
    whole_models: Annotated[tuple[str, ...], OneOf(("none", *MODELS))] = ("none",)
    whole_decoders: Annotated[tuple[str, ...], OneOf(DECODER_NAMES)] = DECODER_NAMES
    whole_prompt_tokens: Annotated[int, AtLeast(1)] = 200
    whole_samples: Annotated[int, AtLeast(1)] = 20
    whole_new_tokens: Annotated[int, AtLeast(1)] = 50
    whole_replicates: Annotated[int, AtLeast(2)] = 16
    nano_steps: Annotated[int, AtLeast(1)] = Nano.steps
    packed: bool = True

    def __post_init__(self) -> None:
        Sampling.__post_init__(self)
        Base.__post_init__(self)
        for what, names in (("prompt", self.prompts), ("batch", self.batches)):
            for name in names:
                if not (name[:1] == what[0] and name[1:].isdigit()):
                    few = ", ".join(f"{what[0]}{i:02d}" for i in range(3))
                    raise ValueError(f"unknown {what} {name!r}; choose from {few}, ... (any number)")

    def of(self, model: str) -> "Settings":
        """The settings of a model's cells."""
        if model not in self.whole_models:
            return self
        return replace(
            self, prompt_tokens=self.whole_prompt_tokens, samples=self.whole_samples, max_paths=self.whole_samples,
            max_new_tokens=self.whole_new_tokens, replicates=self.whole_replicates,
        )  # fmt: skip


ORIGINAL = {"prompt_tokens": 200, "samples": 20, "max_new_tokens": 50, "temperature": 0.8, "threshold": 0.4}
# Below full, replicates are grown for these two alone: for the larger ones they would cost more than all that is timed.
NANO, WHOLE = ("gpt2_nano",), ("smollm2_135m",)
REAL = WHOLE[0]  # real weights come with a package
FEW = ("gpt2_nano", "gpt2_small")
SMALL = Settings(prompts=p(5), prompt_tokens=24, samples=4, max_new_tokens=4, max_paths=4, rounds=1,
                 replicate_models=NANO, batch_prompts=3, batch_models=FEW)  # fmt: skip
TINY = {"prompts": p(1), "prompt_tokens": 16, "samples": 2, "max_new_tokens": 3, "replicates": 16, "nano_steps": 20,
        "batches": b(1), "batch_prompts": 2}  # fmt: skip
SETTINGS = {
    "smoke": replace(SMALL, **TINY),
    "quick": replace(
        SMALL,
        replicates=64,
        replicate_models=(*NANO, *WHOLE),
        whole_models=WHOLE,
        whole_decoders=("shared_prefill", "dedup", "eab_paper", "eab_particles", "ctranslate2"),
    ),
    "full": Settings(),
}

METRICS = {
    "n_prompts": ("prompts", "none", "prompts decoded together"),
    "kernel_backend": ("name", "none", "what the kernels of the tree arms ran on, or the library that decodes"),
    "token_forwards": ("tokens", "lower", "tokens pushed through the model, by a hook on it (ctranslate2: by formula)"),
    "model_forwards": ("count", "lower", "calls of the model (ctranslate2: by formula)"),
    "logit_rows": ("rows", "lower", "rows for which the head was computed (ctranslate2: by formula)"),
    "flops_arm_closed_form": ("FLOP", "none", "linear layers, attention and head by the arm's formula"),
    "n_samples": ("samples", "none", "samples returned; eab_paper cannot fix their number"),
    "bytes_per_sample": ("bytes", "lower", "peak_bytes over n_samples"),
    "kv_bytes": ("bytes", "lower", "keys and values held at the end, over all rows (ctranslate2: by formula)"),
    "branch_count": ("nodes", "none", "nodes with at least two children, the prompt included"),
    "branch_rate": ("fraction", "none", "share of decided positions whose entropy reaches the threshold"),
    "branch_position_first": ("tokens", "none", "new tokens before the first branching"),
    "branch_position_mean": ("tokens", "none", "new tokens before a branching, mean"),
    "branch_position_last": ("tokens", "none", "new tokens before the last branching"),
    "final_paths": ("paths", "none", "live paths at the end"),
    "worst_effective_samples": ("samples", "higher", "independent samples that those of a tree are worth, at worst"),
    "worst_effective_samples_error": ("samples", "none", "jackknife standard error, by worst_functional"),
    "worst_functional": ("name", "none", "what the samples of a tree estimate worst: token_0, surprisal, ..."),
    "surprisal_effective_samples": ("samples", "higher", "the same by the path's surprisal"),
    "first_token_effective_samples": ("samples", "higher", "the same by the first new token"),
    "unique_samples": ("samples", "higher", "distinct sequences among the samples"),
    "mean_length": ("tokens", "none", "mean length of the texts, their stop token included"),
    "mean_surprisal_nats": ("nats", "none", "mean of -log p(sample) under the tempered model, over whole samples"),
    "distinct_1": ("fraction", "higher", "distinct unigrams over all unigrams of the samples"),
    "distinct_2": ("fraction", "higher", "distinct bigrams over all bigrams of the samples"),
    "self_bleu": ("fraction", "lower", "mean BLEU-4 of each sample against the others"),
    "seconds_per_effective_sample": ("s", "lower", "derived: wall_s over the effective samples, at worst"),
    "logit_gain": ("ratio", "none", "what the logits of random weights were multiplied by"),
}

SIZES = ("gpt2_small", "gpt2_medium", "gpt2_large", "gpt2_xl")  # the trend is over these; gpt2_nano takes no part
BANDS = {"gpt2_small": (1.8, 2.2), "gpt2_medium": (2.0, 2.5), "gpt2_large": (2.2, 2.8), "gpt2_xl": (2.5, 3.2)}
SPEEDUP = ratio("sequential", "eab_particles", "wall_s")
FEWER = ratio("sequential", "eab_particles", "token_forwards")
PER_SAMPLE = "seconds_per_effective_sample"
CLAIMS = {
    "H1": Claim("The speed-up over sequential sampling grows with model size",
                Above(Slope(SPEEDUP, "n_params", Levels(SIZES))), source="original", primary=True),
    "H1b": Claim("Larger models branch in a way that saves more of the tokens",
                 Above(Slope(FEWER, "n_params", Levels(SIZES))), about="behaviour"),
    **{
        f"H2 {model}": Claim(f"{model}: the speed-up over sequential lies in the predicted {low}-{high}",
                             Within(At(SPEEDUP, Levels((model,))), low, high),
                             source="original", about="behaviour", settings=ORIGINAL)
        for model, (low, high) in BANDS.items()
    },
    **{
        f"H3 {model} {baseline}": Claim(
            f"{model}: eab_particles beats {baseline}, per effective sample",
            Above(At(ratio(baseline, "eab_particles", PER_SAMPLE), Levels((model,))), 1.0),
            about="cost" if model == "gpt2_nano" else "behaviour")  # nano is trained here: it stands in for nothing
        for model in MODELS
        for baseline in ("dedup", "shared_prefill")
    },
    **{
        f"H4 {baseline}": Claim(f"{REAL}: a call of eab_particles takes less time than one of {baseline}",
                                Above(At(ratio(baseline, "eab_particles", "wall_s"), Levels(WHOLE)), 1.0))
        for baseline in ("dedup", "shared_prefill")
    },
    "H5": Claim(f"{REAL}: its texts are nearly as many different ones as those of independent samples (0.9 times)",
                Above(At(ratio("eab_particles", "dedup", "unique_samples"), Levels(WHOLE)), 0.9), about="behaviour"),
}  # fmt: skip


def derive(records):
    """`seconds_per_effective_sample`: the time of a call over the independent samples that its samples are worth; that
    is not known of older records, which looked at the path's surprisal alone."""
    if "worst_effective_samples" not in records:
        return records.assign(seconds_per_effective_sample=float("nan"))
    return records.assign(
        seconds_per_effective_sample=records["wall_s"] / records["worst_effective_samples"].astype(float)
    )


def answer(findings, arms) -> str:
    """What real weights say where they were measured; the trend over sizes; effective samples."""
    tested = [found for id, found in findings.items() if id.startswith("H3") and found.verdict != "not tested"]
    won = sum(found.verdict == "supported" for found in tested)
    parts = [real(findings), trend(findings["H1"])]
    if tested:
        parts.append(
            f"per effective sample it beats the arms that share the prompt in {won} of {len(tested)} comparisons"
        )
    elif not parts[0]:
        parts.append("no comparison per effective sample is in these records")
    sentence = "; ".join(part for part in parts if part)
    return f"{sentence[:1].upper()}{sentence[1:]}."


def real(findings) -> str:
    """Branching with the real model: how much faster, and how many different texts are left."""
    faster, different = findings["H4 dedup"], findings["H5"]
    if "not tested" in (faster.verdict, different.verdict):
        return ""
    speed = {
        "supported": "is faster than",
        "refuted": "is not faster than",
        "undecided": "may or may not be faster than",
    }
    left = {
        "supported": "returns nearly as many different texts",
        "refuted": "returns fewer different texts",
        "undecided": "whether it returns as many different texts is open",
    }
    return (
        f"on {REAL} branching {speed[faster.verdict]} the lossless tree ({faster.effect}) and "
        f"{left[different.verdict]} ({different.effect})"
    )


def trend(found) -> str:
    """How the speed-up goes with size."""
    return {
        "supported": f"the speed-up over sequential sampling grows with model size ({found.effect})",
        "refuted": f"the speed-up over sequential sampling does not grow with model size ({found.effect})",
        "undecided": f"whether the speed-up over sequential sampling grows with size is open ({found.effect})",
        "not tested": f"whether the speed-up grows with size is not tested ({found.reason})",
    }[found.verdict]


STUDY = Study(
    asks="Does branching help larger models more?",
    arm="decoder",
    arms=DECODER_NAMES,
    baseline="sequential",
    over=("model",),
    replicates=("prompt",),
    outcome="wall_s",
    costs=("token_forwards", "flops", "peak_bytes"),
    settings=SETTINGS,
    axes={"model": "models", "prompt": "prompts", "batch": "batches", "decoder": "decoders"},
    metrics=METRICS,
    claims=CLAIMS,
    derive=derive,
    answer=answer,
)

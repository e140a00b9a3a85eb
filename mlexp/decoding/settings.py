"""The decoders, a row each, and the settings that all of them obey; imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Decoder:
    """One arm of the study: how it decodes N samples of a prompt, and what that means for their cost and quality."""

    what: str
    policy: str | None = None  # of its tree, a name in policies.POLICIES; None = it has no tree
    shares_prompt: bool = True  # the prompt is encoded once for all samples
    one_by_one: bool = False  # a sample after the other, each at batch 1
    lossless: bool = True  # the samples are independent draws from the model
    library: str | None = None  # that decodes in torch's place: the arm is there where this is installed
    fixed: Mapping[str, Any] = field(default_factory=dict)  # fields of Sampling that this arm has its own values of

    def settings(self, sampling: "Sampling") -> "Sampling":
        """The settings of this arm in a run whose shared settings are `sampling`."""
        return replace(sampling, **self.fixed)


DECODERS = {
    "sequential": Decoder("N generations at batch 1, the prompt encoded anew", shares_prompt=False, one_by_one=True),
    "hf_batched": Decoder("transformers' generate(), a batch of N copies of the prompt", shares_prompt=False),
    "shared_prefill": Decoder("the prompt encoded once, its cache copied to a batch of N"),
    "dedup": Decoder("a tree of N independent samples, equal prefixes computed once", "dedup"),
    "eab_paper": Decoder("the original's: k distinct children, the least likely pruned", "eab_paper", lossless=False),
    "eab_particles": Decoder("N particles, parted where the next token is uncertain", "eab_particles", lossless=False),
    "ctranslate2": Decoder("CTranslate2: the prompt encoded once, a batch of N", library="ctranslate2"),
}
"""Baselines first, then the trees, then other libraries. A decoder with a policy needs only its row, others a function
in decoders.py."""
DECODER_NAMES = tuple(DECODERS)
TREE_DECODERS = tuple(name for name, row in DECODERS.items() if row.policy)


@dataclass(frozen=True)
class Sampling:
    """The settings that every decoder obeys; the defaults are the original's.

    `threshold` is a fraction of ln V in [0, 1]; `temperature` divides the logits; `max_paths` bounds the paths of one
    tree, ended ones included (`dedup`, which is lossless, has up to `samples` of them in any case). `top_k` and
    `top_p` filter the tempered distribution as transformers does, in this order (0 and 1.0 = all tokens). A text ends
    with the first of `stop_tokens` that it draws (none = all texts have max_new_tokens); behind its end stands
    the first of them.
    """

    samples: int = 20
    max_new_tokens: int = 50
    temperature: float = 0.8
    threshold: float = 0.4
    branch_factor: int = 3
    max_paths: int = 20
    top_k: int = 0
    top_p: float = 1.0
    stop_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        minima = {"samples": 1, "max_new_tokens": 1, "branch_factor": 1, "max_paths": 1, "top_k": 0}
        for name, bound in minima.items():
            if not is_int(value := getattr(self, name)) or value < bound:
                raise ValueError(f"{name}={value!r}: expected an integer of at least {bound}")
        for name in ("temperature", "threshold", "top_p"):
            if not isinstance(value := getattr(self, name), (int, float)) or isinstance(value, bool):
                raise ValueError(f"{name}={value!r}: expected a number")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature!r}: expected a finite number above 0")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold!r}: expected a fraction of ln V in [0, 1]")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p!r}: expected a fraction in (0, 1]")
        if not all(is_int(token) and token >= 0 for token in self.stop_tokens):
            raise ValueError(f"stop_tokens={self.stop_tokens!r}: expected token ids of at least 0")


class BranchRule(NamedTuple):
    """When the particles at a tip part, and into how many groups."""

    threshold_nats: float  # they part where the entropy of the next token reaches it
    branch_factor: int  # groups at most
    max_paths: int  # live paths of a tree at most
    lossless: bool = False  # every particle is a group of its own, and the other fields do not count


def decoder_row(name: str) -> Decoder:
    """A row of DECODERS. Raises ValueError for an unknown name."""
    if name not in DECODERS:
        raise ValueError(f"unknown decoder {name!r}; choose from {', '.join(DECODERS)}")
    return DECODERS[name]


def is_int(value: object) -> bool:
    """Whether a value is an integer and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)

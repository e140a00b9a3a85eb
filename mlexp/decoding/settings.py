"""What a decoding run is asked for, and the names of the ways to do it; imports nothing heavy."""

from dataclasses import dataclass
from typing import NamedTuple

DECODER_NAMES = ("sequential", "hf_batched", "shared_prefill", "dedup", "eab_paper", "eab_particles")
TREE_DECODERS = ("dedup", "eab_paper", "eab_particles")


@dataclass(frozen=True)
class Sampling:
    """The settings every decoder obeys; the defaults are the original's.

    `threshold` is a fraction of ln V in [0, 1]; `temperature` divides the logits; `max_paths` bounds the paths of one
    tree, ended ones included (`dedup`, which is lossless, has up to `samples` of them whatever it says). `top_k` and
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

    def __post_init__(self):
        least = {"samples": 1, "max_new_tokens": 1, "branch_factor": 1, "max_paths": 1, "top_k": 0}
        for name, bound in least.items():
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
    lossless: bool = False  # every particle is a group of its own, whatever the other fields say


def is_int(value) -> bool:
    """Whether a value is an integer and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)

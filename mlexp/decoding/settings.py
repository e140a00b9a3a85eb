"""What a decoding run is asked for, and the names of the ways to do it; imports nothing heavy."""

from dataclasses import dataclass

DECODER_NAMES = ("sequential", "hf_batched", "shared_prefill", "dedup", "eab_paper", "eab_particles")
TREE_DECODERS = ("dedup", "eab_paper", "eab_particles")


@dataclass(frozen=True)
class Sampling:
    """The settings every decoder obeys; the defaults are the seed's.

    `threshold` is a fraction of ln V in [0, 1]; `temperature` divides the logits; `max_paths` bounds the live paths of
    one tree (`dedup`, which is lossless, has up to `samples` of them whatever it says).
    """

    samples: int = 20
    max_new_tokens: int = 50
    temperature: float = 0.8
    threshold: float = 0.4
    branch_factor: int = 3
    max_paths: int = 20

    def __post_init__(self):
        for name in ("samples", "max_new_tokens", "branch_factor", "max_paths"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: expected an integer of at least 1")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature!r}: expected a finite number above 0")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold!r}: expected a fraction of ln V in [0, 1]")

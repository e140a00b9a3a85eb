"""Recipes of the weights that are made offline, as data: part of a record's identity, so it imports nothing heavy."""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .models import Model


@dataclass(frozen=True)
class StandIn:
    """Seeded random weights whose logits are multiplied by one gain per model (spec section 7).

    The gain is the one at which `branch_rate` of the positions of its own samples have H >= threshold * ln V. 11.3 % is
    the one figure known for pretrained GPT-2.
    """

    seed: int = 20
    std: float = 0.02
    branch_rate: float = 0.113
    threshold: float = 0.4
    temperature: float = 0.8
    prompts: int = 4
    rows: int = 8
    prompt: int = 200
    steps: int = 50
    passes: int = 2
    version: int = 1  # of initial.py and standin.py: raised when the same recipe gives other weights


# What standin.calibrate gives for the default recipe in float32: (standin_hash, gain). Shipped, so that every machine
# has the same stand-in and none spends a minute on the largest; any other recipe is calibrated at first use.
GAINS = {
    "gpt2_nano": ("2b5d25ead30be336", 7.8445),
    "gpt2_small": ("e904b2fae4cb2cfd", 6.6064),
    "gpt2_medium": ("dd61883ddd12a1e1", 5.7520),
    "gpt2_large": ("dfe0ad48a03050f9", 4.6832),
    "gpt2_xl": ("bbc4533e5af26d8c", 4.2697),
    "smollm2_135m": ("91fce1f4a3c3cd71", 4.6909),
}


SOURCES = (
    *(f"../training/{module}.py" for module in ("loop", "optimizer", "microbatch")),
    *("nano.py", "initial.py", "text.py", "../text/tokenizer.py"),
)  # what the weights of gpt2_nano depend on, beside its corpus


@dataclass(frozen=True)
class Nano:
    """How gpt2_nano is trained at first use."""

    seed: int = 7
    steps: int = 300
    batch: int = 8
    window: int = 256
    lr: float = 2e-3
    warmup: int = 40
    weight_decay: float = 0.1
    evaluate_every: int = 100
    sources: tuple[str, ...] = field(default=SOURCES, repr=False)


STANDIN, NANO = StandIn(), Nano()


def digest(*parts: object) -> str:
    """Hash of the reprs of plain values, and of the bytes of files: 16 hex digits."""
    h = hashlib.blake2b(digest_size=8)
    for part in parts:
        h.update(part.read_bytes() if isinstance(part, Path) else repr(part).encode())
        h.update(b"\0")
    return h.hexdigest()


def standin_hash(row: Model, recipe: StandIn) -> str:
    return digest("standin", asdict(row), asdict(recipe))


def known_gain(name: str, row: Model, recipe: StandIn) -> float | None:
    """The gain in the table, if it was measured for this very row and recipe."""
    known = GAINS.get(name)
    return known[1] if known and known[0] == standin_hash(row, recipe) else None


def nano_hash(row: Model, recipe: Nano, corpus_hash: str) -> str:
    here = Path(__file__).parent
    return digest("nano", asdict(row), asdict(recipe), corpus_hash, *((here / s) for s in recipe.sources))

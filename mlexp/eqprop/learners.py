"""The learners, one line each: a network, the rule that trains it, and how many parameters that makes. No torch.

V alphabet, d width, L blocks, T positions, k characters of context, e width of a character.
"""

from dataclasses import dataclass

ALPHABET = 97  # newline, the printable characters 32..126, and one for all others


@dataclass(frozen=True)
class Size:
    """Of every network; `context` and `embed` are of looped_mlp alone: how many characters it sees, how wide each."""

    width: int = 128
    layers: int = 3
    heads: int = 4
    length: int = 64  # positions of a sequence, at most
    context: int = 4
    embed: int = 32

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "length", "context", "embed"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1")
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads}: must divide the width {self.width}")


SIZES = {
    "quick": Size(width=64, layers=2, length=32),
    "full": Size(),
}


@dataclass(frozen=True)
class Learner:
    """A row: `layers` None = the size's; `kappa` is the strength of the feedback; rule and settings of the settling.

    A twin differs from its learner in the rule alone: backprop (autograd), eqprop, or exact (implicit differentiation).
    """

    network: str  # transformer, hopfield or residual
    rule: str
    layers: int | None = None
    kappa: float = 0.0
    beta: float = 0.03  # the nudge's strength
    nudge: str = "split"  # symmetric, split or positive
    lr: float = 1e-3


LEARNERS = {
    "backprop":            Learner("transformer", "backprop"),
    "backprop_matched":    Learner("transformer", "backprop", layers=1),  # as many parameters as recurrent_core
    "looped_mlp":          Learner("hopfield", "eqprop", beta=0.1, nudge="symmetric", lr=3e-3),
    "recurrent_core":      Learner("residual", "eqprop", layers=1, kappa=0.25),
    "full":                Learner("residual", "eqprop", kappa=0.25),
    "full_kappa0":         Learner("residual", "eqprop"),
    "looped_mlp_twin":     Learner("hopfield", "exact", lr=3e-3),
    "recurrent_core_twin": Learner("residual", "exact", layers=1, kappa=0.25),
    "full_twin":           Learner("residual", "exact", kappa=0.25),
}  # fmt: skip


def learner(name: str) -> Learner:
    """The row of a name. Raises ValueError for a name that the table lacks."""
    if name not in LEARNERS:
        raise ValueError(f"unknown learner {name!r}; choose from {', '.join(LEARNERS)}")
    return LEARNERS[name]


def n_params(row: Learner, size: Size) -> int:
    """Parameters in closed form: embeddings and head, and per block attention 4 d², feed-forward 4 d² + 3 d, norms."""
    V, d, L = ALPHABET, size.width, row.layers or size.layers
    head = d * V + V
    if row.network == "hopfield":
        return (V + 1) * size.embed + size.context * size.embed * d + d + (L - 1) * (d * d + d) + head
    norm = 2 * d if row.network == "transformer" else d  # gain and bias, or gain alone
    return (V + size.length) * d + L * (8 * d * d + 3 * d + 2 * norm) + norm + head

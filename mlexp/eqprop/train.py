"""Training a learner: the same loop, data and budget for all; what the settling did is logged beside the losses.

B sequences, T positions, d width.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mlexp.training import Fit, Recipe, fit, seed_everything

from .hopfield import Hopfield
from .learners import Learner, Size
from .residual import Residual
from .rule import Alignment, Rule, alignment, loss_of
from .settle import Network, Settled, Stop, cross_entropy, predicted
from .transformer import Transformer

Model = Transformer | Hopfield | Residual

CHECKED = 8  # sequences of the batch that gradients are compared on
WARMUP_SHARE = 20  # warm-up: a twentieth of the steps
PREDICTED = 1e-4  # a position's last movement in a prediction: losses are then exact to a millionth of a nat or so


@dataclass
class Log:
    """Per settling: sweeps, residuals, how many ended above their tolerance; per check: step, Alignment (`rule`); per
    validation: sweeps of a prediction, the mean over its batches.

    For a twin the nudged phase is the adjoint's.
    """

    free_sweeps: list[int] = field(default_factory=list)
    nudged_sweeps: list[int] = field(default_factory=list)
    free_residual: list[float] = field(default_factory=list)
    nudged_residual: list[float] = field(default_factory=list)
    unconverged: int = 0
    checked_steps: list[int] = field(default_factory=list)
    gradient_cosine: list[float] = field(default_factory=list)
    inner_cosine: list[float] = field(default_factory=list)
    gradient_ratio: list[float] = field(default_factory=list)
    prediction_sweeps: list[float] = field(default_factory=list)

    def note(self, rest: Settled, end: Settled) -> None:
        self.free_sweeps.append(rest.sweeps)
        self.nudged_sweeps.append(end.sweeps)
        self.free_residual.append(rest.residual)
        self.nudged_residual.append(end.residual)
        self.unconverged += (not rest.converged) + (not end.converged)

    def check(self, step: int, found: Alignment) -> None:
        self.checked_steps.append(step)
        self.gradient_cosine.append(found.cosine)
        self.inner_cosine.append(found.inner_cosine)
        self.gradient_ratio.append(found.ratio)

    @property
    def unconverged_fraction(self) -> float:
        """Of all settlings, free and nudged; 0 where there were none."""
        return self.unconverged / max(1, len(self.free_sweeps) + len(self.nudged_sweeps))


class Caps:
    """Holds matrices to their spectral norms: power iterations, two a call, that go on where the last call ended."""

    def __init__(self, network: Network):
        self.pairs = network.capped()
        self.vectors = [torch.ones(w.shape[0], device=w.device, dtype=w.dtype) for w, _ in self.pairs]

    @torch.no_grad()
    def __call__(self) -> None:
        for i, (w, cap) in enumerate(self.pairs):
            v = w.T @ (w @ (w.T @ self.vectors[i]))
            u = w @ v
            length = u.norm()
            norm = length / v.norm().clamp(min=1e-30)
            self.vectors[i] = u / length.clamp(min=1e-30)
            w.mul_(cap / norm.clamp(min=cap))


def network(row: Learner, size: Size, seed: int, drop: float = 0.0, device: torch.device | str = "cpu") -> Model:
    """A learner's network ready to train; a twin starts from its learner's weights. `drop` is the transformer's."""
    seed_everything(seed)
    size = replace(size, layers=row.layers or size.layers)
    made: Model
    if row.network == "transformer":
        made = Transformer(size, drop)
    else:
        made = Hopfield(size) if row.network == "hopfield" else Residual(size, row.kappa)
    return made.to(device).train()


class Prediction(NamedTuple):
    """Logits (B, T, V) of the next characters; the free phase's residual and sweeps, 0 without one."""

    logits: Tensor
    residual: float = 0.0
    sweeps: int = 0


def predict(model: Model, x: Tensor, tolerance: float = PREDICTED) -> Prediction:
    """What comes after the characters x (B, T): settled until no position moves by more than `tolerance` of its norm in
    a sweep, and at most `patience` sweeps; at tolerance 0 exactly those.

    No sequence's prediction depends on what else is in the batch (`settle.predicted`).
    """
    if isinstance(model, Transformer):
        return Prediction(model(x))
    rest = predicted(model, model.clamp(x), Stop(tolerance, model.patience))
    return Prediction(model.logits(rest.states[-1]), rest.residual, rest.sweeps)


class Score(NamedTuple):
    """Mean loss in nats, the largest residual of a free phase, sweeps of a batch's, mean."""

    loss: float
    residual: float
    sweeps: float


@torch.no_grad()
def evaluate(
    model: Model, windows: tuple[Tensor, Tensor, Tensor], batch: int = 64, tolerance: float = PREDICTED
) -> Score:
    """The score of a model over the targets that count; windows as `chars.scored` gives them. Dropout is off
    meanwhile."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    total, worst, sweeps = torch.zeros((), device=device), 0.0, []
    for x, y, counts in zip(*(torch.split(w, batch) for w in windows), strict=True):
        found = predict(model, x.to(device), tolerance)
        losses = nn.functional.cross_entropy(found.logits.transpose(1, 2), y.to(device), reduction="none")
        total, worst = total + losses[counts.to(device)].sum(), max(worst, found.residual)
        sweeps.append(found.sweeps)
    model.train(training)
    return Score(float(total / windows[2].sum()), worst, sum(sweeps) / len(sweeps))


def plain_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Backprop's: mean cross-entropy in nats."""
    mean: Tensor = cross_entropy(model(x), y).sum() / y.numel()
    return mean


def train(
    row: Learner,
    model: Model,
    batches: Callable[[int], tuple[Tensor, Tensor]],
    windows: tuple[Tensor, Tensor, Tensor],
    steps: int,
    *,
    lr: float | None = None,
    weight_decay: float = 0.01,
    evaluate_every: int = 25,
    checks: int = 4,
    rule: Rule | None = None,
    score: Callable[[Model, tuple[Tensor, Tensor, Tensor]], Score] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Fit, Log]:
    """Train in place; the state of the best validation loss (over `windows`) is the one left in the model.

    An eqprop learner's gradient is compared with the exact one before the first step, after the last, and at even
    distances, `checks` times in all. `score` is what validates, instead of `evaluate` as it is. Raises
    FloatingPointError where the loss is not finite.
    """
    log, settling = Log(), None if isinstance(model, Transformer) else model
    caps = Caps(settling) if settling else None
    rule = (rule or Rule(row.beta, row.nudge)) if row.rule == "eqprop" else None
    x, y = (w[:CHECKED].contiguous().to(next(model.parameters()).device) for w in windows[:2])
    due = {round(i * steps / max(1, checks - 1)) for i in range(checks)}

    def after(step: int) -> None:
        if caps:
            caps()
        if rule and settling and step in due:
            log.check(step, alignment(settling, x, y, rule))

    def validate() -> float:
        found = (score or evaluate)(model, windows)
        if settling:
            log.prediction_sweeps.append(found.sweeps)
        return found.loss

    after(0)
    result = fit(
        model, plain_loss if row.rule == "backprop" else loss_of(rule, log.note), batches,
        Recipe(steps, lr or row.lr, -(-steps // WARMUP_SHARE), weight_decay), after=after,
        evaluate=validate, evaluate_every=evaluate_every, progress=progress,
    )  # fmt: skip
    return result, log

"""Equilibrium propagation: two phases, and the energy's partial derivative in the parameters where they ended.

B sequences, T positions, d width, N = B T targets. With F = E + beta C and z_b a stationary point of F at beta = b:
    symmetric  (dF/dtheta at z_b - dF/dtheta at z_-b) / (2 b N)      error O(b²), two nudged phases stacked
    positive   (dF/dtheta at z_b - dE/dtheta at z_0) / (b N)         error O(b)
    split      as positive, with b's sign drawn for each sequence    error O(b²) in expectation, half the cost
States are constants in these derivatives; blocks have disjoint graphs and are differentiated one at a time. Sources:
Scellier and Bengio (2017, equation 11); symmetric, Laborieux et al. (2021, equation 9); drawn sign, Scellier and Bengio
(2017, section 4.1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import compress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .exact import Gradients, add, exact, values
from .settle import Network, Settled, Stop, cross_entropy, free, nudged

NUDGES = ("symmetric", "split", "positive")
FREE, NUDGED = Stop(1e-3, 60), Stop(1e-1, 60)  # while training
TIGHT = Stop(1e-5, 100)  # for the exact gradient, in float32


@dataclass(frozen=True)
class Rule:
    """The nudge's strength and kind, and when each phase stops."""

    beta: float
    nudge: str = "split"
    free: Stop = FREE
    nudged: Stop = NUDGED

    def __post_init__(self) -> None:
        if self.nudge not in NUDGES:
            raise ValueError(f"unknown nudge {self.nudge!r}; choose from {', '.join(NUDGES)}")
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; above 0")


def contrast(
    network: Network, x: Tensor, y: Tensor, rule: Rule
) -> tuple[Tensor, list[Tensor], tuple[Settled, Settled]]:
    """(mean loss of the free phase in nats, the estimated gradient for each parameter, free and nudged phase) at inputs
    x, targets y (B, T)."""
    signs, share = signs_of(x, rule.nudge)
    with torch.no_grad():
        c = network.clamp(x)
    rest = free(network, c, rule.free)
    with torch.no_grad():
        loss = cross_entropy(network.logits(rest.states[-1]), y).sum() / y.numel()
    copies = len(signs) // len(x)
    start, c, targets = [stacked(z, copies) for z in rest.states], stacked(c, copies), stacked(y, copies)
    end = nudged(network, c, targets, start, rule.beta * signs, rule.nudged)
    weights = signs * share / (rule.beta * y.numel())
    total: Gradients = dict.fromkeys(network.parameters())
    energies(network, x, end.states, weights, total)
    if rule.nudge != "symmetric" and not network.rests:
        energies(network, x, rest.states, -weights, total)
    with torch.enable_grad():
        add(total, cross_entropy(network.logits(end.states[-1]), targets).sum() * share / y.numel())
    return loss, values(total), (rest, end)


def stacked(x: Tensor, copies: int) -> Tensor:
    """So many copies along the batch; of one copy x itself."""
    return x if copies == 1 else x.repeat(copies, *[1] * (x.ndim - 1))


def signs_of(x: Tensor, nudge: str) -> tuple[Tensor, float]:
    """The signs of the nudges, (B,) or stacked (2 B,), and each one's share of its sequence's gradient.

    The drawn sign of a sequence is the parity of its characters: it is the same in any batch or micro-batch.
    """
    plus = torch.ones(len(x), device=x.device)
    if nudge == "symmetric":
        return torch.cat([plus, -plus]), 0.5
    return (plus if nudge == "positive" else plus - 2 * (x.sum(1) % 2)), 1.0


def energies(network: Network, x: Tensor, states: list[Tensor], weights: Tensor, total: Gradients) -> None:
    """Add the parameter derivatives of the weighted sum of the sequences' energies, one block's graph at a time."""
    copies = len(weights) // len(x)
    with torch.enable_grad():
        add(total, (weights * network.learned(0, states, stacked(network.clamp(x), copies))).sum())
        for block in range(1, len(states)):
            add(total, (weights * network.learned(block, states, states[0])).sum())


class _Given(torch.autograd.Function):
    """A value whose derivatives in the parameters are given."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, share: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(share * g for g in ctx.gradients))


def loss_of(
    rule: Rule | None, note: Callable[[Settled, Settled], None] | None = None
) -> Callable[[Network, Tensor, Tensor], Tensor]:
    """`loss(network, x, y)` for mlexp.training.fit: the free phase's mean loss, in nats, whose backward gives the
    estimate by `rule`, or where that is None the exact gradient; `note` is called with both phases."""

    def loss(network: Network, x: Tensor, y: Tensor) -> Tensor:
        value, gradients, phases = contrast(network, x, y, rule) if rule else exact(network, x, y, TIGHT, TIGHT)
        if note:
            note(*phases)
        given: Tensor = _Given.apply(value, gradients, *network.parameters())  # type: ignore[no-untyped-call]  # torch does not annotate it
        return given

    return loss


class Alignment(NamedTuple):
    """Of an estimate to the true gradient: cosine over all parameters; over those that lie inside, for the head's part
    needs no rule and is often the longer one; and the ratio of the norms over all."""

    cosine: float
    inner_cosine: float
    ratio: float


def alignment(network: Network, x: Tensor, y: Tensor, rule: Rule, tight: Stop = TIGHT) -> Alignment:
    """The estimate compared with the true gradient of the free fixed point, at inputs x and targets y (B, T)."""
    estimate = contrast(network, x, y, rule)[1]
    true = exact(network, x, y, tight, tight)[1]
    head = set(network.head_parameters())
    inside = [p not in head for p in network.parameters()]
    a, b = _joined(estimate), _joined(true)
    inner = _cosine(_joined(estimate, inside), _joined(true, inside))
    return Alignment(_cosine(a, b), inner, float(a.norm() / b.norm()))


def _joined(gradients: list[Tensor], chosen: list[bool] | None = None) -> Tensor:
    return torch.cat([g.flatten() for g in compress(gradients, chosen or [True] * len(gradients))]).double()


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()).clamp(min=1e-300))

"""Settling: the free phase and the nudged phases, as sweeps over blocks; no graph outlives a sweep.

B sequences, T positions, d width. A Network (`hopfield`, `residual`) knows its sweeps; how many are made, and what is
measured of them, is decided here for all.
Free: from zero, until the states move by at most `tolerance` of their norm in a sweep. Nudged: warm from the free
states, +beta and -beta stacked along the batch, until |dF/dz| is at most `tolerance` of |beta dC/dz| (step size alone
is no stationarity: at a contraction of .5 a relative step of 2e-2 leaves a gradient cosine of .96).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Pull = Callable[[Tensor], Tensor]  # the top state -> beta dC/dz there, both (B, T, d)


class Network(Protocol):
    """What settles: states, one (B, T, d) a block, under a clamped input c (B, T, d)."""

    feedback: bool  # whether a block reads a later one; without, one free sweep is exact
    rests: bool  # whether the free phase's energy has no derivative in the parameters
    patience: int  # free sweeps of a prediction, at most

    def clamp(self, x: Tensor, /) -> Tensor: ...
    def start(self, c: Tensor, /) -> list[Tensor]: ...
    def inputs(self, block: int, /) -> tuple[int, ...]: ...
    def local(self, block: int, states: list[Tensor], c: Tensor, /) -> Tensor: ...
    def learned(self, block: int, states: list[Tensor], c: Tensor, /) -> Tensor: ...
    def head_parameters(self) -> Iterable[nn.Parameter]: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def logits(self, top: Tensor, /) -> Tensor: ...
    def nudging(self, states: list[Tensor], /) -> Any: ...
    def nudged_sweep(self, now: Any, c: Tensor, pull: Pull, /) -> tuple[Any, Tensor, Tensor]: ...
    def capped(self) -> list[tuple[Tensor, float]]: ...


@dataclass(frozen=True)
class Stop:
    """When to stop sweeping; tolerance 0: after exactly `max_sweeps`, so that no sequence delays another."""

    tolerance: float
    max_sweeps: int


@dataclass(frozen=True)
class Settled:
    """Where a phase ended: states, one (B, T, d) a block; sweeps made; the last residual, and whether it is within the
    tolerance (always, where the number of sweeps is fixed)."""

    states: list[Tensor]
    sweeps: int
    residual: float
    converged: bool


@contextmanager
def frozen(network: Network) -> Iterator[None]:
    """Parameters are constants inside: no gradient reaches them, and nothing is saved for one."""
    trained = [p for p in network.parameters() if p.requires_grad]
    try:
        for p in trained:
            p.requires_grad_(False)
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


@torch.no_grad()
def free(network: Network, c: Tensor, stop: Stop) -> Settled:
    """The free phase under the clamped input c (B, T, d), from zero."""
    states, moved = network.start(c), torch.zeros(())
    for sweeps in range(1, stop.max_sweeps + 1):
        before, states = states, swept(network, states, c)
        if not network.feedback:  # one sweep is exact
            return Settled(states, sweeps, 0.0, True)
        moved = relative(states, before)
        if stop.tolerance and moved <= stop.tolerance:
            break
    residual = float(moved)
    return Settled(states, sweeps, residual, residual <= stop.tolerance or not stop.tolerance)


def swept(network: Network, states: list[Tensor], c: Tensor) -> list[Tensor]:
    """The states after one free sweep."""
    states = list(states)
    for block in range(len(states)):
        states[block] = network.local(block, states, c)
    return states


@torch.no_grad()
def predicted(network: Network, c: Tensor, stop: Stop) -> Settled:
    """The top state of the free phase, each position as it was when it and all before it in its sequence had settled:
    the number of sweeps depends on nothing after a position and on no other sequence.

    `sweeps` is that of the slowest position, `residual` the largest movement of a position in its own last sweep.
    """
    states = network.start(c)
    top, waiting = states[-1], torch.ones(c.shape[:2], dtype=torch.bool, device=c.device)
    residual = torch.full(c.shape[:2], torch.inf, device=c.device, dtype=c.dtype)
    for sweeps in range(1, stop.max_sweeps + 1):
        before, states = states, swept(network, states, c)
        if not network.feedback:  # one sweep is exact
            return Settled(states[-1:], sweeps, 0.0, True)
        top, moved = torch.where(waiting[..., None], states[-1], top), relative(states, before, dim=-1)
        residual = torch.where(waiting, moved, residual)
        waiting = waiting & ((moved > stop.tolerance).cumsum(1) > 0)
        if stop.tolerance and not waiting.any():
            break
    worst = float(residual.max())
    return Settled([top], sweeps, worst, worst <= stop.tolerance or not stop.tolerance)


def relative(states: list[Tensor], before: list[Tensor], dim: int | None = None) -> Tensor:
    """How far the states moved, as a share of their norm; with dim -1 each position's: (B, T)."""
    moved = torch.stack([(a - b).norm(dim=dim) for a, b in zip(states, before, strict=True)]).norm(dim=0)
    share: Tensor = moved / torch.stack([a.norm(dim=dim) for a in states]).norm(dim=0).clamp(min=1e-30)
    return share


@torch.no_grad()
def nudged(network: Network, c: Tensor, y: Tensor, states: list[Tensor], beta: Tensor, stop: Stop) -> Settled:
    """A nudged phase from the free states; beta (B,) is signed and may differ between the sequences."""

    def pull(top: Tensor) -> Tensor:  # beta dC/dz at the top, (B, T, d)
        leaf = top.detach().requires_grad_()  # seen as a view: FlopCounterMode cannot count from a leaf
        with torch.enable_grad():
            logits = network.logits(leaf.view_as(leaf))
        slope = logits.softmax(-1).scatter_add_(-1, y[..., None], minus_one.expand(*y.shape, 1))  # dC / dlogits
        return torch.autograd.grad(logits, leaf, slope.mul_(beta[:, None, None]))[0]

    minus_one = c.new_full((1, 1, 1), -1.0)

    with frozen(network):
        now, ratio = network.nudging(states), torch.zeros(())
        for sweeps in range(1, stop.max_sweeps + 1):  # noqa: B007
            now, slope, force = network.nudged_sweep(now, c, pull)
            ratio = slope / force.clamp(min=1e-30)
            if stop.tolerance and ratio <= stop.tolerance:
                break
    residual = float(ratio)
    return Settled(now.states, sweeps, residual, residual <= stop.tolerance or not stop.tolerance)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Summed over the positions of each sequence, in nats: (B, T, V), (B, T) -> (B,)."""
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
    return losses.view(y.shape).sum(1)

"""Evaluating a trained solver on unseen mazes: walks after every iteration, larger mazes, probes of its parts."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .data import Mazes
from .models import Solver
from .moves import distances, features, optimal_moves
from .rollout import FLOORS, optimal, oracle, walk

CHUNK = 250  # mazes of one forward


@dataclass(frozen=True)
class Outcome:
    """Of every maze (M,): reached the goal; over at most 1.05 shortest paths; how much longer, relatively (NaN where
    not reached); by raw argmax alone. And the share of cells whose best move is optimal."""

    solved: Tensor
    optimal: Tensor
    excess: Tensor
    strict: Tensor
    cells: float


def on_device(mazes: Mazes, device: torch.device | str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    arrays = (mazes.open, mazes.start, mazes.goal, mazes.length)
    open, start, goal, length = (torch.from_numpy(x).to(device) for x in arrays)
    return open, start, goal, length


@torch.no_grad()
def logits_of(
    model: Solver, mazes: Mazes, iterations: int | None = None, routing: list[Tensor] | None = None
) -> Tensor:
    """Logits after every iteration: (R, M, N, 4), float32."""
    device = next(model.parameters()).device
    open, start, goal, _ = on_device(mazes, device)
    training = model.training
    model.eval()
    parts = [
        model(features(*chunk), iterations, routing).float()
        for chunk in zip(*(torch.split(x, CHUNK) for x in (open, start, goal)), strict=True)
    ]
    model.train(training)
    return torch.cat(parts, 1)


@torch.no_grad()
def score(logits: Tensor, mazes: Mazes) -> Outcome:
    """The walks that logits (M, N, 4) lead to."""
    open, start, goal, length = on_device(mazes, logits.device)
    free, strict = walk(logits, open, start, goal), walk(logits, open, start, goal, strict=True)
    d = distances(open, goal)
    right = optimal_moves(open, d).gather(2, logits.argmax(-1, keepdim=True))[..., 0]
    excess = torch.where(free.solved, (free.moves + 1) / length - 1, math.nan)
    return Outcome(free.solved, optimal(free, length), excess, strict.solved, right[d > 0].float().mean().item())


def accuracy_of(model: Solver, states: dict[int, dict[str, Tensor]], mazes: Mazes) -> dict[int, float]:
    """Share of mazes that each state solves, by its step; the model is left as it was."""
    own, shares = {name: value.clone() for name, value in model.state_dict().items()}, {}
    for step, state in states.items():
        model.load_state_dict(state)
        shares[step] = score(logits_of(model, mazes)[-1], mazes).solved.float().mean().item()
    model.load_state_dict(own)
    return shares


def floors(mazes: Mazes, seed: int, repeats: int = 10) -> dict[str, float]:
    """Share of mazes that each policy without a model solves, and the oracle: {"random", "manhattan", "oracle"}."""
    open, start, goal, _ = on_device(mazes, "cpu")
    found = {}
    for name, policy in FLOORS.items():
        random = torch.Generator().manual_seed(seed)
        shares = [walk(policy(open, start, goal, random), open, start, goal).solved.float() for _ in range(repeats)]
        found[name] = torch.stack(shares).mean().item()
    return found | {"oracle": walk(oracle(open, start, goal), open, start, goal).solved.float().mean().item()}


def probes(model: Solver, mazes: Mazes) -> dict[str, float]:
    """What a trained PoH-HRM loses without a part of it: accuracy with uniform gates and with a slow state that is
    never updated, and the entropy of its routing over that of uniform routing (1 = uniform)."""
    routing: list[Tensor] = []
    logits_of(model, mazes, routing=routing)
    share = torch.cat([gate.flatten(0, 1) for gate in routing]) / routing[0].shape[-1]
    entropy = -torch.xlogy(share, share).sum(-1).mean().item() / math.log(share.shape[-1])
    with _set(model, "uniform", True):
        even = score(logits_of(model, mazes)[-1], mazes)
    with _set(model.gates, "slow", False):
        frozen = score(logits_of(model, mazes)[-1], mazes)
    return {
        "routing_entropy": entropy,
        "uniform_gates_accuracy": even.solved.float().mean().item(),
        "frozen_slow_accuracy": frozen.solved.float().mean().item(),
    }


@contextlib.contextmanager
def _set(module: torch.nn.Module | None, name: str, value: bool) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)

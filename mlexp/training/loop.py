"""The loop: one step a batch, losses read and checked, the state of the best held-out loss restored at the end."""

import copy
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .graphs import Captured, Step
from .microbatch import Batch, Loss, backward, gradients
from .optimizer import Optimizer, Recipe

READ_EVERY = 25  # steps on a GPU between readings of the losses: a reading waits for the device


@dataclass
class Fit:
    """How a training went: losses in nats, one per step; held-out losses by step; the step whose state is left."""

    losses: list[float] = field(default_factory=list)
    held_out: dict[int, float] = field(default_factory=dict)
    best_step: int = 0
    micro_batch: int | None = None
    relieved: bool = False
    captured: bool = False  # whether steps were replayed as CUDA graphs


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators (every device's)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def fit(
    model: nn.Module,
    loss: Loss,
    batches: Callable[[int], Batch],
    recipe: Recipe,
    *,
    capture: bool = False,
    micro_batch: int | None = None,
    relieve: Callable[[], bool] | None = None,
    evaluate: Callable[[], float] | None = None,
    evaluate_every: int = 0,
    after: Callable[[int], None] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Fit:
    """Train in place; with `evaluate` (a held-out loss, lower is better) the best state seen is the one left in the
    model.

    `batches(step)` gives tensors of equal first dimension; `loss(model, *batch)` is a mean over it. A step is taken in
    micro-batches of `micro_batch` (None: whole), with the same gradient; where memory runs out it is taken again in
    half the size; where one item is too much, `relieve()` may make room at the price of time and return True, and the
    step is taken again. `after(steps done)` follows every step. On a GPU `capture` replays steps as CUDA graphs: for a
    loss that does the same for every batch and asks for no value. Raises FloatingPointError when the loss is not
    finite.
    """
    result, optimizer = Fit(micro_batch=micro_batch), Optimizer(model, recipe)
    take = _step(model, loss, optimizer, result, relieve, capture)
    best, losses = _Best(model, result), _Losses(result, READ_EVERY if optimizer.on_gpu else 1)
    for step in range(recipe.steps):
        optimizer.set_rate(step)
        due = step + 1 == recipe.steps or bool(evaluate_every and (step + 1) % evaluate_every == 0)
        losses.add(take(*batches(step)), due)
        if after:
            after(step + 1)
        if evaluate and due:
            best.see(step + 1, evaluate())
        if progress:
            progress(step + 1, recipe.steps, _message(result))
    best.restore()
    return result


def _step(
    model: nn.Module,
    loss: Loss,
    optimizer: Optimizer,
    result: Fit,
    relieve: Callable[[], bool] | None,
    capture: bool,
) -> Step:
    """A function that takes one step on a batch's tensors and returns their loss."""

    def usual(*batch: Tensor) -> Tensor:
        value, result.micro_batch = backward(model, loss, batch, result.micro_batch, room)
        return optimizer.step(value)

    def room() -> bool:
        made = bool(relieve and relieve())
        result.relieved |= made
        return made

    def bare(*batch: Tensor) -> Tensor:
        return optimizer.step(gradients(model, loss, batch))

    return Captured(usual, bare, result) if capture and optimizer.on_gpu else usual


class _Losses:
    """Losses as they are computed, read from the device every so many steps."""

    def __init__(self, result: Fit, every: int):
        self.result, self.every = result, every
        self.unread: list[Tensor] = []

    def add(self, loss: Tensor, due: bool) -> None:
        self.unread.append(loss)
        if due or len(self.unread) == self.every:
            self.result.losses += torch.stack(self.unread).tolist()
            _check_finite(self.result.losses, len(self.unread))
            self.unread.clear()


def _check_finite(losses: list[float], recent: int) -> None:
    for step in range(len(losses) - recent, len(losses)):
        if not math.isfinite(losses[step]):
            raise FloatingPointError(f"loss {losses[step]} at step {step}")


class _Best:
    """A copy of the state with the lowest held-out loss."""

    def __init__(self, model: nn.Module, result: Fit):
        self.model, self.result = model, result
        self.state: dict[str, Any] | None = None

    def see(self, step: int, held_out: float) -> None:
        result, result.held_out[step] = self.result, held_out
        if self.state is None or held_out < result.held_out[result.best_step]:
            result.best_step, self.state = step, copy.deepcopy(self.model.state_dict())

    def restore(self) -> None:
        if self.state is not None:
            self.model.load_state_dict(self.state)


def _message(result: Fit) -> str:
    """The newest losses, for a progress line."""
    if not result.losses:
        return ""
    held_out = f", held out {list(result.held_out.values())[-1]:.3f}" if result.held_out else ""
    return f"loss {result.losses[-1]:.3f}{held_out}"

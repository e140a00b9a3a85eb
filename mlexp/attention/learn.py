"""Training an arm: one loss for all, and the recipes, the original's among them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mlexp.training import Fit, Recipe, fit

from .loss import linear_cross_entropy
from .model import Decoder
from .text import Batches


@dataclass(frozen=True)
class Regime:
    """A recipe without its steps and peak rate: warm-up as a share of the steps, the last rate as a share of the
    peak."""

    weight_decay: float = 0.01
    warmup: float = 0.1
    floor: float = 0.1
    clip: float = 1.0

    def recipe(self, steps: int, lr: float) -> Recipe:
        return Recipe(steps, lr, math.ceil(self.warmup * steps), self.weight_decay, self.clip, self.floor)


RECIPES = {
    "finished": Regime(),  # a schedule that ends where the training ends
    "seed": Regime(warmup=0.0, floor=1.0, clip=math.inf),  # the original's: constant (at 1e-4), never clipped
}


def loss_in(dtype: torch.dtype) -> Callable[[Decoder, Tensor, Tensor], Tensor]:
    """The loss of a batch, products in `dtype`: (model, tokens, targets) -> cross-entropy in nats and balance."""

    def loss(model: Decoder, tokens: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, dtype, enabled=dtype != torch.float32):
            hidden, balance = model.hidden(tokens)
            value, _, _ = linear_cross_entropy(hidden.flatten(0, 1), model.embed.weight, targets.flatten())
        return value + balance

    return loss


def train(
    model: Decoder,
    batches: Batches,
    steps: int,
    lr: float,
    recipe: str = "finished",
    dtype: torch.dtype = torch.float32,
    micro_batch: int | None = None,
    compiled: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
    after: Callable[[int], None] | None = None,
) -> Fit:
    """Train in place, in micro-batches of `micro_batch` or as small as memory demands (the balance loss is then the
    mean of theirs), by torch.compile where `compiled`.

    Raises FloatingPointError where the loss is not finite.
    """
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}; choose from {', '.join(RECIPES)}")
    loss = torch.compile(loss_in(dtype)) if compiled else loss_in(dtype)
    terms = RECIPES[recipe].recipe(steps, lr)
    return fit(model.train(), loss, batches, terms, micro_batch=micro_batch, progress=progress, after=after)

"""A recipe, how long, how fast and how regularised a training is, and the optimizer that follows it: AdamW, clipped."""

import math
from dataclasses import dataclass

import torch
import torch._dynamo  # or the first optimizer imports it: seconds and 200 MB within the first cell's measurement
from torch import Tensor, nn

BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Recipe:
    """Steps, peak rate, and its schedule: linear warm-up over `warmup` steps, then half a cosine down to `floor` of the
    peak. Matrices alone are decayed; gradients longer than `clip` are shortened to it."""

    steps: int
    lr: float
    warmup: int = 0
    weight_decay: float = 0.0
    clip: float = 1.0
    floor: float = 0.1

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.lr * self._share(step)

    def _share(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.floor + (1 - self.floor) / 2 * (1 + math.cos(math.pi * done))


class Optimizer:
    """AdamW over a model's parameters, at the rates of a recipe; on a GPU its steps can be captured in a CUDA graph."""

    def __init__(self, model: nn.Module, recipe: Recipe):
        self.model, self.recipe = model, recipe
        device = next(model.parameters()).device
        self.on_gpu = device.type == "cuda"
        groups = [[p for p in model.parameters() if (p.ndim >= 2) is matrix] for matrix in (True, False)]
        self.adamw = torch.optim.AdamW(
            [{"params": g, "weight_decay": d} for g, d in zip(groups, (recipe.weight_decay, 0.0), strict=True)],
            torch.tensor(recipe.lr, device=device) if self.on_gpu else recipe.lr,  # a captured step reads it there
            betas=BETAS,
            fused=True,
            capturable=self.on_gpu,
        )

    def set_rate(self, step: int) -> None:
        rate = self.recipe.rate(step)
        for group in self.adamw.param_groups:
            if self.on_gpu:
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def step(self, loss: Tensor) -> Tensor:
        """Follow the gradients that are in the parameters; the loss is handed through."""
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.adamw.step()
        return loss

"""Training a solver: the optimiser's settings are the same for every arm, and what happens when memory runs out."""

from collections.abc import Callable

import torch
from torch import Tensor

from mlexp.training import Fit, Recipe, fit, seed_everything

from .archs import ARCHS
from .models import Solver, build
from .objective import Batches, pointer_loss
from .sizes import SIZES

WEIGHT_DECAY, FLOOR, WARMUP, WARMUP_SHARE = 0.01, 0.05, 100, 20  # warm-up: 100 steps, but a twentieth at most


def solver(size: str, arch: str, iterations: int, period: int, heads: int | None, seed: int,
           device: torch.device | str = "cpu") -> Solver:  # fmt: skip
    """A solver ready to train; arms of one seed start from the same weights where they share them."""
    seed_everything(seed)
    return build(SIZES[size], ARCHS[arch], iterations, period, heads).to(device).train()


def loss_in(dtype: torch.dtype) -> Callable[[Solver, Tensor, Tensor, Tensor], Tensor]:
    """The loss of a batch, the forward in `dtype`: (model, features, best moves, cells that count) -> scalar."""

    def loss(model: Solver, x: Tensor, best: Tensor, counts: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            logits = model(x)
        return pointer_loss(logits.float(), best, counts)

    return loss


def train(
    model: Solver,
    batches: Batches,
    steps: int,
    lr: float,
    dtype: torch.dtype = torch.float32,
    *,
    compiled: bool = False,
    after: Callable[[int], None] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Fit:
    """Train in place, on a GPU by CUDA graphs; with `compiled` through torch.compile, which takes a minute and, on a
    CPU, wants a C++ compiler. Where memory runs out: smaller micro-batches with the same gradients, then activations
    computed again instead of stored; only then is the error raised. Raises FloatingPointError where the loss is not
    finite."""
    loss = torch.compile(loss_in(dtype)) if compiled else loss_in(dtype)
    warmup = min(WARMUP, -(-steps // WARMUP_SHARE))
    recipe = Recipe(steps, lr, warmup, WEIGHT_DECAY, floor=FLOOR)
    return fit(model, loss, batches, recipe, capture=True, relieve=model.relieve, after=after, progress=progress)


class Snapshots:
    """States of a model in training, on the host, `count` of them over `steps`, to be scored after the timed part."""

    def __init__(self, model: Solver, steps: int, count: int):
        self.model, self.every = model, max(1, steps // count)
        self.states: dict[int, dict[str, Tensor]] = {}

    def __call__(self, done: int) -> None:
        if done % self.every == 0:
            self.states[done] = {name: value.to("cpu", copy=True) for name, value in self.model.state_dict().items()}

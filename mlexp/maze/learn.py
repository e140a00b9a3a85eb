"""Training a solver: the optimiser's settings are the same for every arm, and what happens when memory runs out."""

import torch
from torch import Tensor

from mlexp.training import Fit, fit, seed_everything

from .models import ARCHS, Solver, build
from .objective import Batches, pointer_loss
from .sizes import SIZES

WEIGHT_DECAY, FLOOR, WARMUP, WARMUP_SHARE = 0.01, 0.05, 100, 20  # warm-up: 100 steps, but a twentieth at most


def solver(size: str, arch: str, iterations: int, period: int, heads: int | None, seed: int, device="cpu") -> Solver:
    """A solver ready to train; arms of one seed start from the same weights where they share them."""
    seed_everything(seed)
    return build(SIZES[size], ARCHS[arch], iterations, period, heads).to(device).train()


def loss_in(dtype: torch.dtype):
    """The loss of a batch, the forward in `dtype`: (model, features, best moves, cells that count) -> scalar."""

    def loss(model: Solver, x: Tensor, best: Tensor, counts: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            logits = model(x)
        return pointer_loss(logits.float(), best, counts)

    return loss


def train(model: Solver, batches: Batches, steps: int, lr: float, dtype=torch.float32, progress=None) -> Fit:
    """Train in place. Where memory runs out: smaller micro-batches with the same gradients, then activations computed
    again instead of kept; only then does the error go on. Raises FloatingPointError where the loss is not finite."""
    return fit(
        model, loss_in(dtype), batches, steps=steps, lr=lr, warmup=min(WARMUP, -(-steps // WARMUP_SHARE)),
        weight_decay=WEIGHT_DECAY, floor=FLOOR, relieve=model.relieve, progress=progress,
    )  # fmt: skip

"""One training loop for every trained subject: AdamW, warm-up, cosine, best held-out state, micro-batches on OOM."""

import copy
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

LOOK_EVERY = 25  # steps on a GPU between looks at the losses: a look waits for the device


@dataclass
class Fit:
    """How a training went: losses in nats, one per step; held-out losses by step; the step whose state was kept."""

    losses: list[float] = field(default_factory=list)
    held_out: dict[int, float] = field(default_factory=dict)
    best_step: int = 0
    micro_batch: int | None = None


def seed_everything(seed: int):
    """Seed Python's, numpy's and torch's global generators (every device's)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def fit(
    model,
    loss: Callable[..., Tensor],
    batches: Callable[[int], tuple[Tensor, ...]],
    *,
    steps: int,
    lr: float,
    warmup: int = 0,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    floor: float = 0.1,
    relieve: Callable[[], bool] | None = None,
    evaluate: Callable[[], float] | None = None,
    evaluate_every: int = 0,
    after: Callable[[int], None] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Fit:
    """Train in place; with `evaluate` (a held-out loss, lower is better) the best state seen is the one left in the
    model.

    `batches(step)` gives tensors of equal first dimension; `loss(model, *batch)` is a mean over it. Where memory runs
    out the step is taken again in micro-batches of half the size, with the same gradient; where one item is too much,
    `relieve()` may make room at the price of time and say so (True), and the step is taken again. Matrices alone are
    decayed; the rate ends at `floor` of its peak. `after(steps done)` follows every step. Raises FloatingPointError
    when the loss is not finite.
    """
    groups = [[p for p in model.parameters() if (p.ndim >= 2) is matrix] for matrix in (True, False)]
    optimizer = torch.optim.AdamW(
        [{"params": g, "weight_decay": d} for g, d in zip(groups, (weight_decay, 0.0), strict=True)],
        lr,
        betas=(0.9, 0.95),
        fused=True,
    )
    result, best, unread = Fit(), None, []
    look = 1 if next(model.parameters()).device.type == "cpu" else LOOK_EVERY
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule(step, steps, warmup, floor)
        value, result.micro_batch = backward(model, loss, batches(step), result.micro_batch, relieve)
        unread.append(value)
        due = step + 1 == steps or (evaluate_every and (step + 1) % evaluate_every == 0)
        if due or len(unread) == look:
            result.losses += torch.stack(unread).tolist()
            _check_finite(result.losses, len(unread))
            unread.clear()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if after:
            after(step + 1)
        if evaluate and due:
            result.held_out[step + 1] = held = evaluate()
            if best is None or held < result.held_out[result.best_step]:
                result.best_step, best = step + 1, copy.deepcopy(model.state_dict())
        if progress:
            last = f", held out {list(result.held_out.values())[-1]:.3f}" if result.held_out else ""
            said = f"loss {result.losses[-1]:.3f}{last}" if result.losses else ""
            progress(step + 1, steps, said)
    if best is not None:
        model.load_state_dict(best)
    return result


def _check_finite(losses: list[float], recent: int):
    for step in range(len(losses) - recent, len(losses)):
        if not math.isfinite(losses[step]):
            raise FloatingPointError(f"loss {losses[step]} at step {step}")


def schedule(step: int, steps: int, warmup: int, floor: float = 0.1) -> float:
    """Share of the peak rate: linear warm-up, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) / 2 * (1 + math.cos(math.pi * done))


def backward(model, loss, batch, micro: int | None = None, relieve=None) -> tuple[Tensor, int | None]:
    """Gradients of the mean loss over a batch, in micro-batches of `micro`, halved until they fit: (loss, micro)."""
    size = len(batch[0])
    while True:
        model.zero_grad(set_to_none=True)
        try:
            total = torch.zeros((), device=batch[0].device)
            for parts in _split(batch, micro or size):
                share = loss(model, *parts) * (len(parts[0]) / size)
                share.backward()
                total += share.detach()
            return total, micro
        except (RuntimeError, MemoryError) as error:
            now = min(micro or size, size)
            if not out_of_memory(error):
                raise
            if now > 1:
                micro = now // 2
            elif relieve and relieve():
                micro = None
            else:
                raise


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception is torch's or the system's way of saying that memory ran out."""
    oom = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
    return isinstance(error, (MemoryError, oom)) or "can't allocate memory" in str(error)


def _split(batch: tuple[Tensor, ...], size: int) -> Iterable[tuple[Tensor, ...]]:
    return zip(*(t.split(size) for t in batch), strict=True)

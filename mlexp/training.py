"""One training loop for every trained subject: AdamW, warm-up, cosine, best held-out state, micro-batches on OOM."""

import copy
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch._dynamo  # or the first optimiser imports it: seconds and 200 MB within the first cell's measurement
from torch import Tensor

from mlexp.memory import out_of_memory

LOOK_EVERY = 25  # steps on a GPU between looks at the losses: a look waits for the device


@dataclass
class Fit:
    """How a training went: losses in nats, one per step; held-out losses by step; the step whose state was kept."""

    losses: list[float] = field(default_factory=list)
    held_out: dict[int, float] = field(default_factory=dict)
    best_step: int = 0
    micro_batch: int | None = None
    relieved: bool = False
    captured: bool = False  # whether steps were replayed as CUDA graphs


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
    half the size; where one item is too much, `relieve()` may make room at the price of time and say so (True), and the
    step is taken again. Matrices alone are decayed; the rate ends at `floor` of its peak. `after(steps done)` follows
    every step. On a GPU `capture` replays steps as CUDA graphs: for a loss that does the same for every batch and asks
    for no value. Raises FloatingPointError when the loss is not finite.
    """
    device = next(model.parameters()).device
    cuda = device.type == "cuda"
    rate = torch.tensor(lr, device=device) if cuda else lr  # a captured step reads it from the device
    groups = [[p for p in model.parameters() if (p.ndim >= 2) is matrix] for matrix in (True, False)]
    optimizer = torch.optim.AdamW(
        [{"params": g, "weight_decay": d} for g, d in zip(groups, (weight_decay, 0.0), strict=True)],
        rate,
        betas=(0.9, 0.95),
        fused=True,
        capturable=cuda,
    )
    result, best, unread = Fit(micro_batch=micro_batch), None, []

    def take(*batch: Tensor) -> Tensor:
        value, result.micro_batch = backward(model, loss, batch, result.micro_batch, room)
        return descend(value)

    def room() -> bool:
        made = bool(relieve and relieve())
        result.relieved |= made
        return made

    def descend(value: Tensor) -> Tensor:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        return value

    if capture and cuda:
        take = Captured(take, lambda *batch: descend(gradients(model, loss, batch)), result)
    for step in range(steps):
        now = lr * schedule(step, steps, warmup, floor)
        for group in optimizer.param_groups:
            if cuda:
                group["lr"].fill_(now)
            else:
                group["lr"] = now
        unread.append(take(*batches(step)))
        due = step + 1 == steps or (evaluate_every and (step + 1) % evaluate_every == 0)
        if due or len(unread) == (LOOK_EVERY if cuda else 1):
            result.losses += torch.stack(unread).tolist()
            _check_finite(result.losses, len(unread))
            unread.clear()
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
        try:
            return gradients(model, loss, batch, micro), micro
        except Exception as error:
            now = min(micro or size, size)
            if not out_of_memory(error):
                raise
            if now > 1:
                micro = now // 2
            elif relieve and relieve():
                micro = None
            else:
                raise


def gradients(model, loss, batch: tuple[Tensor, ...], micro: int | None = None) -> Tensor:
    """The mean loss over a batch, its gradients left in the parameters, `micro` items at a time."""
    model.zero_grad(set_to_none=True)
    size = len(batch[0])
    total = torch.zeros((), device=batch[0].device)
    for parts in _split(batch, micro or size):
        share = loss(model, *parts) * (len(parts[0]) / size)
        share.backward()
        total += share.detach()
    return total


class Captured:
    """Steps as CUDA graphs, one for every shape of batch: a small model's step costs one launch instead of thousands.

    The first WARM steps of a shape run as usual, and stay so where memory ran out: the graphs would hold on to it.
    """

    WARM = 3  # what is allocated or chosen at first use must not be part of a graph

    def __init__(self, usual: Callable[..., Tensor], bare: Callable[..., Tensor], result: Fit):
        self.usual, self.bare, self.result = usual, bare, result
        self.seen: Counter = Counter()
        self.graphs: dict = {}
        self.enough_memory = True
        self.stream = torch.cuda.Stream()

    def __call__(self, *batch: Tensor) -> Tensor:
        shape = tuple(tensor.shape for tensor in batch)
        self.seen[shape] += 1
        if shape not in self.graphs and (self.seen[shape] <= self.WARM or not self._capture(shape, batch)):
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):  # autograd remembers the stream, and the capture's is another
                value = self.usual(*batch)
            torch.cuda.current_stream().wait_stream(self.stream)
            return value
        graph, inputs, value = self.graphs[shape]
        for mine, given in zip(inputs, batch, strict=True):
            mine.copy_(given)
        graph.replay()
        return value.clone()

    def _capture(self, shape, batch: tuple[Tensor, ...]) -> bool:
        """Whether a graph for this shape was made; nothing is executed yet."""
        if self.result.micro_batch or self.result.relieved or not self.enough_memory:
            return False
        graph, inputs = torch.cuda.CUDAGraph(), [tensor.clone() for tensor in batch]
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                value = self.bare(*inputs)
        except Exception as error:
            if not out_of_memory(error):
                raise
            print(f"mlexp: no memory for a CUDA graph of batches {list(map(tuple, shape))}: steps run as usual")
            self.enough_memory = False
            return False
        self.graphs[shape], self.result.captured = (graph, inputs, value), True
        return True


def _split(batch: tuple[Tensor, ...], size: int) -> Iterable[tuple[Tensor, ...]]:
    return zip(*(t.split(size) for t in batch), strict=True)

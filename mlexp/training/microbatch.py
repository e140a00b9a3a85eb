"""Gradients of a batch in micro-batches, halved until they fit into memory."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mlexp.memory import out_of_memory

Batch = tuple[Tensor, ...]  # of equal first dimension
Loss = Callable[..., Tensor]  # (model, *batch) -> the mean over the batch


def backward(
    model: nn.Module, loss: Loss, batch: Batch, micro: int | None = None, relieve: Callable[[], bool] | None = None
) -> tuple[Tensor, int | None]:
    """(mean loss over a batch, its gradients left in the parameters; the micro-batch's size, None = the whole batch).

    Where memory runs out the size is halved; where one item is too much and `relieve()` makes room, which it says by
    True, the whole batch is tried again.
    """
    size = len(batch[0])
    while True:
        try:
            return gradients(model, loss, batch, micro), micro
        except Exception as error:
            tried = min(micro or size, size)
            if not out_of_memory(error):
                raise
            if tried > 1:
                micro = tried // 2
            elif relieve and relieve():
                micro = None
            else:
                raise


def gradients(model: nn.Module, loss: Loss, batch: Batch, micro: int | None = None) -> Tensor:
    """The mean loss over a batch, its gradients left in the parameters, `micro` items at a time."""
    model.zero_grad(set_to_none=True)
    size = len(batch[0])
    total = torch.zeros((), device=batch[0].device)
    for parts in _split(batch, micro or size):
        share = loss(model, *parts) * (len(parts[0]) / size)
        share.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        total += share.detach()
    return total


def _split(batch: Batch, size: int) -> Iterable[Batch]:
    return zip(*(torch.split(t, size) for t in batch), strict=True)

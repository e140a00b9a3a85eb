"""What a step keeps in memory for its backward pass, counted through autograd's own hooks."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class _Saved:
    """A tensor that a graph saved; it is released when the graph is."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor.detach()  # else a saved output references its own graph node and is never freed


def saved_bytes(run: Callable[[], object], exclude: Iterable[Tensor] = ()) -> int:
    """The largest number of bytes that autograd kept for backward passes at any moment of `run()`.

    Each storage counts once and whole; parameters and the storages of `exclude` do not.
    """
    excluded = {tensor.untyped_storage()._cdata for tensor in exclude}
    uses: Counter[int] = Counter()
    current = peak = 0

    def release(storage: int, size: int) -> None:
        nonlocal current
        uses[storage] -= 1
        if not uses[storage]:
            current -= size

    def pack(tensor: Tensor) -> _Saved:
        nonlocal current, peak
        saved, storage = _Saved(tensor), tensor.untyped_storage()
        base = tensor if tensor._base is None else tensor._base  # a linear layer saves its weight's transpose
        if not isinstance(base, torch.nn.Parameter) and storage._cdata not in excluded:
            key, size = storage._cdata, storage.nbytes()
            uses[key] += 1
            if uses[key] == 1:
                current += size
                peak = max(peak, current)
            weakref.finalize(saved, release, key, size)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        run()
    return peak

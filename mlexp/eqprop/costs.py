"""What a step costs: FLOPs by phase, bytes saved for backward, and the limit that the step's time is held against."""

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mlexp.flops import count_flops

from .exact import exact
from .rule import Rule, contrast
from .settle import Stop


def phase_flops(network, x: Tensor, y: Tensor, rule: Rule | None) -> dict[str, int]:
    """FLOPs of one free sweep, one nudged sweep (for a twin: of the adjoint) and of all the rest of a step, on a batch
    (B, T); a step costs free_sweep * its free sweeps + nudged_sweep * its nudged sweeps + update.

    By differences of steps of one and two sweeps: what is counted is what runs.
    """

    def step(n_free: int, n_nudged: int) -> int:
        stops = Stop(0.0, n_free), Stop(0.0, n_nudged)
        if rule:
            return count_flops(lambda: contrast(network, x, y, Rule(rule.beta, rule.nudge, *stops)))[1]
        return count_flops(lambda: exact(network, x, y, *stops))[1]

    once = step(1, 1)
    nudged = step(1, 2) - once
    with torch.no_grad():
        c = network.clamp(x)  # not in a sweep: looped_mlp's first matrix is multiplied once a step
    sweep = count_flops(lambda: _sweep(network, c))[1]
    return {"free_sweep": sweep, "nudged_sweep": nudged, "update": once - sweep - nudged}


@torch.no_grad()
def _sweep(network, c: Tensor):
    states = network.start(c)
    for block in range(len(states)):
        states[block] = network.local(block, states, c)


def step_limit(free_sweeps: float, nudged_sweeps: float, nudge: str) -> float:
    """The time of a step in units of a backprop step (three forwards) at equal parameters, if nothing is wasted.

    A nudged sweep is a forward and a product with the Jacobian as dear as one; the update is a forward and a backward.
    """
    copies = 2 if nudge == "symmetric" else 1
    return (free_sweeps + copies * (2 * nudged_sweeps + 3)) / 3


class _Held:
    """A tensor that a graph saved; it goes when the graph does."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor.detach()  # an output that knew its node would keep itself


def saved_bytes(run: Callable[[], Any]) -> int:
    """Most bytes that autograd held for backward passes at any moment of run(): storages, each once, parameters not."""
    held: Counter[int] = Counter()
    now = peak = 0

    def drop(key: int, size: int):
        nonlocal now
        held[key] -= 1
        if not held[key]:
            now -= size

    def pack(tensor: Tensor) -> _Held:
        nonlocal now, peak
        one, storage = _Held(tensor), tensor.untyped_storage()
        whole = tensor if tensor._base is None else tensor._base  # a linear layer saves its weight's transpose
        if not isinstance(whole, torch.nn.Parameter):
            key, size = storage._cdata, storage.nbytes()
            held[key] += 1
            if held[key] == 1:
                now += size
                peak = max(peak, now)
            weakref.finalize(one, drop, key, size)
        return one

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
        run()
    return peak

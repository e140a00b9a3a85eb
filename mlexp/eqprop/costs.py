"""What a step costs: FLOPs by phase, and the limit that the step's time is compared with."""

from collections.abc import Callable

import torch
from torch import Tensor

from mlexp.flops import count_flops

from .exact import exact
from .rule import Rule, contrast
from .settle import Network, Stop


def phase_flops(network: Network, x: Tensor, y: Tensor, rule: Rule | None) -> dict[str, int]:
    """FLOPs of one free sweep, one nudged sweep (for a twin: of the adjoint) and of all the rest of a step, on a batch
    (B, T); a step costs free_sweep * its free sweeps + nudged_sweep * its nudged sweeps + update.

    By differences of steps of one and two sweeps: what is counted is what runs.
    """

    def step(n_free: int, n_nudged: int) -> int:
        stops = Stop(0.0, n_free), Stop(0.0, n_nudged)
        if rule:
            return _flops(lambda: contrast(network, x, y, Rule(rule.beta, rule.nudge, *stops)))
        return _flops(lambda: exact(network, x, y, *stops))

    once = step(1, 1)
    nudged = step(1, 2) - once
    with torch.no_grad():
        c = network.clamp(x)  # not in a sweep: looped_mlp's first matrix is multiplied once a step
    sweep = _flops(lambda: _sweep(network, c))
    return {"free_sweep": sweep, "nudged_sweep": nudged, "update": once - sweep - nudged}


def _flops(run: Callable[[], object]) -> int:
    flops = count_flops(run)[1]
    assert flops is not None, "an operator whose FLOPs are not known"
    return flops


@torch.no_grad()
def _sweep(network: Network, c: Tensor) -> None:
    states = network.start(c)
    for block in range(len(states)):
        states[block] = network.local(block, states, c)


def step_limit(free_sweeps: float, nudged_sweeps: float, nudge: str) -> float:
    """The time of a step in units of a backprop step (three forwards) at equal parameters, if nothing is wasted.

    A nudged sweep is a forward and a product with the Jacobian, which costs as much; the update is a forward and a
    backward.
    """
    copies = 2 if nudge == "symmetric" else 1
    return (free_sweeps + copies * (2 * nudged_sweeps + 3)) / 3

"""The true gradient of the free fixed point, by implicit differentiation: what equilibrium propagation estimates.

B sequences, T positions, d width. At z = f(z; theta) with loss C(z), J = df/dz:
    v = J^T v + dC/dz  (the adjoint, by fixed-point sweeps from the last block to the first);
    dC/dtheta = v . df/dtheta + the part of C's own parameters.
It trains the twins, and is what `gradient_cosine` compares with. Source: Almeida (1987), Pineda (1987); as in deep
equilibrium models, Bai et al. (2019, section 3.1).
"""

from typing import cast

import torch
from torch import Tensor

from .settle import Network, Settled, Stop, cross_entropy, free, frozen, relative

Gradients = dict[Tensor, Tensor | None]  # by parameter; None: zero so far


def exact(
    network: Network, x: Tensor, y: Tensor, settle: Stop, adjoint: Stop
) -> tuple[Tensor, list[Tensor], tuple[Settled, Settled]]:
    """(mean loss in nats, its gradient for each parameter, the two Settled: free and adjoint) at inputs x, targets y
    (B, T)."""
    with torch.no_grad():
        c = network.clamp(x)
    rest = free(network, c, settle)
    top = rest.states[-1].detach().requires_grad_()
    with torch.enable_grad():
        loss = cross_entropy(network.logits(top.view_as(top)), y).sum() / y.numel()
    owned = list(network.head_parameters())
    pull, *of_head = torch.autograd.grad(loss, [top, *owned])
    sensitivity = solve(network, c, rest.states, pull, adjoint)
    total: Gradients = dict.fromkeys(network.parameters())
    total |= zip(owned, of_head, strict=True)
    for block, v in enumerate(sensitivity.states):
        with torch.enable_grad():
            out = (v * network.local(block, rest.states, c if block else network.clamp(x))).sum()
        add(total, out)
    return loss.detach(), values(total), (rest, sensitivity)


def add(total: Gradients, scalar: Tensor) -> None:
    """Add the derivatives of a scalar to those of the parameters that it depends on."""
    for p, g in zip(total, torch.autograd.grad(scalar, list(total), allow_unused=True), strict=True):
        if g is not None:
            before = total[p]
            total[p] = g if before is None else before + g


def values(total: Gradients) -> list[Tensor]:
    """The derivatives in the order of the parameters."""
    return [torch.zeros_like(p) if g is None else g for p, g in total.items()]


def solve(network: Network, c: Tensor, states: list[Tensor], pull: Tensor, stop: Stop) -> Settled:
    """The adjoint v, one (B, T, d) a block, as deep as `stop` says; the graph is of one evaluation of each map."""
    leaves: list[dict[int, Tensor]] = []
    maps: list[Tensor] = []
    with frozen(network), torch.enable_grad():
        for block in range(len(states)):
            own = {i: states[i].detach().requires_grad_() for i in network.inputs(block)}
            leaves.append(own)
            maps.append(network.local(block, [own[i].view_as(z) if i in own else z for i, z in enumerate(states)], c))
    v, residual = [torch.zeros_like(z) for z in states], float("inf")
    sent: list[dict[int, Tensor]] = [{} for _ in states]
    for sweeps in range(1, stop.max_sweeps + 1):  # noqa: B007
        before, v = v, list(v)
        for block in reversed(range(len(states))):
            start = pull if block + 1 == len(states) else 0.0
            v[block] = cast(Tensor, sum((s[block] for s in sent if block in s), start))
            if leaves[block]:
                ends = list(leaves[block].values())
                back = torch.autograd.grad(maps[block], ends, v[block], retain_graph=True)
                sent[block] = dict(zip(leaves[block], back, strict=True))
        residual = float(relative(v, before))
        if residual <= stop.tolerance or not network.feedback:
            break
    return Settled(v, sweeps, residual, residual <= stop.tolerance or not network.feedback)


def unrolled(network: Network, x: Tensor, y: Tensor, sweeps: int) -> Tensor:
    """The mean loss in nats after so many free sweeps from zero, with the graph of all of them: what backprop through
    time differentiates. One sweep: the same network as a feed-forward one."""
    c = network.clamp(x)
    states = network.start(c)
    for _ in range(sweeps):
        states = list(states)
        for block in range(len(states)):
            states[block] = network.local(block, states, c)
    return cross_entropy(network.logits(states[-1]), y).sum() / y.numel()

"""recurrent_core and full: transformer blocks in a ring, with the residual energy that makes equilibrium causal.

B sequences, T positions, d width, L blocks, V alphabet; states z^1..z^L, each (B, T, d), z^0 = z^L.
    u = e(x) + p;  N(z) = g z / sqrt(1 + mean z²);  N0 the same without g
    a = W_o MHA(N_1 h);  g_l(h) = a + W_2 gelu(W_1 N_2(h + a))
    f_1 = u + g_1(u + kappa N0(z^L));  f_l = z^{l-1} + g_l(z^{l-1});  logits = W N(z^L)
    E(z; x) = 1/2 sum_l |z^l - f_l|²;  F = E + beta C,  C the cross-entropy of the logits, summed over positions
recurrent_core is L = 1, `full` L untied blocks, kappa = 0 an ordinary transformer.

Free phase: the minimum E = 0 is the fixed point z = f(z). All residuals vanish there, so nothing flows backwards and,
f being causal, z_t depends on x_1..x_t alone; an energy that couples positions otherwise (a Hopfield energy over them)
leaks the future, causal mask or not. One sweep sets z^l = f_l(z^{l-1}), l = 1..L: each step minimises its own term.

Nudged phase: dF/dz = 0 <=> r = z - f(z), r = J^T r - beta dC/dz, J = df/dz. One sweep goes up with z^l = f_l(z^{l-1}) +
r^l and down with r^{l-1} = J_l^T r^l, a vector-Jacobian product of one block each, no graph outliving the sweep. It
contracts as the free sweep does (rate of J), where gradient descent on F has the squared condition number.

The norms have eps = 1: they never stretch (a LayerNorm does where its input is small), so that capped weights contract.
Sources: the two-phase theorem, Scellier and Bengio (2017, Theorem 1), applied to this energy: Whittington and Bogacz
(2017), Millidge et al. (2022, arXiv 2206.02629); damped feedback, FRE-RNN (arXiv 2508.11659).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .learners import ALPHABET, Size
from .settle import Pull
from .transformer import Attention, Feed

CAP = 1.5  # spectral norm of what writes into the stream; what reads may have the multiples in `capped`


class Norm(nn.Module):
    """g z / sqrt(1 + mean z²): at most max |g| times as long as its input."""

    def __init__(self, width: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, z: Tensor) -> Tensor:
        return bounded(z, self.gain)


class _Bounded(torch.autograd.Function):
    """g z / sqrt(1 + mean z²), g a vector or a number; of (B, T, d) tensors it keeps its input alone (rms_norm: three)
    and passes over them three times forward, five backward."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, gain: Tensor | float) -> Tensor:
        d, length = z.shape[-1], torch.linalg.vector_norm(z, dim=-1, keepdim=True)
        scale: Tensor = length.square_().add_(d).rsqrt_().mul_(math.sqrt(d))  # (B, T, 1)
        ctx.gain = None if isinstance(gain, Tensor) else gain
        ctx.save_for_backward(z, scale, *([gain] if ctx.gain is None else []))
        return (z * scale).mul_(gain)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        z, scale, *gain = ctx.saved_tensors
        product = grad * z
        along = product @ gain[0] if gain else product.sum(-1).mul_(ctx.gain)  # (B, T): g grad . z
        along = scale.square().mul_(along[..., None]).mul_(-1 / z.shape[-1])
        of_gain = scale.flatten() @ product.flatten(0, 1) if ctx.needs_input_grad[1] else None
        return (grad * (gain[0] if gain else ctx.gain)).addcmul_(z, along).mul_(scale), of_gain


def bounded(z: Tensor, gain: Tensor | float) -> Tensor:
    """g z / sqrt(1 + mean z²)."""
    value: Tensor = _Bounded.apply(z, gain)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return value


class Increment(nn.Module):
    """g(h): what a block adds to the stream."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm_1, self.norm_2 = Norm(width), Norm(width)
        self.attention, self.feed = Attention(width, heads), Feed(width)

    def forward(self, h: Tensor) -> Tensor:
        a: Tensor = self.attention(self.norm_1(h))
        feed: Tensor = self.feed(self.norm_2(h + a))
        return a + feed


class Nudging(NamedTuple):
    """Between two nudged sweeps: states, errors, and what the first block sends back to the last, J_1^T r^1."""

    states: list[Tensor]
    errors: list[Tensor]
    back: Tensor | float


class Residual(nn.Module):
    """The ring; see the module's docstring. `feedback` says whether it is closed (kappa is not zero)."""

    patience = 12  # free sweeps of a prediction, at most: many times what kappa = .25 needs for 1e-5
    rests = True  # the energy of the free phase is zero, and so is its derivative in the parameters

    blocks: Sequence[Increment]

    def __init__(self, size: Size, kappa: float, spread: float = 0.4):
        super().__init__()
        self.kappa, self.feedback, self.length = kappa, kappa != 0, size.layers
        self.characters, self.places = nn.Embedding(ALPHABET, size.width), nn.Embedding(size.length, size.width)
        self.blocks = nn.ModuleList(  # type: ignore[assignment]  # a ModuleList does not say of what
            Increment(size.width, size.heads) for _ in range(size.layers)
        )
        self.norm, self.head = Norm(size.width), nn.Linear(size.width, ALPHABET)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                inner = spread / math.sqrt(p.shape[1])
                nn.init.normal_(p, std=inner if "blocks" in name else 0.02 if "head" in name else 0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def clamp(self, x: Tensor) -> Tensor:
        """What the input holds fixed: u (B, T, d)."""
        u: Tensor = self.characters(x) + self.places.weight[: x.shape[1]]
        return u

    def start(self, u: Tensor) -> list[Tensor]:
        return [torch.zeros_like(u)] * self.length

    def inputs(self, block: int) -> tuple[int, ...]:
        """The states that the local map of a block reads; the last one, before the first, where the ring is closed."""
        return (block - 1 if block else self.length - 1,) if block or self.feedback else ()

    def local(self, block: int, states: list[Tensor], u: Tensor) -> Tensor:
        """f_l (B, T, d): where the block's state has no energy, its neighbours being what they are."""
        if block:
            before = read = states[block - 1]
        else:
            before, read = u, u + bounded(states[-1], self.kappa) if self.feedback else u
        added: Tensor = self.blocks[block](read)
        return before + added

    def energy(self, block: int, states: list[Tensor], u: Tensor) -> Tensor:
        """The block's term of E for each sequence, (B,)."""
        return 0.5 * (states[block] - self.local(block, states, u)).square().sum((1, 2))

    learned = energy  # parameters enter all of it

    def head_parameters(self) -> list[nn.Parameter]:
        return [*self.norm.parameters(), *self.head.parameters()]

    def logits(self, top: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(top))
        return logits

    def nudging(self, states: list[Tensor]) -> Nudging:
        return Nudging(states, [torch.zeros_like(z) for z in states], 0.0)

    def nudged_sweep(self, now: Nudging, u: Tensor, pull: Pull) -> tuple[Nudging, Tensor, Tensor]:
        """Up and down once: (next, a bound of |dF/dz| at its states, |beta dC/dz|).

        The bound is how far the errors moved plus, where the ring is closed, how far the last state did: the first
        block has not seen that yet, and contracts it.
        """
        leaves: list[Tensor] = []
        maps: list[Tensor] = []
        states, errors = list(now.states), list(now.errors)
        for block in range(self.length):
            leaf = states[block - 1].detach().requires_grad_()
            out = self._map(block, leaf, u)
            states[block] = out.detach() + errors[block]
            leaves.append(leaf)
            maps.append(out)
        force = pull(states[-1])  # (B, T, d)
        errors[-1] = now.back - force
        for block in range(self.length - 1, 0, -1):
            (errors[block - 1],) = torch.autograd.grad(maps.pop(), leaves.pop(), errors[block])
        back = torch.autograd.grad(maps[0], leaves[0], errors[0])[0] if self.feedback else 0.0
        bound = distance(errors, now.errors)
        if self.feedback:
            bound = bound + distance(states[-1:], now.states[-1:])
        return Nudging(states, errors, back), bound, force.norm()

    def _map(self, block: int, leaf: Tensor, u: Tensor) -> Tensor:
        with torch.enable_grad():
            return self.local(block, [leaf.view_as(leaf)] * self.length, u)  # a leaf itself would stop FlopCounterMode

    def capped(self) -> list[tuple[Tensor, float]]:
        """Matrices and the spectral norm that each may have after a step."""
        return [
            (part.weight, times * CAP)
            for block in self.blocks
            for part, times in (
                (block.attention.out, 1.0), (block.feed.down, 1.0), (block.feed.up, 1.5), (block.attention.qkv, 2.0),
            )
        ]  # fmt: skip


def distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    norm: Tensor = torch.stack([(x - y).norm() for x, y in zip(a, b, strict=True)]).norm()
    return norm

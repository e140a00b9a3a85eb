"""The solvers: a pre-LN transformer encoder, and PoH-HRM, the same encoder iterated under a controller that gates
heads.

B mazes, N cells, d width, H heads, c = d / 4 controller width, L layers, R iterations, T period of the slow state.
Baseline:  h += W_O MHA(LN h);  h += W_2 gelu(W_1 LN h);  logits = W_out LN(h), one per move.
PoH-HRM (spec section 2), for every iteration r and layer l, t counting layers over all iterations:
    h += h_0 where r > 1 (input recall);  u = W_u LN(h);
    z_H = LN(GRU_H(u, z_H)) where t mod T == 0;  z_L = LN(GRU_L([u; z_H], z_L));
    alpha = softmax(W_r (z_L + W_m z_H)) over heads, head i is multiplied by H alpha_i, so that uniform routing is plain
    attention. The weights are tied over r; W_r starts at zero; state starts at zero in every forward.
"""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from mlexp.training.rotary import tables_of, turn

from .archs import Arch
from .sizes import Size

ROTARY_BASE = 100.0

State = tuple[Tensor, Tensor, int]  # a controller's: slow and fast, (B N, c) each, and layers counted


class Block(nn.Module):
    """One pre-LN encoder layer; gate (B, N, H) multiplies the heads' outputs."""

    def __init__(self, width: int, heads: int, inner: int):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, h: Tensor, rotary: tuple[Tensor, Tensor], gate: Tensor | None = None) -> Tensor:
        B, N, d = h.shape
        qk, v = self.qkv(self.norm_1(h)).split([2 * d, d], -1)
        q, k = turn(qk.view(B, N, 2 * self.heads, -1), *rotary).chunk(2, 2)  # (B, N, H, d / H)
        v = v.view(B, N, self.heads, -1).transpose(1, 2)
        out = scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v).transpose(1, 2)
        if gate is not None:
            out = out * gate[..., None].to(out.dtype)
        h = h + self.out(out.reshape(B, N, d))
        added: Tensor = self.down(gelu(self.up(self.norm_2(h))))
        return h + added


@functools.lru_cache(maxsize=16)
def rotary_tables(n: int, head_width: int, heads: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of 2-D rotary positions, half of a head for the row, half for the column: (N, H, head_width)
    twice, as `turn` takes them."""
    pairs = head_width // 4
    frequency = math.pi * ROTARY_BASE ** (-torch.arange(pairs, device=device) / pairs)
    cell = torch.arange(n * n, device=device)
    angle = torch.cat([(cell // n)[:, None] * frequency, (cell % n)[:, None] * frequency], 1)
    return tables_of(angle, heads)


class Controller(nn.Module):
    """Two recurrent states per cell, a slow and a fast one, and a router per layer that reads them."""

    routers: Sequence[nn.Linear]

    def __init__(self, width: int, heads: int, layers: int, period: int, slow: bool):
        super().__init__()
        c = width // 4
        self.period, self.slow, self.width = period, slow, c
        self.norm, self.read = nn.LayerNorm(width), nn.Linear(width, c)
        self.fast_cell, self.slow_cell = nn.GRUCell(2 * c, c), nn.GRUCell(c, c)
        self.fast_norm, self.slow_norm = nn.LayerNorm(c), nn.LayerNorm(c)
        self.mix = nn.Linear(c, c, bias=False)
        self.routers = nn.ModuleList(nn.Linear(c, heads) for _ in range(layers))  # type: ignore[assignment]  # a ModuleList does not say of what

    def start(self, h: Tensor) -> State:
        zero = h.new_zeros(h.shape[0] * h.shape[1], self.width)
        return zero, zero, 0

    def forward(self, h: Tensor, state: State, layer: int) -> tuple[Tensor, State]:
        """Gates (B, N, H), which average 1 over the heads, and the next state."""
        slow, fast, t = state
        u = self.read(self.norm(h)).flatten(0, 1)
        if self.slow and t % self.period == 0:
            slow = self.slow_norm(self.slow_cell(u, slow))
        fast = self.fast_norm(self.fast_cell(torch.cat([u, slow], -1), fast))
        scores = self.routers[layer](fast + self.mix(slow))
        return scores.shape[-1] * scores.softmax(-1).view(*h.shape[:2], -1), (slow, fast, t + 1)


class StaticGates(nn.Module):
    """Learned gates that no input moves: what routing is worth without anything to route by."""

    def __init__(self, heads: int, layers: int):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(layers, heads))

    def start(self, h: Tensor) -> None:
        return None

    def forward(self, h: Tensor, state: None, layer: int) -> tuple[Tensor, None]:
        gates = self.scores.shape[1] * self.scores[layer].softmax(-1)
        return gates.expand(*h.shape[:2], -1), state


class Solver(nn.Module):
    """A maze as (B, N, 6) features -> logits of the four moves of every cell, (B, N, 4), after each iteration.

    `uniform` is for probing a trained model: all gates 1. With `checkpointing` the activations of an iteration are
    computed again in the backward pass instead of stored.
    """

    blocks: Sequence[Block]

    def __init__(self, size: Size, arch: Arch, iterations: int, period: int):
        super().__init__()
        self.iterations = arch.iterations or iterations
        layers = size.depth * (iterations if arch.deep else 1)
        inner = size.inner + (extra_inner(size, layers) if arch.wide else 0)
        self.head_width, self.heads = size.width // size.heads, size.heads
        self.embed = nn.Linear(6, size.width)
        self.blocks = nn.ModuleList(  # type: ignore[assignment]  # a ModuleList does not say of what
            Block(size.width, size.heads, inner) for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(size.width), nn.Linear(size.width, 4)
        self.gates: Controller | StaticGates | None = (
            None  # made last: what arms share is made first, from the same random numbers
        )
        self._initialise(size.width, layers)
        if arch.gates == "hrm":
            self.gates = controller = Controller(size.width, size.heads, layers, period, arch.slow)
            for router in controller.routers:
                nn.init.zeros_(router.weight)
                nn.init.zeros_(router.bias)
        elif arch.gates == "static":
            self.gates = StaticGates(size.heads, layers)
        self.uniform = self.checkpointing = False

    def _initialise(self, width: int, layers: int) -> None:
        # the usual N(0, .02) is this one at width 833; at 128 it starts too small: 43 % of 8 x 8 mazes against 55 %
        std = (3 * width) ** -0.5
        for name, p in self.named_parameters():
            if p.ndim == 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=std / math.sqrt(2 * layers) if residual else std)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, x: Tensor, iterations: int | None = None, routing: list[Tensor] | None = None) -> Tensor:
        """Logits after every iteration, (R, B, N, 4); `routing` collects the gates (B, N, H) of every step."""
        h = first = self.embed(x)
        rotary = rotary_tables(math.isqrt(x.shape[1]), self.head_width, 2 * self.heads, x.device)  # queries and keys
        state = None if self.gates is None else self.gates.start(h)
        logits: list[Tensor] = []
        for r in range(iterations or self.iterations):
            h = h + first if r else h
            if self.checkpointing and self.training:
                h, state = checkpoint(self.iterate, h, state, rotary, routing, use_reentrant=False)
            else:
                h, state = self.iterate(h, state, rotary, routing)
            logits.append(self.head(self.norm(h)))
        return torch.stack(logits)

    def iterate(
        self, h: Tensor, state: State | None, rotary: tuple[Tensor, Tensor], routing: list[Tensor] | None
    ) -> tuple[Tensor, State | None]:
        """All layers once."""
        for layer, block in enumerate(self.blocks):
            gate = None
            if self.gates is not None and not self.uniform:
                gate, state = self.gates(h, state, layer)
                if routing is not None:
                    routing.append(gate.detach())
            h = block(h, rotary, gate)
        return h, state

    def relieve(self) -> bool:
        """Trade time for memory, once: whether there was anything to trade."""
        before, self.checkpointing = self.checkpointing, True
        return not before


def extra_inner(size: Size, layers: int) -> int:
    """How much wider the feed-forward layers must be for the controller's parameters to be spent on them."""
    d, c, H = size.width, size.width // 4, size.heads
    gru = 3 * (2 * c * c + c * c + 2 * c) + 3 * (c * c + c * c + 2 * c)
    controller = 2 * d + (d * c + c) + gru + 4 * c + c * c + layers * (c * H + H)
    return round(controller / (layers * (2 * d + 1)))


def build(size: Size, arch: Arch, iterations: int, period: int, heads: int | None = None) -> Solver:
    """The solver of an arm; `heads` replaces the size's number of heads.

    Raises ValueError where the heads do not divide the width into multiples of four (rotary pairs for row and column).
    """
    size = size if heads is None else size._replace(heads=heads)
    if size.width % (4 * size.heads):
        raise ValueError(f"heads={size.heads}: must divide {size.width} / 4, so that a head is a multiple of 4 wide")
    return Solver(size, arch, iterations, period)

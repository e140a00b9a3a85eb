"""looped_mlp: a layered Hopfield network per position over a clamped window of the last characters.

B sequences, T positions, k characters of context, e their width, d width, L layers, V alphabet; s_l (B, T, d).
    s_0 = [e(x_{t-k+1}); ..; e(x_t)] clamped, (B, T, k e), a pad symbol left of the text;  s_1..s_L in (-1, 1)
    E = sum_l G(s_l) - s_l . (W_l s_{l-1} + b_l),  G(s) = s atanh s + log(1 - s²) / 2, so that G' = atanh
    F = E + beta C,  C = cross-entropy of W_o s_L + b_o, summed over positions
Weights are symmetric (W_l up, its transpose down). Positions are not coupled, so the symmetry leaks no future; k = 1 is
the original's looped_mlp, which mixes no positions at all.

A block's minimum in closed form: s_l = tanh(W_l s_{l-1} + b_l + W_{l+1}^T s_{l+1}); at the top, nudged, beta W_o^T
(p - y) is taken away inside the tanh. A free sweep goes up, l = 1..L, and never raises E; a nudged one goes down and
never raises F as long as beta |W_o|² stays below 2. Stationarity: block l's gradient when its turn comes is the
difference of its two drives, atanh of the old state and of the new.

With |W_l| capped below one the free minimum is unique; uncapped the network has several, and the two phases end in
different ones. Sources: Hopfield (1984); Scellier and Bengio (2017), layered and with this nudge at the output.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .learners import ALPHABET, Size
from .settle import Pull

CAP = 0.8  # spectral norm of the weights between states


class Nudging(NamedTuple):
    """Between two nudged sweeps: the states and the drives that made them, s = tanh(drive)."""

    states: list[Tensor]
    drives: list[Tensor]


class Hopfield(nn.Module):
    """See the module's docstring."""

    patience = 40  # free sweeps of a prediction, at most: two layers at their caps contract by .8² in each
    rests = False  # the free phase has an energy, whose derivative a one-sided estimate must take away

    layers: Sequence[nn.Linear]

    def __init__(self, size: Size, gain: float = 0.3):
        super().__init__()
        self.context, self.length, self.feedback = size.context, size.layers, size.layers > 1
        self.characters = nn.Embedding(ALPHABET + 1, size.embed)  # the last one pads
        widths = [size.context * size.embed] + [size.width] * size.layers
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))  # type: ignore[assignment]  # a ModuleList does not say of what
        self.head = nn.Linear(size.width, ALPHABET)
        for i, layer in enumerate(self.layers):
            nn.init.normal_(layer.weight, std=(gain if i else 1.0) / math.sqrt(layer.in_features))
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def clamp(self, x: Tensor) -> Tensor:
        """What the input adds to the drive of the first layer: W_1 s_0 + b_1, (B, T, d)."""
        T, pad = x.shape[1], x.new_full((x.shape[0], self.context - 1), ALPHABET)
        seen = self.characters(torch.cat([pad, x], 1))  # (B, T + k - 1, e)
        drive: Tensor = self.layers[0](torch.cat([seen[:, i : i + T] for i in range(self.context)], -1))
        return drive

    def start(self, c: Tensor) -> list[Tensor]:
        return [torch.zeros_like(c)] * self.length

    def inputs(self, layer: int) -> tuple[int, ...]:
        """The states that the local map of a layer reads."""
        return tuple(i for i in (layer - 1, layer + 1) if 0 <= i < self.length)

    def drive(self, layer: int, states: list[Tensor], c: Tensor) -> Tensor:
        below: Tensor = self.layers[layer](states[layer - 1]) if layer else c
        return below + states[layer + 1] @ self.layers[layer + 1].weight if layer + 1 < self.length else below

    def local(self, layer: int, states: list[Tensor], c: Tensor) -> Tensor:
        """The layer's state of minimal energy given its neighbours: (B, T, d)."""
        return self.drive(layer, states, c).tanh()

    def energy(self, layer: int, states: list[Tensor], c: Tensor) -> Tensor:
        """The layer's term of E for each sequence, (B,)."""
        s = states[layer]
        return (s * s.atanh() + (1 - s * s).log() / 2).sum((1, 2)) + self.learned(layer, states, c)

    def learned(self, layer: int, states: list[Tensor], c: Tensor) -> Tensor:
        """The part of the layer's term that parameters enter: G does not."""
        below: Tensor = self.layers[layer](states[layer - 1]) if layer else c
        return -(states[layer] * below).sum((1, 2))

    def head_parameters(self) -> Iterator[nn.Parameter]:
        return self.head.parameters()

    def logits(self, top: Tensor) -> Tensor:
        logits: Tensor = self.head(top)
        return logits

    def nudging(self, states: list[Tensor]) -> Nudging:
        return Nudging(states, [z.atanh() for z in states])

    def nudged_sweep(self, now: Nudging, c: Tensor, pull: Pull) -> tuple[Nudging, Tensor, Tensor]:
        """Down once: (next, |dF/dz|, each layer's when its turn came, |beta dC/dz|)."""
        states, drives = list(now.states), list(now.drives)
        gradients: list[Tensor] = []
        force = pull(states[-1])
        for layer in reversed(range(self.length)):
            drives[layer] = self.drive(layer, states, c)
            if layer + 1 == self.length:
                drives[layer] = drives[layer] - force
            gradients.append((drives[layer] - now.drives[layer]).norm())
            states[layer] = drives[layer].tanh()
        return Nudging(states, drives), torch.stack(gradients).norm(), force.norm()

    def capped(self) -> list[tuple[Tensor, float]]:
        """Matrices and the spectral norm that each may have after a step."""
        return [(layer.weight, CAP) for layer in self.layers[1:]]

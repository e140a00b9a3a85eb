"""The layers: one attention from multi-head to latent, its cache and its kernel, and dense or mixture feed-forward.

B batch, T tokens, S cached tokens, D width, H heads, G heads of keys and values, c width of queries and keys, v width
of values, r rank of a latent; N = B T, E experts, k experts a token goes to, F feed-forward width.

Rotary pairs are (i, i + w / 2) in every arm, as in Llama; the neighbours (2i, 2i + 1) of the original and of DeepSeek
are the same model with its rows in another order, and slower: strided reads keep a compiler from using vectors.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, rms_norm, scaled_dot_product_attention, silu

from mlexp.training.rotary import tables_of, turn

from .variants import Shape, Variant, projections, scaled

EPS, ROTARY_BASE, BALANCE = 1e-6, 10_000.0, 0.01
KERNELS = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn", 4: "overrideable"}  # torch.nn.attention.SDPBackend

Rotary = tuple[Tensor, Tensor] | None  # cosines and sines (see rotary_tables); None: no positions


class Norm(nn.RMSNorm):
    """RMS norm in the dtype of its input: torch has no fused kernel for bfloat16 under a float32 weight."""

    def __init__(self, width: int):
        super().__init__(width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == self.weight.dtype:
            value: Tensor = _RMSNorm.apply(x, self.weight)  # type: ignore[no-untyped-call]  # torch does not annotate it
            return value
        return rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class _RMSNorm(torch.autograd.Function):
    """g x / sqrt(mean x² + eps), for CPUs, where torch composes it of elementwise operators and saves each one's
    input: five passes over x in place of eight forward, seven in place of twelve backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor) -> Tensor:
        scale = x.square().mean(-1, keepdim=True).add_(EPS).rsqrt_()
        unit = x * scale
        ctx.save_for_backward(unit, scale, gain)
        return unit * gain

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        unit, scale, gain = ctx.saved_tensors
        product = grad * unit
        of_gain = product.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        along = (product @ gain).div_(-len(gain))[..., None]  # minus the mean of (g grad) unit
        return (grad * gain).addcmul_(unit, along).mul_(scale), of_gain


class Cache:
    """Keys and values, or latents, of past tokens by layer, in buffers of `capacity` tokens allocated at first use."""

    def __init__(self, capacity: int):
        self.capacity, self.length = capacity, 0
        self.layers: dict[int, list[Tensor]] = {}

    def extend(self, layer: int, *new: Tensor) -> list[Tensor]:
        """Append tensors (..., T, width) to the layer's; returns all of them, (..., S, width)."""
        end = self.length + new[0].shape[-2]
        if end > self.capacity:
            raise ValueError(f"{end} tokens: the cache was made for {self.capacity}")
        if layer not in self.layers:
            self.layers[layer] = [x.new_empty(*x.shape[:-2], self.capacity, x.shape[-1]) for x in new]
        for buffer, x in zip(self.layers[layer], new, strict=True):
            buffer[..., self.length : end, :] = x
        return [buffer[..., :end, :] for buffer in self.layers[layer]]

    @property
    def n_bytes(self) -> int:
        """Of the buffers, unused places included."""
        return sum(buffer.nbytes for buffers in self.layers.values() for buffer in buffers)


@functools.lru_cache(maxsize=8)
def rotary_tables(
    start: int, stop: int, width: int, factor: float, device: torch.device, heads: int = 1
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions start..stop - 1 divided by `factor`: (T, H, width) twice, as `turn` takes them."""
    frequency = ROTARY_BASE ** -(torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    angle = torch.arange(start, stop, device=device)[:, None] / factor * frequency
    return tables_of(angle, heads)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn the pairs of the last dimension, whose members stand half of it apart: x (B, T, H, w), or with fewer heads
    than the tables have."""
    if rotary is None:
        return x
    return turn(x, *(table[:, : x.shape[2]] for table in rotary))


def prepare(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, H, T, w), (B, H, S, w) twice: shared heads spread without a copy where there is one, widths made equal.

    torch's flash kernels want one width. Padded with zeros, attention over T = 512 in float32 on a CPU keeps a half to
    a quarter of what the math path keeps and takes 0.6 to 0.8 of its time (1.25 of it at widths 128 / 192), and no arm
    is measured on another kernel than the rest.
    """
    width, H = max(q.shape[-1], v.shape[-1]), q.shape[1]
    q, k, v = (x if x.shape[-1] == width else pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
    k, v = (
        x if x.shape[1] == H else x[:, :, None].expand(-1, -1, H // x.shape[1], -1, -1).flatten(1, 2) for x in (k, v)
    )
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of (B, H, T, c) over (B, G, S, c) and (B, G, S, v) -> (B, H, T, v); T is 1 or S."""
    T, S = q.shape[2], k.shape[2]
    assert T in (1, S), f"{T} queries over {S} keys: neither a prompt nor one step"
    scale, width = q.shape[-1] ** -0.5, v.shape[-1]
    return scaled_dot_product_attention(*prepare(q, k, v), is_causal=T > 1, scale=scale)[..., :width]


class Attention(nn.Module):
    """One layer's attention; `latent` decides what is projected and what is cached."""

    q: nn.Linear
    q_a: nn.Linear
    q_b: nn.Linear
    kv: nn.Linear
    kv_a: nn.Linear
    kv_b: nn.Linear
    o: nn.Linear

    def __init__(self, variant: Variant, shape: Shape):
        super().__init__()
        self.arm, self.heads = scaled(variant, shape), shape.heads
        self.kv_rank, self.kv_heads = (
            self.arm.kv_rank or 0,
            self.arm.kv_heads or 0,
        )  # of latent, of multi-head attention
        for name, (n, m, bias) in projections(variant, shape).items():
            setattr(self, name, nn.Linear(n, m, bias))
        if self.arm.q_rank is not None:
            self.q_norm = Norm(self.arm.q_rank)
        if self.arm.latent:
            self.kv_norm = Norm(self.kv_rank)

    def forward(self, x: Tensor, rotary: Rotary, cache: Cache | None = None, layer: int = 0) -> Tensor:  # (B, T, D)
        out = attend(*self.project(x, rotary, cache, layer))  # (B, H, T, v)
        mixed: Tensor = self.o(out.transpose(1, 2).flatten(2))
        return mixed

    def project(
        self, x: Tensor, rotary: Rotary, cache: Cache | None = None, layer: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, H, T, c), (B, G, S, c), (B, G, S, v)."""
        q = self.q(x) if self.arm.q_rank is None else self.q_b(self.q_norm(self.q_a(x)))
        q = q.unflatten(-1, (self.heads, -1))  # (B, T, H, c)
        if self.arm.nope:
            still, turned = q.split([self.arm.nope, self.arm.rope], -1)
            q = torch.cat([still, rotate(turned, rotary)], -1)
        else:
            q = rotate(q, rotary)
        q = q.transpose(1, 2)
        past: Sequence[Tensor] = (self._latent if self.arm.latent else self._heads)(x, rotary)
        if cache is not None:
            past = cache.extend(layer, *past)
        k, v = self._expand(*past) if self.arm.latent else past
        return q, k, v

    def _heads(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Keys (B, G, T, c) and values (B, G, T, v): what multi-head attention caches."""
        k, v = self.kv(x).split([self.kv_heads * w for w in (self.arm.qk, self.arm.v)], -1)
        k, v = (y.unflatten(-1, (self.kv_heads, -1)) for y in (k, v))
        return rotate(k, rotary).transpose(1, 2), v.transpose(1, 2)

    def _latent(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """The latent (B, T, r) and the heads' common rotary key (B, T, rope): what latent attention caches."""
        latent, key = self.kv_a(x).split([self.kv_rank, self.arm.rope], -1)
        return self.kv_norm(latent), rotate(key[:, :, None], rotary)[:, :, 0]

    def _expand(self, latent: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (B, H or 1, S, c) and values (B, H, S, v) of what was cached."""
        still, v = (
            self.kv_b(latent).unflatten(-1, (self.heads, -1)).transpose(1, 2).split([self.arm.nope, self.arm.v], -1)
        )
        turned = key[:, None]  # (B, 1, S, rope)
        return self._join(still, turned.expand(-1, self.heads, -1, -1) if self.arm.nope else turned), v

    def _join(self, still: Tensor, turned: Tensor) -> Tensor:
        return torch.cat([still, turned], -1) if self.arm.nope else turned

    def kernel(self, x: Tensor, rotary: Rotary) -> str:
        """The attention kernel that torch chooses here for a forward over x (B, T, D)."""
        q, k, v = prepare(*self.project(x, rotary))
        name = KERNELS[torch._fused_sdp_choice(q, k, v, None, 0.0, True, scale=self.arm.qk**-0.5)]
        return "flash_cpu" if (name, x.device.type) == ("flash", "cpu") else name


class Dense(nn.Module):
    """Two matrices around a SiLU, without a gate."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.up = nn.Linear(shape.width, shape.ff, bias=False)
        self.down = nn.Linear(shape.ff, shape.width, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.down(silu(self.up(x))), x.new_zeros((), dtype=torch.float32)


class Mixture(nn.Module):
    """Every token through its `top` of E such pairs, weighed by a softmax over the chosen; and the balance loss (Fedus
    et al. 2021, shares counted over all choices), which is BALANCE where all experts get the same share."""

    def __init__(self, shape: Shape):
        super().__init__()
        E, D, F = shape.experts, shape.width, shape.ff
        self.top, self.router = shape.top, nn.Linear(D, E, bias=False)
        self.up, self.down = nn.Parameter(torch.empty(E, F, D)), nn.Parameter(torch.empty(E, D, F))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = x.flatten(0, -2)  # (N, D)
        scores = self.router(tokens).float()  # (N, E)
        best, chosen = scores.topk(self.top, -1)  # (N, k)
        order = chosen.flatten().argsort(stable=True)  # (N k,), sorted by expert
        counts = chosen.flatten().bincount(minlength=len(self.up))
        grouped = torch.split(tokens[order // self.top], counts.tolist())
        # unbind: an index per expert would fill a gradient of all experts' size for each
        pairs = zip(grouped, self.up.unbind(), self.down.unbind(), strict=True)
        out = torch.cat([linear(silu(linear(rows, up)), down) for rows, up, down in pairs])  # (N k, D)
        gates = best.softmax(-1).to(out.dtype)[..., None]  # (N, k, 1)
        mixed = (out[order.argsort()].view(-1, self.top, x.shape[-1]) * gates).sum(1)
        share = counts / len(order)
        return mixed.view_as(x), BALANCE * len(share) * (share * scores.softmax(-1).mean(0)).sum()

"""Rotary positions (Su et al. 2021) of the trained models: tables of angles, and the turn of queries and keys by them.

B batch, T positions, H heads, w width of a head; a pair is the channels (i, i + w / 2).
"""

from typing import Any

import torch
from torch import Tensor


def tables_of(angle: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of a pair's angle at each position (T, w / 2), for both members of the pair, where the first
    one's sine is negative, and for each head: (T, H, w) twice. Written out for all heads they are read in one stretch,
    which halves the time of a turn."""
    cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([-angle.sin(), angle.sin()], -1)
    return cos[:, None].repeat(1, heads, 1), sin[:, None].repeat(1, heads, 1)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, T, H, w) with each pair turned by its angle, given as `tables_of` has it."""
    turned: Tensor = _Turned.apply(x, cos.to(x.dtype), sin.to(x.dtype))  # type: ignore[no-untyped-call]  # torch does not annotate it
    return turned


class _Turned(torch.autograd.Function):
    """A rotation; its gradient is turned back, and nothing is saved for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.cos, ctx.sin = cos, sin
        return _turn(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _turn(grad, ctx.cos, ctx.sin, -1), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    a, b = x.chunk(2, -1)
    return (x * cos).addcmul_(torch.cat([b, a], -1), sin, value=sign)

"""FLOPs, counted and in closed form. One multiply-add is two FLOPs; only matrix products and attention count."""

import contextvars
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    flop_registry,
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

_COUNTING = contextvars.ContextVar("counting", default=False)


def count_flops(run: Callable[[], Any]) -> tuple[Any, int]:
    """(what run() returns, FLOPs of it). Counting slows a forward several times: never in a timed pass."""
    token = _COUNTING.set(True)
    try:
        with FlopCounterMode(display=False) as counter:
            result = run()
    finally:
        _COUNTING.reset(token)
    return result, counter.get_total_flops()


def counting() -> bool:
    """Whether this runs inside `count_flops`: what would replay a captured graph has to run its operators instead."""
    return _COUNTING.get()


def dense_flops(n_params: int, tokens: int) -> int:
    """2 * params * tokens: the seed's closed form of a forward (a tied embedding stands for the head; no scores)."""
    return 2 * n_params * tokens


def _grouped(q, k):
    """A key's or value's shape in the query's heads: a group of them shares one, and multiplies it all the same."""
    return (*k[:-3], q[-3], *k[-2:]) if len(k) > 3 else k


def _forward(q, k, v, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(q, _grouped(q, k), _grouped(q, v))


def _backward(grad, q, k, v, *args, out_shape=None, **kwargs) -> int:
    return sdpa_backward_flop_count(grad, q, _grouped(q, k), _grouped(q, v))


def _register():
    """torch counts attention on the CPU as zero (pytorch#195460); newer versions may bring their own formula."""
    for name, formula in (("", _forward), ("_backward", _backward)):
        op = getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention_for_cpu{name}")
        if op not in flop_registry:
            register_flop_formula(op)(formula)


_register()

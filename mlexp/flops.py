"""FLOPs, counted and in closed form. One multiply-add is two FLOPs; only matrix products and attention count.

A Triton kernel that is launched without an operator around it cannot be seen, and flex_attention cannot be counted
(torch refuses to run it under a counter).
"""

import contextlib
import contextvars
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    FlopCounterMode,
    flop_registry,
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

Result = TypeVar("Result")
Shape = Sequence[int]

# (counter, operators) of every count_flops that this runs inside, outermost first
_COUNTS: "contextvars.ContextVar[tuple[tuple[FlopCounterMode, _Operators], ...]]" = contextvars.ContextVar(
    "counts", default=()
)


def count_flops(run: Callable[[], Result]) -> tuple[Result, int | None]:
    """(what run() returns, FLOPs of it). Counting slows a forward several times: never in a timed pass.

    The FLOPs are None where no operator of torch ran, and where one ran whose FLOPs are not known (see `_unknown`).
    What torch.compile has wrapped runs eagerly, and is compiled at its next call if it was not before.
    """
    _register()  # again: transformers may have been imported since
    # called within a compiled function too, which allows no other stance
    count: Callable[[Callable[[], Result]], tuple[Result, int | None]]
    count = torch.compiler.disable(_count)  # type: ignore[no-untyped-call]  # torch's own
    return count(run)


def _count(run: Callable[[], Result]) -> tuple[Result, int | None]:
    # Under a counter dynamo would skip compiled functions for good: every later call would be eager too.
    with torch.compiler.set_stance("force_eager"):
        return _count_eager(run)


def _count_eager(run: Callable[[], Result]) -> tuple[Result, int | None]:
    counter, operators = FlopCounterMode(display=False), _Operators()
    token = _COUNTS.set((*_COUNTS.get(), (counter, operators)))
    try:
        with operators, counter:  # the counter decomposes what comes, so that `operators` sees only what runs
            result = run()
    finally:
        _COUNTS.reset(token)
    known = operators.ran and not any(_unknown(op) for op in operators.ran - counter.flop_registry.keys())
    return result, counter.get_total_flops() if known else None


def counting() -> bool:
    """Whether this runs inside `count_flops`: what would replay a captured graph has to run its operators instead."""
    return bool(_COUNTS.get())


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    """What runs in here leaves no trace in the `count_flops` around it; elsewhere this does nothing."""
    before = [(counter.get_flop_counts(), set(operators.ran)) for counter, operators in _COUNTS.get()]
    try:
        yield
    finally:
        for (counter, operators), (flops, ran) in zip(_COUNTS.get(), before, strict=True):
            counter.flop_counts.clear()
            for module, counts in flops.items():
                counter.flop_counts[module].update(counts)
            operators.ran = ran


def dense_flops(n_params: int, tokens: int) -> int:
    """2 * params * tokens: the seed's closed form of a forward (a tied embedding stands for the head; no scores)."""
    return 2 * n_params * tokens


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own __init_subclass__
    """Notes every operator that runs."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.ran: set[Any] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.ran.add(getattr(func, "_overloadpacket", func))
        return func(*args, **(kwargs or {}))


# Operators that multiply matrices but have no formula: sparse, quantised and fused ones that hide their shapes.
_WITHOUT_FORMULA = {
    *("mkldnn_rnn_layer", "mkldnn_rnn_layer_backward", "_cudnn_rnn", "_cudnn_rnn_backward", "miopen_rnn", "conv_tbc"),
    *("_native_multi_head_attention", "_transformer_encoder_layer_fwd", "_triton_multi_head_attention"),
    *("_triton_scaled_dot_attention", "_scaled_dot_product_attention_math_for_mps", "_foreach_mm", "_euclidean_dist"),
    *("_sparse_addmm", "_sparse_sparse_matmul", "_sparse_mm_reduce_impl", "sparse_sampled_addmm", "hspmm", "sspaddmm"),
    *("_sparse_semi_structured_linear", "_sparse_semi_structured_mm", "_sparse_semi_structured_addmm"),
    *("_cslt_sparse_mm", "_mixed_dtypes_linear", "_dyn_quant_matmul_4bit", "_weight_int4pack_mm", "_trilinear"),
    *("_weight_int4pack_mm_for_cpu", "_weight_int4pack_mm_with_scales_and_zeros"),
}
_WITHOUT_PRODUCTS = {"prim", "prims", "profiler", "c10d", "_c10d_functional"}  # torch's other operators


def _unknown(op: object) -> bool:
    """Whether an operator without a formula may multiply matrices: one of `_WITHOUT_FORMULA`, or another library's."""
    namespace, _, name = str(op).partition(".")
    return name in _WITHOUT_FORMULA if namespace == "aten" else namespace not in _WITHOUT_PRODUCTS


def _product(a: Shape, b: Shape, *args: Any, **kwargs: Any) -> int:
    """(..., m, k) @ (..., k, n). With groups on one side alone, these share out the other side's m or n among them."""
    batch: Shape = a[:-2] if len(a) == len(b) else ()
    return 2 * math.prod(batch) * a[-2] * a[-1] * b[-1]


def _added_product(c: Shape, a: Shape, b: Shape, *args: Any, **kwargs: Any) -> int:
    return _product(a, b)


def _vector(a: Shape, *args: Any, **kwargs: Any) -> int:
    """Every element of a matrix or vector is multiplied once."""
    return 2 * math.prod(a)


def _added_vector(c: Shape, a: Shape, *args: Any, **kwargs: Any) -> int:
    return _vector(a)


def _linear(x: Shape, w: Shape, *args: Any, **kwargs: Any) -> int:
    """x (..., k), w (n, k)."""
    return 2 * math.prod(x) * w[0]


def _grouped(q: Shape, k: Shape) -> Shape:
    """A key's or value's shape in the query's heads: a group of them shares one, and multiplies it all the same."""
    return (*k[:-3], q[-3], *k[-2:]) if len(k) > 3 else k


def _attention(q: Shape, k: Shape, v: Shape, *args: Any, **kwargs: Any) -> int:
    flops: int = sdpa_flop_count(q, _grouped(q, k), _grouped(q, v))  # type: ignore[no-untyped-call]  # torch's own
    return flops


def _attention_backward(grad: Shape, q: Shape, k: Shape, v: Shape, *args: Any, **kwargs: Any) -> int:
    shapes = grad, q, _grouped(q, k), _grouped(q, v)
    flops: int = sdpa_backward_flop_count(*shapes)  # type: ignore[no-untyped-call]  # torch's own
    return flops


_FORMULAS: dict[Callable[..., int], tuple[str, ...]] = {
    _product: ("_grouped_mm", "_scaled_grouped_mm", "_scaled_grouped_mm_v2", "_scaled_mm_v2", "_int_mm"),
    _added_product: ("_addmm_activation", "addmm_", "baddbmm_", "addbmm", "addbmm_"),
    _vector: ("mv", "dot", "vdot"),
    _added_vector: ("addmv", "addmv_"),
    _linear: ("linear", "mkldnn_linear", "_weight_int8pack_mm"),
    _attention: ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_fused_attention_overrideable"),
    _attention_backward: (
        "_scaled_dot_product_flash_attention_for_cpu_backward",
        "_scaled_dot_product_fused_attention_overrideable_backward",
    ),
}


def _register() -> None:
    """Formulas for what torch counts as zero (pytorch#195460), unless a newer torch brings its own."""
    aten = ((formula, torch.ops.aten, name) for formula, names in _FORMULAS.items() for name in names)
    # transformers' experts where torch._grouped_mm does not run; it exists once transformers is imported
    others = [
        (_product, torch.ops.transformers, "grouped_mm_fallback"),
        (_linear, torch.ops.mkldnn, "_linear_pointwise"),
    ]
    for formula, space, name in itertools.chain(aten, others):
        op = getattr(space, name, None)  # no version of torch has them all
        if op is not None and op not in flop_registry:
            register_flop_formula(op)(formula)


_register()

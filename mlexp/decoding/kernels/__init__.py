"""The branch kernels: one function a kernel, the backend chosen by name, nothing imported before its use.

`reference` is plain torch and runs everywhere. `triton` and `cuda` run on a CUDA device; with TRITON_INTERPRET=1
`triton` also runs on CPU tensors, interpreted. They are torch custom operators: they compile, count FLOPs, and check.
"""

import os
from importlib import import_module, util
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from ..settings import BranchRule
from . import reference

BACKENDS = {
    "entropy_sample": ("triton", "cuda", "reference"),
    "fork": ("triton", "reference"),
    "tree_attention": ("triton", "reference"),
}
"""Kernel -> its backends, the one that `auto` prefers on a CUDA device first."""

WIDEST_HEAD = 512  # the Triton tiles of wider heads do not fit into a block's shared memory


def missing(backend: str, device: str, dtype: torch.dtype | None = None, width: int | None = None) -> str | None:
    """What stands between a backend and tensors of a device ("cpu" or "cuda"), type and head width; None where it can
    run."""
    if backend == "reference":
        return None
    if width is not None and width > WIDEST_HEAD:
        return f"the heads are {width} wide; it takes {WIDEST_HEAD} at most"
    if dtype == torch.float64:
        return "the tensors are float64; it computes in float32"
    interpreted = backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if backend == "triton" and util.find_spec("triton") is None:
        return "the triton package is not installed (pip install 'pytest-mlexp[triton]')"
    if interpreted and not import_module("triton.language").sum.__class__.__name__.startswith("Interpreted"):
        return "TRITON_INTERPRET was set after triton had been imported; set it before Python starts"
    if not interpreted and not torch.cuda.is_available():
        how = " (TRITON_INTERPRET=1, set before Python starts, interprets it on a CPU)" if backend == "triton" else ""
        return f"no CUDA device is usable by torch {torch.__version__}{how}"
    if device != "cuda" and not interpreted:
        return f"the tensors are on {device}; it runs on cuda"
    reason: str | None = _module("cuda").missing() if backend == "cuda" else None
    return reason


def choose(
    kernel: str, device: str, backend: str = "auto", dtype: torch.dtype | None = None, width: int | None = None
) -> str:
    """The backend that a kernel will run on: `auto` is the reference on a CPU, the first that can run on a GPU.

    Raises ValueError for an unknown name, RuntimeError for a backend that is not there, saying what is missing.
    """
    if kernel not in BACKENDS:
        raise ValueError(f"unknown kernel {kernel!r}; choose from {', '.join(BACKENDS)}")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"unknown device {device!r}; choose from cpu, cuda")
    if backend == "auto":
        usable = (b for b in BACKENDS[kernel] if not missing(b, device, dtype, width))
        return "reference" if device == "cpu" else next(usable)
    if backend not in BACKENDS[kernel]:
        raise ValueError(f"{kernel} has no backend {backend!r}; choose from auto, {', '.join(BACKENDS[kernel])}")
    lacking = missing(backend, device, dtype, width)
    if lacking:
        raise RuntimeError(f"{kernel} on {backend}: {lacking}")
    return backend


Sampled = tuple[Tensor, Tensor, Tensor, Tensor]  # entropy, log_z, tokens, logprobs
Forked = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # tip, source, multiplicity, parts, ancestors


def _run(kernel: str, backend: str, *args: object) -> Any:
    return getattr(_module(backend), kernel)(*args)


def _module(backend: str) -> Any:
    """A backend's module, imported at its first use; by statements, so that keys of cells cover each of them."""
    if backend == "triton":
        from . import triton

        return triton
    if backend == "cuda":
        from . import cuda

        return cuda
    return reference


def entropy_sample(
    logits: Tensor, temperature: float, seeds: Tensor, position: Tensor | int, k: int = 1, rows: Tensor | None = None,
    backend: str = "auto",
) -> Sampled:  # fmt: skip
    """See reference.entropy_sample; `backend` is `auto` or one of BACKENDS."""
    backend = choose("entropy_sample", logits.device.type, backend, logits.dtype)
    if backend == "reference":
        return reference.entropy_sample(logits, temperature, seeds, position, k, rows)
    if not isinstance(position, Tensor):
        position = torch.full((), position, dtype=torch.int64, device=logits.device)
    sampled: Sampled = _entropy_sample(logits, temperature, seeds, position, k, rows, backend)
    return sampled


@custom_op("mlexp::entropy_sample", mutates_args=())
def _entropy_sample(logits: Tensor, temperature: float, seeds: Tensor, position: Tensor, k: int, rows: Tensor | None,
                    backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    sampled: Sampled = _run("entropy_sample", backend, logits, temperature, seeds, position, k, rows)
    return sampled


@_entropy_sample.register_fake
def _(logits: Tensor, temperature: float, seeds: Tensor, position: Tensor, k: int, *_: object) -> Sampled:
    m = len(seeds)
    one, many = (logits.new_empty(shape, dtype=torch.float32) for shape in ((m,), (m, k)))
    return one, torch.empty_like(one), logits.new_empty((m, k), dtype=torch.int64), many


@register_flop_formula(torch.ops.mlexp.entropy_sample)
def _(*args: object, **kwargs: object) -> int:
    return 0  # as torch's own softmax: only matrix products and attention count


def fork(
    entropy: Tensor, tip: Tensor, multiplicity: Tensor, token: Tensor, ancestors: Tensor, depth: Tensor | int,
    first_slot: int, rule: BranchRule, backend: str = "auto",
) -> Forked:  # fmt: skip
    """See reference.fork; `backend` is `auto` or one of BACKENDS."""
    backend = choose("fork", tip.device.type, backend)
    if backend == "reference":
        return reference.fork(entropy, tip, multiplicity, token, ancestors, depth, first_slot, rule)
    if not isinstance(depth, Tensor):
        depth = torch.full((), depth, dtype=torch.int64, device=tip.device)
    forked: Forked = _fork(entropy, tip, multiplicity, token, ancestors, depth, first_slot, *rule, backend)
    return forked


@custom_op("mlexp::fork", mutates_args=())
def _fork(entropy: Tensor, tip: Tensor, multiplicity: Tensor, token: Tensor, ancestors: Tensor, depth: Tensor,
          first_slot: int, threshold_nats: float, branch_factor: int, max_paths: int, lossless: bool, backend: str,
          ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rule = BranchRule(threshold_nats, branch_factor, max_paths, lossless)
    forked: Forked = _run("fork", backend, entropy, tip, multiplicity, token, ancestors, depth, first_slot, rule)
    return forked


@_fork.register_fake
def _(entropy: Tensor, tip: Tensor, multiplicity: Tensor, token: Tensor, ancestors: Tensor, *_: object) -> Forked:
    source, counts, parts = (torch.empty_like(multiplicity) for _ in range(3))
    return torch.empty_like(tip), source, counts, parts, torch.empty_like(ancestors)


@register_flop_formula(torch.ops.mlexp.fork)
def _(*args: object, **kwargs: object) -> int:
    return 0  # integers only


def tree_attention(
    q: Tensor, k_pool: Tensor, v_pool: Tensor, prompt_len: int, ancestors: Tensor, lengths: Tensor | None = None,
    group: int | None = None, scale: float | None = None, first: Tensor | None = None, softcap: float | None = None,
    sinks: Tensor | None = None, backend: str = "auto",
) -> Tensor:  # fmt: skip
    """See reference.tree_attention; `backend` is `auto` or one of BACKENDS. Heads wider than WIDEST_HEAD, keys' or
    values', have the reference alone."""
    width = max(q.shape[2], v_pool.shape[2])
    backend = choose("tree_attention", q.device.type, backend, k_pool.dtype, width)
    args = (q, k_pool, v_pool, prompt_len, ancestors, lengths, group, scale, first, softcap, sinks)
    if backend == "reference":
        return reference.tree_attention(*args)
    out: Tensor = _tree_attention(*args, backend)
    return out


@custom_op("mlexp::tree_attention", mutates_args=())
def _tree_attention(q: Tensor, k_pool: Tensor, v_pool: Tensor, prompt_len: int, ancestors: Tensor,
                    lengths: Tensor | None, group: int | None, scale: float | None, first: Tensor | None,
                    softcap: float | None, sinks: Tensor | None, backend: str) -> Tensor:  # fmt: skip
    out: Tensor = _run("tree_attention", backend, q, k_pool, v_pool, prompt_len, ancestors, lengths, group, scale,
                       first, softcap, sinks)  # fmt: skip
    return out


@_tree_attention.register_fake
def _(q: Tensor, k_pool: Tensor, v_pool: Tensor, *_: object) -> Tensor:
    return q.new_empty((*q.shape[:2], v_pool.shape[2]), dtype=v_pool.dtype)


@register_flop_formula(torch.ops.mlexp.tree_attention, get_raw=True)
def _(
    q: Tensor, k_pool: Tensor, v_pool: Tensor, prompt_len: int, ancestors: Tensor, lengths: Tensor | None = None,
    group: int | None = None, scale: float | None = None, first: Tensor | None = None, *args: object, **kwargs: object,
) -> int:  # fmt: skip
    """Two products of every query head with each slot that its tip sees; of fake lengths or firsts, with all slots.

    The reference multiplies all slots and masks, so it counts more where `lengths` or `first` leave some out.
    """
    n, H, D = q.shape
    seen = n * (prompt_len + ancestors.shape[1])
    if lengths is not None and not isinstance(lengths, FakeTensor):
        seen = n * prompt_len + int(lengths.sum())
    if first is not None and not isinstance(first, FakeTensor):
        seen -= int(first.clamp(min=0).sum())
    return 2 * (D + v_pool.shape[2]) * H * seen

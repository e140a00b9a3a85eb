"""The branch kernels in Triton: for a CUDA device, or for CPU tensors under TRITON_INTERPRET=1 (set before the import).

Arguments and results are those of `reference`.
"""

import functools

import torch
from torch import Tensor
from triton import cdiv, knobs, next_power_of_2

from ..settings import BranchRule
from .triton_device import fork_tree, merge_blocks, prompt_part, sample_block, suffix_part

PROGRAMS = 132  # multiprocessors of an H100 or H200: the grid of few, long rows is cut until each has work
VOCABULARY_BLOCK = 4096
SUFFIX_TILE = 4096  # numbers of one suffix tile: query heads of a group x ancestors x width
MAX_K = 8
MAX_REGISTERS = 255  # of a thread, on every device since sm_35


def entropy_sample(logits: Tensor, temperature: float, seeds: Tensor, position: Tensor, k: int, rows: Tensor | None,
                   block: int = VOCABULARY_BLOCK) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See reference.entropy_sample; `block` (a power of two from 128 on) changes the work split, never a draw.

    Raises ValueError for k outside 1 to 8.
    """
    if not 1 <= k <= MAX_K:
        raise ValueError(f"k={k}: the Triton kernel draws 1 to {MAX_K} tokens a row")
    (m,), V = seeds.shape, logits.shape[1]
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    rows = torch.arange(m, device=logits.device) if rows is None else rows.contiguous()
    block = min(block, max(128, next_power_of_2(V)))
    blocks = cdiv(V, block)
    floats = functools.partial(torch.empty, dtype=torch.float32, device=logits.device)
    state, values, xs = (floats(m, blocks, n) for n in (3, k, k))
    tokens = torch.empty(m, blocks, k, dtype=torch.int32, device=logits.device)
    entropy, log_z, logprobs = floats(m), floats(m), floats(m, k)
    best = torch.empty(m, k, dtype=torch.int64, device=logits.device)
    if m:
        row_args = (logits, logits.stride(0), 1.0 / temperature, seeds.contiguous(), position, rows, V)
        sample_block[blocks, m](*row_args, state, values, tokens, xs, k, block, num_warps=max(1, min(8, block // 512)))
        merged = (state, values, tokens, xs, entropy, log_z, best, logprobs, blocks)
        merge_blocks[m,](*merged, k, next_power_of_2(blocks), next_power_of_2(blocks * k), num_warps=1)
    return entropy, log_z, best, logprobs


def fork(entropy: Tensor, tip: Tensor, multiplicity: Tensor, token: Tensor, ancestors: Tensor, depth: Tensor,
         first_slot: int, rule: BranchRule) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See reference.fork."""
    (T, N), W, L = tip.shape, multiplicity.shape[1], ancestors.shape[1]
    entropy, tip, multiplicity, token, ancestors = (
        x.contiguous() for x in (entropy, tip, multiplicity, token, ancestors)
    )
    source, counts, parts = (torch.empty_like(multiplicity) for _ in range(3))
    results = torch.empty_like(tip), source, counts, parts, torch.empty_like(ancestors)
    scratch = torch.empty(3 * T * N + T * W, dtype=torch.int64, device=tip.device)
    BN, BW = next_power_of_2(N), next_power_of_2(W)
    BL = min(next_power_of_2(max(L, 1)), max(1, 1024 // BW))
    numbers = (first_slot, rule.threshold_nats, rule.branch_factor, rule.max_paths, N, W, L)
    blocks = (rule.lossless, BN, BW, BL)
    fork_tree[T,](
        entropy,
        tip,
        multiplicity,
        token,
        ancestors,
        depth,
        *results,
        scratch,
        *numbers,
        *blocks,
        num_warps=4 if BN > 32 else 1,
    )
    return results


def prompt_tile(dtype: torch.dtype, width: int, rows: int, aligned: bool = True) -> tuple[int, int, int, str]:
    """Queries and prompt slots of one tile, its warps, and how it multiplies: the largest that sm_90 compiles without
    spills.

    A float32 product is three of TensorFloat-32, which round like one of full precision and need the registers of
    three. Heads wider than 128 would spill, so they multiply in float32 itself, without tensor cores. Where not all
    strides are multiples of 16, tiles cannot be copied in vectors and their addresses take registers too: the tile
    is that of heads twice as wide.
    """
    width = width if aligned else 2 * width
    if dtype == torch.float32:
        BM, BP, warps = (32, 32, 4) if width <= 64 else (16, 32, 4) if width <= 128 else (16, 16, 8)
    else:
        BM, BP, warps = (64, 64, 4) if width <= 128 else (32, 32, 4) if width <= 256 else (16, 16, 8)
    precision = "ieee" if width > 128 else "tf32x3"
    return min(BM, max(16, next_power_of_2(rows))), BP, warps, precision


def suffix_tile(width: int, g: int, columns: int) -> tuple[int, int]:
    """Query heads of a group and ancestors of one tile: SUFFIX_TILE numbers at most."""
    BG = min(next_power_of_2(g), SUFFIX_TILE // width)
    return BG, min(next_power_of_2(max(columns, 1)), SUFFIX_TILE // (BG * width))


def launch_options(warps: int, plain: bool) -> dict[str, int]:
    """Warps; four of them may use all registers, where ptxas would rather spill a few words (not the plain kernels)."""
    return {"num_warps": warps} | ({"maxnreg": MAX_REGISTERS} if warps == 4 and not plain else {})


def tree_attention(
    q: Tensor, k_pool: Tensor, v_pool: Tensor, prompt_len: int, ancestors: Tensor, lengths: Tensor | None = None,
    group: int | None = None, scale: float | None = None, first: Tensor | None = None, softcap: float | None = None,
    sinks: Tensor | None = None, splits: int | None = None,
) -> Tensor:  # fmt: skip
    """See reference.tree_attention; `splits` of the prompt change the order of additions and nothing else."""
    (n, H, D), (K, E), P, L = q.shape, v_pool.shape[1:], prompt_len, ancestors.shape[1]
    m, g, BD, BE = group or n, H // K, *(max(16, next_power_of_2(width)) for width in (D, E))
    q = q if q.stride(2) == 1 else q.contiguous()
    lengths = torch.full((n,), L, device=q.device) if lengths is None else lengths.contiguous()
    first, sinks = (None if x is None else x.contiguous() for x in (first, sinks))
    softcap = None if softcap is None else float(softcap)
    tips = (q, *q.stride()[:2], k_pool, *k_pool.stride()[:2], v_pool, *v_pool.stride()[:2])
    aligned = all(stride % 16 == 0 for stride in tips if isinstance(stride, int))
    plain = aligned and first is None and softcap is None and sinks is None
    BM, BP, warps, precision = prompt_tile(q.dtype, max(BD, BE), m * g, aligned)
    tiles = cdiv(m * g, BM)
    if splits is None:
        splits = max(1, min(cdiv(PROGRAMS, n // m * K * tiles), cdiv(P, BP)))
    per_split = cdiv(cdiv(P, splits), BP) * BP
    splits = cdiv(P, per_split)
    part = torch.empty(splits, n, H, E, dtype=torch.float32, device=q.device)
    top, total = (torch.empty(splits, n, H, dtype=torch.float32, device=q.device) for _ in range(2))
    out = torch.empty(n, H, E, dtype=v_pool.dtype, device=q.device)
    scale = D**-0.5 if scale is None else scale
    # the interpreter has no bfloat16 arithmetic
    prompt_part[n // m * K, tiles * splits](*tips, part, top, total, scale, P, m, g, H, n, per_split, first, softcap,
                                             D, E, BM, BP, BD, BE, precision, knobs.runtime.interpret,
                                             **launch_options(warps, plain))  # fmt: skip
    BG, BL = suffix_tile(max(BD, BE), g, L)
    suffix_part[n, K * cdiv(g, BG)](*tips, ancestors.contiguous(), lengths, L, part, top, total, splits, out, scale,
                                     P, g, H, n, first, softcap, sinks, D, E, BG, BL, BD, BE,
                                     **launch_options(4, plain))  # fmt: skip
    return out

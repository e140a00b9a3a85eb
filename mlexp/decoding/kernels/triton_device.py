# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Triton compiles these functions: it has no types to import, and takes only its own annotations of their arguments.
"""The code in Triton that runs on the device; `triton.py` launches it.

Offsets into tensors that can exceed 2^31 elements are 64-bit.
"""

import triton
import triton.language as tl


@triton.jit
def take_best(value, token, x, shift, k: tl.constexpr, value_to, token_to, x_to):
    """Write the k largest values, each with its token and x - shift; ties to the lowest token, -1 if none is left."""
    for j in tl.static_range(k):
        best = tl.max(value)
        taken = tl.min(tl.where(value == best, token, 2147483647))
        if value_to is not None:
            tl.store(value_to + j, best)
        value_x = tl.max(tl.where((token == taken) & (value > float("-inf")), x, float("-inf")))
        tl.store(token_to + j, tl.where(best == float("-inf"), -1, taken))
        tl.store(x_to + j, value_x - shift)
        value = tl.where(token == taken, float("-inf"), value)


@triton.jit
def four(a, b, c, d):
    """Four blocks as one of four times the length."""
    return tl.reshape(tl.join(tl.join(a, b), tl.join(c, d)), (4 * a.shape[0],))


@triton.jit
def gumbel(word):
    """-ln(-ln(1 - v)), v = (word + 1/2) / 2^32, with a series where 1 - v would round v away."""
    v = tl.minimum(word.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10, 1 - 5.9604644775390625e-08)
    series = v * (1 + v * (1 / 2 + v * (1 / 3 + v * (1 / 4 + v * (1 / 5 + v * (1 / 6))))))
    return -tl.log(tl.where(v < 0.0625, series, -tl.log(1 - v)))


@triton.jit
def words(seed, position, block, BLOCK: tl.constexpr):
    """Tokens of a block of the vocabulary and the random word of each, in the layout of rng.token_words."""
    counter = block * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    w0, w1, w2, w3 = tl.philox(seed, counter, position.to(tl.int32), 0, 0)
    token = counter // 32 * 128 + counter % 32
    return four(token, token + 32, token + 64, token + 96), four(w0, w1, w2, w3)


@triton.jit
def sample_block(
    logits, stride, inverse, seeds, position, rows, V,
    state, values, tokens, xs,
    k: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of the vocabulary for one draw: max, sum and shifted sum of its exponentials, and its k best."""
    block, draw, blocks = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.num_programs(0)
    token, word = words(tl.load(seeds + draw), tl.load(position), block, BLOCK)
    row = tl.load(rows + draw)
    x = tl.load(logits + row * stride + token, mask=token < V, other=float("-inf")).to(tl.float32) * inverse
    top = tl.max(x)
    d = tl.maximum(x - tl.where(top == float("-inf"), 0.0, top), -1e4)
    e = tl.exp(d)
    at = draw * blocks + block
    tl.store(state + at * 3, top)
    tl.store(state + at * 3 + 1, tl.sum(e))
    tl.store(state + at * 3 + 2, tl.sum(d * e))
    perturbed = x + gumbel(word)
    take_best(perturbed, token, x, 0.0, k, values + at * k, tokens + at * k, xs + at * k)


@triton.jit
def merge_blocks(
    state, values, tokens, xs, entropy, log_z, best_tokens, logprobs, blocks,
    k: tl.constexpr, BLOCKS: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """One draw: merge the partial states, M = max, s = sum a s, u = sum a (u + (m - M) s), and the candidates."""
    draw = tl.program_id(0).to(tl.int64)
    b = tl.arange(0, BLOCKS)
    at, inside = state + (draw * blocks + b) * 3, b < blocks
    m = tl.load(at, mask=inside, other=float("-inf"))
    s, u = tl.load(at + 1, mask=inside, other=0.0), tl.load(at + 2, mask=inside, other=0.0)
    top = tl.max(m)
    possible = top > float("-inf")
    shift = tl.where(possible, top, 0.0)
    d = tl.maximum(m - shift, -1e4)
    a = tl.exp(d)
    total, shifted = tl.where(possible, tl.sum(a * s), 1.0), tl.sum(a * (u + d * s))
    tl.store(entropy + draw, tl.where(possible, tl.maximum(tl.log(total) - shifted / total, 0.0), 0.0))
    z = shift + tl.log(total)
    tl.store(log_z + draw, tl.where(possible, z, float("-inf")))
    c = tl.arange(0, CANDIDATES)
    at, inside = draw * blocks * k + c, c < blocks * k
    value = tl.load(values + at, mask=inside, other=float("-inf"))
    token = tl.load(tokens + at, mask=inside, other=2147483647)
    x = tl.load(xs + at, mask=inside, other=float("-inf"))
    take_best(value, token, x, z, k, None, best_tokens + draw * k, logprobs + draw * k)


@triton.jit
def fork_tree(
    entropy, tip, multiplicity, token, ancestors, depth,
    next_tip, source, counts, parts, next_ancestors, scratch,
    first_slot, threshold_nats, branch_factor, max_paths, N, W, L,
    LOSSLESS: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """One tree. Each pass over its particles broadcasts one of them to all: O(N^2) work, O(N) registers."""
    tree, trees = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    i, w = tl.arange(0, BN), tl.arange(0, BW)
    particle, row = i < N, w < W
    entropy += tree * N
    tip += tree * N
    token += tree * N
    next_tip += tree * N
    multiplicity += tree * W
    source += tree * W
    counts += tree * W
    parts += tree * W
    group_at, token_at, first_at = scratch + tree * N, scratch + (trees + tree) * N, scratch + (2 * trees + tree) * N
    uncertain_at = scratch + 3 * trees * N + tree * W

    own = tl.load(tip + i, mask=particle, other=0)
    high = tl.load(entropy + i, mask=particle, other=0.0) >= threshold_nats
    tl.store(uncertain_at + own, high.to(tl.int64), mask=particle)  # the particles of a tip agree
    tl.debug_barrier()
    m = tl.load(multiplicity + w, mask=row, other=0)
    live = m > 0
    if LOSSLESS:
        part = tl.maximum(m, 1)
    else:
        uncertain = tl.load(uncertain_at + w, mask=live, other=0) != 0
        extra = tl.where(uncertain & live, tl.minimum(m, branch_factor) - 1, 0)
        left = max_paths - tl.sum(live.to(tl.int64)) - (tl.cumsum(extra) - extra)
        part = 1 + tl.minimum(tl.maximum(left, 0), extra)
    tl.store(parts + w, part, mask=row)
    tl.debug_barrier()

    rank = tl.zeros((BN,), tl.int64)
    for j in range(N):
        rank += ((tl.load(tip + j) == own) & (j < i)).to(tl.int64)
    group = rank * tl.load(parts + own, mask=particle, other=1) // tl.load(multiplicity + own, mask=particle, other=1)
    tl.store(group_at + i, group, mask=particle)
    tl.debug_barrier()

    drawn = tl.zeros((BN,), tl.int64)
    for back in range(N):  # from the last to the first: the first of the group has the last word
        j = N - 1 - back
        drawn = tl.where((tl.load(tip + j) == own) & (tl.load(group_at + j) == group), tl.load(token + j), drawn)
    tl.store(token_at + i, drawn, mask=particle)
    tl.debug_barrier()

    first = tl.zeros((BN,), tl.int64)
    for back in range(N):
        j = N - 1 - back
        first = tl.where((tl.load(tip + j) == own) & (tl.load(token_at + j) == drawn), j, first)
    tl.store(first_at + i, (first == i).to(tl.int64), mask=particle)
    tl.store(source + w, tl.zeros((BW,), tl.int64), mask=row)
    tl.debug_barrier()

    child = tl.zeros((BN,), tl.int64)
    for j in range(N):
        other = tl.load(tip + j)
        ahead = (other < own) | ((other == own) & (j < first))
        child += tl.where(ahead, tl.load(first_at + j), 0)
    tl.store(next_tip + i, child, mask=particle)
    tl.store(source + child, first, mask=particle)
    tl.debug_barrier()

    count = tl.zeros((BW,), tl.int64)
    for j in range(N):
        count += (tl.load(next_tip + j) == w).to(tl.int64)
    tl.store(counts + w, count, mask=row)

    parent = tl.load(tip + tl.load(source + w, mask=row, other=0), mask=row, other=0)
    at = tl.load(depth)
    slot = first_slot + at * trees * W + tree * W + w
    for start in range(0, L, BL):
        column = start + tl.arange(0, BL)
        inside = row[:, None] & (column < L)[None, :]
        rows = tl.load(ancestors + (tree * W + parent)[:, None] * L + column[None, :], mask=inside, other=0)
        rows = tl.where((column == at)[None, :], slot[:, None].to(tl.int32), rows)
        tl.store(next_ancestors + (tree * W + w)[:, None] * L + column[None, :], rows, mask=inside)


@triton.jit
def capped(score, softcap):
    """softcap * tanh(score / softcap): exp of a number below 0, which cannot overflow, or a series where 1 - exp would
    cancel."""
    x = score / softcap
    size = tl.abs(x)
    small, square = tl.exp(-2 * size), x * x
    series = size * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315))))
    tanh = tl.where(size < 0.125, series, (1 - small) / (1 + small))
    return softcap * tl.where(x < 0, -tanh, tanh)


@triton.jit
def prompt_part(
    q, q_tip, q_head, k_pool, k_slot, k_head, v_pool, v_slot, v_head, out, top_to, sum_to, scale, P, m, g, H, n,
    per_split, first, softcap,
    D: tl.constexpr, E: tl.constexpr, BM: tl.constexpr, BP: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Up to BM queries, (tip, head of the group), over one stretch of their prompt, read once for all of them."""
    heads = H // g
    tiles = tl.cdiv(m * g, BM)
    prompt, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    tile, split = tl.program_id(1) % tiles, tl.program_id(1) // tiles
    r, d, e = tile * BM + tl.arange(0, BM), tl.arange(0, BD), tl.arange(0, BE)
    tip, inside = (prompt * m + r // g).to(tl.int64), r < m * g
    query = head * g + r % g
    x = tl.load(
        q + (tip * q_tip + query * q_head)[:, None] + d[None, :], mask=inside[:, None] & (d < D)[None, :], other=0.0
    )
    if UPCAST:
        x = x.to(tl.float32)
    top, total = tl.full((BM,), float("-inf"), tl.float32), tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BE), tl.float32)
    k_pool += prompt.to(tl.int64) * P * k_slot + head * k_head
    v_pool += prompt.to(tl.int64) * P * v_slot + head * v_head
    begin, end = split * per_split, tl.minimum(P, (split + 1) * per_split)
    if first is not None:  # what no query of the tile sees is skipped, whole tiles of it
        lowest = tl.minimum(tl.load(first + tip, mask=inside, other=2147483647), 2147483647).to(tl.int32)
        begin = tl.maximum(begin, tl.min(lowest) // BP * BP)
    for start in range(begin, end, BP):
        p = start + tl.arange(0, BP)
        # 32 bits: one prompt is far below 2^31 elements
        k_at, v_at = p[:, None] * k_slot + d[None, :], p[:, None] * v_slot + e[None, :]
        k = tl.load(k_pool + k_at, mask=(p < end)[:, None] & (d < D)[None, :], other=0.0)
        v = tl.load(v_pool + v_at, mask=(p < end)[:, None] & (e < E)[None, :], other=0.0)
        if UPCAST:
            k, v = k.to(tl.float32), v.to(tl.float32)
        score = tl.dot(x, tl.trans(k), input_precision=PRECISION) * scale
        if softcap is not None:
            score = capped(score, softcap)
        seen = (p < end)[None, :]
        if first is not None:
            seen = seen & (p[None, :] >= lowest[:, None])
        score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        shift = higher
        if first is not None:  # nothing seen yet: -inf - (-inf) is not a number
            shift = tl.where(higher == float("-inf"), 0.0, higher)
        weight, keep = tl.exp(score - shift[:, None]), tl.exp(top - shift)
        total = total * keep + tl.sum(weight, 1)
        acc = acc * keep[:, None] + tl.dot(weight.to(v.dtype), v, input_precision=PRECISION)
        top = higher
    at = split.to(tl.int64) * n * H + tip * H + query
    tl.store(out + at[:, None] * E + e[None, :], acc, mask=inside[:, None] & (e < E)[None, :])
    tl.store(top_to + at, top, mask=inside)
    tl.store(sum_to + at, total, mask=inside)


@triton.jit
def suffix_part(
    q, q_tip, q_head, k_pool, k_slot, k_head, v_pool, v_slot, v_head, ancestors, lengths, L, part, top_at, sum_at,
    splits, out, scale, P, g, H, n, first, softcap, sinks,
    D: tl.constexpr, E: tl.constexpr, BG: tl.constexpr, BL: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """One tip and up to BG query heads of one cached head: the tip's own ancestors, gathered, then merged with the
    prompt's parts by log-sum-exp, and with the sinks."""
    tip, tiles = tl.program_id(0).to(tl.int64), tl.cdiv(g, BG)
    head = tl.program_id(1) // tiles
    j, d, e = tl.program_id(1) % tiles * BG + tl.arange(0, BG), tl.arange(0, BD), tl.arange(0, BE)
    query, inside = head * g + j, j < g
    wide = inside[:, None] & (e < E)[None, :]
    x = tl.load(
        q + tip * q_tip + query[:, None] * q_head + d[None, :], mask=inside[:, None] & (d < D)[None, :], other=0.0
    ).to(tl.float32)
    begin, length = 0, tl.load(lengths + tip).to(tl.int32)
    if first is not None:
        lowest = tl.maximum(tl.load(first + tip) - P, 0).to(tl.int32)
        begin = lowest // BL * BL
    top, total = tl.full((BG,), float("-inf"), tl.float32), tl.zeros((BG,), tl.float32)
    acc = tl.zeros((BG, BE), tl.float32)
    for start in range(begin, length, BL):
        column = start + tl.arange(0, BL)
        seen = column < length
        if first is not None:
            seen = seen & (column >= lowest)
        slot = tl.load(ancestors + tip * L + column, mask=seen, other=0).to(tl.int64)
        k_at, v_at = slot * k_slot + head * k_head, slot * v_slot + head * v_head
        k_mask, v_mask = seen[:, None] & (d < D)[None, :], seen[:, None] & (e < E)[None, :]
        k = tl.load(k_pool + k_at[:, None] + d[None, :], mask=k_mask, other=0.0).to(tl.float32)
        v = tl.load(v_pool + v_at[:, None] + e[None, :], mask=v_mask, other=0.0).to(tl.float32)
        score = tl.sum(x[:, None, :] * k[None, :, :], 2) * scale
        if softcap is not None:
            score = capped(score, softcap)
        score = tl.where(seen[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        weight, keep = tl.exp(score - higher[:, None]), tl.exp(top - higher)
        total = total * keep + tl.sum(weight, 1)
        acc = acc * keep[:, None] + tl.sum(weight[:, :, None] * v[None, :, :], 1)
        top = higher
    for split in range(splits):
        at = split * n * H + tip * H + query
        other = tl.load(top_at + at, mask=inside, other=0.0)
        higher = tl.maximum(top, other)
        safe = tl.where(higher == float("-inf"), 0.0, higher)  # both sets empty: -inf - (-inf) is not a number
        keep, add = tl.exp(top - safe), tl.exp(other - safe)
        total = total * keep + tl.load(sum_at + at, mask=inside, other=0.0) * add
        theirs = tl.load(part + at[:, None] * E + e[None, :], mask=wide, other=0.0)
        acc = acc * keep[:, None] + theirs * add[:, None]
        top = higher
    if sinks is not None:
        sink = tl.load(sinks + query, mask=inside, other=0.0).to(tl.float32)
        higher = tl.maximum(top, sink)
        keep = tl.exp(top - higher)
        total = total * keep + tl.exp(sink - higher)
        acc = acc * keep[:, None]
    result = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out + (tip * H + query)[:, None] * E + e[None, :], result.to(out.dtype.element_ty), mask=wide)

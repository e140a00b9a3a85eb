"""The three branch kernels in plain torch: the specification, and what decodes on a CPU.

n rows of logits, V vocabulary, m draws, T trees, N particles of a tree, W rows of a tree, R = T * W, G depths.
Nothing here waits for the device: no value decides a shape, so each function also runs inside a CUDA graph.
"""

import math

import torch
from torch import Tensor

from ..rng import at_a_time, child_seeds, token_words
from ..settings import BranchRule

ROUNDING = 8  # units in the last place of float32 by which two backends' perturbed logits may differ
GUMBEL_MAX = 24.0  # no Gumbel number exceeds it: -ln of the smallest exponential, 2^-33, is 22.9
CHUNK = 1 << 17  # perturbed logits at a time on a CPU: they stay in a core's cache


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """logits / T in float32 at least, by one multiplication, so that every backend rounds alike."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) * (1.0 / temperature)


def entropy(x: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy H and log-normaliser ln Z of softmax(x), nats: x (n, V), finite or -inf -> (n,), (n,).

    The shifted form, H = ln s - u / s with s = sum e^d, u = sum d e^d, d = x - max x: exact at any offset of x. A row
    of -inf alone has H = 0 and ln Z = -inf.
    """
    top = x.amax(-1)
    shift = top.masked_fill(top == -math.inf, 0)
    d = (x - shift[:, None]).clamp_(min=-1e4)  # e^-1e4 is 0: an impossible token adds 0, where -inf * 0 is not a number
    e = d.exp()
    s, u = e.sum(-1), torch.linalg.vecdot(d, e)
    h = (s.log() - u / s).clamp_(min=0).masked_fill_(s == 0, 0)
    return h, shift + s.log()


def gumbel(words: Tensor, kind: torch.dtype) -> Tensor:
    """-ln(-ln(1 - v)), v = (word + 1/2) / 2^32: standard Gumbel numbers, finest where they decide, at the large end."""
    v = (words.to(kind) * 2.0**-32 + 2.0**-33).clamp_(max=1 - 2.0**-24)
    return v.neg_().log1p_().neg_().log_().neg_()


def draw(x: Tensor, seeds: Tensor, position: Tensor | int, k: int, rows: Tensor) -> Tensor:
    """Gumbel-top-k (Kool et al. 2019): k distinct tokens, x (n, V), seeds and rows (m,) -> (m, k) int64.

    The first is an exact sample of softmax(x[row]), all k are draws without replacement. Ties go to the lowest token;
    where fewer than k tokens are possible, the rest are -1.
    """
    tokens = torch.empty(len(seeds), k, dtype=torch.int64, device=x.device)
    for part in torch.split(torch.arange(len(seeds), device=x.device), at_a_time(seeds, CHUNK // x.shape[-1])):
        perturbed = gumbel(token_words(seeds[part], position, x.shape[-1]), x.dtype).add_(x[rows[part]])
        for j in range(k):
            best, at = perturbed.max(-1, keepdim=True)
            tokens[part, j : j + 1] = at.masked_fill_(best == -math.inf, -1)
            if j + 1 < k:
                perturbed.scatter_(-1, at.clamp(min=0), -math.inf)
    return tokens


def log_probs(x: Tensor, log_z: Tensor, tokens: Tensor, rows: Tensor) -> Tensor:
    """x[row, token] - ln Z[row], -inf for token -1: tokens (m, k), rows (m,) -> (m, k)."""
    values = x[rows[:, None], tokens.clamp(min=0)] - log_z[rows][:, None]
    return values.masked_fill_(tokens < 0, -math.inf)


def entropy_sample(
    logits: Tensor, temperature: float, seeds: Tensor, position: Tensor | int, k: int = 1, rows: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Entropy, ln Z, and k draws without replacement from softmax(logits / temperature), for m draws.

    logits (n, V), any float type, finite or -inf; seeds (m,) int64, position an int or 0-d int64, rows (m,) int64:
    the row that each draw is from, None = draw i from row i. -> entropy (m,), log_z (m,), tokens (m, k) int64,
    logprobs (m, k), the floats in float32 at least. A draw depends on its row, seed and position alone.
    """
    x = tempered(logits, temperature)
    h, log_z = entropy(x)
    rows = torch.arange(len(seeds), device=x.device) if rows is None else rows
    tokens = draw(x, seeds, position, k, rows)
    return h[rows], log_z[rows], tokens, log_probs(x, log_z, tokens, rows)


def particle_groups(entropy: Tensor, tip: Tensor, multiplicity: Tensor, rule: BranchRule) -> tuple[Tensor, Tensor]:
    """Into how many groups each tip's particles part, (T, W), and the first particle of each particle's group, (T, N).

    See `fork`. The groups of a tip are runs of its particles in order, their sizes differ by one at most.
    """
    live = multiplicity > 0
    if rule.lossless:
        parts = multiplicity.clamp(min=1)
    else:
        uncertain = torch.zeros_like(live).scatter_(1, tip, entropy >= rule.threshold_nats)
        extra = torch.where(uncertain & live, multiplicity.clamp(max=rule.branch_factor) - 1, 0)
        left = rule.max_paths - live.sum(1, keepdim=True) - (extra.cumsum(1) - extra)  # paths still allowed, tip by tip
        parts = 1 + torch.minimum(left.clamp_(min=0), extra)
    together = tip[:, :, None] == tip[:, None, :]  # (T, N, N)
    rank = together.tril(-1).sum(-1)
    group = rank * parts.gather(1, tip) // multiplicity.gather(1, tip)
    return parts, _first(together & (group[:, :, None] == group[:, None, :]))


def fork(entropy: Tensor, tip: Tensor, multiplicity: Tensor, token: Tensor, ancestors: Tensor, depth: Tensor | int,
         first_slot: int, rule: BranchRule, groups: tuple[Tensor, Tensor] | None = None,
         ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The next tips of every tree from the draws of its particles; `groups` are theirs if `particle_groups` gave them.

    entropy (T, N) of each particle's tip, tip (T, N) int64 row of each particle, multiplicity (T, W) int64 particles
    at each row (0 = no tip), token (T, N) int64 drawn by each particle, ancestors (R, L) int32. A tip whose entropy
    reaches the rule's `threshold_nats` parts its m particles into min(branch_factor, m) groups, as far as the tree's
    max_paths live paths allow, tip by tip; any other stays one group; with `lossless` every particle is a group. A
    group follows the token of its first particle, the other draws are not used. Equal tokens of a tip share a child.
    Children are rows 0, 1, ... of their tree in the order (tip, first particle).

    -> tip (T, N) of every particle now, source (T, W) the particle whose draw made the row (0 where there is none),
    multiplicity (T, W), parts (T, W) groups that each old tip was cut into, ancestors (R, L): the parent's row, with
    the child's own slot, first_slot + depth * R + row, in column `depth` (if there is one; rows without a tip are
    undefined).
    """
    parts, lead = groups or particle_groups(entropy, tip, multiplicity, rule)
    token = token.gather(1, lead)
    same_tip = tip[:, :, None] == tip[:, None, :]
    first = _first(same_tip & (token[:, :, None] == token[:, None, :]))  # (T, N) the first particle of each's child
    particle = torch.arange(tip.shape[1], device=tip.device)
    earlier = (tip[:, None, :] < tip[:, :, None]) | (same_tip & (particle < first[:, :, None]))
    child = (earlier & (first == particle)[:, None, :]).sum(-1)
    source = torch.zeros_like(multiplicity).scatter_(1, child, first)
    counts = torch.zeros_like(multiplicity).scatter_add_(1, child, torch.ones_like(child))
    return child, source, counts, parts, descend(ancestors, tip.gather(1, source), depth, first_slot)


def descend(ancestors: Tensor, parent: Tensor, depth: Tensor | int, first_slot: int) -> Tensor:
    """Every row takes its parent's ancestors and adds its own slot: ancestors (R, L), parent (T, W) row of the tree."""
    (T, W), (R, L) = parent.shape, ancestors.shape
    row = torch.arange(R, device=parent.device)
    rows = ancestors[(parent + row.view(T, W)[:, :1]).view(-1)]
    own = first_slot + depth * R + row
    return torch.where(torch.arange(L, device=parent.device) == depth, own[:, None].int(), rows)


def fork_paths(entropy: Tensor, live: Tensor, total: Tensor, seeds: Tensor, tokens: Tensor, logprobs: Tensor,
               ancestors: Tensor, depth: Tensor | int, first_slot: int, threshold_nats: float,
               ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The next paths of every tree under the original's policy: the W most likely of all children survive.

    entropy, live (bool), total (log-probability), seeds: (T, W); tokens and logprobs of k distinct draws: (T, W, k);
    W is the limit of live paths. A path splits into its k draws where its entropy reaches `threshold_nats` and the tree
    has fewer than W paths; otherwise it goes on with the first draw. Ties go to the lowest index, and paths keep their
    order. The first child goes on with its parent's seed, the others start streams of their own.

    -> source (T, W): parent * k + draw of every row now, live, total, seeds, split (of the old rows), ancestors.
    """
    (T, W), k = live.shape, tokens.shape[-1]
    split = (entropy >= threshold_nats) & live & (live.sum(1, keepdim=True) < W) & (k > 1)
    index = torch.arange(W * k, device=live.device)
    exists = (live[..., None] & (tokens >= 0) & (split[..., None] | (index.view(W, k) % k == 0))).view(T, -1)
    sums = torch.where(exists, (total[..., None] + logprobs).view(T, -1), -math.inf)
    ahead = (sums[:, None, :] > sums[:, :, None]) | ((sums[:, None, :] == sums[:, :, None]) & (index < index[:, None]))
    survives = exists & ((ahead & exists[:, None, :]).sum(-1) < W)
    place = torch.where(survives, survives.cumsum(1) - 1, W)  # column W takes those that are pruned
    source = torch.zeros(T, W + 1, dtype=torch.int64, device=live.device)
    source = source.scatter_(1, place, index.expand(T, -1))[:, :W]
    parent, which = source // k, source % k
    alive = torch.arange(W, device=live.device) < survives.sum(1, keepdim=True)
    own = child_seeds(seeds.gather(1, parent), depth, which)
    seeds = torch.where(which == 0, seeds.gather(1, parent), own)
    return source, alive, sums.gather(1, source), seeds, split, descend(ancestors, parent, depth, first_slot)


def _first(pairs: Tensor) -> Tensor:
    """The lowest index that each is paired with: (..., N, N) bool -> (..., N); argmax takes the first of equals."""
    return pairs.to(torch.uint8).argmax(-1)


def tree_attention(q: Tensor, k_pool: Tensor, v_pool: Tensor, prompt_len: int, ancestors: Tensor,
                   lengths: Tensor | None = None, group: int | None = None, scale: float | None = None,
                   first: Tensor | None = None, softcap: float | None = None, sinks: Tensor | None = None,
                   ) -> Tensor:  # fmt: skip
    """softmax(q k^T) v of n tips, each over its prompt and its first `lengths` ancestors, accumulated in float32 at
    least.

    q (n, H, D), k_pool (S, K, D) and v_pool (S, K, E) slot-major, H / K query heads share a cached one, ancestors
    (n, L) integer slots, lengths (n,) how many of them count (None = all L). Tip i is behind prompt b = i // group
    (None = all behind one), which fills slots b * prompt_len and on. -> (n, H, E) of the pool's type.

    first (n,) int64: the first position that the tip sees (None = 0). Positions count the prompt's slots 0 .. P - 1,
    then the tip's own ancestors P, P + 1, ...; every tip sees at least one. softcap: a scaled score s becomes
    softcap * tanh(s / softcap), before masking. sinks (H,): a logit of each query head that is added to the softmax's
    denominator and has no value.

    Ancestors that a tip does not see are never read. A prompt's slots must be finite, seen or not.
    """
    n, H, D = q.shape
    P, L, K, E = prompt_len, ancestors.shape[1], k_pool.shape[1], v_pool.shape[2]
    m = group or n  # tips of a prompt
    B, g, kind = n // m, H // K, torch.promote_types(q.dtype, torch.float32)
    q = q.to(kind) * (D**-0.5 if scale is None else scale)
    before, unseen = _unseen(P, L, lengths, first, q.device)
    if unseen is not None:
        ancestors = ancestors.masked_fill(unseen, 0)
    head = torch.arange(K, device=q.device)
    rows = (ancestors.long()[:, None, :] * K + head[:, None]).reshape(-1)  # (n * K * L) rows of the pool
    k_own, v_own = (
        x.reshape(-1, width).index_select(0, rows).view(n * K, L, width).to(kind)
        for x, width in ((k_pool, D), (v_pool, E))
    )
    k_prompt, v_prompt = (x[: B * P].view(B, P, K, x.shape[2]).to(kind) for x in (k_pool, v_pool))
    q_heads = q.view(B, m, K, g, D).transpose(1, 2).reshape(B, K, m * g, D)
    prompt = q_heads @ k_prompt.permute(0, 2, 3, 1)  # (B, K, m * g, P)
    own = (q.reshape(n * K, g, D) @ k_own.transpose(1, 2)).view(n, K, g, L)
    if softcap is not None:
        prompt, own = (softcap * (score / softcap).tanh() for score in (prompt, own))
    if before is not None:
        prompt = prompt.view(B, K, m, g, P).masked_fill(before.view(B, 1, m, 1, P), -math.inf).view(B, K, m * g, P)
    if unseen is not None:
        own = own.masked_fill(unseen[:, None, None], -math.inf)
    scores = [prompt, own.view(B, m, K, g, L).transpose(1, 2).reshape(B, K, m * g, L)]
    if sinks is not None:
        scores.append(sinks.to(kind).reshape(K, 1, g).expand(B, K, m, g).reshape(B, K, m * g, 1))
    weight = torch.cat(scores, -1).softmax(-1)  # (B, K, m * g, P + L), and one column more for sinks
    out = weight[..., :P] @ v_prompt.transpose(1, 2)  # (B, K, m * g, E)
    own = weight[..., P : P + L].view(B, K, m, g, L).transpose(1, 2).reshape(n * K, g, L) @ v_own
    out = out.view(B, K, m, g, E).transpose(1, 2).reshape(n, K, g, E) + own.view(n, K, g, E)
    return out.reshape(n, H, E).to(v_pool.dtype)


def _unseen(
    P: int, L: int, lengths: Tensor | None, first: Tensor | None, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Which slots of the prompt, (n, P), and which ancestors, (n, L), each tip does not see; None = it sees all."""
    before = unseen = None
    if lengths is not None:
        unseen = torch.arange(L, device=device) >= lengths[:, None]
    if first is not None:
        before, out = (torch.arange(*ends, device=device) < first[:, None] for ends in ((0, P), (P, P + L)))
        unseen = out if unseen is None else unseen | out
    return before, unseen

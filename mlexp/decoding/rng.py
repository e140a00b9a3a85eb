"""Counter-based random numbers: a draw is a pure function of (path seed, position, token).

Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"), in integer arithmetic
that CPU and GPU share. The 64-bit path seed is the key; the counter is (block, position, purpose, 0). Sample i of an
arm therefore sees the same words in every arm, in any batch order, alone or among others: the arms share their random
numbers.

The words of one counter go to tokens that are 32 apart, so that a warp of 32 threads reads neighbours:
token t = 128 a + 32 j + b (b < 32, j < 4) has word j of block 32 a + b.
"""

import torch
from torch import Tensor

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
LOW = 0xFFFFFFFF
TOKENS, CHILDREN, PATHS = range(3)  # purposes: the third word of the counter separates their streams

GROUP = 128  # tokens that 32 blocks of four words serve
CHUNK = 1 << 14  # counters at a time on a CPU: ten rounds over 128 kB an operand stay in a core's cache (8x faster)


def philox(
    key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four words, each in [0, 2^32), of counters under keys: 2 and 4 int64 tensors of words, broadcast together."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # wraps at 2^64, of which the low 64 bits are meant
        c0 = (p1 >> 32).bitwise_and_(LOW) ^ (c1 ^ k0)
        c2 = (p0 >> 32).bitwise_and_(LOW) ^ (c3 ^ k1)
        c1, c3 = p1.bitwise_and_(LOW), p0.bitwise_and_(LOW)
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return c0, c1, c2, c3


def halves(seeds: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high word of 64-bit seeds."""
    return seeds & LOW, (seeds >> 32) & LOW


def token_words(seeds: Tensor, position: Tensor | int, vocab: int) -> Tensor:
    """A word in [0, 2^32) for every token, int64: seeds (m,), position scalar or (m,) -> (m, vocab)."""
    m, blocks = len(seeds), -(-vocab // GROUP) * 32
    where = torch.as_tensor(position, device=seeds.device).expand(m)[:, None]
    block, zero = torch.arange(blocks, device=seeds.device)[None], torch.zeros_like(where)
    k0, k1 = (half[:, None] for half in halves(seeds))
    out, rows = (
        torch.empty(m, blocks // 32, 4, 32, dtype=torch.int64, device=seeds.device),
        at_a_time(seeds, CHUNK // blocks),
    )
    for s in range(0, m, rows):
        part = slice(s, s + rows)
        words = philox((k0[part], k1[part]), (block, where[part], zero[part] + TOKENS, zero[part]))
        for j, word in enumerate(words):
            out[part, :, j] = word.view(-1, blocks // 32, 32)
    return out.view(m, -1)[:, :vocab]


def at_a_time(rows: Tensor, fit: int) -> int:
    """How many rows to take at a time: what fits a CPU's cache; on a GPU all, each operation being a launch."""
    return max(1, fit if rows.device.type == "cpu" else len(rows))


def path_seeds(seed: int, trees: int, samples: int, device: torch.device | str | None = None) -> Tensor:
    """The 64-bit seed of every sample of a run, as int64: (trees, samples). Sample i of tree r is itself in any run."""
    sample, tree = (torch.arange(n, device=device) for n in (samples, trees))
    return _seeds(torch.tensor(_signed(seed), device=device), sample[None], tree[:, None], PATHS)


def child_seeds(seeds: Tensor, position: Tensor | int, draw: Tensor) -> Tensor:
    """Seeds of streams of their own for the children `draw` of paths; the arguments broadcast."""
    return _seeds(seeds, draw, torch.as_tensor(position, device=seeds.device), CHILDREN)


def _seeds(key: Tensor, first: Tensor, second: Tensor, purpose: int) -> Tensor:
    first, second = torch.broadcast_tensors(first.long(), second.long())  # type: ignore[no-untyped-call]  # torch's own
    low, high, *_ = philox(halves(key), (first, second, torch.full_like(first, purpose), torch.zeros_like(first)))
    return low | high << 32


def _signed(seed: int) -> int:
    """The 64 bits of any integer as int64 holds them."""
    return ((seed + 2**63) & (2**64 - 1)) - 2**63

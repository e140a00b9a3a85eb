"""The random words: Philox as published, uniform along every axis, the same whoever asks and in whatever company."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mlexp.decoding.rng import CHILDREN, LOW, PATHS, TOKENS, child_seeds, path_seeds, philox, token_words

SEEDS = st.integers(-(2**63), 2**64 - 1)
KNOWN = [  # counter, key, output: the vectors that the authors publish for Philox4x32-10
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((LOW,) * 4, (LOW,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]  # fmt: skip


def words(*values):
    return tuple(torch.tensor([v]) for v in values)


def test_known_answers():
    for counter, key, output in KNOWN:
        assert tuple(w.item() for w in philox(words(*key), words(*counter))) == output


def test_a_token_has_the_word_that_the_layout_says():
    seeds = torch.tensor([-5, 3 << 40])
    got, key = token_words(seeds, 7, 300), (seeds & LOW, (seeds >> 32) & LOW)
    for t in (0, 31, 32, 64, 127, 128, 299):
        block = torch.full((2,), 32 * (t // 128) + t % 32)
        four = philox(key, (block, torch.full((2,), 7), torch.full((2,), TOKENS), torch.zeros(2, dtype=torch.int64)))
        assert (got[:, t] == four[t % 128 // 32]).all()
    assert len({TOKENS, CHILDREN, PATHS}) == 3


def test_words_are_uniform_along_every_axis():
    seeds = path_seeds(3, 1, 20000)[0]
    for w in (
        token_words(seeds, 0, 1)[:, 0],
        token_words(seeds[:1], 5, 20000)[0],
        torch.cat([token_words(seeds[:1], position, 1)[0] for position in range(5000)]),
        seeds & LOW,
        (seeds >> 32) & LOW,
        child_seeds(seeds[:1], torch.arange(20000), torch.ones(1)) & LOW,
    ):
        u = w.numpy() * 2.0**-32
        assert stats.kstest(u, "uniform").pvalue > 1e-3
        assert stats.kstest(u[1:] - u[:-1], stats.triang(0.5, -1, 2).cdf).pvalue > 1e-3  # neighbours are independent
    assert stats.kstest(u**1.1, "uniform").pvalue < 1e-3  # and the test can fail


@given(seed=SEEDS, position=st.integers(0, 10**6), count=st.integers(1, 40), vocab=st.integers(1, 300),
       order=st.randoms())  # fmt: skip
def test_words_do_not_depend_on_the_company(seed, position, count, vocab, order):
    seeds = path_seeds(seed, 2, count).view(-1)
    together, where = token_words(seeds, position, vocab), list(range(2 * count))
    order.shuffle(where)
    assert torch.equal(token_words(seeds[where], position, vocab), together[where])
    assert torch.equal(token_words(seeds[-1:], torch.tensor(position), vocab), together[-1:])
    assert torch.equal(token_words(seeds, position, vocab + 200)[:, :vocab], together)
    assert together.min() >= 0 and together.max() <= LOW and len(seeds.unique()) == 2 * count
    assert torch.equal(path_seeds(seed, 1, count)[0], seeds[:count])
    assert torch.equal(path_seeds(seed, 2, count + 3)[:, :count].reshape(-1), seeds)


def test_streams_of_a_seed_are_distinct():
    seeds = path_seeds(1, 3, 50)
    children = [child_seeds(seeds, position, torch.tensor(draw)) for position in range(3) for draw in (1, 2)]
    assert len(np.unique(torch.cat([seeds, *children]))) == 7 * 150
    assert not (path_seeds(2, 3, 50) == seeds).any()
    assert torch.equal(path_seeds(-1, 1, 4), path_seeds(2**64 - 1, 1, 4))

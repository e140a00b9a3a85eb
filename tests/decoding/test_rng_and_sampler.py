"""Draws: uniform, independent of order and company, exact at the edges of the distribution."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mlexp.decoding.rng import mix, path_seeds, uniform
from mlexp.decoding.sampler import Distribution

SEEDS = st.integers(-(2**63), 2**64 - 1)


def test_uniforms_are_uniform_along_every_axis():
    for u in (
        uniform(path_seeds(3, 1, 20000), 0),
        uniform(mix(1), np.arange(20000)),
        uniform(mix(1), 0, np.arange(20000)),
    ):
        assert stats.kstest(u, "uniform").pvalue > 1e-3
        assert stats.kstest(u[1:] - u[:-1], stats.triang(0.5, -1, 2).cdf).pvalue > 1e-3  # neighbours are independent
    assert stats.kstest(uniform(path_seeds(3, 1, 20000), 0) ** 1.1, "uniform").pvalue < 1e-6  # and the test can fail


@given(seed=SEEDS, position=st.integers(0, 10**6), count=st.integers(1, 40), order=st.randoms())
def test_a_draw_does_not_depend_on_the_company(seed, position, count, order):
    seeds = path_seeds(seed, 2, count)
    together = uniform(seeds, position)
    where = list(range(2 * count))
    order.shuffle(where)
    assert (uniform(seeds[where], position) == together[where]).all()
    assert all(uniform(s, position)[0] == u for s, u in zip(seeds, together, strict=True))
    assert ((together >= 0) & (together < 1)).all() and len(np.unique(seeds)) == 2 * count


def test_words_and_their_order_matter():
    assert len({int(mix(*w)[0]) for w in [(1, 2), (2, 1), (1,), (1, 2, 0), (0, 1, 2), (2**64 - 1, 2), (-2, 2)]}) == 7
    assert mix(-1)[0] == mix(2**64 - 1)[0]


@given(rows=st.integers(1, 5), vocab=st.integers(1, 300), offset=st.sampled_from([0, -100, 1000]),
       seed=st.integers(0, 2**31), temperature=st.sampled_from([0.3, 0.8, 2.0]))  # fmt: skip
def test_entropy_and_log_probability_are_the_definitions(rows, vocab, offset, seed, temperature):
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 4 + offset
    at, log_p = Distribution(logits, temperature), (logits.double() / temperature).log_softmax(-1)
    H = -(log_p.exp() * log_p).sum(-1)
    torch.testing.assert_close(at.entropy().double(), H, atol=2e-4 if offset else 2e-5, rtol=1e-4)
    assert (at.entropy() >= 0).all() and (at.entropy() <= math.log(vocab) + 1e-5).all()
    r, c = torch.arange(rows), torch.randint(0, vocab, (rows,), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(at.log_prob(r, c).double(), log_p[r, c], atol=2e-3 if offset else 1e-4, rtol=1e-4)


def test_impossible_tokens_neither_break_the_entropy_nor_are_drawn():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0], [5.0, -math.inf, -math.inf, -math.inf]])
    at = Distribution(logits, 1.0)
    torch.testing.assert_close(at.entropy(), torch.tensor([math.log(2), 0.0]))
    u = np.array([0.0, np.nextafter(0.5, 0), 0.5, np.nextafter(1, 0), 0.0, np.nextafter(1, 0)])
    assert at.draw(np.array([0, 0, 0, 0, 1, 1]), u).tolist() == [1, 1, 3, 3, 0, 0]


@given(rows=st.integers(1, 200), draws=st.integers(0, 60), vocab=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_a_draw_is_the_first_token_whose_cumulative_weight_exceeds_u(rows, draws, vocab, seed):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(rows, vocab)) * 3)
    which, u = rng.integers(0, rows, draws), rng.random(draws)
    total = (logits / 0.8).softmax(-1).cumsum(-1).numpy()
    want = [int(np.argmax(total[r] > x * total[r, -1])) for r, x in zip(which, u, strict=True)]
    assert Distribution(logits, 0.8).draw(which, u).tolist() == want


def test_distinct_draws_are_distinct_and_follow_the_law_without_replacement():
    p, R = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), 6000
    at = Distribution(p.log().expand(R, -1), 1.0)
    got = at.draw_distinct(np.arange(R), uniform(path_seeds(1, 1, R)[:, None], 0, np.arange(4)[None]))
    assert (np.sort(got[:, :3], 1) == [0, 1, 2]).all() and (got[:, 3] == -1).all()  # a fourth does not exist
    seen = np.bincount(got[:, 0] * 3 + got[:, 1], minlength=9)
    want = np.array([[0 if i == j else p[i] * p[j] / (1 - p[i]) for j in range(3)] for i in range(3)]).ravel() * R
    assert (seen[want == 0] == 0).all()
    assert stats.power_divergence(seen[want > 0], want[want > 0], lambda_=0).pvalue > 1e-3


@pytest.mark.parametrize("vocab", [50257])
def test_a_vocabulary_that_no_block_divides(vocab):
    at = Distribution(torch.zeros(2, vocab), 0.8)
    assert at.entropy().tolist() == pytest.approx([math.log(vocab)] * 2, abs=1e-4)
    assert at.draw(np.array([0, 1]), np.array([0.0, np.nextafter(1, 0)])).tolist() == [0, vocab - 1]

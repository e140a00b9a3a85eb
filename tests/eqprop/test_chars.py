"""The text: an alphabet that no text moves, parts that share nothing, every position scored once, honest floors."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlexp.eqprop.chars import batches, bigram, encode, excerpt, floors, leak, load, scored, unigram
from mlexp.eqprop.learners import ALPHABET


@pytest.fixture(scope="module")
def text():
    return load()


def test_the_alphabet_is_fixed():
    assert encode("\n ~é\t\0A").tolist() == [96, 1, 95, 0, 0, 0, 34]
    assert encode("").tolist() == []


def test_held_out_parts_are_as_long_as_said_and_share_nothing_with_train(text):
    assert (len(text.test), len(text.validation)) == (40_000, 20_000) and len(text.train) > 200_000
    assert text.leak <= 0.01 and text.leak == leak(torch.cat([text.validation, text.test]), text.train)
    assert leak(text.test, text.validation) == 0
    assert load().hash == text.hash


def test_the_leak_of_raw_text_is_seen():
    from pydoc_data import topics

    names = sorted(topics.topics)
    random.Random(0).shuffle(names)
    raw = encode("\n\n".join(topics.topics[name] for name in names))
    assert leak(raw[-40_000:], raw[:-60_000]) > 0.2
    assert leak(raw[:1000], raw) == 1


def test_excerpts_of_a_seed_are_nested_and_seeds_differ(text):
    small, large = excerpt(text.train, 1000, 3), excerpt(text.train, 50_000, 3)
    assert torch.equal(small, large[:1000]) and not torch.equal(small, excerpt(text.train, 1000, 4))
    with pytest.raises(ValueError, match=r"n_chars=1000000: the training text has \d+ characters"):
        excerpt(text.train, 1_000_000, 0)


def test_training_windows_come_from_seed_and_step_alone(text):
    state = torch.get_rng_state()
    a, b = batches(text.train[:1000], 4, 16, 0), batches(text.train[:1000], 4, 16, 0)
    assert all(torch.equal(p, q) for p, q in zip(a(7), b(7), strict=True))
    assert not torch.equal(a(7)[0], a(8)[0]) and not torch.equal(a(7)[0], batches(text.train[:1000], 4, 16, 1)(7)[0])
    x, y = a(3)
    assert x.shape == y.shape == (4, 16) and torch.equal(x[:, 1:], y[:, :-1])
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="16 characters have no window of 16"):
        batches(text.train[:16], 4, 16, 0)


@given(total=st.integers(20, 300), length=st.integers(1, 19), data=st.data())
def test_every_position_is_scored_once_and_with_the_context_asked_for(total, length, data):
    least = data.draw(st.integers(1, length))
    x, y, counts = scored(torch.arange(total), length, least)  # a character says where it stands
    assert sorted(y[counts].tolist()) == list(range(least, total))
    assert torch.equal(y, x + 1)
    assert (y[counts] - x[:, :1].expand_as(y)[counts] >= least).all()


def test_windows_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="least=9, length=8"):
        scored(torch.arange(20), 8, 9)


def test_floors_are_distributions_finite_and_in_order(text):
    few = text.train[:300]
    torch.testing.assert_close(unigram(few).exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(bigram(few).exp().sum(1), torch.ones(ALPHABET, dtype=torch.float64))
    for n in (300, 10_000):
        found = floors(text.train[:n], text.test)
        assert all(map(math.isfinite, found.values())) and max(found.values()) < math.log(ALPHABET)
    assert found["bigram"] < found["unigram"] - 0.4

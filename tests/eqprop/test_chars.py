"""The text: an alphabet that no text moves, parts that share nothing, every position scored once, honest floors."""

import hashlib
import math
import random
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlexp.eqprop.chars import batches, encode, excerpt, floors, load, scored
from mlexp.eqprop.learners import ALPHABET
from mlexp.text import ngrams, windows
from mlexp.text.corpus import WINDOW


def leak(held_out, train):
    return windows.leak(held_out.numpy(), train.numpy(), WINDOW)


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
    with pytest.raises(ValueError, match="min_context=9, length=8"):
        scored(torch.arange(20), 8, 9)


def test_floors_are_finite_and_in_order_and_of_the_positions_that_count(text):
    for n in (300, 10_000):
        found = floors(text.train[:n], text.test)
        assert all(map(math.isfinite, found.values())) and max(found.values()) < math.log(ALPHABET)
    assert found["bigram"] < found["unigram"] - 0.4
    for min_context in (1, 5):
        want = ngrams.floors(text.train[:300].numpy(), text.test[:90].numpy(), ALPHABET, 2, min_context)
        assert floors(text.train[:300], text.test[:90], min_context) == want


def marked_corpus(folder):
    """A folder of documents, each paragraph with a mark of its own."""
    rng = random.Random(0)
    for i in range(240):
        paragraphs = "\n\n".join(f"[{i}.{j}] " + "".join(rng.choices("abcdefghij \n", k=200)) for j in range(3))
        (folder / f"{i:03}.txt").write_text(paragraphs)
    return folder


def marks(part):
    return set(re.findall(r"\[\d+\.\d+\]", "".join(map(chr, (part + 31).tolist()))))


def test_the_parts_of_a_corpus_of_ones_own_share_no_paragraph(tmp_path):
    made = load(marked_corpus(tmp_path))
    found = [marks(part) for part in (made.train, made.validation, made.test)]
    assert made.name == tmp_path.name and [len(made.validation), len(made.test)] == [20_000, 40_000]
    assert all(len(some) > 50 for some in found)
    assert sum(map(len, found)) == len(set().union(*found))
    assert made.leak == 0
    parts = [bytes(part.tolist()) for part in (made.train, made.validation, made.test)]
    assert made.hash == hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    assert made.hash != load(None).hash


def test_the_leak_is_of_all_that_is_held_out(monkeypatch):
    """Of the test text as of the validation text."""
    from mlexp.eqprop import chars

    parts = {"train": ["abcd" * 40], "validation": ["efgh" * 40], "test": ["abcd" * 40]}
    monkeypatch.setattr(chars, "split", lambda corpus, held_out: parts)
    assert chars.load().leak == pytest.approx((160 - 59) / (320 - 59))
    parts |= {"validation": ["abcd" * 40], "test": ["efgh" * 40]}
    assert chars.load().leak == pytest.approx((160 - 59) / (320 - 59))


def test_an_excerpt_is_a_stretch_of_the_text_as_on_a_ring_placed_by_the_seed_alone():
    train = torch.arange(500)
    starts = [int(excerpt(train, 1, seed)[0]) for seed in range(200)]
    assert len(set(starts)) > 120 and min(starts) < 25 and max(starts) > 475
    for seed, start in enumerate(starts[:20]):
        for n in (2, 499, 500):
            assert excerpt(train, n, seed).tolist() == [(start + i) % 500 for i in range(n)]


def test_every_window_is_drawn_and_no_seed_repeats_another_s_batches():
    train, seen = torch.arange(20), set()
    batch = batches(train, 8, 6, 3)
    for step in range(30):
        x, y = batch(step)
        assert torch.equal(y, x + 1) and torch.equal(x, x[:, :1] + torch.arange(6))
        seen |= set(x[:, 0].tolist())
    assert seen == set(range(20 - 6))
    drawn = [batches(torch.arange(10_000), 8, 6, seed)(step)[0] for seed in range(4) for step in range(6)]
    assert len({tuple(x.flatten().tolist()) for x in drawn}) == 24
    assert batches(train, 2, 4, 0, "meta")(0)[0].device.type == "meta"

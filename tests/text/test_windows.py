"""Windows against Python's own slices and sets."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlexp.text.windows import among, codes_of, distinct, hashes, leak, shared

TEXTS = st.lists(st.text("ab \n", max_size=30), max_size=6)
CODES = st.lists(st.integers(0, 2), min_size=1, max_size=12)


def windows_of(text, window):
    return [tuple(text[i : i + window]) for i in range(len(text) - window + 1)]


@given(TEXTS, st.integers(1, 8))
def test_hashes_of_windows_are_those_windows(texts, window):
    found = {int(h): t[i : i + window] for t in texts for i, h in enumerate(hashes(codes_of(t), window))}
    pieces = {t[i : i + window] for t in texts for i in range(len(t) - window + 1)}
    assert set(found.values()) == pieces and len(found) == len(pieces)
    assert sorted(found) == distinct([codes_of(t) for t in texts], window).tolist()


@given(CODES, CODES, st.integers(1, 4))
def test_what_two_texts_share_is_that_of_an_enumeration(a, b, window):
    one, two = windows_of(a, window), windows_of(b, window)
    x, y = np.array(a), np.array(b)
    assert shared(x, y, window) == len(set(one) & set(two))
    assert leak(x, y, window) == (sum(piece in two for piece in one) / len(one) if one else 0)
    mask = among(hashes(x, window), distinct([y], window))
    assert mask.tolist() == [piece in two for piece in one]


def test_long_windows_over_large_codes_do_not_collide():
    random = np.random.default_rng(0)
    text = random.integers(0, 50_257, 200_000)
    assert len(distinct([text], 32)) == 200_000 - 31
    for i, j in itertools.product(range(0, 60, 7), (0, 50_256)):  # one code another, at any place of the window
        other = text[:60].copy()
        other[i] = j
        assert shared(text[:60], other, 60) == (text[i] == j)

"""N-gram losses against counts in plain Python with fractions; floors that no simpler estimator is below."""

import math
from collections import Counter, defaultdict
from fractions import Fraction
from itertools import pairwise
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlexp.attention import text as attention
from mlexp.eqprop import chars
from mlexp.text.ngrams import floors, loss, probabilities
from mlexp.text.tokenizer import trained_bpe


def grams(text, k):
    return [tuple(text[i : i + k]) for i in range(len(text) - k + 1)]


def discounts(counts):
    """Chen and Goodman's three, never below 0.6 of the count."""
    n = Counter(counts)
    found = [Fraction(0)]
    for i in (1, 2, 3):
        estimate = 0
        if n[1] and n[i]:
            estimate = i - (i + 1) * Fraction(n[1], n[1] + 2 * n[2]) * Fraction(n[i + 1], n[i])
        found.append(max(estimate, Fraction(3 * i, 5)))
    return found


def model(train, vocab, n):
    """p(token, context) as a fraction, by recursion over dictionaries of counts."""
    tables = []
    for k in range(1, n + 1):
        longer = (gram[1:] for gram in set(grams(train, k + 1)))
        count = Counter(grams(train, k) if k == n else longer)
        by_context = defaultdict(dict)
        for gram, c in count.items():
            by_context[gram[:-1]][gram[-1]] = c
        tables.append((by_context, discounts(count.values())))

    def p(token, context):
        by_context, d = tables[len(context)]
        after = by_context.get(context, {})
        total = sum(after.values())
        if not context:
            return (after.get(token, 0) + Fraction(len(after), vocab)) / (total + len(after))
        if not total:
            return p(token, context[1:])
        freed = sum(d[min(c, 3)] for c in after.values())
        c = after.get(token, 0)
        return (c - d[min(c, 3)] + freed * p(token, context[1:])) / total

    return p


TEXT = st.lists(st.integers(0, 4), min_size=4, max_size=60)


@given(train=TEXT, held_out=TEXT, n=st.integers(1, 4))
@settings(max_examples=60)
def test_probabilities_are_those_of_counts_in_fractions(train, held_out, n):
    p = model(train, 5, n)
    found = probabilities(np.array(train), np.array(held_out), 5, n)
    want = [p(token, tuple(held_out[max(0, i - n + 1) : i])) for i, token in enumerate(held_out)]
    assert found.tolist() == pytest.approx([float(x) for x in want], rel=1e-12)
    for first in (1, 3):
        want_loss = -fmean(math.log(x) for x in want[first:])
        assert loss(np.array(train), np.array(held_out), 5, n, first) == pytest.approx(want_loss)


@given(train=TEXT, context=st.lists(st.integers(0, 6), max_size=4), n=st.integers(1, 4))
def test_every_context_has_a_distribution_without_zeros(train, context, n):
    p = [probabilities(np.array(train), np.array([*context, token]), 7, n)[-1] for token in range(7)]
    assert sum(p) == pytest.approx(1) and min(p) > 0


def test_names_and_orders():
    text = np.random.default_rng(0).integers(0, 3, 200)
    found = floors(text[:100], text[100:], 3, n=4)
    assert list(found) == ["unigram", "bigram", "trigram", "4gram"]
    assert found == {name: loss(text[:100], text[100:], 3, k) for k, name in enumerate(found, 1)}
    assert list(floors(text, text, 3)) == ["unigram", "bigram"]


@pytest.mark.parametrize("n", [0, 4])
def test_an_order_that_the_text_lacks_is_refused(n):
    with pytest.raises(ValueError, match=f"n={n}: expected 1 <= n <= 3"):
        probabilities(np.arange(3), np.arange(3), 5, n)


def test_large_vocabularies_take_no_table_of_pairs():
    random = np.random.default_rng(0)
    train, held_out = random.zipf(1.3, (2, 20_000)).clip(max=50_256)
    assert math.log(10) < loss(train, held_out, 50_257, 5) < math.log(50_257)


# Harder to beat than the estimators that it replaced, written out.


def one_pseudo_count(train, held_out, vocab):
    unigram = (np.bincount(train, minlength=vocab) + 1 / vocab) / (len(train) + 1)
    pairs, before = Counter(pairwise(train.tolist())), Counter(train[:-1].tolist())
    return -fmean(math.log((pairs[a, b] + unigram[b]) / (before[a] + 1)) for a, b in pairwise(held_out.tolist()))


def witten_bell(train, held_out, vocab):
    counts = np.bincount(train, minlength=vocab)
    kinds = np.count_nonzero(counts)
    unigram = (counts + kinds / vocab) / (len(train) + kinds)
    pairs, before = Counter(pairwise(train.tolist())), Counter(train[:-1].tolist())
    successors = Counter(a for a, _ in pairs)

    def p(a, b):
        weight = successors[a] or 1
        return (pairs[a, b] + weight * unigram[b]) / (before[a] + weight)

    return -fmean(math.log(p(a, b)) for a, b in pairwise(held_out.tolist()))


def best_fixed_weight(train, held_out, vocab):
    unigram = (np.bincount(train, minlength=vocab) + 1) / (len(train) + vocab)
    pairs, before = Counter(pairwise(train.tolist())), Counter(train[:-1].tolist())
    steps = list(pairwise(held_out.tolist()))
    seen = np.array([pairs[a, b] / before[a] if before[a] else 0.0 for a, b in steps])
    alone = unigram[held_out[1:]]
    return min(-np.log(w * seen + (1 - w) * alone).mean() for w in np.arange(1, 10) / 10)


@pytest.fixture(scope="module")
def text():
    return chars.load()


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """Tokens of the default corpus: training and held-out."""
    from mlexp.text.corpus import read_corpus, split

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        parts = split(read_corpus(), {"test": 20_000})
        tokenizer = trained_bpe(parts["train"], 1024, progress=lambda *_: None)
    return [np.array([i for document in parts[name] for i in tokenizer.encode(document).ids]) for name in parts]


@pytest.mark.parametrize("size", [300, 10_000, 30_000])
def test_no_estimator_that_it_replaced_is_a_harder_floor_of_characters(text, size):
    train, held_out = chars.excerpt(text.train, size, 7).numpy(), text.test[:8000].numpy()
    others = [one_pseudo_count, witten_bell, *([best_fixed_weight] if size >= 10_000 else [])]
    assert loss(train, held_out, chars.ALPHABET, 2) < min(f(train, held_out, chars.ALPHABET) for f in others)


@pytest.mark.parametrize("size", [2000, 40_000])
def test_no_estimator_that_it_replaced_is_a_harder_floor_of_tokens(bpe, size):
    held_out, train = bpe[0], bpe[1][:size]
    others = [one_pseudo_count, witten_bell, *([best_fixed_weight] if size >= 20_000 else [])]
    assert loss(train, held_out, 1024, 2) < min(f(train, held_out, 1024) for f in others)


def test_longer_contexts_lower_the_floor_of_enough_text(text):
    train, held_out = text.train[:100_000].numpy(), text.test[:8000].numpy()
    found = list(floors(train, held_out, chars.ALPHABET, n=5).values())
    assert all(longer < shorter - 0.05 for shorter, longer in pairwise(found))


def test_every_subject_s_floors_are_these(text):
    """The third, gpt2_nano's, is compared with `loss` where its training is tested."""
    train, test = text.train[:5000], text.test[:3000]
    parts = {"train": train.numpy(), "test": test.numpy()}
    want = floors(parts["train"], parts["test"], chars.ALPHABET)
    assert chars.floors(train, test) == want
    parts = {name: attention.Part(tokens, np.array([0])) for name, tokens in parts.items()}
    found = attention.floors(parts, chars.ALPHABET)
    assert found == {"uniform": math.log(chars.ALPHABET), **want}

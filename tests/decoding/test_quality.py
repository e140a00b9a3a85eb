"""Measures of sample quality against definitions written out, and effective samples against what must come out."""

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlexp.decoding.decoders import DECODE
from mlexp.decoding.engine import grow
from mlexp.decoding.quality import (
    contains_answer,
    distinct_n,
    effective_samples,
    self_bleu,
    surprisal,
    texts,
    unique_sequences,
)
from mlexp.decoding.settings import Sampling

from .models import TORCH_DECODERS, prompt_of, tiny

ROWS = st.integers(2, 5).flatmap(
    lambda g: st.lists(st.lists(st.integers(0, 3), min_size=g, max_size=g), min_size=2, max_size=6)
)


def plain_self_bleu(rows):
    scores = []
    for i, row in enumerate(rows):
        others, logs = rows[:i] + rows[i + 1 :], []
        for n in range(1, min(4, len(row)) + 1):
            grams = [tuple(row[j : j + n]) for j in range(len(row) - n + 1)]
            best = Counter()
            for other in others:
                best |= Counter(tuple(other[j : j + n]) for j in range(len(other) - n + 1))
            hit = sum((Counter(grams) & best).values())
            p = hit / len(grams) if n == 1 else (hit + 1) / (len(grams) + 1)
            logs.append(math.log(p) if p else -math.inf)
        scores.append(math.exp(sum(logs) / len(logs)))
    return sum(scores) / len(scores)


@given(rows=ROWS)
def test_self_bleu_is_its_definition(rows):
    assert self_bleu(rows) == pytest.approx(plain_self_bleu(rows))


@given(rows=ROWS, n=st.integers(1, 3))
def test_distinct_is_its_definition(rows, n):
    grams = [tuple(r[i : i + n]) for r in rows for i in range(len(r) - n + 1)]
    want = len(set(grams)) / len(grams) if grams else math.nan
    assert distinct_n(rows, n) == pytest.approx(want, nan_ok=True)


def test_edges_of_the_variety_measures():
    same, apart = [[1, 2, 3, 4, 5]] * 3, [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert self_bleu(same) == pytest.approx(1) and self_bleu(apart) == 0
    assert unique_sequences(same) == 1 and unique_sequences(apart) == 2
    assert math.isnan(self_bleu([[1, 2]])) and math.isnan(distinct_n([[1]], 2))


def test_answers_are_found_in_any_case_and_spacing():
    lm = SimpleNamespace(
        tokenizer=SimpleNamespace(decode=lambda row: " ".join(["Karl", "", "VON\nFrisch", "x"][: len(row)]))
    )
    assert contains_answer(lm, np.zeros((4, 5)), "von frisch") == 1
    assert contains_answer(lm, np.zeros((4, 5)), "Darwin") == 0
    with pytest.raises(ValueError, match="answer '  '"):
        contains_answer(lm, np.zeros((1, 1)), "  ")


@pytest.mark.parametrize("decoder", TORCH_DECODERS)
def test_every_arm_is_scored_by_the_same_function(decoder):
    lm, prompt, sampling = tiny(), prompt_of(5), Sampling(samples=4, max_new_tokens=5)
    samples = DECODE[decoder](lm, prompt, sampling, 1)
    got = surprisal(lm, prompt, samples.tokens, sampling)
    assert got.shape == samples.tokens.shape and (got >= 0).all()
    if samples.tree is not None:
        np.testing.assert_allclose(got, samples.tree.surprisals(), atol=1e-9)


SAMPLING = Sampling(samples=8, max_new_tokens=4, max_paths=8, threshold=0.7)


@pytest.mark.parametrize("decoder", ["sequential", "hf_batched", "shared_prefill", "dedup"])
def test_independent_samples_are_worth_themselves(decoder):
    assert effective_samples(tiny(vocab=6, sharpness=1.5), prompt_of(3, vocab=6), SAMPLING, decoder, 4).samples == 8


def test_correlated_samples_are_worth_less_and_the_iid_forest_confirms_the_scale():
    lm, prompt = tiny(vocab=6, sharpness=1.5), prompt_of(3, vocab=6)
    got = effective_samples(lm, prompt, SAMPLING, "eab_particles", replicates=400, iid_replicates=60)
    assert 1 < got.samples < 7 and got.replicates == 400
    assert list(got.by) == ["token_0", "token_1", "token_2", "token_3", "surprisal"]  # one length, no answer asked for
    # the prompt branches into groups of 3, 3 and 2: no other question is answered as badly
    assert got.worst == "token_0" and got.samples == pytest.approx(64 / 22, rel=0.1)
    assert all(each.error < 0.15 * each.samples for each in got.by.values())
    # with threshold 0 and k = N the particles are independent, so the same estimate must give N
    free = Sampling(samples=8, max_new_tokens=4, max_paths=8, threshold=0.0, branch_factor=8)
    got = effective_samples(lm, prompt, free, "eab_particles", 600, iid_replicates=100)
    assert got.samples == pytest.approx(8, rel=0.25)
    assert all(each.samples == pytest.approx(8, rel=0.2) for each in got.by.values())


def test_forests_of_any_size_count_the_same_trees(monkeypatch):
    lm, prompt, steps = tiny(vocab=6, sharpness=1.5), prompt_of(3, vocab=6), []
    monkeypatch.setattr("mlexp.decoding.quality.ROWS", 10 * 8)
    got = effective_samples(lm, prompt, SAMPLING, "eab_paper", 24, iid_replicates=16, hits=lambda t: (t == 2).any(1),
                            progress=steps.append)  # fmt: skip
    assert steps == [0, 10, 20, 24, 34]
    assert all(len(each.parts) == 24 for each in got.by.values()) and "answer" in got.by


def test_no_two_forests_share_their_seeds_and_the_independent_samples_are_dedup_s(monkeypatch):
    lm, prompt, asked = tiny(vocab=6, sharpness=1.5), prompt_of(3, vocab=6), []

    def watched(model, prompt, sampling, decoder, seed, trees):
        asked.append((decoder, seed, trees, sampling))
        return grow(model, prompt, sampling, decoder, seed, trees)

    monkeypatch.setattr("mlexp.decoding.quality.grow", watched)
    monkeypatch.setattr("mlexp.decoding.quality.ROWS", 10 * 8)
    effective_samples(lm, prompt, SAMPLING, "eab_particles", 24, 100, iid_replicates=16)
    trees = [("eab_particles", 100, 10), ("eab_particles", 110, 10), ("eab_particles", 120, 4)]
    assert [row[:3] for row in asked] == [*trees, ("dedup", 124, 10), ("dedup", 134, 6)]
    assert {row[3] for row in asked} == {SAMPLING}


def test_no_variance_is_none_and_bad_requests_are_named():
    sure = Sampling(samples=4, max_new_tokens=3, temperature=1e-4)
    lm, prompt = tiny(vocab=6), prompt_of(3, vocab=6)
    assert effective_samples(lm, prompt, sure, "eab_particles", 16).samples is None
    few = effective_samples(lm, prompt, SAMPLING, "eab_particles", 15)
    assert few.samples is None and few.worst is None and few.by == {}
    with pytest.raises(ValueError, match="unknown decoder 'beam'"):
        effective_samples(lm, prompt, SAMPLING, "beam")


def test_texts_that_end_are_measured_up_to_their_end():
    tokens, lengths = np.array([[1, 2, 9, 9, 9], [1, 9, 9, 9, 9], [3, 4, 5, 6, 9]]), np.array([3, 2, 5])
    cut = texts(tokens, lengths)
    assert cut == [[1, 2, 9], [1, 9], [3, 4, 5, 6, 9]]
    assert distinct_n(cut, 1) == 7 / 10 and distinct_n(cut, 2) == 7 / 7
    assert self_bleu(cut) == pytest.approx(plain_self_bleu(cut))
    lm = SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda row: " ".join(map(str, row))))
    assert contains_answer(lm, cut, "9 9") == 0 and contains_answer(lm, tokens, "9 9") > 0

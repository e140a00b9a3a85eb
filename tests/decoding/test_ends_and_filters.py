"""Stop tokens, top-k and top-p: transformers' filters, the law of the samples by enumeration, no ended text
forwarded."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import TopKLogitsWarper, TopPLogitsWarper

from mlexp.decoding.costs import cost
from mlexp.decoding.decoders import DECODE
from mlexp.decoding.engine import grow
from mlexp.decoding.filters import restrict
from mlexp.decoding.scoring import score
from mlexp.decoding.settings import TREE_DECODERS, Sampling

from .models import TORCH_DECODERS, independent_logits, prompt_of, tiny

V, P, G = 6, 4, 3
RULES = {
    "ends": {"stop_tokens": (2,)},
    "two ends": {"stop_tokens": (4, 1)},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.7},
    "all": {"stop_tokens": (2, 5), "top_k": 4, "top_p": 0.9},
}


def filtered(scores: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """transformers' own processors, in generate's order."""
    for warper in ([TopKLogitsWarper(top_k)] if top_k else []) + ([TopPLogitsWarper(top_p)] if top_p < 1 else []):
        scores = warper(None, scores)
    return scores


@given(rows=st.integers(1, 4), vocab=st.integers(1, 60), top_k=st.integers(0, 70), seed=st.integers(0, 2**31 - 1),
       top_p=st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.999, 1.0]), ties=st.booleans())  # fmt: skip
def test_filters_are_those_of_transformers(rows, vocab, top_k, top_p, ties, seed):
    x = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    x = x.round() if ties else x
    assert torch.equal(restrict(x, top_k, top_p), filtered(x, top_k, top_p))
    kept = restrict(x, top_k, top_p) > -math.inf
    assert kept.any(1).all() and (top_k == 0 or ties or (kept.sum(1) <= top_k).all())


def texts(rule: Sampling, sharpness=8.0):
    """Every text that can be drawn, (n, G) padded behind its end, and its probability, by plain forwards."""
    prompt, model = prompt_of(P, vocab=V), tiny(vocab=V, sharpness=sharpness).model
    paths = np.array(list(itertools.product(range(V), repeat=G)))
    first = model(prompt[None]).logits[:, -1:].expand(len(paths), -1, -1)
    logits = torch.cat([first, independent_logits(model, prompt, paths)[:, :-1]], 1) / rule.temperature
    log_p = filtered(logits.view(-1, V), rule.top_k, rule.top_p).view(logits.shape).log_softmax(-1)
    log_p = log_p.gather(-1, torch.from_numpy(paths)[..., None])[..., 0].numpy()
    ends = np.isin(paths, rule.stop_tokens)
    behind = np.cumsum(ends, 1) - ends > 0
    own = np.where(behind, rule.stop_tokens[0] if rule.stop_tokens else -1, paths)
    _, index = np.unique(own, axis=0, return_index=True)
    return own[index], np.exp(np.where(behind, 0, log_p).sum(1))[index]


def g_test(samples, outcomes, p):
    """p-value of a G-test of samples (n, G) against the probabilities of all outcomes; rare ones pooled."""
    place = (V + 1) ** np.arange(G)
    code = {c: i for i, c in enumerate((outcomes + 1) @ place)}
    seen = np.bincount([code[c] for c in (samples + 1) @ place], minlength=len(p))
    want = p * len(samples)
    often = want >= 5
    f, e = (np.r_[x[often], x[~often].sum()] for x in (seen, want))
    f, e = f[e > 0], e[e > 0]
    return stats.power_divergence(f, e * f.sum() / e.sum(), lambda_=0).pvalue


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("decoder", ["dedup", "eab_particles"])
def test_every_sample_has_the_law_of_the_model(decoder, rule):
    sampling = Sampling(samples=6, max_new_tokens=G, max_paths=4, threshold=0.5, **RULES[rule])
    outcomes, p = texts(sampling)
    assert p.sum() == pytest.approx(1)
    model, prompt, trees = tiny(vocab=V, sharpness=8.0).model, prompt_of(P, vocab=V), 4000
    tree, _ = grow(model, prompt, sampling, decoder, 7, trees)
    samples = tree.tokens().reshape(trees, 6, G)
    # particles of one tree are dependent under eab_particles: one of each tree at a time
    assert min(g_test(samples[:, i], outcomes, p) for i in range(6)) > 1e-3 / 6
    assert g_test(np.repeat(samples[:1, 0], trees, 0), outcomes, p) < 1e-9  # the test can fail
    surprisal = tree.surprisals().sum(1).reshape(trees, 6).mean(1)
    possible = p > 0
    expected = -(p[possible] * np.log(p[possible])).sum()
    assert abs(surprisal.mean() - expected) < 4 * surprisal.std(ddof=1) / math.sqrt(trees)


@pytest.mark.parametrize("decoder", ["sequential", "shared_prefill", "hf_batched"])
def test_arms_without_a_tree_have_it_too(decoder):
    sampling = Sampling(samples=3000, max_new_tokens=G, **RULES["all"])
    out = DECODE[decoder](tiny(vocab=V, sharpness=8.0), prompt_of(P, vocab=V), sampling, 3)
    assert g_test(out.tokens.numpy(), *texts(sampling)) > 1e-3


@pytest.mark.parametrize("rule", RULES)
@given(samples=st.integers(1, 7), new=st.integers(1, 8), prompts=st.integers(1, 2), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=10)
def test_arms_with_one_seed_draw_the_same_texts_and_forward_no_ended_one(rule, samples, new, prompts, seed):
    lm, asked = tiny(vocab=V, sharpness=8.0), torch.stack([prompt_of(P, vocab=V, seed=i) for i in range(prompts)])
    sampling = Sampling(samples, new, **RULES[rule])
    a, b, c = (DECODE[d](lm, asked, sampling, seed) for d in ("sequential", "shared_prefill", "dedup"))
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.tokens, c.tokens)
    assert torch.equal(a.lengths, b.lengths) and torch.equal(a.lengths, c.lengths)
    forwarded = int((a.lengths - 1).sum())
    assert sum(a.rows) == sum(b.rows) == forwarded
    assert a.token_forwards == samples * prompts * P + forwarded and b.token_forwards == prompts * P + forwarded
    for name, got in (("sequential", a), ("shared_prefill", b), ("dedup", c)):
        want = cost(lm.model.config, name, P, sampling, got.rows, prompts=prompts)
        seen = (got.model_forwards, got.token_forwards, got.logit_rows, got.kv_slots)
        assert seen == (want.model_forwards, want.token_forwards, want.logit_rows, want.kv_slots)


@pytest.mark.parametrize("decoder", TORCH_DECODERS)
def test_behind_the_end_stands_the_first_stop_token(decoder):
    sampling = Sampling(samples=40, max_new_tokens=7, max_paths=40, branch_factor=40, threshold=0.0, stop_tokens=(4, 1))
    out = DECODE[decoder](tiny(vocab=V, sharpness=4.0), prompt_of(P, vocab=V), sampling, 0)
    assert len(set(out.lengths.tolist())) > 2
    for row, length in zip(out.tokens.tolist(), out.lengths.tolist(), strict=True):
        assert not {4, 1} & set(row[: length - 1]) and (length == 7 or row[length - 1] in (4, 1))
        assert row[length:] == [4] * (7 - length)


@pytest.mark.parametrize("decoder", TREE_DECODERS)
@given(samples=st.integers(1, 6), new=st.integers(1, 6), k=st.integers(1, 4), paths=st.integers(1, 6),
       trees=st.integers(1, 3), seed=st.integers(0, 2**31 - 1), threshold=st.sampled_from([0.0, 0.4]),
       rule=st.sampled_from(list(RULES)))  # fmt: skip
@settings(max_examples=20)
def test_trees_end_where_their_texts_end(decoder, samples, new, k, paths, trees, seed, threshold, rule):
    lm, prompt = tiny(vocab=V, sharpness=6.0), prompt_of(P, vocab=V)
    sampling = Sampling(samples, new, 0.8, threshold, k, paths, **RULES[rule])
    tree, counts = grow(lm.model, prompt, sampling, decoder, seed, trees)
    inner = tree.parent[tree.parent >= 0]
    assert not tree.ended[inner].any() and (tree.ended == np.isin(tree.token, sampling.stop_tokens)).all()
    assert (tree.ended[tree.leaf] | (tree.lengths() == new)).all()
    assert counts.token_forwards == P + sum(tree.live_paths()[:-1])
    assert (tree.tip < 0).sum() == trees and not tree.ended[tree.tip[tree.tip >= 0]].any()
    got = score(lm.model, prompt, np.maximum(tree.tokens(), 0), 0.8, 9, sampling.top_k, sampling.top_p, tree.lengths())
    np.testing.assert_allclose(got, tree.surprisals(), atol=1e-9)
    idle, _ = grow(lm.model, prompt, sampling, decoder, seed, trees, idle_rows=True)
    assert (idle.tokens() == tree.tokens()).all() and (idle.leaf_tree == tree.leaf_tree).all()
    np.testing.assert_allclose(idle.logprobs(), tree.logprobs(), atol=1e-9)


def test_bad_settings_are_named():
    for name, value in {"top_k": -1, "top_p": 0.0, "stop_tokens": (-1,)}.items():
        with pytest.raises(ValueError, match=name):
            Sampling(**{name: value})
    with pytest.raises(ValueError, match=f"stop token {V}: GPT2LMHeadModel has tokens 0 to {V - 1}"):
        grow(tiny(vocab=V).model, prompt_of(P, vocab=V), Sampling(stop_tokens=(V,)), "dedup", 0)

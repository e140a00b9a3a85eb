"""The tree as one sequence against independent forwards: random trees, two kinds of model, two precisions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlexp.decoding.attention import NAME, TreeView, tree_attention_on
from mlexp.decoding.engine import grow
from mlexp.decoding.kernels.reference import tree_attention
from mlexp.decoding.pool import Pool, counting
from mlexp.decoding.scoring import score
from mlexp.decoding.settings import Sampling

from .models import independent_logits, prompt_of, tiny

TOLERANCE = [(torch.float64, 1e-9), (torch.float32, 1e-4)]


def random_tree(rng, steps, widest):
    """Steps of (parents among the tips before, tokens); children may share a parent, tips may die out."""
    tips, tree = 1, []
    for _ in range(steps):
        n = int(rng.integers(1, widest + 1))
        tree.append((np.sort(rng.integers(0, tips, n)), rng.integers(0, 37, n)))
        tips = n
    return tree


def grown(model, prompt, tree, wrong=False):
    """(logits of the last tips through the engine, their paths). `wrong` shows every tip its neighbour's ancestors."""
    paths, ancestors, used = np.zeros((1, 0), np.int64), torch.empty(1, 0, dtype=torch.int32), len(prompt)
    with tree_attention_on(model), torch.no_grad():
        pool = Pool(model, len(prompt) + sum(len(p) for p, _ in tree))
        pool.prefill(prompt[None])
        for depth, (parent, token) in enumerate(tree):
            paths = np.concatenate([paths[parent], token[:, None]], 1)
            slots = torch.arange(used, used + len(token))
            ancestors, used = torch.cat([ancestors[parent], slots[:, None].int()], 1), used + len(token)
            view = TreeView(len(prompt), ancestors.roll(1, 0) if wrong else ancestors)
            position = torch.full((len(token),), len(prompt) + depth)
            logits = pool.forward(torch.from_numpy(token), position, slots, view)
    return logits, paths


def error(model, prompt, tree, wrong=False):
    logits, paths = grown(model, prompt, tree, wrong)
    return (logits - independent_logits(model, prompt, paths)[:, -1]).abs().max().item()


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCE, ids=["fp64", "fp32"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@given(prompt=st.integers(1, 23), steps=st.integers(1, 7), widest=st.integers(1, 6), seed=st.integers(0, 2**31 - 1))
def test_leaf_logits_are_those_of_independent_forwards(kind, dtype, tolerance, prompt, steps, widest, seed):
    model = tiny(kind, dtype=dtype).model
    assert (
        error(model, prompt_of(prompt, seed=seed), random_tree(np.random.default_rng(seed), steps, widest)) < tolerance
    )


def test_the_comparison_catches_a_wrong_ancestor_table():
    tree = [(np.zeros(3, int), np.array([1, 2, 3])), (np.arange(3), np.array([4, 5, 6]))]
    assert error(tiny().model, prompt_of(5), tree, wrong=True) > 1e-3


def dense(q, k_pool, v_pool, prompt_len, ancestors, lengths):
    """softmax over an explicit list of slots per tip and head."""
    n, H, D = q.shape
    out, group = torch.empty_like(q), H // k_pool.shape[1]
    for i in range(n):
        slots = [*range(prompt_len), *ancestors[i, : lengths[i]].tolist()]
        for h in range(H):
            k, v = k_pool[slots, h // group], v_pool[slots, h // group]
            out[i, h] = (k @ q[i, h] / D**0.5).softmax(0) @ v
    return out


@given(n=st.integers(1, 6), heads=st.sampled_from([(1, 1), (4, 4), (6, 2), (3, 1)]), width=st.sampled_from([1, 5, 16]),
       prompt=st.integers(1, 19), depth=st.integers(1, 7), seed=st.integers(0, 2**31 - 1))  # fmt: skip
def test_tree_attention_is_attention_over_listed_slots(n, heads, width, prompt, depth, seed):
    g = torch.Generator().manual_seed(seed)
    H, K = heads
    q = torch.randn(n, H, width, generator=g, dtype=torch.float64)
    k, v = (torch.randn(prompt + 30, K, width, generator=g, dtype=torch.float64) for _ in "kv")
    ancestors = torch.randint(prompt, prompt + 30, (n, depth), generator=g)
    lengths = torch.randint(1, depth + 1, (n,), generator=g)
    want = dense(q, k, v, prompt, ancestors, lengths)
    torch.testing.assert_close(tree_attention(q, k, v, prompt, ancestors, lengths), want)
    full = torch.full((n,), depth)
    torch.testing.assert_close(tree_attention(q, k, v, prompt, ancestors), dense(q, k, v, prompt, ancestors, full))
    low = tree_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), prompt, ancestors, lengths)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), want, atol=0.1, rtol=0.1)


def test_no_ancestors_is_the_prompt_alone():
    q, k, v = (torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
    none = torch.empty(2, 0, dtype=torch.int32)
    torch.testing.assert_close(tree_attention(q, k, v, 2, none), dense(q, k, v, 2, none, [0, 0]))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@given(n=st.integers(1, 6), new=st.integers(1, 6), seed=st.integers(0, 2**31 - 1), chunk=st.integers(1, 9))
def test_scores_are_log_probabilities_of_independent_forwards(kind, n, new, seed, chunk):
    model, prompt = tiny(kind).model, prompt_of(7, seed=seed)
    tokens = np.random.default_rng(seed).integers(0, 4, (n, new))  # few tokens: prefixes are shared
    full = torch.cat([prompt[None].expand(n, -1), torch.from_numpy(tokens)], 1)
    want = -(model(full).logits[:, 6:-1] / 0.8).log_softmax(-1).gather(-1, torch.from_numpy(tokens)[..., None])[..., 0]
    got = score(model, prompt, tokens, 0.8, chunk)
    np.testing.assert_allclose(got, want.numpy(), atol=1e-9)
    assert np.abs(score(model, prompt, (tokens + 1) % 37, 0.8) - want.numpy()).max() > 1e-3  # and the check can fail


@pytest.mark.parametrize("decoder", ["dedup", "eab_paper", "eab_particles"])
def test_a_forest_is_its_trees_and_scores_are_what_the_tree_recorded(decoder):
    lm, prompt, sampling = tiny(), prompt_of(6), Sampling(samples=7, max_new_tokens=6, max_paths=7)
    forest, _ = grow(lm.model, prompt, sampling, decoder, seed=11, trees=4)
    alone, _ = grow(lm.model, prompt, sampling, decoder, seed=11)
    assert (forest.tokens()[forest.leaf_tree == 0] == alone.tokens()).all()
    assert len({tuple(map(tuple, forest.tokens()[forest.leaf_tree == r])) for r in range(4)}) > 1
    np.testing.assert_allclose(score(lm.model, prompt, forest.tokens(), 0.8), forest.surprisals(), atol=1e-9)


def test_the_model_is_left_as_it_was_even_after_an_error():
    model = tiny().model
    before = model.config._attn_implementation
    with pytest.raises(RuntimeError, match="inside"), tree_attention_on(model), counting(model):
        assert model.config._attn_implementation == NAME
        raise RuntimeError("inside")
    assert model.config._attn_implementation == before == "sdpa"
    assert not model._forward_hooks


def test_refusals_name_the_value():
    model = tiny(positions=10).model
    with pytest.raises(ValueError, match=r"8 prompt \+ 5 new tokens.*10 positions"):
        grow(model, prompt_of(8), Sampling(max_new_tokens=5), "dedup", 0)
    with pytest.raises(ValueError, match="unknown policy 'beam'; choose from dedup"):
        grow(model, prompt_of(2), Sampling(max_new_tokens=5), "beam", 0)
    with pytest.raises(ValueError, match="shape \\(1, 1, 3\\)"):
        grow(model, prompt_of(3)[None, None], Sampling(max_new_tokens=5), "dedup", 0)
    with pytest.raises(ValueError, match=r"prompt token 37: GPT2LMHeadModel has tokens 0 to 36"):
        grow(model, prompt_of(3) * 0 + 37, Sampling(max_new_tokens=5), "dedup", 0)

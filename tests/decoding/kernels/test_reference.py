"""The specification itself against definitions: entropy, draws and their law, attention over listed slots, the front
door."""

import importlib
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode

from mlexp.decoding import kernels
from mlexp.decoding.kernels import reference
from mlexp.decoding.rng import path_seeds
from mlexp.decoding.settings import BranchRule

from .inputs import EXTRAS, KINDS, SEEDS, VOCABULARIES, forest, logits, pools


@given(rows=st.integers(1, 4), vocab=VOCABULARIES, kind=st.sampled_from(KINDS), seed=SEEDS,
       temperature=st.sampled_from([0.3, 0.8, 2.0]), shift=st.sampled_from([-100.0, 7.0]))  # fmt: skip
def test_entropy_and_normaliser_are_the_definitions(rows, vocab, kind, seed, temperature, shift):
    given_logits = logits(np.random.default_rng(seed), rows, vocab, kind)
    x = reference.tempered(given_logits, temperature)
    h, log_z = reference.entropy(x)
    log_p = (given_logits.double() / temperature).log_softmax(-1)
    want = -torch.where(log_p.exp() > 0, log_p.exp() * log_p, 0).sum(-1)
    none = (given_logits == -math.inf).all(-1)
    torch.testing.assert_close(h.double(), want.masked_fill(none, 0), atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(
        log_z.double(), (given_logits.double() / temperature).logsumexp(-1), atol=1e-4, rtol=1e-6
    )
    sampled = reference.entropy_sample(given_logits, temperature, path_seeds(seed, 1, rows)[0], 3)
    assert torch.equal(sampled[0], h) and torch.equal(sampled[1], log_z)
    possible = log_p.gather(1, sampled[2].clamp(min=0)).masked_fill(sampled[2] < 0, -math.inf)
    torch.testing.assert_close(sampled[3].double(), possible, atol=2e-4, rtol=1e-5)
    assert (h >= 0).all() and (h <= math.log(vocab) + 1e-5).all()
    torch.testing.assert_close(reference.entropy(x + shift)[0], h, atol=2e-3, rtol=1e-3)  # x + shift itself is rounded


@pytest.mark.parametrize("vocab", [1, 50257])
def test_a_uniform_row_has_the_entropy_of_its_vocabulary(vocab):
    h, log_z = reference.entropy(torch.full((2, vocab), -100.0))
    assert h.tolist() == pytest.approx([math.log(vocab)] * 2, abs=1e-5)
    assert log_z.tolist() == pytest.approx([math.log(vocab) - 100] * 2, abs=1e-4)


def test_gumbel_numbers_are_finite_and_of_their_law():
    edge = reference.gumbel(torch.tensor([0, 1, 2**31, 2**32 - 1]), torch.float32)
    assert edge.isfinite().all() and edge[0] < reference.GUMBEL_MAX and (edge.diff() < 0).all()
    words = torch.randint(0, 2**32, (20000,), generator=torch.Generator().manual_seed(0))
    for kind in (torch.float32, torch.float64):
        assert stats.kstest(reference.gumbel(words, kind).numpy(), "gumbel_r").pvalue > 1e-3
    v = (words.float() * 2.0**-32 + 2.0**-33).clamp(max=1 - 2.0**-24)  # rounded alike by every backend
    exact = -(-torch.log1p(-v.double())).log()
    assert (reference.gumbel(words, torch.float32) - exact).abs().max() < 8 * 2**-23 * 24


def test_draws_follow_the_law_without_replacement():
    p, R = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), 6000
    seeds, row = path_seeds(1, 1, R)[0], torch.zeros(R, dtype=torch.int64)
    tokens = reference.draw(p.log()[None], seeds, 0, 4, row).numpy()
    assert (np.sort(tokens[:, :3], 1) == [0, 1, 2]).all() and (tokens[:, 3] == -1).all()  # a fourth does not exist
    seen = np.bincount(tokens[:, 0] * 3 + tokens[:, 1], minlength=9)
    want = np.array([[0 if i == j else p[i] * p[j] / (1 - p[i]) for j in range(3)] for i in range(3)]).ravel() * R
    assert (seen[want == 0] == 0).all()
    assert stats.power_divergence(seen[want > 0], want[want > 0], lambda_=0).pvalue > 1e-3
    assert stats.power_divergence(seen[want > 0], np.full(6, R / 6), lambda_=0).pvalue < 1e-9  # the test can fail


def test_draws_from_a_large_vocabulary_are_unbiased():
    seeds = path_seeds(5, 1, 4000)[0]
    tokens = reference.draw(torch.zeros(1, 4096), seeds, 3, 1, torch.zeros(4000, dtype=torch.int64))[:, 0]
    assert stats.kstest(tokens.numpy() / 4096, "uniform").pvalue > 1e-3
    assert stats.chisquare(np.bincount(tokens % 128, minlength=128)).pvalue > 1e-3  # every lane of the layout


def test_ties_go_to_the_lowest_token(monkeypatch):
    monkeypatch.setattr(reference, "token_words", lambda seeds, position, vocab: torch.full((len(seeds), vocab), 77))
    x = torch.tensor([[1.0, 2.0, 2.0, 2.0, -math.inf]])
    assert reference.draw(x, torch.zeros(1, dtype=torch.int64), 0, 5, torch.tensor([0])).tolist() == [[1, 2, 3, 0, -1]]


@given(rows=st.integers(1, 4), vocab=VOCABULARIES, kind=st.sampled_from(KINDS), k=st.integers(1, 4), seed=SEEDS)
@settings(max_examples=40)
def test_a_draw_depends_on_its_row_seed_and_position_alone(rows, vocab, kind, k, seed):
    rng = np.random.default_rng(seed)
    x, seeds = logits(rng, rows, vocab, kind), path_seeds(seed, 1, 6)[0]
    which = torch.from_numpy(rng.integers(0, rows, 6))
    together = reference.entropy_sample(x, 0.8, seeds, 9, k, which)
    for i in range(6):
        alone = reference.entropy_sample(x[which[i : i + 1]].clone(), 0.8, seeds[i : i + 1], torch.tensor(9), k)
        assert all(torch.equal(a[0], t[i]) for a, t in zip(alone[2:], together[2:], strict=True))
    possible = (x > -math.inf).sum(-1)[which].clamp(max=k)
    assert ((together[2] >= 0).sum(1) == possible).all()
    assert ((together[3] == -math.inf) == (together[2] < 0)).all()
    elsewhere = reference.entropy_sample(x, 0.8, seeds, 10, k, which)[2]
    assert kind != "plain" or vocab < 700 or not torch.equal(elsewhere, together[2])


def written_out(state, rule, depth, first_slot):
    """`fork` as a story, particle by particle."""
    tips, tokens = state["tip"].tolist(), state["token"].tolist()
    (T, W), table = state["multiplicity"].shape, state["ancestors"]
    threshold_nats, k, limit, lossless = rule
    child, source, counts, groups = ([] for _ in range(4))
    below = torch.empty_like(table)
    for t in range(T):
        held = [[i for i, tip in enumerate(tips[t]) if tip == w] for w in range(W)]
        left, parts, drawn = limit - sum(map(bool, held)), [1] * W, dict.fromkeys(range(len(tips[t])))
        for w, members in enumerate(held):
            if lossless:
                parts[w] = max(1, len(members))
            elif members and state["entropy"][t, members[0]] >= threshold_nats:
                extra = max(0, min(left, min(k, len(members)) - 1))
                parts[w], left = 1 + extra, left - (min(k, len(members)) - 1)
            for rank, i in enumerate(members):
                lead = next(j for r, j in enumerate(members) if r * parts[w] // len(members) == rank * parts[w] // len(members))  # fmt: skip  # noqa: E501
                drawn[i] = tokens[t][lead]
        seen = {}
        for w, members in enumerate(held):
            for i in members:
                seen.setdefault((w, drawn[i]), []).append(i)
        groups.append(parts)
        child.append([list(seen).index((tips[t][i], drawn[i])) for i in range(len(tips[t]))])
        counts.append([len(m) for m in seen.values()] + [0] * (W - len(seen)))
        source.append([m[0] for m in seen.values()] + [0] * (W - len(seen)))
        for w in range(W):
            row = table[t * W + tips[t][source[t][w]]].clone()
            if depth < len(row):
                row[depth] = first_slot + depth * T * W + t * W + w
            below[t * W + w] = row
    return (*(torch.tensor(x) for x in (child, source, counts, groups)), below)


FORK = {"trees": st.integers(1, 3), "particles": st.integers(1, 12), "spare": st.integers(0, 3), "k": st.integers(1, 4),
        "threshold_nats": st.sampled_from([0.0, 0.5, 2.0]), "lossless": st.booleans(), "seed": SEEDS}  # fmt: skip


@given(**FORK)
def test_fork_is_the_story(trees, particles, spare, k, threshold_nats, lossless, seed):
    state = forest(np.random.default_rng(seed), trees, particles, particles + spare, 4)
    live = int((state["multiplicity"] > 0).sum(1).max())
    rule = BranchRule(threshold_nats, k, live + spare, lossless)
    got = reference.fork(**state, depth=2, first_slot=50, rule=rule)
    want = written_out(state, rule, 2, 50)
    assert all(torch.equal(g, w) for g, w in zip(got[:4], want[:4], strict=True))
    used = (got[2] > 0).view(-1)
    assert torch.equal(got[4][used], want[4][used])
    assert (got[2].sum(1) == particles).all() and (lossless or ((got[2] > 0).sum(1) <= rule.max_paths).all())


@given(prompts=st.integers(1, 3), per=st.integers(1, 3), heads=st.sampled_from([(1, 1), (4, 4), (6, 2), (3, 1)]),
       width=st.sampled_from([1, 5, 16]), value_width=st.sampled_from([1, 5, 24]), prompt=st.integers(1, 19),
       columns=st.integers(0, 5), extras=st.sets(st.sampled_from(EXTRAS)), seed=SEEDS)  # fmt: skip
def test_attention_is_over_the_listed_slots(prompts, per, heads, width, value_width, prompt, columns, extras, seed):
    tips, (H, K) = prompts * per, heads
    args = pools(np.random.default_rng(seed), tips, heads, width, prompt, prompts, columns, torch.float64, value_width,
                 extras)  # fmt: skip
    got, want = reference.tree_attention(**args), torch.empty(tips, H, value_width, dtype=torch.float64)
    for i, h in itertools.product(range(tips), range(H)):
        start = i // per * prompt
        slots = [*range(start, start + prompt), *args["ancestors"][i, : args["lengths"][i]].tolist()]
        if "first" in extras:
            slots = slots[args["first"][i] :]
        scores = args["k_pool"][slots, h // (H // K)] @ args["q"][i, h] / width**0.5
        if "softcap" in extras:
            scores = args["softcap"] * torch.tanh(scores / args["softcap"])
        weight = scores.exp()
        sink = args["sinks"][h].exp() if "sinks" in extras else 0
        want[i, h] = weight / (weight.sum() + sink) @ args["v_pool"][slots, h // (H // K)]
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("family", ["gpt_oss", "gemma2"])
def test_attention_is_that_of_transformers(family):
    """GPT-OSS has sinks, Gemma 2 has a softcap, both have windows: their own eager functions are the referees."""
    modeling = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    tips, (H, K), P, L = 5, (6, 2), 9, 4
    own = {"gpt_oss": ("first", "sinks"), "gemma2": ("first", "softcap")}[family]
    args = pools(np.random.default_rng(0), tips, (H, K), 16, P, 1, L, torch.float64, extras=own)
    position, given = torch.arange(P + L), {name: args.get(name) for name in ("softcap", "sinks")}
    seen = (position >= args["first"][:, None]) & (position < P + args["lengths"][:, None])
    slots = torch.cat([torch.arange(P).expand(tips, P), args["ancestors"]], 1).masked_fill(~seen, 0)
    keys, values = (args[name][slots].transpose(1, 2) for name in ("k_pool", "v_pool"))  # (tips, K, P + L, width)
    mask = torch.zeros(tips, 1, 1, P + L, dtype=torch.float64).masked_fill(~seen[:, None, None], -math.inf)
    module = SimpleNamespace(num_key_value_groups=H // K, sinks=given["sinks"], training=False)
    theirs = {} if family == "gpt_oss" else {"softcap": given["softcap"]}
    want, _ = modeling.eager_attention_forward(module, args["q"][:, :, None], keys, values, mask, scaling=0.3, **theirs)
    got = reference.tree_attention(**args, scale=0.3)
    torch.testing.assert_close(got, want[:, 0], atol=1e-6, rtol=1e-5)  # Gemma's softmax is in float32
    without = {name: value for name, value in args.items() if name != own[1]}
    with pytest.raises(AssertionError):  # the comparison can fail
        torch.testing.assert_close(reference.tree_attention(**without, scale=0.3), want[:, 0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("extras", [(), EXTRAS])
def test_attention_takes_queries_that_are_not_next_to_each_other(extras):
    args = pools(np.random.default_rng(3), 6, (6, 2), 16, 9, 2, 3, value_width=5, extras=extras)
    want = reference.tree_attention(**args)
    wide = torch.cat([args["q"], args["q"] * 2], 2)[..., :16]
    for q in (wide, args["q"].transpose(0, 1).contiguous().transpose(0, 1)):
        assert not q.is_contiguous()
        torch.testing.assert_close(reference.tree_attention(**args | {"q": q}), want)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_no_value_of_attention_decides_a_shape(backend, monkeypatch):
    """Fake tensors have no values to wait for."""
    monkeypatch.setattr(kernels, "missing", lambda *_: None)
    args = pools(np.random.default_rng(0), 4, (6, 2), 8, 5, 2, 3, torch.bfloat16, 12, EXTRAS)
    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for name, x in args.items()}
        out = kernels.tree_attention(**fake, backend=backend)
    assert (out.shape, out.dtype) == ((4, 6, 12), torch.bfloat16)


def test_the_front_door_says_what_it_took_and_what_is_missing(monkeypatch):
    assert kernels.choose("fork", "cpu") == "reference"
    with pytest.raises(ValueError, match="unknown kernel 'spoon'; choose from entropy_sample, fork, tree_attention"):
        kernels.choose("spoon", "cpu")
    with pytest.raises(ValueError, match="unknown device 'tpu'; choose from cpu, cuda"):
        kernels.choose("fork", "tpu")
    with pytest.raises(ValueError, match="fork has no backend 'cuda'; choose from auto, triton, reference"):
        kernels.choose("fork", "cpu", "cuda")
    monkeypatch.setattr(kernels.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"fork on triton: the triton package is not installed .*mlexp\[triton\]"):
        kernels.choose("fork", "cpu", "triton")
    monkeypatch.undo()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="entropy_sample on cuda: no CUDA device is usable by torch"):
            kernels.choose("entropy_sample", "cpu", "cuda")
    monkeypatch.setattr(kernels.torch.cuda, "is_available", lambda: True)
    if kernels.util.find_spec("triton"):
        assert kernels.choose("tree_attention", "cuda", dtype=torch.bfloat16) == "triton"
    assert kernels.choose("tree_attention", "cuda", dtype=torch.float64) == "reference"
    assert kernels.choose("tree_attention", "cuda", dtype=torch.bfloat16, width=513) == "reference"
    with pytest.raises(RuntimeError, match="the heads are 513 wide; it takes 512 at most"):
        kernels.choose("tree_attention", "cuda", "triton", torch.bfloat16, 513)
    with pytest.raises(RuntimeError, match="the tensors are float64; it computes in float32"):
        kernels.choose("tree_attention", "cuda", "triton", torch.float64)
    asked = []
    monkeypatch.setattr(kernels, "choose", lambda *what: asked.append(what) or "reference")
    args = pools(np.random.default_rng(0), 2, (2, 1), 8, 5, 1, 3, torch.bfloat16, value_width=12)
    kernels.tree_attention(**args)
    kernels.entropy_sample(torch.zeros(1, 4).half(), 1.0, torch.zeros(1, dtype=torch.int64), 0, backend="auto")
    assert asked == [
        ("tree_attention", "cpu", "auto", torch.bfloat16, 12),
        ("entropy_sample", "cpu", "auto", torch.float16),
    ]
    monkeypatch.undo()
    monkeypatch.setattr(kernels, "missing", lambda backend, *what: None if backend == "reference" else "gone")
    assert kernels.choose("entropy_sample", "cuda") == "reference"
    with pytest.raises(RuntimeError, match="entropy_sample on triton: gone"):
        kernels.entropy_sample(torch.zeros(1, 4), 1.0, torch.zeros(1, dtype=torch.int64), 0, backend="triton")

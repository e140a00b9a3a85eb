"""What is measured of a trained arm, found again token by token: losses, documents, longer contexts, bytes kept."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from mlexp.attention.evaluate import (
    evaluate,
    extrapolate,
    kv_bytes_per_token,
    saved_activation_bytes,
)
from mlexp.attention.layers import Cache
from mlexp.attention.model import build
from mlexp.attention.text import Part
from mlexp.attention.variants import SHAPES, VARIANTS

MINI = replace(SHAPES["quick"], width=16, layers=1, heads=2, ff=24, vocab=11, context=12)
T = MINI.context


@pytest.fixture(scope="module")
def model():
    made = build("baseline", MINI, 1)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.7)  # losses far from each other
    return made


@pytest.fixture(scope="module")
def part():
    tokens = np.random.default_rng(0).integers(0, 11, 150)
    return Part(tokens, np.array([0, 7, 8, 30, 31, 32, 90, 140]), 450)


def losses_of(model, tokens):
    """(loss, whether it was guessed) of every token but the first, one after the other in float64."""
    with torch.no_grad():
        logits = model(torch.from_numpy(np.array(tokens))[None, :-1])[0].double()
    p = logits.softmax(-1)
    return [(-math.log(p[t, token]), int(p[t].argmax()) == token) for t, token in enumerate(tokens[1:].tolist())]


@pytest.mark.parametrize(("size", "windows"), [(1, None), (5, None), (3, 4), (4, 7), (2, 1), (50, 500)])
def test_an_evaluation_is_a_sum_over_tokens(model, part, size, windows):
    found = evaluate(model, part, T, size, windows)
    n = min(windows or 12, 12)  # 149 targets are 12 windows
    scored = [losses_of(model, part.tokens[T * i : T * i + T + 1]) for i in range(n)]
    flat = [loss for window in scored for loss, _ in window]
    assert found.n_tokens == n * T and found.loss_nats == pytest.approx(np.mean(flat), rel=1e-4)
    assert found.accuracy == pytest.approx(np.mean([hit for window in scored for _, hit in window]))
    assert found.perplexity == pytest.approx(math.exp(np.mean(flat)), rel=1e-3)
    assert found.bits_per_byte == pytest.approx(np.mean(flat) / math.log(2) / 3, rel=1e-4)  # three bytes a token
    by_position = [np.mean([window[t][0] for window in scored]) for t in range(T)]
    np.testing.assert_allclose(found.by_position, by_position, rtol=1e-4)
    of_document = {}
    for i, loss in enumerate(flat):  # the target after token i is token i + 1
        at = max(k for k, start in enumerate(part.starts) if start <= i + 1)
        of_document.setdefault(at, []).append(loss)
    np.testing.assert_allclose(found.document_losses, [np.mean(some) for some in of_document.values()], rtol=1e-4)
    assert found.document_tokens.tolist() == list(map(len, of_document.values()))
    assert abs(np.median(flat) - np.mean(flat)) > 0.05  # the two differ


@pytest.mark.parametrize("windows", [1, 3, 100])
def test_longer_contexts_score_the_same_targets(model, part, windows):
    found = extrapolate(model, part, T, 5, windows, (1, 2, 5))
    first = 5 * T - T
    n = min(windows, (150 - 1 - first) // T)
    for factor, loss in found.items():
        want = []
        for i in range(n):
            begin = first + i * T
            seen = part.tokens[begin - (factor - 1) * T : begin + T + 1]
            want += [loss for loss, _ in losses_of(model, seen)[-T:]]
        assert loss == pytest.approx(np.mean(want), rel=1e-4), factor
    assert len({round(loss, 3) for loss in found.values()}) == 3


def test_learned_positions_end_where_they_were_learned(part):
    learned = build(replace(VARIANTS["baseline"], position="learned"), replace(MINI, context=2 * T), 0)
    found = extrapolate(learned, part, T, 5, 3, (1, 2, 3))
    assert [loss is None for loss in found.values()] == [False, False, True]


def test_products_are_in_the_dtype_that_is_asked_for(model, part):
    seen = []
    hook = model.blocks[0].feed_forward.up.register_forward_hook(lambda layer, args, out: seen.append(out.dtype))
    for dtype in (torch.float32, torch.bfloat16):
        evaluate(model, part, T, 50, 2, dtype)
        extrapolate(model, part, T, 50, 2, (1,), dtype)
        saved_activation_bytes(model, 1, T, dtype)
    hook.remove()
    assert seen == 3 * [torch.float32] + 3 * [torch.bfloat16]
    one, half = (saved_activation_bytes(build("baseline", SHAPES["quick"]), 2, 64, d)
                 for d in (torch.float32, torch.bfloat16))  # fmt: skip
    assert 0.4 * one < half < 0.9 * one


@pytest.mark.parametrize("experts", [0, 4])
def test_bytes_of_a_step_are_those_of_its_forward_without_the_parameters(experts):
    model = build("lora_small", replace(MINI, experts=experts), 0)
    kept, owned = {}, {p.data_ptr() for p in model.parameters()}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t
        return t

    tokens = torch.randint(11, (3, T), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        hidden, balance = model.train().hidden(tokens)
    inside = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in owned)
    whole = saved_activation_bytes(model, 3, T)
    # the output layer keeps two gradients: of what it reads, and of the embedding
    assert whole == pytest.approx(inside + 4 * (3 * T * 16 + 11 * 16), abs=8 * 3 * T)
    assert hidden.shape == (3, T, 16) and balance.ndim == 0


@pytest.mark.parametrize(("dtype", "element"), [(torch.bfloat16, 2), (torch.float32, 4)])
@pytest.mark.parametrize("prompt", [1, 4])
def test_bytes_of_a_token_are_the_cache_s_over_the_tokens_held(dtype, element, prompt):
    for name, numbers in (("baseline", 2 * 2 * 8), ("mqa", 2 * 8), ("mla_plain", 2 + 8)):  # heads 8 wide, rank 2
        model = build(name, MINI)
        assert kv_bytes_per_token(model, dtype, prompt) == element * numbers
    assert kv_bytes_per_token(build("baseline", MINI)) == 2 * 32


def test_a_cache_counts_its_buffers_and_keeps_every_token():
    cache = Cache(6)
    first, then = torch.arange(8.0).view(1, 4, 2), torch.arange(8.0, 12).view(1, 2, 2)
    assert torch.equal(cache.extend(0, first)[0], first)
    cache.length = 4
    assert torch.equal(cache.extend(0, then)[0], torch.arange(12.0).view(1, 6, 2))
    assert cache.n_bytes == 6 * 2 * 4


def test_the_kernel_s_name_is_torch_s_choice(model):
    assert model.kernel() == "flash_cpu"
    with sdpa_kernel(SDPBackend.MATH):
        assert model.kernel() == "math"

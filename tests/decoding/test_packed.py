"""Layers that were packed compute what plain ones do, are used where they may be, and never with another weight."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.activations import NewGELUActivation

from mlexp.decoding.decoders import DECODE
from mlexp.decoding.loading import load
from mlexp.decoding.packed import MIN_ROWS, pack
from mlexp.decoding.settings import Sampling
from mlexp.flops import count_flops

from .models import TORCH_DECODERS, prompt_of, tiny

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
SMALL = Sampling(samples=5, max_new_tokens=6, max_paths=5)


class Products(TorchDispatchMode):
    """Counts packed products and all others."""

    def __init__(self):
        super().__init__()
        self.packed = self.plain = self.pointwise = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        self.packed += name.startswith("mkldnn._linear_pointwise")
        self.plain += name.startswith(("aten.addmm", "aten.mm", "aten.linear"))
        self.pointwise += name.startswith(("aten.tanh", "aten.pow"))
        return func(*args, **(kwargs or {}))


def packed(kind="gpt2", dtype=torch.float32, **more):
    lm = tiny(kind, dtype=dtype, **more)
    pack(lm.model)
    return lm


def logits(lm, rows=1, length=9):
    ids = torch.stack([prompt_of(length, seed=i) for i in range(rows)])
    return lm.model(ids, use_cache=False).logits


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 2), (1, 3), (20, 1), (3, 40)])
def test_outputs_are_those_of_the_plain_layers_within_rounding(kind, rows, length):
    plain, exact = tiny(kind, dtype=torch.float32), tiny(kind)
    with torch.no_grad(), Products() as seen:
        got = logits(packed(kind), rows, length)
    want = logits(exact, rows, length)
    error, usual = ((x.double() - want).abs().max() for x in (got, logits(plain, rows, length)))
    assert error <= 2 * usual + 1e-6
    layers = 2 * (4 if kind == "gpt2" else 7) + 1
    assert (seen.packed, seen.plain) == ((layers, 0) if rows * length >= MIN_ROWS else (0, layers))
    assert kind == "llama" or not seen.pointwise  # GPT-2's activation is one kernel


def test_the_activation_is_transformers_own_within_rounding():
    x = torch.linspace(-12, 12, 10_001, dtype=torch.float64)
    module = torch.nn.Sequential(NewGELUActivation())
    want = module(x)
    pack(module)
    torch.testing.assert_close(module(x), want, atol=1e-15, rtol=1e-14)
    torch.testing.assert_close(module(x.float()), want.float(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("decoder", TORCH_DECODERS)
def test_every_arm_draws_the_same_and_counts_the_same(decoder):
    lm, fast, prompt = tiny(dtype=torch.float32), packed(), prompt_of(9)
    want, flops = count_flops(lambda: DECODE[decoder](lm, prompt, SMALL, 3))
    with Products() as seen:
        DECODE[decoder](fast, prompt, SMALL, 3)
    got, counted = count_flops(lambda: DECODE[decoder](fast, prompt, SMALL, 3))
    assert torch.equal(got.tokens, want.tokens) and counted == flops
    assert (got.token_forwards, got.logit_rows) == (want.token_forwards, want.logit_rows)
    assert seen.packed


def test_a_weight_that_was_changed_is_not_taken_for_the_packed_one():
    for change in (
        lambda layer: layer.weight.mul_(2),
        lambda layer: setattr(layer, "weight", torch.nn.Parameter(layer.weight * 2, requires_grad=False)),
    ):
        plain, fast = tiny(dtype=torch.float32), packed()
        before = logits(fast, 3)
        for lm in (plain, fast):
            change(lm.model.transformer.h[1].mlp.c_fc)
        with Products() as seen:
            after = logits(fast, 3)
        assert seen.plain == 1 and (after - before).abs().max() > 0.1
        torch.testing.assert_close(after, logits(plain, 3), atol=1e-4, rtol=1e-4)
    fast.model.double()
    torch.testing.assert_close(logits(fast, 3), logits(plain_double(plain), 3), atol=1e-9, rtol=1e-9)


def plain_double(lm):
    lm.model.double()
    return lm


def test_what_trains_or_is_of_another_type_is_left_plain():
    for lm in (packed(dtype=torch.float64), packed(dtype=torch.bfloat16)):
        with Products() as seen:
            logits(lm, 3)
        assert not seen.packed and seen.plain
    trained = tiny(dtype=torch.float32)
    trained.model.requires_grad_(True)
    pack(trained.model)
    logits(trained, 3).sum().backward()
    assert trained.model.lm_head.weight.grad.abs().sum() > 0
    layer, x = packed().model.lm_head, torch.randn(5, 32, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(5, -1))


def test_a_model_that_was_loaded_is_packed():
    lm = load("gpt2_nano", "random")
    with torch.no_grad(), Products() as seen:
        lm.model(torch.arange(9)[None])
    assert (seen.packed, seen.plain, seen.pointwise) == (4 * 4 + 1, 0, 0)
    with torch.no_grad(), Products() as seen:
        load("gpt2_nano", "random", packed=False).model(torch.arange(9)[None])
    assert seen.plain and seen.pointwise and not seen.packed
    copied = copy.deepcopy(lm.model)
    assert torch.equal(copied.lm_head.weight, lm.model.lm_head.weight)

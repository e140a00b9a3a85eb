"""The decoder around its attention, its initial values, and what a training step does, all written out again."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, rms_norm, silu

from mlexp.attention import learn
from mlexp.attention.layers import rotary_tables
from mlexp.attention.model import build
from mlexp.attention.text import Batches, Part
from mlexp.attention.variants import SHAPES, VARIANTS, Shape, kv_bytes_per_token
from mlexp.training import Recipe
from tests.adamw import by_hand, schedule

MINI = replace(SHAPES["quick"], width=16, layers=3, heads=2, ff=24, vocab=11, context=12)
ARMS = VARIANTS | {"learned": replace(VARIANTS["baseline"], position="learned")}


def loud(name, shape):
    """An arm all of whose parameters matter, in double precision."""
    model = build(ARMS[name], shape, 1).double()
    for i, p in enumerate(model.parameters()):
        torch.nn.init.normal_(p, float(p.ndim == 1), 0.3, generator=torch.Generator().manual_seed(i))
    return model


def mixture(x, layer, top):
    """(each token by its own experts, the balance loss), token by token."""
    p = (x @ layer.router.weight.T).softmax(-1)
    out, chosen = torch.zeros_like(x), torch.zeros(p.shape[-1], dtype=x.dtype)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            best = p[b, t].topk(top)
            for e, weight in zip(best.indices, best.values / best.values.sum(), strict=True):
                out[b, t] += weight * (layer.down[e] @ silu(layer.up[e] @ x[b, t]))
                chosen[e] += 1 / (x.shape[0] * x.shape[1] * top)
    return out, 0.01 * len(chosen) * (chosen * p.mean((0, 1))).sum()


def plain(model, tokens, arm, top=2):
    """(logits, balance) from the weights: pre-norm blocks around the attention, whose own referee is transformers."""
    h, balance = model.embed.weight[tokens], 0
    if arm.position == "learned":
        h = h + model.positions.weight[: tokens.shape[1]]
    rotary = None
    if arm.position == "rope":
        rotary = rotary_tables(0, tokens.shape[1], model.arm.rope, arm.factor, h.device)
    for block in model.blocks:
        h = h + block.attention(rms_norm(h, (16,), block.norm_1.weight, 1e-6), rotary)
        x, ff = rms_norm(h, (16,), block.norm_2.weight, 1e-6), block.feed_forward
        if hasattr(ff, "router"):
            more, of_layer = mixture(x, ff, top)
            h, balance = h + more, balance + of_layer
        else:
            h = h + silu(x @ ff.up.weight.T) @ ff.down.weight.T
    return rms_norm(h, (16,), model.norm.weight, 1e-6) @ model.embed.weight.T, balance


@pytest.mark.parametrize("experts", [0, 5])
@pytest.mark.parametrize("name", ["baseline", "mla_true", "mha_pi", "nope", "learned", "enhanced_small"])
def test_a_decoder_is_its_blocks_one_after_the_other(name, experts):
    model = loud(name, replace(MINI, experts=experts))
    tokens = torch.randint(11, (2, 7), generator=torch.Generator().manual_seed(0))
    logits, balance = plain(model, tokens, ARMS[name])
    torch.testing.assert_close(model(tokens), logits, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(
        model.hidden(tokens)[1].double(), torch.as_tensor(balance).double(), atol=1e-6, rtol=1e-5
    )
    targets = tokens.roll(1)
    loss = cross_entropy(logits.flatten(0, 1), targets.flatten()) + balance
    torch.testing.assert_close(learn.loss_in(torch.float32)(model, tokens, targets), loss, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("experts", [0, 6])
@pytest.mark.parametrize("name", ["baseline", "lora_small", "bias_only", "learned"])
def test_initial_values_are_drawn_with_the_spread_that_is_said(name, experts):
    shape = replace(SHAPES["quick"], width=128, layers=2, experts=experts)
    std, seen = 0.02 * 2, set()  # four times as narrow as 512
    for key, p in build(ARMS[name], shape, 3).named_parameters():
        if p.ndim == 1:
            assert (p == (0 if key.endswith("bias") else 1)).all(), key
            continue
        writes = ".o." in key or "down" in key
        seen.add(writes)
        assert p.std().item() == pytest.approx(std / 2 if writes else std, rel=5 / math.sqrt(2 * p.numel())), key
        assert abs(p.mean().item()) < 5 * std / math.sqrt(p.numel())
    assert seen == {True, False}


def test_shapes_and_costs_of_the_cache_are_the_question_s():
    shapes = {
        "full": Shape(512, 8, 8, 2048, 49152, 512, 8, 2),
        "natural": Shape(128, 4, 4, 512, 1024, 128, 0, 2),
        "quick": Shape(64, 2, 4, 256, 64, 64, 0, 2),
    }
    assert shapes == SHAPES
    full = SHAPES["full"]
    assert [kv_bytes_per_token(VARIANTS[name], full) for name in ("baseline", "mqa", "gqa", "mla_true", "mha_pi")] == [
        16384, 2048, 4096, 1536, 16384]  # fmt: skip
    assert kv_bytes_per_token(VARIANTS["baseline"], full, element=4) == 32768


def test_controls_differ_from_what_they_control_in_one_thing():
    plain, multi = VARIANTS["mla_plain"], VARIANTS["baseline"]
    assert VARIANTS["nope"] == replace(multi, position="none") and VARIANTS["mha_bias"] == replace(multi, bias=True)
    assert VARIANTS["mha_pi"] == replace(multi, factor=2.0) and VARIANTS["mqa"] == replace(multi, kv_heads=1)
    assert VARIANTS["gqa"] == replace(multi, kv_heads=2) and VARIANTS["mla_true"] == replace(plain, rope=32, nope=32)
    assert VARIANTS["bias_only"] == replace(plain, bias=True) and VARIANTS["lora_small"] == replace(plain, q_rank=32)
    factors = {"rope_only": 2.0, "rope_small": 1.5, "rope_large": 2.5, "enhanced_small": 1.5, "enhanced_medium": 2.0,
               "enhanced_large": 2.5, "enhanced_xl": 3.0, "mha_pi": 2.0}  # fmt: skip
    assert {name: arm.factor for name, arm in VARIANTS.items() if arm.factor != 1} == factors


# --- training


@pytest.fixture(scope="module")
def batches():
    return Batches(Part(np.random.default_rng(0).integers(0, 11, 400), np.zeros(1)), 12, 4, seed=3)


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize(("recipe", "warmup", "floor", "clip"), [("finished", 3, 0.1, 1.0), ("seed", 0, 1.0, math.inf)])
def test_a_training_is_adamw_by_hand(batches, recipe, warmup, floor, clip, micro_batch):
    """Decay .01; the original's recipe has a constant rate and no clipping, ours a schedule that ends."""
    ours, theirs = loud("baseline", MINI), loud("baseline", MINI)
    losses = []

    def gradients(step):
        tokens, targets = batches(step)
        logits, _ = plain(theirs, tokens, ARMS["baseline"])
        losses.append(3 * cross_entropy(logits.flatten(0, 1), targets.flatten()))  # gradients that are clipped
        return torch.autograd.grad(losses[-1], list(theirs.parameters()))

    by_hand(theirs.parameters(), gradients, 24, schedule(0.02, 24, warmup, floor), decay=0.01, clip=clip)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learn, "loss_in", lambda dtype, loss_in=learn.loss_in: lambda *some: 3 * loss_in(dtype)(*some))
        found = learn.train(ours, batches, 24, 0.02, recipe, micro_batch=micro_batch).losses
    torch.testing.assert_close(found, [loss.item() for loss in losses], atol=1e-4, rtol=1e-3)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 1), (6, 1), (50, 5), (101, 11)])
def test_what_training_asks_of_the_loop(steps, warmup, monkeypatch):
    calls = []
    monkeypatch.setattr(learn, "fit", lambda model, loss, batches, *recipe, **options:
                        calls.append((model.training, *recipe, options)))  # fmt: skip
    model, after, progress = build("baseline", MINI).eval(), object(), object()
    options = {"micro_batch": 3, "after": after, "progress": progress}
    for recipe in ("finished", "seed"):
        learn.train(model, None, steps, 0.1, recipe, micro_batch=3, after=after, progress=progress)
    assert calls == [(True, Recipe(steps, 0.1, warmup, 0.01, clip=1.0, floor=0.1), options),
                     (True, Recipe(steps, 0.1, 0, 0.01, clip=math.inf, floor=1.0), options)]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compiled", [False, True])
def test_dtype_and_compiler_are_those_asked_for(batches, dtype, compiled, monkeypatch):
    seen, wrapped, model = set(), [], build("baseline", MINI)
    monkeypatch.setattr(torch, "compile", lambda loss: wrapped.append(loss) or loss)
    model.blocks[0].feed_forward.up.register_forward_hook(lambda layer, args, out: seen.add(out.dtype))
    learn.train(model, batches, 2, 1e-3, dtype=dtype, compiled=compiled)
    assert (seen, len(wrapped)) == ({dtype}, compiled)

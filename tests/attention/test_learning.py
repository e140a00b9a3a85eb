"""Training and what is measured of a trained arm: the planted effect is found, and every number adds up."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mlexp.attention.evaluate import evaluate, extrapolate, saved_activation_bytes
from mlexp.attention.learn import RECIPES, loss_in, train
from mlexp.attention.model import build
from mlexp.attention.text import Batches, Part, synthetic_text
from mlexp.attention.variants import SHAPES, VARIANTS

QUICK = SHAPES["quick"]
MINI = replace(QUICK, width=32, heads=2, ff=64)


def learnt(name, text, steps=100, seed=0):
    model = build(name, QUICK, seed)
    train(model, Batches(text.parts["train"], 64, 32, seed), steps, 1e-2)
    return evaluate(model, text.parts["test"], 64, 128, windows=400)


@pytest.mark.slow
def test_a_planted_effect_is_found():
    text = synthetic_text({"train": 205_000, "test": 30_000})
    rope, none = (learnt(name, text) for name in ("baseline", "nope"))
    assert text.floors["bayes"] < rope.loss_nats < none.loss_nats - 0.25
    assert none.loss_nats < text.floors["bigram"] + 0.15
    # tokens further back than the first few help the arm that knows where they stand
    assert rope.by_position[16:].mean() < rope.by_position[:2].mean() - 0.3


def test_recipes_set_the_rate_and_a_mixture_learns():
    text = synthetic_text({"train": 20_000, "test": 5_000})
    batches = Batches(text.parts["train"], 32, 8, 0)
    for recipe in RECIPES:
        model = build("mla_true", replace(MINI, experts=4), 0)
        fit = train(model, batches, 30, 1e-2, recipe)
        start = math.log(64) + 2 * 0.01  # a balance loss from each layer
        assert abs(fit.losses[0] - start) < 0.2 and fit.losses[-1] < start - 0.5
    with pytest.raises(ValueError, match="unknown recipe 'best'; choose from finished, seed"):
        train(model, batches, 1, 1e-2, "best")


def test_the_seed_s_recipe_is_constant_and_never_clipped():
    """Its first steps are Adam's own: a step of the rate, whatever the gradient."""
    model = build("baseline", MINI, 0)
    before = model.blocks[0].feed_forward.up.weight.detach().clone()
    text = synthetic_text({"train": 5_000})
    train(model, Batches(text.parts["train"], 32, 8, 0), 1, 1e-4, "seed")
    moved = (model.blocks[0].feed_forward.up.weight.detach() - before * (1 - 1e-6)).abs()
    assert moved.median().item() == pytest.approx(1e-4, rel=1e-2)


def test_the_loss_is_cross_entropy_and_balance_in_both_dtypes():
    model, x = build("lora_small", replace(MINI, experts=4), 0), torch.randint(64, (4, 32))
    hidden, balance = model.hidden(x)
    logits = hidden @ model.embed.weight.T
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), x.flatten()) + balance
    torch.testing.assert_close(loss_in(torch.float32)(model, x, x), expected)
    torch.testing.assert_close(loss_in(torch.bfloat16)(model, x, x), expected, atol=0, rtol=0.02)


def test_gradients_reach_every_parameter():
    x = torch.randint(64, (8, 32), generator=torch.Generator().manual_seed(0))
    for name in VARIANTS:
        model = build(name, replace(MINI, experts=4), 0)
        loss_in(torch.float32)(model, x, x.roll(1)).backward()
        silent = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert silent == [], name


def test_an_evaluation_adds_up():
    text = synthetic_text({"train": 100, "test": 5_000})
    whole = text.parts["test"]
    part = Part(whole.tokens, whole.starts, n_bytes=12_500)
    model = build("mla_plain", MINI, 0)
    found, again = evaluate(model, part, 32, 7, windows=90), evaluate(model, part, 32, 90, windows=90)
    assert found.n_tokens == 90 * 32 == found.document_tokens.sum() and len(found.document_losses) == 3
    assert found.by_position.shape == (32,) and found.by_position.mean() == pytest.approx(found.loss_nats)
    assert np.average(found.document_losses, weights=found.document_tokens) == pytest.approx(found.loss_nats)
    assert found.loss_nats == pytest.approx(again.loss_nats, rel=1e-6) and found.accuracy == again.accuracy
    assert found.perplexity == math.exp(found.loss_nats)
    assert found.bits_per_byte == pytest.approx(found.loss_nats / math.log(2) / 2.5)
    assert evaluate(model, whole, 32, 90, windows=1).bits_per_byte is None
    logits = model(torch.from_numpy(whole.tokens[None, :32]))
    expected = torch.nn.functional.cross_entropy(logits[0], torch.from_numpy(whole.tokens[1:33]))
    assert evaluate(model, whole, 32, 1, windows=1).loss_nats == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(ValueError, match="20 tokens: not one window of 32"):
        evaluate(model, Part(np.zeros(20, int), np.zeros(1)), 32, 1)


def test_extrapolation_scores_the_same_targets_with_more_context():
    part = synthetic_text({"test": 5_000}).parts["test"]
    model = build("nope", MINI, 0)
    found = extrapolate(model, part, 32, 16, windows=20)
    alone = Part(part.tokens[96:], np.zeros(1))  # where the targets of all factors begin
    assert found[1] == pytest.approx(evaluate(model, alone, 32, 16, windows=20).loss_nats, rel=1e-6)
    rows = torch.from_numpy(np.stack([part.tokens[32 * i : 32 * i + 129] for i in range(20)]))
    logits = model(rows[:, :-1])[:, -32:]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, -32:].flatten())
    assert found[4] == pytest.approx(expected.item(), rel=1e-5) and set(found) == {1, 2, 4}
    learned = build(replace(VARIANTS["baseline"], position="learned"), replace(MINI, context=32), 0)
    found = extrapolate(learned, part, 32, 16, windows=4)
    assert found[1] is not None and found[2] is found[4] is None
    with pytest.raises(ValueError, match="5000 tokens: not one window of 5600"):
        extrapolate(model, part, 1400, 1, 1)


def test_saved_bytes_are_linear_in_the_batch_and_grow_with_the_arm():
    model = build("baseline", QUICK, 0)
    one, two, three = (saved_activation_bytes(model, batch, 64) for batch in (1, 2, 3))
    assert three - two == two - one > 64 * 64 * 4 * 10
    assert saved_activation_bytes(build("enhanced_xl", QUICK, 0), 1, 64) > one

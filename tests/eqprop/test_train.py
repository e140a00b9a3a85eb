"""Training: repeatable, the same for micro-batches, logged as it was, and better than the floors."""

from functools import cache

import pytest
import torch

from mlexp.eqprop.chars import batches, excerpt, floors, load, scored
from mlexp.eqprop.learners import LEARNERS, Size
from mlexp.eqprop.rule import Rule, contrast, loss_of
from mlexp.eqprop.settle import Stop
from mlexp.eqprop.train import evaluate, network, plain_loss, train
from mlexp.training import backward

MINI = Size(width=32, layers=2, heads=2, length=16, context=3, embed=16)
SETTLED = [name for name, row in LEARNERS.items() if row.rule == "eqprop"]


@cache
def text():
    return load()


def trained(name, steps=6, drop=0.0, **options):
    some = excerpt(text().train, 5000, 0)
    model = network(LEARNERS[name], MINI, 0, drop)
    windows = scored(text().validation[:800], MINI.length)
    result, log = train(LEARNERS[name], model, batches(some, 8, 16, 0), windows, steps, evaluate_every=3, **options)
    return model, result, log


@pytest.mark.parametrize("name", LEARNERS)
def test_the_same_seed_gives_the_same_losses_to_the_bit(name):
    drop = 0.1 if name.startswith("backprop") else 0.0
    _, a, first = trained(name, drop=drop)
    _, b, second = trained(name, drop=drop)
    assert a.losses == b.losses and a.held_out == b.held_out and first == second
    assert len(a.losses) == 6 and sorted(a.held_out) == [3, 6]


@pytest.mark.parametrize("name", SETTLED)
def test_the_log_is_what_happened(name):
    _, _, log = trained(name, checks=3)
    assert log.checked_steps == [0, 3, 6] and min(log.gradient_cosine + log.inner_cosine) > 0.99
    assert len(log.free_sweeps) == len(log.nudged_sweeps) == len(log.free_residual) == len(log.nudged_residual) == 6
    assert log.unconverged_fraction == 0
    _, _, log = trained(name, rule=Rule(0.05, "positive", Stop(1e-9, 1), Stop(1e-9, 2)), checks=2)
    assert log.unconverged_fraction == (0.5 if name == "full_kappa0" else 1)
    assert set(log.nudged_sweeps) == {2} and min(log.nudged_residual) > 1e-9


@pytest.mark.parametrize("nudge", ["symmetric", "split", "positive"])
@pytest.mark.parametrize("name", SETTLED)
def test_micro_batches_have_the_gradient_of_the_batch(name, nudge):
    model, (x, y) = network(LEARNERS[name], MINI, 0).double(), batches(text().train[:5000], 8, 16, 0)(0)
    tight, found = Stop(1e-12, 500), []
    for micro in (None, 4, 1):
        value, _ = backward(model, loss_of(Rule(0.05, nudge, tight, tight)), (x, y), micro)
        found.append((value, *(p.grad.clone() for p in model.parameters())))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", SETTLED)
def test_a_learner_starts_where_its_twin_does_and_reports_the_free_loss(name):
    row, (x, y) = LEARNERS[name], batches(text().train[:5000], 8, 16, 0)(0)
    model = network(row, MINI, 0)
    twin = network(LEARNERS.get(f"{name}_twin", row), MINI, 0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    few, many = (float(contrast(model, x, y, Rule(0.03, free=Stop(0.0, n)))[0]) for n in (20, 40))
    assert few == pytest.approx(many, abs=1e-5) == pytest.approx(loss_of(None)(model, x, y).item(), abs=1e-4)


def test_bad_rules_are_named():
    with pytest.raises(ValueError, match="unknown nudge 'none'; choose from symmetric, split, positive"):
        Rule(0.1, "none")
    with pytest.raises(ValueError, match="beta is 0; above 0"):
        Rule(0)


def test_a_score_counts_each_target_once_and_dropout_is_off():
    model = network(LEARNERS["backprop"], MINI, 0, drop=0.5)
    some = text().test[:500]
    whole = evaluate(model, scored(some, 16))[0]
    assert whole == evaluate(model, scored(some, 16), batch=7)[0] == pytest.approx(evaluate(model, scored(some, 16))[0])
    assert model.training
    x, y, counts = scored(torch.cat([some[:1], some[1:161]]), 16)
    assert counts.all() and evaluate(model.eval(), (x, y, counts))[0] == pytest.approx(plain_loss(model, x, y).item())


@pytest.mark.parametrize("name", ["backprop", "looped_mlp", "full_kappa0", "full_twin"])
def test_learners_learn(name):
    _, result, _ = trained(name, 60, lr=1e-2, checks=2)
    floor = floors(excerpt(text().train, 5000, 0), text().validation[:800])["unigram"]
    assert result.held_out[result.best_step] < floor


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTLED)
def test_a_learner_and_its_twin_end_alike(name):
    if f"{name}_twin" not in LEARNERS:
        pytest.skip(f"{name} has no twin")
    _, rule, log = trained(name, 300)
    _, twin, _ = trained(f"{name}_twin", 300)
    assert min(log.gradient_cosine) >= 0.99
    assert rule.held_out[rule.best_step] == pytest.approx(twin.held_out[twin.best_step], abs=0.03)

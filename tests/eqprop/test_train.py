"""Training: repeatable, the same for micro-batches, logged as it was, and better than the floors."""

import math
from functools import cache
from statistics import fmean

import pytest
import torch

from mlexp.eqprop import train as training
from mlexp.eqprop.chars import batches, excerpt, floors, load, scored
from mlexp.eqprop.learners import LEARNERS, Size
from mlexp.eqprop.rule import Alignment, Rule, contrast, loss_of
from mlexp.eqprop.settle import Settled, Stop
from mlexp.eqprop.train import Log, evaluate, network, plain_loss, predict, train
from mlexp.training import Fit, Recipe, backward

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


def settled(sweeps, residual, converged):
    return Settled([], sweeps, residual, converged)


def test_the_log_keeps_both_phases_apart_and_every_check_under_its_name():
    log = Log()
    log.note(settled(3, 0.25, True), settled(7, 0.5, False))
    log.note(settled(4, 0.125, False), settled(9, 0.75, False))
    log.check(5, Alignment(0.9, 0.8, 1.5))
    log.check(6, Alignment(0.7, 0.6, 2.5))
    assert log == Log(
        free_sweeps=[3, 4], nudged_sweeps=[7, 9], free_residual=[0.25, 0.125], nudged_residual=[0.5, 0.75],
        unconverged=3, checked_steps=[5, 6], gradient_cosine=[0.9, 0.7], inner_cosine=[0.8, 0.6],
        gradient_ratio=[1.5, 2.5],
    )  # fmt: skip
    assert log.unconverged_fraction == 3 / 4 and Log().unconverged_fraction == 0


class Spy:
    """Stands in for mlexp.training.fit: keeps what it was given, calls `after` as fit does, evaluates once."""

    def __init__(self, monkeypatch):
        self.scored, self.aligned = [], []
        real_evaluate, real_alignment = training.evaluate, training.alignment

        def evaluate(model, windows, batch=64):
            self.scored.append(windows)
            return real_evaluate(model, windows, batch)

        def alignment(model, x, y, rule):
            self.aligned.append((x, y, rule))
            return real_alignment(model, x, y, rule)

        monkeypatch.setattr(training, "fit", self.fit)
        monkeypatch.setattr(training, "evaluate", evaluate)
        monkeypatch.setattr(training, "alignment", alignment)

    def fit(self, model, loss, batches, recipe, **options):
        self.model, self.loss, self.batches, self.recipe, self.options = model, loss, batches, recipe, options
        for step in range(1, recipe.steps + 1):
            options["after"](step)
        self.held = options["evaluate"]()
        return Fit()


@pytest.mark.parametrize("name", LEARNERS)
def test_what_reaches_the_loop_is_what_was_asked_for(name, monkeypatch):
    row, spy = LEARNERS[name], Spy(monkeypatch)
    rules = []
    monkeypatch.setattr(training, "loss_of", lambda rule, note: rules.append((rule, note)) or loss_of(rule, note))
    model = network(row, MINI, 0)
    windows = scored(text().validation[:400], MINI.length, 5)
    options = {"lr": 0.123, "weight_decay": 0.045, "evaluate_every": 7, "checks": 3, "progress": print}
    result, log = train(row, model, batches(text().train[:999], 4, 16, 0), windows, 41, **options)
    assert isinstance(result, Fit) and spy.model is model
    assert spy.recipe == Recipe(41, 0.123, weight_decay=0.045, warmup=3)  # a twentieth of 41 steps, rounded up
    assert (spy.options["evaluate_every"], spy.options["progress"]) == (7, print)
    assert set(spy.options) == {"evaluate_every", "progress", "evaluate", "after"}
    (evaluated,) = spy.scored
    assert all(a is b for a, b in zip(evaluated, windows, strict=True)) and spy.held == evaluate(model, windows)[0]
    if row.rule == "eqprop":
        assert log.checked_steps == [0, 20, 41] and len(spy.aligned) == 3
        for x, y, rule in spy.aligned:  # on held-out text
            assert torch.equal(x, windows[0][:8]) and torch.equal(y, windows[1][:8])
            assert rule == Rule(row.beta, row.nudge)
    else:
        assert not spy.aligned and not log.checked_steps
    if row.rule == "backprop":
        assert spy.loss is plain_loss and not rules
    else:
        ((rule, note),) = rules
        assert rule == (Rule(row.beta, row.nudge) if row.rule == "eqprop" else None) and note.__self__ is log
    train(row, model, batches(text().train[:999], 4, 16, 0), windows, 20)
    assert spy.recipe == Recipe(20, row.lr, weight_decay=0.01, warmup=1)
    assert spy.options["evaluate_every"] == 25


@pytest.mark.parametrize("name", [name for name, row in LEARNERS.items() if row.rule != "backprop"])
def test_every_network_with_caps_is_held_to_them_before_the_first_step_and_after_each(name, monkeypatch):
    row, spy = LEARNERS[name], Spy(monkeypatch)
    model = network(row, MINI, 0)
    (weight, cap), *_ = model.capped()
    norms = []

    class Loud(training.Caps):
        def __call__(self):
            norms.append(torch.linalg.matrix_norm(weight.detach(), 2).item())
            super().__call__()
            with torch.no_grad():
                weight.mul_(3)  # a step that is too long

    monkeypatch.setattr(training, "Caps", Loud)
    train(row, model, batches(text().train[:999], 4, 16, 0), scored(text().validation[:400], 16), 5, checks=1)
    assert len(norms) == 6 and max(norms[2:]) < 3.5 * cap and spy.model is model


def test_rules_of_ones_own_reach_loss_and_checks(monkeypatch):
    spy, rule = Spy(monkeypatch), Rule(0.07, "positive", Stop(0.0, 3), Stop(0.0, 2))
    model, some = network(LEARNERS["full"], MINI, 0), batches(text().train[:999], 4, 16, 0)
    _, log = train(LEARNERS["full"], model, some, scored(text().validation[:400], 16), 3, rule=rule)
    assert {aligned[2] for aligned in spy.aligned} == {rule}
    spy.loss(model, *some(0))
    assert log.free_sweeps == [3] and log.nudged_sweeps == [2]


@pytest.mark.parametrize("name", LEARNERS)
def test_a_score_is_the_mean_over_the_targets_that_count(name):
    model = network(LEARNERS[name], MINI, 0, drop=0.3)
    x, y, counts = windows = scored(text().test[:217], MINI.length, 6)
    model.eval()
    losses = []
    with torch.no_grad():
        for row_x, row_y, row_counts in zip(x, y, counts, strict=True):
            p = predict(model, row_x[None])[0][0].double().softmax(-1)
            losses += [-math.log(p[t, c]) for t, c in enumerate(row_y.tolist()) if row_counts[t]]
        worst = max(predict(model, some)[1] for some in x.split(4))
    model.train()
    score, residual, sweeps = evaluate(model, windows, batch=4)
    assert sweeps == fmean(predict(model, some).sweeps for some in x.split(4))
    assert len(losses) == 217 - 6 and score == pytest.approx(fmean(losses), rel=1e-5)
    assert residual == pytest.approx(worst) and model.training


@pytest.mark.parametrize("name", LEARNERS)
def test_a_network_s_first_weights_come_from_its_seed_alone(name):
    row, state = LEARNERS[name], torch.get_rng_state()
    try:
        one, again, other = (flat(network(row, MINI, seed)) for seed in (3, 3, 4))
    finally:
        torch.set_rng_state(state)
    assert torch.equal(one, again) and not torch.equal(one, other)
    made = network(row, MINI, 0, drop=0.25)
    assert made.training and getattr(made, "drop", 0.25) == 0.25
    layers = len(getattr(made, "blocks", None) or made.layers)
    assert layers == (row.layers or MINI.layers) and getattr(made, "kappa", row.kappa) == row.kappa
    assert next(network(row, MINI, 0, device="meta").parameters()).device.type == "meta"


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTLED)
def test_a_learner_and_its_twin_end_alike(name):
    if f"{name}_twin" not in LEARNERS:
        pytest.skip(f"{name} has no twin")
    _, rule, log = trained(name, 300)
    _, twin, _ = trained(f"{name}_twin", 300)
    assert min(log.gradient_cosine) >= 0.99
    assert rule.held_out[rule.best_step] == pytest.approx(twin.held_out[twin.best_step], abs=0.03)

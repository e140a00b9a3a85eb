"""Settling: causal, downhill, to the residual that it states, with nothing kept for the sweeps that were made."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlexp.eqprop.costs import phase_flops, step_limit
from mlexp.eqprop.exact import exact, unrolled
from mlexp.eqprop.learners import ALPHABET, LEARNERS, SIZES, Size, learner, n_params
from mlexp.eqprop.rule import Rule, contrast
from mlexp.eqprop.settle import Stop, cross_entropy, free, frozen, nudged, predicted
from mlexp.eqprop.train import Caps, network, plain_loss, predict
from mlexp.training import saved_bytes

MINI = Size(width=16, layers=2, heads=2, length=12, context=3, embed=8)
SETTLED = ("looped_mlp", "recurrent_core", "full", "full_kappa0")
TIGHT = Stop(1e-12, 3000)


def characters(seed, *shape):
    return torch.randint(ALPHABET, shape, generator=torch.Generator().manual_seed(seed))


def made(name, size=MINI, head=0.3):
    model = network(LEARNERS[name], size, seed=0)
    torch.nn.init.normal_(model.head.weight, std=head)
    return model


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("size", [MINI, *SIZES.values()], ids=["mini", *SIZES])
def test_parameters_are_those_of_the_closed_form(name, size):
    assert sum(p.numel() for p in network(LEARNERS[name], size, 0).parameters()) == n_params(LEARNERS[name], size)


def test_arms_are_matched_and_unknown_ones_named():
    full = {name: n_params(row, SIZES["full"]) for name, row in LEARNERS.items()}
    assert full["full"] == pytest.approx(full["backprop"], rel=0.01)
    assert full["recurrent_core"] == pytest.approx(full["backprop_matched"], rel=0.01)
    with pytest.raises(ValueError, match="unknown learner 'eqprop'; choose from backprop, backprop_matched"):
        learner("eqprop")


@pytest.mark.parametrize("name", LEARNERS)
@given(seed=st.integers(0, 2**31 - 1), where=st.integers(1, MINI.length - 1), by=st.integers(1, ALPHABET - 1))
@settings(max_examples=15)
def test_a_later_character_changes_no_earlier_prediction(name, seed, where, by):
    model, x = made(name), characters(seed, 3, MINI.length)
    other = x.clone()
    other[:, where] = (other[:, where] + by) % ALPHABET
    with torch.no_grad():
        a, b = predict(model, x).logits, predict(model, other).logits
    assert torch.equal(a[:, :where], b[:, :where])
    assert not torch.equal(a[:, where], b[:, where])


@pytest.mark.parametrize("name", LEARNERS)
def test_predictions_do_not_depend_on_the_rest_of_the_batch(name):
    model, x = made(name).double(), characters(0, 5, MINI.length)
    with torch.no_grad():
        torch.testing.assert_close(predict(model, x)[0][1:3], predict(model, x[1:3])[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SETTLED)
@pytest.mark.parametrize("stop", [Stop(1e-2, 40), Stop(1e-5, 40), Stop(1e-9, 4)], ids=["loose", "tight", "cut off"])
def test_each_position_is_predicted_from_the_sweep_at_which_it_and_all_before_it_had_settled(name, stop):
    model, x = made(name).double(), characters(9, 3, MINI.length)
    with torch.no_grad():
        c = model.clamp(x)
        swept = [model.start(c), *(free(model, c, Stop(0.0, n)).states for n in range(1, stop.max_sweeps + 1))]
    found, slowest, worst = predicted(model, c, stop), 0, 0.0
    for b in range(3):
        sweep = 0
        for t in range(MINI.length):
            vectors = [torch.cat([z[b, t] for z in states]) for states in swept]
            moves = [float((a - z).norm() / a.norm()) for z, a in pairwise(vectors)]
            first = next((k for k, move in enumerate(moves, 1) if move <= stop.tolerance), stop.max_sweeps)
            sweep = max(sweep, first)  # movements shrink here: one that settled stays so
            torch.testing.assert_close(found.states[-1][b, t], swept[sweep][-1][b, t], rtol=1e-12, atol=1e-12)
            slowest, worst = max(slowest, sweep), max(worst, moves[sweep - 1])
    if model.feedback:
        assert found.sweeps == slowest and found.residual == pytest.approx(worst)
        assert found.converged is (stop.max_sweeps == 40)
    else:
        assert (found.sweeps, found.residual, found.converged) == (1, 0, True)


@pytest.mark.parametrize("name", SETTLED)
def test_losses_of_predictions_are_those_of_the_fixed_point_and_take_fewer_sweeps(name):
    model, x, y = network(LEARNERS[name], MINI, 0).double(), characters(10, 64, 12), characters(11, 64, 12)
    with torch.no_grad():
        found = predict(model, x)
        exact_top = free(model, model.clamp(x), Stop(0.0, 400)).states[-1]
        losses = [cross_entropy(logits, y).sum() / y.numel() for logits in (found.logits, model.logits(exact_top))]
    assert abs(losses[0] - losses[1]) < 2e-6 and found.sweeps < model.patience


def test_a_hopfield_sweep_never_raises_the_energy():
    model, x = made("looped_mlp").double(), characters(1, 3, MINI.length)
    with torch.no_grad():
        for layer in model.layers[1:]:
            layer.weight.mul_(6)  # far above the cap: several minima, and still downhill
        c = model.clamp(x)
        random = torch.Generator().manual_seed(0)
        states = [torch.rand(z.shape, generator=random, dtype=z.dtype) * 1.8 - 0.9 for z in model.start(c)]
        energy = sum(model.energy(block, states, c) for block in range(len(states)))
        for _ in range(30):
            for block in range(len(states)):
                states[block] = model.local(block, states, c)
                now = sum(model.energy(i, states, c) for i in range(len(states)))
                assert (now <= energy + 1e-10).all()
                energy = now


@pytest.mark.parametrize("name", ["recurrent_core", "full", "full_kappa0"])
def test_the_free_minimum_of_the_residual_energy_is_zero(name):
    model, x = made(name).double(), characters(2, 3, MINI.length)
    with torch.no_grad():
        c = model.clamp(x)
        rest = free(model, c, Stop(1e-6, 100))
        assert rest.converged and rest.residual <= 1e-6
        assert sum(model.energy(block, rest.states, c).sum() for block in range(model.length)) < 1e-8


def test_a_phase_that_does_not_converge_says_so_and_goes_on():
    model, x = made("full"), characters(3, 3, MINI.length)
    _, gradients, (rest, end) = contrast(model, x, x, Rule(0.03, free=Stop(1e-6, 2), nudged=Stop(1e-6, 2)))
    assert not rest.converged and not end.converged and rest.sweeps == end.sweeps == 2
    assert rest.residual > 1e-6 < end.residual and all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", SETTLED)
def test_no_graph_leaves_a_phase_and_parameters_are_given_back(name):
    model, x = made(name), characters(4, 3, MINI.length)
    c = model.clamp(x)
    rest = free(model, c, Stop(0.0, 3))
    end = nudged(model, c, x, rest.states, torch.full((3,), 0.1), Stop(0.0, 3))
    assert not any(z.requires_grad for z in (*rest.states, *end.states))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["looped_mlp", "recurrent_core", "full"])
def test_memory_saved_for_backward_is_flat_in_the_sweeps_and_below_backprops(name):
    size = replace(MINI, width=64, layers=3, heads=4, length=32)
    model, x = made(name, size), characters(5, 8, 32)
    saved = [
        saved_bytes(lambda n=n: contrast(model, x, x, Rule(0.03, free=Stop(0.0, n), nudged=Stop(0.0, n))))
        for n in (2, 8, 15)
    ]
    assert max(saved) <= 1.01 * min(saved)
    grown = [saved_bytes(lambda n=n: unrolled(model, x, x, n).backward()) for n in (2, 8)]
    assert grown[1] > 2 * grown[0]
    if name == "full":
        plain = network(LEARNERS["backprop"], size, 0)
        assert saved[0] < saved_bytes(lambda: plain_loss(plain, x, x).backward())


def test_caps_hold_the_spectral_norms():
    for name in SETTLED:
        model = made(name)
        with torch.no_grad():
            for weight, cap in model.capped():
                weight.mul_(3 * cap / torch.linalg.matrix_norm(weight, 2))
        caps = Caps(model)
        for _ in range(30):
            caps()
        for weight, cap in model.capped():
            assert cap * 0.999 < torch.linalg.matrix_norm(weight, 2) < cap * 1.02


def test_flops_are_those_of_the_sweeps_made():
    from mlexp.flops import count_flops

    model, x = made("full"), characters(6, 4, MINI.length)
    rule = Rule(0.03, "symmetric")
    phases = phase_flops(model, x, x, rule)
    _, whole = count_flops(lambda: contrast(model, x, x, replace(rule, free=Stop(0.0, 5), nudged=Stop(0.0, 4))))
    assert whole == 5 * phases["free_sweep"] + 4 * phases["nudged_sweep"] + phases["update"]
    assert phases["nudged_sweep"] == pytest.approx(4 * phases["free_sweep"], rel=0.5)
    stop = Stop(0.0, 3)
    twin = phase_flops(model, x, x, None)
    _, whole = count_flops(lambda: exact(model, x, x, stop, stop))
    assert whole == 3 * sum(twin[phase] for phase in ("free_sweep", "nudged_sweep")) + twin["update"]
    assert step_limit(1, 1, "symmetric") == pytest.approx(11 / 3) and step_limit(1, 1, "split") == 2


@given(seed=st.integers(0, 2**31 - 1), count=st.integers(1, 4), length=st.integers(1, 7))
def test_cross_entropy_is_summed_over_each_sequence(seed, count, length):
    logits = torch.randn(count, length, 11, generator=torch.Generator().manual_seed(seed)).double()
    y = torch.randint(11, (count, length), generator=torch.Generator().manual_seed(seed))
    log_p = logits - logits.exp().sum(-1, keepdim=True).log()
    want = [-sum(float(log_p[b, t, y[b, t]]) for t in range(length)) for b in range(count)]
    assert cross_entropy(logits, y).tolist() == pytest.approx(want)


def test_an_adjoint_that_does_not_converge_says_so():
    model, x = made("full").double(), characters(7, 3, MINI.length)
    for stop, converged in ((Stop(1e-9, 2), False), (Stop(1e-9, 500), True)):
        rest, adjoint = exact(model, x, x, stop, stop)[2]
        assert rest.converged is adjoint.converged is converged
        assert (adjoint.residual <= 1e-9) is converged and (adjoint.sweeps == 2) is not converged


def test_settling_gives_back_parameters_as_they_were():
    model, x = made("full"), characters(8, 3, MINI.length)
    model.places.weight.requires_grad_(False)
    with frozen(model):
        assert not any(p.requires_grad for p in model.parameters())
    rest = free(model, model.clamp(x), Stop(0.0, 2))
    nudged(model, model.clamp(x).detach(), x, rest.states, torch.full((3,), 0.1), Stop(0.0, 2))
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["places.weight"]

"""The rule's parts: drawn signs, tolerances, and the alignment with the true gradient recomputed from plain vectors."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlexp.eqprop import rule as rules
from mlexp.eqprop.exact import exact, unrolled
from mlexp.eqprop.learners import ALPHABET, LEARNERS, Size
from mlexp.eqprop.rule import FREE, NUDGED, TIGHT, Rule, alignment, contrast, loss_of, signs_of
from mlexp.eqprop.settle import Stop, free
from mlexp.eqprop.train import network

MINI = Size(width=16, layers=2, heads=2, length=12, context=3, embed=8)
SETTLED = ("looped_mlp", "recurrent_core", "full", "full_kappa0")


def characters(seed, *shape):
    return torch.randint(ALPHABET, shape, generator=torch.Generator().manual_seed(seed))


def made(name):
    model = network(LEARNERS[name], MINI, seed=0).double()
    torch.nn.init.normal_(model.head.weight, std=0.3)
    return model, characters(1, 6, MINI.length), characters(2, 6, MINI.length)


@given(seed=st.integers(0, 2**31 - 1), count=st.integers(1, 9))
def test_a_drawn_sign_is_the_parity_of_the_characters(seed, count):
    x = characters(seed, count, 7)
    want = [(-1.0) ** sum(row) for row in x.tolist()]
    signs, share = signs_of(x, "split")
    assert signs.tolist() == want and share == 1
    signs, share = signs_of(x, "symmetric")
    assert signs.tolist() == [1.0] * count + [-1.0] * count and share == 0.5
    signs, share = signs_of(x, "positive")
    assert signs.tolist() == [1.0] * count and share == 1


def test_training_s_tolerances_are_those_that_the_study_states():
    assert (Stop(1e-3, 60), Stop(1e-1, 60), Stop(1e-5, 100)) == (FREE, NUDGED, TIGHT)
    assert Rule(0.2) == Rule(0.2, "split", FREE, NUDGED)


@pytest.mark.parametrize("name", SETTLED)
@given(beta=st.floats(0.05, 0.8), nudge=st.sampled_from(rules.NUDGES), sweeps=st.integers(2, 4))
@settings(max_examples=4)
def test_alignment_is_of_the_rule_s_estimate_to_the_true_gradient(name, beta, nudge, sweeps):
    model, x, y = made(name)
    rule = Rule(beta, nudge, Stop(0.0, 2), Stop(0.0, sweeps))
    found = alignment(model, x, y, rule, Stop(1e-12, 3000))
    names = [n for n, _ in model.named_parameters()]
    true = torch.autograd.grad(unrolled(model, x, y, 40), list(model.parameters()))
    estimate = contrast(model, x, y, rule)[1]

    def flat(gradients, keep=lambda n: True):
        return torch.cat([g.flatten() for g, n in zip(gradients, names, strict=True) if keep(n)])

    def inside(n):
        return not n.startswith(("head.", "norm."))

    cosine = torch.nn.functional.cosine_similarity
    assert found.cosine == pytest.approx(cosine(flat(estimate), flat(true), 0).item(), abs=1e-6)
    assert found.inner_cosine == pytest.approx(cosine(flat(estimate, inside), flat(true, inside), 0).item(), abs=1e-6)
    assert found.ratio == pytest.approx((flat(estimate).norm() / flat(true).norm()).item(), rel=1e-6)


def test_alignment_s_true_gradient_is_settled_as_deep_as_asked():
    model, x, y = made("full")
    rule = Rule(0.01, "symmetric", Stop(1e-12, 3000), Stop(1e-12, 3000))
    assert alignment(model, x, y, rule, Stop(1e-12, 3000)).cosine > alignment(model, x, y, rule, Stop(0.0, 1)).cosine
    assert alignment(model, x, y, rule) == alignment(model, x, y, rule, TIGHT)


@pytest.mark.parametrize("name", SETTLED)
def test_the_loss_is_the_mean_of_the_free_phase_and_the_phases_are_noted_in_order(name):
    model, x, y = made(name)
    row = LEARNERS[name]
    for rule in (Rule(0.5, row.nudge, Stop(0.0, 3), Stop(0.0, 5)), None):
        noted = []
        value = loss_of(rule, lambda *phases: noted.append(phases))(model, x, y)  # noqa: B023
        ((rest, end),) = noted
        again = contrast(model, x, y, rule)[2] if rule else exact(model, x, y, TIGHT, TIGHT)[2]
        for first, second in zip((rest, end), again, strict=True):
            assert first.sweeps == second.sweeps and first.residual == second.residual
        top = free(model, model.clamp(x), rule.free if rule else TIGHT).states[-1]
        logits = model.logits(top)
        want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
        assert value.item() == pytest.approx(want.item(), rel=1e-9)
        if rule:
            assert end.sweeps == 5 and rest.sweeps == (3 if model.feedback else 1)


@pytest.mark.parametrize("nudge", rules.NUDGES)
def test_backward_leaves_the_estimate_scaled_by_what_comes_from_outside(nudge):
    model, x, y = made("full")
    rule = replace(Rule(0.05), nudge=nudge)
    estimate = contrast(model, x, y, rule)[1]
    (3 * loss_of(rule)(model, x, y)).backward()
    for p, g in zip(model.parameters(), estimate, strict=True):
        torch.testing.assert_close(p.grad, 3 * g)

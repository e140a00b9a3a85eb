"""The estimate is the gradient of the free fixed point, of the order that theory says, and nothing weaker passes."""

from functools import cache
from itertools import pairwise

import pytest
import torch

from mlexp.eqprop.chars import batches, load
from mlexp.eqprop.exact import exact, unrolled
from mlexp.eqprop.learners import LEARNERS, Size
from mlexp.eqprop.rule import NUDGES, Rule, contrast, loss_of
from mlexp.eqprop.settle import Stop, cross_entropy, free, nudged
from mlexp.eqprop.train import Caps, network
from mlexp.training import Recipe, fit

MINI = Size(width=16, layers=2, heads=2, length=12, context=3, embed=8)
TIGHT = Stop(1e-13, 3000)
RINGS = ("recurrent_core", "full", "full_kappa0")
NETWORKS = ("looped_mlp", *RINGS)


@cache
def text():
    return load()


def batch(size=4, seed=0):
    return batches(text().train[:5000], size, MINI.length, seed)(0)


@cache
def trained(name: str, steps: int):
    """A small network in float64 with a head that is felt, after some steps of its own rule; not to be changed."""
    row = LEARNERS[name]
    model = network(row, MINI, seed=0).double()
    torch.nn.init.normal_(model.head.weight, std=0.3)
    if steps:
        caps, some = Caps(model), batches(text().train[:5000], 8, MINI.length, 1)
        fit(model, loss_of(Rule(row.beta, row.nudge)), some, Recipe(steps, 3e-3), after=lambda step: caps())
    return model


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients])


def true(model, x, y):
    return flat(exact(model, x, y, TIGHT, TIGHT)[1])


def estimate(model, x, y, beta, nudge="symmetric", stop=TIGHT):
    return flat(contrast(model, x, y, Rule(beta, nudge, TIGHT, stop))[1])


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()).clamp(min=1e-300))


def error(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("steps", [0, 30])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_estimate_is_the_gradient_and_its_error_has_the_order_of_the_nudge(name, steps):
    model, (x, y) = trained(name, steps), batch()
    gradient = true(model, x, y)
    for nudge in NUDGES:
        assert cosine(estimate(model, x, y, 0.01, nudge), gradient) >= 0.9999, nudge
    for nudge, low, high in (("symmetric", 3.6, 4.4), ("positive", 1.8, 2.2)):
        errors = [error(estimate(model, x, y, beta, nudge), gradient) for beta in (0.08, 0.04, 0.02)]
        ratios = [a / b for a, b in pairwise(errors)]
        assert all(low < ratio < high for ratio in ratios), (nudge, ratios)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_exact_gradient_is_that_of_a_long_unrolling_and_of_finite_differences(name):
    model, (x, y) = trained(name, 30), batch()
    gradient, parameters = true(model, x, y), list(model.parameters())
    through_time = flat(torch.autograd.grad(unrolled(model, x, y, 120), parameters))
    assert error(gradient, through_time) < 1e-9
    way = torch.randn(len(gradient), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pieces = [piece.view_as(p) for piece, p in zip(way.split([p.numel() for p in parameters]), parameters, strict=True)]
    losses = []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            for p, piece in zip(parameters, pieces, strict=True):
                p.add_(piece, alpha=step)
            losses.append(cross_entropy(model.logits(free(model, model.clamp(x), TIGHT).states[-1]), y).sum().item())
        for p, piece in zip(parameters, pieces, strict=True):
            p.add_(piece, alpha=1e-5)
    slope = (losses[0] - losses[1]) / 2e-5 / y.numel()
    assert slope == pytest.approx(float(gradient @ way), rel=1e-6)


def wrong_sign(model, x, y, beta):
    """The energies' contrast the wrong way round."""
    right = estimate(model, x, y, beta)
    with torch.no_grad():
        top = free(model, model.clamp(x), TIGHT).states[-1]
    head = list(model.head_parameters())
    cost = cross_entropy(model.logits(top), y).sum() / y.numel()
    direct = dict(zip(head, torch.autograd.grad(cost, head), strict=True))
    direct = flat([direct.get(p, torch.zeros_like(p)) for p in model.parameters()])
    return 2 * direct - right


def vector_field(model, x, y, beta):
    """Equilibrium propagation as if f were a gradient (Scellier et al. 2018): z = f(z) - beta dC/dz, no J^T."""
    with torch.no_grad():
        c = model.clamp(x)
    ends = []
    for sign in (1, -1):
        states = free(model, c, TIGHT).states
        for _ in range(100):
            top = states[-1].detach().requires_grad_()
            (pull,) = torch.autograd.grad(sign * beta * cross_entropy(model.logits(top), y).sum(), top)
            with torch.no_grad():
                states = list(states)
                for block in range(len(states)):
                    states[block] = model.local(block, states, c)
                states[-1] = states[-1] - pull
        ends.append(states)
    rest = free(model, c, TIGHT).states
    felt = sum(
        (((a - b) / (2 * beta * y.numel())) * model.local(block, rest, model.clamp(x))).sum()
        for block, (a, b) in enumerate(zip(*ends, strict=True))
    )
    cost = cross_entropy(model.logits(rest[-1]), y).sum() / y.numel()
    return flat(torch.autograd.grad(cost - felt, list(model.parameters())))


def inside(model, gradient):
    """Without the head's part: it is direct, and right under any rule."""
    head = set(model.head_parameters())
    pieces = gradient.split([p.numel() for p in model.parameters()])
    return flat(piece for piece, p in zip(pieces, model.parameters(), strict=True) if p not in head)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_not_the_rule_fails_the_bar(name):
    model, (x, y) = trained(name, 30), batch()
    right = inside(model, true(model, x, y))
    assert cosine(inside(model, estimate(model, x, y, 0.01)), right) >= 0.9999
    assert cosine(inside(model, estimate(model, x, y, 0.01, stop=Stop(0.0, 1))), right) < 0.999
    assert cosine(inside(model, wrong_sign(model, x, y, 0.01)), right) < -0.9999
    if name != "looped_mlp":  # whose field is a gradient
        assert cosine(inside(model, vector_field(model, x, y, 0.01)), right) < (0.999 if model.length == 1 else 0.9)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_nudged_states_are_stationary_for_autograd_of_the_whole_energy(name):
    model, (x, y) = trained(name, 30), batch()
    beta = torch.tensor([0.05, -0.05, 0.05, -0.05], dtype=torch.float64)
    with torch.no_grad():
        c = model.clamp(x)
    for tolerance in (1e-1, 1e-2, 1e-6):
        end = nudged(model, c, y, free(model, c, TIGHT).states, beta, Stop(tolerance, 3000))
        states = [z.clone().requires_grad_() for z in end.states]
        cost = (beta * cross_entropy(model.logits(states[-1]), y)).sum()
        (pull,) = torch.autograd.grad(cost, states[-1], retain_graph=True)
        whole = sum(model.energy(block, states, c).sum() for block in range(len(states))) + cost
        slope = flat(torch.autograd.grad(whole, states)).norm()
        assert end.converged and end.residual <= tolerance
        assert slope <= 2 * tolerance * pull.norm(), tolerance


def slope_and_pull(model, c, y, states, beta):
    """Autograd's dF/dz of every block, and beta dC/dz at the top."""
    states = [z.detach().clone().requires_grad_() for z in states]
    cost = (beta * cross_entropy(model.logits(states[-1]), y)).sum()
    (pull,) = torch.autograd.grad(cost, states[-1], retain_graph=True)
    whole = sum(model.energy(block, states, c).sum() for block in range(len(states))) + cost
    return torch.autograd.grad(whole, states), pull


def test_a_hopfield_residual_is_the_gradient_that_each_layer_met():
    model, (x, y) = trained("looped_mlp", 30), batch()
    beta = torch.tensor([0.3, -0.3, 0.3, -0.3], dtype=torch.float64)
    with torch.no_grad():
        c = model.clamp(x)
    states = list(free(model, c, Stop(0.0, 3)).states)
    end, met = nudged(model, c, y, states, beta, Stop(0.0, 1)), []
    pull = slope_and_pull(model, c, y, states, beta)[1]
    for layer in reversed(range(len(states))):
        slope = slope_and_pull(model, c, y, states, beta)[0][layer]
        met.append(slope.norm())
        states[layer] = (states[layer].atanh() - slope).tanh()
    assert end.residual == pytest.approx(float(torch.stack(met).norm() / pull.norm()))
    torch.testing.assert_close(end.states, states)


@pytest.mark.parametrize("sweeps", [1, 2, 3, 4])
@pytest.mark.parametrize("name", RINGS)
def test_a_ring_s_residual_is_no_less_than_the_gradient_left(name, sweeps):
    model, (x, y) = trained(name, 30), batch()
    beta = torch.tensor([0.3, -0.3, 0.3, -0.3], dtype=torch.float64)
    with torch.no_grad():
        c = model.clamp(x)
    end = nudged(model, c, y, free(model, c, TIGHT).states, beta, Stop(0.0, sweeps))
    slopes, pull = slope_and_pull(model, c, y, end.states, beta)
    assert flat(slopes).norm() <= end.residual * pull.norm() * 1.05

"""Costs: FLOPs by phase for every learner, the limit of a step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlexp.eqprop.costs import phase_flops, step_limit
from mlexp.eqprop.exact import exact
from mlexp.eqprop.learners import ALPHABET, LEARNERS, Size
from mlexp.eqprop.rule import Rule, contrast
from mlexp.eqprop.settle import Stop
from mlexp.eqprop.train import network
from mlexp.flops import count_flops

MINI = Size(width=16, layers=2, heads=2, length=12, context=3, embed=8)
UNROLLED = [name for name, row in LEARNERS.items() if row.rule != "backprop"]


@pytest.mark.parametrize("name", UNROLLED)
def test_flops_by_phase_add_up_to_any_step(name):
    row = LEARNERS[name]
    model, x = network(row, MINI, 0), torch.randint(ALPHABET, (4, MINI.length))
    rule = Rule(row.beta, row.nudge) if row.rule == "eqprop" else None
    phases = phase_flops(model, x, x, rule)
    free_sweeps = 5 if model.feedback else 1  # without feedback one is exact

    def step():
        if rule:
            return contrast(model, x, x, Rule(row.beta, row.nudge, Stop(0.0, 5), Stop(0.0, 4)))
        return exact(model, x, x, Stop(0.0, 5), Stop(0.0, 4))

    parts = free_sweeps * phases["free_sweep"] + 4 * phases["nudged_sweep"] + phases["update"]
    assert count_flops(step)[1] == parts
    # a nudged sweep evaluates each map, and pulls back through it, once a copy; a free one only evaluates
    assert phases["free_sweep"] > 0 and phases["update"] > phases["free_sweep"]


def test_a_free_sweep_of_looped_mlp_is_its_products_alone():
    """Up and down through every matrix between states; the first matrix is part of the clamped input, done once."""
    row, x = LEARNERS["looped_mlp"], torch.randint(ALPHABET, (4, MINI.length))
    phases = phase_flops(network(row, MINI, 0), x, x, Rule(row.beta, row.nudge))
    assert phases["free_sweep"] == 2 * 4 * MINI.length * 2 * (MINI.layers - 1) * MINI.width**2


@given(free=st.floats(1, 60), nudged=st.floats(1, 60))
def test_the_limit_is_that_of_the_study(free, nudged):
    """(T_free + 4 T_nudge + 6) / 3 where both signs are nudged, (T_free + 2 T_nudge + 3) / 3 where one is."""
    assert step_limit(free, nudged, "symmetric") == pytest.approx((free + 4 * nudged + 6) / 3)
    for nudge in ("split", "positive"):
        assert step_limit(free, nudged, nudge) == pytest.approx((free + 2 * nudged + 3) / 3)

"""The table of learners: a twin differs in the rule alone, defaults are the study's, bad sizes are named."""

from dataclasses import replace

import pytest

from mlexp.eqprop.learners import ALPHABET, LEARNERS, SIZES, Learner, Size

# network, rule, layers, kappa, beta, nudge, peak rate: what the study's claims and committed records rest on
STUDY = {
    "backprop": ("transformer", "backprop", None, 0, None, None, 1e-3),
    "backprop_matched": ("transformer", "backprop", 1, 0, None, None, 1e-3),
    "looped_mlp": ("hopfield", "eqprop", None, 0, 0.1, "symmetric", 3e-3),
    "recurrent_core": ("residual", "eqprop", 1, 0.25, 0.03, "split", 1e-3),
    "full": ("residual", "eqprop", None, 0.25, 0.03, "split", 1e-3),
    "full_kappa0": ("residual", "eqprop", None, 0, 0.03, "split", 1e-3),
    "looped_mlp_twin": ("hopfield", "exact", None, 0, None, None, 3e-3),
    "recurrent_core_twin": ("residual", "exact", 1, 0.25, None, None, 1e-3),
    "full_twin": ("residual", "exact", None, 0.25, None, None, 1e-3),
}


def test_the_table_is_the_study_s():
    def fields_of(row: Learner):
        nudge = (row.beta, row.nudge) if row.rule == "eqprop" else (None, None)
        return (row.network, row.rule, row.layers, row.kappa, *nudge, row.lr)

    assert {name: fields_of(row) for name, row in LEARNERS.items()} == STUDY


@pytest.mark.parametrize("name", [name for name in LEARNERS if name.endswith("_twin")])
def test_a_twin_differs_from_its_learner_in_the_rule_alone(name):
    twin, row = LEARNERS[name], LEARNERS[name.removesuffix("_twin")]
    assert (row.rule, twin.rule) == ("eqprop", "exact")
    assert replace(row, rule="exact", beta=twin.beta, nudge=twin.nudge) == twin  # a twin has no nudge


def test_sizes_are_the_seed_s_and_its_quick_one_s():
    assert SIZES["full"] == Size() == Size(width=128, layers=3, heads=4, length=64, context=4, embed=32)
    assert SIZES["quick"] == Size(width=64, layers=2, heads=4, length=32, context=4, embed=32)
    assert ALPHABET == 1 + 95 + 1


@pytest.mark.parametrize("name", ["width", "layers", "heads", "length", "context", "embed"])
def test_a_size_below_one_is_named(name):
    with pytest.raises(ValueError, match=f"{name} is 0; at least 1"):
        Size(**{name: 0})
    with pytest.raises(ValueError, match="heads=3: must divide the width 128"):
        Size(heads=3)

"""The schema of a record: what is let in, and what every refusal says."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlexp import record

from .needs import needs

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(st.dictionaries(st.sampled_from(["flops", "n_params", "loss_nats", "peak_method"]), scalars))
def test_plain_scalars_pass_unchanged(values):
    assert record.validate(values, record.METRICS) == values


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_only_finite_numbers_pass(value):
    if math.isfinite(value):
        assert record.plain("x", value) == value
    else:
        with pytest.raises(ValueError, match=f"x is {value}"):
            record.plain("x", value)


@pytest.mark.parametrize("value", [[1], {"a": 1}, np.ones(1), np.int64(3), object(), 1j, b"x"])
def test_other_types_are_refused_by_name(value):
    with pytest.raises(TypeError, match=f"x is a .*{type(value).__qualname__}"):
        record.plain("x", value)


def test_numpy_floats_become_python_floats():
    assert type(record.plain("x", np.float64(2.5))) is float


def test_a_tensor_is_refused():
    torch = needs("torch")
    with pytest.raises(TypeError, match=r"loss_nats is a torch.Tensor.*cast with \.item"):
        record.validate({"loss_nats": torch.ones(())}, record.METRICS)


@given(st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: not 0 <= x <= 1))
def test_fractions_lie_between_zero_and_one(value):
    with pytest.raises(ValueError, match=r"accuracy is .*\[0, 1\]"):
        record.validate({"accuracy": value}, record.METRICS)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown metric 'speed'.*METRICS; known: .*accuracy"):
        record.validate({"speed": 1}, record.METRICS)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"Loss": ("nats", "lower", "x")}, "not a metric name"),
        ({"accuracy": ("fraction", "higher", "x")}, "already defined"),
        ({"status": ("name", "none", "x")}, "already defined"),
        ({"things": ("count", "up", "x")}, "give .unit"),
        ({"things": ("count", "lower")}, "give .unit"),
    ],
)
def test_a_bad_declaration_is_refused(declared, message):
    with pytest.raises(ValueError, match=message):
        record.metrics_of(declared)


def test_a_declared_metric_is_known():
    table = record.metrics_of({"token_forwards": ("tokens", "lower", "tokens pushed through the model")})
    assert record.validate({"token_forwards": 7}, table) == {"token_forwards": 7}


def test_the_shared_metrics_have_these_units_and_directions():
    """Costs and losses are better lower, shares of correct outcomes higher; what is only told has no direction."""
    lower = {"wall_s": "s", "flops": "FLOP", "peak_bytes": "bytes", "energy_j": "J", "loss_nats": "nats"}
    lower |= {"perplexity": "ratio", "unconverged_fraction": "fraction"}
    higher = {"accuracy": "fraction", "optimality": "fraction", "effective_samples": "samples"}
    told = {"wall_iqr_s": "s", "rounds": "count", "timer": "name", "flops_closed_form": "FLOP", "peak_method": "name"}
    told |= {"n_params": "count", "n_tokens": "tokens"}
    for better, units in (("lower", lower), ("higher", higher), ("none", told)):
        assert {name: metric.unit for name, metric in record.METRICS.items() if metric.better == better} == units

"""Columns as people read them: one unit and one number of decimals, intervals in one cell, signs as in print."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlexp.analysis.columns import MINUS, MISSING, SHOWN, columns, intervals
from mlexp.record import Metric

METRICS = {
    "peak_bytes": Metric("bytes", "lower", "peak"), "wall_s": Metric("s", "lower", "time"),
    "accuracy": Metric("fraction", "higher", "share"), "n_params": Metric("count", "none", "parameters"),
    "loss_nats": Metric("nats", "lower", "loss"),
}  # fmt: skip


def one(name, values, **others):
    (found, *_) = columns(pd.DataFrame({name: values, **others}), METRICS)
    return found.unit, found.cells


@pytest.mark.parametrize(
    ("name", "values", "unit", "cells"),
    [
        ("peak_bytes", [2_400_000, 512_000], "MB", ["2.40", "0.51"]),
        ("wall_s", [0.0123, 0.0456], "ms", ["12.3", "45.6"]),
        ("wall_s", [12.3, 4.56], "s", ["12.30", "4.56"]),
        ("accuracy", [0.973, 1.0], "%", ["97.3", "100.0"]),
        ("n_params", [124_439_808, 1_557_611_200], "billion", ["0.124", "1.558"]),
        ("n_params", [64, 512], "", ["64", "512"]),
        ("loss_nats", [-0.0412, 2.5], "nats", [f"{MINUS}0.04", "2.50"]),
        ("speedup", [1.234, 2.0], "", ["1.23x", "2.00x"]),
        ("time_ratio", [123.4, 250.0], "", ["123x", "250x"]),
        ("p_holm", [0.04321, 0.00001], "", ["0.043", "<0.001"]),
        ("seeds", [5, 12345], "", ["5", "12,345"]),
        ("x", [1e-9, 12.5], "", ["1e-09".replace("-", MINUS), "12.5"]),
        ("x", [math.nan, math.inf], "", [MISSING, "inf"]),
        ("note", ["a", None], "", ["a", MISSING]),
        ("tied", [True, False], "", ["yes", "no"]),
        ("tied", [True, None], "", ["yes", MISSING]),
    ],
)
def test_a_column_has_one_unit_and_one_number_of_decimals(name, values, unit, cells):
    assert one(name, values) == (unit, cells)


def test_an_interval_stands_in_one_cell_in_the_unit_of_what_it_is_of():
    df = pd.DataFrame(
        {"arm": ["a", "b"], "wall_s": [0.0123, 0.0456], "low": [0.0119, math.nan], "high": [0.013, math.nan]}
    )
    arm, value, interval = columns(df, METRICS)
    assert (arm.numeric, value.numeric) == (False, True)
    assert (interval.name, interval.unit, interval.cells) == ("interval of wall_s", "ms", ["11.9 to 13.0", MISSING])


def test_which_columns_are_ends_of_what():
    assert intervals(["a", "low", "high"]) == {("low", "high"): "a"}
    assert intervals(["a", "b", "a_low", "a_high"]) == {("a_low", "a_high"): "a"}
    assert intervals(["low_documents", "high_documents"]) == {("low_documents", "high_documents"): "documents"}
    assert intervals(["low", "b", "high"]) == intervals(["slow", "shigh"]) == {}


def test_the_arm_comes_first_and_seven_columns_are_seen_at_first():
    df = pd.DataFrame({f"c{i}": [i] for i in range(9)} | {"arm": ["a"]})
    found = columns(df, {}, "arm")
    assert [column.name for column in found][:2] == ["arm", "c0"]
    assert [column.more for column in found] == [False] * SHOWN + [True] * 3


def read(cell):
    text = cell.replace(MINUS, "-").replace(",", "").removesuffix("x")
    return math.nan if text == MISSING else float(text)


@given(st.lists(st.floats(1e-6, 1e9) | st.floats(-1e9, -1e-6) | st.just(math.nan), min_size=1, max_size=8))
def test_what_is_read_is_what_was_written_to_the_decimals_shown(values):
    (found,) = columns(pd.DataFrame({"loss": values}), {})
    sizes = np.abs([value for value in values if not math.isnan(value)])
    for value, cell in zip(values, found.cells, strict=True):
        if math.isnan(value):
            assert cell == MISSING
        else:
            assert read(cell) == pytest.approx(value, rel=1e-3, abs=0.006 * float(np.median(sizes)))

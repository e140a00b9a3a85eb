"""A cell that takes several times as long as its neighbours is named while it runs."""

import time
from types import SimpleNamespace

import pytest

from mlexp.harness import plugin, slowdown
from mlexp.study import Study

pytest_plugins = "pytester"
STUDY = Study(
    "Which fits?", arm="arm", arms=("base", "ours"), baseline="base", replicates=("seed",), outcome="accuracy"
)


def plan(arm, seed, seconds=0.0, test="test_fit", question="fit"):
    params = {"size": 3, "seed": seed, "arm": arm}
    name = f"benches/fit/bench_fit.py::{test}[s3-seed{seed}-{arm}]"
    return SimpleNamespace(question=question, params=params, study=STUDY, name=name, seconds=seconds)


def seconds_of(plans):
    """How long cells took that have ended well."""
    took = {}
    for each in plans:
        if each.seconds:
            took.setdefault(slowdown.work(each), {})[each.name] = each.seconds
    return took


@pytest.fixture
def at_once(monkeypatch):
    """Whatever takes longer than the slowest neighbour is slow."""
    monkeypatch.setattr(slowdown, "SHORTEST_S", 0.0)
    monkeypatch.setattr(slowdown, "TIMES", 1)


@pytest.mark.parametrize(
    ("others", "wanted"),
    [
        ([plan("ours", 1, 0.01)], "its neighbour took 0.01 s"),
        ([plan("ours", 1, 0.02), plan("ours", 2, 0.01)], "its 2 neighbours took 0.01 to 0.02 s"),
        ([plan("base", 1, 0.01)], ""),
        ([plan("ours", 1, 0.01, test="test_score")], ""),
        ([plan("ours", 1, 0.01, question="other")], ""),
        ([plan("ours", 1, 60.0)], ""),
        ([plan("ours", 1)], ""),  # has not run, or did not end well
        ([], ""),
    ],
    ids=["one", "two", "another_arm", "another_test", "another_question", "as_slow", "unknown", "none"],
)
def test_the_same_arm_in_other_replicates_is_what_a_cell_is_compared_with(at_once, others, wanted):
    warnings, own, took = [], plan("ours", 3), seconds_of(others)
    with slowdown.watched(own, took, warnings.append):
        end = time.monotonic() + (10 if wanted else 0.1)
        while time.monotonic() < end and not warnings:
            time.sleep(0.001)
    assert took[slowdown.work(own)][own.name] > 0
    assert len(warnings) == bool(wanted)
    assert all("s3-seed3-ours has run for" in line and wanted in line for line in warnings)


def test_a_cell_that_fails_is_no_neighbour_and_its_alarm_is_off(at_once):
    warnings, own, took = [], plan("ours", 3), seconds_of([plan("ours", 1, 0.2), plan("ours", 3, 0.1)])
    with pytest.raises(KeyError), slowdown.watched(own, took, warnings.append):
        raise KeyError
    time.sleep(0.3)
    assert own.name not in took[slowdown.work(own)] and not warnings


def test_a_session_says_it_before_the_cell_ends(fit, at_once, monkeypatch):
    """The cell goes on only once the warning is there."""
    warning = fit.pytester.path / "warning"
    monkeypatch.setattr(plugin, "say", lambda config, text: warning.write_text(text))
    body = "    cell.time(lambda: None, rounds=3, count=False)\n"
    wait = f"""
    import pathlib, time
    deadline = time.time() + 60
    while (size, seed, arm) == ("n1000", 43, "half") and not pathlib.Path({str(warning)!r}).exists():
        assert time.time() < deadline
        time.sleep(0.01)
"""
    fit.edit(body, wait + body)
    fit.run("-k", "n1000").assert_outcomes(passed=3, failed=1)  # which fails after the warning
    assert warning.read_text().startswith("mlexp: n1000-seed43-half has run for ")

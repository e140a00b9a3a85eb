"""Compiled functions in a cell: their own code runs in every timed round, and none of it is compiled there."""

import contextlib
from types import SimpleNamespace

import pytest

from mlexp import study
from mlexp.harness import measure
from mlexp.harness.cell import WARM_RUNS, Cell
from mlexp.harness.conditions import compilations

from ..needs import needs

torch = needs("torch")


class Rounds:
    """benchmark.pedantic as far as a cell needs it; `log` has what happened, round by round."""

    def __init__(self, log):
        self.log, self.rounds = log, []

    def pedantic(self, run, setup, rounds):
        for _ in range(rounds):
            setup()
            self.log.clear()
            result = run()
            self.rounds.append(list(self.log))
        return result


@pytest.fixture
def log():
    torch.compiler.reset()
    yield []
    torch.compiler.reset()


def compiled(function, log, **how):
    """torch.compile with a backend of ours, which notes when it compiles and when its code runs."""

    def backend(graph, inputs):
        log.append("compiled")

        def code(*args):
            log.append("ran")
            return graph.forward(*args)

        return code

    return torch.compile(function, backend=backend, **how)


def a_cell(log):
    plan = SimpleNamespace(
        name="test_x[a]", question="x", params={}, settings=None, seed=0, key="k", study=study.of(SimpleNamespace())
    )
    run = SimpleNamespace(scale="smoke", device="cpu", dtype="float32", options=None)
    return Cell(plan, run, measure.Clock(), Rounds(log), lambda *args: None)


def relu(x):
    return torch.relu(x @ x)


X = torch.ones(8, 8)
FLOPS = 2 * 8**3


@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.parametrize("count", [True, False])
@pytest.mark.parametrize("rounds", [1, 3])
def test_every_round_runs_compiled_code_and_compiles_none(log, rounds, count, called_before):
    run = compiled(relu, log)
    if called_before:
        run(X)
    cell = a_cell(log)
    cell.time(lambda: run(X), rounds=rounds, count=count)
    assert cell._benchmark.rounds == rounds * [["ran"]]
    assert cell.values.get("flops") == (FLOPS if count else None)
    assert cell.values["compilations"] == 0


def test_without_the_stance_nothing_compiled_would_run(log, monkeypatch):
    """The negative control: what torch does where compiled functions are counted as they are."""
    monkeypatch.setattr(torch.compiler, "set_stance", lambda stance: contextlib.nullcontext())
    run, cell = compiled(relu, log), a_cell(log)
    cell.time(lambda: run(X), rounds=2)
    assert cell._benchmark.rounds == [[], []]


def test_without_a_warm_up_the_record_says_that_a_round_compiled(log):
    run, cell = compiled(relu, log), a_cell(log)
    cell.time(lambda: run(X), rounds=2, warmup=False)
    assert cell._benchmark.rounds == [["compiled", "ran"], ["ran"]]
    assert cell.values["compilations"] == 1


@pytest.mark.parametrize("rounds", [1, 3])
def test_what_compiles_in_later_calls_too_is_warmed_up_until_it_does_not(log, rounds):
    sizes = iter([2, 3, 4, *[4] * 9])
    run, cell = compiled(relu, log, dynamic=False), a_cell(log)
    cell.time(lambda: run(torch.ones(size := next(sizes), size)), rounds=rounds, count=False)
    assert cell._benchmark.rounds == rounds * [["ran"]]


def test_what_compiles_at_every_call_is_timed_with_it(log):
    run, cell, calls = compiled(relu, log), a_cell(log), []

    def afresh():
        calls.append(1)
        torch._dynamo.reset_code(relu.__code__)
        return run(X)

    cell.time(afresh, rounds=2, count=False)
    assert len(calls) == 2 * WARM_RUNS + 2
    assert cell._benchmark.rounds == 2 * [["compiled", "ran"]] and cell.values["compilations"] == 2


def test_the_peak_is_that_of_a_run_that_compiled_nothing(log, monkeypatch):
    peaks = []

    @contextlib.contextmanager
    def peak_memory(device):
        log.clear()
        yield SimpleNamespace(bytes=1, method="vm_hwm", child_processes=0)
        peaks.append(list(log))

    monkeypatch.setattr(measure, "peak_memory", peak_memory)
    run, cell = compiled(relu, log), a_cell(log)
    cell.time(lambda: run(X), rounds=3)
    assert peaks == [["compiled", "ran"], ["ran"]]


def test_what_is_not_compiled_runs_no_oftener_than_it_must(log):
    for rounds, count, runs in ((1, True, 1 + 1 + 1), (3, True, 1 + 1 + 3), (1, False, 1 + 1), (3, False, 1 + 1 + 3)):
        calls = []
        a_cell(log).time(lambda calls=calls: (calls.append(1), X @ X), rounds=rounds, count=count)
        assert len(calls) == runs


def test_compilations_are_counted_in_their_block_alone(log):
    run = compiled(relu, log)
    with compilations() as first:
        run(X)
        run(X)
    with compilations() as second:
        run(X)
    with compilations() as third:
        torch.compiler.reset()  # forgets who wanted to know: then it counts as one, or more
        run(X)
    assert (first.count, second.count) == (1, 0) and third.count >= 1

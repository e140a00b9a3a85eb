"""The shared training loop: it learns, keeps the best state, survives OOM with the same gradient, repeats exactly."""

import contextlib
import itertools
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mlexp.training import Captured, Fit, backward, fit, schedule, seed_everything


def regression(seed=0):
    g = torch.Generator().manual_seed(seed)
    model = torch.nn.Linear(3, 1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    x = torch.randn(64, 3, generator=g)
    return model, (x, x @ torch.tensor([[1.0], [-2.0], [0.5]]))


def squared(model, x, y):
    return (model(x) - y).square().mean()


def test_it_learns_and_says_so():
    model, data = regression()
    lines = []
    done = fit(
        model,
        squared,
        lambda step: data,
        steps=200,
        lr=0.1,
        warmup=5,
        evaluate=lambda: squared(model, *data).item(),
        evaluate_every=50,
        progress=lambda *line: lines.append(line),
    )
    assert done.losses[-1] < 0.01 < done.losses[0] and len(done.losses) == 200
    assert list(done.held_out) == [50, 100, 150, 200]
    assert lines[-1][:2] == (200, 200) and "held out" in lines[-1][2]


def test_the_best_held_out_state_is_left():
    model, data = regression()
    held = iter([3.0, 1.0, 2.0])
    states = []

    def evaluate():
        states.append([p.clone() for p in model.parameters()])
        return next(held)

    done = fit(model, squared, lambda step: data, steps=30, lr=0.1, evaluate=evaluate, evaluate_every=10)
    assert done.best_step == 20
    assert all(torch.equal(a, b) for a, b in zip(states[1], model.parameters(), strict=True))


def test_it_repeats_bit_for_bit():
    runs = []
    for _ in range(2):
        model, data = regression()
        runs.append(fit(model, squared, lambda step, data=data: data, steps=20, lr=0.1, weight_decay=0.1).losses)
    assert runs[0] == runs[1]


@pytest.mark.parametrize("fits", [1, 5, 16])
def test_running_out_of_memory_halves_the_micro_batch_and_keeps_the_gradient(fits):
    model, (x, y) = regression()
    squared(model, x, y).backward()
    want = [p.grad.clone() for p in model.parameters()]

    def scarce(model, x, y):
        if len(x) > fits:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes")
        return squared(model, x, y)

    loss, micro = backward(model, scarce, (x, y))
    assert micro <= fits < 2 * micro or micro == 1
    assert loss.item() == pytest.approx(squared(model, x, y).item(), rel=1e-5)
    for a, b in zip(want, model.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a)


def test_micro_batches_that_are_asked_for_are_taken_and_change_nothing():
    runs, sizes = [], []

    def counted(model, x, y):
        sizes.append(len(x))
        return squared(model, x, y)

    for micro in (None, 5):
        model, data = regression()
        runs.append(fit(model, counted, lambda step, data=data: data, steps=3, lr=0.1, micro_batch=micro))
    assert runs[1].micro_batch == 5 and max(sizes[3:]) == 5 and sum(sizes[3:]) == sum(sizes[:3])
    assert runs[0].losses == pytest.approx(runs[1].losses, rel=1e-5)


def test_other_errors_and_a_batch_of_one_are_not_retried():
    model, data = regression()
    calls = []

    def broken(model, *batch):
        calls.append(1)
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        backward(model, broken, data)
    assert len(calls) == 1

    def hopeless(model, *batch):
        raise MemoryError

    with pytest.raises(MemoryError):
        backward(model, hopeless, data)


def test_where_one_item_is_too_much_room_is_made_once():
    model, (x, y) = regression()
    squared(model, x, y).backward()
    want, relieved, sizes = [p.grad.clone() for p in model.parameters()], [], []

    def scarce(model, x, y):
        sizes.append(len(x))
        if not relieved:
            raise MemoryError
        return squared(model, x, y)

    def relieve():
        relieved.append(len(sizes))
        return len(relieved) == 1

    _, micro = backward(model, scarce, (x, y), relieve=relieve)
    assert relieved == [7] and sizes == [64, 32, 16, 8, 4, 2, 1, 64] and micro is None  # and then the whole batch again
    for a, b in zip(want, model.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a)
    relieved.append(1)
    with pytest.raises(MemoryError):
        backward(model, lambda *_: (_ for _ in ()).throw(MemoryError()), (x, y), relieve=relieve)


def test_a_loss_that_is_not_finite_stops_the_run():
    model, data = regression()
    with pytest.raises(FloatingPointError, match="loss nan at step 0"):
        fit(model, lambda model, *batch: squared(model, *batch) * float("nan"), lambda step: data, steps=3, lr=0.1)


class Recorder:
    """Stands in for torch.cuda's graphs: says what was asked of it; one that may not be made raises."""

    def __init__(self, monkeypatch, memory=True):
        self.log, self.memory = [], memory
        graph = SimpleNamespace(replay=lambda: self.log.append("replay"))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
        monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(wait_stream=lambda other: None))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(wait_stream=lambda other: None))
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "graph", self.capturing)

    @contextlib.contextmanager
    def capturing(self, graph, stream):
        self.log.append("capture")
        if not self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    def steps(self, result):
        def usual(x):
            self.log.append("usual")
            return x.sum()

        return Captured(usual, lambda x: x.sum(), result)


def test_steps_are_captured_a_shape_after_a_few_that_ran_as_usual(monkeypatch):
    cuda, result = Recorder(monkeypatch), Fit()
    step = cuda.steps(result)
    for k in range(5):
        step(torch.full((4,), float(k)))
    step(torch.zeros(2))
    assert cuda.log == ["usual"] * 3 + ["capture", "replay", "replay", "usual"] and result.captured
    ((_, (seen,), _),) = step.graphs.values()
    assert seen.tolist() == [4.0] * 4  # what the graph reads is the last batch


@pytest.mark.parametrize("fault", ["graph", "micro_batch", "relieved"])
def test_where_memory_is_short_steps_run_as_usual(monkeypatch, capsys, fault):
    cuda, result = Recorder(monkeypatch, memory=fault != "graph"), Fit()
    if fault != "graph":
        setattr(result, fault, 1)
    step = cuda.steps(result)
    for _ in range(6):
        step(torch.ones(4))
    assert cuda.log.count("usual") == 6 and cuda.log.count("capture") == (fault == "graph") and not result.captured
    assert ("no memory for a CUDA graph" in capsys.readouterr().out) == (fault == "graph")


@pytest.mark.needs_gpu
def test_captured_steps_are_the_usual_ones():
    ends = []
    for capture in (False, True):
        model, data = regression()
        model, data = model.cuda(), [t.cuda() for t in data]
        turns = [tuple(t[a:b] for t in data) for a, b in ((0, 24), (24, 48), (48, 64))]
        done = fit(model, squared, lambda step, turns=turns: turns[step % 3], steps=60, lr=0.1, capture=capture)
        assert done.captured is capture
        ends.append((done.losses, [p.detach().cpu() for p in model.parameters()]))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-4)
    for a, b in zip(ends[0][1], ends[1][1], strict=True):
        torch.testing.assert_close(a, b)


def test_the_schedule_warms_up_and_ends_at_a_tenth():
    rates = [schedule(s, 100, 10) for s in range(101)]
    assert rates[0] == 0.1 and rates[9] == rates[10] == 1.0 and rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert schedule(100, 100, 10, floor=0.05) == pytest.approx(0.05) and schedule(10, 100, 10, floor=0.05) == 1.0


def test_seeding_reaches_every_generator():
    draws = []
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        for _ in range(2):
            seed_everything(2**40 + 3)
            draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
    assert draws[0] == draws[1]

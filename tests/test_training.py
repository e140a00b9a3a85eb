"""The shared training loop: AdamW as torch's, the best state kept, memory errors survived, exact repetition."""

import contextlib
import itertools
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mlexp.training import Captured, Fit, Recipe, backward, fit, seed_everything


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
        Recipe(200, 0.1, warmup=5),
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

    done = fit(model, squared, lambda step: data, Recipe(30, 0.1), evaluate=evaluate, evaluate_every=10)
    assert done.best_step == 20
    assert all(torch.equal(a, b) for a, b in zip(states[1], model.parameters(), strict=True))


def test_it_repeats_bit_for_bit():
    runs = []
    for _ in range(2):
        model, data = regression()
        runs.append(fit(model, squared, lambda step, data=data: data, Recipe(20, 0.1, weight_decay=0.1)).losses)
    assert runs[0] == runs[1]


class Bend(torch.nn.Module):
    """Two matrices and two vectors, in float64."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)
        g = torch.Generator().manual_seed(1)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=g).double()

    def forward(self, x):
        return self.second(self.first(x).tanh())


def uneven(step):
    """Another batch at every step, whose gradients are from far below a clip of 1 to far above."""
    g = torch.Generator().manual_seed(step)
    x = torch.randn(7, 3, generator=g).double()
    return x, x.sum(1, keepdim=True) * 10.0 ** (step % 4 - 2)


def small(step):
    """Gradients near AdamW's eps."""
    x, y = uneven(step)
    return x * 1e-9, y * 1e-9


def by_hand(loss, batches, steps, lr, warmup, decay, clip, floor):
    """The parameters after a plain loop: torch's AdamW, the schedule written out."""
    model = Bend()
    matrices, vectors = ([p for p in model.parameters() if p.ndim == n] for n in (2, 1))
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr, betas=(0.9, 0.95), eps=1e-8, foreach=False)
    for step in range(steps):
        share = (step + 1) / warmup if step < warmup else None
        if share is None:
            angle = math.pi * (step - warmup) / (steps - warmup)
            share = floor + (1 - floor) * (1 + math.cos(angle)) / 2
        for group in optimizer.param_groups:
            group["lr"] = lr * share
        optimizer.zero_grad()
        loss(model, *batches(step)).backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
        for p in model.parameters():
            p.grad *= min(1.0, clip / norm)
        optimizer.step()
    return list(model.parameters())


PLAIN = {"warmup": 0, "weight_decay": 0.0, "clip": 1.0, "floor": 0.1}  # the defaults


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        ({}, uneven),
        ({}, small),
        ({"warmup": 3}, uneven),
        ({"weight_decay": 0.3}, uneven),
        ({"clip": 0.1}, uneven),
        ({"floor": 0.4}, uneven),
        ({"micro_batch": 2}, uneven),
        ({"micro_batch": 3, "warmup": 4, "weight_decay": 0.1, "clip": 3.0, "floor": 0.0}, uneven),
    ],
    ids=lambda value: value.__name__ if callable(value) else "-".join(value) or "defaults",
)
def test_steps_are_those_of_a_plain_loop_with_torch_s_adamw(options, batches):
    model, steps = Bend(), 9
    changed = {name: value for name, value in options.items() if name in PLAIN}
    micro_batch = options.get("micro_batch")
    done = fit(model, squared, batches, Recipe(steps, 0.05, **changed), micro_batch=micro_batch)
    used = PLAIN | changed
    want = by_hand(squared, batches, steps, 0.05, used["warmup"], used["weight_decay"], used["clip"], used["floor"])
    for ours, theirs in zip(model.parameters(), want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)
    assert len(done.losses) == steps and done.micro_batch == micro_batch


def test_one_step_is_adamw_by_hand():
    """p - lr d p - lr g / (|g| + eps) after one step, whatever the betas; vectors are not decayed."""
    w, b, x, lr, decay, eps = 0.5, -0.25, 3e-8, 0.1, 0.2, 1e-8
    model = torch.nn.Linear(1, 1).double()
    model.weight.data, model.bias.data = torch.tensor([[w]]).double(), torch.tensor([b]).double()
    fit(model, lambda m, x: m(x).mean() * x.mean(), lambda step: (torch.tensor([[x]]).double(),),
        Recipe(1, lr, weight_decay=decay))  # fmt: skip
    of_weight, of_bias = x * x, x
    assert model.weight.item() == pytest.approx(w - lr * decay * w - lr * of_weight / (of_weight + eps), rel=1e-7)
    assert model.bias.item() == pytest.approx(b - lr * of_bias / (of_bias + eps), rel=1e-7)


@pytest.mark.parametrize("micro", [None, 3])
def test_losses_are_those_before_each_step_over_the_whole_batch(micro):
    model, seen = Bend(), []

    def batches(step):
        seen.append((step, squared(model, *uneven(step)).item()))
        return uneven(step)

    done = fit(model, squared, batches, Recipe(5, 0.1), micro_batch=micro)
    assert [step for step, _ in seen] == list(range(5))
    assert done.losses == pytest.approx([value for _, value in seen], rel=1e-6)


@pytest.mark.parametrize(
    ("held", "every", "at", "best"),
    [
        ([3.0, 1.0, 2.0, 1.5], 3, [3, 6, 9, 10], 6),
        ([1.0, 2.0, 3.0, 0.5], 3, [3, 6, 9, 10], 10),
        ([1.0, 1.0, 1.0, 1.0], 3, [3, 6, 9, 10], 3),
        ([0.9, 0.5, 0.7, 0.8], 3, [3, 6, 9, 10], 6),
        ([4.0], 0, [10], 10),
    ],
)
def test_what_is_held_out_is_read_when_due_and_the_best_state_comes_back(held, every, at, best):
    model, states, after = Bend(), {}, []
    values = iter(held)

    def evaluate():
        states[len(after)] = [p.clone() for p in model.parameters()]  # each step's `after` comes first
        return next(values)

    done = fit(model, squared, uneven, Recipe(10, 0.1), evaluate=evaluate, evaluate_every=every, after=after.append)
    assert after == list(range(1, 11)) and list(states) == at
    assert done.held_out == dict(zip(at, held, strict=True)) and done.best_step == best
    for kept, left in zip(states[best], model.parameters(), strict=True):
        assert torch.equal(kept, left)


def test_without_a_held_out_loss_the_last_state_is_left():
    one, other = Bend(), Bend()
    fit(one, squared, uneven, Recipe(5, 0.1))
    fit(other, squared, uneven, Recipe(5, 0.1), evaluate=itertools.count(9, -1).__next__, evaluate_every=1)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_progress_says_the_step_and_the_newest_losses():
    lines, held = [], iter([0.5, 0.25])
    done = fit(Bend(), squared, uneven, Recipe(4, 0.1), evaluate=lambda: next(held), evaluate_every=2,
               progress=lambda *line: lines.append(line))  # fmt: skip
    held_out = ["", ", held out 0.500", ", held out 0.500", ", held out 0.250"]
    assert lines == [(i + 1, 4, f"loss {done.losses[i]:.3f}{held_out[i]}") for i in range(4)]


def test_a_size_that_fits_is_kept_for_the_steps_to_come():
    sizes = []

    def scarce(model, x, y):
        sizes.append(len(x))
        if len(x) > 3:
            raise MemoryError
        return squared(model, x, y)

    done = fit(Bend(), scarce, uneven, Recipe(3, 0.1))
    assert sizes == [7, *(3, 3, 1) * 3] and done.micro_batch == 3 and not done.relieved


def test_room_is_made_within_a_training_and_said():
    room, sizes = [], []

    def scarce(model, x, y):
        if not room:
            raise MemoryError
        sizes.append(len(x))
        return squared(model, x, y)

    done = fit(Bend(), scarce, uneven, Recipe(3, 0.1), relieve=lambda: not room and not room.append(1))
    assert done.relieved and sizes == [7, 7, 7] and done.micro_batch is None


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
        runs.append(fit(model, counted, lambda step, data=data: data, Recipe(3, 0.1), micro_batch=micro))
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


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_a_loss_that_is_not_finite_stops_the_run(bad, at):
    model, data = regression()
    factors = iter([1.0] * at + [float(bad)])
    with pytest.raises(FloatingPointError, match=f"loss {bad} at step {at}"):
        fit(model, lambda *batch: squared(*batch) * next(factors), lambda step: data, Recipe(5, 0.1))


class Recorder:
    """Stands in for torch.cuda's graphs: logs the calls; a graph that may not be made raises."""

    def __init__(self, monkeypatch, memory=True):
        self.log, self.order, self.memory = [], [], memory
        graph = SimpleNamespace(replay=lambda: self.log.append("replay"))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
        monkeypatch.setattr(torch.cuda, "Stream", lambda: self.waiting("ours waits"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.waiting("current waits"))
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "graph", self.capturing)

    def waiting(self, what):
        return SimpleNamespace(wait_stream=lambda other: self.order.append(what))

    @contextlib.contextmanager
    def capturing(self, graph, stream):
        self.log.append("capture")
        if not self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    def steps(self, result):
        def usual(x):
            self.log.append("usual")
            self.order.append("usual")
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
    assert cuda.order == ["ours waits", "usual", "current waits"] * 4
    replayed = [step(torch.full((4,), 7.0)) for _ in range(2)]
    replayed[0].add_(1)  # a value of its own: the graph writes the next one where it wrote the last
    assert replayed[0].item() != replayed[1].item()


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
        done = fit(model, squared, lambda step, turns=turns: turns[step % 3], Recipe(60, 0.1), capture=capture)
        assert done.captured is capture
        ends.append((done.losses, [p.detach().cpu() for p in model.parameters()]))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-4)
    for a, b in zip(ends[0][1], ends[1][1], strict=True):
        torch.testing.assert_close(a, b)


def test_the_schedule_warms_up_and_ends_at_a_tenth():
    rates = [Recipe(100, 1.0, 10).rate(step) for step in range(101)]
    assert rates[0] == 0.1 and rates[9] == rates[10] == 1.0 and rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    low = Recipe(100, 2.0, 10, floor=0.05)
    assert low.rate(100) == pytest.approx(0.1) and low.rate(10) == 2.0


def test_seeding_reaches_every_generator():
    draws = []
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        for seed in (2**40 + 3, 2**40 + 3, 2**40 + 4):
            seed_everything(seed)
            draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
    assert draws[0] == draws[1]
    assert all(a != b for a, b in zip(draws[1], draws[2], strict=True))

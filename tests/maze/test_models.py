"""The solvers: equal where they must be, and every part of PoH-HRM at work where it should be."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mlexp import training
from mlexp.maze.archs import ARCHS
from mlexp.maze.data import Recipe, mazes
from mlexp.maze.evaluate import accuracy_of, logits_of, score
from mlexp.maze.learn import Snapshots, loss_in, train
from mlexp.maze.models import build
from mlexp.maze.moves import features
from mlexp.maze.objective import Batches, pointer_loss
from mlexp.maze.sizes import SIZES, Size
from mlexp.training import fit, gradients, seed_everything

MINI = Size(32, 4, 64, 2, 1e-3)


def solver(arch="poh_hrm", size=MINI, R=3, T=4, seed=0, spread=0.0):
    """A solver with seeded weights; `spread` gives its routers weights that are not zero."""
    seed_everything(seed)
    model = build(size, ARCHS[arch], R, T).double().eval()
    if spread:
        for router in model.gates.routers:
            torch.nn.init.normal_(router.weight, std=spread)
    return model


def inputs(count=5, n=6):
    found = mazes(Recipe(n, count, 3, 2), workers=1)
    open, start, goal = (torch.from_numpy(x) for x in (found.open, found.start, found.goal))
    return features(open, start, goal).double(), open, start, goal


@pytest.mark.parametrize("size", ["tiny", "small", "medium"])
def test_one_iteration_with_a_zero_router_is_the_baseline_to_the_bit(size):
    x = inputs()[0].float()
    for seed in (0, 1):
        models = []
        for arch in ("baseline", "poh_r1", "poh_hrm", "poh_static", "poh_t_inf"):
            seed_everything(seed)
            models.append(build(SIZES[size], ARCHS[arch], 4, 4).eval())
        plain = models[0](x)
        assert all(torch.equal(model(x, iterations=1), plain) for model in models[1:])


def test_four_iterations_with_a_zero_router_are_the_looped_transformer():
    x = inputs()[0]
    assert torch.equal(solver("poh_hrm")(x), solver("poh_uniform")(x))


def test_a_flipped_wall_changes_the_logits_far_away():
    x, *_ = inputs()
    other = x.clone()
    other[0, 14, 0] = 1 - other[0, 14, 0]
    for arch in ("baseline", "poh_hrm"):
        a, b = (solver(arch)(y)[-1] for y in (x, other))
        assert (a[0] - b[0]).abs().min() > 0 and torch.equal(a[1:], b[1:])


def test_period_state_and_routing_matter_once_the_router_is_not_zero():
    x = inputs()[0]
    plain = solver(spread=1.0)(x)
    assert not torch.allclose(solver(spread=1.0, T=2)(x), plain)
    frozen = solver(spread=1.0)
    frozen.gates.slow = False
    assert not torch.allclose(frozen(x), plain)
    even = solver(spread=1.0)
    even.uniform = True
    assert not torch.allclose(even(x), plain)
    assert torch.equal(even(x), solver("poh_uniform")(x))
    slow = solver(spread=1.0)
    with torch.no_grad():
        slow.gates.slow_norm.bias.add_(0.5)
    assert not torch.allclose(slow(x), plain)


def test_no_state_is_left_behind_and_gates_average_one():
    model, x, routing = solver(spread=1.0), inputs()[0], []
    assert torch.equal(model(x), model(x, routing=routing))
    assert len(routing) == 3 * 2
    torch.testing.assert_close(torch.stack(routing).mean(-1), torch.ones(6, 5, 36, dtype=torch.float64))
    assert torch.stack(routing).std(-1).min() > 0


def test_gradients_reach_every_parameter_that_is_used():
    found = mazes(Recipe(6, 8, 3, 10), workers=1)
    batch = Batches(found, 8, seed=0)(0)
    model = solver(spread=1.0).train().float()
    pointer_loss(model(batch[0]), *batch[1:]).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_checkpointing_changes_no_gradient():
    batch = Batches(mazes(Recipe(6, 8, 3, 10), workers=1), 8, seed=0)(0)
    grads = []
    for relieved in (False, True):
        model = solver(spread=1.0).train().float()
        if relieved:
            assert model.relieve() and not model.relieve()
        pointer_loss(model(batch[0]), *batch[1:]).backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*grads)


def test_arms_spend_what_their_names_say():
    def count(arch, size="tiny"):
        with torch.device("meta"):
            return sum(p.numel() for p in build(SIZES[size], ARCHS[arch], 4, 4).parameters())

    for size in SIZES:
        assert count("baseline_wide", size) == pytest.approx(count("poh_hrm", size), rel=0.02)
        assert 1.005 < count("poh_hrm", size) / count("baseline", size) < 1.06
        assert count("poh_uniform", size) == count("baseline", size)
    assert count("baseline_deep") == pytest.approx(4 * count("baseline"), rel=0.02)
    millions = [round(count("baseline", size) / 1e6, 1) for size in SIZES]
    assert millions[:5] == [0.4, 2.4, 12.6, 42.5, 100.8] and 190 < millions[5] < 210 and 490 < millions[6] < 510


def test_bad_heads_are_named():
    with pytest.raises(ValueError, match="heads=3: must divide 128 / 4"):
        build(SIZES["tiny"], ARCHS["baseline"], 4, 4, heads=3)


def test_micro_batches_have_the_gradient_of_the_batch():
    batch = Batches(mazes(Recipe(6, 8, 3, 10), workers=1), 8, seed=0)(0)
    grads = []
    for parts in (1, 4):
        model = solver().train().float()
        for some in zip(*(t.chunk(parts) for t in batch), strict=True):
            (pointer_loss(model(some[0]), *some[1:]) / parts).backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("loss", ["dense", "path"])
def test_batches_repeat_and_cover_an_epoch(loss):
    found = mazes(Recipe(6, 10, 3, 10), workers=1)
    plain = Batches(found, 4, seed=5, augment=False, loss=loss)
    assert plain.per_epoch == 3
    seen = torch.cat([plain(step)[0] for step in range(3)])
    assert len(seen) == 10 and len(seen.flatten(1).unique(dim=0)) == 10
    for make in (plain, Batches(found, 4, seed=5, min_length=10, loss=loss)):
        again = Batches(found, 4, seed=5, augment=make.augment, min_length=10, loss=loss)
        assert all(torch.equal(a, b) for a, b in zip(make(7), again(7), strict=True))
        x, best, counts = make(1)
        assert (best.any(-1) | ~counts).all()
        on_path = counts.sum(1) if loss == "path" else torch.full((len(x),), 35)
        assert torch.equal(counts.sum(1), on_path) and (loss == "dense" or (counts.sum(1) < 35).any())
    with pytest.raises(ValueError, match="unknown loss 'sparse'; choose from dense, path"):
        Batches(found, 4, seed=5, loss="sparse")


def test_an_epoch_is_prepared_once_and_is_another_each_time():
    batches = Batches(mazes(Recipe(6, 10, 3, 10), workers=1), 4, seed=5, min_length=10)
    first = [batches(step) for step in range(6)]
    assert [len(x) for x, *_ in first] == [4, 4, 2] * 2
    assert not torch.equal(first[0][0], first[3][0])
    for step in (4, 0, 5, 1):  # in any order
        assert all(torch.equal(a, b) for a, b in zip(batches(step), first[step], strict=True))


class NoValues(TorchDispatchMode):
    """Refuses what would make the host wait for a device: reading a value, or a shape that depends on one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise AssertionError(f"{func} asks for a value")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("arch", sorted(ARCHS))
def test_a_step_asks_for_no_value(arch):
    """So that it can be captured as a CUDA graph."""
    batch = Batches(mazes(Recipe(6, 8, 3, 10), workers=1), 8, seed=0)(0)
    model = solver(arch).train().float()
    with NoValues():
        gradients(model, loss_in(torch.float32), batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    with pytest.raises(AssertionError, match="asks for a value"), NoValues():
        batch[0].sum().item()


def test_snapshots_are_the_states_that_were_and_leave_the_model_alone():
    found = mazes(Recipe(5, 20, 3, 5), workers=1)
    model, batches = solver("baseline").train().float(), Batches(found, 10, seed=0, min_length=5)
    states = Snapshots(model, 6, 3)
    train(model, batches, 6, 1e-3, after=states)
    assert list(states.states) == [2, 4, 6]
    last = {name: value.clone() for name, value in model.state_dict().items()}
    curve = accuracy_of(model, states.states, found)
    assert list(curve) == [2, 4, 6] and curve[6] == score(logits_of(model, found)[-1], found).solved.float().mean()
    assert all(torch.equal(value, last[name]) for name, value in model.state_dict().items())
    assert any(not torch.equal(value, last[name]) for name, value in states.states[2].items())


def test_a_small_solver_learns_small_mazes():
    found = mazes(Recipe(4, 64, 3, 5), workers=1)
    seed_everything(0)
    model, batches = build(MINI, ARCHS["poh_hrm"], 2, 4), Batches(found, 16, seed=0, min_length=5)
    result = fit(model, lambda m, x, *rest: pointer_loss(m(x), *rest), batches, training.Recipe(60, 3e-3, warmup=5))
    assert sum(result.losses[-5:]) < 0.7 * sum(result.losses[:5])

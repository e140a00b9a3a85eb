"""What reaches training and what a step does with it: epochs against plain search, the loss by hand, AdamW by hand."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlexp import training
from mlexp.maze import learn
from mlexp.maze.archs import ARCHS
from mlexp.maze.data import Mazes, Recipe, mazes
from mlexp.maze.models import build
from mlexp.maze.objective import Batches, pointer_loss
from mlexp.maze.sizes import SIZES, Size
from tests.adamw import by_hand, schedule

from .plain import best_moves, neighbour, search

MINI = Size(16, 2, 24, 2, 1e-3)
LEAST = 9


@pytest.fixture(scope="module")
def known():
    return mazes(Recipe(5, 11, 3, LEAST, "dfs_loops"), workers=1)


@given(
    R=st.integers(1, 3), B=st.integers(1, 4), N=st.integers(1, 5), seed=st.integers(0, 2**31 - 1),
)  # fmt: skip
@settings(max_examples=40)
def test_the_loss_is_minus_the_log_of_all_good_moves_together(R, B, N, seed):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(R, B, N, 4)) * 3
    best, counts = random.random((B, N, 4)) < 0.4, random.random((B, N)) < 0.7
    counts[:, 0] = True  # a maze without a cell to learn from is none
    best[..., 0] |= counts & ~best.any(-1)
    per_maze = []
    for r in range(R):
        for b in range(B):
            p = np.exp(logits[r, b]) / np.exp(logits[r, b]).sum(-1, keepdims=True)
            per_maze.append(np.mean([-math.log(p[n][best[b, n]].sum()) for n in range(N) if counts[b, n]]))
    loss = pointer_loss(*map(torch.from_numpy, (logits, best, counts)))
    assert loss.item() == pytest.approx(np.mean(per_maze))


def corners(walls, n):
    """The eight images of a maze's walls, as sets of the passages between cells."""
    ways = {tuple(sorted((c, neighbour(c, m, n)))) for c in range(n * n) for m in range(4) if walls[c][m]}
    turns = [lambda r, c: (r, c), lambda r, c: (c, n - 1 - r), lambda r, c: (n - 1 - r, n - 1 - c),
             lambda r, c: (n - 1 - c, r)]  # fmt: skip
    images = []
    for mirrored in (False, True):
        for turn in turns:

            def to(cell, turn=turn, mirrored=mirrored):
                row, column = turn(*divmod(cell, n))
                return row * n + (n - 1 - column if mirrored else column)

            images.append(frozenset(tuple(sorted(map(to, way))) for way in ways))
    return images


def epoch(batches, number):
    """The items of one epoch: (walls (N, 4), start, goal, best moves, cells that count) a maze."""
    steps = range(number * batches.per_epoch, (number + 1) * batches.per_epoch)
    for x, best, counts in (batches(step) for step in steps):
        for item in range(len(x)):
            ends = (x[item, :, 4 + k].nonzero().flatten().tolist() for k in (0, 1))
            (start,), (goal,) = ends
            yield x[item, :, :4].bool().tolist(), start, goal, best[item].tolist(), counts[item].tolist()


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("loss", ["dense", "path"])
def test_an_epoch_is_every_training_maze_once_and_its_labels_are_a_search_s(known, augment, loss):
    batches = Batches(known, 4, 5, augment=augment, min_length=LEAST, loss=loss)
    assert batches.per_epoch == 3 and [len(batches(step)[0]) for step in range(3)] == [4, 4, 3]
    images = [corners(walls.tolist(), 5) for walls in known.open]
    turned, ends = Counter(), set()
    for number in range(6):
        seen = []
        for walls, start, goal, best, counts in epoch(batches, number):
            me = corners(walls, 5)[0]
            (source,) = (i for i, own in enumerate(images) if me in own)
            seen.append(source)
            turned[images[source].index(me)] += 1
            ends.add((source, start, goal))
            if not augment:
                assert (start, goal) == (known.start[source], known.goal[source])
            d, back = search(walls, goal), search(walls, start)
            assert d[start] + 1 >= LEAST
            assert [{m for m in range(4) if row[m]} for row in best] == best_moves(walls, goal)
            on = [c != goal and (loss == "dense" or d[c] + back[c] == d[start]) for c in range(25)]
            assert counts == on
        assert sorted(seen) == list(range(11))
    assert set(turned) == (set(range(8)) if augment else {0})
    assert len(ends) > 50 if augment else len(ends) == 11


def test_order_symmetries_and_endpoints_are_the_seed_s_and_the_epoch_s(known):
    def items(seed, number):
        return list(epoch(Batches(known, 4, seed, min_length=LEAST), number))

    assert items(1, 0) == items(1, 0)
    assert len({str(items(seed, number)) for seed in (1, 2) for number in (0, 1)}) == 4
    plain = [[w for w, *_ in epoch(Batches(known, 4, seed, augment=False), n)] for seed in (1, 2) for n in (0, 1)]
    assert len(set(map(str, plain))) == 4


def test_cells_without_a_way_to_the_goal_do_not_count():
    walls = np.zeros((1, 9, 4), bool)
    walls[0, 0, 3] = walls[0, 1, 2] = True
    alone = Mazes(walls, np.array([0]), np.array([1]), np.array([2]))
    _, best, counts = Batches(alone, 1, 0, augment=False)(0)
    assert counts.tolist() == [[True] + 8 * [False]]
    assert pointer_loss(torch.zeros(1, 1, 9, 4), best, counts).item() == pytest.approx(math.log(4))


class Doubles(Batches):
    def __call__(self, step):
        x, *rest = super().__call__(step)
        return x.double(), *rest


def test_a_training_is_adamw_by_hand(known, monkeypatch):
    """Decay .01, gradients clipped to 1, warm-up of a twentieth of the steps, a cosine to a twentieth of the rate."""
    monkeypatch.setattr(learn, "pointer_loss", lambda logits, *rest: pointer_loss(logits.double(), *rest))
    batches, models = Doubles(known, 4, 5, min_length=LEAST), []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(build(MINI, ARCHS["poh_hrm"], 2, 2).double())
        torch.nn.init.normal_(models[-1].head.weight, std=3.0)  # gradients that are clipped
    ours, theirs = models
    losses = []

    def gradients(step):
        x, *labels = batches(step)
        losses.append(pointer_loss(theirs(x), *labels))
        return torch.autograd.grad(losses[-1], list(theirs.parameters()), allow_unused=True)

    by_hand(theirs.parameters(), gradients, 41, schedule(0.02, 41, 3, 0.05), decay=0.01, clip=1.0)
    found = learn.train(ours, batches, 41, 0.02).losses
    torch.testing.assert_close(found, [loss.item() for loss in losses], atol=1e-4, rtol=1e-3)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 1), (20, 1), (21, 2), (2000, 100), (2001, 100), (10**5, 100)])
def test_what_training_asks_of_the_loop(steps, warmup, monkeypatch):
    calls = []
    monkeypatch.setattr(learn, "fit", lambda model, loss, batches, recipe, **options: calls.append((recipe, options)))
    model, after, progress = build(MINI, ARCHS["baseline"], 1, 1), object(), object()
    learn.train(model, None, steps, 0.1, after=after, progress=progress)
    recipe = training.Recipe(steps, 0.1, warmup, weight_decay=0.01, clip=1.0, floor=0.05)
    assert calls == [(recipe, {"capture": True, "relieve": model.relieve, "after": after, "progress": progress})]


def test_training_goes_through_the_compiler_where_asked_to(known, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda loss: compiled.append(loss) or loss)
    for wanted in (False, True):
        model = build(MINI, ARCHS["baseline"], 1, 1)
        assert len(learn.train(model, Batches(known, 4, 0), 2, 1e-3, compiled=wanted).losses) == 2
        assert len(compiled) == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_in_the_dtype_that_is_asked_for_and_the_loss_in_float32(dtype, known):
    model, seen = build(MINI, ARCHS["baseline"], 1, 1), []
    model.blocks[0].qkv.register_forward_hook(lambda layer, args, out: seen.append(out.dtype))
    loss = learn.loss_in(dtype)(model, *Batches(known, 4, 0)(0))
    assert (seen, loss.dtype) == ([dtype], torch.float32)


def test_a_solver_is_its_size_arm_settings_and_seed():
    model = learn.solver("tiny", "poh_hrm", 3, 5, 8, seed=7)
    assert (model.iterations, model.gates.period, model.blocks[0].heads, model.training) == (3, 5, 8, True)
    torch.manual_seed(7)
    twin = build(SIZES["tiny"]._replace(heads=8), ARCHS["poh_hrm"], 3, 5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert not torch.equal(learn.solver("tiny", "poh_hrm", 3, 5, 8, seed=8).embed.weight, model.embed.weight)
    assert learn.solver("small", "baseline", 1, 1, None, 0).blocks[0].heads == 4


@pytest.mark.parametrize(("steps", "count", "want"), [(6, 3, [2, 4, 6]), (7, 3, [2, 4, 6]), (3, 10, [1, 2, 3])])
def test_snapshots_are_so_many_and_of_their_step(steps, count, want):
    model = torch.nn.Linear(1, 1, bias=False)
    states = learn.Snapshots(model, steps, count)
    for done in range(1, steps + 1):
        torch.nn.init.constant_(model.weight, done)
        states(done)
    assert {step: state["weight"].item() for step, state in states.states.items()} == {step: step for step in want}

"""Labels against plain search, symmetries, new endpoints, walks, floors and the oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlexp.maze.data import Recipe, mazes
from mlexp.maze.moves import FAR, distances, features, neighbours, new_endpoints, optimal_moves, symmetries, transform
from mlexp.maze.rollout import FLOORS, at_random, manhattan, optimal, oracle, walk

from .test_data import breadth_first


def load(n=6, count=60, generator="dfs", share=0.4):
    found = mazes(Recipe(n, count, 7, int(share * n * n) if generator == "dfs" else 2 * n, generator), workers=1)
    return found, *(torch.from_numpy(x) for x in (found.open, found.start, found.goal))


@pytest.mark.parametrize("generator", ["dfs", "dfs_loops"])
def test_distances_are_breadth_first_searchs(generator):
    found, open, start, goal = load(generator=generator)
    d = distances(open, goal)
    assert (d.gather(1, start[:, None])[:, 0] + 1 == torch.from_numpy(found.length)).all()
    for i in range(5):
        for cell in range(36):
            assert d[i, cell] + 1 == breadth_first(found.open[i], cell, found.goal[i])
    best = optimal_moves(open, d)
    ties = best.sum(-1)[torch.arange(36) != goal[:, None]]
    assert ties.min() == 1 and (ties.max() == 1 if generator == "dfs" else ties.max() > 1)
    assert not best[torch.arange(60), goal].any()


def test_a_cell_without_a_way_is_far():
    open = torch.zeros(1, 4, 4, dtype=torch.bool)
    open[0, 0, 3] = open[0, 1, 2] = True
    assert distances(open, torch.tensor([1])).tolist() == [[1, 0, FAR, FAR]]


@given(seed=st.integers(0, 2**31 - 1))
def test_labels_turn_with_the_maze(seed):
    _, open, start, goal = load()
    which = torch.randint(8, (60,), generator=torch.Generator().manual_seed(seed))
    turned = transform(open, start, goal, which)
    cells, moves = (table[which] for table in symmetries(6))
    best = optimal_moves(open, distances(open, goal))
    want = torch.zeros_like(best)
    for i in range(60):
        want[i, cells[i][:, None], moves[i][None]] = best[i]
    assert torch.equal(optimal_moves(turned[0], distances(turned[0], turned[2])), want)
    assert torch.equal(transform(open, start, goal, torch.zeros(60, dtype=torch.int64))[0], open)
    assert len({tuple(c.tolist()) for c in symmetries(6)[0]}) == 8


@given(seed=st.integers(0, 2**31 - 1), least=st.sampled_from([2, 14, 20]))
def test_new_endpoints_are_far_enough_and_their_distances_right(seed, least):
    _, open, start, goal = load()
    again = [new_endpoints(open, start, goal, least, torch.Generator().manual_seed(seed)) for _ in range(2)]
    s, g, d = again[0]
    assert all(torch.equal(a, b) for a, b in zip(*again, strict=True))
    assert torch.equal(d, distances(open, g))
    kept = (s == start) & (g == goal)
    assert (d.gather(1, s[:, None])[:, 0][~kept] >= least - 1).all() and not kept.all()


@pytest.mark.parametrize("generator", ["dfs", "dfs_loops"])
def test_the_oracle_solves_everything_optimally(generator):
    found, open, start, goal = load(generator=generator)
    length = torch.from_numpy(found.length)
    for strict in (False, True):
        walks = walk(oracle(open, start, goal), open, start, goal, strict)
        assert walks.solved.all() and optimal(walks, length).all() and (walks.moves + 1 == length).all()
    path, i = walks.path[0].tolist(), int(walks.moves[0])
    assert path[0] == start[0] and path[i] == goal[0] and set(path[i + 1 :]) <= {-1, int(goal[0])}


def test_walks_obey_the_walls_and_reach_what_a_single_walk_does():
    _, open, start, goal = load(generator="dfs_loops")
    logits = torch.randn(60, 36, 4, generator=torch.Generator().manual_seed(0))
    together, to = walk(logits, open, start, goal), neighbours(6)
    for i in range(60):
        cell, seen = int(start[i]), {int(start[i])}
        while cell != goal[i]:
            moves = [m for m in range(4) if open[i, cell, m] and int(to[cell, m]) not in seen]
            if not moves:
                break
            cell = int(to[cell, max(moves, key=lambda m: float(logits[i, cell, m]))])
            seen.add(cell)
        assert bool(together.solved[i]) == (cell == goal[i]) and int(together.moves[i]) == len(seen) - 1
    strict = walk(logits, open, start, goal, strict=True)
    assert strict.solved.sum() <= together.solved.sum() and (strict.moves <= together.moves).all()


def test_on_trees_solved_is_optimal_and_with_loops_it_is_more():
    for generator in ("dfs", "dfs_loops"):
        found, open, start, goal = load(count=200, generator=generator)
        walks = walk(FLOORS["random"](open, start, goal, torch.Generator().manual_seed(1)), open, start, goal)
        good = optimal(walks, torch.from_numpy(found.length))
        assert torch.equal(good, walks.solved) if generator == "dfs" else good.sum() < walks.solved.sum()


def test_the_floors_are_where_they_were_measured():
    """8 x 8, 40 % filter: random about 6.7 %, Manhattan about 11 % (four standard errors of 2000 walks)."""
    _, open, start, goal = load(8, 200)
    for floor, want in ((at_random, 0.067), (manhattan, 0.11)):
        random = torch.Generator().manual_seed(3)
        share = np.mean(
            [walk(floor(open, start, goal, random), open, start, goal).solved.float().mean() for _ in range(10)]
        )
        assert abs(share - want) < 0.045, floor


def test_features_show_walls_start_and_goal():
    _, open, start, goal = load()
    x = features(open, start, goal)
    assert x.shape == (60, 36, 6) and torch.equal(x[..., :4].bool(), open)
    assert (
        (x[..., 4].argmax(1) == start).all() and (x[..., 5].argmax(1) == goal).all() and (x[..., 4:].sum(1) == 1).all()
    )

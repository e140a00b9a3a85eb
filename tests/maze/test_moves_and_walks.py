"""Labels against plain search, symmetries, new endpoints, walks, floors and the oracle."""

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from mlexp.maze.data import Recipe, mazes
from mlexp.maze.moves import FAR, distances, features, new_endpoints, optimal_moves, symmetries, transform
from mlexp.maze.rollout import FLOORS, Walks, at_random, manhattan, optimal, oracle, walk

from .plain import best_moves, follow, neighbour, search


@functools.cache
def load(n=6, count=60, generator="dfs", share=0.4):
    found = mazes(Recipe(n, count, 7, int(share * n * n) if generator == "dfs" else 2 * n, generator), workers=1)
    return found, *(torch.from_numpy(x) for x in (found.open, found.start, found.goal))


@pytest.mark.parametrize("generator", ["dfs", "dfs_loops"])
def test_distances_are_breadth_first_searchs(generator):
    found, open, start, goal = load(generator=generator)
    d = distances(open, goal)
    assert (d.gather(1, start[:, None])[:, 0] + 1 == torch.from_numpy(found.length)).all()
    best = optimal_moves(open, d)
    for i in range(20):
        assert d[i].tolist() == search(found.open[i], found.goal[i])
        found_moves = [{m for m in range(4) if row[m]} for row in best[i].tolist()]
        assert found_moves == best_moves(found.open[i], found.goal[i])
    ties = best.sum(-1)[torch.arange(36) != goal[:, None]]
    assert ties.min() == 1 and (ties.max() == 1 if generator == "dfs" else ties.max() > 1)
    assert not best[torch.arange(60), goal].any()


def test_a_cell_without_a_way_is_far():
    open = torch.zeros(1, 4, 4, dtype=torch.bool)
    open[0, 0, 3] = open[0, 1, 2] = True
    assert distances(open, torch.tensor([1])).tolist() == [[1, 0, FAR, FAR]]
    open[0, 2, 3] = open[0, 3, 2] = True  # the other two cells are joined, far from the goal: no move is a good one
    best = optimal_moves(open, distances(open, torch.tensor([1])))
    assert best.sum() == 1 and best[0, 0, 3]


def corridor(n):
    """A maze that is one corridor through all cells, boustrophedon: (open (1, N, 4), its cells from end to end)."""
    cells = [r * n + (c if r % 2 == 0 else n - 1 - c) for r in range(n) for c in range(n)]
    open = torch.zeros(1, n * n, 4, dtype=torch.bool)
    for a, b in itertools.pairwise(cells):
        for one, other in ((a, b), (b, a)):
            open[0, one, {-n: 0, n: 1, -1: 2, 1: 3}[other - one]] = True
    return open, cells


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("strict", [False, True])
def test_the_longest_way_there_is_is_seen_and_walked_to_its_end(n, strict):
    open, cells = corridor(n)
    start, goal = torch.tensor([cells[-1]]), torch.tensor([cells[0]])
    d = distances(open, goal)
    assert [d[0, cell].item() for cell in cells] == list(range(n * n))
    walks = walk(oracle(open, start, goal), open, start, goal, strict)
    assert walks.solved.all() and walks.path[0].tolist() == cells[::-1] and walks.moves.tolist() == [n * n - 1]


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


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31 - 1), least=st.sampled_from([2, 14, 20]))
def test_new_endpoints_are_far_enough_and_their_distances_right(seed, least):
    _, open, start, goal = load()
    again = [new_endpoints(open, start, goal, least, torch.Generator().manual_seed(seed)) for _ in range(2)]
    s, g, d = again[0]
    assert all(torch.equal(a, b) for a, b in zip(*again, strict=True))
    assert torch.equal(d, distances(open, g))
    kept = (s == start) & (g == goal)
    assert (d.gather(1, s[:, None])[:, 0][~kept] >= least - 1).all() and not kept.all()


def far_pairs(open, least, start, goal):
    """{(start, goal): probability}: a goal from all cells, a start from those far enough; where none is, the old."""
    chances, cells = {}, range(len(open))
    for to in cells:
        d = search(open, to)
        far = [cell for cell in cells if d[cell] is not None and d[cell] >= least - 1]
        for pair in [(cell, to) for cell in far] or [(start, goal)]:
            chances[pair] = chances.get(pair, 0) + 1 / len(cells) / (len(far) or 1)
    return chances


@pytest.mark.parametrize("least", [2, 3, 4, 5])
def test_new_endpoints_are_drawn_from_all_that_are_far_enough(least):
    """On nine cells of which two cannot be reached from the other seven: every pair as often as it must be."""
    open = corridor(3)[0].repeat(6000, 1, 1)
    open[:, 7, 3] = open[:, 8, 2] = False  # the corridor 0 1 2 5 4 3 6 7, and 8
    open[:, 6, 3] = open[:, 7, 2] = False  # 0 1 2 5 4 3 6, and 7, and 8
    start, goal = (torch.full((6000,), cell) for cell in (0, 1))
    s, g, d = new_endpoints(open, start, goal, least, torch.Generator().manual_seed(least))
    want = far_pairs(open[0].tolist(), least, 0, 1)
    pairs = list(zip(s.tolist(), g.tolist(), strict=True))
    assert set(pairs) == set(want)
    assert chisquare([pairs.count(pair) for pair in want], [6000 * p for p in want.values()]).pvalue > 1e-4
    by_goal = {to: [FAR if x is None else x for x in search(open[0].tolist(), to)] for to in range(9)}
    assert d.tolist() == [by_goal[to] for to in g.tolist()]


@pytest.mark.parametrize("generator", ["dfs", "dfs_loops"])
def test_the_oracle_solves_everything_optimally(generator):
    found, open, start, goal = load(generator=generator)
    length = torch.from_numpy(found.length)
    for strict in (False, True):
        walks = walk(oracle(open, start, goal), open, start, goal, strict)
        assert walks.solved.all() and optimal(walks, length).all() and (walks.moves + 1 == length).all()
    path, i = walks.path[0].tolist(), int(walks.moves[0])
    assert path[0] == start[0] and path[i] == goal[0] and set(path[i + 1 :]) <= {-1, int(goal[0])}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("generator", ["dfs", "dfs_loops"])
def test_walks_are_those_of_single_walkers(generator, strict):
    _, open, start, goal = load(generator=generator)
    logits = (4 if strict else 1.5) * oracle(open, start, goal) + torch.randn(
        60, 36, 4, generator=torch.Generator().manual_seed(0)
    )
    together = walk(logits, open, start, goal, strict)
    for i in range(60):
        solved, path = follow(logits[i].tolist(), open[i].tolist(), start[i], goal[i], strict)
        assert (bool(together.solved[i]), int(together.moves[i])) == (solved, len(path) - 1)
        walked = together.path[i].tolist()
        assert walked[: len(path)] == path and set(walked[len(path) :]) <= {-1}
    assert 5 < together.solved.sum() < 60


@given(
    length=st.integers(2, 400),
    more=st.integers(0, 40),
    solved=st.booleans(),
)
@example(length=60, more=3, solved=True)  # exactly a twentieth, which float32 rounds up
def test_a_twentieth_longer_is_optimal_and_no_more(length, more, solved):
    walks = Walks(torch.tensor([solved]), torch.tensor([length - 1 + more]), torch.empty(1, 0))
    assert optimal(walks, torch.tensor([length])).item() == (solved and 20 * more <= length)


@pytest.mark.parametrize("n", [2, 5])
def test_the_manhattan_floor_goes_where_the_goal_is_nearer_and_ties_at_random(n):
    goals = torch.arange(n * n)
    logits = manhattan(torch.ones(n * n, n * n, 4, dtype=torch.bool), goals, goals, torch.Generator().manual_seed(0))
    for goal in range(n * n):
        for cell in range(n * n):
            for move in range(4):
                (r, c), (gr, gc) = divmod(neighbour(cell, move, n), n), divmod(goal, n)
                inside = 0 <= r < n and (move < 2 or r == cell // n)
                if inside:
                    assert 0 <= logits[goal, cell, move] + abs(r - gr) + abs(c - gc) <= 1.1e-3
    assert len(logits.unique()) > n**4  # ties are broken, each on its own


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

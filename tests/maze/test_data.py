"""Data sets: the same on any number of workers, in any process and from the cache; filtered, disjoint, well formed."""

import random
from collections import deque

import numpy as np
import pytest

from mlexp.maze import data
from mlexp.maze.data import Mazes, Recipe, mazes, moves_of

SMALL = Recipe(n=6, count=40, seed=42, min_length=15)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def same(a: Mazes, b: Mazes) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def breadth_first(open, start, goal):
    """Cells on the shortest way, by the plainest search there is."""
    n, queue, far = round(len(open) ** 0.5), deque([start]), {start: 1}
    while queue:
        cell = queue.popleft()
        for move, step in enumerate((-n, n, -1, 1)):
            if open[cell, move] and cell + step not in far:
                far[cell + step] = far[cell] + 1
                queue.append(cell + step)
    return far.get(goal)


@pytest.mark.parametrize("generator", data.GENERATORS)
def test_mazes_are_well_formed_and_long_enough(generator):
    recipe = Recipe(6, 40, 42, 12, generator)
    found = mazes(recipe, workers=1)
    assert len(found) == 40 and found.n == 6 and found.open.shape == (40, 36, 4)
    walls = found.open.reshape(40, 6, 6, 4)
    assert (walls[:, :-1, :, 1] == walls[:, 1:, :, 0]).all() and (walls[:, :, :-1, 3] == walls[:, :, 1:, 2]).all()
    assert not walls[:, 0, :, 0].any() and not walls[:, -1, :, 1].any()
    assert not walls[:, :, 0, 2].any() and not walls[:, :, -1, 3].any()
    passages = found.open.sum((1, 2)) // 2
    assert (passages == 35).all() if generator == "dfs" else (passages > 35).any()  # a tree has N - 1
    for i in range(40):
        assert breadth_first(found.open[i], found.start[i], found.goal[i]) == found.length[i] >= 12


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_change_nothing(workers, monkeypatch, tmp_path):
    one = mazes(SMALL, workers=1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert same(mazes(SMALL, workers=workers), one)


def test_the_cache_gives_back_what_was_made_and_survives_damage(monkeypatch):
    made, said = mazes(SMALL, workers=1), []
    with monkeypatch.context() as patched:
        patched.setattr(data, "_shard", lambda *_: pytest.fail("made again"))
        assert same(mazes(SMALL), made)
    (path,) = data.cache_dir().glob("mazes-*.npz")
    path.write_bytes(path.read_bytes()[:100])
    assert same(mazes(SMALL, workers=1, progress=lambda *what: said.append(what)), made)
    assert said[-1][:2] == (40, 40) and "6 x 6 mazes" in said[-1][2]


def test_the_global_generators_stay_as_they_are():
    random.seed(1)
    np.random.seed(1)
    want = random.getstate(), np.random.get_state()[1].tolist()
    mazes(SMALL, workers=1)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == want


def test_seeds_give_disjoint_layouts_and_no_repeats():
    sets = [set(mazes(Recipe(6, 40, seed, 15), workers=1).layouts()) for seed in (1, 2)]
    assert len(sets[0]) == len(sets[1]) == 40 and not sets[0] & sets[1]
    prefix = mazes(Recipe(6, 10, 1, 15), workers=1)
    assert set(prefix.layouts()) < sets[0]  # fewer mazes are the first of more


def test_passages_become_moves_both_ways():
    connections = np.zeros((1, 2, 2, 2), bool)
    connections[0, 0, 0, 1] = connections[0, 1, 1, 0] = True  # (0, 1) down; (1, 0) right
    moves = moves_of(connections)[0]
    assert moves.tolist() == [
        [False] * 4,
        [False, True, False, False],
        [False] * 3 + [True],
        [True, False, True, False],
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 1}, "n=1: expected an integer of at least 2"),
        ({"count": 0}, "count=0"),
        ({"min_length": 37}, "min_length=37: a 6 x 6 maze has 36 cells"),
        ({"generator": "wilson"}, "unknown generator 'wilson'; choose from dfs, dfs_loops"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_recipes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**(vars(SMALL) | change))


def test_a_filter_that_nothing_passes_is_told_of(monkeypatch):
    monkeypatch.setattr(data, "SHARD", 4)
    with pytest.raises(RuntimeError, match="none of 160 mazes has a solution of 36 cells"):
        mazes(Recipe(6, 1, 0, 36), workers=1)

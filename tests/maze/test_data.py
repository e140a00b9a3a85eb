"""Data sets: the same on any number of workers, in any process and from the cache; filtered, disjoint, well formed."""

import contextlib
import itertools
import random
import time
from dataclasses import replace

import numpy as np
import pytest
from maze_dataset import MazeDataset

from mlexp.maze import data
from mlexp.maze.data import Mazes, Recipe, mazes, moves_of

from .plain import search

SMALL = Recipe(n=6, count=40, seed=42, min_length=15)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def same(a: Mazes, b: Mazes) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def fake_shard(recipe, k):
    """Two mazes of random walls, which know their shard by their length."""
    walls = np.random.default_rng([k, *recipe.generator.encode(), recipe.n, recipe.seed]).random((2, recipe.n**2, 4))
    return Mazes(walls < 0.5, np.arange(2), np.arange(2) + 2, np.array([k, k]))


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
        assert search(found.open[i], found.goal[i])[found.start[i]] + 1 == found.length[i] >= 12


def test_workers_change_nothing(monkeypatch, tmp_path):
    one = mazes(SMALL, workers=1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert same(mazes(SMALL, workers=2), one)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_shards_come_in_order_whichever_is_made_first(workers, monkeypatch):
    def slowly(recipe, k):
        time.sleep(0.02 * (k % 2 == 0))  # the even ones last
        return fake_shard(recipe, k)

    monkeypatch.setattr(data, "_shard", slowly)
    monkeypatch.setattr(data, "_worker", lambda recipe: contextlib.nullcontext(recipe))
    monkeypatch.setattr(data, "_ask", lambda idle, k: slowly(SMALL, k))
    assert [part.length[0] for part in itertools.islice(data._shards(SMALL, workers), 7)] == list(range(7))


@pytest.fixture
def raw(monkeypatch):
    """What maze-dataset made, shard by shard: (its config, its mazes)."""
    made, make = [], MazeDataset.from_config.__func__

    def noted(cls, config, **options):
        made.append((config, make(cls, config, **options)))
        return made[-1][1]

    monkeypatch.setattr(MazeDataset, "from_config", classmethod(noted))
    return made


@pytest.mark.parametrize(("generator", "share"), [("dfs", 0), ("dfs_loops", 0.1)])
def test_a_data_set_is_all_that_maze_dataset_made_and_the_filter_passed(generator, share, raw, monkeypatch):
    monkeypatch.setattr(data, "SHARD", 24)
    recipe = Recipe(5, 45, 7, 9, generator)
    found = mazes(recipe, workers=1)
    kept = [maze for _, some in raw for maze in some if len(maze.solution) >= 9][:45]
    assert len(kept) == len(found) == 45 and min(found.length) == 9  # the shortest that may pass did
    assert len(raw) > 2 and len({config.seed for config, _ in raw}) == len(raw)
    assert all(config.maze_ctor_kwargs.get("p", 0) == share and len(some) == 24 for config, some in raw)
    for i, maze in enumerate(kept):
        assert found.length[i] == len(maze.solution)
        ends = [divmod(int(cell), 5) for cell in (found.start[i], found.goal[i])]
        assert ends == [tuple(maze.solution[0]), tuple(maze.solution[-1])]
        for cell in range(25):
            here = np.array(divmod(cell, 5))
            ways = [tuple(here + step) for step in ((-1, 0), (1, 0), (0, -1), (0, 1))]
            open_ways = {way for way, free in zip(ways, found.open[i, cell], strict=True) if free}
            assert open_ways == set(map(tuple, maze.get_coord_neighbors(here)))


@pytest.mark.parametrize(
    "change", [{"n": 5}, {"count": 5}, {"seed": 43}, {"min_length": 14}, {"generator": "dfs_loops"}]
)
def test_each_part_of_a_recipe_has_its_own_file(change, monkeypatch):
    monkeypatch.setattr(data, "_shard", fake_shard)
    recipe = replace(SMALL, count=4)
    one = mazes(recipe, workers=1)
    other = mazes(replace(recipe, **change), workers=1)
    assert len(list(data.cache_dir().glob("mazes-*.npz"))) == 2
    assert "min_length" in change or not same(one, other)
    assert len(one) == 4 and len(other) == change.get("count", 4)


def test_a_data_set_of_another_version_or_shard_is_not_taken(monkeypatch):
    monkeypatch.setattr(data, "_shard", fake_shard)
    mazes(SMALL, workers=1)
    with monkeypatch.context() as patched:
        patched.setattr(data.metadata, "version", lambda name: {"maze-dataset": "9.9"}[name])
        mazes(SMALL, workers=1)
    monkeypatch.setattr(data, "SHARD", 257)
    mazes(SMALL, workers=1)
    assert len(list(data.cache_dir().glob("mazes-*.npz"))) == 3


def test_layouts_differ_where_one_wall_does():
    walls = np.zeros((3, 9, 4), bool)
    walls[1, 8, 0] = walls[2, 0, 3] = True
    assert len(set(Mazes(walls, *(np.zeros(3, int),) * 3).layouts())) == 3


def test_the_cache_gives_back_what_was_made_and_survives_damage(monkeypatch):
    made, messages = mazes(SMALL, workers=1), []
    with monkeypatch.context() as patched:
        patched.setattr(data, "_shard", lambda *_: pytest.fail("made again"))
        assert same(mazes(SMALL), made)
    (path,) = data.cache_dir().glob("mazes-*.npz")
    path.write_bytes(path.read_bytes()[:100])
    assert same(mazes(SMALL, workers=1, progress=lambda *what: messages.append(what)), made)
    assert messages[-1][:2] == (40, 40) and "6 x 6 mazes" in messages[-1][2]


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

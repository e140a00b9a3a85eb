"""Mazes from maze-dataset: generated in shards, filtered by path length, cached; numpy only, so that collecting is
cheap.

M mazes on n x n cells, N = n * n. A cell's number is row * n + column; moves are up, down, left, right.
maze-dataset's own parallel generation repeats mazes (its workers share a seed), so a data set is the mazes that pass
the filter of shard 0, 1, 2, ... in this order, each with a seed of its own: the same whatever the number of workers.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import queue
import random
import subprocess
import sys
import warnings
import zipfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path

import numpy as np

from mlexp.extras import need
from mlexp.store import Progress, cache_dir, cached

SHARD = 256  # raw mazes of one shard: part of what a data set is
GENERATORS = {
    "dfs": ("gen_dfs", {}),  # perfect mazes: one simple path between any two cells
    "dfs_loops": ("gen_dfs_percolation", {"p": 0.1}),  # the same with a tenth of the walls opened
}

Idle = queue.SimpleQueue[subprocess.Popen[bytes]]  # the workers that wait for a shard's number


@dataclass(frozen=True)
class Recipe:
    """What a data set is made of: `count` mazes of n x n cells whose solution has at least `min_length` cells."""

    n: int
    count: int
    seed: int
    min_length: int
    generator: str = "dfs"

    def __post_init__(self) -> None:
        for name, minimum in (("n", 2), ("count", 1), ("seed", 0), ("min_length", 2)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
                raise ValueError(f"{name}={value!r}: expected an integer of at least {minimum}")
        if self.min_length > self.n * self.n:
            raise ValueError(f"min_length={self.min_length}: a {self.n} x {self.n} maze has {self.n * self.n} cells")
        if self.generator not in GENERATORS:
            raise ValueError(f"unknown generator {self.generator!r}; choose from {', '.join(GENERATORS)}")


@dataclass(frozen=True)
class Mazes:
    """open (M, N, 4) bool: the moves that no wall stops; start, goal, length (M,): cells, and cells of the solution."""

    open: np.ndarray
    start: np.ndarray
    goal: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    @property
    def n(self) -> int:
        return math.isqrt(self.open.shape[1])

    def layouts(self) -> list[bytes]:
        """A hash of the walls of every maze, by which data sets are compared."""
        return [hashlib.sha256(walls.tobytes()).digest() for walls in self.open]


def mazes(recipe: Recipe, workers: int | None = None, progress: Progress = None) -> Mazes:
    """The data set of a recipe, from the cache or made with `workers` processes (None = one a CPU).

    Raises RuntimeError where hardly any maze is long enough. The global random generators stay as they are.
    """
    path = cache_dir() / f"mazes-{_digest(recipe)}.npz"
    workers = workers or len(os.sched_getaffinity(0))
    found: Mazes = cached(path, lambda: _pack(_generate(recipe, workers, progress)), _unpack, progress)
    return found


def _digest(recipe: Recipe) -> str:
    need("mlexp.maze", "maze_dataset")
    terms = asdict(recipe) | {"maze_dataset": metadata.version("maze-dataset"), "shard": SHARD}
    return hashlib.sha256(json.dumps(terms, sort_keys=True).encode()).hexdigest()[:16]


def _pack(found: Mazes) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **vars(found))
    return content.getvalue()


def _unpack(content: bytes) -> Mazes:
    """Raises ValueError or KeyError for what `_pack` did not make."""
    try:
        with np.load(io.BytesIO(content)) as arrays:
            return Mazes(**{field.name: arrays[field.name] for field in fields(Mazes)})
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(str(error)) from None


def _generate(recipe: Recipe, workers: int, progress: Progress) -> Mazes:
    parts: list[Mazes] = []
    have = 0
    for part in _shards(recipe, workers):
        parts.append(part)
        have += len(part)
        if progress:
            progress(min(have, recipe.count), recipe.count, f"{recipe.n} x {recipe.n} mazes ({len(parts)} shards)")
        if have >= recipe.count:
            break
        if len(parts) == 40 and not have:
            raise RuntimeError(f"none of {40 * SHARD} mazes has a solution of {recipe.min_length} cells: {recipe}")
    return Mazes(*(np.concatenate([getattr(p, f.name) for p in parts])[: recipe.count] for f in fields(Mazes)))


def _shards(recipe: Recipe, workers: int) -> Iterator[Mazes]:
    """Shards in order without end; with several workers some are made in advance."""
    if workers == 1:
        yield from (_shard(recipe, k) for k in range(10**6))
        return
    idle: Idle = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        for _ in range(workers):
            idle.put(stack.enter_context(_worker(recipe)))
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        ahead = deque(pool.submit(_ask, idle, k) for k in range(workers))
        try:
            for k in range(workers, 10**6):
                ahead.append(pool.submit(_ask, idle, k))
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


@contextlib.contextmanager
def _worker(recipe: Recipe) -> Iterator[subprocess.Popen[bytes]]:
    """A process of our own that makes shards: multiprocessing would run its caller's script again, or fork its
    threads."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", __name__, json.dumps(asdict(recipe))]
    environment = os.environ | {"PYTHONPATH": path}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def _ask(idle: Idle, k: int) -> Mazes:
    """Shard k from the next worker that is free."""
    process = idle.get()
    assert process.stdin and process.stdout
    process.stdin.write(f"{k}\n".encode())
    process.stdin.flush()
    size = int.from_bytes(process.stdout.read(8), "little")
    content = process.stdout.read(size)
    if not size or len(content) < size:
        raise RuntimeError(f"a process that makes mazes died over shard {k}, status {process.wait()}")
    idle.put(process)
    return _unpack(content)


def _serve() -> None:
    """What a worker does: shard numbers in, one a line; the length in 8 bytes and the shard out."""
    recipe, out = Recipe(**json.loads(sys.argv[1])), sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing else may be written to the pipe
    for line in sys.stdin:
        content = _pack(_shard(recipe, int(line)))
        out.write(len(content).to_bytes(8, "little") + content)
        out.flush()


def _shard(recipe: Recipe, k: int) -> Mazes:
    """The mazes of shard k that are long enough."""
    with _own_generators(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # maze-dataset warns of every seed that is not 42
        from maze_dataset import LatticeMazeGenerators, MazeDataset, MazeDatasetConfig

        name, options = GENERATORS[recipe.generator]
        identity = f"{recipe.seed}/{k}/{recipe.n}/{recipe.generator}".encode()
        seed = int.from_bytes(hashlib.sha256(identity).digest()[:4], "little") % 2**31
        config = MazeDatasetConfig(name="mlexp", grid_n=recipe.n, n_mazes=SHARD, seed=seed, maze_ctor_kwargs=options,
                                   maze_ctor=getattr(LatticeMazeGenerators, name))  # fmt: skip
        raw = MazeDataset.from_config(config, load_local=False, save_local=False, do_download=False, gen_parallel=False)
    chosen = [maze for maze in raw if len(maze.solution) >= recipe.min_length]
    walls = np.array([maze.connection_list for maze in chosen], bool).reshape(-1, 2, recipe.n, recipe.n)
    ends = np.array([[maze.solution[0], maze.solution[-1]] for maze in chosen], np.int64).reshape(-1, 2, 2)
    cells = ends @ np.array([recipe.n, 1])
    return Mazes(moves_of(walls), cells[:, 0], cells[:, 1], np.array([len(m.solution) for m in chosen], np.int64))


def moves_of(connections: np.ndarray) -> np.ndarray:
    """maze-dataset's passages (M, 2, n, n), down from and right of a cell, as open moves (M, N, 4)."""
    down, right = connections[:, 0], connections[:, 1]
    moves = np.zeros((*down.shape, 4), bool)
    moves[:, 1:, :, 0] = moves[:, :-1, :, 1] = down[:, :-1]
    moves[:, :, 1:, 2] = moves[:, :, :-1, 3] = right[:, :, :-1]
    return moves.reshape(len(down), down.shape[1] * down.shape[2], 4)


@contextlib.contextmanager
def _own_generators() -> Iterator[None]:
    """Building a maze-dataset config reseeds Python's and numpy's global generators: put them back."""
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


if __name__ == "__main__":
    _serve()

"""Does the gain of dynamic head routing grow with model size?  Fixed: mazes, training budget, objective, optimiser."""

from dataclasses import dataclass, replace

from mlexp.maze.data import GENERATORS, Recipe
from mlexp.maze.sizes import SIZES

ARCHS = (
    *("baseline", "poh_hrm", "poh_r1", "poh_uniform", "poh_static", "poh_t_inf"),
    *("baseline_wide", "baseline_deep", "baseline_long"),
)
LOSSES = ("dense", "path")
SINGULAR = {"sizes": "size", "archs": "arch"}
FIVE = ("tiny", "small", "medium", "large", "xl")
SNAPSHOTS = 10  # points of the curve of accuracy over training
SAMPLES = 4  # test mazes whose walks are kept to be drawn
TEST_SEED = 100_000  # added to a cell's seed for its test mazes


@dataclass(frozen=True)
class Settings:
    """The seed's numbers, and ours where it has none; test is 1000 mazes (the seed's 100: `--set test=100`).

    min_path: cells of a solution over cells of the maze, at least (for `dfs_loops` over twice the side); heads and lr:
    instead of a size's own; larger: sides of the mazes that generalisation is tested on, with `test` / 5 mazes each.
    """

    sizes: tuple[str, ...] = FIVE
    seeds: tuple[int, ...] = (42, 43, 44, 45, 46)
    archs: tuple[str, ...] = ARCHS
    maze_size: int = 16
    generator: str = "dfs"
    min_path: float = 0.4
    train: int = 1000
    test: int = 1000
    epochs: int = 50
    batch: int = 32
    R: int = 4
    T: int = 4
    heads: int | None = None
    lr: float | None = None
    compile: bool = False
    augment: bool = True
    loss: str = "dense"
    larger: tuple[int, ...] = (20, 24)

    def __post_init__(self):
        for what, known in (("sizes", SIZES), ("archs", ARCHS), ("generator", GENERATORS), ("loss", LOSSES)):
            values = getattr(self, what)
            for value in (values,) if isinstance(values, str) else values:
                if value not in known:
                    raise ValueError(f"unknown {SINGULAR.get(what, what)} {value!r}; choose from {', '.join(known)}")
        for name in ("train", "test", "epochs", "batch", "R", "T"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1")
        if self.lr is not None and self.lr <= 0:
            raise ValueError(f"lr is {self.lr}; above 0")
        for size in self.sizes:
            if self.heads is not None and (self.heads < 1 or SIZES[size].width % (4 * self.heads)):
                raise ValueError(f"heads={self.heads}: must divide {SIZES[size].width} / 4 at size {size}")
        for n in (self.maze_size, *self.larger):
            Recipe(n, 1, 0, self.least(n), self.generator)

    def least(self, n: int) -> int:
        """The fewest cells that the solution of an n x n maze may have."""
        return 2 * n if self.generator == "dfs_loops" else max(2, int(self.min_path * n * n))


SMALL = Settings(sizes=("tiny",), seeds=(42, 43, 44), archs=("baseline", "poh_hrm", "poh_uniform"), maze_size=8,
                 test=300, epochs=8, batch=8, larger=(10,))  # fmt: skip
SETTINGS = {
    "smoke": replace(SMALL, seeds=(42,), archs=ARCHS, maze_size=5, train=32, test=20, epochs=1, larger=(6,)),
    "quick": SMALL,
    "full": Settings(),
}
AXES = {"size": "sizes", "seed": "seeds", "arch": "archs"}
METRICS = {
    "excess": ("fraction", "lower", "solution over shortest path, minus 1, mean over solved mazes"),
    "strict_accuracy": ("fraction", "higher", "goal reached by raw argmax, walls and visited cells not masked"),
    "cell_accuracy": ("fraction", "higher", "cells whose best move is optimal"),
    "larger_accuracy": ("fraction", "higher", "accuracy on mazes larger than any trained on"),
    "random_accuracy": ("fraction", "none", "floor: a walk that goes anywhere it may"),
    "manhattan_accuracy": ("fraction", "none", "floor: the cell nearer to the goal as the crow flies"),
    "oracle_accuracy": ("fraction", "none", "ceiling: the shortest path"),
    "uniform_gates_accuracy": ("fraction", "none", "probe: the trained model with all gates set to 1"),
    "frozen_slow_accuracy": ("fraction", "none", "probe: the trained model with its slow state never updated"),
    "routing_entropy": ("fraction", "none", "entropy of the gates over that of uniform ones"),
    "steps": ("steps", "none", "optimiser steps"),
    "micro_batch": ("items", "none", "items that a step took at a time, where the whole batch did not fit"),
    "captured": ("flag", "none", "whether steps were replayed as CUDA graphs"),
    "checkpointing": ("flag", "none", "whether activations were computed again for lack of memory"),
}


def test_train(cell, size, seed, arch):
    import torch

    from mlexp.maze import evaluate as ev
    from mlexp.maze.data import mazes
    from mlexp.maze.learn import Snapshots, loss_in, solver, train
    from mlexp.maze.models import ARCHS
    from mlexp.maze.objective import Batches
    from mlexp.maze.rollout import walk

    s, arm = cell.settings, ARCHS[arch]
    known, test = (
        mazes(Recipe(s.maze_size, count, at, s.least(s.maze_size), s.generator), progress=cell.progress)
        for count, at in ((s.train, seed), (s.test, seed + TEST_SEED))
    )
    assert s.maze_size < 6 or not set(known.layouts()) & set(test.layouts()), "a test maze was trained on"
    model, dtype = solver(size, arch, s.R, s.T, s.heads, cell.seed, cell.device), getattr(torch, cell.dtype)
    batches = Batches(known, s.batch, cell.seed, cell.device, s.augment, s.least(s.maze_size), s.loss)
    steps = batches.per_epoch * s.epochs * (s.R if arm.long else 1)
    epochs = steps // batches.per_epoch
    ends = [batches(0), batches(batches.per_epoch - 1)]  # the last batch of an epoch may be smaller
    first, last_one = (cell.count(lambda batch=batch: loss_in(dtype)(model, *batch).backward())[1] for batch in ends)
    lr = SIZES[size].lr if s.lr is None else s.lr
    states = Snapshots(model, steps, min(SNAPSHOTS, s.epochs))
    result = cell.time(
        lambda: train(model, batches, steps, lr, dtype, compiled=s.compile, after=states, progress=cell.progress),
        warmup=False,
    )
    curve = ev.accuracy_of(model.eval(), states.states, test)
    every = ev.logits_of(model, test)
    outcomes = [ev.score(logits, test) for logits in every]
    last = outcomes[-1]
    few = slice(0, SAMPLES)
    walked = walk(every[-1][few], *(x[few] for x in ev.on_device(test, cell.device)[:3]))
    far = [mazes(Recipe(n, max(1, s.test // 5), seed + TEST_SEED, s.least(n), s.generator)) for n in s.larger]
    beyond = [ev.score(ev.logits_of(model, more)[-1], more).solved.float().mean().item() for more in far]
    solved = last.solved.float()
    cell.record(
        n_params=sum(p.numel() for p in model.parameters()),
        flops=epochs * ((batches.per_epoch - 1) * first + last_one),
        n_tokens=epochs * len(known) * s.maze_size**2,
        steps=steps,
        micro_batch=result.micro_batch,
        captured=result.captured,
        checkpointing=model.checkpointing,
        loss_nats=sum(result.losses[-batches.per_epoch :]) / batches.per_epoch,
        accuracy=solved.mean().item(),
        optimality=last.optimal.float().mean().item(),
        excess=last.excess[last.solved].mean().item() if last.solved.any() else None,
        strict_accuracy=last.strict.float().mean().item(),
        cell_accuracy=last.cells,
        larger_accuracy=sum(beyond) / len(beyond) if beyond else None,
        **{f"{name}_accuracy": share for name, share in ev.floors(test, seed).items()},
        **(ev.probes(model, test) if arm.gates == "hrm" else {}),
    )
    cell.series(
        losses=result.losses,
        judged_steps=list(curve),
        accuracy_by_step=list(curve.values()),
        solved=last.solved.long(),
        optimal=last.optimal.long(),
        length=test.length,
        accuracy_by_iteration=[o.solved.float().mean().item() for o in outcomes],
        sample_open=test.open[few].astype(int),
        sample_start=test.start[few],
        sample_goal=test.goal[few],
        sample_path=walked.path,
        larger_sizes=s.larger,
        larger_accuracy=beyond,
    )

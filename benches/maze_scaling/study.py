"""Does the gain of dynamic head routing grow with model size?  The declaration: arms, settings, metrics, claims."""

from dataclasses import dataclass, replace
from typing import Annotated

from mlexp.maze.archs import ARCHS
from mlexp.maze.data import GENERATORS, Recipe
from mlexp.maze.sizes import SIZES
from mlexp.settings import AtLeast, MoreThan, OneOf
from mlexp.settings import Settings as Base
from mlexp.study import Above, All, At, Below, Claim, FromMean, Levels, Mean, Steps, Study, Within, arm

LOSSES = ("dense", "path")
FIVE = ("tiny", "small", "medium", "large", "xl")


@dataclass(frozen=True)
class Settings(Base):
    """The original's numbers, and ours where it has none; test is 1000 mazes (the original's 100: `--set test=100`).

    min_path: cells of a solution over cells of the maze, at least (for `dfs_loops` over twice the side); heads and lr:
    instead of a size's own; larger: sides of the mazes that generalisation is tested on, with `test` / 5 mazes each.
    """

    sizes: Annotated[tuple[str, ...], OneOf(SIZES)] = FIVE
    seeds: tuple[int, ...] = (42, 43, 44, 45, 46)
    archs: Annotated[tuple[str, ...], OneOf(ARCHS)] = tuple(ARCHS)
    maze_size: int = 16
    generator: Annotated[str, OneOf(GENERATORS)] = "dfs"
    min_path: float = 0.4
    train: Annotated[int, AtLeast(1)] = 1000
    test: Annotated[int, AtLeast(1)] = 1000
    epochs: Annotated[int, AtLeast(1)] = 50
    batch: Annotated[int, AtLeast(1)] = 32
    R: Annotated[int, AtLeast(1)] = 4
    T: Annotated[int, AtLeast(1)] = 4
    heads: int | None = None
    lr: Annotated[float | None, MoreThan(0)] = None
    compile: bool = False
    augment: bool = True
    loss: Annotated[str, OneOf(LOSSES)] = "dense"
    larger: tuple[int, ...] = (20, 24)

    def __post_init__(self) -> None:
        super().__post_init__()
        for size in self.sizes:
            if self.heads is not None and (self.heads < 1 or SIZES[size].width % (4 * self.heads)):
                raise ValueError(f"heads={self.heads}: must divide {SIZES[size].width} / 4 at size {size}")
        for n in (self.maze_size, *self.larger):
            Recipe(n, 1, 0, self.min_length(n), self.generator)

    def min_length(self, n: int) -> int:
        """The fewest cells that the solution of an n x n maze may have."""
        return 2 * n if self.generator == "dfs_loops" else max(2, int(self.min_path * n * n))


SMALL = Settings(sizes=("tiny",), archs=("baseline", "poh_hrm", "poh_uniform"), maze_size=8, test=300, epochs=8,
                 batch=8, larger=(10,))  # fmt: skip
SETTINGS = {
    "smoke": replace(SMALL, seeds=(42,), archs=tuple(ARCHS), maze_size=5, train=32, test=20, epochs=1, larger=(6,)),
    "quick": SMALL,
    "full": Settings(),
}
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
    "accuracy_over_floor": ("ratio", "none", "derived: accuracy over that of the better walk without a model"),
    "steps": ("steps", "none", "optimiser steps"),
    "micro_batch": ("items", "none", "items that a step took at a time, where the whole batch did not fit"),
    "captured": ("flag", "none", "whether steps were replayed as CUDA graphs"),
    "checkpointing": ("flag", "none", "whether activations were computed again for lack of memory"),
}

MAIN = ("baseline", "poh_hrm")
PARTS = {  # what the gain could be due to: (arm with it, arm without it)
    "the whole of PoH-HRM": ("poh_hrm", "baseline"),
    "iterating (effective depth)": ("poh_uniform", "baseline"),
    "routing, of any kind": ("poh_hrm", "poh_uniform"),
    "routing by input": ("poh_hrm", "poh_static"),
    "the slow state (hierarchy)": ("poh_hrm", "poh_t_inf"),
    "a controller without iterations": ("poh_r1", "baseline"),
    "as many parameters in a wider baseline": ("poh_hrm", "baseline_wide"),
    "as many layers, untied": ("poh_hrm", "baseline_deep"),
    "as many FLOPs in more steps": ("poh_hrm", "baseline_long"),
}
SAME = 0.02  # differences in accuracy below this are the same for practical purposes
FLOORS = 3.0  # times the better floor from which on a model has learnt to solve mazes
GAIN = arm("poh_hrm") - arm("baseline")
UPPER = Levels(("medium",), place="upper half")
CLAIMS = {
    "Q": Claim("PoH-HRM solves more mazes than the baseline, mean over sizes", Above(Mean(GAIN)), primary=True),
    **{
        f"H0 {name}": Claim(f"{name} learns: at least {FLOORS:g} times the better floor, mean over sizes",
                            Above(Mean(arm(name).of("accuracy_over_floor")), FLOORS))
        for name in MAIN
    },
    "H1": Claim("U-shape: the baseline wins at the smallest size, PoH-HRM at every one from medium on",
                All(Below(At(GAIN, Levels(place="first"))), Above(At(GAIN, UPPER))), source="original"),
    "H2": Claim(f"Linear scaling: both gain more than {100 * SAME:g} points at every step in size, at an advantage of "
                f"PoH-HRM that stays within {100 * SAME:g} points of its mean",
                All(*(Above(Steps(arm(name)), SAME) for name in MAIN), Within(FromMean(GAIN), -SAME, SAME)),
                source="original"),
    "H3": Claim(f"Early saturation: both are flat over the upper half of the sizes (from medium on), within "
                f"{100 * SAME:g} points at every step",
                All(*(Within(Steps(arm(name), UPPER), -SAME, SAME) for name in MAIN)), source="original"),
}  # fmt: skip


def derive(records):
    """`accuracy_over_floor`; not known where both walks solve no maze."""
    floor = records[["random_accuracy", "manhattan_accuracy"]].max(axis=1)
    return records.assign(accuracy_over_floor=(records["accuracy"] / floor.where(floor > 0)).astype(float))


def answer(findings, arms) -> str:
    """One sentence, from the verdict on the main claim."""
    q = findings["Q"]
    if q.verdict == "not tested":
        return f"Not answered by these records: {q.reason}."
    verb = {
        "supported": "solves more mazes than the baseline",
        "refuted": "does not solve more mazes than the baseline",
        "undecided": "cannot be told from the baseline",
    }[q.verdict]
    return f"PoH-HRM {verb}: {q.effect} [{q.interval}]; what the difference is due to stands under its parts."


STUDY = Study(
    asks="Does the gain of dynamic head routing grow with model size?",
    arm="arch",
    arms=tuple(ARCHS),
    baseline="baseline",
    over=("size",),
    replicates=("seed",),
    outcome="accuracy",
    items={"accuracy": "test"},
    settings=SETTINGS,
    axes={"size": "sizes", "seed": "seeds", "arch": "archs"},
    metrics=METRICS,
    parts=PARTS,
    claims=CLAIMS,
    derive=derive,
    answer=answer,
)

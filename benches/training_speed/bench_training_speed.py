"""How much faster than a plain eager loop does the shared training loop train?  Fixed: models, batches, steps."""

import shutil
from dataclasses import dataclass, replace
from typing import Annotated

from mlexp.settings import AtLeast, OneOf
from mlexp.settings import Settings as Base
from mlexp.study import Above, Any, At, Claim, Levels, Study, ratio

WORKLOADS = ("maze_baseline", "maze_poh_hrm", "attention_baseline", "attention_mla_plain")
LOOPS = ("plain", "shared", "compiled")


@dataclass(frozen=True)
class Settings(Base):
    """maze_size, maze_batch: of the mazes, at size tiny; width to batch: of the decoder; steps of a round; repeats:
    blocks in which the loops are paired."""

    workloads: Annotated[tuple[str, ...], OneOf(WORKLOADS)] = WORKLOADS
    repeats: tuple[str, ...] = ("r0", "r1", "r2", "r3", "r4")
    loops: Annotated[tuple[str, ...], OneOf(LOOPS)] = LOOPS
    steps: Annotated[int, AtLeast(1)] = 10
    rounds: Annotated[int, AtLeast(1)] = 3
    maze_size: int = 8
    maze_batch: Annotated[int, AtLeast(1)] = 8
    width: int = 64
    layers: int = 2
    heads: int = 4
    ff: int = 256
    vocab: int = 64
    context: int = 64
    experts: int = 0
    batch: Annotated[int, AtLeast(1)] = 32


QUICK = Settings()
SETTINGS = {
    "smoke": replace(QUICK, repeats=("r0", "r1"), loops=("plain", "shared"), steps=2, rounds=1, maze_size=5),
    "quick": QUICK,
    "full": replace(QUICK, steps=100, maze_size=16, maze_batch=32, width=512, layers=8, heads=8, ff=2048, vocab=49152,
                    context=512, experts=8, batch=16),
}  # fmt: skip
TARGETS = {"maze": {"cpu": 1.5, "cuda": 3.0}, "attention": {"cpu": 1.3, "cuda": 1.3}}  # what was asked for
CLAIMS = {
    f"{workload} {device}": Claim(
        f"{workload}: the better of our loops is at least {target}x a plain eager one on a {device}",
        Any(*(Above(At(ratio("plain", loop, "wall_s"), Levels((workload,))), target) for loop in LOOPS[1:])),
        check=True,
        settings={"device": device},
    )
    for workload in WORKLOADS
    for device, target in TARGETS[workload.partition("_")[0]].items()
}


def answer(findings, arms) -> str:
    """One sentence: how many of the targets are reached on this device."""
    tested = [found for found in findings.values() if found.verdict != "not tested"]
    if not tested:
        return "No target is tested by these records."
    reached = sum(found.verdict == "supported" for found in tested)
    return f"The speed that was asked for is reached for {reached} of {len(tested)} workloads on this device."


STUDY = Study(
    asks="How much faster than a plain eager loop does the shared training loop train?",
    arm="loop",
    arms=LOOPS,
    baseline="plain",
    over=("workload",),
    replicates=("repeat",),
    outcome="wall_s",
    costs=("flops", "peak_bytes"),
    settings=SETTINGS,
    axes={"workload": "workloads", "repeat": "repeats", "loop": "loops"},
    metrics={
        "steps": ("steps", "none", "optimiser steps of a round"),
        "final_loss_nats": ("nats", "none", "loss of the last step of the last round"),
    },
    claims=CLAIMS,
    answer=answer,
)


def collects(params, settings, device) -> bool:
    """torch.compile needs a C++ compiler on a CPU."""
    return params["loop"] != "compiled" or device == "cuda" or shutil.which("g++") is not None


def maze(cell, arch):
    """(model, loss, batches, peak rate, tokens of a step) of a maze solver of size tiny."""
    import torch

    from mlexp.maze.data import Recipe, mazes
    from mlexp.maze.learn import loss_in, solver
    from mlexp.maze.objective import Batches
    from mlexp.maze.sizes import SIZES

    s = cell.settings
    known = mazes(Recipe(s.maze_size, 4 * s.maze_batch, cell.seed % 1000, 2 * s.maze_size), progress=cell.progress)
    model = solver("tiny", arch, 4, 4, None, cell.seed, cell.device)
    batches = Batches(known, s.maze_batch, cell.seed, cell.device)
    tokens = s.maze_batch * s.maze_size**2
    return model, loss_in(getattr(torch, cell.dtype)), batches, SIZES["tiny"].lr, tokens


def attention(cell, variant):
    """The same of a decoder with this kind of attention."""
    import torch

    from mlexp.attention.learn import loss_in
    from mlexp.attention.model import build
    from mlexp.attention.text import Batches, synthetic_text
    from mlexp.attention.variants import Shape

    s = cell.settings
    shape = Shape(s.width, s.layers, s.heads, s.ff, s.vocab, s.context, s.experts)
    text = synthetic_text({"train": 8 * s.batch * s.context}, cell.seed % 1000)
    batches = Batches(text.parts["train"], s.context, s.batch, cell.seed, cell.device)
    model = build(variant, shape, cell.seed, cell.device).train()
    return model, loss_in(getattr(torch, cell.dtype)), batches, 1e-3, s.batch * s.context


def plain(model, loss, batches, steps, lr, capture):
    """The loop of a tutorial: torch's defaults, the loss read at every step."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr)
    for step in range(steps):
        optimizer.zero_grad()
        value = loss(model, *batches(step))
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        last = value.item()
    return last


def shared(model, loss, batches, steps, lr, capture):
    """The loop that the questions train with: fused optimiser, on a GPU losses read in stretches, CUDA graphs."""
    from mlexp.training import Recipe, fit

    return fit(model, loss, batches, Recipe(steps, lr), capture=capture).losses[-1]


def test_steps(cell, workload, repeat, loop):
    import torch

    s = cell.settings
    subject, _, arm = workload.partition("_")
    model, loss, batches, lr, tokens = {"maze": maze, "attention": attention}[subject](cell, arm)
    capture = subject == "maze" or not s.experts  # a mixture of experts asks how many tokens each expert has
    _, flops = cell.count(lambda: loss(model, *batches(0)).backward())
    if loop == "compiled":
        loss = torch.compile(loss)
    steps = plain if loop == "plain" else shared
    steps(model, loss, batches, min(5, s.steps), lr, capture)  # what is compiled or chosen at first use
    last = cell.time(lambda: steps(model, loss, batches, s.steps, lr, capture), rounds=s.rounds, warmup=False)
    cell.record(
        n_params=sum(p.numel() for p in model.parameters()),
        flops=flops * s.steps,
        n_tokens=tokens * s.steps,
        steps=s.steps,
        final_loss_nats=last,
    )

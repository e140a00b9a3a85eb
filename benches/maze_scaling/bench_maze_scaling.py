"""Does the gain of dynamic head routing grow with model size?  Fixed: mazes, training budget, objective, optimiser."""

from mlexp.maze.archs import ARCHS
from mlexp.maze.data import Recipe
from mlexp.maze.sizes import SIZES
from mlexp.study import beside

STUDY = beside(__file__).STUDY
SNAPSHOTS = 10  # points of the curve of accuracy over training
SAMPLES = 4  # test mazes whose walks are stored to be drawn
TEST_SEED = 100_000  # added to a cell's seed for its test mazes


def test_train(cell, size, seed, arch):
    import torch

    from mlexp.maze import evaluate as ev
    from mlexp.maze.data import mazes
    from mlexp.maze.learn import Snapshots, loss_in, solver, train
    from mlexp.maze.objective import Batches
    from mlexp.maze.rollout import walk

    s, arm = cell.settings, ARCHS[arch]
    known, test = (
        mazes(Recipe(s.maze_size, count, at, s.min_length(s.maze_size), s.generator), progress=cell.progress)
        for count, at in ((s.train, seed), (s.test, seed + TEST_SEED))
    )
    assert s.maze_size < 6 or not set(known.layouts()) & set(test.layouts()), "a test maze was trained on"
    model, dtype = solver(size, arch, s.R, s.T, s.heads, cell.seed, cell.device), getattr(torch, cell.dtype)
    batches = Batches(known, s.batch, cell.seed, cell.device, s.augment, s.min_length(s.maze_size), s.loss)
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
    far = [mazes(Recipe(n, max(1, s.test // 5), seed + TEST_SEED, s.min_length(n), s.generator)) for n in s.larger]
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

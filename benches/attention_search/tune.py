"""Find a learning rate for every arm, on seeds and text that no result is reported on: writes learning_rates.json.

python benches/attention_search/tune.py --scale quick --workers 2

Every arm is trained at rates a factor of two apart and judged on the tune part; where the best is at an end of the
grid, the grid grows. The curves stay in the file beside the rates. Arms that stand there already are left as they are.
"""

import argparse
import functools
import json
import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import fmean

from bench_attention_search import (
    AGAIN,
    BUDGETS,
    KINDS,
    RATES,
    STUDY,
    build_plan,
    inputs,
    material,
    place,
)

GROWTH = 3  # steps beyond either end, at most


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", default="quick", choices=STUDY.settings)
    parser.add_argument("--variants", default=",".join(k for k in KINDS if k != AGAIN), help="comma-separated")
    parser.add_argument("--rates", default="0.005,0.01,0.02", help="the grid to begin with, a factor of two apart")
    parser.add_argument("--seeds", default="7,8", help="must not be seeds that are reported on")
    parser.add_argument("--corpus", help="as pytest's")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--workers", type=int, default=1, help="arms tuned at a time")
    options = parser.parse_args()
    settings, seeds = STUDY.settings[options.scale], tuple(map(int, options.seeds.split(",")))
    if set(seeds) & set(settings.seeds):
        parser.error(f"--seeds {options.seeds}: {settings.seeds} are reported on")
    where = place(settings, inputs({}, settings, options)["corpus"])
    content = json.loads(RATES.read_text()) if RATES.exists() else {}
    entry = content.setdefault(where, {"seeds": seeds, "rates": {}, "curves": {}})
    arms = options.variants.split(",")
    if unknown := [arm for arm in arms if arm not in KINDS or arm == AGAIN]:
        parser.error(f"--variants {', '.join(unknown)}: choose from {', '.join(k for k in KINDS if k != AGAIN)}")
    todo = [arm for arm in arms if arm not in entry["rates"]]
    grid = sorted(map(float, options.rates.split(",")))
    tune = functools.partial(curve, settings, seeds, grid, options.corpus, options.device)
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        for arm, losses in zip(todo, pool.map(tune, todo), strict=True):
            best = best_of(losses)
            entry["rates"][arm] = best
            entry["curves"][arm] = {f"{lr:g}": losses[lr] for lr in sorted(losses)}
            RATES.write_text(json.dumps(content, indent=1) + "\n")
            edge = "" if min(losses) < best < max(losses) else "  WARNING: the best is at an end of the grid"
            print(f"{arm:16} {best:g}  " + "  ".join(f"{lr:g}: {shown(losses[lr])}" for lr in sorted(losses)) + edge)


def curve(settings, seeds, grid, corpus, device, arm) -> dict[float, list[float | None]]:
    """Rate -> tune losses in nats, a value a seed (None where it diverged); the grid grown to hold its minimum."""
    losses = {lr: [loss(settings, arm, lr, seed, corpus, device) for seed in seeds] for lr in grid}
    for _ in range(GROWTH):
        best = best_of(losses)
        if min(losses) < best < max(losses):
            break
        lr = best / 2 if best == min(losses) else best * 2
        losses[lr] = [loss(settings, arm, lr, seed, corpus, device) for seed in seeds]
    return losses


def best_of(losses) -> float:
    return min(losses, key=lambda lr: math.inf if None in losses[lr] else fmean(losses[lr]))


def shown(values) -> str:
    return "diverged" if None in values else f"{fmean(values):.4f}"


def loss(settings, arm, lr, seed, corpus, device) -> float | None:
    import torch

    from mlexp.attention.evaluate import evaluate
    from mlexp.attention.learn import train
    from mlexp.attention.model import build
    from mlexp.attention.text import Batches

    torch.set_num_threads(1)
    kind, shape, steps = build_plan(settings, "same_shape", arm)
    text, model = material(settings, seed, corpus), build(kind, shape, seed, device)
    batches = Batches(text.parts["train"], shape.context, settings.batch, seed, device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    try:
        train(model, batches, steps, lr, BUDGETS["finished"], dtype)
    except FloatingPointError:
        return None
    windows = settings.eval_batches * settings.batch
    return evaluate(model, text.parts["tune"], shape.context, settings.batch, windows, dtype).loss_nats


if __name__ == "__main__":
    main()

"""Finds tuned.json: each learner's learning rate, and backprop's dropout and weight decay too, on validation.

    python benches/lm_scale_study/tune.py --scale quick

Every point of a learner's grid is trained on `--n-chars` characters with seeds that no cell uses, early stopped, and
judged by the mean of its best validation losses. A learner whose gradient is checked may take only a rate at which the
gradient stays trusted. The text that a scale's cells are tested on plays no part. A best rate at an end of the grid is
said so: widen the grid (`--rates`) and run again.
"""

import argparse
import itertools
import json
import math
from pathlib import Path
from statistics import fmean

from bench_lm_scale_study import LEARNERS, STUDY, text

from mlexp.eqprop import chars
from mlexp.eqprop.train import network, train

HERE = Path(__file__).with_name("tuned.json")
TUNED = ("backprop", "backprop_matched", "looped_mlp", "recurrent_core", "full")
RATES, DROPOUTS, DECAYS = (1e-3, 2e-3, 4e-3, 1e-2, 2e-2, 4e-2, 1e-1), (0.0, 0.1, 0.3), (0.01, 0.1)
TRUSTED = 0.99


def grid(name: str, options) -> list[tuple[float, float, float]]:
    """(learning rate, dropout, weight decay); an equilibrium network has no dropout."""
    if name.startswith("backprop"):
        return list(itertools.product(options.rates, options.dropouts, options.decays))
    return [(rate, 0.0, options.decays[0]) for rate in options.rates]


def validate(s, name: str, point: tuple[float, float, float], seed: int, options) -> tuple[float, float]:
    """(best validation loss in nats, least gradient cosine, 1 for backprop)."""
    (lr, dropout, decay), corpus = point, text(None)
    train_text = chars.excerpt(corpus.train, options.n_chars, seed)
    windows = chars.scored(corpus.validation[: s.validation], s.length, s.min_context)
    model = network(LEARNERS[name], s, seed, dropout, options.device)
    batches = chars.batches(train_text, s.batch, s.length, seed, options.device)
    result, log = train(
        LEARNERS[name], model, batches, windows, s.steps(options.n_chars, s.length), lr=lr, weight_decay=decay,
        evaluate_every=s.evaluate_every,
    )  # fmt: skip
    return result.held_out[result.best_step], min(log.gradient_cosine, default=1.0)


def at_an_end(best: dict, options) -> bool:
    return best["lr"] in (min(options.rates), max(options.rates))


def tune(s, name: str, options) -> dict[str, object]:
    """The best point of a learner, its validation perplexity, and all that were tried."""
    tried = []
    for point in grid(name, options):
        runs = [validate(s, name, point, seed, options) for seed in options.seeds]
        tried.append({"lr": point[0], "dropout": point[1], "weight_decay": point[2],
                      "validation_perplexity": round(math.exp(fmean(loss for loss, _ in runs)), 3),
                      "gradient_cosine": round(min(cosine for _, cosine in runs), 5)})  # fmt: skip
        print(name, tried[-1], flush=True)
    trusted = [row for row in tried if row["gradient_cosine"] >= TRUSTED]
    best = min(trusted or tried, key=lambda row: row["validation_perplexity"])
    if at_an_end(best, options):
        print(f"{name}: the best rate, {best['lr']}, is at an end of the grid: widen it", flush=True)
    found = {key: best[key] for key in ("lr", "dropout", "weight_decay", "validation_perplexity")}
    return found | {"at_an_end": at_an_end(best, options), "tried": tried}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", choices=STUDY.settings, default="quick")
    parser.add_argument("--learners", nargs="+", choices=TUNED, default=TUNED)
    parser.add_argument("--n-chars", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--dropouts", type=float, nargs="+", default=DROPOUTS)
    parser.add_argument("--decays", type=float, nargs="+", default=DECAYS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    s = STUDY.settings[options.scale]
    for name in options.learners:
        updates = s.steps(options.n_chars, s.length)
        best = tune(s, name, options) | {"n_chars": options.n_chars, "seeds": options.seeds, "updates": updates}
        found = json.loads(HERE.read_text())  # read again: learners may be tuned at once
        row = found[options.scale]
        row["learners"][name] = best
        row["tuned"] = set(TUNED) <= set(row["learners"])
        HERE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

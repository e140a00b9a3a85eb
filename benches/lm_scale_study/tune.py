"""Finds tuned.json: each learner's learning rate, and backprop's dropout and weight decay too, on validation.

    python benches/lm_scale_study/tune.py --scale quick

Every point of a learner's grid is trained on `--n-chars` characters with seeds that no cell uses, early stopped, and
judged by the mean of its best validation losses. A learner whose gradient is checked may take only a rate at which the
gradient stays trusted. The text that a scale's cells are tested on plays no part.
"""

import argparse
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from bench_lm_scale_study import LEARNERS, SETTINGS, text

from mlexp.eqprop import chars
from mlexp.eqprop.train import network, train

HERE = Path(__file__).with_name("tuned.json")
TUNED = ("backprop", "backprop_matched", "looped_mlp", "recurrent_core", "full")
RATES, DROPOUTS, DECAYS = (1e-3, 3e-3, 1e-2), (0.0, 0.1, 0.3), (0.01, 0.1)
TRUSTED = 0.99


def grid(name: str, rates) -> list[tuple[float, float, float]]:
    """(learning rate, dropout, weight decay); an equilibrium network has no dropout."""
    if name.startswith("backprop"):
        return list(itertools.product(rates, DROPOUTS, DECAYS))
    return [(rate, 0.0, DECAYS[0]) for rate in rates]


def judge(s, name: str, n_chars: int, seed: int, point: tuple[float, float, float]) -> tuple[float, float]:
    """(best validation loss in nats, least gradient cosine, 1 for backprop)."""
    (lr, dropout, decay), words = point, text(None)
    some = chars.excerpt(words.train, n_chars, seed)
    windows = chars.scored(words.validation[: s.validation], s.length, s.least)
    model = network(LEARNERS[name], s, seed, dropout)
    batches, steps = chars.batches(some, s.batch, s.length, seed), s.steps(n_chars, s.length)
    result, log = train(LEARNERS[name], model, batches, windows, steps, lr=lr, weight_decay=decay,
                        evaluate_every=s.evaluate_every)  # fmt: skip
    return result.held_out[result.best_step], min(log.gradient_cosine, default=1.0)


def tune(s, name: str, options) -> dict[str, object]:
    """The best point of a learner, its validation perplexity, and all that were tried."""
    tried = []
    for point in grid(name, options.rates):
        runs = [judge(s, name, options.n_chars, seed, point) for seed in options.seeds]
        tried.append({"lr": point[0], "dropout": point[1], "weight_decay": point[2],
                      "validation_perplexity": round(math.exp(fmean(loss for loss, _ in runs)), 3),
                      "gradient_cosine": round(min(cosine for _, cosine in runs), 5)})  # fmt: skip
        print(name, tried[-1], flush=True)
    trusted = [row for row in tried if row["gradient_cosine"] >= TRUSTED]
    best = min(trusted or tried, key=lambda row: row["validation_perplexity"])
    return {key: best[key] for key in ("lr", "dropout", "weight_decay", "validation_perplexity")} | {"tried": tried}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", choices=SETTINGS, default="quick")
    parser.add_argument("--learners", nargs="+", choices=TUNED, default=TUNED)
    parser.add_argument("--n-chars", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    options = parser.parse_args()
    s = replace(SETTINGS[options.scale], seeds=tuple(options.seeds))
    found = json.loads(HERE.read_text())
    row = found[options.scale]
    row["learners"] |= {name: tune(s, name, options) for name in options.learners}
    row |= {"tuned": set(TUNED) <= set(row["learners"]), "n_chars": options.n_chars, "seeds": options.seeds}
    HERE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

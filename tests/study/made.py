"""Made-up records of a small study: a mean for every level and arm, noise by block, in the shape of a loaded frame."""

import json

import numpy as np
import pandas as pd

from mlexp.analysis.data import Data
from mlexp.record import metrics_of
from mlexp.study import Study

SIZES = {"tiny": 1e6, "small": 4e6, "medium": 16e6, "large": 64e6}


def study(**fields) -> Study:
    """A study of three arms over sizes and seeds, by loss."""
    plain = {
        "asks": "Which?",
        "arm": "arm",
        "arms": ("base", "new", "other"),
        "baseline": "base",
        "over": ("size",),
        "outcome": "loss_nats",
    }
    return Study(**plain | fields)


def records(means, seeds=5, noise=0.0, shared=0.0, seed=0, metric="loss_nats", **columns) -> pd.DataFrame:
    """A record for every (size, arm) in `means` and seed; `shared`: noise that all arms of a block have in common."""
    rng, rows = np.random.default_rng(seed), []
    common = shared * rng.standard_normal(seeds)
    for (size, arm), mean in means.items():
        for i in range(seeds):
            value = mean + common[i] + noise * rng.standard_normal()
            rows.append({"size": size, "seed": 40 + i, "arm": arm, metric: value, "n_params": SIZES.get(size, 1e6)})
    df = pd.DataFrame(rows).assign(wall_s=2.0, rounds=1, settings=json.dumps({"test": 100}), **columns)
    df["key"] = [f"k{i}" for i in range(len(df))]
    df.attrs["axes"] = ["size", "seed", "arm"]
    return df


def data(df, declared=None, settings=None, **estimates) -> Data:
    """The records as claims see them."""
    return Data(
        declared or study(), df, metrics_of(declared.metrics if declared else {}), settings or {"test": 100}, estimates
    )

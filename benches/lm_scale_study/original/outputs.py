"""The original's outputs from these records: its four questions, its JSON and spreadsheet."""

import json
import math
from pathlib import Path

import pandas as pd

from mlexp.analysis.data import number
from mlexp.analysis.shown import thousands
from mlexp.analysis.tables import levels_of
from mlexp.study import load

declared = load(Path(__file__).parents[1] / "study.py")
BEST = declared.BEST
NOT_EQPROP = ("backprop", BEST, *declared.CONTROLS)  # an arm that the study has never heard of is a variant
LATE = 0.9  # share of the updates after which a best state says that training was cut short
COLUMNS = {
    "perplexity": "perplexity", "val_perplexity": "validation_perplexity",
    "final_epoch_perplexity": "last_validation_perplexity", "train_perplexity": "train_perplexity",
    "bigram_perplexity": "bigram_perplexity", "unigram_perplexity": "unigram_perplexity", "params": "n_params",
    "updates": "updates", "best_step": "best_step", "time_s": "wall_s", "flops": "flops", "peak_bytes": "peak_bytes",
    "saved_bytes": "saved_bytes", "gradient_cosine": "gradient_cosine", "free_sweeps": "free_sweeps",
    "nudged_sweeps": "nudged_sweeps", "unconverged_fraction": "unconverged_fraction",
}  # fmt: skip


def answers(data, advantage_table):
    """The original's four questions, each with what these records say."""
    yield f"- **Crossover point.** {advantages(advantage_table(data, 'n_chars'), 'n_chars')}."
    rows = data.rows("n_chars")
    losses = rows[~rows["learner"].isin(NOT_EQPROP)].pivot_table(
        index=["n_chars", "seed"], columns="learner", values="loss_nats"
    )
    mean = losses.dropna().mean().map(math.exp).sort_values()
    picks = rows["picked"].value_counts() if "picked" in rows else {}
    chosen = f"; chosen on validation: {', '.join(f'{k} {v} times' for k, v in picks.items())}" if len(picks) else ""
    means = ", ".join(f"{name} {value:.2f}" for name, value in mean.items()) or "no variant in these records"
    yield f"- **Best variant.** Test perplexity, mean over sizes and seeds that have all: {means}{chosen}."
    if "seq_len" in data.records and len(data.rows("seq_len")):
        yield f"- **Sequences.** {advantages(advantage_table(data, 'seq_len'), 'seq_len')}."
    if late := still_learning(rows):
        yield (
            f"- **Budget.** All learners make the same updates. At {', '.join(late)} backprop was best at its "
            "last ones: longer training would have helped it there, and who wins is said of this budget alone."
        )


def advantages(table, axis) -> str:
    """Backprop's perplexity over each variant's, by level."""
    texts = []
    for name, rows in table[~table["learner"].isin(NOT_EQPROP)].groupby("learner", sort=False):
        each = ", ".join(f"{row.ratio:.2f}x [{row.low:.2f}, {row.high:.2f}] at {thousands(getattr(row, axis))}"
                         for row in rows.itertuples())  # fmt: skip
        texts.append(f"{name} {each}")
    return f"Backprop's perplexity over the variant's: {'; '.join(texts) or 'not both in these records'}"


def still_learning(rows, name="backprop") -> list[str]:
    """Amounts of text at which a learner's best state is, in the mean, within the last tenth of its updates."""
    cells = rows[rows["learner"] == name]
    share = (cells["best_step"] / cells["updates"]).groupby(cells["n_chars"]).mean()
    late = sorted(share.index[share > LATE], key=number)
    return [thousands(number(level)) for level in late]


def files(data, crossover, out):
    """The original's own JSON and CSV: a row a trained cell; intermediate where the study is not finished."""
    setting, rows = data.settings, []
    grids = [axis for axis in data.study.over if axis in data.records]
    for experiment, axis in (("data_size", "n_chars"), ("sequence_length", "seq_len")):
        cells = data.rows(axis) if axis in grids else data.records.iloc[:0]
        for level in levels_of(data, axis) if len(cells) else ():
            for row in cells[(cells[axis] == level) & (cells["learner"] != BEST)].to_dict("records"):
                sizes = {"n_chars": setting["sequence_chars"], "seq_len": setting["length"]} | {
                    axis: int(number(level))
                }
                line = {"experiment": experiment} | sizes | {"learner": row["learner"], "seed": row["seed"]}
                rows.append(line | {ours: plain(row.get(theirs)) for ours, theirs in COLUMNS.items()})
    if not rows:
        return
    planned = int(data.records["planned_cells"].max())
    first = crossover.head(1).drop(columns=["learner", "scored_on"]).to_dict("records")
    found = {name: plain(value) for name, value in first[0].items()} if first else None
    config = {"hidden": setting["width"], "layers": setting["layers"], "seq_len": setting["length"],
              "epochs": None if setting["updates"] else setting["epochs"], "updates": setting["updates"]}  # fmt: skip
    done = len(rows) >= planned
    content = {"config": config, "finished": done, "cells": len(rows), "planned_cells": planned, "crossover": found,
               "results": rows}  # fmt: skip
    out.file(f"results_{'final' if done else 'intermediate'}.json", json.dumps(content, indent=2) + "\n")
    caption = f"The original's spreadsheet: {len(rows)} of {planned} trainings."
    out.table(pd.DataFrame(rows), "results_final.csv", caption)


def plain(value):
    """As JSON can hold it."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value.item() if hasattr(value, "item") else value

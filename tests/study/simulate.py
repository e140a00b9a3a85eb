"""Record files drawn from known models, and how often the verdicts and intervals of a whole context are wrong.

A model gives every (level, arm) a true mean; blocks (seeds, prompts) are random effects, of all arms alike and of each
arm by itself over all levels; what remains is noise by cell. The truth of a claim follows from its own statement and
the true means. At a bound neither answer is right, so that every decision there counts as false.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from mlexp.analysis.contrasts import leaves
from mlexp.analysis.data import Data
from mlexp.analysis.findings import NOT_TESTED, REFUTED, SUPPORTED, UNDECIDED
from mlexp.analysis.output import Output
from mlexp.analysis.sections import derived, fill
from mlexp.record import metrics_of
from mlexp.study import All, Any, Given, Study, Switch, load

ROOT = Path(__file__).parents[2]
PARAMS = {"tiny": 4e5, "small": 2.4e6, "medium": 1.3e7, "large": 4e7, "xl": 1e8,
          "gpt2_small": 1.24e8, "gpt2_medium": 3.55e8, "gpt2_large": 7.7e8, "gpt2_xl": 1.56e9}  # fmt: skip
NEAR = 1e-9


@dataclass(frozen=True)
class Model:
    """A scenario of a study: true means on the scale of noise (a logarithm for times), and the spreads.

    means: (level, arm) -> mean of the outcome; blocks: how many; `shared`, `own`, `noise`: standard deviations of what
    all arms of a block share, of what an arm has to itself in a block, of a cell.
    """

    question: str
    means: dict[tuple[str, str], float]
    blocks: int = 5
    shared: float = 0.02
    own: float = 0.02
    noise: float = 0.02
    drop: float = 0.0
    settings: dict = field(default_factory=dict)


def study_of(question: str) -> Study:
    folder = ROOT / "benches" / question
    file = folder / "study.py"
    return load(file if file.is_file() else folder / f"bench_{question}.py").STUDY


def values(model: Model, rng: np.random.Generator) -> dict[tuple[str, str, int], float]:
    """The outcome of every cell of a full grid."""
    shared = model.shared * rng.standard_normal(model.blocks)
    own = {arm: model.own * rng.standard_normal(model.blocks) for _, arm in model.means}
    return {
        (level, arm, i): mean + shared[i] + own[arm][i] + model.noise * rng.standard_normal()
        for (level, arm), mean in model.means.items()
        for i in range(model.blocks)
    }


def maze(model: Model, rng: np.random.Generator) -> pd.DataFrame:
    """Accuracies of so many test mazes each: binomial around a seed's own share."""
    rows, n = [], model.settings["test"]
    for (size, arch, i), share in values(model, rng).items():
        solved = rng.binomial(n, min(max(share, 0.0), 1.0))
        rows.append({"size": size, "seed": 42 + i, "arch": arch, "accuracy": solved / n, "n_params": PARAMS[size]})
    return pd.DataFrame(rows).assign(random_accuracy=0.05, manhattan_accuracy=0.1)


def decoding(model: Model, rng: np.random.Generator) -> pd.DataFrame:
    """Times, log-normal; half of the samples of a branching arm are worth as much as independent ones."""
    rows = []
    for (name, decoder, i), log_s in values(model, rng).items():
        worth = 10.0 if decoder.startswith("eab") else 20.0
        rows.append({"model": name, "prompt": f"p{i:02d}", "decoder": decoder, "wall_s": np.exp(log_s),
                     "token_forwards": np.exp(log_s), "n_params": PARAMS[name],
                     "worst_effective_samples": worth})  # fmt: skip
    return pd.DataFrame(rows)


def attention(model: Model, rng: np.random.Generator) -> pd.DataFrame:
    """Losses of arms that share no luck by seed, whatever the model says of shared effects."""
    rows = []
    for (_, variant), mean in model.means.items():
        for i in range(model.blocks):
            loss = mean + model.noise * rng.standard_normal()
            rows.append({"budget": "finished", "match": "same_shape", "seed": 42 + i, "variant": variant,
                         "loss_nats": loss, "n_params": 1000, "attention_params": 100,
                         "micro_activation_bytes": 1e6})  # fmt: skip
    return pd.DataFrame(rows)


def lm(model: Model, rng: np.random.Generator) -> pd.DataFrame:
    """Losses over amounts of text and lengths of sequences; the same log perplexity on validation."""
    rows = []
    for (level, learner, i), loss in values(model, rng).items():
        axis = "seq_len" if level.startswith("len") else "n_chars"
        rows.append({axis: level, "seed": 42 + i, "learner": learner, "loss_nats": loss, "perplexity": np.exp(loss),
                     "validation_perplexity": np.exp(loss + 0.01 * rng.standard_normal()),
                     "last_validation_perplexity": np.exp(loss), "n_params": 1000})  # fmt: skip
    return pd.DataFrame(rows)


def training(model: Model, rng: np.random.Generator) -> pd.DataFrame:
    """Times of loops, log-normal."""
    rows = [{"workload": level, "repeat": f"r{i}", "loop": loop, "wall_s": np.exp(log_s)}
            for (level, loop, i), log_s in values(model, rng).items()]  # fmt: skip
    return pd.DataFrame(rows)


DRAW = {"maze_scaling": maze, "decoding_speedup": decoding, "attention_search": attention, "lm_scale_study": lm,
        "training_speed": training}  # fmt: skip


def records(model: Model, rng: np.random.Generator) -> pd.DataFrame:
    """One file of a scenario."""
    df = DRAW[model.question](model, rng)
    df = df[rng.random(len(df)) >= model.drop].reset_index(drop=True)
    context = {"device": "cpu", "dtype": "float32", "scale": "full", "weights": "pretrained"}
    plain = {"rounds": 1, "status": "passed", "settings": json.dumps(model.settings), **context}
    df = df.assign(**{"wall_s": 1.0, **plain} | ({"wall_s": df["wall_s"]} if "wall_s" in df else {}))
    df["key"] = [f"k{i}" for i in range(len(df))]
    axes = ("size", "model", "budget", "match", "workload", "n_chars", "seq_len", "seed", "prompt", "repeat")
    df.attrs["axes"] = [name for name in (*axes, study_of(model.question).arm) if name in df]
    return df


def findings(model: Model, df: pd.DataFrame) -> dict:
    """What the real path says of a file, tables and figures apart."""
    out = Output(model.question, {"device": "cpu", "weights": "pretrained"}, df.iloc[:0], lambda key: {})
    fill(out, df, study_of(model.question), lambda records, out: None, {}, [])
    return out.findings


# --- the truth


def true_value(leaf, model: Model) -> float:
    """The quantity of the true means, on the scale of its interval."""
    scale = 10.0 if leaf.metric == "accuracy_over_floor" else 1.0
    offset = {"seconds_per_effective_sample": lambda arm: np.log(2.0) if arm.startswith("eab") else 0.0}
    extra = offset.get(leaf.metric, lambda arm: 0.0)
    return scale * sum(w * (model.means[level or "", arm] + extra(arm)) for (level, arm), w in leaf.weights)


def truth(statement, data: Data, model: Model):
    """SUPPORTED or REFUTED as the true means have it, UNDECIDED at a bound; None of what has no true mean."""
    if isinstance(statement, All | Any):
        parts = [truth(part, data, model) for part in statement.parts]
        if None in parts:
            return None
        sure, other = (REFUTED, SUPPORTED) if isinstance(statement, All) else (SUPPORTED, REFUTED)
        return sure if sure in parts else other if set(parts) == {other} else UNDECIDED
    if isinstance(statement.quantity, Given):
        return None
    is_log = statement.quantity.contrast.log
    parts = []
    for leaf in leaves(statement.quantity, data):
        value, on_log = true_value(leaf, model), is_log and not leaf.exponent
        if isinstance(statement, Switch):
            low, high = 0.0, None
        else:
            low, high = (
                None if end is None else np.log(end) if on_log else end for end in (statement.low, statement.high)
            )
        ends = [end for end in (low, high) if end is not None]
        if any(abs(value - end) < NEAR for end in ends):
            parts.append(UNDECIDED)
        else:
            inside = (low is None or value > low) and (high is None or value < high)
            parts.append(SUPPORTED if inside else REFUTED)
    if isinstance(statement, Switch):
        if UNDECIDED in (parts[0], parts[-1]):
            return UNDECIDED
        signs = [part == SUPPORTED for part in parts if part != UNDECIDED]
        return SUPPORTED if signs == sorted(signs) and 0 < sum(signs) < len(signs) else REFUTED
    return REFUTED if REFUTED in parts else UNDECIDED if UNDECIDED in parts else SUPPORTED


@dataclass
class Score:
    """Of so many files: false verdicts and verdicts by claim, and how many printed intervals hold the truth."""

    files: int = 0
    false: Counter = field(default_factory=Counter)
    words: dict[str, Counter] = field(default_factory=dict)
    inside: int = 0
    intervals: int = 0
    primary: int = 0  # files in which a primary claim is decided falsely


def simulate(model: Model, files: int, seed: int = 0) -> Score:
    """Draw so many files of a scenario and judge what the report says of each."""
    rng, score, study = np.random.default_rng(seed), Score(), study_of(model.question)
    full = Model(**{**vars(model), "drop": 0.0})
    whole = derived(study, records(full, np.random.default_rng(0)))
    data = Data(study, whole, metrics_of(dict(study.metrics)), model.settings)
    right = {}
    for id, claim in study.claims.items():
        try:
            right[id] = truth(claim.statement, data, model)
        except Exception:  # a level or an arm that the scenario lacks
            right[id] = None
    for _ in range(files):
        found, wrong_primary = findings(model, records(model, rng)), False
        for id, each in found.items():
            score.words.setdefault(id, Counter())[str(each.verdict)] += 1
            decided = each.verdict in (SUPPORTED, REFUTED)
            if right[id] is not None and decided and each.verdict != right[id]:
                score.false[id] += 1
                wrong_primary |= each.claim.primary
            if each.verdict != NOT_TESTED and right[id] is not None:
                covered(each, data, model, score)
        score.primary += wrong_primary
        score.files += 1
    return score


def covered(found, data: Data, model: Model, score: Score) -> None:
    """Count the printed intervals that hold their true value."""
    truths = {leaf.label: true_value(leaf, model) for leaf in _leaves(found.claim.statement, data)}
    for part in found.parts:
        if part.label in truths:
            score.intervals += 1
            score.inside += part.estimate.low <= truths[part.label] <= part.estimate.high


def _leaves(statement, data: Data):
    if isinstance(statement, All | Any):
        for part in statement.parts:
            yield from _leaves(part, data)
    else:
        yield from leaves(statement.quantity, data)

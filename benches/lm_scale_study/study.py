"""How much training text does equilibrium propagation need to beat backprop?  The declaration of the study."""

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from mlexp.eqprop.learners import LEARNERS, SIZES, Size
from mlexp.settings import AtLeast, MoreThan, OneOf
from mlexp.settings import Settings as Base
from mlexp.study import (
    Above,
    All,
    Any,
    At,
    Below,
    Claim,
    Given,
    Levels,
    Mean,
    Slope,
    Study,
    Switch,
    Within,
    arm,
    load,
    ratio,
)

VARIANTS = ("looped_mlp", "recurrent_core", "full")  # that the claims are about
CONTROLS = tuple(name for name in LEARNERS if name.endswith("_twin") or name in ("backprop_matched", "full_kappa0"))
MAIN = tuple(name for name in LEARNERS if name not in CONTROLS)
BEST = "eqprop_best"  # in each block the variant of the best validation perplexity
SETTLED = tuple(name for name, row in LEARNERS.items() if row.rule == "eqprop")
UNROLLED = "_unrolled"  # of a learner's network in test_step: backprop through its free sweeps
STEPPERS = ("backprop", "backprop_matched", *(name for row in SETTLED for name in (row, row + UNROLLED)))
NUDGES = ("symmetric", "split", "positive")
FORMS = {"n_chars": r"n\d+", "seq_len": r"len\d+", "sweep": r"s\d+", "beta": r"beta\d+_\d+", "tolerance": r"tol\d+_\d+"}


def number(value: str) -> float:
    """The number in an axis value: n1000, len64, s8, beta0_03."""
    return float(re.sub(r"^[a-z]+", "", value).replace("_", "."))


@dataclass(frozen=True)
class Settings(Size, Base):
    """The original's numbers, and ours where it has none. `validation`, `test`: characters scored of these fixed texts.

    free_tolerance, nudged_tolerance, prediction_tolerance: how far trainings settle a phase, and predictions
    (mlexp/eqprop/settle.py says of what each is a share); test_gradient measures what looser ones cost and save.
    updates: instead of `epochs` of at least `min_batches`; min_context: characters that a scored target has before it,
    the same targets for every sequence length; controls run at the data sizes in `control_sizes` alone; state_updates:
    exact updates before test_gradient looks.
    """

    data_sizes: tuple[str, ...] = ("n1000", "n2000", "n5000", "n10000", "n20000", "n50000")
    lengths: tuple[str, ...] = ("len16", "len32", "len64", "len128")
    sequence_chars: Annotated[int, AtLeast(1)] = 10_000
    seeds: tuple[int, ...] = (42, 43, 44, 45, 46)
    learners: Annotated[tuple[str, ...], OneOf(LEARNERS)] = tuple(LEARNERS)
    controls: Annotated[tuple[str, ...], OneOf(LEARNERS)] = ()
    control_sizes: tuple[str, ...] = ()
    batch: Annotated[int, AtLeast(1)] = 32
    epochs: Annotated[int, AtLeast(1)] = 30
    min_batches: Annotated[int, AtLeast(1)] = 10
    updates: Annotated[int | None, AtLeast(1)] = None
    validation: Annotated[int, AtLeast(1)] = 20_000
    test: Annotated[int, AtLeast(1)] = 40_000
    min_context: Annotated[int, AtLeast(1)] = 8
    evaluate_every: Annotated[int, AtLeast(1)] = 25
    checks: Annotated[int, AtLeast(1)] = 4
    sweeps: tuple[str, ...] = ("s1", "s2", "s4", "s8", "s16")
    steppers: Annotated[tuple[str, ...], OneOf(STEPPERS)] = STEPPERS
    rounds: Annotated[int, AtLeast(1)] = 5
    variants: Annotated[tuple[str, ...], OneOf(SETTLED)] = tuple(name for name in SETTLED if name in MAIN)
    betas: tuple[str, ...] = ("beta0_01", "beta0_03", "beta0_1", "beta0_3", "beta1_0")
    tolerances: tuple[str, ...] = ("tol1_0", "tol0_5", "tol0_3", "tol0_1", "tol0_01")
    nudges: Annotated[tuple[str, ...], OneOf(NUDGES)] = NUDGES
    state_updates: Annotated[int, AtLeast(1)] = 30
    free_tolerance: Annotated[float, MoreThan(0)] = 1e-3
    nudged_tolerance: Annotated[float, MoreThan(0)] = 1e-1
    prediction_tolerance: Annotated[float, MoreThan(0)] = 1e-4

    def __post_init__(self) -> None:
        Size.__post_init__(self)
        Base.__post_init__(self)
        for what, form in FORMS.items():
            for value in getattr(self, AXES[what]):
                if not re.fullmatch(form, value) or not number(value) > 0:
                    raise ValueError(f"unknown {what} {value!r}; like {getattr(Settings, AXES[what])[0]}, any number")
        for size in self.data_sizes:
            if number(size) <= self.length:
                raise ValueError(f"n_chars {size!r}: needs more characters than a sequence has, {self.length}")
        shortest = min(self.length, *map(number, self.lengths))
        if self.min_context > shortest:
            raise ValueError(f"min_context is {self.min_context}; 1 to {shortest:.0f}, the shortest sequence")

    def steps(self, n_chars: int, length: int) -> int:
        """Updates: the original's epochs, at least ten batches each."""
        return self.updates or self.epochs * max(self.min_batches, n_chars // (self.batch * length))

    @property
    def planned(self) -> int:
        """Cells of the study proper: both grids and the controls."""
        blocks = len(self.seeds) * (len(self.data_sizes) + len(self.lengths))
        return blocks * len(self.learners) + len(self.seeds) * len(self.controls) * len(self.control_sizes)


AXES = {
    "n_chars": "data_sizes", "seq_len": "lengths", "seed": "seeds", "learner": "learners", "control": "controls",
    "sweep": "sweeps", "stepper": "steppers", "variant": "variants", "beta": "betas", "tolerance": "tolerances",
    "nudge": "nudges",
    "control_size": "control_sizes",  # no cell's argument: where there are controls does not change a cell
}  # fmt: skip
SMALL = Settings(
    **asdict(SIZES["quick"]), data_sizes=("n1000", "n10000", "n50000"), lengths=("len16", "len32"),
    learners=MAIN, controls=CONTROLS, control_sizes=("n10000",), batch=16, updates=150, validation=5000, test=20_000,
    evaluate_every=10, sweeps=("s1", "s2", "s4", "s16"), betas=("beta0_03", "beta0_1", "beta1_0"),
    tolerances=("tol1_0", "tol0_5", "tol0_1", "tol0_01"),
)  # fmt: skip
SETTINGS = {
    "smoke": replace(
        SMALL, width=16, layers=2, heads=2, length=16, data_sizes=("n1000", "n2000"), lengths=("len8", "len16"),
        seeds=(42,), learners=tuple(LEARNERS), controls=(), control_sizes=(), batch=4, updates=4, validation=600,
        test=600, min_context=4, evaluate_every=2, checks=2, sweeps=("s1", "s2"), rounds=1, betas=("beta0_03",),
        tolerances=("tol0_1", "tol0_01"), state_updates=2,
    ),
    "quick": SMALL,
    "full": Settings(),
}  # fmt: skip
METRICS = {
    "validation_perplexity": ("ratio", "lower", "of the state of the best validation loss"),
    "last_validation_perplexity": ("ratio", "lower", "of the state after the last update"),
    "train_perplexity": ("ratio", "lower", "of that state, on the text that it was trained on"),
    "unigram_perplexity": ("ratio", "none", "floor: characters' frequencies, on the test text"),
    "bigram_perplexity": ("ratio", "none", "floor: frequencies after each character, on the test text"),
    "gradient_cosine": ("cosine", "higher", "of the estimate to the true gradient of the free fixed point, the least"),
    "inner_cosine": ("cosine", "higher", "the same without the head, whose part needs no rule"),
    "gradient_ratio": ("ratio", "none", "norm of the estimate over that of the true gradient"),
    "free_sweeps": ("sweeps", "lower", "of a free phase, mean"),
    "nudged_sweeps": ("sweeps", "lower", "of a nudged phase (a twin: of the adjoint), mean"),
    "prediction_sweeps": ("sweeps", "lower", "of a prediction's free phase in validation, mean"),
    "scoring_s": ("s", "lower", "of the training's time: validation"),
    "training_s": ("s", "lower", "derived: the training's time without validation"),
    "free_residual": ("ratio", "lower", "last relative movement of a free phase, the largest"),
    "nudged_residual": ("ratio", "lower", "last relative residual of a nudged phase, the largest"),
    "updates": ("steps", "none", "optimiser steps"),
    "best_step": ("steps", "none", "the step of the best validation loss"),
    "saved_bytes": ("bytes", "lower", "the most that autograd stored for backward in one step"),
    "step_flops": ("FLOP", "lower", "of one step, by phase times the sweeps made"),
    "step_limit": ("ratio", "none", "a step in backprop steps at equal parameters, if nothing is wasted"),
    "leak": ("fraction", "lower", "held-out 60-grams that stand in the training text too"),
    "last_nats": ("nats", "lower", "derived: validation loss after the last update"),
    "learning_rate": ("rate", "none", "peak of the schedule"),
    "dropout": ("fraction", "none", "of the transformer"),
    "weight_decay": ("rate", "none", "of matrices"),
    "tuned": ("flag", "none", "whether these three were found on validation at this scale (tuned.json)"),
    "planned_cells": ("cells", "none", "of the study that this cell was run for"),
}

TRUSTED = 0.99  # smallest cosine of an estimate to the true gradient
SAME = 0.02  # nats; below this two losses are the same for practical purposes (2 % of the perplexity)
ROOM = 1.3  # a step may take this many times its limit
PLAIN = 4  # and without feedback this many backprop steps
FLAT = 1.01  # and store this many times as much for backward after more sweeps
PARTS = {  # what an advantage could be due to: (with it, without it)
    **{f"the rule, {name}": (name, f"{name}_twin") for name in VARIANTS},
    **{f"the network, {name}": (f"{name}_twin", "backprop") for name in VARIANTS},
    "feedback in full": ("full", "full_kappa0"),
    "full without feedback": ("full_kappa0", "backprop"),
    "recurrent_core, equal parameters": ("recurrent_core", "backprop_matched"),
}


def advantage(name: str):
    """Backprop's test perplexity over a variant's: above 1 the variant is better."""
    return ratio("backprop", name, "perplexity")


def any_variant(statement) -> Any:
    """The best of the three variants, under simultaneous intervals: backprop has one try, they have three."""
    return Any(*(statement(advantage(name)) for name in VARIANTS))


CLAIMS = {
    "Q": Claim("There is an amount of text below which backprop wins and above which a variant of EqProp does",
               any_variant(lambda a: Switch(At(a))), about="behaviour", primary=True),
    "E1": Claim("Below 5K characters backprop beats every variant",
                All(*(Below(At(advantage(name), Levels(high=5_000)), 1.0) for name in VARIANTS)),
                source="original", about="behaviour"),
    "E2": Claim("A variant begins to win at 10-20K characters: it loses at the size before and wins there",
                any_variant(lambda a: All(Below(At(a, Levels(high=10_000, place="last")), 1.0),
                                           Above(At(a, Levels(low=10_000, high=20_001)), 1.0))),
                source="original", about="behaviour"),
    "E3": Claim("Above 20K characters a variant is twice better",
                any_variant(lambda a: Above(At(a, Levels(low=20_001)), 2.0)), source="original", about="behaviour"),
    "T": Claim("The advantage of a variant grows with the amount of text", any_variant(lambda a: Above(Slope(a))),
               about="behaviour"),
    "S": Claim("Longer sequences favour a variant",
               any_variant(lambda a: Above(Slope(a, levels=Levels(axis="seq_len"), points=2))),
               source="original", about="behaviour"),
    **{
        f"R {name}": Claim(
            f"{name}: the rule costs nothing, EqProp ends within {SAME:g} nats of the exact gradient",
            Within(Mean(arm(name) - arm(f"{name}_twin"), Levels(place="complete")), -SAME, SAME), about="behaviour")
        for name in VARIANTS
    },
    "G": Claim(f"Every EqProp gradient has a cosine of at least {TRUSTED} to the true one, all through training",
               Above(Given("smallest gradient cosine"), TRUSTED), check=True),
    **{
        f"L {name}": Claim(f"{name}: a step takes at most {ROOM} times the limit for the sweeps that it makes",
                           Below(Given(f"step of {name} over its limit"), ROOM), check=True)
        for name in SETTLED
    },
    "K": Claim(f"full_kappa0: without feedback a step takes at most {PLAIN} backprop steps",
               Below(Given("step of full_kappa0 over backprop's"), PLAIN), check=True),
    **{
        f"M {name}": Claim(f"{name}: memory for backward is flat in the number of sweeps",
                           Below(Given(f"bytes stored by {name}, most sweeps over fewest"), FLAT), check=True)
        for name in SETTLED
    },
}  # fmt: skip


def derive(records):
    """Controls are learners like the others; in every block with all variants the one of the best validation perplexity
    is an arm of its own, whose `picked` says which; `last_nats` is the log of the last validation perplexity."""
    import numpy as np
    import pandas as pd

    axes = [name for name in records.attrs.get("axes", []) if name != "control"]
    if "control" in records:
        learner = records["learner"] if "learner" in records else pd.Series(np.nan, records.index)
        records = records.assign(learner=learner.fillna(records["control"])).drop(columns="control")
    of_settling = ("gradient_cosine", "inner_cosine", "free_sweeps", "nudged_sweeps", "prediction_sweeps",
                   "free_residual", "nudged_residual", "unconverged_fraction")  # fmt: skip
    for name in ("learner", "last_validation_perplexity", "scoring_s", *of_settling):
        if name not in records:  # no column where all the cells are backprop's, or none was trained
            records[name] = np.nan
    records["training_s"] = records["wall_s"] - records["scoring_s"].astype(float)
    records["last_nats"] = np.log(records["last_validation_perplexity"].astype(float))
    best = [chosen(records, axis) for axis in ("n_chars", "seq_len") if axis in records]
    records = pd.concat([records, *best], ignore_index=True)
    records.attrs["axes"] = axes
    return records


def chosen(records, axis):
    """The variant of the best validation perplexity in every block of a grid that has all the variants there are."""
    variants = records[records[axis].notna() & records["learner"].isin(VARIANTS)]
    blocks = [axis, "seed"]
    whole = variants.groupby(blocks)["learner"].transform("nunique") == variants["learner"].nunique()
    variants = variants[whole]
    if variants["learner"].nunique() < 2:
        return variants.iloc[:0]
    best = variants.loc[variants.groupby(blocks)["validation_perplexity"].idxmin()]
    return best.assign(learner=BEST, picked=best["learner"])


def estimates(records, out):
    """What the engineering checks are about: the gradients of the trainings, time and memory of single steps."""
    return load(Path(__file__).with_name("steps.py")).estimates(records)


def answer(findings, arms) -> str:
    """One sentence: whether there is a crossover, and what a difference can be due to."""
    q = findings["Q"]
    crosses = {
        "supported": "There is an amount of text from which on a variant of EqProp beats backprop",
        "refuted": "There is no amount of text below which backprop wins and above which a variant of EqProp does",
        "undecided": "Whether EqProp beats backprop from some amount of text on is open",
        "not tested": f"Whether EqProp beats backprop from some amount of text on is not tested ({q.reason})",
    }[q.verdict]
    rules = [findings[f"R {name}"].verdict for name in VARIANTS]
    same = sum(verdict == "supported" for verdict in rules)
    tested = sum(verdict != "not tested" for verdict in rules)
    rule = f"; the rule itself makes no difference in {same} of {tested} variants" if tested else ""
    return f"{crosses}{rule}."


STUDY = Study(
    asks="How much training text does equilibrium propagation need to beat backprop?",
    arm="learner",
    arms=tuple(LEARNERS),
    baseline="backprop",
    apart=(BEST,),
    over=("n_chars", "seq_len"),
    replicates=("seed",),
    outcome="loss_nats",
    costs=("wall_s", "flops", "peak_bytes", "saved_bytes"),
    settings=SETTINGS,
    axes=AXES,
    metrics=METRICS,
    parts=PARTS,
    claims=CLAIMS,
    derive=derive,
    estimates=estimates,
    answer=answer,
)

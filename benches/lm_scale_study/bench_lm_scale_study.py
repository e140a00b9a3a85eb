"""From how much text on does EqProp beat backprop?  Fixed: held-out text, updates, optimiser, early stopping."""

import copy
import functools
import json
import math
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mlexp.eqprop.learners import LEARNERS, SIZES, Size, learner, n_params

MAIN = ("backprop", "looped_mlp", "recurrent_core", "full")
CONTROLS = tuple(name for name in LEARNERS if name not in MAIN)
UNROLLED = "_unrolled"  # of a learner's network in test_step: backprop through its free sweeps
STEPPERS = ("backprop", "backprop_matched", *(
    name for row in ("looped_mlp", "recurrent_core", "full", "full_kappa0") for name in (row, row + UNROLLED)
))  # fmt: skip
NUDGES = ("symmetric", "split", "positive")
FORMS = {"n_chars": r"n\d+", "seq_len": r"len\d+", "sweep": r"s\d+", "beta": r"beta\d+_\d+", "tolerance": r"tol\d+_\d+"}
TUNED = json.loads(Path(__file__).with_name("tuned.json").read_text())  # found by tune.py, on validation
LIKE = {"full_kappa0": "full"} | {name: name.removesuffix("_twin") for name in LEARNERS if name.endswith("_twin")}
FIXED_STATE = 0  # the seed of the weights and the batch that test_step and test_gradient look at


@dataclass(frozen=True)
class Settings(Size):
    """The seed's numbers, and ours where it has none. `validation`, `test`: characters scored of these fixed texts.

    updates: instead of `epochs` of at least `least_batches`; least: characters that a scored target has before it, the
    same targets for every sequence length; controls run at the data sizes in `control_sizes` alone; state_updates:
    exact updates before test_gradient looks.
    """

    data_sizes: tuple[str, ...] = ("n1000", "n2000", "n5000", "n10000", "n20000", "n50000")
    lengths: tuple[str, ...] = ("len16", "len32", "len64", "len128")
    sequence_chars: int = 10_000
    seeds: tuple[int, ...] = (42, 43, 44, 45, 46)
    learners: tuple[str, ...] = tuple(LEARNERS)
    controls: tuple[str, ...] = ()
    control_sizes: tuple[str, ...] = ()
    batch: int = 32
    epochs: int = 30
    least_batches: int = 10
    updates: int | None = None
    validation: int = 20_000
    test: int = 40_000
    least: int = 8
    evaluate_every: int = 25
    checks: int = 4
    sweeps: tuple[str, ...] = ("s1", "s2", "s4", "s8", "s16")
    steppers: tuple[str, ...] = STEPPERS
    rounds: int = 5
    variants: tuple[str, ...] = ("looped_mlp", "recurrent_core", "full")
    betas: tuple[str, ...] = ("beta0_01", "beta0_03", "beta0_1", "beta0_3", "beta1_0")
    tolerances: tuple[str, ...] = ("tol1_0", "tol0_3", "tol0_1", "tol0_01")
    nudges: tuple[str, ...] = NUDGES
    state_updates: int = 30

    def __post_init__(self):
        super().__post_init__()
        for name in (*self.learners, *self.controls, *self.variants):
            learner(name)
        for name in self.variants:
            if LEARNERS[name].rule != "eqprop":
                raise ValueError(f"variant {name!r} has no nudge; choose from {', '.join(settled())}")
        for name in self.steppers:
            if name not in STEPPERS:
                raise ValueError(f"unknown stepper {name!r}; choose from {', '.join(STEPPERS)}")
        for nudge in self.nudges:
            if nudge not in NUDGES:
                raise ValueError(f"unknown nudge {nudge!r}; choose from {', '.join(NUDGES)}")
        for what, form in FORMS.items():
            for value in getattr(self, AXES[what]):
                if not re.fullmatch(form, value) or not number(value) > 0:
                    raise ValueError(f"unknown {what} {value!r}; like {getattr(Settings, AXES[what])[0]}, any number")
        for name in ("sequence_chars", "batch", "epochs", "least_batches", "validation", "test", "evaluate_every",
                     "checks", "rounds", "state_updates"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1")
        if self.updates is not None and self.updates < 1:
            raise ValueError(f"updates is {self.updates}; at least 1, or none")
        for size in self.data_sizes:
            if number(size) <= self.length:
                raise ValueError(f"n_chars {size!r}: needs more characters than a sequence has, {self.length}")
        shortest = min(self.length, *map(number, self.lengths))
        if not 1 <= self.least <= shortest:
            raise ValueError(f"least is {self.least}; 1 to {shortest:.0f}, the shortest sequence")

    def steps(self, n_chars: int, length: int) -> int:
        """Updates: the seed's epochs, at least ten batches each."""
        return self.updates or self.epochs * max(self.least_batches, n_chars // (self.batch * length))

    @property
    def planned(self) -> int:
        """Cells of the study proper: both grids and the controls."""
        blocks = len(self.seeds) * (len(self.data_sizes) + len(self.lengths))
        return blocks * len(self.learners) + len(self.seeds) * len(self.controls) * len(self.control_sizes)


def settled() -> tuple[str, ...]:
    return tuple(name for name, row in LEARNERS.items() if row.rule == "eqprop")


def number(value: str) -> float:
    """The number in an axis value: n1000, len64, s8, beta0_03."""
    return float(re.sub(r"^[a-z]+", "", value).replace("_", "."))


AXES = {
    "n_chars": "data_sizes", "seq_len": "lengths", "seed": "seeds", "learner": "learners", "control": "controls",
    "sweep": "sweeps", "stepper": "steppers", "variant": "variants", "beta": "betas", "tolerance": "tolerances",
    "nudge": "nudges",
    "control_size": "control_sizes",  # no cell's argument: where there are controls does not change a cell
}  # fmt: skip
SMALL = Settings(
    **asdict(SIZES["quick"]), data_sizes=("n1000", "n10000", "n50000"), lengths=("len16", "len32"), seeds=(42, 43, 44),
    learners=MAIN, controls=CONTROLS, control_sizes=("n10000",), batch=16, updates=150, validation=5000, test=20_000,
    evaluate_every=10, sweeps=("s1", "s2", "s4", "s16"), betas=("beta0_03", "beta0_1", "beta1_0"),
    tolerances=("tol1_0", "tol0_1", "tol0_01"),
)  # fmt: skip
SETTINGS = {
    "smoke": replace(
        SMALL, width=16, layers=2, heads=2, length=16, data_sizes=("n1000", "n2000"), lengths=("len8", "len16"),
        seeds=(42,), learners=tuple(LEARNERS), controls=(), control_sizes=(), batch=4, updates=4, validation=600,
        test=600, least=4, evaluate_every=2, checks=2, sweeps=("s1", "s2"), rounds=1, betas=("beta0_03",),
        tolerances=("tol0_1", "tol0_01"), state_updates=2,
    ),
    "quick": SMALL,
    "full": Settings(),
}  # fmt: skip
METRICS = {
    "validation_perplexity": ("ratio", "lower", "of the state that was kept, the best"),
    "last_validation_perplexity": ("ratio", "lower", "of the state after the last update"),
    "train_perplexity": ("ratio", "lower", "of the state that was kept, on the text that it was trained on"),
    "unigram_perplexity": ("ratio", "none", "floor: characters' frequencies, on the test text"),
    "bigram_perplexity": ("ratio", "none", "floor: frequencies after each character, on the test text"),
    "gradient_cosine": ("cosine", "higher", "of the estimate to the true gradient of the free fixed point, the least"),
    "inner_cosine": ("cosine", "higher", "the same without the head, whose part needs no rule"),
    "gradient_ratio": ("ratio", "none", "norm of the estimate over that of the true gradient"),
    "free_sweeps": ("sweeps", "lower", "of a free phase, mean"),
    "nudged_sweeps": ("sweeps", "lower", "of a nudged phase (a twin: of the adjoint), mean"),
    "free_residual": ("ratio", "lower", "last relative movement of a free phase, the largest"),
    "nudged_residual": ("ratio", "lower", "last relative residual of a nudged phase, the largest"),
    "updates": ("steps", "none", "optimiser steps"),
    "best_step": ("steps", "none", "the step whose state was kept"),
    "saved_bytes": ("bytes", "lower", "most that autograd held for backward in one step"),
    "step_flops": ("FLOP", "lower", "of one step, by phase times the sweeps made"),
    "step_limit": ("ratio", "none", "a step in backprop steps at equal parameters, if nothing is wasted"),
    "leak": ("fraction", "lower", "held-out 60-grams that stand in the training text too"),
    "learning_rate": ("rate", "none", "peak of the schedule"),
    "dropout": ("fraction", "none", "of the transformer"),
    "weight_decay": ("rate", "none", "of matrices"),
    "tuned": ("flag", "none", "whether these three were found on validation at this scale (tuned.json)"),
    "planned_cells": ("cells", "none", "of the study that this cell was run for"),
}


def inputs(params, settings, options) -> dict[str, object]:
    """The text, which must be long enough for what the cell reads of it: part of the key and of the record."""
    from mlexp.eqprop.chars import excerpt

    words = text(options.corpus)
    excerpt(words.train, int(number(params["n_chars"])) if "n_chars" in params else settings.sequence_chars, 0)
    return {"corpus": words.name, "corpus_hash": words.hash}


def collects(params, settings, device) -> bool:
    return "control" not in params or params["n_chars"] in settings.control_sizes


@functools.cache
def text(corpus):
    from mlexp.eqprop.chars import load

    return load(corpus)


def chosen(scale: str, name: str) -> dict[str, object]:
    """Learning rate, dropout, weight decay; a twin and `full_kappa0` take their learner's."""
    found = TUNED[scale]["learners"].get(LIKE.get(name, name), {})
    return {"lr": LEARNERS[name].lr, "dropout": 0.1 if name.startswith("backprop") else 0.0, "weight_decay": 0.01} | {
        key: found[key] for key in ("lr", "dropout", "weight_decay") if key in found
    }


def test_data_size(cell, n_chars, seed, learner):
    trained(cell, learner, seed, int(number(n_chars)), cell.settings.length)


def test_controls(cell, n_chars, seed, control):
    trained(cell, control, seed, int(number(n_chars)), cell.settings.length)


def test_sequence_length(cell, seq_len, seed, learner):
    trained(cell, learner, seed, cell.settings.sequence_chars, int(number(seq_len)))


def trained(cell, name: str, seed: int, n_chars: int, length: int):
    """Train a learner on an excerpt that the seed alone places, and judge the state of the best validation loss."""
    import torch

    from mlexp.eqprop import chars
    from mlexp.eqprop.train import evaluate, network, train

    need_float32(cell)
    s, row, words, told = cell.settings, LEARNERS[name], text(cell.options.corpus), chosen(cell.scale, name)
    some, steps = chars.excerpt(words.train, n_chars, seed), s.steps(n_chars, length)
    held = {"validation": words.validation[: s.validation], "test": words.test[: s.test], "train": some[: s.validation]}
    windows = {part: chars.scored(of, length, s.least) for part, of in held.items()}
    batches = chars.batches(some, s.batch, length, cell.seed, cell.device)
    size = replace(s, length=length)
    model = network(row, size, cell.seed, told["dropout"], cell.device)
    learn = functools.partial(train, row, lr=told["lr"], weight_decay=told["weight_decay"], checks=s.checks,
                              evaluate_every=s.evaluate_every)  # fmt: skip
    with torch.random.fork_rng():  # what a process loads, chooses and keeps at its first update is no cost of the cell
        learn(copy.deepcopy(model), batches, windows["validation"], 1)
    result, log = cell.time(
        lambda: learn(model, batches, windows["validation"], steps, progress=cell.progress), warmup=False
    )
    losses = {part: evaluate(model, windows[part])[0] for part in ("test", "train")}
    floors = chars.floors(some, held["test"], s.least)
    cell.record(
        loss_nats=losses["test"],
        perplexity=math.exp(losses["test"]),
        validation_perplexity=math.exp(result.held_out[result.best_step]),
        last_validation_perplexity=math.exp(result.held_out[steps]),
        train_perplexity=math.exp(losses["train"]),
        **{f"{name}_perplexity": math.exp(loss) for name, loss in floors.items()},
        n_params=n_params(row, size),
        updates=steps,
        best_step=result.best_step,
        n_tokens=steps * s.batch * length,
        leak=words.leak,
        learning_rate=told["lr"],
        dropout=told["dropout"],
        weight_decay=told["weight_decay"],
        tuned=TUNED[cell.scale]["tuned"],
        planned_cells=s.planned,
        **settling(log),
        **spent(cell, row, model, batches(0), log, steps),
    )
    cell.series(
        losses=result.losses,
        held_out_steps=list(result.held_out),
        held_out=list(result.held_out.values()),
        checked_steps=log.checked_steps,
        gradient_cosine=log.gradient_cosine,
        inner_cosine=log.inner_cosine,
        free_sweeps=log.free_sweeps,
        nudged_sweeps=log.nudged_sweeps,
    )


def need_float32(cell):
    if cell.dtype != "float32":
        raise ValueError(f"dtype {cell.dtype}: settling to a thousandth needs more digits; run with --dtype float32")


def settling(log) -> dict[str, object]:
    """What the settling did, and how well its gradient was the true one; null for backprop."""
    cosines = {name: min(getattr(log, name), default=None) for name in ("gradient_cosine", "inner_cosine")}
    if not log.free_sweeps:
        return cosines
    return cosines | {
        "free_sweeps": sum(log.free_sweeps) / len(log.free_sweeps),
        "nudged_sweeps": sum(log.nudged_sweeps) / len(log.nudged_sweeps),
        "free_residual": max(log.free_residual),
        "nudged_residual": max(log.nudged_residual),
        "unconverged_fraction": log.unconverged_fraction,
    }


def spent(cell, row, model, batch, log, steps: int) -> dict[str, object]:
    """FLOPs of all updates (validation and checks apart), and bytes that one of them saves for backward."""
    from mlexp.eqprop.costs import phase_flops
    from mlexp.eqprop.rule import Rule
    from mlexp.training import saved_bytes

    rule = Rule(row.beta, row.nudge) if row.rule == "eqprop" else None
    loss = step_loss(row, rule)
    saved = saved_bytes(lambda: loss(model, *batch).backward())
    if row.rule == "backprop":
        flops = cell.count(lambda: loss(model, *batch).backward())[1] * steps
    else:
        phase = phase_flops(model, *batch, rule)
        flops = phase["free_sweep"] * sum(log.free_sweeps) + phase["nudged_sweep"] * sum(log.nudged_sweeps)
        flops += phase["update"] * steps
    return {"flops": flops, "step_flops": flops // steps, "saved_bytes": saved}


def step_loss(row, rule):
    """The loss whose backward gives a learner's gradient; `rule` None: the exact one, for a twin."""
    from mlexp.eqprop.rule import loss_of
    from mlexp.eqprop.train import plain_loss

    return plain_loss if row.rule == "backprop" else loss_of(rule)


def fixed_state(cell, name: str):
    """(network at its initial weights, batch function) of test_step and test_gradient, the same in all their cells."""
    from mlexp.eqprop import chars
    from mlexp.eqprop.train import network

    need_float32(cell)
    s = cell.settings
    some = chars.excerpt(text(cell.options.corpus).train, s.sequence_chars, FIXED_STATE)
    model = network(LEARNERS[name], s, FIXED_STATE, chosen(cell.scale, name)["dropout"], cell.device)
    return model, chars.batches(some, s.batch, s.length, FIXED_STATE, cell.device)


def test_step(cell, sweep, stepper):
    """One gradient, each phase swept so many times exactly (backprop: once): time, FLOPs, bytes saved."""
    from mlexp.eqprop.costs import step_limit
    from mlexp.eqprop.exact import unrolled
    from mlexp.eqprop.rule import Rule, contrast
    from mlexp.eqprop.settle import Stop
    from mlexp.eqprop.train import plain_loss
    from mlexp.training import saved_bytes

    name, count = stepper.removesuffix(UNROLLED), int(number(sweep))
    row, stop = LEARNERS[name], Stop(0.0, count)
    model, batches = fixed_state(cell, name)
    x, y = batches(0)
    kind = row.rule if name == stepper else "unrolled"
    run = {
        "backprop": lambda: plain_loss(model, x, y).backward(),
        "unrolled": lambda: unrolled(model, x, y, count).backward(),
        "eqprop": lambda: contrast(model, x, y, Rule(row.beta, row.nudge, stop, stop)),
    }[kind]
    cell.time(run, rounds=cell.settings.rounds)
    cell.record(
        n_params=n_params(row, cell.settings),
        saved_bytes=saved_bytes(run),
        step_limit=step_limit(count if model.feedback else 1, count, row.nudge) if kind == "eqprop" else None,
    )


def test_gradient(cell, variant, beta, tolerance, nudge):
    """The estimate held against the true gradient, a little into training: how good, and at what cost."""
    from mlexp.eqprop.rule import Rule, alignment, contrast
    from mlexp.eqprop.settle import Stop

    model, (x, y) = moved(cell, variant)
    stops = Stop(number(tolerance) / 100, 60), Stop(number(tolerance), 60)
    rule = Rule(number(beta), nudge, *stops)
    _, _, phases = cell.time(lambda: contrast(model, x, y, rule), rounds=cell.settings.rounds)
    found = alignment(model, x, y, rule)
    cell.record(
        gradient_cosine=found.cosine,
        inner_cosine=found.inner_cosine,
        gradient_ratio=found.ratio,
        free_sweeps=phases[0].sweeps,
        nudged_sweeps=phases[1].sweeps,
        free_residual=phases[0].residual,
        nudged_residual=phases[1].residual,
        unconverged_fraction=sum(not phase.converged for phase in phases) / 2,
    )


MOVED = {}  # cells of a variant follow one another


def moved(cell, name: str):
    """(network, batch): some exact updates from its initial weights, and a batch that it has not seen."""
    from mlexp.eqprop import chars
    from mlexp.eqprop.train import train

    s = cell.settings
    key = (name, s, cell.device, cell.options.corpus)
    if key not in MOVED:
        MOVED.clear()
        model, batches = fixed_state(cell, name)
        windows = chars.scored(text(cell.options.corpus).validation[: s.validation], s.length, s.least)
        twin = replace(LEARNERS[name], rule="exact")
        train(twin, model, batches, windows, s.state_updates, evaluate_every=s.state_updates)
        MOVED[key] = model, batches(s.state_updates)
    return MOVED[key]

"""How much text does equilibrium propagation need to beat backprop?  Fixed: held-out text, updates, optimiser."""

import copy
import functools
import json
import math
from dataclasses import replace
from pathlib import Path

from mlexp.eqprop.learners import LEARNERS, n_params
from mlexp.study import beside

declared = beside(__file__)
STUDY, UNROLLED, number = declared.STUDY, declared.UNROLLED, declared.number
TUNED = json.loads(Path(__file__).with_name("tuned.json").read_text())  # found by tune.py, on validation
LIKE = {"full_kappa0": "full"} | {name: name.removesuffix("_twin") for name in LEARNERS if name.endswith("_twin")}
FIXED_STATE = 0  # the seed of the weights and the batch that test_step and test_gradient look at


def inputs(params, settings, options) -> dict[str, object]:
    """The text, which must be long enough for what the cell reads of it: part of the key and of the record."""
    from mlexp.eqprop.chars import excerpt

    corpus = text(options.corpus)
    excerpt(corpus.train, int(number(params["n_chars"])) if "n_chars" in params else settings.sequence_chars, 0)
    return {"corpus": corpus.name, "corpus_hash": corpus.hash}


def collects(params, settings, device) -> bool:
    return "control" not in params or params["n_chars"] in settings.control_sizes


@functools.cache
def text(corpus):
    from mlexp.eqprop.chars import load

    return load(corpus)


def is_tuned(scale: str, name: str) -> bool:
    """Whether this learner's rate was found on validation at this scale."""
    return TUNED[scale]["tuned"] and LIKE.get(name, name) in TUNED[scale]["learners"]


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
    from mlexp.eqprop.train import network, train

    need_float32(cell)
    s, row, corpus, recipe = cell.settings, LEARNERS[name], text(cell.options.corpus), chosen(cell.scale, name)
    train_text, steps = chars.excerpt(corpus.train, n_chars, seed), s.steps(n_chars, length)
    scored = {
        "validation": corpus.validation[: s.validation],
        "test": corpus.test[: s.test],
        "train": train_text[: s.validation],
    }
    windows = {part: chars.scored(of, length, s.min_context) for part, of in scored.items()}
    batches = chars.batches(train_text, s.batch, length, cell.seed, cell.device)
    size = replace(s, length=length)
    model = network(row, size, cell.seed, recipe["dropout"], cell.device)
    learn = functools.partial(train, row, lr=recipe["lr"], weight_decay=recipe["weight_decay"], checks=s.checks,
                              evaluate_every=s.evaluate_every, rule=rule_of(row, s))  # fmt: skip
    score, validate = scores_of(cell)
    with torch.random.fork_rng():  # what a process loads, chooses and keeps at its first update is no cost of the cell
        learn(copy.deepcopy(model), batches, windows["validation"], 1, score=score)
    result, log = cell.time(
        lambda: learn(model, batches, windows["validation"], steps, score=validate, progress=cell.progress),
        warmup=False,
    )
    losses = {part: score(model, windows[part]).loss for part in ("test", "train")}
    floors = chars.floors(train_text, scored["test"], s.min_context)
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
        leak=corpus.leak,
        learning_rate=recipe["lr"],
        dropout=recipe["dropout"],
        weight_decay=recipe["weight_decay"],
        tuned=is_tuned(cell.scale, name),
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


def scores_of(cell):
    """Two functions that score a model: one for any time, and one whose time within the training counts apart."""
    from mlexp.eqprop.train import evaluate

    score = functools.partial(evaluate, tolerance=cell.settings.prediction_tolerance)

    def validate(model, windows):
        with cell.part("scoring_s"):
            return score(model, windows)

    return score, validate


def rule_of(row, settings):
    """How a learner that settles does so in training; None for the others."""
    from mlexp.eqprop.rule import FREE, NUDGED, Rule

    if row.rule != "eqprop":
        return None
    stops = replace(FREE, tolerance=settings.free_tolerance), replace(NUDGED, tolerance=settings.nudged_tolerance)
    return Rule(row.beta, row.nudge, *stops)


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
        "prediction_sweeps": sum(log.prediction_sweeps) / len(log.prediction_sweeps),
        "free_residual": max(log.free_residual),
        "nudged_residual": max(log.nudged_residual),
        "unconverged_fraction": log.unconverged_fraction,
    }


def spent(cell, row, model, batch, log, steps: int) -> dict[str, object]:
    """FLOPs of all updates (validation and checks apart), and bytes that one of them saves for backward."""
    from mlexp.eqprop.costs import phase_flops
    from mlexp.training import saved_bytes

    rule = rule_of(row, cell.settings)
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
    train_text = chars.excerpt(text(cell.options.corpus).train, s.sequence_chars, FIXED_STATE)
    model = network(LEARNERS[name], s, FIXED_STATE, chosen(cell.scale, name)["dropout"], cell.device)
    return model, chars.batches(train_text, s.batch, s.length, FIXED_STATE, cell.device)


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
        windows = chars.scored(text(cell.options.corpus).validation[: s.validation], s.length, s.min_context)
        twin = replace(LEARNERS[name], rule="exact")
        train(twin, model, batches, windows, s.state_updates, evaluate_every=s.state_updates)
        MOVED[key] = model, batches(s.state_updates)
    return MOVED[key]

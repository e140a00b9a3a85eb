"""Cells of the language-model question in-process: which text reaches what, and every recorded metric once more."""

import json
import math
from dataclasses import replace
from statistics import fmean

import pytest
import torch

from mlexp.eqprop import chars
from mlexp.eqprop import exact as exact_module
from mlexp.eqprop import rule as rule_module
from mlexp.eqprop import train as train_module
from mlexp.eqprop.costs import step_limit
from mlexp.eqprop.exact import exact, unrolled
from mlexp.eqprop.learners import LEARNERS
from mlexp.eqprop.rule import Alignment, Rule, contrast, loss_of
from mlexp.eqprop.settle import Settled, Stop
from mlexp.eqprop.train import Log, evaluate, network, plain_loss
from mlexp.flops import count_flops
from mlexp.training import Fit, saved_bytes

from .command import ROOT
from .lm_scale import CORPUS, FakeCell, marked_text, module, part_of

STEPS, SEED = 6, 7
TUNED = {"lr": 0.0125, "dropout": 0.2, "weight_decay": 0.07}
HELD_OUT = {2: 3.0, 4: 1.25, 6: 2.0}  # neither the first, nor the last is the best


@pytest.fixture
def bench(monkeypatch):
    made, text = module("bench_lm_scale_study"), marked_text()
    monkeypatch.setattr(made, "text", {CORPUS: text}.__getitem__)
    rows = {name: TUNED | {"lr": 0.01 * (i + 1)} for i, name in enumerate(LEARNERS) if not name.endswith("_twin")}
    tables = {"smoke": {"tuned": True, "learners": rows}, "quick": {"tuned": False, "learners": {}}}
    monkeypatch.setattr(made, "TUNED", tables)
    return made


def settings(bench, **changes):
    some = {"sequence_chars": 900, "updates": STEPS, "validation": 300, "test": 400, "evaluate_every": 3, "checks": 3,
            "free_tolerance": 0.002, "nudged_tolerance": 0.3, "prediction_tolerance": 0.02}  # fmt: skip
    return replace(bench.STUDY.settings["smoke"], **some, **changes)


def log_of(row):
    """A log whose means, medians, extremes and last values all differ."""
    log = Log(checked_steps=[0, 3, 6], gradient_cosine=[0.99, 0.5, 0.75], inner_cosine=[0.9, 0.7, 0.25])
    if row.rule == "backprop":
        return Log()
    log.free_sweeps = [2, 5, 3, 2, 4, 1] if row.kappa or row.network == "hopfield" else [1] * STEPS
    log.nudged_sweeps = [1, 2, 3, 2, 2, 9]
    log.free_residual, log.nudged_residual = [0.1, 0.3, 0.2, 0, 0, 0.05], [0.4, 0.6, 0.9, 0, 0, 0.7]
    log.unconverged, log.prediction_sweeps = 3, [4.0, 9.5, 6.0]
    if row.rule == "exact":
        log.checked_steps, log.gradient_cosine, log.inner_cosine = [], [], []
    return log


class FakeTraining:
    """Stands in for mlexp.eqprop.train.train: keeps what it was given, moves the weights, tells a made-up course."""

    def __init__(self, cell):
        self.cell, self.calls = cell, []

    def __call__(self, row, model, batches, windows, steps, **named):
        start = {name: p.clone() for name, p in model.state_dict().items()}
        self.calls.append((self.cell.timing, row, start, batches, windows, steps, named, torch.get_rng_state()))
        torch.rand(3)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.ones_like(p).cumsum(-1) / p.shape[-1])
        if steps == 1:
            return Fit([1.0], {1: 1.0}, 1), Log()
        self.model = model
        return Fit([5.0, 4.0, 3.0, 2.5, 2.25, 2.125], dict(HELD_OUT), 4), log_of(row)


GRIDS = {
    "data_size": ("test_data_size", "n500", 500, 16),
    "controls": ("test_controls", "n700", 700, 16),
    "sequence_length": ("test_sequence_length", "len8", 900, 8),
}


SOME = [(name, grid) for name in ("backprop", "looped_mlp", "full_twin") for grid in ("controls", "sequence_length")]


@pytest.mark.parametrize(("name", "grid"), [*((name, "data_size") for name in LEARNERS), *SOME])
def test_a_training_cell_records_what_the_training_did(bench, monkeypatch, name, grid):
    function, value, n_chars, length = GRIDS[grid]
    s, row, text = settings(bench), LEARNERS[name], marked_text()
    cell = FakeCell(s)
    training = FakeTraining(cell)
    monkeypatch.setattr(train_module, "train", training)
    monkeypatch.setattr(chars, "floors", made_floors)
    getattr(bench, function)(cell, value, SEED, name)
    tuned_as = "full" if name == "full_kappa0" else name.removesuffix("_twin")
    lr = bench.TUNED["smoke"]["learners"][tuned_as]["lr"]
    some, size = chars.excerpt(text.train, n_chars, SEED), replace(s, length=length)
    check_calls(training, cell, row, size, some, lr, length)
    model, log = training.model, log_of(row)
    test, train = (
        evaluate(model, chars.scored(part, length, s.min_context), tolerance=0.02).loss
        for part in (text.test[:400], some[:300])
    )
    floors = made_floors(some, text.test[:400], s.min_context)
    want = {
        "loss_nats": test,
        "perplexity": math.exp(test),
        "validation_perplexity": math.exp(1.25),
        "last_validation_perplexity": math.exp(2.0),
        "train_perplexity": math.exp(train),
        "unigram_perplexity": math.exp(floors["unigram"]),
        "bigram_perplexity": math.exp(floors["bigram"]),
        "n_params": sum(p.numel() for p in model.parameters()),
        "updates": STEPS,
        "best_step": 4,
        "n_tokens": STEPS * 4 * length,
        "leak": 0.03125,
        "learning_rate": lr,
        "dropout": 0.2,
        "weight_decay": 0.07,
        "tuned": True,
        "planned_cells": s.planned,
        "gradient_cosine": 0.5 if row.rule == "eqprop" else None,
        "inner_cosine": 0.25 if row.rule == "eqprop" else None,
    }
    if row.rule != "backprop":
        want |= {
            "free_sweeps": fmean(log.free_sweeps),
            "nudged_sweeps": 19 / 6,
            "prediction_sweeps": 6.5,
            "free_residual": 0.3,
            "nudged_residual": 0.9,
            "unconverged_fraction": 0.25,
        }
    flops, saved = spent(row, model, chars.batches(some, 4, length, cell.seed)(0), log)
    want |= {"flops": flops, "step_flops": flops // STEPS, "saved_bytes": saved}
    assert cell.values.keys() == want.keys()
    for metric, value in want.items():
        assert cell.values[metric] == (pytest.approx(value) if isinstance(value, float) else value), metric
    assert cell.arrays == {
        "losses": [5.0, 4.0, 3.0, 2.5, 2.25, 2.125], "held_out_steps": [2, 4, 6], "held_out": [3.0, 1.25, 2.0],
        "checked_steps": log.checked_steps, "gradient_cosine": log.gradient_cosine, "inner_cosine": log.inner_cosine,
        "free_sweeps": log.free_sweeps, "nudged_sweeps": log.nudged_sweeps,
    }  # fmt: skip


def made_floors(train, scored, least=1):
    """Numbers that differ by what the floors are of: of these parts the real ones hardly differ."""
    return {
        "unigram": float(train.float().mean()) / 50,
        "bigram": float(scored.float().mean()) / 50 + least / 8 + len(scored) / 1000,
    }


def test_updates_are_those_made_where_the_settings_name_epochs(bench, monkeypatch):
    cell = FakeCell(replace(settings(bench), updates=None, epochs=1, min_batches=STEPS))
    monkeypatch.setattr(train_module, "train", FakeTraining(cell))
    bench.test_data_size(cell, "n300", SEED, "backprop")
    assert cell.values["updates"] == STEPS and cell.values["n_tokens"] == STEPS * 4 * 16


def check_calls(training, cell, row, size, some, lr, length):
    """One untimed update of a copy, then the timed training: the same start, random numbers, text and options."""
    assert [(timed, steps) for timed, *_, steps, _, _ in training.calls] == [(False, 1), (True, STEPS)]
    assert cell.timed == [(1, False)]
    fresh = network(row, size, cell.seed, TUNED["dropout"]).state_dict()
    states = []
    for _, own, start, batches, windows, _, named, state in training.calls:
        assert own is row and all(torch.equal(start[key], fresh[key]) for key in fresh)
        named = {name: value for name, value in named.items() if name not in ("progress", "score")}
        rule = Rule(row.beta, row.nudge, Stop(0.002, 60), Stop(0.3, 60)) if row.rule == "eqprop" else None
        assert named == {"lr": lr, "weight_decay": 0.07, "checks": 3, "evaluate_every": 3, "rule": rule}
        want = chars.batches(some, 4, length, cell.seed)
        for step in range(5):
            assert all(torch.equal(a, b) for a, b in zip(batches(step), want(step), strict=True))
            assert part_of(*batches(step)) == "train"
        scored = chars.scored(marked_text().validation[:300], length, 4)
        assert all(torch.equal(a, b) for a, b in zip(windows, scored, strict=True))
        assert part_of(*windows[:2]) == "validation"
        states.append(state)
    assert torch.equal(*states)
    assert getattr(training.model, "drop", 0.2) == 0.2


def spent(row, model, batch, log):
    """(FLOPs of all updates, bytes saved in one), by counting each update as it was: so many sweeps of each phase."""
    if row.rule == "backprop":
        return (STEPS * count_flops(lambda: plain_loss(model, *batch).backward())[1],
                saved_bytes(lambda: plain_loss(model, *batch).backward()))  # fmt: skip
    rule, flops = (Rule(row.beta, row.nudge) if row.rule == "eqprop" else None), 0
    counted = {}
    for sweeps in zip(log.free_sweeps, log.nudged_sweeps, strict=True):
        stops = [Stop(0.0, n) for n in sweeps]
        if sweeps not in counted:
            counted[sweeps] = count_flops(
                lambda: contrast(model, *batch, Rule(row.beta, row.nudge, *stops)) if rule  # noqa: B023
                else exact(model, *batch, *stops)  # noqa: B023
            )[1]  # fmt: skip
        flops += counted[sweeps]
    return flops, saved_bytes(lambda: loss_of(rule)(model, *batch).backward())


def test_the_judged_texts_are_the_test_text_and_what_was_trained_on(bench, monkeypatch):
    """Selection sees validation alone, judging comes after it; a real training of every kind of learner."""
    seen, real = [], train_module.evaluate

    def watched(model, windows, tolerance):
        assert tolerance == 0.02
        seen.append((cell.timing, part_of(*windows[:2])))
        return real(model, windows, tolerance=tolerance)

    monkeypatch.setattr(train_module, "evaluate", watched)
    for name in ("backprop", "full", "looped_mlp_twin"):
        seen.clear()
        cell = FakeCell(settings(bench))
        bench.test_data_size(cell, "n500", SEED, name)
        assert seen == [(False, "validation"), (True, "validation"), (True, "validation"), (False, "test"),
                        (False, "train")]  # fmt: skip
        losses = cell.arrays["held_out"]
        assert cell.values["scoring_s"] == 2 * 0.25  # the two of the timed training
        assert cell.arrays["held_out_steps"] == [3, 6] and len(cell.arrays["losses"]) == STEPS
        assert cell.values["validation_perplexity"] == pytest.approx(math.exp(min(losses)))
        assert cell.values["last_validation_perplexity"] == pytest.approx(math.exp(losses[-1]))
        assert len(cell.arrays["gradient_cosine"]) == (3 if name == "full" else 0)


def test_seeds_move_the_excerpt_and_the_weights_apart(bench, monkeypatch):
    starts = []
    for axis_seed, cell_seed in ((7, 11), (8, 11), (7, 12)):
        cell = FakeCell(settings(bench), seed=cell_seed)
        training = FakeTraining(cell)
        monkeypatch.setattr(train_module, "train", training)
        bench.test_data_size(cell, "n500", axis_seed, "full")
        _, _, start, batches, *_ = training.calls[1]
        starts.append((torch.cat([p.flatten() for p in start.values()]), batches(0)[0]))
    assert torch.equal(starts[0][0], starts[1][0]) and not torch.equal(starts[0][0], starts[2][0])
    assert not torch.equal(starts[0][1], starts[1][1]) and not torch.equal(starts[0][1], starts[2][1])


def test_chosen_options_are_the_scale_s_own_and_a_twin_s_are_its_learner_s(bench):
    row = TUNED | {"lr": 0.01 * (1 + list(LEARNERS).index("full"))}
    assert bench.chosen("smoke", "full") == bench.chosen("smoke", "full_twin") == row
    assert bench.chosen("smoke", "full_kappa0") == row
    for name in LEARNERS:
        dropout = 0.1 if name.startswith("backprop") else 0.0
        want = {"lr": LEARNERS[name].lr, "dropout": dropout, "weight_decay": 0.01}
        assert bench.chosen("quick", name) == want
    bench.TUNED["quick"]["learners"]["full"] = {"lr": 0.5, "tried": [1], "validation_perplexity": 3.0}
    assert bench.chosen("quick", "full_twin") == {"lr": 0.5, "dropout": 0.0, "weight_decay": 0.01}


def test_another_dtype_is_refused(bench):
    for dtype in ("bfloat16", "float16"):
        cell = FakeCell(settings(bench))
        cell.dtype = dtype
        for run, params in ((bench.test_data_size, ("n500", 7, "full")), (bench.test_step, ("s1", "full"))):
            with pytest.raises(ValueError, match=f"dtype {dtype}: settling to a thousandth needs more digits"):
                run(cell, *params)


def test_the_text_is_part_of_the_key_and_must_be_long_enough(bench):
    s, options = settings(bench), FakeCell(None).options
    assert bench.inputs({}, s, options) == {"corpus": "marked", "corpus_hash": "0123456789abcdef"}
    for params, changes in (({"n_chars": "n3001"}, {}), ({}, {"sequence_chars": 3001})):
        with pytest.raises(ValueError, match="n_chars=3001: the training text has 3000"):
            bench.inputs(params, replace(s, **changes), options)
    bench.inputs({"n_chars": "n3000"}, replace(s, sequence_chars=9999), options)


def test_controls_run_where_the_settings_say(bench):
    s = replace(settings(bench), controls=("full_twin",), control_sizes=("n2000",))
    assert bench.collects({"control": "full_twin", "n_chars": "n2000"}, s, "cpu")
    assert not bench.collects({"control": "full_twin", "n_chars": "n1000"}, s, "cpu")
    assert bench.collects({"learner": "full", "n_chars": "n1000"}, s, "cpu")


def test_updates_and_planned_cells_are_the_settings(bench):
    s = replace(settings(bench), updates=None, epochs=3, min_batches=10)
    assert s.steps(6400, 16) == 3 * 6400 // (4 * 16) and s.steps(64, 16) == 30 and s.steps(6463, 16) == 300
    assert replace(s, updates=5).steps(6400, 16) == 5
    s = replace(s, seeds=(1, 2, 3), controls=("full", "full_twin"), control_sizes=("n1000",), learners=("full",))
    assert s.planned == 3 * (2 + 2) * 1 + 3 * 2 * 1
    assert [bench.number(value) for value in ("n1000", "len64", "s8", "beta0_03", "tol1_0")] == [1000, 64, 8, 0.03, 1]


class Spies:
    """What test_step and test_gradient call, and with what."""

    def __init__(self, monkeypatch):
        self.contrasts, self.unrolls, self.alignments = [], [], []
        monkeypatch.setattr(rule_module, "contrast", self.contrast)
        monkeypatch.setattr(exact_module, "unrolled", self.unrolled)

    def contrast(self, model, x, y, rule):
        self.contrasts.append((model, x, y, rule))
        return contrast(model, x, y, rule)

    def unrolled(self, model, x, y, sweeps):
        self.unrolls.append((model, x, y, sweeps))
        return unrolled(model, x, y, sweeps)


@pytest.mark.parametrize("sweep", ["s1", "s3"])
@pytest.mark.parametrize("stepper", module("bench_lm_scale_study").declared.STEPPERS)
def test_a_step_sweeps_as_often_as_it_says(bench, monkeypatch, stepper, sweep):
    name, count, spies = stepper.removesuffix("_unrolled"), int(sweep[1:]), Spies(monkeypatch)
    s, row = settings(bench, rounds=4), LEARNERS[name]
    cell = FakeCell(s)
    bench.test_step(cell, sweep, stepper)
    assert cell.timed == [(4, True)]
    model = network(row, s, 0, 0.2)
    x, y = chars.batches(chars.excerpt(marked_text().train, 900, 0), 4, 16, 0)(0)
    stop, limit = Stop(0.0, count), None
    if stepper != name:
        want, calls = saved_bytes(lambda: unrolled(model, x, y, count).backward()), spies.unrolls
        assert {call[3] for call in calls} == {count} and not spies.contrasts
    elif row.rule == "backprop":
        want, calls = saved_bytes(lambda: plain_loss(model, x, y).backward()), []
        assert not spies.contrasts and not spies.unrolls
    else:
        rule = Rule(row.beta, row.nudge, stop, stop)
        want, calls = saved_bytes(lambda: contrast(model, x, y, rule)), spies.contrasts
        assert {call[3] for call in calls} == {rule} and not spies.unrolls
        limit = step_limit(1 if name == "full_kappa0" else count, count, row.nudge)
    for own, *batch, _ in calls:
        assert torch.equal(batch[0], x) and torch.equal(batch[1], y)
        assert all(torch.equal(a, b) for a, b in zip(own.parameters(), model.parameters(), strict=True))
    n_params = sum(p.numel() for p in model.parameters())
    assert cell.values == {"n_params": n_params, "saved_bytes": want, "step_limit": limit}


def test_a_gradient_cell_records_the_alignment_and_phases_of_its_rule(bench, monkeypatch):
    cell, spies = FakeCell(settings(bench, rounds=3)), []
    phases = Settled([], 5, 0.125, True), Settled([], 9, 0.5, True)

    def fake_contrast(model, x, y, rule):
        spies.append(("contrast", model, x, y, rule))
        return None, None, phases

    def fake_alignment(model, x, y, rule):
        spies.append(("alignment", model, x, y, rule))
        return Alignment(0.9, 0.8, 1.5)

    state = network(LEARNERS["full"], cell.settings, 0), (torch.ones(1), torch.zeros(1))
    monkeypatch.setattr(bench, "moved", lambda cell, name: state)
    monkeypatch.setattr(rule_module, "contrast", fake_contrast)
    monkeypatch.setattr(rule_module, "alignment", fake_alignment)
    bench.test_gradient(cell, "full", "beta0_3", "tol0_05", "positive")
    assert cell.timed == [(3, True)] and [what for what, *_ in spies] == ["contrast", "alignment"]
    for _, model, x, y, rule in spies:
        assert (model, x, y) == (state[0], *state[1])
        assert rule == Rule(0.3, "positive", Stop(0.0005, 60), Stop(0.05, 60))
    assert cell.values == {
        "gradient_cosine": 0.9, "inner_cosine": 0.8, "gradient_ratio": 1.5, "free_sweeps": 5, "nudged_sweeps": 9,
        "free_residual": 0.125, "nudged_residual": 0.5, "unconverged_fraction": 0,
    }  # fmt: skip


def test_gradients_are_looked_at_after_exact_updates_and_on_a_batch_not_seen(bench, monkeypatch):
    s, calls = settings(bench, state_updates=3), []
    monkeypatch.setattr(train_module, "train", lambda *args, **named: calls.append((args, named)))
    cell = FakeCell(s)
    model, (x, y) = bench.moved(cell, "full")
    (((row, trained, batches, windows, steps), named),) = calls
    assert trained is model and row == replace(LEARNERS["full"], rule="exact")
    assert steps == 3 and named == {"evaluate_every": 3}
    assert part_of(*windows[:2]) == "validation" and part_of(x, y) == "train" and len(windows[0]) > 1
    want = chars.batches(chars.excerpt(marked_text().train, 900, 0), 4, 16, 0)
    assert all(torch.equal(batches(k)[0], want(k)[0]) for k in range(3)) and torch.equal(x, want(3)[0])
    assert not any(torch.equal(x, batches(k)[0]) for k in range(3))


def test_a_moved_network_serves_the_cells_that_share_all_it_depends_on(bench, monkeypatch):
    monkeypatch.setattr(train_module, "train", lambda *args, **named: None)
    monkeypatch.setattr(bench, "text", lambda corpus: marked_text())
    s = settings(bench)
    first = bench.moved(FakeCell(s), "full")
    assert bench.moved(FakeCell(s), "full") is first
    other = FakeCell(s)
    other.options = type(other.options)(corpus="another")
    for cell, name in (
        (FakeCell(s), "recurrent_core"),
        (FakeCell(replace(s, state_updates=9)), "full"),
        (other, "full"),
    ):
        assert bench.moved(FakeCell(s), "full") is bench.moved(FakeCell(s), "full")
        before = bench.moved(FakeCell(s), "full")
        assert bench.moved(cell, name) is not before, name


def test_the_tuned_file_has_what_the_cells_take_from_it():
    found = json.loads((ROOT / "benches/lm_scale_study/tuned.json").read_text())
    assert set(found) == {"smoke", "quick", "full"}
    for table in found.values():
        for row in table["learners"].values():
            best = min(
                (r for r in row["tried"] if r["gradient_cosine"] >= 0.99), key=lambda r: r["validation_perplexity"]
            )
            assert {name: row[name] for name in ("lr", "dropout", "weight_decay")} == {
                name: best[name] for name in ("lr", "dropout", "weight_decay")
            }


def test_a_learner_without_a_rate_of_its_own_is_not_called_tuned(bench):
    del bench.TUNED["smoke"]["learners"]["recurrent_core"]
    tuned = {name for name in LEARNERS if bench.is_tuned("smoke", name)}
    assert {name for name in LEARNERS if name.startswith("recurrent_core")} == set(LEARNERS) - tuned
    assert not any(bench.is_tuned("quick", name) for name in LEARNERS)

"""The attention question: settings, one cell whose every number is found again, its tuner, and a run as typed."""

import functools
import hashlib
import json
import math
import shutil
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mlexp.attention import evaluate as ev
from mlexp.attention import learn
from mlexp.attention import text as texts
from mlexp.attention.model import build
from mlexp.attention.variants import (
    SHAPES,
    VARIANTS,
    Shape,
    active_params,
    attention_params,
    kv_bytes_per_token,
    total_params,
    training_flops_per_token,
)
from mlexp.flops import count_flops
from mlexp.text.corpus import read_corpus

from .attention.test_text import a_tokenizer
from .command import ROOT, run
from .stand_ins import OneCell, load

QUESTION = ROOT / "benches" / "attention_search"
NEW = {"micro_batch": 3, "eval_batches": 3, "longer_windows": 5, "factors": (1, 3), "steps": 23, "batch": 5}


def typed(place, *words, question=QUESTION, name="out.json"):
    where = ("--journal", str(place / "journal.jsonl"), "--benchmark-json", str(place / name))
    options = ("--scale", "smoke", "-p", "no:cacheprovider", "--benchmark-quiet", "-c", "pyproject.toml")
    return run(place, "pytest", str(question), *options, *where, *words)


@pytest.fixture(scope="module")
def grid():
    return load("attention_search", "bench_attention_search")


@pytest.fixture(scope="module")
def tune(grid):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "bench_attention_search", grid)
        yield load("attention_search", "tune")


# --- settings


FULL = {"budgets": ("original", "finished"), "matches": ("same_shape",), "seeds": (42, 43, 44, 45, 46),
        "shape": "full", "text": "natural", "steps": 50, "batch": 16, "eval_batches": 10, "held_out": 40_000,
        "tokenizer": None, "compile": False, "lr": None, "untuned_lr": 1e-3, "factors": (1, 2, 4)}  # fmt: skip
QUICK = {"budgets": ("finished",), "shape": "quick", "text": "synthetic", "steps": 100, "batch": 32,
         "untuned_lr": 1e-2, "longer_windows": 64, "micro_batch": None}  # fmt: skip


def test_scales_are_the_original_s_numbers_and_what_is_said_to_be_smaller(grid):
    arms = (*VARIANTS, "again", "half_size")
    assert asdict(grid.STUDY.settings["full"]) == FULL | {"variants": arms, "micro_batch": 8, "longer_windows": 16}
    assert asdict(grid.declared.Settings()) == asdict(grid.STUDY.settings["full"]) | {"micro_batch": None}
    quick = FULL | QUICK | {"variants": (*arms, *grid.declared.FACTORIAL)}
    assert asdict(grid.STUDY.settings["quick"]) == quick
    smoke = {"seeds": (42, 43), "steps": 6, "batch": 8, "eval_batches": 2, "longer_windows": 4}
    assert asdict(grid.STUDY.settings["smoke"]) == quick | smoke
    assert grid.STUDY.axes == {"budget": "budgets", "match": "matches", "seed": "seeds", "variant": "variants"}
    assert (grid.ORIGINAL_LR, grid.BUDGETS) == (1e-4, {"original": "seed", "finished": "finished"})


def test_the_factorial_is_every_combination_of_three_options(grid):
    plain = VARIANTS["mla_plain"]
    options = {"q": {"q_rank": 32}, "pi": {"factor": 2.0}, "bias": {"bias": True}}
    names = {"mla_only_pi": ("pi",), "mla_q_pi": ("q", "pi"), "mla_q_bias": ("q", "bias"),
             "mla_bias_pi": ("bias", "pi"), "mla_all_three": ("q", "pi", "bias")}  # fmt: skip
    made = {n: replace(plain, **{k: v for o in some for k, v in options[o].items()}) for n, some in names.items()}
    assert made == grid.declared.FACTORIAL
    kinds = {**VARIANTS, "again": plain, "half_size": VARIANTS["baseline"], **made}
    assert kinds == grid.KINDS


def test_rates_are_the_given_the_original_s_the_tuned_or_the_fallback_in_this_order(grid, tmp_path, monkeypatch):
    s = grid.STUDY.settings["smoke"]
    monkeypatch.setattr(grid, "RATES", tmp_path / "rates.json")
    grid.RATES.write_text(json.dumps({"quick-some-6x8": {"rates": {"mla_plain": 0.3, "gqa": 0.2}}}))
    assert grid.rate(replace(s, lr=0.7), "original", "gqa", "some") == (0.7, False)
    assert grid.rate(replace(s, lr=0.7), "finished", "gqa", "some") == (0.7, False)
    assert grid.rate(s, "original", "gqa", "some") == (1e-4, False)
    assert grid.rate(s, "finished", "gqa", "some") == (0.2, True)
    assert grid.rate(s, "finished", "again", "some") == grid.rate(s, "finished", "mla_plain", "some") == (0.3, True)
    for change, corpus in (({}, "other"), ({"steps": 7}, "some"), ({"batch": 9}, "some")):
        assert grid.rate(replace(s, **change), "finished", "gqa", corpus) == (1e-2, False)
    assert grid.rate(s, "finished", "mqa", "some") == (1e-2, False)
    assert grid.place(grid.declared.Settings(shape="natural"), "x") == "natural-x-50x16"


def test_what_is_read_is_part_of_the_key(grid, tmp_path):
    natural = replace(grid.STUDY.settings["smoke"], text="natural", shape="natural")
    one, two = (tmp_path / f"{n}.txt" for n in "ab")
    one.write_text("first\n\nparagraph\n")
    two.write_text("second\n\nparagraph\n")
    identity = lambda path, s=natural: grid.inputs({}, s, SimpleNamespace(corpus=path and str(path)))  # noqa: E731
    corpora = {path: read_corpus(path) for path in (None, one, two)}
    for path, corpus in corpora.items():
        assert identity(path) == {"corpus": corpus.name, "corpus_hash": corpus.hash}
    assert len({corpus.hash for corpus in corpora.values()}) == 3
    hashes = set()
    for end in ("<fin>", "<stop>"):
        folder = a_tokenizer(tmp_path / end.strip("<>"), end)
        for place in (folder, folder / "tokenizer.json"):
            mark = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()[:8]
            found = identity(one, replace(natural, tokenizer=str(place)))
            assert found == {"corpus": "a.txt", "corpus_hash": f"{corpora[one].hash}-{mark}"}
            hashes.add(found["corpus_hash"])
    assert len(hashes) == 2
    assert identity(None, grid.STUDY.settings["smoke"]) == {"corpus": "multi_lag_v64"}
    with pytest.raises(ValueError, match="text=synthetic reads none"):
        identity(one, grid.STUDY.settings["smoke"])


def test_natural_text_is_made_as_the_settings_say(grid, monkeypatch):
    calls = []
    monkeypatch.setattr(texts, "natural_text", lambda *args: calls.append(args) or len(calls))
    s = replace(grid.declared.Settings(shape="natural", held_out=77), tokenizer="own.json")
    assert grid.material(s, 42, "corpus.txt") == grid.material(s, 43, "corpus.txt") == 1  # tokenised once
    assert grid.material(s, 42, "other.txt") == 2
    held_out = {"tune": 77, "validation": 77, "test": 77}
    assert calls == [(held_out, 1024, "corpus.txt", "own.json"), (held_out, 1024, "other.txt", "own.json")]
    grid.material.cache_clear(), grid.natural.cache_clear()


def test_synthetic_text_has_a_training_stream_a_seed_and_held_out_parts_for_all(grid):
    s = replace(grid.STUDY.settings["smoke"], **NEW)
    one, two = (grid.material(s, seed, None) for seed in (42, 43))
    source = texts.Source()
    longest = max(3 * 5, 5 + 3) * 64 + 1
    for at, name in enumerate(("train", "tune", "validation", "test")):
        for text, seed in ((one, 42), (two, 43)):
            length, seed = (23 * 5 * 64 + 1, seed) if name == "train" else (longest, 0)
            assert (text.parts[name].tokens == source.stream(length, (seed, at))).all()
    assert one.floors == texts.floors(one.parts, 64) | {"bayes": source.bayes(one.parts["test"].tokens)}


# --- one cell


CASES = {  # (budget, match, variant): changed settings
    ("finished", "same_shape", "lora_small"): {},
    ("original", "same_shape", "baseline"): {"batch": 4, "factors": (1, 2)},
    ("finished", "same_params", "again"): {"micro_batch": None},
    ("finished", "same_flops", "enhanced_small"): {"lr": 0.02},
    ("finished", "same_flops", "half_size"): {"steps": 6},
}


class Ran:
    """A cell that ran, with what reached training; its text is taken from the sentinel streams it should have read."""

    def __init__(self, grid, case, **options):
        (self.budget, self.match, self.variant), change = case, CASES[case]
        self.settings = replace(grid.STUDY.settings["smoke"], **NEW | change)
        self.cell, self.grid, train = OneCell(grid, self.settings, 99, **options), grid, learn.train

        def noted(model, batches, *args, **named):
            self.model, self.batches, self.args, self.named = model, batches, args, named
            self.first = {name: p.clone() for name, p in model.state_dict().items()}
            self.fit = train(model, batches, *args, **named)
            return self.fit

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(learn, "train", noted)
            grid.test_train(self.cell, self.budget, self.match, 42, self.variant)
        self.values, self.arrays, self.text = self.cell.values, self.cell.arrays, grid.material(self.settings, 42)
        self.arm, self.shape, self.steps = self.plan()

    def plan(self):
        arm, shape, steps = self.grid.KINDS[self.variant], SHAPES["quick"], self.settings.steps
        if self.variant == "half_size":
            return arm, Shape(32, 1, 2, 128, 64, 64), steps
        if self.match == "same_params":
            ff = min(range(1, 600), key=lambda f: abs(total_params(arm, replace(shape, ff=f)) - 102_720))
            shape = replace(shape, ff=ff)
        if self.match == "same_flops":
            budget = steps * training_flops_per_token(VARIANTS["baseline"], shape)
            steps = min(range(1, 200), key=lambda n: abs(n * training_flops_per_token(arm, shape) - budget))
        return arm, shape, steps


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def ran(request, grid):
    return Ran(grid, request.param)


def test_a_cell_trains_on_its_seed_s_stream_alone(ran):
    s = ran.settings
    stream = texts.Source().stream(s.steps * s.batch * 64 + 1, (42, 0))
    assert (ran.batches.tokens.numpy() == stream).all()
    twin = texts.Batches(texts.Part(stream, np.zeros(1)), 64, s.batch, 42)
    for step in (0, 3, s.steps - 1):
        assert all(torch.equal(a, b) for a, b in zip(ran.batches(step), twin(step), strict=True))
    assert ran.cell.timed == [(1, False)]


def test_a_cell_trains_the_arm_as_its_settings_say(ran):
    s, v = ran.settings, ran.values
    lr, tuned = (s.lr, False) if s.lr else (1e-4, False) if ran.budget == "original" else (1e-2, False)
    recipe = "seed" if ran.budget == "original" else "finished"
    assert ran.args == (ran.steps, lr, recipe, torch.float32)
    assert ran.named == {"micro_batch": s.micro_batch, "compiled": False, "progress": ran.cell.progress}
    assert (v["lr"], v["lr_tuned"], v["steps"]) == (lr, tuned, ran.steps)
    twin = build(ran.arm, ran.shape, 1_000_042 if ran.variant == "again" else 42)
    assert all(torch.equal(p, ran.first[name]) for name, p in twin.state_dict().items())


def test_every_number_of_a_cell_is_found_again(ran):
    s, v, model, parts = ran.settings, ran.values, ran.model, ran.text.parts
    windows = s.eval_batches * s.batch
    test, known = (ev.evaluate(model, parts[p], 64, 2, windows) for p in ("test", "validation"))
    twin = build(ran.arm, ran.shape, 0)
    x = ran.batches(0)
    flops = count_flops(lambda: learn.loss_in(torch.float32)(twin.train(), *x).backward())[1]
    micro = s.micro_batch or s.batch
    tail = ran.fit.losses[-(ran.steps // 10 or 1) :]
    want = {
        "loss_nats": test.loss_nats,
        "accuracy": test.accuracy,
        "perplexity": math.exp(test.loss_nats),
        "evaluation_tokens": windows * 64,
        "validation_loss_nats": known.loss_nats,
        "validation_accuracy": known.accuracy,
        "train_loss_nats": np.mean(tail),
        "flops": flops * ran.steps,
        "flops_closed_form": ran.steps * s.batch * 64 * training_flops_per_token(ran.arm, ran.shape),
        "n_tokens": ran.steps * s.batch * 64,
        "steps": ran.steps,
        "micro_batch": micro,
        "lr": v["lr"],
        "lr_tuned": v["lr_tuned"],
        "n_params": sum(p.numel() for p in twin.parameters()),
        "attention_params": sum(p.numel() for b in twin.blocks for p in b.attention.parameters()),
        "active_params": sum(p.numel() for p in twin.parameters()),
        "kv_bytes_closed_form": kv_bytes_per_token(ran.arm, ran.shape),
        "kv_bytes_per_token": ev.kv_bytes_per_token(twin),
        "saved_activation_bytes": ev.saved_activation_bytes(twin, s.batch, 64),
        "micro_activation_bytes": ev.saved_activation_bytes(twin, micro, 64),
        "attention_kernel": "flash_cpu",
        "shared_windows": 0,
        "text_hash": ran.text.hash,
        **{f"{name}_loss_nats": ran.text.floors[name] for name in ("uniform", "unigram", "bigram", "bayes")},
    }
    assert v.keys() == want.keys() | {"bits_per_byte"} and v["bits_per_byte"] is None  # it was never text
    for name, value in want.items():
        assert v[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-5)), name
    assert v["flops"] == pytest.approx(v["flops_closed_form"], rel=0.01)
    assert v["attention_params"] == ran.shape.layers * attention_params(ran.arm, ran.shape)
    assert v["active_params"] == active_params(ran.arm, ran.shape)
    assert v["loss_nats"] != v["validation_loss_nats"] and v["accuracy"] != v["validation_accuracy"]
    assert len(tail) < 2 or np.mean(tail) != sorted(tail)[len(tail) // 2]


def test_every_series_of_a_cell_is_found_again(ran):
    s, a, parts = ran.settings, ran.arrays, ran.text.parts
    test = ev.evaluate(ran.model, parts["test"], 64, 7, s.eval_batches * s.batch)
    longer = ev.extrapolate(ran.model, parts["test"], 64, 7, 5, s.factors)
    want = {
        "losses": ran.fit.losses,
        "loss_by_position": test.by_position,
        "document_losses": test.document_losses,
        "document_tokens": test.document_tokens,
        "factors": s.factors,
        "loss_by_factor": list(longer.values()),
    }
    assert set(a) == set(want)
    for name, array in want.items():
        np.testing.assert_allclose(a[name], array, rtol=1e-5, err_msg=name)


def test_a_cell_whose_text_is_shared_fails(grid, monkeypatch):
    cell = OneCell(grid, replace(grid.STUDY.settings["smoke"], **NEW | {"steps": 2}), 0)
    parts = grid.material(cell.settings, 42, None).parts
    for part in grid.PARTS:
        grid.shared_windows.cache_clear()
        tokens = parts[part].tokens
        monkeypatch.setattr(texts, "shared_windows", lambda a, b, tokens=tokens: 7 * (b is tokens))
        assert grid.shared_windows(cell.settings, 42, None) == 7, part
    grid.shared_windows.cache_clear()
    with pytest.raises(AssertionError, match="7 stretches of 32 tokens stand in the training text and in a held-out"):
        grid.test_train(cell, "finished", "same_shape", 42, "baseline")
    assert cell.values["shared_windows"] == 7
    grid.shared_windows.cache_clear()


@pytest.mark.parametrize(("dtype", "compiled"), [("bfloat16", False), ("float32", True)])
def test_dtype_and_compile_reach_training_and_what_is_measured(grid, monkeypatch, dtype, compiled):
    case = ("finished", "same_shape", "lora_small")
    wrapped, measured = [], []
    monkeypatch.setattr(torch, "compile", lambda loss: wrapped.append(loss) or loss)
    monkeypatch.setitem(CASES, case, {"compile": compiled, "steps": 2})
    for name in ("evaluate", "extrapolate", "saved_activation_bytes"):

        def noted(do, *args):
            measured.append(args[-1])
            return do(*args)

        monkeypatch.setattr(ev, name, functools.partial(noted, getattr(ev, name)))
    grid.memory_of.cache_clear()
    ran = Ran(grid, case, dtype=dtype)
    assert ran.args[-1] == getattr(torch, dtype) and ran.named["compiled"] is compiled
    assert measured == 5 * [getattr(torch, dtype)] and len(wrapped) == 2 * compiled
    grid.memory_of.cache_clear()


def test_stored_bytes_are_the_arm_s_own(grid):
    """A cache that is keyed without one of its parameters gives another's."""
    base = (VARIANTS["baseline"], SHAPES["quick"], 4, 2, torch.float32, "cpu")
    found = {str(grid.memory_of(*base))}
    for at, other in ((0, VARIANTS["enhanced_small"]), (1, SHAPES["natural"]), (2, 5), (3, 3), (4, torch.bfloat16)):
        found.add(str(grid.memory_of(*base[:at], other, *base[at + 1 :])))
    assert len(found) == 6


@pytest.mark.parametrize("scale", ["quick", "full"])
def test_parameters_and_flops_can_be_equal(grid, scale):
    settings, reference = grid.STUDY.settings[scale], grid.VARIANTS[grid.REFERENCE]
    shape = grid.SHAPES[settings.shape]
    flops = settings.steps * training_flops_per_token(reference, shape)
    for name in set(grid.KINDS) - {grid.HALF}:
        arm, wider, steps = grid.build_plan(settings, "same_params", name)
        assert total_params(arm, wider) == pytest.approx(total_params(reference, shape), rel=0.002)
        assert steps == settings.steps
        arm, same, steps = grid.build_plan(settings, "same_flops", name)
        step = training_flops_per_token(arm, shape)
        assert same == shape and abs(steps * step - flops) <= step / 2


def test_an_effect_that_is_planted_is_found_and_a_control_under_two_names_ties(grid):
    """Enough steps for attention to matter: without positions an arm loses by more than by other initial values."""
    s = replace(grid.STUDY.settings["smoke"], steps=100, batch=12, eval_batches=8, lr=0.01, longer_windows=2)
    losses = {}
    for variant in ("baseline", "nope", "mla_plain", "again"):
        cell = OneCell(grid, s, 0)
        grid.test_train(cell, "finished", "same_shape", 42, variant)
        losses[variant] = cell.values["loss_nats"]
    assert losses["nope"] - losses["baseline"] > 0.2
    assert 0 < abs(losses["again"] - losses["mla_plain"]) < 0.1


# --- the tuner


def test_the_tuner_judges_on_the_tune_part_of_a_finished_training(grid, tune, monkeypatch):
    settings, calls, train = replace(grid.STUDY.settings["smoke"], **NEW), [], learn.train

    def noted(model, batches, *args):
        first = {name: p.clone() for name, p in model.state_dict().items()}
        calls.append((model, first, batches, args))
        return train(model, batches, *args)

    monkeypatch.setattr(learn, "train", noted)
    found = tune.loss(settings, "lora_small", 0.02, 7, None, "cpu")
    ((model, first, batches, args),) = calls
    assert args == (23, 0.02, "finished", torch.float32)
    twin = build(VARIANTS["lora_small"], SHAPES["quick"], 7)
    assert all(torch.equal(p, first[name]) for name, p in twin.state_dict().items())
    assert (batches.tokens.numpy() == texts.Source().stream(23 * 5 * 64 + 1, (7, 0))).all() and batches.seed == 7
    part = grid.material(settings, 7, None).parts["tune"]
    assert found == pytest.approx(ev.evaluate(model, part, 64, 5, 15).loss_nats)
    monkeypatch.setattr(learn, "train", lambda *_: (_ for _ in ()).throw(FloatingPointError("nan")))
    assert tune.loss(settings, "lora_small", 0.02, 7, None, "cpu") is None


@pytest.mark.parametrize(
    ("best", "rates"),
    [(0.01, [0.005, 0.01, 0.02]), (0.02, [0.005, 0.01, 0.02, 0.04]), (0.05, [0.005, 0.01, 0.02, 0.04, 0.08]),
     (0.004, [0.0025, 0.005, 0.01, 0.02]), (1e-9, [0.000625, 0.00125, 0.0025, 0.005, 0.01, 0.02]),
     (9.0, [0.005, 0.01, 0.02, 0.04, 0.08, 0.16])],
)  # fmt: skip
def test_the_grid_grows_until_it_holds_the_best_or_three_times(tune, monkeypatch, best, rates):
    calls = []

    def loss(settings, arm, lr, seed, corpus, device):
        calls.append((lr, seed))
        return abs(math.log(lr / best)) + seed * (1 if lr < 0.01 else -1) * 1e-3

    monkeypatch.setattr(tune, "loss", loss)
    found = tune.curve(None, (7, 8), [0.005, 0.01, 0.02], None, "cpu", "gqa")
    assert sorted(found) == pytest.approx(rates) and sorted(calls) == [(lr, s) for lr in sorted(found) for s in (7, 8)]
    assert all(found[lr] == [loss(0, 0, lr, seed, 0, 0) for seed in (7, 8)] for lr in found)


def test_the_best_rate_has_the_lowest_mean_and_never_diverged(tune):
    assert tune.best_of({0.1: [1.0, 4.0], 0.2: [2.0, 2.0], 0.4: [0.0, None]}) == 0.2
    assert tune.best_of({0.1: [1.0, 2.0], 0.2: [2.0, 2.0]}) == 0.1


class OneProcess:
    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    map = staticmethod(map)


def test_arms_that_are_tuned_are_left_and_the_rest_is_written_with_its_curve(tune, monkeypatch, tmp_path, capsys):
    rates, calls = tmp_path / "rates.json", []
    where = "quick-multi_lag_v64-100x32"
    rates.write_text(json.dumps({where: {"seeds": [7, 8], "rates": {"gqa": 0.5}, "curves": {}}}))
    monkeypatch.setattr(tune, "RATES", rates)
    monkeypatch.setattr(tune, "ProcessPoolExecutor", OneProcess)

    def curve(settings, seeds, grid, corpus, device, arm):
        calls.append((arm, seeds, grid, settings.steps))
        return {0.01: [1.0, 2.0], 0.005: [1.0, 3.0]}

    monkeypatch.setattr(tune, "curve", curve)
    argv = ["tune.py", "--variants", "gqa,mqa", "--rates", "0.01,0.005", "--seeds", "7,8"]
    monkeypatch.setattr("sys.argv", argv)
    tune.main()
    assert calls == [("mqa", (7, 8), [0.005, 0.01], 100)]
    entry = json.loads(rates.read_text())[where]
    assert entry["rates"] == {"gqa": 0.5, "mqa": 0.01}
    assert entry["curves"] == {"mqa": {"0.005": [1.0, 3.0], "0.01": [1.0, 2.0]}}
    assert "WARNING: the best is at an end of the grid" in capsys.readouterr().out
    for words in (["--seeds", "7,44"], ["--variants", "again"]):
        monkeypatch.setattr("sys.argv", ["tune.py", *words])
        with pytest.raises(SystemExit):
            tune.main()


# --- as a user runs it


def cells(place, name="out.json"):
    found = json.loads((place / name).read_text())
    return {tuple(b["params"].values()): b["extra_info"] for b in found["benchmarks"]}


def test_one_arm_may_diverge_or_run_out_of_memory_and_the_rest_stands(tmp_path):
    tree = tmp_path / "benches" / "attention_search"
    shutil.copytree(QUESTION, tree, ignore=shutil.ignore_patterns("__pycache__"))
    rates = {"quick-multi_lag_v64-6x8": {"rates": {"mqa": 1e30}}}
    (tree / "learning_rates.json").write_text(json.dumps(rates))
    (tree / "conftest.py").write_text(
        "import pytest\n"
        "@pytest.fixture(autouse=True)\n"
        "def scarce(request, monkeypatch):\n"
        "    def refuse(*_, **__):\n"
        '        raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory: you tried to allocate 9 bytes")\n'
        '    if request.node.callspec.params["variant"] == "gqa":\n'
        '        monkeypatch.setattr("mlexp.attention.learn.fit", refuse)\n'
    )
    words = ("--set", "seeds=42", "--set", "variants=baseline,mqa,gqa,mla_plain", "--set", "longer_windows=2")
    status, text = typed(tmp_path, *words, question=tree)
    assert status == 0 and "2 xfailed" in text, text
    found = cells(tmp_path)
    assert set(found) == {("finished", "same_shape", 42, arm) for arm in ("baseline", "mla_plain")}
    assert all(info["peak_bytes"] > 0 and info["shared_windows"] == 0 for info in found.values())
    assert len({info["text_hash"] for info in found.values()}) == 1  # the same text for every arm
    folder = tmp_path / "results"
    status, text = run(tmp_path, "mlexp", "report", str(tmp_path / "out.json"), "--out", str(folder), "--benches",
                       str(tree.parent))  # fmt: skip
    assert status == 0, text
    summary = (folder / "attention_search" / "summary.md").read_text()
    _, _, unfinished = summary.partition("## Did not finish")
    assert unfinished.count("diverged") == 1 and unfinished.count("oom") == 1 and "not finite" not in summary
    text = (folder / "attention_search" / "architecture_search_report_fast.md").read_text()
    assert "one seed cannot tell any arm from another" in text
    for name in ("architecture_search_comprehensive_fast", "kv_bytes_vs_loss", "losses_finished", "loss_by_position",
                 "length", "learning"):  # fmt: skip
        assert (folder / "attention_search" / f"{name}.svg").stat().st_size > 1000
    # what stands is replayed, what fell is tried again
    status, text = typed(tmp_path, *words, "--resume", question=tree, name="again.json")
    assert status == 0 and "2 replayed" in text, text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": ("mla",)}, "unknown variant 'mla'; choose from baseline, lora_small"),
        ({"matches": ("same_size",)}, "unknown match 'same_size'; choose from same_shape, same_params, same_flops"),
        ({"budgets": ("long",)}, "unknown budget 'long'; choose from original, finished"),
        ({"shape": "huge"}, "unknown shape 'huge'; choose from full, natural, quick"),
        ({"text": "natural"}, "text=natural needs 257 tokens or more; shape=quick has 64: give --set shape=natural"),
        ({"shape": "natural"}, "text=synthetic has 64 tokens; shape=natural has 1024: give --set text=natural too"),
        ({"tokenizer": "own"}, "tokenizer=own: text=synthetic was never text; give --set text=natural too"),
        ({"micro_batch": 9}, "micro_batch is 9; 1 to batch=8"),
        ({"steps": 0}, "steps is 0; at least 1"),
        ({"lr": 0.0}, "lr is 0.0; above 0"),
        ({"factors": (0,)}, "factors is 0; at least 1"),
    ],
)
def test_bad_settings_name_what_is_allowed(grid, change, message):
    with pytest.raises(ValueError, match=message):
        grid.inputs({}, replace(grid.STUDY.settings["smoke"], **change), SimpleNamespace(corpus=None))


def test_a_bad_setting_is_one_line_for_the_user(tmp_path):
    status, text = typed(tmp_path, "--set", "variants=mla", "--collect-only")
    assert status == 4 and "unknown variant 'mla'" in text and "Traceback" not in text


def test_tuned_rates_are_of_seeds_that_are_not_reported_on(grid):
    for where, entry in json.loads(grid.RATES.read_text()).items():
        assert not set(entry["seeds"]) & set(grid.declared.Settings().seeds)
        assert set(entry["rates"]) == set(grid.KINDS) - {grid.AGAIN}, where
        for arm, curve in entry["curves"].items():
            means = {float(rate): np.mean(losses) for rate, losses in curve.items() if None not in losses}
            assert min(means, key=means.get) == entry["rates"][arm]
            assert min(means) < entry["rates"][arm] < max(means)  # not at an end of its grid

"""The maze question: its settings, one cell whose every number is found again by plain walks, and a run as typed."""

import functools
import json
import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mlexp.flops import count_flops
from mlexp.maze import data, evaluate, learn
from mlexp.maze.archs import ARCHS as ARMS
from mlexp.maze.data import Recipe
from mlexp.maze.models import build
from mlexp.maze.moves import features
from mlexp.maze.objective import Batches
from mlexp.maze.sizes import SIZES

from .command import run
from .maze.plain import outcomes, share
from .stand_ins import OneCell, load

declared = load("maze_scaling", "study")
SEED, CELL_SEED = 7, 11


@pytest.fixture(scope="module")
def bench():
    return load("maze_scaling", "bench_maze_scaling")


@pytest.fixture(scope="module", autouse=True)
def one_process_and_a_cache(tmp_path_factory):
    """Mazes are made in this process, two dozen a shard, and noted by recipe."""
    made, make = [], data.mazes

    def noted(recipe, workers=None, progress=None):
        made.append(recipe)
        return make(recipe, 1, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(data, "SHARD", 24)
        patch.setattr(data, "mazes", noted)
        yield made


# --- settings


ORIGINAL = {"maze_size": 16, "generator": "dfs", "min_path": 0.4, "train": 1000, "epochs": 50, "batch": 32, "R": 4,
             "T": 4, "heads": None, "lr": None, "augment": True, "loss": "dense", "seeds": (42, 43, 44, 45, 46),
             "compile": False, "test": 1000, "larger": (20, 24),
             "sizes": ("tiny", "small", "medium", "large", "xl")}  # fmt: skip
SMALLER = {"sizes": ("tiny",), "archs": ("baseline", "poh_hrm", "poh_uniform"), "maze_size": 8,
           "test": 300, "epochs": 8, "batch": 8, "larger": (10,)}  # fmt: skip
SMOKE = {"seeds": (42,), "archs": tuple(ARMS), "maze_size": 5, "train": 32, "test": 20, "epochs": 1, "larger": (6,)}


def test_scales_are_the_original_s_numbers_and_what_is_smaller(bench):
    full = ORIGINAL | {"archs": tuple(ARMS)}
    assert asdict(bench.STUDY.settings["full"]) == asdict(declared.Settings()) == full
    assert asdict(bench.STUDY.settings["quick"]) == full | SMALLER
    assert asdict(bench.STUDY.settings["smoke"]) == full | SMALLER | SMOKE
    assert bench.STUDY.axes == {"size": "sizes", "seed": "seeds", "arch": "archs"}
    assert bench.STUDY.arms == tuple(ARMS) and set(declared.FIVE) < set(SIZES)


@pytest.mark.parametrize("n", [5, 6, 8, 16, 20])
def test_the_filter_is_a_share_of_the_cells_and_with_loops_twice_the_side(bench, n):
    assert declared.Settings().min_length(n) == math.floor(0.4 * n * n + 1e-9)
    assert declared.Settings(min_path=0.6).min_length(n) == math.floor(0.6 * n * n + 1e-9)
    assert declared.Settings(min_path=0.0).min_length(n) == 2
    assert declared.Settings(generator="dfs_loops").min_length(n) == 2 * n


BAD = [
    ({"sizes": ("mini",)}, "unknown size 'mini'; choose from tiny, small"),
    ({"archs": ("hrm",)}, "unknown arch 'hrm'; choose from baseline, poh_hrm"),
    ({"generator": "wilson"}, "unknown generator 'wilson'; choose from dfs, dfs_loops"),
    ({"loss": "sparse"}, "unknown loss 'sparse'; choose from dense, path"),
    *(({name: 0}, f"{name} is 0; at least 1") for name in ("train", "test", "epochs", "batch", "R", "T")),
    ({"lr": 0.0}, "lr is 0.0; above 0"),
    ({"min_path": 1.5}, "min_length=37: a 5 x 5 maze has 25 cells"),
    ({"heads": 3}, "heads=3: must divide 128 / 4"),
    ({"heads": 0}, "heads=0: must divide 128 / 4"),
    ({"larger": (1,)}, "n=1: expected an integer of at least 2"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_settings_name_what_is_allowed(bench, change, message):
    with pytest.raises(ValueError, match=message):
        replace(bench.STUDY.settings["smoke"], **change)


# --- one cell


TINY = {"maze_size": 6, "train": 12, "test": 60, "epochs": 3, "batch": 4, "R": 3, "T": 2, "heads": 8, "lr": 3e-3,
        "larger": (3, 4, 5)}  # fmt: skip
CELLS = {  # arm: settings other than the defaults, so that one that is not forwarded shows
    "baseline": {"generator": "dfs_loops", "augment": False, "loss": "path"},
    "poh_hrm": {"generator": "dfs_loops", "epochs": 8},
    "poh_t_inf": {"epochs": 1, "heads": None, "lr": None, "larger": (), "train": 10},  # batches of 4, 4 and 2
    "baseline_long": {"min_path": 0.3, "epochs": 12},
}


class Ran:
    """A cell that ran, with what reached training, the states after every step, and the mazes that it should have
    used."""

    def __init__(self, bench, made, arch, **options):
        self.arch, self.arm = arch, ARMS[arch]
        self.settings = s = replace(bench.STUDY.settings["smoke"], **TINY | CELLS[arch])
        self.cell, self.states, train = OneCell(bench, s, CELL_SEED, **options), {}, learn.train
        made.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(learn, "train", lambda *args, **named: self.note(train, *args, **named))
            bench.test_train(self.cell, "tiny", SEED, arch)
        self.made = list(made)
        self.values, self.arrays = self.cell.values, self.cell.arrays
        self.least = 12 if s.generator == "dfs_loops" else int(s.min_path * 36)
        self.known = data.mazes(self.recipe(6, s.train, SEED))
        self.test = data.mazes(self.recipe(6, s.test, SEED + 100_000))

    def recipe(self, n, count, seed):
        least = 2 * n if self.settings.generator == "dfs_loops" else int(self.settings.min_path * n * n)
        return Recipe(n, count, seed, least, self.settings.generator)

    def note(self, train, model, batches, steps, lr, dtype, *, after, **named):
        self.batches, self.asked = batches, {"steps": steps, "lr": lr, "dtype": dtype, **named}
        self.model, self.first = model, {name: p.clone() for name, p in model.state_dict().items()}

        def noted(step):
            self.states[step] = {name: p.clone() for name, p in model.state_dict().items()}
            after(step)

        self.fit = train(model, batches, steps, lr, dtype, after=noted, **named)
        return self.fit

    def logits(self, mazes, iterations=None):
        x = features(*map(torch.from_numpy, (mazes.open, mazes.start, mazes.goal)))
        with torch.no_grad():
            return self.model.eval()(x, iterations)

    def judged(self, mazes):
        return outcomes(self.logits(mazes)[-1], mazes)


@pytest.fixture(scope="module")
def first_run(bench, one_process_and_a_cache):
    """A cell of an arm, run once."""
    return functools.cache(lambda arch: Ran(bench, one_process_and_a_cache, arch))


@pytest.fixture(scope="module", params=CELLS)
def ran(request, first_run):
    return first_run(request.param)


def test_a_cell_trains_on_its_seed_s_mazes_and_is_judged_on_others(ran):
    s = ran.settings
    far = [ran.recipe(n, 12, SEED + 100_000) for n in s.larger]
    assert ran.made == [ran.recipe(6, s.train, SEED), ran.recipe(6, s.test, SEED + 100_000), *far]
    assert not set(ran.known.layouts()) & set(ran.test.layouts())
    for name in ("open", "start", "goal"):
        assert torch.equal(getattr(ran.batches, name), torch.from_numpy(getattr(ran.known, name)))
    twin = Batches(ran.known, s.batch, CELL_SEED, augment=s.augment, min_length=ran.least, loss=s.loss)
    for step in (0, 2, 4):
        assert all(torch.equal(a, b) for a, b in zip(ran.batches(step), twin(step), strict=True))


def test_a_cell_trains_the_arm_as_its_settings_say(ran):
    s = ran.settings
    long = s.R if ran.arch == "baseline_long" else 1
    assert ran.asked["steps"] == 3 * s.epochs * long == ran.values["steps"] == len(ran.fit.losses)
    assert ran.asked["lr"] == (1e-3 if s.lr is None else s.lr)
    assert (ran.asked["dtype"], ran.asked["compiled"]) == (torch.float32, False)
    assert ran.cell.timed == [(1, False)]
    torch.manual_seed(CELL_SEED)
    twin = build(SIZES["tiny"], ran.arm, s.R, s.T, s.heads)
    assert all(torch.equal(p, ran.first[name]) for name, p in twin.state_dict().items())
    assert ran.model.blocks[0].heads == (s.heads or 4)
    if ran.arm.gates == "hrm":
        assert (ran.model.gates.period, ran.model.iterations) == (s.T, s.R)


def test_every_number_of_a_cell_is_found_again(ran):
    s, v, found = ran.settings, ran.values, ran.judged(ran.test)
    solved = [x for x in found.excess if not math.isnan(x)]
    batches = Batches(ran.known, s.batch, CELL_SEED, augment=s.augment, min_length=ran.least, loss=s.loss)
    twin = build(SIZES["tiny"], ran.arm, s.R, s.T, s.heads).train()
    step_flops = [
        count_flops(lambda i=i: learn.loss_in(torch.float32)(twin, *batches(i)).backward())[1] for i in range(3)
    ]
    beyond = [share(ran.judged(data.mazes(ran.recipe(n, 12, SEED + 100_000))).solved) for n in s.larger]
    want = {
        "accuracy": share(found.solved),
        "optimality": share(found.optimal),
        "excess": np.mean(solved) if solved else None,
        "strict_accuracy": share(found.strict),
        "cell_accuracy": found.cells,
        "larger_accuracy": np.mean(beyond) if beyond else None,
        "n_params": sum(p.numel() for p in twin.parameters()),
        "flops": sum(step_flops) * v["steps"] / 3,
        "n_tokens": v["steps"] / 3 * len(ran.known) * 36,
        "steps": len(ran.states),
        "loss_nats": np.mean(ran.fit.losses[-3:]),  # of the last epoch
        "micro_batch": None,
        "captured": False,
        "checkpointing": False,
        "oracle_accuracy": 1.0,
        **{f"{name}_accuracy": value for name, value in evaluate.floors(ran.test, SEED).items()},
        **(evaluate.probes(ran.model, ran.test) if ran.arm.gates == "hrm" else {}),
    }
    assert v == pytest.approx(want, abs=1e-6)
    np.testing.assert_allclose(ran.arrays["larger_accuracy"], beyond, atol=1e-6)
    assert ran.arrays["larger_sizes"].tolist() == list(s.larger)


def test_every_series_of_a_cell_is_found_again(ran):
    found, a, steps = ran.judged(ran.test), ran.arrays, ran.values["steps"]
    np.testing.assert_allclose(a["losses"], ran.fit.losses)
    assert (a["solved"].tolist(), a["optimal"].tolist()) == (found.solved, found.optimal)
    assert a["length"].tolist() == ran.test.length.tolist()
    by_iteration = [share(outcomes(logits, ran.test).solved) for logits in ran.logits(ran.test)]
    np.testing.assert_allclose(a["accuracy_by_iteration"], by_iteration, atol=1e-6)
    assert len(by_iteration) == (ran.settings.R if ran.arm.iterations is None else 1)
    for name in ("open", "start", "goal"):
        assert (a[f"sample_{name}"] == getattr(ran.test, name)[:4]).all() and len(a[f"sample_{name}"]) == 4
    for i, path in enumerate(found.path[:4]):
        walked = a["sample_path"][i].tolist()
        assert walked[: len(path)] == path and set(walked[len(path) :]) <= {-1}
    every = steps // min(10, ran.settings.epochs)
    assert a["judged_steps"].tolist() == list(range(every, steps + 1, every))
    last, curve = ran.model.state_dict(), []
    for step in a["judged_steps"]:
        ran.model.load_state_dict(ran.states[int(step)])
        curve.append(share(ran.judged(ran.test).solved))
    np.testing.assert_allclose(a["accuracy_by_step"], curve, atol=1e-6)
    ran.model.load_state_dict(last)


def test_what_a_cell_records_can_be_told_apart(bench, one_process_and_a_cache, first_run):
    """Or the two tests above could not fail."""
    ran = first_run("poh_hrm")
    assert len({ran.values[m] for m in ("accuracy", "optimality", "strict_accuracy", "cell_accuracy")}) == 4
    assert ran.values["accuracy"] != share(ran.judged(ran.known).solved)
    assert evaluate.probes(ran.model, ran.known) != evaluate.probes(ran.model, ran.test)
    assert len(set(ran.arrays["accuracy_by_iteration"])) > 1 and len(set(ran.arrays["larger_accuracy"])) > 1
    assert len(set(ran.arrays["accuracy_by_step"])) > 1
    far = [data.mazes(ran.recipe(n, 12, SEED + 100_000)) for n in ran.settings.larger]
    first = [share(outcomes(ran.logits(mazes)[0], mazes).solved) for mazes in far]
    assert first != pytest.approx(list(ran.arrays["larger_accuracy"]))
    again = Ran(bench, one_process_and_a_cache, "poh_hrm")  # the same key gives the same quality, bit for bit
    assert again.values == ran.values
    assert all(np.array_equal(again.arrays[name], array, equal_nan=True) for name, array in ran.arrays.items())


@pytest.mark.parametrize("side", [6, 8])
def test_a_cell_that_would_be_judged_on_its_training_mazes_fails(bench, monkeypatch, side):
    change = TINY | {"maze_size": side, "test": 12, "larger": ()}
    cell = OneCell(bench, replace(bench.STUDY.settings["smoke"], **change), CELL_SEED)
    make = data.mazes
    monkeypatch.setattr(data, "mazes", lambda recipe, **_: make(replace(recipe, seed=SEED)))
    with pytest.raises(AssertionError, match="a test maze was trained on"):
        bench.test_train(cell, "tiny", SEED, "baseline")


class Stop(Exception):
    pass


@pytest.mark.parametrize(("dtype", "compiled"), [("bfloat16", False), ("float32", True)])
def test_dtype_compile_and_progress_reach_training(bench, monkeypatch, dtype, compiled):
    cell, asked = OneCell(bench, replace(bench.STUDY.settings["smoke"], **TINY, compile=compiled), 0, dtype=dtype), []

    def stop(model, batches, steps, lr, dtype, *, compiled, after, progress):
        asked.append((dtype, compiled, progress))
        raise Stop

    monkeypatch.setattr(learn, "train", stop)
    with pytest.raises(Stop):
        bench.test_train(cell, "tiny", SEED, "baseline")
    assert asked == [(getattr(torch, dtype), compiled, cell.progress)]


@pytest.mark.parametrize("relieved", [False, True])
def test_what_happened_to_memory_is_recorded(bench, monkeypatch, relieved):
    def train(model, batches, steps, lr, dtype, **_):
        model.checkpointing = relieved
        return SimpleNamespace(losses=[1.0] * steps, micro_batch=3, captured=not relieved)

    monkeypatch.setattr(learn, "train", train)
    cell = OneCell(bench, replace(bench.STUDY.settings["smoke"], **TINY | {"larger": ()}), 0)
    bench.test_train(cell, "tiny", SEED, "baseline")
    assert [cell.values[name] for name in ("micro_batch", "captured", "checkpointing")] == [3, not relieved, relieved]


# --- as a user runs it


def typed(place, *words):
    question = ("pytest", "benches/maze_scaling", "--scale", "smoke", "-p", "no:cacheprovider")
    return run(place, *question, "--journal", str(place / "journal.jsonl"), *words)


def test_cells_run_and_are_reported_on(tmp_path):
    words = ("--set", "seeds=42,43", "--set", "archs=baseline,poh_hrm", "--set", "train=8", "--set", "test=10")
    status, text = typed(tmp_path, *words, "--benchmark-json", str(tmp_path / "out.json"))
    assert status == 0, text
    found = {tuple(b["params"].values()): b for b in json.loads((tmp_path / "out.json").read_text())["benchmarks"]}
    assert set(found) == {("tiny", seed, arm) for arm in ("baseline", "poh_hrm") for seed in (42, 43)}
    info = {key: b["extra_info"] for key, b in found.items()}
    assert all(i["peak_bytes"] > 0 and i["flops"] > 0 and i["oracle_accuracy"] == 1 for i in info.values())
    assert all(("routing_entropy" in i) == (arm == "poh_hrm") for (*_, arm), i in info.items())
    assert len({i["random_accuracy"] for (_, seed, _), i in info.items() if seed == 42}) == 1  # the same mazes
    status, text = run(tmp_path, "mlexp", "report", str(tmp_path / "out.json"), "--out", str(tmp_path / "results"))
    assert status == 0, text
    folder = tmp_path / "results" / "maze_scaling"
    assert json.loads((folder / "scaling_results_maze5.json").read_text())["seeds"] == 2
    found = {row["id"]: row for row in json.loads((folder / "claims.json").read_text())}
    assert {row["verdict"] for row in found.values()} == {"not tested"} and all(r["registered"] for r in found.values())
    assert "3 complete seeds are needed for poh_hrm minus baseline, there are 2" in found["Q"]["needs"]
    assert "three values of size are needed, there are 1" in (folder / "summary.md").read_text()
    for name in ("scaling_plot_maze5", "learning", "iterations", "length", "larger", "mazes"):
        assert (folder / f"{name}.svg").stat().st_size > 1000, name


def test_a_bad_setting_is_one_line_for_the_user(tmp_path):
    status, text = typed(tmp_path, "--set", "archs=hrm")
    assert status == 4 and "unknown arch 'hrm'" in text and "Traceback" not in text

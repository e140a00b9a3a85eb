"""The question about the training loop: every loop takes the same steps, and the report finds a planted ratio."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats as scipy_stats

from mlexp.flops import count_flops
from mlexp.harness import grid
from mlexp.training import Recipe

from .command import run
from .stand_ins import OneCell, load

QUESTION = "benches/training_speed"
FEW = ("--set", "workloads=maze_baseline,attention_baseline")


@pytest.fixture
def place(tmp_path):
    place = tmp_path / "training"
    place.mkdir()
    where = ("--journal", str(place / "journal.jsonl"), "--benchmark-json", str(place / "out.json"))
    status, text = run(place, "pytest", QUESTION, "--scale", "smoke", "-p", "no:cacheprovider", *FEW, *where)
    assert status == 0, text
    return place


def test_every_loop_does_the_same_work_and_the_report_finds_a_planted_ratio(place, tmp_path):
    found = {tuple(b["params"].values()): b["extra_info"] for b in
             json.loads((place / "out.json").read_text())["benchmarks"]}  # fmt: skip
    assert len(found) == 2 * 2 * 2
    for (workload, repeat, loop), info in found.items():
        plain = found[workload, repeat, "plain"]
        assert all(info[name] == plain[name] > 0 for name in ("flops", "n_params", "n_tokens", "steps"))
        # the same batches and start, but other betas, decay and schedule: near, not equal
        assert info["final_loss_nats"] == pytest.approx(plain["final_loss_nats"], rel=0.4), loop
    for factor, want in ((2.0, "supported"), (1.0, "refuted")):
        plant(place, tmp_path, factor, want)


def plant(place, tmp_path, factor, want):
    """The report of the same records, had the plain loop taken so many times as long."""
    content = json.loads((place / "out.json").read_text())
    for i, b in enumerate(content["benchmarks"]):
        time = (1 + 1e-3 * (i % 3)) * (factor if b["params"]["loop"] == "plain" else 1.0)
        b["stats"] |= dict.fromkeys(("min", "max", "mean", "median"), time) | {"data": [time]}
    (tmp_path / "out.json").write_text(json.dumps(content))
    status, text = run(place, "mlexp", "report", str(tmp_path / "out.json"), "--out", str(tmp_path / "results"))
    assert status == 0 and text.count(want) == 2, text
    assert (tmp_path / "results/training_speed/training_speed.png").stat().st_size > 100


def test_bad_settings_are_named(bench):
    for override, message in (
        ("loops=fast", "unknown loop 'fast'; choose from plain, shared"),
        ("steps=0", "steps is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            grid.override(bench.SETTINGS["quick"], [grid.parse_override(override)])


@pytest.fixture
def bench():
    return load("training_speed", "bench_training_speed")


class Loop:
    """Stands in for both loops: keeps what it was given, and whether the cell was timing."""

    def __init__(self, cell, bench, monkeypatch):
        self.cell, self.calls = cell, []
        for name in ("plain", "shared"):
            monkeypatch.setattr(bench, name, lambda *args, name=name: self(name, *args))

    def __call__(self, name, model, loss, batches, steps, lr, capture):
        self.calls.append((name, self.cell.timing, steps, lr, capture))
        self.model, self.loss, self.batches = model, loss, batches
        return 0.75


def cell_of(bench, monkeypatch, **changes):
    cell = OneCell(bench, replace(bench.SETTINGS["smoke"], steps=7, rounds=3, **changes), seed=11)
    cell.time = lambda run, rounds=1, warmup=True, plain=cell.time: plain(run, rounds, warmup)
    return cell, Loop(cell, bench, monkeypatch)


@pytest.mark.parametrize("loop", ["plain", "shared", "compiled"])
@pytest.mark.parametrize("workload", ["maze_baseline", "maze_poh_hrm", "attention_baseline", "attention_mla_plain"])
def test_a_cell_times_the_loop_that_it_names_and_records_its_work(bench, monkeypatch, workload, loop):
    cell, seen = cell_of(bench, monkeypatch)
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda loss: compiled.append(loss) or loss)
    bench.test_steps(cell, workload, "r0", loop)
    name, maze = "plain" if loop == "plain" else "shared", workload.startswith("maze")
    assert [call[:3] for call in seen.calls] == [(name, False, 5), (name, True, 7)]  # first use is not timed
    assert cell.timed == [(3, False)] and len(compiled) == (loop == "compiled")
    assert {call[4] for call in seen.calls} == {True}
    flops = count_flops(lambda: seen.loss(seen.model, *seen.batches(0)).backward())[1]
    s = cell.settings
    tokens = s.maze_batch * s.maze_size**2 if maze else s.batch * s.context
    assert cell.values == {
        "n_params": sum(p.numel() for p in seen.model.parameters()), "flops": 7 * flops, "n_tokens": 7 * tokens,
        "steps": 7, "final_loss_nats": 0.75,
    }  # fmt: skip
    assert seen.model.training and seen.batches(0)[0].shape[0] == (s.maze_batch if maze else s.batch)


def test_the_arms_of_a_subject_are_other_models(bench, monkeypatch):
    sizes = {}
    for workload in bench.WORKLOADS:
        cell, _ = cell_of(bench, monkeypatch)
        bench.test_steps(cell, workload, "r0", "plain")
        sizes[workload] = cell.values["n_params"]
    assert sizes["maze_baseline"] != sizes["maze_poh_hrm"]
    assert sizes["attention_baseline"] != sizes["attention_mla_plain"]


@pytest.mark.parametrize("subject", ["maze", "attention"])
def test_seed_and_dtype_of_the_cell_reach_the_workload(bench, monkeypatch, subject):
    found, dtypes = [], []
    learn = __import__(f"mlexp.{subject}.learn", fromlist=["loss_in"])
    monkeypatch.setattr(learn, "loss_in", lambda dtype: dtypes.append(dtype) or dtype)
    for seed in (1000, 1000, 2000):  # alike in the last three digits: the data are the same, their order is not
        cell = OneCell(bench, bench.SETTINGS["smoke"], seed=seed)
        model, _, batches, *_ = getattr(bench, subject)(cell, "baseline")
        weights = torch.cat([p.flatten() for p in model.parameters()])
        found.append((weights, [batches(k)[0] for k in range(3)]))
    cell.dtype = "bfloat16"
    getattr(bench, subject)(cell, "baseline")
    assert dtypes == [torch.float32] * 3 + [torch.bfloat16]
    same = [torch.equal(found[0][0], other[0]) for other in found[1:]]
    same += [all(torch.equal(a, b) for a, b in zip(found[0][1], other[1], strict=True)) for other in found[1:]]
    assert same == [True, False, True, False]


def test_a_mixture_of_experts_is_not_captured_and_mazes_are(bench, monkeypatch):
    for workload, capture in (("attention_baseline", False), ("maze_baseline", True)):
        cell, seen = cell_of(bench, monkeypatch, experts=4)
        bench.test_steps(cell, workload, "r0", "shared")
        assert {call[4] for call in seen.calls} == {capture}


def line(seed=0):
    g = torch.Generator().manual_seed(seed)
    model = torch.nn.Linear(3, 1)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=g)
    return model


def squared(model, x):
    return (model(x) - 9).square().mean()


def some(step):
    return (torch.randn(5, 3, generator=torch.Generator().manual_seed(step)),)


def test_the_plain_loop_is_a_tutorial_s(bench):
    model, other = line(), line()
    optimizer, last = torch.optim.AdamW(other.parameters(), lr=0.3), None
    for step in range(4):
        loss = squared(other, *some(step))
        for p, g in zip(other.parameters(), torch.autograd.grad(loss, list(other.parameters())), strict=True):
            p.grad = g
        torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        optimizer.step()
        last = loss.item()
    assert bench.plain(model, squared, some, 4, 0.3, True) == pytest.approx(last, rel=1e-5)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_shared_loop_is_the_questions_own_with_its_options(bench, monkeypatch):
    calls = []
    monkeypatch.setattr("mlexp.training.fit", lambda *args, **options: calls.append((args, options))
                        or SimpleNamespace(losses=[3.0, 2.0, 1.0]))  # fmt: skip
    for capture in (True, False):
        assert bench.shared("model", "loss", "batches", 9, 0.5, capture) == 1.0
        assert calls.pop() == (("model", "loss", "batches", Recipe(9, 0.5)), {"capture": capture})


# seconds of plain over ours, block by block: (maze, shared), (maze, compiled), (attention, shared)
RATIOS = {("maze_baseline", "shared"): (1.4, 1.5, 1.7), ("maze_baseline", "compiled"): (1.9, 2.0, 2.3),
          ("attention_baseline", "shared"): (1.41, 1.42, 1.44)}  # fmt: skip


def made_up():
    rows = []
    for workload in ("maze_baseline", "attention_baseline"):
        for i, machine in enumerate((1.0, 3.0, 10.0)):  # slower in every block
            times = {"plain": machine}
            times |= {loop: machine / ratios[i] for (name, loop), ratios in RATIOS.items() if name == workload}
            work = {"workload": workload, "repeat": f"r{i}", "steps": 20, "n_tokens": 600, "flops": 5e9}
            work |= {"peak_bytes": 100 * i, "device": "cpu"}
            rows += [work | {"loop": loop, "wall_s": wall} for loop, wall in times.items()]
    records = pd.DataFrame(rows)
    records.attrs["axes"] = ["workload", "repeat", "loop"]
    return records


def test_ratios_are_plain_over_ours_within_a_block():
    report, records = load("training_speed", "report"), made_up()
    table = report.ratio_table(records).set_index(["workload", "loop"])
    assert set(table.index) == set(RATIOS)
    for key, ratios in RATIOS.items():
        logs = np.log(ratios)
        half = scipy_stats.t.ppf(0.975, 2) * logs.std(ddof=1) / 3**0.5
        want = np.exp([logs.mean(), logs.mean() - half, logs.mean() + half])
        assert list(table.loc[key, ["ratio", "low", "high"]]) == pytest.approx(list(want)), key
        assert table.loc[key, "blocks"] == 3
    rates = report.rate_table(records).set_index(["workload", "loop"]).loc[("maze_baseline", "plain")]
    want = {"step_ms": 3.0 / 20 * 1e3, "tokens_per_s": 200.0, "gflop_per_s": 5 / 3, "peak_bytes": 100}
    assert dict(rates) == pytest.approx(want)  # medians


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_better_loop_is_held_to_what_was_asked_for(device):
    report, verdicts = load("training_speed", "report"), {}
    ignored = dict.fromkeys(("heading", "text", "table", "figure"), lambda *_: None)
    out = SimpleNamespace(
        verdict=lambda id, claim, verdict, effect, interval, why: verdicts.update({id: (claim, str(verdict), effect)}),
        **ignored,
    )
    report.report(made_up().assign(device=device), out)
    required = {"cpu": (1.5, 1.3), "cuda": (3.0, 1.3)}[device]
    claim, verdict, effect = verdicts["maze_baseline"]
    assert f"at least {required[0]}x" in claim and effect == "x2.06 (compiled)"
    assert verdict == ("supported" if device == "cpu" else "refuted")
    claim, verdict, effect = verdicts["attention_baseline"]
    assert f"at least {required[1]}x" in claim and (verdict, effect) == ("supported", "x1.42 (shared)")
    one = {}
    out.verdict = lambda id, claim, verdict, effect, interval, why: one.update({id: str(verdict)})
    report.report(made_up().query("repeat == 'r0'").assign(device=device), out)
    assert set(one.values()) == {"undecided"}  # one block has no interval

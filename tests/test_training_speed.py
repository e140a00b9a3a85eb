"""The question about the training loop: every loop takes the same steps, and the report finds a planted ratio."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlexp.flops import count_flops
from mlexp.harness import grid
from mlexp.training import Recipe

from .command import run
from .stand_ins import OneCell, load
from .study.filled import filled, geometric

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
    for factor in (2.0, 1.0):
        plant(place, tmp_path, factor)


def plant(place, tmp_path, factor):
    """The report of the same records, had the plain loop taken so many times as long."""
    content = json.loads((place / "out.json").read_text())
    for i, b in enumerate(content["benchmarks"]):
        time = (1 + 1e-3 * (i % 3)) * (factor if b["params"]["loop"] == "plain" else 1.0)
        b["stats"] |= dict.fromkeys(("min", "max", "mean", "median"), time) | {"data": [time]}
    (tmp_path / "out.json").write_text(json.dumps(content))
    status, text = run(place, "mlexp", "report", str(tmp_path / "out.json"), "--out", str(tmp_path / "results"))
    assert status == 0 and "No target is tested by these records." in text, text  # two blocks, and no compiled loop
    folder = tmp_path / "results/training_speed"
    table = pd.read_csv(folder / "training_speed.csv")
    assert list(table["ratio"]) == pytest.approx([factor] * 2, rel=0.01) and list(table["loop"]) == ["shared"] * 2
    assert (folder / "training_speed.svg").stat().st_size > 100


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


# seconds of plain over ours, block by block
RATIOS = {("maze_baseline", "shared"): (1.4, 1.5, 1.7), ("maze_baseline", "compiled"): (1.9, 2.0, 2.3),
          ("attention_baseline", "shared"): (1.41, 1.42, 1.44),
          ("attention_baseline", "compiled"): (0.7, 0.8, 0.75)}  # fmt: skip


def made_up(ratios=RATIOS, device="cpu", blocks=3):
    rows = []
    for workload in dict.fromkeys(workload for workload, _ in ratios):
        for i, machine in enumerate((1.0, 3.0, 10.0)[:blocks]):  # slower in every block
            times = {"plain": machine}
            times |= {loop: machine / found[i] for (name, loop), found in ratios.items() if name == workload}
            work = {"workload": workload, "repeat": f"r{i}", "steps": 20, "n_tokens": 600, "flops": 5e9}
            work |= {"peak_bytes": 100 * i, "device": device}
            rows += [work | {"loop": loop, "wall_s": wall} for loop, wall in times.items()]
    records = pd.DataFrame(rows)
    records.attrs["axes"] = ["workload", "repeat", "loop"]
    return records


def test_ratios_are_plain_over_ours_within_a_block():
    out = filled("training_speed", made_up())
    table = out.tables["training_speed.csv"].set_index(["workload", "loop"])
    assert set(table.index) == set(RATIOS)
    for key, ratios in RATIOS.items():
        assert list(table.loc[key, ["ratio", "low", "high"]]) == pytest.approx(list(geometric(ratios))), key
        assert table.loc[key, "blocks"] == 3
    rates = out.tables["rates.csv"].set_index(["workload", "loop"])
    want = {"step_ms": 3.0 / 20 * 1e3, "tokens_per_s": 200.0, "gflop_per_s": 5 / 3, "peak_bytes": 100}
    assert dict(rates.loc["maze_baseline", "plain"]) == pytest.approx(want)  # medians
    fast = {name: value / 2 if name == "step_ms" else value * (2 if "_per_s" in name else 1)
            for name, value in want.items()}  # fmt: skip
    assert dict(rates.loc["maze_baseline", "compiled"]) == pytest.approx(fast)
    drawn = out.figures["training_speed.svg"].axes[0]
    assert [text.get_text() for text in drawn.get_yticklabels()] == [f"{w} {loop}" for w, loop in RATIOS]


WORKLOADS = ("maze_baseline", "maze_poh_hrm", "attention_baseline", "attention_mla_plain")
BOUNDS = {"maze": {"cpu": 1.5, "cuda": 3.0}, "attention": {"cpu": 1.3, "cuda": 1.3}}


def some_ratios(shared, compiled=0.5, spread=0.01):
    """Each workload's ratios of both loops by block, on either side of these."""
    around = np.exp(spread * np.array([-1.0, 0.0, 1.0]))
    return {(w, loop): tuple(value * around) for w in WORKLOADS
            for loop, value in (("shared", shared), ("compiled", compiled))}  # fmt: skip


@pytest.mark.parametrize(
    ("device", "ratios", "maze", "attention"),
    [
        ("cpu", some_ratios(2.0), "supported", "supported"),
        ("cpu", some_ratios(0.5, 2.0), "supported", "supported"),  # the better of both
        ("cpu", some_ratios(1.4), "refuted", "supported"),
        ("cuda", some_ratios(2.0), "refuted", "supported"),
        ("cuda", some_ratios(3.5), "supported", "supported"),
        ("cuda", some_ratios(3.0), "undecided", "supported"),
        ("cuda", some_ratios(1.3), "refuted", "undecided"),
        ("cuda", some_ratios(1.0), "refuted", "refuted"),
        ("cpu", some_ratios(1.5), "undecided", "supported"),
        ("cpu", some_ratios(1.3), "refuted", "undecided"),
        ("cpu", some_ratios(1.0), "refuted", "refuted"),
    ],
)
def test_the_better_loop_must_reach_its_target(device, ratios, maze, attention):
    out = filled("training_speed", made_up(ratios, device), device=device)
    wanted = {w: maze if w.startswith("maze") else attention for w in WORKLOADS}
    for workload, verdict in wanted.items():
        found = out.findings[f"{workload} {device}"]
        bound = BOUNDS[workload.partition("_")[0]][device]
        assert str(found.verdict) == verdict and f"at least {bound}x" in found.claim.text and found.rank == "check"
        for part, loop in zip(found.parts, ("shared", "compiled"), strict=True):
            assert part.label == f"plain over {loop} at {workload}" and part.low == pytest.approx(np.log(bound))
            assert np.exp(part.estimate[:3]) == pytest.approx(geometric(ratios[workload, loop], 1 - 0.05 / 2))
    other = {"cpu": "cuda", "cuda": "cpu"}[device]
    assert (
        out.findings[f"maze_baseline {other}"].reason == f"the claim is about device {other}; here device is {device}"
    )
    reached = list(wanted.values()).count("supported")
    assert out.answer == f"The speed that was asked for is reached for {reached} of 4 workloads on this device."


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("repeat != 'r0'", "3 complete repeats are needed for plain over shared at maze_baseline, there are 2"),
        ("loop != 'compiled'", "no wall_s of compiled at maze_baseline"),
        ("workload != 'maze_baseline'", "no workload maze_baseline"),
        ("loop != 'plain'", "no wall_s of plain at maze_baseline"),
    ],
)
def test_a_target_without_its_loops_or_blocks_is_not_tested(keep, message):
    found = filled("training_speed", made_up().query(keep)).findings["maze_baseline cpu"]
    assert (str(found.verdict), found.reason) == ("not tested", message)


@settings(max_examples=30)
@given(st.integers(0, 2**31 - 1))
def test_every_interval_and_verdict_is_scipy_s(seed):
    rng = np.random.default_rng(seed)
    ratios = {key: tuple(rng.uniform(0.8, 2.5) * np.exp(rng.normal(0, 0.05, 3))) for key in RATIOS}
    found = filled("training_speed", made_up(ratios), report=False).findings
    for workload in ("maze_baseline", "attention_baseline"):
        finding, bound = found[f"{workload} cpu"], BOUNDS[workload.partition("_")[0]]["cpu"]
        ends = [geometric(ratios[workload, loop], 0.975)[1:] for loop in ("shared", "compiled")]
        want = "supported" if max(low for low, _ in ends) > bound else "refuted"
        want = "undecided" if want == "refuted" and max(high for _, high in ends) > bound else want
        assert str(finding.verdict) == want

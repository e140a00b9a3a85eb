"""The kernels' question: what it collects, what its formulas count, that a wrong kernel fails, what its report says."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from mlexp.decoding.settings import BranchRule

from .command import ROOT
from .stand_ins import OneCell, load
from .study.filled import filled

QUESTION = ROOT / "benches" / "kernel_speed"
PLUGINS = ("-p", "no:cacheprovider", "-p", "mlexp.harness.plugin")  # named, for where the package is not installed
FIGURES = ("entropy_sample.svg", "fork.svg", "tree_attention.svg")
SMOKE = ("entropy_sample-rows20-eager", "fork-paths20-eager", "tree_attention-heads12_depth25-eager")


bench = load("kernel_speed", "bench_kernel_speed")


def run(*words, env=()):
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, env=os.environ | dict(env), capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def test_every_shape_is_of_one_kernel_and_no_name_is_part_of_another():
    names = [name for shapes in bench.SHAPES.values() for name in shapes] + list(bench.KERNELS) + list(bench.BACKENDS)
    assert len(set(names)) == len(names)
    assert not [(one, two) for one in names for two in names if one != two and one in two]


def test_collection_loads_no_torch():
    code = """
import sys, pytest
class Look:
    def pytest_collection_finish(self, session):
        assert session.items and not {"torch", "triton"} & set(sys.modules)
words = "benches/kernel_speed --collect-only -q --device cpu -p no:cacheprovider -p mlexp.harness.plugin".split()
sys.exit(pytest.main(words, plugins=[Look()]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "test_kernel[entropy_sample-rows20-eager]" in done.stdout, done.stdout + done.stderr


def collected(scale, device):
    settings = bench.SETTINGS[scale]
    axes = [
        {"kernel": k, "shape": s, "backend": b} for k in bench.KERNELS for s in settings.shapes for b in bench.BACKENDS
    ]
    return {tuple(cell.values()) for cell in axes if bench.collects(cell, settings, device)}


def test_what_is_collected_is_what_the_device_can_run():
    from mlexp.decoding import kernels

    assert {"-".join(cell) for cell in collected("smoke", "cpu")} == set(SMOKE)
    assert ("entropy_sample", "rows4096", "eager") not in collected("quick", "cpu")
    assert ("entropy_sample", "rows4096", "eager") in collected("full", "cpu") & collected("quick", "cuda")
    for kernel, shapes in bench.SHAPES.items():
        found = {(shape, backend) for name, shape, backend in collected("full", "cuda") if name == kernel}
        backends = {"eager", "compile", *kernels.BACKENDS[kernel]} - {"reference"}
        assert found == {(shape, backend) for shape in shapes for backend in backends}


def test_bytes_moved_by_hand():
    """Each tensor of a tiny case, counted."""
    assert bench.Logits(2, vocab=3).bytes_moved(4) == 2 * 3 * 4 + 2 * 8 + 2 * (4 + 4 + 8 + 4)
    assert bench.Forest(2, width=3, columns=5).bytes_moved(4) == 6 * (4 + 8 + 8 + 8) + 6 * 4 * 8 + 2 * (6 * 5 * 4)
    tips = bench.Tips(heads=2, depth=1, prompts=2, tips=3, prompt=5, width=4)
    keys = (2 * 5 + 6 * 1) * 2 * 4  # numbers: two prompts of five slots, a slot of its own for each of six tips
    assert tips.bytes_moved(2) == 2 * keys * 2 + 2 * (6 * 2 * 4) * 2 + 6 * 8 + 6 * 1 * 4


TINY = {
    "entropy_sample": bench.Logits(70, vocab=130),
    "fork": bench.Forest(3, width=6, columns=4),
    "tree_attention": bench.Tips(heads=2, depth=3, prompts=2, tips=4, prompt=5, width=8),
}


def inputs(kernel, seed=1, dtype=torch.float32):
    return bench.INPUTS[kernel](TINY[kernel], torch.Generator().manual_seed(seed), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", bench.KERNELS)
def test_inputs_follow_the_seed_and_pass_the_gate(kernel, dtype):
    one, same, other = (inputs(kernel, seed, dtype) for seed in (1, 1, 2))
    tensors = [name for name, value in one.items() if isinstance(value, torch.Tensor)]
    assert all(torch.equal(one[name], same[name]) for name in tensors)
    assert any(not torch.equal(one[name], other[name]) for name in tensors)
    bench.GATES[kernel](one, bench.function(kernel, "eager")(**one))


def test_every_own_slot_is_read_by_one_tip():
    args = inputs("tree_attention")
    slots = args["ancestors"].flatten().tolist()
    assert len(set(slots)) == len(slots) and min(slots) == 10 and max(slots) < len(args["k_pool"])


WRONG = {
    "entropy_sample": [
        lambda h, z, t, p: (h + 1e-3, z, t, p),
        lambda h, z, t, p: (h, z, (t + 1) % 130, p),
        lambda h, z, t, p: (h, z, t, p * float("nan")),
        lambda h, z, t, p: (h, z + 1e-3, t, p),
        lambda h, z, t, p: (h, z, t, p - 1e-3),
    ],
    "fork": [
        lambda tip, source, many, parts, below: (tip, source, many.roll(1, 1), parts, below),
        lambda tip, source, many, parts, below: (tip, source, many, parts, below + 1),
        lambda tip, source, many, parts, below: (tip + 1, source, many, parts, below),
        lambda tip, source, many, parts, below: (tip, source.flip(1), many, parts, below),
        lambda tip, source, many, parts, below: (tip, source, many, parts + 1, below),
    ],
    "tree_attention": [
        lambda out: out * 1.01,
        lambda out: out * 1.0002,
        lambda out: out.roll(1, 0),
        lambda out: out * float("nan"),
    ],
}


@pytest.mark.parametrize(("kernel", "spoil"), [(kernel, spoil) for kernel in WRONG for spoil in WRONG[kernel]])
def test_the_gate_sees_a_wrong_result(kernel, spoil):
    args = inputs(kernel)
    out = bench.function(kernel, "eager")(**args)
    with pytest.raises(AssertionError):
        bench.GATES[kernel](args, spoil(*out) if isinstance(out, tuple) else spoil(out))


class Cell(OneCell):
    """A cell on the CPU; `timed` is what it was asked to time, and how."""

    def __init__(self, **settings):
        super().__init__(bench, replace(bench.SETTINGS["smoke"], **settings), seed=7)

    def time(self, run, **how):
        self.timed.append((run, how))
        self.record(timer="host_clock")
        return run()

    def copy_bytes_per_s(self):
        return 2.5e9


CONFIG = SimpleNamespace(option=SimpleNamespace(require_gpu=False))


@pytest.fixture
def tiny_shapes(monkeypatch):
    for kernel, dims in TINY.items():
        monkeypatch.setitem(bench.SHAPES[kernel], "tiny", dims)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
@pytest.mark.parametrize("kernel", bench.KERNELS)
def test_a_cell_checks_then_times_and_records_what_the_roofline_needs(kernel, dtype, size, tiny_shapes, monkeypatch):
    checked, gate = [], bench.GATES[kernel]
    monkeypatch.setitem(bench.GATES, kernel, lambda args, out: checked.append(len(cell.timed)) or gate(args, out))
    cell = Cell(rounds=13)
    cell.dtype = dtype
    bench.test_kernel(cell, CONFIG, kernel, "tiny", "eager")
    ((run, how),) = cell.timed
    assert checked == [0] and how == {"rounds": 13, "device_time": True}
    assert cell.values == {
        "timer": "host_clock", "kernel_backend": "reference", "copy_bytes_per_s": 2.5e9,
        "bytes_moved": TINY[kernel].bytes_moved(size),
    }  # fmt: skip
    want = inputs(kernel, 7, getattr(torch, dtype))  # of the cell's seed and precision
    assert all(same_value(run.keywords[name], value) for name, value in want.items())
    assert run.keywords["backend"] == "reference"


def same_value(one, other):
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("kernel", bench.KERNELS)
@pytest.mark.parametrize("backend", bench.BACKENDS)
def test_a_backend_is_timed_and_recorded_under_its_own_name(kernel, backend, tiny_shapes, monkeypatch):
    from mlexp.decoding import kernels
    from mlexp.decoding.kernels import reference

    asked, compiled, out = [], [], bench.function(kernel, "eager")(**inputs(kernel, 7))
    monkeypatch.setattr(torch, "compile", lambda run, **how: compiled.append((run, how)) or run)
    monkeypatch.setattr(kernels, kernel, lambda **args: asked.append(args["backend"]) or out)
    monkeypatch.setattr(kernels, "missing", lambda *_: None)
    monkeypatch.setattr(kernels, "choose", lambda kernel, device, backend="auto": f"{kernel} {device} {backend}")
    cell = Cell()
    bench.test_kernel(cell, CONFIG, kernel, "tiny", backend)
    name = {"eager": "reference", "compile": "reference"}.get(backend, backend)
    assert cell.values["kernel_backend"] == f"{kernel} cpu {name}"
    if backend == "compile":
        assert compiled == [(getattr(reference, kernel), {"dynamic": False})] and not asked
    else:
        assert asked == [name] * 2 and not compiled


def test_a_backend_that_is_missing_is_skipped_or_fails(monkeypatch):
    from mlexp.decoding import kernels

    needs = []
    monkeypatch.setattr(kernels, "missing", lambda backend, device: needs.append((backend, device)) or "no GPU")
    for backend in bench.BACKENDS:
        with pytest.raises(pytest.skip.Exception, match=f"entropy_sample on {backend}: no GPU"):
            bench.test_kernel(Cell(), CONFIG, "entropy_sample", "rows20", backend)
    assert needs == [("reference", "cpu"), ("triton", "cpu"), ("triton", "cpu"), ("cuda", "cpu")]
    with pytest.raises(pytest.fail.Exception, match="no GPU"):
        must = SimpleNamespace(option=SimpleNamespace(require_gpu=True))
        bench.test_kernel(Cell(), must, "entropy_sample", "rows20", "cuda")


@pytest.mark.parametrize("kernel", bench.KERNELS)
def test_a_planted_wrong_kernel_fails_its_cell_and_has_no_time(kernel, tiny_shapes, monkeypatch):
    from mlexp.decoding import kernels

    right, cell = getattr(kernels, kernel), Cell()

    def wrong(*args, **named):
        out = right(*args, **named)
        return WRONG[kernel][0](*out) if isinstance(out, tuple) else WRONG[kernel][0](out)

    monkeypatch.setattr(kernels, kernel, wrong)
    with pytest.raises(AssertionError):
        bench.test_kernel(cell, CONFIG, kernel, "tiny", "eager")
    assert not cell.timed and not cell.values


def test_the_study_s_constants():
    assert (bench.VOCAB, bench.TEMPERATURE, bench.TIPS, bench.PROMPT, bench.COLUMNS) == (50257, 0.8, 20, 200, 49)
    assert (bench.WIDTH, bench.BRANCH_FACTOR) == (64, 3)
    assert pytest.approx(0.4 * math.log(50257)) == bench.THRESHOLD_NATS
    assert {name: s.rounds for name, s in bench.SETTINGS.items()} == {"smoke": 3, "quick": 10, "full": 100}
    args = inputs("entropy_sample")
    assert args["temperature"] == 0.8 and args["logits"].shape == (70, 130) and args["logits"].mean() < -20
    args = inputs("fork")
    assert args["rule"] == BranchRule(bench.THRESHOLD_NATS, branch_factor=3, max_paths=6)
    assert args["first_slot"] == 200 and args["depth"] == 2
    uncertain = (inputs("fork", 3)["entropy"] >= bench.THRESHOLD_NATS).float().mean()
    assert 0.2 < uncertain < 0.8


def test_a_cell_s_key_covers_every_backend():
    from mlexp.harness.identity import Sources

    files, _ = Sources([ROOT]).of(QUESTION / "bench_kernel_speed.py")
    names = {path.name for path in files if path.parent.name == "kernels"}
    assert names >= {"reference.py", "triton.py", "cuda.py", "entropy_sample.cu"}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """The benchmark JSON of one cell on the CPU, as a user runs it."""
    place = tmp_path_factory.mktemp("kernel_speed")
    where = ("--journal", str(place / "journal.jsonl"), "--benchmark-json", str(place / "out.json"))
    words = ("--scale", "smoke", "--device", "cpu", "-k", "fork", *PLUGINS)
    status, text = run("pytest", "benches/kernel_speed", *words, *where)
    assert status == 0, text
    return place / "out.json"


def test_the_command_line_gives_a_record_and_a_report_that_decides_nothing_without_a_gpu(output, tmp_path):
    (one,) = json.loads(output.read_text())["benchmarks"]
    info = one["extra_info"]
    assert one["name"] == f"test_kernel[{SMOKE[1]}]" and len(one["stats"]["data"]) == 3
    assert info["timer"] == "host_clock" and info["kernel_backend"] == "reference"
    assert info["bytes_moved"] == bench.Forest(1).bytes_moved(4) and info["copy_bytes_per_s"] > 1e8
    status, text = run("mlexp", "report", str(output), "--out", str(tmp_path / "results"))
    assert status == 0 and len(re.findall(r"H\d not tested", text)) == 3, text
    folder = tmp_path / "results" / "kernel_speed"
    summary = (folder / "summary.md").read_text()
    assert "no GPU records" in summary and "unfinished grid" not in summary
    for name in ("fork.svg", "kernel_speed.csv"):
        assert (folder / name).stat().st_size > 100, name


# The report, on made-up records of a GPU.


def gpu_records(seconds, iqr=0.02, device="cuda"):
    """Records with these times: (kernel, shape, backend) -> seconds."""
    timer = "cuda_events" if device == "cuda" else "host_clock"
    return pd.DataFrame([
        {"kernel": kernel, "shape": shape, "backend": backend, "wall_s": wall, "wall_iqr_s": iqr * wall, "rounds": 30,
         "device": device, "dtype": "bfloat16", "timer": timer, "copy_bytes_per_s": 4e12, "question": "kernel_speed",
         "bytes_moved": bench.SHAPES[kernel][shape].bytes_moved(2), "kernel_backend": backend}
        for (kernel, shape, backend), wall in seconds.items()
    ])  # fmt: skip


BASE = {
    (kernel, shape, backend): bench.SHAPES[kernel][shape].bytes_moved(2) / 4e12 * slower + 2e-6
    for kernel, shape, backend in collected("quick", "cuda")
    for slower in [{"eager": 12.0, "compile": 4.0, "triton": 1.2, "cuda": 1.1}[backend]]
}


def judged(seconds, **more):
    """The findings alone: no tables and figures."""
    return filled("kernel_speed", gpu_records(seconds, **more), report=False).findings


def ends(value, spreads, level=0.975):
    """Two sides of 1.253 sd / sqrt(30) rounds, sd = IQR / 1.349, of logs that are independent."""
    half = stats.norm.ppf(level) * math.hypot(*(1.253 * iqr / 1.349 / math.sqrt(30) for iqr in spreads))
    return value * np.exp([-half, half])


def test_the_table_and_the_figures_are_the_records_times_and_ratios():
    df = gpu_records(BASE)
    out = filled("kernel_speed", df)
    table = out.tables["kernel_speed.csv"]
    assert len(table) == len(df) and list(table["kernel"].unique()) == list(bench.KERNELS)
    for row in table.itertuples():
        wall, moved = BASE[row.kernel, row.shape, row.backend], bench.SHAPES[row.kernel][row.shape].bytes_moved(2)
        assert row.time_us == pytest.approx(1e6 * wall) and row.gb_per_s == pytest.approx(moved / wall / 1e9)
        assert (row.low_us, row.high_us) == pytest.approx(tuple(ends(1e6 * wall, [0.02])))
        assert row.share == pytest.approx(moved / wall / 4e12)
        if row.backend == "eager":
            assert math.isnan(row.speedup)
        else:
            ratio = BASE[row.kernel, row.shape, "eager"] / wall
            assert (row.speedup, row.speedup_low, row.speedup_high) == pytest.approx((ratio, *ends(ratio, [0.02] * 2)))
    assert set(out.figures) == set(FIGURES) and "CUDA events" in out.words and "moves 4000 GB/s" in out.words
    for kernel in bench.KERNELS:
        fig, caption = out.figures[f"{kernel}.svg"], out.captions[f"{kernel}.svg"]
        rows = table[table["kernel"] == kernel]
        assert "cuda, bfloat16" in caption
        for ax, name in zip(fig.axes, ("time_us", "share"), strict=True):
            drawn = {line.get_label(): line[0].get_ydata() for line in ax.containers}
            assert set(drawn) == set(rows["backend"])
            for backend, y in drawn.items():
                assert list(y) == pytest.approx(list(rows[rows["backend"] == backend][name]))


XL, ROWS = ("tree_attention", "heads25_depth49", "triton"), ("entropy_sample", "rows20", "eager")
BYTES = bench.Logits(4096).bytes_moved(2)


def rows20(triton, cuda):
    return {("entropy_sample", "rows20", b): wall for b, wall in (("triton", triton), ("cuda", cuda))}


@pytest.mark.parametrize(
    ("change", "verdicts"),
    [
        ({}, "supported, supported, supported"),
        (rows20(4e-6, 4e-6), "refuted, supported, supported"),
        (rows20(None, 4e-6), "not tested, supported, supported"),
        (rows20(BASE[ROWS] / 3, BASE[ROWS] / 3), "undecided, supported, supported"),
        (rows20(BASE[ROWS], BASE[ROWS] / 3.2), "supported, supported, supported"),  # one is enough
        (rows20(BASE[ROWS] / 3.2, BASE[ROWS]), "supported, supported, supported"),
        (rows20(BASE[ROWS], BASE[ROWS] / 3), "undecided, supported, supported"),
        (rows20(BASE[ROWS] / 2.6, BASE[ROWS] / 2.6), "refuted, supported, supported"),
        ({("entropy_sample", "rows4096", b): 1e-3 for b in ("triton", "cuda")}, "supported, refuted, supported"),
        ({("entropy_sample", "rows4096", b): None for b in ("triton", "cuda")}, "supported, not tested, supported"),
        (
            {("entropy_sample", "rows4096", b): BYTES / 4e12 / 0.7 for b in ("triton", "cuda")},
            "supported, undecided, supported",
        ),
        ({XL: 1.0}, "supported, supported, refuted"),  # all are needed
        ({XL: BASE[*XL[:2], "eager"]}, "supported, supported, undecided"),
        ({XL: None}, "supported, supported, not tested"),
        ({ROWS: None}, "not tested, supported, supported"),
    ],
)
def test_verdicts_on_a_gpu(change, verdicts):
    found = judged({cell: wall for cell, wall in (BASE | change).items() if wall})
    assert ", ".join(str(row.verdict) for row in found.values()) == verdicts and list(found) == ["H1", "H2", "H3"]
    assert {row.rank for row in found.values()} == {"check"}


def test_intervals_hold_for_all_quantities_of_a_claim_together():
    found = judged(BASE | {XL: BASE[*XL[:2], "eager"] / 1.5})
    n = {"H1": 2, "H2": 2, "H3": 6}
    for id, finding in found.items():
        assert finding.confidence == pytest.approx(1 - 0.05 / n[id]) and len(finding.parts) == n[id]
    for part, backend in zip(found["H1"].parts, ("triton", "cuda"), strict=True):
        ratio = BASE[ROWS] / BASE["entropy_sample", "rows20", backend]
        assert part.label == f"entropy_sample rows20: eager over {backend}" and (part.low, part.high) == (3.0, None)
        assert part.estimate[:4] == pytest.approx((ratio, *ends(ratio, [0.02] * 2, 1 - 0.05 / 4), 30))
    for part, backend in zip(found["H2"].parts, ("triton", "cuda"), strict=True):
        share = BYTES / BASE["entropy_sample", "rows4096", backend] / 4e12
        assert part.label.endswith(f"{backend}'s share of the copy bandwidth") and (part.low, part.high) == (0.7, None)
        assert part.estimate[:3] == pytest.approx((share, *ends(share, [0.02], 1 - 0.05 / 4)))
    for part, shape in zip(found["H3"].parts, bench.SHAPES["tree_attention"], strict=True):
        ratio = 1.5 if shape == XL[1] else BASE["tree_attention", shape, "eager"] / BASE["tree_attention", shape, XL[2]]
        assert part.label == f"tree_attention {shape}: eager over triton" and (part.low, part.high) == (1.0, None)
        assert part.estimate[:3] == pytest.approx((ratio, *ends(ratio, [0.02] * 2, 1 - 0.05 / 12)))
    assert float(found["H3"].effect.split()[0]) == pytest.approx(1.5)  # the nearest to its bound
    assert "heads25_depth49: eager over triton; n = 30, spread of the rounds of one process" in found["H3"].reason


def test_wide_rounds_decide_nothing():
    found = judged(BASE | rows20(BASE[ROWS] / 3.3, BASE[ROWS] / 3.3))["H1"]
    wide = judged(BASE | rows20(BASE[ROWS] / 3.3, BASE[ROWS] / 3.3), iqr=0.4)["H1"]
    assert (str(found.verdict), str(wide.verdict)) == ("supported", "undecided")


def test_records_of_a_cpu_test_nothing():
    found = judged({ROWS: 1e-3}, device="cpu")
    assert {id: str(row.verdict) for id, row in found.items()} == dict.fromkeys(("H1", "H2", "H3"), "not tested")
    assert {row.reason for row in found.values()} == {
        "no GPU records: these are of a CPU, where only the reference runs"
    }
    missing = judged({cell: wall for cell, wall in BASE.items() if cell != XL})["H3"].reason
    assert missing == "no tree_attention heads25_depth49: eager over triton in these records"


@pytest.mark.needs_gpu
def test_every_backend_of_the_smallest_shapes_runs_on_the_gpu(tmp_path):
    where = ("--journal", str(tmp_path / "journal.jsonl"), "--benchmark-json", str(tmp_path / "out.json"))
    words = ("--scale", "smoke", "--device", "cuda", "--require-gpu", *PLUGINS)
    status, text = run("pytest", "benches/kernel_speed", *words, *where)
    assert status == 0, text
    benchmarks = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    assert len(benchmarks) == len(collected("smoke", "cuda"))
    assert {b["extra_info"]["timer"] for b in benchmarks} == {"cuda_events"}

"""The kernels' question: what it collects, what its formulas count, that a wrong kernel fails, what its report says."""

import copy
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
QUESTION = ROOT / "benches" / "kernel_speed"
PLUGINS = ("-p", "no:cacheprovider", "-p", "mlexp.harness.plugin")  # named, for where the package is not installed
FIGURES = ("entropy_sample.png", "fork.png", "tree_attention.png")
SMOKE = ("entropy_sample-rows20-eager", "fork-paths20-eager", "tree_attention-heads12_depth25-eager")


def load_bench():
    spec = importlib.util.spec_from_file_location("kernel_speed_bench", QUESTION / "bench_kernel_speed.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench = load_bench()


def run(*words, env=()):
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, env=os.environ | dict(env), capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """The benchmark JSON of a smoke run on the CPU."""
    place = tmp_path_factory.mktemp("kernel_speed")
    where = ("--journal", str(place / "journal.jsonl"), "--benchmark-json", str(place / "out.json"))
    words = ("--scale", "smoke", "--device", "cpu", *PLUGINS)
    status, text = run("pytest", "benches/kernel_speed", *words, *where)
    assert status == 0, text
    return place / "out.json"


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
    ],
    "fork": [
        lambda tip, source, many, parts, below: (tip, source, many.roll(1, 1), parts, below),
        lambda tip, source, many, parts, below: (tip, source, many, parts, below + 1),
    ],
    "tree_attention": [lambda out: out * 1.01, lambda out: out.roll(1, 0), lambda out: out * float("nan")],
}


@pytest.mark.parametrize(("kernel", "spoil"), [(kernel, spoil) for kernel in WRONG for spoil in WRONG[kernel]])
def test_the_gate_sees_a_wrong_result(kernel, spoil):
    args = inputs(kernel)
    out = bench.function(kernel, "eager")(**args)
    with pytest.raises(AssertionError):
        bench.GATES[kernel](args, spoil(*out) if isinstance(out, tuple) else spoil(out))


def test_a_planted_wrong_kernel_fails_its_cell_and_has_no_time(tmp_path):
    (tmp_path / "planted.py").write_text(
        "from mlexp.decoding.kernels import reference\n"
        "right = reference.tree_attention\n"
        "def wrong(q, k_pool, v_pool, *args):\n"
        "    return right(q, k_pool, v_pool.roll(1, 0) if q.dtype.itemsize == 4 else v_pool, *args)\n"
        "def pytest_runtest_call(item):\n"
        "    reference.tree_attention = lambda *args, **named: right(**named) if named else wrong(*args)\n"
    )
    where = ("--journal", str(tmp_path / "journal.jsonl"), "--benchmark-json", str(tmp_path / "out.json"))
    words = ("-k", "tree_attention", "--scale", "smoke", "--device", "cpu", *PLUGINS, "-p", "planted")
    status, text = run(
        "pytest",
        "benches/kernel_speed",
        *words,
        *where,
        env={"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
    )
    assert status == 1 and "relative error" in text, text
    written = json.loads((tmp_path / "out.json").read_text())
    assert not written["benchmarks"] and len(written["unfinished"]) == 1
    assert written["unfinished"][0]["extra_info"]["status"] == "failed"


def test_a_cell_s_key_covers_every_backend():
    from mlexp.harness.identity import Sources

    files, _ = Sources([ROOT]).of(QUESTION / "bench_kernel_speed.py")
    names = {path.name for path in files if path.parent.name == "kernels"}
    assert names >= {"reference.py", "triton.py", "cuda.py", "entropy_sample.cu"}


def test_a_record_holds_what_the_roofline_needs(output):
    benchmarks = json.loads(output.read_text())["benchmarks"]
    assert {b["name"] for b in benchmarks} == {f"test_kernel[{name}]" for name in SMOKE}
    for info in (b["extra_info"] for b in benchmarks):
        assert info["timer"] == "host_clock" and info["kernel_backend"] == "reference"
        assert info["bytes_moved"] > 0 and info["copy_bytes_per_s"] > 1e8 and "roofline_share" not in info


def report(tmp_path, path):
    status, text = run("mlexp", "report", str(path), "--out", str(tmp_path / "results"))
    assert status == 0, text
    return text, (tmp_path / "results" / "kernel_speed" / "summary.md").read_text()


def test_without_a_gpu_the_report_decides_nothing_and_draws_all(output, tmp_path):
    text, summary = report(tmp_path, output)
    assert len(re.findall(r"H\d undecided", text)) == 3 and "no GPU records" in summary
    assert "unfinished grid" not in summary
    for name in (*FIGURES, "kernel_speed.csv"):
        assert (tmp_path / "results" / "kernel_speed" / name).stat().st_size > 100, name


def as_if_on_a_gpu(output, seconds):
    """The records of a GPU with these times, made from those of a CPU: (kernel, shape, backend) -> s."""
    written = json.loads(output.read_text())
    model, made = written["benchmarks"][0], []
    for (kernel, shape, backend), wall in seconds.items():
        one = copy.deepcopy(model)
        one["params"] = {"kernel": kernel, "shape": shape, "backend": backend}
        one["name"] = f"test_kernel[{kernel}-{shape}-{backend}]"
        one["fullname"] = f"benches/kernel_speed/bench_kernel_speed.py::{one['name']}"
        one["stats"] |= {
            "median": wall,
            "iqr": 0.02 * wall,
            "rounds": 30,
            "data": [wall * (1 + 0.02 * (i % 3 - 1)) for i in range(30)],
        }
        ran = {"eager": "reference", "compile": "reference"}.get(backend, backend)
        info = {"cell": one["fullname"], "key": one["name"], "device": "cuda", "dtype": "bfloat16", "scale": "quick"}
        info |= {"machine": "CPU + made-up GPU", "timer": "cuda_events", "kernel_backend": ran}
        info |= {"copy_bytes_per_s": 4e12, "bytes_moved": bench.SHAPES[kernel][shape].bytes_moved(2)}
        one["extra_info"] |= info
        made.append(one)
    return json.dumps(written | {"benchmarks": made, "series": {}})


BASE = {
    (kernel, shape, backend): bench.SHAPES[kernel][shape].bytes_moved(2) / 4e12 * slower + 2e-6
    for kernel, shape, backend in collected("quick", "cuda")
    for slower in [{"eager": 12.0, "compile": 4.0, "triton": 1.2, "cuda": 1.1}[backend]]
}
XL, ROWS = ("tree_attention", "heads25_depth49", "triton"), ("entropy_sample", "rows20", "eager")


@pytest.mark.parametrize(
    ("change", "verdicts"),
    [
        ({}, "supported supported supported"),
        ({("entropy_sample", "rows20", b): 4e-6 for b in ("triton", "cuda")}, "refuted supported supported"),
        (
            {("entropy_sample", "rows20", b): t for b, t in (("triton", None), ("cuda", 4e-6))},
            "refuted supported supported",
        ),
        (
            {("entropy_sample", "rows20", b): BASE[ROWS] / 3 for b in ("triton", "cuda")},
            "undecided supported supported",
        ),
        ({("entropy_sample", "rows4096", b): 1e-3 for b in ("triton", "cuda")}, "supported refuted supported"),
        ({XL: 1.0}, "supported supported refuted"),
        ({XL: BASE[*XL[:2], "eager"]}, "supported supported undecided"),
        ({XL: None}, "supported supported undecided"),
        ({ROWS: None}, "undecided supported supported"),
    ],
)
def test_verdicts_on_a_gpu(output, tmp_path, change, verdicts):
    seconds = {cell: wall for cell, wall in (BASE | change).items() if wall}
    (tmp_path / "gpu.json").write_text(as_if_on_a_gpu(output, seconds))
    text, summary = report(tmp_path, tmp_path / "gpu.json")
    assert " ".join(re.findall(r"H\d (\w+):", text)) == verdicts
    assert "cuda, bfloat16" in summary and "CUDA events" in summary and "no GPU records" not in summary


@pytest.mark.needs_gpu
def test_every_backend_of_the_smallest_shapes_runs_on_the_gpu(tmp_path):
    where = ("--journal", str(tmp_path / "journal.jsonl"), "--benchmark-json", str(tmp_path / "out.json"))
    words = ("--scale", "smoke", "--device", "cuda", "--require-gpu", *PLUGINS)
    status, text = run("pytest", "benches/kernel_speed", *words, *where)
    assert status == 0, text
    benchmarks = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    assert len(benchmarks) == len(collected("smoke", "cuda"))
    assert {b["extra_info"]["timer"] for b in benchmarks} == {"cuda_events"}

"""Cells on Ray: the records of a local run, from a cluster whose workers and nodes are killed under them."""

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mlexp import journal, record

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed (extra: cluster)")

ROOT = Path(__file__).parents[2]
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
# What a measurement or a moment says; all else must be the same bit for bit.
OF_THE_RUN = {"when", "peak_bytes", "energy_j", "dirty", "replayed", *record.CONDITIONS}

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "object_store_memory": 100 << 20}
cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
second = cluster.add_node(**node)
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(second, allow_graceful=False)
    print("killed", flush=True)
cluster.shutdown()
"""


@pytest.fixture
def two_nodes():
    """A cluster of two nodes with a core each, on this machine: its address, and what kills the second node."""
    if len(CORES) < 2:
        pytest.skip("two nodes with a core each need two cores")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen([sys.executable, "-c", CLUSTER], env=ONE_THREAD, **pipes)

    def kill_a_node():
        process.stdin.write("kill\n")
        process.stdin.flush()
        assert process.stdout.readline() == "killed\n"

    yield process.stdout.readline().strip(), kill_a_node
    process.stdin.close()
    process.wait(60)


def sweep(folder, *words, **how):
    """The command, started in `folder`."""
    command = [sys.executable, "-m", "mlexp", "sweep", *words, "-p", "no:cacheprovider"]
    return subprocess.Popen(
        command, cwd=folder, env=ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **how
    )


def local(folder, *words):
    command = [sys.executable, "-m", "pytest", *words, "-q", "-p", "no:cacheprovider"]
    return subprocess.run(command, cwd=folder, env=ONE_THREAD, capture_output=True, text=True, check=False)


def entries(path):
    return journal.read(path).entries if path.exists() else []


def wait_until(true, process, seconds=240):
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


def assert_same_records(one, two):
    """The JSONs hold the same cells with the same records, series and declared metrics, but for what a run is."""

    def rows(output):
        timed = {b["fullname"]: b for b in output["benchmarks"] + output["unfinished"]}
        return {
            name: {k: v for k, v in row["extra_info"].items() if k not in OF_THE_RUN}
            | {"axes": row["params"], "group": row["group"], "rounds": row.get("stats", {}).get("rounds")}
            for name, row in timed.items()
        }

    assert one.keys() == two.keys()
    assert one["series"] == two["series"] and one["metrics"] == two["metrics"]
    first, second = rows(one), rows(two)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name] == second[name], name


def test_the_comparison_sees_a_difference():
    row = {
        "fullname": "a",
        "params": {},
        "group": "g",
        "stats": {"rounds": 1},
        "extra_info": {"accuracy": 0.5, "when": 1},
    }
    one = {"benchmarks": [row], "unfinished": [], "series": {}, "metrics": {}}
    assert_same_records(one, one | {"benchmarks": [row | {"extra_info": {"accuracy": 0.5, "when": 2}}]})
    for other in ({"benchmarks": [row | {"extra_info": {"accuracy": 0.5 + 2**-53}}]}, {"series": {"k": {}}}, {"x": 1}):
        with pytest.raises(AssertionError):
            assert_same_records(one, one | other)


@pytest.mark.slow
def test_a_sweep_is_a_local_run_and_each_takes_up_the_other(toy):
    """A cell that fails, one that kills its process once, one that kills it always; a journal begun at home."""
    place = toy.pytester.path
    assert local(place, "benches", "-k", "m_one and base").returncode == 0
    toy.ran()
    toy.script("m_one-seed1-ours", "os.kill(os.getpid(), signal.SIGKILL)")
    toy.script("m_two-seed1-ours", "assert 1 == 2, 'no'")
    (toy.folder / "m_two-seed2-ours.always.py").write_text("os.kill(os.getpid(), signal.SIGSEGV)")
    process = sweep(place, "--retries", "1", "--", "benches", "--resume", "--benchmark-json", "out.json", "-q")
    text = process.communicate()[0]
    assert process.returncode == pytest.ExitCode.TESTS_FAILED, text
    assert "mlexp: 4 measured, 2 replayed, 1 failed, 1 crashed" in text
    assert len(toy.json()["benchmarks"]) == 6
    reasons = {row["extra_info"]["status"]: row["extra_info"]["reason"] for row in toy.json()["unfinished"]}
    assert "no" in reasons["failed"] and "lost 2 times" in reasons["crashed"] and "SIGSEGV" in reasons["crashed"]
    written = entries(toy.journal)
    assert len({entry.key for entry in written}) == len(written) == 8
    toy.ran()
    (toy.folder / "m_two-seed2-ours.always.py").unlink()
    assert local(place, "benches", "--resume", "--benchmark-json", "both.json").returncode == 0
    assert sorted(toy.ran()) == ["m_two-seed1-ours", "m_two-seed2-ours"]  # at home only what had not passed
    assert local(place, "benches", "--benchmark-json", "home.json").returncode == 0
    assert_same_records(toy.json("home.json"), toy.json("both.json"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--cpus-per-cell", "1000", "--", "benches"], "no room for a cell of 1000 cores"),
        (["--gpus-per-cell", "1", "--", "benches", "--device", "cpu"], "they contradict"),
        (["--", "benches", "--set", "size=zero"], "expected int, not 'zero'"),
        (["--", "benches", "--benchmark-disable"], "--benchmark-disable would measure nothing"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_swept_is_one_line(toy, words, told):
    process = sweep(toy.pytester.path, *words)
    text = process.communicate()[0]
    assert process.returncode == pytest.ExitCode.USAGE_ERROR and told in text and "Traceback" not in text
    assert toy.ran() == []


def test_without_ray_it_is_one_line(tmp_path):
    hidden = "import sys; sys.modules['ray'] = None; from mlexp.cli import main; sys.exit(main(['sweep']))"
    done = subprocess.run([sys.executable, "-c", hidden], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 4 and done.stderr == 'mlexp sweep needs ray: pip install "pytest-mlexp[cluster]"\n'


def workers(process, command="mlexp.harness.worker"):
    """Sessions of this sweep's workers."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            found += [child] if command in " ".join(child.cmdline()) else []
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["mlexp.harness.worker", "ray::Place"])
def test_a_worker_killed_in_the_middle_costs_its_cell_a_retry(toy, victim):
    toy.bench.write_text(toy.bench.read_text().replace("time.sleep(0.001)", "time.sleep(0.3)"))
    process = sweep(toy.pytester.path, "--cpus-per-cell", "1", "--", "benches", "--benchmark-json", "out.json", "-q")
    wait_until(lambda: len(entries(toy.journal)) >= 2, process)
    os.kill(workers(process, victim)[0].pid, signal.SIGKILL)
    text = process.communicate()[0]
    assert process.returncode == 0, text
    assert len(toy.json()["benchmarks"]) == 8 == len(entries(toy.journal))


@pytest.mark.slow
def test_a_killed_driver_leaves_no_worker_and_loses_nothing(toy):
    toy.bench.write_text(toy.bench.read_text().replace("time.sleep(0.001)", "time.sleep(0.3)"))
    words = ["--cpus-per-cell", "1", "--", "benches", "--resume", "--benchmark-json", "out.json", "-q"]
    process = sweep(toy.pytester.path, *words)
    wait_until(lambda: len(entries(toy.journal)) >= 2, process)
    sessions = workers(process)
    process.kill()
    process.wait()
    psutil.wait_procs(sessions, timeout=60)
    assert not [session for session in sessions if session.is_running() and session.status() != psutil.STATUS_ZOMBIE]
    before = entries(toy.journal)
    process = sweep(toy.pytester.path, *words)
    text = process.communicate()[0]
    assert process.returncode == 0, text
    assert f"{len(before)} replayed" in text and len(entries(toy.journal)) == 8 == len(toy.json()["benchmarks"])


@pytest.mark.slow
def test_ctrl_c_leaves_the_json_of_what_had_finished(toy):
    toy.bench.write_text(toy.bench.read_text().replace("time.sleep(0.001)", "time.sleep(0.3)"))
    process = sweep(toy.pytester.path, "--cpus-per-cell", "1", "--", "benches", "--benchmark-json", "out.json", "-q")
    wait_until(lambda: len(entries(toy.journal)) >= 2, process)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert {b["fullname"] for b in toy.json()["benchmarks"]} == {entry.cell for entry in entries(toy.journal)}


@pytest.mark.slow
def test_cells_have_cores_of_their_own(toy, two_nodes):
    """Two nodes that each believe to have a core of this machine: their cells say which one they ran on."""
    address, _ = two_nodes
    said = "print(cell.name, sorted(os.sched_getaffinity(0)), file=open(HERE / 'cores.log', 'a')); time.sleep(0.3)"
    toy.bench.write_text(toy.bench.read_text().replace("time.sleep(0.001)", said))
    process = sweep(toy.pytester.path, "--address", address, "--", "benches", "-q")
    text = process.communicate()[0]
    assert process.returncode == 0, text
    cores = [line.partition(" ")[2] for line in (toy.folder / "cores.log").read_text().splitlines()]
    assert len(cores) == 24 and set(cores) == {f"[{core}]" for core in CORES[:2]}


@pytest.mark.slow
def test_a_node_killed_half_way_costs_retries_and_no_record(toy, two_nodes):
    address, kill_a_node = two_nodes
    toy.bench.write_text(toy.bench.read_text().replace("time.sleep(0.001)", "time.sleep(0.2)"))
    axes = ["--set", "seeds=1..8"]
    process = sweep(toy.pytester.path, "--address", address, "--", "benches", *axes, "--benchmark-json", "swept.json")
    wait_until(lambda: len(entries(toy.journal)) >= 16, process)
    kill_a_node()
    text = process.communicate()[0]
    assert process.returncode == 0, text
    assert len({entry.key for entry in entries(toy.journal)}) == 32 == len(entries(toy.journal))
    done = local(toy.pytester.path, "benches", *axes, "--journal", "home.jsonl", "--benchmark-json", "home.json")
    assert done.returncode == 0, done.stdout
    assert_same_records(toy.json("home.json"), toy.json("swept.json"))


def measured(name):
    """Whether a metric or series is time or memory, and so another number in every run."""
    return name.endswith(("_s", "_bytes")) or name in ("bytes_per_sample", "ab_ratio")


@pytest.mark.slow
def test_the_whole_smoke_grid_swept_is_the_local_run(tmp_path, two_nodes):
    """Every question at its smallest scale on two nodes, one of which is killed half-way: the local run's records."""
    address, kill_a_node = two_nodes
    grid = [*shlex.split(os.environ.get("SWEEP_CELLS", "benches")), "--scale", "smoke", "--device", "cpu"]
    listed = local(ROOT, *grid, "--collect-only").stdout
    total = sum("::" in line for line in listed.splitlines())
    home = local(
        ROOT, *grid, "--journal", str(tmp_path / "home.jsonl"), "--benchmark-json", str(tmp_path / "home.json")
    )
    there = tmp_path / "swept.jsonl"
    process = sweep(
        ROOT,
        "--address",
        address,
        "--",
        *grid,
        "--journal",
        str(there),
        "-q",
        "--benchmark-json",
        str(tmp_path / "swept.json"),
    )
    wait_until(lambda: len(entries(there)) >= total // 2, process, seconds=1800)
    kill_a_node()
    text = process.communicate()[0]
    assert process.returncode == home.returncode, text + home.stdout
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("home.json", "swept.json"))
    for output in (one, two):
        for row in output["benchmarks"] + output["unfinished"]:
            info = row["extra_info"]
            row["extra_info"] = {name: value for name, value in info.items() if not measured(name)}
        output["series"] = {
            key: {name: array for name, array in arrays.items() if not measured(name)}
            for key, arrays in output["series"].items()
        }
    assert len(one["benchmarks"]) + len(one["unfinished"]) == total
    assert_same_records(one, two)
    print(f"{total} cells: {len(one['benchmarks'])} finished, {len(one['unfinished'])} not, at home as on two nodes")


NO_OP = '''"""A thousand cells that do nothing."""
from dataclasses import dataclass

@dataclass(frozen=True)
class Settings:
    numbers: tuple[int, ...] = tuple(range(500))
    arms: tuple[str, ...] = ("a", "b")

SETTINGS = {"smoke": Settings(), "quick": Settings(), "full": Settings()}
AXES = {"number": "numbers", "arm": "arms"}

def test_noop(cell, number, arm):
    cell.time(lambda: None, warmup=False)
'''
WATCHED = """
import sys, time, psutil
from mlexp.harness import sweep
store, seen = sweep.Dispatch.store, {}
def watched(self, *args):
    store(self, *args)
    if self.done in (100, 1000):
        seen[self.done] = time.perf_counter(), time.process_time(), psutil.Process().memory_info().rss
sweep.Dispatch.store = watched
status = sweep.run(sweep.Share(cpus=1), sys.argv[1:])
print(*(b - a for a, b in zip(seen[100], seen[1000])), file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.slow
def test_a_thousand_cells_cost_the_driver_little_and_its_memory_is_flat(toy):
    toy.bench.write_text(NO_OP)
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, "benches", "-q", "--benchmark-quiet", "--benchmark-json", "out.json"],
        cwd=toy.pytester.path, env=ONE_THREAD, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    wall, cpu, grown = (float(text) / 900 for text in done.stderr.splitlines()[-1].split())
    print(f"a cell: {wall * 1e3:.1f} ms to the next record, {cpu * 1e3:.1f} ms of driver's CPU, {grown:.0f} bytes")
    assert grown < 30_000  # what the JSON will hold of a cell, and nothing else
    assert len(toy.json()["benchmarks"]) == 1000

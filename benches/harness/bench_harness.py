"""What does the harness itself cost?  Bare `benchmark.pedantic` and `cell.time`, interleaved in one pytest run."""

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from mlexp.settings import AtLeast, OneOf
from mlexp.settings import Settings as Base
from mlexp.study import beside

WORKS = {"noop": 0.0, "spin": 0.1}  # seconds that the measured function takes

SESSION = '''
import time
import pytest

def work(end={seconds}):
    """Busy for a fixed time: what is measured beyond it is the harness's."""
    end += time.perf_counter()
    while time.perf_counter() < end:
        pass

@pytest.mark.parametrize("n", range({blocks}))
def test_bare(benchmark, n):
    benchmark.extra_info["began"] = time.perf_counter()
    benchmark.pedantic(work, rounds={rounds})

@pytest.mark.parametrize("n", range({blocks}))
def test_cell(cell, benchmark, n):
    benchmark.extra_info["began"] = time.perf_counter()
    cell.time(work, rounds={rounds}, warmup=False)
'''
INTERLEAVE = '''
def pytest_collection_modifyitems(items):
    """bare cell, cell bare, bare cell, ...: drift hits both alike."""
    items.sort(key=lambda item: (item.callspec.params["n"], ("cell" in item.name) ^ (item.callspec.params["n"] % 2)))
'''


@dataclass(frozen=True)
class Settings(Base):
    """`blocks` cells of `rounds` rounds, bare and under the harness."""

    works: Annotated[tuple[str, ...], OneOf(WORKS)] = tuple(WORKS)
    blocks: Annotated[int, AtLeast(2)] = 60
    rounds: Annotated[int, AtLeast(2)] = 3


SETTINGS = {"smoke": Settings(blocks=3, rounds=2), "quick": Settings(blocks=20), "full": Settings()}
AXES = {"work": "works"}
METRICS = {"work_s": ("s", "none", "what the measured function takes by itself")}
STUDY = replace(beside(__file__).STUDY, arm="work", settings=SETTINGS, axes=AXES, metrics=METRICS)


def test_overhead(cell, work):
    s = cell.settings
    bare, ours = cell.time(lambda: session(WORKS[work], s.blocks, s.rounds), warmup=False)
    cell.record(work_s=WORKS[work])
    for name, benchmarks in (("bare", bare), ("cell", ours)):
        cell.series(**{
            f"{name}_s": [statistics.median(bench["stats"]["data"]) for bench in benchmarks],
            f"{name}_began_s": [bench["extra_info"]["began"] for bench in benchmarks],
        })  # fmt: skip
    assert len(bare) == len(ours) == s.blocks


def session(seconds: float, blocks: int, rounds: int) -> tuple[list[dict], list[dict]]:
    """The benchmarks, bare and under the harness, from one pytest run; no-ops each kind in a row, to time the gaps."""
    with TemporaryDirectory() as folder:
        bench, out = Path(folder, "test_rulers.py"), Path(folder, "out.json")
        bench.write_text(SESSION.format(seconds=seconds, blocks=blocks, rounds=rounds))
        Path(folder, "pytest.ini").write_text("[pytest]\n")
        if seconds:
            Path(folder, "conftest.py").write_text(INTERLEAVE)
        command = [sys.executable, "-m", "pytest", bench, "-q", "--benchmark-quiet", "-p", "mlexp.harness.plugin"]
        subprocess.run([*command, "--benchmark-json", out], cwd=folder, check=True, capture_output=True)
        benchmarks = json.loads(out.read_text())["benchmarks"]
    split = {name: [b for b in benchmarks if b["name"].startswith(f"test_{name}[")] for name in ("bare", "cell")}
    return split["bare"], split["cell"]

"""A question about a metric of its own, with NumPy alone: run, reported and exported as its user does it."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.command import ROOT

BENCH = """
import numpy as np
from dataclasses import dataclass
from mlexp import At, Above, Claim, Settings, Study, arm


@dataclass(frozen=True)
class Sizes(Settings):
    seeds: tuple[int, ...] = (1, 2, 3)
    degrees: tuple[str, ...] = ("d1", "d9")
    fits: tuple[str, ...] = ("plain", "ridge")


STUDY = Study(
    asks="Does ridge err less?", arm="fit", arms=("plain", "ridge"), baseline="plain", outcome="mse", over=("degree",),
    settings={"quick": Sizes()}, axes={"seed": "seeds", "degree": "degrees", "fit": "fits"},
    metrics={"mse": ("y2", "lower", "mean squared error"), "bias": ("y", "none", "mean error")},
    claims={"H1": Claim("Ridge errs less", Above(At(arm("plain") - arm("ridge"))))},
)


def test_fit(cell, seed, degree, fit):
    rng, n = np.random.default_rng(cell.seed), int(degree[1:])
    x, fresh = rng.uniform(-1, 1, 12), rng.uniform(-1, 1, 50)
    y = np.sin(3 * x) + 0.3 * rng.standard_normal(12)
    powers = x[:, None] ** np.arange(n + 1)
    penalty = 0.1 * np.eye(n + 1) if fit == "ridge" else 0
    weights = cell.time(lambda: np.linalg.pinv(powers.T @ powers + penalty) @ powers.T @ y)
    error = fresh[:, None] ** np.arange(n + 1) @ weights - np.sin(3 * fresh)
    cell.record(mse=float((error**2).mean()), bias=float(error.mean()))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    place = tmp_path_factory.mktemp("project")
    (place / "benches" / "curve_fit").mkdir(parents=True)
    (place / "benches" / "curve_fit" / "bench_curve_fit.py").write_text(BENCH)
    (place / "pytest.ini").write_text("[pytest]\naddopts = -p mlexp.harness.plugin\npython_files = bench_*.py\n")
    status, told = python(place, "pytest", "benches", "-q", "-p", "no:cacheprovider", "--benchmark-json", "out.json")
    assert status == 0, told
    return place


def python(place, *words):
    env = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", *words]
    done = subprocess.run(call, cwd=place, env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("source", "folder"), [(".mlexp/journal.jsonl", True), ("out.json", False)], ids=["here", "gone"]
)
def test_a_metric_of_ones_own_as_outcome_is_reported_and_exported(project, tmp_path, source, folder):
    shutil.copytree(project, tmp_path, dirs_exist_ok=True)
    if not folder:
        shutil.rmtree(tmp_path / "benches" / "curve_fit")
    status, told = python(tmp_path, "mlexp", "report", source, "--benches", "benches")
    assert status == 0 and ("H1 " in told) == folder, told
    arms = (tmp_path / "results" / "curve_fit" / "arms.csv").read_text().splitlines()
    assert arms[0].startswith("degree,fit,mse,low,high,blocks") and len(arms) == 5
    for to in ("x.tex", "x.csv"):
        status, told = python(tmp_path, "mlexp", "export", source, "--benches", "benches", "--to", to)
        assert status == 0, told
    assert "mse (y2)" in (tmp_path / "x.tex").read_text()

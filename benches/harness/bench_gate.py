"""How often is the gate wrong?  Comparisons of identical code, and of code that was made slower, by each rule."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from mlexp.settings import OneOf
from mlexp.settings import Settings as Base
from mlexp.study import beside

WORK = '''
ITEMS = {items}

def work():
    """About a millisecond of plain Python."""
    total = 0
    for i in range(ITEMS):
        total += i * i % 7
    return total

def test_work(benchmark):
    benchmark(work)
'''
ITEMS = 20_000
INI = "[pytest]\naddopts = -p no:hypothesispytest -p no:anyio -p no:jaxtyping\n"  # slow to import, and no use here


@dataclass(frozen=True)
class Settings(Base):
    """Trials whose names begin with `same` compare identical code; in those that begin with `longer` the head is slower
    by `slowdown`."""

    trials: tuple[str, ...] = (*(f"same{i:02d}" for i in range(50)), *(f"longer{i:02d}" for i in range(12)))
    truths: Annotated[tuple[str, ...], OneOf(("same", "longer"))] = ("same", "longer")
    slowdown: float = 0.1
    budget_s: float = 8.0
    margin: float = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
        for trial in self.trials:
            if not trial.startswith(("same", "longer")):
                raise ValueError(f"unknown trial {trial!r}; same or longer and a number, such as same00")


SETTINGS = {
    "smoke": Settings(trials=("same00", "longer00"), budget_s=0.2),
    "quick": Settings(trials=("same00", "same01", "same02", "same03", "longer00", "longer01"), budget_s=5.0),
    "full": Settings(),
}
AXES = {"trial": "trials", "truth": "truths"}
METRICS = {
    "ab_verdict": ("name", "none", "what `mlexp ab` says"),
    "ab_ratio": ("ratio", "none", "head over base by `mlexp ab`"),
    "ab_low": ("ratio", "none", "lower end of its interval; null: none yet"),
    "ab_high": ("ratio", "none", "upper end of its interval; null: none yet"),
    "ab_blocks": ("blocks", "none", "ABBA blocks that it took"),
    "base_mean_s": ("s", "none", "mean of the rounds of a run of pytest-benchmark on the base"),
    "head_mean_s": ("s", "none", "the same on the head, right after it"),
}

STUDY = replace(beside(__file__).STUDY, settings=SETTINGS, axes=AXES, metrics=METRICS)


def collects(params, settings, device) -> bool:
    return params["trial"].startswith(params["truth"])


def test_gate(cell, trial, truth):
    s = cell.settings
    head = 1 + s.slowdown if truth == "longer" else 1
    found, means = cell.time(lambda: both_rules(head, s.budget_s, s.margin, cell.seed), warmup=False)
    cell.record(ab_verdict=str(found.verdict), ab_ratio=found.ratio, ab_blocks=found.blocks)
    cell.record(ab_low=found.low or None, ab_high=found.high if found.high < float("inf") else None)
    cell.record(base_mean_s=means[0], head_mean_s=means[1])
    cell.series(base_s=found.base_s, head_s=found.head_s)
    cell.series(base_step_mean_s=found.base_mean_s, head_step_mean_s=found.head_mean_s)
    assert found.blocks, found.why


def both_rules(head: float, budget_s: float, margin: float, seed: int) -> tuple:
    """(the comparison of `mlexp ab`, (mean of the base, mean of the head) of two runs of pytest-benchmark)."""
    from mlexp import ab

    with TemporaryDirectory() as folder:
        repository = Path(folder, "repository")
        commit(repository, "base", 1)
        commit(repository, "head", head)
        (found,) = ab.revisions("base", "head", ["test_work.py"], budget_s, margin, where=repository, seed=seed)
        means = [mean_of_a_run(Path(folder, name), factor) for name, factor in (("base", 1), ("head", head))]
    return found, means


def commit(repository: Path, tag: str, factor: float) -> None:
    """Put the work, so much longer, into a commit of that name."""
    write(repository, factor)
    git = ["git", "-c", "user.name=gate", "-c", "user.email=gate@localhost", "-c", "commit.gpgsign=false"]
    for argv in (["init", "-q"], ["add", "-A"], ["commit", "-q", "--allow-empty", "-m", tag], ["tag", tag]):
        subprocess.run([*git, *argv], cwd=repository, check=True, capture_output=True)


def mean_of_a_run(folder: Path, factor: float) -> float:
    """What pytest-benchmark calls the mean, by its default settings, in a process of its own."""
    write(folder, factor)
    command = [sys.executable, "-m", "pytest", "-q", "--benchmark-quiet", "--benchmark-json", "out.json"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return json.loads(Path(folder, "out.json").read_text())["benchmarks"][0]["stats"]["mean"]


def write(folder: Path, factor: float) -> None:
    folder.mkdir(exist_ok=True)
    Path(folder, "pytest.ini").write_text(INI)
    Path(folder, ".gitignore").write_text("__pycache__\n")
    Path(folder, "test_work.py").write_text(WORK.format(items=round(ITEMS * factor)))

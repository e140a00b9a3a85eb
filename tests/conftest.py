"""A toy question in a scratch project, for tests of the plugin: light cells that import no torch."""

import gc
import json
import os

import numpy as np  # noqa: F401, once a process: pytester unloads what is first loaded in its sessions
import pytest

if os.environ.get("PYTEST_XDIST_WORKER"):
    # Threads of two workers that wait for each other's cores spin, and take many times as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Sessions that tests start are no workers, or pytest-benchmark would measure nothing in them. xdist reads these
    # variables no more once a worker has started.
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        del os.environ[name]

# Nor are they shuffled or dressed by what is installed to be tested beside cells (test_company.py).
ALONE = "-p no:randomly -p no:sugar -p no:playwright"
os.environ["PYTEST_ADDOPTS"] = f"{ALONE} {os.environ.get('PYTEST_ADDOPTS', '')}"

TOY = '''
"""A toy question: two models, two seeds, two arms. What a cell does is scripted by files beside it."""
import os, pathlib, signal, time
from dataclasses import dataclass

@dataclass(frozen=True)
class Settings:
    models: tuple[str, ...] = ("m_one", "m_two")
    seeds: tuple[int, ...] = (1, 2)
    arms: tuple[str, ...] = ("base", "ours")
    size: int = 3
    share: float = 0.5

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size is {self.size}; at least 1")

SETTINGS = {"smoke": Settings(size=1), "quick": Settings(), "full": Settings(size=9)}
AXES = {"model": "models", "seed": "seeds", "arm": "arms"}
METRICS = {"things": ("count", "lower", "how many things")}
HERE = pathlib.Path(__file__).parent

def test_toy(cell, model, seed, arm):
    def run():
        with open(HERE / "ran.log", "a") as log:
            log.write(cell.name.split("[")[1] + "\\n")
        for script in HERE.glob(f"{model}-seed{seed}-{arm}.*.py"):
            exec(script.read_text(), globals())
        time.sleep(0.001)
        return [0] * cell.settings.size
    things = cell.time(run, rounds=3, warmup=False)
    cell.record(things=len(things), accuracy=0.5)
    cell.series(curve=[seed, 2.5, float("nan")])
'''


STUDY = '''
"""A toy study: whether half is enough."""
from dataclasses import dataclass
from mlexp.study import Above, Claim, Mean, Study, arm as the

@dataclass(frozen=True)
class Settings:
    sizes: tuple[str, ...] = ("n1000", "n2000")
    seeds: tuple[int, ...] = (42, 43)
    arms: tuple[str, ...] = ("half", "full")

SETTINGS = dict.fromkeys(("smoke", "quick", "full"), Settings())
STUDY = Study(
    asks="Is half enough?", arm="arm", arms=("full", "half"), baseline="full", over=("size",), outcome="perplexity",
    settings=SETTINGS, axes={"size": "sizes", "seed": "seeds", "arm": "arms"},
    claims={"H1": Claim("half is worse", Above(Mean(the("half") - the("full"))))},
)

def test_fit(cell, size, seed, arm):
    cell.time(lambda: None, rounds=3, count=False)
    if (size, seed, arm) == ("n1000", 43, "half"):
        assert seed == 0, "too much"
    if (size, seed, arm) == ("n2000", 43, "half"):
        raise FloatingPointError("loss is nan")
    cell.record(perplexity=30.0 if arm == "full" else 37.4)
'''


INI = """[pytest]
python_files = bench_*.py test_*.py
addopts = -p mlexp.harness.plugin --import-mode=importlib
"""


class Toy:
    """The scratch project: `run` it, script its cells, read what it left."""

    def __init__(self, pytester):
        self.pytester, self.folder = pytester, pytester.mkdir("benches") / "toy"
        self.folder.mkdir()
        self.bench = self.folder / "bench_toy.py"
        self.bench.write_text(TOY)
        pytester.makeini(INI)

    def run(self, *args, where="benches", subprocess=False):
        runner = self.pytester.runpytest_subprocess if subprocess else self.pytester.runpytest_inprocess
        return runner(where, *args, "-p", "no:cacheprovider")

    def edit(self, old, new):
        """Change the bench file."""
        text = self.bench.read_text()
        assert old in text
        self.bench.write_text(text.replace(old, new))

    def script(self, cell, code):
        """What `cell` ("m_one-seed1-base") does in its first run, which takes the script away."""
        path = self.folder / f"{cell}.script.py"
        path.write_text(f"pathlib.Path({str(path)!r}).unlink()\n{code}")

    def ran(self):
        """Cells whose body ran, once each, in order; the log starts anew."""
        log = self.folder / "ran.log"
        lines = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return list(dict.fromkeys(line.rstrip("]") for line in lines))

    def json(self, name="out.json"):
        return json.loads((self.pytester.path / name).read_text())

    @property
    def journal(self):
        return self.pytester.path / ".mlexp" / "journal.jsonl"


@pytest.fixture
def fit(toy):
    """The scratch project with the study in place of the toy."""
    toy.bench.unlink()
    toy.folder = toy.folder.rename(toy.folder.with_name("fit"))
    toy.bench = toy.folder / "bench_fit.py"
    toy.bench.write_text(STUDY)
    return toy


@pytest.fixture
def toy(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", ALONE)  # pytester has taken it away
    gc.freeze()  # every cell collects garbage first, which takes as long as there is much in memory from other tests
    yield Toy(pytester)
    gc.unfreeze()

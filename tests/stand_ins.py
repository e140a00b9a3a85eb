"""What a bench function and a report are handed, in one process: a cell that keeps what is recorded, a report's output.

`load` gives a question's file as a module.
"""

import importlib.util
import sys
from types import SimpleNamespace

import numpy as np

from mlexp import study
from mlexp.flops import count_flops
from mlexp.record import metrics_of, validate

from .command import ROOT

OPTIONS = SimpleNamespace(weights=None, prompts=None, corpus=None, model={})


def load(question, file):
    """`benches/<question>/<file>.py` as a module of its own, which finds those beside it by their names."""
    name, folder = f"{question}_{file}", ROOT / "benches" / question
    spec = importlib.util.spec_from_file_location(name, folder / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


class OneCell:
    """A cell that runs what is timed once, checks names and values as the harness does, and keeps everything."""

    def __init__(self, bench, settings, seed, dtype="float32", device="cpu", options=OPTIONS):
        self.settings, self.seed, self.dtype, self.device, self.options = settings, seed, dtype, device, options
        self.values, self.arrays, self.timed, self._table = {}, {}, [], metrics_of(study.of(bench).metrics)
        self.timing = False  # whether `time` runs now

    def time(self, run, rounds=1, warmup=True, **_):
        assert not self.timed
        self.timed.append((rounds, warmup))
        self.timing = True
        result = run()
        self.timing = False
        return result

    def count(self, run):
        return count_flops(run)

    def record(self, **values):
        self.values |= validate(values, self._table)

    def series(self, **arrays):
        self.arrays |= {name: np.asarray(array) for name, array in arrays.items()}

    def progress(self, done, total, what):
        pass


class Pages:
    """A report's output that keeps all it is given; `series_of` are the cells' series by key."""

    def __init__(self, series_of=None):
        self.series_of = series_of or {}
        self.verdicts, self.tables, self.figures, self.files, self.texts = {}, {}, {}, {}, []

    def verdict(self, id, claim, verdict, effect="", interval=None, why=""):
        self.verdicts[id] = SimpleNamespace(said=str(verdict), effect=effect, interval=interval, why=why, claim=claim)

    def table(self, table, name, caption=""):
        self.tables[name] = table

    def figure(self, figure, name, finding, measure="", bars="", n="", shown="open"):
        self.figures[name] = figure

    def file(self, name, content):
        self.files[name] = content

    def heading(self, text):
        self.texts.append(text)

    text = heading

    def series(self, key):
        return self.series_of[key]

    @property
    def words(self):
        return "\n".join(self.texts)


def lines(ax):
    """What a panel draws: the (x, y) of its lines by label, those without a name of their own left out."""
    named = (line for line in ax.get_lines() if not line.get_label().startswith("_"))
    return {line.get_label(): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in named}

"""What the tests of the language-model question share: its modules, a text whose parts are told apart, a fake cell."""

import importlib.util
import sys
from types import SimpleNamespace

import torch

from mlexp.eqprop.chars import Text
from mlexp.flops import count_flops

from .command import ROOT

CORPUS = "a folder of mine"
RANGES = {"train": (1, 40), "validation": (41, 60), "test": (61, 90)}  # no part has a character of another


def module(name):
    """A file of the question as a module; `tune` finds its bench file by its plain name."""
    folder = str(ROOT / "benches/lm_scale_study")
    spec = importlib.util.spec_from_file_location(f"lm_{name}", f"{folder}/{name}.py")
    made = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(made)
    finally:
        sys.path.remove(folder)
    return made


def marked_text() -> Text:
    g = torch.Generator().manual_seed(0)
    sizes = {"train": 3000, "validation": 700, "test": 800}
    parts = {name: torch.randint(low, high + 1, (sizes[name],), generator=g) for name, (low, high) in RANGES.items()}
    return Text("marked", "0123456789abcdef", leak=0.03125, **parts)


def part_of(*tensors) -> str:
    """The one part of `marked_text` that these characters are from."""
    seen = torch.cat([t.flatten() for t in tensors])
    (name,) = [name for name, (low, high) in RANGES.items() if ((seen >= low) & (seen <= high)).all()]
    return name


class FakeCell:
    """Keeps what a cell records; times by running once."""

    def __init__(self, settings, scale="smoke", seed=11):
        self.settings, self.scale, self.seed = settings, scale, seed
        self.device, self.dtype, self.options = "cpu", "float32", SimpleNamespace(corpus=CORPUS)
        self.values, self.arrays, self.timed, self.timing = {}, {}, [], False

    def time(self, run, rounds=1, warmup=True):
        self.timed.append((rounds, warmup))
        self.timing = True
        result = run()
        self.timing = False
        return result

    def count(self, run):
        return count_flops(run)

    def record(self, **values):
        assert not values.keys() & self.values.keys()
        self.values |= values

    def series(self, **arrays):
        self.arrays |= arrays

    def progress(self, done, total, what):
        pass

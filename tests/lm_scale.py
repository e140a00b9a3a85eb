"""What the tests of the language-model question share: its modules, a text whose parts differ, a fake cell."""

from contextlib import contextmanager
from types import SimpleNamespace

import torch

from mlexp.eqprop.chars import Text

from .stand_ins import OneCell, load

CORPUS = "a folder"
RANGES = {"train": (1, 40), "validation": (41, 60), "test": (61, 90)}  # no part has a character of another


def module(name):
    """A file of the question as a module."""
    return load("lm_scale_study", name)


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


class FakeCell(OneCell):
    """A cell of this question."""

    def __init__(self, settings, scale="smoke", seed=11):
        super().__init__(module("bench_lm_scale_study"), settings, seed, options=SimpleNamespace(corpus=CORPUS))
        self.scale = scale

    @contextmanager
    def part(self, metric):
        assert self.timing  # what is apart from all the rest is part of it
        self.record(**{metric: self.values.pop(metric, 0.0) + 0.25})
        yield

    def series(self, **arrays):
        self.arrays |= arrays  # as they were given: ragged or not

"""Bench files as modules, and a cell without a session: for tests that call a bench function with what they know."""

import importlib.util
import sys
from types import SimpleNamespace

from mlexp.harness.cell import Cell

from .command import ROOT


def load(file: str):
    """A module of its own from a file below `benches/`, such as "maze_scaling/report.py"."""
    path = ROOT / "benches" / file
    spec = importlib.util.spec_from_file_location(f"tested_{path.parent.name}_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class CellInHand(Cell):
    """A cell that runs what is timed once: `values` and `arrays` hold what it recorded, `timed` how."""

    def __init__(self, bench, settings, seed=1, options=(), **params):
        plan = SimpleNamespace(name="test_x[a]", question="x", params=params, settings=settings, seed=seed, key="k")
        plan.declared = getattr(bench, "METRICS", {})
        options = SimpleNamespace(**({"weights": None, "prompts": None, "corpus": None, "model": {}} | dict(options)))
        state = SimpleNamespace(scale="smoke", device="cpu", dtype="float32", options=options, clock=None)
        super().__init__(state, plan, None, lambda *line: None)
        self.timed = None

    def time(self, run, rounds=1, **how):
        self.timed = {"rounds": rounds, **how}
        return run()

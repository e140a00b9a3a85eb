"""Where and how the cells of a run are measured, as the command line has it: the same for every cell."""

import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlexp import extras
from mlexp.harness import grid, measure
from mlexp.harness.options import Others, ours

PASSED_ON = ("weights", "prompts", "corpus")  # options that the questions read


@dataclass(frozen=True)
class RunConfig:
    """The configuration of a run.

    root:    pytest's root directory; here: the folder that it was called in
    scale:   `smoke`, `quick` or `full`
    device:  `cpu` or `cuda`; dtype: `float32` or `bfloat16`
    options: what the questions read: `weights`, `prompts`, `corpus` (None where not given); `model`: name -> folder
    others:  the options of the project and of plugins that are not at their defaults
    commit:  what records name as the commit, where it was given
    journal: the file of finished cells
    """

    root: Path
    here: Path
    scale: str
    device: str
    dtype: str
    options: SimpleNamespace
    others: Others
    commit: str | None
    journal: Path
    cell_timeout: float | None
    isolate: bool
    resume: bool


def read(config: pytest.Config, others: Others, is_child: bool) -> RunConfig:
    """The configuration that pytest's options give. In a child session it is the parent that journals, replays and
    isolates. Raises ValueError for values that do not fit."""
    option, here = ours(config), config.invocation_params.dir
    usable = measure.gpu_present() and extras.is_there("torch")  # which times and reads the memory of a GPU
    device = option.device if option.device != "auto" else "cuda" if usable else "cpu"
    options = SimpleNamespace(**{name: getattr(option, name) for name in PASSED_ON})
    options.model = grid.checkpoints(option.model, here)
    timeout = option.cell_timeout
    if timeout is not None and not 0 < timeout < math.inf:
        raise ValueError(f"--cell-timeout {timeout:g}: give a number of seconds above 0")
    return RunConfig(
        root=config.rootpath,
        here=here,
        scale=option.scale,
        device=device,
        dtype=option.dtype if option.dtype != "auto" else "bfloat16" if device == "cuda" else "float32",
        options=options,
        others=others,
        commit=option.commit,
        journal=here / option.journal if option.journal else config.rootpath / ".mlexp" / "journal.jsonl",
        cell_timeout=timeout,
        isolate=(option.isolate or timeout is not None) and not is_child,
        resume=option.resume and not is_child,
    )

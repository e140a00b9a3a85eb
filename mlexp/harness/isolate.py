"""`--isolate`: a cell in a process of its own, so that a segfault or the kernel's OOM killer costs that cell alone."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mlexp import journal
from mlexp.harness import grid
from mlexp.harness.cell import CellDied
from mlexp.harness.session import OPTIONS

FORWARDED = ("scale", "device", "dtype", *OPTIONS)
TAIL = 2000  # characters of a dead cell's output that are worth showing


def run(item: pytest.Item) -> journal.Entry:
    """Run one cell in a fresh interpreter and return what it journaled. Raises CellDied where that is nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        child = subprocess.run(
            command(item, path),
            cwd=item.config.invocation_params.dir,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        entries = journal.read(path).entries if path.exists() else []
    if not entries or entries[-1].status != "passed":
        item.add_report_section("call", "output of the cell's process", child.stdout[-TAIL:])
    if not entries:
        raise CellDied("crashed", f"the cell's process {how_it_ended(child.returncode)}")
    return entries[-1]


def command(item: pytest.Item, path: Path) -> list[str]:
    """The pytest call that runs this one cell as this session would have."""
    cell = f"{item.path}::{item.nodeid.split('::', 1)[1]}"
    return [sys.executable, "-m", "pytest", *words(item.config, [cell], path)]


def words(config: pytest.Config, cells: list[str], path: str | Path) -> list[str]:
    """The arguments with which pytest runs `cells` (node ids or files) as this session would, journaling at `path`."""
    option = config.option
    said = [*cells, "--rootdir", str(config.rootpath), *(["-c", str(config.inipath)] if config.inipath else [])]
    said += ["-p", "mlexp.harness.plugin", "-p", "no:cacheprovider", "-q", "--journal", str(path)]
    for name in FORWARDED:
        if (value := getattr(option, name)) is not None:
            said += [f"--{name}", str(value)]
    for text in option.set:
        said += ["--set", text]
    for name, folder in grid.checkpoints(option.model, config.invocation_params.dir).items():
        said += ["--model", f"{name}={folder}"]
    return said


def how_it_ended(code: int) -> str:
    """A return code in words."""
    if code >= 0:
        return f"ended with status {code} and left no record"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" and os.name == "posix" else "")

"""Commands as a user types them, for the tests that run a question from end to end."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def command(place, *words) -> dict:
    """`python -m words` in the checkout, with a cache of its own below `place`, as subprocess takes it. One thread: two
    that wait for each other take many times as long where the cores are shared."""
    env = os.environ | {"XDG_CACHE_HOME": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    return {"args": [sys.executable, "-m", *words], "cwd": ROOT, "env": env, "text": True}


def run(place, *words) -> tuple[int, str]:
    """(status, what it printed)."""
    done = subprocess.run(**command(place, *words), capture_output=True)
    return done.returncode, done.stdout + done.stderr


def module_at(path):
    """A bench file or a report as a module of its own, imported from its place."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

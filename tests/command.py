"""Commands as a user types them, for the tests that run a question from end to end."""

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

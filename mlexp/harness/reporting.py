"""`--report`: `mlexp report` of what a session has measured, in a process of its own when the session ends."""

import itertools
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

import mlexp
from mlexp.harness.benchmark_json import is_disabled
from mlexp.harness.plan import Plan
from mlexp.harness.terminal import say

FLAGS = ("--report", "--mlexp-report")
VERDICT = re.compile(r"^  \S+ (supported|refuted|undecided|not tested): ", re.MULTILINE)
SHOWN = 5  # lines of what went wrong


def check(config: pytest.Config) -> None:
    """Raises UsageError where `--report` could not be meant as it was read."""
    folder = config.option.mlexp_report
    if folder is None:
        return
    for flag, after in itertools.pairwise(map(str, config.invocation_params.args)):
        if flag in FLAGS and after == folder:
            raise pytest.UsageError(f"{flag} {after}: is {after} the report's folder? Then write {flag}={after}")
    if is_disabled(config):
        raise pytest.UsageError("--benchmark-disable with --report would report nothing; drop one of them")


def write(config: pytest.Config, plans: Iterable[Plan], records: Path) -> bool:
    """Report the records in a file and say in one line what came of it. Returns whether all went well; raises
    KeyboardInterrupt where Ctrl+C ended it."""
    here, out = config.invocation_params.dir, Path(config.option.mlexp_report)
    (benches, _), *_ = Counter(plan.path.parent.parent for plan in plans).most_common(1)
    paths = [os.environ.get("PYTHONPATH"), str(Path(mlexp.__file__).parents[1])]
    words = ("report", str(records), "--out", str(out), "--benches", str(benches))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mlexp", *words],
            cwd=here,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except KeyboardInterrupt:
        say(config, f"mlexp: the report was interrupted; now: mlexp report {os.path.relpath(records)}")
        raise
    page = out / "index.html"
    if not done.returncode:
        verdicts = Counter(VERDICT.findall(done.stdout))
        tally = ", ".join(f"{count} {word}" for word, count in verdicts.items())
        say(config, f"mlexp: report: {page}{f' ({tally})' if tally else ''}")
        return True
    lines = [line.removeprefix("mlexp report: ") for line in done.stderr.splitlines() if line.strip()]
    for line in lines[-SHOWN:] or [f"it ended with status {done.returncode}"]:
        say(config, f"ERROR: --report: {line}")
    if done.stdout.strip().endswith(str(page)):
        say(config, f"mlexp: report of the rest: {page}")
    say(config, f"mlexp: the records are safe; mend that, then: mlexp report {os.path.relpath(records)}")
    return False

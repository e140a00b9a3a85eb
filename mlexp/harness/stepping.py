"""One side of `mlexp ab`: a pytest session whose cells stay warm and run a step of rounds whenever they are asked to.

`python -P stepping.py` is started by `mlexp.ab`, once for each revision, as a file: the revision under test may be
older than it, with its own `mlexp` or none, so nothing of the project is imported here but `peer.py`, which stands
beside this file. All it knows of pytest-benchmark is `benchmark(...)` and `benchmark.pedantic(...)`. The messages:

    driver: {"journal": path, "args": pytest's arguments}
    side:   {"collected": [node ids]}                       driver: {"run": [node ids]}       in this order
    side:   {"ready": node id, "threads": 1}                driver: {"rounds": 3} or {"stop": true}
    side:   {"seconds": [0.012, 0.011, 0.012]}              driver: {"rounds": 3} or {"stop": true}  ...
    side:   {"ended": node id, "status": "passed", "reason": null}
"""

import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest

NOT_HERE = ("isolate", "resume", "cell_timeout")  # options of a revision's own mlexp: the driver's business


def beside(name: str):
    """The module in a file beside this one, whatever stands on the path."""
    spec = importlib.util.spec_from_file_location(f"stepping_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Side:
    """The pytest plugin."""

    def __init__(self, channel, journal: str):
        self._channel, self._journal = channel, journal
        self._item, self._status, self._reason = None, "passed", None
        self.say, self.hear = channel.say, channel.hear

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config):
        from pytest_benchmark.fixture import BenchmarkFixture

        for prefix in ("mlexp_", ""):  # "": before they had one
            if hasattr(config.option, f"{prefix}journal"):  # what is measured here is no cell's record
                setattr(config.option, f"{prefix}journal", self._journal)
            for name in NOT_HERE if hasattr(config.option, f"{prefix}journal") else ():
                setattr(config.option, prefix + name, None)
        for name, takes in (("__call__", rounds_of_call), ("pedantic", rounds_of_pedantic)):
            setattr(BenchmarkFixture, name, self._stepped(takes, BenchmarkFixture.pedantic))

    def _stepped(self, takes, pedantic):
        def measure(benchmark, target, *args, **kwargs):
            step = takes(target, *args, **kwargs)
            result = self._rounds(step)
            return pedantic(benchmark, lambda: result, rounds=1)  # what follows expects a benchmark that was used

        return measure

    def _rounds(self, run) -> object:
        marker = self._item.get_closest_marker("benchmark")
        timer = (marker.kwargs.get("timer") if marker else None) or time.perf_counter
        result, ran = None, False
        self.say(ready=self._item.nodeid, threads=thread_count() - 1)  # but the channel's
        while rounds := self.hear().get("rounds"):
            seconds = []
            for _ in range(rounds):
                result = None  # two results at a time may be more than the memory holds
                duration, result = run(timer)
                seconds.append(duration)
            ran = True
            self.say(seconds=seconds)
        return result if ran else run(timer)[1]  # the other side has no such cell: this one may still pass

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session):
        self.say(collected=[item.nodeid for item in session.items])
        known = {item.nodeid: item for item in session.items}
        session.items[:] = [known[name] for name in self.hear()["run"]]

    def pytest_runtest_protocol(self, item):
        self._item, self._status, self._reason = item, "passed", None

    def pytest_runtest_logreport(self, report):
        if self._status == "passed" and not report.passed:
            expected = getattr(report, "wasxfail", None)  # of mlexp: "oom: ..." or "diverged: ..."
            self._status = "failed" if report.failed or expected else "skipped"
            self._reason = str(expected or reason_of(report.longrepr)).partition("\n")[0][:300]

    def pytest_runtest_logfinish(self, nodeid):
        self.say(ended=nodeid, status=self._status, reason=self._reason)


def rounds_of_call(function, *args, **kwargs):
    """A round of `benchmark(function, ...)`: (timer) -> (duration, result)."""
    return rounds_of_pedantic(function, args, kwargs)


def rounds_of_pedantic(
    target, args=(), kwargs=None, setup=None, teardown=None, rounds=1, warmup_rounds=0, iterations=1
):
    """A round of `benchmark.pedantic(...)`: (timer) -> (duration, result). How many there are the driver says."""

    def once(timer):
        words, named = (setup and setup()) or (args, kwargs or {})
        start = timer()
        for _ in range(iterations):
            result = target(*words, **named)
        duration = timer() - start
        if teardown:
            teardown(*words, **named)
        return duration, result

    return once


def reason_of(longrepr: object) -> str:
    """Why a test failed or was skipped, as pytest keeps it: a traceback, (file, line, reason), or a text."""
    if isinstance(longrepr, tuple):
        return longrepr[-1]
    crash = getattr(longrepr, "reprcrash", None)
    return crash.message if crash else str(longrepr)


def thread_count() -> int:
    """Threads of this process, 0 where the system does not tell."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 0


def main() -> int:
    channel = beside("peer").Channel()
    call = channel.hear()
    ours = ["-p", "mlexp.harness.plugin"] if importlib.util.find_spec("mlexp") else []
    side = Side(channel, call["journal"])
    return pytest.main([*ours, "-p", "no:cacheprovider", "-q", *call["args"]], plugins=[side])


if __name__ == "__main__":
    sys.exit(main())

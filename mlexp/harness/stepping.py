"""One side of `mlexp ab`: a pytest session whose cells stay warm and run a step of rounds at each request.

`python -P stepping.py` is started by `mlexp.ab`, once for each revision, as a file: the revision under test may be
older than it, with its own `mlexp` or none, so nothing of the project is imported here but `peer.py`, which stands
beside this file. Of pytest-benchmark it uses only `benchmark(...)` and `benchmark.pedantic(...)`. The messages:

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
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Timer = Callable[[], float]
Step = Callable[[Timer], tuple[float, object]]  # one round: (its duration, the result)

NOT_HERE = ("isolate", "resume", "cell_timeout", "report")  # options of a revision's own mlexp: the driver's business


def beside(name: str) -> ModuleType:
    """The module in a file beside this one, whatever stands on the path."""
    spec = importlib.util.spec_from_file_location(f"stepping_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Side:
    """The pytest plugin."""

    def __init__(self, channel: Any, journal: str) -> None:  # of the class Channel beside this file
        self._journal = journal
        self._item: pytest.Item
        self._status, self._reason = "passed", ""
        self._send: Callable[..., None] = channel.send
        self._receive: Callable[[], dict[str, Any]] = channel.receive

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        from pytest_benchmark.fixture import BenchmarkFixture

        for prefix in ("mlexp_", ""):  # "": before they had one
            if hasattr(config.option, f"{prefix}journal"):  # what is measured here is no cell's record
                setattr(config.option, f"{prefix}journal", self._journal)
            for name in NOT_HERE if hasattr(config.option, f"{prefix}journal") else ():
                setattr(config.option, prefix + name, None)
        config.option.mlexp_unrecorded = True  # so no hook hears of it
        for name, takes in (("__call__", rounds_of_call), ("pedantic", rounds_of_pedantic)):
            setattr(BenchmarkFixture, name, self._stepped(takes, BenchmarkFixture.pedantic))

    def _stepped(self, takes: Callable[..., Step], pedantic: Callable[..., object]) -> Callable[..., object]:
        def measure(benchmark: object, target: object, *args: Any, **kwargs: Any) -> object:
            step = takes(target, *args, **kwargs)
            result = self._rounds(step)
            return pedantic(benchmark, lambda: result, rounds=1)  # what follows expects a benchmark that was used

        return measure

    def _rounds(self, run: Step) -> object:
        marker = self._item.get_closest_marker("benchmark")
        timer = (marker.kwargs.get("timer") if marker else None) or time.perf_counter
        result, ran = None, False
        self._send(ready=self._item.nodeid, threads=thread_count() - 1)  # but the channel's
        while rounds := self._receive().get("rounds"):
            seconds = []
            for _ in range(rounds):
                result = None  # two results at a time may be more than the memory holds
                duration, result = run(timer)
                seconds.append(duration)
            ran = True
            self._send(seconds=seconds)
        return result if ran else run(timer)[1]  # the other side has no such cell: this one may still pass

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._send(collected=[item.nodeid for item in session.items])
        items = {item.nodeid: item for item in session.items}
        session.items[:] = [items[name] for name in self._receive()["run"]]

    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        self._item, self._status, self._reason = item, "passed", ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self._status == "passed" and not report.passed:
            expected = getattr(report, "wasxfail", None)  # of mlexp: "oom: ..." or "diverged: ..."
            self._status = "failed" if report.failed or expected else "skipped"
            self._reason = str(expected or reason_of(report.longrepr)).partition("\n")[0][:300]

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._send(ended=nodeid, status=self._status, reason=self._reason or None)


def rounds_of_call(function: Callable[..., object], *args: Any, **kwargs: Any) -> Step:
    """A round of `benchmark(function, ...)`: (timer) -> (duration, result)."""
    return rounds_of_pedantic(function, args, kwargs)


def rounds_of_pedantic(
    target: Callable[..., object],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    setup: Callable[[], Any] | None = None,
    teardown: Callable[..., object] | None = None,
    rounds: int = 1,
    warmup_rounds: int = 0,
    iterations: int = 1,
) -> Step:
    """A round of `benchmark.pedantic(...)`: (timer) -> (duration, result). The driver decides how many there are."""

    def once(timer: Timer) -> tuple[float, object]:
        positional, named = (setup and setup()) or (args, kwargs or {})
        result: object = None
        start = timer()
        for _ in range(iterations):
            result = target(*positional, **named)
        duration = timer() - start
        if teardown:
            teardown(*positional, **named)
        return duration, result

    return once


def reason_of(longrepr: object) -> str:
    """Why a test failed or was skipped, from pytest's longrepr: a traceback, (file, line, reason), or a text."""
    if isinstance(longrepr, tuple):
        return str(longrepr[-1])
    crash = getattr(longrepr, "reprcrash", None)
    return str(crash.message if crash else longrepr)


def thread_count() -> int:
    """Threads of this process, 0 where the system does not report them."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 0


def main() -> int:
    channel = beside("peer").Channel()
    call = channel.receive()
    ours = ["-p", "mlexp.harness.plugin"] if importlib.util.find_spec("mlexp") else []
    side = Side(channel, call["journal"])
    return pytest.main([*ours, "-p", "no:cacheprovider", "-q", *call["args"]], plugins=[side])


if __name__ == "__main__":
    sys.exit(main())

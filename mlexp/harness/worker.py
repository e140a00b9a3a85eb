"""The far end of a sweep: a pytest session that stays open and runs the cells it is asked for. It knows no Ray.

`Child` starts one as `python -m mlexp.harness.worker READ WRITE CORES PYTEST_ARGS` and talks to it over two pipes, a
line of JSON each way; what a cell leaves is the journal's own sealed line. The session is collected once, so a warm one
costs a cell nothing but the cell, and it is a process of its own: what Ray needs is neither in its memory nor among its
threads, and the end of it is seen with its cause.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict

import pytest

from mlexp import journal
from mlexp.harness.isolate import TAIL, how_it_ended
from mlexp.harness.session import PLAN, STATE


class Child:
    """A warm session, pinned to `cores` (none: not pinned), seen from the process that started it.

    `machine` is what the session calls the machine, None where it did not come up: `broken` then says why.
    """

    def __init__(self, words: Sequence[str], folder: str, cores: Sequence[int], env: dict[str, str]):
        self._output = tempfile.TemporaryFile()  # noqa: SIM115, lives as long as the session
        (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
        pins = ",".join(map(str, cores)) or "-"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlexp.harness.worker", str(theirs_in), str(theirs_out), pins, *words],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs_in, theirs_out),
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._requests, self._replies = os.fdopen(ours_out, "w"), os.fdopen(ours_in)
        hello = self._next()
        self.machine: str | None = hello.get("machine")
        self.broken = "" if self.machine else f"{hello['died']}: {told_by(self.tail())}"

    def run(self, cell: str, key: str) -> dict:
        """Run one cell. `line` is its sealed entry and `told` the tail of what pytest says of a failure; `skipped` says
        why it was not run; `refused` that its key is another here; `died` how the session ended instead.
        """
        with contextlib.suppress(BrokenPipeError):
            self._requests.write(json.dumps({"cell": cell, "key": key}) + "\n")
            self._requests.flush()
        return self._next()

    def _next(self) -> dict:
        line = self._replies.readline()
        if line.endswith("\n"):
            return json.loads(line)
        return {"died": f"its process {how_it_ended(self._process.wait())}"}

    def tail(self) -> str:
        """The end of what the session printed."""
        self._output.seek(max(0, self._output.seek(0, os.SEEK_END) - TAIL))
        return self._output.read().decode(errors="replace")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for file in (self._replies, self._output):
            file.close()
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()


def told_by(output: str) -> str:
    """The line of a failed session's output that says why."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(("ERROR: ", "E  ", "pytest.main(): error: "))] or lines[-1:]
    return next((line for line in said if "usage: " not in line), said[0] if said else "it said nothing")


class Wire:
    """In the place of the journal: what is appended goes to the process that asked for it."""

    path = os.devnull

    def __init__(self):
        self.line: str | None = None

    def start(self, cell: str, key: str, when: str) -> None:
        """The other end notes it."""

    def append(self, entry: journal.Entry) -> None:
        self.line = journal.seal({"event": "cell", **asdict(entry)})


class Worker:
    """The pytest plugin of the far end: instead of all cells, those that are asked for."""

    def __init__(self, read: int, write: int):
        self._requests: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._out = os.fdopen(write, "w")
        self._wire, self._report = Wire(), None
        threading.Thread(target=self._listen, args=(read,), daemon=True).start()

    def _listen(self, read: int) -> None:
        with os.fdopen(read) as lines:
            for line in lines:
                self._requests.put(line)
        os._exit(0)  # whoever asked is gone: nobody would see the rest of a cell

    def _say(self, reply: dict) -> None:
        self._out.write(json.dumps(reply) + "\n")
        self._out.flush()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        if session.testsfailed:  # in collection: pytest says it and ends
            return
        state = session.config.stash[STATE]
        state.journal = self._wire
        items = {item.nodeid: item for item in session.items}
        self._say({"machine": state.provenance.get("machine")})
        while True:
            request = json.loads(self._requests.get())
            self._say(self._answer(items.get(request["cell"]), request["key"]))

    def _answer(self, item: pytest.Item | None, key: str) -> dict:
        if item is None or PLAN not in item.stash:
            return {"refused": "it does not collect that cell"}
        if item.stash[PLAN].key != key:
            return {"refused": "its code, inputs or versions are not the driver's"}
        self._wire.line = self._report = None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        if self._wire.line is None:
            return {"skipped": str(self._report) if self._report else "it left no record"}
        return {"line": self._wire.line, "told": str(self._report or "")[-TAIL:]}

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report):
        if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
            self._report = report.longrepr[2].removeprefix("Skipped: ")
        elif report.longrepr and self._report is None:
            self._report = report.longreprtext


def main(words: Sequence[str]) -> int:
    """The far end itself."""
    read, write, cores, *args = words
    with contextlib.suppress(OSError):  # Ray's workers are nice; only root may take that back
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    if cores != "-":
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    return pytest.main(args, plugins=[Worker(int(read), int(write))])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

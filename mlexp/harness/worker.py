"""The far end of `--isolate` and of a sweep: a pytest session that stays open and runs the requested cells.

The session gets the arguments of the one that started it, so that every option, also of other plugins, is what it is
there. It collects only the requested files, and once; a cell's result is the journal's own sealed line. What a session
does at its end (reports, caches) is left to the one that started it.
"""

import base64
import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mlexp import journal, series
from mlexp.harness.peer import TAIL, Channel, Peer
from mlexp.harness.plan import PLAN
from mlexp.harness.session import PEER, STATE

NOT_HERE = ("pdbinvoke", "pdbtrace", "rerunfailures", "flaky")  # plugins whose work is done where the session started


class Child:
    """A warm session, pinned to `cores` (none: not pinned), seen from the process that started it.

    args:  pytest's arguments
    files: what to collect
    path:  its sys.path; None = as Python makes it

    `machine` is the session's name of the machine, None where the session did not come up: `broken` is then the reason.
    """

    def __init__(
        self,
        args: Sequence[str],
        files: Sequence[str],
        folder: str,
        cores: Sequence[int] = (),
        env: dict[str, str] | None = None,
        path: Sequence[str] | None = None,
        timeout: float | None = None,
    ) -> None:
        self._peer = Peer(["-m", "mlexp.harness.worker"], folder, env)
        self._peer.send(args=list(args), files=list(files), cores=list(cores), path=path and list(path))
        try:
            hello = self._peer.receive(timeout)
        except TimeoutError:
            hello = {"died": f"it was not ready after {timeout:g} s"}
        self.machine: str | None = hello.get("machine")
        self.broken = "" if self.machine else f"{hello['died']}: {why(self.tail())}"

    def run(self, cell: str, key: str, timeout: float | None = None) -> dict[str, Any]:
        """Run one cell. `line` is its sealed entry, `files` are what it names, `output` is the tail of pytest's report
        of a failure; `skipped` is why it was not run; `refused`, that its key is another here; `died`, how the session
        ended instead. Raises TimeoutError after so many seconds.
        """
        self._peer.send(cell=cell, key=key)
        return self._peer.receive(timeout)

    def tail(self) -> str:
        """The end of what the session printed."""
        return self._peer.tail()

    def close(self, at_once: bool = False) -> None:
        self._peer.close(at_once)


def record_of(item: pytest.Item, line: str) -> journal.Entry | None:
    """The entry in a line that a session sent, if it is that of `item`."""
    plan, entry = item.stash[PLAN], journal.entry_of(journal.unseal(line) or {})
    assert plan.key, f"{plan.name} has no key yet"
    return entry if entry and (entry.cell, entry.key) == (plan.name, plan.key) else None


def files_of(reply: dict[str, Any]) -> series.Files:
    """The files of large series in a reply, named as `spilled` names them."""
    sent, start = reply.get("files", {}), f"{series.FOLDER}/"
    own = [name for name in sent if name.startswith(start) and series.NAME.match(name.removeprefix(start))]
    return {name: base64.b64decode(sent[name]) for name in own}


def late(limit: float) -> str:
    """The reason of a cell that exceeded its time limit."""
    return f"it took longer than {limit:g} s (--cell-timeout) and was killed"


def why(output: str) -> str:
    """The line of a failed session's output that has the reason."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR: ", "E  ")) or ": error: " in line] or lines[-1:]
    return next((line for line in errors if "usage: " not in line), errors[0] if errors else "it printed nothing")


class Wire:
    """Stands in for the journal: what is appended goes to the process that requested it."""

    path = Path(os.devnull)

    def __init__(self) -> None:
        self.line: str | None = None
        self.files: series.Files = {}

    def check_writable(self) -> None:
        """It always is."""

    def start(self, cell: str, key: str, when: str) -> None:
        """The other end notes it."""

    def keep(self, files: series.Files) -> None:
        self.files = files

    def append(self, entry: journal.Entry) -> None:
        self.line = journal.seal({"event": "cell", **asdict(entry)})


class Worker:
    """The pytest plugin of the far end: runs the requested cells instead of all."""

    def __init__(self, channel: Channel, files: Sequence[str]) -> None:
        self._channel, self._files = channel, {Path(file) for file in files}
        self._wire = Wire()
        self._report: str | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[PEER] = self._wire

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        """Leave out other files; what the arguments name is collected all the same."""
        wanted = collection_path in self._files or collection_path.name == "__init__.py"
        return True if collection_path.is_file() and not wanted else None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        if session.testsfailed:  # in collection: pytest reports it and ends
            return
        for name in NOT_HERE:
            session.config.pluginmanager.unregister(name=name)
        items = {item.nodeid: item for item in session.items}
        self._channel.send(machine=session.config.stash[STATE].provenance.get("machine") or "no cell")
        while True:
            request = self._channel.receive()
            self._channel.send(**self._answer(items.get(request["cell"]), request["key"]))

    def _answer(self, item: pytest.Item | None, key: str) -> dict[str, Any]:
        if item is None or PLAN not in item.stash:
            return {"refused": "it does not collect that cell"}
        if item.stash[PLAN].key != key:
            return {"refused": "its code, inputs, options or versions are not those of the session that started it"}
        self._wire.line = self._report = None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        if self._wire.line is None:
            return {"skipped": str(self._report) if self._report else "it left no record"}
        files = {name: base64.b64encode(content).decode() for name, content in self._wire.files.items()}
        return {"line": self._wire.line, "output": str(self._report or "")[-TAIL:], "files": files}

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
            self._report = report.longrepr[2].removeprefix("Skipped: ")
        elif report.longrepr and self._report is None:
            self._report = report.longreprtext


def main() -> int:
    """The far end itself."""
    channel = Channel()
    call = channel.receive()
    with contextlib.suppress(OSError, AttributeError):  # Ray's workers are nice; only root may take that back
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    if call["cores"]:
        os.sched_setaffinity(0, call["cores"])
    if call["path"] is not None:
        sys.path[:] = call["path"]
    return pytest.main(["-p", "mlexp.harness.plugin", *call["args"]], plugins=[Worker(channel, call["files"])])


if __name__ == "__main__":
    sys.exit(main())

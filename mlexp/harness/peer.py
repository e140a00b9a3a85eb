"""A pytest session in a process of its own that runs cells on request: behind `--isolate`, `sweep` and `ab`.

`Peer` is the parent's end and `Channel` the child's. They exchange JSON, a line a message, over the child's standard
input and output; whatever else the child prints goes to its standard error, a file that the parent can read. A child
whose parent has ended ends at once too. Standard library only: `mlexp ab` loads this file beside older revisions.
"""

import atexit
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from typing import IO, Any, NoReturn

TAIL = 2000  # characters of a child's output that are worth showing
GRACE_S = 5.0  # for a child to leave by itself


class Peer:
    """A child process, started as `python PROGRAM`, seen from its parent."""

    def __init__(self, program: Sequence[str], folder: str, env: dict[str, str] | None = None) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115, lives as long as the child
        self._process = subprocess.Popen(
            [sys.executable, *program],
            cwd=folder,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._output,
            encoding="utf-8",
            start_new_session=True,  # Ctrl+C is for the parent, which then ends the child and all of its children
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to_child: IO[str] = self._process.stdin
        self._from_child: IO[str] = self._process.stdout
        self.pid = self._process.pid
        self._messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        threading.Thread(target=self._watch, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(ValueError, OSError):  # closed meanwhile
            for line in self._from_child:
                if line.endswith("\n"):
                    self._messages.put(json.loads(line))

    def _watch(self) -> None:
        code = self._process.wait()
        self._reader.join(GRACE_S)  # a grandchild may keep the pipe open for ever
        self._messages.put({"died": f"its process {how_it_ended(code)}"})

    def send(self, **message: Any) -> None:
        with contextlib.suppress(OSError, ValueError):  # it has died: `receive` reports that
            self._to_child.write(json.dumps(message) + "\n")
            self._to_child.flush()

    def receive(self, timeout: float | None = None) -> dict[str, Any]:
        """The child's next message, or `died`: how it ended. Raises TimeoutError after that many seconds."""
        try:
            return self._messages.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None

    def tail(self) -> str:
        """The end of what the child printed."""
        self._output.seek(max(0, self._output.seek(0, os.SEEK_END) - TAIL))
        return self._output.read().decode(errors="replace")

    def close(self, at_once: bool = False) -> None:
        """Let the child leave, or kill it; its own children end with it."""
        with contextlib.suppress(OSError, ValueError):
            self._to_child.close()
        if not at_once:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_S)
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL) if hasattr(os, "killpg") else self._process.kill()
        self._process.wait()
        self._reader.join(GRACE_S)
        if not self._reader.is_alive():
            self._from_child.close()
        self._output.close()


class Channel:
    """The child's end. To be made before anything is printed: from then on prints go to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        lines, nothing = os.fdopen(os.dup(0), encoding="utf-8"), os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(2, 1)
        os.close(nothing)
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._busy = True
        threading.Thread(target=self._listen, args=(lines,), daemon=True).start()

    def _listen(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._lines.put(line)
        if self._busy:
            os._exit(0)  # nobody would see the rest of what runs
        self._lines.put(None)

    def send(self, **message: Any) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def receive(self) -> dict[str, Any]:
        """The parent's next message. Does not return once the parent has closed its end."""
        self._busy = False
        line = self._lines.get()
        if line is None:
            leave()
        self._busy = True
        message: dict[str, Any] = json.loads(line)
        return message


def leave() -> NoReturn:
    """End this process without pytest's session: the outputs that its arguments ask for are the parent's to write."""
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def how_it_ended(code: int) -> str:
    """A return code as text."""
    if code >= 0:
        return f"ended with status {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" and os.name == "posix" else "")

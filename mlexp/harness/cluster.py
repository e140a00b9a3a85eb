"""A node of the cluster, and the session on it that runs a sweep's cells.

What a worker sends is a sealed line of JSON: nothing of a cell is pickled.
"""

import os
import socket
from typing import Any, NamedTuple

from mlexp.harness import measure
from mlexp.harness.worker import Child, late

FORWARDED = ("OMP_NUM_THREADS", *measure.WAITS, "XDG_CACHE_HOME", "HF_")  # of the driver's environment, as tox has it


def described(device: str, threads: int | None, waits: dict[str, str]) -> str:
    """On a node: what a cell with that many threads, which wait in this way, would call it."""
    os.environ.pop("OMP_NUM_THREADS", None)  # Ray's
    os.environ.update(waits)
    return measure.machine(device, threads)


def available_cores() -> list[int]:
    """The cores this process may run on; where the system does not report them, as many as there are."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def nodes(ray: Any) -> list[dict[str, Any]]:
    """The living nodes of the cluster."""
    return [node for node in ray.nodes() if node["Alive"]]


class Call(NamedTuple):
    """What a worker starts with: pytest's arguments, the files to collect, the folder, the environment; whether every
    cell has a process of its own, and how many seconds it may last."""

    args: list[str]
    files: list[str]
    folder: str
    env: dict[str, str]
    isolate: bool
    limit: float | None


class Place:
    """On a node, within a Ray actor: starts the warm session and hands cells to it."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._call: tuple[list[str], list[str], str, list[int], dict[str, str]]
        self._fresh = False
        self._limit: float | None = None

    def where(self) -> tuple[str, list[int]]:
        """(host, the cores that could be had here)."""
        return socket.gethostname(), available_cores()

    def start(self, call: Call, cores: list[int]) -> dict[str, Any]:
        """Bring a session up: `machine` as it calls it, or how it is `broken`."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(FORWARDED)}
        self._call = call.args, call.files, call.folder, cores, own | call.env
        self._fresh, self._limit = call.isolate, call.limit
        try:
            self._child = Child(*self._call)
        except OSError as error:
            return {"broken": f"{call.folder}: {error.strerror}"}
        if self._child.broken:
            return {"broken": self._child.broken}
        return {"machine": self._child.machine}

    def run(self, cell: str, key: str) -> dict[str, Any]:
        """Run one cell; see Child.run."""
        child, self._child = self._child or Child(*self._call), None
        try:
            reply = {"died": child.broken} if child.broken else child.run(cell, key, self._limit)
        except TimeoutError:
            assert self._limit is not None
            reply = {"late": late(self._limit)}
        if self._fresh or not {"died", "late"}.isdisjoint(reply):
            child.close(at_once="late" in reply)
        else:
            self._child = child
        return reply

"""The loop of a sweep: a cell to each worker that there is room for, another worker for a cell that lost its own."""

import os
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from mlexp import journal
from mlexp.harness.cluster import FORWARDED, Call, Place, available_cores, nodes
from mlexp.harness.finish import recorded
from mlexp.harness.plan import PLAN
from mlexp.harness.progress import Progress
from mlexp.harness.session import STATE, now
from mlexp.harness.worker import files_of, record_of

POLL_S, LOOK_S = 0.5, 2.0  # seconds between looks at the time and at the cluster's nodes


class SweepError(Exception):
    """A sweep that cannot go on; the message is one line. What has finished stays finished."""


@dataclass(frozen=True)
class Room:
    """What each cell takes of the cluster, and how often it may lose its worker; `local`: the cluster is this machine
    alone."""

    cpus: int
    gpus: float
    share_cores: bool
    retries: int
    local: bool


@dataclass(eq=False)
class Worker:
    """A place as the driver sees it: what takes its next reply (`then`), its cores, the cell that it runs."""

    actor: Any
    then: "Callable[[Worker, Any], None] | None" = None
    host: str = "a node"
    cores: list[int] = field(default_factory=list)
    machine: str | None = None
    item: pytest.Item | None = None


class Dispatch:
    """The driver's loop: workers as the cluster has room, a cell to each, another one for a cell that lost its own."""

    def __init__(self, ray: Any, room: Room, config: pytest.Config, items: list[pytest.Item]) -> None:
        self.ray, self.needs, self.state = ray, room, config.stash[STATE]
        self.queue, self.total, self.done = deque(items), len(items), 0
        self.waiting: dict[object, Worker] = {}  # by the call that is out
        self.idle: list[Worker] = []
        self.spare: list[Worker] = []  # hold Ray's CPUs on a host whose cores are taken
        self.taken: dict[str, set[int]] = {}  # host -> cores that have a worker
        self.lost: Counter[str] = Counter()  # node id -> how many workers it has lost
        self.retried, self.unborn = 0, 0
        self.room, self.looked, self.began = 0, float("-inf"), time.perf_counter()
        self.call = call_of(config, items)
        self.progress = Progress(config, "sweep")

    def run(self) -> None:
        """Returns when every cell has a record; raises SweepError or JournalError where that cannot be."""
        try:
            while self.done < self.total:
                self.recruit()
                while self.idle and self.queue:
                    self.hand_out(self.idle.pop(), self.queue.popleft())
                ready, _ = self.ray.wait(list(self.waiting), timeout=POLL_S)
                for ref in ready:
                    self.answer(ref)
                self.show_progress()
        finally:
            self.progress.close()
            for worker in (*self.waiting.values(), *self.idle, *self.spare):
                self.ray.kill(worker.actor)

    def recruit(self) -> None:
        """Request workers of Ray: as many as there is room for, at least one (an autoscaler waits for that)."""
        if time.perf_counter() - self.looked > LOOK_S:
            self.looked, self.room = time.perf_counter(), sum(map(self.fits, nodes(self.ray)))
            if not self.room and self.needs.local:
                have = f"{len(available_cores())} cores"
                raise SweepError(
                    f"no room for a cell of {self.needs.cpus} cores and {self.needs.gpus:g} GPUs on {have}"
                )
        at_work = len(self.waiting) + len(self.idle)
        for _ in range(min(max(1, self.room - len(self.spare)), self.total - self.done) - at_work):
            cpus, gpus = self.needs.cpus, self.needs.gpus
            actor = self.ray.remote(Place).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0).remote()
            self.wait_for(Worker(actor), actor.where.remote(), self.assign_cores)

    def fits(self, node: dict[str, Any]) -> int:
        """How many cells a node has room for at a time."""
        has = node["Resources"]
        by_gpu = [int(has.get("GPU", 0) / self.needs.gpus)] if self.needs.gpus else []
        return min([int(has.get("CPU", 0)) // self.needs.cpus, *by_gpu])

    def wait_for(self, worker: Worker, ref: object, then: Callable[[Worker, Any], None]) -> None:
        """Have `then` take the reply to a call that is out."""
        worker.then = then
        self.waiting[ref] = worker

    def answer(self, ref: object) -> None:
        """A call has come back, or its worker is lost."""
        worker = self.waiting.pop(ref)
        try:
            reply = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            self.worker_lost(worker, f"its worker on {worker.host} was lost ({type(error).__name__})")
        else:
            assert worker.then is not None
            worker.then(worker, reply)

    def assign_cores(self, worker: Worker, reply: tuple[str, list[int]]) -> None:
        """A worker has reported its host: give it cores that no other has, or let it wait for some."""
        worker.host, cores = reply
        taken = self.taken.setdefault(worker.host, set())
        free = [core for core in cores if core not in taken]
        if self.needs.share_cores or not hasattr(os, "sched_getaffinity"):
            free = []
        elif len(free) < self.needs.cpus:
            if not taken:
                raise SweepError(
                    f"{worker.host} has {len(cores)} cores; a cell wants {self.needs.cpus} (--cpus-per-cell)"
                )
            self.spare.append(worker)
            return
        worker.cores = free[: self.needs.cpus]
        taken |= set(worker.cores)
        self.wait_for(worker, worker.actor.start.remote(self.call, worker.cores), self.session_ready)

    def session_ready(self, worker: Worker, reply: dict[str, Any]) -> None:
        """A worker's session is up."""
        if "broken" in reply:
            raise SweepError(f"a worker on {worker.host} does not come up: {reply['broken']}")
        worker.machine, self.unborn = reply["machine"], 0
        self.idle.append(worker)

    def hand_out(self, worker: Worker, item: pytest.Item) -> None:
        """Let an idle worker run a cell."""
        assert worker.machine is not None
        worker.item, plan = item, item.stash[PLAN]
        plan.key = self.state.keys.key_on(plan, worker.machine)
        self.state.journal.start(plan.name, plan.key, now())
        self.wait_for(worker, worker.actor.run.remote(plan.name, plan.key), self.cell_ended)

    def cell_ended(self, worker: Worker, reply: dict[str, Any]) -> None:
        """A cell has ended, one way or another; its worker is free again."""
        item, worker.item = worker.item, None
        assert item is not None and worker.machine is not None
        self.idle.append(worker)
        if "refused" in reply:
            raise SweepError(f"{item.nodeid}: the worker on {worker.host} refuses it: {reply['refused']}")
        if "died" in reply:
            self.retry(item, worker.machine, f"{reply['died']} on {worker.host}")
        elif "late" in reply:
            self.crashed(item, worker.machine, f"{reply['late']} on {worker.host}")
        elif "skipped" in reply:
            item.add_marker(pytest.mark.skip(reason=reply["skipped"]))
            self.done += 1
        else:
            item.stash[PLAN].files = files_of(reply)
            self.store(item, entry_of(item, reply["line"], worker.host), reply["output"])

    def worker_lost(self, worker: Worker, reason: str) -> None:
        """A worker is lost; its cell and its cores go to others."""
        self.taken.get(worker.host, set()).difference_update(worker.cores)
        self.ray.kill(worker.actor)  # where it was only out of reach, it must not go on
        for spare in [spare for spare in self.spare if spare.host == worker.host]:
            self.spare.remove(spare)
            self.wait_for(spare, spare.actor.where.remote(), self.assign_cores)
        if worker.item is not None:
            assert worker.machine is not None
            self.retry(worker.item, worker.machine, reason)
            return
        self.unborn += 1
        if self.unborn > max(self.needs.retries, 1) + self.room:
            raise SweepError(f"no worker comes up: {reason}")

    def retry(self, item: pytest.Item, machine: str, reason: str) -> None:
        """A cell lost its worker: it runs again, first of all, as often as it may; then it is recorded as it is."""
        self.lost[item.nodeid] += 1
        if self.lost[item.nodeid] <= self.needs.retries:
            self.retried += 1
            self.queue.appendleft(item)
            return
        times = self.lost[item.nodeid]
        reason = f"lost {times} times, the last one because {reason}" if times > 1 else reason
        self.crashed(item, machine, reason)

    def crashed(self, item: pytest.Item, machine: str, reason: str) -> None:
        """Record a cell that left no entry of its own."""
        entry = self.state.new_entry(item.stash[PLAN], "crashed", reason)
        entry.record["machine"] = machine
        self.store(item, entry, "")

    def store(self, item: pytest.Item, entry: journal.Entry, output: str) -> None:
        """Journal a cell's entry; show its output where it did not pass."""
        self.state.swept(item.stash[PLAN], entry)
        recorded(item.config, entry)
        self.done += 1
        if output and entry.status != "passed":
            item.add_report_section("call", "output of its worker", output)

    def show_progress(self) -> None:
        """Show how many cells are done, and the time left at the mean rate so far."""
        running = sum(worker.item is not None for worker in self.waiting.values())
        hosts = len({worker.host for worker in self.waiting.values() if worker.item is not None})
        what = f"{running} running on {hosts} host{'s' if hosts != 1 else ''}"
        if self.retried:
            what += f", {self.retried} retried"
        if self.done:
            left = (self.total - self.done) * (time.perf_counter() - self.began) / self.done
            what += f", about {duration(left)} left"
        self.progress(self.done, self.total, what)


def call_of(config: pytest.Config, items: list[pytest.Item]) -> Call:
    """What the workers of this session start with: its own arguments, and its part of the environment."""
    run = config.stash[STATE].run
    args = [*map(os.fspath, config.invocation_params.args), "--mlexp-device", config.option.mlexp_device]
    files = list(dict.fromkeys(str(item.path) for item in items))
    env = {name: value for name, value in os.environ.items() if name.startswith(FORWARDED)}
    return Call(args, files, str(config.invocation_params.dir), env, run.isolate, run.cell_timeout)


def entry_of(item: pytest.Item, line: str, host: str) -> journal.Entry:
    """The entry of `item` in the line that a worker sent. Raises SweepError where it is of something else."""
    entry = record_of(item, line)
    if entry is None:
        raise SweepError(f"{item.nodeid}: what came from {host} is no record of it")
    return entry


def duration(seconds: float) -> str:
    """A duration as text, such as 3 h."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"

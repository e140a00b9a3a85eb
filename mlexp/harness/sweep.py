"""`mlexp sweep`: the cells of a pytest call on a Ray cluster, in one pytest session that is the driver.

The session collects, gives keys and takes up a journal as any other. In place of its loop, each cell goes to a warm
worker with a share of the cluster to itself; the driver journals what comes back. Then the loop runs as ever and finds
every cell finished, so that table, JSON and exit status are those of a local run because the same code makes them.
What a worker sends is a sealed line of JSON: nothing of a cell is pickled.
"""

import os
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest

from mlexp import journal
from mlexp.harness import measure
from mlexp.harness.progress import Progress
from mlexp.harness.session import PLAN, STATE, SWEEP, now
from mlexp.harness.worker import Child, late, record_of

FORWARDED = ("OMP_NUM_THREADS", "XDG_CACHE_HOME", "HF_")  # of the driver's environment, as tox has it
POLL_S, LOOK_S = 0.5, 2.0  # seconds between looks at the time and at the cluster's nodes
STORE_BYTES = 100 << 20  # of a cluster started here: records are small and never in it


class SweepError(Exception):
    """A sweep that cannot go on; the message is one line. What has finished stays finished."""


@dataclass(frozen=True)
class Share:
    """What a cell has of the cluster, and how often it may lose its worker."""

    address: str | None = None
    gpus: float | None = None
    cpus: int | None = None
    share_cores: bool = False
    retries: int = 2


def run(share: Share, args: Sequence[str]) -> int:
    """`mlexp sweep`: returns the exit status, pytest's own."""
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_worker_niceness"):  # a cell is timed at the priority of a local one
        os.environ.setdefault(name, "0")
    try:
        import ray
    except ImportError:
        print("mlexp sweep: Ray is not installed; pip install 'mlexp[cluster]'", file=sys.stderr)
        return int(pytest.ExitCode.USAGE_ERROR)
    early = "ignore:Module already imported so cannot be rewritten; mlexp:pytest.PytestAssertRewriteWarning"
    return int(pytest.main(["-p", "mlexp.harness.plugin", "-W", early, *args], plugins=[Sweep(ray, share)]))


class Sweep:
    """The pytest plugin of the driver."""

    def __init__(self, ray, share: Share):
        self.ray, self.share = ray, share

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config):
        config.stash[SWEEP] = self
        self.device(config)
        self.cpus = self.share.cpus or measure.threads()
        if getattr(config.option, "benchmark_disable", False):
            raise pytest.UsageError("--benchmark-disable would measure nothing; drop it, or sweep")

    def device(self, config) -> None:
        """Settle where cells run before the plugin looks at this machine: a driver may well have no GPU."""
        gpus, option = self.share.gpus, config.option
        if option.mlexp_device == "auto":
            wanted = gpus > 0 if gpus is not None else measure.gpu_present()
            option.mlexp_device = "cuda" if wanted else "cpu"
        self.gpus = gpus if gpus is not None else float(option.mlexp_device == "cuda")
        device = option.mlexp_device
        if (device == "cuda") != (self.gpus > 0):
            raise pytest.UsageError(f"--gpus-per-cell {self.gpus:g} with --device {device}: they contradict")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self, session):
        failed = session.testsfailed and not session.config.option.continue_on_collection_errors
        if failed or session.config.option.collectonly:
            return (yield)
        stopped = None
        try:
            self.sweep(session)
        except (KeyboardInterrupt, SweepError, journal.JournalError) as error:
            stopped = error  # the JSON still gets what has finished
            session.items[:] = [item for item in session.items if PLAN in item.stash and item.stash[PLAN].elsewhere]
        result = yield
        if isinstance(stopped, KeyboardInterrupt):
            raise stopped
        if stopped:
            raise pytest.UsageError(f"sweep: {stopped}")
        return result

    def sweep(self, session: pytest.Session) -> None:
        """Run on the cluster what no journal holds."""
        state, items = session.config.stash[STATE], [item for item in session.items if PLAN in item.stash]
        if not items:
            return
        try:
            self.connect()
            if state.finished:
                self.take_up(state, items)
            todo = [item for item in items if not item.stash[PLAN].elsewhere]
            if todo:
                Dispatch(self, session.config, todo).run()
        except self.ray.exceptions.RayError as error:
            raise SweepError(f"the cluster is gone ({type(error).__name__})") from None
        finally:
            self.ray.shutdown()

    def connect(self) -> None:
        """To the cluster at the address, or one of this machine alone."""
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        alone = {"num_cpus": len(available_cores()), "include_dashboard": False, "object_store_memory": STORE_BYTES}
        try:
            if self.share.address:
                self.ray.init(address=self.share.address, **quiet)
            else:
                self.ray.init(address="local", **alone, **quiet)
        except Exception as error:  # Ray raises anything, bare Exception too
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise SweepError(f"--address {self.share.address or 'local'}: no Ray cluster ({first})") from None

    def take_up(self, state, items: list[pytest.Item]) -> None:
        """`--resume`: a cell is finished if the journal has it from a machine such as the cluster is made of."""
        machines = self.machines(state.device)
        for plan in (item.stash[PLAN] for item in items):
            plan.elsewhere, plan.is_journaled = None, False  # of the driver's machine
            for machine in machines:
                if not plan.elsewhere:
                    plan.key = state.key_on(plan, machine)
                    state.take_up(plan)

    def machines(self, device: str) -> set[str]:
        """What cells would call the nodes of the cluster."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as OnNode

        probe = self.ray.remote(num_cpus=0)(described)
        asked = [
            probe.options(scheduling_strategy=OnNode(node["NodeID"], soft=False)).remote(device, self.threads())
            for node in nodes(self.ray)
        ]
        told, _ = self.ray.wait(asked, num_returns=len(asked), timeout=60)
        return {text for ref in told for text in self.known(ref)}

    def known(self, ref) -> list[str]:
        try:
            return [self.ray.get(ref)]
        except self.ray.exceptions.RayError:  # a node that has just left
            return []

    def threads(self) -> int | None:
        """Threads of a cell as its record will have them; None = as many as its node has cores."""
        asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
        return measure.threads() if asked.isdigit() and int(asked) else None if self.share.share_cores else self.cpus


def described(device: str, threads: int | None) -> str:
    """On a node: what a cell with that many threads would call it."""
    os.environ.pop("OMP_NUM_THREADS", None)  # Ray's
    return measure.machine(device, threads)


def available_cores() -> list[int]:
    """The cores this process may run on; where the system cannot tell, as many as there are."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def nodes(ray) -> list[dict]:
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

    def __init__(self):
        self._child, self._call, self._fresh, self._limit = None, None, False, None

    def where(self) -> tuple[str, list[int]]:
        """(host, the cores that could be had here)."""
        return socket.gethostname(), available_cores()

    def start(self, call: "Call", cores: list[int]) -> dict:
        """Bring a session up: `machine` as it calls it, or how it is `broken`."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith(FORWARDED)}
        self._call = call.args, call.files, call.folder, cores, mine | call.env
        self._fresh, self._limit = call.isolate, call.limit
        try:
            self._child = Child(*self._call)
        except OSError as error:
            return {"broken": f"{call.folder}: {error.strerror}"}
        if self._child.broken:
            return {"broken": self._child.broken}
        return {"machine": self._child.machine}

    def run(self, cell: str, key: str) -> dict:
        """Run one cell; see Child.run."""
        child, self._child = self._child or Child(*self._call), None
        try:
            reply = {"died": child.broken} if child.broken else child.run(cell, key, self._limit)
        except TimeoutError:
            reply = {"late": late(self._limit)}
        if self._fresh or not {"died", "late"}.isdisjoint(reply):
            child.close(at_once="late" in reply)
        else:
            self._child = child
        return reply


@dataclass(eq=False)
class Worker:
    """A place as the driver sees it: what it is waited for (`then`), its cores, the cell it runs."""

    actor: object
    then: object = None
    host: str = "a node"
    cores: list[int] = field(default_factory=list)
    machine: str | None = None
    item: pytest.Item | None = None


class Dispatch:
    """The driver's loop: workers as the cluster has room, a cell to each, another one for a cell that lost its own."""

    def __init__(self, sweep: Sweep, config: pytest.Config, items: list[pytest.Item]):
        self.ray, self.share, self.cpus, self.gpus = sweep.ray, sweep.share, sweep.cpus, sweep.gpus
        self.config, self.state = config, config.stash[STATE]
        self.queue, self.total, self.done = deque(items), len(items), 0
        self.waiting: dict[object, Worker] = {}  # by the call that is out
        self.idle: list[Worker] = []
        self.spare: list[Worker] = []  # hold Ray's CPUs on a host whose cores are taken
        self.taken: dict[str, set[int]] = {}  # host -> cores that have a worker
        self.lost, self.retried, self.unborn = Counter(), 0, 0
        self.room, self.looked, self.began = 0, float("-inf"), time.perf_counter()
        self.call = call_of(config, items)
        self.say = Progress(config, "sweep")

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
                self.tell()
        finally:
            self.say.close()
            for worker in (*self.waiting.values(), *self.idle, *self.spare):
                self.ray.kill(worker.actor)

    def recruit(self) -> None:
        """Ask Ray for workers: as many as there is room for, one at least (an autoscaler waits for that)."""
        if time.perf_counter() - self.looked > LOOK_S:
            self.looked, self.room = time.perf_counter(), sum(map(self.fits, nodes(self.ray)))
            if not self.room and not self.share.address:
                have = f"{len(available_cores())} cores"
                raise SweepError(f"no room for a cell of {self.cpus} cores and {self.gpus:g} GPUs on {have}")
        at_work = len(self.waiting) + len(self.idle)
        for _ in range(min(max(1, self.room - len(self.spare)), self.total - self.done) - at_work):
            actor = self.ray.remote(Place).options(num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=0).remote()
            self.wait_for(Worker(actor), actor.where.remote(), self.settle)

    def fits(self, node: dict) -> int:
        """How many cells a node has room for at a time."""
        has = node["Resources"]
        by_gpu = [int(has.get("GPU", 0) / self.gpus)] if self.gpus else []
        return min([int(has.get("CPU", 0)) // self.cpus, *by_gpu])

    def wait_for(self, worker: Worker, ref: object, then) -> None:
        worker.then = then
        self.waiting[ref] = worker

    def answer(self, ref: object) -> None:
        """A call has come back, or its worker is gone."""
        worker = self.waiting.pop(ref)
        try:
            reply = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            self.gone(worker, f"its worker on {worker.host} was lost ({type(error).__name__})")
        else:
            worker.then(worker, reply)

    def settle(self, worker: Worker, reply: tuple[str, list[int]]) -> None:
        """A worker says where it is: give it cores that no other has, or let it wait for some."""
        worker.host, cores = reply
        taken = self.taken.setdefault(worker.host, set())
        free = [core for core in cores if core not in taken]
        if self.share.share_cores or not hasattr(os, "sched_getaffinity"):
            free = []
        elif len(free) < self.cpus:
            if not taken:
                raise SweepError(f"{worker.host} has {len(cores)} cores; a cell wants {self.cpus} (--cpus-per-cell)")
            self.spare.append(worker)
            return
        worker.cores = free[: self.cpus]
        taken |= set(worker.cores)
        self.wait_for(worker, worker.actor.start.remote(self.call, worker.cores), self.ready)

    def ready(self, worker: Worker, reply: dict) -> None:
        """A worker's session is up."""
        if "broken" in reply:
            raise SweepError(f"a worker on {worker.host} does not come up: {reply['broken']}")
        worker.machine, self.unborn = reply["machine"], 0
        self.idle.append(worker)

    def hand_out(self, worker: Worker, item: pytest.Item) -> None:
        worker.item, plan = item, item.stash[PLAN]
        plan.key = self.state.key_on(plan, worker.machine)
        self.state.journal.start(plan.name, plan.key, now())
        self.wait_for(worker, worker.actor.run.remote(plan.name, plan.key), self.ended)

    def ended(self, worker: Worker, reply: dict) -> None:
        """A cell has ended, one way or another; its worker is free again."""
        item, worker.item = worker.item, None
        self.idle.append(worker)
        if "refused" in reply:
            raise SweepError(f"{item.nodeid}: the worker on {worker.host} refuses it: {reply['refused']}")
        if "died" in reply:
            self.again(item, worker.machine, f"{reply['died']} on {worker.host}")
        elif "late" in reply:
            self.crashed(item, worker.machine, f"{reply['late']} on {worker.host}")
        elif "skipped" in reply:
            item.add_marker(pytest.mark.skip(reason=reply["skipped"]))
            self.done += 1
        else:
            self.keep(item, entry_of(item, reply["line"], worker.host), reply["output"])

    def gone(self, worker: Worker, reason: str) -> None:
        """A worker is lost; its cell and its cores go to others."""
        self.taken.get(worker.host, set()).difference_update(worker.cores)
        self.ray.kill(worker.actor)  # where it was only out of reach, it must not go on
        for spare in [spare for spare in self.spare if spare.host == worker.host]:
            self.spare.remove(spare)
            self.wait_for(spare, spare.actor.where.remote(), self.settle)
        if worker.item is not None:
            self.again(worker.item, worker.machine, reason)
            return
        self.unborn += 1
        if self.unborn > max(self.share.retries, 1) + self.room:
            raise SweepError(f"no worker comes up: {reason}")

    def again(self, item: pytest.Item, machine: str, reason: str) -> None:
        """A cell lost its worker: it runs again, first of all, as often as it may; then it is recorded as it is."""
        self.lost[item.nodeid] += 1
        if self.lost[item.nodeid] <= self.share.retries:
            self.retried += 1
            self.queue.appendleft(item)
            return
        times = self.lost[item.nodeid]
        reason = f"lost {times} times, the last one because {reason}" if times > 1 else reason
        self.crashed(item, machine, reason)

    def crashed(self, item: pytest.Item, machine: str, reason: str) -> None:
        """A cell leaves no more than this."""
        entry = self.state.new_entry(item.stash[PLAN], "crashed", reason)
        entry.record["machine"] = machine
        self.keep(item, entry, "")

    def keep(self, item: pytest.Item, entry: journal.Entry, output: str) -> None:
        self.state.swept(item.stash[PLAN], entry)
        self.done += 1
        if output and entry.status != "passed":
            item.add_report_section("call", "output of its worker", output)

    def tell(self) -> None:
        """How far it is, and when it will be done if the rest is like what has been."""
        running = sum(worker.item is not None for worker in self.waiting.values())
        hosts = len({worker.host for worker in self.waiting.values() if worker.item is not None})
        what = f"{running} running on {hosts} host{'s' if hosts != 1 else ''}"
        if self.retried:
            what += f", {self.retried} retried"
        if self.done:
            left = (self.total - self.done) * (time.perf_counter() - self.began) / self.done
            what += f", about {duration(left)} left"
        self.say(self.done, self.total, what)


def call_of(config: pytest.Config, items: list[pytest.Item]) -> Call:
    """What the workers of this session start with: its own arguments, and its part of the environment."""
    state = config.stash[STATE]
    args = [*map(os.fspath, config.invocation_params.args), "--mlexp-device", config.option.mlexp_device]
    files = list(dict.fromkeys(str(item.path) for item in items))
    env = {name: value for name, value in os.environ.items() if name.startswith(FORWARDED)}
    return Call(args, files, str(config.invocation_params.dir), env, state.isolate, state.cell_timeout)


def entry_of(item: pytest.Item, line: str, host: str) -> journal.Entry:
    """What a worker sent, if it is what it was asked for."""
    entry = record_of(item, line)
    if entry is None:
        raise SweepError(f"{item.nodeid}: what came from {host} is no record of it")
    return entry


def duration(seconds: float) -> str:
    """A time to wait, in words."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"

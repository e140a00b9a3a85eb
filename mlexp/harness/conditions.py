"""What a measurement ran beside and under: other processes, the hypervisor, clocks, compilation, processes of its own.

Counters of the system are read before and after, never in between, so that they cost the timed rounds nothing. Where
the system has no such counter, or the block is too short for its steps, the field is None: see record.CONDITIONS.
"""

import contextlib
import functools
import multiprocessing.process
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from .host import Nvml

resource: ModuleType | None
try:
    import resource
except ImportError:  # Windows
    resource = None

SHORTEST_S = 0.2  # the system counts CPU time in ticks of 10 ms: in a shorter block one tick would be more than 5 %
BUSY = ("user", "nice", "system", "irq", "softirq")  # of psutil.cpu_times; guests are part of `user`
STARTERS: list[tuple[Any, str]] = [  # what starts a process from Python; one called by another counts once
    (subprocess.Popen, "__init__"),
    (multiprocessing.process.BaseProcess, "start"),
    *((os, name) for name in ("fork", "forkpty", "posix_spawn", "posix_spawnp", "system") if hasattr(os, name)),
]
CPU, CGROUP = Path("/sys/devices/system/cpu"), Path("/sys/fs/cgroup")


@dataclass
class Count:
    """How often something happened in a block; None where that is not known."""

    count: int | None = None

    def add_one(self) -> None:
        self.count = (self.count or 0) + 1


@contextlib.contextmanager
def compilations() -> Iterator[Count]:
    """Count what torch compiles within the block, and the CUDA graphs that torch.compile records.

    The first import of the compiler counts as one; the count is None where torch is not even imported in the end.
    """
    found, handler = Count(0), _compiler()

    def started(*_: object) -> None:
        found.add_one()

    if handler:
        handler.register_start_callback(started)
    try:
        yield found
    finally:
        if handler:
            try:
                handler.remove_start_callback(started)
            except ValueError:  # torch.compiler.reset() in the block: what came after it was not seen
                found.count = max(1, found.count or 0)
        elif _compiler():
            found.count = 1
        elif "torch" not in sys.modules:
            found.count = None


def _compiler() -> Any:
    """Torch's own list of callbacks for its compilations, if its compiler has been imported."""
    return getattr(sys.modules.get("torch._dynamo.callback"), "callback_handler", None)


@contextlib.contextmanager
def child_processes() -> Iterator[Count]:
    """Count the processes that the block starts, and those already there that work or end in it: at least so many.

    What Python starts is counted one by one. What C code starts is seen if it lives on, else as one when waited for.
    """
    found, before, reaped = Count(), _descendants(), _reaped()
    with _counted_starts() as starts:
        yield found
    after, waited = _descendants(), _reaped() != reaped
    worked = sum(after.get(process) != cpu for process, cpu in before.items())
    found.count = max((starts.count or 0) + worked, len(after.keys() - before.keys()) + worked, int(waited))


def _descendants() -> dict[psutil.Process, float]:
    """Living child processes, theirs included -> CPU seconds so far."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                found[process] = sum(process.cpu_times()[:2])
    return found


def _reaped() -> tuple[float, ...]:
    """What changes when a child process has been waited for: its page faults and CPU time are added."""
    if resource is None:
        return ()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_minflt, usage.ru_utime, usage.ru_stime


@contextlib.contextmanager
def _counted_starts() -> Iterator[Count]:
    """Count calls of STARTERS. (An audit hook would see them too, but could never be removed again.)"""
    found, within = Count(0), threading.local()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def start(*args: Any, **kwargs: Any) -> Any:
            if getattr(within, "start", False):
                return function(*args, **kwargs)
            found.add_one()
            within.start = True
            try:
                return function(*args, **kwargs)
            finally:
                within.start = False

        return start

    originals = [(owner, name, getattr(owner, name)) for owner, name in STARTERS]
    for owner, name, function in originals:
        setattr(owner, name, counted(function))
    try:
        yield found
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)


@dataclass
class Reading:
    """The counters at one instant, seconds unless named otherwise; None where the system does not have one."""

    at: float
    cpu: float  # of this process
    children: float  # of its child processes that it has waited for
    busy: float  # of all CPUs together
    steal: float | None
    waiting: float | None  # of this process' threads, for a core
    switches: int | None
    quota_throttled: float | None
    cpu_throttles: int | None
    cpu_mhz: float | None
    gpu_mhz: int | None
    gpu_throttled_by: tuple[str, ...] | None


def read(gpu: "Nvml | None") -> Reading:
    """Read all counters; `gpu` is host.nvml() where the block runs on it, else None."""
    machine, cpu = psutil.cpu_times(), _current_cpu()
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)] if resource else None
    return Reading(
        at=time.perf_counter(),
        cpu=time.process_time(),
        children=own[1].ru_utime + own[1].ru_stime if own else 0.0,
        busy=sum(getattr(machine, name, 0.0) for name in BUSY),
        steal=getattr(machine, "steal", None),
        waiting=_waiting(),
        switches=own[0].ru_nivcsw if own else None,
        quota_throttled=_quota_throttled(),
        cpu_throttles=_number(f"cpu{cpu}/thermal_throttle/package_throttle_count"),
        cpu_mhz=_mhz(cpu),
        gpu_mhz=gpu.clock_mhz(1) if gpu else None,
        gpu_throttled_by=gpu.throttled_by() if gpu else None,
    )


@contextlib.contextmanager
def conditions(gpu: "Nvml | None" = None) -> Iterator[dict[str, object]]:
    """Read the counters around the block: the fields are there when it ends. Its child processes are not `others`."""
    found: dict[str, object] = {}
    with compilations() as compiled:
        children = sum(_descendants().values())
        before = read(gpu)
        yield found
        after = read(gpu)
        children = max(0.0, sum(_descendants().values()) - children)
    found |= between(before, after, children) | {"compilations": compiled.count}


def between(before: Reading, after: Reading, children: float = 0.0) -> dict[str, object]:
    """The fields of a block from the readings at its ends; `children`: CPU seconds of child processes still living."""
    seconds, cpu, busy = (getattr(after, name) - getattr(before, name) for name in ("at", "cpu", "busy"))
    steal, waiting, waited_for = (_difference(before, after, name) for name in ("steal", "waiting", "children"))
    countable, others = seconds >= SHORTEST_S, busy - cpu - waited_for - children
    throttled = None
    if before.gpu_throttled_by is not None and after.gpu_throttled_by is not None:
        throttled = ", ".join(dict.fromkeys(before.gpu_throttled_by + after.gpu_throttled_by))
    return {
        "involuntary_switches": _difference(before, after, "switches"),
        "core_wait_fraction": _share(waiting, cpu),
        "steal_fraction": _share(steal, busy) if countable else None,
        "others_fraction": min(max(0.0, others) / (seconds * psutil.cpu_count()), 1.0) if countable else None,
        "quota_throttled_s": _difference(before, after, "quota_throttled"),
        "cpu_throttles": _difference(before, after, "cpu_throttles"),
        "cpu_mhz_start": before.cpu_mhz,
        "cpu_mhz_end": after.cpu_mhz,
        "cpu_governor": _text(CPU / f"cpu{_current_cpu()}/cpufreq/scaling_governor"),
        "gpu_mhz_start": before.gpu_mhz,
        "gpu_mhz_end": after.gpu_mhz,
        "gpu_throttled_by": throttled,
    }


def _difference(before: Reading, after: Reading, name: str) -> Any:
    """How far a counter went; None where there is none. (One that falls back was reset, or lost a thread: 0.)"""
    one, other = getattr(before, name), getattr(after, name)
    return None if one is None or other is None else max(other - one, 0)


def _share(part: float | None, rest: float) -> float | None:
    """part / (part + rest), 0 of nothing."""
    return None if part is None else part / (part + rest) if part > 0 else 0.0


def _waiting() -> float | None:
    """Seconds that the threads of this process, those living now, have waited for a core although they could run."""
    try:
        texts = [_text(path) for path in Path("/proc/self/task").glob("*/schedstat")]
        return sum(int(text.split()[1]) for text in texts if text) / 1e9 if any(texts) else None
    except (OSError, ValueError, IndexError):
        return None


def _current_cpu() -> int:
    """The CPU that the main thread last ran on; 0 where the system does not report it."""
    try:
        return int((_text(Path("/proc/self/stat")) or "").rpartition(")")[2].split()[36])
    except (IndexError, ValueError):
        return 0


def _mhz(cpu: int) -> float | None:
    khz = _number(f"cpu{cpu}/cpufreq/scaling_cur_freq")
    return khz and khz / 1e3


def _number(name: str) -> int | None:
    text = _text(CPU / name)
    return int(text) if text and text.isdigit() else None


def _quota_throttled() -> float | None:
    """Seconds that the CPU quota of the process' control group has stopped it from running."""
    for text in _cgroup("cpu.stat"):
        if match := re.search(r"^throttled_(usec|time) (\d+)$", text, re.MULTILINE):
            return int(match[2]) / (1e6 if match[1] == "usec" else 1e9)
    return None


def cpu_quota() -> float | None:
    """The CPUs' worth of time that the control group allows; None where it is not limited."""
    for text in (*_cgroup("cpu.max"), " ".join((*_cgroup("cpu.cfs_quota_us"), *_cgroup("cpu.cfs_period_us")))):
        if match := re.fullmatch(r"(\d+) (\d+)", text):
            return int(match[1]) / int(match[2])
    return None


def _cgroup(name: str) -> Iterator[str]:
    """The file `name` of the process' control group for CPUs, version 2 or 1, where there is one."""
    for line in (_text(Path("/proc/self/cgroup")) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            folder = CGROUP / (controllers and "cpu")
            places = (folder / path.lstrip("/"), folder)  # in a container the path is that outside of it
            if text := next(filter(None, map(_text, (place / name for place in places))), None):
                yield text


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None

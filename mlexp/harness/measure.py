"""Clocks and counters of what is measured: wall time, peak memory, energy."""

import contextlib
import ctypes
import functools
import gc
import statistics
import threading
import time
from collections.abc import Callable, Iterator

import psutil

from mlexp import extras
from mlexp.harness.conditions import child_processes
from mlexp.harness.host import (
    WAITS,
    environment,
    git_complaint,
    gpu_present,
    machine,
    nvml,
    provenance,
    threads,
    version,
    wait_passively,
)

__all__ = [
    "WAITS", "Clock", "CudaStopwatch", "copy_bytes_per_s", "energy", "environment", "git_complaint", "gpu_present",
    "machine", "nvml", "peak_memory", "provenance", "threads", "version", "wait_passively",
]  # fmt: skip

ENERGY_WINDOW_S = 2.0  # NVML's counter is refreshed every 20 to 100 ms: a shorter window is off by 5 % and more
L2_BYTES = 1 << 28  # flushed where the driver does not report the size of the device's L2: larger than any so far
HEAD_START_CYCLES = 8_000_000  # about 4 ms at 2 GHz, in which the host queues several hundred launches
COPY_BYTES, COPIES = {"cpu": 1 << 28, "cuda": 1 << 30}, 7


class Clock:
    """The one timer of every cell: synchronises the device, then reads `perf_counter`.

    Under `timed_by` a device's stopwatch is read instead. While it replays, it gives back recorded durations instead of
    either, exactly: every odd reading is 0, every even one the next duration.
    """

    __name__ = "mlexp_clock"

    def __init__(self) -> None:
        self.synchronize: Callable[[], None] | None = None  # the device's, where it runs ahead of the host
        self._recorded: Iterator[float] | None = None
        self._stopwatch: CudaStopwatch | None = None

    def __call__(self) -> float:
        if self._recorded is not None:
            return next(self._recorded)
        if self._stopwatch is not None:
            return self._stopwatch()
        if self.synchronize:
            self.synchronize()
        return time.perf_counter()

    @contextlib.contextmanager
    def replaying(self, durations: list[float]) -> Iterator[None]:
        """Within this block the clock shows `durations`, in seconds, one a round."""
        self._recorded = iter([reading for duration in durations for reading in (0.0, duration)])
        try:
            yield
        finally:
            self._recorded = None

    @contextlib.contextmanager
    def timed_by(self, stopwatch: "CudaStopwatch | None") -> Iterator[None]:
        """Within this block the clock shows the device's own time; the host's where `stopwatch` is None."""
        self._stopwatch = stopwatch
        try:
            yield
        finally:
            self._stopwatch = None


class CudaStopwatch:
    """The device's own time, from CUDA events: every odd reading is 0 and starts it, every even one the seconds since.

    Before each start the L2 cache is flushed, so that inputs come from memory, whatever ran before. The device is then
    kept busy for some milliseconds, outside of the interval, while the host queues the launches of what is timed:
    otherwise a short kernel's time would be that of its launches, which a CUDA graph does not pay. Work on a stream
    other than the current one is not seen; work that waits for the host is timed with its waiting.
    """

    def __init__(self) -> None:
        import torch

        self._cuda = torch.cuda
        l2 = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "L2_cache_size", 0) or L2_BYTES
        self._flush = torch.empty(2 * l2, dtype=torch.uint8, device="cuda")
        self._start, self._end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's own
            for _ in range(2)
        )
        self._runs = False

    def __call__(self) -> float:
        self._runs = not self._runs
        return self._begin() if self._runs else self._elapsed()

    def _begin(self) -> float:
        self._cuda.synchronize()
        self._flush.zero_()
        self._cuda._sleep(HEAD_START_CYCLES)  # type: ignore[no-untyped-call]  # torch's own
        self._start.record()
        return 0.0

    def _elapsed(self) -> float:
        self._end.record()
        self._end.synchronize()
        milliseconds: float = self._start.elapsed_time(self._end)
        return milliseconds / 1e3


@functools.cache
def copy_bytes_per_s(device: str) -> float:
    """What a large copy on `device` reads and writes, bytes a second: median of several, timed as cells are."""
    extras.need("cell.copy_bytes_per_s", "torch")
    import torch

    source = torch.ones(COPY_BYTES[device], dtype=torch.uint8, device=device)
    target, clock, seconds = torch.zeros_like(source), Clock(), []
    with clock.timed_by(CudaStopwatch() if device == "cuda" else None):
        for _ in range(COPIES):
            start = clock()
            target.copy_(source)
            seconds.append(clock() - start)
    return 2 * len(source) / statistics.median(seconds[1:])  # the first one meets cold pages


class Peak:
    """The peak of a block in bytes above what was resident before it, and how it was read."""

    bytes: int | None = None
    method: str | None = None
    child_processes: int | None = None  # that ran in the block: their memory is not in `bytes`


@contextlib.contextmanager
def peak_memory(device: str) -> Iterator[Peak]:
    """Measure the peak memory of the block on `device` (`cpu` or `cuda`): `peak.bytes` is there when it ends.

    CUDA: torch's allocator. Linux: the kernel's own high-water mark, reset first; freed heap is given back before
    (malloc_trim), or its reuse would hide up to half of the next peak. Elsewhere: psutil, sampled every 2 ms.
    All of them see this process alone.
    """
    peak = Peak()
    if device == "cuda":
        reader = _cuda_peak
    elif _high_water_mark_resets():
        reader = _vm_peak
    else:
        reader = _sampled_peak
    with child_processes() as children:
        gc.collect()
        with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc's; without it there is nothing to trim
            ctypes.CDLL(None).malloc_trim(0)
        with reader(peak):
            yield peak
    peak.child_processes = children.count


@contextlib.contextmanager
def _cuda_peak(peak: Peak) -> Iterator[None]:
    import torch

    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    yield
    torch.cuda.synchronize()
    peak.bytes, peak.method = torch.cuda.max_memory_allocated() - before, "cuda_allocator"


@contextlib.contextmanager
def _vm_peak(peak: Peak) -> Iterator[None]:
    _reset_high_water_mark()
    before = _status_bytes("VmRSS")
    yield
    peak.bytes, peak.method = max(0, _status_bytes("VmHWM") - before), "vm_hwm"


def _reset_high_water_mark() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


@functools.cache
def _high_water_mark_resets() -> bool:
    try:
        _reset_high_water_mark()
    except OSError:  # not Linux, or a container that forbids it
        return False
    return True


def _status_bytes(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field + ":"))


@contextlib.contextmanager
def _sampled_peak(peak: Peak) -> Iterator[None]:
    process, done = psutil.Process(), threading.Event()
    before = highest = process.memory_info().rss

    def sample() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, process.memory_info().rss)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    peak.bytes, peak.method = max(highest, process.memory_info().rss) - before, "rss_sampling"


class Energy:
    """Joules of a block, None where the device has no counter or the block was too short for it."""

    joules: float | None = None


@contextlib.contextmanager
def energy(device: str) -> Iterator[Energy]:
    """Measure the device's energy over the block: NVML's total-energy counter, windows of 2 s and more."""
    meter, gpu = Energy(), nvml() if device == "cuda" else None
    before, start = gpu.energy_j() if gpu else None, time.perf_counter()
    yield meter
    after = gpu.energy_j() if gpu else None
    if before is not None and after is not None and time.perf_counter() - start >= ENERGY_WINDOW_S:
        meter.joules = after - before

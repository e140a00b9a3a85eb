"""Clocks and counters of what is measured: wall time, peak memory, energy; and what machine this is."""

import contextlib
import ctypes
import functools
import gc
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import psutil

from mlexp.harness.conditions import child_processes, cpu_quota
from mlexp.harness.processor import cpu_model

ENERGY_WINDOW_S = 2.0  # NVML's counter is refreshed every 20 to 100 ms: a shorter window is off by 5 % and more
L2_BYTES = 1 << 28  # what to flush where the driver does not tell how large the device's L2 is: larger than any so far
HEAD_START_CYCLES = 8_000_000  # about 4 ms at 2 GHz, in which the host queues several hundred launches
THROTTLES = {  # NVML's nvmlClocksEventReasons; idle (1) and clocks set by somebody (2, 0x100) are not throttling
    0x4: "sw_power_cap", 0x8: "hw_slowdown", 0x10: "sync_boost", 0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown", 0x80: "hw_power_brake",
}  # fmt: skip
NO_CODE = ("results", "*.md", "*.rst", "*.png", "*.svg", "*.pdf", "*.ipynb", "LICENSE")
NEW_CODE = ("*.py", "*.pyx", "*.cu", "*.cuh", "*.cpp", "*.c", "*.h", "*.toml", "*.ini", "*.cfg")
COPY_BYTES, COPIES = {"cpu": 1 << 28, "cuda": 1 << 30}, 7


class Clock:
    """The one timer of every cell: synchronises the device, then reads `perf_counter`.

    Under `timed_by` a device's stopwatch is read instead. While it replays, it gives back recorded durations instead of
    either, exactly: every odd reading is 0, every even one the next duration.
    """

    __name__ = "mlexp_clock"

    def __init__(self):
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

    def __init__(self):
        import torch

        self._cuda = torch.cuda
        l2 = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "L2_cache_size", 0) or L2_BYTES
        self._flush = torch.empty(2 * l2, dtype=torch.uint8, device="cuda")
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._runs = False

    def __call__(self) -> float:
        self._runs = not self._runs
        return self._begin() if self._runs else self._elapsed()

    def _begin(self) -> float:
        self._cuda.synchronize()
        self._flush.zero_()
        self._cuda._sleep(HEAD_START_CYCLES)
        self._start.record()
        return 0.0

    def _elapsed(self) -> float:
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3  # CUDA counts milliseconds


@functools.cache
def copy_bytes_per_s(device: str) -> float:
    """What a large copy on `device` reads and writes, bytes a second: median of several, timed as cells are."""
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

    def sample():
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
    before, start = gpu and gpu.energy_j(), time.perf_counter()
    yield meter
    after = gpu and gpu.energy_j()
    if before is not None and after is not None and time.perf_counter() - start >= ENERGY_WINDOW_S:
        meter.joules = after - before


class Nvml:
    """The first GPU as the driver's management library sees it; every reading is None where it is not supported."""

    def __init__(self, library: ctypes.CDLL):
        self._library, self._device = library, ctypes.c_void_p()
        failed = library.nvmlInit_v2() or library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self._device))
        if failed:
            raise OSError(f"NVML error {failed}")

    def _text(self, function: str, *device) -> str | None:
        buffer = ctypes.create_string_buffer(96)
        failed = getattr(self._library, function)(*device, buffer, len(buffer))
        return None if failed else buffer.value.decode()

    def name(self) -> str | None:
        return self._text("nvmlDeviceGetName", self._device)

    def driver(self) -> str | None:
        return self._text("nvmlSystemGetDriverVersion")

    def energy_j(self) -> float | None:
        millijoules = ctypes.c_ulonglong()
        failed = self._library.nvmlDeviceGetTotalEnergyConsumption(self._device, ctypes.byref(millijoules))
        return None if failed else millijoules.value / 1e3

    def clock_mhz(self, kind: int) -> int | None:
        """The current clock: kind 1 is the streaming multiprocessors', 2 the memory's."""
        mhz = ctypes.c_uint()
        return None if self._library.nvmlDeviceGetClockInfo(self._device, kind, ctypes.byref(mhz)) else mhz.value

    def throttled_by(self) -> tuple[str, ...] | None:
        """What now keeps the clocks below what they could be, by the driver's names; a clock that was set is not it."""
        mask = ctypes.c_ulonglong()
        for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
            function = getattr(self._library, name, None)  # the first from driver 535 on
            if function and not function(self._device, ctypes.byref(mask)):
                return tuple(reason for bit, reason in THROTTLES.items() if mask.value & bit)
        return None


@functools.cache
def nvml() -> Nvml | None:
    """The GPU's management library, or None where there is none."""
    try:
        return Nvml(ctypes.CDLL("libnvidia-ml.so.1"))
    except (OSError, AttributeError):
        return None


@functools.cache
def gpu_present() -> bool:
    """Whether the CUDA driver finds a device; asks the driver itself, so torch need not be imported."""
    try:
        cuda, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    except OSError:
        return False
    return cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def threads() -> int:
    """Threads that numerical libraries will use: OMP_NUM_THREADS, else the CPUs this process may run on."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if asked.isdigit() and int(asked):
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine(device: str, count: int | None = None) -> str:
    """One line that tells machines apart: CPU model, threads (`count`, else this process'), GPU where cells use it."""
    gpu = f" + {(nvml() and nvml().name()) or 'CUDA device'}" if device == "cuda" else ""
    count = count or threads()
    return f"{cpu_model()}, {count} thread{'s' if count > 1 else ''}{gpu}"


def git(root: Path, *words: str) -> subprocess.CompletedProcess:
    """A git command at `root`; one that cannot be started has failed."""
    try:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    except OSError as error:
        return subprocess.CompletedProcess(words, 127, "", f"git: {error.strerror}")


def git_state(root: Path) -> tuple[str | None, bool | None]:
    """(commit, dirty) of the code under `root`; None where git cannot say.

    Dirty is what may change a measurement: a tracked file that differs, documents, figures and results/ apart, or a
    source file that is not tracked. What a run writes, such as out.json, is not.
    """
    commit = git(root, "rev-parse", "-q", "--verify", "HEAD")
    changed = git(root, "diff", "--name-only", "HEAD", "--", ".", *(f":(exclude){name}" for name in NO_CODE))
    new = git(root, "ls-files", "--others", "--exclude-standard", "--", *NEW_CODE)
    if commit.returncode or changed.returncode or new.returncode:
        return None, None
    new = [name for name in new.stdout.splitlines() if not name.startswith("results/")]
    return commit.stdout.strip(), bool(changed.stdout.strip() or new)


def git_complaint(root: Path) -> str | None:
    """Why git does not tell the commit of the repository that `root` lies in; None where there is none to tell."""
    done = git(root, "rev-parse", "-q", "--verify", "HEAD")
    complaint = done.stderr.strip().splitlines()
    return complaint[0] if done.returncode and complaint and in_repository(root) else None


def in_repository(root: Path) -> bool:
    """Whether `root` lies in a git repository, whatever git says."""
    return any((folder / ".git").exists() for folder in (root, *root.parents))


@functools.cache
def version(package: str) -> str | None:
    """The installed version of a package, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def provenance(root: Path, device: str, commit: str | None = None) -> dict[str, object]:
    """The fields of a record that say where it was measured. Raises ValueError where git tells another `commit`."""
    found, dirty = git_state(root)
    if commit and found and not found.startswith(commit):
        raise ValueError(f"--commit {commit}: git says {found}; leave the option out")
    commit = found or commit
    return {
        "machine": machine(device),
        "commit": commit,
        "dirty": dirty,
        "torch": version("torch"),
        "transformers": version("transformers"),
        "python": platform.python_version(),
    }


def environment(device: str) -> dict[str, object]:
    """What the machine is beyond pytest-benchmark's own capture, for the head of a benchmark JSON."""
    gpu, torch = nvml() if device == "cuda" else None, sys.modules.get("torch")
    packages = ("torch", "transformers", "triton", "numpy", "pytest", "pytest-benchmark", "mlexp")
    return {
        "cpu_model": cpu_model(),
        "threads": threads(),
        "cpu_quota": cpu_quota(),
        "torch_threads": torch.get_num_threads() if torch else None,
        "memory_bytes": psutil.virtual_memory().total,
        "device": device,
        "gpu_name": gpu and gpu.name(),
        "gpu_driver": gpu and gpu.driver(),
        "gpu_sm_clock_mhz": gpu and gpu.clock_mhz(1),
        "gpu_memory_clock_mhz": gpu and gpu.clock_mhz(2),
        "packages": {package: version(package) for package in packages},
    }

"""What machine and what code this is: processor, threads, GPU, commit, versions."""

import ctypes
import functools
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil

from mlexp import __version__
from mlexp.harness.conditions import cpu_quota
from mlexp.harness.processor import cpu_model

THROTTLES = {  # NVML's nvmlClocksEventReasons; idle (1) and clocks set by somebody (2, 0x100) are not throttling
    0x4: "sw_power_cap", 0x8: "hw_slowdown", 0x10: "sync_boost", 0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown", 0x80: "hw_power_brake",
}  # fmt: skip
NO_CODE = ("results", "*.md", "*.rst", "*.png", "*.svg", "*.pdf", "*.ipynb", "LICENSE")
NEW_CODE = ("*.py", "*.pyx", "*.cu", "*.cuh", "*.cpp", "*.c", "*.h", "*.toml", "*.ini", "*.cfg")


class Nvml:
    """The first GPU as the driver's management library sees it; every reading is None where it is not supported."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library, self._device = library, ctypes.c_void_p()
        failed = library.nvmlInit_v2() or library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self._device))
        if failed:
            raise OSError(f"NVML error {failed}")

    def _text(self, function: str, *device: ctypes.c_void_p) -> str | None:
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
        """Why the clocks are now below their maximum, by the driver's names; a clock set by a user is no reason."""
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
    """Whether the CUDA driver finds a device; calls the driver itself, so torch need not be imported."""
    try:
        cuda, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    except OSError:
        return False
    counted: bool = cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0
    return counted and count.value > 0


def threads() -> int:
    """Threads that numerical libraries will use: OMP_NUM_THREADS, else the CPUs this process may run on."""
    limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if limit.isdigit() and int(limit):
        return int(limit)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


WAITS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # any of them says how threads wait


def wait_passively() -> None:
    """Let the threads of torch's libraries sleep while they wait for each other, unless the user has chosen. By default
    they spin, and where others use the same cores a step takes ten times as long. Read when torch is loaded."""
    if "torch" not in sys.modules and not any(name in os.environ for name in WAITS):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def waits_passively() -> bool:
    """Whether they do."""
    return os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"


def machine(device: str, count: int | None = None) -> str:
    """One line that identifies a machine: CPU model, threads (`count`, else this process') and whether they wait
    passively, GPU where cells use it."""
    found = nvml() if device == "cuda" else None
    gpu = f" + {(found and found.name()) or 'CUDA device'}" if device == "cuda" else ""
    count = count or threads()
    kind = "1 thread" if count == 1 else f"{count} {'passive ' if waits_passively() else ''}threads"
    return f"{cpu_model()}, {kind}{gpu}"


def git(root: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """A git command at `root`; one that cannot be started has failed."""
    try:
        return subprocess.run(["git", *argv], cwd=root, capture_output=True, text=True, check=False)
    except OSError as error:
        return subprocess.CompletedProcess(argv, 127, "", f"git: {error.strerror}")


def git_state(root: Path) -> tuple[str | None, bool | None]:
    """(commit, dirty) of the code under `root`; None where git fails.

    Dirty is what may change a measurement: a tracked file that differs, documents, figures and results/ apart, or a
    source file that is not tracked. What a run writes, such as out.json, is not.
    """
    commit = git(root, "rev-parse", "-q", "--verify", "HEAD")
    changed = git(root, "diff", "--name-only", "HEAD", "--", ".", *(f":(exclude){name}" for name in NO_CODE))
    untracked = git(root, "ls-files", "--others", "--exclude-standard", "--", *NEW_CODE)
    if commit.returncode or changed.returncode or untracked.returncode:
        return None, None
    new = [name for name in untracked.stdout.splitlines() if not name.startswith("results/")]
    return commit.stdout.strip(), bool(changed.stdout.strip() or new)


def git_complaint(root: Path) -> str | None:
    """Why git gives no commit of the repository that `root` lies in; None where it does, or where there is none."""
    done = git(root, "rev-parse", "-q", "--verify", "HEAD")
    complaint = done.stderr.strip().splitlines()
    return complaint[0] if done.returncode and complaint and in_repository(root) else None


def in_repository(root: Path) -> bool:
    """Whether `root` lies in a git repository, even one that git refuses to read."""
    return any((folder / ".git").exists() for folder in (root, *root.parents))


@functools.cache
def version(package: str) -> str | None:
    """The installed version of a package, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def provenance(root: Path, device: str, commit: str | None = None) -> dict[str, object]:
    """The fields of a record for where it was measured. Raises ValueError where git gives another `commit`."""
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
    packages = ("torch", "transformers", "triton", "numpy", "pytest", "pytest-benchmark")
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
        "packages": {package: version(package) for package in packages} | {"mlexp": __version__},
    }

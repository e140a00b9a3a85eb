"""Clocks and counters against what is known: allocations of known size, recorded durations, a fake driver."""

import ctypes
import platform
import subprocess
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlexp.harness import host, measure

MIB = 2**20


@given(st.lists(st.floats(1e-9, 1e5), min_size=1, max_size=9))
def test_a_replayed_clock_gives_the_recorded_durations_exactly(durations):
    clock, shown = measure.Clock(), []
    with clock.replaying(durations):
        for _ in durations:
            start = clock()
            shown.append(clock() - start)
    assert shown == durations
    assert abs(clock() - time.perf_counter()) < 1  # and it goes on as before


def test_the_clock_synchronises_before_every_reading():
    clock, calls = measure.Clock(), []
    clock.synchronize = lambda: calls.append(time.perf_counter())
    assert clock() >= calls[0]
    clock()
    assert len(calls) == 2


@pytest.mark.parametrize("reader", ["default", "sampled"])
@pytest.mark.parametrize("count, mib", [(1, 200), (50, 4), (4000, 0.05), (50, 4), (1, 200)])
def test_the_peak_of_known_allocations(monkeypatch, reader, count, mib):
    if reader == "sampled":
        monkeypatch.setattr(measure, "_high_water_mark_resets", lambda: False)
    elif not measure._high_water_mark_resets():
        pytest.skip("the kernel's high-water mark cannot be reset here")
    with measure.peak_memory("cpu") as peak:
        arrays = [np.ones(int(mib * MIB), dtype=np.uint8) for _ in range(count)]
        time.sleep(0.02)
        del arrays
    assert peak.bytes == pytest.approx(count * mib * MIB, rel=0.05, abs=4 * MIB)
    assert peak.method == {"default": "vm_hwm", "sampled": "rss_sampling"}[reader]


def test_a_block_that_allocates_nothing_peaks_at_nothing():
    with measure.peak_memory("cpu") as peak:
        pass
    assert peak.bytes < MIB


class Driver:
    """A management library with one GPU whose energy counter rises by 1 kJ a reading."""

    def __init__(self, supported=True):
        self.energy, self.supported = 0, supported

    def nvmlInit_v2(self):
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, device):
        return 0

    def nvmlDeviceGetName(self, device, buffer, length):
        buffer.value = b"A GPU"
        return 0

    def nvmlSystemGetDriverVersion(self, buffer, length):
        buffer.value = b"1.2"
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, device, pointer):
        self.energy += 1_000_000
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_ulonglong))[0] = self.energy
        return 0 if self.supported else 3

    def nvmlDeviceGetClockInfo(self, device, kind, pointer):
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_uint))[0] = 1980
        return 0


@pytest.mark.parametrize(
    ("window", "supported", "joules"), [(0.0, True, 1000.0), (measure.ENERGY_WINDOW_S, True, None), (0.0, False, None)]
)
def test_energy_is_the_counter_s_or_nothing(monkeypatch, window, supported, joules):
    gpu = host.Nvml(Driver(supported))
    monkeypatch.setattr(measure, "nvml", lambda: gpu)
    monkeypatch.setattr(host, "nvml", lambda: gpu)
    monkeypatch.setattr(measure, "ENERGY_WINDOW_S", window)
    with measure.energy("cuda") as meter:
        pass
    assert meter.joules == joules
    assert (gpu.name(), gpu.driver(), gpu.clock_mhz(1)) == ("A GPU", "1.2", 1980)
    assert "A GPU" in measure.machine("cuda") and "A GPU" not in measure.machine("cpu")


def git(folder, *args):
    argv = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *args]
    subprocess.run(argv, cwd=folder, check=True, capture_output=True)


def test_dirty_looks_at_code_alone(tmp_path):
    assert host.git_state(tmp_path) == (None, None)
    (tmp_path / "code.py").write_text("x = 1")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "out.json").write_text("{}")
    commit, dirty = host.git_state(tmp_path)
    assert len(commit) == 40 and dirty is False
    (tmp_path / "code.py").write_text("x = 2")
    assert host.git_state(tmp_path) == (commit, True)


def test_threads_follow_what_was_asked(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert measure.threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "none")
    assert measure.threads() >= 1


def test_the_environment_is_plain_json():
    import json

    environment = measure.environment("cpu")
    assert json.loads(json.dumps(environment)) == environment
    assert environment["cpu_model"] and environment["packages"]["pytest"]


@pytest.mark.parametrize(
    ("device", "count", "policy", "line"),
    [
        ("cpu", 1, "PASSIVE", "A CPU, 1 thread"),
        ("cpu", None, "ACTIVE", "A CPU, 3 threads"),
        ("cpu", None, "passive", "A CPU, 3 passive threads"),
        ("cuda", 2, "PASSIVE", "A CPU, 2 passive threads + A GPU"),
    ],
)
def test_a_machine_is_its_processor_its_threads_and_its_gpu(monkeypatch, device, count, policy, line):
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    monkeypatch.setattr(host, "cpu_model", lambda: "A CPU")
    monkeypatch.setattr(host, "nvml", lambda: host.Nvml(Driver()))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert measure.machine(device, count) == line


def test_provenance_holds_each_version_under_its_own_name(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "version", lambda package: f"version of {package}")
    monkeypatch.setattr(host, "machine", lambda device: f"machine with {device}")
    monkeypatch.setattr(host, "git_state", lambda root: ("abc123", True))
    found = measure.provenance(tmp_path, "cpu", commit="abc")
    assert found == {
        "machine": "machine with cpu", "commit": "abc123", "dirty": True, "torch": "version of torch",
        "transformers": "version of transformers", "python": platform.python_version(),
    }  # fmt: skip
    with pytest.raises(ValueError, match="--commit abd: git says abc123"):
        measure.provenance(tmp_path, "cpu", commit="abd")
    monkeypatch.setattr(host, "git_state", lambda root: (None, None))
    assert measure.provenance(tmp_path, "cpu", commit="abd")["commit"] == "abd"

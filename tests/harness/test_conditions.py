"""What a measurement ran beside: counters of known course, processes of known number, and a machine made busy."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest

from mlexp import journal, record
from mlexp.harness import conditions as module
from mlexp.harness import host, measure
from mlexp.harness.conditions import Reading, between, child_processes, conditions, cpu_quota

pytest_plugins = ["pytester"]
posix = pytest.mark.skipif(os.name != "posix", reason="needs fork")
START = Reading(
    at=100.0, cpu=50.0, children=5.0, busy=900.0, steal=9.0, waiting=1.0, switches=70, quota_throttled=2.0,
    cpu_throttles=3, cpu_mhz=3000.0, gpu_mhz=1980, gpu_throttled_by=(),
)  # fmt: skip
QUIET = replace(START, at=110.0, cpu=58.0, busy=908.0)  # ten seconds, in eight of which this process ran, alone


def test_a_quiet_machine_shows_zeros(monkeypatch):
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    found = between(START, QUIET)
    zeros = ("involuntary_switches", "core_wait_fraction", "steal_fraction", "others_fraction", "quota_throttled_s")
    assert [found[name] for name in (*zeros, "cpu_throttles")] == [0] * 6 and found["gpu_throttled_by"] == ""


@pytest.mark.parametrize(
    ("name", "value", "counters"),
    [
        ("others_fraction", 6 / 40, {"busy": 914.0}),  # 6 s of four cores for ten seconds
        ("others_fraction", 2 / 40, {"busy": 914.0, "children": 9.0}),  # 4 of them by a child that has ended
        ("others_fraction", 0.0, {"busy": 903.0}),  # the system's ticks miss a part of it
        ("others_fraction", 1.0, {"busy": 999.0}),
        ("steal_fraction", 2.5 / 10.5, {"steal": 11.5}),
        ("core_wait_fraction", 5 / 13, {"waiting": 6.0}),
        ("core_wait_fraction", 0.0, {"waiting": 0.5}),  # a thread ended, and its share of the sum with it
        ("involuntary_switches", 7, {"switches": 77}),
        ("quota_throttled_s", 0.5, {"quota_throttled": 2.5}),
        ("cpu_throttles", 1, {"cpu_throttles": 4}),
        ("cpu_mhz_end", 2000.0, {"cpu_mhz": 2000.0}),
        ("gpu_mhz_end", 1200, {"gpu_mhz": 1200}),
        ("gpu_throttled_by", "sw_power_cap, hw_slowdown", {"gpu_throttled_by": ("sw_power_cap", "hw_slowdown")}),
    ],
)
def test_each_counter_moves_its_own_field(monkeypatch, name, value, counters):
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    quiet, found = between(START, QUIET), between(START, replace(QUIET, **counters))
    assert found.pop(name) == pytest.approx(value) if not isinstance(value, str) else found.pop(name) == value
    quiet.pop(name)
    assert found == quiet


def test_living_children_are_not_others(monkeypatch):
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    busy = replace(QUIET, busy=914.0)
    assert between(START, busy, children=6.0)["others_fraction"] == 0


def test_what_the_system_does_not_tell_is_null():
    nothing = dict.fromkeys(
        ("steal", "waiting", "switches", "quota_throttled", "cpu_throttles", "cpu_mhz", "gpu_mhz", "gpu_throttled_by")
    )
    found = between(replace(START, **nothing), replace(QUIET, **nothing))
    told = {name for name, value in found.items() if value is not None} - {"cpu_governor"}
    assert told == {"others_fraction"}


def test_a_block_shorter_than_the_counters_steps_has_no_shares():
    found = between(START, replace(QUIET, at=START.at + module.SHORTEST_S / 2))
    assert found["others_fraction"] is None and found["steal_fraction"] is None
    assert found["core_wait_fraction"] == 0  # counted in nanoseconds


def test_the_fields_are_those_of_the_record_and_no_metrics():
    with conditions() as found:
        pass
    assert record.validate(found, record.CONDITIONS) == found
    assert set(found) | {"child_processes"} == set(record.CONDITIONS)
    assert not set(record.CONDITIONS) & set(record.METRICS) and set(record.CONDITIONS) < set(record.PROVENANCE)
    assert all(metric.better == "none" for metric in record.CONDITIONS.values())
    with pytest.raises(ValueError, match="unknown metric 'steal_fraction'"):  # the harness writes it, no cell
        record.validate({"steal_fraction": 0.0}, record.metrics_of())
    with pytest.raises(ValueError, match="already defined"):
        record.metrics_of({"steal_fraction": ("fraction", "none", "x")})


def sysfs(monkeypatch, tmp_path, files):
    """Kernel files with these texts, and no others."""
    for name, text in files.items():
        path = tmp_path / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    real = module._text
    monkeypatch.setattr(module, "_text", lambda path: real(tmp_path / str(path).lstrip("/")))


CPU = "/sys/devices/system/cpu/cpu3"
STAT = "77 (a (b) c) R " + " ".join(["0"] * 35) + " 3 0 0"  # the 39th field is the CPU it ran on


def test_clocks_are_those_of_the_cpu_in_use(monkeypatch, tmp_path):
    files = {f"{CPU}/cpufreq/scaling_cur_freq": "2400123\n", f"{CPU}/cpufreq/scaling_governor": "powersave\n"}
    files[f"{CPU}/thermal_throttle/package_throttle_count"] = "12\n"
    sysfs(monkeypatch, tmp_path, files | {"/proc/self/stat": STAT})
    reading = module.read(None)
    assert (reading.cpu_mhz, reading.cpu_throttles) == (2400.123, 12)
    assert between(reading, reading)["cpu_governor"] == "powersave"


@pytest.mark.parametrize(
    ("files", "throttled", "quota"),
    [
        ({"/proc/self/cgroup": "0::/job\n", "/sys/fs/cgroup/job/cpu.stat": "usage_usec 9\nthrottled_usec 1500000\n",
          "/sys/fs/cgroup/job/cpu.max": "250000 100000\n"}, 1.5, 2.5),
        ({"/proc/self/cgroup": "0::/../outside\n", "/sys/fs/cgroup/cpu.stat": "throttled_usec 7000000\n",
          "/sys/fs/cgroup/cpu.max": "max 100000\n"}, 7.0, None),
        ({"/proc/self/cgroup": "5:memory:/m\n4:cpu,cpuacct:/job\n0::/\n",
          "/sys/fs/cgroup/cpu/job/cpu.stat": "nr_throttled 2\nthrottled_time 3000000000\n",
          "/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "50000", "/sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000"},
         3.0, 0.5),
        ({"/proc/self/cgroup": "4:cpu:/\n", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
          "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None, None),
        ({}, None, None),
    ],
)  # fmt: skip
def test_quotas_of_both_versions_of_control_groups(monkeypatch, tmp_path, files, throttled, quota):
    sysfs(monkeypatch, tmp_path, files)
    assert (module._quota_throttled(), cpu_quota()) == (throttled, quota)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("mask", "reasons"),
    [(0, ()), (0x1 | 0x2 | 0x100, ()), (0x4, ("sw_power_cap",)), (0x48, ("hw_slowdown", "hw_thermal_slowdown"))],
)
def test_throttling_by_the_driver_s_names(old, mask, reasons):
    def read(device, pointer):
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_ulonglong))[0] = mask
        return 0

    name = "nvmlDeviceGetCurrentClocks" + ("ThrottleReasons" if old else "EventReasons")
    driver = SimpleNamespace(nvmlInit_v2=lambda: 0, nvmlDeviceGetHandleByIndex_v2=lambda *_: 0)
    assert host.Nvml(driver).throttled_by() is None
    setattr(driver, name, lambda *_: 3)  # not supported
    assert host.Nvml(driver).throttled_by() is None
    setattr(driver, name, read)
    assert host.Nvml(driver).throttled_by() == reasons


def spawn(method, count):
    context = multiprocessing.get_context(method)
    processes = [context.Process(target=os.getpid) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def in_threads():
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: subprocess.run(["true"], check=True), range(8)))


def forked():
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)


@posix
@pytest.mark.parametrize(
    ("block", "count"),
    {
        "none": (lambda: sum(range(99)), 0),
        "a thread": (lambda: threading.Thread(target=int).start(), 0),
        "three": (lambda: [subprocess.run(["true"], check=True) for _ in range(3)], 3),
        "posix_spawn": (lambda: subprocess.run(["/bin/true"], close_fds=False, check=True), 1),
        "threads": (in_threads, 8),
        "fork": (forked, 1),
        "system": (lambda: os.system("true"), 1),
        "workers": (lambda: spawn("fork", 2), 2),
        "fresh workers": (lambda: spawn("spawn", 2), 2),
        "in C": (lambda: ctypes.CDLL(None).system(b"true"), 1),
        "in C, thrice": (lambda: [ctypes.CDLL(None).system(b"true") for _ in range(3)], 1),  # at least so many
    }.values(),
)
def test_child_processes_are_counted(block, count):
    popen, fork = subprocess.Popen.__init__, os.fork
    with child_processes() as found:
        block()
    assert found.count >= count if count and "resource_tracker" in sys.modules else found.count == count
    assert (subprocess.Popen.__init__, os.fork) == (popen, fork)


@posix
def test_workers_that_were_there_before_count_where_they_work():
    code = "import sys, time\nfor _ in sys.stdin:\n    while time.process_time() < 0.3: pass\n    print(flush=True)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        time.sleep(0.5)
        with child_processes() as idle:
            time.sleep(0.1)
        with child_processes() as works:
            worker.stdin.write(b"work\n")
            worker.stdin.flush()
            worker.stdout.readline()
        worker.stdin.close()
    assert (idle.count, works.count) == (0, 1)


@posix
def test_the_peak_says_how_many_processes_it_leaves_out():
    """The case that makes the field needed: 100 MB in a child process are none in this one."""
    with measure.peak_memory("cpu") as peak:
        subprocess.run([sys.executable, "-c", "x = bytearray(100_000_000)"], check=True)
    assert peak.bytes < 50e6 and peak.child_processes == 1


def busy(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        sum(range(1000))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_machine_that_others_keep_busy_shows_it():
    """The counters of this machine, with a busy loop on each core by processes that are not ours."""

    def share():
        with conditions() as found:
            busy(1.5)
        return found

    loop = f"{sys.executable} -c 'while True: pass' >/dev/null 2>&1 & echo $!"  # its parent ends: it is no child
    loops = [int(subprocess.check_output(["sh", "-c", loop])) for _ in range(psutil.cpu_count())]
    try:
        time.sleep(0.5)
        loaded = share()
    finally:
        for pid in loops:
            os.kill(pid, signal.SIGKILL)
    assert loaded["others_fraction"] > 0.3 and loaded["core_wait_fraction"] > 0.1
    assert loaded["involuntary_switches"] > 0


@pytest.mark.parametrize("how", ["here", "--isolate"])
def test_a_record_has_them_and_a_replayed_one_those_that_it_was_measured_with(toy, how):
    toy.run("-k", "m_one-seed1", "--benchmark-json", "out.json", *([how] if how != "here" else []))
    measured = [bench["extra_info"] for bench in toy.json()["benchmarks"]]
    assert len(measured) == 2
    for info in measured:
        assert set(record.CONDITIONS) < set(info) and info["child_processes"] == 0
        assert info["involuntary_switches"] >= 0 or os.name != "posix"
    entries = {entry.key: entry.record for entry in journal.read(toy.journal).entries}
    toy.run("-k", "m_one-seed1", "--resume", "--benchmark-json", "again.json")
    for bench in toy.json("again.json")["benchmarks"]:
        info = bench["extra_info"]
        assert info == entries[info["key"]] | {"replayed": True}
        assert {name: info[name] for name in record.CONDITIONS} in [
            {name: before[name] for name in record.CONDITIONS} for before in measured
        ]

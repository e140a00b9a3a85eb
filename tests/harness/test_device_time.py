"""Time and memory on a CUDA device that is not there: what is queued on it, in which order, and what is read off it."""

import sys
from types import SimpleNamespace

import pytest

from mlexp import study
from mlexp.harness import measure
from mlexp.harness.cell import Cell, synchronize
from mlexp.record import METRICS

from ..needs import needs

KERNEL_MS, FLUSH_MS, SLEEP_MS = 0.25, 40.0, 1.0


class Device:
    """torch, as far as the stopwatch knows it: each call is queued under its name and takes its time, in ms."""

    uint8 = "uint8"

    def __init__(self, l2):
        self.queue, self.now, self.asked = [], 0.0, []
        properties = SimpleNamespace(L2_cache_size=l2) if l2 is not None else SimpleNamespace()
        self.cuda = SimpleNamespace(
            Event=self.event,
            synchronize=lambda: self.queue.append("synchronize"),
            _sleep=lambda cycles: self.work("sleep", SLEEP_MS),
            current_device=lambda: 0,
            get_device_properties=lambda index: properties,
        )

    def work(self, name, ms):
        self.queue.append(name)
        self.now += ms

    def empty(self, size, dtype, device):
        self.asked.append((size, dtype, device))
        return SimpleNamespace(zero_=lambda: self.work("flush", FLUSH_MS))

    def event(self, enable_timing):
        assert enable_timing
        at = SimpleNamespace(ms=None)

        def record():
            at.ms = self.now
            self.queue.append("event")

        return SimpleNamespace(
            at=at,
            record=record,
            synchronize=lambda: self.queue.append("wait"),
            elapsed_time=lambda end: end.at.ms - at.ms,
        )


ROUND = ["synchronize", "flush", "sleep", "event", "kernel", "event", "wait"]


@pytest.fixture
def device(monkeypatch, request):
    fake = Device(getattr(request, "param", 1000))
    monkeypatch.setitem(sys.modules, "torch", fake)
    return fake


def test_a_round_is_flush_then_start_then_run_then_end(device):
    clock = measure.Clock()
    clock.synchronize = lambda: pytest.fail("the host's clock was read")
    with clock.timed_by(measure.CudaStopwatch()):
        for _ in range(3):
            start = clock()
            device.work("kernel", KERNEL_MS)
            assert clock() - start == pytest.approx(KERNEL_MS / 1e3, rel=1e-9)  # neither flush nor sleep is in it
    assert device.queue == 3 * ROUND


@pytest.mark.parametrize("device", [1000, 0, None], indirect=True)  # 0 and None: the driver does not tell
def test_the_flush_is_larger_than_the_cache(request, device):
    measure.CudaStopwatch()
    l2 = request.node.callspec.params["device"] or measure.L2_BYTES
    assert device.asked == [(2 * l2, "uint8", "cuda")]


def test_the_host_s_clock_is_back_afterwards_even_if_the_run_fails(device):
    clock, stopwatch = measure.Clock(), measure.CudaStopwatch()
    with pytest.raises(RuntimeError), clock.timed_by(stopwatch):
        clock()
        raise RuntimeError("a launch failed")
    assert clock() > 1e-3 and device.queue[-1] == "event"  # no event for the host's reading
    with clock.timed_by(None):
        assert clock() <= clock()


def test_a_replay_shows_what_was_recorded_whatever_else_times(device):
    clock = measure.Clock()
    with clock.timed_by(measure.CudaStopwatch()), clock.replaying([0.1, 0.3]):
        assert [clock() for _ in range(4)] == [0.0, 0.1, 0.0, 0.3]
    assert device.queue == []


class Pedantic:
    """benchmark.pedantic as far as a cell needs it: durations by the clock, two readings a round."""

    def __init__(self, clock):
        self.clock, self.durations = clock, []

    def pedantic(self, run, setup, rounds):
        for _ in range(rounds):
            setup()
            start = self.clock()
            result = run()
            self.durations.append(self.clock() - start)
        return result


def a_cell(device):
    plan = SimpleNamespace(
        name="test_x[a]", question="x", params={}, settings=None, seed=0, key="k", study=study.of(SimpleNamespace())
    )
    run, clock = SimpleNamespace(scale="smoke", device=device, dtype="float32", options=None), measure.Clock()
    return Cell(plan, run, clock, Pedantic(clock), lambda *args: None)


@pytest.fixture
def no_counters(monkeypatch):
    """Memory and FLOPs have tests of their own."""
    monkeypatch.setattr(measure, "_cuda_peak", measure._vm_peak)
    monkeypatch.setattr(Cell, "count", lambda self, run: (run(), 7))
    monkeypatch.setattr("mlexp.harness.cell.synchronize", lambda device: None)


@pytest.mark.parametrize("rounds", [1, 4])
def test_a_cell_on_cuda_times_its_rounds_by_events(device, no_counters, monkeypatch, rounds):
    monkeypatch.setattr(measure, "energy", lambda device: measure.contextlib.nullcontext(SimpleNamespace(joules=5.0)))
    cell = a_cell("cuda")
    assert cell.time(lambda: device.work("kernel", KERNEL_MS) or "out", rounds=rounds, device_time=True) == "out"
    assert cell._benchmark.durations == pytest.approx([KERNEL_MS / 1e3] * rounds, rel=1e-9)
    assert cell.values["timer"] == "cuda_events" and cell.values["flops"] == 7
    assert cell.values["energy_j"] is None  # the flush is not the kernel's
    assert device.queue == 2 * ["kernel"] + rounds * ROUND  # for FLOPs, and for memory


@pytest.mark.parametrize(
    ("where", "asked", "timer"), [("cpu", True, "host_clock"), ("cpu", False, None), ("cuda", False, None)]
)
def test_the_host_s_clock_times_all_other_cells(device, no_counters, monkeypatch, where, asked, timer):
    monkeypatch.setattr(measure, "CudaStopwatch", lambda: pytest.fail("a stopwatch was made"))
    cell = a_cell(where)
    cell.time(lambda: device.work("kernel", KERNEL_MS), rounds=2, device_time=asked)
    assert cell.values.get("timer") == timer
    assert device.queue == 4 * ["kernel"] and all(seconds > 0 for seconds in cell._benchmark.durations)


def test_timer_is_a_declared_metric():
    assert METRICS["timer"].unit == "name"


def test_a_copy_is_measured_once_and_counts_both_ways(monkeypatch):
    needs("torch")
    monkeypatch.setitem(measure.COPY_BYTES, "cpu", 1 << 20)
    measure.copy_bytes_per_s.cache_clear()
    later = [0.5, 0.7] * ((measure.COPIES - 1) // 2)
    ticks = iter([0.0, 9.0, *(x for seconds in later for x in (0.0, seconds))])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(ticks))
    for _ in range(2):  # no ticks are left for a second measurement
        assert measure.copy_bytes_per_s("cpu") == 2 * (1 << 20) / 0.6  # the first copy, of 9 s, does not count
    measure.copy_bytes_per_s.cache_clear()


def test_the_host_s_clock_is_read_when_the_device_has_finished(device, no_counters, monkeypatch):
    monkeypatch.setattr("mlexp.harness.cell.synchronize", synchronize.__wrapped__)
    cell = a_cell("cuda")
    cell.time(lambda: device.work("kernel", KERNEL_MS), rounds=3)
    assert device.queue == 2 * ["kernel"] + 3 * ["synchronize", "kernel", "synchronize"]
    assert synchronize.__wrapped__("cpu") is None


def test_the_clock_is_the_wall_s(monkeypatch):
    monkeypatch.setattr(measure.time, "perf_counter", lambda: 17.0)
    assert measure.Clock()() == 17.0


@pytest.mark.parametrize("rounds", [1, 4])
def test_energy_is_that_of_one_round(device, no_counters, monkeypatch, rounds):
    monkeypatch.setattr(measure, "energy", lambda device: measure.contextlib.nullcontext(SimpleNamespace(joules=8.0)))
    cell = a_cell("cuda")
    cell.time(lambda: None, rounds=rounds)
    assert cell.values["energy_j"] == 8.0 / rounds


class Allocator:
    """torch.cuda's memory: so many bytes now, and the most since the peak was last reset; work is done when synced."""

    def __init__(self, resident, cached_peak):
        self.now, self.peak, self.waiting, self.log = resident, cached_peak, [], []

    def synchronize(self):
        self.log.append("synchronize")
        for size in self.waiting:
            self.now += size
            self.peak = max(self.peak, self.now)
        self.waiting.clear()

    def empty_cache(self):
        self.log.append("empty_cache")

    def reset_peak_memory_stats(self):
        self.peak = self.now

    def memory_allocated(self):
        return self.now

    def max_memory_allocated(self):
        return self.peak


def test_a_cuda_peak_is_above_what_was_resident_and_since_the_block_began(monkeypatch):
    cuda = Allocator(resident=1000, cached_peak=9000)  # an earlier cell went higher than this one will
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    with measure.peak_memory("cuda") as peak:
        cuda.waiting += [300, 50, -350]  # queued, not yet run
    assert (peak.bytes, peak.method) == (350, "cuda_allocator")
    assert "empty_cache" in cuda.log  # or a cached block would hide a fragment's cost


@pytest.mark.needs_gpu
def test_events_agree_with_the_host_on_a_long_kernel():
    import time

    import torch

    x, clock = torch.randn(4096, 4096, device="cuda"), measure.Clock()
    stopwatch = measure.CudaStopwatch()

    def work():
        for _ in range(50):
            x @ x

    work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    host = time.perf_counter() - start
    with clock.timed_by(stopwatch):
        start = clock()
        work()
        device = clock() - start
    assert device == pytest.approx(host, rel=0.2)

"""Cell: what a bench function holds while it runs. It times, counts and records; it decides nothing."""

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from mlexp import record
from mlexp.harness import measure
from mlexp.harness.company import tracer
from mlexp.harness.conditions import compilations, conditions
from mlexp.harness.plan import Plan
from mlexp.harness.run_config import RunConfig
from mlexp.harness.status import CellDied
from mlexp.series import large_array

WARM_RUNS = 5  # at most, until nothing is compiled in one: what compiles at every call is timed with its compiling

TRACED = "{} follows all that runs here and would be timed with it; run without it, or with --benchmark-disable"

Result = TypeVar("Result")
__tracebackhide__ = True  # what is raised here is the caller's mistake: pytest shows the caller's line


class Cell:
    """One cell of a question: what a test gets that takes the fixture `cell`. `mlexp.Cell` annotates it.

    Attributes:
        name (str): the node id.
        question (str): the folder's name.
        params (dict): axis -> value, the last axis being the arm.
        settings (Settings | None): the question's frozen dataclass for this scale, with `--set` applied (None where it
            declares none).
        scale (str): `smoke`, `quick` or `full`.
        device (str): `cpu` or `cuda`.
        dtype (str): `float32` or `bfloat16`.
        seed (int): 32 bits from the block's axes; every arm of a block has the same.
        options (SimpleNamespace): `weights`, `prompts`, `corpus` as given on the command line (None where not);
            `model`: name -> folder.
        key (str): what `--resume` finds it by.
    """

    def __init__(
        self,
        plan: Plan,
        run: RunConfig,
        clock: measure.Clock,
        benchmark: Any,
        progress: Callable[[int, int, str], None],
    ) -> None:
        self.name, self.question, self.params, self.settings = plan.name, plan.question, plan.params, plan.settings
        self.seed, self.key = plan.seed, plan.key
        self.scale, self.device, self.dtype, self.options = run.scale, run.device, run.dtype, run.options
        self.values: dict[str, object] = {}
        self.arrays: dict[str, object] = {}
        self._table = record.metrics_of(plan.study.metrics)
        self._benchmark, self._clock, self._say, self._timed = benchmark, clock, progress, False

    def time(
        self,
        run: Callable[[], Result],
        rounds: int = 1,
        warmup: bool = True,
        device_time: bool = False,
        count: bool = True,
    ) -> Result:
        """Time `run()` over `rounds` rounds and return the result of the last one. Records `wall_s` (the median, in
        seconds), `peak_bytes`, `flops`, `energy_j` and what the rounds ran under.

        With `warmup` it first runs untimed: once to count FLOPs, which also takes up what is imported and allocated at
        first use, and once for peak memory (counting holds on to tensors, so not in the same pass). Counting runs what
        is compiled eagerly; the pass for peak memory is therefore its first run, and is repeated until nothing was
        compiled in it, so that neither its peak nor a round holds a compilation. Without torch, or without `count`
        (where `run()` cannot be counted, or its FLOPs are known), the first run is a plain one; then peak memory is
        read around a single round in passing. Without `warmup` (training, where a second run is too dear) so it is
        too, and FLOPs are for the cell to record, from `count`.

        With `device_time`, for kernels, a round on a GPU lasts as long as the device is at work on `run()`, its cache
        flushed before (see measure.CudaStopwatch); on a CPU nothing is different.

        Args:
            run: what is timed, without arguments; a closure over what was prepared before.
            rounds: how often it is timed.
            warmup: whether it runs untimed first, for FLOPs and peak memory.
            device_time: whether a round lasts as long as the GPU is at work.
            count: whether FLOPs are counted in the first untimed run; only torch's are.

        Raises:
            RuntimeError: at a second call; a cell is one measurement.
            TypeError: where `run` cannot be called.
        """
        if not callable(run):
            raise TypeError(f"cell.time was given a {type(run).__name__}, no function; write cell.time(lambda: ...)")
        if self._timed:
            raise RuntimeError(f"{self.name}: cell.time was called twice; a cell is one measurement")
        self._timed = True
        if (name := tracer()) and not self._benchmark.disabled:
            raise CellDied("failed", TRACED.format(name))
        self._clock.synchronize = synchronize(self.device)
        stopwatch = measure.CudaStopwatch() if device_time and self.device == "cuda" else None
        if device_time:
            self.record(timer="cuda_events" if stopwatch else "host_clock")
        settled = warmup and self._first(run, rounds, count)
        if warmup and (rounds > 1 or not settled):
            self._say(0, rounds, "reading peak memory")
            self._settle(lambda: self._peak(run))
            return self._rounds(run, rounds, stopwatch)
        return self._peak(lambda: self._rounds(run, rounds, stopwatch))

    def _first(self, run: Callable[[], object], rounds: int, count: bool) -> bool:
        """The untimed runs before all others, and FLOPs if asked for: null where even now there is no torch. Returns
        whether one of them was a run like those to come, in which nothing was compiled.
        """
        settled = not count or "torch" not in sys.modules
        if settled:
            self._say(0, rounds, "warming up")
            self._settle(run)
        if count:
            self._say(0, rounds, "counting FLOPs")
            self.record(flops=self.count(run)[1] if "torch" in sys.modules else None)
        return settled

    def _settle(self, run: Callable[[], object]) -> None:
        """Run until nothing was compiled, nor recorded as a CUDA graph: once, where there is nothing to compile."""
        for _ in range(WARM_RUNS):
            with compilations() as compiled:
                run()
            if not compiled.count:
                break

    def _peak(self, run: Callable[[], Result]) -> Result:
        """The result of `run()`, its peak memory recorded."""
        with measure.peak_memory(self.device) as peak:
            result = run()
        self.record(peak_bytes=peak.bytes, peak_method=peak.method)
        self._note(child_processes=peak.child_processes)
        return result

    def _note(self, **values: object) -> None:
        """Add conditions to the cell's record."""
        self.values |= record.validate(values, record.CONDITIONS)

    def _rounds(self, run: Callable[[], Result], rounds: int, stopwatch: measure.CudaStopwatch | None) -> Result:
        done = 0

        def next_round() -> None:
            nonlocal done
            self._say(done, rounds, f"round {done + 1}")
            done += 1

        gpu = measure.nvml() if self.device == "cuda" else None
        with conditions(gpu) as ran_under, measure.energy(self.device) as meter, self._clock.timed_by(stopwatch):
            result: Result = self._benchmark.pedantic(run, setup=next_round, rounds=rounds)
        self._note(**ran_under)
        joules = None if stopwatch else meter.joules  # between rounds the stopwatch keeps the device busy
        self.record(energy_j=joules and joules / rounds)
        return result

    @contextlib.contextmanager
    def part(self, metric: str) -> Iterator[None]:
        """Within what `time` runs: add the seconds of this block to a metric, `with cell.part("scoring_s"): ...`. What
        a part of a measurement takes, summed over its blocks and rounds; the device is synchronised at both ends.

        Args:
            metric: a metric in seconds that `mlexp.record.METRICS` or the study declares.

        Raises:
            ValueError: for a name that is not declared.
        """
        clock = measure.Clock()  # its own: the cell's may be reading recorded durations or a device's events
        clock.synchronize = synchronize(self.device)
        start = clock()
        yield
        before = self.values.get(metric) or 0.0
        assert isinstance(before, float)
        self.record(**{metric: before + clock() - start})

    def copy_bytes_per_s(self) -> float:
        """Bytes per second that a large copy on the cell's device reads and writes, both counted: the bandwidth that
        memory-bound code can reach. Measured once a process."""
        return measure.copy_bytes_per_s(self.device)

    def count(self, run: Callable[[], Result]) -> tuple[Result, int | None]:
        """(result of `run()`, floating-point operations that torch executed in it, None where unknown or torch ran
        nothing). A multiplication and an addition are two. Slow: never within a timed round."""
        from mlexp.flops import count_flops

        return count_flops(run)

    def record(self, **values: object) -> None:
        """Add metrics to the cell's record, in base units (seconds, bytes, fractions in [0, 1]).

        Args:
            **values: None, bool, int, finite float or str, by names that `mlexp.record.METRICS` or the study declares.

        Raises:
            ValueError: for a name that is not declared, a number that is not finite, a fraction outside [0, 1].
            TypeError: for any other kind of value, such as a tensor (take its `.item()`).
        """
        self.values |= record.validate(values, self._table)

    def series(self, **arrays: object) -> None:
        """Add named arrays to the record, such as losses by step; `mlexp.load_series` reads them.

        Args:
            **arrays: numbers in lists, numpy arrays or tensors, of any shape; NaN and infinities become null. With more
                than 10,000 numbers a cell, those that are rectangular are kept in an .npz beside the journal.

        Raises:
            TypeError: for anything else in them, naming the series.
        """
        for name, array in arrays.items():
            held = large_array(array) if hasattr(array, "tolist") else None
            if held is None:
                held = numbers(name, array.tolist() if hasattr(array, "tolist") else array)
            self.arrays[name] = held

    def progress(self, done: int, total: int, what: str) -> None:
        """Say how far a long cell is: `done` of `total`, doing `what`. Shown at most a few times a second, and never
        under -q; with a total of 0 it announces `what` at once, as a line that stays."""
        self._say(done, total, what)


def numbers(name: str, array: object) -> object:
    """Nested lists of numbers as JSON can hold them."""
    if isinstance(array, (list, tuple)):
        return [numbers(name, item) for item in array]
    if array is None or isinstance(array, (bool, int)):
        return array
    if isinstance(array, float):
        return float(array) if math.isfinite(array) else None
    raise TypeError(f"series {name!r} holds a {type(array).__qualname__}; give numbers, None, or lists of them")


@functools.cache
def synchronize(device: str) -> Callable[[], None] | None:
    """What waits for `device` to finish; None where calls return when they are done."""
    if device != "cuda":
        return None
    import torch

    return torch.cuda.synchronize

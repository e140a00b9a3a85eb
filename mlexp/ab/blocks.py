"""A pair of processes, a revision each, that take turns: the blocks of steps in which their cells are timed."""

import contextlib
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import mlexp
from mlexp.analysis import gate, stats
from mlexp.analysis.gate import Refused, Verdict
from mlexp.harness.peer import Peer

from .checkouts import SIDES, git
from .comparison import Comparison, apply_outcomes, verdict_of
from .text import row_texts

STEPPING = Path(mlexp.__file__).parent / "harness" / "stepping.py"  # run, never imported
STEP_S, MAX_ROUNDS = 0.02, 100_000


@dataclass
class Terms:
    """How long a comparison may last, in seconds; what counts as the same; how sure all verdicts are together; the
    coin."""

    budget: float
    margin: float
    confidence: float
    coin: random.Random


class Steps(Protocol):
    """What a block needs of a side."""

    def step(self, rounds: int) -> list[float]: ...


class Side:
    """One revision's pytest process."""

    def __init__(self, name: str, folder: Path, args: Sequence[str], scratch: Path) -> None:
        self.name = name
        self._peer = Peer(["-P", str(STEPPING)], str(folder), environment(folder))
        self._peer.send(journal=str(scratch / f"{name}.jsonl"), args=list(args))

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: object) -> None:
        self._peer.close()

    def send(self, **message: Any) -> None:
        self._peer.send(**message)

    def receive(self) -> dict[str, Any]:
        message = self._peer.receive()
        if "died" in message:
            ended = message["died"].removeprefix("its process ")
            output = self._peer.tail().strip()
            raise Refused(gate.INCOMPLETE, f"the {self.name}'s pytest {ended}; its output ends:\n{output}")
        return message

    def step(self, rounds: int) -> list[float]:
        """Run so many rounds: their seconds."""
        self.send(rounds=rounds)
        seconds: list[float] = self.receive()["seconds"]
        return seconds

    def pin(self, cpus: set[int]) -> None:
        with contextlib.suppress(OSError, AttributeError):  # not Linux, or not permitted
            os.sched_setaffinity(self._peer.pid, cpus)


def environment(folder: Path) -> dict[str, str]:
    """The side's own modules first; this mlexp last, for a project that does not bring it."""
    top = git(folder, "rev-parse", "--show-toplevel")
    paths = [top, f"{top}/src", os.environ.get("PYTHONPATH"), str(Path(mlexp.__file__).parents[1])]
    return {"PYTHONHASHSEED": "0"} | os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run_pair(
    folders: Sequence[Path],
    args: Sequence[str],
    scratch: Path,
    terms: Terms,
    report: Callable[[str], None],
    only: Sequence[str] = (),
) -> list[Comparison]:
    """A comparison of every cell (of `only`, where given) in one pair of processes."""
    with contextlib.ExitStack() as stack:
        sides = [stack.enter_context(Side(name, f, args, scratch)) for name, f in zip(SIDES, folders, strict=True)]
        collected = [side.receive()["collected"] for side in sides]
        common = [cell for cell in collected[0] if cell in set(collected[1])]
        for side in sides:
            side.send(run=[cell for cell in common if not only or cell in only])
        for side in (side for side, cells in zip(sides, collected, strict=True) if not cells):
            side.receive()  # nothing collected: its pytest ends, and its output has the reason
        comparisons = []
        for cell in only or collected[0]:
            if cell not in common:
                comparisons.append(Comparison(cell, Verdict.WORSE, why="not in the head", status=gate.INCOMPLETE))
                continue
            comparisons.append(compare_cell(cell, sides, terms, 1 - (1 - terms.confidence) / len(common)))
            report(" ".join(filter(None, row_texts(comparisons[-1])[1:5])))
    return comparisons


def compare_cell(cell: str, sides: Sequence[Side], terms: Terms, confidence: float) -> Comparison:
    """Let both sides run `cell` in turns until the outcome is clear or the budget spent."""
    found, messages = Comparison(cell), [side.receive() for side in sides]
    ready = ["ready" in message for message in messages]
    if all(ready):
        single = all(message["threads"] == 1 for message in messages)
        with pinning(sides, terms.coin, single) as place:
            run_blocks(found, sides, terms, confidence, place)
    for side in (side for side, is_ready in zip(sides, ready, strict=True) if is_ready):
        side.send(stop=True)
    rows = zip(sides, messages, ready, strict=True)
    return apply_outcomes(found, [side.receive() if is_ready else message for side, message, is_ready in rows])


def run_blocks(
    found: Comparison, sides: Sequence[Steps], terms: Terms, confidence: float, place: Callable[[], None]
) -> None:
    """Time block after block; `place` puts both sides on the CPU of the next one."""
    until = time.perf_counter() + terms.budget
    warm = [side.step(1)[0] for side in (*sides, *sides)][2:]
    found.rounds = max(1, min(MAX_ROUNDS, math.ceil(STEP_S / max(min(warm), 1e-9))))
    medians, means = (found.base_s, found.head_s), (found.base_mean_s, found.head_mean_s)
    outcomes: list[float] = []
    low, high = 0.0, math.inf
    while found.verdict == Verdict.AMBIGUOUS and (not outcomes or time.perf_counter() < until):
        place()
        first = terms.coin.randrange(2)
        for side in (first, 1 - first, 1 - first, first):
            seconds = sides[side].step(found.rounds)
            medians[side].append(max(statistics.median(seconds), 1e-12))
            means[side].append(statistics.fmean(seconds))
        outcomes.append(float(np.log(found.head_s[-2:]).mean() - np.log(found.base_s[-2:]).mean()))
        interval = stats.median_sequence(outcomes, confidence)
        found.ratio, low, high = (math.exp(value) for value in interval[:3])
        found.low, found.high, found.verdict = low, high, verdict_of(low, high, terms.margin)
    found.blocks = len(outcomes)
    found.status = gate.REGRESSION if found.verdict == Verdict.WORSE else gate.OK
    if found.verdict == Verdict.AMBIGUOUS:
        found.why = "the budget was spent before it was clear"
    if not math.isfinite(high):
        found.status, found.why = gate.INCOMPLETE, "the budget was spent before there was an interval; give more"


@contextlib.contextmanager
def pinning(sides: Sequence[Side], coin: random.Random, single: bool) -> Iterator[Callable[[], None]]:
    """What puts both sides on one CPU, another one each block: two CPUs of a shared machine are not equally busy.

    Processes of several threads stay free.
    """
    everywhere = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()

    def place() -> None:
        if single and everywhere:
            cpu = coin.choice(sorted(everywhere))
            for side in sides:
                side.pin({cpu})

    yield place
    for side in sides if single and everywhere else ():
        side.pin(everywhere)

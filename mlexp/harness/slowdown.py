"""Says of a cell, while it runs, that it takes several times as long as its neighbours took: the same arm in another
replicate, in this session."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

from mlexp.harness.plan import Plan

TIMES = 4  # as long as the slowest neighbour: replicates of unequal work take up to twice as long
SHORTEST_S = 5.0  # nobody waits for less

Took = dict[tuple[object, ...], dict[str, float]]  # work -> cell -> seconds that its body took, once it has ended well


@contextlib.contextmanager
def watched(plan: Plan, took: Took, say: Callable[[str], None]) -> Iterator[None]:
    """Time the body of a cell, and say once that it is slow as soon as it is. A thread that sleeps waits for that."""
    neighbours = took.setdefault(work(plan), {})
    neighbours.pop(plan.name, None)  # of an attempt before
    known = sorted(neighbours.values())
    limit = max(SHORTEST_S, TIMES * known[-1]) if known else 0.0
    alarm = threading.Timer(limit, lambda: say(line(plan, limit, known))) if known else None
    began = time.monotonic()
    if alarm:
        alarm.daemon = True
        alarm.start()
    try:
        yield
        neighbours[plan.name] = time.monotonic() - began
    finally:
        if alarm:
            alarm.cancel()


def work(plan: Plan) -> tuple[object, ...]:
    """What a cell does, whatever its replicate: neighbours do the same."""
    replicates = plan.study.replicates
    axes = ((axis, value) for axis, value in plan.params.items() if axis not in replicates)
    return (plan.question, plan.name.partition("[")[0], *axes)


def line(plan: Plan, limit: float, known: list[float]) -> str:
    """The warning: how long it runs, what the neighbours took, how many processes want this machine's cores."""
    low, high = f"{known[0]:.3g}", f"{known[-1]:.3g}"
    took = f"its neighbour took {high}" if len(known) == 1 else f"its {len(known)} neighbours took {low} to {high}"
    load = f"; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
    cell = plan.name.partition("[")[2].removesuffix("]")
    return f"mlexp: {cell} has run for {limit:.3g} s, {took} s: is the machine shared?{load}"

"""What a record is: a flat dict of plain scalars whose names carry their units. Standard library only.

This file and `journal.py` are the contract between the wings: `mlexp.harness` writes what is described here,
`mlexp.analysis` reads it.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

STATUSES = ("passed", "failed", "oom", "diverged", "crashed", "skipped", "xfailed")
EXPECTED = ("oom", "diverged")  # outcomes that a sweep over sizes is entitled to: reported, not a failure of the run


COMPARED = ("exact", "time", "memory", "quality", "other")  # how `mlexp compare` judges a metric
COUNTED = ("FLOP", "count", "tokens", "rows", "nodes", "paths", "prompts", "steps", "cells", "items", "flag", "name")


class Metric(NamedTuple):
    """A named quantity of a record.

    Attributes:
        unit: a base unit: s, bytes, J, FLOP, nats, fraction (in [0, 1]), count, tokens, ratio; name: it is a text.
        better: which direction: `lower`, `higher` or `none`.
        what: what it is, in words.
        compare: how `mlexp compare` judges it, one of COMPARED; empty: as its unit has it.
    """

    unit: str
    better: str
    what: str
    compare: str = ""

    @property
    def compared(self) -> str:
        """How two files' values are compared: exactly what a program counts, by their noise times, sizes and qualities;
        `other` is shown where it differs and fails nothing."""
        if self.compare:
            return self.compare
        if self.unit in COUNTED:
            return "exact"
        if self.unit in ("s", "J") or self.unit.endswith("/s"):
            return "time"
        if self.unit == "bytes":
            return "memory"
        return "quality" if self.better != "none" else "other"


METRICS = {
    "wall_s": Metric("s", "lower", "median duration of the timed rounds, device synchronised"),
    "wall_iqr_s": Metric("s", "none", "interquartile range of the timed rounds"),
    "rounds": Metric("count", "none", "timed rounds"),
    "timer": Metric("name", "none", "what timed cells that ask for device time: cuda_events, or host_clock on a CPU"),
    "flops": Metric("FLOP", "lower", "counted by FlopCounterMode, untimed; null where unknown or where no torch ran"),
    "flops_closed_form": Metric("FLOP", "none", "the question's own formula, usually 2 * params * tokens"),
    "peak_bytes": Metric("bytes", "lower", "peak memory above what was resident before the call"),
    "peak_method": Metric("name", "none", "how peak_bytes was read: cuda_allocator, vm_hwm or rss_sampling"),
    "energy_j": Metric("J", "lower", "device energy over the timed rounds; null where the device has no counter"),
    "n_params": Metric("count", "none", "parameters of the model"),
    "n_tokens": Metric("tokens", "none", "tokens produced or consumed"),
    "loss_nats": Metric("nats", "lower", "mean negative log-likelihood per token"),
    "perplexity": Metric("ratio", "lower", "exp(loss_nats)"),
    "accuracy": Metric("fraction", "higher", "share of correct outcomes"),
    "optimality": Metric("fraction", "higher", "how close correct outcomes are to the best possible"),
    "effective_samples": Metric("samples", "higher", "independent samples that would carry the same information"),
    "unconverged_fraction": Metric("fraction", "lower", "share of steps or items that stopped short of convergence"),
}
"""What any question may record; its own it declares: METRICS = {name: (unit, better, what it is)}. Where the unit does
not say how to compare it, a fourth entry does, one of COMPARED.
"""

CONDITIONS = {
    "involuntary_switches": Metric("count", "none", "times that a thread of the process had to leave its core"),
    "core_wait_fraction": Metric("fraction", "none", "of the time its threads could run, the share without a core"),
    "steal_fraction": Metric("fraction", "none", "of the CPU time asked for, the share the hypervisor gave to others"),
    "others_fraction": Metric("fraction", "none", "of the CPU time of all cores, the share that other processes used"),
    "quota_throttled_s": Metric("s", "none", "stopped by the CPU quota of its control group (container)"),
    "cpu_throttles": Metric("count", "none", "times that the CPU slowed itself down because of its temperature"),
    "cpu_mhz_start": Metric("MHz", "none", "the CPU's clock before the first round"),
    "cpu_mhz_end": Metric("MHz", "none", "the CPU's clock after the last round"),
    "cpu_governor": Metric("name", "none", "what sets the CPU's clock, by the kernel's name"),
    "gpu_mhz_start": Metric("MHz", "none", "the GPU's clock before the first round"),
    "gpu_mhz_end": Metric("MHz", "none", "the GPU's clock after the last round"),
    "gpu_throttled_by": Metric("name", "none", "what held the GPU's clock down before or after; empty: nothing"),
    "compilations": Metric("count", "none", "what torch compiled, or recorded as a CUDA graph, within the rounds"),
    "child_processes": Metric("count", "none", "ran while peak_bytes was read, and are not in it; at least so many"),
}
"""What the timed rounds ran beside and under (the last: the pass in which peak memory is read). Written by the harness,
null where the system does not tell; never compared between records, and no outcome of anything.
"""

PROVENANCE = (
    *("status", "reason", "attempt", "scale", "settings", "overrides", "seed", "device", "dtype", "machine"),
    *("weights", "weights_hash", "corpus", "corpus_hash", "prompts_hash"),
    *("commit", "dirty", "torch", "transformers", "python", "question", "cell", "key", "when", "replayed", "source"),
    *CONDITIONS,
)
"""Fields that say where a record comes from and what it was measured under, in the order in which tables show them."""

CONTEXT = ("machine", "device", "dtype", "scale", "settings", "weights", "corpus")
"""Records that differ in one of these are never pooled."""

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
__tracebackhide__ = True  # what is raised here is the caller's mistake: pytest shows the caller's line


def metrics_of(declared: Mapping[str, tuple[str, ...]] | None = None) -> dict[str, Metric]:
    """The metric table in force for a question: the shared one and what the question declares.

    Raises ValueError where a declaration is malformed or redefines a shared name.
    """
    table = dict(METRICS)
    for name, row in (declared or {}).items():
        if not _NAME.match(name):
            raise ValueError(f"METRICS: {name!r} is not a metric name; use lower case, digits and underscores")
        if name in table or name in PROVENANCE:
            raise ValueError(f"METRICS: {name!r} is already defined by mlexp.record; drop it or choose another name")
        is_row = isinstance(row, tuple | list) and all(isinstance(text, str) for text in row)
        if not is_row or len(row) not in (3, 4) or row[1] not in ("lower", "higher", "none"):
            raise ValueError(f"METRICS[{name!r}] is {row!r}; give (unit, 'lower' | 'higher' | 'none', what it is)")
        if len(row) == 4 and row[3] not in ("", *COMPARED):
            raise ValueError(f"METRICS[{name!r}]: compare is {row[3]!r}; choose from {', '.join(COMPARED)}")
        table[name] = Metric(*row)
    return table


def near(name: str | None, known: Iterable[str], otherwise: str = "") -> str:
    """What may have been meant by a name that is not known, else all that there is."""
    known = list(known)
    close = difflib.get_close_matches(name or "", known, 1)
    return f"did you mean {close[0]!r}?" if close else otherwise or f"there are {', '.join(known) or 'none'}"


def plain(name: str, value: object) -> object:
    """`value` as a JSON scalar: None, bool, int, finite float or str. Raises TypeError or ValueError, naming it."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            value = kind(value)  # numpy's float64 is a float too: store the plain one
            break
    else:
        shown = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(f"{name} is a {shown}; a record holds None, bool, int, float or str (cast with .item())")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}; a record holds finite numbers or None")
    return value


def validate(values: Mapping[str, object], table: Mapping[str, Metric]) -> dict[str, object]:
    """`values` as a flat dict of plain scalars whose names all stand in `table`, fractions within [0, 1].

    Raises ValueError or TypeError with the name, the value and what is allowed; nothing is silently repaired.
    """
    clean = {}
    for name, value in values.items():
        if name not in table:
            declare = f'metrics={{"{name}": (unit, "lower" | "higher" | "none", what it is)}} in STUDY, or METRICS'
            raise ValueError(f"unknown metric {name!r}; declare it, {declare}; known: {', '.join(sorted(table))}")
        value = clean[name] = plain(name, value)
        if table[name].unit == "fraction" and value is not None and not 0 <= value <= 1:  # type: ignore[operator]  # text: TypeError
            raise ValueError(f"{name} is {value}; a fraction lies in [0, 1]")
    return clean

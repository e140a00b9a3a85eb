"""The cells of a run by what became of them, and what the benchmark JSON gets beside pytest-benchmark's own keys."""

import statistics
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlexp import journal, record
from mlexp.harness.plan import Plan
from mlexp.harness.slowdown import Took
from mlexp.series import copied


class Results:
    """The cells of a run.

    plans:    by node id, in the order in which they run
    finished: what `--resume` may replay, by key, the newest last
    ended:    by node id: the entry of the last attempt
    took:     how long bodies took that ran here
    """

    def __init__(self) -> None:
        self.plans: dict[str, Plan] = {}
        self.finished: dict[str, list[journal.Entry]] = {}
        self.ended: dict[str, journal.Entry] = {}
        self.took: Took = {}

    @property
    def unfinished(self) -> list[journal.Entry]:
        return [entry for entry in self.ended.values() if entry.status != "passed"]

    def counts(self) -> dict[str, int]:
        """How many cells ended how, as the last line of a run shows it."""
        names = ("measured", "replayed", *record.STATUSES[1:])
        words = Counter(
            entry.status if entry.status != "passed" else "replayed" if entry.record["replayed"] else "measured"
            for entry in self.ended.values()
        )
        return {name: words[name] for name in names if words[name]}

    def extras(self, folder: Path, to: Path) -> dict[str, Any]:
        """What a benchmark JSON holds beyond pytest-benchmark's own keys. The files of large series, which lie below
        the journal's `folder`, are copied into the folder `to` beside the JSON."""
        kept = {entry.key: copied(entry.series, folder, to) for entry in self.ended.values() if entry.series}
        return {
            "planned": list(self.plans),
            "unfinished": [row(entry) for entry in self.unfinished],
            "series": kept,
            "metrics": {entry.question: entry.metrics for entry in self.ended.values()},
            "studies": declarations(self.ended.values()),
        }


def declarations(entries: Iterable[journal.Entry]) -> dict[str, dict[str, Any]]:
    """By question: its declaration, with those claims alone that stood so when each of its cells was measured (a cell
    that is replayed was measured earlier)."""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        before, now = found.get(entry.question), entry.study
        claims = now.get("claims", {})
        if before is not None:
            claims = {name: mark for name, mark in claims.items() if before.get("claims", {}).get(name) == mark}
        found[entry.question] = (now or before or {}) | {"claims": claims}
    return found


def row(entry: journal.Entry) -> dict[str, Any]:
    """A cell that did not finish, as it stands in a benchmark JSON: like the others, without statistics."""
    return {
        "group": entry.group,
        "name": entry.cell.rpartition("::")[2],
        "fullname": entry.cell,
        "params": entry.params,
        "extra_info": entry.record,
    }


def hook_row(entry: journal.Entry) -> dict[str, Any]:
    """A cell as `pytest_mlexp_record` gets it: axes, what its rounds took, its record."""
    timed, timing = entry.durations, {}
    if timed:
        quarters = statistics.quantiles(timed, n=4, method="inclusive") if len(timed) > 1 else None
        iqr = quarters[2] - quarters[0] if quarters else None
        timing = {"wall_s": statistics.median(timed), "wall_iqr_s": iqr, "rounds": len(timed)}
    return {**entry.params, **timing, **entry.record}


def passed(path: Path) -> tuple[dict[str, list[journal.Entry]], list[int]]:
    """(the passed entries of each key, in order; the numbers of altered lines) of the journal at `path`."""
    contents = journal.read(path)
    finished: dict[str, list[journal.Entry]] = {}
    for entry in contents.entries:
        if entry.status == "passed" and entry.durations:
            finished.setdefault(entry.key, []).append(entry)
    return finished, contents.altered

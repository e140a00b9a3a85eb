"""The comparison of one cell in two revisions: its numbers, its verdict, its exit status."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlexp import journal
from mlexp.analysis import gate
from mlexp.analysis.gate import Verdict
from mlexp.record import CONTEXT

SAME_WORK = (*CONTEXT, "prompts_hash", "corpus_hash", "weights_hash")


@dataclass
class Comparison:
    """A cell in both revisions: `ratio` is head over base, the median over blocks, with its always-valid interval.

    `base_s`, `head_s`: seconds a round, the median of each step, in the order in which they were run; `base_mean_s`,
    `head_mean_s`: the means. `status`: the exit status that this cell alone would come to.
    """

    cell: str
    verdict: Verdict = Verdict.AMBIGUOUS
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    blocks: int = 0
    rounds: int = 0
    why: str = ""
    status: int = gate.OK
    base_s: list[float] = field(default_factory=list)
    head_s: list[float] = field(default_factory=list)
    base_mean_s: list[float] = field(default_factory=list)
    head_mean_s: list[float] = field(default_factory=list)

    @property
    def interval(self) -> tuple[float, float, float]:
        """(ratio, low, high) of a cell that was timed in both."""
        assert self.ratio is not None and self.low is not None and self.high is not None, f"{self.cell}: never timed"
        return self.ratio, self.low, self.high


def verdict_of(low: float, high: float, margin: float) -> Verdict:
    """The verdict of an interval of head over base."""
    if low > 1 + margin:
        return Verdict.WORSE
    if high < 1 / (1 + margin):
        return Verdict.BETTER
    return Verdict.SAME if low >= 1 / (1 + margin) and high <= 1 + margin else Verdict.AMBIGUOUS


def replicate(found: Comparison, again: Comparison) -> None:
    """Add a second pair of processes: the interval covers both pairs', and verdicts that differ make it AMBIGUOUS."""
    if again.blocks:
        (ratio, low, high), (ratio_again, low_again, high_again) = found.interval, again.interval
        found.ratio = math.sqrt(ratio * ratio_again)
        found.low, found.high = min(low, low_again), max(high, high_again)
    found.blocks += again.blocks
    for name in ("base_s", "head_s", "base_mean_s", "head_mean_s"):
        getattr(found, name).extend(getattr(again, name))
    if again.verdict != found.verdict:
        found.why = f"{found.verdict} in one pair of processes, {again.verdict} in another"
        found.verdict, found.status = Verdict.AMBIGUOUS, gate.OK


def apply_outcomes(found: Comparison, outcomes: Sequence[Mapping[str, Any]]) -> Comparison:
    """Take up how the cell ended in base and head: only a cell that passed in both has a verdict on its time, and one
    that passed in the base alone is WORSE."""
    base, head = (outcome["status"] for outcome in outcomes)
    if base == head == "passed":
        if not found.blocks:
            found.why, found.verdict = "times nothing", Verdict.SAME
        return found
    lost = base == "passed" or (base, head) == ("skipped", "failed")
    found.verdict = Verdict.WORSE if lost else Verdict.AMBIGUOUS
    found.status = gate.REGRESSION if lost else gate.OK if base == head == "skipped" else gate.INCOMPLETE
    found.why = f"{base} in the base, {head} in the head: {outcomes[1]['reason'] or outcomes[0]['reason']}"
    return found


def refuse_other_work(comparisons: Sequence[Comparison], journals: Sequence[Path]) -> None:
    """Cells whose journaled settings or inputs differ did not do the same work: they are not comparable."""
    base, head = ({e.cell: e.record for e in journal.read(path).entries} if path.exists() else {} for path in journals)
    for found in comparisons:
        one, other = base.get(found.cell, {}), head.get(found.cell, {})
        for name in SAME_WORK if one and other and found.blocks else ():
            if one.get(name) != other.get(name):
                found.verdict, found.status = Verdict.AMBIGUOUS, gate.INCOMPARABLE
                found.why = f"not comparable: {name} is {gate.differing(one.get(name), other.get(name))}"
                break


def exit_status(comparisons: Sequence[Comparison]) -> int:
    """Regression, then not comparable, then not everything compared."""
    statuses = {found.status for found in comparisons}
    worst = [status for status in (gate.REGRESSION, gate.INCOMPARABLE, gate.INCOMPLETE) if status in statuses]
    return worst[0] if worst else gate.OK if any(found.blocks for found in comparisons) else gate.INCOMPLETE

"""What the records say of a claim: its parts with their intervals, and the words for people and programs."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlexp.analysis.shown import amount, duration, span
from mlexp.analysis.stats import Estimate, Verdict, without_width
from mlexp.study import Claim

SUPPORTED, REFUTED, UNDECIDED, NOT_TESTED = Verdict
EXACT = "counted"


def counted(value: float, n: int = 1) -> Estimate:
    """A quantity without noise: what a program counts."""
    return Estimate(float(value), float(value), float(value), n, EXACT)


@dataclass(frozen=True)
class Part:
    """One quantity of a claim with the interval that decides: on the log scale where `log`; `sd` of a block's value."""

    label: str
    metric: str
    log: bool
    estimate: Estimate
    verdict: Verdict
    low: float | None = None  # the bounds of the statement
    high: float | None = None
    sd: float = math.nan
    is_level: bool = False  # a quantity of one arm, not a difference
    of_blocks: bool = True  # the estimate is over the study's replicates
    where: str = ""  # its level, or its step, in words
    arms: str = ""  # its contrast in words

    @property
    def without_spread(self) -> bool:
        """Whether it is open because all of its values are equal: no number of them gives it an interval."""
        return self.verdict == UNDECIDED and self.estimate.method != EXACT and without_width(self.estimate)

    @property
    def distance(self) -> float:
        """From the estimate to the nearest bound."""
        ends = [abs(self.estimate.value - end) for end in (self.low, self.high) if end is not None]
        return min(ends, default=math.inf)

    def as_json(self) -> dict[str, object]:
        """As plain values; an open end is null."""
        ends = {"estimate": self.estimate.value, "low": self.estimate.low, "high": self.estimate.high,
                "above": self.low, "below": self.high}  # fmt: skip
        known = {name: value if value is not None and math.isfinite(value) else None for name, value in ends.items()}
        return {"quantity": self.label, "metric": self.metric, "log": self.log, **known, "n": self.estimate.n,
                "verdict": str(self.verdict), "method": self.estimate.method}  # fmt: skip

    def text(self, unit: str) -> str:
        return amount(self.estimate.value, unit, self.log, self.is_level)

    def interval_text(self, unit: str) -> str:
        return span(self.estimate.low, self.estimate.high, unit, self.log, self.is_level)


@dataclass(frozen=True)
class Finding:
    """What the records say of one claim. `more_blocks`: how many more replicates would decide an undecided one."""

    id: str
    claim: Claim
    verdict: Verdict
    confidence: float
    parts: tuple[Part, ...] = ()
    why: str = ""  # of not tested: what is missing
    unit: str = "blocks"  # what blocks are: seeds, prompts
    one: str = "block"  # what a single one is
    registered: bool = False
    logic: str = ""  # how the verdict follows from the parts, by number: all(1, any(2, 3)), switch(1, 2, 3)
    more_blocks: int | None = None
    more_seconds: float | None = None
    units: Mapping[str, str] = field(default_factory=dict)

    @property
    def rank(self) -> str:
        """How the claim counts: primary, secondary, or check (of the implementation)."""
        return "check" if self.claim.check else "primary" if self.claim.primary else "secondary"

    @property
    def deciding(self) -> Part | None:
        """The part that a reader should see: of those that decide alone the surest, of those that only all together
        decide, or leave it open, the nearest to its bound."""
        named = [part for part in self.parts if part.verdict == self.verdict]
        if not named:
            return self.parts[0] if self.parts else None
        alone = self.verdict != UNDECIDED and len(named) < len(self.parts)
        return (max if alone else min)(named, key=_slack)

    @property
    def effect(self) -> str:
        part = self.deciding
        return part.text(self.units.get(part.metric, "")) if part else ""

    @property
    def interval(self) -> str:
        part = self.deciding
        if part is None or part.estimate.method == EXACT:
            return ""
        return part.interval_text(self.units.get(part.metric, ""))

    @property
    def extent(self) -> str:
        """What the effect is of: of a ratio, which arm over which; of several quantities, which one, and how all of
        them ended: at width 11 (1 of 4 undecided, 3 supported)."""
        part = self.deciding
        if part is None:
            return ""
        over = part.arms if part.log else ""
        if len(self.parts) < 2:
            return over
        alone = part.where and sum(other.where == part.where for other in self.parts) == 1
        which = f"{over} {part.where}".strip() if alone else part.label if over else f"for {part.label}"
        counts = Counter(str(other.verdict) for other in self.parts)
        n, total = counts.pop(str(part.verdict)), len(self.parts)
        ended = f"{n} of {total} {part.verdict}" if counts else f"all {total} {part.verdict}"
        rest = [f"{counts[word]} {word}" for word in Verdict if counts[word]]
        return f"{which} ({', '.join([ended, *rest])})"

    @property
    def reason(self) -> str:
        """What was compared, over how many blocks, at which confidence; or what is missing."""
        part = self.deciding
        if part is None:
            return self.why
        exact = part.estimate.method == EXACT
        blocks = (
            f"{part.estimate.n} {self.unit}" if part.of_blocks else f"n = {part.estimate.n}, {part.estimate.method}"
        )
        basis = [EXACT] if exact else [blocks, f"{100 * self.confidence:.4g} % interval"]
        phrases = [part.label, *basis]
        if len(self.parts) > 1:
            counts = {word: sum(p.verdict == word for p in self.parts) for word in (SUPPORTED, REFUTED, UNDECIDED)}
            phrases.append(
                f"one of {len(self.parts)} quantities (" + ", ".join(f"{n} {w}" for w, n in counts.items() if n) + ")"
            )
        if self.verdict == UNDECIDED:
            phrases.append(self.no_spread or self.to_decide)
        return "; ".join(filter(None, phrases))

    @property
    def no_spread(self) -> str:
        """That an open quantity has equal values alone, which no interval decides; empty where none has."""
        part = next((part for part in self.parts if part.without_spread), None)
        if self.verdict != UNDECIDED or part is None:
            return ""
        of = f" of {part.label}" if len(self.parts) > 1 else ""
        values = f"{part.estimate.n} {self.unit if part.of_blocks else 'values'}"
        value = part.text(self.units.get(part.metric, ""))
        return f"no spread in {values}{of}: every value is {value}; more of them cannot decide it by an interval"

    @property
    def to_decide(self) -> str:
        """How many more blocks would decide, and how long they would take on this machine; empty where no number of
        them can, for want of spread."""
        if self.no_spread:
            return ""
        if self.more_blocks is None:
            of_blocks = any(part.of_blocks for part in self.parts if part.verdict == UNDECIDED)
            return "no number of replicates below 10,000 would decide" if of_blocks else ""
        took = f", about {duration(self.more_seconds)} of timed work" if self.more_seconds else ""
        unit = self.one if self.more_blocks == 1 else self.unit
        return f"about {self.more_blocks} more {unit} would decide{took}"

    def as_json(self) -> dict[str, object]:
        """Everything, as plain values; the schema stands in results/README.md."""
        return {
            "id": self.id,
            "claim": self.claim.text,
            "source": self.claim.source,
            "about": self.claim.about,
            "rank": self.rank,
            "registered": self.registered,
            "fingerprint": self.claim.fingerprint,
            "verdict": str(self.verdict),
            "confidence": self.confidence,
            "logic": self.logic,
            "needs": self.why or None,
            "more_blocks": self.more_blocks,
            "parts": [part.as_json() for part in self.parts],
        }


def _slack(part: Part) -> float:
    width = part.estimate.high - part.estimate.low
    return part.distance / width if width else math.inf

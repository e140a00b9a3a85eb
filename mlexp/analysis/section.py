"""A question in one context, as the page and `summary.md` have it; light enough to be read back from a cache."""

import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mlexp.analysis.markup import code_spans
from mlexp.analysis.verdict import Verdict


@dataclass
class Section:
    """A question in one context: what its report found, and what stands around it."""

    out: Any  # its Output, or what the cache has of one
    folder: Path  # below the results folder
    records: int
    unfinished: list[tuple[str, str, str]]  # cell, status, reason
    environment: dict[str, str]
    replicates: str = ""  # how many, in words
    asks: str = ""  # the question as its README puts it
    history: str = ""  # how many commits and changes; empty where there are too few
    disturbed: list[tuple[str, str]] = field(default_factory=list)  # cell, by what; one row where all were

    @property
    def grid(self) -> str:
        """What of the grid is missing; empty where nothing is."""
        return str(self.out.grid)

    @property
    def basis(self) -> str:
        """What the answer rests on: how many replicates and cells, at which scale, what is not the real thing."""
        scale = self.out.context.get("scale")
        cells = f"{self.records} cell{'' if self.records == 1 else 's'}"
        parts = [self.replicates, cells, f"{scale} scale" if scale else "", *self.notes]
        return " · ".join(part for part in parts if part)

    @property
    def answer(self) -> Markup:
        """The answer as the page has it."""
        return code_spans(self.out.answer)

    @property
    def short(self) -> str:
        """The context in few words: scale, weights, machine, whether settings were changed."""
        context = self.out.context
        weights = str(context.get("weights") or "").partition(" ")[0]
        machine = str(context.get("machine") or "").partition(",")[0]
        parts = [context.get("scale"), weights, machine, "set" if context.get("overrides") else ""]
        return " · ".join(str(part) for part in parts if part) or "records"

    @functools.cached_property
    def ids(self) -> dict[str, str]:
        """An id on the page for every claim, figure and table by its name: the same in every run."""
        names = [verdict["id"] for verdict in self.out.verdicts]
        names += [block["name"] for block in self.out.blocks if "name" in block]
        found: dict[str, str] = {}
        for name in names:
            id = f"{self.out.mark}-" + (re.sub(r"[^a-zA-Z0-9]+", "-", name).strip("-") or "claim")
            while id in found.values():
                id += "-2"
            found.setdefault(name, id)
        return found

    @property
    def lead(self) -> dict[str, Any] | None:
        """The figure that stands with the answer: the one that the report names, else its first."""
        figures = [each for each in self.out.blocks if each["kind"] == "figure" and each["shown"] == "open"]
        return next((block for block in figures if block["name"] == self.out.lead), figures[0] if figures else None)

    @property
    def notes(self) -> list[str]:
        """What a reader must know before believing anything."""
        return [*self.figure_notes, *([self.out.remarks] if self.out.remarks else [])]

    @property
    def figure_notes(self) -> list[str]:
        """What of that stands at every figure: how the cells were timed is said once a context."""
        dirty = "measured with uncommitted code (dirty)" if self.out.dirty else ""
        lost = f"did not finish: {len(self.unfinished)}" if self.unfinished else ""
        return [note for note in (self.out.stand_ins, self.grid, dirty, lost) if note]

    @property
    def tally(self) -> dict[str, int]:
        """How many hypotheses ended with which verdict."""
        return tally(verdict for verdict in self.out.verdicts if "check" not in verdict["marks"])

    @property
    def checks(self) -> dict[str, int]:
        """The same of engineering checks."""
        return tally(verdict for verdict in self.out.verdicts if "check" in verdict["marks"])


def tally(verdicts: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many of each verdict there are, in the order of `Verdict`."""
    counts = Counter(verdict["verdict"] for verdict in verdicts)
    return {str(word): counts[word] for word in Verdict if counts[word]}

"""Comparisons as text: for a terminal, for a pull-request comment, for programs."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from mlexp.analysis import gate
from mlexp.analysis.gate import Verdict
from mlexp.analysis.markup import markdown_table

from .comparison import Comparison

HEADS = ("", "verdict", "cell", "head / base", "interval", "blocks", "base s", "head s", "why")


def headline(comparisons: Sequence[Comparison], status: int) -> str:
    counts = ", ".join(f"{sum(found.verdict == verdict for found in comparisons)} {verdict}" for verdict in Verdict)
    return f"{gate.STATUS_WORDS[status]}: {len(comparisons)} cells; {counts}"


def text(comparisons: Sequence[Comparison], status: int) -> str:
    """For a terminal, the headline last."""
    return f"{gate.text_table(HEADS, map(row_texts, _worst_first(comparisons)))}\n{headline(comparisons, status)}"


def markdown(comparisons: Sequence[Comparison], status: int) -> str:
    """For a pull-request comment."""
    rows = [[*row[:2], f"`{row[2]}`", *row[3:]] for row in map(row_texts, _worst_first(comparisons))]
    title = f"### {gate.MARK[status == gate.OK]} mlexp ab: {headline(comparisons, status)}"
    return f"{title}\n\n{markdown_table(HEADS, rows)}"


def as_json(comparisons: Sequence[Comparison], status: int) -> str:
    """Everything, the steps too; what is infinite or unknown is null."""
    rows = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(found).items()}
        for found in _worst_first(comparisons)
    ]
    return json.dumps({"status": status, "headline": headline(comparisons, status), "rows": rows}, allow_nan=False)


def row_texts(found: Comparison) -> list[str]:
    """A comparison under HEADS."""
    fail = "FAIL" if found.status in (gate.REGRESSION, gate.INCOMPLETE, gate.INCOMPARABLE) else ""
    numbers = ["", "", "", "", ""]
    if found.blocks:
        ratio, low, high = found.interval
        medians = [f"{float(np.median(side)):.4g}" for side in (found.base_s, found.head_s)]
        interval = f"{low:.3f} to {high:.3f}" if math.isfinite(high) else "none yet"
        numbers = [f"{ratio:.3f}", interval, str(found.blocks), *medians]
    return [fail, found.verdict, gate.short(found.cell), *numbers, found.why]


def _worst_first(comparisons: Sequence[Comparison]) -> list[Comparison]:
    order = list(Verdict)
    return sorted(comparisons, key=lambda c: (c.status != gate.REGRESSION, order.index(c.verdict), -(c.ratio or 0)))

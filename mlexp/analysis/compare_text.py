"""A comparison as text: for a terminal, for a pull request, for programs."""

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlexp.analysis import gate
from mlexp.analysis.gate import Verdict
from mlexp.analysis.markup import markdown_table

if TYPE_CHECKING:
    from mlexp.analysis.compare import Comparison


def text(found: "Comparison") -> str:
    """For a terminal: what is not SAME, the worst first, and the headline last, where the eye is."""
    shown, left = _table_rows(found)
    parts = [*found.notes, *([gate.text_table(HEADS, shown)] if shown else []), left, found.headline]
    return "\n".join(part for part in parts if part)


def markdown(found: "Comparison") -> str:
    """For a pull-request comment: the headline first, the table below it."""
    shown, left = _table_rows(found, code="`")
    parts = [f"### {gate.MARK[found.status == gate.OK]} mlexp compare: {found.headline}"]
    parts += [markdown_table(HEADS, shown)] if shown else []
    parts += [left] if left else []
    parts += ["\n".join(f"- {note}" for note in found.notes)] if found.notes else []
    return "\n\n".join(parts)


def as_json(found: "Comparison") -> str:
    """Everything, for programs: one object; numbers that do not exist are null."""
    rows = [{name: _plain(value) for name, value in row.items()} for row in found.rows.to_dict("records")]
    whole = {"status": found.status, "headline": found.headline, "cells": found.cells, "notes": found.notes}
    return json.dumps(whole | {"rows": rows}, allow_nan=False)


HEADS = ("", "verdict", "cell", "metric", "base", "head", "change", "95 % interval", "n", "why")


def _table_rows(found: "Comparison", code: str = "") -> tuple[list[list[str]], str]:
    """The first rows that are not SAME, as texts, and a line for those left out."""
    rows = found.rows[found.rows["verdict"] != Verdict.SAME]
    shown = [_row_texts(row, code) for row in rows.head(gate.SHOWN_ROWS).itertuples(index=False)]
    left = len(rows) - len(shown)
    return shown, f"{left} more rows are not SAME: --json has all" if left else ""


def _row_texts(row: Any, code: str) -> list[str]:
    change = _percent(row.change, row.points)
    interval = f"{_percent(row.low, row.points)} to {_percent(row.high, row.points)}" if math.isfinite(row.low) else ""
    numbers = [_number(value) for value in (row.base, row.head)]
    n = str(row.n) if row.n > 1 else ""
    return [
        "FAIL" if row.fails else "",
        row.verdict,
        f"{code}{gate.short(row.cell)}{code}",
        row.metric,
        *numbers,
        change,
        interval,
        n,
        row.why,
    ]


def _percent(change: float, points: bool) -> str:
    if not math.isfinite(change):
        return ""
    return f"{change:+.3g}" if points else f"{100 * change:+.3g} %" if change else "0 %"


def _number(value: object) -> str:
    if value is None or value is pd.NA or value != value:
        return ""
    return (
        f"{value:,.10g}" if isinstance(value, int | float | np.number) and not isinstance(value, bool) else str(value)
    )


def _plain(value: object) -> object:
    """A scalar that JSON has."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)) else value

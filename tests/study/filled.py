"""One context through the real path, `sections.fill`: tables as frames, figures as they are, and nothing drawn.

What a claim's intervals must be is worked out here by scipy from the values of each block.
"""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mlexp.analysis.output import Output, bars_of
from mlexp.analysis.sections import fill, report_of, study_in
from tests.command import ROOT


class Filled(Output):
    """An output whose tables and figures stay what the report gave."""

    def __init__(self, question, context, series):
        super().__init__(question, context, pd.DataFrame(), series)
        self.tables, self.figures, self.captions = {}, {}, {}

    def table(self, df, name, caption=""):
        super().table(df, name, caption)
        self.tables[name] = df

    def figure(self, fig, name, finding, measure="", bars="", n="", shown="open"):
        assert bars or not bars_of(fig), name
        self.figures[name], self.captions[name] = fig, f"{finding}. {measure}. {bars}"

    @property
    def headings(self):
        return [block["text"] for block in self.blocks if block["kind"] == "heading"]

    @property
    def words(self):
        return "\n".join(block["text"] for block in self.blocks if block["kind"] in ("heading", "text"))


def filled(question, records, series=None, report=True, **context):
    """What the report of a question gives of these records; `series`: a function of the key, or a table by key;
    without `report`, claims and answer alone."""
    folder = ROOT / "benches" / question
    records = records.copy()
    for name, value in {"wall_s": 1.0, "rounds": 1, "settings": "{}", "device": "cpu"}.items():
        if name not in records:
            records[name] = value
    if "key" not in records:
        records["key"] = [f"k{i}" for i in range(len(records))]
    series = series or {}
    context = {"device": "cpu", "dtype": "float32", "scale": "full", "weights": "pretrained"} | context
    out = Filled(question, context, series if callable(series) else lambda key: series.get(key, {}))
    fill(out, records, study_in(folder), report_of(folder) if report else lambda *_: None, {}, [])
    return out


def words(out):
    """The verdicts by claim."""
    return {id: str(found.verdict) for id, found in out.findings.items()}


def settings(**values):
    return json.dumps(values)


def interval(values, confidence=0.95):
    """(mean, low, high) by scipy's t test."""
    values = np.asarray(values, dtype=float)
    ends = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    return values.mean(), ends.low, ends.high


def geometric(ratios, confidence=0.95):
    """The same of ratios, on their logarithms."""
    return tuple(np.exp(interval(np.log(np.asarray(ratios, dtype=float)), confidence)))


def check(found, quantities, bounds, alpha=0.05):
    """A claim whose every quantity must lie within its bounds: quantities name -> values by block; bounds: one pair for
    all, or one for each name. Intervals, number of blocks, confidence and verdict are worked out by scipy."""
    confidence = 1 - alpha / len(quantities)
    assert found.confidence == pytest.approx(confidence), found.id
    assert [part.label for part in found.parts] == list(quantities), found.id
    inside, outside = [], []
    for part, values in zip(found.parts, quantities.values(), strict=True):
        want = interval(values, confidence)
        assert part.estimate[:4] == pytest.approx((*want, len(values))), part.label
        low, high = bounds[part.label] if isinstance(bounds, dict) else bounds
        assert (part.low, part.high) == tuple(None if math.isinf(end) else pytest.approx(end) for end in (low, high))
        inside.append(low < want[1] and want[2] < high)
        outside.append(want[2] <= low or want[1] >= high)
    assert str(found.verdict) == ("refuted" if any(outside) else "supported" if all(inside) else "undecided"), found.id

"""What the arms of a study reached and cost, as one tidy table: a row a level, arm and metric, with intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from mlexp.analysis import results, sections
from mlexp.analysis.data import Data
from mlexp.analysis.files import Loaded
from mlexp.analysis.output import stand_ins
from mlexp.analysis.stats import known_interval
from mlexp.analysis.tables import cells_of, levels_of
from mlexp.record import Metric, metrics_of


class Summary(NamedTuple):
    """The arms of one question in one context along one curve axis (empty: without one).

    `table` has the columns level, arm, metric, unit, value (the mean over replicates), low, high (its 95 % t interval,
    NaN of a single one), n. `about` is what a reader must know: where it was measured, stand-ins, an unfinished grid.
    """

    question: str
    arm: str
    axis: str
    replicates: tuple[str, ...]
    about: str
    table: pd.DataFrame


def tidy(found: Sequence[Summary]) -> pd.DataFrame:
    """All of them in one table, each row with its question, context and axis."""
    parts = []
    for each in found:
        part = each.table.copy()
        for i, name in enumerate(("question", "about", "axis")):
            part.insert(i, name, getattr(each, name))
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def summaries_of(
    name: str, folder: Path | None, loaded: Loaded, columns: Sequence[str] = (), whole: bool = False
) -> list[Summary]:
    """The summaries of one question, the context with most records first; none where nothing declares its arms.

    `columns`: metrics in place of the study's outcome and costs; `whole`: beside these all metrics of the question's
    own. Raises ValueError for a metric that is not there.
    """
    rows = [row for row in loaded.rows if row.values.get("question") == name]
    own = loaded.metrics.get(name, {})
    declared = sections.declaration(folder, rows, own)
    if declared is None:
        return []
    metrics = metrics_of(own | dict(declared.metrics))
    found = []
    for context, group in results.contexts(results.latest(results.frame(Loaded(rows, {name: own})))):
        passed = group[group["status"] == "passed"].reset_index(drop=True)
        if passed.empty or declared.arm not in passed:
            continue
        data = Data(declared, sections.derived(declared, passed), metrics, {})
        about = _about(context, group)
        for axis in declared.over or ("",):
            if len(data.rows(axis)):
                table = arm_summary(data, axis, chosen(data, columns, whole), metrics)
                if len(table):
                    found.append(Summary(name, declared.arm, axis, declared.replicates, about, table))
    return found


def arm_summary(data: Data, axis: str, names: Sequence[str], metrics: Mapping[str, Metric]) -> pd.DataFrame:
    """A row a level, arm and metric: the mean over replicates with its interval."""
    rows = []
    for level in levels_of(data, axis):
        for arm in data.arms:
            cells = cells_of(data, axis, level, arm)
            for name in names if len(cells) else ():
                values = cells[name].dropna()
                unit = metrics[name].unit if name in metrics else ""
                if len(values):
                    rows.append((level, arm, name, unit, *known_interval(values), len(values)))
    return pd.DataFrame(rows, columns=["level", "arm", "metric", "unit", "value", "low", "high", "n"])


def chosen(data: Data, columns: Sequence[str], whole: bool = False) -> list[str]:
    """The metrics asked for; else the outcome and what the arms cost, and where `whole` the question's own metrics, as
    far as they were recorded."""
    numeric = [str(name) for name in data.records.select_dtypes("number") if data.records[name].notna().any()]
    unknown = [name for name in columns if name not in numeric]
    if unknown:
        raise ValueError(f"unknown metric {unknown[0]!r}; choose from {', '.join(numeric)}")
    own = data.study.metrics if whole else ()
    wanted = columns or dict.fromkeys((data.study.outcome, *data.study.costs, *own))
    return [name for name in wanted if name in numeric]


def _about(context: Mapping[str, object], group: pd.DataFrame) -> str:
    dirty = "uncommitted code (dirty)" if group["dirty"].any() else ""
    parts = (results.describe(context), stand_ins(context), sections.grid_note(group), dirty)
    return " · ".join(filter(None, parts))

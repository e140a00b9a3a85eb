"""The finished records of a study in one context, as tables of blocks x (level, arm).

A block is one value of each replicate axis (a seed, a prompt); a level is a value of a curve axis (a size).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from mlexp.analysis import multiple, plots, results
from mlexp.analysis.stats import Estimate
from mlexp.record import Metric
from mlexp.study import Levels, Study

ONE = ""  # the level of a study without a curve axis


class Missing(Exception):
    """Something that a claim needs and the records lack; the message names it."""


@dataclass
class Data:
    """The finished records of a study in one context, as tables of blocks x (level, arm)."""

    study: Study
    records: pd.DataFrame
    metrics: Mapping[str, Metric]
    settings: Mapping[str, Any]
    estimates: Mapping[str, Callable[[float], Estimate] | str] = field(default_factory=dict)
    _made: dict[tuple[str, ...], Any] = field(default_factory=dict)  # tables and the like, by what they are of

    def axis(self, levels: Levels) -> str:
        """The curve axis that these levels are of; empty where the study has none."""
        return levels.axis or (self.study.over[0] if self.study.over else "")

    @property
    def arms(self) -> list[str]:
        """The arms that have records: those declared in their order, then those that the study has never heard of."""
        column = self.records.get(self.study.arm, pd.Series(dtype=object))
        present = dict.fromkeys(column.dropna().astype(str))
        return [
            *(name for name in self.study.arms if name in present),
            *(n for n in present if n not in self.study.arms),
        ]

    @property
    def looks(self) -> dict[str, plots.Look]:
        """How each arm is drawn, in every figure alike."""
        return plots.looks([*self.study.arms, *self.arms])

    def blocks_in_words(self) -> str:
        """How many replicates there are, in words: 5 seeds."""
        grids = [self.rows(axis) for axis in (*self.study.over, "") if not axis or axis in self.records]
        records = next((rows for rows in grids if len(rows)), self.records)
        counts = {name: records[name].nunique() for name in self.study.replicates if name in records}
        return ", ".join(f"{n} {name}{'' if n == 1 else plural(name)}" for name, n in counts.items() if n)

    def rows(self, axis: str) -> pd.DataFrame:
        """The records of the grid that has this curve axis, under the study's fixed conditions."""
        if ("rows", axis) not in self._made:
            self._made["rows", axis] = self._rows(axis)
        found: pd.DataFrame = self._made["rows", axis]
        return found

    def _rows(self, axis: str) -> pd.DataFrame:
        keep = pd.Series(True, self.records.index)
        for name in (axis, *self.study.replicates):
            if name:
                keep &= self.records[name].notna() if name in self.records else False
        for name, wanted in self.study.fixed.items():
            present = list(dict.fromkeys(self.records.loc[keep, name].dropna())) if name in self.records else []
            if present:
                keep &= self.records[name] == (wanted if wanted in present else present[0])
        rows = self.records[keep]
        rows.attrs = {}  # pandas copies them, deeply, with every step
        return rows

    def under(self, **changes: Any) -> "Data":
        """The same records under other terms: fields of the study replaced."""
        return replace(self, study=replace(self.study, **changes), _made={})

    def with_records(self, records: pd.DataFrame) -> "Data":
        """Other records of the same study."""
        return replace(self, records=records, _made={})

    def table(self, metric: str, axis: str) -> pd.DataFrame:
        """Blocks x (level, arm) of a metric, NaN where a cell is missing. Raises ValueError for two records in a cell,
        and for cells of a block that did not have the same inputs."""
        if ("table", metric, axis) not in self._made:
            rows = self.rows(axis)
            if len(rows) and metric not in rows:
                raise Missing(f"{metric} is not recorded")
            known = {axis, self.study.arm, *self.study.replicates, *self.study.fixed}
            others = [name for name in self.records.attrs.get("axes", []) if name in rows and name not in known]
            self._made["table", metric, axis] = blocks(
                rows, self.study.arm, axis, self.study.replicates, metric, (*others, *results.SAME_WORK)
            )
        found: pd.DataFrame = self._made["table", metric, axis]
        return found

    def columns(self, metric: str, axis: str) -> dict[tuple[str, str], np.ndarray]:
        """The columns of that table, by (level, arm): finding one in the table itself takes a hundred times as long."""
        if ("columns", metric, axis) not in self._made:
            table = self.table(metric, axis)
            found = zip(columns_of(table), table.to_numpy(float).T, strict=True)
            self._made["columns", metric, axis] = dict(found)
        columns: dict[tuple[str, str], np.ndarray] = self._made["columns", metric, axis]
        return columns

    def cells(self, axis: str, level: str, arm: str) -> pd.DataFrame:
        """The records of an arm at a level of a curve axis."""
        if ("cells", axis) not in self._made:
            rows = self.rows(axis)
            keys = [rows[axis].astype(str) if axis else pd.Series(ONE, rows.index), rows[self.study.arm].astype(str)]
            self._made["cells", axis] = dict(list(rows.groupby(keys)))
        found: pd.DataFrame | None = self._made["cells", axis].get((level if axis else ONE, arm))
        return self.rows(axis).iloc[:0] if found is None else found

    def layout(self, metric: str) -> multiple.Pool:
        """The arms of a study of independent arms as one-way layout."""
        if ("layout", metric) not in self._made:
            table = self.table(metric, "")
            samples = {arm: table[ONE, arm].dropna().to_numpy(float) for _, arm in columns_of(table)}
            try:
                self._made["layout", metric] = multiple.pool(samples)
            except ValueError as error:
                raise Missing(str(error)) from None
        found: multiple.Pool = self._made["layout", metric]
        return found

    def order(self, axis: str) -> list[str]:
        """The levels of a curve axis that have records, in order; one nameless level where there is no such axis."""
        if ("order", axis) not in self._made:
            self._made["order", axis] = ordered(self.rows(axis), axis) if axis else [ONE]
        found: list[str] = self._made["order", axis]
        return found

    def levels(self, wanted: Levels, arms: Iterable[str] = ()) -> list[str]:
        """The levels that are meant, in order; `arms`: those that a complete level must have. Raises Missing where the
        records have none of them."""
        axis = self.axis(wanted)
        if not axis:
            return [ONE]
        rows, present = self.rows(axis), self.order(axis)
        if wanted.place == "upper half" and len(present) < 3:
            raise Missing(f"three values of {axis} are needed, there are {len(present)}")
        found = chosen(present, wanted)
        if wanted.place == "complete":
            found = [name for name in found if set(arms) <= set(rows.loc[rows[axis] == name, self.study.arm])]
            if not found:
                raise Missing(f"no {axis} has all of {', '.join(arms)}")
        absent = [name for name in wanted.names if name not in present and not wanted.place]
        if absent:
            raise Missing(f"no {axis} {', '.join(absent)}")
        if not found:
            raise Missing(f"no {axis} {meaning(wanted)}")
        return found

    def sizes(self, axis: str, field_: str, levels: list[str]) -> list[float]:
        """How large each level is: the smallest value of a record's field there, or the number in its name."""
        if not field_:
            return [number(level) for level in levels]
        smallest = self.rows(axis).groupby(axis)[field_].min()
        return [float(smallest[level]) for level in levels]


def plural(name: str) -> str:
    """The ending of several: seeds, batches."""
    return "es" if name.endswith(("s", "x", "ch", "sh")) else "s"


def columns_of(table: pd.DataFrame) -> list[tuple[str, str]]:
    """The columns of a table of blocks: (level, arm)."""
    return [(str(column[0]), str(column[1])) for column in table.columns.to_flat_index()]


def blocks(
    rows: pd.DataFrame, arm: str, axis: str, replicates: Iterable[str], metric: str, same: Iterable[str]
) -> pd.DataFrame:
    """`metric` as a table of blocks x (level, arm), checked for double cells and for what all arms of a block must
    share (`same`, as far as it is recorded)."""
    replicates = list(replicates)
    if rows.empty:
        return pd.DataFrame()
    rows = rows.assign(_level=rows[axis].astype(str) if axis else ONE, _arm=rows[arm].astype(str))
    keys = [*replicates, "_level"]
    double = rows[rows.duplicated([*keys, "_arm"])]
    if len(double):
        first = double.iloc[0]
        raise ValueError(
            f"several records of {first['_arm']} in block {first[[*replicates]].to_dict()}"
            f"{f' at {axis} ' + first['_level'] if axis else ''}: add the axis that tells them apart to the study"
        )
    for name in (name for name in same if name in rows and rows[name].nunique() > 1):
        differing = rows.groupby(keys, sort=False)[name].nunique(dropna=False)
        if (differing > 1).any():
            block = differing.index[int((differing > 1).argmax())]
            raise ValueError(f"the arms of block {block} did not do the same work: {name} differs")
    values = pd.to_numeric(rows[metric]).astype(float)
    table = rows.assign(_value=values).pivot(index=replicates, columns=["_level", "_arm"], values="_value")
    return table.dropna(how="all").dropna(axis=1, how="all")


def ordered(rows: pd.DataFrame, axis: str) -> list[str]:
    """The levels of a curve axis from small to large: by number of parameters where that tells them apart and their
    names hold no number, else by the number in the name."""
    names = list(dict.fromkeys(rows[axis].astype(str))) if axis in rows else []
    if all(re.search(r"\d", name) for name in names) and len({number(name) for name in names}) == len(names):
        return sorted(names, key=number)
    if "n_params" in rows and rows["n_params"].notna().any():
        smallest = rows.groupby(axis)["n_params"].min()
        return sorted(names, key=lambda name: float(smallest[name]))
    return names


def number(level: str) -> float:
    """The number in a level's name: n1000 -> 1000. Raises ValueError where there is none."""
    match = re.search(r"\d+(?:_\d+)?", level)
    if not match:
        raise ValueError(f"level {level!r} holds no number")
    return float(match[0].replace("_", "."))


def chosen(present: list[str], wanted: Levels) -> list[str]:
    """Which of the levels present are meant."""
    if wanted.place == "upper half":
        middle = len(present) // 2
        if wanted.names and wanted.names[0] in present:
            middle = min(middle, present.index(wanted.names[0]))
        return present[middle:]
    found = [name for name in present if not wanted.names or name in wanted.names]
    if wanted.low is not None:
        found = [name for name in found if number(name) >= wanted.low]
    if wanted.high is not None:
        found = [name for name in found if number(name) < wanted.high]
    if wanted.place == "first":
        return found[:1]
    return found[-1:] if wanted.place == "last" else found


def meaning(wanted: Levels) -> str:
    """A selection of levels in words."""
    ends = [f"of at least {wanted.low:g}" if wanted.low is not None else "",
            f"below {wanted.high:g}" if wanted.high is not None else ""]  # fmt: skip
    return " and ".join(filter(None, ends)) or "at all"

"""Arms against a baseline, block by block, with intervals over replicates: what a reader of records asks first."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from mlexp.analysis.results import axes, paired
from mlexp.analysis.stats import known_interval, known_ratio

INCOMPLETE = ("raise", "drop")
OWN = ("value", "baseline", "difference", "ratio")  # columns of the result, beside the axes
SHOWN = 3  # incomplete blocks that an error names


@dataclass(frozen=True, eq=False)
class Pairs:
    """Arms beside a baseline, as `mlexp.pairs` finds them.

    Attributes:
        metric: what is compared, in the unit that its records have.
        axis: the axis whose values are the arms.
        baseline: the arm that the others are compared with.
        replicates: the axes whose values are repetitions; intervals are over them.
        blocks: a row a block and arm. Columns: the axes of a block, the arm, `value` and `baseline` (in the unit of the
            metric), `difference` (value - baseline), `ratio` (value / baseline, NaN where one of them is 0 or less).
    """

    metric: str
    axis: str
    baseline: str
    replicates: tuple[str, ...]
    blocks: pd.DataFrame
    incomplete: Literal["raise", "drop"] = "raise"

    def differences(self, by: str | Sequence[str] | None = None, confidence: float = 0.95) -> pd.DataFrame:
        """Each arm minus the baseline, in the unit of the metric: the mean over replicates with Student's t interval.

        Args:
            by: the axes whose values get a row each; None: all of a block but the replicates; `()`: none, then the
                levels are averaged within each replicate first.
            confidence: of each interval by itself; nothing allows for the number of rows.

        Returns:
            A row a level and arm, in the columns `by`, the arm, `value`, `low`, `high`, `n` (how many replicates; it is
            called `replicates` where `n` is an axis). Of a single replicate the interval is not known: NaN.

        Raises:
            ValueError: for an axis that a block does not have, and for a replicate that lacks a level.
        """
        return self._over_replicates(by, "difference", confidence)

    def ratios(self, by: str | Sequence[str] | None = None, confidence: float = 0.95) -> pd.DataFrame:
        """Each arm over the baseline, without unit: the geometric mean over replicates, its interval Student's t on
        logarithms. Arguments and columns as in `differences`.

        Raises:
            ValueError: as `differences`; and where a value of the metric is 0 or less, which it names.
        """
        wrong = self.blocks[self.blocks["ratio"].isna()]
        if len(wrong):
            first = wrong.iloc[0]
            side = first[self.axis] if not first["value"] > 0 else self.baseline
            value = first["value"] if not first["value"] > 0 else first["baseline"]
            block = _shown({name: first[name] for name in self._axes})
            raise ValueError(
                f"{self.metric} of {side} is {value:.6g} in block {block}, and in {len(wrong)} of {len(self.blocks)} "
                "pairs one is 0 or less: a ratio is of values above 0; take differences()"
            )
        return self._over_replicates(by, "ratio", confidence)

    @property
    def _axes(self) -> list[str]:
        return [str(name) for name in self.blocks.columns if name not in (*OWN, self.axis)]

    def _over_replicates(self, by: str | Sequence[str] | None, column: str, confidence: float) -> pd.DataFrame:
        levels = [name for name in self._axes if name not in self.replicates]
        kept = levels if by is None else [by] if isinstance(by, str) else list(by)
        unknown = [name for name in kept if name not in levels]
        if unknown:
            allowed = ", ".join(levels) or "nothing: a block has no further axis"
            why = ", which is a replicate: intervals are over replicates" if unknown[0] in self.replicates else ""
            raise ValueError(f"by is {unknown[0]!r}{why}; choose from {allowed}")
        averaged = [name for name in levels if name not in kept]
        rows = []
        for values, group in self.blocks.groupby([*kept, self.axis], sort=False):
            sample = self._one_a_replicate(group, column, averaged)
            found = known_ratio(sample, confidence) if column == "ratio" else known_interval(sample, confidence)
            rows.append((*values, *found, len(sample)))
        count = "replicates" if "n" in (*kept, self.axis) else "n"
        return pd.DataFrame(rows, columns=[*kept, self.axis, "value", "low", "high", count])

    def _one_a_replicate(self, group: pd.DataFrame, column: str, averaged: list[str]) -> np.ndarray:
        """The value of each replicate (of a ratio its logarithm), averaged over further levels."""
        values = np.log(group[column]) if column == "ratio" else group[column]
        table = values.to_frame("value").set_index(pd.MultiIndex.from_frame(group[[*self.replicates, *averaged]]))
        table = table["value"].unstack(averaged) if averaged else table
        lacking = table[table.isna().any(axis=1)]
        if len(lacking) and self.incomplete == "raise":
            level = dict(zip(averaged, np.atleast_1d(lacking.columns[lacking.iloc[0].isna()][0]), strict=True))
            raise ValueError(
                f"{self.metric} of {group[self.axis].iloc[0]}: {', '.join(self.replicates)} {lacking.index[0]} lacks "
                f"{_shown(level)}, so a mean over levels is not one of equals; name those axes in by="
            )
        whole = table.dropna()
        if whole.empty:
            unit = ", ".join(self.replicates)
            raise ValueError(f"{self.metric} of {group[self.axis].iloc[0]}: no {unit} has all levels; name them in by=")
        return whole.mean(axis=1).to_numpy(float)

    def __repr__(self) -> str:
        over = ", ".join(self.replicates)
        return f"{self.metric} by {self.axis} against {self.baseline}, replicates {over}\n{self.blocks!r}"

    def _repr_html_(self) -> str:
        return str(self.blocks.to_html(max_rows=20))


def pairs(
    df: pd.DataFrame,
    metric: str | None = None,
    *,
    baseline: str | None = None,
    arms: str | Sequence[str] | None = None,
    axis: str | None = None,
    replicates: str | Sequence[str] | None = None,
    incomplete: Literal["raise", "drop"] = "raise",
) -> Pairs:
    """Arms beside a baseline, block by block: the cells of a block saw the same inputs and random numbers.

        found = mlexp.pairs(mlexp.load("out.json"), "wall_s", baseline="sequential")
        found.ratios()  # decoder, value, low, high, n: the speed of each arm over that of the baseline
        found.blocks  # what that is made of

    What is left out is taken from the study's declaration, which the records carry.

    Args:
        df: records of one question in one context, from `mlexp.load` (or one of `mlexp.contexts`).
        metric: a numeric column; by default the study's outcome.
        baseline: the arm to compare with; by default the study's.
        arms: the arms to compare; by default all others.
        axis: the axis whose values are the arms; by default the study's, else the one that has `baseline` as a value.
        replicates: the axes whose values are repetitions (seeds, prompts); by default the study's, else `seed`, else
            the only axis of a block.
        incomplete: what to do about blocks that lack an arm: `raise`, or `drop` them.

    Raises:
        ValueError: for records of two contexts or two questions (it names what differs), an arm, axis or metric that is
            not there (with those that are), two records in a block, blocks that lack an arm or whose inputs differ.
    """
    if incomplete not in INCOMPLETE:
        raise ValueError(f"incomplete is {incomplete!r}; choose from {', '.join(INCOMPLETE)}")
    study = _study(df)
    baseline = baseline if baseline is not None else _needed("baseline", study.get("baseline"), _arms_of(df, study))
    axis = axis or _axis(df, study, baseline)
    metric = metric or _needed("metric", study.get("outcome"), "wall_s and the other numeric columns")
    rows = df[df[axis].notna()] if axis in df else df
    over = [name for name in axes(df) if name != axis and rows[name].notna().any()]
    _check_one_grid(rows, [*over, axis])
    repeated = _replicates(replicates, study, over)
    arms = _others(rows, axis, baseline, study) if arms is None else [arms] if isinstance(arms, str) else arms
    found = [_beside(rows, metric, axis, name, baseline, over) for name in arms]
    lacking = [f"{_shown(block, 'why')} ({block['why']})" for _, blocks in found for block in blocks]
    if lacking and incomplete == "raise":
        shown = ", ".join(lacking[:SHOWN]) + (", ..." if len(lacking) > SHOWN else "")
        total = len(lacking) + sum(len(table) for table, _ in found)
        raise ValueError(
            f"{metric}: {len(lacking)} of {total} pairs lack a side: {shown}; load(..., status=None) says why, "
            "incomplete='drop' leaves them out"
        )
    blocks = pd.concat([table for table, _ in found], ignore_index=True)
    return Pairs(metric, axis, baseline, repeated, blocks, incomplete)


def _study(df: pd.DataFrame) -> dict[str, Any]:
    """What the records' study declared; empty where they carry none. Raises ValueError for records of two questions."""
    if df.empty:
        notes = "; ".join(df.attrs.get("notes", []))
        raise ValueError(f"there are no records to pair{f' ({notes})' * bool(notes)}")
    questions = list(map(str, df["question"].dropna().unique())) if "question" in df else []
    if len(questions) > 1:
        raise ValueError(
            f"records of {len(questions)} questions ({', '.join(questions)}) are not paired; take one of them: "
            f"df[df['question'] == {questions[0]!r}]"
        )
    found: dict[str, Any] = df.attrs.get("studies", {}).get(questions[0] if questions else "", {})
    return found


def _needed(name: str, value: object, choices: str) -> str:
    if not value:
        raise ValueError(f"these records carry no declaration of their study: give {name}= (choose from {choices})")
    return str(value)


def _arms_of(df: pd.DataFrame, study: dict[str, Any]) -> str:
    """The values to choose a baseline from, in words."""
    names = [study["arm"]] if study.get("arm") in df else axes(df)
    return "; ".join(f"{name}: {', '.join(map(str, df[name].dropna().unique()[:8]))}" for name in names)


def _axis(df: pd.DataFrame, study: dict[str, Any], baseline: str) -> str:
    """The axis of the arms: the study's, else the one that has the baseline as a value."""
    having = [name for name in axes(df) if (df[name] == baseline).any()]
    if study.get("arm") in df:
        return str(study["arm"])
    if len(having) != 1:
        raise ValueError(
            f"baseline {baseline!r} is a value of {' and '.join(having) or 'no axis'}; give axis= or one of "
            f"{_arms_of(df, study)}"
        )
    return having[0]


def _check_one_grid(rows: pd.DataFrame, over: Iterable[str]) -> None:
    for name in over:
        if name in OWN:
            raise ValueError(f"the axis {name!r} has the name of a column of the result; df.rename(columns=...) first")
        if name in rows and rows[name].isna().any():
            raise ValueError(
                f"{int(rows[name].isna().sum())} of {len(rows)} records have no {name}: they are of another grid; "
                f"take one, such as df[df[{name!r}].notna()]"
            )


def _replicates(given: str | Sequence[str] | None, study: dict[str, Any], over: list[str]) -> tuple[str, ...]:
    """The axes of a block whose values are repetitions."""
    names = [given] if isinstance(given, str) else list(given if given is not None else study.get("replicates") or [])
    if given is None:
        names = [name for name in names or ["seed"] if name in over] or (over if len(over) == 1 else [])
    unknown = [name for name in names if name not in over]
    if unknown or not names:
        which = f"replicates: {unknown[0]!r} is no axis of a block" if unknown else "which axes are repetitions"
        raise ValueError(f"{which}; give replicates= from {', '.join(over) or 'no axis: there are single records'}")
    return tuple(names)


def _others(rows: pd.DataFrame, axis: str, baseline: str, study: dict[str, Any]) -> list[str]:
    """All arms but the baseline, in the order declared."""
    present = list(rows[axis].unique()) if axis in rows else []
    order = [*(name for name in study.get("arms") or [] if name in present), *present]
    return [name for name in dict.fromkeys(order) if name != baseline] or [baseline]


def _beside(
    rows: pd.DataFrame, metric: str, axis: str, arm: str, baseline: str, over: list[str]
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """(the complete blocks of an arm, those that lack a side)."""
    found = paired(rows, metric, arm=axis, of=arm, to=baseline, over=over)
    value, base = found["of"], found["to"]
    table = found[over].copy()
    table[axis], table["value"], table["baseline"], table["difference"] = arm, value, base, value - base
    table["ratio"] = (value / base).where((value > 0) & (base > 0))
    return table, found.attrs["unpaired"]


def _shown(block: dict[str, Any], *without: str) -> str:
    return " ".join(_each(block, without))


def _each(block: dict[str, Any], without: tuple[str, ...]) -> Iterator[str]:
    return (f"{name}={value}" for name, value in block.items() if name not in without)

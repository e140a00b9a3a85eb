"""`mlexp compare BASE HEAD`: every metric of every cell, and whether it got worse.

Records are matched cell by cell within one context. How a metric is compared depends on what it is:

exact    FLOPs, parameters, tokens, steps, names of backends: any difference fails
memory   bytes: SAME within 5 %; of a peak that is read off the process, within 4 MiB too, unless a limit was asked for
         (a heap of 10 MB came to 3 MB more or less in two runs; CUDA's allocator counts to the byte)
quality  accuracy, loss and what else has a direction: differences paired over seeds and prompts, arm and size fixed;
         Student's t interval of the mean difference, Holm's correction over all such tests of the comparison
time     seconds, joules, rates: two runs of the same code differ (a process has an offset that its rounds share), so
         a cell is called WORSE or BETTER only beyond that noise, and fails only where a limit was asked for;
         `mlexp ab` decides on time
other    numbers without a direction: shown where they changed by more than 0.5 %
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from mlexp.analysis import files, gate, results, stats
from mlexp.analysis.files import TIMING
from mlexp.analysis.gate import Limit, Refused, Rule, Verdict
from mlexp.record import CONTEXT, PROVENANCE, Metric, metrics_of

REPLICATES = ("seed", "prompt", "batch", "repeat")  # axes whose values are draws of one thing: what pairs are made over
INPUTS = ("prompts_hash", "corpus_hash", "weights_hash")  # both sides must have had the same
NOT_COMPARED = ("wall_iqr_s",)  # the noise of another metric
BETWEEN_RUNS = 0.08  # sd of the log of a median from run to run, A/A on shared virtual machines
DEFAULT = {
    "exact": Limit(0.0, False),
    "memory": Limit(0.05, True),
    "fraction": Limit(0.005, False),
    "quality": Limit(0.005, True),
    "time": Limit(0.05, True),
    "other": Limit(0.005, True),
}
HEAP_BYTES = 2**22
EXACT_PEAK = "cuda_allocator"
CARRIED = [
    *("cell", "question", "group", "context", "peak_method_base"),
    *(f"{name}_{side}" for name in TIMING[1:] for side in ("base", "head")),
]
COLUMNS = (
    *("cell", "metric", "kind", "verdict", "fails", "base", "head", "change", "points", "low", "high", "n", "p", "why"),
)


def run(
    base: Path,
    head: Path,
    gates: Path | None = None,
    fail_if: Sequence[str] = (),
    form: str = "text",
    cross_machine: bool = False,
) -> int:
    """`mlexp compare`: prints the comparison as `form` (text, markdown or json) and returns the exit status."""
    try:
        rules = [*(gate.read_gates(gates) if gates else []), *map(gate.parse_fail_if, fail_if)]
        found = compare(files.read(base), files.read(head), rules, cross_machine)
    except files.LoadError as error:
        gate.warn("compare", str(error))
        return gate.UNREADABLE
    except Refused as error:
        gate.warn("compare", str(error))
        return error.status
    print({"text": text, "markdown": markdown, "json": as_json}[form](found))
    return found.status


class Comparison:
    """What a comparison found: `rows` (a verdict per cell and metric, worst first), notes, the exit status."""

    def __init__(self, rows: pd.DataFrame, cells: int, notes: list[str]):
        self.rows, self.cells, self.notes = gate.order(rows).reset_index(drop=True), cells, notes
        missing = rows["why"].isin([GONE, UNRECORDED])
        regressed = rows["fails"] & ~missing
        incomplete = cells == 0 or bool((rows["fails"] & missing).any())
        self.status = gate.REGRESSION if regressed.any() else gate.INCOMPLETE if incomplete else gate.OK

    @property
    def headline(self) -> str:
        if not self.cells:
            return "nothing compared: no cell of the base is in the head"
        counts = self.rows["verdict"].value_counts()
        told = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in Verdict)
        verdict = gate.STATUS_WORDS[self.status]
        return f"{verdict}: {self.cells} cells in both; {told}; {int(self.rows['fails'].sum())} fail"


GONE, UNRECORDED = "no record in the head: gone, skipped or killed", "no longer recorded"


def compare(base: files.Loaded, head: files.Loaded, rules: Sequence[Rule] = (), cross_machine=False) -> Comparison:
    """Compare two sets of records. Raises Refused where they are not comparable or a rule fits nothing."""
    notes = [f"{side}: {note}" for side, loaded in (("base", base), ("head", head)) for note in loaded.notes]
    context = [field for field in CONTEXT if not (cross_machine and field == "machine")]
    both, gone, new = match(_frame(base), _frame(head), context)
    if cross_machine:
        notes.append("taken for two machines: time is not compared")
    if len(new):
        notes.append(f"{len(new)} cells are new in the head, {_some(new['cell'])}")
    _note_versions(both, notes)
    tables = {q: metrics_of(base.metrics.get(q, {}) | head.metrics.get(q, {})) for q in both["question"].unique()}
    _check_rules(rules, both, tables)
    parts = [_gone(gone), *outcomes(both)]
    finished = both[(both["status_base"] == "passed") & (both["status_head"] == "passed")]
    for question, cells in finished.groupby("question", sort=False):
        parts += measured(cells.reset_index(drop=True), tables[question], rules, skip_time=cross_machine)
    rows = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    return Comparison(_corrected(rows), len(both), notes)


def _frame(loaded: files.Loaded) -> pd.DataFrame:
    """The newest record of each cell in each context, with the `group` in which its replicates are."""
    df = results.frame(loaded)
    df["group"] = [group_of(row) for row in loaded.rows]
    df["question"] = df["question"].astype(object).fillna("")  # of a file that is not ours
    return pd.DataFrame(results.latest(df).drop(columns=results.axes(df)))


def group_of(row: files.Row) -> str:
    """The node id of a cell with its replicates starred: `...::test_train[tiny-*-baseline]`."""
    head, bracket, rest = row.values["cell"].partition("[")
    labels = rest.removesuffix("]").split("-")
    if not bracket or len(labels) != len(row.params):  # ids of another project: a cell stands for itself
        return row.values["cell"]
    starred = ["*" if axis in REPLICATES else label for axis, label in zip(row.params, labels, strict=True)]
    return f"{head}[{'-'.join(starred)}]"


def match(
    base: pd.DataFrame, head: pd.DataFrame, context: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """(cells of both, of the base alone, of the head alone). Raises Refused for contexts or inputs that differ."""
    on = ["cell", *context]
    columns = list(dict.fromkeys([*base, *head, "peak_method"]))  # what one side alone records is null on the other
    base, head = (
        df.reindex(columns=columns).assign(**{field: df[field].astype(object).fillna("") for field in on})
        .sort_values("when", kind="stable").drop_duplicates(on, keep="last") for df in (base, head)
    )  # fmt: skip
    merged = base.merge(head, on=on, how="outer", suffixes=("_base", "_head"), indicator="found")
    both, gone, new = (merged[merged["found"] == side] for side in ("both", "left_only", "right_only"))
    for cell in gone["cell"][gone["cell"].isin(new["cell"]) & ~gone["cell"].isin(both["cell"])].head(1):
        one, other = (df[df["cell"] == cell].iloc[0] for df in (gone, new))
        field = next(field for field in context if one[field] != other[field])
        raise Refused(
            gate.INCOMPARABLE, f"not comparable: {field} is {gate.differing(one[field], other[field])} in {cell}"
        )
    for field in INPUTS:
        one, other = both[f"{field}_base"], both[f"{field}_head"]
        wrong = both[(one != other) & one.notna() & other.notna()]
        if len(wrong):
            row = wrong.iloc[0]
            values = gate.differing(row[f"{field}_base"], row[f"{field}_head"])
            raise Refused(gate.INCOMPARABLE, f"not comparable: {field} is {values} in {row['cell']}")
    both = both.rename(columns={"question_base": "question", "group_base": "group"})
    both["context"] = both.groupby(context, sort=False).ngroup()
    return both.reset_index(drop=True), gone.reset_index(drop=True), new.reset_index(drop=True)


def _note_versions(both: pd.DataFrame, notes: list[str]) -> None:
    for field in ("torch", "transformers", "python"):
        one, other = (sorted(map(str, both[f"{field}_{side}"].dropna().unique())) for side in ("base", "head"))
        if one != other:
            notes.append(
                f"{field} is {', '.join(one) or 'unknown'} in the base, {', '.join(other) or 'unknown'} in the head"
            )


def _check_rules(rules: Sequence[Rule], both: pd.DataFrame, tables: dict) -> None:
    """A rule that fits nothing is a typo, and a gate that never closes."""
    known = sorted(_names(both))
    for rule in rules:
        fits = gate.matches(pd.Series(known, dtype=object), rule.metric)
        if len(both) and not fits.any():
            raise Refused(gate.UNREADABLE, f"{rule.text}: no metric is {rule.metric!r}; choose from {', '.join(known)}")
        cells = gate.matches(both["question"], rule.question) & gate.matches(both["cell"], rule.cell)
        if len(both) and not cells.any():
            told = f"question {rule.question!r}, cell {rule.cell!r}"
            raise Refused(gate.UNREADABLE, f"{rule.text}: no cell of both files matches {told}")


def _names(both: pd.DataFrame) -> Iterator[str]:
    """The metrics that either file has."""
    for column in both:
        name = column.removesuffix("_base")
        if name != column and name not in (*PROVENANCE, *NOT_COMPARED, "group"):
            yield name


def _gone(gone: pd.DataFrame) -> pd.DataFrame:
    """Cells of the base without a record in the head: what did not pass in the base was not there to lose."""
    lost = gone[gone["status_base"] == "passed"]
    return _rows(lost.assign(base="passed", head=None), "status", "exact", verdict=Verdict.WORSE, why=GONE, fails=True)


def outcomes(both: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Cells that passed on one side alone. (One that did not pass on either is as it was.)"""
    before, after = both["status_base"] == "passed", both["status_head"] == "passed"
    for pair, verdict, side in (
        (both[before & ~after], Verdict.WORSE, "head"),
        (both[~before & after], Verdict.BETTER, "base"),
    ):
        pair = pair.assign(base=pair["status_base"], head=pair["status_head"])
        why = pair[f"reason_{side}"].astype(object).fillna("")
        yield _rows(pair, "status", "exact", verdict=verdict, why=why, fails=verdict is Verdict.WORSE)


def measured(cells: pd.DataFrame, table: dict[str, Metric], rules: Sequence[Rule], skip_time=False) -> Iterator:
    """The rows of every metric of one question's cells that passed on both sides."""
    for name in _names(cells):
        metric = table.get(name, Metric("", "none", "not declared"))
        pair = cells[CARRIED].assign(base=cells[f"{name}_base"], head=cells[f"{name}_head"])
        pair = pair[pair["base"].notna()]
        kind = kind_of(metric, pair["base"]) if _numeric(pair["head"].dropna()) else "exact"
        if pair.empty or (skip_time and kind == "time"):
            continue
        pair = pair.assign(**limits(pair, name, metric, kind, rules))
        lost = pair["head"].isna()
        absent = pair[lost]
        yield _rows(absent, name, kind, verdict=Verdict.AMBIGUOUS, fails=absent["gated"], why=UNRECORDED)
        if not lost.all():
            yield RULERS[kind](pair[~lost].reset_index(drop=True), name, kind)


def kind_of(metric: Metric, values: pd.Series) -> str:
    """How a metric of which these are the base's values is compared: see the head of this file."""
    if metric.unit in ("FLOP", "count", "tokens") or not _numeric(values):
        return "exact"
    if metric.unit in ("s", "J") or metric.unit.endswith("/s"):
        return "time"
    if metric.unit == "bytes":
        return "memory"
    continuous = metric.unit in ("", "fraction", "nats", "ratio") or bool((values % 1 != 0).any())
    if metric.better != "none" and (continuous or metric.unit == "samples"):
        return "quality"
    return "other" if continuous else "exact"


def _numeric(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def limits(cells: pd.DataFrame, name: str, metric: Metric, kind: str, rules: Sequence[Rule]) -> pd.DataFrame:
    """A row a cell: `amount`, `relative`; `sign`, the bad direction (0: none); `gated`; `asked`: whether a rule set it;
    `points`: whether changes are shown as differences. Raises Refused for a limit against the metric's direction.
    """
    own, points = {"lower": 1, "higher": -1, "none": 0}[metric.better], metric.unit == "fraction"
    default = DEFAULT["fraction" if kind == "quality" and points else kind]
    gated = kind == "exact" or (own != 0 and kind in ("memory", "quality"))
    filled = {"amount": default.amount, "relative": default.relative, "sign": own, "gated": gated, "asked": False}
    bound = pd.DataFrame(filled | {"points": points}, index=cells.index)
    for rule in rules:
        where = gate.matches(cells["question"], rule.question) & gate.matches(cells["cell"], rule.cell)
        if not where.any() or not gate.matches(pd.Series([name]), rule.metric).item():
            continue
        bound.loc[where, "gated"] = rule.gated
        if rule.limit:
            if own and rule.limit.sign != own:
                raise Refused(gate.UNREADABLE, f"{rule.text}: {name} is better {metric.better}; give the other sign")
            for column, value in zip(("amount", "relative", "sign", "asked"), (*rule.limit, True), strict=True):
                bound.loc[where, column] = value
    return bound


def exact(pair: pd.DataFrame, name: str, kind: str) -> pd.DataFrame:
    """Value against value. A change that has no direction is AMBIGUOUS; of an exact metric it fails all the same."""
    if _numeric(pair["base"]) and _numeric(pair["head"]):
        bad = (pair["head"] - pair["base"]) * pair["sign"].replace(0, 1)
        heap = (kind == "memory") & ~pair["asked"] & (pair["peak_method_base"] != EXACT_PEAK)
        changed, directed = bad.abs() > _allowed(pair).clip(lower=HEAP_BYTES * heap), _directed(bad)
    else:
        changed, directed = pair["base"].astype(object) != pair["head"].astype(object), Verdict.AMBIGUOUS
    verdict = np.where(changed, np.where(pair["sign"] == 0, Verdict.AMBIGUOUS, directed), Verdict.SAME)
    unclear = verdict == Verdict.AMBIGUOUS
    fails = pair["gated"] & ((verdict == Verdict.WORSE) | (unclear & (kind == "exact")))
    why = np.where(unclear, "changed; neither direction is better", "")
    return _rows(pair, name, kind, verdict=verdict, fails=fails, why=why)


def timing(pair: pd.DataFrame, name: str, kind: str) -> pd.DataFrame:
    """Two runs: SAME within the limit, WORSE or BETTER beyond it and the noise of two runs, else AMBIGUOUS.

    A limit that was asked for is taken at its word: beyond it a cell is WORSE, noise or not.
    """
    log = np.log((pair["head"] / pair["base"]).where((pair["head"] > 0) & (pair["base"] > 0)))
    variance = pd.Series(2 * BETWEEN_RUNS**2, index=pair.index)
    for side in ("base", "head") if name == "wall_s" else ():
        spread = pair[f"wall_iqr_s_{side}"].astype(float).fillna(0) / pair[side]
        variance += (0.93 * spread) ** 2 / pair[f"rounds_{side}"]  # of a normal sample's median, from its quartiles
    half = scipy_stats.norm.ppf(1 - gate.SIGNIFICANT / 2) * np.sqrt(variance)
    beyond = (pair["head"] - pair["base"]).abs() > _allowed(pair)
    sure = (pair["asked"] | (log.abs() > half)) & (pair["sign"] != 0)
    verdict = np.where(beyond, np.where(sure, _directed(log * pair["sign"]), Verdict.AMBIGUOUS), Verdict.SAME)
    fails = pair["gated"] & pair["asked"] & (verdict == Verdict.WORSE)
    why = np.where(verdict == Verdict.AMBIGUOUS, "within the noise of two runs; mlexp ab decides", "")
    interval = {"low": np.expm1(log - half), "high": np.expm1(log + half)}
    return _rows(pair, name, kind, verdict=verdict, fails=fails, why=why, **interval)


def quality(pair: pd.DataFrame, name: str, kind: str) -> pd.DataFrame:
    """Differences paired over the replicates of a group; the verdicts still wait for Holm's correction."""
    pair = pair.assign(d=pair["head"] - pair["base"], most=(pair["head"] - pair["base"]).abs())
    firsts = ("cell", "amount", "relative", "sign", "gated", "asked", "points")
    found = pair.groupby(["group", "context"], sort=False).agg(
        n=("d", "size"), mean=("d", "mean"), sd=("d", "std"), most=("most", "max"), base=("base", "mean"),
        head=("head", "mean"), **{column: (column, "first") for column in firsts},
    ).reset_index()  # fmt: skip
    n, error = found["n"], found["sd"] / np.sqrt(found["n"])  # of a single pair: NaN
    half = error * scipy_stats.t.ppf(1 - gate.SIGNIFICANT / 2, n.clip(lower=2) - 1)
    t = (found["mean"] / error).abs().where(found["mean"] != 0, 0.0)  # pairs that all differ alike: infinite
    allowed = _allowed(found)
    within = (found["mean"].abs() + half <= allowed) | (found["most"] <= allowed)
    beyond = (found["mean"].abs() > allowed) & ((n > 1) | found["asked"])
    directed = _directed(found["mean"] * found["sign"])
    verdict = np.where(within, Verdict.SAME, np.where(beyond, directed, Verdict.AMBIGUOUS))
    found["cell"] = found["cell"].where(n == 1, found["group"])
    found["p"] = (2 * pd.Series(scipy_stats.t.sf(t, n.clip(lower=2) - 1))).where((n > 1) & (found["most"] > 0))
    interval = {"low": _shown(found["mean"] - half, found), "high": _shown(found["mean"] + half, found)}
    fails = found["gated"] & (verdict == Verdict.WORSE)
    why = np.where((n == 1) & (verdict == Verdict.AMBIGUOUS), "a single pair has no interval", "")
    return _rows(found, name, kind, verdict=verdict, fails=fails, why=why, n=n, p=found["p"], **interval)


RULERS = {"exact": exact, "memory": exact, "other": exact, "time": timing, "quality": quality}


def _allowed(pair: pd.DataFrame) -> pd.Series:
    """How far each cell's value may go, in the metric's unit."""
    return pair["amount"] * pair["base"].abs().where(pair["relative"], 1.0)


def _directed(bad: pd.Series) -> np.ndarray:
    return np.where(bad > 0, Verdict.WORSE, Verdict.BETTER)


def _shown(change: pd.Series, pair: pd.DataFrame) -> pd.Series:
    """A change as a share of the base's value; of fractions, the difference itself."""
    return change / pair["base"].abs().where(~pair["points"], 1.0).replace(0, np.nan)


def _corrected(rows: pd.DataFrame) -> pd.DataFrame:
    """Quality verdicts that Holm's correction does not uphold become AMBIGUOUS. Identical pairs were not tested."""
    tested = rows["p"].notna()
    p = stats.holm(rows.loc[tested, "p"].to_numpy(float)) if tested.any() else []
    rows.loc[tested, "p"] = p
    unsure = tested & (rows["p"] >= gate.SIGNIFICANT) & rows["verdict"].isin([Verdict.WORSE, Verdict.BETTER])
    rows.loc[unsure, "verdict"], rows.loc[unsure, "fails"] = Verdict.AMBIGUOUS, False
    rows.loc[tested, "why"] = [f"p {value:.2g}, corrected" if value > 1e-9 else "p < 1e-9" for value in p]
    return rows


def _rows(pair: pd.DataFrame, name: str, kind: str, **given) -> pd.DataFrame:
    """Rows of the result, one for each of `pair` (with `cell`, and `base` and `head` where there are any)."""
    columns = {"cell": pair["cell"], "metric": name, "kind": kind, "base": pair.get("base"), "head": pair.get("head")}
    columns |= {"low": np.nan, "high": np.nan, "n": 1, "p": np.nan, "why": "", "points": False} | given
    if "points" in pair and kind != "exact" and _numeric(pair["base"]) and _numeric(pair["head"]):
        columns |= {"points": pair["points"], "change": _shown(pair["head"] - pair["base"], pair)}
    elif "base" in pair and _numeric(pair["base"]) and _numeric(pair["head"]):
        columns["change"] = (pair["head"] - pair["base"]) / pair["base"].abs().replace(0, np.nan)
    df = pd.DataFrame(columns, index=pair.index).reindex(columns=list(COLUMNS))
    texts = dict.fromkeys(("cell", "metric", "kind", "verdict", "why", "base", "head"), object)
    return df.astype(texts | {"change": float, "fails": bool}).reset_index(drop=True)


def text(found: Comparison) -> str:
    """For a terminal: what is not SAME, the worst first, and the headline last, where the eye is."""
    shown, left = _table_rows(found)
    parts = [*found.notes, *([gate.text_table(HEADS, shown)] if shown else []), left, found.headline]
    return "\n".join(part for part in parts if part)


def markdown(found: Comparison) -> str:
    """For a pull-request comment: the headline first, the table below it."""
    shown, left = _table_rows(found, code="`")
    parts = [f"### {gate.MARK[found.status == gate.OK]} mlexp compare: {found.headline}"]
    parts += [gate.markdown_table(HEADS, shown)] if shown else []
    parts += [left] if left else []
    parts += ["\n".join(f"- {note}" for note in found.notes)] if found.notes else []
    return "\n\n".join(parts)


def as_json(found: Comparison) -> str:
    """Everything, for programs: one object; numbers that do not exist are null."""
    rows = [{name: _plain(value) for name, value in row.items()} for row in found.rows.to_dict("records")]
    told = {"status": found.status, "headline": found.headline, "cells": found.cells, "notes": found.notes}
    return json.dumps(told | {"rows": rows}, allow_nan=False)


HEADS = ("", "verdict", "cell", "metric", "base", "head", "change", "95 % interval", "n", "why")


def _table_rows(found: Comparison, code: str = "") -> tuple[list[list[str]], str]:
    """The first rows that are not SAME, as texts, and a line for those left out."""
    rows = found.rows[found.rows["verdict"] != Verdict.SAME]
    shown = [_row_texts(row, code) for row in rows.head(gate.SHOWN_ROWS).itertuples(index=False)]
    left = len(rows) - len(shown)
    return shown, f"{left} more rows are not SAME: --json has all" if left else ""


def _row_texts(row, code: str) -> list[str]:
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


def _some(cells: pd.Series) -> str:
    return ", ".join(cells.head(3)) + (", ..." if len(cells) > 3 else "")

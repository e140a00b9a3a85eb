"""`mlexp compare BASE HEAD`: every metric of every cell, and whether it got worse.

Records are matched cell by cell within one context. How a metric is compared depends on what it is:

exact    FLOPs, parameters, tokens, steps, names of backends: any difference fails
memory   bytes: SAME within 5 %; of a peak that is read off the process, within 4 MiB too, unless a limit was asked for
         (a heap of 10 MB came to 3 MB more or less in two runs; CUDA's allocator counts to the byte)
quality  accuracy, loss and what else has a direction: differences paired over seeds and prompts, arm and size fixed;
         one test of the mean over all groups and one of the worst group for each metric and question (`quality.py`),
         which together call identical code WORSE in 5 % of comparisons at most
time     seconds, joules, rates: two runs of the same code differ (a process has an offset that its rounds share), so
         a cell is called WORSE or BETTER only beyond that noise, and fails only where a limit was asked for;
         `mlexp ab` decides on time
other    numbers without a direction, and what a plain pytest-benchmark file says of itself: shown where it changed by
         more than 0.5 %; `--lower NAME`, `--higher NAME` or a gate file give it a direction

A limit that the user gives is judged on the estimate, whatever its noise. Without one, a change of quality for the
worse that lies beyond the tolerance in a single replicate is not decided: exit status 2.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from mlexp.analysis import changes, files, gate, results
from mlexp.analysis.changes import COLUMNS, exact, kind_of, numeric, rows_of, timing
from mlexp.analysis.compare_text import as_json, markdown, text
from mlexp.analysis.files import TIMING
from mlexp.analysis.gate import Refused, Rule, Verdict
from mlexp.analysis.quality import corrected, quality
from mlexp.record import CONTEXT, PROVENANCE, Metric, metrics_of

REPLICATES = ("seed", "prompt", "batch", "repeat")  # axes whose values are draws of one thing: what pairs are made over
INPUTS = ("prompts_hash", "corpus_hash", "weights_hash")  # both sides must have had the same
NOT_COMPARED = ("wall_iqr_s",)  # the noise of another metric
UNDECLARED = Metric("", "none", "not declared")
CARRIED = [
    *("cell", "question", "group", "replicate", "context", "peak_method_base"),
    *(f"{name}_{side}" for name in TIMING[1:] for side in ("base", "head")),
]
JUDGES = {"exact": exact, "memory": exact, "other": exact, "time": timing, "quality": quality}
SIMILAR = 0.6  # of two names, from which on a cell counts as perhaps renamed
MANY = 100  # cells missing beyond which no new names are looked for


def run(
    base: Path,
    head: Path,
    gates: Path | None = None,
    fail_if: Sequence[str] = (),
    form: str = "text",
    cross_machine: bool = False,
    lower: Sequence[str] = (),
    higher: Sequence[str] = (),
) -> int:
    """`mlexp compare`: prints the comparison as `form` (text, markdown or json) and returns the exit status."""
    try:
        rules = [rule for names in lower for rule in gate.parse_direction("lower", names)]
        rules += [rule for names in higher for rule in gate.parse_direction("higher", names)]
        rules += [*(gate.read_gates(gates) if gates else []), *map(gate.parse_fail_if, fail_if)]
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
        regressed = (rows["exit"] == gate.REGRESSION).any()
        incomplete = cells == 0 or (rows["exit"] == gate.INCOMPLETE).any()
        self.status = gate.REGRESSION if regressed else gate.INCOMPLETE if incomplete else gate.OK

    @property
    def headline(self) -> str:
        if not self.cells:
            return "nothing compared: no cell of the base is in the head"
        counts = self.rows["verdict"].value_counts()
        verdicts = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in Verdict)
        status = gate.STATUS_WORDS[self.status]
        return f"{status}: {self.cells} cells in both; {verdicts}; {int(self.rows['fails'].sum())} fail"


GONE, UNRECORDED = "no record in the head: gone, skipped or killed", "no longer recorded"


def compare(
    base: files.Loaded, head: files.Loaded, rules: Sequence[Rule] = (), cross_machine: bool = False
) -> Comparison:
    """Compare two sets of records. Raises Refused where they are not comparable or a rule fits nothing."""
    notes = [f"{side}: {note}" for side, loaded in (("base", base), ("head", head)) for note in loaded.notes]
    context = [field for field in CONTEXT if not (cross_machine and field == "machine")]
    both, missing, new = match(_frame(base), _frame(head), context)
    if cross_machine:
        notes.append("taken for two machines: time is not compared")
    if len(new):
        notes.append(f"{len(new)} cells are new in the head, {_examples(new['cell'])}")
    renamed = possibly_renamed(missing, new)
    notes += [f"renamed? {old} -> {name}" for old, name in list(renamed.items())[:3]]
    notes += [f"{len(renamed) - 3} more cells may be renamed"] if len(renamed) > 3 else []
    _note_versions(both, notes)
    tables = {q: metrics_of(base.metrics.get(q, {}) | head.metrics.get(q, {})) for q in both["question"].unique()}
    _check_rules(rules, both, tables)
    parts = [_missing(missing), *outcomes(both)]
    finished = both[(both["status_base"] == "passed") & (both["status_head"] == "passed")]
    for question, cells in finished.groupby("question", sort=False):
        parts += measured(cells.reset_index(drop=True), tables[question], rules, skip_time=cross_machine)
    rows = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    return Comparison(corrected(rows).reindex(columns=list(COLUMNS)), len(both), notes)


def _frame(loaded: files.Loaded) -> pd.DataFrame:
    """The newest record of each cell in each context, with its `group` and which `replicate` of the group it is."""
    df = results.frame(loaded)
    df = df.drop(columns=results.axes(df))
    named = [group_of(row) for row in loaded.rows]
    df["group"], df["replicate"] = [group for group, _ in named], [replicate for _, replicate in named]
    df["question"] = df["question"].astype(object).fillna("")  # of a file that is not ours
    return results.latest(df)


def group_of(row: files.Row) -> tuple[str, str]:
    """The node id of a cell with its replicates starred, `...::test_train[tiny-*-baseline]`, and their labels."""
    head, bracket, rest = row.values["cell"].partition("[")
    labels = rest.removesuffix("]").split("-")
    if not bracket or len(labels) != len(row.params):  # ids of another project: a cell stands for itself
        return row.values["cell"], ""
    axes = list(zip(row.params, labels, strict=True))
    starred = ["*" if axis in REPLICATES else label for axis, label in axes]
    return f"{head}[{'-'.join(starred)}]", "-".join(label for axis, label in axes if axis in REPLICATES)


def match(
    base: pd.DataFrame, head: pd.DataFrame, context: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """(cells of both, of the base alone, of the head alone). Raises Refused for contexts or inputs that differ."""
    on = ["cell", *context]
    columns = list(dict.fromkeys([*base, *head, "peak_method"]))  # what one side alone records is null on the other
    base, head = (
        results.by_time(df).reindex(columns=columns)
        .assign(**{field: df[field].astype(object).fillna("") for field in on})
        .drop_duplicates(on, keep="last") for df in (base, head)
    )  # fmt: skip
    merged = base.merge(head, on=on, how="outer", suffixes=("_base", "_head"), indicator="found")
    both, missing, new = (merged[merged["found"] == side] for side in ("both", "left_only", "right_only"))
    for cell in missing["cell"][missing["cell"].isin(new["cell"]) & ~missing["cell"].isin(both["cell"])].head(1):
        one, other = (df[df["cell"] == cell].iloc[0] for df in (missing, new))
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
    both = both.rename(columns={f"{name}_base": name for name in ("question", "group", "replicate")})
    both["context"] = both.groupby(context, sort=False).ngroup()
    return both.reset_index(drop=True), missing.reset_index(drop=True), new.reset_index(drop=True)


def _note_versions(both: pd.DataFrame, notes: list[str]) -> None:
    for field in ("torch", "transformers", "python"):
        one, other = (sorted(map(str, both[f"{field}_{side}"].dropna().unique())) for side in ("base", "head"))
        if one != other:
            notes.append(
                f"{field} is {', '.join(one) or 'unknown'} in the base, {', '.join(other) or 'unknown'} in the head"
            )


def _check_rules(rules: Sequence[Rule], both: pd.DataFrame, tables: Mapping[str, Mapping[str, Metric]]) -> None:
    """A rule that fits nothing is a typo, and a gate that never closes."""
    known = sorted(_names(both))
    for rule in rules:
        fits = gate.matches(pd.Series(known, dtype=object), rule.metric)
        if len(both) and not fits.any():
            raise Refused(gate.UNREADABLE, f"{rule.text}: no metric is {rule.metric!r}; choose from {', '.join(known)}")
        cells = gate.matches(both["question"], rule.question) & gate.matches(both["cell"], rule.cell)
        if len(both) and not cells.any():
            which = f"question {rule.question!r}, cell {rule.cell!r}"
            raise Refused(gate.UNREADABLE, f"{rule.text}: no cell of both files matches {which}")


def _names(both: pd.DataFrame) -> Iterator[str]:
    """The metrics that either file has."""
    for column in map(str, both):
        name = column.removesuffix("_base")
        if name != column and name not in (*PROVENANCE, *NOT_COMPARED, "group", "replicate"):
            yield name


def _missing(missing: pd.DataFrame) -> pd.DataFrame:
    """Cells of the base without a record in the head: what did not pass in the base was not there to lose."""
    lost = missing[missing["status_base"] == "passed"]
    lost = lost.assign(base="passed", head=None)
    return rows_of(lost, "status", "exact", verdict=Verdict.WORSE, why=GONE, exit=gate.INCOMPLETE)


def possibly_renamed(missing: pd.DataFrame, new: pd.DataFrame) -> dict[str, str]:
    """For cells of the base that are missing, the most similar new cell of the same file, each new one once."""
    found, left = {}, list(dict.fromkeys(new["cell"]))
    for cell in missing["cell"][:MANY]:
        file, _, test = cell.rpartition("::")
        there = {name.rpartition("::")[2]: name for name in left[:MANY] if name.rpartition("::")[0] == file}
        for match in difflib.get_close_matches(test, there, n=1, cutoff=SIMILAR):
            found[cell] = there[match]
            left.remove(found[cell])
    return found


def outcomes(both: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Cells that passed on one side alone. (One that did not pass on either is as it was.)"""
    before, after = both["status_base"] == "passed", both["status_head"] == "passed"
    for pair, verdict, side in (
        (both[before & ~after], Verdict.WORSE, "head"),
        (both[~before & after], Verdict.BETTER, "base"),
    ):
        pair = pair.assign(base=pair["status_base"], head=pair["status_head"])
        why = pair[f"reason_{side}"].astype(object).fillna("")
        exit_of = gate.REGRESSION if verdict is Verdict.WORSE else gate.OK
        yield rows_of(pair, "status", "exact", verdict=verdict, why=why, exit=exit_of)


def measured(
    cells: pd.DataFrame, table: dict[str, Metric], rules: Sequence[Rule], skip_time: bool = False
) -> Iterator[pd.DataFrame]:
    """The rows of every metric of one question's cells that passed on both sides."""
    question = cells["question"].iloc[0]
    for name in _names(cells):
        if name == "rounds" and not question:  # pytest-benchmark chooses them by the clock
            continue
        metric = changes.directed(name, table.get(name, UNDECLARED), question, rules)
        pair = cells[CARRIED].assign(base=cells[f"{name}_base"], head=cells[f"{name}_head"])
        pair = pair[pair["base"].notna()]
        kind = _kind(metric, pair, declared=name in table, ours=bool(question))
        if pair.empty or (skip_time and kind == "time"):
            continue
        pair = pair.assign(**changes.limits(pair, name, metric, kind, rules))
        lost = pair["head"].isna()
        absent = pair[lost]
        exit_of = absent["gated"] * gate.INCOMPLETE
        yield rows_of(absent, name, kind, verdict=Verdict.AMBIGUOUS, exit=exit_of, why=UNRECORDED)
        if not lost.all():
            yield JUDGES[kind](pair[~lost].reset_index(drop=True), name, kind)


def _kind(metric: Metric, pair: pd.DataFrame, declared: bool, ours: bool) -> str:
    """How a metric is compared. A text of a file that is not ours, or a number that nobody declares, may be of the run
    (a time, a host's name): it is shown where it changed, and fails nothing unless it is given a direction or a limit.
    """
    if not numeric(pair["base"]) or not numeric(pair["head"].dropna()):
        return "exact" if declared and ours else "other"
    return kind_of(metric, pair["base"]) if declared or metric.better != "none" else "other"


def _examples(cells: pd.Series) -> str:
    return ", ".join(cells.head(3)) + (", ..." if len(cells) > 3 else "")

"""A question's records as sections, one a context: its claims evaluated, its report run, what stands around them."""

import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlexp import study
from mlexp.analysis import history, results, standard, times
from mlexp.analysis.claims import evaluate
from mlexp.analysis.columns import text
from mlexp.analysis.data import Data
from mlexp.analysis.disturbed import disturbances, listed, remarks
from mlexp.analysis.files import Loaded, Row, arrays, is_of
from mlexp.analysis.output import STAND_INS, Output, stand_ins
from mlexp.analysis.section import Section
from mlexp.analysis.stats import Verdict
from mlexp.analysis.tables import arm_table
from mlexp.record import CONTEXT, metrics_of
from mlexp.study import Study

Report = Callable[[pd.DataFrame, Output], None]
SCALES = ("full", "quick", "smoke")  # the most to be trusted first
KILLED = "started and never ended, or still running"


def sections_of(name: str, folder: Path | None, loaded: Loaded, also: str = "") -> list[Section]:
    """What the records of one question say, context by context; the one to be trusted most comes first.

    `folder` is the question's own; without one, what the records carry of the study is enough for the tables. `pdf`:
    figures also as PDF.
    """
    rows = {row.values.get("key"): row for row in loaded.rows if row.values.get("question") == name}
    if not rows:
        return []
    metrics = loaded.metrics.get(name, {})
    declared = declaration(folder, list(rows.values()), metrics)
    report = report_of(folder) if folder else None
    if report is None and declared is None:
        return []
    df = results.latest(results.frame(Loaded(list(rows.values()), {name: metrics})))
    over_commits = by_context(name, loaded)
    asks = declared.asks if declared and declared.asks else question_of(folder / "README.md") if folder else ""
    killed = [start for start in loaded.died if is_of(start["cell"], name) and not _ran_since(df, start)]
    never_ran = [cell for cell in loaded.never_ran if is_of(cell, name)]
    sections: list[Section] = []
    for context, group in results.contexts(df):
        passed = group["status"] == "passed"
        records, rest = (group[keep].reset_index(drop=True) for keep in (passed, ~passed))
        series = _series_of(rows)
        dirty = bool(group["dirty"].any())
        note = grid_note(group)
        if never_ran and not note:
            note = f"unfinished run: {len(never_ran)} of the cells that it selected never ran"
        out = Output(name, context, rest, series, dirty, remarks(records), also=also, grid=note)
        if len(records):
            fill(out, records, declared, report, metrics, [rows[key] for key in records["key"] if key in rows])
        past = over_commits.get(_fields(context))
        changes = "" if past is None else history.add(past, metrics_of(metrics), loaded.commits, out)
        unfinished = [(str(row.cell), str(row.status), text(row.reason)) for row in rest.itertuples()]
        facts, disturbed = environment(group), listed(records)
        sections.append(
            Section(out, Path(name), len(records), unfinished, facts, out.blocks_in_words(), asks, changes, disturbed)
        )
    sections.sort(key=distrust)
    for section in sections[1:]:
        section.folder = Path(name, section.out.slug)
    if sections:
        sections[0].unfinished += [(start["cell"], "killed", KILLED) for start in killed]
    return sections


def distrust(section: Section) -> tuple[object, ...]:
    """Sorts contexts, the one to be trusted most first: what answers something before what does not, the real thing
    before a stand-in, full before quick, all of the grid before a part, committed code before uncommitted."""
    context, verdicts = section.out.context, [v["verdict"] for v in section.out.verdicts if "check" not in v["marks"]]
    weights, scale = str(context.get("weights") or ""), str(context.get("scale") or "")
    return (
        bool(verdicts) and set(verdicts) == {Verdict.NOT_TESTED},
        next((rank for rank, name in enumerate(STAND_INS["weights"][::-1], 1) if weights.startswith(name)), 0),
        bool(stand_ins(context, ("corpus",))),
        SCALES.index(scale) if scale in SCALES else len(SCALES),
        bool(context.get("overrides")),
        bool(section.grid),
        section.out.dirty,
        -section.records,
    )


def _series_of(rows: Mapping[Any, Row]) -> Callable[[str], Mapping[str, np.ndarray]]:
    return lambda key: arrays(rows[key]) if key in rows else {}


def fill(
    out: Output,
    records: pd.DataFrame,
    declared: Study | None,
    report: Report | None,
    metrics: dict[str, tuple[str, ...]],
    rows: list[Row],
) -> None:
    """One context: claims, answer, then the question's own report, or the standard one."""
    if declared is not None:
        records = derived(declared, records)
        settings = json.loads(records["settings"].iloc[0] or "{}") if "settings" in records else {}
        settings |= {name: out.context.get(name) for name in ("device", "dtype", "scale")}
        out.data = Data(declared, records, metrics_of(metrics | dict(declared.metrics)), settings)
        if declared.estimates:
            out.data.estimates = declared.estimates(records, out)
        out.findings = evaluate(out.data, stand_ins(out.context, ("weights",)), registered(rows))
        out.claims(out.findings)
        answer = declared.answer or standard.answer
        out.answer = answer(out.findings, arms_of(out.data)) if declared.claims else ""
    (report or standard.report)(records, out)


def arms_of(data: Data) -> pd.DataFrame:
    """The table that the answer may draw on: each arm's outcome, by level of the first curve axis."""
    axis = next((name for name in data.study.over if len(data.rows(name))), "")
    if data.study.outcome not in data.records or data.study.arm not in data.records:
        return pd.DataFrame()
    return arm_table(data, axis, standard.measured(data))


def derived(declared: Study, records: pd.DataFrame) -> pd.DataFrame:
    """The records with the columns that the study derives; they keep what is known of their axes."""
    if declared.derive is None:
        return records
    made: pd.DataFrame = declared.derive(records.copy())
    made.attrs = {**records.attrs, **made.attrs}
    return made


def registered(rows: list[Row]) -> dict[str, str]:
    """The claims that stood so when every one of these records was measured: id -> fingerprint."""
    tables = [row.study.get("claims") or {} for row in rows]
    common = set.intersection(*(set(table.items()) for table in tables)) if tables else set()
    return {str(name): str(mark) for name, mark in common}


def declaration(folder: Path | None, rows: list[Row], metrics: Mapping[str, tuple[str, ...]]) -> Study | None:
    """The study as its folder declares it, with the arms that the records know of besides; else as the records do,
    whose question's own metrics are `metrics`."""
    declared = study_in(folder) if folder else None
    known = {**metrics, **(declared.metrics if declared else {})}
    carried = [Study.declared(row.study, known) for row in rows if row.study.get("arm")]
    if declared is None:
        return carried[-1] if carried else None
    arms = dict.fromkeys(
        [*declared.arms, *(arm for other in carried if other.arm == declared.arm for arm in other.arms)]
    )
    return replace(declared, arms=tuple(arms))


def study_in(folder: Path) -> Study | None:
    """The STUDY of a question's folder: of its study.py, else of a bench file that has one; None without."""
    own = folder / "study.py"
    files = [own] if own.is_file() else sorted(folder.glob("bench_*.py"))
    for file in files:
        if "STUDY" in file.read_text(encoding="utf-8", errors="replace"):
            found = study.of(study.load(file))
            return found if found.arm else None
    return None


def report_of(folder: Path) -> Report | None:
    """The function `report` of a question's report.py; None where it has no such file."""
    file = folder / "report.py"
    if not file.is_file():
        return None
    module = study.load(file)
    if not callable(getattr(module, "report", None)):
        raise AttributeError("it has no function report(records, out)")
    found: Report = module.report
    return found


def question_of(readme: Path) -> str:
    """The question in one sentence: what follows the name in the first heading of its README; empty where none does."""
    try:
        first = readme.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        return ""
    text = first.removeprefix("#").partition(":")[2].strip()
    return text[:1].upper() + text[1:]


def by_context(name: str, loaded: Loaded) -> dict[tuple[Any, ...], pd.DataFrame]:
    """Every record of a question, earlier commits too, by the fields of its context; empty below DRAWN_FROM."""
    rows = [row for row in (*loaded.rows, *loaded.older) if row.values.get("question") == name]
    if len({row.values.get("commit") for row in rows}) < history.DRAWN_FROM:
        return {}
    df = results.frame(Loaded(rows, {name: loaded.metrics.get(name, {})}))
    return {_fields(context): group for context, group in results.contexts(df)}


def _fields(context: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(context.get(field) for field in CONTEXT)


def _ran_since(df: pd.DataFrame, start: Mapping[str, Any]) -> bool:
    started, when = times.seconds(start.get("when")), df.loc[df["cell"] == start["cell"], "when"]
    return bool((when.map(times.seconds).astype(float) > started).any())


def grid_note(df: pd.DataFrame) -> str:
    """How much of the grid is finished, judged by the axis values seen; empty where all of it is."""
    done = total = 0
    for _, cells in df.groupby(df["cell"].str.partition("[")[0]):
        axes = [axis for axis in results.axes(df) if cells[axis].notna().all()]
        if not cells["cell"].str.contains(r"\bseed\d").all():  # every record has a seed; here it is no axis
            axes = [axis for axis in axes if axis != "seed"]
        total, done = total + grid_size(cells, axes), done + int((cells["status"] == "passed").sum())
    return f"unfinished grid: {done} of {total} cells" if done < total else ""


def grid_size(cells: pd.DataFrame, axes: list[str]) -> int:
    """Cells of the grid that these are of: the product of its axes. An axis whose values have values of another axis to
    themselves (kernels with shapes of their own) makes a grid for each.
    """
    for outer, inner in itertools.permutations(axes, 2):
        if cells[outer].nunique() > 1 and cells.groupby(inner)[outer].nunique().max() == 1:
            rest = [axis for axis in axes if axis != outer]
            return sum(grid_size(part, rest) for _, part in cells.groupby(outer))
    return math.prod(cells[axis].nunique() for axis in axes)


def environment(df: pd.DataFrame) -> dict[str, str]:
    """What the records were made with, and when."""

    def all_of(name: str) -> str:
        return ", ".join(sorted(map(str, df[name].dropna().unique())))

    dirty = int(df["dirty"].fillna(False).astype(bool).sum())
    replayed = int(df["replayed"].fillna(False).astype(bool).sum())
    when = times.in_order(df["when"])
    facts = {name: all_of(name) for name in ("machine", "device", "dtype", "scale", "weights", "corpus", "overrides")}
    facts["commit"] = all_of("commit") + (f" (uncommitted changes in {dirty} of {len(df)} records)" if dirty else "")
    facts |= {name: all_of(name) for name in ("torch", "transformers", "python")}
    facts["measured"] = " to ".join(dict.fromkeys((when[0], when[-1]))) if when else ""
    facts["records"] = f"{len(df)}" + (f", {replayed} replayed" if replayed else "") + f", from {all_of('source')}"
    finished = df[df["status"] == "passed"]
    disturbed = len(disturbances(finished))
    facts["disturbed"] = f"{disturbed} of {len(finished)} records" if disturbed else ""
    facts["cpu governor"] = all_of("cpu_governor") if "cpu_governor" in df else ""
    older = df.attrs.get("superseded", 0)
    facts["left out"] = f"{older} older records of the same cells" if older else ""
    return {name: text for name, text in facts.items() if text}

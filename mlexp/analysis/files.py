"""Benchmark JSON and journals as rows. An error is one line that names the file; other programs' files are skipped."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlexp import journal
from mlexp.analysis import sources
from mlexp.analysis.arrays import Arrays
from mlexp.analysis.checks import field_of, kind_name, numbers, scalar
from mlexp.analysis.sources import LoadError as LoadError  # callers catch it as files.LoadError
from mlexp.analysis.sources import NotResults
from mlexp.analysis.times import seconds
from mlexp.record import METRICS, STATUSES, metrics_of

TIMING = ("wall_s", "wall_iqr_s", "rounds")
IDENTITY = (
    "status",
    "question",
    "cell",
    "key",
    "when",
    "replayed",
    "source",
)  # ignored in a file that is not ours
SHOWN = 5  # skipped files that are named


@dataclass
class Row:
    """One record as read: its axes, its flat values (metrics and provenance), its series as nested lists, or where
    they are (see mlexp.series)."""

    params: dict[str, Any]
    values: dict[str, Any]
    series: dict[str, Any]
    study: dict[str, Any] = field(default_factory=dict)  # what the study declared when it was measured
    folder: Path = Path()  # of the file, where the files of its large series are


@dataclass
class Loaded:
    """All that the given paths hold: unique rows, the questions' own metrics, and notes for the reader."""

    rows: list[Row] = field(default_factory=list)
    metrics: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)  # question -> name -> its Metric
    notes: list[str] = field(default_factory=list)
    died: list[dict[str, Any]] = field(default_factory=list)  # cells that started and never ended: {cell, key, when}
    never_ran: list[str] = field(default_factory=list)  # cells that a run selected and no file has
    older: list[Row] = field(default_factory=list)  # rows of a key in `rows`, measured at another commit
    commits: dict[str, str] = field(default_factory=dict)  # commit -> its time, where a benchmark JSON says it
    empty: list[Path] = field(default_factory=list)  # folders given in which no file holds results

    def add(self, other: "Loaded") -> None:
        """Append all that one more file holds."""
        for name in ("rows", "notes", "died", "never_ran"):
            getattr(self, name).extend(getattr(other, name))
        for question, table in other.metrics.items():
            self.metrics.setdefault(question, {}).update(table)
        self.commits |= other.commits


def read(*paths: str | Path) -> Loaded:
    """Everything in `paths`. A key seen twice is one row: the measured before the replayed, then the newest."""
    if not paths:
        raise ValueError("no path given; give benchmark JSON files, journals or folders of either")
    loaded = Loaded()
    files: dict[Path, tuple[Path, bool]] = {}
    within: dict[Path, set[Path]] = {}  # path given -> its files
    skipped: list[str] = []
    for path in map(Path, paths):
        for file, named in sources.find(path):
            files.setdefault(file.resolve(), (file, named))
            within.setdefault(path, set()).add(file.resolve())
    others: set[Path] = set()
    for whole, (file, named) in files.items():
        try:
            parse = _read_journal if sources.is_journal(file) else _read_json
            loaded.add(parse(file, sources.text(file)))
        except NotResults as error:
            if named:
                raise
            skipped.append(str(error))
            others.add(whole)
    loaded.empty = [path for path in map(Path, paths) if within.get(path, set()) <= others]
    loaded.notes += _notes(skipped, loaded.rows)
    loaded.rows, loaded.older = _unique(loaded.rows), _unique(loaded.rows, "commit")
    newest = set(map(id, loaded.rows))
    loaded.older = [row for row in loaded.older if id(row) not in newest]
    seen = {row.values["cell"] for row in loaded.rows}
    loaded.never_ran = sorted(set(loaded.never_ran) - seen)
    finished = {row.values.get("key") for row in loaded.rows}
    loaded.died = [start for start in loaded.died if start["key"] not in finished]
    return loaded


def is_of(cell: str, question: str) -> bool:
    """Whether a cell, by its node id, is of a question: its bench file stands in the question's folder."""
    return f"/{question}/" in f"/{cell}"


def arrays(row: Row) -> Arrays:
    """The series of a row as arrays, each read when it is asked for; null becomes NaN."""
    return Arrays(row.series, row.folder, row.values["source"])


def timing_of(durations: Sequence[float]) -> dict[str, float | None]:
    """Median, interquartile range (None for a single round: it has no spread) and number of the timed rounds."""
    if not durations:
        return {}
    quartiles: Any = statistics.quantiles(durations, n=4, method="inclusive") if len(durations) > 1 else None
    iqr = quartiles and quartiles[2] - quartiles[0]
    return dict(zip(TIMING, (statistics.median(durations), iqr, len(durations)), strict=True))


def _read_json(file: Path, text: str) -> Loaded:
    """The rows of a benchmark JSON. Raises NotResults for JSON of another program."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        wrong = f"{file}: not JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        raise sources.damaged(text)(wrong) from None
    except ValueError as error:  # an integer of thousands of digits
        raise sources.damaged(text)(f"{file}: not JSON ({str(error).split(';')[0]})") from None
    except RecursionError:
        raise sources.damaged(text)(f"{file}: nested too deeply to be results") from None
    if not isinstance(data, dict):
        raise NotResults(f"{file}: the JSON is {kind_name(data)}, not the object that pytest-benchmark writes")
    if "benchmarks" not in data:
        raise NotResults(f"{file}: not benchmark JSON (it has no 'benchmarks')")
    try:
        return _benchmarks(file, data)
    except LoadError as error:
        raise (LoadError if sources.benchmark_like(data) else NotResults)(str(error)) from None


def _benchmarks(file: Path, data: dict[str, Any]) -> Loaded:
    loaded = Loaded()
    _take_metrics(field_of(data, "metrics", dict, str(file)), str(file), loaded)
    commit = field_of(data, "commit_info", dict, str(file))
    if isinstance(commit.get("id"), str) and isinstance(commit.get("time"), str):
        loaded.commits[commit["id"]] = commit["time"]
    series, planned = field_of(data, "series", dict, str(file)), field_of(data, "planned", list, str(file))
    studies = field_of(data, "studies", dict, str(file))
    loaded.never_ran += [cell for cell in planned if isinstance(cell, str)]
    for kind in ("benchmarks", "unfinished"):
        for i, bench in enumerate(field_of(data, kind, list, str(file))):
            loaded.rows.append(_bench_row(bench, f"{file}: {kind}[{i}]", data, series, timed=kind == "benchmarks"))
            row = loaded.rows[-1]
            row.folder, row.values["source"] = file.parent, file.name
            row.study = field_of(studies, str(row.values.get("question")), dict, f"{file}: studies")
    return loaded


def _bench_row(bench: object, where: str, data: dict[str, Any], series: dict[str, Any], timed: bool) -> Row:
    if not isinstance(bench, dict):
        raise LoadError(f"{where} is {kind_name(bench)}, not an object")
    extra, name = field_of(bench, "extra_info", dict, where), bench.get("fullname", bench.get("name"))
    if not isinstance(name, str):
        raise LoadError(f"{where}.fullname is {kind_name(name)}, not a string")
    if all(isinstance(extra.get(key), str) for key in ("key", "status", "question")):
        values = {key: value for key, value in extra.items() if key not in TIMING} | {"cell": name}
        _check_metrics(values, where)
    else:
        values = _environment(data, where) | {key: value for key, value in extra.items() if key not in IDENTITY}
        values |= {"cell": name, "status": "passed" if timed else "failed"}
    stats = field_of(bench, "stats", dict, where)
    if timed and not stats:
        raise LoadError(f"{where}.stats is missing or empty")
    timing = timing_of(numbers(field_of(stats, "data", list, f"{where}.stats"), f"{where}.stats.data"))
    if not timing:
        summary = {name: stats.get(key) for name, key in zip(TIMING, ("median", "iqr", "rounds"), strict=True)}
        timing = {name: value for name, value in summary.items() if value is not None}
        numbers(list(timing.values()), f"{where}.stats")
    own = field_of(series, values.get("key", ""), dict, "series")
    return _row(field_of(bench, "params", dict, where), values | timing, own, where)


def _environment(data: dict[str, Any], where: str) -> dict[str, Any]:
    """What a plain pytest-benchmark file says of where it was made, under our names."""
    machine, commit = field_of(data, "machine_info", dict, where), field_of(data, "commit_info", dict, where)
    cpu = machine.get("cpu")
    return {
        "machine": cpu.get("brand_raw") if isinstance(cpu, dict) else None,
        "python": machine.get("python_version"),
        "commit": commit.get("id"),
        "dirty": commit["dirty"] if isinstance(commit.get("dirty"), bool) else None,
        "when": data.get("datetime"),
    }


def _read_journal(file: Path, text: str) -> Loaded:
    """The rows of a journal. Raises NotResults for JSON lines of another program."""
    contents, loaded = journal.parse(text), Loaded()
    if (contents.altered or contents.torn) and not sources.journal_like(text):
        raise NotResults(f"{file}: not a journal of mlexp (line {min(contents.altered + contents.torn)})")
    if contents.altered:
        shown = ", ".join(map(str, contents.altered[:8])) + (", ..." if len(contents.altered) > 8 else "")
        raise LoadError(f"{file}: damaged at line {shown}: not as the harness wrote it")
    if contents.torn:
        numbers = ", ".join(map(str, contents.torn))
        loaded.notes.append(f"{file}: line {numbers} was cut short by a kill; its cell is not counted")
    loaded.died += contents.died
    newest = {entry.key: entry for entry in contents.entries}  # what stands later is newer, whatever the clock said
    late = _not_before(contents.entries)
    for i, entry in enumerate(contents.entries, 1):
        if newest[entry.key] is not entry:
            continue
        where = f"{file}: cell {i}"
        _take_metrics({entry.question: entry.metrics} if entry.metrics else {}, where, loaded)
        identity = {"cell": entry.cell, "key": entry.key, "question": entry.question, "source": file.name}
        timing = timing_of([float(scalar(duration)) for duration in entry.durations])
        own = {name: value for name, value in entry.record.items() if name not in TIMING}
        _check_metrics(own, where)
        when = {"when": late[i - 1]} if i - 1 in late else {}
        row = _row(entry.params, own | when | timing | identity, entry.series, where)
        row.study, row.folder = entry.study, file.parent
        loaded.rows.append(row)
    if late:
        loaded.notes.append(
            f"{file}: {len(late)} records are dated before a record of the same cell that stands above them; "
            "they count as newer"
        )
    return loaded


def _not_before(entries: list[journal.Entry]) -> dict[int, str]:
    """The times of the entries before which another entry of the same cell bears a later one: that later time.

    What stands later in a journal is newer, also where the clock was set back in between.
    """
    newest: dict[str, Any] = {}
    late: dict[int, str] = {}
    for i, entry in enumerate(entries):
        when = entry.record.get("when")
        before = newest.get(entry.cell)
        if seconds(before) > seconds(when):
            late[i] = str(before)
        else:
            newest[entry.cell] = when
    return late


def _notes(skipped: list[str], rows: list[Row]) -> list[str]:
    """What a reader should know: files of other programs, times that are none."""
    notes = []
    if skipped:
        names = "; ".join(skipped[:SHOWN]) + ("; ..." if len(skipped) > SHOWN else "")
        notes.append(f"skipped {len(skipped)} file{'s' * (len(skipped) > 1)} that hold no results: {names}")
    undated = [
        row.values["when"] for row in rows if row.values.get("when") and seconds(row.values["when"]) == -math.inf
    ]
    if undated:
        notes.append(f"{undated[0]!r:.40} is no ISO 8601 time; {len(undated)} such times count as the oldest")
    return notes


def _check_metrics(values: Mapping[str, object], where: str) -> None:
    """Raises LoadError where a shared metric of ours is not of its kind."""
    for name, value in values.items():
        if name in METRICS and METRICS[name].unit != "name" and not isinstance(value, int | float | None):
            raise LoadError(f"{where}: {name} is {kind_name(value)}, not a number")


def _row(params: dict[str, Any], values: dict[str, Any], series: dict[str, Any], where: str) -> Row:
    """A row of plain scalars; raises LoadError for a status or a timestamp that is none."""
    values = {name: scalar(value) for name, value in values.items()}
    if values.get("status") not in STATUSES:
        raise LoadError(f"{where}: status is {values.get('status')!r:.40}; known: {', '.join(STATUSES)}")
    if not isinstance(values.get("when"), str | None):
        raise LoadError(f"{where}: when is {values['when']!r:.40}, not a timestamp")
    return Row({name: scalar(value) for name, value in params.items()}, values, series)


def _unique(rows: list[Row], *fields: str) -> list[Row]:
    """One row a key (and value of `fields`): the measured before the replayed, then the newest; a row without a key
    stands for itself.
    """
    best: dict[object, Row] = {}
    for i, row in enumerate(rows):
        key = (row.values.get("key", i), *map(row.values.get, fields))
        before = best.setdefault(key, row)
        if _rank(row) > _rank(before):
            best[key] = row
        with_series = next((one for one in (best[key], before, row) if one.series), row)
        best[key].series, best[key].folder = with_series.series, with_series.folder
    return list(best.values())


def _rank(row: Row) -> tuple[bool, float]:
    return not row.values.get("replayed"), seconds(row.values.get("when"))


def _take_metrics(declared: Mapping[str, Any], where: str, loaded: Loaded) -> None:
    for question in declared:
        table = {
            name: tuple(row) if isinstance(row, list) else ()
            for name, row in field_of(declared, question, dict, where).items()
        }
        try:
            metrics_of(table)
        except ValueError as error:
            raise LoadError(f"{where}: {error}") from None
        loaded.metrics.setdefault(question, {}).update(table)

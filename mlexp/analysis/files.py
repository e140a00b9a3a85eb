"""Benchmark JSON and journals as rows, every wrong file told in one line."""

import json
import math
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mlexp import journal
from mlexp.record import METRICS, STATUSES, metrics_of

TIMING = ("wall_s", "wall_iqr_s", "rounds")
IDENTITY = ("status", "question", "cell", "key", "replayed", "source")  # never believed of a file that is not ours
KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}


class LoadError(ValueError):
    """A file that cannot be read as results; the message is one line that names it and says what is wrong."""


@dataclass
class Row:
    """One record as read: its axes, its flat values (metrics and provenance), its series as nested lists."""

    params: dict
    values: dict
    series: dict


@dataclass
class Loaded:
    """All that the given paths hold: unique rows, the questions' own metrics, and what the reader should be told."""

    rows: list[Row] = field(default_factory=list)
    metrics: dict[str, dict] = field(default_factory=dict)  # question -> name -> [unit, better, what]
    notes: list[str] = field(default_factory=list)
    died: list[dict] = field(default_factory=list)  # cells that started and never ended: {cell, key, when}
    never_ran: list[str] = field(default_factory=list)  # cells that a run selected and no file has
    older: list[Row] = field(default_factory=list)  # rows of a key in `rows`, measured at another commit
    commits: dict[str, str] = field(default_factory=dict)  # commit -> its time, where a benchmark JSON says it


def read(*paths: str | Path) -> Loaded:
    """Everything in `paths`. A key seen twice is one row: the measured before the replayed, then the newest."""
    if not paths:
        raise ValueError("no path given; give benchmark JSON files, journals or folders of either")
    loaded, files = Loaded(), {}
    for path in map(Path, paths):
        for file, named in _files(path):
            files.setdefault(file.resolve(), (file, named))
    for file, named in files.values():
        try:
            (_read_journal if file.suffix == ".jsonl" else _read_json)(file, named, loaded)
        except RecursionError:
            raise LoadError(f"{file}: nested too deeply to be results") from None
    loaded.rows, loaded.older = _unique(loaded.rows), _unique(loaded.rows, "commit")
    kept = set(map(id, loaded.rows))
    loaded.older = [row for row in loaded.older if id(row) not in kept]
    seen = {row.values["cell"] for row in loaded.rows}
    loaded.never_ran = sorted(set(loaded.never_ran) - seen)
    finished = {row.values.get("key") for row in loaded.rows}
    loaded.died = [start for start in loaded.died if start["key"] not in finished]
    return loaded


def arrays(row: Row) -> dict[str, np.ndarray]:
    """The series of a row as arrays; null becomes NaN."""
    return {name: _array(nested, f"{row.values['source']}: series {name!r}") for name, nested in row.series.items()}


def timing_of(durations: list) -> dict:
    """Median, interquartile range (None for a single round: it has no spread) and number of the timed rounds."""
    if not durations:
        return {}
    quartiles = statistics.quantiles(durations, n=4, method="inclusive") if len(durations) > 1 else None
    iqr = quartiles and quartiles[2] - quartiles[0]
    return dict(zip(TIMING, (statistics.median(durations), iqr, len(durations)), strict=True))


def _files(path: Path) -> Iterator[tuple[Path, bool]]:
    """The files that `path` stands for, each with whether it was named itself."""
    if not path.exists():
        raise LoadError(f"{path}: no such file or folder")
    if not path.is_dir():
        yield path, True
        return
    for file in sorted(path.rglob("*.json*")):
        folders = file.relative_to(path).parts[:-1]
        hidden = any(part.startswith(".") and part not in (".mlexp", ".benchmarks") for part in folders)
        if file.suffix in (".json", ".jsonl") and file.is_file() and not hidden:
            yield file, False


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise LoadError(f"{file}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise LoadError(f"{file}: not text in UTF-8 (byte {error.start})") from None


def _read_json(file: Path, named: bool, loaded: Loaded) -> None:
    text = _text(file)
    ours = named or re.search(r'"(machine_info|benchmarks)"\s*:', text[:100_000])  # then it may not be silently skipped
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        wrong = f"{file}: not JSON (line {error.lineno}, column {error.colno}: {error.msg})"
    except ValueError as error:  # an integer of thousands of digits
        wrong = f"{file}: not JSON ({str(error).split(';')[0]})"
    else:
        ours, wrong = named, ""
        if not isinstance(data, dict):
            wrong = f"{file}: the JSON is {_kind(data)}, not the object that pytest-benchmark writes"
        elif "benchmarks" not in data:
            wrong = f"{file}: not benchmark JSON (it has no 'benchmarks')"
    if wrong and ours:
        raise LoadError(wrong)
    if wrong:
        loaded.notes.append(f"{wrong}; skipped")
        return
    _take_metrics(_get(data, "metrics", dict, str(file)), str(file), loaded)
    commit = _get(data, "commit_info", dict, str(file))
    if isinstance(commit.get("id"), str) and isinstance(commit.get("time"), str):
        loaded.commits[commit["id"]] = commit["time"]
    series, planned = _get(data, "series", dict, str(file)), _get(data, "planned", list, str(file))
    loaded.never_ran += [cell for cell in planned if isinstance(cell, str)]
    for kind in ("benchmarks", "unfinished"):
        for i, bench in enumerate(_get(data, kind, list, str(file))):
            loaded.rows.append(_bench_row(bench, f"{file}: {kind}[{i}]", data, series, timed=kind == "benchmarks"))
            loaded.rows[-1].values["source"] = file.name


def _bench_row(bench: object, where: str, data: dict, series: dict, timed: bool) -> Row:
    if not isinstance(bench, dict):
        raise LoadError(f"{where} is {_kind(bench)}, not an object")
    extra, name = _get(bench, "extra_info", dict, where), bench.get("fullname", bench.get("name"))
    if not isinstance(name, str):
        raise LoadError(f"{where}.fullname is {_kind(name)}, not a string")
    if all(isinstance(extra.get(key), str) for key in ("key", "status", "question")):
        values = {key: value for key, value in extra.items() if key not in TIMING} | {"cell": name}
        _check_metrics(values, where)
    else:
        values = _environment(data, where) | {key: value for key, value in extra.items() if key not in IDENTITY}
        values |= {"cell": name, "status": "passed" if timed else "failed"}
    stats = _get(bench, "stats", dict, where)
    if timed and not stats:
        raise LoadError(f"{where}.stats is missing or empty")
    timing = timing_of(_numbers(_get(stats, "data", list, f"{where}.stats"), f"{where}.stats.data"))
    if not timing:
        summary = {name: stats.get(key) for name, key in zip(TIMING, ("median", "iqr", "rounds"), strict=True)}
        timing = {name: value for name, value in summary.items() if value is not None}
        _numbers(list(timing.values()), f"{where}.stats")
    own = _get(series, values.get("key", ""), dict, "series")
    return _row(_get(bench, "params", dict, where), values | timing, own, where)


def _environment(data: dict, where: str) -> dict:
    """What a plain pytest-benchmark file says of where it was made, under our names."""
    machine, commit = _get(data, "machine_info", dict, where), _get(data, "commit_info", dict, where)
    cpu = machine.get("cpu")
    return {
        "machine": cpu.get("brand_raw") if isinstance(cpu, dict) else None,
        "python": machine.get("python_version"),
        "commit": commit.get("id"),
        "dirty": commit["dirty"] if isinstance(commit.get("dirty"), bool) else None,
        "when": data.get("datetime"),
    }


def _read_journal(file: Path, named: bool, loaded: Loaded) -> None:
    text = _text(file)
    if not named and '"event":' not in text[:1000]:
        loaded.notes.append(f"{file}: not a journal of mlexp; skipped")
        return
    try:
        contents = journal.read(file)
    except journal.JournalError as error:
        raise LoadError(str(error)) from None
    if contents.altered:
        shown = ", ".join(map(str, contents.altered[:8])) + (", ..." if len(contents.altered) > 8 else "")
        raise LoadError(f"{file}: damaged at line {shown}: not as the harness wrote it")
    if contents.torn:
        numbers = ", ".join(map(str, contents.torn))
        loaded.notes.append(f"{file}: line {numbers} was cut short by a kill; its cell is not counted")
    loaded.died += contents.died
    newest = {entry.key: entry for entry in contents.entries}  # what stands later is newer, whatever the clock said
    for i, entry in enumerate(contents.entries, 1):
        if newest[entry.key] is not entry:
            continue
        where = f"{file}: cell {i}"
        _take_metrics({entry.question: entry.metrics} if entry.metrics else {}, where, loaded)
        identity = {"cell": entry.cell, "key": entry.key, "question": entry.question, "source": file.name}
        timing = timing_of([float(_scalar(duration)) for duration in entry.durations])
        own = {name: value for name, value in entry.record.items() if name not in TIMING}
        _check_metrics(own, where)
        loaded.rows.append(_row(entry.params, own | timing | identity, entry.series, where))


def _check_metrics(values: dict, where: str) -> None:
    """Raises LoadError where a shared metric of ours is not of its kind."""
    for name, value in values.items():
        if name in METRICS and METRICS[name].unit != "name" and not isinstance(value, int | float | None):
            raise LoadError(f"{where}: {name} is {_kind(value)}, not a number")


def _row(params: dict, values: dict, series: dict, where: str) -> Row:
    """A row of plain scalars; raises LoadError for a status or a timestamp that is none."""
    values = {name: _scalar(value) for name, value in values.items()}
    if values.get("status") not in STATUSES:
        raise LoadError(f"{where}: status is {values.get('status')!r:.40}; known: {', '.join(STATUSES)}")
    if not isinstance(values.get("when"), str | None):
        raise LoadError(f"{where}: when is {values['when']!r:.40}, not a timestamp")
    return Row({name: _scalar(value) for name, value in params.items()}, values, series)


def _scalar(value: object) -> object:
    """`value` as a table can hold it: what is nested becomes its JSON text, lone surrogates become '?'."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else float(value) if abs(value) < 2**1023 else math.inf
    text = value if isinstance(value, str) else json.dumps(value)
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _unique(rows: list[Row], *fields: str) -> list[Row]:
    """One row a key (and value of `fields`): the measured before the replayed, then the newest; a row without a key
    stands for itself.
    """
    best: dict[object, Row] = {}
    for i, row in enumerate(rows):
        key = (row.values.get("key", i), *map(row.values.get, fields))
        kept = best.setdefault(key, row)
        if _rank(row) > _rank(kept):
            best[key] = row
        best[key].series = best[key].series or kept.series or row.series
    return list(best.values())


def _rank(row: Row) -> tuple[bool, str]:
    return not row.values.get("replayed"), row.values.get("when") or ""


def _take_metrics(declared: dict, where: str, loaded: Loaded) -> None:
    for question in declared:
        table = {
            name: tuple(row) if isinstance(row, list) else ()
            for name, row in _get(declared, question, dict, where).items()
        }
        try:
            metrics_of(table)
        except ValueError as error:
            raise LoadError(f"{where}: {error}") from None
        loaded.metrics.setdefault(question, {}).update(table)


def _get(data: dict, name: str, kind: type, where: str):
    """`data[name]`, an empty `kind` where it is missing or null; raises LoadError for another kind."""
    value = data.get(name)
    if value is not None and not isinstance(value, kind):
        raise LoadError(f"{where}: {name} is {_kind(value)}, not {KINDS[kind]}")
    return kind() if value is None else value


def _numbers(values: list, where: str) -> list[float]:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise LoadError(f"{where} holds {_kind(value)}, not a number")
    numbers = [float(_scalar(value)) for value in values]
    for value in numbers:
        if not 0 <= value < math.inf:
            raise LoadError(f"{where} holds {value}, not a finite time")
    return numbers


def _kind(value: object) -> str:
    return KINDS.get(type(value), "a number")


def _array(nested: object, where: str) -> np.ndarray:
    try:
        return np.array(nested, dtype=float)
    except (ValueError, TypeError, OverflowError):
        raise LoadError(f"{where} is not a rectangular array of numbers") from None

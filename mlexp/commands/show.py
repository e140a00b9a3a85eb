"""`mlexp show`: a record: its metrics, its settings, its series, what it ran under, where it comes from."""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlexp.record import CONDITIONS, METRICS, PROVENANCE, Metric

if TYPE_CHECKING:
    from mlexp.analysis.files import Row

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
    Tables = Mapping[str, Mapping[str, Metric]]

OK, NOTHING, BAD_INPUT = 0, 2, 4
SHOWN = 20  # cells that are named where several are meant
TITLES = 12  # the width of what stands before a row
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 32  # of a series as bars
ELSEWHERE = ("status", "reason", "settings", "overrides", "question", "cell", *CONDITIONS)  # shown under other titles


def add(commands: "Commands") -> None:
    """The command's own arguments."""
    show = commands.add_parser(
        "show",
        help="one record: metrics, settings, series, provenance",
        description="The records of one cell, the newest first: metrics with units and what they are, the settings, "
        "what the rounds ran beside, series, provenance.",
        epilog="exit status: 0 shown; 2 no such cell, or no records; 4 several cells are meant, or unreadable input",
    )
    show.add_argument(
        "cell", metavar="CELL", help="a node id, the part in its brackets, a key, or a part of one of them"
    )
    show.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="default: .mlexp/journal.jsonl, results/raw")
    show.add_argument("--json", action="store_true", help="everything, for programs; series in full")
    show.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the records of the cell that is meant."""
    from mlexp.analysis.files import LoadError, read
    from mlexp.analysis.sources import DEFAULT_PATHS

    paths = options.paths or [path for path in DEFAULT_PATHS if path.exists()]
    if not paths:
        return _say(NOTHING, "no records: no .mlexp/journal.jsonl, no results/raw; run `pytest benches` or give a path")
    try:
        loaded = read(*paths)
        found = named([*loaded.older, *loaded.rows], options.cell)
        tables = {question: own(rows) for question, rows in loaded.metrics.items()}
    except LoadError as error:
        return _say(BAD_INPUT, str(error))
    cells = list(dict.fromkeys(row.values["cell"] for row in found))
    if not cells:
        died = [start for start in loaded.died if options.cell in start["cell"]]
        return _say(
            NOTHING,
            f"{died[-1]['cell']} started at {died[-1].get('when')} and never ended: no record"
            if died
            else f"none of {len(loaded.rows)} records is of a cell {options.cell!r}",
        )
    if len(cells) > 1:
        more = [f"... and {len(cells) - SHOWN} more"] if len(cells) > SHOWN else []
        return _say(BAD_INPUT, f"{options.cell!r} is part of {len(cells)} cells:", *cells[:SHOWN], *more)
    shown = [as_dict(row, tables) for row in newest_first(found)]
    print(as_json(shown) if options.json else "\n\n".join("\n".join(lines(each)) for each in shown))
    return OK


def as_json(shown: object) -> str:
    """As JSON, with null for what is not finite."""
    return json.dumps(json.loads(json.dumps(shown), parse_constant=lambda name: None), indent=2)


def _say(status: int, first: str, *others: str) -> int:
    print(f"mlexp show: {first}", *others, sep="\n    ", file=sys.stderr)
    return status


def named(rows: Sequence["Row"], name: str) -> list["Row"]:
    """The rows that a name means: those that bear it, else those that have it as a part."""
    whole = [row for row in rows if name in _names(row)]
    return whole or [row for row in rows if any(name in part for part in _names(row))]


def _names(row: "Row") -> tuple[str, ...]:
    """What a record may be called: its node id, that without the file, the id in its brackets, its key."""
    cell = str(row.values["cell"])
    _, _, test = cell.partition("::")
    return cell, test, test.partition("[")[2].removesuffix("]"), str(row.values.get("key", ""))


def newest_first(rows: Sequence["Row"]) -> list["Row"]:
    """The newest record first; of those of one second, the one that stands last in the files."""
    from mlexp.analysis.times import seconds

    return sorted(rows, key=lambda row: seconds(row.values.get("when")))[::-1]


def own(rows: Mapping[str, tuple[str, ...]]) -> dict[str, Metric]:
    """The metrics that a question declares."""
    return {name: Metric(*row) for name, row in rows.items()}


def as_dict(row: "Row", tables: "Tables") -> dict[str, Any]:
    """All that there is of a record, in parts."""
    from mlexp.analysis.files import arrays

    values = row.values
    declared = tables.get(str(values.get("question")), {})
    table = {**declared, **METRICS}
    outcome = row.study.get("outcome")
    order = dict.fromkeys([outcome, *declared, "wall_s", "wall_iqr_s", "rounds", *METRICS])
    metrics = {
        name: {"value": values[name], **_about(table[name])} for name in order if name in table and name in values
    }
    undeclared = [name for name in values if name not in {*table, *PROVENANCE}]
    return {
        "cell": values["cell"],
        "status": values["status"],
        "reason": values.get("reason"),
        "axes": row.params,
        "metrics": metrics | {name: {"value": values[name]} for name in undeclared},
        "settings": _settings(values),
        "ran_beside": {name: values[name] for name in CONDITIONS if values.get(name) is not None},
        "series": {name: array.tolist() for name, array in arrays(row).items()},
        "provenance": {name: values[name] for name in PROVENANCE if name in values and name not in ELSEWHERE},
    }


def _about(metric: Metric) -> dict[str, str]:
    return {"unit": metric.unit, "better": metric.better, "what": metric.what}


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the cells of a question share; what `--set` changed is marked by the key `overrides`."""
    try:
        settings: Any = json.loads(values.get("settings") or "{}")
    except (TypeError, ValueError):
        settings = {}
    shared = settings if isinstance(settings, dict) else {}
    return shared | ({"overrides": values["overrides"]} if values.get("overrides") else {})


def lines(record: Mapping[str, Any]) -> Iterator[str]:
    """A record for people."""
    reason = f": {record['reason']}" if record["reason"] else ""
    yield f"{record['cell']}  {record['status']}{reason}"
    parts = {
        "axes": _pairs(record["axes"]),
        "metrics": (f"{name} = {_metric(name, each, record['metrics'])}" for name, each in _measured(record)),
        "settings": _pairs(record["settings"]),
        "ran beside": (f"{name} = {_number(value)} ({CONDITIONS[name].what})" for name, value in _beside(record)),
        "series": (f"{name}: {_series(values)}" for name, values in record["series"].items()),
        "provenance": _pairs(record["provenance"]),
    }
    for title, rows in parts.items():
        for number, row in enumerate(rows):
            yield f"  {'' if number else title:{TITLES}}{row}"


def _pairs(values: Mapping[str, Any]) -> Iterator[str]:
    return (f"{name} = {value}" for name, value in values.items() if value not in (None, ""))


def _measured(record: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The metrics that have a value; the spread and the number of rounds stand beside the time."""
    beside = ("wall_iqr_s", "rounds") if "wall_s" in record["metrics"] else ()
    return ((n, each) for n, each in record["metrics"].items() if n not in beside and each["value"] is not None)


def _beside(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in record["ran_beside"].items() if value not in (0, "", None))


def _metric(name: str, each: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """A value with its unit and what it is; of the time also how far its rounds lie apart."""
    spread, unit = "", each.get("unit", "")
    if name == "wall_s" and "rounds" in metrics:
        iqr, rounds = (metrics.get(n, {}).get("value") for n in ("wall_iqr_s", "rounds"))
        spread = f" (interquartile range {_number(iqr)} s, {rounds} rounds)" if iqr is not None else " (1 round)"
    better = f", {each['better']} is better" if each.get("better", "none") != "none" else ""
    text = f"{_number(each['value'])}{'' if unit in ('', 'name') else f' {unit}'}{spread}"
    return f"{text}  {each['what']}{better}" if "what" in each else text


def _number(value: object) -> str:
    """Four digits of what is no whole number; whole numbers in full."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _series(values: list[Any]) -> str:
    """The length of a series, its ends, its range and its shape."""
    import numpy as np

    array = np.asarray(values, float)
    finite = array[np.isfinite(array)]
    size = "x".join(map(str, array.shape)) if array.ndim > 1 else str(array.size)
    if not finite.size:
        return f"{size} values, none finite"
    ends = f"{_number(float(array.flat[0]))} to {_number(float(array.flat[-1]))}"
    text = f"{size} values, {ends}, within {_number(float(finite.min()))} and {_number(float(finite.max()))}"
    return f"{text}  {bars(array)}" if array.ndim == 1 and array.size > 2 else text


def bars(array: Any) -> str:
    """A series as a row of bars from its least to its greatest value; a gap where it has none."""
    import numpy as np

    parts = np.array_split(array, min(WIDTH, len(array)))
    means = [float(np.mean(part[np.isfinite(part)])) if np.isfinite(part).any() else math.nan for part in parts]
    known = [value for value in means if not math.isnan(value)]
    low, high = min(known), max(known)
    step = (high - low) / (len(BARS) - 1) or 1.0
    return "".join(" " if math.isnan(value) else BARS[round((value - low) / step)] for value in means)

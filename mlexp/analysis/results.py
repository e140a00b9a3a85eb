"""Records as one tidy DataFrame: a row a record, raw values; contexts apart, pairs made before division."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlexp.analysis.files import TIMING, Loaded, LoadError, Row, arrays, read
from mlexp.analysis.sources import ACCEPTED, NotResults, Paths, paths_in
from mlexp.analysis.times import seconds
from mlexp.record import CONTEXT, METRICS, PROVENANCE, STATUSES, Metric, metrics_of

__all__ = ["LoadError", "axes", "contexts", "describe", "latest", "load", "load_series", "metrics", "paired"]

SAME_WORK = ("question", "weights_hash", "corpus_hash", "prompts_hash")  # the two sides of a pair must share these


def load(*paths: Paths, status: str | None = "passed") -> pd.DataFrame:
    """The records in `paths` as a table, a row a record, raw values in base units (`*_s` seconds, `*_bytes` bytes,
    fractions in [0, 1]; `mlexp.record.METRICS` has all names).

    Args:
        paths: benchmark JSON (of `pytest --benchmark-json`), journals (`.jsonl`), both also gzipped, folders of them,
            or lists of all these. A record that stands in several of them is one row.
        status: the records of this status alone, None for all; unfinished ones say in `reason` what became of them.

    Returns:
        A DataFrame. Columns: the axes of the grid (`attrs["axes"]` names them), metrics, provenance (`status`,
        `machine`, `settings`, `commit`, ... ; `source` is the file). `attrs["studies"]`: what each question declared
        of its arms; `attrs["notes"]`: what was skipped, torn or left out.

    Raises:
        LoadError: one line that names a path which is not there, cannot be read, or holds no results.
    """
    if status is not None and status not in STATUSES:
        raise ValueError(f"unknown status {status!r}; choose from {', '.join(STATUSES)}, or None for all")
    return frame(_read(paths), status)


def load_series(*paths: Paths) -> dict[str, Mapping[str, np.ndarray]]:
    """The arrays that the cells recorded, such as losses by step.

    Args:
        paths: as `load` takes them.

    Returns:
        By the `key` of each record that has any: name -> array of floats, as the cell gave it; null becomes NaN. So
        `load_series(path)[row.key]["loss"]` belongs to a row of `load(path)`.

    Raises:
        LoadError: as `load`; and for a series that is no rectangular array, which it names.
    """
    return {row.values["key"]: arrays(row) for row in _read(paths).rows if row.series}


def _read(given: Sequence[Paths]) -> Loaded:
    """What stands in the paths given, each of which must hold results."""
    try:
        loaded = read(*paths_in(given))
    except NotResults as error:
        raise NotResults(f"{error}; {ACCEPTED}") from None
    if loaded.empty:
        skipped = f" ({'; '.join(loaded.notes)})" if loaded.notes else ""
        raise LoadError(f"{loaded.empty[0]}: no results in this folder{skipped}; {ACCEPTED}")
    return loaded


def metrics(*paths: str | Path) -> dict[str, Metric]:
    """What every metric in `paths` is: the shared table and the questions' own."""
    merged = dict(METRICS)
    for question, declared in read(*paths).metrics.items():
        for name, metric in metrics_of(declared).items():
            if merged.setdefault(name, metric)[:2] != metric[:2]:
                raise LoadError(f"metric {name!r} is {metric[:2]} in {question} and {merged[name][:2]} elsewhere")
    return merged


def frame(loaded: Loaded, status: str | None = None) -> pd.DataFrame:
    """The DataFrame of rows already read, with `attrs` notes and axes."""
    rows = [row for row in loaded.rows if status in (None, row.values["status"])]
    axis_of = _axis_names(rows)
    records = [row.values | {axis_of[name]: value for name, value in row.params.items()} for row in rows]
    declared = [name for table in loaded.metrics.values() for name in table]
    seen = dict.fromkeys(name for record in records for name in record)
    measured = [name for name in (*TIMING, *METRICS, *declared, *seen) if name in seen or name in TIMING]
    measured = [name for name in measured if name not in PROVENANCE]
    columns = list(dict.fromkeys([*axis_of.values(), *measured, *PROVENANCE]))
    data = {name: _typed([record.get(name) for record in records], name in PROVENANCE) for name in columns}
    df = pd.DataFrame(data, columns=columns, index=pd.RangeIndex(len(records)))
    studies = {str(row.values.get("question")): _declared(row.study) for row in rows if row.study.get("arm")}
    left_out = Counter(str(row.values["status"]) for row in loaded.rows if status not in (None, row.values["status"]))
    notes = [f"{n} records are {word}: left out (status=None keeps all)" for word, n in sorted(left_out.items())]
    df.attrs = {"axes": list(axis_of.values()), "notes": [*loaded.notes, *notes], "studies": studies}
    return df


def _declared(study: Mapping[str, Any]) -> dict[str, Any]:
    """What of a study's declaration a reader of its table needs."""
    return {name: study.get(name) for name in ("arm", "arms", "baseline", "over", "replicates", "outcome")}


def _axis_names(rows: list[Row]) -> dict[str, str]:
    """The columns of the axes. `seed` is a recorded field too, which holds the axis's value where there is that axis;
    any other axis with the name of a field comes from a file that is not ours, and makes way.
    """
    fields = {*TIMING, *PROVENANCE, *(name for row in rows for name in row.values)} - {"seed"}
    names = dict.fromkeys(name for row in rows for name in row.params)
    return {name: f"param_{name}" if name in fields else name for name in names}


def _typed(values: list[Any], provenance: bool = False) -> pd.Series:
    """Numbers as numbers, truth values as truth values, text as text; a mixed column keeps its objects."""
    kinds = {type(value) for value in values if value is not None}
    missing = None in values
    if kinds == {bool}:
        return pd.Series(values, dtype="boolean" if missing else bool)
    if not kinds and provenance:
        return pd.Series(values, dtype=object)
    if kinds <= {int, float}:
        return pd.Series(values, dtype=float if missing or float in kinds or not kinds else "int64")
    return pd.Series(values, dtype=object if len(kinds) > 1 else "str")


def axes(df: pd.DataFrame) -> list[str]:
    """The axis columns of a loaded frame: those that stand before the metrics."""
    columns = list(df.columns)
    return df.attrs.get("axes") or columns[: columns.index("wall_s") if "wall_s" in columns else None]


def latest(df: pd.DataFrame) -> pd.DataFrame:
    """The newest record of each cell in each context.

    Args:
        df: records, from `load`.

    Returns:
        These rows of `df`, in its order; `attrs["superseded"]` says how many older ones are left out.
    """
    fields = ["cell", *(field for field in CONTEXT if field in df)]
    newest = by_time(df).drop_duplicates(fields, keep="last").sort_index()
    rows = newest.reset_index(drop=True)
    rows.attrs = {**df.attrs, "superseded": len(df) - len(rows)}
    return rows


def by_time(df: pd.DataFrame) -> pd.DataFrame:
    """The records in the order of their times; of equal ones the later row is the newer."""
    return df.iloc[df["when"].map(seconds).astype(float).argsort(kind="stable")]


def contexts(df: pd.DataFrame) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """The parts of `df` whose records may be compared, the largest first.

    Args:
        df: records, from `load`.

    Returns:
        Pairs of a dict and a DataFrame: what the records of a context share (`machine`, `device`, `dtype`, `scale`,
        `settings`, `weights`, `corpus`, and `overrides` in words), and these records.
    """
    if df.empty:
        return []
    groups = df.groupby([field for field in CONTEXT if field in df], dropna=False, sort=False)
    found = [(_context(group), group.reset_index(drop=True)) for _, group in groups]
    _tell_apart([context for context, _ in found])
    return sorted(found, key=lambda pair: (-len(pair[1]), describe(pair[0]), str(pair[0])))


def _context(df: pd.DataFrame) -> dict[str, Any]:
    context = {field: None if pd.isna(df[field].iloc[0]) else df[field].iloc[0] for field in CONTEXT if field in df}
    overrides: Iterable[str] = df["overrides"].dropna().unique() if "overrides" in df else []
    return context | {"overrides": "; ".join(sorted(text for text in overrides if text))}


def _tell_apart(found: list[dict[str, Any]]) -> None:
    """Where settings changed without an override (in the code, between runs), say in `overrides` which."""
    for line in [line for line, n in Counter(map(describe, found)).items() if n > 1]:
        alike = [context for context in found if describe(context) == line]
        settings = [_object(context.get("settings")) for context in alike]
        names = [name for name in {n: 0 for s in settings for n in s} if len({str(s.get(name)) for s in settings}) > 1]
        for context, values in zip(alike, settings, strict=True):
            changed = [context["overrides"], *(f"{name}={values.get(name)}" for name in names)]
            context["overrides"] = ", ".join(filter(None, changed))


def _object(text: Any) -> dict[str, Any]:
    """A JSON object from its text; empty where it is none."""
    try:
        value = json.loads(text)
    except (TypeError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def describe(context: Mapping[str, Any]) -> str:
    """One line for people: machine, device, dtype, scale, weights, corpus, overrides."""
    weights = context.get("weights")
    parts = [context.get(field) for field in ("machine", "device", "dtype", "scale")]
    parts += [weights and (weights if "weights" in weights else f"{weights} weights"), context.get("corpus")]
    parts += [context.get("overrides") and f"set {context['overrides']}"]
    return " · ".join(str(part) for part in parts if part) or "context not recorded"


def paired(df: pd.DataFrame, metric: str, arm: str, of: str, to: str, over: Sequence[str]) -> pd.DataFrame:
    """`metric` of arm value `of` beside that of `to`, block by block: the only way to a ratio.

    Columns: `over`, `of`, `to`, `ratio` (of / to), `difference` (to - of), the context. Blocks with a side missing or
    null are listed in `attrs["unpaired"]`. Raises ValueError rather than compare what is not comparable: two
    contexts, two records in a block, other axes or inputs that differ between the sides.
    """
    over = [over] if isinstance(over, str) else list(over)
    _check(df, metric, arm, (of, to), over)
    others = [name for name in axes(df) if name in df and name not in (*over, arm)]
    same = [*others, *(field for field in SAME_WORK if field in df and field not in over)]
    blocks = _sides(df, metric, arm, (of, to), over, same)
    rows, unpaired = [], []
    for block, sides in blocks.items():
        if len(sides) == 2:
            _check_same_work(sides, same, _named(over, block), of, to)
        why = [f"{value}: {'null' if value in sides else 'no record'}" for value in (of, to)
               if value not in sides or pd.isna(sides[value][0])]  # fmt: skip
        if why:
            unpaired.append(_named(over, block) | {"why": "; ".join(why)})
        else:
            rows.append((*block, float(sides[of][0]), float(sides[to][0])))
    result = pd.DataFrame(rows, columns=[*over, "of", "to"])
    with np.errstate(divide="ignore", invalid="ignore"):
        result["ratio"], result["difference"] = result["of"] / result["to"], result["to"] - result["of"]
    for field in (field for field in CONTEXT if field in df and field not in over):
        result[field] = df[field].iloc[0]
    result.attrs = {"unpaired": unpaired, "metric": metric, "of": of, "to": to}
    return result


def _named(over: list[str], block: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(over, block, strict=True))


def _sides(
    df: pd.DataFrame, metric: str, arm: str, values: tuple[str, str], over: list[str], same: list[str]
) -> dict[tuple[Any, ...], dict[str, tuple[Any, ...]]]:
    """block -> arm value -> (metric, what both sides must share); in the order of the records. Plain tuples: merging
    frames of a few rows costs a hundred times what it takes to look at them."""
    found: dict[tuple[Any, ...], dict[str, tuple[Any, ...]]] = {}
    columns = [df[name].tolist() for name in (arm, *over, metric, *same)]
    for value, *row in zip(*columns, strict=True):
        if value not in values:
            continue
        block, rest = tuple(row[: len(over)]), tuple(row[len(over) :])
        sides = found.setdefault(block, {})
        if value in sides:
            raise ValueError(
                f"{value} has several records in block {_named(over, block)}: add the axis that tells them apart, "
                "or use latest()"
            )
        sides[value] = rest
    return found


def _check(df: pd.DataFrame, metric: str, arm: str, values: tuple[str, str], over: list[str]) -> None:
    if not over:
        raise ValueError(f"`over` is empty; name the axes of a block from {', '.join(axes(df))}")
    for name in (arm, *over):
        if name not in df:
            raise ValueError(f"unknown axis {name!r}; choose from {', '.join(axes(df))}")
    if metric not in df:
        numeric = [str(name) for name in df.select_dtypes("number") if name not in (*axes(df), *PROVENANCE)]
        raise ValueError(f"unknown metric {metric!r}; choose from {', '.join(numeric)}")
    if not pd.api.types.is_numeric_dtype(df[metric]):
        raise ValueError(f"metric {metric!r} is not numeric: {df[metric].iloc[0]!r}")
    known = sorted(map(str, df[arm].dropna().unique()))
    for value in values:
        if value not in df[arm].values:
            raise ValueError(f"unknown {arm} {value!r}; choose from {', '.join(known)}")
    if arm in over or values[0] == values[1]:
        raise ValueError(
            f"the arm {arm!r} is compared ({values[0]} with {values[1]}): two values, and not part of the block"
        )
    for field in (field for field in CONTEXT if field in df):
        found = df[field].drop_duplicates()
        if len(found) > 1:
            differing = f"{field} is {_differing(*found.iloc[:2])}; take one of them (mlexp.contexts separates them)"
            raise ValueError(f"records of two contexts are never paired: {differing}")


def _differing(one: object, other: object) -> str:
    """Two values of a field; of two JSON objects only the entries that differ."""
    a, b = _object(one), _object(other)
    if a or b:
        names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
        one, other = ({name: side.get(name) for name in names} for side in (a, b))
    return f"{one!r} and {other!r}"


def _check_same_work(
    sides: dict[str, tuple[Any, ...]], same: list[str], block: dict[str, Any], of: str, to: str
) -> None:
    for field, one, other in zip(same, sides[of][1:], sides[to][1:], strict=True):
        if one != other and not (pd.isna(one) and pd.isna(other)):
            raise ValueError(
                f"{of} and {to} did not do the same work in block {block}: {field} is {_differing(one, other)}"
            )

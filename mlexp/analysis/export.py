"""`mlexp export`: records for other tools, a row a record at full precision, or results of arms as a table.

The file's ending says how: CSV, JSON lines, Parquet, LaTeX. It is written whole or not at all.
"""

import gzip
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mlexp.analysis import latex
from mlexp.analysis.files import Loaded, LoadError, read
from mlexp.analysis.report import default_paths, questions
from mlexp.analysis.results import frame
from mlexp.analysis.sources import ACCEPTED
from mlexp.analysis.summaries import Summary, summaries_of, tidy
from mlexp.store import write

WRITTEN, NOTHING, REFUSED = 0, 2, 4


class Nothing(Exception):
    """There is nothing to export; the message says why."""


def run(
    paths: list[Path],
    to: Path,
    question: str | None = None,
    columns: str | None = None,
    table: str | None = None,
    benches: Path | None = None,
) -> int:
    """`mlexp export`: returns the exit status."""
    try:
        encode = encoder(to)
        given = paths or default_paths()
        if not given:
            raise Nothing(f"no .mlexp/journal.jsonl, no results/raw; {ACCEPTED}")
        loaded = of_question(read(*given), question)
        wanted = [name.strip() for name in columns.split(",")] if columns else []
        if (table or ("summary" if to.suffix == ".tex" else "records")) == "summary":
            found = summaries(loaded, benches, wanted, whole=to.suffix != ".tex")  # a page is not that wide
            content, summary = encode(tidy(found), found), f"{len(found)} table{'s' * (len(found) > 1)} of arms"
        else:
            df = records(loaded, wanted)
            content, summary = encode(df, None), f"{len(df)} records{_unfinished(loaded)}"
        write(to, content)
    except Nothing as error:
        return _fail(NOTHING, f"nothing to export: {error}")
    except OSError as error:
        return _fail(REFUSED, f"cannot write {to}: {error.strerror or error}")
    except ValueError as error:
        return _fail(REFUSED, str(error))
    for note in loaded.notes:
        _fail(WRITTEN, note)
    print(f"{to}: {summary}")
    return WRITTEN


def of_question(loaded: Loaded, name: str | None) -> Loaded:
    """The records of one question, or of all. Raises Nothing where there are none."""
    rows = [row for row in loaded.rows if name in (None, row.values.get("question"))]
    if not rows:
        known = dict.fromkeys(str(row.values["question"]) for row in loaded.rows if row.values.get("question"))
        raise Nothing(f"no records of {name!r}; there are some of {', '.join(known)}" if known else "no records")
    return Loaded(rows, {q: own for q, own in loaded.metrics.items() if name in (None, q)}, loaded.notes)


def records(loaded: Loaded, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Every record, those that did not pass too: `status` says which. Raises ValueError for an unknown column."""
    df = frame(loaded)
    latex.check_known(columns, df.columns)
    return df[list(columns)] if columns else df


def summaries(loaded: Loaded, benches: Path | None, columns: Sequence[str] = (), whole: bool = False) -> list[Summary]:
    """The results of the arms of each question, by context and curve axis; `whole`: of its own metrics too."""
    try:
        folders = questions(benches)
    except LoadError:
        if benches:
            raise
        folders = {}  # then what the records carry of their study must do
    names = dict.fromkeys(str(row.values["question"]) for row in loaded.rows if row.values.get("question"))
    found: list[Summary] = []
    for name in names:
        try:
            found += summaries_of(name, folders.get(name), loaded, columns, whole)
        except (ImportError, AttributeError, TypeError, SyntaxError) as error:  # of the study's own file
            raise ValueError(f"{folders[name]}: {type(error).__name__}: {error}") from None
    if not found:
        raise Nothing("no records that passed of a study that declares its arms; --table records has all records")
    return found


Encode = Callable[[pd.DataFrame, list[Summary] | None], bytes]  # a table, or several that it holds -> bytes


def csv(df: pd.DataFrame, _: list[Summary] | None = None) -> bytes:
    """Numbers with all their digits, missing ones empty."""
    return df.to_csv(index=False, lineterminator="\n").encode()


def json_lines(df: pd.DataFrame, _: list[Summary] | None = None) -> bytes:
    """An object a row, missing values null."""
    rows = df.astype(object).where(df.notna(), None).to_dict("records")
    return "".join(f"{json.dumps(row, allow_nan=False, default=_plain)}\n" for row in rows).encode()


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} is no JSON value")


def parquet(df: pd.DataFrame, _: list[Summary] | None = None) -> bytes:
    """Through pyarrow. A column whose values are of several kinds becomes text: Parquet has one kind a column."""
    content = io.BytesIO()
    mixed = {name: df[name].map(str, na_action="ignore") for name in map(str, df) if _kinds(df[name]) > 1}
    try:
        df.assign(**mixed).to_parquet(content, engine="pyarrow", index=False)
    except ImportError:
        raise ValueError("Parquet needs pyarrow: pip install 'pytest-mlexp[parquet]'") from None
    return content.getvalue()


def _kinds(values: pd.Series) -> int:
    return len(set(map(type, values.dropna()))) if values.dtype == object else 1


def gzipped(encode: Encode) -> Encode:
    return lambda df, several: gzip.compress(encode(df, several), mtime=0)


ENCODERS: dict[str, Encode] = {
    ".csv": csv,
    ".csv.gz": gzipped(csv),
    ".jsonl": json_lines,
    ".jsonl.gz": gzipped(json_lines),
    ".parquet": parquet,
    ".tex": latex.document,
}


def encoder(to: Path) -> Encode:
    """What makes a file of this name. Raises ValueError for an ending that nothing makes."""
    found = next((encode for ending, encode in ENCODERS.items() if to.name.endswith(ending)), None)
    if found is None:
        raise ValueError(f"{to}: unknown ending; choose from {', '.join(ENCODERS)}")
    return found


def _unfinished(loaded: Loaded) -> str:
    rest = sum(row.values.get("status") != "passed" for row in loaded.rows)
    return f", {rest} of them of cells that did not pass (status)" if rest else ""


def _fail(status: int, line: str) -> int:
    print(f"mlexp export: {line}", file=sys.stderr)
    return status

"""What the gates share: verdicts and exit statuses, limits as users write them, and tables for people and for CI."""

import contextlib
import json
import math
import re
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

OK, REGRESSION, INCOMPLETE, INCOMPARABLE, UNREADABLE = range(5)
STATUS_WORDS = ("ok", "regression", "not everything compared", "not comparable", "unreadable")
MARK = {True: "✅", False: "❌"}
SHOWN_ROWS = 40
SIGNIFICANT = 0.05


class Verdict(StrEnum):
    """What became of a metric of a cell, the worst first."""

    WORSE = "WORSE"
    AMBIGUOUS = "AMBIGUOUS"
    BETTER = "BETTER"
    SAME = "SAME"


class Refused(Exception):
    """What ends a gate: one line, and the exit status that it comes to."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


class Limit(NamedTuple):
    """How far a metric may go in its bad direction (`sign`): an amount, or a share of the base's value."""

    amount: float
    relative: bool
    sign: int = 0  # 0: as the metric's own direction says


@dataclass(frozen=True)
class Rule:
    """A limit for the metrics, questions and cells that its patterns match; `gated` False: report it, never fail.

    `text` is what the user wrote, for errors.
    """

    text: str
    metric: str
    limit: Limit | None = None
    question: str = "*"
    cell: str = "*"
    gated: bool = True
    better: str = ""  # the direction of a metric that has none: lower or higher


_LIMIT = re.compile(r"([+-])(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)(%?)\Z")
KEYS = ("metric", "question", "cell", "limit", "better", "gated")


def parse_limit(text: object, where: str) -> Limit:
    """`+5%` or `-0.03` as a Limit: the sign is the direction that is bad. Raises Refused."""
    match = _LIMIT.match(text) if isinstance(text, str) else None
    if not match:
        raise Refused(UNREADABLE, f"{where}: {text!r} is no limit; give a sign and a number, such as +5% or -0.03")
    sign, number, percent = match.groups()
    return Limit(float(number) / (100 if percent else 1), bool(percent), 1 if sign == "+" else -1)


def parse_fail_if(text: str) -> Rule:
    """`METRIC:LIMIT` of `--fail-if`. Raises Refused."""
    metric, colon, limit = text.partition(":")
    if not colon or not metric:
        raise Refused(UNREADABLE, f"--fail-if {text}: expected METRIC:LIMIT, such as peak_bytes:+5%")
    return Rule(f"--fail-if {text}", metric, parse_limit(limit, f"--fail-if {text}"))


def parse_direction(better: str, names: str) -> list[Rule]:
    """The metrics, separated by commas, of `--lower` or `--higher`. Raises Refused."""
    metrics = names.split(",")
    if not all(metrics):
        raise Refused(UNREADABLE, f"--{better} {names}: expected names of metrics, such as score,seconds")
    return [Rule(f"--{better} {metric}", metric, better=better) for metric in metrics]


def read_gates(path: Path) -> list[Rule]:
    """The rules of a gates.toml, in order: a later one overrules an earlier. Raises Refused, naming the place.

    [[gate]]
    metric = "peak_bytes"       # names and patterns (`*`, `?`), as in `question` and `cell`
    question = "maze_scaling"   # optional
    cell = "*[tiny*"            # optional: node ids; a bracket is a bracket
    limit = "+5%"               # optional: the sign is the bad direction; without %, in the metric's unit
    better = "lower"            # optional: the direction of a metric that declares none
    gated = true                # optional: false = only reported
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:  # ValueError: not TOML, not UTF-8
        raise Refused(UNREADABLE, f"{path}: {getattr(error, 'strerror', None) or error}") from None
    tables = data.get("gate")
    if set(data) != {"gate"} or not isinstance(tables, list):
        raise Refused(
            UNREADABLE, f"{path}: expected tables [[gate]] and nothing else, found {', '.join(data) or 'none'}"
        )
    return [_rule(table, f"{path}: gate {i}") for i, table in enumerate(tables, 1)]


def _rule(table: object, where: str) -> Rule:
    if not isinstance(table, dict):
        raise Refused(UNREADABLE, f"{where} is no table")
    for name, value in table.items():
        if name not in KEYS:
            raise Refused(UNREADABLE, f"{where}: unknown key {name!r}; choose from {', '.join(KEYS)}")
        if name != "limit" and not isinstance(value, bool if name == "gated" else str):
            raise Refused(
                UNREADABLE, f"{where}: {name} is {value!r}; give {'true or false' if name == 'gated' else 'text'}"
            )
    if "metric" not in table:
        raise Refused(UNREADABLE, f"{where}: metric is missing")
    if table.get("better", "lower") not in ("lower", "higher"):
        raise Refused(UNREADABLE, f"{where}: better is {table['better']!r}; give lower or higher")
    if "better" in table and "cell" in table:
        raise Refused(UNREADABLE, f"{where}: a direction holds for all cells of a question; drop cell or better")
    limit = parse_limit(table["limit"], where) if "limit" in table else None
    return Rule(**{"text": where, **table, "limit": limit})


def fits(value: str, pattern: str) -> bool:
    """Whether one text matches: see `matches`."""
    return bool(matches(pd.Series([value], dtype=object), pattern).item())


def matches(values: pd.Series, pattern: str) -> pd.Series:
    """Which of the texts match: `*` and `?` as in a shell, everything else itself."""
    regex = "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern)
    seen = {value: bool(re.fullmatch(regex, value, re.DOTALL)) for value in values.unique()}
    return values.map(lambda value: seen[value]).astype(bool)


def order(rows: pd.DataFrame) -> pd.DataFrame:
    """Worst first: what fails, then by verdict, then by how far it went."""
    rank = rows["verdict"].map({verdict: i for i, verdict in enumerate(Verdict)}).astype(int)
    far = rows["change"].abs().fillna(math.inf)
    keyed = rows.assign(_fails=~rows["fails"], _rank=rank, _far=-far)
    return keyed.sort_values(["_fails", "_rank", "_far"], kind="stable").drop(columns=["_fails", "_rank", "_far"])


def short(cell: str) -> str:
    """A node id as people say it: the question's folder and the test."""
    path, colons, test = cell.rpartition("::")
    folders = path.split("/")
    return f"{folders[-2]}::{test}" if colons and len(folders) > 1 else cell


def text_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of even width, for a terminal."""
    lines = [list(columns), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join("  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def differing(one: Any, other: Any) -> str:
    """Both values of a field; of settings (JSON objects), the entries that differ."""
    with contextlib.suppress(TypeError, ValueError, AttributeError):
        a, b = json.loads(one), json.loads(other)
        names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
        one, other = ({name: side.get(name) for name in names} for side in (a, b))
    return f"{one!r} in the base and {other!r} in the head"


def warn(command: str, *lines: str) -> None:
    for line in lines:
        print(f"mlexp {command}: {line}", file=sys.stderr)

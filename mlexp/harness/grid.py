"""Settings and the grid they span: `--scale` picks a row, `--set` overrides its fields, AXES makes the cells.

A bench file says it all in data:

    @dataclass(frozen=True)
    class Settings:
        models: tuple[str, ...] = MODELS
        decoders: tuple[str, ...] = DECODERS
        samples: int = 20

    SETTINGS = {"smoke": Settings(samples=2), "quick": Settings(samples=4), "full": Settings()}
    AXES = {"model": "models", "decoder": "decoders"}     # argument of the cell -> field that lists its values

Where the command line can add values to an axis, `more(options)` returns them: {"model": ("mine",)}.
Where not every combination makes sense, or a device lacks some, `collects(params, settings, device)` says which stay.
The last axis that a cell names is its arm; the others form the block in which arms are compared.
"""

import dataclasses
import itertools
import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

SCALES = ("smoke", "quick", "full")


class Row(typing.Protocol):
    """The settings of one scale: an instance of any dataclass."""

    __dataclass_fields__: typing.ClassVar[dict[str, typing.Any]]


AnyRow = typing.TypeVar("AnyRow", bound=Row)
_VALUE = re.compile(r"[a-z0-9_]+\Z")
_RANGE = re.compile(r"([a-z_]*)(\d+)\.\.\1(\d+)\Z")


class Override(typing.NamedTuple):
    """One `--set`: the question it is for (None where it was not said), the field, the value as typed."""

    question: str | None
    name: str
    raw: str

    def __str__(self) -> str:
        return f"--set {self.question + '.' if self.question else ''}{self.name}={self.raw}"


def parse_override(text: str) -> Override:
    """`[question.]name=value` taken apart. Raises ValueError where it is not of that form."""
    match = re.fullmatch(r"(?:([a-z][a-z0-9_]*)\.)?([A-Za-z][A-Za-z0-9_]*)=(.*)", text, re.DOTALL)
    if not match:
        raise ValueError(f"--set {text}: expected NAME=VALUE or QUESTION.NAME=VALUE")
    return Override(*match.groups())


def override(settings: AnyRow, changes: Sequence[Override]) -> AnyRow:
    """`settings` with `changes` applied. Raises ValueError for unknown names and values that do not fit."""
    hints = typing.get_type_hints(type(settings))
    for change in changes:
        if change.name not in hints:
            raise ValueError(f"{change}: unknown setting {change.name!r}; choose from {', '.join(hints)}")
        try:
            value = parse_value(change.raw, hints[change.name])
            settings = dataclasses.replace(settings, **{change.name: value})
        except ValueError as error:  # of the parser, or of the settings' own __post_init__
            raise ValueError(f"{change}: {error}") from None
    return settings


def parse_value(raw: str, hint: typing.Any) -> object:
    """`raw` as the annotated type: int, float, bool, str, `T | None`, or a tuple of these ("a,b", "p00..p09")."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if raw.lower() == "none" else parse_value(raw, next(a for a in args if a is not type(None)))
    if origin is tuple:
        return tuple(parse_value(part, args[0]) for part in expand(raw))
    if hint is bool:
        if raw.lower() not in ("true", "false"):
            raise ValueError(f"expected true or false, not {raw!r}")
        return raw.lower() == "true"
    try:
        value: object = hint(raw)
    except ValueError:
        raise ValueError(f"expected {hint.__name__}, not {raw!r}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected a finite number, not {raw!r}")
    return value


def expand(raw: str) -> list[str]:
    """The parts of a comma-separated list, with ranges such as `p00..p09` or `42..46` written out."""
    parts = []
    for part in filter(None, (p.strip() for p in raw.split(","))):
        if match := _RANGE.match(part):
            prefix, first, last = match.groups()
            if int(first) > int(last):
                raise ValueError(f"the range {part!r} runs backwards; write {prefix}{last}..{prefix}{first}")
            parts += [f"{prefix}{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
        else:
            parts.append(part)
    if not parts:
        raise ValueError(f"expected a comma-separated list, not {raw!r}")
    return parts


def checkpoints(texts: Sequence[str], here: Path) -> dict[str, str]:
    """Every `--model NAME=FOLDER`: name -> folder, relative ones from `here`. Raises ValueError for what is none."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not equals or not _VALUE.match(name):
            raise ValueError(f"--model {text}: expected NAME=FOLDER, NAME of [a-z0-9_]+")
        if name in found:
            raise ValueError(f"--model {name}: given twice, as {found[name]} and {folder}")
        found[name] = str(here / folder)
        if not Path(found[name]).is_dir():
            raise ValueError(f"--model {text}: no such folder")
    return found


def cells(
    axes: Mapping[str, Sequence[typing.Any]], keep: Callable[[dict[str, typing.Any]], bool] | None = None
) -> Sequence[tuple[tuple[typing.Any, ...], str]]:
    """(values, id) of every cell. The last axis is the arm: the fastest, and its order rotates from block to block.

    `keep` tells from its values whether a cell is wanted; None = all are. Raises ValueError for a value that would not
    do in a node id, and for one that is there twice: the same draw is no second replicate.
    """
    for axis, values in axes.items():
        if twice := [value for value in dict.fromkeys(values) if list(values).count(value) > 1]:
            raise ValueError(f"axis {axis!r} has {twice[0]!r} twice; each value once")
    *outer, arms = [[(value, label(axis, value)) for value in values] for axis, values in axes.items()]
    grid, number = [], 0
    for block in itertools.product(*outer):
        rows = [tuple(zip(*block, arm, strict=True)) for arm in arms]
        rows = [row for row in rows if keep is None or keep(dict(zip(axes, row[0], strict=True)))]
        start = number % len(rows) if rows else 0
        grid += [(values, "-".join(labels)) for values, labels in rows[start:] + rows[:start]]
        number += bool(rows)
    return grid


def label(axis: str, value: object) -> str:
    """A value as it stands in a node id: a string is itself, a number bears its axis' name."""
    text = value if isinstance(value, str) else f"{axis}{value}"
    if not _VALUE.match(text):
        raise ValueError(f"axis {axis!r}: {value!r} cannot stand in a test id; use [a-z0-9_]+")
    return text


def fixed(settings: Row, axes: Mapping[str, str]) -> dict[str, object]:
    """The settings that every cell of a grid shares: all fields but those that list an axis."""
    return {k: v for k, v in dataclasses.asdict(settings).items() if k not in axes.values()}


def canonical(values: Mapping[str, object]) -> str:
    """One spelling for equal settings."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def changed(settings: Row, default: Row, axes: Mapping[str, str]) -> str:
    """What `--set` changed against the scale's own row, as one line for people; empty if nothing but axes."""
    now, before = fixed(settings, axes), fixed(default, axes)
    return " ".join(f"{name}={now[name]}" for name in now if now[name] != before[name])

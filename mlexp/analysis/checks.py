"""Values as JSON has them, checked: what a file holds instead of the expected is named in a LoadError."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, overload

import numpy as np

from mlexp.analysis.sources import LoadError

Scalar = None | bool | int | float | str
Kind = TypeVar("Kind", dict[str, Any], list[Any])
KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}


@overload
def scalar(value: float) -> float: ...
@overload
def scalar(value: object) -> Scalar: ...
def scalar(value: object) -> Scalar:
    """`value` as a table can hold it: what is nested becomes its JSON text, lone surrogates become '?'."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else float(value) if abs(value) < 2**1023 else math.inf
    text = value if isinstance(value, str) else json.dumps(value)
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def field_of(data: Mapping[str, Any], name: str, kind: type[Kind], where: str) -> Kind:
    """`data[name]`, an empty `kind` where it is missing or null; raises LoadError for another kind."""
    value = data.get(name)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise LoadError(f"{where}: {name} is {kind_name(value)}, not {KINDS[kind]}")
    return value


def numbers(values: Sequence[Any], where: str) -> list[float]:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise LoadError(f"{where} holds {kind_name(value)}, not a number")
    found = [float(scalar(value)) for value in values]
    for value in found:
        if not 0 <= value < math.inf:
            raise LoadError(f"{where} holds {value}, not a finite time")
    return found


def kind_name(value: object) -> str:
    return KINDS.get(type(value), "a number")


def array(nested: object, where: str) -> np.ndarray:
    try:
        return np.array(nested, dtype=float)
    except (ValueError, TypeError, OverflowError):
        raise LoadError(f"{where} is not a rectangular array of numbers") from None

"""What bench files declare, and the cells that they make, as pytest collects them: nothing is run or written."""

import contextlib
import dataclasses
import inspect
import io
import os
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mlexp import study
from mlexp.harness.plan import axes_of
from mlexp.harness.plugin import NO_CELL, is_cell
from mlexp.harness.session import STATE, State
from mlexp.record import Metric, metrics_of
from mlexp.settings import AtLeast, MoreThan, OneOf
from mlexp.study import Claim, Study, contrasts

WITHOUT = ("-p", "no:cacheprovider", "-p", "no:randomly")  # nothing is written, and axes keep their order
QUIET = ("-q", *WITHOUT, "-W", "ignore:Module already imported so cannot be rewritten; mlexp")


class Setting(typing.NamedTuple):
    """A field of a question's settings: its value at the scale, its bounds in words, the axis whose values it lists."""

    name: str
    type: str
    value: object
    bounds: list[str]
    axis: str


@dataclasses.dataclass(frozen=True)
class Bench:
    """A bench file: cells by function and their axes' values, settings at the scale, what the study declares."""

    question: str
    file: str
    asks: str
    scale: str
    scales: tuple[str, ...]
    study: Study
    cells: Mapping[str, int]
    axes: Mapping[str, Mapping[str, list[Any]]]
    settings: Sequence[Setting]

    @property
    def metrics(self) -> dict[str, Metric]:
        """The question's own, its outcome, and those of its costs and claims."""
        return {name: m for name, m in metrics_of(self.study.metrics).items() if name in self.named}

    @property
    def named(self) -> set[str]:
        declared = self.study
        claimed = (each.metric for claim in declared.claims.values() for each in contrasts(claim.statement))
        return {*declared.metrics, *((declared.outcome, *declared.costs, *claimed) if declared.arm else ())}


class Collected:
    """The pytest plugin that takes the cells when they are collected, and leaves none to run."""

    def __init__(self) -> None:
        self.items: list[pytest.Function] = []
        self.state: State | None = None
        self.errors: list[str] = []

    @pytest.hookimpl(trylast=True)  # after -k and -m; before the plugin's own, which was registered later
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        self.state = config.stash[STATE]
        self.items = [item for item in items if is_cell(item)]
        items.clear()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.errors.append(str(report.longrepr))


def collect(files: Sequence[Path], scale: str) -> tuple[list[Bench], list[str]]:
    """(the bench files that have cells, what went wrong with others)."""
    seen, out, err = Collected(), io.StringIO(), io.StringIO()
    args = ["--collect-only", *QUIET, "-p", "mlexp.harness.plugin", "--mlexp-scale", scale, *map(str, files)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        pytest.main(args, plugins=[seen])
    if seen.state is None and not seen.errors:
        return [], [err.getvalue().strip() or out.getvalue().strip()]
    by_file: dict[Path, list[pytest.Function]] = {}
    for item in seen.items:
        by_file.setdefault(item.path, []).append(item)
    return [_bench(path, items, seen.state) for path, items in by_file.items() if seen.state], seen.errors


def _bench(path: Path, items: list[pytest.Function], state: State) -> Bench:
    module, question = items[0].module, path.parent.name
    declared = study.of(module)
    row = state.overrides.settings(module, question) if declared.settings else None
    by_function: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        params = {} if NO_CELL in getattr(item, "callspec", _Bare).params.values() else axes_of(item)
        rows = by_function.setdefault(item.originalname, [])
        rows += [params] if params or not hasattr(item, "callspec") else []
    return Bench(
        question=question,
        file=os.path.relpath(path),
        asks=declared.asks or _first_line(module),
        scale=state.run.scale,
        scales=tuple(declared.settings),
        study=declared,
        cells={name: len(rows) for name, rows in by_function.items()},
        axes={name: _values(rows) for name, rows in by_function.items()},
        settings=list(_settings(row, declared.axes)) if row is not None else [],
    )


class _Bare:
    """The call of a cell that nothing parametrizes."""

    params: typing.ClassVar[dict[str, Any]] = {}


def _first_line(module: ModuleType) -> str:
    return (inspect.getdoc(module) or "").partition("\n")[0]


def _values(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """axis -> its values, in the order in which cells have them."""
    found: dict[str, list[Any]] = {}
    for params in rows:
        for axis, value in params.items():
            if value not in (values := found.setdefault(axis, [])):
                values.append(value)
    return found


def _settings(row: Any, axes: Mapping[str, str]) -> Iterable[Setting]:
    axis_of = {name: axis for axis, name in axes.items()}
    hints = typing.get_type_hints(type(row), include_extras=True)
    for field in dataclasses.fields(row):
        hint = hints[field.name]
        bounds, kind = getattr(hint, "__metadata__", ()), typing.get_args(hint)[0] if _annotated(hint) else hint
        text = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
        words = list(map(_bound, bounds))
        yield Setting(field.name, text, getattr(row, field.name), words, axis_of.get(field.name, ""))


def _annotated(hint: object) -> bool:
    return typing.get_origin(hint) is typing.Annotated


def _bound(bound: object) -> str:
    match bound:
        case AtLeast():
            return f"at least {bound.value:g}"
        case MoreThan():
            return f"above {bound.value:g}"
        case OneOf():
            return f"one of {', '.join(map(str, bound.values))}"
    return str(bound)


def as_dict(bench: Bench) -> dict[str, Any]:
    """All of it, for JSON."""
    declared = bench.study
    return {
        "question": bench.question,
        "file": bench.file,
        "asks": bench.asks,
        "scale": bench.scale,
        "scales": list(bench.scales),
        "cells": sum(bench.cells.values()),
        "functions": {name: {"cells": n, "axes": bench.axes[name]} for name, n in bench.cells.items()},
        "arm": declared.arm,
        "arms": list(declared.arms),
        "baseline": declared.baseline,
        "over": list(declared.over),
        "replicates": list(declared.replicates) if declared.arm else [],
        "outcome": declared.outcome if declared.arm else "",
        "settings": [setting._asdict() for setting in bench.settings],
        "metrics": {name: {"unit": m.unit, "better": m.better, "what": m.what} for name, m in bench.metrics.items()},
        "claims": {name: _claim(claim) for name, claim in declared.claims.items()},
    }


def _claim(claim: Claim) -> dict[str, Any]:
    return {name: getattr(claim, name) for name in ("text", "about", "source", "primary", "check")}

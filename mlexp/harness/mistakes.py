"""Mistakes in a bench file: each is one line with the file, the line where it is known, and the mend.

What a file declares is checked when it is collected. What a cell does wrong is raised where it does it: tracebacks end
in the user's code (`__tracebackhide__` in cell.py and record.py; `--full-trace` shows all of them).
"""

import dataclasses
import inspect
import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mlexp import extras, record, settings, study
from mlexp.harness.grid import SCALES
from mlexp.harness.places import place
from mlexp.harness.plan import params_of
from mlexp.harness.status import UNMEASURED
from mlexp.record import near

Problem = tuple[Sequence[str], str]  # the names whose place is the mistake's, what is wrong
HOOKS = {  # functions of a bench file that the harness calls, with these arguments
    "inputs": ("params", "settings", "options"),
    "collects": ("params", "settings", "device"),
    "more": ("options",),
}
CELLS = {"cell", "mlexp_cell"}  # the fixture's names
LISTS = ("arms", "over", "replicates", "apart", "costs")  # of a Study, that one name must not stand for
CALL = re.compile(r"(\w+)\.__init__\(\) (?:got an unexpected keyword argument '(\w+)')?")  # of a dataclass, refused
DECLARING = (study.__file__, settings.__file__)  # what is raised in there is a mistake of who called


def declared(module: ModuleType, bench: Path, scale: str) -> study.Study:
    """What a bench file declares. Raises CollectError for what cannot be run at this scale."""
    try:
        found = study.of(module)
    except TypeError as error:
        raise pytest.Collector.CollectError(f"{place(bench, 'STUDY')}: {error}") from None
    for names, message in problems(found, module, scale):
        raise pytest.Collector.CollectError(f"{place(bench, *names)}: {message}")
    return found


def problems(found: study.Study, module: ModuleType, scale: str) -> Iterator[Problem]:
    """What is wrong with a declaration, the cause of others first."""
    for name in LISTS:
        if isinstance(value := getattr(found, name), str):
            yield (name,), f"{name} is the text {value!r}; give a tuple: {name}=({value!r},)"
    yield from _hooks(module)
    try:
        record.metrics_of(found.metrics)
    except ValueError as error:
        wrong = next((name for name in found.metrics if repr(name) in str(error)), "metrics")
        yield (wrong, "metrics", "METRICS"), str(error)
    if found.settings:
        yield from _settings(found.settings, scale)
        yield from _axes(found, found.settings[scale])
        yield from _untaken(found, module)
    elif found.axes:
        yield ("axes", "AXES"), "there are axes and no settings; settings list the values of each axis, a row a scale"


def _hooks(module: ModuleType) -> Iterator[Problem]:
    for name, arguments in HOOKS.items():
        if function := getattr(module, name, None):
            try:
                inspect.signature(function).bind(*arguments)
            except TypeError as error:
                yield (name,), f"{name} is called with ({', '.join(arguments)}): {error}"


def _settings(rows: Any, scale: str) -> Iterator[Problem]:
    at = ("settings", "SETTINGS")
    if not isinstance(rows, Mapping):
        yield at, f"settings is {_kind(rows)}; give a row a scale: " + '{"smoke": ..., "quick": ..., "full": ...}'
    elif unknown := [name for name in rows if name not in SCALES]:
        yield at, f"settings has a row {unknown[0]!r}; scales are {', '.join(SCALES)}"
    elif scale not in rows:
        yield at, f"settings has no row for scale {scale!r}; add one, or choose with --scale: {', '.join(rows)}"
    elif not dataclasses.is_dataclass(row := rows[scale]) or isinstance(row, type):
        yield at, f"settings[{scale!r}] is {_kind(row)}; give an instance of a dataclass, such as Sizes(samples=2)"


def _axes(found: study.Study, row: Any) -> Iterator[Problem]:
    at, axes, kind = ("axes", "AXES"), found.axes, type(row).__name__
    if not isinstance(axes, Mapping):
        yield at, f"axes is {_kind(axes)}; give a dict: argument of the cell -> field of the settings with its values"
        return
    for axis, name in axes.items():
        if not isinstance(name, str):
            yield at, f"axis {axis!r} is {name!r}; give the name of the field of the settings that lists its values"
        elif name not in (fields := [field.name for field in dataclasses.fields(row)]):
            mend = f"annotate it: {name}: tuple[...] = ..." if hasattr(row, name) else near(name, fields)
            yield at, f"axis {axis!r} names the setting {name!r}, which {kind} has no field for; {mend}"
        elif not isinstance(value := getattr(row, name), tuple | list):
            yield (f"{kind}.{name}", *at), f"axis {axis!r}: setting {name!r} is {value!r}; give a tuple of its values"
    for role, names in (("arm", (found.arm,)), ("over", found.over), ("replicates", found.replicates)):
        for name in names if found.arm and axes else ():
            if name not in axes:
                yield (role, "STUDY"), f"{role} names {name!r}, which is no axis; {_no_axis(role, name, axes, row)}"


def _no_axis(role: str, name: str, axes: Mapping[str, str], row: Any) -> str:
    """What to do about an arm, a curve axis or a replicate that is no axis."""
    if (mend := near(name, axes, "none")) != "none":
        return mend
    fields = [field.name for field in dataclasses.fields(row)]
    lists = next((field for field in fields if settings.singular(field) == name), "<field of the settings>")
    default = " (its default is ('seed',))" if (role, name) == ("replicates", "seed") else ""
    other = f"choose from {', '.join(axes)}" if role == "arm" else f"take it out of {role}={default}"
    return f"add {name!r}: {lists!r} to axes=, or {other}"


def _untaken(found: study.Study, module: ModuleType) -> Iterator[Problem]:
    """The axes that no cell function takes, of this file or of those that share its study.py: every claim that needs
    one would end untested. Without a part in the study, an axis may list what `collects` alone reads. An argument that
    is spelt alike is `check_items`' business."""
    taken = {function: list(inspect.signature(function).parameters) for function in _tests(module)}
    file = Path(str(module.__file__))
    others = [bench.read_text() for bench in file.parent.glob("bench_*.py") if bench != file]
    texts = others if file.with_name("study.py").is_file() else []
    code, roles = file.read_text(), {found.arm, *found.over, *found.replicates}
    arguments = {name for names in taken.values() for name in names}
    missing = [axis for axis in found.axes if axis not in arguments]
    missing = [axis for axis in missing if near(axis, arguments - set(found.axes), "none") == "none"]
    missing = [axis for axis in missing if axis in roles or not re.search(rf"\.{found.axes[axis]}\b", code)]
    missing = [axis for axis in missing if not any(re.search(rf"\b{axis}\b", text) for text in texts)]
    if missing and (cells := [function for function, names in taken.items() if CELLS & set(names)]):
        function = max(cells, key=lambda each: len(set(taken[each]) & set(found.axes)))
        axes = [axis for axis in found.axes if axis in (*taken[function], *missing)]
        call = ", ".join([*(name for name in taken[function] if name not in (*axes, "self")), *axes])
        what = f"axis {missing[0]!r} is declared in axes= but {function.__name__} does not take it"
        yield (function.__name__,), f"{what}; write def {function.__name__}({call})"


def _tests(module: ModuleType) -> Iterator[Callable[..., object]]:
    """The functions of a bench file that pytest may collect, those in classes too."""
    for each in list(vars(module).values()):
        is_class = inspect.isclass(each) and each.__module__ == module.__name__
        for function in vars(each).values() if is_class else [each]:
            names = inspect.signature(function).parameters if inspect.isfunction(function) else {}
            if CELLS & set(names) or (inspect.isfunction(function) and function.__name__.startswith("test")):
                yield function


def collects_of(
    module: ModuleType, bench: Path, settings: object, device: str
) -> Callable[[dict[str, Any]], bool] | None:
    """What says from its values whether a cell exists; None: all do. It raises CollectError for any error in it."""
    wanted = getattr(module, "collects", None)
    if wanted is None:
        return None

    def keep(params: dict[str, Any]) -> bool:
        try:
            return bool(call(bench, wanted, params, settings, device))
        except (ValueError, OSError) as error:
            raise pytest.Collector.CollectError(str(error)) from None

    return keep


def axes_of(function: Callable[..., object], found: study.Study, bench: Path) -> list[str]:
    """The axes that a cell takes, in its order. Raises CollectError where the arm is not the last."""
    name = function.__name__
    axes = [argument for argument in inspect.signature(function).parameters if argument in found.axes]
    if found.arm in axes[:-1]:
        order = ", ".join(["cell", *(axis for axis in axes if axis != found.arm), found.arm])
        message = f"{name} takes the arm {found.arm!r} before {axes[-1]!r}; the arm comes last: {name}({order})"
        raise pytest.Collector.CollectError(f"{place(bench, name)}: {message}")
    return axes


def no_cell(item: pytest.Function, settings: object, device: str) -> str:
    """Why a question has no cell."""
    axes = study.of(item.module).axes
    empty = [name for axis, name in axes.items() if axis in item.callspec.params and not getattr(settings, name)]
    why = f": {', '.join(empty)} empty" if empty else ""
    return f"{item.path.parent.name}: these settings leave no cell on {device}{why} ({place(item.path, 'settings')})"


def declares(module: ModuleType) -> bool:
    """Whether a module is that of a question: what is in it may be checked, and nothing else."""
    if (found := getattr(module, "STUDY", None)) is not None:
        return isinstance(found, study.Study)
    return isinstance(getattr(module, "AXES", None), Mapping) and hasattr(module, "SETTINGS")


def check_items(items: Sequence[pytest.Item], is_cell: Callable[[pytest.Item], bool]) -> None:
    """Raises UsageError for arguments that nothing gives a value, and for two folders that would be one question."""
    folders: dict[str, Path] = {}
    for item in items:
        if not (isinstance(item, pytest.Function) and (is_cell(item) or declares(item.module))):
            continue
        _check_arguments(item, is_cell(item))
        folder = folders.setdefault(item.path.parent.name, item.path.parent) if declares(item.module) else None
        if folder and folder != item.path.parent:
            both = f"{os.path.relpath(folder)} and {os.path.relpath(item.path.parent)}"
            raise pytest.UsageError(f"{both}: a question is known by its folder's name; rename one, or run one")


def _check_arguments(item: pytest.Function, is_cell: bool) -> None:
    info, axes, name = getattr(item, "_fixtureinfo", None), study.of(item.module).axes, item.originalname
    given = {*getattr(info, "name2fixturedefs", ()), *params_of(item), "request"}
    lacking = [argument for argument in getattr(info, "argnames", ()) if argument not in given]
    if is_cell and lacking:
        known = f"axes are {', '.join(axes)}" if axes else 'there are no axes: axes={"seed": "seeds", ...} in STUDY'
        mend = f"{lacking[0]!r}, neither an axis nor a fixture; {near(lacking[0], axes, known)}"
        raise pytest.UsageError(f"{place(item.path, name)}: {name} has an argument {mend}")
    if lacking and set(lacking) <= set(axes):
        mend = f"write {name}(cell, {', '.join(lacking)})"
        raise pytest.UsageError(f"{place(item.path, name)}: {name} takes axes and no `cell`; {mend}")


def idle(
    module: ModuleType,
    bench: Path,
    collected: Sequence[pytest.Item | pytest.Collector],
    is_cell: Callable[[pytest.Item], bool],
) -> str | None:
    """What is to be said of the file of a question in which nothing can be measured."""
    if not declares(module):
        return None
    if not collected:
        return f"{os.path.relpath(bench)}: no test; a cell is a function def test_...(cell, ...)"
    if all(isinstance(each, pytest.Item) and not is_cell(each) for each in collected):
        return f"{os.path.relpath(bench)}: no test takes `cell`, so nothing is measured; write def test_it(cell, ...)"
    return None


def call(bench: Path, function: Callable[..., Any], *arguments: object) -> Any:
    """What a function of a bench file returns. Raises ValueError, naming file and line, for a bug in it; what it says
    of its input (ValueError, OSError) is raised as it is."""
    try:
        return function(*arguments)
    except (ValueError, OSError):
        raise
    except Exception as error:
        what = f"{function.__name__}: {type(error).__name__}: {error}"
        raise ValueError(f"{last_own(error, bench)}: {what}") from None


def inputs_of(module: ModuleType, bench: Path, *arguments: object) -> dict[str, Any]:
    """What the file's `inputs` returns. Raises ValueError where that is no dict."""
    found = call(bench, module.inputs, *arguments)
    if not isinstance(found, dict):
        raise ValueError(f"{place(bench, 'inputs')}: inputs returned {_kind(found)}; give a dict: name -> text, hash")
    return found


def unmeasured(item: pytest.Item) -> str:
    """Why a cell that never called cell.time fails."""
    where = place(item.path, getattr(item, "originalname", item.name))
    return f"{where}: {UNMEASURED}; time the work: cell.time(lambda: ...)"


def explain(error: BaseException, settings: object, cell: object) -> None:
    """Say what there is where a cell asked its settings, or itself, for what there is not."""
    if not isinstance(error, AttributeError):
        return
    if error.obj is settings and dataclasses.is_dataclass(settings):
        error.add_note(f"settings: {near(error.name, [field.name for field in dataclasses.fields(settings)])}")
    elif error.obj is cell and cell is not None:
        error.add_note(f"cell: {near(error.name, [name for name in dir(cell) if not name.startswith('_')])}")


def at_import(bench: Path, error: BaseException) -> str | None:
    """The line that says it all of an error at import: of a declaration or for want of a library, or else None."""
    if isinstance(error.__cause__, extras.MissingExtra):
        return str(error.__cause__)
    frames = traceback.extract_tb(error.__traceback__)
    declaring = _called(error, bench)
    if isinstance(error, ValueError | TypeError | OSError) and (declaring or frames[-1].filename in DECLARING):
        mend = ""
        if declaring and (name := CALL.match(str(error))[2]):  # type: ignore[index]  # _called has matched it
            fields = [field.name for field in dataclasses.fields(declaring)]
            mend = f"; {near(name, fields, f'fields of {declaring.__name__} are ' + ', '.join(fields))}"
        return f"{_place_of(error, bench)}: {error}{mend}"
    return None


def _called(error: BaseException, bench: Path) -> Any:
    """The dataclass of a declaration that was called with arguments that it does not have; None for any other error."""
    if not isinstance(error, TypeError) or not (match := CALL.match(str(error))):
        return None
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = [frame for frame in frames if Path(frame.f_code.co_filename).is_relative_to(bench.parent)]
    names = {**vars(study), **own[-1].f_globals, **own[-1].f_locals} if own else {}
    found = names.get(match[1])
    return found if dataclasses.is_dataclass(found) else None


def _place_of(error: BaseException, bench: Path) -> str:
    """`file:line` of the part of a declaration that an error names, else of the last frame in the bench file's
    folder."""
    where = last_own(error, bench)
    if isinstance(error, study.Refused) and ":" in (found := place(Path(where.rpartition(":")[0]).resolve(), error.at)):
        return found
    return where


def last_own(error: BaseException, bench: Path) -> str:
    """`file:line` of the last frame in the folder of a bench file."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(bench.parent)]
    return f"{os.path.relpath(own[-1].filename)}:{own[-1].lineno}" if own else os.path.relpath(bench)


def _kind(value: object) -> str:
    """What a value is, for people."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    plain = value is None or isinstance(value, str | int | float | tuple | list)
    return f"{value!r:.60}" if plain else f"a {type(value).__name__}"

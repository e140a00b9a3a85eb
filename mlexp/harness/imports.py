"""The files behind an import: those that Python would run for it, found without running any, and those that it ran."""

import ast
import functools
import importlib
import importlib.util
import os
import pkgutil
import runpy
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

INSTALLED = {"site-packages", "dist-packages"}  # the folders of distributions
HARNESS = Path(__file__).resolve().parent  # what measures


def standard_library() -> tuple[Path, ...]:
    """The folders of the standard library."""
    paths = sysconfig.get_paths()
    folders = paths["stdlib"], paths["platstdlib"], os.path.dirname(os.__file__)
    return tuple({Path(folder).resolve() for folder in folders})


STANDARD = standard_library()  # now, for sysconfig loads a module, and while loads are noted that would ask again


@functools.cache
def is_source(path: Path) -> bool:
    """Whether a module's file is a project's code: not of the standard library, nor of what is installed, which can
    change only with a version."""
    return not (INSTALLED & set(path.parts) or any(path.is_relative_to(folder) for folder in STANDARD))


def find_top(name: str) -> ModuleSpec | None:
    """The spec of a top-level module, by whatever finds it: the path, or the finder of an editable installation."""
    for finder in sys.meta_path:
        spec = finder.find_spec(name, None) if hasattr(finder, "find_spec") else None
        if spec is not None:
            return spec
    return None


def find(name: str, places: Iterable[str]) -> ModuleSpec | None:
    """The spec of a module within these folders. (PathFinder would want the package of it to be imported.)"""
    portions = []
    for place in places:
        finder = pkgutil.get_importer(place)
        spec = finder.find_spec(name) if finder else None
        if spec is not None and spec.loader is not None:
            return spec
        portions += spec.submodule_search_locations or [] if spec else []
    if not portions:
        return None
    namespace = ModuleSpec(name, None, is_package=True)
    namespace.submodule_search_locations = portions
    return namespace


def named_in(path: Path) -> Iterator[tuple[str, Path | None]]:
    """(dotted name, the folder of the package that it is relative to, None: absolute) of every import in a file."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (OSError, SyntaxError, ValueError):  # no longer there; never imported, or pytest reports it
        return
    for node in _run(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.parents[node.level - 1] if node.level else None
            names = [node.module or "", *(".".join(filter(None, (node.module, a.name))) for a in node.names)]
            yield from ((name, package) for name in names if name or package)  # an imported name may be a module too
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", None))
            name = node.args[0].value
            if called in ("import_module", "__import__") and isinstance(name, str) and name[:1] not in ("", "."):
                yield name, None


def wanted_in_functions(path: Path) -> Iterator[str]:
    """The modules that the functions of a file import, as far as they are not loaded yet."""
    yield from (name for name in _imports_of_functions(path.read_bytes()) if name not in sys.modules)


@functools.lru_cache(64)  # once a file, not once for each of its tests
def _imports_of_functions(source: bytes) -> tuple[str, ...]:
    """The absolute imports in the functions of a source."""
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    found: list[str] = []
    for node in (part for function in functions for part in ast.walk(function)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append(node.module or "")
    return tuple(found)


def _run(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes of a file but those under `if TYPE_CHECKING`, which no interpreter runs."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and getattr(node.test, "attr", getattr(node.test, "id", "")) == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


# What loads code by a name or path that the source need not spell: (owner, function, its arguments and result -> file)
def _imported(args: tuple[Any, ...], module: object) -> "Path | None":
    return source_of(module)  # also of what has been loaded before


def _compiled(args: tuple[Any, ...], code: CodeType | None) -> "Path | None":
    return resolved(args[0].path)


def _executed(args: tuple[Any, ...], space: object) -> "Path | None":
    return resolved(str(args[0]))


LOADERS: tuple[tuple[Any, str, Callable[[tuple[Any, ...], Any], Path | None]], ...] = (
    (importlib, "import_module", _imported), (SourceFileLoader, "get_code", _compiled), (runpy, "run_path", _executed),
)  # fmt: skip


def noting(
    plain: Callable[..., Any], path_of: Callable[[tuple[Any, ...], Any], Path | None],
    note: Callable[[Path | None], None],
) -> Callable[..., Any]:  # fmt: skip
    """`plain`, after which `note` gets the file that it has loaded."""

    @functools.wraps(plain)
    def load(*args: Any, **kwargs: Any) -> Any:
        result = plain(*args, **kwargs)
        if args:
            note(path_of(args, result))
        return result

    return load


def calling_source() -> Path | None:
    """The project's file that the innermost of the running calls is in, this one's apart."""
    frame: FrameType | None = sys._getframe(1)
    while frame:
        file = frame.f_globals.get("__file__")
        if isinstance(file, str) and not (path := resolved(file)).is_relative_to(HARNESS) and is_source(path):
            return path
        frame = frame.f_back
    return None


@functools.cache
def resolved(file: str) -> Path:
    return Path(file).resolve()


def source_of(module: object) -> Path | None:
    """The file of a loaded module, if it is source of a project: not what an installed package has written and loaded,
    as torch.compile does, nor what is no longer there."""
    path = file_of(module)
    if path is None or not is_source(path) or not path.is_file():
        return None
    top = file_of(sys.modules.get(getattr(module, "__name__", "").partition(".")[0]))
    return path if top is None or is_source(top) else None


def file_of(module: object) -> Path | None:
    file = getattr(module, "__file__", None)
    return resolved(file) if isinstance(file, str) else None

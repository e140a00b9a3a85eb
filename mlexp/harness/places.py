"""Where a bench file, or the study.py beside it, declares something: file and line, for an error to name."""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

DECLARING = ("Study", "replace")  # calls whose keywords are parts of a declaration


def place(bench: Path, *names: str) -> str:
    """`file:line` of the first of these names that is declared: an argument of Study, a top-level or a field's name, a
    function, a key of a dict. The file alone where there is none.
    """
    for name in names:
        for file in (bench, bench.with_name("study.py")):
            if line := _lines(file).get(name):
                return f"{os.path.relpath(file)}:{line}"
    return os.path.relpath(bench)


def _lines(file: Path) -> dict[str, int]:
    """name -> line, of a name that is there several times the first one: arguments of Study before all else."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return {}
    found: dict[str, int] = {}
    for kind in (_arguments, _definitions, _keys):
        for name, line in kind(tree):
            found.setdefault(name, line)
    return found


def _arguments(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", None)) in DECLARING:
            yield from ((keyword.arg, keyword.lineno) for keyword in node.keywords if keyword.arg)


def _definitions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Of a class, also its fields: `Sizes.seeds`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        if isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{name}", line) for part in node.body for name, line in _definitions(part))
        for target in node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]:
            if isinstance(target, ast.Name):
                yield target.id, target.lineno


def _keys(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        for key in node.keys if isinstance(node, ast.Dict) else ():
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value, key.lineno

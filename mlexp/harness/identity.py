"""What makes two cells the same: the key under which a finished cell is found again.

The key covers the node id, the context, the settings, the versions of torch and transformers, the inputs, the bench
file, and every project module that it imports, transitively. Reports and READMEs are not part of it.
"""

import ast
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

DATA = (".jsonl", ".json", ".toml", ".csv", ".txt")  # beside a bench file: its inputs
NATIVE = (".cu", ".cuh", ".cpp", ".h")  # beside a module: sources that it compiles


def cell_key(*parts: object) -> str:
    """A short hash of plain JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def file_hash(path: str | Path) -> str:
    """A short hash of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def source_hash(bench: Path, root: Path) -> str:
    """The hash of everything in the project that a cell of `bench` can run."""
    digest = hashlib.sha256()
    for path in sources(bench, root):
        digest.update(f"{path.name}\0{file_hash(path)}\n".encode())
    return digest.hexdigest()[:16]


def sources(bench: Path, root: Path) -> list[Path]:
    """The bench file, its data files, and the project modules that it imports, in a fixed order."""
    seen, todo = set(), [bench.resolve()]
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += imported(path, root.resolve(), bench.resolve().parent)
    inputs = {p for p in bench.resolve().parent.iterdir() if p.suffix in DATA}
    native = {p for module in seen for p in module.parent.iterdir() if p.suffix in NATIVE}
    return sorted(seen | inputs | native)


def imported(path: Path, root: Path, beside: Path) -> Iterator[Path]:
    """Files of the project that the module at `path` names in an import, within functions too."""
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from module_files(alias.name, (root, beside))
        elif isinstance(node, ast.ImportFrom):
            starts = (path.parents[node.level - 1],) if node.level else (root, beside)
            for name in [None, *(alias.name for alias in node.names)]:  # an imported name may be a module too
                yield from module_files(".".join(filter(None, (node.module, name))), starts)


def module_files(name: str, starts: tuple[Path, ...]) -> Iterator[Path]:
    """The file of a dotted module name under `starts`, and the `__init__` files on the way to it.

    A topmost package's `__init__` is left out: it holds the version and lazy names, nothing that a cell runs.
    """
    names = name.split(".") if name else []
    for start in starts:
        for depth in range(1, len(names) + 1):
            place = start.joinpath(*names[:depth])
            if place.with_suffix(".py").is_file():
                yield place.with_suffix(".py")
            elif (place / "__init__.py").is_file() and is_inner(place):
                yield place / "__init__.py"


def is_inner(package: Path) -> bool:
    """Whether a package lies within another."""
    return (package.parent / "__init__.py").is_file()

"""What makes two cells the same: the key under which a finished cell is found again, and what must not have changed.

The key covers what is known before a cell runs: its node id, context, settings, options and inputs, its bench file with
the data beside it, and all source files that these import, wherever the import system finds them outside of the
standard library and of installed distributions; of the latter, the versions. What a cell loaded beyond that, by a name
or path that it computed, and the distributions behind the rest are known once it has run: they stand in its journal
entry (`imports`, `packages`), and a cell is replayed only while they are unchanged. Programs that a cell starts are
not seen.
"""

import functools
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

from mlexp.harness.declared import measured_part
from mlexp.harness.imports import (
    HARNESS,
    LOADERS,
    calling_source,
    find,
    find_top,
    is_source,
    named_in,
    noting,
    source_of,
)

__all__ = [
    "Sources", "cell_key", "distribution", "file_hash", "hashed", "packages", "source_of", "unchanged",
]  # fmt: skip

DATA = (".jsonl", ".json", ".toml", ".csv", ".txt")  # beside a bench file: its inputs
NATIVE = (".cu", ".cuh", ".cpp", ".h")  # beside a module: sources that it compiles

Reached = tuple[set[Path], set[str]]  # source files, the top-level names of all other modules


def cell_key(*parts: object) -> str:
    """A short hash of plain JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def file_hash(path: str | Path) -> str:
    """A short hash of a file's bytes; of one that declares a study, of its code without what cells do not read."""
    return hashlib.sha256(measured_part(Path(path).read_bytes())).hexdigest()[:16]


class Sources:
    """The source files behind a bench file, found as its imports would find them; each is parsed once a session.

    `roots`: further folders in which an imported module may stand. To be made before the bench files are imported.
    """

    def __init__(self, roots: Iterable[Path] = ()) -> None:
        self._roots = [str(root) for root in roots]
        self._loaded = set(sys.modules)
        self._before = frozenset(self._loaded)  # pytest and its plugins
        self._seen: dict[Path, set[Path]] = {}  # file -> files that it was seen to import by names that it computed
        self._named = functools.cache(self._imports_of)

    def watch(self) -> Callable[[], None]:
        """Note from now on which file makes Python load which other. Returns what ends it."""

        def note(path: Path | None) -> None:
            if path and is_source(path) and (importer := calling_source()):
                self._seen.setdefault(importer, set()).add(path)

        replaced = []
        for owner, name, path_of in LOADERS:
            plain = getattr(owner, name)
            setattr(owner, name, noting(plain, path_of, note))
            replaced.append((owner, name, plain))

        def end() -> None:
            for owner, name, plain in replaced:
                setattr(owner, name, plain)

        return end

    @property
    def loaded(self) -> set[str]:
        """The names of all modules that have been loaded since."""
        return sys.modules.keys() - self._before

    def loaded_by(self, file: Path) -> None:
        """Count as imported by `file` whatever has been loaded since this was last called."""
        new, self._loaded = sys.modules.keys() - self._loaded, set(sys.modules)
        found = {path for name in new if (path := source_of(sys.modules.get(name)))}
        self._seen.setdefault(file.resolve(), set()).update(found)

    def of(self, bench: Path, plugins: Iterable[Path] = (), seen: bool = False) -> tuple[list[Path], set[str]]:
        """(the source files, the top-level names of all other modules) of a bench file and the conftest files and
        plugins that serve it: what they name in imports, and with `seen` also what they were seen to load.

        Of the harness, only what the bench file itself imports: plugins and what is loaded in passing only use it.
        """
        bench = bench.resolve()
        files, others = self._reach([bench], bench.parent, seen)
        more, names = self._reach([path.resolve() for path in plugins], bench.parent, seen, leave=(HARNESS,))
        files |= more
        inputs = {path for path in bench.parent.iterdir() if path.suffix in DATA and not is_output(path)}
        folders = {path.parent for path in files}
        native = {file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.suffix in NATIVE}
        return sorted(files | inputs | native), others | names

    def _reach(self, start: list[Path], beside: Path, seen: bool, leave: tuple[Path, ...] = ()) -> Reached:
        found: set[Path] = set()
        others: set[str] = set()
        todo = list(start)
        while todo:
            path = todo.pop()
            if path not in found and not any(path.is_relative_to(folder) for folder in leave):
                found.add(path)
                files, names = self._named(path, beside)
                others |= names
                passing = {p for p in self._seen.get(path, ()) if not p.is_relative_to(HARNESS)} if seen else ()
                todo += [*files, *passing]
        return found, others

    def _imports_of(self, path: Path, beside: Path) -> Reached:
        """(the source files, the top-level names of other modules) that the file at `path` names in imports, within
        functions too, and in `import_module` with a literal."""
        files: set[Path] = set()
        others: set[str] = set()
        if path.suffix != ".py":
            return files, others
        for name, package in named_in(path):
            found = list(self._package_files(name, package) if package else self._module_files(name, beside))
            files |= {file for file in found if is_source(file)}
            if not package and not any(map(is_source, found)):
                others.add(name.partition(".")[0])
        return files, others

    def _module_files(self, name: str, beside: Path) -> Iterator[Path]:
        """The files that are run to import a dotted name, its packages first, without running any."""
        places, parts = None, name.split(".")
        for depth in range(1, len(parts) + 1):
            part = ".".join(parts[:depth])
            spec = find(part, places) if places else find_top(part) or find(part, [*self._roots, str(beside)])
            if spec is None:
                return
            if spec.has_location and spec.origin:
                yield Path(spec.origin).resolve()
            places = spec.submodule_search_locations
            if not places:
                return

    def _package_files(self, name: str, package: Path) -> Iterator[Path]:
        """The same of a name relative to the folder of a package."""
        if (package / "__init__.py").is_file():
            yield (package / "__init__.py").resolve()
        place = package
        for part in filter(None, name.split(".")):
            place = place / part
            for file in (place.with_suffix(".py"), place / "__init__.py"):
                if file.is_file():
                    yield file.resolve()


def is_output(path: Path) -> bool:
    """Whether a file beside a bench file is a session's benchmark JSON (empty until the session ends), not an input:
    with it in their keys, no cell could be replayed."""
    if path.suffix != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(80)
    return not start or re.match(rb'\s*{\s*"machine_info"\s*:', start) is not None


def hashed(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """Path (from `root` where it lies within) -> hash, of those that are still there."""
    return {shown(path, root): file_hash(path) for path in paths if path.is_file()}


def shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def unchanged(imports: Mapping[str, str], packages: Mapping[str, str | None], root: Path) -> bool:
    """Whether the files and distributions that a cell imported are what they were."""
    try:
        return all(file_hash(root / name) == was for name, was in imports.items()) and packages == {
            name: distribution(name) for name in packages
        }
    except OSError:
        return False


@functools.cache
def distribution(name: str) -> str | None:
    """The version of a distribution; of one that was installed from a folder or an address, its contents too."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    if origin and not origin.get("dir_info", {}).get("editable"):
        return f"{found.version} {hashlib.sha256((found.read_text('RECORD') or '').encode()).hexdigest()[:16]}"
    return found.version


@functools.cache
def owners() -> dict[str, list[str]]:
    """Top-level module name -> the distributions that bring it."""
    return dict(metadata.packages_distributions())


def packages(modules: Iterable[str]) -> dict[str, str | None]:
    """The versions of the distributions that bring these modules."""
    tops = {name.partition(".")[0] for name in modules}
    return {name: distribution(name) for top in sorted(tops) for name in sorted(owners().get(top, ()))}

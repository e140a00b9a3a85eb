"""The cache of reports: a question whose records, code and libraries are what they were is not reported again.

An entry is what the page and the files need, as compressed JSON; what is read from it is as what was made.
"""

import base64
import functools
import hashlib
import importlib.metadata
import json
import sys
import sysconfig
import time
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from markupsafe import Markup

import mlexp
from mlexp.analysis.files import Loaded, Row, is_of
from mlexp.analysis.section import Section
from mlexp.store import cache_dir, write

PACKAGE = Path(mlexp.__file__).parent
LIBRARIES = ("numpy", "pandas", "scipy", "matplotlib", "markupsafe")
OF_OUTPUT = (
    *("question", "context", "line", "mark", "foot", "grid", "stand_ins", "dirty", "remarks", "answer", "lead"),
    *("verdicts", "blocks"),
)
OF_SECTION = ("records", "unfinished", "environment", "replicates", "asks", "history", "disturbed")
HTML = ("html", "svg", "why_html")  # what of a block or a verdict is made, and not escaped again
DAYS = 30  # after which an entry that nobody read is removed


def key_of(name: str, folder: Path | None, loaded: Loaded, also: str) -> str:
    """The hash of all that a question's report depends on and that is known before it is made."""
    rows = [row for row in (*loaded.rows, *loaded.older) if row.values.get("question") == name]
    unfinished = [cell for cell in loaded.never_ran if is_of(cell, name)]
    unfinished += [str(start) for start in loaded.died if is_of(start["cell"], name)]
    parts = [
        f"{name} {also} {_installation()}",
        *_hashes(folder.rglob("*") if folder else ()),
        json.dumps([loaded.metrics.get(name), loaded.commits, unfinished], sort_keys=True, default=str),
        *(_row(row) for row in rows),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@functools.cache
def _installation() -> str:
    """This package's code, and the versions of what it is run with: the same for all questions of a run."""
    versions = [importlib.metadata.version(library) for library in LIBRARIES]
    return f"{sys.version} {versions} {_hashes(PACKAGE.rglob('*.py'))}"


def _row(row: Row) -> str:
    return json.dumps([row.params, row.values, row.series, row.study], sort_keys=True, default=str)


def _hashes(files: Iterable[Path]) -> list[str]:
    """Name and content of files, but for compiled ones."""
    sources = sorted(path for path in files if path.is_file() and "__pycache__" not in path.parts)
    return [f"{path} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in sources]


def get(key: str) -> list[Section] | None:
    """The sections of an entry; None where there is none, where it cannot be read, or where a module that the report
    imported has changed since."""
    file = _place(key)
    try:
        content = json.loads(zlib.decompress(file.read_bytes()))
        if _hashes(map(Path, content["modules"])) != list(content["hashes"]):
            return None
        sections = [_section(each) for each in content["sections"]]
        file.touch()
    except (OSError, ValueError, KeyError, TypeError, zlib.error):
        return None
    return sections


def put(key: str, sections: Sequence[Section]) -> None:
    """Make an entry. Raises OSError where the cache cannot be written."""
    modules = _own_modules()
    content = {"modules": modules, "hashes": _hashes(map(Path, modules)), "sections": list(map(_as_dict, sections))}
    write(_place(key), zlib.compress(json.dumps(content, default=_plain).encode(), 1))
    for file in _place(key).parent.glob("*"):
        if file.stat().st_mtime < time.time() - 86400 * DAYS:
            file.unlink(missing_ok=True)


def _place(key: str) -> Path:
    return cache_dir() / "reports" / f"{key}.json.z"


def _own_modules() -> list[str]:
    """The files of loaded modules that are neither installed nor this package's, which every key covers: what a report
    may have imported from its project."""
    paths = sysconfig.get_paths()
    others = (*(paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")), str(PACKAGE))
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return sorted(file for file in files if file and not file.startswith(others))


def _as_dict(section: Section) -> dict[str, Any]:
    files = {name: base64.b64encode(content).decode() for name, content in section.out.files.items()}
    own = {name: getattr(section, name) for name in OF_SECTION}
    out = {name: getattr(section.out, name) for name in OF_OUTPUT}
    return {"folder": section.folder.as_posix(), "files": files, "section": own, "out": out}


def _plain(value: Any) -> Any:
    """Numbers of NumPy as JSON has them."""
    if hasattr(value, "item"):
        return value.item()
    return str(value)


def _section(entry: dict[str, Any]) -> Section:
    out = SimpleNamespace(**entry["out"], files={name: base64.b64decode(text) for name, text in entry["files"].items()})
    for block in (*out.blocks, *out.verdicts):
        for name in HTML:
            if name in block:
                block[name] = Markup(block[name])
    return Section(out=out, folder=Path(entry["folder"]), **entry["section"])

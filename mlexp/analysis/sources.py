"""The files that a path stands for, and their text: plain or gzipped, in folders and behind links to folders."""

import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

DEFAULT_PATHS = (Path(".mlexp/journal.jsonl"), Path("results/raw"))  # what is read where no path is given
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
HIDDEN = (".mlexp", ".benchmarks")  # the hidden folders that hold results
HEAD = 100_000  # characters in which a results file is recognised


ACCEPTED = "give benchmark JSON (pytest --benchmark-json), a journal (.jsonl), either also gzipped, or a folder of them"
Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


class LoadError(ValueError):
    """A file that cannot be read as results; the message is one line that names it and says what is wrong."""


class NotResults(LoadError):
    """A file that nothing shows to be a benchmark JSON or a journal: in a folder it is skipped, by name an error."""


def paths_in(given: Iterable[Paths]) -> list[Path]:
    """Paths and lists of paths as one list. Raises TypeError for anything else."""
    paths: list[Path] = []
    for item in given:
        if isinstance(item, bytes | Mapping) or not isinstance(item, str | os.PathLike | Iterable):
            raise TypeError(f"a path is text or a pathlib.Path, not a {type(item).__name__}; {ACCEPTED}")
        paths += [Path(item)] if isinstance(item, str | os.PathLike) else map(Path, item)
    return paths


def find(path: Path) -> Iterator[tuple[Path, bool]]:
    """The files that `path` stands for, each with whether the user named it."""
    if not path.exists():
        raise LoadError(f"{path}: no such file or folder")
    if not path.is_dir():
        yield path, True
        return
    for file in sorted(_walk(path)):
        yield file, False


def _walk(top: Path) -> Iterator[Path]:
    """The result files under `top`. A folder that several links lead to is walked once, so that a cycle ends."""
    seen = set()
    for folder, folders, names in os.walk(top, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".") or name in HIDDEN)
        files = (Path(folder, name) for name in names if name.endswith(SUFFIXES))
        yield from (file for file in files if file.is_file())


def is_journal(file: Path) -> bool:
    """Whether a file's name is that of JSON lines."""
    return file.name.endswith((".jsonl", ".jsonl.gz"))


def text(file: Path) -> str:
    """The text of a file. Raises LoadError where it is damaged, NotResults where it is not a results file either."""
    try:
        data, wrong = file.read_bytes(), ""
    except OSError as error:
        raise LoadError(f"{file}: {error.strerror or error}") from None
    if file.suffix == ".gz":
        data, wrong = _unzipped(data)
    try:
        decoded = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        decoded, wrong = data.decode("utf-8", "replace"), wrong or f"not text in UTF-8 (byte {error.start})"
    if wrong:
        raise damaged(decoded)(f"{file}: {wrong}")
    return decoded.replace("\r\n", "\n")


def _unzipped(data: bytes) -> tuple[bytes, str]:
    """What a gzip file holds, as far as it can be read, and what is wrong with it."""
    parts = []
    while data:
        unzip = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            for at in range(0, len(data), 2**16):
                parts.append(unzip.decompress(data[at : at + 2**16]))
                if unzip.eof:
                    break
        except zlib.error:
            return b"".join(parts), "not a gzip file, or damaged"
        if not unzip.eof:
            return b"".join(parts), "a gzip file that is cut short"
        data = unzip.unused_data + data[at + 2**16 :]
    return b"".join(parts), ""


def damaged(text: str) -> type[LoadError]:
    """The error for a text that cannot be parsed: LoadError where its beginning is that of a results file."""
    return LoadError if _JSON.search(text[:HEAD]) or journal_like(text) else NotResults


_JSON = re.compile(r'"machine_info"\s*:|"benchmarks"\s*:\s*\[\s*\{[^\0]*?"(?:stats|extra_info)"\s*:')
_JOURNAL = re.compile(r'^\{"event":"(?:start|cell)","cell":"', re.MULTILINE)


def journal_like(text: str) -> bool:
    """Whether a line begins as the harness begins them. (Loggers write JSON lines with an `event` too.)"""
    return bool(_JOURNAL.search(text))


def benchmark_like(data: Mapping[str, Any]) -> bool:
    """Whether a JSON object has the marks of pytest-benchmark. (Google Benchmark and pyperf have `benchmarks` too.)"""
    benches = data.get("benchmarks")
    entries = [entry for entry in benches if isinstance(entry, dict)] if isinstance(benches, list) else []
    return "machine_info" in data or any("stats" in entry or "extra_info" in entry for entry in entries)

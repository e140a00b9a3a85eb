"""The append-only JSONL of finished cells: a line is on disk before the next cell starts. Standard library only.

Two kinds of line: `{"event": "start", "cell", "key", "when"}` before a cell runs, so that a kill can be laid at its
door, and `{"event": "cell", ...}` (an `Entry`) after it. Every line ends with a checksum of itself, so a torn or
altered line is known for one and never believed.
"""

import contextlib
import io
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mlexp.store import write

try:
    import fcntl
except ImportError:  # not on Windows, where two runs must not share a journal
    fcntl = None  # type: ignore[assignment]  # the name of a module everywhere else


@dataclass
class Entry:
    """A finished cell: its identity, its flat record, the timed rounds in seconds, its series (or where they are, see
    mlexp.series); and what it imported beyond what its key covers: files and their hashes, distributions and their
    versions."""

    cell: str
    key: str
    question: str
    params: dict[str, Any]
    record: dict[str, Any]
    durations: list[float] = field(default_factory=list)
    series: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)  # the question's own: name -> [unit, better, what, compare]
    study: dict[str, Any] = field(default_factory=dict)  # mlexp.study.Study.declaration as it stood when the cell ran
    group: str | None = None
    imports: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str | None] = field(default_factory=dict)

    @property
    def status(self) -> str:
        return str(self.record["status"])


OWN_FOLDER = ".mlexp"
BEGIN = '{"event":"'  # of every line
KINDS = {
    **dict.fromkeys(("cell", "key", "question"), str),
    **dict.fromkeys(("params", "record", "series", "metrics", "study", "imports", "packages"), dict),
    "durations": list,
    "group": str | None,
}
REQUIRED = {f.name for f in fields(Entry) if f.default is MISSING and f.default_factory is MISSING}


class JournalError(ValueError):
    """A journal that cannot be believed or written; the message is one line that says where and why."""


class Journal:
    """The journal at `path`, open for appending by any number of processes."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def check_writable(self) -> None:
        """Raises JournalError now rather than after the first cell."""
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if folder.name == OWN_FOLDER and not (folder / ".gitignore").exists():
                (folder / ".gitignore").write_text("*\n")  # or every tree with a journal would be dirty
            with open(self.path, "ab"):
                pass
        except OSError as error:
            raise JournalError(f"cannot write the journal {self.path}: {error.strerror}") from None

    def start(self, cell: str, key: str, when: str) -> None:
        """Note that a cell is about to run. Not synced: it outlives a killed process, and that is its use."""
        self._append({"event": "start", "cell": cell, "key": key, "when": when}, sync=False)

    def append(self, entry: Entry) -> None:
        """Put a finished cell on disk; returns once it would survive a power cut."""
        self._append({"event": "cell", **asdict(entry)}, sync=True)

    def keep(self, files: Mapping[str, bytes]) -> None:
        """Put files beside the journal, by relative path, before the line that names them."""
        for name, content in files.items():
            path = self.path.parent / name
            try:
                write(path, content, sync=True)
            except OSError as error:
                raise JournalError(f"cannot write {path}: {error.strerror}") from None

    def _append(self, line: Mapping[str, object], sync: bool) -> None:
        """Raises JournalError where the line is not on disk; the file is then as it was."""
        text = seal(line).encode() + b"\n"
        try:
            with open(self.path, "ab+", buffering=0) as file, locked(file):
                size = file.seek(0, os.SEEK_END)
                if size:
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # the last run died within a line: leave it torn, begin a new one
                        text = b"\n" + text
                try:
                    write_all(file, text)
                    if sync:
                        os.fsync(file.fileno())
                except OSError:  # a full disk: what fitted is taken back
                    with contextlib.suppress(OSError):
                        file.truncate(size)
                    raise
        except OSError as error:
            raise JournalError(f"cannot write the journal {self.path}: {error.strerror}") from None


def write_all(file: io.FileIO, data: bytes) -> None:
    """Write all of `data` to an unbuffered file: one write takes what the disk has room for."""
    while data:
        data = data[file.write(data) :]


@contextlib.contextmanager
def locked(file: io.FileIO) -> Iterator[None]:
    """Hold `file` against other processes of this kind."""
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_UN)


def seal(line: Mapping[str, object]) -> str:
    """One line of JSON, its checksum last. Raises ValueError for NaN and infinities."""
    text = json.dumps(line, allow_nan=False, separators=(",", ":"))
    return f'{text[:-1]},"crc":"{zlib.crc32(text.encode()):08x}"}}'


def unseal(text: str) -> dict[str, Any] | None:
    """The line as it was sealed, or None where it is torn or altered."""
    body, mark, tail = text.rpartition(',"crc":"')
    if not mark or tail[8:] != '"}' or f"{zlib.crc32((body + '}').encode()):08x}" != tail[:8]:
        return None
    try:
        line = json.loads(body + "}")
    except (ValueError, RecursionError):  # sealed by somebody else
        return None
    return line if isinstance(line, dict) else None


@dataclass
class Contents:
    """What a journal holds: finished cells in order, cells that started and never ended, and lines by number, from 1:
    those cut short by a kill, and those that are not as the harness wrote them."""

    entries: list[Entry] = field(default_factory=list)
    died: list[dict[str, Any]] = field(default_factory=list)
    torn: list[int] = field(default_factory=list)
    altered: list[int] = field(default_factory=list)


def read(path: str | Path) -> Contents:
    """Everything in the journal at `path`. Raises JournalError where it cannot be read at all."""
    try:
        return parse(Path(path).read_text(encoding="utf-8-sig", errors="replace"))
    except OSError as error:
        raise JournalError(f"cannot read the journal {path}: {error.strerror}") from None


def parse(text: str) -> Contents:
    """Everything in the text of a journal."""
    contents = Contents()
    started: dict[tuple[str, str], dict[str, Any]] = {}
    for number, sealed in enumerate(text.split("\n"), 1):
        if not sealed.strip():
            continue
        line = unseal(sealed)
        if line is None:
            (contents.torn if is_torn(sealed) else contents.altered).append(number)
        elif line.get("event") == "start" and all(isinstance(line.get(name), str) for name in ("cell", "key")):
            started[line["cell"], line["key"]] = line
        elif entry := entry_of(line):
            started.pop((entry.cell, entry.key), None)
            contents.entries.append(entry)
        else:  # sealed, but not by this program
            contents.altered.append(number)
    contents.died = list(started.values())
    return contents


def entry_of(line: dict[str, Any]) -> Entry | None:
    """The finished cell that an unsealed line is about; None where it is about none, or a field is not of its kind."""
    if line.get("event") != "cell" or not set(line) >= REQUIRED:
        return None
    entry = Entry(**{f.name: line[f.name] for f in fields(Entry) if f.name in line})
    if not all(isinstance(getattr(entry, name), kind) for name, kind in KINDS.items()):
        return None
    timed = all(type(value) in (int, float) and 0 <= value < math.inf for value in entry.durations)
    return entry if timed and isinstance(entry.record.get("status"), str) else None


def is_torn(text: str) -> bool:
    """Whether a line that cannot be unsealed is the beginning of one: what a kill within a write leaves."""
    begins = text.startswith(BEGIN[: len(text)])
    return begins and not (text.rpartition(',"crc":"')[1] and text.endswith('"}'))

"""The journal: what was appended is read back; what was torn or altered is known for it."""

import fcntl
import json
import math
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlexp import journal
from mlexp.journal import Entry, Journal

values = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
entries = st.builds(
    Entry,
    cell=st.text(min_size=1),
    key=st.text(min_size=1),
    question=st.text(),
    params=st.dictionaries(st.text(), values, max_size=3),
    record=st.dictionaries(st.text(), values, max_size=5).map(lambda r: r | {"status": "passed"}),
    durations=st.lists(st.floats(0, 1e6), max_size=4),
    series=st.dictionaries(st.text(), st.lists(st.none() | st.floats(-1e9, 1e9), max_size=4), max_size=2),
)


def fill(path, items):
    for entry in items:
        Journal(path).append(entry)


@given(st.lists(entries, max_size=5))
def test_what_is_appended_is_read_back(tmp_path_factory, items):
    path = tmp_path_factory.mktemp("journal") / "j.jsonl"
    path.touch()
    fill(path, items)
    contents = journal.read(path)
    assert contents.entries == items
    assert not contents.altered and not contents.torn and not contents.died


@given(st.lists(entries, min_size=1, max_size=4), st.data())
def test_a_torn_tail_costs_one_line_and_nothing_after_it(tmp_path_factory, items, data):
    path = tmp_path_factory.mktemp("journal") / "j.jsonl"
    fill(path, items)
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1]) if whole.count(b"\n") == len(items) else len(whole)
    cut = data.draw(st.integers(1, max(1, last - 2)))
    path.write_bytes(whole[:-cut])
    survivors = items if cut == 1 else items[:-1]  # only the newline gone: the line itself is whole
    assert journal.read(path).entries == survivors
    assert journal.read(path).altered == []
    Journal(path).append(items[0])
    assert journal.read(path).entries == [*survivors, items[0]]


@given(entries, st.data())
def test_a_flipped_bit_is_never_believed(tmp_path_factory, entry, data):
    path = tmp_path_factory.mktemp("journal") / "j.jsonl"
    fill(path, [entry, entry])
    first, second = path.read_bytes().split(b"\n")[:2]
    place, bit = data.draw(st.integers(0, len(first) - 1)), data.draw(st.integers(0, 7))
    flipped = bytearray(first)
    flipped[place] ^= 1 << bit
    path.write_bytes(bytes(flipped) + b"\n" + second + b"\n")
    contents = journal.read(path)
    assert contents.entries == [entry]
    assert contents.altered or contents.torn or first.isspace()


def test_a_cell_that_started_and_never_ended_is_known(tmp_path):
    book = Journal(tmp_path / "j.jsonl")
    book.start("one", "k1", "now")
    book.append(Entry("one", "k1", "q", {}, {"status": "passed"}))
    book.start("two", "k2", "now")
    assert [line["cell"] for line in journal.read(book.path).died] == ["two"]


def test_nan_is_refused_before_anything_is_written(tmp_path):
    book = Journal(tmp_path / "j.jsonl")
    with pytest.raises(ValueError, match="JSON"):
        book.append(Entry("one", "k", "q", {}, {"status": "passed", "x": math.nan}))
    assert not book.path.exists()


def test_a_line_is_plain_json(tmp_path):
    fill(tmp_path / "j.jsonl", [Entry("one", "k", "q", {"a": 1}, {"status": "passed"})])
    line = json.loads((tmp_path / "j.jsonl").read_text())
    assert line["event"] == "cell" and line["params"] == {"a": 1}


@pytest.mark.parametrize("make", [lambda p: p, lambda p: p / "missing.jsonl"])
def test_what_cannot_be_read_is_one_line(tmp_path, make):
    with pytest.raises(journal.JournalError, match="cannot read the journal"):
        journal.read(make(tmp_path))


def test_what_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(journal.JournalError, match="cannot write the journal"):
        Journal(tmp_path).check_writable()


WRITER = """
import sys
from mlexp.journal import Entry, Journal
path, name = sys.argv[1:]
for i in range(30):
    Journal(path).append(Entry(f"{name}-{i}", f"{name}{i}", "q", {}, {"status": "passed", "pad": "x" * 3000}))
"""


def test_two_processes_may_share_a_journal(tmp_path):
    path = tmp_path / "j.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, name]) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    contents = journal.read(path)
    assert len(contents.entries) == 60 and not contents.altered and not contents.torn


def test_a_finished_cell_is_synced_to_disk_before_append_returns(tmp_path, monkeypatch):
    """Written whole, then synced, under an exclusive lock on the same file; the start of a cell is not synced."""
    calls = []
    monkeypatch.setattr(journal.os, "fsync", lambda fd: calls.append(("fsync", os.fstat(fd).st_size)))
    monkeypatch.setattr(journal.fcntl, "flock", lambda file, how: calls.append(("flock", how)))
    book = Journal(tmp_path / "j.jsonl")
    book.start("one", "k", "now")
    assert calls == [("flock", fcntl.LOCK_EX), ("flock", fcntl.LOCK_UN)]
    calls.clear()
    book.append(Entry("one", "k", "q", {}, {"status": "passed"}))
    size = book.path.stat().st_size
    assert calls == [("flock", fcntl.LOCK_EX), ("fsync", size), ("flock", fcntl.LOCK_UN)]


class HalfFull:
    """An unbuffered file that takes at most `most` bytes a write."""

    def __init__(self, most):
        self.most, self.data = most, b""

    def write(self, data):
        self.data += data[: self.most]
        return min(self.most, len(data))


@given(st.binary(max_size=40), st.integers(1, 50))
def test_all_is_written_however_little_a_write_takes(data, most):
    file = HalfFull(most)
    journal.write_all(file, data)
    assert file.data == data


@pytest.mark.parametrize("fault", ["write", "fsync"])
def test_what_cannot_be_synced_or_written_whole_is_taken_back(tmp_path, monkeypatch, fault):
    book = Journal(tmp_path / "j.jsonl")
    fill(book.path, [Entry("one", "k", "q", {}, {"status": "passed"})])
    before = book.path.read_bytes()

    def full(file, data=None):
        if data:
            file.write(data[:7])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*{"write": (journal, "write_all"), "fsync": (journal.os, "fsync")}[fault], full)
    with pytest.raises(journal.JournalError, match="No space left"):
        book.append(Entry("two", "k", "q", {}, {"status": "passed"}))
    assert book.path.read_bytes() == before


def test_other_cells_that_started_stay_known_when_one_ends(tmp_path):
    book = Journal(tmp_path / "j.jsonl")
    for cell in ("one", "two", "three"):
        book.start(cell, "k", "now")
    book.append(Entry("two", "k", "q", {}, {"status": "passed"}))
    assert [line["cell"] for line in journal.read(book.path).died] == ["one", "three"]


@pytest.mark.parametrize("line", [{}, {"event": "cell"}, {"event": "other", "cell": "a"}, {"event": "start"}])
def test_a_sealed_line_of_another_program_is_not_believed(tmp_path, line):
    path = tmp_path / "j.jsonl"
    path.write_text(journal.seal(line | {"x": 1}) + "\n")
    assert journal.read(path).altered == [1]

"""Disks that are full, folders that cannot be written: one clear line, and what had finished is kept."""

import errno
import os
import resource
import subprocess
import sys

import pytest

from mlexp import journal
from mlexp.journal import Entry, Journal, JournalError

pytest_plugins = ["pytester"]

ENTRY = Entry("one", "k", "q", {}, {"status": "passed", "pad": "x" * 2000}, [1.0])


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        refused = subprocess.run(mount, capture_output=True, check=False).returncode
    except FileNotFoundError:
        refused = 1
    if refused:
        pytest.skip("only root may mount a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place, leave):
    """Leave so many bytes on the disk at `place`."""
    with open(place / "filler", "wb") as file, pytest.raises(OSError, match="No space left"):
        while True:
            os.write(file.fileno(), b"x" * 1024)
    os.truncate(place / "filler", (place / "filler").stat().st_size - leave)


def test_a_full_disk_leaves_the_journal_as_it_was(small_disk):
    book = Journal(small_disk / "j.jsonl")
    book.append(ENTRY)
    before = book.path.read_bytes()
    fill(small_disk, leave=0)
    with pytest.raises(JournalError, match=r"cannot write the journal .*: No space left on device"):
        for _ in range(3):  # the file's last page may have room for one more
            book.append(ENTRY)
    after = book.path.read_bytes()
    assert after.startswith(before) and journal.read(book.path).torn == [] == journal.read(book.path).altered
    (small_disk / "filler").unlink()
    book.append(ENTRY)
    assert journal.read(book.path).entries == [ENTRY] * (after.count(b"\n") + 1)


def test_a_line_that_only_half_fits_is_taken_back(tmp_path):
    """By a limit on the size of files, in a process of its own: a write that succeeds in part, then fails."""
    path = tmp_path / "j.jsonl"
    code = (
        "import resource, sys; from mlexp.journal import *\n"
        "entry = Entry('one', 'k', 'q', {}, {'status': 'passed', 'pad': 'x' * 2000}, [1.0])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "for _ in range(4):\n"
        "    try: Journal(sys.argv[1]).append(entry)\n"
        "    except JournalError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.count(os.strerror(errno.EFBIG)) == 2
    contents = journal.read(path)
    assert contents.entries == [ENTRY] * 2 and not contents.torn and not contents.altered


def test_a_disk_that_fills_up_stops_the_run_and_loses_nothing(toy, small_disk):
    fill(small_disk, leave=8192)  # some of the cells
    path = str(small_disk / "j.jsonl")
    result = toy.run("--journal", path, "--benchmark-json", "out.json", subprocess=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    text = result.stdout.str() + result.stderr.str()
    assert "No space left on device" in text and "Traceback" not in text and "INTERNALERROR" not in text
    kept, ran = journal.read(path), toy.ran()
    assert 0 < len(kept.entries) < 8 and not kept.torn and not kept.altered
    finished = {bench["fullname"] for bench in toy.json()["benchmarks"]}
    assert len(finished) == len(ran) and {entry.cell for entry in kept.entries} <= finished  # the last is in the JSON
    (small_disk / "filler").unlink()
    toy.run("--journal", path, "--resume", "--benchmark-json", "out.json", subprocess=True).assert_outcomes(passed=8)
    assert len(toy.ran()) == 8 - len(kept.entries)


def test_a_json_that_does_not_fit_is_one_line_and_the_journal_has_it_all(toy, small_disk):
    fill(small_disk, leave=4096)
    result = toy.run("--benchmark-json", str(small_disk / "out.json"), subprocess=True)
    text = result.stdout.str() + result.stderr.str()
    assert result.ret not in (0, pytest.ExitCode.TESTS_FAILED)
    assert "No space left on device" in text and "Traceback" not in text and "INTERNALERROR" not in text
    assert len(journal.read(toy.journal).entries) == 8
    toy.run("--resume", "--benchmark-json", "out.json").assert_outcomes(passed=8)


@pytest.fixture
def read_only(small_disk):
    """A file system that nobody may write, root neither."""
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    return small_disk


@pytest.mark.parametrize("option", ["--journal", "--benchmark-json"])
@pytest.mark.parametrize("where", ["read_only", "a_file"])
def test_a_place_that_cannot_be_written_is_told_before_the_first_cell(toy, request, option, where):
    if where == "a_file":
        folder = toy.pytester.path / "occupied"
        folder.write_text("not a folder")
    else:
        folder = request.getfixturevalue("read_only")
    result = toy.run(option, str(folder / "x.jsonl"), subprocess=True)
    told = [line for line in result.stderr.lines if line.startswith("ERROR")]
    assert result.ret == pytest.ExitCode.USAGE_ERROR and len(told) == 1 and str(folder) in told[0]
    assert toy.ran() == []


def test_a_report_that_cannot_be_written_is_one_line(toy, read_only):
    toy.run("--benchmark-json", "out.json")
    (toy.folder / "report.py").write_text('"""Nothing."""\ndef report(records, out): out.text("x")\n')
    for folder in (read_only / "out", toy.bench / "out"):
        words = [sys.executable, "-m", "mlexp", "report", "out.json", "--out", str(folder), "--benches", "benches"]
        done = subprocess.run(words, cwd=toy.pytester.path, capture_output=True, text=True, check=False)
        assert done.returncode == 4 and done.stderr.count("\n") == 1 and str(folder) in done.stderr


def test_a_cell_that_a_real_limit_starves_is_oom_and_costs_itself_alone(toy):
    """RLIMIT_AS on the whole run, not a mock: Python's allocator is refused what one cell asks for."""
    toy.script("m_two-seed1-base", "held = bytearray(1 << 36)")
    limit = 1 << 34

    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    words = ["benches", "-q", "-p", "no:cacheprovider", "--benchmark-json", "out.json"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=toy.pytester.path, preexec_fn=limited, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    output = toy.json()
    assert len(output["benchmarks"]) == 7
    (row,) = output["unfinished"]
    assert row["extra_info"]["status"] == "oom" and "MemoryError" in row["extra_info"]["reason"]
    assert len(journal.read(toy.journal).entries) == 8


TORCH = '''"""A cell that asks torch for more than there may be."""
def test_big(cell):
    import torch
    cell.time(lambda: torch.zeros(1 << 34), warmup=False)

def test_small(cell):
    import torch
    cell.time(lambda: torch.zeros(4), warmup=False)
'''


@pytest.mark.slow
def test_torch_starved_by_a_real_limit_is_oom(toy):
    toy.bench.write_text(TORCH)
    limit = 1 << 34
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "benches", "-q", "-p", "no:cacheprovider", "--benchmark-json", "out.json"],
        cwd=toy.pytester.path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["extra_info"]["status"] for row in toy.json()["unfinished"]] == ["oom"]
    assert len(toy.json()["benchmarks"]) == 1

"""A record's status is what pytest finally says: of teardowns, subtests, strict xfail, skips and reruns."""

import json
import re

import pytest

from mlexp import journal

pytest_plugins = ["pytester"]

BENCH = '''
import pathlib, sys
from dataclasses import dataclass
import pytest

@dataclass(frozen=True)
class Settings:
    arms: tuple[str, ...] = ("one", "two")

SETTINGS = {scale: Settings() for scale in ("smoke", "quick", "full")}
AXES = {"arm": "arms"}

@pytest.fixture
def checked():
    yield
    assert 1 == 2, "what the fixture checks afterwards"

@pytest.fixture
def unready():
    raise RuntimeError("setup is broken")

@pytest.fixture
def exhausted():
    yield
    raise MemoryError("in the teardown")

def once(name):
    """True the first time."""
    flag = pathlib.Path(__file__).with_name(name)
    fresh = not flag.exists()
    flag.touch()
    return fresh

'''
CELLS = {
    "fine": ("", "", "passed", None),
    "teardown": ("checked, ", "", "failed", "what the fixture checks afterwards"),
    "setup": ("unready, ", "", "failed", "setup is broken"),
    "teardown_memory": ("exhausted, ", "", "oom", "in the teardown"),
    "subtest": ("subtests, ", "with subtests.test('sub'): assert arm == 'x', 'in a subtest'", "failed", "in a subtest"),
    "subskip": ("subtests, ", "with subtests.test('sub'): pytest.skip('not here')", "passed", None),
    "skip": ("", "pytest.skip('after all')", "skipped", "after all"),
    "xfail": ("", "pytest.xfail('known')", "xfailed", "known"),
    "exit": ("", "sys.exit(3)", "failed", "SystemExit"),
}
MARKED = {
    "expected": ("@pytest.mark.xfail(reason='known')", "assert 0", "xfailed", "known"),
    "unexpected": ("@pytest.mark.xfail(reason='known')", "pass", "passed", None),
    "strict": ("@pytest.mark.xfail(strict=True, reason='known')", "pass", "failed", "XPASS(strict)"),
    "memory": ("@pytest.mark.xfail(reason='known')", "raise MemoryError('no room')", "oom", "no room"),
}


if pytest.version_tuple < (9,):  # subtests came with it
    CELLS = {name: row for name, row in CELLS.items() if "subtests" not in row[0]}


@pytest.fixture
def edge(toy):
    """The toy project with these cells instead of its own."""
    text = BENCH
    for name, (fixtures, after, *_) in CELLS.items():
        text += f"def test_{name}({fixtures}cell, arm):\n    cell.time(lambda: 1)\n    {after or 'pass'}\n\n"
    for name, (mark, after, *_) in MARKED.items():
        text += f"{mark}\ndef test_{name}(cell, arm):\n    cell.time(lambda: 1)\n    {after}\n\n"
    toy.bench.write_text(text)
    return toy


def entries(toy):
    return {entry.cell.partition("::test_")[2].partition("[")[0]: entry for entry in journal.read(toy.journal).entries}


@pytest.mark.parametrize("isolated", [(), ("--isolate",)], ids=["here", "isolated"])
def test_the_status_is_pytest_s_last_word(edge, isolated):
    edge.run("-k", "one", "--benchmark-json", "out.json", *isolated)
    found = entries(edge)
    for name, (*_, status, reason) in (CELLS | MARKED).items():
        assert (name, found[name].status) == (name, status)
        assert (reason or "") in (found[name].record["reason"] or ""), name
    assert journal.read(edge.journal).died == []
    passing = {name for name, row in (CELLS | MARKED).items() if row[2] == "passed"}
    timed = {bench["name"].removeprefix("test_").partition("[")[0] for bench in edge.json()["benchmarks"]}
    assert timed == passing
    edge.run("-k", "one", "--resume")
    assert {name for name, entry in entries(edge).items() if entry.record["attempt"] != 1} == set()


def test_only_what_passed_is_replayed(edge):
    edge.run("-k", "one")
    before = {entry.cell for entry in journal.read(edge.journal).entries}
    result = edge.run("-k", "one", "--resume", "--benchmark-json", "out.json")
    lines = [line for line in result.outlines if line.startswith("mlexp: ")]
    passing = sum(row[2] == "passed" for row in (CELLS | MARKED).values())
    assert f"{passing} replayed" in lines[-1] and "measured" not in lines[-1], lines
    again = [entry.cell for entry in journal.read(edge.journal).entries]
    assert len(again) == 2 * len(before) - passing


def test_an_attempt_that_is_run_again_is_one_row(toy):
    pytest.importorskip("pytest_rerunfailures")
    flag = "HERE / f'{model}{seed}'"
    once = f"if arm == 'ours' and not ({flag}).exists():\n        ({flag}).touch()\n        assert 0, 'the first time'"
    toy.bench.write_text(f"{toy.bench.read_text()}    {once}\n")
    result = toy.run("--reruns", "2", "--benchmark-json", "out.json", "-k", "m_one", "--benchmark-sort", "min")
    result.assert_outcomes(passed=4)
    rows = {bench["name"]: bench["extra_info"] for bench in toy.json()["benchmarks"]}
    assert len(rows) == len(toy.json()["benchmarks"]) == 4 and toy.json()["unfinished"] == []
    assert {name: row["attempt"] for name, row in rows.items()} == {name: 2 if "ours" in name else 1 for name in rows}
    attempts = [(entry.status, entry.record["attempt"]) for entry in journal.read(toy.journal).entries]
    assert sorted(attempts) == [("failed", 1)] * 2 + [("passed", 1)] * 2 + [("passed", 2)] * 2
    table = [line for line in result.outlines if re.match(r"test_toy\[\S+\] +[\d.]+ \(", line)]
    assert len([line for line in table if "ours" in line]) == 2
    assert any("4 measured" in line for line in result.outlines)


def test_one_that_fails_every_time_is_isolated_once_an_attempt(toy):
    pytest.importorskip("pytest_rerunfailures")
    toy.bench.write_text(toy.bench.read_text() + "\n    assert (model, seed, arm) != ('m_one', 1, 'ours')\n")
    toy.run("--reruns", "1", "--isolate", "-k", "m_one and seed1").assert_outcomes(passed=1, failed=1)
    assert (toy.folder / "ran.log").read_text().count("m_one-seed1-ours") == 2 * 3
    failed = [entry.record["attempt"] for entry in journal.read(toy.journal).entries if entry.status == "failed"]
    assert failed == [1, 2]


def test_a_cell_that_hangs_ends_as_crashed(toy):
    toy.script("m_one-seed1-ours", "time.sleep(600)")
    result = toy.run("--cell-timeout", "5", "-k", "m_one and seed1", "--benchmark-json", "out.json")
    result.assert_outcomes(passed=1, failed=1)
    (row,) = toy.json()["unfinished"]
    assert row["extra_info"]["status"] == "crashed"
    assert row["extra_info"]["reason"] == "it took longer than 5 s (--cell-timeout) and was killed"


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf"])
def test_a_limit_that_is_none_is_refused(toy, limit):
    result = toy.run("--cell-timeout", limit)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--cell-timeout {limit}: give a number of seconds above 0*"])


def test_out_of_memory_under_w_error(toy):
    """pytest-benchmark warns of a fixture that was not used, which `-W error` makes a failure."""
    toy.edit("    things =", "    raise MemoryError('no room')\n    things =")
    toy.run("-W", "error", "-k", "m_one and seed1", subprocess=True).assert_outcomes(xfailed=2)
    toy.run("-W", "error", "-k", "m_one and seed1", "--isolate", subprocess=True).assert_outcomes(xfailed=2)


def test_a_json_of_skips_alone_says_so(toy):
    toy.edit("    things =", "    import pytest; pytest.skip('no wheel')\n    things =")
    toy.run("--benchmark-json", "out.json").assert_outcomes(skipped=8)
    output = json.loads((toy.pytester.path / "out.json").read_text())
    assert {row["extra_info"]["status"] for row in output["unfinished"]} == {"skipped"}

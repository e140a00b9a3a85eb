"""SIGKILL at any instant of a run: no finished cell is lost or run again, none is there twice, the JSON is complete."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlexp import journal

pytest_plugins = ["pytester"]

CELLS = 8


def run(toy, args, kill_after=None):
    """pytest on the toy question in a process of its own (forked: no start-up), killed after so many seconds."""
    child = os.fork()
    if not child:
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, until the process ends
            os.chdir(toy.pytester.path)
            os._exit(pytest.main(["benches", "-q", "-p", "no:cacheprovider", *args]))
        finally:
            os._exit(99)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def run_s(toy):
    """Seconds that a whole run takes here and now, the shortest of three."""
    lengths = []
    for _ in range(3):
        began = time.perf_counter()
        assert run(toy, []) == 0
        lengths.append(time.perf_counter() - began)
    return min(lengths)


def killed_and_taken_up(toy, instant):
    """What was wrong after a kill at `instant` and a resume; (problems, cells that had finished)."""
    toy.journal.unlink(missing_ok=True)
    toy.ran()
    run(toy, [], kill_after=instant)
    begun = toy.ran()
    kept = journal.read(toy.journal) if toy.journal.exists() else journal.Contents()
    names = [entry.cell.partition("[")[2].rstrip("]") for entry in kept.entries]
    problems = [f"lost {cell}" for cell in begun[:-1] if cell not in names]  # the last one may have been running
    problems += [f"damaged {kept.altered}"] if kept.altered else []
    status = run(toy, ["--resume", "--benchmark-json", "out.json"])
    problems += [f"exit status {status}"] if status else []
    again = toy.ran()
    problems += [f"ran again: {cell}" for cell in again if cell in names]
    problems += [f"{len(names)} finished, {len(again)} ran"] if len(names) + len(again) != CELLS else []
    entries = journal.read(toy.journal).entries
    problems += [f"{len(entries)} records of {CELLS}"] if len(entries) != CELLS else []
    data = {bench["fullname"]: bench["stats"]["data"] for bench in toy.json()["benchmarks"]}
    problems += ["the JSON is not the journal"] if data != {entry.cell: entry.durations for entry in entries} else []
    return problems, len(names)


def kill_often(toy, run_s, count):
    """Kills at instants that Hypothesis draws; how many cells had finished at each."""
    finished = []

    @given(share=st.floats(0, 1.2))
    @settings(max_examples=count)
    def kill(share):
        problems, done = killed_and_taken_up(toy, share * run_s)
        assert not problems
        finished.append(done)

    kill()
    return finished


def test_a_kill_at_any_instant_costs_only_the_running_cell(toy, run_s):
    kill_often(toy, run_s, 6)


@pytest.mark.slow
def test_two_hundred_kills(toy, run_s):
    finished = kill_often(toy, run_s, 200)
    assert len(set(finished)) >= 4  # the kills did not all fall into the start
    print(
        f"{len(finished)} kills; cells finished at the kill: { {n: finished.count(n) for n in sorted(set(finished))} }"
    )


def test_the_check_sees_a_loss(toy, run_s, monkeypatch):
    """The judge itself, with a journal that keeps no record of one cell."""
    real = journal.Journal.append

    def forgetful(book, entry):
        if "m_one-seed2-ours" not in entry.cell:
            real(book, entry)

    monkeypatch.setattr(journal.Journal, "append", forgetful)
    problems, _ = killed_and_taken_up(toy, 3 * run_s)
    assert "lost m_one-seed2-ours" in problems and "7 records of 8" in problems


@pytest.mark.slow
def test_kills_of_a_real_question(tmp_path):
    """Ten kills of decoding cells that load a model: in the start, then each some time after another cell has ended."""
    root = Path(__file__).parents[2]
    words = ["benches/decoding_speedup", "-k", "gpt2_nano", "--scale", "smoke", "--resume", "-q"]
    words += ["-p", "no:cacheprovider", "--journal", str(tmp_path / "j.jsonl")]
    command = [sys.executable, "-m", "pytest", *words]
    quiet = {"cwd": root, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*command, "--journal", str(tmp_path / "warm.jsonl")], check=True, **quiet)  # trains the model, once

    def finished():
        return journal.read(tmp_path / "j.jsonl").entries if (tmp_path / "j.jsonl").exists() else []

    seen: dict[str, list] = {}
    for number in range(10):
        process = subprocess.Popen(command, **quiet)
        while number > 1 and len(finished()) == len(seen) and process.poll() is None:
            time.sleep(0.02)
        time.sleep(0.3 * number)
        process.kill()
        process.wait()
        entries = finished()
        now = {entry.cell: entry.durations for entry in entries}
        assert len(now) == len(entries) and seen.items() <= now.items(), number
        seen = now
        print(f"kill {number}: {len(seen)} cells finished")
    subprocess.run([*command, "--benchmark-json", str(tmp_path / "out.json")], check=True, **quiet)
    benches = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    data = {bench["fullname"]: bench["stats"]["data"] for bench in benches}
    assert len(data) == 11 and seen.items() <= data.items()

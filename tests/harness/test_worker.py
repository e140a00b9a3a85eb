"""The far end of a sweep, without Ray: a warm session hands back what a cell leaves, or says why it does not."""

import pytest

from mlexp import journal
from mlexp.harness.worker import Child

pytest_plugins = ["pytester"]

FIRST, SECOND = (f"benches/toy/bench_toy.py::test_toy[m_one-seed1-{arm}]" for arm in ("base", "ours"))


@pytest.fixture
def child(toy):
    started = Child(["benches", "-q", "-p", "no:cacheprovider"], [str(toy.bench)], str(toy.pytester.path))
    yield started
    started.close()


def keys(toy):
    """The keys that a run here gives, by cell."""
    toy.run("-k", "m_one and seed1")
    toy.ran()
    return {entry.cell: entry.key for entry in journal.read(toy.journal).entries}


def test_a_warm_session_runs_what_it_is_asked_for_and_tells_the_end_of_it(toy, child):
    known = keys(toy)
    assert child.machine and not child.broken
    reply = child.run(FIRST, known[FIRST])
    entry = journal.entry_of(journal.unseal(reply["line"]))
    assert (entry.cell, entry.key, entry.status, len(entry.durations)) == (FIRST, known[FIRST], "passed", 3)
    assert "not those of the session" in child.run(SECOND, "another key")["refused"]
    assert "does not collect" in child.run("no such cell", "k")["refused"]
    assert toy.ran() == ["m_one-seed1-base"]
    toy.script("m_one-seed1-ours", "os.kill(os.getpid(), signal.SIGKILL)")
    assert "SIGKILL" in child.run(SECOND, known[SECOND])["died"]


def test_a_session_that_does_not_come_up_says_why(toy):
    child = Child(["benches", "--scale", "huge"], [str(toy.bench)], str(toy.pytester.path))
    told = child.broken
    assert child.machine is None and "status 4" in told and "huge" in told and "\n" not in told
    child.close()

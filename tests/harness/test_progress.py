"""Progress: live on a terminal, sparse in a log, silent under -q."""

import contextlib
import io
from types import SimpleNamespace

import pytest

from mlexp.harness import progress
from mlexp.harness.progress import Progress


class Terminal(io.StringIO):
    def __init__(self, tty):
        super().__init__()
        self.tty = tty

    def isatty(self):
        return self.tty


@pytest.fixture
def say(monkeypatch):
    """A Progress on a fake terminal and a fake clock: call `say(tty, verbose)`, get (progress, output, clock)."""

    def make(tty, verbose=0):
        out, clock = Terminal(tty), SimpleNamespace(now=100.0)
        monkeypatch.setattr(progress.time, "perf_counter", lambda: clock.now)
        monkeypatch.setattr(progress.sys, "__stdout__", out)
        capture = SimpleNamespace(global_and_fixture_disabled=contextlib.nullcontext)
        plugins = SimpleNamespace(getplugin=lambda name: capture)
        return (
            Progress(SimpleNamespace(pluginmanager=plugins, option=SimpleNamespace(verbose=verbose)), "cell"),
            out,
            clock,
        )

    return make


def test_a_short_cell_says_nothing(say):
    line, out, _ = say(tty=True)
    line(1, 2, "round")
    line.close()
    assert out.getvalue() == ""


def test_a_terminal_gets_one_live_line_that_is_wiped(say):
    line, out, clock = say(tty=True)
    clock.now += 2
    line(1, 9, "epoch")
    line(2, 9, "epoch")  # too soon
    clock.now += 1
    line(3, 9, "epoch")
    line.close()
    assert out.getvalue() == "\r\033[Kcell: epoch (1/9)\r\033[Kcell: epoch (3/9)\r\033[K"


def test_a_log_gets_plain_lines_now_and_then(say):
    line, out, clock = say(tty=False)
    for step in range(100):
        clock.now += 1
        line(step, 100, "step")
    line.close()
    assert out.getvalue() == "\ncell: step (29/100)\ncell: step (59/100)\ncell: step (89/100)\n"


def test_quiet_is_silent(say):
    line, out, clock = say(tty=True, verbose=-1)
    clock.now += 1000
    line(1, 2, "round")
    line.close()
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("tty", "shown"), [(True, "\r\033[Kcell: a stand-in is used\n"), (False, "\ncell: a stand-in is used\n")]
)
def test_an_announcement_is_shown_at_once_and_stays(say, tty, shown):
    line, out, _ = say(tty)
    line(0, 0, "a stand-in is used")
    line.close()
    assert out.getvalue() == shown

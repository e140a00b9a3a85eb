"""The status of a cell: pytest's final outcome of setup, body, subtests and teardown.

The exception that a cell raised gives the reason: memory ran out, a loss diverged, its process died. Pytest's outcome
decides: a cell that passed in its body and fails in a teardown, in a subtest, or because it was expected to fail, is
failed.
"""

from typing import TYPE_CHECKING, Any

import pytest

from mlexp import record
from mlexp.memory import out_of_memory

UNMEASURED = "the cell ended without cell.time: nothing was measured"


if TYPE_CHECKING:
    from _pytest.outcomes import Failed
else:
    Failed = pytest.fail.Exception


class CellDied(Failed):
    """A cell that did not pass where it ran: the message is the reason, `status` what it comes to."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason, pytrace=False)
        self.status = status


class Attempt:
    """One run of a cell, as far as it has come."""

    def __init__(self, number: int) -> None:
        self.number = number  # from 1: plugins may run a cell again
        self.cell: Any = None  # the fixtures, once they are there
        self.benchmark: Any = None
        self.started = False  # its body
        self.cause: tuple[str, str] | None = None  # (status, reason) of the first thing that went wrong
        self.where = ""  # file:line, of the bench file's folder, of that cause
        self.word: tuple[str, str] | None = None  # (status, reason) of the first outcome that is not passed

    @property
    def durations(self) -> list[float]:
        """Seconds of the timed rounds."""
        return list(self.benchmark.stats.stats.data) if self.benchmark and self.benchmark.stats else []

    def raised(self, report: pytest.TestReport, error: BaseException | None) -> None:
        """Note what a phase raised, and give its report the resulting outcome."""
        if error is None or isinstance(error, (pytest.skip.Exception, pytest.xfail.Exception)):
            return
        status, reason = outcome(error)
        self.cause = self.cause or (status, reason)
        if isinstance(error, CellDied) or (status in record.EXPECTED and report.failed):
            impose(report, status, f"{status}: {reason}" if status in record.EXPECTED else reason)

    def heard(self, report: pytest.TestReport) -> None:
        """Take up a report in its final form; the first one that is not passed counts."""
        is_subtest, outcome = hasattr(report, "context"), str(report.outcome)  # `rerun` is pytest-rerunfailures'
        if report.failed or outcome == "rerun":
            if self.word is None or self.word[0] in ("skipped", "xfailed"):
                self.word = self.cause or ("failed", headline(report))
        elif report.skipped and not is_subtest and self.word is None:
            expected = getattr(report, "wasxfail", None)
            if self.cause and self.cause[0] in record.EXPECTED:
                self.word = self.cause
            elif report.when == "call":
                self.word = ("skipped", headline(report)) if expected is None else ("xfailed", expected or "xfail")

    @property
    def status(self) -> tuple[str, str | None]:
        """(status, reason), once all reports have been taken up."""
        return self.word or (("passed", None) if self.durations else ("failed", UNMEASURED))


def impose(report: pytest.TestReport, status: str, reason: str) -> None:
    """Give a report a cell's status and reason, whatever marks made of the exception that brought it here."""
    vars(report).pop("wasxfail", None)
    if status in record.EXPECTED or status == "xfailed":
        report.outcome, report.wasxfail = "skipped", reason
    elif status == "skipped":
        path, line, _ = report.location
        report.outcome, report.longrepr = "skipped", (path, (line or 0) + 1, f"Skipped: {reason}")
    else:
        report.outcome, report.longrepr = "failed", reason


def outcome(error: BaseException) -> tuple[str, str]:
    """(status, reason) of a cell that raised `error`."""
    if isinstance(error, CellDied):
        return error.status, str(error.msg)
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    if out_of_memory(error):
        return "oom", reason
    if isinstance(error, FloatingPointError):  # what a subject raises when its loss is no longer finite
        return "diverged", reason
    return "failed", reason


def headline(report: pytest.TestReport) -> str:
    """Why a report is what it is, in one line."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[-1]).removeprefix("Skipped: ")[:300]
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message) if crash else str(report.longrepr or report.outcome)
    return next(iter(text.strip().splitlines()), "")[:300]

"""What a session shows: a line a cell, a table of arms at the end. pytest-benchmark's own table where it is asked for.

In pytest's default mode a cell's line stands in place of its dot; with `-v` its outcome stands behind PASSED. A cell
that is replayed keeps its dot, and so does everything under `-q` and under reporters other than pytest's own.
"""

import dataclasses
import os
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from mlexp.harness.benchmark_json import is_disabled, json_path
from mlexp.harness.plan import Plan
from mlexp.harness.session import STATE, State
from mlexp.harness.summary import REASON, cell_line, folded, function_of, outcome_text, shortened, summary
from mlexp.journal import Entry

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

TABLE_OPTIONS = ("verbose", "columns", "group_by", "sort", "name", "histogram", "compare", "compare_fail", "cprofile")
# what pytest-benchmark before 5.3 has for --benchmark-columns where it is not given
COLUMNS = ["min", "max", "mean", "stddev", "median", "iqr", "outliers", "ops", "rounds", "iterations"]
COLOURS = {"passed": "green", "failed": "red", "crashed": "red"}
Status = tuple[str, str, str | tuple[str, Mapping[str, bool]]]  # category, letter, word of pytest's reporter


def say(config: pytest.Config, text: str) -> None:
    """One line that is seen in every mode."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter:
        reporter.ensure_newline()
        reporter.write_line(text, yellow=True)
    else:
        print(text, file=sys.__stderr__)


def wants_table(config: pytest.Config) -> bool:
    """Whether pytest-benchmark's own table of timings is asked for: by an option that shapes it or needs it."""
    given = [arg.partition("=")[0] for arg in config.invocation_params.args if isinstance(arg, str)]
    flags = {f"--benchmark-{name.replace('_', '-')}" for name in TABLE_OPTIONS}
    defaults = {"group_by": "group", "sort": "min", "name": "normal", "columns": COLUMNS}
    values = {name: getattr(config.option, f"benchmark_{name}", None) for name in TABLE_OPTIONS}
    return not flags.isdisjoint(given) or any(value for name, value in values.items() if value != defaults.get(name))


def mode_of(config: pytest.Config) -> str:
    """How cells are shown: `lines`, `words` (behind pytest's), or not at all."""
    if type(config.pluginmanager.getplugin("terminalreporter")).__name__ != "TerminalReporter":
        return ""  # a plugin draws in its own way
    verbosity = config.get_verbosity(config.VERBOSITY_TEST_CASES)
    return "lines" if verbosity == 0 else "words" if verbosity > 0 else ""


def so_far(plan: Plan) -> Entry:
    """What a cell that has just run in its body has left, before its teardown and its place in the journal."""
    if plan.elsewhere:
        return plan.elsewhere
    attempt = plan.attempt
    status, reason = attempt.status
    record = {**(attempt.cell.values if attempt.cell else {}), "status": status, "reason": reason}
    metrics = {name: list(row) for name, row in plan.study.metrics.items()}
    entry = Entry(plan.name, plan.key, plan.question, plan.params, record, attempt.durations, metrics=metrics)
    return dataclasses.replace(entry, study=plan.study.declaration)


def behind(plan: Plan, report: pytest.TestReport) -> str:
    """What stands behind pytest's own word for a cell; of a skip or an expected failure pytest tells the reason."""
    if report.failed:
        return shortened(plan.attempt.cause[1] if plan.attempt.cause else "", REASON // 2)
    entry = so_far(plan)
    replayed = ", replayed" if entry.record.get("replayed") else ""
    return f"{outcome_text(entry)}{replayed}" if report.passed else ""


def timings(config: pytest.Config | None, benchmarks: Iterable[Any]) -> list[Any]:
    """What pytest-benchmark's table has a row for: of cells those that passed, and none unless it is asked for."""
    if config is None:  # `pytest-benchmark compare`
        return list(benchmarks)
    results, table = config.stash[STATE].results, wants_table(config)
    passed = {name for name, entry in results.ended.items() if entry.status == "passed" and table}
    last = {bench["fullname"]: bench for bench in benchmarks}  # of a cell that a plugin ran again, the last attempt
    return [
        bench
        for name, bench in ((bench["fullname"], bench) for bench in benchmarks)
        if name not in results.plans or (name in passed and last[name] is bench)
    ]


class Terminal:
    """Shows the cells of a session on pytest's terminal."""

    def __init__(self, config: pytest.Config, state: State, clashes: list[str]) -> None:
        self.config, self.state, self.clashes = config, state, clashes
        self.is_over = False  # the run: what is said of a test now is the summary's
        self.mode = mode_of(config)

    def pytest_report_header(self) -> str | None:
        if not self.clashes:
            return None
        taken, free = (", ".join(f"--{prefix}{name}" for name in self.clashes) for prefix in ("", "mlexp-"))
        return f"mlexp: {taken}: of another plugin or a conftest file here; mlexp's: {free}"

    def _cell(self, nodeid: str) -> Plan | None:
        """The plan of what is measured while it runs."""
        over = self.is_over or is_disabled(self.config)
        return None if over else self.state.results.plans.get(nodeid)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """End the line with the file's name."""
        plan = self._cell(nodeid)
        if self.mode == "lines" and plan and not plan.is_journaled:
            self._new_line()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_report_teststatus(self, report: Any) -> Generator[None, Status, Status]:
        category, letter, word = yield
        plan = self._cell(getattr(report, "nodeid", ""))
        if plan is None or not letter or hasattr(report, "context"):  # a subtest
            return category, letter, word
        if self.mode == "lines" and not plan.is_journaled and (report.when == "call" or report.failed):
            return category, "", word
        if self.mode == "words" and report.when == "call" and isinstance(word, str):
            word = f"{word} {behind(plan, report)}".rstrip()
        return category, letter, word

    @pytest.hookimpl(tryfirst=True)
    def pytest_mlexp_record(self, record: Mapping[str, Any]) -> None:
        """A cell is in the journal."""
        plan = self.state.results.plans[record["cell"]]
        if self.mode != "lines" or record["replayed"]:
            return
        entry = self.state.results.ended.get(plan.name) or plan.elsewhere
        assert entry is not None, "it is in the journal"
        self._new_line()
        colour = {COLOURS.get(entry.status, "yellow"): True}
        self.config.get_terminal_writer().line(f"  {cell_line(entry, self._has_siblings(entry))}", **colour)

    def _has_siblings(self, entry: Entry) -> bool:
        """Whether the question of a cell has several cell functions in this run."""
        names = {name.partition("[")[0] for name, p in self.state.results.plans.items() if p.question == entry.question}
        return len({name.rpartition("::")[2] for name in names} | {function_of(entry)}) > 1

    def _new_line(self) -> None:
        writer = self.config.get_terminal_writer()
        if writer.width_of_current_line:
            writer.line()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        self.is_over = True

    def pytest_terminal_summary(self, terminalreporter: "TerminalReporter", exitstatus: int) -> None:
        """The arms of each question, what became of the cells, and what to do next."""
        results, config = self.state.results, self.config
        counts = results.counts()
        if not counts:
            return
        terminalreporter.ensure_newline()
        quiet = getattr(config.option, "benchmark_quiet", False) or config.get_verbosity() < -1
        if not quiet and not wants_table(config):
            terminalreporter.section("cells", sep="-")
            for line in [*summary(results.ended.values()), *folded(self._failures())]:
                terminalreporter.write_line(line, bold=not line.startswith(" "))
        words = ", ".join(f"{count} {name}" for name, count in counts.items())
        terminalreporter.write_line(f"mlexp: {words}; journal: {os.path.relpath(self.state.journal.path)}")
        if line := self._unfinished(exitstatus == pytest.ExitCode.INTERRUPTED):
            terminalreporter.write_line(line)
        if not quiet and config.option.mlexp_report is None:
            path = json_path(config) or self.state.journal.path
            terminalreporter.write_line(f"now: mlexp report {os.path.relpath(path)}")

    def _failures(self) -> Iterator[tuple[str, str, str]]:
        """(status, reason, place in the bench file) of each cell that did not finish."""
        for name, entry in self.state.results.ended.items():
            if entry.status not in ("passed", "skipped", "xfailed"):
                yield entry.status, str(entry.record.get("reason") or ""), self.state.results.plans[name].attempt.where

    def _unfinished(self, is_interrupted: bool) -> str:
        """How to go on where the session ended before its last cell; empty where it did not. A cell that was skipped
        did not end either, and is not waited for."""
        results, ended = self.state.results, self.state.results.ended
        waiting = [plan for name, plan in results.plans.items() if name not in ended]
        if not is_interrupted and all(plan.attempt.number for plan in waiting):
            return ""
        measured = sum(entry.status == "passed" for entry in ended.values())
        if measured == len(results.plans):  # interrupted after the last one
            return ""
        command = "the same command" if self.state.run.resume else "the same command with --resume"
        return f"mlexp: {measured} of {len(results.plans)} cells measured; {command} goes on"

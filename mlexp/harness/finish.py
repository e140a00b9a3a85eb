"""The end of a cell, which goes to the journal when pytest has said its last word, and of a session."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest

from mlexp import journal
from mlexp.harness import reporting
from mlexp.harness.benchmark_json import JSON_WRITTEN, is_disabled, json_path, write_unfinished
from mlexp.harness.plan import Plan
from mlexp.harness.results import hook_row
from mlexp.harness.session import PEER, STATE, State
from mlexp.harness.terminal import say
from mlexp.series import Kept


class Finish:
    """Hears every report in its final form, subtests' too; with that of the teardown a cell has ended."""

    def __init__(self, config: pytest.Config, state: State) -> None:
        self.config, self.state = config, state
        self.session: pytest.Session | None = None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.session = session

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        plan = self.state.results.plans.get(report.nodeid)
        if plan is None or is_disabled(self.config):
            return
        attempt = plan.attempt
        attempt.heard(report)
        ran = attempt.started or plan.elsewhere or attempt.word  # else it was skipped before it began
        if report.when == "teardown" and ran:
            self.finish(plan)

    def finish(self, plan: Plan) -> None:
        """Put a cell on disk, tell of it, and let the JSON have it if it passed."""
        assert self.session is not None, "cells run after their collection"
        benchmark, is_swept = plan.attempt.benchmark, plan.is_journaled
        try:
            self.state.finish(plan)
        except journal.JournalError as error:  # the disk is full: what comes after would be lost
            self.session.shouldstop = f"{error}; the last cell is not in it"
        entry = self.state.results.ended[plan.name]
        if entry.status == "passed":
            benchmark.extra_info.update(entry.record)
            benchmark.has_error = False
        if not self.session.shouldstop and (entry.record["replayed"] or not is_swept):
            recorded(self.config, entry)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        """A JSON that cannot be written is one line, and an error; the journal has all that it would have held."""
        config, results = self.config, self.state.results
        path = json_path(config)
        try:
            result = yield
            if path and results.unfinished and JSON_WRITTEN not in config.stash:
                write_unfinished(config, path, self.state)
        except OSError as error:
            if not results.ended or not path:
                raise
            where = os.path.relpath(self.state.journal.path)
            say(config, f"ERROR: --benchmark-json: {error}; the finished cells are in {where}: --resume writes it")
            session.exitstatus, result, path = pytest.ExitCode.INTERNAL_ERROR, None, None
        if results.plans and is_disabled(config):
            count = len(results.plans)
            say(config, f"mlexp: --benchmark-disable: {count} cells ran unmeasured and left no record")
        if results.ended and config.option.mlexp_report is not None and PEER not in config.stash:
            self.report(session, path or self.state.journal.path)
        return result

    def report(self, session: pytest.Session, records: Path) -> None:
        """`--report`: its failure is the session's only where nothing else failed."""
        try:
            is_written = reporting.write(self.config, self.state.results.plans.values(), records)
        except KeyboardInterrupt:
            session.exitstatus = pytest.ExitCode.INTERRUPTED
        else:
            if not is_written and session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


def recorded(config: pytest.Config, entry: journal.Entry) -> None:
    """Call `pytest_mlexp_record` for a cell that is in the journal. An error of a hook is a line, and costs nothing."""
    if PEER in config.stash or getattr(config.option, "mlexp_unrecorded", False):
        return
    kept = Kept(entry.series, config.stash[STATE].journal.path.parent)
    try:
        config.hook.pytest_mlexp_record(config=config, record=hook_row(entry), series=kept)
    except pytest.exit.Exception:
        raise
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        say(config, f"mlexp: pytest_mlexp_record, {entry.cell}: {text}")

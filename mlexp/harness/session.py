"""The state of a run: its configuration, what the command line changes, the keys of its cells, and what they left."""

import dataclasses
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from mlexp import journal, series
from mlexp.harness import measure, mistakes, run_config
from mlexp.harness.keys import Keys
from mlexp.harness.options import Others, ours
from mlexp.harness.overrides import Overrides
from mlexp.harness.plan import Plan
from mlexp.harness.results import Results
from mlexp.study import Study


class Store(Protocol):
    """What takes the entries of finished cells: the journal, or a session that asked for the cells."""

    path: Path

    def check_writable(self) -> None: ...
    def start(self, cell: str, key: str, when: str) -> None: ...
    def append(self, entry: journal.Entry) -> None: ...
    def keep(self, files: series.Files) -> None: ...


STATE = pytest.StashKey["State"]()
SWEEP = pytest.StashKey["object"]()  # there where the cells run on other machines
PEER = pytest.StashKey[Store]()  # there where another session asks for the cells: takes what they leave


class State:
    """The state of a run. Raises ValueError for options that do not fit."""

    def __init__(self, config: pytest.Config, others: Others) -> None:
        self.run = run_config.read(config, others, is_child=PEER in config.stash)
        self.overrides = Overrides(ours(config).set, self.run)
        self.keys = Keys(self.run)
        self.results = Results()
        self.clock = measure.Clock()
        self.journal: Store = config.stash.get(PEER, None) or journal.Journal(self.run.journal)
        self.provenance: dict[str, Any] = {}
        self.lost: list[str] = []  # why finished cells are measured again: files of their series

    def identify(self, plan: Plan) -> None:
        """Complete a plan: settings, inputs, key. What does not hold raises ValueError, TypeError or OSError."""
        if plan.study.settings:
            plan.settings = self.overrides.settings(plan.module, plan.question)
        if hasattr(plan.module, "inputs"):
            plan.inputs = mistakes.inputs_of(plan.module, plan.path, plan.params, plan.settings, self.run.options)
        plan.key = self.keys.key_on(plan, self.provenance["machine"])

    def take_up(self, plan: Plan) -> None:
        """`--resume`: the newest that the journal has of a cell, as long as what it imported is now as it was then."""
        for entry in reversed(self.results.finished.get(plan.key, ())):
            if self.keys.still_holds(entry) and not self._is_lost(entry):
                plan.elsewhere = declared_anew(entry, plan.study)
                plan.is_journaled = True
                return

    def _is_lost(self, entry: journal.Entry) -> bool:
        """Whether the series of a finished cell cannot be read any more."""
        why = series.missing(entry.series, self.journal.path.parent)
        self.lost += [why] if why else []
        return bool(why)

    def finish(self, plan: Plan) -> journal.Entry:
        """A cell has ended: on disk first, then into what the JSON will hold, which is all that is left of it where
        JournalError is raised.
        """
        status, reason = plan.attempt.status
        entry = self._entry(plan, status, reason)
        try:
            entry = entry if plan.is_journaled else self.keep(entry, plan.files)
        except journal.JournalError:
            entry = dataclasses.replace(entry, series=series.inline(entry.series))
            raise
        finally:
            self.results.ended[plan.name] = entry
        return entry

    def keep(self, entry: journal.Entry, files: series.Files) -> journal.Entry:
        """Put a cell in the journal, what is large beside it; `files`: what it left where it ran."""
        kept, own = series.spilled(entry.series, entry.key)
        entry = dataclasses.replace(entry, series=kept)
        self.journal.keep(own | files)
        self.journal.append(entry)
        return entry

    def _entry(self, plan: Plan, status: str, reason: str | None) -> journal.Entry:
        if not plan.elsewhere:
            return self.new_entry(plan, status, reason)
        verdict: dict[str, Any] = {} if plan.is_journaled else {"attempt": plan.attempt.number}
        verdict |= {} if status == plan.elsewhere.status else {"status": status, "reason": reason}
        return dataclasses.replace(plan.elsewhere, record=plan.elsewhere.record | verdict)

    def new_entry(self, plan: Plan, status: str, reason: str | None) -> journal.Entry:
        """The journal's line for a cell that has run in this session, or has left nothing where it ran."""
        attempt = plan.attempt
        imports, packages = self.keys.imports(plan) if attempt.cell else ({}, {})
        return journal.Entry(
            cell=plan.name,
            key=plan.key,
            question=plan.question,
            params=plan.params,
            record=self._record(plan, attempt.cell.values if attempt.cell else {}, status, reason),
            durations=attempt.durations if status == "passed" else [],
            series=attempt.cell.arrays if attempt.cell else {},
            metrics={name: list(row) for name, row in plan.study.metrics.items()},
            study=plan.study.declaration,
            group=plan.group,
            imports=imports,
            packages=packages,
        )

    def _record(self, plan: Plan, values: Mapping[str, Any], status: str, reason: str | None) -> dict[str, Any]:
        """The flat record: what the cell recorded, what became of it, where it comes from."""
        return {
            **values,
            "status": status,
            "reason": reason,
            "attempt": plan.attempt.number or 1,
            "scale": self.run.scale,
            "settings": self.keys.settings_text(plan),
            "overrides": self.keys.changed(plan),
            "seed": plan.params.get("seed", plan.seed),
            "device": self.run.device,
            "dtype": self.run.dtype,
            **plan.inputs,
            **self.provenance,
            "question": plan.question,
            "cell": plan.name,
            "key": plan.key,
            "when": now(),
            "replayed": False,
        }

    def swept(self, plan: Plan, entry: journal.Entry) -> None:
        """A cell has ended on another machine: on disk first, then where the session will find it; there it is even
        where JournalError is raised.
        """
        try:
            self.keep(entry, plan.files)
        finally:
            plan.key, plan.elsewhere, plan.is_journaled = entry.key, entry, True


def declared_anew(entry: journal.Entry, study: Study) -> journal.Entry:
    """A finished cell that is replayed, under what its study declares now; of the claims, what it declared then."""
    declared = study.declaration | {"claims": entry.study.get("claims", {})}
    metrics = entry.metrics | {name: list(row) for name, row in study.metrics.items()}
    return dataclasses.replace(entry, record=entry.record | {"replayed": True}, metrics=metrics, study=declared)


def now() -> str:
    """The time as records and the journal have it: UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

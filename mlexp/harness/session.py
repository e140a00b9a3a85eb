"""What a run knows of itself: where its cells run, the plan of each, what has finished, what has not."""

import dataclasses
import datetime
import functools
import hashlib
import inspect
import math
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from mlexp import journal, record, study
from mlexp.harness import grid, identity, measure
from mlexp.harness.options import Others, ours
from mlexp.harness.status import Attempt

PASSED_ON = ("weights", "prompts", "corpus")  # options that the questions read
STATE = pytest.StashKey["State"]()
PLAN = pytest.StashKey["Plan"]()
SWEEP = pytest.StashKey["object"]()  # there where the cells run on other machines
PEER = pytest.StashKey["object"]()  # there where another session asks for the cells: takes what they leave


class Plan:
    """A cell before it runs: its place in the grid, its settings, its inputs, its key; and what has become of it."""

    def __init__(self, item: pytest.Item):
        self.name, self.module, self.path = item.nodeid, item.module, item.path
        self.plugins = plugins_of(item)
        self.question = item.path.parent.name
        self.params = axes_of(item)
        self.block = dict(list(self.params.items())[:-1])  # all axes but the arm
        self.settings, self.inputs, self.key = None, {}, None
        self.elsewhere: journal.Entry | None = None  # what it left where it ran, if not in this session
        self.is_journaled = False  # that entry
        self.attempt = Attempt(0)

    @property
    def group(self) -> str:
        """What pytest-benchmark's table puts together: the arms of one block."""
        return "-".join([self.question, *(grid.label(axis, value) for axis, value in self.block.items())])

    @property
    def seed(self) -> int:
        """32 bits from the block's axes: never from the arm, nor from where the file lies."""
        text = grid.canonical({"question": self.question, **self.block})
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")

    @property
    def study(self) -> study.Study:
        """What the bench file declares; without a word on arms, the last axis is the arm."""
        declared = study.of(self.module)
        return declared if declared.arm or not self.params else dataclasses.replace(declared, arm=list(self.params)[-1])


class State:
    """The state of a session."""

    def __init__(self, config: pytest.Config, others: Others):
        option = ours(config)
        is_child = PEER in config.stash  # then the session that asks journals, replays and isolates
        self.root, self.here = config.rootpath, config.invocation_params.dir
        self.scale, self.commit = option.scale, option.commit
        self.device = option.device if option.device != "auto" else "cuda" if measure.gpu_present() else "cpu"
        self.dtype = option.dtype if option.dtype != "auto" else "bfloat16" if self.device == "cuda" else "float32"
        self.options = SimpleNamespace(**{name: getattr(option, name) for name in PASSED_ON})
        self.options.model = grid.checkpoints(option.model, self.here)
        self.others = others
        self.cell_timeout = option.cell_timeout
        if self.cell_timeout is not None and not 0 < self.cell_timeout < math.inf:
            raise ValueError(f"--cell-timeout {self.cell_timeout:g}: give a number of seconds above 0")
        self.isolate = (option.isolate or self.cell_timeout is not None) and not is_child
        self.resume = option.resume and not is_child
        self.overrides = [grid.parse_override(text) for text in option.set]
        self.misfits: dict[str, str] = {}  # question -> what is wrong with its --set
        self.sources = identity.Sources([self.root])
        self.covered = functools.cache(self.sources.of)
        self.source = functools.cache(self._source)
        self.clock = measure.Clock()
        self.journal = config.stash.get(PEER, None) or journal.Journal(self._journal_path(option.journal))
        self.finished: dict[str, list[journal.Entry]] = {}  # what --resume may replay, by key, the newest last
        self.plans: dict[str, Plan] = {}  # by node id, in the order in which they run
        self.ended: dict[str, journal.Entry] = {}  # by node id: the last attempt
        self.provenance: dict[str, object] = {}
        self.json_written = False

    def _journal_path(self, given: str | None) -> Path:
        return self.here / given if given else self.root / ".mlexp" / "journal.jsonl"

    def settings(self, module, question: str) -> object:
        """A question's settings. What does not fit is kept until it is known which questions are selected."""
        changes = [change for change in self.overrides if change.question in (None, question)]
        try:
            return grid.override(study.of(module).settings[self.scale], changes)
        except ValueError as error:
            self.misfits[question] = str(error)
            return study.of(module).settings[self.scale]

    def further(self, module, question: str) -> dict[str, tuple]:
        """The values that the command line adds to a question's axes."""
        try:
            return module.more(self.options) if hasattr(module, "more") else {}
        except ValueError as error:
            self.misfits[question] = str(error)
            return {}

    def check_models(self, plans: list[Plan]) -> None:
        """Raises UsageError for a `--model` that none of the selected questions takes."""
        if self.options.model and not any(hasattr(plan.module, "more") for plan in plans):
            names = ", ".join(sorted({plan.question for plan in plans}))
            raise pytest.UsageError(f"--model {', '.join(self.options.model)}: not taken by what is selected: {names}")

    def check_overrides(self, questions: list[str]) -> None:
        """Raises UsageError for a `--set` that fits none, or more than one, of the selected questions."""
        for change in self.overrides:
            if change.question and change.question not in questions:
                raise pytest.UsageError(f"{change}: unknown question; selected: {', '.join(questions)}")
            if not change.question and len(questions) > 1:
                which = ", ".join(f"{question}.{change.name}" for question in questions)
                raise pytest.UsageError(f"{change}: {len(questions)} questions are selected; say which: {which}")
        for question in questions:
            if question in self.misfits:
                raise pytest.UsageError(self.misfits[question])

    def identify(self, plan: Plan) -> None:
        """Complete a plan: settings, inputs, key. What does not hold raises ValueError, TypeError or OSError."""
        record.metrics_of(plan.study.metrics)
        if plan.study.settings:
            plan.settings = self.settings(plan.module, plan.question)
        if hasattr(plan.module, "inputs"):
            plan.inputs = plan.module.inputs(plan.params, plan.settings, self.options)
        plan.key = self.key_on(plan, self.provenance["machine"])

    def key_on(self, plan: Plan, machine: str) -> str:
        """The key of a plan's cell where it runs on `machine`."""
        return identity.cell_key(
            plan.name,
            [machine, self.device, self.dtype, self.scale],
            self.settings_text(plan),
            self.others.by_plugins,
            plan.inputs,
            self.source(plan.path, plan.plugins),
        )

    def _source(self, bench: Path, plugins: tuple[Path, ...]) -> list:
        """What the key covers of the code: the files' hashes and the versions of what else is imported."""
        files, others = self.covered(bench, plugins)
        versions = identity.packages(others) | {"mlexp": measure.version("mlexp")}
        return [[[path.name, identity.file_hash(path)] for path in files], versions]

    def imports(self, plan: Plan) -> tuple[dict[str, str], dict[str, str]]:
        """What a cell that has run imported beyond what its key covers: files and their hashes, distributions and their
        versions."""
        self.sources.loaded_by(plan.path)
        files, _ = self.sources.of(plan.path, plan.plugins, seen=True)
        known, _ = self.covered(plan.path, plan.plugins)
        return identity.hashed(sorted(set(files) - set(known)), self.root), identity.packages(self.sources.loaded)

    def settings_text(self, plan: Plan) -> str:
        """The settings that all cells of the question share, and the project's own options, in one spelling."""
        shared = grid.fixed(plan.settings, plan.study.axes) if plan.settings else {}
        return grid.canonical(shared | self.others.by_project)

    def changed(self, plan: Plan) -> str:
        """What `--set` and the project's own options changed in them."""
        options = " ".join(f"{name}={value}" for name, value in self.others.by_project.items())
        if plan.settings is None:
            return options
        sets = grid.changed(plan.settings, plan.study.settings[self.scale], plan.study.axes)
        return " ".join(filter(None, (sets, options)))

    def take_up(self, plan: Plan) -> None:
        """`--resume`: the newest that the journal has of a cell, as long as what it imported is now as it was then."""
        for entry in reversed(self.finished.get(plan.key, ())):
            if identity.unchanged(entry.imports, entry.packages, self.root):
                plan.elsewhere = dataclasses.replace(entry, record=entry.record | {"replayed": True})
                plan.is_journaled = True
                return

    def finish(self, plan: Plan) -> journal.Entry:
        """A cell has ended: on disk first, then into what the JSON will hold, which is all that is left of it where
        JournalError is raised.
        """
        status, reason = plan.attempt.status
        entry = self._entry(plan, status, reason)
        self.ended[plan.name] = entry
        if not plan.is_journaled:
            self.journal.append(entry)
        return entry

    def _entry(self, plan: Plan, status: str, reason: str | None) -> journal.Entry:
        if not plan.elsewhere:
            return self.new_entry(plan, status, reason)
        verdict = {} if plan.is_journaled else {"attempt": plan.attempt.number}
        verdict |= {} if status == plan.elsewhere.status else {"status": status, "reason": reason}
        return dataclasses.replace(plan.elsewhere, record=plan.elsewhere.record | verdict)

    def new_entry(self, plan: Plan, status: str, reason: str | None) -> journal.Entry:
        """The journal's line for a cell that has run in this session, or has left nothing where it ran."""
        attempt = plan.attempt
        imports, packages = self.imports(plan) if attempt.cell else ({}, {})
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

    def _record(self, plan: Plan, values: dict, status: str, reason: str | None) -> dict[str, object]:
        """The flat record: what the cell recorded, what became of it, where it comes from."""
        return values | {
            "status": status,
            "reason": reason,
            "attempt": plan.attempt.number or 1,
            "scale": self.scale,
            "settings": self.settings_text(plan),
            "overrides": self.changed(plan),
            "seed": plan.params.get("seed", plan.seed),
            "device": self.device,
            "dtype": self.dtype,
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
            self.journal.append(entry)
        finally:
            plan.key, plan.elsewhere, plan.is_journaled = entry.key, entry, True

    @property
    def unfinished(self) -> list[journal.Entry]:
        return [entry for entry in self.ended.values() if entry.status != "passed"]

    def counts(self) -> dict[str, int]:
        """How many cells ended how, as the last line of a run shows it."""
        names = ("measured", "replayed", *record.STATUSES[1:])
        words = Counter(
            entry.status if entry.status != "passed" else "replayed" if entry.record["replayed"] else "measured"
            for entry in self.ended.values()
        )
        return {name: words[name] for name in names if words[name]}

    def extras(self) -> dict[str, object]:
        """What a benchmark JSON holds beyond pytest-benchmark's own keys."""
        return {
            "planned": list(self.plans),
            "unfinished": [row(entry) for entry in self.unfinished],
            "series": {entry.key: entry.series for entry in self.ended.values() if entry.series},
            "metrics": {entry.question: entry.metrics for entry in self.ended.values()},
            "studies": declarations(self.ended.values()),
        }


def declarations(entries: Iterable[journal.Entry]) -> dict[str, dict]:
    """By question: its declaration, with those claims alone that stood so when each of its cells was measured (a cell
    that is replayed was measured earlier)."""
    found: dict[str, dict] = {}
    for entry in entries:
        before, now = found.get(entry.question), entry.study
        claims = now.get("claims", {})
        if before is not None:
            claims = {name: mark for name, mark in claims.items() if before.get("claims", {}).get(name) == mark}
        found[entry.question] = (now or before or {}) | {"claims": claims}
    return found


def axes_of(item: pytest.Item) -> dict[str, object]:
    """The axes of a cell: those declared of its arguments, else all that are parametrized. What plugins parametrize
    beside them, such as a repetition, is no axis. Raises TypeError for a value that is neither number nor text.
    """
    arguments = inspect.signature(item.function).parameters
    declared = study.of(item.module).axes or arguments
    params = item.callspec.params if hasattr(item, "callspec") else {}
    axes = {name: params[name] for name in arguments if name in params and name in declared}
    for name, value in axes.items():
        if not isinstance(value, (str, int, float, bool, type(None))):
            shown = f"{type(value).__module__}.{type(value).__qualname__}"
            raise TypeError(f"{item.nodeid}: axis {name!r} holds a {shown}; give a number or a name of it")
    return axes


def plugins_of(item: pytest.Item) -> tuple[Path, ...]:
    """The project's files that bring an item fixtures and hooks: the conftest files above it, and plugins that these or
    the arguments name."""
    above = [folder for folder in item.path.parents if folder.is_relative_to(item.config.rootpath)]
    conftests = [path for folder in above if (path := folder / "conftest.py").is_file()]
    modules = [plugin for plugin in item.config.pluginmanager.get_plugins() if isinstance(plugin, ModuleType)]
    files = [path for module in modules if (path := identity.source_of(module))]
    return (*conftests, *sorted(path for path in files if path.name != "conftest.py"))


def now() -> str:
    """The time as records and the journal have it: UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def row(entry: journal.Entry) -> dict[str, object]:
    """A cell that did not finish, as it stands in a benchmark JSON: like the others, without statistics."""
    return {
        "group": entry.group,
        "name": entry.cell.rpartition("::")[2],
        "fullname": entry.cell,
        "params": entry.params,
        "extra_info": entry.record,
    }


def passed(path: Path) -> tuple[dict[str, list[journal.Entry]], list[int]]:
    """(the passed entries of each key, in order; the numbers of altered lines) of the journal at `path`."""
    contents, finished = journal.read(path), {}
    for entry in contents.entries:
        if entry.status == "passed" and entry.durations:
            finished.setdefault(entry.key, []).append(entry)
    return finished, contents.altered


def json_path(config: pytest.Config) -> Path | None:
    """Where `--benchmark-json` points (before 5.3 pytest-benchmark's option is an open file)."""
    target = getattr(config.option, "benchmark_json", None)
    if hasattr(target, "write"):
        target = target.name
    return config.invocation_params.dir / target if target else None


def check_json(config: pytest.Config, path: Path) -> None:
    """Raises UsageError where the JSON of these cells could not be written in the end."""
    name = f"--benchmark-json {path}"
    if not path.parent.is_dir():
        raise pytest.UsageError(f"{name}: the folder {path.parent} does not exist")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise pytest.UsageError(f"{name}: cannot be written")
    if is_disabled(config):
        raise pytest.UsageError("--benchmark-disable with --benchmark-json would write nothing; drop one of them")


def is_disabled(config: pytest.Config) -> bool:
    """Whether `--benchmark-disable` is in force."""
    return config.getoption("benchmark_disable", False) and not config.getoption("benchmark_enable", False)

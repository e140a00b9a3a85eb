"""What a run knows of itself: where its cells run, the plan of each, what has finished, what has not."""

import datetime
import functools
import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlexp import journal, record
from mlexp.harness import grid, identity, measure
from mlexp.harness.cell import Cell

OPTIONS = ("weights", "prompts", "corpus")
STATE = pytest.StashKey["State"]()
PLAN = pytest.StashKey["Plan"]()
SWEEP = pytest.StashKey["object"]()  # there where the cells run on other machines


class Plan:
    """A cell before it runs: its place in the grid, its settings, its inputs, its key."""

    def __init__(self, item: pytest.Item):
        self.name, self.module, self.path = item.nodeid, item.module, item.path
        self.question = item.path.parent.name
        self.params = dict(item.callspec.params) if hasattr(item, "callspec") else {}
        self.block = dict(list(self.params.items())[:-1])  # all axes but the arm
        self.settings, self.inputs, self.key = None, {}, None
        self.recording: dict | None = None  # the record that it left where it ran, if not in this session

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
    def declared(self) -> dict[str, tuple]:
        """The question's own metrics."""
        return getattr(self.module, "METRICS", {})


class State:
    """The state of a session. `counts` is what the last line of the run tells."""

    def __init__(self, config: pytest.Config):
        option = config.option
        self.root, self.here = config.rootpath, config.invocation_params.dir
        self.scale = option.scale
        self.device = option.device if option.device != "auto" else "cuda" if measure.gpu_present() else "cpu"
        self.dtype = option.dtype if option.dtype != "auto" else "bfloat16" if self.device == "cuda" else "float32"
        self.options = SimpleNamespace(**{name: getattr(option, name) for name in OPTIONS})
        self.options.model = grid.checkpoints(option.model, self.here)
        self.overrides = [grid.parse_override(text) for text in option.set]
        self.misfits: dict[str, str] = {}  # question -> what is wrong with its --set
        self.source = functools.cache(lambda path: identity.source_hash(path, self.root))
        self.clock = measure.Clock()
        self.journal = journal.Journal(self.here / option.journal)
        self.finished: dict[str, journal.Entry] = {}  # what --resume may replay, by key
        self.planned: list[str] = []  # every cell that this run selected
        self.unfinished: list[journal.Entry] = []
        self.series: dict[str, dict] = {}
        self.metrics: dict[str, dict] = {}
        self.counts = dict.fromkeys(("measured", "replayed", *record.STATUSES[1:]), 0)
        self.provenance: dict[str, object] = {}
        self.json_written = False

    def settings(self, module, question: str) -> object:
        """A question's settings. What does not fit is kept until it is known which questions are selected."""
        changes = [change for change in self.overrides if change.question in (None, question)]
        try:
            return grid.override(module.SETTINGS[self.scale], changes)
        except ValueError as error:
            self.misfits[question] = str(error)
            return module.SETTINGS[self.scale]

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
        record.metrics_of(plan.declared)
        if hasattr(plan.module, "SETTINGS"):
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
            [measure.version("torch"), measure.version("transformers")],
            plan.inputs,
            self.source(plan.path),
        )

    def settings_text(self, plan: Plan) -> str:
        """The settings that all cells of the question share, in one spelling."""
        return grid.canonical(grid.fixed(plan.settings, plan.module.AXES)) if plan.settings else "{}"

    def changed(self, plan: Plan) -> str:
        """What `--set` changed in them."""
        if plan.settings is None:
            return ""
        return grid.changed(plan.settings, plan.module.SETTINGS[self.scale], plan.module.AXES)

    def entry(self, plan: Plan, cell: Cell | None, status: str, reason: str | None, durations: list) -> journal.Entry:
        """The journal's line for a cell that has just ended."""
        if status == "passed" and not durations:
            status, reason = "failed", "the cell ended without cell.time: nothing was measured"
        return journal.Entry(
            cell=plan.name,
            key=plan.key,
            question=plan.question,
            params=plan.params,
            record=self.full_record(plan, cell.values if cell else {}, status, reason),
            durations=durations if status == "passed" else [],
            series=cell.arrays if cell else {},
            metrics={name: list(row) for name, row in plan.declared.items()},
            group=plan.group,
        )

    def full_record(self, plan: Plan, values: dict, status: str, reason: str | None) -> dict[str, object]:
        """The flat record: what the cell recorded and where it comes from; where it ran elsewhere, as it was there."""
        if plan.recording:
            return plan.recording
        return values | {
            "status": status,
            "reason": reason,
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

    def keep(self, plan: Plan, entry: journal.Entry) -> None:
        """A cell has ended: on disk first, then into what the JSON will hold, which is all that is left of it where
        JournalError is raised in the end.
        """
        try:
            if not plan.recording:
                self.journal.append(entry)
        finally:
            self._take(plan, entry)

    def _take(self, plan: Plan, entry: journal.Entry) -> None:
        self.metrics[plan.question] = entry.metrics
        if entry.series:
            self.series[plan.key] = entry.series
        if entry.status != "passed":
            self.unfinished.append(entry)
        told = entry.status if entry.status != "passed" else "replayed" if entry.record["replayed"] else "measured"
        self.counts[told] += 1

    def swept(self, plan: Plan, entry: journal.Entry) -> None:
        """A cell has ended on another machine: on disk first, then where the session will find it; there it is even
        where JournalError is raised.
        """
        try:
            self.journal.append(entry)
        finally:
            plan.key, plan.recording = entry.key, entry.record
            self.finished[entry.key] = entry

    def extras(self) -> dict[str, object]:
        """What a benchmark JSON holds beyond pytest-benchmark's own keys."""
        unfinished = [row(entry) for entry in self.unfinished]
        return {"planned": self.planned, "unfinished": unfinished, "series": self.series, "metrics": self.metrics}


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


def passed(path: Path) -> tuple[dict[str, journal.Entry], list[int]]:
    """(the newest passed entry of each key, the numbers of altered lines) of the journal at `path`."""
    contents = journal.read(path)
    finished = {entry.key: entry for entry in contents.entries if entry.status == "passed" and entry.durations}
    return finished, contents.altered


def json_path(config: pytest.Config) -> Path | None:
    """Where `--benchmark-json` points (before 5.3 pytest-benchmark's option is an open file)."""
    target = getattr(config.option, "benchmark_json", None)
    if hasattr(target, "write"):
        target = target.name
    return config.invocation_params.dir / target if target else None


def check_json(config: pytest.Config, path: Path) -> None:
    """Raises UsageError where the JSON could not be written in the end, or would be silently empty."""
    name = f"--benchmark-json {path}"
    if not path.parent.is_dir():
        raise pytest.UsageError(f"{name}: the folder {path.parent} does not exist")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise pytest.UsageError(f"{name}: cannot be written")
    if config.getoption("benchmark_disable", False):
        raise pytest.UsageError("--benchmark-disable with --benchmark-json would write nothing; drop one of them")
    if config.getoption("dist", "no") != "no" or config.getoption("numprocesses", None):
        raise pytest.UsageError("xdist (-n) switches benchmarks off, so --benchmark-json would write nothing; drop -n")

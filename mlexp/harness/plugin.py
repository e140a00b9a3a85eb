"""The pytest plugin: options, the `cell` fixture, and the hooks that put every finished cell on disk. No torch here.

A project opts in with `-p mlexp.harness.plugin` in its ini. Then only items whose `cell` fixture is this file's are
touched.

The path of a cell: `pytest_generate_tests` makes it from the question's settings; `pytest_collection_finish` gives it
its key; `pytest_pyfunc_call` replays it (`--resume`), runs it in a process of its own (`--isolate`) or lets pytest
call it; `pytest_runtest_makereport` notes what it raised; with the report of its teardown, when pytest has said its
last word, it gets a status and is journaled; pytest-benchmark writes the JSON.
"""

import contextlib
import functools
import os
from collections.abc import Generator, Iterator, Sequence
from typing import Any, TypeGuard

import pytest

from mlexp import extras
from mlexp.harness import grid, hookspec, isolate, measure, mistakes, options, reporting
from mlexp.harness.benchmark_json import add_ours, check_json, is_disabled, json_path
from mlexp.harness.cell import Cell
from mlexp.harness.company import check_extras, check_versions, keep_apart, number
from mlexp.harness.finish import Finish
from mlexp.harness.places import place
from mlexp.harness.plan import PLAN, Plan, params_of
from mlexp.harness.progress import Progress
from mlexp.harness.results import passed
from mlexp.harness.session import PEER, STATE, SWEEP, State, now
from mlexp.harness.slowdown import watched
from mlexp.harness.status import Attempt, CellDied
from mlexp.harness.terminal import Terminal, say, timings
from mlexp.journal import Entry, JournalError

BENCH_FILES = "bench_*.py"  # collected whatever the project's python_files says
FIXTURE = "mlexp_cell"  # in the closure of every test that asks for our `cell`, and of no other
Parsed = tuple[pytest.Parser, set[str], list[str]]  # parser, names before the conftest files, names of ours taken
PARSED = pytest.StashKey[Parsed]()
Grouped = list[tuple[str | None, list[Any]]]  # pytest-benchmark's table: (group, its cells)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspec)


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Where a conftest file loads this plugin, it is too late for the hook below: add the options now."""
    measure.wait_passively()  # here, as it is the first that runs, before a conftest file may load torch
    files = [getattr(plugin, "__file__", None) or "" for plugin in pluginmanager.get_plugins()]
    if any(os.path.basename(file) == "conftest.py" for file in files):
        config: pytest.Config = pluginmanager.getplugin("pytestconfig")
        config.stash[PARSED] = parser, set(), options.add(parser)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None, object, object]:
    known = early_config.known_args_namespace
    known.file_or_dir = parser.parse_known_args(options.without_ours(parser, args)).file_or_dir
    before = options.names(parser)
    result = yield
    args[:] = options.spelled_out(parser, args)
    early_config.stash[PARSED] = parser, before, options.add(parser)
    return result


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    parser, before, clashes = config.stash[PARSED]
    check_versions(config)
    if BENCH_FILES not in config.getini("python_files"):
        config.addinivalue_line("python_files", BENCH_FILES)
    config.addinivalue_line("markers", "needs_gpu: a cell that needs a CUDA device; skipped without one")
    try:
        state = config.stash[STATE] = State(config, options.others(config, parser, before))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    if config.option.mlexp_device == "cuda" and SWEEP not in config.stash:
        if not measure.gpu_present():
            raise pytest.UsageError("--device cuda: the CUDA driver finds no device; choose from auto, cpu")
        try:
            extras.need("--device cuda", "torch")
        except extras.MissingExtra as error:
            raise pytest.UsageError(str(error)) from None
    if not is_xdist(config) and PEER not in config.stash:
        reporting.check(config)
    for name in ("prompts", "corpus"):
        path = getattr(state.run.options, name)
        if path and not (state.run.here / path).is_file():
            raise pytest.UsageError(f"--{name} {path}: no such file")
    options.yield_names(parser)
    for part in (Finish(config, state), Terminal(config, state, clashes)):
        config.pluginmanager.register(part)
    config.add_cleanup(state.keys.sources.watch())


NO_CELL = object()  # the value of every axis of a function whose grid is empty: it is not collected


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make the grid of a question from its settings and axes, with what its `more` adds, as far as its `collects` wants
    it."""
    module, bench = metafunc.module, metafunc.definition.path
    if FIXTURE not in metafunc.fixturenames:
        return
    check_extras(bench)
    state, question = metafunc.config.stash[STATE], bench.parent.name
    declared = mistakes.declared(module, bench, state.run.scale)
    axes = mistakes.axes_of(metafunc.function, declared, bench)
    if not axes:
        return
    settings = state.overrides.settings(module, question)
    keep = mistakes.collects_of(module, bench, settings, state.run.device)
    further = state.overrides.further(module, question)
    values = {axis: (*getattr(settings, declared.axes[axis]), *further.get(axis, ())) for axis in axes}
    try:
        cells = grid.cells(values, keep)
    except ValueError as error:
        raise pytest.Collector.CollectError(f"{place(bench, 'axes', 'AXES')}: {error}") from None
    params = [pytest.param(*values, id=label) for values, label in cells]
    metafunc.parametrize(axes, params or [pytest.param(*[NO_CELL] * len(axes), id="no_cell")])


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module is imported when it is first collected: what comes with it is its own."""
    report = yield
    if isinstance(collector, pytest.Module):
        collector.config.stash[STATE].keys.sources.loaded_by(collector.path)
        call = getattr(report, "call", None)  # pytest's own, for its own use
        if call and call.excinfo and (line := mistakes.at_import(collector.path, call.excinfo.value)):
            report.longrepr = line
        if report.passed and (line := mistakes.idle(collector.obj, collector.path, report.result, is_cell)):
            say(collector.config, f"mlexp: {line}")
    return report


def is_cell(item: pytest.Item) -> TypeGuard[pytest.Function]:
    """Whether the `cell` that an item asks for is ours."""
    return FIXTURE in getattr(item, "fixturenames", ())


def pytest_itemcollected(item: pytest.Item) -> None:
    if is_cell(item):
        number(item)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    cells = [item for item in items if is_cell(item)]
    keep_apart(config, items, cells)
    empty = [cell for cell in cells if any(value is NO_CELL for value in params_of(cell).values())]
    if empty:
        items[:] = [item for item in items if item not in empty]
        config.hook.pytest_deselected(items=empty)
    for item in (item for item in empty if item.path not in {other.path for other in items}):
        settings = config.stash[STATE].overrides.settings(item.module, item.path.parent.name)
        raise pytest.UsageError(mistakes.no_cell(item, settings, config.stash[STATE].run.device))
    if cells and not hasattr(config.option, "benchmark_disable"):
        raise pytest.UsageError(f"{cells[0].nodeid}: needs pytest-benchmark, which is not loaded (-p no:benchmark?)")
    mistakes.check_items(items, is_cell)
    for item in (cell for cell in cells if cell not in empty):
        try:
            plan = item.stash[PLAN] = Plan(item)
        except TypeError as error:
            raise pytest.UsageError(str(error)) from None
        item.add_marker(pytest.mark.benchmark(timer=config.stash[STATE].clock, group=plan.group))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Before the first cell: check `--set`, the journal and every cell's inputs; give each cell its key."""
    config, state = session.config, session.config.stash[STATE]
    plans = [item.stash[PLAN] for item in session.items if PLAN in item.stash]
    if not plans:
        return
    state.overrides.check(plans)
    if config.option.collectonly or is_xdist(config):
        return
    if (path := json_path(config)) and PEER not in config.stash:
        check_json(config, path)
    state.results.plans = {plan.name: plan for plan in plans}
    try:
        state.provenance = measure.provenance(state.run.root, state.run.device, state.run.commit)
        if not state.provenance["commit"] and (complaint := measure.git_complaint(state.run.root)):
            say(config, f"mlexp: records will name no commit; {complaint} (--commit COMMIT gives it by hand)")
        if not is_disabled(config):
            state.journal.check_writable()
        if state.run.resume:
            state.results.finished, altered = passed(state.journal.path)
            if altered:
                say(config, f"mlexp: {state.journal.path}: lines {altered} were altered and are not replayed")
        for plan in plans:
            state.identify(plan)
            state.take_up(plan)
        if state.lost:
            say(config, f"mlexp: {len(state.lost)} finished cells are measured again; {state.lost[0]}")
    except (ValueError, TypeError, OSError, extras.MissingExtra) as error:
        raise pytest.UsageError(str(error)) from None


def is_xdist(config: pytest.Config) -> bool:
    """Whether this session is a worker of pytest-xdist."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if PLAN not in item.stash:
        return
    if is_xdist(item.config):
        pytest.fail("xdist (-n) switches pytest-benchmark off, so that a cell measures nothing; drop -n", pytrace=False)
    plan = item.stash[PLAN]
    plan.attempt = Attempt(plan.attempt.number + 1)
    if not plan.elsewhere:
        skip_without_gpu(item)


def skip_without_gpu(item: pytest.Item) -> None:
    """Skip an item that is marked `needs_gpu` where there is none, or fail it under `--require-gpu`."""
    if item.get_closest_marker("needs_gpu") and not measure.gpu_present():
        if item.config.option.mlexp_require_gpu:
            pytest.fail("--require-gpu: needs a CUDA device and the driver finds none", pytrace=False)
        pytest.skip("needs a CUDA device")


@pytest.fixture
def mlexp_cell(request: pytest.FixtureRequest, benchmark: Any) -> Iterator[Cell]:
    """The running cell, where another fixture is called `cell`."""
    state, plan = request.config.stash[STATE], request.node.stash.get(PLAN, None)
    if plan is None:
        late = "a cell is a test that names `cell` among its arguments; getfixturevalue comes too late"
        pytest.fail(late, pytrace=False)
    benchmark.has_error = True  # until it has passed: an interrupted cell must not look healthy in the JSON
    progress = Progress(request.config, request.node.name)
    running = Cell(plan, state.run, state.clock, benchmark, progress)
    plan.attempt.benchmark, plan.attempt.cell = benchmark, running
    yield running
    progress.close()
    if plan.attempt.cause:  # pytest-benchmark would warn that the fixture was not used
        benchmark.skipped = True


@pytest.fixture
def cell(mlexp_cell: Cell) -> Cell:
    """The running cell: `cell.time(run)`, `cell.record(accuracy=...)`, `cell.series(loss=...)`."""
    return mlexp_cell


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    plan, state = pyfuncitem.stash.get(PLAN, None), pyfuncitem.config.stash[STATE]
    if plan is None or is_disabled(pyfuncitem.config):
        return None
    if plan.elsewhere and plan.is_journaled:
        return replay(pyfuncitem, plan.elsewhere)
    plan.attempt.started = True
    try:
        state.journal.start(plan.name, plan.key, now())
    except JournalError as error:  # what cannot be kept is not run
        pyfuncitem.session.shouldstop = str(error)
        pytest.skip(str(error))
    if state.run.isolate:
        plan.elsewhere = None
        plan.elsewhere = isolate.run(pyfuncitem)
        return replay(pyfuncitem, plan.elsewhere)
    return None


def replay(item: pytest.Item, entry: Entry) -> bool:
    """Let a cell that has run elsewhere end here as it ended there; the clock shows its recorded durations."""
    if entry.status != "passed":
        raise CellDied(entry.status, entry.record.get("reason") or entry.status)
    benchmark = item.stash[PLAN].attempt.benchmark
    with item.config.stash[STATE].clock.replaying(entry.durations):
        benchmark.pedantic(lambda: None, rounds=len(entry.durations))
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    plan, state = item.stash.get(PLAN, None), item.config.stash[STATE]
    if plan is None or plan.elsewhere or is_disabled(item.config) or PEER in item.config.stash:
        watch: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    else:
        watch = watched(plan, state.results.took, functools.partial(say, item.config))
    with watch:
        result = yield
    if plan and not is_disabled(item.config) and not plan.attempt.durations:
        pytest.fail(mistakes.unmeasured(item), pytrace=False)
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    plan = item.stash.get(PLAN, None)
    if plan and call.excinfo:
        mistakes.explain(call.excinfo.value, plan.settings, plan.attempt.cell)
    report = yield
    if plan and plan.key and call.excinfo:
        plan.attempt.where = plan.attempt.where or mistakes.last_own(call.excinfo.value, plan.path)
        plan.attempt.raised(report, call.excinfo.value)
        if isinstance(call.excinfo.value, extras.MissingExtra):
            report.longrepr = str(call.excinfo.value)
    return report


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_benchmark_group_stats(config: pytest.Config | None, benchmarks: Sequence[Any], group_by: str) -> Grouped:
    """pytest-benchmark's table of what is to be in it; grouping by an axis that some cells do not have.

    `pytest-benchmark compare` loads no plugins: it finds this hook in the root conftest.py, and has no config.
    """
    from pytest_benchmark.plugin import pytest_benchmark_group_stats as group

    shown = timings(config, list(benchmarks))
    axes = [part.removeprefix("param:") for part in group_by.split(",") if part.startswith("param:")]
    for bench in shown if axes else ():
        bench["params"] = dict.fromkeys(axes, "-") | (bench["params"] or {})
    grouped: Grouped = group(config=config, benchmarks=shown, group_by=group_by)
    return grouped


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.update(measure.environment(config.stash[STATE].run.device))


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    if config.stash[STATE].results.plans:
        add_ours(config, output_json, config.stash[STATE])

"""The pytest plugin: options, the `cell` fixture, and the hooks that put every finished cell on disk. No torch here.

The path of a cell: `pytest_generate_tests` makes it from the question's settings; `pytest_collection_finish` gives it
its key; `pytest_pyfunc_call` replays it (`--resume`), runs it in a process of its own (`--isolate`) or lets pytest
call it; `pytest_runtest_makereport` gives it a status and journals it; pytest-benchmark writes the JSON.
"""

import inspect
import json
import os

import pytest

from mlexp import record
from mlexp.harness import grid, isolate, measure
from mlexp.harness.cell import Cell, CellDied, outcome
from mlexp.harness.progress import Progress
from mlexp.harness.session import PLAN, STATE, SWEEP, Plan, State, check_json, json_path, now, passed
from mlexp.journal import Entry, JournalError


def pytest_addoption(parser):
    add = parser.getgroup("mlexp", "experiment cells").addoption
    add("--scale", choices=grid.SCALES, default="quick", help="which row of the questions' settings (default: quick)")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="override a setting of the question")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where cells run (default: a GPU if present)")
    add(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: float32 on CPU, bfloat16 on GPU"
    )
    add("--weights", metavar="auto|random|PATH", help="pretrained weights: the local cache, none, or a folder")
    add("--model", action="append", default=[], metavar="NAME=FOLDER", help="a checkpoint as a further model")
    add("--prompts", metavar="PATH", help="a JSONL file of prompts instead of the question's own")
    add("--corpus", metavar="PATH", help="a text file instead of the built-in text")
    add("--journal", metavar="PATH", default=".mlexp/journal.jsonl", help="finished cells (default: %(default)s)")
    add("--resume", action="store_true", help="replay the cells that the journal holds, run the rest")
    add("--isolate", action="store_true", help="each cell in a process of its own: a crash costs one cell")
    add("--require-gpu", action="store_true", help="a cell or test that needs a GPU fails where there is none")


def pytest_configure(config):
    try:
        config.stash[STATE] = State(config)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    if config.option.device == "cuda" and SWEEP not in config.stash and not measure.gpu_present():
        raise pytest.UsageError("--device cuda: the CUDA driver finds no device; choose from auto, cpu")
    for name in ("prompts", "corpus"):
        path = getattr(config.option, name)
        if path and not (config.invocation_params.dir / path).is_file():
            raise pytest.UsageError(f"--{name} {path}: no such file")
    if path := json_path(config):
        check_json(config, path)


NO_CELL = object()  # the value of every axis of a function whose grid is empty: it is not collected


def pytest_generate_tests(metafunc):
    """Make the grid of a question from its SETTINGS and AXES, with what its `more` adds, as far as its `collects` wants
    it."""
    module, state = metafunc.module, metafunc.config.stash[STATE]
    if "cell" not in metafunc.fixturenames or not hasattr(module, "SETTINGS"):
        return
    question = metafunc.definition.path.parent.name
    settings = state.settings(module, question)
    axes = [name for name in inspect.signature(metafunc.function).parameters if name in module.AXES]
    wanted = getattr(module, "collects", None)
    keep = wanted and (lambda params: wanted(params, settings, state.device))
    further = state.further(module, question)
    values = {axis: (*getattr(settings, module.AXES[axis]), *further.get(axis, ())) for axis in axes}
    cells = grid.cells(values, keep)
    params = [pytest.param(*values, id=label) for values, label in cells]
    metafunc.parametrize(axes, params or [pytest.param(*[NO_CELL] * len(axes), id="no_cell")])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    empty = [item for item in items if NO_CELL in getattr(getattr(item, "callspec", None), "params", {}).values()]
    if empty:
        items[:] = [item for item in items if item not in empty]
        config.hook.pytest_deselected(items=empty)
    for path in {item.path for item in empty} - {item.path for item in items}:
        device = config.stash[STATE].device
        raise pytest.UsageError(f"{path.parent.name}: these settings leave no cell on {device}")
    for item in items:
        if "cell" in item.fixturenames:
            plan = item.stash[PLAN] = Plan(item)
            item.add_marker(pytest.mark.benchmark(timer=config.stash[STATE].clock, group=plan.group))


def pytest_collection_finish(session):
    """Before the first cell: check `--set`, the journal and every cell's inputs; give each cell its key."""
    config, state = session.config, session.config.stash[STATE]
    plans = [item.stash[PLAN] for item in session.items if PLAN in item.stash]
    if not plans:
        return
    state.check_overrides(sorted({plan.question for plan in plans}))
    state.check_models(plans)
    if config.option.collectonly:
        return
    state.planned = [plan.name for plan in plans]
    state.provenance = measure.provenance(state.root, state.device)
    try:
        state.journal.check_writable()
        if config.option.resume:
            state.finished, altered = passed(state.journal.path)
            if altered:
                say(config, f"mlexp: {state.journal.path}: lines {altered} were altered and are not replayed")
        for plan in plans:
            state.identify(plan)
    except (ValueError, TypeError, OSError) as error:
        raise pytest.UsageError(str(error)) from None


def say(config: pytest.Config, text: str) -> None:
    """One line that is seen in every mode."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    reporter.ensure_newline()
    reporter.write_line(text, yellow=True)


def pytest_runtest_setup(item):
    elsewhere = PLAN in item.stash and item.stash[PLAN].recording
    if item.get_closest_marker("needs_gpu") and not elsewhere and not measure.gpu_present():
        if item.config.option.require_gpu:
            pytest.fail("--require-gpu: needs a CUDA device and the driver finds none", pytrace=False)
        pytest.skip("needs a CUDA device")


@pytest.fixture
def cell(request, benchmark):
    """The running cell: `cell.time(run)`, `cell.record(accuracy=...)`, `cell.series(loss=...)`."""
    state, plan = request.config.stash[STATE], request.node.stash[PLAN]
    benchmark.has_error = True  # until it has passed: an interrupted cell must not look healthy in the JSON
    progress = Progress(request.config, request.node.name)
    yield Cell(state, plan, benchmark, progress)
    progress.close()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    plan, state = pyfuncitem.stash.get(PLAN, None), pyfuncitem.config.stash[STATE]
    if plan is None or pyfuncitem.funcargs["benchmark"].disabled:
        return None
    if plan.key in state.finished:
        plan.recording = plan.recording or state.finished[plan.key].record | {"replayed": True}
        return replay(pyfuncitem, state.finished[plan.key])
    if pyfuncitem.config.option.isolate:
        return replay(pyfuncitem, isolate.run(pyfuncitem))
    try:
        state.journal.start(plan.name, plan.key, now())
    except JournalError as error:  # what cannot be kept is not run
        pyfuncitem.session.shouldstop = str(error)
        pytest.skip(str(error))
    return None


def replay(item: pytest.Item, entry: Entry) -> bool:
    """Let a cell that has run elsewhere end here as it ended there; the clock shows its recorded durations."""
    cell, benchmark = item.funcargs["cell"], item.funcargs["benchmark"]
    cell.arrays = entry.series
    cell.values = record.measured(entry.record)
    if entry.status != "passed":
        raise CellDied(entry.status, entry.record.get("reason") or entry.status)
    with item.config.stash[STATE].clock.replaying(entry.durations):
        benchmark.pedantic(lambda: None, rounds=len(entry.durations))
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report, plan = (yield), item.stash.get(PLAN, None)
    if plan and plan.key and not report.skipped and (call.when == "call" or (call.when == "setup" and report.failed)):
        finish(item, plan, call, report)
    return report


def finish(item: pytest.Item, plan: Plan, call: pytest.CallInfo, report: pytest.TestReport) -> None:
    """Give the cell its status, put it on disk, and let the JSON have it if it passed."""
    state, funcargs = item.config.stash[STATE], getattr(item, "funcargs", {})
    cell, benchmark = funcargs.get("cell"), funcargs.get("benchmark")
    if benchmark and benchmark.disabled:
        return
    status, reason = outcome(call.excinfo.value) if call.excinfo else ("passed", None)
    durations = list(benchmark.stats.stats.data) if benchmark and benchmark.stats else []
    entry = state.entry(plan, cell, status, reason, durations)
    try:
        state.keep(plan, entry)
    except JournalError as error:  # the disk is full: what comes after would be lost
        item.session.shouldstop = f"{error}; the last cell is not in it"
    if entry.status == "passed":
        benchmark.extra_info.update(entry.record)
        benchmark.has_error = False
    elif entry.status in record.EXPECTED:
        report.outcome, report.wasxfail = "skipped", f"{entry.status}: {entry.record['reason']}"
    elif call.excinfo is None:
        report.outcome, report.longrepr = "failed", entry.record["reason"]


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_benchmark_group_stats(config, benchmarks, group_by):
    """pytest-benchmark's table without cells that did not pass; grouping by an axis that some cells do not have.

    `pytest-benchmark compare` loads no plugins: it finds this hook in the root conftest.py, and has no config.
    """
    from pytest_benchmark.plugin import pytest_benchmark_group_stats as group

    gone = {entry.cell for entry in config.stash[STATE].unfinished} if config else set()
    axes = [part.removeprefix("param:") for part in group_by.split(",") if part.startswith("param:")]
    kept = [bench for bench in benchmarks if bench["fullname"] not in gone]
    for bench in kept if axes else ():
        bench["params"] = dict.fromkeys(axes, "-") | (bench["params"] or {})
    return group(config=config, benchmarks=kept, group_by=group_by)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.update(measure.environment(config.stash[STATE].device))


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config, output_json):
    state = config.stash[STATE]
    output_json.update(state.extras())
    state.json_written = True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session):
    """A JSON that cannot be written is one line, and an error; the journal has all that it would have held."""
    try:
        result = yield
        write_unfinished(session)
    except OSError as error:
        state = session.config.stash[STATE]
        where = os.path.relpath(state.journal.path)
        say(session.config, f"ERROR: --benchmark-json: {error}; the finished cells are in {where}: --resume writes it")
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
        return None
    return result


def write_unfinished(session: pytest.Session) -> None:
    """Where no cell was timed pytest-benchmark writes no file: a gate must still see what did not finish."""
    config, state = session.config, session.config.stash[STATE]
    path = json_path(config)
    if not path or not state.unfinished or state.json_written:
        return
    hook = config.hook
    machine_info = hook.pytest_benchmark_generate_machine_info(config=config)
    hook.pytest_benchmark_update_machine_info(config=config, machine_info=machine_info)
    commit_info = hook.pytest_benchmark_generate_commit_info(config=config)
    output = hook.pytest_benchmark_generate_json(
        config=config, benchmarks=[], include_data=True, machine_info=machine_info, commit_info=commit_info
    )
    path.write_text(json.dumps(output | state.extras(), indent=4, default=str))


def pytest_terminal_summary(terminalreporter, config):
    state = config.stash[STATE]
    told = ", ".join(f"{count} {what}" for what, count in state.counts.items() if count)
    if told:
        terminalreporter.ensure_newline()
        terminalreporter.write_line(f"mlexp: {told}; journal: {os.path.relpath(state.journal.path)}")

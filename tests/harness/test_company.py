"""Cells beside other people's plugins: a row a case, as docs/plugins.md shows them; and what must hold beyond that."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest

from mlexp import journal
from mlexp.harness import company

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
CELLS = 4  # of the toy's first model


class Row(NamedTuple):
    """A plugin, what of it is loaded, the arguments; how many cells are measured, what is shown, what a user should
    know."""

    plugin: str
    loads: str
    options: str
    measured: int
    shown: str
    known: str

    @property
    def outcome(self):
        return "refused" if not self.measured else "measured" if self.measured >= CELLS else "those of the group"


ROWS = [
    Row("pytest-xdist", "xdist", "-n 2", 0, "*xdist (-n) switches pytest-benchmark off*drop -n*",
        "each cell is an error that says why: neighbours on other cores would slow it down; other tests run in "
        "parallel"),
    Row("pytest-xdist", "xdist", "-n 0", CELLS, "",
        "a project that has `-n auto` in its ini adds `-n 0` for its cells"),
    Row("pytest-randomly", "randomly", "--randomly-seed=7", CELLS, "Using --randomly-seed=*",
        "cells keep the grid's order, in which the arms of a block are neighbours, and `cell.seed`; other tests are "
        "shuffled; global generators are reseeded before each cell"),
    Row("pytest-rerunfailures", "rerunfailures", "--reruns 2", CELLS, "",
        "a cell that fails is measured again; `attempt` in its record says which try it is"),
    Row("pytest-timeout", "timeout", "--timeout 60", CELLS, "timeout: 60*",
        "a cell that takes longer is `failed`, with its reason; under `--timeout-method thread` the whole session "
        "ends, and `--resume` goes on; `--cell-timeout` ends one cell and the session goes on"),
    Row("pytest-repeat", "repeat", "--count 2", 2 * CELLS, "",
        "a repetition is a cell of its own and no axis: same block, same seed"),
    Row("pytest-cov", "pytest_cov", "--cov=benches", CELLS, "*coverage*",
        "cells are left out of coverage, as if marked `no_cover`; other tests are covered"),
    Row("pytest-sugar", "sugar", "--force-sugar", CELLS, "", ""),
    Row("pytest-html", "html metadata", "--html=report.html", CELLS, "*Generated html report: *", ""),
    Row("pytest-split", "pytest-split", "--splits 2 --group 1", CELLS // 2, "*Running group 1/2*",
        "`mlexp report FOLDER` puts the groups together; groups on machines that differ are contexts of their own"),
    Row("pytest-playwright", "playwright", "--mlexp-device cpu", CELLS,
        "*--device: of another plugin*mlexp's: --mlexp-device",
        "`--device` is playwright's then; ours is `--mlexp-device`"),
]  # fmt: skip


def options_of(row, *more):
    """The arguments of a session in which no plugin is loaded but pytest-benchmark and those of a row."""
    return [*(word for name in ["benchmark", *row.loads.split()] for word in ("-p", name)), *row.options.split(), *more]


@pytest.fixture
def beside(toy, monkeypatch):
    """Runs the toy's cells beside a row's plugin, in a process; skips where that is not installed."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def run(row, *more, where="benches"):
        try:
            metadata.version(row.plugin)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{row.plugin} is not installed")
        return toy.run(*options_of(row, *more), where=where, subprocess=True)

    return run


def row_of(plugin):
    return next(row for row in ROWS if row.plugin == plugin and row.measured)


PLAIN = Row("pytest-benchmark", "", "", CELLS, "", "")


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.plugin}{row.options}".replace(" ", "") for row in ROWS])
def test_cells_beside_a_plugin(toy, beside, row):
    """As many as the row says are measured, in the grid's order, and each is later replayed without the plugin."""
    done = beside(row, "-k", "m_one", "--benchmark-json", "out.json")
    if row.shown:
        done.stdout.fnmatch_lines([row.shown])
    assert "Traceback" not in done.stdout.str() and "INTERNALERROR" not in done.stdout.str()
    if not row.measured:
        assert done.ret == pytest.ExitCode.TESTS_FAILED and toy.ran() == [] and not toy.journal.exists()
        return
    assert done.ret == pytest.ExitCode.OK, done.stdout.str()
    done.stdout.fnmatch_lines([f"mlexp: {row.measured} measured; journal: *"])
    found = [bench["params"] for bench in toy.json()["benchmarks"]]
    assert len(found) == row.measured and toy.json()["unfinished"] == []
    beside(PLAIN, "-k", "m_one", "--resume", "--benchmark-json", "plain.json")
    plain = toy.json("plain.json")["benchmarks"]
    if row.plugin != "pytest-repeat":  # whose repetitions have names of their own
        assert found == [bench["params"] for bench in plain][: row.measured]
        assert sum(bench["extra_info"]["replayed"] for bench in plain) == row.measured


def test_the_document_has_the_rows():
    lines = [f"| {row.plugin} | `{row.options}` | {row.outcome} | {row.known} |" for row in ROWS]
    (table,) = re.findall(r"\| plugin \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", (ROOT / "docs" / "plugins.md").read_text())
    assert table.splitlines() == lines


def test_every_option_that_is_no_part_of_a_key_is_of_its_plugin(beside, toy):
    """As the versions that are installed here have it; else the name would hide an option of somebody else."""
    code = """
def pytest_configure(config):
    import json, pathlib
    names = {*vars(config.option), *config._parser._inidict}
    pathlib.Path("names.json").write_text(json.dumps(sorted(names)))
"""
    toy.pytester.makeconftest(code)
    for plugin, names in company.CHANGES_NOTHING.items():
        row = next(row for row in ROWS if plugin in row.loads.split())
        beside(row._replace(options=""), "--collect-only")
        assert set(names) <= set(json.loads((toy.pytester.path / "names.json").read_text())), plugin


# --- pytest-randomly ------------------------------------------------------------------------------------------------


def test_beside_randomly_cells_keep_their_order_and_other_tests_are_shuffled(toy, beside):
    toy.pytester.makepyfile(test_many="\n".join(f"def test_{n}(): pass" for n in range(20)))
    row, orders = row_of("pytest-randomly"), []
    for seed in "12":
        done = beside(row, "-v", "--randomly-seed", seed, where=".")
        names = re.findall(r"^(\S+?)::(\S+) PASSED", done.stdout.str(), re.MULTILINE)
        orders.append([[name for file, name in names if part in file] for part in ("bench_toy", "test_many")])
    (cells, tests), (same, others) = orders
    assert cells == same and len(cells) == 2 * CELLS
    assert sorted(tests) == sorted(others) and tests != others
    plain = re.findall(r"^\S+?::(\S+) PASSED", beside(PLAIN, "-v").stdout.str(), re.MULTILINE)
    assert cells == plain


def test_a_seed_of_randomly_s_is_no_seed_of_ours(toy, beside):
    row, seeds = row_of("pytest-randomly"), []
    toy.edit('"things": ("count", "lower", "how many things")', '"things": ("count", "none", "seed")')
    toy.edit("things=len(things)", "things=cell.seed")
    for seed in "12":
        beside(row, "-k", "m_one", "--randomly-seed", seed)
        seeds.append([entry.record["things"] for entry in journal.read(toy.journal).entries][-CELLS:])
    assert seeds[0] == seeds[1]


# --- coverage -------------------------------------------------------------------------------------------------------

TRACED = "import sys; t = sys.gettrace(); m = getattr(sys, 'monitoring', None); traced = bool(t or m and m.get_tool(1))"


@pytest.mark.parametrize("core", ["ctrace", "sysmon"])
def test_no_round_is_traced_by_pytest_cov_and_other_tests_are(toy, beside, monkeypatch, core):
    if core == "sysmon" and sys.version_info < (3, 12):
        pytest.skip("sys.monitoring is of Python 3.12")
    monkeypatch.setenv("COVERAGE_CORE", core)
    toy.edit("        time.sleep(0.001)", f"        {TRACED}; (HERE / 'traced.log').open('a').write(f'{{traced}} ')")
    toy.pytester.makepyfile(test_other=f"def test_it():\n    {TRACED}\n    assert traced")
    beside(row_of("pytest-cov"), "-k", "m_one or test_it", where=".").assert_outcomes(passed=CELLS + 1)
    assert set((toy.folder / "traced.log").read_text().split()) == {"False"}


@pytest.mark.parametrize("flags", [[], ["--benchmark-disable"]], ids=["refused", "unmeasured"])
def test_what_traces_all_that_runs_is_refused(toy, flags):
    """`coverage run -m pytest` and a debugger's `settrace` alike; without a measurement they may."""
    toy.pytester.makeconftest("import sys\ndef pytest_runtest_call(item): sys.settrace(lambda *_: None)")
    done = toy.run("-k", "m_one", *flags, subprocess=True)
    if flags:
        done.assert_outcomes(passed=CELLS)
        return
    done.assert_outcomes(failed=CELLS)
    assert "follows all that runs here and would be timed with it" in done.stdout.str()
    assert {entry.status for entry in journal.read(toy.journal).entries} == {"failed"} and toy.ran() == []


@pytest.mark.parametrize("set_it", ["settrace", "setprofile"])
def test_a_tracer_is_known_by_its_name(set_it):
    """In a process of its own: this one may be debugged."""
    code = f"""
import sys
from mlexp.harness.company import tracer
assert tracer() is None, tracer()
def follow(*_): pass
sys.{set_it}(follow)
found = tracer()
sys.{set_it}(None)
assert found == "__main__.follow" and tracer() is None, found
if hasattr(sys, "monitoring"):
    tools = sys.monitoring
    tools.use_tool_id(2, "profiler")
    assert tracer() is None
    tools.set_events(2, tools.events.PY_START)
    found = tracer()
    tools.set_events(2, 0)
    assert found == "profiler", found
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# --- pytest-timeout -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolated", [[], ["--isolate"]], ids=["here", "isolated"])
def test_a_cell_that_outlasts_pytest_timeout_has_failed_and_says_so(toy, beside, isolated):
    toy.script("m_one-seed1-ours", "time.sleep(60)")
    done = beside(row_of("pytest-timeout"), "-k", "m_one and seed1", "--timeout", "5", *isolated)
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    found = {entry.params["arm"]: entry for entry in journal.read(toy.journal).entries}
    assert found["base"].status == "passed" and found["ours"].status == "failed"
    assert re.search(r"Timeout \(>5(\.0)?s\)", found["ours"].record["reason"])


def test_where_pytest_timeout_ends_the_process_the_journal_has_the_rest(toy, beside):
    toy.script("m_one-seed1-ours", "time.sleep(60)")
    row = row_of("pytest-timeout")
    beside(row, "-k", "m_one and seed1", "--timeout", "5", "--timeout-method", "thread")
    assert [entry.params["arm"] for entry in journal.read(toy.journal).entries] == ["base"]
    done = beside(row, "-k", "m_one and seed1", "--resume")
    done.stdout.fnmatch_lines(["mlexp: 1 measured, 1 replayed; *"])

"""The plugin among others: it touches its own cells alone, yields names that are taken, and loses no option."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from mlexp import journal
from mlexp.harness import measure

pytest_plugins = ["pytester"]

ALL = 8
ARRAYS = """
import numpy as np, pandas as pd, pytest
@pytest.mark.parametrize("x", [np.array([1, 2])])
def test_array(x): assert x.sum() == 3
@pytest.mark.parametrize("x", [pd.DataFrame({"a": [1, 2]})])
def test_frame(x): assert len(x) == 2
"""
CELLS = """
import pytest
@pytest.fixture
def cell(): return (1.0, 2.0)
def test_volume(cell): assert cell[0] * cell[1] == 2.0
@pytest.mark.parametrize("cell", [1, 2])
def test_direct(cell): assert cell
@pytest.mark.needs_gpu
def test_marked(): pass
SETTINGS = {"x": 1}
def test_of_a_module_with_settings(cell): pass
"""


def records(toy):
    return [entry.record for entry in journal.read(toy.journal).entries]


def values(toy, name):
    return [entry.record[name] for entry in journal.read(toy.journal).entries]


def test_other_people_s_tests_run_as_without_it(toy):
    toy.pytester.makepyfile(test_arrays=ARRAYS, test_cells=CELLS)
    result = toy.run(where="test_arrays.py")
    result.assert_outcomes(passed=2)
    toy.run(where="test_cells.py").assert_outcomes(passed=5)
    assert not toy.journal.exists() and "mlexp:" not in result.stdout.str()


def test_a_benchmark_that_is_no_cell_is_left_alone(toy):
    toy.pytester.makepyfile(test_plain="def test_it(benchmark): benchmark(sum, [1])")
    toy.run("--benchmark-json", "out.json", where="test_plain.py").assert_outcomes(passed=1)
    assert "planned" not in toy.json() and toy.json()["benchmarks"][0]["extra_info"] == {}
    toy.run("--benchmark-disable", where="test_plain.py").assert_outcomes(passed=1)


def test_where_cell_is_another_s_name_ours_has_a_longer_one(toy):
    toy.bench.write_text(toy.bench.read_text().replace("def test_toy(cell,", "def test_toy(mlexp_cell,").replace(
        "    def run():", "    cell = mlexp_cell\n    def run():"))  # fmt: skip
    toy.pytester.makeconftest("import pytest\n@pytest.fixture\ndef cell(): return 'lattice'")
    toy.run().assert_outcomes(passed=ALL)


CLASH = """
def pytest_addoption(parser):
    parser.addoption("--device", default="here", help="where my tests run")
    parser.getgroup("mine").addoption("--resume", action="store_true")
"""


def test_a_taken_name_stays_its_owner_s(toy):
    toy.pytester.makeconftest(CLASH)
    toy.pytester.makepyfile(test_a="def test_a(pytestconfig): assert pytestconfig.getoption('--device') == 'mps'")
    result = toy.run("--device", "mps", where="test_a.py")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["mlexp: --device, --resume: of another plugin or a conftest file here; mlexp's: "
                                 "--mlexp-device, --mlexp-resume"])  # fmt: skip
    toy.run("--mlexp-device", "cpu").assert_outcomes(passed=ALL)
    toy.ran()
    toy.run("--mlexp-device", "cpu", "--mlexp-resume").assert_outcomes(passed=ALL)
    assert toy.ran() == []
    help_text = toy.run("--help").stdout.str()
    assert "--mlexp-device" in help_text and "where my tests run" in help_text and "--mlexp-scale" in help_text


def test_a_plugin_that_has_the_name_keeps_it(toy):
    toy.pytester.syspathinsert()
    toy.pytester.makepyfile(theirs="def pytest_addoption(parser): parser.addoption('--isolate', default='no')")
    result = toy.run("-p", "theirs", "--isolate", "yes", "--mlexp-set", "size=4")
    result.assert_outcomes(passed=ALL)
    assert set(values(toy, "overrides")) == {"size=4"}


def test_a_conftest_may_load_it(toy):
    toy.pytester.makeini("[pytest]\npython_files = bench_*.py\naddopts = --import-mode=importlib\n")
    toy.pytester.makeconftest("pytest_plugins = ['mlexp.harness.plugin']")
    toy.run("--set", "size=4", "--benchmark-json", "out.json").assert_outcomes(passed=ALL)
    assert {bench["extra_info"]["things"] for bench in toy.json()["benchmarks"]} == {4}


def test_nothing_is_registered_where_nobody_asked(toy):
    toy.pytester.makeini("[pytest]\npython_files = bench_*.py\naddopts = --import-mode=importlib\n")
    result = toy.pytester.runpytest_subprocess("--help")
    assert "--mlexp" not in result.stdout.str() and "experiment cells" not in result.stdout.str()


def test_a_conftest_that_is_met_in_collection_may_have_a_name_too(toy):
    """It comes too late to add an option, but without mlexp it does no harm."""
    folder = toy.pytester.mkdir("below")
    (folder / "conftest.py").write_text("def pytest_addoption(parser): parser.addoption('--device', default='mps')")
    (folder / "test_b.py").write_text("def test_b(): pass")
    toy.run(where=".").assert_outcomes(passed=ALL + 1)


def test_a_cell_is_named_among_the_arguments(toy):
    toy.pytester.makepyfile(test_a="def test_a(request): request.getfixturevalue('cell')")
    result = toy.run(where="test_a.py")
    result.assert_outcomes(errors=0, failed=1)
    result.stdout.fnmatch_lines(["*a cell is a test that names `cell` among its arguments*"])


@pytest.mark.parametrize("flags", [["-p", "no:terminal"], ["-p", "no:capture"], ["-p", "no:logging"], ["-q", "-q"]])
def test_pytest_without_one_of_its_parts(toy, flags):
    result = toy.run(*flags, "--benchmark-json", "out.json", "-k", "m_one", subprocess=True)
    assert result.ret == 0 and "INTERNAL" not in result.stdout.str() + result.stderr.str()
    assert len(toy.json()["benchmarks"]) == 4


def test_without_pytest_benchmark_cells_are_refused_and_other_tests_run(toy):
    toy.pytester.makepyfile(test_a="def test_a(): pass")
    result = toy.run("-p", "no:benchmark", subprocess=True)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *test_toy*: needs pytest-benchmark, which is not loaded*"])
    toy.run("-p", "no:benchmark", where="test_a.py", subprocess=True).assert_outcomes(passed=1)


@pytest.mark.parametrize("flags", [[], ["--benchmark-json", "out.json"]])
def test_xdist_is_refused_cell_by_cell(toy, flags):
    pytest.importorskip("xdist")
    toy.pytester.makepyfile(test_a="def test_a(): pass")
    result = toy.pytester.runpytest_subprocess(".", "-n", "2", "-p", "no:cacheprovider", *flags)
    result.assert_outcomes(passed=1, errors=ALL)
    result.stdout.fnmatch_lines(["*xdist (-n) switches pytest-benchmark off*a cell measures nothing; drop -n*"])
    assert toy.ran() == []


def test_benchmark_disable_is_announced(toy):
    result = toy.run("--benchmark-disable")
    result.assert_outcomes(passed=ALL)
    result.stdout.fnmatch_lines(["mlexp: --benchmark-disable: 8 cells ran unmeasured and left no record"])
    assert (toy.folder / "ran.log").read_text().count("\n") == ALL and not toy.journal.exists()


def test_a_repetition_is_no_axis(toy):
    pytest.importorskip("pytest_repeat")
    toy.run("--count", "2", "--benchmark-json", "out.json", "-k", "m_one").assert_outcomes(passed=8)
    seeds = {}
    for bench in toy.json()["benchmarks"]:
        info, (unfinished) = bench["extra_info"], toy.json()["unfinished"]
        assert unfinished == []
        seeds.setdefault(bench["params"]["seed"], set()).add((info["seed"], bench["group"]))
    assert all(len(found) == 1 for found in seeds.values())
    assert {tuple(entry.params) for entry in journal.read(toy.journal).entries} == {("model", "seed", "arm")}


def test_an_axis_of_objects_is_refused(toy):
    toy.pytester.makepyfile(
        test_a="import numpy, pytest\n@pytest.mark.parametrize('x', [numpy.ones(2)])\ndef test_a(cell, x): pass"
    )
    result = toy.run(where="test_a.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_a*: axis 'x' holds a numpy.ndarray; give a number or a name of it"])


# --- options of the project and of plugins --------------------------------------------------------------------------

RATE = """
def pytest_addoption(parser):
    parser.addoption("--lr", type=float, default=0.1)
    parser.addini("momentum", "of the optimiser", default="0")
"""


@pytest.fixture
def rated(toy):
    """The toy project whose cells record an option and an ini value that its conftest adds."""
    toy.pytester.makeconftest(RATE)
    text = toy.bench.read_text().replace("def test_toy(cell,", "def test_toy(pytestconfig, cell,")
    things = "int(1000 * pytestconfig.getoption('lr')) + int(pytestconfig.getini('momentum'))"
    toy.bench.write_text(text.replace("things=len(things)", f"things={things}"))
    return toy


@pytest.mark.parametrize("isolated", [(), ("--isolate",)], ids=["here", "isolated"])
@pytest.mark.parametrize(("flags", "things"), [(["--lr", "0.5"], 500), (["-o", "momentum=7"], 107), ([], 100)])
def test_options_of_the_project_reach_the_cell_and_its_settings(rated, isolated, flags, things):
    rated.run("-k", "m_one and seed1", *flags, *isolated).assert_outcomes(passed=2)
    assert values(rated, "things") == [things] * 2
    for record in records(rated):
        assert ("--lr" in json.loads(record["settings"])) == ("--lr" in flags)
        assert ("momentum" in json.loads(record["settings"])) == ("-o" in flags)
        assert record["overrides"] == {500: "--lr=0.5", 107: "momentum=7", 100: ""}[things]


def test_options_of_the_project_are_part_of_the_key(rated):
    for flags, runs in ((["--lr", "0.5"], 2), ([], 2), (["--lr", "0.5"], 0), (["--lr", "0.1"], 0), (["-v", "-rA"], 0)):
        rated.run("-k", "m_one and seed1", "--resume", *flags).assert_outcomes(passed=2)
        assert len(rated.ran()) == runs, flags


def test_options_of_plugins_are_part_of_the_key_but_of_no_context(toy):
    toy.pytester.syspathinsert()
    toy.pytester.makepyfile(theirs="def pytest_addoption(parser): parser.addoption('--knob', default='low')")
    for flags, runs in ((["--knob", "high"], 2), ([], 2), (["--knob", "high"], 0), (["--benchmark-sort=name"], 0)):
        toy.run("-p", "theirs", "-k", "m_one and seed1", "--resume", *flags).assert_outcomes(passed=2)
        assert len(toy.ran()) == runs, flags
    assert set(values(toy, "overrides")) == {""} and len(set(values(toy, "key"))) == 4


def test_what_pytest_benchmark_switches_off_while_it_times_is_part_of_the_key(toy):
    for flags, runs in ((["--benchmark-disable-gc"], 2), ([], 2), (["--benchmark-disable-gc"], 0)):
        toy.run("-k", "m_one and seed1", "--resume", *flags).assert_outcomes(passed=2)
        assert len(toy.ran()) == runs, flags


def test_isolate_in_addopts_is_one_child_a_cell(toy):
    ini = toy.pytester.path / "tox.ini"
    ini.write_text(ini.read_text().replace("addopts =", "addopts = --isolate"))
    toy.edit("    def run():", "    open(HERE / f'{os.getpid()}.pid', 'w')\n    def run():")
    toy.run("-k", "m_one and seed1").assert_outcomes(passed=2)
    assert len(list(toy.folder.glob("*.pid"))) == 2


@pytest.mark.parametrize("name", ["lr=[0.1]", "a b", "ümlaut", "x::y"])
def test_any_name_of_a_folder_can_be_isolated(toy, name):
    folder = toy.folder.parent / name
    toy.folder.rename(folder)
    toy.run("-k", "m_one and seed1", "--isolate").assert_outcomes(passed=2)


@pytest.mark.parametrize("flags", [["--lf", "-x"], ["--sw", "-rA", "-vv"], ["--ff", "--pdb", "--junitxml=j.xml"]])
def test_pytest_s_own_options_do_not_disturb_the_children(toy, flags):
    """The second run selects by the cache of the first, which no child may write."""
    toy.pytester.makepyfile(test_red="def test_red(): assert 0")
    run = toy.pytester.runpytest_subprocess
    run(".", "-k", "m_one or red")
    result = run("benches", "-k", "m_one", "--isolate", "--cell-timeout", "60", *flags)
    result.assert_outcomes(passed=4)
    if "--junitxml=j.xml" in flags:
        assert (toy.pytester.path / "j.xml").read_text().count("<testcase") == 4


def test_a_child_is_started_with_the_same_path(toy):
    """`python -m pytest` puts the folder on the path, `pytest` does not."""
    (toy.pytester.path / "near.py").write_text("X = 1")
    toy.bench.write_text("import near\n" + toy.bench.read_text())
    words = ["benches", "-k", "m_one and seed1", "--isolate", "-p", "no:cacheprovider"]
    program = f"import sys; sys.path[:1] = []; import pytest; sys.exit(pytest.main({words!r}))"
    for call, passed in ((["-m", "pytest", *words], True), (["-c", program], False)):
        env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        done = subprocess.run([sys.executable, *call], cwd=toy.pytester.path, env=env, capture_output=True, text=True)
        assert ("2 passed" in done.stdout) == passed, done.stdout


# --- the code behind a cell -----------------------------------------------------------------------------------------

USES = "\ndef used():\n    {}\n"
COMPUTED = "import importlib; importlib.import_module('.'.join(['lab', 'work']))"
BY_PATH = """import sys, importlib.util as util
    spec = util.spec_from_file_location('by_path', HERE.parents[1] / 'lab/work.py')
    spec.loader.exec_module(util.module_from_spec(spec))"""
LAYOUTS = {  # where the code lies -> (file, how the bench file imports it, line of the ini)
    "src": ("src/lab/work.py", "from lab import work", "pythonpath = src"),
    "topmost init": ("lab/__init__.py", "import lab", "pythonpath = ."),
    "namespace": ("lab/inner/work.py", "import lab.inner.work", "pythonpath = ."),
    "computed name": ("lab/work.py", COMPUTED, "pythonpath = ."),
    "by path": ("lab/work.py", BY_PATH, ""),
    "run": ("lab/work.py", "import runpy; runpy.run_path(str(HERE.parents[1] / 'lab/work.py'))", ""),
    "conftest": ("benches/conftest.py", "pass", ""),
    "plugin of a conftest": ("plugged.py", "pass", "pythonpath = ."),
    "plugin of the ini": ("plugged.py", "pass", "pythonpath = .\nrequired_plugins ="),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_code_that_changed_is_measured_again(toy, layout):
    name, line, ini = LAYOUTS[layout]
    file = toy.pytester.path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("X = 1\n")
    tox = toy.pytester.path / "tox.ini"
    tox.write_text(f"{tox.read_text()}\n{ini}\n")
    if layout == "plugin of a conftest":
        toy.pytester.makeconftest("pytest_plugins = ['plugged']")
    elif layout == "plugin of the ini":
        tox.write_text(tox.read_text().replace("addopts =", "addopts = -p plugged"))
    toy.edit("    def run():", "    used()\n    def run():")
    toy.bench.write_text(toy.bench.read_text() + USES.format(line))
    flags = ["-k", "m_one and seed1", "--resume"]
    for text, runs in (("X = 1\n", 2), ("X = 2\n", 2), ("X = 1\n", 0)):  # at last, what it was
        file.write_text(text)
        toy.run(*flags, subprocess=True).assert_outcomes(passed=2)
        assert len(toy.ran()) == runs, text


def test_the_version_of_a_distribution_that_only_a_cell_imports_counts(toy):
    site = toy.pytester.path / "site-packages"
    info = site / "shadow-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "shadow.py").write_text("X = 1\n")
    (info / "top_level.txt").write_text("shadow\n")
    (info / "RECORD").write_text("shadow.py,,\n")
    line = "import importlib; importlib.import_module('sha' + 'dow')"
    toy.edit("    def run():", f"    {line}\n    def run():")
    tox = toy.pytester.path / "tox.ini"
    tox.write_text(tox.read_text() + "\npythonpath = site-packages\n")
    for version, runs in (("1.0", 2), ("1.0", 0), ("2.0", 2)):
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: shadow\nVersion: {version}\n")
        toy.run("-k", "m_one and seed1", "--resume", subprocess=True).assert_outcomes(passed=2)
        assert len(toy.ran()) == runs, version


# --- git and the journal --------------------------------------------------------------------------------------------


@pytest.fixture
def committed(toy):
    """The toy project in a git repository, all of it committed."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    (toy.folder / "README.md").write_text("words")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "toy"]):
        subprocess.run([*git, *words], cwd=toy.pytester.path, check=True)
    return toy


def test_the_journal_makes_no_tree_dirty(committed):
    for _ in range(2):
        committed.run("-k", "m_one and seed1")
        committed.ran()
    assert set(values(committed, "dirty")) == {False} and all(values(committed, "commit"))


@pytest.mark.parametrize(
    ("name", "text", "dirty"),
    [
        ("out.json", "{}", False),  # what the run before has written
        ("NOTES.md", "words", False),
        ("benches/toy/README.md", "other words", False),
        ("results/x.py", "", False),
        ("helper.py", "X = 1", True),
        ("benches/toy/bench_toy.py", None, True),
        ("tox.ini", None, True),
    ],
)
def test_dirty_looks_at_code(committed, name, text, dirty):
    path = committed.pytester.path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(path.read_text() + "\n" if text is None else text)
    committed.run("-k", "m_one and seed1")
    assert set(values(committed, "dirty")) == {dirty}


def test_the_journal_belongs_to_the_root_directory(toy):
    toy.run("-k", "m_one and seed1")
    toy.ran()
    os.chdir(toy.folder)
    toy.run("-k", "m_one and seed1", "--resume", where=".").assert_outcomes(passed=2)
    assert toy.ran() == [] and not (toy.folder / ".mlexp").exists()
    toy.run("-k", "m_one and seed1", "--journal", "here.jsonl", where=".").assert_outcomes(passed=2)
    assert (toy.folder / "here.jsonl").exists()


def test_a_commit_that_git_refuses_is_said_and_can_be_given(committed, monkeypatch):
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=committed.pytester.path, capture_output=True, text=True)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    result = committed.run("-k", "m_one and seed1")
    result.stdout.fnmatch_lines(["mlexp: records will name no commit; fatal: detected dubious ownership*--commit*"])
    assert set(values(committed, "commit")) == {None}
    result = committed.run("-k", "m_one and seed1", "--commit", commit.stdout.strip())
    assert "dubious" not in result.stdout.str() and values(committed, "commit")[-1] == commit.stdout.strip()
    monkeypatch.delenv("GIT_TEST_ASSUME_DIFFERENT_OWNER")
    result = committed.run("-k", "m_one and seed1", "--commit", "1234567")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --commit 1234567: git says *"])


def test_no_repository_and_one_without_a_commit_are_no_complaint(toy, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(toy.pytester.path.parent))
    assert "name no commit" not in toy.run("-k", "m_one and seed1").stdout.str()
    subprocess.run(["git", "init", "-q"], cwd=toy.pytester.path, check=True)
    assert "name no commit" not in toy.run("-k", "m_one and seed1").stdout.str()
    assert set(values(toy, "commit")) == {None}


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch")  # not imported here: pytester forgets
@pytest.mark.parametrize("loaded_by", ["ini", "conftest"])
@pytest.mark.parametrize(
    ("chosen", "wanted"),
    [
        ({}, "OMP_WAIT_POLICY = 'PASSIVE'"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "OMP_WAIT_POLICY = 'ACTIVE'"),
        ({"GOMP_SPINCOUNT": "9"}, "GOMP_SPINCOUNT = '9'"),
    ],
    ids=["default", "active", "spins"],
)
def test_threads_of_torch_sleep_while_they_wait_unless_the_user_chose(toy, monkeypatch, chosen, wanted, loaded_by):
    """The referee is the OpenMP library that torch brings, which prints what it goes by."""
    for name in measure.WAITS:
        monkeypatch.delenv(name, raising=False)
    for name, value in {"OMP_DISPLAY_ENV": "VERBOSE", "OMP_NUM_THREADS": "2", **chosen}.items():
        monkeypatch.setenv(name, value)
    if loaded_by == "conftest":
        toy.pytester.makeini("[pytest]\npython_files = bench_*.py\naddopts = --import-mode=importlib\n")
        toy.pytester.makeconftest("pytest_plugins = ['mlexp.harness.plugin']")
    toy.script("m_one-seed1-base", "import torch")
    result = toy.run("-k", "m_one-seed1-base", "-s", subprocess=True)
    assert wanted in result.stderr.str()
    (machine,) = {record["machine"] for record in records(toy)}
    assert (", 2 passive threads" in machine) == (not chosen)

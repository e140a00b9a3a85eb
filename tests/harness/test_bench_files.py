"""Which files the plugin has pytest collect, in projects that opted in and in others; which companions it refuses."""

import pytest

from mlexp.harness import company

pytest_plugins = ["pytester"]

ON = "addopts = -p mlexp.harness.plugin"
BENCH = "def test_cell(cell): cell.time(lambda: None)\n"
OTHER = "def test_other(): pass\n"
FILES = {"benches/q/bench_q.py": BENCH, "tests/test_a.py": OTHER, "tests/a_test.py": OTHER}


def collected(pytester, ini, *args, files=()):
    pytester.makeini(f"[pytest]\n{ini}\n")
    for name, text in {
        "benches/q/bench_q.py": BENCH,
        "tests/test_a.py": OTHER,
        "tests/a_test.py": OTHER,
        **dict(files),
    }.items():
        path = pytester.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    done = pytester.runpytest_inprocess("--collect-only", "-q", "-p", "no:cacheprovider", *args)
    return sorted(line.partition("::")[0] for line in done.outlines if "::" in line)


PATTERNS = {
    "default": "",
    "tests_only": "python_files = test_*.py",
    "theirs": "python_files = check_*.py *_test.py",
    "both": "python_files = test_*.py bench_*.py",
    "all": "python_files = *.py",
}


@pytest.mark.parametrize("patterns", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("path", ["benches", "benches/q", "benches/q/bench_q.py", "."])
def test_a_bench_file_is_collected_once_whatever_the_patterns_are(pytester, patterns, path):
    found = collected(pytester, f"{ON}\n{patterns}", path)
    assert found.count("benches/q/bench_q.py") == 1


def test_the_project_s_own_patterns_hold_beside_it(pytester):
    assert collected(pytester, f"{ON}\n{PATTERNS['theirs']}") == ["benches/q/bench_q.py", "tests/a_test.py"]
    assert collected(pytester, f"{ON}\ntestpaths = tests") == ["tests/a_test.py", "tests/test_a.py"]


def test_where_nobody_opted_in_nothing_is_collected(pytester):
    assert collected(pytester, "") == ["tests/a_test.py", "tests/test_a.py"]
    assert collected(pytester, "", "benches") == []


def test_a_conftest_that_opts_in_does_too(pytester):
    files = {"conftest.py": 'pytest_plugins = ["mlexp.harness.plugin"]\n'}
    assert "benches/q/bench_q.py" in collected(pytester, "", "benches", files=files)


def test_an_assert_in_a_bench_file_is_explained(pytester):
    pytester.makeini(f"[pytest]\n{ON}\n")
    folder = pytester.mkdir("benches")
    (folder / "bench_a.py").write_text("def test_a(cell):\n    found = cell.time(lambda: 2)\n    assert found == 3\n")
    done = pytester.runpytest_inprocess("benches", "-p", "no:cacheprovider")
    done.stdout.fnmatch_lines(["E*assert 2 == 3"])


@pytest.mark.parametrize(
    ("older", "newer", "refused"),
    [("5.2.3", "9.2.0", True), ("5.3.0", "9.3.1", True), ("5.3.1", "9.2.0", False), ("5.2.3", "9.1.4", False)],
)
def test_a_dead_pair_is_refused_at_start(pytester, monkeypatch, older, newer, refused):
    monkeypatch.setattr(company, "version", {"pytest-benchmark": older, "pytest": newer}.get)
    pytester.makeini(f"[pytest]\n{ON}\n")
    pytester.makepyfile("def test_a(): pass")
    done = pytester.runpytest_inprocess()
    assert done.ret == (pytest.ExitCode.USAGE_ERROR if refused else pytest.ExitCode.OK)
    told = f"ERROR: pytest-benchmark {older} and pytest {newer} do not work together: pip install *>=5.3.1* or *<9.2*"
    if refused:
        done.stderr.fnmatch_lines([told])
    assert "Traceback" not in done.stderr.str()
    assert pytester.runpytest_inprocess("-p", "no:benchmark").ret == pytest.ExitCode.OK

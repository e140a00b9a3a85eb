"""Plants each listed fault in a copy of the repository and runs the tests that must notice it: survivors fail here.

`pytest tests/mutants -m slow -n auto` plants them all (some seconds a fault), `-k maze` those of one list.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants.planted import KINDS, ROOT, Fault, all_faults, parse

FAULTS = all_faults()
SLOW_IMPORTS = ("numpy", "scipy.stats", "pandas", "matplotlib.figure", "hypothesis", "pytest", "torch", "transformers")
TIMEOUT_S = 400  # a fault that makes a test loop forever is noticed too


def copy_of(source, target):
    """The tracked and untracked files of a checkout, without what git ignores."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=source, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)
    return target


class Checkout:
    """A copy of the repository in which faults are planted, and a process that runs its tests."""

    def __init__(self, root, imports=SLOW_IMPORTS):
        self.root, self._log = root, root / "pytest.log"
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        env |= {"PYTHONPATH": str(root), "CI": "true", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        env["HYPOTHESIS_PROFILE"] = "planted"
        argv = [sys.executable, str(Path(__file__).with_name("warm.py")), str(root), *imports]
        self._warm = subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run_tests(self, *args):
        """(pytest's exit status, the end of what it printed)."""
        self._log.unlink(missing_ok=True)
        args = ["-q", "-x", "-p", "no:xdist", *args]
        print(
            json.dumps({"args": args, "log": str(self._log), "timeout_s": TIMEOUT_S}), file=self._warm.stdin, flush=True
        )
        status = int(self._warm.stdout.readline())
        return status, self._log.read_text()[-3000:]

    def close(self):
        self._warm.stdin.close()
        self._warm.wait()


def noticed(fault, checkout):
    """Whether a test fails with the fault and passes without it; and what pytest printed."""
    shutil.rmtree(checkout.root / ".pytest_cache", ignore_errors=True)
    before = fault.plant(checkout.root)
    try:
        status, printed = checkout.run_tests(*fault.tests)
    finally:
        (checkout.root / fault.path).write_text(before)
    if status:
        clean, printed_clean = checkout.run_tests(*fault.tests, "--lf")
        assert clean == 0, f"this fails without the fault too:\n{printed_clean}"
    return bool(status), printed


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    opened = Checkout(copy_of(ROOT, tmp_path_factory.mktemp("checkout")))
    yield opened
    opened.close()


@pytest.fixture
def toy_checkout(tmp_path):
    opened = Checkout(tmp_path, imports=("pytest",))
    yield opened
    opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_noticed(fault, checkout, request):
    if fault.survives:
        request.applymarker(pytest.mark.xfail(reason=fault.survives, strict=True))
    seen, printed = noticed(fault, checkout)
    assert seen, f"{fault.path}: nothing noticed\n- {fault.old}\n+ {fault.new}\n{printed}"


@pytest.mark.parametrize("name", sorted({fault.name.partition("-")[0] for fault in FAULTS}))
def test_every_listed_fault_still_has_its_place(name):
    for fault in (fault for fault in FAULTS if fault.name.partition("-")[0] == name):
        planted = fault.planted((ROOT / fault.path).read_text())
        if fault.path.endswith(".py"):
            ast.parse(planted)
        assert fault.old != fault.new, fault.name
        assert fault.tests and all((ROOT / test.split("::")[0]).exists() for test in fault.tests), fault.name


def test_the_lists_cover_every_kind_and_no_fault_twice():
    kinds = Counter(fault.kind for fault in FAULTS)
    assert set(kinds) == set(KINDS)
    assert sum(kinds.values()) - kinds["report"] >= 100
    assert max(Counter((fault.path, fault.old, fault.new) for fault in FAULTS).values()) == 1
    assert not [fault.name for fault in FAULTS if fault.survives and fault.kind in ("data", "identity")]


def test_the_driver_tells_a_noticed_fault_from_a_survivor(toy_checkout):
    tmp_path = toy_checkout.root
    (tmp_path / "work.py").write_text("def double(x):\n    return 2 * x\n\n\ndef half(x):\n    return x / 2\n")
    (tmp_path / "test_work.py").write_text("from work import double\n\n\ndef test_it():\n    assert double(3) == 6\n")
    for line, planted, seen in (("2 * x", "3 * x", True), ("x / 2", "x / 3", False)):
        fault = Fault("toy-1", "work.py", "library", ("test_work.py",), line, planted)
        assert noticed(fault, toy_checkout)[0] is seen
        assert line in (tmp_path / "work.py").read_text()  # as before


def test_a_failure_that_the_fault_does_not_cause_is_no_notice(toy_checkout):
    tmp_path = toy_checkout.root
    (tmp_path / "work.py").write_text("x = 1\n")
    (tmp_path / "test_work.py").write_text("def test_it():\n    assert False\n")
    with pytest.raises(AssertionError, match="without the fault too"):
        noticed(Fault("toy-1", "work.py", "library", ("test_work.py",), "x = 1", "x = 2"), toy_checkout)


LIST = """
# a comment

a.py  data  tests/a.py tests/b.py
-     x = train
-     y = 1
+     x = test
+     y = 1

b.py  time  t.py
- a
+ b
? because
"""


def test_lists_are_read_as_written():
    one, two = parse(LIST, "toy")
    assert one.tests == ("tests/a.py", "tests/b.py")
    assert (one.old, one.new) == ("    x = train\n    y = 1", "    x = test\n    y = 1")
    assert (two.name, two.kind, two.survives) == ("toy-2", "time", "because")
    with pytest.raises(ValueError, match="unknown kind 'speed'"):
        parse("a.py speed t.py\n- a\n+ b\n", "toy")

"""The key of a cell: each thing that it covers changes it; and which finished cell is replayed."""

import dataclasses
import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlexp import __version__, journal, record, study
from mlexp.harness import grid, measure
from mlexp.harness.keys import Keys
from mlexp.harness.options import Others
from mlexp.harness.plan import PLAN, Plan
from mlexp.harness.session import STATE, State

pytest_plugins = ["pytester"]


def parts() -> dict[str, object]:
    """Everything that a key is made of."""
    return {
        "name": "benches/q/bench_q.py::test_q[a]",
        "machine": "a CPU, 2 threads",
        "device": "cpu",
        "dtype": "float32",
        "scale": "quick",
        "settings": '{"size":3}',
        "by_plugins": {"--gpu": "0"},
        "inputs": {"prompts_hash": "ab"},
        "source": [[["bench_q.py", "12"]], {"numpy": "2.0"}],
        "plugins": (Path("conftest.py"),),
    }


def key_of(p: dict) -> str:
    run = SimpleNamespace(device=p["device"], dtype=p["dtype"], scale=p["scale"], others=Others({}, p["by_plugins"]))
    keys = SimpleNamespace(
        run=run,
        settings_text=lambda plan: p["settings"],
        source=lambda path, plugins: [path.name, *p["source"], [file.name for file in plugins]],
    )
    plan = SimpleNamespace(name=p["name"], inputs=p["inputs"], path=Path("bench_q.py"), plugins=p["plugins"])
    return Keys.key_on(keys, plan, p["machine"])


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("name", "benches/q/bench_q.py::test_q[b]"),
        ("machine", "a CPU, 1 thread"),
        ("device", "cuda"),
        ("dtype", "bfloat16"),
        ("scale", "full"),
        ("settings", '{"size":4}'),
        ("by_plugins", {}),
        ("inputs", {"prompts_hash": "ac"}),
        ("source", [[["bench_q.py", "13"]], {"numpy": "2.0"}]),
        ("source", [[["bench_q.py", "12"]], {"numpy": "2.1"}]),
        ("plugins", ()),
    ],
)
def test_each_part_of_the_key_changes_it(name, other):
    assert key_of(parts()) == key_of(parts())
    assert key_of(parts() | {name: other}) != key_of(parts())


def test_no_part_is_forgotten_here():
    """The parameters of this test are all parts; a part that `key_on` gains fails `key_of` above."""
    tested = {args[0] for args in test_each_part_of_the_key_changes_it.pytestmark[0].args[1]}
    assert tested == set(parts())


@pytest.fixture
def toy_plan(toy):
    """Plan and state of the toy's first cell, with what the run made of them."""

    def run(*args):
        found: list[tuple[State, Plan]] = []

        class Look:
            def pytest_collection_finish(self, session):
                found.append((session.config.stash[STATE], session.items[0].stash[PLAN]))

        toy.pytester.inline_run("benches", *args, "-p", "no:cacheprovider", "-k", "m_one-seed1-base", plugins=[Look()])
        return found[0]

    return run


@pytest.mark.parametrize("part", ["files", "versions", "mlexp"])
def test_source_is_files_by_content_and_packages_by_version(toy, toy_plan, monkeypatch, part):
    toy.edit("import os,", "import numpy, os,")
    state, plan = toy_plan()
    (files, versions) = state.keys._source(plan.path, plan.plugins)
    assert ["bench_toy.py", hash_of(toy.bench)] in files
    assert versions["numpy"] == measure.version("numpy") and versions["mlexp"] == __version__
    if part == "files":
        toy.edit("things=len(things)", "things=len(things) ")
    elif part == "versions":
        monkeypatch.setattr("mlexp.harness.identity.distribution", lambda name: "0.0")
    else:
        monkeypatch.setattr("mlexp.harness.keys.__version__", "0.0")
    assert state.keys._source(plan.path, plan.plugins) != [files, versions]


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def test_settings_and_the_project_s_options_are_in_one_text():
    @dataclasses.dataclass(frozen=True)
    class Real:
        arms: tuple[str, ...] = ("a", "b")
        size: int = 3

    plan = SimpleNamespace(settings=Real(), study=study.of(SimpleNamespace(AXES={"arm": "arms"})))

    def text(options):
        return Keys.settings_text(SimpleNamespace(run=SimpleNamespace(others=Others(options, {}))), plan)

    assert text({}) == '{"size":3}' == grid.canonical({"size": 3})  # an axis' values are no part of a cell
    assert text({"--lr": 0.5}) == '{"--lr":0.5,"size":3}'


@pytest.mark.parametrize("changed", ["imports", "packages", None])
def test_the_newest_entry_that_still_holds_is_replayed(monkeypatch, tmp_path, changed):
    (tmp_path / "lab.py").write_text("x = 1")
    monkeypatch.setattr("mlexp.harness.identity.distribution", {"numpy": "2.0"}.get)
    now = {"imports": {"lab.py": hash_of(tmp_path / "lab.py")}, "packages": {"numpy": "2.0"}}
    old, new = (entry(when, **now) for when in ("old", "new"))
    if changed:
        other = {"imports": {"lab.py": "0" * 16}, "packages": {"numpy": "1.0"}}[changed]
        new = entry("new", **(now | {changed: other}))
    keys = Keys(SimpleNamespace(root=tmp_path))
    state = SimpleNamespace(
        results=SimpleNamespace(finished={"k": [old, new]}), keys=keys, _is_lost=lambda entry: False
    )
    declared = study.of(SimpleNamespace())
    plan = SimpleNamespace(key="k", elsewhere=None, is_journaled=False, study=declared)
    State.take_up(state, plan)
    assert plan.is_journaled and plan.elsewhere.record == {
        "status": "passed", "when": "old" if changed else "new", "replayed": True,
    }  # fmt: skip
    other = SimpleNamespace(key="another", elsewhere=None, is_journaled=False)
    State.take_up(state, other)
    assert other.elsewhere is None and not other.is_journaled


def entry(when, imports, packages):
    record = {"status": "passed", "when": when, "replayed": False}
    return journal.Entry("c", "k", "q", {}, record, [1.0], imports=imports, packages=packages)


def test_a_context_is_all_that_two_records_must_share():
    """Design, "Words": machine, device, dtype, scale, weights, corpus; and the settings."""
    assert set(record.CONTEXT) == {"machine", "device", "dtype", "scale", "settings", "weights", "corpus"}

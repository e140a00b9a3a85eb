"""What the key covers of the code: all that Python's own import system would run, and nothing else."""

import hashlib
import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlexp.harness.identity import Sources, cell_key, distribution, file_hash, hashed, packages, unchanged

ROOT = Path(__file__).parents[2]
FILES = {
    "pack/__init__.py": "VERSION = 1\n",
    "pack/sub/__init__.py": "from .near import X\n",
    "pack/sub/near.py": "from .. import other\nX = 1\n",
    "pack/sub/lazy.py": "Y = 1\n",
    "pack/sub/kernel.cu": "// source\n",
    "pack/other.py": "import json\n",
    "pack/unrelated.py": "Z = 1\n",
    "pack/named.py": "N = 1\n",
    "spaces/deep/in_namespace.py": "S = 1\n",
    "sibling/elsewhere/__init__.py": "E = 1\n",
    "benches/conftest.py": "import for_fixtures\n",
    "for_fixtures.py": "F = 1\n",
    "benches/q/bench_q.py": (
        "from pack.sub import X\nimport numpy as np\nimport spaces.deep.in_namespace\nimport elsewhere\n"
        "def f():\n    from pack.sub.lazy import Y\n    import beside\n    importlib.import_module('pack.named')\n"
    ),
    "benches/q/beside.py": "B = 1\n",
    "benches/q/report.py": "R = 1\n",
    "benches/q/README.md": "words\n",
    "benches/q/prompts.jsonl": "{}\n",
}
UNUSED = {"pack/unrelated.py", "benches/q/report.py", "benches/q/README.md"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)

    class Editable:
        """As setuptools installs a project from its folder: a finder of its own instead of an entry on the path."""

        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "elsewhere":
                return importlib.util.spec_from_file_location(name, tmp_path / "sibling/elsewhere/__init__.py")
            return None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Editable])
    return tmp_path


def found(project, **how):
    files, others = Sources().of(project / "benches/q/bench_q.py", [project / "benches/conftest.py"], **how)
    return files, others


def test_the_files_that_a_cell_can_run(project):
    files, others = found(project)
    assert {path.relative_to(project).as_posix() for path in files} == set(FILES) - UNUSED
    assert "numpy" in others and packages(others)["numpy"] == distribution("numpy")
    assert not {"pack", "spaces", "elsewhere", "beside"} & others


def test_it_imports_nothing(project):
    before = set(sys.modules)
    found(project)
    assert not {name for name in set(sys.modules) - before if name.startswith(("pack", "spaces", "elsewhere"))}


NAMES = itertools.count()
FORMS = (
    "import {0}",
    "import json, {0}",
    "from {0} import X",
    "def f():\n    import {0}",
    "try:\n    import {0}\nfinally: pass",
)


@given(data=st.data(), size=st.integers(1, 6))
def test_whatever_python_loads_is_found(tmp_path_factory, data, size):
    """The referee is the import system: what is in sys.modules after a bench file was run."""
    folder, top = tmp_path_factory.mktemp("graph"), f"graph{next(NAMES)}"
    depth = [data.draw(st.sampled_from(("", "inner", "inner.deep"))) for _ in range(size)]
    names = [".".join(filter(None, (top, where, f"m{i}"))) for i, where in enumerate(depth)]
    for i, name in enumerate(names):
        file = folder / (name.replace(".", "/") + ".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        for package in list(file.parents)[: name.count(".")]:
            if data.draw(st.booleans()):
                (package / "__init__.py").write_text("")
        later = data.draw(st.lists(st.sampled_from(names[i + 1 :]), unique=True)) if names[i + 1 :] else []
        lines = [data.draw(st.sampled_from(FORMS)).format(other) for other in later]
        file.write_text("\n".join(["X = 1", *lines, "f() if 'f' in globals() else None"]))
    bench = folder / "benches" / "q" / "bench_q.py"
    bench.parent.mkdir(parents=True)
    bench.write_text(f"from {names[0]} import X\n")
    sys.path.insert(0, str(folder))
    try:
        files, _ = Sources().of(bench)
        spec = importlib.util.spec_from_file_location(f"{top}_bench", bench)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        loaded = [sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == top]
    finally:
        sys.path.remove(str(folder))
    assert {Path(module.__file__) for module in loaded if module.__file__} <= set(files)


def test_a_name_that_is_computed_is_seen_when_it_is_imported(project):
    registry = "import importlib\ndef load(name):\n    return importlib.import_module('pack.' + name)\n"
    (project / "pack/other.py").write_text(registry)
    bench, plain = project / "benches/q/bench_q.py", importlib.import_module
    sources = Sources()
    end = sources.watch()
    try:
        other = plain("pack.other")
        assert project / "pack/unrelated.py" not in sources.of(bench, seen=True)[0]
        other.load("unrelated")
        other.load("unrelated")  # a second time it is in sys.modules already
    finally:
        end()
        for name in [name for name in sys.modules if name.split(".")[0] == "pack"]:
            del sys.modules[name]
    assert importlib.import_module is plain
    assert project / "pack/unrelated.py" in sources.of(bench, seen=True)[0]
    assert project / "pack/unrelated.py" not in sources.of(bench)[0]  # it could not be known


def test_what_a_cell_imported_must_be_as_it_was(project):
    files, versions = hashed([project / "pack/other.py"], project), {"numpy": distribution("numpy")}
    assert files.keys() == {"pack/other.py"} and unchanged(files, versions, project)
    assert not unchanged(files, {"numpy": "0.1"}, project)
    assert not unchanged(files, {"no-such-distribution": "1"}, project)
    (project / "pack/other.py").write_text("import json\nO = 2\n")
    assert not unchanged(files, versions, project)
    (project / "pack/other.py").unlink()
    assert not unchanged(files, versions, project)


def test_what_an_installed_package_writes_and_loads_is_no_source(project, monkeypatch):
    """torch.compile keeps its code in files of a cache, under module names of its own."""
    bench, written = project / "benches/q/bench_q.py", project / "written.py"
    written.write_text("W = 1\n")
    sources = Sources()
    for name, expected in (("numpy.written", False), ("written", True)):
        spec = importlib.util.spec_from_file_location(name, written)
        monkeypatch.setitem(sys.modules, name, importlib.util.module_from_spec(spec))
        sources.loaded_by(bench)
        assert (written in sources.of(bench, seen=True)[0]) == expected
    written.unlink()
    assert hashed([written], project) == {} and written in sources.of(bench, seen=True)[0]


@pytest.mark.parametrize(
    ("origin", "contents"),
    [
        (None, False),  # from an index: the version says what it is
        ('{"url": "file:///lab", "dir_info": {}}', True),  # from a folder: built again under the same version
        ('{"url": "https://host/lab.tar.gz", "archive_info": {}}', True),
        ('{"url": "file:///lab", "dir_info": {"editable": true}}', False),  # its files are sources themselves
    ],
)
def test_a_local_installation_counts_by_its_contents_too(tmp_path, monkeypatch, origin, contents):
    found = {}
    for place, record in (("one", "lab.py,sha256=aa,1"), ("two", "lab.py,sha256=bb,1")):
        info = tmp_path / place / "lab-1.5.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab\nVersion: 1.5\n")
        (info / "RECORD").write_text(record)
        if origin:
            (info / "direct_url.json").write_text(origin)
        monkeypatch.setattr(sys, "path", [str(tmp_path / place), *sys.path])
        found[place] = distribution.__wrapped__("lab")
        assert found[place].startswith("1.5")
    assert (found["one"] != found["two"]) == contents
    assert distribution.__wrapped__("no-such-distribution") is None


@given(st.lists(st.binary(max_size=40), min_size=2, max_size=2, unique=True))
def test_files_are_told_apart_by_64_bits_of_their_contents(tmp_path_factory, contents):
    folder = tmp_path_factory.mktemp("hashed")
    for name, data in zip("ab", contents, strict=True):
        (folder / name).write_bytes(data)
    one, other = (file_hash(folder / name) for name in "ab")
    assert one == hashlib.sha256(contents[0]).hexdigest()[:16] != other


@given(st.data())
def test_keys_of_other_parts_are_other_keys_and_the_order_of_a_mapping_is_none(data):
    parts = data.draw(st.lists(st.integers() | st.text(max_size=3), min_size=1, max_size=3))
    mapping = data.draw(st.dictionaries(st.text(max_size=2), st.integers(), min_size=1, max_size=3))
    key = cell_key(*parts, mapping)
    assert len(key) == 16 and key == cell_key(*parts, dict(reversed(mapping.items())))
    assert key != cell_key(*parts, mapping | {"another": 1}) and key != cell_key(*parts[:-1], mapping)


def test_the_standard_library_is_known_before_loads_are_noted(tmp_path):
    """sysconfig imports a module the first time that it is asked, which asks again whose code that is: on Python 3.13,
    where nobody else had asked before, that ended the session."""
    (tmp_path / "own.py").write_text("import sysconfig; print(sysconfig.get_paths()['stdlib'])")
    code = "from mlexp.harness.identity import Sources; end = Sources().watch(); import own; end()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.strip().endswith(f"python3.{sys.version_info.minor}"), done.stderr

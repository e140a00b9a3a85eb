"""What is installed: the wheel's name, what it requires plainly and by extra, what documents install."""

import email
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import mlexp
from mlexp import extras

from .command import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = {"pytest", "pytest-benchmark", "numpy", "scipy", "pandas", "matplotlib", "psutil", "jinja2"}
BRINGS = {"maze_dataset": "maze-dataset"}  # module -> distribution, where they differ


def names(requirements):
    return {Requirement(text).name for text in requirements}


def test_a_plain_install_is_the_harness_alone():
    assert names(PROJECT["dependencies"]) == CORE


MOST, MOST_BYTES = 45, 500e6  # of a plain install: distributions, and what they take on disk


def brought_by(requirements):
    """The distributions that these requirements bring, by name, as they are installed here."""
    found, todo = {}, list(requirements)
    while todo:
        wanted = Requirement(todo.pop())
        if wanted.name not in found and (not wanted.marker or wanted.marker.evaluate({"extra": ""})):
            found[wanted.name] = metadata.distribution(wanted.name)
            todo += found[wanted.name].requires or []
    return found


def bytes_of(distribution):
    return sum(path.stat().st_size for file in distribution.files or () if (path := Path(file.locate())).is_file())


def test_a_plain_install_is_light():
    brought = brought_by(PROJECT["dependencies"])
    assert set(brought) >= CORE and len(brought) + 1 <= MOST, sorted(brought)
    assert 50e6 < sum(map(bytes_of, brought.values())) < MOST_BYTES


def test_every_extra_brings_what_its_parts_need():
    optional = {extra: names(wanted) for extra, wanted in PROJECT["optional-dependencies"].items()}
    assert set(optional) == {"decoding", "maze", "studies", "cluster", "parquet", "triton", "ctranslate2"}
    assert PROJECT["optional-dependencies"]["studies"] == ["pytest-mlexp[decoding,maze]"]
    optional["studies"] = optional["decoding"] | optional["maze"]
    for part, libraries in extras.NEEDS.items():
        extra = extras.EXTRAS.get(part, extras.OTHERWISE)
        assert {BRINGS.get(library, library) for library in libraries} <= optional[extra], part
    for library in ("ray", "pyarrow", "triton"):
        assert library in optional[extras.EXTRAS[library]]


def test_the_name_is_the_one_that_errors_tell():
    assert PROJECT["name"] == extras.DISTRIBUTION == "pytest-mlexp"


def documents():
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    suffixes = (".md", ".py", ".toml", ".yml", ".yaml", ".ini", ".txt", ".cfg")
    return [ROOT / name for name in files.stdout.splitlines() if name.endswith(suffixes) and (ROOT / name).is_file()]


BARE = re.compile(
    r"(pip|uv|pipx)\b[^\n`]*?\binstall\b[^\n`;&|]*?[\s'\"](?<!pytest-)mlexp(\[|[\s'\"=<>;)`]|$)", re.MULTILINE
)


def test_no_document_installs_somebody_else_s_mlexp():
    assert [path for path in documents() if path.name != "test_distribution.py" and BARE.search(path.read_text())] == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("pip install mlexp", True),
        ("pip install -q 'mlexp[cluster]'", True),
        ("uv pip install mlexp==0.1", True),
        ("pip install pytest-mlexp", False),
        ('pip install "pytest-mlexp[maze]"', False),
        ("pip install pytest_mlexp-0.1.0-py3-none-any.whl", False),
        ("pip install -e .; mlexp report", False),
    ],
)
def test_a_bare_name_is_seen(text, wrong):
    assert bool(BARE.search(text)) == wrong


@pytest.mark.slow
def test_the_wheel_says_the_same(tmp_path):
    """Built as pip builds it: name, version, console script, requirements; all modules and data files are in it."""
    pytest.importorskip("setuptools", "77")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w"]
    listed = subprocess.run(["git", "ls-files", "-z", "--", "mlexp", "pyproject.toml", "README.md", "LICENSE"],
                            cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")  # fmt: skip
    for name in filter(None, listed):  # a copy: building leaves folders beside the source
        target = tmp_path / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    subprocess.run([*build, str(tmp_path / "wheels"), str(tmp_path / "source")], check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheels").glob("pytest_mlexp-*.whl")
    with zipfile.ZipFile(wheel) as content:
        files = content.namelist()
        (metadata,) = [name for name in files if name.endswith(".dist-info/METADATA")]
        told = email.message_from_bytes(content.read(metadata))
        (scripts,) = [name for name in files if name.endswith("entry_points.txt")]
        points = content.read(scripts).decode()
    required = [Requirement(text) for text in told.get_all("Requires-Dist")]
    assert (told["Name"], told["Version"]) == ("pytest-mlexp", mlexp.__version__)
    assert {wanted.name for wanted in required if not wanted.marker or wanted.marker.evaluate({"extra": ""})} == CORE
    assert "Framework :: Pytest" in told.get_all("Classifier")
    assert "mlexp = mlexp.cli:main" in points and "pytest11" not in points  # opt-in: no entry point of pytest's
    assert {name for name in filter(None, listed) if name.startswith("mlexp/")} <= set(files)

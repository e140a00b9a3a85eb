"""The house as it was drawn: who may import whom, and what stands where."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUBJECTS = ("decoding", "maze", "attention", "eqprop")
# What the harness writes, the analysis reads, a study says.
CONTRACT = {"mlexp.journal", "mlexp.record", "mlexp.series", "mlexp.study"}
SHARED = {"mlexp.training", "mlexp.flops", "mlexp.store", "mlexp.text", "mlexp.memory", "mlexp.extras"}  # by subjects

# A module may import, of the project, what its row names (a package stands for all in it). Own package: always.
ARROWS = {
    "mlexp.extras": set(),
    "mlexp.record": set(),
    "mlexp.settings": set(),
    "mlexp.study": {"mlexp.record"},
    "mlexp.memory": set(),
    "mlexp.journal": {"mlexp.store"},
    "mlexp.series": {"mlexp.store"},
    "mlexp.flops": set(),
    "mlexp.training": {"mlexp.memory"},
    "mlexp.store": set(),
    "mlexp.text": {"mlexp.store", "mlexp.extras"},
    **{f"mlexp.{subject}": SHARED for subject in SUBJECTS},
    "mlexp.harness": {"mlexp.flops", "mlexp.memory", "mlexp.extras", "mlexp.settings"} | CONTRACT,
    "mlexp.analysis": {"mlexp.store", "mlexp.extras"} | CONTRACT,
    "mlexp.ab": {"mlexp.harness.peer", "mlexp.analysis"} | CONTRACT,
    "mlexp.commands": {"mlexp.harness", "mlexp.analysis"} | CONTRACT,
    "mlexp.cli": {"mlexp.extras", "mlexp.harness.sweep", "mlexp.analysis", "mlexp.ab", "mlexp.commands"},
    "mlexp.__main__": {"mlexp.cli"},
    "mlexp": {"mlexp.extras", "mlexp.analysis", "mlexp.harness.cell", "mlexp.record", "mlexp.settings", "mlexp.study"},
    # all but the first for type checkers alone: test_public_api.py holds that importing it loads none of them
    "benches.reading": {"mlexp.analysis", "mlexp.study"},
    "benches.study": {f"mlexp.{subject}" for subject in SUBJECTS}
    | {"mlexp.settings", "mlexp.study"},  # and no torch, see below
    "benches.bench": {f"mlexp.{subject}" for subject in SUBJECTS} | SHARED | {"mlexp.settings", "mlexp.study"},
}
READING = ("report", "figures", "cost", "steps")  # and all in original/: they read records
IN_ESTIMATES = {"mlexp.analysis"}  # what the `estimates` of a study may import besides
THE_HARNESS_ITSELF = {"mlexp.harness", "mlexp.ab"}  # what the bench files of benches/harness may import besides
STANDARD_LIBRARY_ALONE = ("study.py", "record.py", "journal.py", "memory.py", "store.py", "extras.py")
LINES = 60  # of a function
LONGER = {
    ("triton_device.py", "fork_tree"),  # one kernel is one function
    ("bench_maze_scaling.py", "test_train"),  # names its thirty outcomes
    ("outputs.py", "report"),  # a text
}

MODULES = sorted(p for folder in ("mlexp", "benches") for p in (ROOT / folder).rglob("*.py"))


def kind(path: Path) -> str:
    """The row of ARROWS that a file falls under."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "benches":
        reading = path.stem in READING or path.parent.name == "original"
        return "benches.reading" if reading else "benches.study" if path.stem == "study" else "benches.bench"
    return ".".join(parts[:2]) if parts[1:] != ("__init__",) else "mlexp"


def nodes(tree: ast.AST, without: str = "") -> Iterator[ast.AST]:
    """All nodes of a tree, but those of functions of that name."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.FunctionDef) and node.name == without):
            yield node
            yield from nodes(node, without)


def imports(path: Path, without: str = "") -> set[str]:
    """Dotted names that a file imports, relative ones made absolute, within functions too (but those of that name)."""
    package = list(path.relative_to(ROOT).parent.parts)
    found = set()
    for node in nodes(ast.parse(path.read_text()), without):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def forbidden(path: Path) -> set[str]:
    """What a file imports of the project and may not."""
    row = kind(path)
    allowed = ARROWS[row] | {row if row != "mlexp" else ""}
    if path.parent.name == "harness" and row == "benches.bench":
        allowed = allowed | THE_HARNESS_ITSELF
    if row in ("benches.bench", "benches.study"):
        outside = not_allowed(imports(path, without="estimates"), allowed)
        return outside | not_allowed(imports(path), allowed | IN_ESTIMATES)
    return not_allowed(imports(path), allowed)


def not_allowed(names: set[str], allowed: set[str]) -> set[str]:
    named = {name for name in names if re.match(r"(mlexp|benches|tests)\b", name)}
    named -= {"mlexp", "mlexp.__version__"}
    split = {name for name in named if not name.removeprefix("mlexp.").count(".") and name.startswith("mlexp.")}
    return {
        name
        for name in named
        if not any(name == a or name.startswith(f"{a}.") for a in allowed if a)
        and not (name in split and name in allowed)
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_to_the_right(path):
    assert not forbidden(path)


def test_a_wrong_arrow_is_seen(tmp_path, monkeypatch):
    """The check itself: a subject that imports the harness, a wing that imports the other, a study that reads files."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    for name, text in {
        "mlexp/decoding/bad.py": "from mlexp.harness import cell",
        "mlexp/harness/bad.py": "def f():\n    from ..analysis import stats",
        "mlexp/analysis/bad.py": "from mlexp.harness.results import row",
        "mlexp/study.py": "from mlexp import journal",
        "benches/x/bench_x.py": "import mlexp.record",
        "benches/x/bench_y.py": "def test_y():\n    from mlexp.analysis import stats",
        "benches/x/study.py": "from mlexp.analysis import stats\ndef estimates(records, out):\n    pass",
        "benches/harness/study.py": "from mlexp.harness import cell",
        "benches/x/report.py": "from mlexp.decoding import tree",
        "benches/x/original/outputs.py": "from mlexp.maze import data",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        assert forbidden(path), name


def test_estimates_may_read_records(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "benches/x/study.py"
    path.parent.mkdir(parents=True)
    path.write_text("from mlexp.study import Study\ndef estimates(records, out):\n    from mlexp.analysis import stats")
    assert not forbidden(path)


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ALONE)
def test_the_contract_is_standard_library(name):
    others = {name.partition(".")[0] for name in imports(ROOT / "mlexp" / name)}
    assert others - set(sys.stdlib_module_names) <= {"mlexp"}


def declares(file: Path) -> bool:
    """Whether a report finds the study of its folder in this file."""
    return file.name == "study.py" or not file.with_name("study.py").exists()


STUDIES = [file for file in MODULES if kind(file) in ("benches.study", "benches.bench") and file.stem != "tune"]
LOADS = "import sys, pathlib; from mlexp.study import load; load(pathlib.Path(sys.argv[1])); print(*sys.modules)"


def loaded(file: Path) -> set[str]:
    """The modules that are there once a fresh interpreter has loaded a file of a study."""
    done = subprocess.run([sys.executable, "-c", LOADS, file], cwd=ROOT, check=True, capture_output=True, text=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("file", [f for f in STUDIES if declares(f)], ids=lambda file: file.parent.name)
def test_a_declaration_is_read_without_torch(file):
    """`mlexp report` loads it, and so does the collection of cells."""
    assert not {"torch", "transformers", "pandas"} & loaded(file)


@pytest.mark.parametrize("line", ["import torch", "from mlexp.eqprop import train"])
def test_a_study_that_imports_torch_is_seen(line, tmp_path):
    (tmp_path / "study.py").write_text(f"{line}\n")
    assert "torch" in loaded(tmp_path / "study.py")


def test_no_function_is_long():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (path.name, node.name) not in LONGER:
                assert node.end_lineno - node.lineno < LINES, f"{path.relative_to(ROOT)}: {node.name}"


def glossed_tree() -> dict[str, str]:
    """Path -> gloss, from the tree in CONTRIBUTING.md: two spaces a level, folders end in a slash."""
    block = re.search(r"<!-- tree -->\n```\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[1]
    stack, found = [], {}
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, gloss = line.strip().partition("  ")
        stack[depth:] = [name]
        found["".join(stack)] = gloss.strip()
    return found


def test_the_tree_in_contributing_is_the_disk():
    tree = glossed_tree()
    for path, gloss in tree.items():
        assert (ROOT / path).exists(), f"CONTRIBUTING.md shows {path}, which is not there"
        assert gloss, f"{path} has no gloss"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    files = {Path(line) for line in listed.stdout.splitlines() if (ROOT / line).exists()}
    folders = {f"{file.parts[0]}/" for file in files if len(file.parts) > 1}
    top = folders | {str(file) for file in files if len(file.parts) == 1}
    packages = {f"{file.parent}/" for file in files if file.parts[0] in ("benches", "mlexp") and len(file.parts) == 3}
    modules = {str(file) for file in files if file.parts[0] == "mlexp" and len(file.parts) == 2}
    assert (top | packages | modules) - set(tree) == {".gitignore"}


def test_no_folder_bears_an_axis_value():
    """`-k gpt2_xl` must select cells, never a folder."""
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "benches", "--collect-only", "-q", "-p", "no:cacheprovider"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    ids = [line for line in collected.stdout.splitlines() if "::" in line]
    assert ids, collected.stdout + collected.stderr
    values = {value for line in ids for value in line.partition("[")[2].rstrip("]").split("-")}
    assert all(re.fullmatch("[a-z0-9_]+", value) for value in values)
    for line in ids:
        path = line.partition("[")[0]
        assert not [value for value in values if value in path], line
    assert not [marker for marker in ("needs_gpu", "slow") for value in values if marker in value]


def test_every_file_says_what_it_is():
    for path in MODULES:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_conftest_imports_no_torch():
    code = "import conftest, sys; assert not {'torch', 'transformers', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)

"""The house as it was drawn: who may import whom, and what stands where."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUBJECTS = ("decoding", "maze", "attention", "eqprop")
CONTRACT = {"mlexp.journal", "mlexp.record"}
SHARED = {"mlexp.training", "mlexp.flops", "mlexp.store", "mlexp.text", "mlexp.memory"}  # by subjects

# A module may import, of the project, what its row names (a package stands for all in it). Own package: always.
ARROWS = {
    "mlexp.record": set(),
    "mlexp.memory": set(),
    "mlexp.journal": set(),
    "mlexp.flops": set(),
    "mlexp.training": {"mlexp.memory"},
    "mlexp.store": set(),
    "mlexp.text": {"mlexp.store"},
    **{f"mlexp.{subject}": SHARED for subject in SUBJECTS},
    "mlexp.harness": {"mlexp.flops", "mlexp.memory"} | CONTRACT,
    "mlexp.analysis": CONTRACT,
    "mlexp.ab": {"mlexp.harness.peer", "mlexp.analysis"} | CONTRACT,
    "mlexp.cli": {"mlexp.harness.sweep", "mlexp.analysis", "mlexp.ab"},
    "mlexp.__main__": {"mlexp.cli"},
    "mlexp": set(),
    "benches.report": {"mlexp.analysis"},
    "benches.bench": {f"mlexp.{subject}" for subject in SUBJECTS} | SHARED,
}
THE_RULER_ITSELF = {"mlexp.harness", "mlexp.analysis", "mlexp.ab"}  # what benches/harness may import besides

MODULES = sorted(p for folder in ("mlexp", "benches") for p in (ROOT / folder).rglob("*.py"))


def kind(path: Path) -> str:
    """The row of ARROWS that a file falls under."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "benches":
        return "benches.report" if path.stem == "report" else "benches.bench"
    return ".".join(parts[:2]) if parts[1:] != ("__init__",) else "mlexp"


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, relative ones made absolute, within functions too."""
    package = list(path.relative_to(ROOT).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def forbidden(path: Path) -> set[str]:
    row = kind(path)
    allowed = ARROWS[row] | {row if row != "mlexp" else ""}
    if path.parent.name == "harness" and row.startswith("benches"):
        allowed = allowed | THE_RULER_ITSELF
    named = {name for name in imports(path) if re.match(r"(mlexp|benches|tests)\b", name)}
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
    """The check itself: a subject that imports the ruler, and a wing that imports the other."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    for name, text in {
        "mlexp/decoding/bad.py": "from mlexp.harness import cell",
        "mlexp/harness/bad.py": "def f():\n    from ..analysis import stats",
        "benches/x/bench_x.py": "import mlexp.record",
        "benches/x/report.py": "from mlexp.decoding import tree",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        assert forbidden(path), name


def glossed_tree() -> dict[str, str]:
    """Path -> gloss, from the tree in the README: two spaces a level, folders end in a slash."""
    block = re.search(r"<!-- tree -->\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    stack, found = [], {}
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, gloss = line.strip().partition("  ")
        stack[depth:] = [name]
        found["".join(stack)] = gloss.strip()
    return found


def test_the_readme_s_tree_is_the_disk():
    tree = glossed_tree()
    for path, gloss in tree.items():
        assert (ROOT / path).exists(), f"the README shows {path}, which is not there"
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

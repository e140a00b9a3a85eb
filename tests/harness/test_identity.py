"""The source hash: it follows imports wherever they stand, and looks at nothing else."""

import pytest

from mlexp.harness.identity import source_hash, sources

FILES = {
    "pack/__init__.py": "VERSION = 1\n",
    "pack/sub/__init__.py": "from .near import X\n",
    "pack/sub/near.py": "from .. import other\nX = 1\n",
    "pack/sub/lazy.py": "Y = 1\n",
    "pack/sub/kernel.cu": "// source\n",
    "pack/other.py": "import json\n",
    "pack/unrelated.py": "Z = 1\n",
    "benches/q/bench_q.py": "from pack.sub import X\ndef f():\n    from pack.sub.lazy import Y\n    import beside\n",
    "benches/q/beside.py": "B = 1\n",
    "benches/q/report.py": "R = 1\n",
    "benches/q/README.md": "words\n",
    "benches/q/prompts.jsonl": "{}\n",
}
USED = {
    *("pack/sub/__init__.py", "pack/sub/near.py", "pack/sub/lazy.py", "pack/sub/kernel.cu", "pack/other.py"),
    *("benches/q/bench_q.py", "benches/q/beside.py", "benches/q/prompts.jsonl"),
}


@pytest.fixture
def project(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_files_that_a_cell_can_run(project):
    found = sources(project / "benches/q/bench_q.py", project)
    assert {str(path.relative_to(project)) for path in found} == USED


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_hash_changes_with_them_and_with_nothing_else(project, name):
    bench = project / "benches/q/bench_q.py"
    before = source_hash(bench, project)
    with open(project / name, "a") as file:
        file.write("# more\n" if name.endswith(".py") else "\n")
    assert (source_hash(bench, project) != before) == (name in USED)

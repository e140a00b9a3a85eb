"""What a user sees of a library that is not installed: one line with the extra; and all that works without any."""

import json
import os
import subprocess
import sys

import pytest

from mlexp import extras

from .bare import hide_extras
from .command import ROOT
from .needs import needs

pytest_plugins = ["pytester"]

QUESTION = '''
"""Is a stable sort slower?"""
from dataclasses import dataclass
import numpy as np
from mlexp.settings import Settings
from mlexp.study import Above, At, Claim, Study, ratio

@dataclass(frozen=True)
class Sizes(Settings):
    seeds: tuple[int, ...] = (1, 2, 3)
    kinds: tuple[str, ...] = ("quicksort", "stable")
    n: int = 2000

STUDY = Study(
    asks="Is a stable sort slower?", arm="kind", arms=("quicksort", "stable"), baseline="quicksort",
    replicates=("seed",), outcome="wall_s", settings={"smoke": Sizes(), "quick": Sizes(), "full": Sizes()},
    axes={"seed": "seeds", "kind": "kinds"}, metrics={"disorder": ("count", "lower", "pairs out of order")},
    claims={"H1": Claim("Stability costs time", Above(At(ratio("stable", "quicksort")), 1.0), primary=True)},
)

def test_sort(cell, seed, kind):
    numbers = np.random.default_rng(cell.seed).random(cell.settings.n)
    found = cell.time(lambda: np.sort(numbers, kind=kind), rounds=3)
    cell.record(disorder=int((np.diff(found) < 0).sum()))
    cell.series(first=found[:4])
'''
CELLS = 6


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """Runs `python -m WORDS` in a project with one question, as a core install would; returns what has run."""
    hide_extras(tmp_path / "hiding", monkeypatch)
    folder = tmp_path / "project" / "benches" / "sorting"
    folder.mkdir(parents=True)
    (folder / "bench_sorting.py").write_text(QUESTION)
    (tmp_path / "project" / "pytest.ini").write_text("[pytest]\naddopts = -p mlexp.harness.plugin\n")

    def run(*words, where=tmp_path / "project"):
        words = [sys.executable, *(words if words[0] == "-c" else ("-m", *words))]
        return subprocess.run(words, cwd=where, capture_output=True, text=True, check=False)

    return run


def measured(place, name):
    return json.loads((place / "project" / name).read_text())["benchmarks"]


def test_the_harness_measures_and_reports_without_any_extra(bare, tmp_path):
    done = bare("pytest", "benches", "-q", "--benchmark-json", "out.json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = measured(tmp_path, "out.json")
    assert len(found) == CELLS
    for bench in found:
        assert bench["stats"]["median"] > 0 and bench["extra_info"]["peak_bytes"] is not None
        assert bench["extra_info"]["flops"] is None and bench["extra_info"]["disorder"] == 0
    reported = bare("mlexp", "report", "out.json")
    assert reported.returncode == 0 and "H1" in reported.stdout, reported.stdout + reported.stderr
    assert list((tmp_path / "project" / "results" / "sorting").glob("*.svg"))
    compared = bare("mlexp", "compare", "out.json", "out.json")
    assert compared.returncode == 0 and f"{CELLS} cells in both" in compared.stdout
    replayed = bare("pytest", "benches", "--resume", "--benchmark-json", "again.json")
    assert f"{CELLS} replayed" in replayed.stdout and len(measured(tmp_path, "again.json")) == CELLS


def test_isolate_without_any_extra(bare, tmp_path):
    done = bare("pytest", "benches", "--isolate", "-k", "seed1", "--benchmark-json", "out.json")
    assert done.returncode == 0 and len(measured(tmp_path, "out.json")) == 2, done.stdout + done.stderr


def test_ab_without_any_extra(bare, tmp_path):
    project, author = tmp_path / "project", ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], [*author, "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=project, check=True)
    done = bare("mlexp", "ab", "HEAD", "HEAD", "--budget", "2", "--", "benches", "-k", "seed1")
    assert "2 cells" in done.stdout and "Traceback" not in done.stderr, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("from mlexp.decoding import sample", 'mlexp.decoding needs torch: pip install "pytest-mlexp[decoding]"'),
        ("import mlexp.decoding.loading", 'mlexp.decoding needs torch: pip install "pytest-mlexp[decoding]"'),
        ("import mlexp.maze.models", 'mlexp.maze needs torch: pip install "pytest-mlexp[maze]"'),
        ("import mlexp.attention.model", 'mlexp.attention needs torch: pip install "pytest-mlexp[studies]"'),
        ("import mlexp.eqprop.train", 'mlexp.eqprop needs torch: pip install "pytest-mlexp[studies]"'),
        ("import mlexp.training", 'mlexp.training needs torch: pip install "pytest-mlexp[studies]"'),
        ("import mlexp.flops", 'mlexp.flops needs torch: pip install "pytest-mlexp[studies]"'),
        (
            "from mlexp.maze.data import Recipe, mazes; mazes(Recipe(8, 1, 1, 2))",
            'mlexp.maze needs maze_dataset: pip install "pytest-mlexp[maze]"',
        ),
        (
            "from mlexp.text.tokenizer import parse; parse(b'{}')",
            'mlexp.text needs tokenizers: pip install "pytest-mlexp[studies]"',
        ),
        (
            "from mlexp.harness.measure import copy_bytes_per_s; copy_bytes_per_s('cpu')",
            'cell.copy_bytes_per_s needs torch: pip install "pytest-mlexp[studies]"',
        ),
    ],
)
def test_a_missing_library_is_a_line_that_names_the_extra(bare, statement, told):
    done = bare("-c", f"try:\n {statement}\nexcept ImportError as error: print(error); raise")
    assert done.stdout == f"{told}\n", done.stderr
    assert done.stderr.splitlines()[-1] == f"mlexp.extras.MissingExtra: {told}"


def test_a_command_that_lacks_its_library_says_only_that(bare):
    done = bare("mlexp", "sweep", "--", "benches")
    assert done.returncode == 4 and done.stderr == 'mlexp sweep needs ray: pip install "pytest-mlexp[cluster]"\n'


def test_a_library_that_is_not_of_an_extra_is_told_as_ever(bare, tmp_path):
    """Nor is what is missing in somebody else's module, whatever it is called."""
    (tmp_path / "project" / "theirs.py").write_text("import torch")
    done = bare("-c", "import theirs")
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'torch'"
    done = bare("-c", "import mlexp.decoding.nothing")
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'mlexp.decoding.nothing'"
    done = bare("-c", "import sys; sys.modules['scipy'] = None; import mlexp.analysis.stats")  # the core's own
    assert done.stderr.splitlines()[-1].startswith("ModuleNotFoundError: import of scipy")


def test_what_needs_no_library_is_there(bare):
    """The tables and closed forms of every subject, which reports read."""
    done = bare(
        "-c", "from mlexp.decoding import DECODERS, cost; from mlexp.maze import archs; import mlexp.text.corpus"
    )
    assert done.returncode == 0, done.stderr


def test_the_studies_say_what_they_lack_once_a_file(bare):
    done = bare("pytest", str(ROOT / "benches"), "--collect-only", "-q", "-p", "no:cacheprovider", where=ROOT)
    lines = [line for line in done.stdout.splitlines() if " needs " in line]
    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout + done.stderr
    assert len(lines) == 6 and all('pip install "pytest-mlexp[' in line for line in lines)
    assert "Traceback" not in done.stdout and "bench_harness.py::test_overhead[noop]" in done.stdout


@pytest.mark.parametrize(
    "text",
    [
        "from mlexp.training import fit\ndef test_a(cell): pass",
        "def test_a(cell):\n    from mlexp.training import fit",
        "def test_a(cell): helper()\ndef helper():\n    import mlexp.training",
    ],
    ids=["as_it_is_loaded", "in_a_cell", "in_a_helper"],
)
def test_a_bench_file_that_lacks_a_library_is_one_error_of_one_line(bare, tmp_path, text):
    folder = tmp_path / "project" / "benches" / "training"
    folder.mkdir()
    (folder / "bench_training.py").write_text(text)
    done = bare("pytest", "benches/training")
    assert done.returncode == pytest.ExitCode.INTERRUPTED
    assert 'mlexp.training needs torch: pip install "pytest-mlexp[studies]"' in done.stdout.splitlines()
    assert "Traceback" not in done.stdout and "1 error in" in done.stdout
    beside = bare("pytest", "benches", "--continue-on-collection-errors")
    assert f"{CELLS} passed, 1 error" in beside.stdout


def test_a_cell_that_finds_out_late_is_one_line(bare, tmp_path):
    text = QUESTION.replace("    found =", "    cell.count(lambda: 1)\n    found =")
    (tmp_path / "project" / "benches" / "sorting" / "bench_sorting.py").write_text(text)
    done = bare("pytest", "benches", "-k", "seed1 and stable")
    assert 'mlexp.flops needs torch: pip install "pytest-mlexp[studies]"' in done.stdout.splitlines()
    assert "1 failed" in done.stdout and "Error" not in done.stdout


@pytest.mark.parametrize(("version", "older"), [((3, 13), ""), ((3, 14), ", on Python 3.13 or older")])
def test_what_has_no_release_for_a_python_says_so(monkeypatch, version, older):
    monkeypatch.setattr(sys, "version_info", version)
    told = f'mlexp.maze needs maze_dataset: pip install "pytest-mlexp[maze]"{older}'
    assert str(extras.missing("mlexp.maze", "maze_dataset")) == told


def test_a_gpu_without_torch_is_not_used(bare, tmp_path):
    """`--device auto` means the CPU then, and `--device cuda` is refused: torch times it and reads its memory."""
    pretends = "from mlexp.harness import measure\nmeasure.gpu_present = lambda: True"
    (tmp_path / "project" / "conftest.py").write_text(pretends)
    done = bare("pytest", "benches", "-k", "seed1 and stable", "--benchmark-json", "out.json")
    assert [bench["extra_info"]["device"] for bench in measured(tmp_path, "out.json")] == ["cpu"], done.stdout
    refused = bare("pytest", "benches", "--device", "cuda")
    assert refused.returncode == 4
    assert refused.stderr == 'ERROR: --device cuda needs torch: pip install "pytest-mlexp[studies]"\n\n'


def test_a_part_of_what_a_subject_needs_is_not_enough(tmp_path):
    """torch alone decodes nothing: transformers is missed as the subject is loaded, not in the middle of a cell."""
    needs("torch")
    code = "import sys; sys.modules['transformers'] = None; import mlexp.decoding.engine"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    told = 'mlexp.extras.MissingExtra: mlexp.decoding needs transformers: pip install "pytest-mlexp[decoding]"'
    assert done.stderr.splitlines()[-1] == told

"""What `import mlexp` offers: names that are lazy, completed and typed; paths refused in words; figures that show."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mlexp
from mlexp.harness.identity import Sources

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "results" / "raw" / "maze_scaling-quick-intel-xeon-1-thread-2026-11-25.json"
ACCEPTED = "give benchmark JSON (pytest --benchmark-json), a journal (.jsonl), either also gzipped, or a folder of them"


def python(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_every_name_is_there_and_completed():
    assert dir(mlexp) == sorted(mlexp.__all__)
    assert all(getattr(mlexp, name) is not None for name in mlexp.__all__)
    assert {"Study", "load", "load_series", "pairs", "stats", "plots"} <= set(dir(mlexp))
    assert mlexp.stats.__name__ == "mlexp.analysis.stats"  # not the scipy.stats that it imports
    with pytest.raises(AttributeError, match=r"no attribute 'lode'; it has Above, .*load, "):
        mlexp.lode  # noqa: B018


def test_everything_public_has_a_docstring_and_modules_say_what_of_theirs_is():
    for name in set(mlexp.__all__) - {"__version__"}:
        assert getattr(mlexp, name).__doc__, name
    for module in (mlexp.stats, mlexp.plots):
        assert all(getattr(module, name).__doc__ for name in module.__all__), module.__name__


def test_importing_it_loads_nothing_and_a_name_loads_what_it_needs():
    heavy = "{'numpy', 'pandas', 'scipy', 'matplotlib', 'torch', 'pytest'} & set(sys.modules)"
    shown = python(
        f"import sys, mlexp; dir(mlexp); wings = ('mlexp.analysis', 'mlexp.harness', 'mlexp.study');"
        f"print(len({heavy}), sum(name.startswith(wings) for name in sys.modules));"
        f"mlexp.Study, mlexp.Settings; print(len({heavy}));"
        f"mlexp.load; print('pandas' in {heavy}, 'matplotlib' in {heavy}, 'torch' in {heavy})"
    )
    assert shown == ["0", "0", "0", "True", "False", "False"]


@pytest.mark.parametrize("line", ["import mlexp\nmlexp.Study", "from mlexp import Study, load"])
def test_the_names_put_nothing_into_the_keys_of_cells(line, tmp_path):
    """The package's own file is in the key; what the names stand for is seen as it runs, and no reader ever is."""
    bench = tmp_path / "bench_q.py"
    bench.write_text(f"{line}\n")
    files, others = Sources().of(bench)
    assert {bench, ROOT / "mlexp" / "__init__.py"} <= set(files) and not {"pandas", "numpy"} & others
    assert not [file for file in files if file.is_relative_to(ROOT / "mlexp") and file.parent != ROOT / "mlexp"]


BENCH = """
from dataclasses import dataclass

import mlexp
from mlexp import Above, At, Claim, Settings, Study, ratio

@dataclass(frozen=True)
class Sizes(Settings):
    seeds: tuple[int, ...] = (1, 2, 3)
    lengths: tuple[str, ...] = ("n100", "n1000")

STUDY = Study(
    asks="Does sorting more take longer?", arm="length", arms=("n100", "n1000"), baseline="n100", outcome="wall_s",
    settings={"smoke": Sizes()}, axes={"seed": "seeds", "length": "lengths"},
    claims={"H": Claim("more takes longer", Above(At(ratio("n1000", "n100")), 1.0), primary=True)},
)

def test_sort(cell: mlexp.Cell, seed, length):
    cell.time(lambda: sorted(range(int(length[1:]), 0, -1)), rounds=3, count=False)
"""


def test_a_bench_file_needs_no_other_name(tmp_path):
    """Measured, replayed, read and paired; of the package, its entry names what a study is made of and no reader."""
    bench = tmp_path / "benches" / "heat" / "bench_heat.py"
    bench.parent.mkdir(parents=True)
    bench.write_text(BENCH)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p mlexp.harness.plugin\npython_files = bench_*.py\n")
    call = [sys.executable, "-m", "pytest", "benches", "--scale", "smoke", "--resume", "--benchmark-json"]
    for name, told in (("a.json", "6 measured"), ("b.json", "6 replayed")):
        done = subprocess.run([*call, name], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and told in done.stdout, done.stdout + done.stderr
    lines = (tmp_path / ".mlexp" / "journal.jsonl").read_text().splitlines()
    entry = next(line for line in lines if '"imports"' in line)
    files = [Path(file) for file in json.loads(entry)["imports"]]
    assert {"settings.py", "study.py"} <= {file.name for file in files} and "analysis" not in {
        f.parent.name for f in files
    }
    (row,) = mlexp.pairs(mlexp.load(tmp_path / "b.json")).ratios().itertuples()
    assert (row.length, row.n) == ("n1000", 3) and row.low <= row.value <= row.high


GOOD = """
from dataclasses import dataclass
from typing import Annotated

import mlexp
from mlexp import Above, At, AtLeast, Claim, Settings, Study, arm, ratio

@dataclass(frozen=True)
class Sizes(Settings):
    seeds: tuple[int, ...] = (1, 2)
    n: Annotated[int, AtLeast(1)] = 3

CLAIMS = {"H": Claim("a wins", Above(At(ratio("b", "a")), 1.0)), "L": Claim("so", Above(At(arm("a") - arm("b"))))}
STUDY = Study(asks="?", arm="x", arms=("a", "b"), baseline="b", outcome="wall_s", claims=CLAIMS)
SETTINGS = {"quick": Sizes()}

def test_x(cell: mlexp.Cell, seed: int) -> None:
    value: int = cell.time(lambda: 3, rounds=2)
    cell.record(accuracy=0.5 * value)

def read() -> float:
    df = mlexp.load(["a.json", "b.json"], "runs", status=None)
    losses = mlexp.load_series("a.json")["key"]["loss"].mean()
    context, records = mlexp.contexts(mlexp.latest(df))[0]
    found: mlexp.Pairs = mlexp.pairs(records, "wall_s", baseline="b", replicates="seed")
    fig, ax = mlexp.plots.figure("wall time", xlabel=str(context))
    mlexp.plots.intervals(ax, found.ratios(by=()), "x", null=1.0)
    return mlexp.stats.t_interval(found.blocks["difference"]).value + float(losses)
"""
WRONG = {
    'mlexp.lode("a.json")': 'no attribute "lode"',
    "mlexp.load(3)": '"load" has incompatible type "int"',
    "mlexp.load_series(None)": '"load_series" has incompatible type',
    'mlexp.pairs(mlexp.load("a"), basline="b")': 'Unexpected keyword argument "basline"',
    'mlexp.pairs(mlexp.load("a")).ratio()': '"Pairs" has no attribute "ratio"',
    "mlexp.stats.mean_ratio([1.0])": 'no attribute "mean_ratio"',
    "mlexp.plots.figure(title=3)": 'Argument "title" to "figure" has incompatible type "int"',
    'mlexp.Study(asks="?")': "Missing positional arguments",
    "mlexp.Claim(3)": "Missing positional argument",
    "cell: mlexp.Cel": "mlexp.Cel",
}  # fmt: skip


def test_type_checkers_know_every_name(tmp_path):
    """mypy on a snippet that uses the names rightly, and on one whose every line is wrong."""
    pytest.importorskip("mypy")
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "wrong.py").write_text("import mlexp\n" + "\n".join(WRONG))
    skipped = "[mypy-torch.*,transformers.*]\nfollow_imports = skip\n"  # it takes longer than all the rest
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nstrict = true\n{skipped}")
    call = [sys.executable, "-m", "mypy", "--config-file", tmp_path / "mypy.ini", "--no-error-summary"]
    call += ["--cache-dir", ROOT / ".mypy_cache" / "public_api", tmp_path / "good.py", tmp_path / "wrong.py"]
    told = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert "good.py" not in told
    for line, (wrong, error) in enumerate(WRONG.items(), 2):
        assert re.search(rf"wrong\.py:{line}: error: .*{re.escape(error)}", told), f"{wrong}\n{told}"


def test_paths_may_be_lists_and_gzipped(tmp_path):
    zipped = tmp_path / "a.json.gz"
    zipped.write_bytes(gzip.compress(RECORDS.read_bytes()))
    for given in ((zipped,), ([str(RECORDS), zipped],), (RECORDS, [zipped]), (tmp_path,)):
        assert len(mlexp.load(*given)) == len(mlexp.load_series(*given)) == 9
    assert len(mlexp.load(tmp_path.glob("*.gz"))) == 9


@pytest.mark.parametrize("read", [mlexp.load, mlexp.load_series])
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("empty", f"empty: no results in this folder; {ACCEPTED}"),
        ("others", "others: no results in this folder (skipped 1 file that hold no results: others/x.json: not bench"),
        ("nowhere.json", "nowhere.json: no such file or folder"),
        ("others/x.json", f"others/x.json: not benchmark JSON (it has no 'benchmarks'); {ACCEPTED}"),
        ("notes.txt", f"notes.txt: not JSON (line 1, column 1: Expecting value); {ACCEPTED}"),
        ([str(RECORDS), "empty"], "empty: no results in this folder"),
        ("cut.json.gz", "cut.json.gz: a gzip file that is cut short"),
    ],
)
def test_what_holds_no_records_is_named_with_what_would(read, given, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "others"):
        Path(folder).mkdir()
    Path("others/x.json").write_text('{"lr": 0.1}')
    Path("notes.txt").write_text("remember the milk")
    Path("cut.json.gz").write_bytes(gzip.compress(RECORDS.read_bytes())[:-9])
    with pytest.raises(mlexp.LoadError) as caught:
        read(given)
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [3, None, {"a": 1}, b"a.json"])
def test_what_is_no_path_is_a_type_error(given):
    with pytest.raises(TypeError, match=rf"not an? {type(given).__name__}; give benchmark JSON"):
        mlexp.load(given)


def test_records_left_out_are_told(tmp_path):
    text = RECORDS.read_text()
    assert text.count('"status": "passed"') == 9
    other = tmp_path / "a.json"
    other.write_text(text.replace('"status": "passed"', '"status": "oom"', 2))
    df = mlexp.load(other)
    assert len(df) == 7 and df.attrs["notes"] == ["2 records are oom: left out (status=None keeps all)"]
    assert len(mlexp.load(other, status=None)) == 9


def test_a_figure_is_shown_by_a_notebook_without_pyplot():
    """By IPython's own formatters where it is installed, else by the method that they call."""
    code = (
        "import sys, mlexp; fig, ax = mlexp.plots.figure('t'); ax.plot([1, 2], [3, 4])\n"
        "try:\n"
        "    from IPython.core.formatters import DisplayFormatter\n"
        "    data, about = DisplayFormatter().format(fig)\n"
        "    data, about = data['image/png'], about['image/png']\n"
        "except ModuleNotFoundError:\n"
        "    data, about = fig._repr_png_()\n"
        "print(data[1:4].decode(), about['width'], about['height'], 'matplotlib.pyplot' in sys.modules)"
    )
    assert python(code) == ["PNG", "691", "403", "False"]

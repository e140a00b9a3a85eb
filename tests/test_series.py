"""Large series: beside the journal and the JSON, by reference; read as they were given, or an error says why not."""

import json
import math
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as drawn

from mlexp import series
from mlexp.analysis import results
from mlexp.analysis.arrays import Arrays
from mlexp.analysis.sources import LoadError
from mlexp.harness.cell import numbers

from .needs import needs

pytest_plugins = ["pytester"]
KINDS = st.sampled_from(["float64", "float32", "float16", "int64", "int8", "uint16", "bool"])
SHAPES = drawn.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)
ARRAYS = KINDS.flatmap(lambda kind: drawn.arrays(kind, SHAPES))
FULL = range(series.LARGE + 1)  # enough to make the series of a cell large


def kept(folder, given, key="0" * 16):
    """What stands in the line of a cell with these series, its files below `folder`."""
    line, files = series.spilled(given, key)
    for name, content in files.items():
        series.write(folder / name, content)
    return json.loads(json.dumps(line, allow_nan=False)), files


@given(array=ARRAYS)
def test_what_is_read_is_what_a_small_series_would_have_been(tmp_path_factory, array):
    folder = tmp_path_factory.mktemp("series")
    plain = numbers("a", array.tolist())
    line, files = kept(folder, {"a": plain, "full": list(FULL)})
    assert len(files) == 1 and line["a"]["shape"] == list(np.shape(plain))
    np.testing.assert_array_equal(Arrays(line, folder, "j")["a"], Arrays({"a": plain}, folder, "j")["a"])


@given(kind=KINDS, rows=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_an_array_is_kept_as_it_was_when_it_was_given(kind, rows, seed):
    shape = (rows, series.LARGE)
    given_ = np.random.default_rng(seed).integers(0, 100, shape).astype(kind)
    before, found = given_.copy(), series.large_array(given_)
    if rows == 1:
        assert found is None
        return
    given_[:] = 0
    assert found.dtype == before.dtype and np.array_equal(found, before)


def test_values_that_are_not_finite_are_missing(tmp_path):
    array = np.array([1.0, math.nan, math.inf, -math.inf] * series.LARGE)
    line, _ = kept(tmp_path, {"a": series.large_array(array), "list": [None, 1.0]})
    assert np.isnan(Arrays(line, tmp_path, "j")["a"][1:4]).all() and array[2] == math.inf
    np.testing.assert_array_equal(Arrays(line, tmp_path, "j")["list"], [math.nan, 1])


def test_torch_tensors_are_taken_in_every_form():
    torch = needs("torch")
    for dtype in (torch.float32, torch.bfloat16, torch.int32):
        found = series.large_array(torch.ones(series.LARGE + 1, dtype=dtype))
        assert found.shape == (series.LARGE + 1,) and found.sum() == series.LARGE + 1
    assert series.large_array(torch.ones(series.LARGE + 1, requires_grad=True)).sum() == series.LARGE + 1


def test_what_holds_no_numbers_is_refused_as_ever():
    for array in (np.full(series.LARGE + 1, "x"), np.full(series.LARGE + 1, 1j)):
        assert series.large_array(array) is None
        with pytest.raises(TypeError, match="series 'a' holds a"):
            numbers("a", array.tolist())


def test_a_small_series_stays_in_its_line(tmp_path):
    given_ = {"a": [1, None, [2.5]], "b": list(range(series.LARGE - 3))}
    assert kept(tmp_path, given_) == (given_, {})


def test_what_is_ragged_stays_in_the_line(tmp_path):
    ragged = [list(FULL), [1.0]]
    line, files = kept(tmp_path, {"a": ragged, "b": [1.0, 2.0]})
    assert line["a"] == ragged and series.is_reference(line["b"]) and len(files) == 1
    assert kept(tmp_path, {"a": ragged}) == ({"a": ragged}, {})


def test_equal_series_are_equal_files():
    one, other = (series.spilled({"a": list(FULL), "x/../y": [1.0]}, "0" * 16) for _ in range(2))
    assert one == other


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda path: path.unlink(), "No such file or directory; move it with the file that names it"),
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "is not what was measured"),
        (lambda path: path.write_bytes(b""), "is not what was measured"),
        (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    ],
    ids=["missing", "torn", "empty", "a folder"],
)
def test_a_file_that_is_not_what_it_was_is_named(tmp_path, harm, says):
    line, files = kept(tmp_path, {"a": list(FULL), "few": [[1.0], [1.0, 2.0]]})
    found = Arrays({"a": line["a"]}, tmp_path, "out.json")
    assert found["a"].sum() == sum(FULL) and not series.missing(line, tmp_path)
    (name,) = files
    harm(tmp_path / name)
    with pytest.raises(LoadError, match=r"out\.json: series 'a': ") as caught:
        found["a"]
    assert says in str(caught.value) and str(tmp_path / name) in str(caught.value)
    assert series.missing(line, tmp_path)


@pytest.mark.parametrize("path", ["/etc/passwd", "series/../../x.npz", 3, None])
def test_a_reference_stays_below_its_folder(tmp_path, path):
    with pytest.raises(LoadError, match="no path below the folder"):
        Arrays({"a": {"npz": path, "sha256": "0"}}, tmp_path, "j")["a"]


@given(content=st.binary(max_size=200))
def test_a_file_of_something_else_is_refused(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("series")
    (folder / "x.npz").write_bytes(content)
    line = {"a": {"npz": "x.npz", "sha256": series.hashlib.sha256(content).hexdigest(), "shape": [1]}}
    with pytest.raises(LoadError, match="does not hold the series 'a'"):
        Arrays(line, folder, "j")["a"]


# In a session.

BIG = 'cell.series(curve=[seed, 2.5, float("nan")], w=[[seed] * 6000, list(range(6000))])'


@pytest.fixture
def big(toy):
    toy.edit('cell.series(curve=[seed, 2.5, float("nan")])', BIG)
    return toy


def check(path):
    found = results.load_series(path)
    assert len(found) == 2
    for arrays in found.values():
        assert arrays["w"].shape == (2, 6000) and arrays["w"][1].sum() == 6000 * 5999 / 2
        np.testing.assert_array_equal(arrays["curve"], [1, 2.5, math.nan])


@pytest.mark.parametrize("isolated", [(), ("--isolate",)], ids=["here", "isolated"])
def test_a_session_keeps_large_series_beside_its_files(big, isolated):
    few, root = ("-k", "m_one and seed1"), big.pytester.path
    big.run(*few, "--benchmark-json", "out.json", *isolated)
    assert big.journal.stat().st_size < 20_000 and (root / "out.json").stat().st_size < 30_000
    assert len(list((big.journal.parent / "series").iterdir())) == len(list((root / "out.series").iterdir())) == 2
    check(big.journal)
    moved = big.pytester.mkdir("moved")
    for name in ("out.json", "out.series"):
        shutil.move(root / name, moved / name)
    check(moved / "out.json")
    big.ran()
    result = big.run(*few, "--resume", "--benchmark-json", "again.json", *isolated)
    assert any(line.startswith("mlexp: 2 replayed") for line in result.outlines) and not big.ran()
    check(root / "again.json")


def test_a_cell_whose_series_are_gone_is_measured_again(big):
    few = ("-k", "m_one and seed1")
    big.run(*few)
    path = next((big.journal.parent / "series").iterdir())
    path.write_bytes(b"altered")
    big.ran()
    result = big.run(*few, "--resume", "--benchmark-json", "out.json")
    assert len(big.ran()) == 1
    assert any("1 finished cells are measured again; " in line and path.name in line for line in result.outlines)
    check(big.pytester.path / "out.json")


def test_a_json_that_is_written_again_leaves_no_old_files(big):
    few, root = ("-k", "m_one and seed1", "--benchmark-json", "out.json"), big.pytester.path
    (root / "out.series").mkdir()
    for name in ("0123456789abcdef-01234567.npz", "mine.npz"):
        (root / "out.series" / name).touch()
    big.run(*few)
    names = {path.name for path in (root / "out.series").iterdir()}
    assert len(names) == 3 and "mine.npz" in names


def test_a_saved_run_has_its_own_copies(big):
    big.run("-k", "m_one and seed1", "--benchmark-json", "out.json", "--benchmark-autosave")
    (saved,) = (big.pytester.path / ".benchmarks").rglob("*.json")
    check(saved)
    check(big.pytester.path / "out.json")


def test_a_hook_gets_the_arrays(big):
    big.pytester.makeconftest(
        "def pytest_mlexp_record(record, series):\n"
        "    assert sorted(series) == ['curve', 'w'] and series['w'].shape == (2, 6000), dict(series)\n"
    )
    result = big.run("-k", "m_one and seed1")
    assert not [line for line in result.outlines if "pytest_mlexp_record" in line]


def test_without_room_beside_the_journal_the_json_has_the_numbers(big):
    (big.pytester.path / ".mlexp").mkdir()
    (big.pytester.path / ".mlexp/series").write_text("in the way")
    result = big.run("-k", "m_one and seed1", "--benchmark-json", "out.json")
    assert any("cannot write" in line and "the last cell is not in it" in line for line in result.outlines)
    (arrays,) = results.load_series(big.pytester.path / "out.json").values()
    assert arrays["w"].shape == (2, 6000)

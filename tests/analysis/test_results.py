"""Loading: every kind of file gives the same tidy rows, and every wrong one a single clear line."""

import json
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mlexp
from mlexp.analysis import results
from mlexp.analysis.results import LoadError, load
from mlexp.record import PROVENANCE


def test_columns_are_axes_metrics_provenance_source(make, tmp_path):
    df = load(make.write_json(tmp_path / "a.json", make.grid()))
    metrics = ["wall_s", "wall_iqr_s", "rounds", "flops", "n_params"]
    assert list(df.columns) == ["model", "prompt", "decoder", *metrics, *PROVENANCE]
    assert results.axes(df) == ["model", "prompt", "decoder"]
    assert isinstance(df.index, pd.RangeIndex)
    assert len(df) == 24
    assert df["source"].unique() == ["a.json"]
    assert df["flops"].dtype == "int64"
    assert df["dirty"].dtype == bool


def test_timing_is_the_median_the_interquartile_range_and_the_count(make, tmp_path):
    entries = [make.bench({"n": "n1"}, [44.0, 1.0, 2.0, 3.0]), make.bench({"n": "n2"}, [5.0])]
    df = load(make.write_json(tmp_path / "a.json", entries))
    assert df["wall_s"].tolist() == [2.5, 5.0]
    assert df["wall_iqr_s"][0] == np.subtract(*np.percentile([1, 2, 3, 44], [75, 25]))
    assert np.isnan(df["wall_iqr_s"][1])  # a single round has no spread
    assert df["rounds"].tolist() == [4, 1]


def test_a_journal_gives_the_rows_of_its_json(make, tmp_path):
    from_json = load(make.write_json(tmp_path / "a.json", make.grid()))
    from_journal = load(make.write_journal(tmp_path / "a.jsonl", make.grid()))
    pd.testing.assert_frame_equal(from_json.drop(columns="source"), from_journal.drop(columns="source"))


def test_the_same_key_twice_is_one_row_measured_before_replayed_then_newest(make, tmp_path):
    cell = {"n": "n1"}
    old = make.bench(cell, [1.0], when="2026-01-01T00:00:00Z")
    new = make.bench(cell, [2.0], when="2026-01-02T00:00:00Z")
    replayed = make.bench(cell, [3.0], when="2026-01-03T00:00:00Z", replayed=True)
    for order in ([old, new, replayed], [replayed, new, old]):
        files = [make.write_json(tmp_path / f"{i}.json", [entry]) for i, entry in enumerate(order)]
        assert load(*files)["wall_s"].tolist() == [2.0]


def test_latest_keeps_the_newest_of_a_cell_whose_source_changed_but_not_across_contexts(make, tmp_path):
    entries = [make.bench({"n": "n1"}, key="a", when="2026-01-01"), make.bench({"n": "n1"}, key="b", when="2026-01-02")]
    entries.append(make.bench({"n": "n1"}, key="c", when="2026-01-01", scale="smoke"))
    kept = results.latest(load(make.write_json(tmp_path / "a.json", entries)))
    assert sorted(kept["key"]) == ["b", "c"]
    assert kept.attrs["superseded"] == 1


def test_times_are_compared_as_times(make, tmp_path):
    """An hour earlier, though its text is greater; microseconds and Z; two keys of one cell."""
    for older, newer in (
        ("2026-01-01T10:00:00+02:00", "2026-01-01T09:00:00+00:00"),
        ("2026-01-01T09:00:00Z", "2026-01-01T09:00:00.000001+00:00"),
        ("yesterday", "2026-01-01"),
        (None, "2026-01-01T00:00:00"),
    ):
        for first, second in ((older, newer), (newer, older)):
            entries = [make.bench({"n": "n1"}, key=key, when=when) for key, when in (("a", first), ("b", second))]
            loaded = load(make.write_json(tmp_path / "a.json", entries))
            assert results.latest(loaded)["when"].tolist() == [newer]
            same = [make.write_json(tmp_path / f"{i}.json", [e]) for i, e in enumerate(entries)]
            for entry, path in zip(entries, same, strict=True):
                make.write_json(path, [entry | {"extra_info": entry["extra_info"] | {"key": "a"}}])
            assert load(*same)["when"].tolist() == [newer]
            assert ("yesterday" in (first, second)) == any("no ISO 8601" in note for note in loaded.attrs["notes"])


def test_what_stands_later_in_a_journal_is_newer(make, tmp_path):
    """Two keys of one cell, the clock set back in between, or both within one second."""
    for second in ("2026-01-01T08:00:00Z", "2026-01-01T09:00:00Z"):
        times = (("a", "2026-01-01T09:00:00Z"), ("b", second))
        entries = [make.bench({"n": "n1"}, key=key, when=when) for key, when in times]
        path = make.write_journal(tmp_path / f"{second[11:13]}.jsonl", entries)
        df = load(path)
        assert results.latest(df)["key"].tolist() == ["b"]
        assert len(df.attrs["notes"]) == (second < "2026-01-01T09")
        newer = make.write_json(tmp_path / "c.json", [make.bench({"n": "n1"}, key="c", when="2026-01-01T09:30:00Z")])
        assert results.latest(load(newer, path))["key"].tolist() == ["c"]


def test_unfinished_records_come_only_when_asked_for(make, tmp_path):
    path = make.write_json(
        tmp_path / "a.json", [make.bench({"n": "n1"}), make.bench({"n": "n2"}, status="oom", reason="big")]
    )
    assert load(path)["n"].tolist() == ["n1"]
    assert load(path, status=None)["status"].tolist() == ["passed", "oom"]
    assert load(path, status="oom")["reason"].tolist() == ["big"]
    with pytest.raises(ValueError, match=r"unknown status 'green'; choose from passed, failed, oom"):
        load(path, status="green")


def test_an_unfinished_cell_of_another_program_s_file_has_not_passed(tmp_path):
    entry = {"fullname": "t.py::test_a", "params": {}, "extra_info": {}}
    timed = entry | {"fullname": "t.py::test_b", "stats": {"median": 0.5, "iqr": 0.1, "rounds": 5}}
    (tmp_path / "a.json").write_text(json.dumps({"benchmarks": [timed], "unfinished": [entry]}))
    assert load(tmp_path)["cell"].tolist() == ["t.py::test_b"]
    assert load(tmp_path, status=None)["status"].tolist() == ["passed", "failed"]


def test_of_one_key_the_last_line_of_a_journal_counts(make, tmp_path):
    when = {"key": "k", "when": "2026-01-01T09:00:00+00:00"}
    entries = [make.bench({"n": "n1"}, accuracy=accuracy, **when) for accuracy in (0.25, 0.75)]
    df = load(make.write_journal(tmp_path / "j.jsonl", entries))
    assert df["accuracy"].tolist() == [0.75]


def test_a_seed_axis_and_the_recorded_seed_are_one_column(make, tmp_path):
    df = load(make.write_json(tmp_path / "a.json", [make.bench({"seed": "seed42", "arch": "baseline"}, seed="seed42")]))
    assert list(df.columns).count("seed") == 1
    assert df["seed"].tolist() == ["seed42"]


def test_plain_pytest_benchmark_files_load_too(tmp_path):
    stats = {"median": 0.5, "iqr": 0.1, "rounds": 5}
    entry = {"name": "test_a[1]", "fullname": "t.py::test_a[1]", "params": {"n": 1, "key": [1]}, "stats": stats}
    entry["extra_info"] = {"acc": float("nan"), "status": "green", "device": "cpu", "nested": {"a": 1}}
    data = {"machine_info": {"cpu": {"brand_raw": "EPYC"}}, "commit_info": {"id": "abc", "dirty": True}}
    (tmp_path / "a.json").write_text(json.dumps(data | {"benchmarks": [entry], "datetime": "2026-01-01"}))
    row = load(tmp_path).iloc[0]
    assert (row["n"], row["param_key"], row["wall_s"], row["status"]) == (1, "[1]", 0.5, "passed")
    assert (row["machine"], row["device"], row["commit"], row["dirty"]) == ("EPYC", "cpu", "abc", True)
    assert row[["question", "key", "weights", "acc"]].isna().all()


def test_a_folder_is_read_whole_and_says_what_it_skips(make, tmp_path):
    make.write_json(tmp_path / "deep" / "er" / "a.json", [make.bench({"n": "n1"})])
    make.write_journal(tmp_path / ".mlexp" / "journal.jsonl", [make.bench({"n": "n2"})])
    make.write_json(tmp_path / ".venv" / "b.json", [make.bench({"n": "n3"})])
    (tmp_path / "config.json").write_text('{"a": 1}')
    (tmp_path / "empty.json").write_text("")
    df = load(tmp_path)
    assert sorted(df["n"]) == ["n1", "n2"]
    (note,) = df.attrs["notes"]
    assert note.startswith("skipped 2 files that hold no results: ")
    assert "config.json: not benchmark JSON (it has no 'benchmarks')" in note


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.json", '{"benchmarks": [', r"a\.json: not JSON \(line 1, column 17"),
        ("a.json", "[1]", "the JSON is a list, not the object"),
        ("a.json", '{"a": 1}', "it has no 'benchmarks'"),
        ("a.json", '{"benchmarks": 3}', "benchmarks is a number, not a list"),
        ("a.json", '{"benchmarks": [3]}', r"benchmarks\[0\] is a number, not an object"),
        ("a.json", '{"benchmarks": [{"name": "x", "stats": {"data": "y"}}]}', "stats: data is a string, not a list"),
        (
            "a.json",
            '{"benchmarks": [{"name": "x", "stats": {"data": [1, "y"]}}]}',
            "data holds a string, not a number",
        ),
        ("a.json", '{"benchmarks": [{"name": "x", "stats": {"data": [null, null]}}]}', "data holds null, not a number"),
        ("a.json", '{"benchmarks": [{"name": "x"}]}', "stats is missing or empty"),
        ("a.json", '{"benchmarks": [], "metrics": {"q": {"wall_s": ["s", "lower", "again"]}}}', "already defined"),
        ("a.json", "1" * 5000, "not JSON"),
        ("a.json", "[" * 100_000, "nested too deeply|not JSON"),
        ("a.jsonl", "nonsense\n", r"a\.jsonl: not a journal of mlexp \(line 1\)"),
        ("missing.json", None, "no such file"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path, name, text, told):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(LoadError, match=told) as caught:
        load(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_benchmark_file_in_a_folder_is_an_error_not_a_skip(make, tmp_path):
    path = make.write_json(tmp_path / "a.json", make.grid())
    path.write_text(path.read_text()[:3000])
    with pytest.raises(LoadError, match="not JSON"):
        load(tmp_path)


def test_a_line_cut_short_by_a_kill_is_noted_and_an_altered_one_refused(make, tmp_path):
    path = make.write_journal(tmp_path / "a.jsonl", make.grid(prompts=1))
    whole = path.read_text().splitlines()
    for torn in ([*whole[:5], whole[5][:200]], [*whole[:2], whole[2][:99], *whole[3:]]):
        path.write_text("\n".join(torn))
        df = load(path)
        assert len(df) == 5
        assert "cut short by a kill" in df.attrs["notes"][0]
    path.write_text("\n".join([whole[0], whole[1].replace("1558", "1559").replace("774", "775").replace("124", "125")]))
    with pytest.raises(LoadError, match="damaged at line 2"):
        load(path)


def test_series_come_as_arrays_by_key(make, tmp_path):
    entries = make.grid(prompts=1)[:2]
    series = {entry["extra_info"]["key"]: {"loss": [[1, None], [3, 4.5]]} for entry in entries}
    for path in (
        make.write_json(tmp_path / "a.json", entries, series=series),
        make.write_journal(tmp_path / "b.jsonl", entries, series),
    ):
        found = results.load_series(path)
        assert list(found) == list(series)
        np.testing.assert_array_equal(found[next(iter(series))]["loss"], [[1, np.nan], [3, 4.5]])
    ragged = make.write_json(tmp_path / "c.json", entries[:1], series={next(iter(series)): {"loss": [[1], 2]}})
    with pytest.raises(LoadError, match="'loss' is not a rectangular array"):
        results.load_series(ragged)


def test_metrics_are_the_shared_ones_and_the_questions_own(make, tmp_path):
    own = {"token_forwards": ["tokens", "lower", "tokens through the model"]}
    path = make.write_json(tmp_path / "a.json", make.grid(), metrics={"speed": own})
    table = results.metrics(path)
    assert table["token_forwards"].better == "lower"
    assert table["wall_s"].unit == "s"
    other = make.write_json(tmp_path / "b.json", [], metrics={"other": {"token_forwards": ["tokens", "higher", "x"]}})
    with pytest.raises(LoadError, match=r"'token_forwards' is .* in other and .* elsewhere"):
        results.metrics(path, other)


def test_contexts_are_told_apart_largest_first(make, tmp_path):
    path = make.write_json(
        tmp_path / "a.json", make.grid() + make.grid(prompts=1, scale="smoke", overrides="samples=2")
    )
    (first, big), (second, small) = results.contexts(load(path))
    assert (len(big), len(small)) == (24, 6)
    assert results.describe(first) == "AMD EPYC, 2 threads · cpu · float32 · quick · random weights · pydoc_topics"
    assert results.describe(second).endswith("· smoke · random weights · pydoc_topics · set samples=2")


def test_contexts_that_differ_in_a_setting_of_the_code_say_in_which(make, tmp_path):
    entries = make.grid() + make.grid(prompts=1, settings='{"samples":5}')
    lines = [
        results.describe(context)
        for context, _ in results.contexts(load(make.write_json(tmp_path / "a.json", entries)))
    ]
    assert [line.rpartition(" · ")[2] for line in lines] == ["set samples=20", "set samples=5"]


def test_ten_thousand_records_load_in_linear_time(make, tmp_path):
    def seconds(n):
        path = make.write_json(tmp_path / f"{n}.json", [make.bench({"n": f"n{i}"}, key=str(i)) for i in range(n)])
        start = time.perf_counter()
        assert len(load(path)) == n
        return time.perf_counter() - start

    seconds(100)
    assert seconds(10_000) < 40 * seconds(1000)


def test_the_package_offers_load(make, tmp_path):
    assert len(mlexp.load(make.write_json(tmp_path / "a.json", make.grid()))) == 24


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
words = st.sampled_from(["key", "status", "question", "cell", "when", "seed", "wall_s", "n", "", "source", "passed"])
junk = st.recursive(
    scalars | words, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4)
)
params_or_junk = st.dictionaries(words, junk, max_size=4) | junk
benches = st.fixed_dictionaries(
    {"name": words | junk},
    optional={
        "params": params_or_junk,
        "extra_info": params_or_junk
        | st.fixed_dictionaries({"key": words, "status": words, "question": words, "when": junk}),
        "stats": st.fixed_dictionaries({"data": st.lists(scalars, max_size=3) | junk, "median": junk}) | junk,
    },
)
files = st.fixed_dictionaries(
    {"benchmarks": st.lists(benches | junk, max_size=3) | junk},
    optional={"unfinished": st.lists(benches) | junk, "series": junk, "metrics": junk, "machine_info": junk},
)


@given(data=files | junk)
def test_no_json_gives_a_traceback(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("junk") / "a.json"
    path.write_text(json.dumps(data))
    try:
        df = load(path, status=None)
    except LoadError as error:
        assert "\n" not in str(error)
    else:
        assert df.columns.is_unique
        assert sum(len(part) for _, part in results.contexts(results.latest(df))) <= len(df)


@given(lines=st.lists(junk | st.fixed_dictionaries({"event": words}), max_size=4), cut=st.integers(0, 60))
def test_no_journal_gives_a_traceback(tmp_path_factory, lines, cut):
    from mlexp.journal import seal

    path = tmp_path_factory.mktemp("junk") / "a.jsonl"
    sealed = [seal(line) for line in lines if isinstance(line, dict) and not has_nan(line)]
    path.write_text("\n".join(sealed)[: len("\n".join(sealed)) - cut or None])
    try:
        load(path, status=None)
    except LoadError as error:
        assert "\n" not in str(error)


def has_nan(value):
    text = json.dumps(value)
    return "NaN" in text or "Infinity" in text

"""Cells beyond a bound are marked wherever their numbers are shown; those within, and old records, are not."""

import re

import pandas as pd
import pytest

from mlexp.analysis import files
from mlexp.analysis.compare import compare
from mlexp.analysis.disturbed import BOUNDS, disturbances, listed, remarks
from mlexp.analysis.report import run
from mlexp.record import CONDITIONS

QUIET = {
    "involuntary_switches": 2, "core_wait_fraction": 0.0003, "steal_fraction": 0.0, "others_fraction": 0.004,
    "quota_throttled_s": 0.0, "cpu_throttles": 0, "cpu_mhz_start": 2400.0, "cpu_mhz_end": 2398.5,
    "cpu_governor": "powersave", "gpu_mhz_start": None, "gpu_mhz_end": None, "gpu_throttled_by": "",
    "compilations": 0, "child_processes": 0,
}  # fmt: skip
SHOW = """
from mlexp.analysis import plots

def report(records, out):
    out.table(records[["n", "wall_s"]], "all.csv", "All")
    fig, ax = plots.figure("t", "x", "y")
    out.figure(fig, "f.svg", "A figure.")
"""


def frame(*rows):
    return pd.DataFrame([{"cell": f"c{i}", "peak_bytes": 1000} | QUIET | row for i, row in enumerate(rows)])


def test_the_quiet_record_has_every_field():
    assert set(QUIET) == set(CONDITIONS) and set(BOUNDS) < set(CONDITIONS)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"core_wait_fraction": 0.38}, "waited for a core (38 %)"),
        ({"steal_fraction": 0.041}, "CPU time stolen by the hypervisor (4.1 %)"),
        ({"others_fraction": 0.7}, "other processes used the CPU (70 %)"),
        ({"quota_throttled_s": 0.25}, "stopped by a CPU quota (0.25 s)"),
        ({"cpu_throttles": 2}, "the CPU throttled itself (2)"),
        ({"compilations": 1}, "torch compiled within the rounds (1)"),
        ({"gpu_throttled_by": "sw_power_cap"}, "the GPU was throttled (sw_power_cap)"),
    ],
)
def test_each_disturbance_is_named_with_how_much_of_it(fields, told):
    df = frame({}, fields, {})
    assert disturbances(df) == [("c1", told)]
    assert remarks(df) == f"1 of 3 cells disturbed while timed: 1 {told.rpartition(' (')[0]}"


@pytest.mark.parametrize("name", BOUNDS)
def test_a_cell_at_the_bound_is_not_beyond_it(name):
    assert remarks(frame({name: BOUNDS[name].above})) == ""
    assert remarks(frame({name: BOUNDS[name].above + 0.01})) != ""


def test_a_cell_with_several_is_one_cell():
    df = frame({"core_wait_fraction": 0.1, "others_fraction": 0.5}, {"others_fraction": 0.5}, {})
    told = "2 of 3 cells disturbed while timed: 1 waited for a core, 2 other processes used the CPU"
    assert remarks(df) == told
    assert disturbances(df)[0][1] == "waited for a core (10 %); other processes used the CPU (50 %)"


def test_child_processes_are_a_remark_and_no_disturbance():
    df = frame({"child_processes": 4}, {}, {"child_processes": 1, "peak_bytes": None})
    assert remarks(df) == "peak memory of 1 of 3 cells is without their child processes"
    assert disturbances(df) == []


@pytest.mark.parametrize("value", [None, "much", True, float("nan")])
def test_what_is_no_number_marks_nothing(value):
    odd = dict.fromkeys((name for name in QUIET if name in ("steal_fraction", "quota_throttled_s")), value)
    if value is not True:
        assert remarks(frame(odd)) == ""
    assert remarks(pd.DataFrame({"cell": ["c"]})) == "" and disturbances(pd.DataFrame({"cell": []})) == []


def test_where_every_cell_was_disturbed_the_causes_are_listed_once():
    df = frame({"core_wait_fraction": 0.1, "others_fraction": 0.5}, {"others_fraction": 0.9}, {"cpu_throttles": 2})
    told = "waited for a core in 1 (10 %); other processes used the CPU in 2 (50 % to 90 %)"
    assert listed(df) == [("all 3", f"{told}; the CPU throttled itself in 1 (2)")]
    assert listed(frame(*[{"others_fraction": 0.5, "gpu_throttled_by": "heat"}] * 2)) == [
        ("all 2", "other processes used the CPU (50 %); the GPU was throttled (heat)")
    ]
    assert listed(df[:1]) == disturbances(df[:1]) and len(listed(frame({"others_fraction": 0.5}, {}))) == 1


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def entries(make, **fields):
    return [make.bench({"n": f"n{i}"}, question="one", **QUIET | (fields if i == 1 else {})) for i in range(3)]


def test_the_mark_stands_once_a_context_and_in_every_picture(make, place, capsys):
    make.write_question(place / "benches", "one", SHOW)
    make.write_json(place / "a.json", entries(make, others_fraction=0.7))
    assert run([place / "a.json"]) == 0
    said = "1 of 3 cells disturbed while timed: 1 other processes used the CPU"
    summary, page = ((place / "results" / name).read_text() for name in ("one/summary.md", "index.html"))
    assert summary.count(said) == 1  # at the head
    svg = (place / "results/one/f.svg").read_text()
    assert said in " ".join(re.sub("<[^>]*>", " ", svg).split())
    assert "## Disturbed while timed" in summary and "[n1] | other processes used the CPU (70 %) |" in summary
    assert "| disturbed | 1 of 3 records |" in summary and "| cpu governor | powersave |" in summary
    assert page.count(said) == 2 and "Disturbed while timed (1)" in page
    assert said in capsys.readouterr().out
    assert "disturbed" not in (place / "results/one/all.csv").read_text()


@pytest.mark.parametrize("fields", [{}, dict.fromkeys(QUIET)], ids=["quiet", "not told"])
def test_without_a_disturbance_nothing_is_said(make, place, capsys, fields):
    make.write_question(place / "benches", "one", SHOW)
    rows = [make.bench({"n": f"n{i}"}, question="one", **QUIET | fields) for i in range(3)]
    make.write_json(place / "a.json", rows)
    assert run([place / "a.json"]) == 0
    texts = [(place / "results" / name).read_text() for name in ("one/summary.md", "index.html")]
    assert not any("isturbed" in text for text in (*texts, capsys.readouterr().out))


def test_conditions_are_no_regression(make, place):
    """What was quiet in the base and busy in the head: a comparison has nothing to say of it."""
    busy = {name: 5 if isinstance(value, int) else 0.9 for name, value in QUIET.items() if not isinstance(value, str)}
    make.write_json(place / "base.json", entries(make))
    make.write_json(place / "head.json", [make.bench({"n": f"n{i}"}, question="one", **QUIET | busy) for i in range(3)])
    make.write_json(place / "old.json", [make.bench({"n": f"n{i}"}, question="one") for i in range(3)])
    base, head, old = (files.read(place / f"{name}.json") for name in ("base", "head", "old"))
    for one, other in ((base, head), (old, head), (head, old)):
        found = compare(one, other)
        assert found.status == 0 and not set(found.rows["metric"]) & set(CONDITIONS)
    worse = [make.bench({"n": f"n{i}"}, question="one", flops=10 + j) for i in range(3) for j in (0, 1)]
    for name, rows in (("base", worse[::2]), ("head", worse[1::2])):
        make.write_json(place / f"{name}.json", rows)
    assert compare(files.read(place / "base.json"), files.read(place / "head.json")).status == 1  # it does compare

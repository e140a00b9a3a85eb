"""The questions about the harness itself: their bench functions record what was measured, their report counts it."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from mlexp.ab import Comparison
from mlexp.analysis import report
from mlexp.analysis.gate import Verdict
from mlexp.harness import grid
from mlexp.journal import Entry, Journal

from .command import ROOT, run
from .stand_ins import OneCell, Pages, load

QUESTION = "benches/harness/bench_gate.py"
FIELDS = {"status": "passed", "reason": None, "scale": "full", "settings": "{}", "device": "cpu", "machine": "m"}


def plant(path, truth, count, ab, mean, runs):
    """So many comparisons, all with one verdict of `mlexp ab` and these ratios of means."""
    for i in range(count):
        cell = f"{QUESTION}::test_gate[{truth}{i:02d}-{truth}]"
        record = FIELDS | {"ab_verdict": ab, "ab_ratio": 1.0, "ab_low": 0.9, "ab_high": 1.1, "ab_blocks": 9}
        record |= {"base_mean_s": 1.0, "head_mean_s": runs, "when": f"2026-01-01T00:00:{i:02d}+00:00"}
        series = {"base_step_mean_s": [1.0, 3.0], "head_step_mean_s": [mean, 3 * mean]}
        params = {"trial": f"{truth}{i:02d}", "truth": truth}
        Journal(path).append(Entry(cell, f"{path.name}{cell}", "harness", params, record, [1.0], series))


def reported(journal, out, capsys):
    """What `mlexp report` prints."""
    assert report.run([journal], out, ROOT / "benches") == 0
    return capsys.readouterr().out


def test_the_report_counts_what_each_rule_said(tmp_path, capsys):
    journal = tmp_path / "j.jsonl"
    plant(journal, "same", 40, ab="SAME", mean=1.04, runs=1.06)
    plant(journal, "longer", 10, ab="WORSE", mean=1.2, runs=1.0)
    text = reported(journal, tmp_path / "results", capsys)
    assert "unfinished" not in text + (tmp_path / "results/index.html").read_text()
    lines = (tmp_path / "results/harness/rules.csv").read_text().splitlines()
    assert lines[1:] == [
        "same,mlexp ab,40,0",
        'same,"mean:5%, same rounds",40,0',
        'same,"mean:5%, two runs",40,40',
        "longer,mlexp ab,10,10",
        'longer,"mean:5%, same rounds",10,10',
        'longer,"mean:5%, two runs",10,0',
    ]
    assert [line.split()[1] for line in text.splitlines() if line.startswith("  H")] == ["supported:"] * 3


def test_a_gate_that_is_often_wrong_is_said_to_be(tmp_path, capsys):
    journal = tmp_path / "j.jsonl"
    plant(journal, "same", 40, ab="WORSE", mean=1.0, runs=1.0)
    plant(journal, "longer", 10, ab="AMBIGUOUS", mean=1.0, runs=1.0)
    assert reported(journal, tmp_path / "results", capsys).count("refuted: ") == 3


@pytest.mark.slow
def test_a_comparison_leaves_its_rounds(tmp_path):
    words = ("--scale", "smoke", "--journal", str(tmp_path / "j.jsonl"), "--benchmark-json", str(tmp_path / "out.json"))
    status, text = run(tmp_path, "pytest", QUESTION, "-p", "no:cacheprovider", *words)
    assert status == 0, text
    content = json.loads((tmp_path / "out.json").read_text())
    assert {b["params"]["truth"] for b in content["benchmarks"]} == {"same", "longer"}
    for bench in content["benchmarks"]:
        info, series = bench["extra_info"], content["series"][bench["extra_info"]["key"]]
        assert len(series["base_s"]) == len(series["head_step_mean_s"]) == 2 * info["ab_blocks"] > 0
        assert 0.5 < info["ab_ratio"] < 2


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("truths=shorter", "unknown truth 'shorter'; choose from same, longer"),
        ("trials=t00", "unknown trial 't00'; same or longer and a number, such as same00"),
    ],
)
def test_bad_settings_are_named(override, told):
    with pytest.raises(ValueError, match=told):
        grid.override(load("harness", "bench_gate").SETTINGS["quick"], [grid.parse_override(override)])


COMPARISON = Comparison("c", Verdict.SAME, 1.02, 0.97, 1.08, 3, 7, base_s=[1.0, 2.0], head_s=[3.0, 4.0])
COMPARISON.base_mean_s, COMPARISON.head_mean_s = [5.0, 6.0], [7.0, 8.0]


@pytest.mark.parametrize(("truth", "factor"), [("same", 1.0), ("longer", 1.5)])
def test_a_comparison_is_recorded_as_it_was_found(monkeypatch, truth, factor):
    bench, heads = load("harness", "bench_gate"), []
    monkeypatch.setattr(
        bench, "both_rules", lambda head, *terms: heads.append((head, *terms)) or (COMPARISON, [9.0, 10.0])
    )
    settings = bench.Settings(slowdown=0.5, budget_s=2.0, margin=0.1)
    cell = OneCell(bench, settings, seed=77)
    bench.test_gate(cell, f"{truth}00", truth)
    assert heads == [(factor, 2.0, 0.1, 77)] and cell.timed == [(1, False)]
    assert cell.values == {
        "ab_verdict": "SAME", "ab_ratio": 1.02, "ab_low": 0.97, "ab_high": 1.08, "ab_blocks": 3,
        "base_mean_s": 9.0, "head_mean_s": 10.0,
    }  # fmt: skip
    assert {name: list(array) for name, array in cell.arrays.items()} == {
        "base_s": [1.0, 2.0], "head_s": [3.0, 4.0], "base_step_mean_s": [5.0, 6.0], "head_step_mean_s": [7.0, 8.0],
    }  # fmt: skip


def test_the_slower_head_is_slower_and_both_rules_see_the_same_two(monkeypatch):
    """`both_rules` writes the factor into the work: its loops, counted in the commits and in the separate runs."""
    from mlexp import ab

    bench, seen, runs = load("harness", "bench_gate"), [], []

    def revisions(base, head, args, budget, margin, where, seed):
        for ref in (base, head):
            shown = bench.subprocess.run(
                ["git", "show", f"{ref}:test_work.py"], cwd=where, capture_output=True, text=True
            )
            seen.append(items(shown.stdout))
        return [SimpleNamespace(budget=budget, margin=margin, seed=seed, args=args)]

    def mean_of_a_run(folder, factor):
        bench.write(folder, factor)
        runs.append(items((folder / "test_work.py").read_text()))
        return 10.0 * len(runs)

    def items(source):
        return int(source.partition("ITEMS = ")[2].split()[0])

    monkeypatch.setattr(ab, "revisions", revisions)
    monkeypatch.setattr(bench, "mean_of_a_run", mean_of_a_run)
    found, means = bench.both_rules(1.5, 2.0, 0.1, seed=5)
    assert seen == runs == [bench.ITEMS, 1.5 * bench.ITEMS] and means == [10.0, 20.0]
    assert (found.budget, found.margin, found.seed) == (2.0, 0.1, 5)


def test_each_ruler_has_the_medians_of_its_own_cells(monkeypatch):
    bench = load("harness", "bench_harness")

    def of(name, begins):
        rounds = ([1.0, 2.0, 9.0], [3.0, 3.0, 4.0])
        return [{"name": name, "stats": {"data": [begins + x for x in data]}, "extra_info": {"began": begins + i}}
                for i, data in enumerate(rounds)]  # fmt: skip

    asked = []
    monkeypatch.setattr(bench, "session", lambda *args: asked.append(args) or (of("bare", 0.0), of("cell", 100.0)))
    cell = OneCell(bench, bench.Settings(blocks=2, rounds=3), seed=1)
    bench.test_overhead(cell, "spin")
    assert asked == [(0.1, 2, 3)] and cell.values == {"work_s": 0.1}
    assert {name: list(array) for name, array in cell.arrays.items()} == {
        "bare_s": [2.0, 3.0], "bare_began_s": [0.0, 1.0], "cell_s": [102.0, 103.0], "cell_began_s": [100.0, 101.0],
    }  # fmt: skip


@pytest.mark.parametrize("seconds", [0.0, 0.002])
def test_a_session_measures_under_both_rulers(seconds):
    bare, ours = load("harness", "bench_harness").session(seconds, blocks=2, rounds=2)
    assert [b["name"] for b in bare] == ["test_bare[0]", "test_bare[1]"]
    assert [b["name"] for b in ours] == ["test_cell[0]", "test_cell[1]"]
    for bench in bare + ours:
        assert len(bench["stats"]["data"]) == 2 and min(bench["stats"]["data"]) >= seconds
    order = [b["name"] for b in sorted(bare + ours, key=lambda b: b["extra_info"]["began"])]
    interleaved = ["test_bare[0]", "test_cell[0]", "test_cell[1]", "test_bare[1]"]
    assert order == (interleaved if seconds else ["test_bare[0]", "test_bare[1]", "test_cell[0]", "test_cell[1]"])


@pytest.mark.parametrize(("factor", "said"), [(1.01, "supported"), (1.5, "refuted"), (0.9, "supported")])
def test_the_ruler_s_share_is_its_duration_over_the_bare_one(factor, said):
    bare = np.linspace(0.1, 0.2, 12)
    series = {"k": {"bare_s": bare, "cell_s": factor * bare}}
    out = Pages(series)
    load("harness", "report").overhead(frame(work="spin"), out)
    found = out.verdicts["H1"]
    assert (found.said, found.effect) == (said, f"{100 * (factor - 1):+.3f} %")
    assert found.interval == pytest.approx((100 * (factor - 1),) * 2)


@pytest.mark.parametrize(("ours", "said"), [(0.12, "supported"), (0.2, "refuted"), (0.166, "undecided")])
def test_what_the_ruler_adds_is_a_difference_of_gaps(ours, said):
    rng = np.random.default_rng(0)
    gaps = {"bare": 0.1 + rng.normal(0, 0.004, 9), "cell": ours + rng.normal(0, 0.02, 9)}
    series = {"k": {f"{name}_began_s": np.cumsum([0.0, *values]) for name, values in gaps.items()}}
    out = Pages(series)
    load("harness", "report").overhead(frame(work="noop"), out)
    added = gaps["cell"] - np.median(gaps["bare"])
    want = scipy_stats.ttest_1samp(added, 0).confidence_interval()
    found = out.verdicts["H2"]
    assert (found.said, found.effect) == (said, f"{1e3 * added.mean():.1f} ms")
    assert found.interval == pytest.approx((1e3 * want.low, 1e3 * want.high))


def frame(**columns):
    return pd.DataFrame([{"key": "k", **columns}])

"""The questions about the harness itself: their bench functions record what was measured, their report counts it."""

import json
import math
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
from .stand_ins import OneCell, load
from .study.filled import filled, words

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
    plant(journal, "same", 50, ab="SAME", mean=1.04, runs=1.06)
    plant(journal, "longer", 12, ab="WORSE", mean=1.2, runs=1.0)
    text = reported(journal, tmp_path / "results", capsys)
    assert "unfinished" not in text + (tmp_path / "results/index.html").read_text()
    lines = (tmp_path / "results/harness/rules.csv").read_text().splitlines()
    assert lines[1:] == [
        "same,mlexp ab,50,0",
        'same,"mean:5%, same rounds",50,0',
        'same,"mean:5%, two runs",50,50',
        "longer,mlexp ab,12,12",
        'longer,"mean:5%, same rounds",12,12',
        'longer,"mean:5%, two runs",12,0',
    ]
    assert (tmp_path / "results/harness/ab.csv").read_text().splitlines() == [
        "truth,SAME,WORSE", "longer,0,12", "same,50,0"
    ]  # fmt: skip
    found = json.loads((tmp_path / "results/harness/claims.json").read_text())
    verdicts = {row["id"]: row["verdict"] for row in found}
    assert verdicts == {"H1": "not tested", "H2": "not tested"} | dict.fromkeys(("H3", "H4", "H5"), "supported")
    assert "H3 supported" in text


# Each rule's errors, as independent trials.


def trials(truth, worse, of, separate=0):
    """So many comparisons of a truth, of which `mlexp ab` says WORSE of the first, mean:5% of the last ones."""
    rows = []
    for i in range(of):
        row = {"trial": f"{truth}{i:02d}", "truth": truth, "ab_verdict": "WORSE" if i < worse else "SAME"}
        row |= {"ab_ratio": 1.0, "base_mean_s": 2.0, "head_mean_s": 2.2 if i >= of - separate else 2.0}
        rows.append(row)
    return pd.DataFrame(rows)


def exact(count, n, confidence):
    """Clopper and Pearson's interval from quantiles of the beta distribution."""
    tail = (1 - confidence) / 2
    low = scipy_stats.beta.ppf(tail, count, n - count + 1) if count else 0.0
    return low, scipy_stats.beta.isf(tail, count + 1, n - count) if count < n else 1.0


@pytest.mark.parametrize(
    ("same", "longer", "verdicts"),
    [
        ((0, 50, 0), (12, 12, 0), "supported, supported, not tested"),
        ((0, 50, 0), (10, 10, 0), "supported, undecided, not tested"),
        ((20, 50, 0), (1, 10, 0), "refuted, refuted, refuted"),
        ((5, 50, 0), (7, 10, 0), "undecided, undecided, undecided"),
        ((0, 50, 20), (8, 10, 0), "supported, undecided, supported"),
        ((0, 50, 2), (55, 60, 0), "supported, supported, undecided"),
        ((20, 50, 20), (0, 10, 10), "refuted, refuted, undecided"),
        ((20, 50, 50), (0, 10, 10), "refuted, refuted, supported"),  # 30 of the 30 in which one rule does
    ],
)
def test_verdicts_on_the_gate(same, longer, verdicts):
    records = pd.concat([trials("same", *same), trials("longer", *longer)], ignore_index=True)
    found = filled("harness", records, report=False).findings
    assert ", ".join(str(found[id].verdict) for id in ("H3", "H4", "H5")) == verdicts
    alone = {i for i in range(same[1]) if (i < same[0]) != (i >= same[1] - same[2])}
    separate = sum(i >= same[1] - same[2] for i in alone)
    for id, count, n, confidence, bounds in (
        ("H3", same[0], same[1], 0.975, (None, 0.1)),
        ("H4", longer[0], longer[1], 0.975, (2 / 3, None)),
        ("H5", separate, len(alone), 0.95, (0.5, None)),
    ):
        if not n:
            assert "no share in which mean:5% says WORSE" in found[id].reason
            continue
        (part,) = found[id].parts
        assert part.estimate[:4] == pytest.approx((count / n, *exact(count, n, confidence), n))
        assert (part.low, part.high) == bounds and found[id].confidence == confidence
    assert [found[id].rank for id in found] == ["check", "check", "primary", "primary", "secondary"]
    assert found["H1"].reason == "no share added to a 100 ms cell in these records"


def test_the_full_scale_has_trials_enough_to_support_its_primary_claims():
    full = load("harness", "bench_gate").SETTINGS["full"].trials
    same, longer = (sum(trial.startswith(kind) for trial in full) for kind in ("same", "longer"))
    assert exact(0, same, 0.975)[1] < 0.1 and exact(longer, longer, 0.975)[0] > 2 / 3


def test_without_slower_code_its_claim_is_not_tested():
    found = words(filled("harness", trials("same", 0, 50), report=False))
    assert (found["H3"], found["H4"]) == ("supported", "not tested")
    found = words(filled("harness", trials("longer", 12, 12), report=False))
    assert (found["H3"], found["H4"], found["H5"]) == ("not tested", "supported", "not tested")


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


# What the harness adds, as values that follow one another in time.


def worth(values):
    """How many independent values these are worth: n (1 - r) / (1 + r) where r, from one to the next, is positive."""
    centred = values - values.mean()
    r = max(0.0, (centred[1:] * centred[:-1]).sum() / (centred**2).sum())
    return max(2, math.floor(len(values) * (1 - r) / (1 + r)))


def in_time(values):
    """(mean, low, high, number of independent values) by Student's t."""
    n = worth(values)
    half = scipy_stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)
    return values.mean(), values.mean() - half, values.mean() + half, n


@pytest.mark.parametrize(
    ("share", "drift", "verdict"),
    [(0.01, 0.0, "supported"), (0.05, 0.0, "refuted"), (-0.02, 0.0, "supported"), (0.0195, 0.0, "undecided"),
     (0.012, 0.03, "undecided")],
)  # fmt: skip
def test_the_share_of_the_harness_is_its_duration_over_that_of_its_neighbour(share, drift, verdict):
    rng = np.random.default_rng(1)
    ratio = 1 + share + rng.normal(0, 0.005, 20) + np.linspace(-drift, drift, 20)
    bare = np.linspace(0.1, 0.2, 20)
    out = filled("harness", frame(work="spin"), {"k": {"bare_s": bare, "cell_s": ratio * bare}})
    (part,) = out.findings["H1"].parts
    assert part.estimate[:4] == pytest.approx(in_time(ratio - 1)) and (part.low, part.high) == (None, 0.02)
    assert (str(out.findings["H1"].verdict), out.findings["H2"].verdict) == (verdict, "not tested")
    assert (worth(ratio - 1) < 20) or not drift  # what drifts is worth fewer values
    (row,) = out.tables["overhead.csv"].to_dict("records")
    assert row["what"] == "share added to a 100 ms cell"
    assert [row[name] for name in ("value", "low", "high", "n")] == pytest.approx(in_time(ratio - 1))
    assert set(out.figures) == {"share.svg"}
    (dots, _, _) = out.figures["share.svg"].axes[0].get_lines()
    assert list(dots.get_ydata()) == pytest.approx(list(ratio))


@pytest.mark.parametrize(("ours", "verdict"), [(0.12, "supported"), (0.2, "refuted"), (0.158, "undecided")])
def test_what_the_harness_adds_is_a_difference_of_gaps(ours, verdict):
    rng = np.random.default_rng(0)
    gaps = {"bare": 0.1 + rng.normal(0, 0.004, 9), "cell": ours + rng.normal(0, 0.02, 9)}
    series = {"k": {f"{name}_began_s": np.cumsum([0.0, *values]) for name, values in gaps.items()}}
    out = filled("harness", frame(work="noop"), series)
    added = gaps["cell"] - np.median(gaps["bare"])
    (part,) = out.findings["H2"].parts
    assert part.estimate[:4] == pytest.approx(in_time(added)) and (part.low, part.high) == (None, 0.05)
    assert (str(out.findings["H2"].verdict), out.findings["H1"].verdict) == (verdict, "not tested")
    assert list(out.tables["overhead.csv"]["value"]) == pytest.approx([added.mean()]) and not out.figures


def frame(**columns):
    return pd.DataFrame([{"key": "k", **columns}])

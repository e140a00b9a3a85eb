"""The question about the gate: its report counts what was planted, and a comparison at smoke scale leaves a record."""

import json

import pytest

from mlexp.journal import Entry, Journal

from .command import run

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


def test_the_report_counts_what_each_rule_said(tmp_path):
    journal = tmp_path / "j.jsonl"
    plant(journal, "same", 40, ab="SAME", mean=1.04, runs=1.06)
    plant(journal, "longer", 10, ab="WORSE", mean=1.2, runs=1.0)
    status, text = run(tmp_path, "mlexp", "report", str(journal), "--out", str(tmp_path / "results"))
    assert status == 0, text
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


def test_a_gate_that_is_often_wrong_is_said_to_be(tmp_path):
    journal = tmp_path / "j.jsonl"
    plant(journal, "same", 40, ab="WORSE", mean=1.0, runs=1.0)
    plant(journal, "longer", 10, ab="AMBIGUOUS", mean=1.0, runs=1.0)
    status, text = run(tmp_path, "mlexp", "report", str(journal), "--out", str(tmp_path / "results"))
    assert status == 0 and text.count("refuted: ") == 3, text


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
def test_bad_settings_are_named(tmp_path, override, told):
    status, text = run(tmp_path, "pytest", QUESTION, "--set", override, "--collect-only", "-p", "no:cacheprovider")
    assert status == 4 and told in text, text

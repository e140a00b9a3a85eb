"""The maze question as a user runs it, at smoke scale: every arm, records, the seed's outputs, errors."""

import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from .command import ROOT, run

ARMS = ("baseline", "poh_hrm", "poh_r1", "poh_uniform", "poh_static", "poh_t_inf", "baseline_wide", "baseline_deep",
        "baseline_long")  # fmt: skip


def bench(place, *words):
    question = ("pytest", "benches/maze_scaling", "--scale", "smoke", "-p", "no:cacheprovider")
    return run(place, *question, "--journal", str(place / "journal.jsonl"), *words)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("maze")
    status, text = bench(place, "--set", "seeds=42,43", "--benchmark-json", str(place / "out.json"))
    assert status == 0, text
    return place


def benchmarks(place, name="out.json"):
    return {(b["params"]["arch"], b["params"]["seed"]): b for b in json.loads((place / name).read_text())["benchmarks"]}


def test_every_arm_leaves_a_complete_record(place):
    found = benchmarks(place)
    assert set(found) == {(arm, seed) for arm in ARMS for seed in (42, 43)}
    for (arm, _), b in found.items():
        info = b["extra_info"]
        assert info["oracle_accuracy"] == 1 and 0 <= info["accuracy"] == info["optimality"] <= 1
        assert info["flops"] > 0 and info["peak_bytes"] > 0 and 0 < info["cell_accuracy"] < 1
        assert ("routing_entropy" in info) == (arm in ("poh_hrm", "poh_r1", "poh_t_inf"))
        assert info["steps"] == (16 if arm == "baseline_long" else 4)
    base, poh, deep = (found[arm, 42]["extra_info"] for arm in ("baseline", "poh_hrm", "baseline_deep"))
    assert found["baseline_wide", 42]["extra_info"]["n_params"] == pytest.approx(poh["n_params"], rel=0.02)
    assert 3.9 < poh["flops"] / base["flops"] < 5 and 3.9 < deep["flops"] / base["flops"] < 4.1
    floors = {b["extra_info"]["random_accuracy"] for (_, seed), b in found.items() if seed == 42}
    assert len(floors) == 1  # all arms of a seed walk the same mazes


def test_the_same_key_gives_the_same_quality_bit_for_bit(place):
    status, text = bench(
        place, "-k", "seed42-poh_hrm", "--set", "seeds=42,43", "--benchmark-json", str(place / "again.json")
    )
    assert status == 0, text
    one, two = (
        benchmarks(place)["poh_hrm", 42]["extra_info"],
        benchmarks(place, "again.json")["poh_hrm", 42]["extra_info"],
    )
    for name in ("accuracy", "loss_nats", "cell_accuracy", "routing_entropy", "larger_accuracy", "key"):
        assert one[name] == two[name], name


def test_the_report_writes_the_seeds_outputs_and_answers_its_questions(place):
    status, text = run(place, "mlexp", "report", str(place / "out.json"), "--out", str(place / "results"))
    assert status == 0, text
    folder = place / "results" / "maze_scaling"
    seeds = json.loads((folder / "scaling_results_maze5.json").read_text())
    assert seeds["config"] == {"maze_size": 5, "n_train": 32, "n_test": 20, "epochs": 1, "R": 4, "T": 4}
    assert (seeds["seeds"], seeds["scale"]) == (2, "smoke") and 0 < seeds["floors"]["random"] < 100
    (row,) = seeds["results"]
    assert row["size"] == "tiny" and row["poh_advantage_acc"] == pytest.approx(row["poh_acc"] - row["baseline_acc"])
    assert set(row) == {"size", *(f"{a}_{m}" for a in ("baseline", "poh") for m in ("params", "acc", "opt")),
                        "poh_advantage_acc", "poh_advantage_opt"}  # fmt: skip
    assert "average PoH advantage" in (folder / "scaling_summary_maze5.txt").read_text()
    for name in ("scaling_plot_maze5", "learning", "iterations", "length", "larger", "mazes"):
        assert (folder / f"{name}.png").stat().st_size > 1000, name
    gains = (folder / "gains.csv").read_text()
    assert "routing, of any kind" in gains and "the slow state" in gains and "as many layers" in gains
    summary = (folder / "summary.md").read_text()
    assert "Does the advantage exist at all sizes?" in summary and "needs three sizes and two seeds" in summary


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sizes=mini", "unknown size 'mini'; choose from tiny, small"),
        ("archs=hrm", "unknown arch 'hrm'; choose from baseline, poh_hrm"),
        ("generator=wilson", "unknown generator 'wilson'; choose from dfs, dfs_loops"),
        ("R=0", "R is 0; at least 1"),
        ("lr=0", "lr is 0.0; above 0"),
        ("min_path=1.5", "min_length=37: a 5 x 5 maze has 25 cells"),
        ("heads=3", "heads=3: must divide 128 / 4"),
        ("larger=1", "n=1: expected an integer of at least 2"),
    ],
)
def test_bad_settings_name_what_is_allowed(place, change, message):
    status, text = bench(place, "--set", change)
    assert status == 4 and message in text and "Traceback" not in text


@pytest.fixture(scope="module")
def report_module():
    spec = importlib.util.spec_from_file_location("maze_report", ROOT / "benches/maze_scaling/report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def said(module, curves):
    """Verdicts by id on made-up records: {arm: accuracy at tiny, small, medium, large}, five seeds, little noise."""
    rng, rows = np.random.default_rng(0), []
    for arm, values in curves.items():
        for (size, n), mean in zip(
            {"tiny": 4e5, "small": 2e6, "medium": 1e7, "large": 4e7}.items(), values, strict=True
        ):
            rows += [{"size": size, "arch": arm, "seed": seed, "n_params": n * (1.05 if arm == "poh_hrm" else 1),
                      "accuracy": mean + rng.normal(0, 0.002), "random_accuracy": 0.05, "manhattan_accuracy": 0.1}
                     for seed in range(5)]  # fmt: skip
    found = {}
    out = SimpleNamespace(verdict=lambda id, claim, verdict, *rest, **more: found.setdefault(id, str(verdict)))
    records = pd.DataFrame(rows)
    records.attrs["axes"] = ["size", "seed", "arch"]
    module.verdicts(records, out)
    return found


@pytest.mark.parametrize(
    ("baseline", "poh", "want"),
    [
        ((0.4, 0.5, 0.6, 0.7), (0.3, 0.5, 0.7, 0.8), {"H1": "supported", "H2": "refuted", "H3": "refuted"}),
        ((0.4, 0.5, 0.6, 0.7), (0.5, 0.6, 0.7, 0.8), {"H1": "refuted", "H2": "supported", "H3": "refuted"}),
        ((0.4, 0.6, 0.7, 0.7), (0.5, 0.7, 0.8, 0.8), {"H1": "refuted", "H3": "supported", "Q": "supported"}),
        ((0.4, 0.4, 0.4, 0.4), (0.4, 0.4, 0.4, 0.4), {"H1": "undecided", "H3": "supported"}),
        ((0.2, 0.2, 0.2, 0.2), (0.5, 0.5, 0.5, 0.5), {"H0 baseline": "refuted", "H0 poh_hrm": "supported"}),
    ],
)
def test_the_hypotheses_are_told_from_each_other(report_module, baseline, poh, want):
    found = said(report_module, {"baseline": baseline, "poh_hrm": poh})
    assert {id: found[id] for id in want} == want

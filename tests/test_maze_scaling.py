"""The maze question as a user runs it, at smoke scale: every arm, records, the seed's outputs, errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ARMS = ("baseline", "poh_hrm", "poh_r1", "poh_uniform", "poh_static", "poh_t_inf", "baseline_wide", "baseline_deep",
        "baseline_long")  # fmt: skip


def run(place, *words):
    """`python -m words` in the checkout, with a cache of its own; (status, what it printed)."""
    env = os.environ | {"XDG_CACHE_HOME": str(place / "cache")}
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


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
        ("min_path=1.5", "min_length=37: a 5 x 5 maze has 25 cells"),
        ("heads=3", "heads=3: must divide 128 / 4"),
        ("larger=1", "n=1: expected an integer of at least 2"),
    ],
)
def test_bad_settings_name_what_is_allowed(place, change, message):
    status, text = bench(place, "--set", change)
    assert status == 4 and message in text and "Traceback" not in text

"""The language-model question as a user runs it, at smoke scale: records, the original's outputs, errors."""

import csv
import json
import re
import signal
import subprocess
import time

import pytest

from mlexp.analysis.files import read
from mlexp.harness.grid import override, parse_override

from .command import ROOT, command, run
from .lm_scale import module
from .reported import reported

EQPROP = ("looped_mlp", "recurrent_core", "full", "full_kappa0")
TWINS = ("looped_mlp_twin", "recurrent_core_twin", "full_twin")
LEARNERS = ("backprop", "backprop_matched", *EQPROP, *TWINS)
FEW = ("learners=backprop,full", "controls=full_twin", "control_sizes=n1000", "data_sizes=n1000", "lengths=len8",
       "steppers=backprop,full,full_unrolled", "variants=full", "nudges=split")  # fmt: skip
ARMS = ("backprop", "full", "full_twin")


def question(place, *words):
    most = ("pytest", "benches/lm_scale_study", "--scale", "smoke", "-p", "no:cacheprovider", "--benchmark-quiet")
    return (*most, "--journal", str(place / "journal.jsonl"), *words)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("lm")
    few = [word for change in FEW for word in ("--set", change)]
    status, text = run(place, *question(place, *few, "--benchmark-json", str(place / "out.json")))
    assert status == 0, text
    status, text = run(place, "mlexp", "report", str(place / "out.json"), "--out", str(place / "results"))
    assert status == 0, text
    return place


def benchmarks(place, name="out.json"):
    return {b["fullname"].rpartition("::test_")[2]: b for b in json.loads((place / name).read_text())["benchmarks"]}


def infos(place, grid):
    return {name: b["extra_info"] for name, b in benchmarks(place).items() if name.startswith(grid)}


def test_a_few_cells_of_every_grid_leave_their_records(place):
    """test_lm_scale_cells checks what is in them; here it went through the plugin into the file."""
    found = infos(place, "")
    grids = {"data_size": 2, "controls": 1, "sequence_length": 2, "step": 6, "gradient": 2}
    assert {grid: sum(name.startswith(grid + "[") for name in found) for grid in grids} == grids
    for name, info in (infos(place, "data_size") | infos(place, "controls")).items():
        learner = name.rpartition("-")[2].rstrip("]")
        assert learner in ARMS and 1 < info["perplexity"] < 120 and info["flops"] > 0 and info["peak_bytes"] > 0
        assert info["validation_perplexity"] <= info["last_validation_perplexity"]
        assert info["updates"] == 4 and info["planned_cells"] == 5 and not info["tuned"] and 0 <= info["leak"] <= 0.01
        assert (info["gradient_cosine"] is not None) == (learner == "full")
        assert ("free_sweeps" in info) == (learner != "backprop")
        if learner == "full":
            assert info["gradient_cosine"] >= 0.99 and info["free_residual"] < 2e-3 and info["nudged_residual"] < 0.2
            assert info["unconverged_fraction"] == 0
    one, two = (found[f"step[s{n}-full]"] for n in (1, 2))
    assert one["saved_bytes"] == pytest.approx(two["saved_bytes"], rel=0.01) and two["flops"] > one["flops"]
    assert found["step[s2-full_unrolled]"]["saved_bytes"] > 1.5 * found["step[s1-full_unrolled]"]["saved_bytes"]
    assert found["step[s1-backprop]"].get("step_limit") is None


def test_the_same_key_gives_the_same_quality_bit_for_bit(place):
    few = [word for change in FEW for word in ("--set", change)]
    words = question(place, *few, "-k", "data_size and full", "--benchmark-json", place / "again.json")
    status, text = run(place, *map(str, words))
    assert status == 0, text
    again = benchmarks(place, "again.json")
    assert list(again) == ["data_size[n1000-seed42-full]"]
    for name, cell in again.items():
        before = benchmarks(place)[name]["extra_info"]
        for metric in ("perplexity", "validation_perplexity", "gradient_cosine", "nudged_residual", "flops", "key"):
            assert cell["extra_info"].get(metric) == before.get(metric), (name, metric)


def test_the_report_writes_the_original_s_outputs(place):
    folder = place / "results" / "lm_scale_study"
    final = json.loads((folder / "results_final.json").read_text())
    assert final["finished"] and final["cells"] == final["planned_cells"] == len(final["results"]) == 5
    assert final["config"] == {"hidden": 16, "layers": 2, "seq_len": 16, "epochs": None, "updates": 4}
    rows = list(csv.DictReader((folder / "results_final.csv").open()))
    assert len(rows) == 5 and {row["learner"] for row in rows} == set(ARMS)
    assert {(row["n_chars"], row["seq_len"]) for row in rows if row["experiment"] == "sequence_length"} == {
        ("10000", "8")
    }
    assert not (folder / "results_intermediate.json").exists()
    for name in ("data_size", "learning", "gradient_course", "gradient", "step"):
        assert (folder / f"{name}.svg").stat().st_size > 1000, name
    for name in ("perplexity", "sequence_perplexity", "advantage", "sequence_advantage", "parts"):
        text = (folder / f"{name}.csv").read_text()
        assert "bigram" in text and "unigram" in text, name
    summary = (folder / "summary.md").read_text()
    for words in (
        "**Not tuned:**",
        "cannot come from the learning rule",
        "Above 20K characters a variant is twice better",
    ):
        assert words in summary


@pytest.fixture(scope="module")
def committed():
    (path,) = (ROOT / "results/raw").glob("lm_scale_study-quick-*.json")
    loaded = read(path)
    return [row for row in loaded.rows if row.values["status"] == "passed"]


@pytest.mark.parametrize(
    ("keep", "files"),
    [
        (r"n1000.*-backprop\]", {"perplexity.csv", "results_intermediate.json"}),
        (r"sequence_length.*-full\]", {"sequence_perplexity.csv", "trust.csv", "results_intermediate.json"}),
        (r"data_size.*(?:full|backprop|full_twin)\]", {"data_size.svg", "parts.csv", "gradient_course.svg"}),
        (r"test_step.*full", {"step.csv", "step.svg"}),
        (r"test_gradient\[full", {"gradient.csv", "gradient.svg"}),
    ],
)
def test_a_part_of_the_records_has_its_report(committed, keep, files):
    some = [row for row in committed if re.search(keep, row.values["cell"])]
    found = reported("lm_scale_study", some)
    assert some and files <= set(found.files) and "results_final.json" not in found.files
    assert found.verdicts["Q"] == "not tested"


SMALL = ("data_sizes=n1000", "lengths=len16", "learners=backprop,full", "seeds=42,43", "updates=40")  # 8 cells


@pytest.mark.slow
def test_an_interrupted_study_keeps_its_cells_and_resumes(tmp_path):
    settings = [word for change in SMALL for word in ("--set", change)]
    journal = tmp_path / "journal.jsonl"
    words = question(tmp_path, *settings, "-k", "data_size or sequence_length", "--benchmark-json", tmp_path / "a.json")
    process = subprocess.Popen(**command(tmp_path, *map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    until = time.monotonic() + 120
    while finished(journal) < 3 and time.monotonic() < until and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    done_before = finished(journal)
    assert process.returncode == 2 and 3 <= done_before < 8, text
    status, text = run(tmp_path, "mlexp", "report", str(journal), "--out", str(tmp_path / "part"))
    folder = tmp_path / "part" / "lm_scale_study"
    assert status == 0, text
    part = json.loads((folder / "results_intermediate.json").read_text())
    assert not part["finished"] and (part["cells"], part["planned_cells"]) == (done_before, 8)
    assert len((folder / "results_final.csv").read_text().splitlines()) == done_before + 1
    assert (folder / "summary.md").exists() and not (folder / "results_final.json").exists()
    words = [*map(str, words), "--resume"]
    status, text = run(tmp_path, *words)
    assert status == 0, text
    done = [b["extra_info"] for b in json.loads((tmp_path / "a.json").read_text())["benchmarks"]]
    assert len(done) == 8 and sum(bool(info.get("replayed")) for info in done) == done_before
    status, text = run(tmp_path, "mlexp", "report", str(tmp_path / "a.json"), "--out", str(tmp_path / "whole"))
    whole = json.loads((tmp_path / "whole" / "lm_scale_study" / "results_final.json").read_text())
    assert status == 0 and whole["finished"] and whole["cells"] == 8


def finished(journal) -> int:
    """Cells that the journal holds; a line that is being written does not count."""
    lines = journal.read_text().splitlines() if journal.exists() else []
    return sum(line.startswith('{"event":"cell"') and line.endswith("}") for line in lines)


@pytest.fixture(scope="module")
def bench_module():
    return module("bench_lm_scale_study")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("learners=eqprop", "unknown learner 'eqprop'; choose from backprop, backprop_matched"),
        ("variants=full_twin", "unknown variant 'full_twin'; choose from looped_mlp, recurrent_core, full"),
        ("nudges=none", "unknown nudge 'none'; choose from symmetric, split, positive"),
        ("steppers=full_twin", "unknown stepper 'full_twin'; choose from backprop, backprop_matched, looped_mlp"),
        ("data_sizes=1000", "unknown n_chars '1000'; like n1000, any number"),
        ("data_sizes=n10", "n_chars 'n10': needs more characters than a sequence has, 16"),
        ("heads=3", "heads=3: must divide the width 16"),
        ("min_context=9", "min_context is 9; 1 to 8, the shortest sequence"),
        ("updates=0", "updates is 0; at least 1"),
    ],
)
def test_bad_settings_name_what_is_allowed(bench_module, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        override(bench_module.STUDY.settings["smoke"], [parse_override(change)])


def test_what_the_text_cannot_give_is_an_error_before_the_first_cell(tmp_path):
    status, text = run(tmp_path, *question(tmp_path, "--set", "data_sizes=n9000000"))
    assert status == 4 and "n_chars=9000000: the training text has" in text and "Traceback" not in text


def test_budgets_are_the_original_s(bench_module):
    full, quick = bench_module.STUDY.settings["full"], bench_module.STUDY.settings["quick"]
    assert [full.steps(n, 64) for n in (1000, 20_000, 50_000)] == [300, 300, 720]
    assert full.planned == 5 * 10 * len(LEARNERS) and quick.planned == 5 * (3 + 2) * 4 + 5 * 5
    assert all(bench_module.chosen("quick", f"{name}_twin")["lr"] == bench_module.chosen("quick", name)["lr"]
               for name in ("looped_mlp", "recurrent_core", "full"))  # fmt: skip

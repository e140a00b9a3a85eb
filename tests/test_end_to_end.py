"""The decoding question as a user runs it: a few cells of the model trained here, from one session to its page.

What is measured is held in-process: tests/decoding/test_question.py; the report: tests/decoding/test_report.py.
"""

import json
import re

import pytest

from .command import run

ARMS = ("sequential", "shared_prefill", "eab_particles")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("run")
    lines = (f"Line {i} of a text about the number {i * 7}." for i in range(900))
    (place / "corpus.txt").write_text("\n\n".join(lines))
    return place


def bench(place, *words):
    question = ("pytest", "benches/decoding_speedup", "--scale", "smoke", "-p", "no:cacheprovider")
    small = ("--set", "nano_steps=1", "--set", f"decoders={','.join(ARMS)}", "--corpus", str(place / "corpus.txt"))
    return run(place, *question, *small, "--journal", str(place / "journal.jsonl"), *words)


@pytest.fixture(scope="module")
def benchmarks(place):
    """One prompt alone and two together, on every arm: (prompt or batch, arm) -> benchmark."""
    cells = "gpt2_nano and (p00 or b00)"
    status, text = bench(place, "-k", cells, "--benchmark-json", str(place / "out.json"))
    assert status == 0, text
    found = json.loads((place / "out.json").read_text())["benchmarks"]
    return {(b["params"].get("prompt") or b["params"]["batch"], b["params"]["decoder"]): b for b in found}


def test_every_arm_leaves_a_complete_record(benchmarks):
    assert set(benchmarks) == {("p00", arm) for arm in ARMS} | {("b00", arm) for arm in ARMS[1:]}
    for (place, arm), one in benchmarks.items():
        info = one["extra_info"]
        for name in ("flops", "peak_bytes", "token_forwards", "model_forwards", "logit_rows", "mean_surprisal_nats"):
            assert info[name] > 0, name
        assert info["weights"] == "trained" and info["corpus"] == "corpus.txt" and info["weights_hash"]
        assert info["flops"] == info["flops_arm_closed_form"] and info["kernel_backend"] == "reference"
        assert info["flops_closed_form"] == 2 * info["n_params"] * info["token_forwards"]
        assert info["accuracy"] is None and info["n_prompts"] == (1 if place == "p00" else 2)
        assert arm == "eab_particles" or info["worst_effective_samples"] == 2  # independent samples
    info = benchmarks["p00", "eab_particles"]["extra_info"]
    assert 0 < info["worst_effective_samples"] < 4 and info["worst_functional"].startswith("token_")
    assert info["worst_effective_samples_error"] > 0


def test_the_report_says_what_was_measured_and_what_stands_in(place, benchmarks):
    status, text = run(place, "mlexp", "report", str(place / "out.json"), "--out", str(place / "results"))
    assert status == 0, text
    folder = place / "results" / "decoding_speedup"
    for name in ("speedup.csv", "limits.csv", "quality.csv", "throughput.csv", "speedup.svg"):  # one model: no lines
        assert (folder / name).stat().st_size > 100, name
    page = (place / "results" / "index.html").read_text()
    assert "not tested" in page and "stand-in" in page and "trained" in page
    assert re.search(r"H1 not tested: .*(primary, registered)", text)
    wall = {key: one["stats"]["median"] for key, one in benchmarks.items()}
    rows = (folder / "speedup.csv").read_text().splitlines()
    (row,) = [dict(zip(rows[0].split(","), line.split(","), strict=True)) for line in rows if "sequential" in line]
    assert float(row["speedup"]) == pytest.approx(wall["p00", "sequential"] / wall["p00", "eab_particles"])


def test_bad_weights_are_one_line_before_the_first_cell(place, tmp_path):
    status, text = bench(place, "--weights", str(tmp_path), "--benchmark-json", str(tmp_path / "out.json"))
    errors = [line for line in text.splitlines() if line.startswith("ERROR")]
    assert status == 4 and len(errors) == 1 and str(tmp_path) in errors[0] and "config.json" in errors[0]
    assert "Traceback" not in text and not (tmp_path / "out.json").exists()


def test_bad_settings_name_what_is_allowed(place):
    """One of those in tests/decoding/test_question.py, as the command line tells it."""
    status, text = bench(place, "--set", "batches=p1")
    message = "unknown batch 'p1'; choose from b00, b01, b02, ... (any number)"
    assert status == 4 and message in text and "Traceback" not in text


def test_a_broken_prompts_file_is_one_line(place, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "p00"}\n')
    status, text = bench(place, "--prompts", str(path))
    assert status == 4 and "line 1" in text and "Traceback" not in text

"""The decoding question as a user runs it, at smoke scale on the model that is trained here: cells, records, report."""

import importlib.util
import json
import re
from types import SimpleNamespace

import pandas as pd
import pytest

from mlexp.record import CONDITIONS

from .command import ROOT, run

ARMS = ("sequential", "hf_batched", "shared_prefill", "dedup", "eab_paper", "eab_particles")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


def bench(place, *words):
    question = (
        "pytest",
        "benches/decoding_speedup",
        "-k",
        "gpt2_nano and p00",
        "--scale",
        "smoke",
        "-p",
        "no:cacheprovider",
    )
    return run(place, *question, "--journal", str(place / "journal.jsonl"), *words)


@pytest.fixture(scope="module")
def records(place):
    """Two runs of the six cells: their benchmarks."""
    runs = []
    for name in ("one.json", "two.json"):
        status, text = bench(place, "--benchmark-json", str(place / name))
        assert status == 0, text
        runs.append({b["params"]["decoder"]: b for b in json.loads((place / name).read_text())["benchmarks"]})
    return runs


def test_every_arm_leaves_a_complete_record(records):
    assert set(records[0]) == set(ARMS)
    for bench in records[0].values():
        info = bench["extra_info"]
        for name in ("flops", "peak_bytes", "token_forwards", "model_forwards", "logit_rows", "mean_surprisal_nats"):
            assert info[name] > 0, name
        assert info["weights"] == "trained" and info["corpus"].startswith("pydoc_topics") and info["weights_hash"]
        assert info["flops"] == info["flops_arm_closed_form"]
        assert info["flops_closed_form"] == 2 * info["n_params"] * info["token_forwards"]
        assert info["accuracy"] is None  # only pretrained weights can know an answer


def test_effective_samples_are_n_where_samples_are_independent(records):
    for arm, bench in records[0].items():
        info = bench["extra_info"]
        assert "effective_samples" not in info  # of older records: surprisal alone
        if arm.startswith("eab"):
            assert 0 < info["worst_effective_samples"] < 2 * info["n_samples"]
            assert info["worst_functional"].startswith("token_")
            assert info["worst_effective_samples_error"] > 0
        else:
            assert info["worst_effective_samples"] == info["first_token_effective_samples"] == info["n_samples"] == 2


def test_the_same_key_gives_the_same_quality_bit_for_bit(records):
    volatile = {"peak_bytes", "bytes_per_sample", "when", "energy_j", *CONDITIONS}
    for arm in ARMS:
        one, two = (
            {name: value for name, value in run[arm]["extra_info"].items() if name not in volatile} for run in records
        )
        assert one == two


def test_arms_that_sample_exactly_draw_the_same_samples(records):
    surprisal = {arm: bench["extra_info"]["mean_surprisal_nats"] for arm, bench in records[0].items()}
    assert surprisal["sequential"] == pytest.approx(surprisal["shared_prefill"], rel=1e-5)
    assert surprisal["sequential"] == pytest.approx(surprisal["dedup"], rel=1e-5)


def test_the_report_says_what_was_measured_and_what_stands_in(place, records):
    status, text = run(place, "mlexp", "report", str(place / "one.json"), "--out", str(place / "results"))
    assert status == 0, text
    folder = place / "results" / "decoding_speedup"
    for name in ("speedup.csv", "limits.csv", "quality.csv", "speedup_vs_params.png", "time_saved.png", "cost.png"):
        assert (folder / name).stat().st_size > 100, name
    page = (place / "results" / "index.html").read_text()
    assert "undecided" in page and "stand-in" in page and "trained" in page
    assert re.search(r"H1 undecided", text)
    table = (folder / "quality.csv").read_text()
    assert "worst_effective_samples,worst_functional" in table and "(1 of 1)" in table
    assert "by_surprisal" not in (folder / "speedup.csv").read_text() and "surprisal alone" not in page


def test_older_records_are_shown_and_not_judged_by_surprisal_alone(place, records):
    old = json.loads((place / "one.json").read_text())
    for info in (b["extra_info"] for b in old["benchmarks"]):
        for name in [name for name in info if name.endswith(("effective_samples", "effective_samples_error"))]:
            del info[name]
        info.pop("worst_functional", None)
        info["effective_samples"] = 1.9
    (place / "old.json").write_text(json.dumps(old))
    status, text = run(place, "mlexp", "report", str(place / "old.json"), "--out", str(place / "old"))
    assert status == 0, text
    assert "H3 gpt2_nano dedup undecided" in text and "H3 gpt2_nano shared_prefill undecided" in text
    assert "surprisal alone" in (place / "old" / "index.html").read_text()
    header = (place / "old" / "decoding_speedup" / "speedup.csv").read_text().splitlines()[0]
    assert "per_effective_sample_by_surprisal" in header
    assert ",effective_samples," in (place / "old" / "decoding_speedup" / "quality.csv").read_text()


@pytest.mark.parametrize(("worth", "verdict"), [(12.0, "supported"), (6.0, "refuted"), (None, "undecided")])
def test_the_worst_functional_decides(worth, verdict):
    """Twice as fast as the baselines, with 20 samples: what they are worth decides, whatever surprisal says."""
    spec = importlib.util.spec_from_file_location("decoding_report", ROOT / "benches/decoding_speedup/report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arms = {"dedup": 2.0, "shared_prefill": 2.1, "eab_particles": 1.0}
    rows = [{"model": "gpt2_nano", "n_params": 1, "prompt": f"p{i:02d}", "decoder": arm, "wall_s": wall + 0.01 * i,
             "worst_effective_samples": worth, "surprisal_effective_samples": 19.0, "settings": '{"samples": 20}',
             "question": "decoding_speedup", "weights_hash": "w", "corpus_hash": "c", "prompts_hash": "p"}
            for i in range(5) for arm, wall in arms.items()]  # fmt: skip
    said = {}
    module.per_sample(pd.DataFrame(rows), SimpleNamespace(
        verdict=lambda id, claim, verdict, *rest, **more: said.setdefault(id, str(verdict))))  # fmt: skip
    assert set(said.values()) == {verdict} and len(said) == (2 if worth else 1)


def test_prompts_decoded_together_have_records_and_a_section_of_their_own(place, records):
    status, text = bench(place, "-k", "gpt2_nano and b00", "--benchmark-json", str(place / "batch.json"))
    assert status == 0, text
    benchmarks = json.loads((place / "batch.json").read_text())["benchmarks"]
    assert {b["params"]["decoder"] for b in benchmarks} == set(ARMS) - {"sequential"}
    for info in (b["extra_info"] for b in benchmarks):
        assert info["n_prompts"] == 2 and info["flops"] == info["flops_arm_closed_form"]
        assert info["kernel_backend"] == "reference" and info["mean_surprisal_nats"] > 0
    files = [str(place / name) for name in ("one.json", "batch.json")]
    status, text = run(place, "mlexp", "report", *files, "--out", str(place / "both"))
    assert status == 0, text
    table = (place / "both" / "decoding_speedup" / "throughput.csv").read_text()
    assert "shared_prefill" in table and "prompts_per_s" in table
    assert (place / "both" / "decoding_speedup" / "speedup.csv").exists()


def test_bad_weights_are_one_line_before_the_first_cell(place, tmp_path):
    status, text = bench(place, "--weights", str(tmp_path), "--benchmark-json", str(tmp_path / "out.json"))
    errors = [line for line in text.splitlines() if line.startswith("ERROR")]
    assert status == 4 and len(errors) == 1 and str(tmp_path) in errors[0] and "config.json" in errors[0]
    assert "Traceback" not in text and not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("models=gpt3", "unknown model 'gpt3'; choose from gpt2_nano, gpt2_small"),
        ("samples=0", "samples=0: expected an integer of at least 1"),
        ("prompts=q1", "unknown prompt 'q1'"),
        ("batches=p1", "unknown batch 'p1'; choose from b00, b01, b02, ... (any number)"),
    ],
)
def test_bad_settings_name_what_is_allowed(place, change, message):
    status, text = bench(place, "--set", change)
    assert status == 4 and message in text and "Traceback" not in text


def test_a_broken_prompts_file_is_one_line(place, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "p00"}\n')
    status, text = bench(place, "--prompts", str(path))
    assert status == 4 and "line 1" in text and "Traceback" not in text

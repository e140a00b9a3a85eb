"""The question about the training loop: every loop takes the same steps, and the report finds a planted ratio."""

import json

import pytest

from .command import run

QUESTION = "benches/training_speed"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("training")
    where = ("--journal", str(place / "journal.jsonl"), "--benchmark-json", str(place / "out.json"))
    status, text = run(place, "pytest", QUESTION, "--scale", "smoke", "-p", "no:cacheprovider", *where)
    assert status == 0, text
    return place


def test_every_loop_does_the_same_work(place):
    found = {tuple(b["params"].values()): b["extra_info"] for b in
             json.loads((place / "out.json").read_text())["benchmarks"]}  # fmt: skip
    assert len(found) == 4 * 2 * 2
    for (workload, repeat, loop), info in found.items():
        plain = found[workload, repeat, "plain"]
        assert all(info[name] == plain[name] > 0 for name in ("flops", "n_params", "n_tokens", "steps"))
        # the same batches and start, but other betas, decay and schedule: near, not equal
        assert info["final_loss_nats"] == pytest.approx(plain["final_loss_nats"], rel=0.4), loop


@pytest.mark.parametrize(("factor", "want"), [(2.0, "supported"), (1.0, "refuted")])
def test_the_report_finds_a_planted_ratio(place, tmp_path, factor, want):
    content = json.loads((place / "out.json").read_text())
    for i, b in enumerate(content["benchmarks"]):
        time = (1 + 1e-3 * (i % 3)) * (factor if b["params"]["loop"] == "plain" else 1.0)
        b["stats"] |= dict.fromkeys(("min", "max", "mean", "median"), time) | {"data": [time]}
    (tmp_path / "out.json").write_text(json.dumps(content))
    status, text = run(place, "mlexp", "report", str(tmp_path / "out.json"), "--out", str(tmp_path / "results"))
    assert status == 0 and text.count(want) == 4, text
    assert (tmp_path / "results/training_speed/training_speed.png").stat().st_size > 100


def test_bad_settings_are_named(tmp_path):
    for words, said in (("loops=fast", "unknown loop 'fast'; choose from plain, shared"), ("steps=0", "steps is 0")):
        status, text = run(tmp_path, "pytest", QUESTION, "--set", words, "--collect-only", "-p", "no:cacheprovider")
        assert status == 4 and said in text, text

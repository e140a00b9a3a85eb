"""Tuning: it sees training and validation text alone, judges by the mean over seeds, takes a trusted rate alone."""

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch

from mlexp.eqprop import chars
from mlexp.eqprop.learners import LEARNERS
from mlexp.eqprop.train import Log, network
from mlexp.training import Fit

from .lm_scale import marked_text, module, part_of

OPTIONS = SimpleNamespace(n_chars=500, seeds=[3, 4], rates=[0.1, 0.2, 0.4], dropouts=[0.0, 0.5], decays=[0.01, 0.3],
                          device="cpu")  # fmt: skip


@pytest.fixture
def tune(monkeypatch):
    made = module("tune")
    monkeypatch.setattr(made, "text", lambda corpus: marked_text())
    yield made
    sys.modules.pop("bench_lm_scale_study", None)


@pytest.mark.parametrize("name", ["backprop", "full"])
def test_a_point_is_trained_on_its_seed_s_text_and_judged_on_validation(tune, monkeypatch, name):
    s, calls = tune.STUDY.settings["smoke"], []

    def train(*args, **named):
        calls.append((args, named))
        log = Log(gradient_cosine=[0.999, 0.97, 0.98] if name == "full" else [])
        return Fit([9.0, 8.0], {2: 3.0, 4: 1.5, 6: 2.0}, 4), log

    monkeypatch.setattr(tune, "train", train)
    assert tune.validate(s, name, (0.2, 0.5, 0.3), 4, OPTIONS) == (1.5, 0.97 if name == "full" else 1.0)
    (((row, model, batches, windows, steps), named),) = calls
    assert row == LEARNERS[name] and steps == s.steps(500, s.length)
    assert named == {"lr": 0.2, "weight_decay": 0.3, "evaluate_every": s.evaluate_every}
    fresh = network(row, s, 4, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    assert getattr(model, "drop", 0.5) == 0.5
    want = chars.batches(chars.excerpt(marked_text().train, 500, 4), s.batch, s.length, 4)
    assert all(torch.equal(batches(k)[0], want(k)[0]) for k in range(3)) and part_of(*batches(0)) == "train"
    scored = chars.scored(marked_text().validation[: s.validation], s.length, s.min_context)
    assert all(torch.equal(a, b) for a, b in zip(windows, scored, strict=True))
    assert part_of(*windows[:2]) == "validation"


def test_the_grid_is_every_rate_and_for_backprop_every_dropout_and_decay(tune):
    product = [(rate, drop, decay) for rate in (0.1, 0.2, 0.4) for drop in (0.0, 0.5) for decay in (0.01, 0.3)]
    assert tune.grid("backprop", OPTIONS) == tune.grid("backprop_matched", OPTIONS) == product
    assert tune.grid("full", OPTIONS) == [(0.1, 0.0, 0.01), (0.2, 0.0, 0.01), (0.4, 0.0, 0.01)]


# (rate, seed): (validation loss, least cosine); the best mean is not the best seed's, nor trusted
RUNS = {
    (0.1, 3): (1.0, 0.999), (0.1, 4): (2.0, 0.995),
    (0.2, 3): (1.4, 0.998), (0.2, 4): (1.4, 0.991),
    (0.4, 3): (1.2, 0.999), (0.4, 4): (1.2, 0.98),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "rate", "perplexity", "at_an_end"),
    [
        ({}, 0.2, math.exp(1.4), False),
        ({(0.4, 4): (1.2, 0.99)}, 0.4, math.exp(1.2), True),
        ({(0.1, 4): (1.0, 0.999)}, 0.1, math.exp(1.0), True),
        ({key: (loss, 0.5) for key, (loss, _) in RUNS.items()}, 0.4, math.exp(1.2), True),  # none is trusted
    ],
)
def test_the_best_trusted_mean_over_seeds_is_taken(tune, monkeypatch, capsys, change, rate, perplexity, at_an_end):
    runs = RUNS | change
    monkeypatch.setattr(tune, "validate", lambda s, name, point, seed, options: runs[point[0], seed])
    found = tune.tune(None, "full", OPTIONS)
    assert {name: found[name] for name in ("lr", "dropout", "weight_decay")} == {
        "lr": rate, "dropout": 0.0, "weight_decay": 0.01,
    }  # fmt: skip
    assert found["validation_perplexity"] == round(perplexity, 3) and found["at_an_end"] is at_an_end
    assert ("is at an end of the grid" in capsys.readouterr().out) is at_an_end
    assert [row["lr"] for row in found["tried"]] == [0.1, 0.2, 0.4]
    for row in found["tried"]:
        losses, cosines = zip(*(runs[row["lr"], seed] for seed in (3, 4)), strict=True)
        assert row["validation_perplexity"] == round(math.exp(sum(losses) / 2), 3)
        assert row["gradient_cosine"] == round(min(cosines), 5)


def test_what_is_found_is_written_at_its_scale_beside_the_rest(tune, monkeypatch, tmp_path):
    here = tmp_path / "tuned.json"
    rest = {"backprop": {"lr": 1}, "looped_mlp": {"lr": 2}, "recurrent_core": {"lr": 3}, "full": {"lr": 4}}
    here.write_text(json.dumps({"quick": {"tuned": False, "learners": {}}, "full": {"tuned": False, "learners": rest}}))
    monkeypatch.setattr(tune, "HERE", here)
    monkeypatch.setattr(tune, "validate", lambda s, name, point, seed, options: (point[0], 1.0))

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["tune.py", *words])
        tune.main()
        return json.loads(here.read_text())

    found = run("--scale", "full", "--learners", "full", "--rates", "0.5", "0.25", "0.75", "--seeds", "8", "9")
    assert found["quick"] == {"tuned": False, "learners": {}} and not found["full"]["tuned"]
    row = found["full"]["learners"].pop("full")
    assert (row["lr"], row["seeds"], row["n_chars"], row["updates"]) == (0.25, [8, 9], 10_000, 300)
    assert found["full"]["learners"] == {name: row for name, row in rest.items() if name != "full"}
    found = run("--scale", "full", "--learners", "backprop_matched", "--n-chars", "50000")
    assert found["full"]["tuned"] and found["full"]["learners"]["backprop_matched"]["updates"] == 720

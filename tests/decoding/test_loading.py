"""Weights from a folder, from random, from training; what a record says of them; caches that are mended."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from mlexp.decoding.initial import build
from mlexp.decoding.loading import load
from mlexp.decoding.models import MODELS, Model
from mlexp.decoding.recipes import GAINS, Nano, StandIn, known_gain, standin_hash
from mlexp.decoding.standin import _branch_rate, _decoded_logits, apply_gain, calibrate
from mlexp.decoding.text import bpe_tokenizer, load_corpus
from mlexp.decoding.weights import find_weights, identity

TINY = Model(2, 32, 2, vocab=400, positions=64, hub=("someone/tiny", "tiny-hub"))
QUICK = Nano(steps=6, batch=2, window=32, warmup=2, evaluate_every=3)


@pytest.fixture(autouse=True)
def tiny_world(tmp_path, monkeypatch):
    """Two tiny rows in the table, an empty cache of ours and none of Hugging Face's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("mlexp.decoding.weights._cached", lambda repo, file: None)
    monkeypatch.setitem(MODELS, "tiny", TINY)
    monkeypatch.setitem(MODELS, "tiny_nano", dataclasses.replace(TINY, hub=()))


def said(lm):
    return {key: getattr(lm, key) for key in ("weights", "weights_hash", "corpus", "corpus_hash")}


def saved(folder, row=TINY, safe=True, tokenizer=True):
    model = build(row, 1, 0.02)
    model.save_pretrained(folder)
    if not safe:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    if tokenizer:
        bpe_tokenizer(load_corpus(), 300).save_pretrained(folder)
    return model


def test_random_weights_are_seeded_calibrated_and_announced(capsys):
    state = torch.random.get_rng_state()
    lm = load("tiny", "random")
    out = capsys.readouterr().out
    assert "random stand-in" in out and "calibrating" in out
    assert torch.equal(state, torch.random.get_rng_state())
    again = load("tiny", "random")
    assert "calibrating" not in capsys.readouterr().out
    assert all(torch.equal(a, b) for a, b in zip(lm.model.parameters(), again.model.parameters(), strict=True))
    assert lm.weights == "random" and lm.gain == again.gain > 0 and lm.n_params == TINY.n_params
    assert said(lm) == identity("tiny", "random")
    assert identity("tiny") == identity("tiny", "random")  # auto, with nothing in the cache
    assert not lm.model.training and lm.model.dtype == torch.float32
    assert load("tiny", "random", dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_the_gain_scales_all_logits_and_gives_the_branch_rate_asked_for():
    model, recipe = build(TINY, 20, 0.02), StandIn(prompts=8, rows=12, passes=4)
    found = calibrate(model, recipe)
    rate = _branch_rate(_decoded_logits(model, found["gain"], recipe), found["gain"], recipe)
    assert rate == pytest.approx(recipe.branch_rate, abs=0.06)
    ids = torch.arange(9)[None]
    before = model(ids).logits
    apply_gain(model, 3.0)
    torch.testing.assert_close(model(ids).logits, before * 3, rtol=1e-4, atol=1e-5)


def test_the_initialisation_is_gpt2s():
    model = build(Model(3, 96, 3, vocab=5000, positions=64), 20, 0.02)
    weights = dict(model.named_parameters())
    assert model.lm_head.weight is model.transformer.wte.weight
    for name, p in weights.items():
        std = (
            0.0
            if name.endswith("bias") or ".ln_" in name
            else 0.02 / 6**0.5
            if name.endswith("c_proj.weight")
            else 0.02
        )
        assert p.std(unbiased=False).item() == pytest.approx(std, rel=0.06, abs=1e-9)
        assert p.mean().item() == pytest.approx(1.0 if name.endswith("weight") and ".ln_" in name else 0.0, abs=1.5e-3)
    assert len(torch.unique(weights["transformer.wte.weight"], dim=0)) == 5000
    other = build(Model(3, 96, 3, vocab=5000, positions=64), 21, 0.02)
    assert not torch.equal(other.lm_head.weight, model.lm_head.weight)


def test_shipped_gains_belong_to_the_recipe_that_ships():
    assert set(GAINS) <= set(MODELS)
    for name, (key, gain) in GAINS.items():
        assert key == standin_hash(MODELS[name], StandIn()), f"calibrate {name} again: recipe or row has changed"
        assert known_gain(name, MODELS[name], StandIn()) == gain
        assert known_gain(name, MODELS[name], StandIn(seed=21)) is None


@pytest.mark.slow
def test_the_shipped_gain_of_the_smallest_is_what_calibration_gives():
    model = build(MODELS["gpt2_small"], StandIn().seed, StandIn().std)
    assert calibrate(model, StandIn())["gain"] == pytest.approx(GAINS["gpt2_small"][1], rel=0.02)


@pytest.mark.parametrize("inside", ["", "tiny", "someone/tiny", "tiny-hub"])
@pytest.mark.parametrize("safe", [True, False])
def test_weights_from_a_folder_or_its_subfolder(tmp_path, inside, safe):
    (tmp_path / "w" / inside).mkdir(parents=True)
    model = saved(tmp_path / "w" / inside, safe=safe)
    lm = load("tiny", str(tmp_path / "w"))
    assert torch.equal(lm.model.lm_head.weight, model.lm_head.weight)
    assert lm.weights == "pretrained" and lm.gain is None and lm.tokenizer.encode("for x in y")
    assert said(lm) == identity("tiny", tmp_path / "w")
    assert lm.corpus is None


def test_a_changed_weight_changes_the_identity(tmp_path):
    saved(tmp_path)
    before = identity("tiny", tmp_path)["weights_hash"]
    assert identity("tiny", tmp_path)["weights_hash"] == before
    saved(tmp_path, dataclasses.replace(TINY, vocab=401))
    assert identity("tiny", tmp_path)["weights_hash"] != before


def test_a_folder_without_the_weights_is_refused_naming_what_was_sought(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder; allowed: auto, random"):
        load("tiny", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"looked for config\.json with \*\.safetensors.*someone/tiny"):
        find_weights("tiny", tmp_path)
    with pytest.raises(ValueError, match="unknown model 'gpt5'; choose from gpt2_nano"):
        load("gpt5")


def test_another_architecture_or_no_tokenizer_is_refused(tmp_path):
    saved(tmp_path, dataclasses.replace(TINY, layers=1))
    with pytest.raises(ValueError, match=r"= \(1, 32, 2\), but tiny is \(2, 32, 2\)"):
        load("tiny", tmp_path)
    saved(tmp_path / "bare", tokenizer=False)
    with pytest.raises(ValueError, match="without a tokenizer"):
        load("tiny", tmp_path / "bare")


def test_a_model_is_trained_at_first_use_kept_and_mended(tmp_path, capsys):
    lines = []
    state = torch.random.get_rng_state()
    lm = load("tiny_nano", nano=QUICK, progress=lambda *line: lines.append(line))
    assert torch.equal(state, torch.random.get_rng_state())
    assert lm.weights == "trained" and lm.corpus == "pydoc_topics" and lm.gain is None
    assert said(lm) == identity("tiny_nano", nano=QUICK)
    assert said(lm) != identity("tiny_nano", nano=dataclasses.replace(QUICK, steps=7))
    text = " | ".join(line[2] for line in lines)
    assert "training" in text and "held-out loss" in text and (6, 6) in [line[:2] for line in lines]
    again = load("tiny_nano", nano=QUICK)
    assert "training" not in capsys.readouterr().out
    assert all(torch.equal(a, b) for a, b in zip(lm.model.parameters(), again.model.parameters(), strict=True))
    (file,) = (tmp_path / "cache/mlexp/nano").iterdir()
    file.write_bytes(b"garbage")
    mended = load("tiny_nano", nano=QUICK)
    assert "is damaged" in capsys.readouterr().out
    assert torch.equal(mended.model.lm_head.weight, lm.model.lm_head.weight)  # training repeats bit for bit


def test_a_corpus_of_ones_own_is_part_of_the_identity(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("\n\n".join(f"Line {i} of a text about the number {i * 7}." for i in range(900)))
    own = identity("tiny_nano", corpus=path, nano=QUICK)
    assert own["corpus"] == "own.txt" and own["weights_hash"] != identity("tiny_nano", nano=QUICK)["weights_hash"]
    assert said(load("tiny_nano", corpus=path, nano=QUICK)) == own


def test_the_light_side_imports_nothing_heavy():
    code = (
        "import sys, mlexp.decoding as d; d.identity('gpt2_nano', 'random'); d.cost; d.MODELS; d.Sampling();"
        "d.prompt_ids; print([m for m in ('torch', 'transformers', 'tokenizers', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_in_all_is_there():
    import mlexp.decoding as package

    assert all(getattr(package, name) is not None for name in package.__all__)
    assert callable(package.load) and callable(package.identity)
    with pytest.raises(AttributeError, match="nothing"):
        package.nothing  # noqa: B018

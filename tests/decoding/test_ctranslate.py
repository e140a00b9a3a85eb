"""The arm of CTranslate2: the same model as transformers', exact samples of it, converted once and never halfway."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from mlexp.decoding import ctranslate
from mlexp.decoding.costs import cost
from mlexp.decoding.decoders import DECODE, unavailable
from mlexp.decoding.settings import DECODER_NAMES, DECODERS, Sampling
from mlexp.decoding.standin import apply_gain

from ..needs import needs
from .models import independent_logits, prompt_of, tiny, tiny_config, tiny_of
from .test_question import ITEMS, VOCAB, Cell, Letters, bench

ctranslate2 = needs("ctranslate2")
SMALL = Sampling(samples=5, max_new_tokens=6)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(ctranslate, "_compared", set())
    return tmp_path / "mlexp" / "ctranslate2"


def lm_of(kind="gpt2", **more):
    made = tiny(kind, **{"dtype": torch.float32, "sharpness": 6.0} | more)
    return SimpleNamespace(**vars(made), weights_hash=kind, gain=None)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_its_forward_is_transformers_own(kind):
    lm, text = lm_of(kind), prompt_of(40)
    want = lm.model(text[None]).logits[0, :-1].log_softmax(-1).gather(-1, text[1:, None])[:, 0]
    torch.testing.assert_close(ctranslate.log_probs(lm, text), want.double(), atol=1e-4, rtol=0)


def test_the_gain_of_a_stand_in_is_in_what_is_converted():
    flat, lm, text = lm_of(sharpness=1.0), lm_of(sharpness=1.0), prompt_of(40)
    lm.gain, lm.weights_hash = 6.6064, "random"
    apply_gain(lm.model, lm.gain)
    want = lm.model(text[None]).logits[0, :-1].log_softmax(-1).gather(-1, text[1:, None])[:, 0].double()
    assert (want - ctranslate.log_probs(flat, text)).abs().max() > 1  # it matters
    torch.testing.assert_close(ctranslate.log_probs(lm, text), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("temperature", [0.8, 1.5])
def test_samples_are_draws_from_the_tempered_model(temperature):
    """All tokens may be drawn, also those that name the end and the unknown in a converted model."""
    lm, prompt = lm_of(vocab=7, sharpness=3.0), prompt_of(9, vocab=7)
    sampling = Sampling(samples=8000, max_new_tokens=2, temperature=temperature)
    tokens = DECODE["ctranslate2"](lm, prompt, sampling, 3).tokens
    p = (lm.model(prompt[None]).logits[0, -1] / temperature).double().softmax(-1)
    then = (independent_logits(lm.model, prompt, torch.arange(7)[:, None])[:, 0] / temperature).double().softmax(-1)
    pairs = np.bincount(tokens[:, 0] * 7 + tokens[:, 1], minlength=49)
    want = (p[:, None] * then).flatten().numpy() * len(tokens)
    rare = want < 5
    seen, expected = (np.append(x[~rare], x[rare].sum()) for x in (pairs, want))
    seen, expected = seen[expected > 0], expected[expected > 0]
    assert chisquare(seen, expected * seen.sum() / expected.sum()).pvalue > 1e-4


@pytest.mark.parametrize("threads", [1, 2])
def test_a_seed_repeats_whatever_the_threads(threads):
    lm, before = lm_of(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, again, other = (DECODE["ctranslate2"](lm, prompt_of(8), SMALL, seed) for seed in (2**40, 2**40, 2))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(first.tokens, again.tokens) and not torch.equal(first.tokens, other.tokens)
    assert len(first.tokens.unique(dim=0)) == 5


def test_a_caller_with_a_dict_loads_the_model_once(monkeypatch):
    lm, graphs, loaded, real = lm_of(), {}, [], ctranslate.generator
    monkeypatch.setattr(ctranslate, "generator", lambda *args: loaded.append(args) or real(*args))
    runs = [DECODE["ctranslate2"](lm, prompt_of(8), SMALL, 4, graphs).tokens for _ in range(3)]
    assert len([args for args in loaded if args[1] == 4]) == 1
    assert not torch.equal(runs[0], runs[1])


def test_a_batch_of_prompts_with_and_without_ends():
    lm, prompts = lm_of(vocab=7, sharpness=1.0), torch.stack([prompt_of(9, vocab=7, seed=i) for i in range(3)])
    out = DECODE["ctranslate2"](lm, prompts, SMALL, 4)
    want = cost(lm.model.config, "ctranslate2", 9, SMALL, prompts=3)
    counts = (out.model_forwards, out.token_forwards, out.logit_rows, out.kv_slots)
    assert counts == (want.model_forwards, want.token_forwards, want.logit_rows, want.kv_slots)
    assert out.prompt.tolist() == [0] * 5 + [1] * 5 + [2] * 5 and out.lengths.tolist() == [6] * 15
    stopped = replace(SMALL, samples=40, stop_tokens=(3, 5))
    out = DECODE["ctranslate2"](lm, prompts, stopped, 4)
    assert len(out.tokens) == 120 and 1 in out.lengths and 6 in out.lengths
    for row, length in zip(out.tokens.tolist(), out.lengths.tolist(), strict=True):
        text, behind = row[:length], row[length:]
        assert not {3, 5} & set(text[:-1]) and (length == 6 or text[-1] in (3, 5)) and set(behind) <= {3}
    assert out.live_paths == tuple(int((out.lengths > t).sum()) for t in range(1, 6)) == out.rows
    assert out.token_forwards == 27 + sum(out.rows)


def test_a_model_is_converted_once_and_left_as_it_was(cache, monkeypatch):
    lm, text, real, made = lm_of("llama"), prompt_of(9), ctranslate._convert, []
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    monkeypatch.setattr(ctranslate, "_convert", lambda *args: made.append(args) or real(*args))
    for _ in range(2):
        assert unavailable("ctranslate2", lm, text, SMALL) is None
    assert len(made) == len(list(cache.iterdir())) == 1
    assert {name: p.shape for name, p in lm.model.named_parameters()} == {name: p.shape for name, p in before.items()}
    assert all(torch.equal(p, before[name]) for name, p in lm.model.named_parameters())
    assert lm.model(text[None]).logits.isfinite().all()
    for other in ({"weights_hash": "another"}, {"gain": 2.0}):
        ctranslate.converted(SimpleNamespace(**vars(lm) | other))
    assert len(made) == len(list(cache.iterdir())) == 3


def test_a_conversion_that_was_cut_off_is_made_again(cache, monkeypatch):
    lm, real = lm_of(), ctranslate._convert

    def cut(model, folder):
        real(model, folder)
        (folder / "model.bin").write_bytes(b"")
        raise KeyboardInterrupt

    monkeypatch.setattr(ctranslate, "_convert", cut)
    with pytest.raises(KeyboardInterrupt):
        unavailable("ctranslate2", lm, prompt_of(9), SMALL)
    assert not list(cache.iterdir())
    monkeypatch.setattr(ctranslate, "_convert", real)
    (cache / "half.part").mkdir()  # what a kill leaves
    assert unavailable("ctranslate2", lm, prompt_of(9), SMALL) is None


def test_what_it_does_not_do_is_said(monkeypatch):
    lm, prompt = lm_of(), prompt_of(9)

    def reason(model, sampling=SMALL):
        return unavailable("ctranslate2", model, prompt, sampling)

    for filters in ({"top_k": 5}, {"top_p": 0.9}):
        assert "without top_k and top_p" in reason(lm, replace(SMALL, **filters))
    assert "does not compute in torch.float64" in reason(lm_of(dtype=torch.float64))
    config = tiny_config("olmo2")
    other = SimpleNamespace(model=tiny_of(config).model, weights_hash="olmo2", gain=None)
    assert "cannot convert Olmo2ForCausalLM (ValueError: No conversion is registered" in reason(other)
    assert unavailable("dedup", lm_of(dtype=torch.float64), prompt, SMALL) is None
    real = ctranslate.log_probs
    monkeypatch.setattr(ctranslate, "log_probs", lambda *args: real(*args) * (1 + 1e-2))
    assert "as CTranslate2 converts it is another model" in reason(lm)
    monkeypatch.setattr(ctranslate, "log_probs", lambda *args: real(*args) * float("nan"))
    assert "differ by nan nats" in reason(lm)
    with pytest.raises(ValueError, match="differ by nan nats"):
        DECODE["ctranslate2"](lm, prompt, SMALL, 3)


@pytest.fixture
def cell_of(tmp_path, monkeypatch):
    """A cell of the study whose model is tiny."""
    lm = SimpleNamespace(**vars(lm_of(vocab=VOCAB)) | {"name": "gpt2_small"}, tokenizer=Letters(), n_params=1234,
                         weights="random")  # fmt: skip
    monkeypatch.setattr(bench, "LOADED", {})
    monkeypatch.setattr("mlexp.decoding.loading.load", lambda *args, **more: lm)
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, ITEMS)))
    return lambda **more: Cell(path, **more)


def test_a_cell_counts_by_formula_what_no_hook_sees(cell_of):
    cells = [cell_of() for _ in range(2)]
    for cell in cells:
        bench.test_decode(cell, "gpt2_small", "p01", "ctranslate2")
    values, s = cells[0].values, cells[0].settings
    assert values == cells[1].values
    assert values["token_forwards"] == s.prompt_tokens + s.samples * (s.max_new_tokens - 1)
    assert values["flops"] is None and values["kernel_backend"] == "ctranslate2" and values["n_samples"] == s.samples
    assert values["worst_effective_samples"] == s.samples and values["mean_surprisal_nats"] > 0
    with pytest.raises(pytest.skip.Exception, match="without top_k"):
        bench.test_decode(cell_of(top_k=3), "gpt2_small", "p01", "ctranslate2")


def test_the_arm_is_there_where_its_library_is(monkeypatch):
    settings, params = bench.STUDY.settings["quick"], {"model": "gpt2_nano", "decoder": "ctranslate2"}
    assert DECODERS["ctranslate2"].library == "ctranslate2" and "ctranslate2" in DECODER_NAMES
    assert bench.collects(params | {"prompt": "p00"}, settings, "cpu")
    assert bench.collects(params | {"batch": "b00"}, settings, "cpu")
    monkeypatch.setattr(bench, "is_there", lambda library: False)
    assert not bench.collects(params | {"prompt": "p00"}, settings, "cpu")
    assert bench.collects({"model": "gpt2_nano", "prompt": "p00", "decoder": "dedup"}, settings, "cpu")
    wanted = replace(settings, decoders=("dedup", "ctranslate2"))
    with pytest.raises(ValueError, match=r'ctranslate2 needs ctranslate2: pip install "pytest-mlexp\[ctranslate2\]"'):
        bench.collects(params | {"prompt": "p00"}, wanted, "cpu")

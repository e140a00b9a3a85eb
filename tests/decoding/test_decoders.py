"""The six decoders in torch: the same draws, the right counts, closed forms equal to what hooks and counters see."""

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlexp.decoding import MODELS
from mlexp.decoding.costs import MLP_MATRICES, Shape, cost, kv_bytes_per_token, prompt_flops, step_rows
from mlexp.decoding.decoders import DECODE, decode_functions
from mlexp.decoding.policies import POLICIES
from mlexp.decoding.scoring import score
from mlexp.decoding.settings import DECODER_NAMES, DECODERS, TREE_DECODERS, Decoder, Sampling
from mlexp.flops import count_flops, dense_flops

from .models import TORCH_DECODERS, prompt_of, tiny, tiny_config, tiny_of

SMALL = Sampling(samples=5, max_new_tokens=6, max_paths=5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@given(seed=st.integers(0, 2**63 - 1), samples=st.integers(1, 6), new=st.integers(1, 6))
@settings(max_examples=15)
def test_arms_with_one_seed_draw_the_same_samples(kind, seed, samples, new):
    lm, prompt = tiny(kind), prompt_of(9)
    sampling = Sampling(samples=samples, max_new_tokens=new)
    a, b, c = (DECODE[d](lm, prompt, sampling, seed).tokens for d in ("sequential", "shared_prefill", "dedup"))
    assert a.shape == (samples, new)
    assert (a == b).all() and (a == c).all()
    assert new * samples < 12 or not (a == DECODE["sequential"](lm, prompt, sampling, seed + 1).tokens).all()


def test_every_row_has_a_function_and_every_function_a_row():
    assert list(DECODE) == list(DECODERS) == list(DECODER_NAMES)
    assert {row.policy for row in DECODERS.values()} - {None} == set(POLICIES)
    assert {name for name, row in DECODERS.items() if not row.lossless} == {"eab_paper", "eab_particles"}


def test_a_decoder_of_an_existing_policy_is_one_line(monkeypatch):
    lm, prompt, other = tiny(), prompt_of(9), replace(SMALL, branch_factor=2, threshold=0.1)
    fixed = {"branch_factor": 2, "threshold": 0.1}
    monkeypatch.setitem(DECODERS, "eab_pairs", Decoder("two groups", "eab_particles", lossless=False, fixed=fixed))
    got = decode_functions()["eab_pairs"](lm, prompt, SMALL, 3)
    assert torch.equal(got.tokens, DECODE["eab_particles"](lm, prompt, other, 3).tokens)
    assert not torch.equal(got.tokens, DECODE["eab_particles"](lm, prompt, SMALL, 3).tokens)
    assert cost(lm.model.config, "eab_pairs", 9, SMALL, got.rows).token_forwards == got.token_forwards
    with pytest.raises(KeyError, match="unwritten"):
        monkeypatch.setitem(DECODERS, "unwritten", Decoder("a row without a function"))
        decode_functions()


@pytest.mark.parametrize("decoder", TORCH_DECODERS)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@given(length=st.integers(1, 12), samples=st.integers(1, 6), new=st.integers(1, 7), k=st.integers(1, 4))
@settings(max_examples=8)
def test_counts_and_flops_are_the_closed_forms(kind, decoder, length, samples, new, k):
    lm = tiny(kind, dtype=torch.float32)
    sampling = Sampling(samples=samples, max_new_tokens=new, branch_factor=k, max_paths=max(1, samples - 1))
    got, flops = count_flops(lambda: DECODE[decoder](lm, prompt_of(length), sampling, 3))
    want = cost(lm.model.config, decoder, length, sampling, got.rows, bytes_per_value=4)
    seen = (got.model_forwards, got.token_forwards, got.logit_rows, got.kv_slots)
    assert seen == (want.model_forwards, want.token_forwards, want.logit_rows, want.kv_slots)
    # Llama also multiplies positions by frequencies, D/2 a position: real, counted, and in no closed form
    rotary = 0 if kind == "gpt2" else 8 * got.token_forwards
    assert want.flops <= flops <= want.flops + rotary
    assert len(got.live_paths) == new - 1
    if decoder not in TREE_DECODERS:
        assert got.live_paths == tuple(step_rows(decoder, sampling))
    assert want.kv_bytes == want.kv_slots * kv_bytes_per_token(Shape.of(lm.model.config))
    half = cost(lm.model.config, decoder, length, sampling, got.rows, bytes_per_value=2)
    assert half.kv_bytes * 2 == want.kv_bytes


FAMILIES = {kind: ({}, {"head_dim": 16} if kind in ("llama", "qwen3") else {}) for kind in MLP_MATRICES} | {
    "gpt2": ({}, {"n_inner": 48}),
    "gemma": ({"head_dim": 8}, {"head_dim": 16}),
    "stablelm": ({}, {"use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True}),
    "mistral": ({}, {"sliding_window": 10}),  # what the 7 + 4 - 1 tokens just fit in
}
TREELESS = {"stablelm"}  # its layers do not hand the tree on to their attention
FEW = Sampling(samples=3, max_new_tokens=4, max_paths=3)


@pytest.mark.parametrize("decoder", ["hf_batched", "dedup"])
@pytest.mark.parametrize(("kind", "more"), [(kind, more) for kind, all in FAMILIES.items() for more in all])
def test_the_closed_form_is_what_is_counted_in_every_family_that_has_one(kind, more, decoder):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4} if kind == "gpt2" else {}
    lm = tiny_of(tiny_config(kind, **sizes | more))
    decoder = "shared_prefill" if kind in TREELESS and decoder in TREE_DECODERS else decoder
    got, flops = count_flops(lambda: DECODE[decoder](lm, prompt_of(7), FEW, 3))
    shape, want = Shape.of(lm.model.config), cost(lm.model.config, decoder, 7, FEW, got.rows)
    rotary = sum(2 * b.numel() for name, b in lm.model.named_buffers() if name.endswith("rotary_emb.inv_freq"))
    assert want.flops <= flops <= want.flops + rotary * got.token_forwards
    assert want.kv_bytes == got.kv_slots * kv_bytes_per_token(shape)
    assert rotary < 2 * 32 * 48  # one matrix of an MLP more or less would be seen


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("mixtral", {"num_local_experts": 4}),
        ("qwen2_moe", {"num_experts": 4}),
        ("gpt_oss", {"num_local_experts": 4, "head_dim": 8}),
        ("falcon", {}),
        ("gpt_neox", {}),
        ("mamba", {}),
    ],
)
def test_no_closed_form_is_made_up_for_another_family(kind, more):
    config = tiny_config(kind, **more)
    assert Shape.of(config) is None and cost(config, "sequential", 7, SMALL) is None


def test_a_window_that_the_tokens_outgrow_has_no_closed_form():
    config = tiny_config("mistral", sliding_window=12)
    assert cost(config, "sequential", 7, SMALL).flops > 0
    assert cost(config, "sequential", 8, SMALL) is None
    lm = tiny_of(config)
    counted = count_flops(lambda: DECODE["hf_batched"](lm, prompt_of(20), SMALL, 3))[1]
    assert counted < cost(tiny_config("mistral"), "hf_batched", 20, SMALL).flops


def test_the_text_part_of_a_larger_config_is_what_counts():
    from transformers import LlavaConfig

    llama = tiny_config("llama")
    assert Shape.of(LlavaConfig(text_config=llama)) == Shape.of(llama)
    assert Shape.of(LlavaConfig(text_config=tiny_config("mixtral"))) is None


@pytest.mark.parametrize("kind", ["gpt2", "mixtral"])
def test_a_record_has_null_for_what_no_formula_describes(kind):
    root = Path(__file__).parents[2]
    bench = runpy.run_path(str(root / "benches" / "decoding_speedup" / "bench_decoding_speedup.py"))
    config = tiny_config(kind, **({"n_embd": 32, "n_layer": 2, "n_head": 4} if kind == "gpt2" else {}))
    lm = SimpleNamespace(model=SimpleNamespace(config=config), name="any", n_params=1000, gain=None)
    settings = replace(bench["STUDY"].settings["smoke"], prompt_tokens=7, samples=5, max_new_tokens=6)
    cell = SimpleNamespace(settings=settings, dtype="float32", values={"peak_bytes": 10})
    counts = {"token_forwards": 30, "model_forwards": 6, "logit_rows": 30, "kv_slots": 60}
    out = SimpleNamespace(rows=(5,) * 5, tokens=torch.zeros(5, 6), lengths=torch.tensor([6, 6, 6, 6, 2]), **counts)
    found = bench["costs"](cell, lm, "shared_prefill", prompt_of(7)[None], out)
    formulas = {name: found[name] for name in ("flops_closed_form", "flops_arm_closed_form", "kv_bytes")}
    known = {"flops_closed_form": 60_000, "kv_bytes": 60 * kv_bytes_per_token(Shape(2, 32, 32, 0, 0))}
    known["flops_arm_closed_form"] = cost(config, "shared_prefill", 7, SMALL).flops if kind == "gpt2" else None
    assert formulas == (known if kind == "gpt2" else dict.fromkeys(formulas))
    assert found["n_samples"] == 5 and found["n_tokens"] == 26 and found["bytes_per_sample"] == 2


@pytest.mark.parametrize("decoder", TORCH_DECODERS)
@given(prompts=st.integers(1, 3), samples=st.integers(1, 5), new=st.integers(1, 5), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=8)
def test_prompts_decoded_together_are_each_as_alone(decoder, prompts, samples, new, seed):
    lm, sampling = tiny(dtype=torch.float32), Sampling(samples=samples, max_new_tokens=new, max_paths=samples)
    asked = torch.stack([prompt_of(9, seed=i) for i in range(prompts)])
    got, flops = count_flops(lambda: DECODE[decoder](lm, asked, sampling, seed))
    want = cost(lm.model.config, decoder, 9, sampling, got.rows, prompts=prompts)
    seen = (got.model_forwards, got.token_forwards, got.logit_rows, got.kv_slots, flops)
    assert seen == (want.model_forwards, want.token_forwards, want.logit_rows, want.kv_slots, want.flops)
    assert got.prompt.tolist() == sorted(got.prompt.tolist()) and set(got.prompt.tolist()) == set(range(prompts))
    first = DECODE[decoder](lm, asked[0], sampling, seed).tokens
    assert decoder == "hf_batched" or torch.equal(got.tokens[got.prompt == 0], first)
    if decoder in ("sequential", "shared_prefill"):
        assert torch.equal(got.tokens, DECODE["dedup"](lm, asked, sampling, seed).tokens)


@pytest.mark.parametrize("decoder", TREE_DECODERS)
def test_every_prompt_of_a_batch_is_read(decoder):
    """Log-probabilities of each prompt's samples are those of plain forwards behind it."""
    lm, prompts = tiny(), torch.stack([prompt_of(9, seed=i) for i in range(3)])
    out = DECODE[decoder](lm, prompts, SMALL, 4)
    for i, prompt in enumerate(prompts):
        tokens = out.tokens[out.prompt == i]
        full = torch.cat([prompt.expand(len(tokens), -1), tokens], 1)
        log_p = (lm.model(full, use_cache=False).logits[:, 8:-1] / SMALL.temperature).log_softmax(-1)
        want = -log_p.gather(-1, tokens[..., None])[..., 0].numpy()
        np.testing.assert_allclose(out.tree.surprisals()[(out.prompt == i).numpy()], want, atol=1e-9)
    if decoder == "dedup":
        for other in ("sequential", "shared_prefill"):
            assert torch.equal(DECODE[other](lm, prompts, SMALL, 4).tokens, out.tokens)


@pytest.mark.parametrize("decoder", TORCH_DECODERS)
def test_a_run_repeats_and_leaves_the_global_generators_alone(decoder):
    lm, state = tiny(), torch.random.get_rng_state()
    first, again, other = (DECODE[decoder](lm, prompt_of(8), SMALL, seed) for seed in (1, 1, 2))
    assert torch.equal(first.tokens, again.tokens) and not torch.equal(first.tokens, other.tokens)
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.tokens.dtype == torch.int64 and first.tokens.shape[1] == 6
    assert (first.tree is not None) == (decoder in TREE_DECODERS)
    assert decoder == "eab_paper" or len(first.tokens) == 5


def test_hf_batched_neither_stops_at_a_text_end_nor_avoids_it():
    lm = tiny(vocab=5, sharpness=1.0)
    lm.model.generation_config.eos_token_id = lm.model.config.eos_token_id = 3
    lm.model.generation_config.top_k = 1
    before = lm.model.generation_config
    tokens = DECODE["hf_batched"](lm, prompt_of(4, vocab=5), Sampling(samples=40, max_new_tokens=12), 0).tokens
    assert lm.model.generation_config is before
    assert tokens.shape == (40, 12)
    assert (tokens == 3).float().mean() > 0.05
    assert len(np.unique(tokens[:, 0])) > 1  # the defaults' top_k=1 had no say


@pytest.mark.parametrize("stop", [(), (4, 7)])
def test_hf_batched_asks_generate_for_the_settings(stop, monkeypatch):
    lm, asked = tiny(), []

    def generate(prompts, attention_mask, generation_config):
        asked.append((generation_config, torch.initial_seed()))
        return prompts.repeat_interleave(5, 0).repeat(1, 2)[:, : prompts.shape[1] + 6]

    monkeypatch.setattr(lm.model, "generate", generate)
    DECODE["hf_batched"](lm, prompt_of(8), replace(SMALL, temperature=0.6, top_k=9, top_p=0.7, stop_tokens=stop), 77)
    config, seed = asked[0]
    want = {"do_sample": True, "num_return_sequences": 5, "max_new_tokens": 6, "temperature": 0.6, "top_k": 9,
            "top_p": 0.7, "min_new_tokens": None if stop else 6, "eos_token_id": list(stop) or None}  # fmt: skip
    assert {name: getattr(config, name) for name in want} == want and seed == 77


def test_parameters_of_the_four_and_the_limits_of_the_spec():
    n = {name: row.n_params for name, row in MODELS.items()}
    assert list(n.values())[1:] == [
        124439808,
        354823168,
        774030080,
        1557611200,
        134515008,
    ]  # the last: the model card's
    full = Sampling()
    assert cost(MODELS["gpt2_small"], "sequential", 200, full).token_forwards == 4980
    assert cost(MODELS["gpt2_small"], "shared_prefill", 200, full).token_forwards == 1180
    kib = [kv_bytes_per_token(Shape.of(row), 2) / 1024 for row in MODELS.values()][1:]
    assert kib == [36, 96, 180, 300, 22.5]  # the last: 2 x 30 layers x 3 heads x 64 x 2 bytes
    half, whole = (cost(MODELS["gpt2_xl"], "shared_prefill", 200, full, None, size) for size in (2, 4))
    assert whole.kv_bytes == 2 * half.kv_bytes == 2 * (20 * 249) * 300 * 1024
    # the spec's count of 200 tokens has the head on every one of them
    small = Shape.of(MODELS["gpt2_small"])
    assert (prompt_flops(small, 200) + 199 * 2 * small.head_weights) / 1e9 == pytest.approx(50.887, abs=2e-3)
    assert dense_flops(n["gpt2_xl"], 200) / 1e9 == pytest.approx(623.045, abs=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_real_architecture(name):
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    config, real = (LlamaConfig, LlamaForCausalLM) if name == "smollm2_135m" else (GPT2Config, GPT2LMHeadModel)
    with torch.device("meta"):
        model = real(config(**MODELS[name].config()))
    assert sum(p.numel() for p in model.parameters()) == MODELS[name].n_params
    built, declared = Shape.of(model.config), Shape.of(MODELS[name])
    assert (built.layer_weights, built.kv_channels) == (declared.layer_weights, declared.kv_channels)
    linear = (
        sum(p.numel() for key, p in model.model.layers[0].named_parameters() if "norm" not in key)
        if (name == "smollm2_135m")
        else declared.layer_weights
    )
    assert declared.layer_weights == linear


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("samples", 0),
        ("samples", 2.0),
        ("max_new_tokens", -1),
        ("temperature", 0.0),
        ("temperature", float("nan")),
        ("threshold", 1.5),
        ("branch_factor", 0),
        ("max_paths", 0),
        ("max_paths", True),
    ],
)
def test_bad_settings_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r}: expected"):
        Sampling(**{name: value})


def test_a_tree_needs_its_live_paths():
    with pytest.raises(ValueError, match="dedup: rows of the 5 steps needed, got None"):
        cost(MODELS["gpt2_nano"], "dedup", 8, SMALL)
    with pytest.raises(ValueError, match="unknown decoder 'beam'; choose from sequential"):
        cost(MODELS["gpt2_nano"], "beam", 8, SMALL)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_in_bfloat16_the_arms_agree_up_to_rounding(kind):
    """Token for token is said of float32 and float64 alone: see the README of decoding_speedup."""
    low, exact, prompt = tiny(kind, 300, dtype=torch.bfloat16), tiny(kind, 300, dtype=torch.float32), prompt_of(30, 300)
    sampling, wrong = Sampling(samples=20, max_new_tokens=12), tiny(kind, 300, seed=1, dtype=torch.float32)
    arms = {name: DECODE[name](low, prompt, sampling, 3).tokens for name in ("sequential", "shared_prefill", "dedup")}
    for name, tokens in arms.items():
        assert torch.equal(tokens[:, 0], arms["sequential"][:, 0])  # one prompt, one forward
        assert torch.equal(tokens, DECODE[name](low, prompt, sampling, 3).tokens)
        by_low, by_exact, by_wrong = (score(lm.model, prompt, tokens.numpy(), 0.8) for lm in (low, exact, wrong))
        assert np.sqrt(np.mean((by_low - by_exact) ** 2)) < 0.25 < np.sqrt(np.mean((by_low - by_wrong) ** 2))
    same = (arms["sequential"] == arms["dedup"]).all(1).sum()
    assert same >= 5  # most texts are equal all the same; two seeds have none in common
    other = DECODE["dedup"](low, prompt, sampling, 4).tokens
    assert (arms["sequential"] == other).all(1).sum() == 0

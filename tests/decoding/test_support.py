"""What cannot be decoded is refused, and what would be decoded wrongly is seen at the first use of a model."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from mlexp.decoding import attention, support
from mlexp.decoding.attention import attention_as, tree_attention_on
from mlexp.decoding.caches import PoolLayer, RowsLayer
from mlexp.decoding.decoders import DECODE
from mlexp.decoding.engine import grow
from mlexp.decoding.settings import Sampling
from mlexp.decoding.support import check, distance
from mlexp.flops import count_flops

from .architectures import COMMON, NEW, build, prompt
from .models import TORCH_DECODERS, prompt_of, tiny

ASK = Sampling(samples=4, max_new_tokens=NEW)


def test_a_dropped_window_is_seen_at_first_use(monkeypatch):
    monkeypatch.setattr(attention.TreeView, "first_seen", lambda view, visible: None)
    with pytest.raises(
        ValueError, match=r"MistralForCausalLM cannot be decoded exactly: .* nats over 20 prompt \+ 8 new"
    ):
        grow(build("mistral"), prompt(), ASK, "dedup", 0)
    grow(build("llama"), prompt(), ASK, "dedup", 0)  # it has no window to drop


def test_a_window_of_the_rows_is_compared_too(monkeypatch):
    rows = attention._rows
    monkeypatch.setattr(attention, "_rows", lambda q, k, v, mask, *more: rows(q, k, v, None, *more))
    for decoder in ("sequential", "shared_prefill"):
        with pytest.raises(ValueError, match="cannot be decoded"):
            DECODE[decoder](SimpleNamespace(model=build("mistral")), prompt(), ASK, 0)


@pytest.mark.parametrize(("name", "argument"), [("gemma2", "softcap"), ("gpt_oss", "s_aux")])
def test_a_dropped_argument_is_seen_at_first_use(name, argument, monkeypatch):
    forward, model = attention._attention, build(name)
    for layer in model.modules():
        if hasattr(layer, "attn_logit_softcapping"):
            layer.attn_logit_softcapping = 1.0  # low enough that capping matters
    monkeypatch.setattr(attention, "_attention", lambda *args, **more: forward(*args, **more | {argument: None}))
    with pytest.raises(ValueError, match="cannot be decoded exactly"):
        check(model, prompt(), ASK)
    monkeypatch.undo()
    check(model, prompt(), ASK)


def test_an_unknown_argument_is_an_error_that_names_model_and_argument(monkeypatch):
    forward = attention._attention
    with_bias = lambda *args, **more: forward(*args, **more, position_bias=torch.ones(1))  # noqa: E731
    monkeypatch.setattr(attention, "_attention", with_bias)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM .*LlamaAttention passes position_bias= .*known: scaling"):
        check(build("llama"), prompt(), ASK)


def test_comparisons_are_made_once_and_again_for_texts_twice_as_long(monkeypatch):
    made, compare = [], support._compare
    monkeypatch.setattr(
        support, "_compare", lambda model, ids, *more: made.append(len(ids)) or compare(model, ids, *more)
    )
    model = tiny().model
    for length in (5, 5, 9, 13, 30, 6, 70, 70):
        grow(model, prompt_of(length), Sampling(max_new_tokens=3), "dedup", 0)
    assert made == [5, 13, 30, 70]
    check(model, prompt_of(5), Sampling(max_new_tokens=3), "rows")
    assert made[-1] == 5 and len(made) == 5
    model.to(torch.float32)
    check(model, prompt_of(6), Sampling(max_new_tokens=3))
    assert made[-1] == 6 and len(made) == 6


def test_a_comparison_is_no_part_of_a_run_s_flops():
    asked = Sampling(samples=3, max_new_tokens=3)
    first, again = tiny().model, tiny().model
    check(again, prompt_of(5), asked)
    counts = [count_flops(lambda m=m: grow(m, prompt_of(5), asked, "dedup", 0))[1] for m in (first, again)]
    assert counts[0] == counts[1] > 0


def test_a_difference_of_the_bound_is_refused_in_each_precision(monkeypatch):
    off = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.25}
    assert off == support.BOUNDS
    for dtype in (torch.float64, torch.float32):
        for share, refused in ((0.8, False), (1.2, True)):
            monkeypatch.setattr(support, "distance", lambda *_, error=share * off[dtype]: error)
            with pytest.raises(ValueError, match="exactly") if refused else contextlib.nullcontext():
                check(tiny(dtype=dtype).model, prompt_of(5), ASK)


def test_every_node_of_both_branches_is_compared(monkeypatch):
    shapes = []
    monkeypatch.setattr(support, "distance", lambda got, want: shapes.append((got.shape, want.shape)) or 0.0)
    model = tiny().model
    for path, depth in (("tree", 8), ("rows", 4)):
        check(model, prompt_of(5), Sampling(max_new_tokens=8), path)
        assert shapes.pop() == ((2, depth, 37), (2, depth, 37))
    check(model, prompt_of(5), Sampling(max_new_tokens=90))
    assert shapes.pop()[0] == (2, 65, 37)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gemma2", "gpt_oss", "phi3"])
def test_rounding_is_no_difference(name, dtype):
    check(build(name, dtype), prompt(), ASK)
    check(build(name, dtype), prompt(), ASK, "rows")


def test_a_cache_that_is_full_takes_no_more():
    keys = torch.zeros(1, 2, 3, 4)
    rows, pool = RowsLayer(5), PoolLayer(5)
    rows.update(keys, keys)
    pool.copies = 2
    with pytest.raises(AssertionError, match="6 slots in a cache of 5"):
        rows.update(keys, keys)
    with pytest.raises(AssertionError, match="6 slots of prompts in a pool of 5"):
        pool.update(keys, keys)


def test_distance_is_in_nats_and_sees_nan():
    want = torch.tensor([[0.0, 1.0, -torch.inf]])
    assert distance(want + 5, want) < 1e-12 and distance(want * torch.nan, want) != distance(want, want)
    p = want.softmax(-1)
    assert distance(torch.tensor([[0.0, 2.0, -torch.inf]]), want) == pytest.approx(
        float((p[0, :2] * (want[0, :2].log_softmax(0) - torch.tensor([0.0, 2.0]).log_softmax(0)) ** 2).sum().sqrt())
    )


def test_every_arm_refuses_an_encoder_decoder_by_name():
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4))
    for decoder in set(TORCH_DECODERS) - {"hf_batched"}:
        with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder"):
            DECODE[decoder](SimpleNamespace(model=model.eval()), prompt(), ASK, 0)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_frequencies_that_change_with_the_length_are_not_mixed(rope_type):
    from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

    if rope_type == "longrope":
        rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
        config = Phi3Config(**COMMON | {"rope_parameters": rope, "original_max_position_embeddings": 24})
        model = Phi3ForCausalLM(config)
    else:
        rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
        model = LlamaForCausalLM(LlamaConfig(**COMMON | {"rope_parameters": rope, "max_position_embeddings": 24}))
        model.config.max_position_embeddings = 48
        model.config.rope_parameters["original_max_position_embeddings"] = 24
    model = model.double().eval()
    with pytest.raises(ValueError, match=rf"20 prompt \+ 8 new tokens: .*\({rope_type}\) .*more than 24 tokens"):
        check(model, prompt(), ASK)
    check(model, prompt()[:10], ASK)
    if rope_type == "longrope":
        check(model, torch.cat([prompt(), prompt()]), ASK)  # behind the switch all frequencies are the long ones


def test_a_forward_that_fails_by_itself_is_said_to():
    model = build("mixtral")
    model.set_experts_implementation("grouped_mm")
    with pytest.raises(ValueError, match="MixtralForCausalLM: its own forward fails: "):
        check(model, prompt(), ASK)


def test_models_within_models_are_left_as_they_were():
    model = build("gemma3")
    configs = [model.config, model.config.text_config, model.config.vision_config]
    before = [config._attn_implementation for config in configs]
    for context in (tree_attention_on(model), attention_as(model, "eager")):
        with pytest.raises(RuntimeError, match="inside"), context:
            assert model.config.text_config._attn_implementation != before[1]
            raise RuntimeError("inside")
        assert [config._attn_implementation for config in configs] == before
    check(model, prompt(), ASK)
    assert [config._attn_implementation for config in configs] == before

"""The arms: their size, their cost, and that they compute what transformers' own modules compute."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from mlexp.attention.evaluate import kv_bytes_per_token
from mlexp.attention.layers import Attention, Cache, Mixture, rotary_tables
from mlexp.attention.learn import loss_in
from mlexp.attention.model import Decoder, build
from mlexp.attention.variants import (
    FAMILIES,
    ORIGINAL_VARIANTS,
    SHAPES,
    VARIANTS,
    Shape,
    Variant,
    active_params,
    attention_params,
    forward_flops_per_token,
    halved,
    of_same_params,
    scaled,
    total_params,
    training_flops_per_token,
)
from mlexp.attention.variants import kv_bytes_per_token as closed_kv_bytes
from mlexp.flops import count_flops

FULL, QUICK = SHAPES["full"], SHAPES["quick"]
TABLE = {  # attention parameters of a layer, all parameters, bytes of cache per token in bfloat16
    "baseline": (1_048_576, 167_813_632, 16_384),
    "lora_small": (393_312, 162_571_520, 2_048),
    "lora_medium": (491_712, 163_358_720, 3_072),
    "lora_large": (688_512, 164_933_120, 5_120),
    "lora_xl": (1_082_112, 168_081_920, 9_216),
    "enhanced_small": (295_648, 161_790_208, 1_536),
    "enhanced_medium": (656_320, 164_675_584, 3_072),
    "enhanced_large": (1_574_272, 172_019_200, 6_144),
    "enhanced_xl": (2_295_936, 177_792_512, 10_240),
    "rope_only": (770_112, 165_585_920, 2_048),
    "rope_small": (401_472, 162_636_800, 1_536),
    "rope_large": (1_507_392, 171_484_160, 3_072),
    "bias_only": (623_296, 164_411_392, 2_048),
    "mla_plain": (622_656, 164_406_272, 2_048),
}
LEARNED = replace(VARIANTS["baseline"], position="learned")
ARMS = VARIANTS | {"learned": LEARNED, "latent_nope": replace(VARIANTS["mla_true"], position="none")}


def n_params(module) -> int:
    return sum(p.numel() for p in module.parameters())


def tokens(*shape, vocab=64, seed=0):
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed))


def test_the_grid_is_the_seed_s_and_its_controls():
    assert tuple(TABLE)[:13] == ORIGINAL_VARIANTS and len(VARIANTS) == 20
    sizes = {family: list(FAMILIES.values()).count(family) for family in FAMILIES.values()}
    assert sizes == {"baseline": 1, "lora": 4, "enhanced": 4, "rope": 3, "bias": 1, "control": 7}
    code = "import mlexp.attention.variants, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", TABLE)
def test_parameters_are_the_published_ones(name):
    attention, total, _ = TABLE[name]
    assert (attention_params(VARIANTS[name], FULL), total_params(VARIANTS[name], FULL)) == (attention, total)
    with torch.device("meta"):
        model = Decoder(VARIANTS[name], FULL)
    assert (n_params(model.blocks[0].attention), n_params(model)) == (attention, total)


@pytest.mark.parametrize("name", ARMS)
def test_closed_forms_hold_at_every_shape(name):
    arm = ARMS[name]
    for shape in (QUICK, replace(QUICK, experts=8), replace(SHAPES["natural"], context=48)):
        model, x = build(arm, shape), tokens(2, shape.context)
        assert n_params(model) == total_params(arm, shape)
        assert count_flops(lambda m=model, x=x: m(x))[1] == pytest.approx(
            x.numel() * forward_flops_per_token(arm, shape), rel=0.01
        )
        idle = shape.layers * (shape.experts - shape.top) * 2 * shape.width * shape.ff if shape.experts else 0
        assert active_params(arm, shape) == n_params(model) - idle
        assert model.kernel() == "flash_cpu"


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("experts", [0, 8])
def test_training_flops_are_counted_to_one_percent(name, experts):
    shape = replace(QUICK, experts=experts)
    model, x = build(name, shape), tokens(2, shape.context)
    counted = count_flops(lambda: loss_in(torch.float32)(model, x, x).backward())[1]
    assert counted == pytest.approx(x.numel() * training_flops_per_token(VARIANTS[name], shape), rel=0.01)


@pytest.mark.parametrize("name", VARIANTS)
def test_another_feed_forward_gives_an_arm_the_baseline_s_parameters(name):
    for shape, unit in ((FULL, 65_536), (QUICK, 256)):
        own = of_same_params(VARIANTS[name], shape, VARIANTS["baseline"])
        missing = total_params(VARIANTS[name], own) - total_params(VARIANTS["baseline"], shape)
        assert abs(missing) <= unit / 2 and replace(own, ff=shape.ff) == shape
    wider = {"lora_small": 80, "enhanced_xl": -152}  # at the full shape
    if name in wider:
        assert of_same_params(VARIANTS[name], FULL, VARIANTS["baseline"]).ff - FULL.ff == wider[name]


def test_a_feed_forward_cannot_make_up_for_everything():
    with pytest.raises(ValueError, match="no feed-forward is narrow enough"):
        of_same_params(VARIANTS["enhanced_xl"], replace(QUICK, ff=16), VARIANTS["mqa"])
    assert halved(QUICK) == Shape(32, 1, 2, 128, 64, 64)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_cache_holds_what_the_table_says(name):
    shape = Shape(512, 8, 8, 64, 64, 16)
    measured = kv_bytes_per_token(build(name, shape))
    assert measured == closed_kv_bytes(VARIANTS[name], shape)
    assert name not in TABLE or measured == TABLE[name][2]


@pytest.mark.parametrize("name", ARMS)
def test_decoding_with_the_cache_is_the_whole_forward(name):
    model, x, cache = build(ARMS[name], QUICK).double(), tokens(3, 12), Cache(12)
    whole = model(x)
    steps = [model(x[:, :5], cache), *(model(x[:, t : t + 1], cache) for t in range(5, 12))]
    torch.testing.assert_close(torch.cat(steps, 1), whole)
    with pytest.raises(ValueError, match="13 tokens: the cache was made for 12"):
        model(x[:, :1], cache)


@pytest.mark.parametrize("name", ARMS)
def test_no_arm_sees_the_future(name):
    model, x = build(ARMS[name], replace(QUICK, experts=4)).double(), tokens(2, 16)
    other = x.clone()
    other[:, 9] = (other[:, 9] + 1) % 64
    changed = (model(x) - model(other)).abs().amax((0, 2))
    assert changed[:9].max() < 1e-12 and changed[9:].min() > 1e-9


@pytest.mark.parametrize("name", ARMS)
def test_one_layer_without_positions_is_blind_to_order_and_no_other(name):
    model, x = build(ARMS[name], replace(QUICK, layers=1)).double(), tokens(2, 16)
    moved = (model(x) - model(torch.cat([x[:, :8].flip(1), x[:, 8:]], 1)))[:, -1].abs().max()
    assert moved < 1e-12 if ARMS[name].position == "none" else moved > 1e-9


def test_positions_that_were_learned_end_where_they_end():
    with pytest.raises(ValueError, match="65 tokens: positions were learned for 64"):
        build(LEARNED, QUICK)(tokens(1, 65))


def test_names_and_shapes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="unknown variant 'mla'; choose from baseline, lora_small"):
        build("mla", QUICK)
    with pytest.raises(ValueError, match="unknown position 'alibi'; choose from rope, none, learned"):
        build(Variant(position="alibi"), QUICK)
    with pytest.raises(ValueError, match="heads=5: must divide 64 / 2"):
        scaled(Variant(), replace(QUICK, heads=5))


def test_parameters_of_one_name_are_equal_across_arms_and_nothing_else_moves():
    state, first, shared = torch.get_rng_state(), {}, 0
    for name in VARIANTS:
        for key, p in build(name, QUICK, seed=3).named_parameters():
            if key in first and first[key].shape == p.shape:
                assert torch.equal(first[key], p), (name, key)
                shared += p.ndim > 1
            first.setdefault(key, p)
    assert shared > 100 and torch.equal(torch.get_rng_state(), state)
    assert len({p.flatten()[0].item() for p in first.values() if p.ndim > 1}) == sum(p.ndim > 1 for p in first.values())
    other = dict(build("baseline", QUICK, seed=4).named_parameters())
    assert not torch.equal(other["embed.weight"], first["embed.weight"])


def test_a_mixture_is_each_token_s_own_experts():
    shape = replace(QUICK, width=16, ff=24, experts=5, heads=2)
    layer, x = build("baseline", shape).blocks[0].feed_forward.double(), torch.randn(3, 7, 16, dtype=torch.float64)
    assert isinstance(layer, Mixture)
    torch.nn.init.normal_(layer.router.weight)
    out, balance = layer(x)
    probs = (x @ layer.router.weight.T).softmax(-1)
    expected, share = torch.zeros_like(x), torch.zeros(5, dtype=torch.float64)
    for b, t in torch.cartesian_prod(torch.arange(3), torch.arange(7)):
        best = probs[b, t].topk(2)
        for e, p in zip(best.indices, best.values / best.values.sum(), strict=True):
            inner = torch.nn.functional.silu(layer.up[e] @ x[b, t])
            expected[b, t] += p * (layer.down[e] @ inner)
            share[e] += 1 / 42
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(balance, 0.01 * 5 * (share * probs.flatten(0, 1).mean(0)).sum(), check_dtype=False)


# --- the same as transformers


def rope_parameters(arm: Variant) -> dict:
    linear = {"rope_type": "linear", "factor": arm.factor}
    return {"rope_theta": 1e4, **({"rope_type": "default"} if arm.factor == 1 else linear)}


def deepseek(arm: Variant):
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as hf

    config = hf.DeepseekV3Config(
        hidden_size=512, num_attention_heads=8, num_key_value_heads=8, q_lora_rank=arm.q_rank, kv_lora_rank=arm.kv_rank,
        qk_rope_head_dim=arm.rope, qk_nope_head_dim=arm.nope, v_head_dim=arm.v, attention_bias=arm.bias,
        rope_interleave=True, max_position_embeddings=2048, rope_parameters=rope_parameters(arm),
        attn_implementation="sdpa",
    )  # fmt: skip
    return hf.DeepseekV3Attention(config, 0), hf.DeepseekV3RotaryEmbedding(config)


def llama(arm: Variant):
    from transformers.models.llama import modeling_llama as hf

    config = hf.LlamaConfig(
        hidden_size=512, num_attention_heads=8, num_key_value_heads=arm.kv_heads, attention_bias=arm.bias,
        max_position_embeddings=2048, rope_parameters=rope_parameters(arm), attn_implementation="sdpa",
    )  # fmt: skip
    return hf.LlamaAttention(config, 0), hf.LlamaRotaryEmbedding(config)


def halves(x, still: int, turned: int):
    """Rows of DeepSeek's queries or key, whose pairs are neighbours, in our order: (heads (still + turned), ...)."""
    first, second = x.unflatten(0, (-1, still + turned)).split([still, turned], 1)
    return torch.cat([first, second[:, 0::2], second[:, 1::2]], 1).flatten(0, 1)


def copy_llama(ours: Attention, theirs):
    for kind in ("weight", "bias") if ours.arm.bias else ("weight",):
        q, k, v, o = (getattr(getattr(theirs, f"{name}_proj"), kind).data for name in "qkvo")
        for layer, x in ((ours.q, q), (ours.kv, torch.cat([k, v])), (ours.o, o)):
            getattr(layer, kind).data = x


def copy_deepseek(ours: Attention, theirs):
    names = {
        "q": "q_proj", "q_a": "q_a_proj", "q_norm": "q_a_layernorm", "q_b": "q_b_proj", "kv_a": "kv_a_proj_with_mqa",
        "kv_norm": "kv_a_layernorm", "kv_b": "kv_b_proj", "o": "o_proj",
    }  # fmt: skip
    theirs = theirs.state_dict()
    for key, p in ours.named_parameters():
        name, _, kind = key.partition(".")
        x, arm = theirs[f"{names[name]}.{kind}"], ours.arm
        if name in ("q", "q_b"):
            x = halves(x, arm.nope, arm.rope)
        if name == "kv_a":
            x = torch.cat([x[: arm.kv_rank], halves(x[arm.kv_rank :], 0, arm.rope)])
        p.data = x


@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_are_those_of_transformers(name):
    torch.manual_seed(0)
    arm = scaled(VARIANTS[name], FULL)
    theirs, embedding = (deepseek if arm.latent else llama)(arm)
    for p in theirs.parameters():  # biases and norms too must be seen to matter
        torch.nn.init.normal_(p, 1.0 if p.ndim == 1 else 0.0, 0.05)
    ours = Attention(VARIANTS[name], FULL)
    (copy_deepseek if arm.latent else copy_llama)(ours, theirs)
    assert n_params(ours) == n_params(theirs)
    x, T = torch.randn(2, 33, 512), 33
    rotary = rotary_tables(0, T, arm.rope, arm.factor, x.device)
    embedded = embedding(x, torch.arange(T)[None])
    if arm.position == "none":
        rotary, embedded = None, (torch.ones(1, T, 64), torch.zeros(1, T, 64))
    expected = theirs(x, embedded, None)[0]
    torch.testing.assert_close(ours(x, rotary), expected, atol=1e-5, rtol=1e-5)
    if arm.factor != 1:  # the comparison can fail
        wrong = rotary_tables(0, T, arm.rope, 1.0, x.device)
        assert (ours(x, wrong) - expected).abs().max() > 1e-3

"""Counted FLOPs where torch alone would count none, and the seed's closed form."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import grouped_mm, scaled_dot_product_attention

from mlexp.flops import count_flops, counting, dense_flops, uncounted

SIZES = st.integers(1, 9)
aten = torch.ops.aten


@given(b=SIZES, h=SIZES, m=SIZES, n=SIZES, d=SIZES)
def test_attention_on_the_cpu_is_two_products(b, h, m, n, d):
    q, k, v = torch.randn(b, h, m, d), torch.randn(b, h, n, d), torch.randn(b, h, n, d)
    out, flops = count_flops(lambda: scaled_dot_product_attention(q, k, v))
    assert flops == 4 * b * h * m * n * d and out.shape == q.shape
    mask = torch.ones(m, n, dtype=torch.bool)
    assert count_flops(lambda: scaled_dot_product_attention(q, k, v, attn_mask=mask))[1] == flops


def test_causal_attention_counts_in_full():
    q = torch.randn(1, 2, 8, 4)
    assert count_flops(lambda: scaled_dot_product_attention(q, q, q, is_causal=True))[1] == 4 * 2 * 8 * 8 * 4


@given(groups=st.integers(1, 4), kv=st.integers(1, 3), m=SIZES, n=SIZES, d=SIZES)
def test_grouped_heads_multiply_for_every_query_head(groups, kv, m, n, d):
    q, k, v = torch.randn(2, kv * groups, m, d), torch.randn(2, kv, n, d), torch.randn(2, kv, n, d)
    flops = count_flops(lambda: scaled_dot_product_attention(q, k, v, enable_gqa=True))[1]
    assert flops == 4 * 2 * kv * groups * m * n * d


def test_the_backward_counts_too():
    q, k, v = (torch.randn(1, 2, 8, 4, requires_grad=True) for _ in range(3))
    forward = count_flops(lambda: scaled_dot_product_attention(q, k, v))[1]
    both = count_flops(lambda: scaled_dot_product_attention(q, k, v).sum().backward())[1]
    assert both == pytest.approx(3.5 * forward)  # the fused backward computes the scores again


def test_linear_layers_and_the_closed_form_agree():
    layer, x = torch.nn.Linear(16, 8, bias=False), torch.randn(5, 16)
    assert count_flops(lambda: layer(x))[1] == dense_flops(16 * 8, 5) == 1280


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_a_product_with_a_packed_weight_counts_as_the_plain_one():
    packed, x = torch.ops.mkldnn._reorder_linear_weight(torch.randn(8, 16), 5), torch.randn(2, 5, 16)
    assert (
        count_flops(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""))[1] == 2 * 10 * 16 * 8
    )


def test_importing_again_keeps_one_formula():
    import importlib

    import mlexp.flops

    importlib.reload(mlexp.flops)
    q = torch.randn(1, 1, 2, 2)
    assert count_flops(lambda: scaled_dot_product_attention(q, q, q))[1] == 32


@pytest.mark.parametrize(
    ("run", "flops"),
    {
        "mv": (lambda z: z(6, 5) @ z(5), 2 * 6 * 5),
        "addmv": (lambda z: torch.addmv(z(6), z(6, 5), z(5)), 2 * 6 * 5),
        "addmv_": (lambda z: z(6).addmv_(z(6, 5), z(5)), 2 * 6 * 5),
        "dot": (lambda z: z(5) @ z(5), 2 * 5),
        "vdot": (lambda z: torch.vdot(z(5), z(5)), 2 * 5),
        "addmm_": (lambda z: z(6, 7).addmm_(z(6, 5), z(5, 7)), 2 * 6 * 5 * 7),
        "addbmm": (lambda z: torch.addbmm(z(6, 7), z(3, 6, 5), z(3, 5, 7)), 2 * 3 * 6 * 5 * 7),
        "addbmm_": (lambda z: z(6, 7).addbmm_(z(3, 6, 5), z(3, 5, 7)), 2 * 3 * 6 * 5 * 7),
        "baddbmm_": (lambda z: z(3, 6, 7).baddbmm_(z(3, 6, 5), z(3, 5, 7)), 2 * 3 * 6 * 5 * 7),
        "addmm_gelu": (lambda z: torch._addmm_activation(z(7), z(6, 5), z(5, 7), use_gelu=True), 2 * 6 * 5 * 7),
        "linear_out": (lambda z: aten.linear.out(z(2, 3, 5), z(7, 5), out=z(2, 3, 7)), 2 * 6 * 5 * 7),
        "mkldnn": (lambda z: torch.nn.functional.linear(z(6, 5).to_mkldnn(), z(7, 5).to_mkldnn()), 2 * 6 * 5 * 7),
        "einsum": (lambda z: torch.einsum("bij,bjk->bik", z(3, 6, 5), z(3, 5, 7)), 2 * 3 * 6 * 5 * 7),
        "bmm_out": (lambda z: torch.bmm(z(3, 6, 5), z(3, 5, 7), out=z(3, 6, 7)), 2 * 3 * 6 * 5 * 7),
        "conv1d": (lambda z: torch.nn.functional.conv1d(z(2, 3, 9), z(4, 3, 3)), 2 * 2 * 4 * 7 * 3 * 3),
        "int8": (lambda z: torch._int_mm(z(32, 32).char(), z(32, 64).char()), 2 * 32 * 32 * 64),
        "int8_weights": (
            lambda z: torch._weight_int8pack_mm(z(4, 32).bfloat16(), z(8, 32).char(), z(8).bfloat16()),
            2 * 4 * 32 * 8,
        ),
    }.values(),
)
def test_every_way_to_multiply_is_counted(run, flops):
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert count_flops(lambda: run(torch.zeros))[1] == flops


def test_what_only_other_devices_run_is_counted_by_its_shapes():
    q = torch.empty(1, 2, 8, 4, device="meta")
    assert count_flops(lambda: aten._scaled_dot_product_fused_attention_overrideable(q, q, q))[1] == 4 * 2 * 8 * 8 * 4
    k, v = torch.empty(1, 1, 6, 4, device="meta"), torch.empty(1, 1, 6, 3, device="meta")  # one head for both of q
    flops = count_flops(lambda: aten._scaled_dot_product_fused_attention_overrideable(q, k, v))[1]
    assert flops == 2 * 2 * 8 * 6 * (4 + 3)
    a, b = (torch.empty(shape, device="meta").to(torch.float8_e4m3fn) for shape in ((16, 32), (3, 48, 32)))
    scales, offs = (torch.empty(16, device="meta"), torch.empty(3, 48, device="meta")), torch.empty(3, device="meta")
    run = {"offs": offs.int(), "out_dtype": torch.bfloat16}
    assert count_flops(lambda: torch._scaled_grouped_mm(a, b.mT, *scales, **run))[1] == 2 * 16 * 32 * 48


def test_attention_off_the_fused_path_is_counted_once():
    q = torch.randn(1, 2, 8, 4)
    for more in ({"dropout_p": 0.5}, {"attn_mask": torch.zeros(8, 8, requires_grad=True)}):
        assert count_flops(lambda more=more: scaled_dot_product_attention(q, q, q, **more))[1] == 4 * 2 * 8 * 8 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("a", "b", "offs", "flops"),
    [
        ((16, 8), (3, 8, 24), [8, 8, 16], 2 * 16 * 8 * 24),  # rows of a shared out: what experts do
        ((3, 16, 8), (8, 24), [8, 16, 24], 2 * 16 * 8 * 24),  # columns of b
        ((16, 8), (8, 24), [0, 8], 2 * 16 * 8 * 24),  # the inner dimension: what the gradient of the weights is
        ((3, 16, 8), (3, 8, 24), None, 2 * 3 * 16 * 8 * 24),  # none: a bmm
    ],
)
def test_grouped_products_are_one_product_shared_out(a, b, offs, flops, dtype):
    a, b, offs = torch.randn(a).to(dtype), torch.randn(b).to(dtype), offs and torch.tensor(offs, dtype=torch.int32)
    assert count_flops(lambda: grouped_mm(a, b, offs=offs))[1] == flops


MOE = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
       "intermediate_size": 48, "num_experts_per_tok": 2, "pad_token_id": None}  # fmt: skip
EXPERTS, TOKENS = 4, 20


def moe(kind, implementation="eager", dtype=torch.float32):
    import transformers

    configs = {
        "mixtral": lambda: transformers.MixtralConfig(**MOE, num_local_experts=EXPERTS),
        "qwen2_moe": lambda: transformers.Qwen2MoeConfig(
            **MOE, num_experts=EXPERTS, moe_intermediate_size=24, shared_expert_intermediate_size=40
        ),
        "gpt_oss": lambda: transformers.GptOssConfig(**MOE, num_local_experts=EXPERTS, head_dim=8),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(configs[kind]()).to(dtype).eval()
    model.set_experts_implementation(implementation)
    return model


def moe_flops(kind, backward=False) -> int:
    """2 m n k of every product: linear layers thrice with a backward, fused attention 1 + 5/2 times."""
    T, d, kv, chosen = TOKENS, 32, 2 * 8, MOE["num_experts_per_tok"]
    inner = 48 if kind == "mixtral" else 24
    linear = 2 * T * (d * d + 2 * d * kv + d * d)  # q, k and v, output
    linear += 2 * T * d * EXPERTS + 2 * T * chosen * 3 * d * inner  # router; gate, up and down of the chosen experts
    if kind == "qwen2_moe":
        linear += 2 * T * (3 * d * 40 + d)  # the shared expert and its gate
    scores = 2 * 2 * 4 * T * T * 8
    linear, scores, rotary = 2 * linear + 2 * T * d * 64, 2 * scores, 2 * 4 * T  # the head; D / 2 frequencies
    return rotary + (3 * linear + 7 * scores // 2 if backward else linear + scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe"])
def test_experts_count_alike_however_they_run(kind, implementation, dtype):
    """batched_mm multiplies each token by a copy of its expert's weights: as many products. (It does more only where
    experts are spread over devices and other devices' tokens are multiplied too.)"""
    model, ids = moe(kind, implementation, dtype), torch.randint(0, 64, (1, TOKENS))
    assert count_flops(lambda: model(ids, use_cache=False))[1] == moe_flops(kind)
    assert count_flops(lambda: model(ids, use_cache=False).logits.sum().backward())[1] == moe_flops(kind, True)


def test_experts_with_biases_count_alike():
    ids = torch.randint(0, 64, (1, TOKENS))
    models = [moe("gpt_oss", implementation) for implementation in ("eager", "grouped_mm")]
    one, other = (count_flops(lambda m=m: m(ids, use_cache=False).logits.sum().backward())[1] for m in models)
    assert one == other


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # no grouped_mm of torch takes float64
def test_experts_on_transformers_own_loop_count_alike(monkeypatch, dtype):
    model, ids = moe("mixtral", "grouped_mm", dtype), torch.randint(0, 64, (1, TOKENS))
    monkeypatch.setattr("transformers.integrations.moe._can_use_grouped_mm", lambda *args: False)
    assert count_flops(lambda: model(ids, use_cache=False))[1] == moe_flops("mixtral")
    assert count_flops(lambda: model(ids, use_cache=False).logits.sum().backward())[1] == moe_flops("mixtral", True)


def test_without_an_operator_there_is_no_count():
    assert count_flops(lambda: math.sqrt(4)) == (2.0, None)
    assert count_flops(lambda: torch.ones(2) + 1)[1] == 0
    layer, x = torch.nn.Linear(16, 8, bias=False), torch.randn(5, 16)
    (inner, outer) = count_flops(lambda: count_flops(lambda: layer(x))[1])
    assert inner == outer == 1280


def test_what_has_no_formula_makes_the_count_unknown():
    x = torch.randn(3, 2, 5)
    assert count_flops(lambda: torch.nn.LSTM(5, 6)(x))[1] is None
    assert count_flops(lambda: torch.sparse.mm(x[0].to_sparse(), x[0].T))[1] is None
    encoder = torch.nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
    with torch.no_grad():  # the fast path is one operator
        assert count_flops(lambda: encoder(torch.randn(2, 4, 8)))[1] is None
    assert count_flops(lambda: encoder(torch.randn(2, 4, 8)))[1] > 0
    assert count_flops(lambda: torch.nn.GRU(5, 6)(x))[1] == 2 * 3 * 2 * (5 + 6) * 18


def test_another_library_s_operator_makes_the_count_unknown_until_it_has_a_formula(monkeypatch):
    from torch.utils.flop_counter import flop_registry

    @torch.library.custom_op("mlexp_tests::halve", mutates_args=())
    def halve(x: torch.Tensor) -> torch.Tensor:
        return x / 2

    x = torch.randn(3, 3)
    assert count_flops(lambda: halve(x) @ x)[1] is None
    monkeypatch.setitem(flop_registry, torch.ops.mlexp_tests.halve, lambda *args, **kwargs: 0)
    assert count_flops(lambda: halve(x) @ x)[1] == 54


def test_what_runs_uncounted_leaves_no_trace():
    layer, x, seen = torch.nn.Linear(16, 8, bias=False), torch.randn(5, 16), SimpleNamespace()

    def run():
        layer(x)
        with uncounted():
            seen.out, seen.counting = layer(x), counting()
            torch.nn.LSTM(16, 2)(x)  # has no formula
        layer(x)

    assert count_flops(run)[1] == 2 * 1280 and seen.out.shape == (5, 8) and seen.counting
    assert count_flops(lambda: count_flops(run)[1]) == (2 * 1280, 2 * 1280)

    def nothing_else():
        with uncounted():
            layer(x)

    assert count_flops(nothing_else)[1] is None
    nothing_else()  # outside of any count it does nothing
    assert not counting()


def test_uncounted_restores_the_count_after_an_error():
    layer, x = torch.nn.Linear(16, 8, bias=False), torch.randn(5, 16)

    def run():
        layer(x)
        with pytest.raises(ZeroDivisionError), uncounted():
            layer(x)
            1 / 0  # noqa: B018

    assert count_flops(run)[1] == 1280


def counting_backend(log):
    """A backend of torch.compile that notes when it compiles and when its code runs."""

    def backend(graph, inputs):
        log.append("compiled")
        return lambda *args: (log.append("ran"), graph.forward(*args))[1]

    return backend


@pytest.fixture
def compiled_product():
    """(a product that is compiled, what it has done)."""
    torch.compiler.reset()
    log = []
    yield torch.compile(lambda x: x @ x, backend=counting_backend(log)), log
    torch.compiler.reset()


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("called_before", [False, True])
def test_counting_leaves_compiled_functions_compiled(compiled_product, called_before, nested):
    (product, log), x = compiled_product, torch.randn(8, 8)
    if called_before:
        product(x)
    flops = count_flops(lambda: count_flops(lambda: product(x)) if nested else product(x))[1]
    assert flops == 2 * 8**3
    product(x)
    product(x)
    assert log == ["compiled", "ran", "ran"] + called_before * ["ran"]


def test_counting_leaves_the_stance_of_others_as_it_was(compiled_product):
    (product, log), x = compiled_product, torch.randn(8, 8)
    product(x)
    with torch.compiler.set_stance("fail_on_recompile"):
        with pytest.raises(ZeroDivisionError):
            count_flops(lambda: (product(x), 1 / 0))
        assert count_flops(lambda: product(x))[1] == 2 * 8**3
        product(x)
        with pytest.raises(RuntimeError, match="recompile"):
            product(torch.randn(9, 9, dtype=torch.float64))
    assert log == ["compiled", "ran", "ran"]


def test_counting_within_a_compiled_function_counts(compiled_product):
    x = torch.randn(8, 8)

    @torch.compile(backend="eager")
    def run(x):
        return count_flops(lambda: x @ x)[1] + (x @ x).shape[0]

    assert [run(x) for _ in range(3)] == 3 * [2 * 8**3 + 8]


def test_flex_attention_still_runs_after_an_attempt_to_count_it():
    from torch.nn.attention.flex_attention import flex_attention

    torch.compiler.reset()
    q = torch.randn(1, 1, 16, 16)
    with pytest.raises(TypeError, match="flex_attention"):  # no counter of torch's knows it
        count_flops(lambda: flex_attention(q, q, q))
    torch.testing.assert_close(flex_attention(q, q, q), scaled_dot_product_attention(q, q, q))


def test_scripts_are_counted_and_run_on():
    script, x = torch.jit.script(scripted), torch.randn(8, 8)
    for _ in range(4):  # profiled, optimised, and as it is then
        assert count_flops(lambda: script(x))[1] == 2 * 8**3
        torch.testing.assert_close(script(x), scripted(x))


def scripted(x: torch.Tensor):
    return torch.relu(x @ x) + 1

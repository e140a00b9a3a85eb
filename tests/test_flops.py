"""Counted FLOPs where torch alone would count none, and the seed's closed form."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from mlexp.flops import count_flops, dense_flops

SIZES = st.integers(1, 9)


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


def test_importing_again_keeps_one_formula():
    import importlib

    import mlexp.flops

    importlib.reload(mlexp.flops)
    q = torch.randn(1, 1, 2, 2)
    assert count_flops(lambda: scaled_dot_product_attention(q, q, q))[1] == 32

"""The operators written for speed: values from plain formulas, gradients from finite differences."""

import pytest
import torch
from torch.nn.functional import rms_norm

from mlexp.attention.layers import Norm, rotary_tables, rotate

CPU = torch.device("cpu")


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("heads", "tables"), [(3, 3), (1, 3), (2, 1)])
def test_a_turn_multiplies_complex_numbers(heads, tables):
    x, start, width, factor = drawn(2, 5, heads, 8), 7, 8, 1.5
    angle = torch.tensor([[p / factor * 10_000 ** (-2 * i / width) for i in range(4)] for p in range(start, start + 5)])
    turned = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones(()), angle)[:, None]
    ours = rotate(x, rotary_tables(start, start + 5, width, factor, CPU, tables))
    torch.testing.assert_close(ours, torch.cat([turned.real, turned.imag], -1), atol=1e-6, rtol=1e-6)


def test_the_gradient_of_a_turn_is_turned_back():
    tables = tuple(table.double() for table in rotary_tables(0, 3, 4, 1.0, CPU, 2))
    assert torch.autograd.gradcheck(lambda x: rotate(x, tables), drawn(2, 3, 2, 4).requires_grad_())


def test_tables_are_made_once_and_every_argument_counts():
    of = (2, 6, 4, 1.0, CPU, 2)
    assert rotary_tables(*of) is rotary_tables(*of)
    others = [(1, 5, 4, 1.0, CPU, 2), (2, 6, 4, 2.0, CPU, 2)]
    assert all(not torch.equal(rotary_tables(*other)[0], rotary_tables(*of)[0]) for other in others)
    assert [rotary_tables(*other)[1].shape for other in ((2, 9, 4, 1.0, CPU), (2, 6, 8, 1.0, CPU, 3))] == [
        (7, 1, 4), (4, 3, 8),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_norm_is_torchs_own(dtype):
    norm, x, grad = Norm(6).to(dtype), drawn(2, 5, 6, dtype=dtype).requires_grad_(), drawn(2, 5, 6, seed=1, dtype=dtype)
    torch.nn.init.normal_(norm.weight, 1.0, 0.3)
    theirs = rms_norm(x, (6,), norm.weight, 1e-6)
    torch.testing.assert_close(norm(x), theirs)
    ours, expected = (torch.autograd.grad(y, (x, norm.weight), grad) for y in (norm(x), theirs))
    torch.testing.assert_close(ours, expected)


def test_the_gradient_of_a_norm_is_that_of_differences():
    norm, x = Norm(4).double(), drawn(2, 3, 4).requires_grad_()
    torch.nn.init.normal_(norm.weight, 1.0, 0.3)
    assert torch.autograd.gradcheck(lambda x, gain: norm(x), (x, norm.weight))
    norm.weight.requires_grad_(False)
    assert torch.autograd.gradcheck(norm, x)


def test_a_norm_keeps_the_dtype_of_what_it_is_given():
    x = drawn(2, 5, 6).bfloat16()
    assert Norm(6)(x).dtype == torch.bfloat16

"""Cross-entropy by chunks: the plain one's loss and gradients, its FLOPs, and a fraction of its memory."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mlexp.attention.loss import linear_cross_entropy
from mlexp.flops import count_flops
from mlexp.training import saved_bytes

TOLERANCE = {torch.float64: (1e-10, 1e-10), torch.float32: (1e-5, 1e-4)}


def draw(n, width, vocab, seed, dtype):
    random = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(m, width, generator=random, dtype=dtype, requires_grad=True) for m in (n, vocab))
    return hidden, weight, torch.randint(vocab, (n,), generator=random)


def plain(hidden, weight, targets):
    return cross_entropy((hidden @ weight.T).float() if hidden.dtype == torch.bfloat16 else hidden @ weight.T, targets)


class Largest(TorchDispatchMode):
    """The most elements that any one tensor made inside had."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


@given(
    n=st.integers(1, 37), width=st.integers(1, 9), vocab=st.integers(2, 67), chunk=st.integers(1, 40),
    seed=st.integers(0, 2**31 - 1), dtype=st.sampled_from(list(TOLERANCE)), scale=st.floats(-3, 3),
)  # fmt: skip
def test_it_is_cross_entropy(n, width, vocab, chunk, seed, dtype, scale):
    hidden, weight, targets = draw(n, width, vocab, seed, dtype)
    atol, rtol = TOLERANCE[dtype]
    loss, losses, right = linear_cross_entropy(hidden, weight, targets, chunk)
    expected = plain(hidden, weight, targets)
    logits = hidden @ weight.T
    torch.testing.assert_close(loss, expected, atol=atol, rtol=rtol)
    torch.testing.assert_close(losses, cross_entropy(logits, targets, reduction="none"), atol=atol, rtol=rtol)
    assert torch.equal(right, logits.argmax(-1) == targets)
    gradients = [torch.autograd.grad(x * scale, (hidden, weight)) for x in (loss, expected)]
    torch.testing.assert_close(*gradients, atol=atol * 3, rtol=rtol)


def test_under_autocast_it_is_cross_entropy_of_rounded_products():
    hidden, weight, targets = draw(300, 64, 512, 0, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, losses, _ = linear_cross_entropy(hidden, weight, targets, 77)
    exact = plain(hidden, weight, targets)
    assert loss.dtype == losses.dtype == torch.float32
    torch.testing.assert_close(loss, exact, atol=0, rtol=5e-3)
    for a, b in zip(*(torch.autograd.grad(x, (hidden, weight)) for x in (loss, exact)), strict=True):
        assert a.dtype == torch.float32 and (a - b).norm() / b.norm() < 0.02


def test_one_gradient_may_be_wanted_without_the_other_and_none_costs_none():
    hidden, weight, targets = draw(20, 8, 32, 0, torch.float32)
    forward = 2 * 20 * 8 * 32
    with torch.no_grad():
        assert count_flops(lambda: linear_cross_entropy(hidden, weight, targets, 7))[1] == forward
    linear_cross_entropy(hidden.detach(), weight, targets, 7)[0].backward()
    assert hidden.grad is None
    expected = torch.autograd.grad(plain(hidden, weight, targets), weight)[0]
    torch.testing.assert_close(weight.grad, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("chunk", [7, 64])
def test_flops_are_those_of_the_plain_one(chunk):
    hidden, weight, targets = draw(60, 16, 128, 0, torch.float32)
    counted = [
        count_flops(lambda f=f: f().backward())[1]
        for f in (
            lambda: linear_cross_entropy(hidden, weight, targets, chunk)[0],
            lambda: plain(hidden, weight, targets),
        )
    ]
    assert counted == [3 * 2 * 60 * 16 * 128] * 2


def test_at_a_real_vocabulary_it_keeps_an_eighth_and_never_has_all_logits():
    n, width, vocab, chunk = 768, 64, 49152, 32
    hidden, weight, targets = draw(n, width, vocab, 0, torch.float32)
    kept = [
        saved_bytes(run, (hidden, weight, targets))
        for run in (
            lambda: linear_cross_entropy(hidden, weight, targets, chunk)[0],
            lambda: plain(hidden, weight, targets),
        )
    ]
    assert kept[0] == 4 * width * (n + vocab) and kept[1] >= 4 * n * vocab > 8 * kept[0]
    with Largest() as largest:
        linear_cross_entropy(hidden, weight, targets, chunk)[0].backward()
    assert largest.elements == width * vocab  # the weight's own gradient

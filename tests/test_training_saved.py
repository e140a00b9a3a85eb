"""Bytes that autograd keeps for backward, in closed form."""

import torch

from mlexp.training import saved_bytes

N, BYTES = 1000, 4000  # float32


def tensor():
    return torch.rand(N, requires_grad=True)


def test_what_exp_saves_is_its_results_of_all_of_a_chain():
    assert saved_bytes(lambda: tensor().exp().sum().backward()) == BYTES
    assert saved_bytes(lambda: tensor().exp().exp().exp().sum().backward()) == 3 * BYTES
    assert saved_bytes(lambda: None) == 0


def test_a_storage_that_is_saved_twice_counts_once_and_a_view_as_its_storage():
    def square():
        y = tensor().exp()
        return (y * y).sum().backward()  # y: for exp, and twice for the product

    def slices():
        y = tensor() + 1
        return (y[:10].exp() + y[:10].sin() + y[10:20].sin()).sum().backward()

    assert saved_bytes(square) == BYTES
    assert saved_bytes(slices) == BYTES + 40  # both sines save y, whole; exp its ten results


def test_what_was_released_does_not_count_any_more():
    def one_after_the_other():
        for _ in range(3):
            tensor().exp().exp().sum().backward()

    def dropped():
        y = tensor().exp().exp()
        del y
        tensor().exp().sum().backward()

    assert saved_bytes(one_after_the_other) == 2 * BYTES
    assert saved_bytes(dropped) == 2 * BYTES  # the most at any moment, not what was left at the end


def test_parameters_do_not_count_and_inputs_do():
    layer, x = torch.nn.Linear(50, 70, bias=False), torch.rand(10, 50)
    assert saved_bytes(lambda: layer(x).sum().backward()) == 4 * 10 * 50
    inner = torch.nn.Linear(50, 50, bias=False)
    assert saved_bytes(lambda: layer(inner(x)).sum().backward()) == 2 * 4 * 10 * 50


def test_bytes_saved_are_each_storage_once_and_never_what_is_excluded():
    a, b, c = (torch.randn(n, requires_grad=True) for n in (10, 10, 1000))
    assert saved_bytes(lambda: a * b) == 80
    assert saved_bytes(lambda: a * b, exclude=[a]) == 40
    assert saved_bytes(lambda: (a * a) * a.view(2, 5).flatten()) == 40 + 40  # a, and a times a
    assert saved_bytes(lambda: a[:5] * b[5:]) == 80  # a storage is kept whole
    assert saved_bytes(lambda: c.exp().sum()) == 4000  # its result

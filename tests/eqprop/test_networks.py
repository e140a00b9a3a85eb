"""The networks against a plain forward of their equations; their first weights, caps, dropout, depth of prediction."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import gelu, layer_norm

from mlexp.eqprop.learners import ALPHABET, LEARNERS, Size
from mlexp.eqprop.residual import Norm, Residual
from mlexp.eqprop.settle import Stop, free
from mlexp.eqprop.train import Caps, network, predict

SIZE = Size(width=16, layers=3, heads=4, length=10, context=3, embed=8)
BIG = Size(width=64, layers=2, heads=4, length=24, context=4, embed=32)


def made(name, size=SIZE):
    """In float64, every parameter moved: gains that are not 1, biases that are not 0."""
    model = network(LEARNERS[name], size, seed=0).double()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g).double() * (1 if p.ndim == 1 else 0.3))
        for _ in range(20):
            for weight, cap in model.capped() if hasattr(model, "capped") else ():
                weight.mul_(min(1.0, cap / float(torch.linalg.matrix_norm(weight, 2))))
    return model.eval()


def characters(seed, *shape):
    return torch.randint(ALPHABET, shape, generator=torch.Generator().manual_seed(seed))


def attention(w, name, h, heads):
    """softmax(Q K^T / sqrt(d_head) + causal mask) V, head by head."""
    T, d = h.shape[1:]
    q, k, v = (h @ w[f"{name}.qkv.weight"].T).split(d, -1)
    mask = torch.full((T, T), -math.inf).double().triu(1)
    out = []
    for one in range(heads):
        part = slice(one * d // heads, (one + 1) * d // heads)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(d // heads)
        out.append((scores + mask).softmax(-1) @ v[..., part])
    return torch.cat(out, -1) @ w[f"{name}.out.weight"].T


def linear(w, name, h):
    return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def feed(w, name, h):
    return linear(w, f"{name}.down", gelu(linear(w, f"{name}.up", h)))


def transformer(w, x, size, layers):
    def norm(name, h):
        return layer_norm(h, (size.width,), w[f"{name}.weight"], w[f"{name}.bias"])

    h = w["characters.weight"][x] + w["places.weight"][: x.shape[1]]
    for i in range(layers):
        h = h + attention(w, f"blocks.{i}.attention", norm(f"blocks.{i}.norm_1", h), size.heads)
        h = h + feed(w, f"blocks.{i}.feed", norm(f"blocks.{i}.norm_2", h))
    return linear(w, "head", norm("norm", h))


def residual(w, x, size, layers, kappa, sweeps):
    """z^1 = u + g_1(u + kappa N0(z^L)), z^l = z^{l-1} + g_l(z^{l-1}), from z = 0."""

    def bounded(z, gain=1.0):
        return gain * z / (1 + (z**2).mean(-1, keepdim=True)).sqrt()

    def increment(i, h):
        a = attention(w, f"blocks.{i}.attention", bounded(h, w[f"blocks.{i}.norm_1.gain"]), size.heads)
        return a + feed(w, f"blocks.{i}.feed", bounded(h + a, w[f"blocks.{i}.norm_2.gain"]))

    u = w["characters.weight"][x] + w["places.weight"][: x.shape[1]]
    top = torch.zeros_like(u)
    for _ in range(sweeps):
        z = u + increment(0, u + kappa * bounded(top))
        for i in range(1, layers):
            z = z + increment(i, z)
        top = z
    return linear(w, "head", bounded(top, w["norm.gain"]))


def hopfield(w, x, size, sweeps):
    """s_l = tanh(W_l s_{l-1} + b_l + W_{l+1}^T s_{l+1}), layer by layer, over the window of the last characters."""
    rows = []
    for row in x.tolist():
        padded = [ALPHABET] * (size.context - 1) + row
        windows = [padded[t : t + size.context] for t in range(len(row))]
        rows.append(torch.stack([torch.cat([w["characters.weight"][c] for c in window]) for window in windows]))
    below, s = torch.stack(rows), [torch.zeros(*x.shape, size.width).double() for _ in range(size.layers)]
    for _ in range(sweeps):
        for i in range(size.layers):
            drive = linear(w, f"layers.{i}", s[i - 1] if i else below)
            if i + 1 < size.layers:
                drive = drive + s[i + 1] @ w[f"layers.{i + 1}.weight"]
            s[i] = drive.tanh()
    return linear(w, "head", s[-1])


@pytest.mark.parametrize("name", LEARNERS)
@given(seed=st.integers(0, 2**31 - 1), count=st.integers(1, 3), length=st.integers(1, SIZE.length))
@settings(max_examples=5)
def test_predictions_are_those_of_the_plain_equations(name, seed, count, length):
    row, model = LEARNERS[name], made(name)
    layers, w, x = row.layers or SIZE.layers, dict(model.state_dict()), characters(seed, count, length)
    if row.network == "transformer":
        want = transformer(w, x, SIZE, layers)
    elif row.network == "residual":
        want = residual(w, x, SIZE, layers, 0.25 if name != "full_kappa0" else 0.0, 12)
    else:
        want = hopfield(w, x, SIZE, 40)
    with torch.no_grad():
        torch.testing.assert_close(predict(model, x, 0.0)[0], want, rtol=1e-9, atol=1e-9)


def test_a_ring_s_feedback_is_as_strong_as_asked():
    model, x = Residual(SIZE, 0.6).double(), characters(6, 2, SIZE.length)
    with torch.no_grad():
        want = residual(dict(model.state_dict()), x, SIZE, SIZE.layers, 0.6, 12)
        torch.testing.assert_close(predict(model, x, 0.0)[0], want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["looped_mlp", "recurrent_core", "full"])
@pytest.mark.parametrize("sweeps", [1, 2, 5])
def test_a_free_phase_makes_its_sweeps_and_says_how_far_the_last_one_moved(name, sweeps):
    model, x = made(name), characters(3, 2, SIZE.length)
    with torch.no_grad():
        c = model.clamp(x)
        before, after = (free(model, c, Stop(0.0, n)) for n in (sweeps - 1 or 1, sweeps))
        states = [torch.zeros_like(z) for z in after.states] if sweeps == 1 else before.states
    moved = torch.cat([(a - b).flatten() for a, b in zip(after.states, states, strict=True)]).norm()
    assert after.sweeps == sweeps and after.converged
    assert after.residual == pytest.approx(float(moved / torch.cat([z.flatten() for z in after.states]).norm()))
    loose = free(model, c, Stop(after.residual * 1.001, 50))  # stops as soon as it may
    assert loose.sweeps == sweeps and loose.converged


@pytest.mark.parametrize("name", [name for name, row in LEARNERS.items() if row.rule != "backprop"])
def test_a_prediction_is_as_deep_as_it_needs_to_be_at_the_caps(name):
    """Far more sweeps change no log-probability by a thousandth, even where all matrices are at their caps."""
    model, x = network(LEARNERS[name], BIG, 0).double(), characters(4, 2, 24)
    with torch.no_grad():
        for weight, cap in model.capped():
            weight.mul_(cap / torch.linalg.matrix_norm(weight, 2))
        shallow, residual, _ = predict(model, x)
        deep = model.logits(free(model, model.clamp(x), Stop(0.0, 120)).states[-1])
    assert residual < 1e-3
    assert (shallow.log_softmax(-1) - deep.log_softmax(-1)).abs().max() < 1e-3


@given(seed=st.integers(0, 2**31 - 1), scale=st.sampled_from([1e-3, 1.0, 30.0]))
def test_the_norm_never_stretches_and_its_derivatives_are_autograd_s(seed, scale):
    g = torch.Generator().manual_seed(seed)
    norm, z = Norm(6).double(), (scale * torch.randn(2, 3, 6, generator=g).double()).requires_grad_()
    norm.gain.data = torch.randn(6, generator=g).double()
    plain = norm.gain * z / (1 + z.square().mean(-1, keepdim=True)).sqrt()
    torch.testing.assert_close(norm(z), plain)
    assert norm(z).norm() <= norm.gain.abs().max() * z.norm() * (1 + 1e-12)
    way = torch.randn(2, 3, 6, generator=g).double()
    for ours, theirs in zip(
        torch.autograd.grad((norm(z) * way).sum(), [z, norm.gain]),
        torch.autograd.grad((plain * way).sum(), [z, norm.gain]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def spread(tensor):
    return float(tensor.detach().std())


def test_first_weights_are_as_wide_as_said():
    near = {"rel": 0.06}
    plain = network(LEARNERS["backprop"], BIG, 0)
    for name, p in plain.named_parameters():
        if p.ndim == 2:
            assert spread(p) == pytest.approx(0.02, **near), name
        else:
            assert torch.equal(p, torch.full_like(p, float("norm" in name and "weight" in name))), name
    ring = network(LEARNERS["full"], BIG, 0)
    for name, p in ring.named_parameters():
        if p.ndim == 2:
            inner = 0.4 / math.sqrt(p.shape[1])
            want = inner if name.startswith("blocks") else 0.02 if name.startswith("head") else 0.5
            assert spread(p) == pytest.approx(want, **near), name
        else:
            assert torch.equal(p, torch.full_like(p, float("gain" in name))), name
    layered = network(LEARNERS["looped_mlp"], BIG, 0)
    for i, layer in enumerate(layered.layers):
        want = (0.3 if i else 1.0) / math.sqrt(layer.in_features)
        assert spread(layer.weight) == pytest.approx(want, **near) and not layer.bias.any()
    assert spread(layered.head.weight) == pytest.approx(0.02, **near) and not layered.head.bias.any()


def test_caps_are_on_what_the_study_says_and_leave_the_rest():
    ring, layered = network(LEARNERS["full"], SIZE, 0), network(LEARNERS["looped_mlp"], SIZE, 0)
    names = {id(p): name for model in (ring, layered) for name, p in model.named_parameters()}
    times = {"attention.out": 1.5, "feed.down": 1.5, "feed.up": 2.25, "attention.qkv": 3.0}
    want = {f"blocks.{i}.{part}.weight": cap for i in range(SIZE.layers) for part, cap in times.items()}
    assert {names[id(w)]: cap for w, cap in ring.capped()} == want
    assert {names[id(w)]: cap for w, cap in layered.capped()} == {"layers.1.weight": 0.8, "layers.2.weight": 0.8}


@pytest.mark.parametrize("name", ["looped_mlp", "full"])
def test_a_matrix_below_its_cap_is_left_as_it_is(name):
    model = network(LEARNERS[name], SIZE, 0)
    with torch.no_grad():
        for weight, cap in model.capped():
            weight.mul_(0.9 * cap / torch.linalg.matrix_norm(weight, 2))
    before = [p.clone() for p in model.parameters()]
    caps = Caps(model)
    for _ in range(5):
        caps()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_dropout_is_in_every_part_while_training_and_nowhere_else():
    model, x = network(LEARNERS["backprop"], SIZE, 0, drop=0.5), characters(5, 64, SIZE.length)
    torch.manual_seed(0)
    whole = network(LEARNERS["backprop"], SIZE, 0, drop=0.0)
    with torch.no_grad():
        assert not torch.equal(model(x), model(x)) and torch.equal(model.eval()(x), whole(x))
        model.train()
        seen = {}
        for name in ("blocks.0.attention", "blocks.2.feed"):
            model.get_submodule(name).register_forward_hook(lambda m, _, out, n=name: seen.__setitem__(n, out))
        into = {}
        for name in ("blocks.0.norm_1", "blocks.0.norm_2", "norm"):
            model.get_submodule(name).register_forward_pre_hook(lambda m, args, n=name: into.__setitem__(n, args[0]))
        model(x)
        plain = model.characters(x) + model.places.weight[: x.shape[1]]
        zeros = (into["blocks.0.norm_1"] == 0).float().mean()
        torch.testing.assert_close(into["blocks.0.norm_1"], torch.where(into["blocks.0.norm_1"] == 0, 0, 2 * plain))
        added = into["blocks.0.norm_2"] - into["blocks.0.norm_1"]
        dropped = added.abs() < 1e-7
        torch.testing.assert_close(added, torch.where(dropped, 0, 2 * seen["blocks.0.attention"]), atol=1e-6, rtol=1e-3)
        assert 0.45 < zeros < 0.55 and 0.45 < dropped.float().mean() < 0.55

"""Fixed shapes: idle rows change nothing, several prompts are each alone, nothing waits for the device, graphs
replay."""

import functools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mlexp.decoding import engine, kernels
from mlexp.decoding.attention import tree_attention_on
from mlexp.decoding.costs import cost
from mlexp.decoding.decoders import DECODE
from mlexp.decoding.engine import Forest, alone, decode, grow
from mlexp.decoding.policies import POLICIES
from mlexp.decoding.rng import path_seeds
from mlexp.decoding.settings import DECODER_NAMES, Sampling
from mlexp.flops import count_flops

from .architectures import build, prompt
from .models import prompt_of, tiny

SMALL = Sampling(samples=5, max_new_tokens=6, max_paths=4, threshold=0.5)
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero"}


class NoWaiting(TorchDispatchMode):
    """Raises where an operator would make the host wait for a device: it needs a value to go on."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if name in WAITS:
            raise RuntimeError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


def same(a, b):
    return all((getattr(a, name) == getattr(b, name)).all() for name in ("token", "parent", "multiplicity", "leaf"))


@pytest.mark.parametrize("decoder", POLICIES)
@given(samples=st.integers(1, 6), new=st.integers(1, 5), k=st.integers(1, 4), paths=st.integers(1, 6),
       prompts=st.integers(1, 3), trees=st.integers(1, 2), threshold=st.sampled_from([0.0, 0.5, 1.0]),
       seed=st.integers(0, 2**31 - 1), kind=st.sampled_from(["gpt2", "llama"]))  # fmt: skip
@settings(max_examples=15)
def test_idle_rows_and_other_prompts_change_nothing(
    decoder, samples, new, k, paths, prompts, trees, threshold, seed, kind
):
    lm, sampling = tiny(kind), Sampling(samples, new, 0.8, threshold, k, paths)
    asked = torch.stack([prompt_of(7, seed=seed + i) for i in range(prompts)])
    want, counts = grow(lm.model, asked, sampling, decoder, seed, trees)
    got, idle = grow(lm.model, asked, sampling, decoder, seed, trees, idle_rows=True)
    assert same(got, want)
    assert counts.token_forwards == 7 * prompts + sum(want.live_paths()[:-1])
    rows = POLICIES[decoder].width(sampling) * trees * prompts
    assert (idle.token_forwards, idle.logit_rows) == (7 * prompts + rows * (new - 1), prompts + rows * (new - 1))
    seeds = path_seeds(seed, prompts * trees, samples)
    for b in range(prompts):
        one, _ = decode(lm.model, asked[b : b + 1], seeds[b * trees : (b + 1) * trees], sampling, decoder)
        mine = (want.leaf_tree >= b * trees) & (want.leaf_tree < (b + 1) * trees)
        assert (one.tokens() == want.tokens()[mine]).all()


def test_copies_of_a_prompt_are_rows_that_share_nothing():
    lm, prompt, seeds = tiny(), prompt_of(7), path_seeds(3, 1, 5)[0]
    want = DECODE["shared_prefill"](lm, prompt, SMALL, 3).tokens.numpy()
    for idle in (True, False):
        tree, counts = decode(lm.model, prompt[None], seeds[:, None], alone(SMALL), "dedup", copies=5, idle_rows=idle)
        assert (tree.tokens() == want).all() and counts.token_forwards == 7 + 5 * 5
        single, _ = decode(lm.model, prompt[None], seeds[2:3, None], alone(SMALL), "dedup", idle_rows=idle)
        assert (single.tokens() == want[2:3]).all()


@pytest.mark.parametrize("decoder", POLICIES)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_no_step_waits_for_the_device(kind, decoder):
    lm, prompts = tiny(kind), torch.stack([prompt_of(7, seed=i) for i in range(2)])
    with tree_attention_on(lm.model):
        forest = Forest(lm.model, prompts, path_seeds(0, 2, 5), SMALL, decoder, idle_rows=True)
        live = Forest(lm.model, prompts, path_seeds(0, 2, 5), SMALL, decoder, idle_rows=False)
        with NoWaiting():
            forest.begin()
            for _ in range(5):
                forest.step()
            with pytest.raises(RuntimeError, match="waits for the device"):  # and the check can fail
                live.begin()
                live.step()


@pytest.mark.parametrize("decoder", POLICIES)
@pytest.mark.parametrize("name", ["mistral", "gemma2", "granite_swa", "cohere2", "gpt_neox"])
def test_no_step_waits_for_windows_filters_or_ends(name, decoder):
    model, prompts = build(name), torch.stack([prompt(), prompt().flip(0)])
    sampling = Sampling(5, 6, max_paths=4, threshold=0.2, top_k=30, top_p=0.9, stop_tokens=(5, 9))
    want, _ = grow(model, prompts, sampling, decoder, 3)
    with tree_attention_on(model):
        forest = Forest(model, prompts, path_seeds(3, 2, 5), sampling, decoder, idle_rows=True)
        with NoWaiting():
            forest.begin()
            for _ in range(5):
                forest.step()
    assert (forest.harvest().tokens() == want.tokens()).all()


def move_to_fake_cuda(model):
    """Put shapes on a CUDA device that need not exist in the place of the weights; within a FakeTensorMode."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, x in tensors.items():
                if x is not None:
                    fake = torch.empty(x.shape, dtype=x.dtype, device="cuda")
                    tensors[name] = torch.nn.Parameter(fake, False) if tensors is module._parameters else fake


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="needs a torch that is built for CUDA; no GPU")
@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("decoder", POLICIES)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_all_operands_of_a_step_are_on_the_device(kind, decoder, backend, monkeypatch):
    """Under fake tensors an operator with a CPU operand too many, or one that needs a value, raises."""
    monkeypatch.setattr(kernels, "missing", lambda *_: None)
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny(kind, dtype=dtype).model
        with FakeTensorMode():
            move_to_fake_cuda(model)
            prompts, seeds = (torch.zeros(n, w, dtype=torch.int64, device="cuda") for n, w in ((2, 7), (4, 5)))
            with tree_attention_on(model):
                forest = Forest(model, prompts, seeds, SMALL, decoder, backend=backend)
                forest.begin()
                forest.step()
            assert forest.idle_rows and {x.device.type for x in forest.steps.values()} == {"cuda"}


class Shape:
    """A tensor on a GPU, as far as the keeping of graphs looks at it."""

    is_cuda = True

    def __init__(self, *shape):
        self.shape = torch.Size(shape)

    def to(self, device):
        return self

    def clone(self):
        return self


def test_graphs_are_kept_for_all_that_shapes_them(monkeypatch):
    captured, replayed, graphs = [], [], {}

    class Graphs:
        def __init__(self, forest):
            captured.append(forest)
            self.forest = SimpleNamespace(harvest=lambda: forest)

        def run(self, prompts, seeds):
            replayed.append((prompts, seeds))

    monkeypatch.setattr(engine, "Graphs", Graphs)
    monkeypatch.setattr(engine, "Forest", lambda *args: args)
    model = SimpleNamespace(device="cuda")
    first = {"model": model, "prompts": Shape(1, 7), "seeds": Shape(1, 5), "sampling": SMALL, "policy": "dedup"}
    changes = [{"model": SimpleNamespace(device="cuda")}, {"prompts": Shape(2, 7)}, {"seeds": Shape(2, 5)},
               {"sampling": alone(SMALL)}, {"policy": "eab_paper"}, {"copies": 2}, {"backend": "triton"},
               {"idle_rows": True}]  # fmt: skip
    for change in changes:
        for asked, more in ((first, 1), (first, 0), (first | change, 1), (first | change, 0)):
            before = len(captured)
            tree, _ = engine.decode(**asked, graphs=graphs)
            assert tree[0] is asked["model"] and tree[3:5] == (asked["sampling"], asked["policy"])
            assert replayed[-1] == (asked["prompts"], asked["seeds"])
            assert len(captured) == before + more and len(graphs) == 1


def test_a_forest_can_run_again_on_other_prompts_and_seeds_in_place():
    lm, first, second = tiny(), prompt_of(7), prompt_of(7, seed=9)
    want, _ = grow(lm.model, second, SMALL, "eab_particles", 8)
    with tree_attention_on(lm.model):
        for decoder in POLICIES:
            want, _ = grow(lm.model, second, SMALL, decoder, 8)
            forest = Forest(lm.model, first[None].clone(), path_seeds(1, 1, 5), SMALL, decoder, idle_rows=True)
            for prompt, seed in ((first, 1), (second, 8)):
                forest.prompts.copy_(prompt[None])
                forest.seeds.copy_(path_seeds(seed, 1, 5))
                forest.begin()
                for _ in range(5):
                    forest.step()
            assert same(forest.harvest(), want)


@pytest.mark.parametrize("decoder", POLICIES)
def test_flops_of_idle_rows_are_the_closed_form_on_the_kernels(decoder):
    pytest.importorskip("triton", reason="needs the triton package: pip install 'pytest-mlexp[triton]'")
    lm, prompt, sampling = tiny(dtype=torch.float32), prompt_of(7), Sampling(samples=3, max_new_tokens=4, max_paths=3)
    run = functools.partial(grow, lm.model, prompt, sampling, decoder, 0, backend="triton", idle_rows=True)
    (_, counts), flops = count_flops(run)
    want = cost(lm.model.config, decoder, 7, sampling, (3,) * 3)
    assert (flops, counts.token_forwards) == (want.flops, want.token_forwards)


@pytest.mark.needs_gpu
class TestOnTheGpu:
    """What only a device shows; tokens are compared in float64, where no rounding moves a decision."""

    @pytest.mark.parametrize("decoder", DECODER_NAMES)
    def test_graphs_replay_what_steps_do_and_a_cpu_too(self, decoder):
        cpu, gpu = tiny(dtype=torch.float64), tiny(dtype=torch.float64)
        gpu.model.cuda()
        saved: dict = {}
        for seed in (3, 4):  # the second replays the first's graphs
            for asked in (prompt_of(7), prompt_of(7, seed=5)):
                want = DECODE[decoder](cpu, asked, SMALL, seed)
                got = DECODE[decoder](gpu, asked, SMALL, seed, saved)
                eager, _ = count_flops(lambda p=asked, s=seed: DECODE[decoder](gpu, p, SMALL, s, {}))
                assert torch.equal(got.tokens, eager.tokens) or decoder == "hf_batched"
                assert torch.equal(got.tokens, want.tokens) or decoder == "hf_batched"
                assert got.token_forwards == eager.token_forwards == cost(
                    gpu.model.config, decoder, 7, SMALL, got.rows).token_forwards  # fmt: skip

    @pytest.mark.parametrize("decoder", POLICIES)
    def test_no_replay_synchronises(self, decoder):
        lm = tiny(dtype=torch.float32)
        lm.model.cuda()
        saved: dict = {}
        grow(lm.model, prompt_of(7), SMALL, decoder, 0, graphs=saved)
        graphs, prompts = next(iter(saved.values())), prompt_of(7)[None].cuda()
        seeds = path_seeds(1, 1, 5).cuda()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            graphs.run(prompts, seeds)
            with pytest.raises(RuntimeError):
                seeds.sum().item()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert same(graphs.forest.harvest(), grow(lm.model, prompt_of(7), SMALL, decoder, 1)[0])

    @pytest.mark.parametrize("decoder", POLICIES)
    def test_bfloat16_runs_and_stays_a_tree(self, decoder):
        lm = tiny(dtype=torch.bfloat16)
        lm.model.cuda()
        tree, _ = grow(lm.model, prompt_of(7), SMALL, decoder, 0, trees=3, graphs={})
        assert (tree.tokens() >= 0).all() and tree.tokens().shape[1] == 6

"""The CUDA C++ source itself, unmodified, run on the CPU through shim.h against the reference."""

import contextlib
import ctypes
import math
import shutil
import subprocess
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlexp.decoding.kernels import cuda, reference
from mlexp.decoding.rng import token_words

from .compare import assert_draws_agree, bounds, margins

HERE = Path(__file__).parent
DTYPES = {name: dtype for dtype, name in cuda.DTYPES.items()}
SEEDS = st.integers(-(2**63), 2**63 - 1)
VOCABULARIES = st.sampled_from([1, 2, 31, 32, 33, 127, 128, 129, 700]) | st.integers(1, 700)
KINDS = st.sampled_from(
    [(1, "float32"), (2, "float32"), (3, "float32"), (4, "float32"), (2, "bfloat16"), (3, "float16")]
)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """(k, dtype, changed source or None) -> the kernels as a library of the CPU."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ on PATH")

    @cache
    def library(k, dtype, source):
        place = tmp_path_factory.mktemp("emulated")
        (place / "entropy_sample.cu").write_text(source or cuda.SOURCE.read_text())
        flags = ["-std=c++20", "-O1", "-ffp-contract=off", "-fvisibility=hidden", "-shared", "-fPIC", "-w"]
        names = [f"-DK={k}", f"-DDTYPE={dtype}", f"-I{place}"]
        subprocess.run(
            ["g++", *flags, *names, HERE / "emulated.cpp", "-o", place / "kernels.so"], check=True, timeout=120
        )
        loaded = ctypes.CDLL(str(place / "kernels.so"))
        loaded.run.restype = loaded.launch_kernel.restype = ctypes.c_char_p
        return loaded

    return lambda k, dtype="float32", source=None: library(k, dtype, source)


def pointer(tensor):
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def emulate(
    library, logits, temperature, seeds, position, k, rows=None, blocks=2, warps=1, backwards=False, filtered=True
):
    """(entropy, log_z, tokens, logprobs), the logarithms that sample_block took; asserts that all of it was written."""
    m, floats = len(seeds), {"dtype": torch.float32}
    states, values, entropy, log_z, logprobs = (
        torch.full(shape, math.nan, **floats) for shape in ((m, blocks, 3), (m, blocks, k), (m,), (m,), (m, k))
    )
    tokens, drawn = torch.full((m, blocks, k), -7, dtype=torch.int32), torch.full((m, k), -7)
    position, logarithms = torch.tensor(position), ctypes.c_long()
    error = library.run(
        pointer(logits), ctypes.c_longlong(logits.stride(0)), logits.shape[1], ctypes.c_float(1.0 / temperature),
        *map(pointer, (seeds, position, rows, states, values, tokens)), m, blocks, warps,
        *map(pointer, (entropy, log_z, drawn, logprobs)), backwards, filtered, ctypes.byref(logarithms),
    )  # fmt: skip
    if error:
        raise RuntimeError(error.decode())
    for written in (states, values, entropy, log_z, logprobs):
        assert not written.isnan().any()
    assert (tokens != -7).all() and (drawn != -7).all()
    return (entropy, log_z, drawn, logprobs), logarithms.value


def randn(rows, vocab, seed, offset=0.0, holes=0.0, dtype=torch.float32):
    """Logits with a share of impossible tokens; where that is 1, all of them."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab, generator=generator) * 3 + offset
    return logits.masked_fill(torch.rand(rows, vocab, generator=generator) < holes, -math.inf).to(dtype)


def random_seeds(m, seed):
    return torch.randint(-(2**63), 2**63 - 1, (m,), generator=torch.Generator().manual_seed(seed))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@given(seed=SEEDS, position=st.integers(0, 2**31 - 1), vocab=VOCABULARIES)
def test_words_are_those_of_the_generator(build, seed, position, vocab):
    out = torch.full((vocab,), -7, dtype=torch.int32)
    build(1).token_words(ctypes.c_longlong(seed), ctypes.c_uint(position), vocab, pointer(out))
    assert torch.equal(out.long() & 0xFFFFFFFF, token_words(torch.tensor([seed]), position, vocab)[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_half_number_is_widened_exactly(build, dtype):
    halves = torch.arange(-(2**15), 2**15).to(torch.int16).view(DTYPES[dtype])
    out = torch.empty(len(halves))
    build(2 if dtype == "bfloat16" else 3, dtype).widened(pointer(halves), len(halves), pointer(out))
    want = halves.float()
    assert ((out == want) | (out.isnan() & want.isnan())).all() and (out.signbit() == want.signbit()).all()


@settings(max_examples=60)
@given(kind=KINDS, n=st.integers(1, 4), m=st.integers(1, 5), vocab=VOCABULARIES, seed=st.integers(0, 2**31),
       position=st.integers(0, 2**31 - 1), offset=st.sampled_from([0, -100, 1000]),
       holes=st.sampled_from([0, 0.5, 1]), temperature=st.sampled_from([0.3, 0.8, 1.0, 2.0]),
       blocks=st.integers(1, 4), warps=st.integers(1, 2))  # fmt: skip
@example((3, "float32"), 1, 1, 50257, 5, 9, -100, 0, 0.8, 3, 2)
@example((8, "float32"), 1, 2, 700, 6, 0, 0, 0.5, 1.0, 2, 1)
@example((4, "float32"), 2, 3, 3, 7, 1, 1000, 0, 1.0, 2, 2)
def test_the_source_is_the_reference(
    build, kind, n, m, vocab, seed, position, offset, holes, temperature, blocks, warps
):
    (k, dtype), seeds = kind, random_seeds(m, seed)
    logits = randn(n, vocab, seed, offset, holes, DTYPES[dtype])
    rows = torch.randint(0, n, (m,), generator=torch.Generator().manual_seed(seed))
    got, _ = emulate(build(k, dtype), logits, temperature, seeds, position, k, rows, blocks, warps)
    want = reference.entropy_sample(logits, temperature, seeds, position, k, rows)
    assert_draws_agree(got, want, reference.tempered(logits, temperature)[rows], seeds, position, k)


@pytest.mark.parametrize("offset", [0, -100, 1000])
def test_nearly_every_token_is_decided_and_equal(build, offset):
    logits, seeds = randn(1, 700, 3, offset), random_seeds(64, 3)
    rows = torch.zeros(64, dtype=torch.int64)
    got, _ = emulate(build(4), logits, 0.8, seeds, 11, 4, rows)
    want = reference.entropy_sample(logits, 0.8, seeds, 11, 4, rows)
    share = assert_draws_agree(got, want, reference.tempered(logits, 0.8)[rows], seeds, 11, 4)
    assert share > (0.97 if offset == 1000 else 0.995)


@settings(max_examples=30)
@given(k=st.integers(1, 4), vocab=VOCABULARIES, seed=st.integers(0, 2**31), holes=st.sampled_from([0, 0.5]),
       offset=st.sampled_from([0, 1000]), blocks=st.integers(1, 4), warps=st.integers(1, 3))  # fmt: skip
def test_a_draw_depends_on_neither_launch_nor_filter(build, k, vocab, seed, holes, offset, blocks, warps):
    logits, seeds = randn(2, vocab, seed, offset, holes), random_seeds(2, seed)
    args, launch = (build(k), logits, 0.8, seeds, 4, k, None), (blocks, warps)
    (entropy, log_z, tokens, logprobs), _ = whole = emulate(*args, blocks=1, warps=1)
    split, _ = emulate(*args, *launch)
    assert torch.equal(split[2], tokens)
    for ours, theirs in zip((split[0], split[1], split[3]), (entropy, log_z, logprobs), strict=True):
        # a logit of 1250 is rounded to 1.2e-4, and a log-probability is a difference of two such
        torch.testing.assert_close(ours, theirs, atol=5e-4 if offset else 1e-5, rtol=1e-6)
    assert same(emulate(*args, *launch, backwards=True)[0], split), "the order of the threads decides"
    plain, logarithms = emulate(*args, *launch, filtered=False)
    assert same(plain, split), "the filter drops a token"
    assert whole[1] <= logarithms


@settings(max_examples=20)
@given(vocab=VOCABULARIES, seed=st.integers(0, 2**31), m=st.integers(2, 5))
def test_a_draw_is_the_same_alone_and_among_others(build, vocab, seed, m):
    logits, seeds = randn(3, vocab, seed), random_seeds(m, seed)
    rows = torch.randint(0, 3, (m,), generator=torch.Generator().manual_seed(seed))
    together, _ = emulate(build(2), logits, 0.8, seeds, 4, 2, rows, warps=2)
    for i in range(m):
        row = logits[rows[i] :][:1]  # also at another address, with no rows given
        alone, _ = emulate(build(2), row, 0.8, seeds[i : i + 1], 4, 2, warps=2)
        assert same(alone, [result[i : i + 1] for result in together])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("given_rows", [True, False])
def test_the_launcher_passes_what_the_kernels_take(build, monkeypatch, dtype, given_rows):
    """cuda.entropy_sample as it is, with a driver that launches on the CPU."""
    k, seeds, position = 3 if dtype == "float32" else 2, random_seeds(3, 1), torch.tensor(7)
    library = build(k, dtype)

    class Driver:
        @staticmethod
        def cuLaunchKernel(kernel, x, y, z, threads, *rest):
            arguments = rest[-2]
            assert (z, *rest[:3], rest[-1]) == (1, 1, 1, 0, None)
            assert library.launch_kernel(kernel, x, y, threads, arguments) == b""
            return 0

    monkeypatch.setattr(cuda, "_driver", Driver)
    monkeypatch.setattr(cuda, "_kernels", lambda device, *kind: (0, 1) if kind == (k, DTYPES[dtype]) else None)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=4))
    logits, rows = randn(3, 5000, 2, dtype=DTYPES[dtype]), torch.tensor([2, 0, 2]) if given_rows else None
    for laid_out in logits, logits.T.contiguous().T, torch.cat((logits, logits), 1)[:, :5000], logits[:1].expand(3, -1):
        got = cuda.entropy_sample(laid_out, 0.8, seeds, position, k, rows)
        want = reference.entropy_sample(laid_out, 0.8, seeds, position, k, rows)
        x = reference.tempered(laid_out, 0.8)
        assert assert_draws_agree(got, want, x if rows is None else x[rows], seeds, position, k) == 1


def test_rows_may_be_far_apart(build):
    logits, seeds = torch.randn(4, 300)[:, :200], random_seeds(4, 1)
    assert logits.stride(0) == 300
    assert same(
        emulate(build(2), logits, 0.8, seeds, 4, 2)[0], emulate(build(2), logits.contiguous(), 0.8, seeds, 4, 2)[0]
    )


def test_offsets_exceed_32_bits(build):
    logits = torch.empty(2**31 + 200, dtype=torch.bfloat16).as_strided((2, 200), (2**31, 1))  # pages untouched are free
    logits[:] = randn(2, 200, 1)
    seeds, rows = random_seeds(2, 1), torch.tensor([1, 0])
    got, _ = emulate(build(2, "bfloat16"), logits, 0.8, seeds, 4, 2, rows)
    assert same(got, emulate(build(2, "bfloat16"), logits.contiguous(), 0.8, seeds, 4, 2, rows)[0])


def test_impossible_rows_have_neither_tokens_nor_entropy(build):
    logits = torch.full((2, 129), -math.inf)
    logits[1, 128] = -5.0
    entropy, log_z, tokens, logprobs = emulate(build(2), logits, 1.0, random_seeds(2, 0), 0, 2)[0]
    assert tokens.tolist() == [[-1, -1], [128, -1]] and entropy.tolist() == [0, 0]
    torch.testing.assert_close(log_z, torch.tensor([-math.inf, -5]))
    torch.testing.assert_close(logprobs, torch.tensor([[-math.inf] * 2, [0, -math.inf]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("height", [1e7, 1e8])
def test_ties_go_to_the_lowest_token(build, height):
    """So far from 0 the perturbed logits are multiples of 1 or of 8, and most of the best ones are ties."""
    logits, seeds = torch.full((1, 700), height), random_seeds(16, 2)
    rows, x = torch.zeros(16, dtype=torch.int64), logits.expand(16, -1)
    perturbed = reference.gumbel(token_words(seeds, 3, 700), torch.float32) + x
    best = perturbed.sort(dim=-1, descending=True, stable=True)  # stable: the lowest token first
    assert (best.values[:, :4] == best.values[:, 1:5]).any(-1).double().mean() > 0.5
    for blocks, warps in (1, 1), (3, 2):
        assert torch.equal(emulate(build(4), logits, 1.0, seeds, 3, 4, rows, blocks, warps)[0][2], best.indices[:, :4])


def test_the_filter_spares_logarithms(build):
    logits, seeds = randn(1, 50257, 8), random_seeds(1, 8)
    for k in 1, 3, 8:
        _, taken = emulate(build(k), logits, 1.0, seeds, 0, k, blocks=1, warps=1)
        _, all_of_them = emulate(build(k), logits, 1.0, seeds, 0, k, blocks=1, warps=1, filtered=False)
        print(f"k={k}: {taken} of {all_of_them} logarithms")
        assert all_of_them >= 2 * 50257 * 0.9 and taken < 0.3 * all_of_them


def test_the_comparison_raises_on_wrong_results():
    logits, seeds, k = randn(3, 50, 1), random_seeds(3, 1), 2
    x = reference.tempered(logits, 0.8)
    want = reference.entropy_sample(logits, 0.8, seeds, 5, k)
    assert (margins(x, seeds, 5, k) > 0).all() and assert_draws_agree(want, want, x, seeds, 5, k) == 1
    loser = bounds(x, seeds, 5)[0].argmin(-1)
    wrong = {
        "entropy": (0, lambda r: r + 1e-3), "log_z": (1, lambda r: r + 1e-3), "nan": (0, lambda r: r * math.nan),
        "token": (2, lambda r: torch.cat((loser[:, None], r[:, 1:]), 1)), "order": (2, lambda r: r.flip(-1)),
        "twice": (2, lambda r: r[:, :1].expand(-1, 2)), "none": (2, lambda r: r.new_full(r.shape, -1)),
        "outside": (2, lambda r: r + 50), "logprobs": (3, lambda r: r - 1e-3), "dtype": (1, lambda r: r.double()),
        "shape": (3, lambda r: r[:, :1]),
    }  # fmt: skip
    for name, (at, change) in wrong.items():
        got = list(want)
        got[at] = change(got[at])
        with pytest.raises(AssertionError):
            assert_draws_agree(got, want, x, seeds, 5, k)
            pytest.fail(f"a wrong {name} passed")


@pytest.mark.parametrize(("what", "by"), [
    ("  __syncthreads();\n", ""),
    ("first + j * WARP < vocabulary ?", "true ?"),
    ("t < token[j]", "t > token[j]"),
    ("!(v[j] >= e * reached)", "v[j] < 0.1f * e * reached"),
    ("u = a * (u + d * s);", "u = a * u;"),
    ("    state.merge_warp();\n    best", "    if (lane) state.merge_warp();\n    best"),
])  # fmt: skip
def test_the_emulation_shows_a_broken_kernel(build, what, by):
    source = cuda.SOURCE.read_text()
    assert what in source
    broken = build(2, "float32", source.replace(what, by))
    around = torch.full((16, 3000), 1e8)  # the largest logits stand beyond the vocabulary, where none may look
    around[:, :2900] = torch.cat((randn(8, 2900, 1), torch.full((8, 2900), 1e7)))
    logits, seeds = around[:, :2900], random_seeds(16, 1)
    x, want = reference.tempered(logits, 1.0), reference.entropy_sample(logits, 1.0, seeds, 5, 2)
    with pytest.raises((AssertionError, RuntimeError)):
        for backwards in False, True:
            got, _ = emulate(broken, logits, 1.0, seeds, 5, 2, warps=2, backwards=backwards)
            assert_draws_agree(got, want, x, seeds, 5, 2)
            assert torch.equal(got[2], want[2])

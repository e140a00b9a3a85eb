"""The CUDA C++ source compiles for sm_90 and stays in registers, and its loader says what is wrong; no GPU needed."""

import re
import shutil
import subprocess
from importlib import util
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlexp.decoding.kernels import cuda, reference

from .compare import assert_draws_agree

STATIC_SHARED = 48 << 10  # bytes that a CTA may have without asking


def has_nvrtc():
    try:
        return bool(cuda._nvrtc())
    except OSError:
        return False


def cuobjdump():
    triton = util.find_spec("triton")
    bundled = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump" if triton else None
    return str(bundled) if bundled and bundled.exists() else shutil.which("cuobjdump")


def compiled(k, dtype, folder):
    """The path of a cubin of NVRTC's, else of nvcc's."""
    cubin = folder / f"{k}_{dtype}.cubin"
    if has_nvrtc():
        cubin.write_bytes(cuda.compile_source(cuda.SOURCE.read_bytes(), "sm_90", {"K": k, "DTYPE": dtype}))
    else:
        command = [
            "nvcc",
            "-std=c++17",
            "-arch=sm_90",
            "-cubin",
            f"-DK={k}",
            f"-DDTYPE={dtype}",
            cuda.SOURCE,
            "-o",
            cubin,
        ]
        subprocess.run([*command, "-Werror", "all-warnings"], check=True, timeout=120)
    return cubin


def resources(cubin):
    """Kernel -> bytes and registers, as cuobjdump names them: REG, STACK, SHARED, LOCAL."""
    dump = [cuobjdump(), "--dump-resource-usage", cubin]
    text = subprocess.run(dump, capture_output=True, text=True, check=True, timeout=60).stdout
    found = re.findall(r"Function (\w+):\s+(REG:.*)", text)
    return {name: {key: int(n) for key, n in re.findall(r"(\w+):(\d+)", line)} for name, line in found}


@pytest.mark.parametrize("dtype", cuda.DTYPES.values())
@pytest.mark.parametrize("k", [1, 3, 8])
def test_everything_stays_in_registers(k, dtype, tmp_path):
    if not has_nvrtc() and shutil.which("nvcc") is None:
        pytest.skip("neither libnvrtc (pip install nvidia-cuda-nvrtc) nor nvcc is there")
    if cuobjdump() is None:
        pytest.skip("no cuobjdump: neither in the triton package nor on PATH")
    kernels = resources(compiled(k, dtype, tmp_path))
    assert set(kernels) == {"sample_block", "merge_blocks"}
    for name, used in kernels.items():
        with_what = "NVRTC" if has_nvrtc() else "nvcc"
        print(f"{with_what} k={k} {dtype:8} {name}: " + " ".join(f"{key}={used[key]}" for key in used))
        assert used["STACK"] == 0 and used["LOCAL"] == 0, "registers are spilled"  # spills live in local memory
        assert used["SHARED"] <= STATIC_SHARED
        assert used["REG"] <= 64, "fewer than 32 warps fit a multiprocessor"


def test_a_compile_error_is_told():
    if not has_nvrtc():
        with pytest.raises(OSError, match="pip install nvidia-cuda-nvrtc"):
            cuda.compile_source("", "sm_90", {})
        pytest.skip("no libnvrtc (pip install nvidia-cuda-nvrtc)")
    with pytest.raises(RuntimeError, match=r"(?s)-DK=1.*oops.*undefined"):
        cuda.compile_source('extern "C" __global__ void f() { oops(); }', "sm_90", {"K": 1})
    with pytest.raises(RuntimeError, match="sm_12"):
        cuda.compile_source("", "sm_12", {})


def test_what_the_kernel_cannot_do_is_refused():
    logits, seeds, position = torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64), torch.tensor(0)
    for k in 0, 9:
        with pytest.raises(ValueError, match=f"k={k}: .* 1 to 8"):
            cuda.entropy_sample(logits, 1.0, seeds, position, k, None)
    with pytest.raises(TypeError, match=r"float64.* float32, bfloat16, float16"):
        cuda.entropy_sample(logits.double(), 1.0, seeds, position, 1, None)


def test_kernels_are_compiled_and_kept_for_their_device_number_of_draws_and_type(monkeypatch):
    compiled, loaded = [], []

    class Driver:
        @staticmethod
        def cuModuleLoadData(module, cubin):
            loaded.append(cubin)
            return 0

        @staticmethod
        def cuModuleGetFunction(kernel, module, name):
            loaded.append(name)
            return 0

    monkeypatch.setattr(cuda, "_driver", Driver)
    monkeypatch.setattr(cuda, "compile_source", lambda *what: compiled.append(what) or b"cubin")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, device))
    cuda._kernels.cache_clear()
    source, low, full = cuda.SOURCE.read_bytes(), torch.bfloat16, torch.float32
    asked = [(0, 3, low), (0, 2, low), (0, 3, full), (1, 3, full)]
    for each in (*asked, *asked):
        cuda._kernels(*each)
    cuda._kernels.cache_clear()
    assert compiled == [(source, f"sm_9{d}", {"K": k, "DTYPE": cuda.DTYPES[dtype]}) for d, k, dtype in asked]
    assert loaded[:3] == [b"cubin", b"sample_block", b"merge_blocks"]


@given(draws=st.integers(1, 10**5), vocabulary=st.integers(1, 10**6), multiprocessors=st.sampled_from([1, 108, 132]))
def test_every_multiprocessor_has_work_and_no_block_is_idle(draws, vocabulary, multiprocessors):
    blocks, groups = cuda.vocabulary_blocks(draws, vocabulary, multiprocessors), -(-vocabulary // 128)
    assert blocks >= 1 and (blocks - 1) * cuda.WARPS < groups
    assert blocks == 1 or draws * blocks <= cuda.WAVES * multiprocessors + draws
    assert draws * blocks >= min(multiprocessors, draws * -(-groups // cuda.WARPS))


def test_few_draws_fill_a_device_and_many_leave_few_partials():
    assert 132 * 3 <= 20 * cuda.vocabulary_blocks(20, 50257, 132) <= 132 * 5
    assert cuda.vocabulary_blocks(4096, 50257, 132) == 1


@pytest.mark.needs_gpu
@pytest.mark.parametrize("dtype", cuda.DTYPES)
def test_the_kernel_is_the_reference_on_a_device_and_in_a_graph(dtype):
    assert cuda.missing() is None
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(5, 50257, generator=generator) * 3 - 100).to(dtype)
    seeds = torch.randint(-(2**63), 2**63 - 1, (20,), generator=generator)
    rows, position = torch.arange(20) % 5, torch.tensor(3)
    for k in 1, 3, 8:
        args = [logits.cuda(), 0.8, seeds.cuda(), position.cuda(), k, rows.cuda()]
        results = [cuda.entropy_sample(*args)]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results.append(cuda.entropy_sample(*args))
        for at in 3, 4:
            args[3].fill_(at)
            graph.replay()
            want = reference.entropy_sample(logits, 0.8, seeds, at, k, rows)
            x = reference.tempered(logits, 0.8)[rows]
            assert assert_draws_agree(results[-1], want, x, seeds, at, k) > 0.95
            if at == 3:
                assert_draws_agree(results[0], want, x, seeds, at, k)

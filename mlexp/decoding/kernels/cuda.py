"""`entropy_sample` in CUDA C++, compiled by NVRTC at first use and launched on torch's stream; it needs no toolkit.

NVRTC and the driver are called through ctypes: torch's CUDA builds bring the one, the GPU's driver the other.
"""

import ctypes
import ctypes.util
import functools
from functools import cache
from importlib import util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..rng import GROUP

SOURCE = Path(__file__).with_name("entropy_sample.cu")
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
MAX_K = 8
WARPS = 8  # of a CTA: at the kernel's 43 to 56 registers a multiprocessor holds 4 or 5 such CTAs
WAVES = 4  # CTAs wanted per multiprocessor before a row is cut no finer


def _libraries() -> list[str]:
    """Where NVRTC may be, best first: pip's packages of torch's CUDA version, of another one, the system's."""
    spec = util.find_spec("nvidia")
    roots = (spec.submodule_search_locations if spec else None) or ()
    paths = sorted(str(p) for root in roots for p in Path(root).glob("**/libnvrtc.so*"))
    major = (torch.version.cuda or "").split(".")[0]
    paths.sort(key=lambda path: not path.endswith(f".so.{major}"))
    system = ctypes.util.find_library("nvrtc")
    return [*paths, system] if system else paths


@cache
def _nvrtc() -> ctypes.CDLL:
    """Raises OSError, saying what was tried, where there is none."""
    tried = []
    for path in _libraries():
        try:
            # NVRTC opens this by name alone, which finds nothing in site-packages unless it is loaded already
            for builtins in Path(path).parent.glob("libnvrtc-builtins.so*") if "/" in path else ():
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(path)
        except OSError as error:
            tried.append(str(error))
    raise OSError(f"libnvrtc is not there (pip install nvidia-cuda-nvrtc){': ' if tried else ''}{'; '.join(tried)}")


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def missing() -> str | None:
    """What stands between this backend and a CUDA device that torch can use; None where nothing does."""
    for load, name in (_nvrtc, "the run-time compiler"), (_driver, "the driver's library"):
        try:
            load()
        except OSError as error:
            return f"{name} cannot be loaded: {error}"
    return None


def compile_source(source: str | bytes, arch: str, defines: dict[str, object]) -> bytes:
    """The cubin of CUDA C++ for an architecture such as "sm_90"; needs no GPU.

    Raises RuntimeError with the compiler's log where it does not compile, OSError where there is no NVRTC.
    """
    nvrtc, program, size = _nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    text = source.encode() if isinstance(source, str) else source
    options = [f"--gpu-architecture={arch}", "--std=c++17", *(f"-D{name}={value}" for name, value in defines.items())]

    def text_of(kind: str) -> bytes:
        getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
        out = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{kind}")(program, out)
        return out.raw

    status = nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, SOURCE.name.encode(), 0, None, None)
    if status:
        raise RuntimeError(f"NVRTC made no program: status {status}")
    try:
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = nvrtc.nvrtcCompileProgram(program, len(options), given)
        if status:
            log = text_of("ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
            raise RuntimeError(f"NVRTC, status {status}, with {' '.join(options)}:\n{log}")
        return text_of("CUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _check(status: int, call: str) -> None:
    if status:
        name = ctypes.c_char_p()
        _driver().cuGetErrorName(status, ctypes.byref(name))
        raise RuntimeError(f"{call}: {(name.value or b'unknown error').decode()} ({status})")


@cache
def _kernels(device: int, k: int, dtype: torch.dtype) -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
    """The two kernels, loaded into a device's context for as long as the process lives."""
    arch = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    cubin = compile_source(SOURCE.read_bytes(), arch, {"K": k, "DTYPE": DTYPES[dtype]})
    module, kernels = ctypes.c_void_p(), (ctypes.c_void_p(), ctypes.c_void_p())
    _check(_driver().cuModuleLoadData(ctypes.byref(module), cubin), "cuModuleLoadData")
    for kernel, name in zip(kernels, (b"sample_block", b"merge_blocks"), strict=True):
        _check(_driver().cuModuleGetFunction(ctypes.byref(kernel), module, name), "cuModuleGetFunction")
    return kernels


def _launch(kernel: ctypes.c_void_p, grid: tuple[int, int], warps: int, *args: Any) -> None:
    """Arguments are tensors and ctypes numbers or pointers."""
    values = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in args]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(a) for a in values))
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    status = _driver().cuLaunchKernel(kernel, *grid, 1, 32 * warps, 1, 1, 0, stream, pointers, None)
    _check(status, "cuLaunchKernel")


def vocabulary_blocks(draws: int, vocabulary: int, multiprocessors: int) -> int:
    """CTAs per draw: WAVES for every multiprocessor as far as the vocabulary has groups for them, 1 for many draws."""
    groups = -(-vocabulary // GROUP)
    blocks = min(-(-groups // WARPS), -(-WAVES * multiprocessors // max(draws, 1)))
    steps = -(-groups // (blocks * WARPS))
    return -(-groups // (steps * WARPS))  # as many steps with no CTA that has nothing to do


def entropy_sample(
    logits: Tensor, temperature: float, seeds: Tensor, position: Tensor, k: int, rows: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See reference.entropy_sample; position is a 0-d int64 tensor.

    Raises ValueError for k outside 1 to 8, TypeError for logits that are not float32, bfloat16 or float16.
    """
    if not 1 <= k <= MAX_K:
        raise ValueError(f"k={k}: the CUDA kernel draws 1 to {MAX_K} tokens a row")
    if logits.dtype not in DTYPES:
        raise TypeError(f"logits are {logits.dtype}; the CUDA kernel reads {', '.join(DTYPES.values())}")
    (m,), V, device = seeds.shape, logits.shape[1], logits.device
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    seeds, position = (t.to(device, torch.int64).contiguous() for t in (seeds, position))
    # a null pointer: draw i from row i
    row_of_draw = ctypes.c_void_p() if rows is None else rows.to(device, torch.int64).contiguous()
    floats = functools.partial(torch.empty, dtype=torch.float32, device=device)
    entropy, log_z, logprobs = floats(m), floats(m), floats(m, k)
    drawn = torch.empty(m, k, dtype=torch.int64, device=device)
    if not m:
        return entropy, log_z, drawn, logprobs
    blocks = vocabulary_blocks(m, V, torch.cuda.get_device_properties(device).multi_processor_count)
    states, values = floats(m, blocks, 3), floats(m, blocks, k)
    tokens = torch.empty(m, blocks, k, dtype=torch.int32, device=device)
    stride, inverse = ctypes.c_longlong(logits.stride(0)), ctypes.c_float(1.0 / temperature)
    with torch.cuda.device(device):
        sample, merge = _kernels(device.index, k, logits.dtype)
        parts = states, values, tokens
        _launch(
            sample, (m, blocks), WARPS, logits, stride, ctypes.c_int(V), inverse, seeds, position, row_of_draw, *parts
        )
        counts = ctypes.c_int(blocks), ctypes.c_int(m)
        outputs = entropy, log_z, drawn, logprobs
        _launch(merge, (-(-m // WARPS), 1), WARPS, logits, stride, inverse, row_of_draw, *parts, *counts, *outputs)
    return outputs

"""Which errors say that memory ran out: those that the libraries raise, and what only looks like them."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from mlexp.memory import out_of_memory

from .needs import needs

torch = needs("torch")

HUGE = 1 << 46

SAID = [  # as the libraries spell it
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 "
    "bytes. Error code 12 (Cannot allocate memory)",
    "[enforce fail at alloc_cpu.cpp:83] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.",
    "DefaultMobileCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
    "can't allocate memory",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB",
    "HIP out of memory. Tried to allocate 2.00 GiB",
    "XPU out of memory. Tried to allocate 2.00 GiB",
    "MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB, max allowed: 9.07 GB).",
    "Invalid buffer size: 20.00 GB",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "cuFFT error: CUFFT_ALLOC_FAILED",
    "CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY",
    "Triton Error [CUDA]: out of memory",
    "NCCL error: unhandled cuda error, Last error: Cuda failure 2 'out of memory'",
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes.",
    "unable to mmap 9 bytes from file </model.bin>: Cannot allocate memory (12)",
]
NOT_SAID = [
    "required rank 4 tensor to use channels_last format",
    "unsupported memory format option Preserve",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`",
    "CUDA error: too many resources requested for launch",
    "out of resource: shared memory, Required: 262144, Hardware limit: 101376. Reducing block sizes may help.",
    "unsupported operation: some elements of the input tensor refer to a single memory location",
    "Storage size calculation overflowed with sizes=[4611686018427387904]",
    "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
    "",
]


@pytest.mark.parametrize("message", SAID)
def test_what_libraries_say_of_memory(message):
    assert out_of_memory(RuntimeError(message))
    assert not out_of_memory(ValueError(message)) and not out_of_memory(AssertionError(message))


@pytest.mark.parametrize("message", NOT_SAID)
def test_what_they_say_of_other_things(message):
    assert not out_of_memory(RuntimeError(message))


ASKED = {
    "torch": lambda: torch.empty(HUGE),
    "storage": lambda: torch.UntypedStorage(HUGE),
    "numpy": lambda: np.ones(HUGE),
    "python": lambda: bytearray(1 << 60),
    "product": lambda: torch.empty(1).expand(1 << 23, 1) @ torch.empty(1).expand(1, 1 << 23),
}
WRONG = {
    "format": lambda: torch.ones(3).to(memory_format=torch.channels_last),
    "overlap": lambda: torch.ones(1).expand(3).add_(1),
    "overflow": lambda: torch.empty(1 << 62, dtype=torch.float64),
    "shapes": lambda: torch.ones(2, 3) @ torch.ones(4, 5),
    "missing": lambda: os.stat("/nowhere/at/all"),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_what_the_libraries_raise_when_memory_runs_out(ask):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        ask()
    assert out_of_memory(caught.value)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_they_raise_for_other_faults(wrong):
    with pytest.raises((RuntimeError, OSError)) as caught:
        wrong()
    assert not out_of_memory(caught.value)


def test_triton_s_lack_of_shared_memory_is_something_else():
    errors = pytest.importorskip("triton.runtime.errors")
    assert not out_of_memory(errors.OutOfResources(1 << 18, 1 << 16, "shared memory"))


def test_torch_s_own_class_and_the_system_s_errors():
    assert out_of_memory(torch.OutOfMemoryError("x")) and out_of_memory(MemoryError())
    assert out_of_memory(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
    assert not out_of_memory(OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)))
    assert not out_of_memory(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


def test_the_cause_counts_and_the_context_does_not():
    def raised(how):
        try:
            try:
                raise MemoryError
            except MemoryError as error:
                how(error)
        except ValueError as error:
            return error

    def from_it(error):
        raise ValueError("cannot load") from error

    def in_its_handler(error):
        raise ValueError("a bug")

    assert out_of_memory(raised(from_it))
    assert not out_of_memory(raised(in_its_handler))
    loop = ValueError("x")
    loop.__cause__ = loop
    assert not out_of_memory(loop)


def test_a_group_counts_where_all_of_it_does():
    assert out_of_memory(ExceptionGroup("workers", [MemoryError(), ExceptionGroup("more", [MemoryError()])]))
    assert not out_of_memory(ExceptionGroup("workers", [MemoryError(), AssertionError("wrong")]))


def test_harness_and_training_have_no_detector_of_their_own():
    from mlexp.decoding import loading
    from mlexp.harness import status
    from mlexp.training import microbatch

    assert microbatch.out_of_memory is status.out_of_memory is loading.out_of_memory is out_of_memory


def test_it_imports_no_torch():
    code = "import mlexp.memory, sys; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

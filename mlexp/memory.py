"""The one detector of out-of-memory errors, for the harness and for training. Standard library only.

Torch and the GPU libraries have no common class for it, so that they are known by class name and by message.
"""

import errno
import re

CLASSES = {
    "MemoryError",
    "OutOfMemoryError",
}  # numpy's and pyarrow's derive from the first; torch and cupy name theirs so
ERRNO, WINERROR = {errno.ENOMEM}, {8, 1455}  # on Windows: not enough memory, the paging file is too small

# Messages of a RuntimeError: torch raises it for failures of its allocators and of the libraries below it.
MESSAGES = re.compile(
    r"\bout of memory\b"  # CUDA, HIP, XPU and MPS, allocator or driver; Triton's launcher; NCCL; XLA
    r"|Default\w*CPUAllocator: (can't allocate|not enough) memory"  # torch on the CPU: Linux and macOS, Windows
    r"|can(no|')t allocate memory"  # the same without its prefix; ENOMEM as strerror spells it, from mmap
    r"|failed to allocate (memory|\d+ bytes)"
    r"|Invalid buffer size: [\d.]+ [KMGT]i?B"  # MPS, beyond the largest buffer that Metal gives
    r"|\b[A-Z]+_(STATUS_)?ALLOC_FAILED\b"  # cuBLAS, cuDNN, cuSOLVER, cuSPARSE, cuFFT, hipBLAS
    r"|\bCUDA_ERROR_OUT_OF_MEMORY\b"  # the driver's own name for it
    r"|\brocblas_status_memory_error\b",
    re.IGNORECASE,
)


def out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out in `error`, or in the error that it was raised from; of a group, in all of its errors.

    An error that merely came up while another was handled (`__context__`) counts by itself: it is a bug of the handler.
    Too little shared memory for a kernel (Triton's OutOfResources) is not this: nothing smaller in size would help.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if _ran_out(error):
            return True
        error = error.__cause__
    return False


def _ran_out(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(out_of_memory, error.exceptions))
    if CLASSES & {kind.__name__ for kind in type(error).__mro__}:
        return True
    if isinstance(error, OSError):
        return error.errno in ERRNO or getattr(error, "winerror", None) in WINERROR
    return isinstance(error, RuntimeError) and bool(MESSAGES.search(str(error)))

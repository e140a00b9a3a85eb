"""Compile every Triton kernel for sm_90 without a GPU and print one JSON line a kernel: registers, shared memory,
spills.

A program of its own: where TRITON_INTERPRET is set Triton's own functions are interpreted and nothing compiles.
"""

import json
import re
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mlexp.decoding.kernels import triton as kernels

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
ALIGNED = {"q_tip", "q_head", "slot_stride", "head_stride"}  # multiples of 16 at run time, and specialised as such


def sampling(dtype, k, block=kernels.VOCABULARY_BLOCK):
    names = "logits stride inverse seeds position rows V state values tokens xs"
    types = f"*{dtype} i64 fp32 *i64 *i64 *i64 i32 *fp32 *fp32 *i32 *fp32"
    yield kernels._sample_block, names, types, {"k": k, "BLOCK": block}, 8
    names = "state values tokens xs entropy log_z best_tokens logprobs blocks"
    types = "*fp32 *fp32 *i32 *fp32 *fp32 *fp32 *i64 *fp32 i32"
    yield kernels._merge_blocks, names, types, {"k": k, "BLOCKS": 16, "CANDIDATES": 16 * triton.next_power_of_2(k)}, 1


def forking(N, L, lossless):
    names = "entropy tip multiplicity token ancestors depth next_tip source counts parts next_ancestors scratch"
    names += " first_slot threshold branch_factor max_paths N W L"
    types = "*fp32 *i64 *i64 *i64 *i32 *i64 *i64 *i64 *i64 *i64 *i32 *i64 i32 fp32 i32 i32 i32 i32 i32"
    B = triton.next_power_of_2(N)
    blocks = {"LOSSLESS": lossless, "BN": B, "BW": B, "BL": min(triton.next_power_of_2(L), max(1, 1024 // B))}
    yield kernels._fork, names, types, blocks, 4 if B > 32 else 1


def attention(dtype, D, g, rows):
    tips = f"*{dtype} i32 i32 *{dtype} *{dtype} i32 i32"
    BD = max(16, triton.next_power_of_2(D))
    names = "q q_tip q_head k_pool v_pool slot_stride head_stride out top_to sum_to scale P m g H n per_split"
    BM, BP, warps = kernels.prompt_tile({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype], BD, rows)
    blocks = {"D": D, "BM": BM, "BP": BP, "BD": BD, "UPCAST": False}
    yield kernels._prompt_part, names, f"{tips} *fp32 *fp32 *fp32 fp32 i32 i32 i32 i32 i32 i32", blocks, warps
    names = "q q_tip q_head k_pool v_pool slot_stride head_stride ancestors lengths L part top_at sum_at splits"
    types = f"{tips} *i32 *i64 i32 *fp32 *fp32 *fp32 i32 *{dtype} fp32 i32 i32 i32"
    BG = triton.next_power_of_2(g)
    blocks = {"D": D, "BG": BG, "BL": min(64, kernels.SUFFIX_TILE // (BG * BD)), "BD": BD}
    yield kernels._suffix_part, f"{names} out scale g H n", types, blocks, 4


def everything():
    for dtype, k in product(("fp32", "bf16", "fp16"), (1, 3, 8)):
        yield from sampling(dtype, k)
    yield from sampling("fp32", 3, block=128)
    for N, lossless in product((20, 128, 1024), (False, True)):
        yield from forking(N, 50, lossless)
    for D, g, dtype in ((64, 1, "fp32"), (80, 1, "fp32"), (128, 4, "fp32"), (64, 1, "bf16"), (80, 1, "bf16"),
                        (128, 4, "bf16"), (256, 8, "bf16")):  # fmt: skip
        for rows in (16, 64):
            yield from attention(dtype, D, g, rows)


def usage(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name.lower(): int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text)}


def main():
    for kernel, names, types, constants, warps in everything():
        signature = dict(zip(names.split(), types.split(), strict=True)) | dict.fromkeys(constants, "constexpr")
        aligned = [i for i, (name, kind) in enumerate(signature.items()) if kind[0] == "*" or name in ALIGNED]
        attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
        row = {"kernel": kernel.__name__, "types": types.split()[0], **constants, "warps": warps}
        print(json.dumps(row | usage(built.asm["cubin"]) | {"shared_bytes": built.metadata.shared}), flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""Compile every Triton kernel for sm_90 without a GPU and print one JSON line a kernel: registers, shared memory,
spills. The argument says which of their variants: `all`, or the `tightest`.

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
from mlexp.decoding.kernels import triton_device as device

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
# Strides are specialised where they are multiples of 16: of slots always, of heads if the head's width is one.
SLOTS = {"q_tip", "k_slot", "v_slot"}
HEADS = {"q_head": "D", "k_head": "D", "v_head": "E"}
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}
FEATURES = {"first": "*i64", "softcap": "fp32", "sinks": "*fp32"}
WIDTHS = (  # of keys, query heads of a cached head, width of values
    (24, 1, 24), (64, 8, 64), (64, 71, 64), (100, 4, 100), (128, 4, 128), (192, 1, 128), (256, 8, 256), (512, 8, 512),
)  # fmt: skip


def sampling(dtype, k, block=kernels.VOCABULARY_BLOCK):
    names = "logits stride inverse seeds position rows V state values tokens xs"
    types = f"*{dtype} i64 fp32 *i64 *i64 *i64 i32 *fp32 *fp32 *i32 *fp32"
    yield device.sample_block, names, types, {"k": k, "BLOCK": block}, {"num_warps": 8}
    names = "state values tokens xs entropy log_z best_tokens logprobs blocks"
    types = "*fp32 *fp32 *i32 *fp32 *fp32 *fp32 *i64 *fp32 i32"
    blocks = {"k": k, "BLOCKS": 16, "CANDIDATES": 16 * triton.next_power_of_2(k)}
    yield device.merge_blocks, names, types, blocks, {"num_warps": 1}


def forking(N, L, lossless):
    names = "entropy tip multiplicity token ancestors depth next_tip source counts parts next_ancestors scratch"
    names += " first_slot threshold_nats branch_factor max_paths N W L"
    types = "*fp32 *i64 *i64 *i64 *i32 *i64 *i64 *i64 *i64 *i64 *i32 *i64 i32 fp32 i32 i32 i32 i32 i32"
    B = triton.next_power_of_2(N)
    blocks = {"LOSSLESS": lossless, "BN": B, "BW": B, "BL": min(triton.next_power_of_2(L), max(1, 1024 // B))}
    yield device.fork_tree, names, types, blocks, {"num_warps": 4 if B > 32 else 1}


def attention(dtype, D, g, rows, E=None, features=()):
    """The two kernels with some of FEATURES on."""
    E = E or D
    BD, BE = (max(16, triton.next_power_of_2(width)) for width in (D, E))
    tips = "q q_tip q_head k_pool k_slot k_head v_pool v_slot v_head"
    types = f"*{dtype} i32 i32 *{dtype} i32 i32 *{dtype} i32 i32"
    kinds = [FEATURES[name] if name in features else "constexpr" for name in FEATURES]
    absent = {name: None for name in FEATURES if name not in features}
    aligned = D % 16 == E % 16 == 0
    plain = aligned and not features
    BM, BP, warps, precision = kernels.prompt_tile(KINDS[dtype], max(BD, BE), rows, aligned)
    yield (
        device.prompt_part, f"{tips} out top_to sum_to scale P m g H n per_split first softcap",
        f"{types} *fp32 *fp32 *fp32 fp32 i32 i32 i32 i32 i32 i32 {' '.join(kinds[:2])}",
        {"D": D, "E": E, "BM": BM, "BP": BP, "BD": BD, "BE": BE, "PRECISION": precision, "UPCAST": False}
        | {name: None for name in absent if name != "sinks"},
        kernels.launch_options(warps, plain),
    )  # fmt: skip
    BG, BL = kernels.suffix_tile(max(BD, BE), g, 50)
    yield (
        device.suffix_part,
        f"{tips} ancestors lengths L part top_at sum_at splits out scale P g H n first softcap sinks",
        f"{types} *i32 *i64 i32 *fp32 *fp32 *fp32 i32 *{dtype} fp32 i32 i32 i32 i32 {' '.join(kinds)}",
        {"D": D, "E": E, "BG": BG, "BL": BL, "BD": BD, "BE": BE} | absent,
        kernels.launch_options(4, plain),
    )  # fmt: skip


def everything():
    for dtype, k in product(("fp32", "bf16", "fp16"), (1, 3, 8)):
        yield from sampling(dtype, k)
    yield from sampling("fp32", 3, block=128)
    for N, lossless in product((20, 128, 1024), (False, True)):
        yield from forking(N, 50, lossless)
    for dtype, (D, g, E) in product(KINDS, WIDTHS):
        yield from attention(dtype, D, g, 64, E, FEATURES)
        if D in (128, 512):
            for features in ((), ("first",), ("softcap",)):
                yield from attention(dtype, D, g, 64, E, features)
    for D, g, dtype in ((64, 1, "fp32"), (80, 1, "fp32"), (128, 4, "fp32"), (64, 1, "bf16"), (80, 1, "bf16"),
                        (128, 4, "bf16"), (256, 8, "bf16")):  # fmt: skip
        for rows in (16, 64):
            yield from attention(dtype, D, g, rows)


def tightest():
    """Of each kernel and each tile of attention the one that is nearest to its limits."""
    yield from sampling("bf16", 8)
    yield from forking(1024, 50, False)
    for dtype, D, g in (("fp32", 64, 8), ("fp32", 100, 4), ("fp32", 128, 4), ("fp32", 512, 8), ("bf16", 128, 4),
                        ("bf16", 256, 8), ("bf16", 512, 8)):  # fmt: skip
        yield from attention(dtype, D, g, 64, features=FEATURES)


def usage(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name.lower(): int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text)}


def main():
    for kernel, names, types, constants, options in {"all": everything, "tightest": tightest}[sys.argv[1]]():
        signature = dict(zip(names.split(), types.split(), strict=True)) | dict.fromkeys(constants, "constexpr")
        even = SLOTS | {name for name, width in HEADS.items() if constants.get(width, 0) % 16 == 0}
        aligned = [i for i, (name, kind) in enumerate(signature.items()) if kind[0] == "*" or name in even]
        attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        row = {"kernel": kernel.__name__, "types": types.split()[0], **constants, **options}
        print(json.dumps(row | usage(built.asm["cubin"]) | {"shared_bytes": built.metadata.shared}), flush=True)


if __name__ == "__main__":
    sys.exit(main())

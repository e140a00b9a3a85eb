"""Every Triton kernel compiles for sm_90 without a GPU: no spills, shared memory within what one block may have."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs the triton package: pip install 'pytest-mlexp[triton]'")

SHARED_LIMIT = 232448  # bytes that a block may have on sm_90; a kernel that asks for more compiles and cannot start
HERE = Path(__file__).parent


@pytest.mark.parametrize("which", ["tightest", pytest.param("all", marks=pytest.mark.slow)])
def test_all_kernels_compile_for_sm_90(which, tmp_path):
    # a process of its own: under TRITON_INTERPRET Triton's functions are interpreted and nothing compiles
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(HERE.parents[2]), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, HERE / "compile_triton.py", which]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    print(run.stdout)
    assert {row["kernel"] for row in rows} == {
        "sample_block",
        "merge_blocks",
        "fork_tree",
        "prompt_part",
        "suffix_part",
    }
    for row in rows:
        assert row["stack"] == row["local"] == 0 and 0 < row["reg"] <= 255, row
        assert row["shared_bytes"] <= SHARED_LIMIT, row

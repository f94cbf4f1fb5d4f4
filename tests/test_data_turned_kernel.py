"""The Triton kernel that turns and normalises patches, by Triton's interpreter on a CPU, against torch to the last bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scripts import run_script

from delst_hf.data.turned_kernel import kernel_serves

SCRIPT = Path(__file__).with_name("turned_pixels.py")


def test_pixels_are_those_of_torch_to_the_last_bit():
    pytest.importorskip("triton", reason="Triton is not installed: its kernels cannot be interpreted")
    # In a process of its own: whether Triton interprets is decided when the kernels are imported.
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, str(SCRIPT), "cpu"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    empty = results.pop("no patch")
    assert empty["served"] == empty["different"] == 0
    assert len(results) == 7
    expected = {"served": 1, "different": 0, "same order": True}
    assert {case: found for case, found in results.items() if found != expected} == {}


COMPILE = """
import torch
torch.version.cuda = "12.8"  # or the kernels are left out, as nothing here could run them
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from delst_hf.data.turned_kernel import TILE, turn_and_normalise

types = {"pixels": "*u8", "choices": "*u8", "table": "*fp32", "out": "*fp32", "n": "i32", "side": "i32", "TILE": "constexpr"}
source = ASTSource(fn=turn_and_normalise, signature=types, constexprs={"TILE": TILE})
print(len(compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]))
"""


def test_it_compiles_for_a_device_that_is_not_here(tmp_path):
    """What the interpreter does not show: types and shapes that the compiler refuses."""
    triton = pytest.importorskip("triton", reason="Triton is not installed: its kernels cannot be compiled")
    if not list(Path(triton.__file__).parent.glob("backends/nvidia/bin/ptxas*")):
        pytest.skip("this build of Triton has no assembler for CUDA devices")
    done = run_script(COMPILE, environment={"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"})
    assert int(done.stdout) > 1000


def test_a_cpu_keeps_to_torch():
    assert not kernel_serves(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))

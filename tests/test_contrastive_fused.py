"""The Triton kernels of the contrastive loss, by Triton's interpreter on a CPU, against the plain form in float64."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from delst_hf.model.contrastive_fused import is_fused

SCRIPT = Path(__file__).with_name("fused_errors.py")


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    pytest.importorskip("triton", reason="Triton is not installed: its kernels cannot be interpreted")
    # In a process of its own: whether Triton interprets is decided when the kernels are imported.
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, str(SCRIPT), "cpu"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean", "cosine"])
def test_loss_and_gradients_are_those_of_float64(errors, geometry):
    assert errors[f"{geometry}, quick"] < 3e-6
    assert errors[f"{geometry}, chunks"] < 3e-6
    if geometry != "cosine":
        assert errors[f"{geometry}, exact"] < 1e-6


@pytest.mark.parametrize("case", ["lorentz, duplicates", "euclidean, duplicates", "lorentz, all alike"])
def test_batches_that_float32_does_not_resolve(errors, case):
    assert errors[case] < 1e-4


def test_a_cpu_and_float64_keep_to_tiles():
    assert not is_fused(torch.zeros(64, 8))
    assert not is_fused(torch.zeros(64, 8, dtype=torch.float64))

"""Errors of the Triton kernels of the contrastive loss against the plain form in float64; run by test_contrastive_fused.py.

    python tests/fused_errors.py cpu     by Triton's interpreter, small
    python tests/fused_errors.py cuda    on the device, small and large

Prints one JSON object: case -> the largest relative error of the loss and of each gradient.
"""

import json
import os
import sys
import time
from pathlib import Path

device = sys.argv[1]
if device == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import torch  # noqa: E402
from test_contrastive import leaves, plain_loss  # noqa: E402

from delst_hf.model.contrastive_fused import FusedInfoNCE  # noqa: E402

LARGE = device == "cuda"


def errors(inputs, geometry, rows_at_once=None, tolerance=1e-4):
    """Relative errors of loss and gradients: of a batch that is exact in float32."""
    inputs = [tensor.detach().float().to(device).requires_grad_() for tensor in inputs]
    small = len(inputs[0]) <= 64
    exact = [tensor.detach().double().to("cpu" if small else device).requires_grad_() for tensor in inputs]
    expected = (plain_loss if small else chunked)(*exact, geometry)
    loss = FusedInfoNCE.apply(*inputs, geometry, rows_at_once, 0, False, tolerance)
    wanted = torch.autograd.grad(expected, exact, allow_unused=True)
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    pairs = [(loss.detach(), expected.detach())]
    pairs += [(a, b) for a, b in zip(found, wanted, strict=True) if b is not None]
    return max(float((a.double().to(b.device) - b).norm() / b.norm().clamp_min(1e-30)) for a, b in pairs)


def chunked(x, y, scale, curvature, geometry):
    """The tiles of torch in float64, themselves held by test_contrastive.py: the pairwise form does not fit."""
    from delst_hf.model.contrastive import TiledInfoNCE

    return TiledInfoNCE.apply(x, y, scale, curvature, geometry, 2048, 0, False)


def near_duplicates(geometry, n=23, dim=5):
    x, y, *scalars = leaves(geometry, n, dim)
    x, y = x.detach().clone(), y.detach().clone()
    x[1], y[1] = x[0], y[0]  # exact
    x[3] = x[2] + 1e-6 * x[3]  # beyond float32's resolution of distances
    return [x, y, *scalars]


def main():
    torch.manual_seed(0)
    start = time.perf_counter()
    results = {}
    for geometry in ("lorentz", "euclidean", "cosine"):
        results[f"{geometry}, quick"] = errors(leaves(geometry), geometry)
        results[f"{geometry}, chunks"] = errors(leaves(geometry, n=37, dim=33), geometry, rows_at_once=16)
        if geometry != "cosine":  # which has no distances that rounding could lose
            results[f"{geometry}, exact"] = errors(leaves(geometry), geometry, tolerance=-1.0)
            results[f"{geometry}, duplicates"] = errors(near_duplicates(geometry), geometry)
    x, y, *scalars = leaves("lorentz", 40, 5)
    results["lorentz, all alike"] = errors([x[:1] + 1e-3 * x, x[:1] + 1e-3 * y, *scalars], "lorentz")
    if LARGE:
        for geometry in ("lorentz", "euclidean", "cosine"):
            # Kernels are compiled for each geometry, width and size of block: what more there is, is one of them again.
            for n, dim, scale in ((1000, 512, 14.3), (1024, 512, 100.0), (5000, 512, 14.3), (5000, 512, 100.0)):
                x, y, _, c = leaves(geometry, n, dim)
                norm = dim**-0.5 * (1.0 if geometry != "cosine" else dim**0.5)
                case = [norm * x, norm * y, torch.tensor(scale), c]
                results[f"{geometry}, {n} x {dim}, {scale}"] = errors(case, geometry)
            print(f"{geometry}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        x, y, _, c = leaves("lorentz", 3000, 64)
        results["lorentz, 3000 x 64"] = errors([x / 8, y / 8, torch.tensor(14.3), c], "lorentz")
        results["lorentz, large exact"] = errors([x / 8, y / 8, torch.tensor(14.3), c], "lorentz", tolerance=-1.0)
        results["lorentz, large chunks"] = errors([x / 8, y / 8, torch.tensor(14.3), c], "lorentz", rows_at_once=1024)
    print(json.dumps(results))


main()

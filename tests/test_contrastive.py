"""The tiled loss against the plain form in float64: values, every gradient, what is kept, and how float32 rounds."""

import contextlib
import io
import itertools
import math
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from delst_hf.model import contrastive, lorentz
from delst_hf.model.contrastive import GEOMETRIES, similarity_logits
from delst_hf.model.lorentz import MAX_RAPIDITY, exp_map0
from delst_hf.model.losses import contrastive_loss


def leaves(geometry: str, n: int = 23, dim: int = 5, dtype=torch.float64, seed: int = 0) -> list[torch.Tensor]:
    """Images, genes, logit scale and curvature, all with gradients."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(n, dim, dtype=torch.float64, generator=generator)
    gene = image + 0.7 * torch.randn(n, dim, dtype=torch.float64, generator=generator)
    if geometry == "lorentz":
        image, gene = exp_map0(image, 0.7), exp_map0(gene, 0.7)
    if geometry == "cosine":
        image, gene = F.normalize(image, dim=-1), F.normalize(gene, dim=-1)
    scalars = torch.tensor(2.5, dtype=dtype), torch.tensor(0.7, dtype=dtype)
    return [tensor.to(dtype).requires_grad_() for tensor in (image, gene, *scalars)]


def logits_pair_by_pair(x, y, scale, curvature, geometry: str) -> torch.Tensor:
    if geometry == "lorentz":
        return -scale * lorentz.distance(x[:, None], y[None], curvature)
    if geometry == "euclidean":
        return -scale * torch.linalg.vector_norm(x[:, None] - y[None], dim=-1)
    return scale * (x[:, None] * y[None]).sum(-1)


def plain_loss(x, y, scale, curvature, geometry: str) -> torch.Tensor:
    """InfoNCE of the whole matrix by autograd, as log(1 + foreign / own): exact also where the own pair dominates."""
    logits = logits_pair_by_pair(x, y, scale, curvature, geometry)
    own = logits.diagonal()
    foreign = logits.masked_fill(torch.eye(len(x), dtype=torch.bool), -torch.inf)
    gaps = torch.cat([foreign.logsumexp(1) - own, foreign.logsumexp(0) - own])
    return torch.logaddexp(gaps, torch.zeros_like(gaps)).mean()


def with_gradients(loss: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [loss.detach(), *(torch.zeros(()) if grad is None else grad for grad in found)]


# --- exactness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("chunk_size", [1, 4, 7, 22, 23, 24, None])
def test_tiles_of_any_size_give_the_plain_loss_and_gradients(geometry, chunk_size):
    inputs = leaves(geometry)
    expected = with_gradients(plain_loss(*inputs, geometry), inputs)
    actual = with_gradients(contrastive_loss(*inputs, geometry, chunk_size), inputs)
    for value, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, reference.to(value), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradients_by_finite_differences(geometry):
    inputs = leaves(geometry, n=6, dim=3)
    assert torch.autograd.gradcheck(lambda *a: contrastive_loss(*a, geometry=geometry, chunk_size=4), inputs)


def test_twice_differentiated_is_refused():
    inputs = leaves("lorentz", n=4)
    (grad,) = torch.autograd.grad(contrastive_loss(*inputs).square(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("wanted", [[0], [1], [2], [0, 2], [3, 1]])
def test_only_the_gradients_asked_for(geometry, wanted):
    inputs = leaves(geometry)
    expected = with_gradients(plain_loss(*inputs, geometry), inputs)
    chosen = [tensor if i in wanted else tensor.detach() for i, tensor in enumerate(inputs)]
    loss = contrastive_loss(*chosen, geometry, 8)
    found = torch.autograd.grad(loss, [inputs[i] for i in wanted], allow_unused=True)
    for i, grad in zip(wanted, found, strict=True):
        assert grad is not None or (i == 3 and geometry != "lorentz")
        if grad is not None:
            torch.testing.assert_close(grad, expected[i + 1], rtol=1e-11, atol=1e-12)


def test_scalars_may_be_floats():
    image, gene, scale, curvature = leaves("lorentz")
    expected = contrastive_loss(image, gene, scale, curvature)
    loss = contrastive_loss(image, gene, 2.5, 0.7)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    loss.backward()
    assert image.grad.abs().max() > 0


def test_an_impossible_chunk_size_is_named():
    with pytest.raises(ValueError, match="chunk_size must be a positive integer, such as 1024, .*got 0"):
        contrastive_loss(torch.ones(2, 2), torch.ones(2, 2), 1.0, chunk_size=0)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_no_matrix_is_kept_for_the_backward_pass(geometry):
    sizes = {}
    for n in (64, 128):
        inputs, kept = leaves(geometry, n=n, dim=4, dtype=torch.float32), []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, kept=kept: kept.append(tensor) or tensor, lambda t: t
        ):
            contrastive_loss(*inputs, geometry, 16)
        sizes[n] = sum(tensor.numel() for tensor in kept)
        assert max(tensor.numel() for tensor in kept) < n * n / 8
    assert sizes[128] < 2.1 * sizes[64]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_autocast_and_tf32_change_nothing(geometry):
    inputs = leaves(geometry, dtype=torch.float32)
    expected = with_gradients(contrastive_loss(*inputs, geometry), inputs)
    before = torch.backends.mkldnn.matmul.fp32_precision
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = with_gradients(contrastive_loss(*inputs, geometry), inputs)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_a_compiled_caller_breaks_its_graph_and_goes_on():
    inputs = leaves("lorentz", dtype=torch.float32)
    compiled = torch.compile(lambda *a: contrastive_loss(*a) * 2, backend="eager")
    torch.testing.assert_close(compiled(*inputs), contrastive_loss(*inputs) * 2)


# --- float32 ----------------------------------------------------------------------------------------------------------

CASES = [
    "random",
    "identical",
    "opposite",
    "near",
    "duplicates",
    "collapsed",
    "cloud",
    "two clouds",
    "one ray",
    "origin",
]


def points_of(case: str, dim: int, rapidity: float, curvature: float, n: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def noise() -> torch.Tensor:
        return F.normalize(torch.randn(n, dim, dtype=torch.float64, generator=generator), dim=-1)

    u, v = noise(), noise()
    r = rapidity * (0.2 + 0.8 * torch.rand(2, n, 1, dtype=torch.float64, generator=generator))
    if case in ("collapsed", "cloud", "one ray"):
        u = u[:1].expand(n, dim)
    if case == "two clouds":
        u = u[torch.arange(n) % 2]
    if case in ("cloud", "two clouds"):
        u = u + 1e-2 * noise()
        v = u + 1e-2 * noise()
    elif case == "near":
        v = u + 1e-4 * noise()
    elif case not in ("random", "origin"):
        v = {"opposite": -u, "duplicates": u.roll(1, 0)}.get(case, u)
    if case == "one ray":
        r = torch.stack([r[0], (r[0] + 1e-3 * r[1]).clamp_max(rapidity)])
    elif case == "origin":  # where a polar form has no direction: some images, some genes, and some pairs of both
        r[0, ::2], r[1, ::3] = 0.0, 0.0
    elif case != "random":
        r = torch.full_like(r, rapidity)
    return [F.normalize(w, dim=-1) * radius.sinh() / math.sqrt(curvature) for w, radius in zip((u, v), r, strict=True)]


def errors(points, scale: float, curvature: float, dtype: torch.dtype) -> list[float]:
    """Of loss, gradients by the embeddings, and gradients by log scale and log curvature (the parameters of a model)."""
    inputs = [tensor.to(dtype).requires_grad_() for tensor in points]
    inputs += [torch.tensor(scalar, dtype=torch.float32).requires_grad_() for scalar in (scale, curvature)]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    actual = with_gradients(contrastive_loss(*inputs, chunk_size=7), inputs)
    expected = with_gradients(plain_loss(*exact, "lorentz"), exact)
    assert all(bool(torch.isfinite(value).all()) for value in actual)
    # What each error is a share of, at least: a gradient of nearly nothing need not be exact in nearly nothing.
    # In one dimension all pulls on a point lie in one line, and cancel to the rounding of each where others are tied.
    n, dim = points[0].shape
    least = [1e-12] + [(1e-2 if dim == 1 else 1e-6) * scale / n**0.5] * 2
    least += [max(float(expected[0]), 1e-9) / scalar for scalar in (scale, curvature)]
    # The pulls on one modality may cancel while those on the other add up.
    least[1:3] = [max(least[1], *(float(grad.norm()) for grad in expected[1:3]))] * 2
    pairs = zip(actual, expected, least, strict=True)
    return [float((a.double() - b).norm() / max(float(b.norm()), floor)) for a, b, floor in pairs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_float32_is_within_1e_4_of_float64(case, dtype):
    """Rapidity 0 to the cap, curvature 0.1 to 10, 1 to 1024 dimensions, logit scale 1 to 100, batches of 2, 16 and 33.

    Each case takes every pair of two of these once or more, and the cases together every combination of the first four.
    """
    shift, scalars = CASES.index(case), [(1.0, 10.0), (14.3, 1.0), (100.0, 0.1), (100.0, 10.0)]
    for number, (dim, rapidity) in enumerate(itertools.product((1, 2, 16, 1024), (0.0, 0.01, 1.0, 3.0, MAX_RAPIDITY))):
        n = (2, 16, 33)[(number + shift) % 3]
        scale, curvature = scalars[(number + shift) % 4]
        found = errors(points_of(case, dim, rapidity, curvature, n), scale, curvature, dtype)
        # Gradients of bfloat16 points are themselves bfloat16, of a relative resolution of 2^-8.
        # In one dimension all pulls on a point lie in one line and cancel more.
        limit = 1e-3 if dim == 1 else 1e-4
        limits = [1e-4, *[limit if dtype == torch.float32 else 2**-8] * 2, limit, limit]
        assert all(a <= b for a, b in zip(found, limits, strict=True)), (dim, rapidity, scale, curvature, n, found)


def test_points_as_training_has_them_stay_in_float32(monkeypatch):
    verdicts = []
    judge = contrastive._is_unresolved
    monkeypatch.setattr(contrastive, "_is_unresolved", lambda *a: verdicts.append(judge(*a)) or verdicts[-1])
    for scale in (14.3, 100.0):
        contrastive_loss(*(point.float() for point in points_of("random", 512, 1.8, 1.0, n=200)), scale, 1.0)
    assert [bool(verdict) for verdict in verdicts] == [False, False]
    contrastive_loss(*(point.float() for point in points_of("duplicates", 512, 2.0, 1.0)), 14.3, 1.0)
    assert bool(verdicts[2]) and len(verdicts) == 4  # once in float32, once in float64


def test_similarity_logits_agree_with_the_pairs():
    for geometry in GEOMETRIES:
        x, y, scale, curvature = leaves(geometry)
        expected = logits_pair_by_pair(x, y[:7], scale, curvature, geometry)
        torch.testing.assert_close(
            similarity_logits(x, y[:7], scale, curvature, geometry), expected, rtol=1e-9, atol=1e-9
        )


def test_the_benchmark_runs(monkeypatch):
    """Also the peaks of memory, which it takes in processes of their own, and here in this one."""
    script = str(Path(__file__).resolve().parents[1] / "benchmarks" / "contrastive.py")
    started = []

    def run(command: list[str], **options) -> SimpleNamespace:
        assert command[:2] == [sys.executable, script]
        started.append(command)
        said = io.StringIO()
        with mock.patch.object(sys, "argv", command[1:]), contextlib.redirect_stdout(said):
            runpy.run_path(script, run_name="__main__")
        return SimpleNamespace(stdout=said.getvalue())

    monkeypatch.setattr(subprocess, "run", run)
    said = run([sys.executable, script, "--quick", "--threads", "1"]).stdout
    assert len(started) == 4 and all("--peak-of" in command for command in started[1:])
    for text in ("two-matrix", "bytes kept", "ours / products", "peak memory"):
        assert text in said

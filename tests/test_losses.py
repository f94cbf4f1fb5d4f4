"""The losses against loops and arithmetic by hand in float64, and two real processes against one."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import in_ranks
from transformers import ViTConfig

from delst_hf import DelstConfig, DelstGeneConfig, DelstModel
from delst_hf.model.contrastive import similarity_logits
from delst_hf.model.distributed import gather_across_ranks, world_size
from delst_hf.model.entailment import entailment_loss, intra_entailment_loss, ordered_pairs
from delst_hf.model.lorentz import exp_map0
from delst_hf.model.losses import contrastive_loss, regression_loss

GEOMETRIES = ["lorentz", "cosine", "euclidean"]


def embeddings(geometry: str, n: int = 7, dim: int = 4, curvature: float = 0.7, seed: int = 0, dtype=torch.float64):
    """Random matching pairs: points, unit vectors or plain vectors."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(n, dim, dtype=torch.float64, generator=generator)
    gene = image + 0.7 * torch.randn(n, dim, dtype=torch.float64, generator=generator)
    if geometry == "lorentz":
        image, gene = exp_map0(image, curvature), exp_map0(gene, curvature)
    if geometry == "cosine":
        image, gene = (x / x.norm(dim=-1, keepdim=True) for x in (image, gene))
    return image.to(dtype), gene.to(dtype)


def similarity_by_hand(x: list[float], y: list[float], curvature: float, geometry: str) -> float:
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    if geometry == "cosine":
        return dot
    if geometry == "euclidean":
        return -math.dist(x, y)
    x_time = math.sqrt(1 / curvature + sum(a * a for a in x))
    y_time = math.sqrt(1 / curvature + sum(b * b for b in y))
    return -math.acosh(-curvature * (dot - x_time * y_time)) / math.sqrt(curvature)


def contrastive_by_hand(image, gene, scale: float, curvature: float, geometry: str) -> float:
    image, gene = image.tolist(), gene.tolist()
    n, total = len(image), 0.0
    for i in range(n):
        own = scale * similarity_by_hand(image[i], gene[i], curvature, geometry)
        row = [scale * similarity_by_hand(image[i], gene[j], curvature, geometry) for j in range(n)]
        column = [scale * similarity_by_hand(image[j], gene[i], curvature, geometry) for j in range(n)]
        total += sum(math.log(sum(map(math.exp, line))) - own for line in (row, column))
    return total / (2 * n)


def entailment_by_hand(parent, child, curvature: float, scale: float, min_radius: float) -> float:
    total = 0.0
    for x, y in zip(parent.tolist(), child.tolist(), strict=True):
        x_time, y_time = (math.sqrt(1 / curvature + sum(a * a for a in p)) for p in (x, y))
        norm = math.sqrt(sum(a * a for a in x))
        inner = curvature * (sum(a * b for a, b in zip(x, y, strict=True)) - x_time * y_time)
        exterior = math.acos((y_time + x_time * inner) / (norm * math.sqrt(inner**2 - 1)))
        aperture = math.asin(min(1.0, 2 * min_radius / (math.sqrt(curvature) * norm)))
        total += max(0.0, exterior - scale * aperture)
    return total / len(parent)


# --- contrastive ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("n", [1, 7, 30])
def test_contrastive_loss_is_the_loop(geometry, n):
    image, gene = embeddings(geometry, n)
    expected = contrastive_by_hand(image, gene, 3.0, 0.7, geometry)
    loss = contrastive_loss(image, gene, 3.0, 0.7, geometry)
    assert loss.dim() == 0 and loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected, rel=1e-7, abs=1e-12)
    image, gene = image.float(), gene.float()
    assert contrastive_loss(image, gene, 3.0, 0.7, geometry).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_similarity_logits_are_the_loop(geometry):
    image, gene = embeddings(geometry, 5)
    logits = similarity_logits(image, gene[:3], 2.0, 0.7, geometry)
    expected = [[2 * similarity_by_hand(x, y, 0.7, geometry) for y in gene[:3].tolist()] for x in image.tolist()]
    torch.testing.assert_close(logits, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("radius", [1.0, 10.0])
def test_euclidean_similarity_of_near_points_far_from_the_origin(radius):
    """Points 0.1 apart: squared norms that cancel would be off by 0.3 % at radius 1, and by a quarter at 10."""
    generator = torch.Generator().manual_seed(0)
    centre, offset = (F.normalize(torch.randn(n, 64, generator=generator), dim=-1) for n in (1, 32))
    x, y = radius * centre + 0.1 * offset, radius * centre + 0.09 * offset.roll(1, 0)
    expected = -torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(similarity_logits(x, y, 1.0, 1.0, "euclidean").double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_contrastive_loss_of_collapsed_embeddings_is_chance(geometry, dtype):
    image = torch.full((9, 4), 0.5, dtype=dtype, requires_grad=True)
    gene = torch.full((9, 4), 0.5, dtype=dtype, requires_grad=True)
    scale = torch.tensor(14.0, dtype=dtype, requires_grad=True)
    curvature = torch.tensor(1.0, dtype=dtype, requires_grad=True)
    loss = contrastive_loss(image, gene, scale, curvature, geometry)
    assert loss.item() == pytest.approx(math.log(9), rel=1e-5)
    loss.backward()
    for leaf in (image, gene, scale, *([curvature] if geometry == "lorentz" else [])):
        assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_contrastive_loss_falls_when_pairs_match(geometry):
    image, gene = embeddings(geometry, 12)
    matched = contrastive_loss(image, image, 10.0, 0.7, geometry)
    assert matched < contrastive_loss(image, gene, 10.0, 0.7, geometry)
    assert contrastive_loss(image, image.roll(1, 0), 10.0, 0.7, geometry) > math.log(12)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_contrastive_gradient_by_finite_differences(geometry):
    image, gene = (x.requires_grad_() for x in embeddings(geometry, 5))
    scale = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    curvature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: contrastive_loss(*a, geometry=geometry), (image, gene, scale, curvature))
    loss = contrastive_loss(image, gene, scale, curvature, geometry)
    used = torch.autograd.grad(loss, [scale, curvature], allow_unused=True)
    assert used[0].abs() > 1e-3
    assert (used[1] is not None) == (geometry == "lorentz")


def test_contrastive_loss_refuses_batches_of_two_shapes():
    with pytest.raises(ValueError, match=r"\(3, 2\) and gene_embeds \(4, 2\) must have the same shape"):
        contrastive_loss(torch.zeros(3, 2), torch.zeros(4, 2), 1.0)


def test_an_unknown_geometry_is_named():
    with pytest.raises(ValueError, match="geometry='sphere' is not known. Choose 'lorentz', 'euclidean' or 'cosine'"):
        contrastive_loss(torch.zeros(3, 2), torch.zeros(3, 2), 1.0, geometry="sphere")


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_bfloat16_is_lifted_before_any_arithmetic(geometry):
    image, gene = embeddings(geometry, 6, dtype=torch.bfloat16)
    loss = contrastive_loss(image, gene, 3.0, 0.7, geometry)
    assert loss.dtype == torch.float32
    assert loss.item() == contrastive_loss(image.float(), gene.float(), 3.0, 0.7, geometry).item()


# --- entailment -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "min_radius"), [(1.0, 0.1), (0.7, 0.1), (1.2, 0.3)])
def test_entailment_loss_is_the_loop(scale, min_radius):
    parent, child = embeddings("lorentz", 40, curvature=0.7)
    child = torch.cat([child[:20], 3 * parent[20:] + 0.1 * child[20:]])
    expected = entailment_by_hand(parent, child, 0.7, scale, min_radius)
    assert 0 < expected < entailment_by_hand(parent, child, 0.7, 0.0, min_radius)
    assert entailment_loss(parent, child, 0.7, scale, min_radius).item() == pytest.approx(expected, rel=1e-10)


def test_entailment_loss_by_hand():
    parent = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    child = torch.tensor([[4.0, 0.0], [0.5, 0.0]], dtype=torch.float64)
    # One child straight behind costs nothing; one in front costs pi less the half-aperture asin(0.2).
    expected = (math.pi - math.asin(0.2)) / 2
    assert entailment_loss(parent, child, 1.0).item() == pytest.approx(expected, rel=1e-12)
    assert entailment_loss(parent[:1], child[:1], 1.0).item() == 0


def test_entailment_gradient_by_finite_differences():
    parent, child = (x.requires_grad_() for x in embeddings("lorentz", 6))
    curvature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert entailment_loss(parent, child, curvature) > 0.1
    assert torch.autograd.gradcheck(entailment_loss, (parent, child, curvature))


def test_entailment_loss_lifts_bfloat16():
    parent, child = embeddings("lorentz", 6, dtype=torch.bfloat16)
    loss = entailment_loss(parent, child, 0.7)
    assert loss.dtype == torch.float32
    assert loss.item() == entailment_loss(parent.float(), child.float(), 0.7).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_pairs_cost_nothing_and_have_a_zero_gradient(dtype):
    embeds = torch.randn(4, 3, dtype=dtype, requires_grad=True)
    curvature = torch.tensor(1.0, dtype=dtype, requires_grad=True)
    loss = intra_entailment_loss(embeds, torch.full((4,), 5), curvature)
    loss.backward()
    assert loss.item() == 0 and loss.dim() == 0
    assert embeds.grad.abs().max() == 0
    assert curvature.grad == 0


# --- ordered pairs --------------------------------------------------------------------------------------------------


def pairs_by_hand(level, slide, parent="fewer", ratio=1.25) -> list[tuple[int, int]]:
    """Slide by slide: sort by level, pair rank r of the lower half with rank r + ceil(n / 2)."""
    pairs = []
    for name in sorted(set(slide)):
        spots = sorted((i for i in range(len(level)) if slide[i] == name), key=lambda i: level[i])
        for rank in range(len(spots) // 2):
            low, high = spots[rank], spots[rank + (len(spots) + 1) // 2]
            if level[high] >= ratio * level[low] and level[high] > level[low]:
                pairs.append((low, high) if parent == "fewer" else (high, low))
    return pairs


@pytest.mark.parametrize("parent", ["fewer", "more"])
@pytest.mark.parametrize("ratio", [1.25, 2.0])
@pytest.mark.parametrize("seed", range(6))
def test_ordered_pairs_have_their_properties(seed, ratio, parent):
    rng = np.random.default_rng(seed)
    level = rng.integers(0, 60, 41)
    slide = rng.choice([3, 7, 11, 1000], 41)  # groups of odd and even size, ties, zeros
    parents, children = ordered_pairs(torch.tensor(level), torch.tensor(slide), parent, ratio)
    assert len(parents) == len(children) > 0
    assert len(set(parents.tolist()) | set(children.tolist())) == 2 * len(parents)
    for i, j in zip(parents.tolist(), children.tolist(), strict=True):
        low, high = (i, j) if parent == "fewer" else (j, i)
        assert slide[i] == slide[j]
        assert level[high] > level[low]
        assert level[high] >= ratio * level[low]
    expected = pairs_by_hand(level.tolist(), slide.tolist(), parent, ratio)
    assert list(zip(parents.tolist(), children.tolist(), strict=True)) == expected


def test_ordered_pairs_by_hand():
    level = torch.tensor([100.0, 10.0, 50.0, 20.0, 1.0])
    parents, children = ordered_pairs(level)
    # Ranks 1, 10, 20, 50, 100: the lowest with the fourth, the second with the fifth, the middle one with none.
    assert (parents.tolist(), children.tolist()) == ([4, 1], [2, 0])
    children, parents = ordered_pairs(level, parent="more")
    assert (parents.tolist(), children.tolist()) == ([4, 1], [2, 0])


@pytest.mark.parametrize(
    ("level", "slides", "count"),
    [
        ([5, 50], [0, 0], 1),
        ([5, 50], [0, 1], 0),  # one spot a slide
        ([5], [0], 0),
        ([], [], 0),
        ([8, 8, 8, 8], [0, 0, 0, 0], 0),  # all tied
        ([0, 0], [0, 0], 0),
        ([0, 1], [0, 0], 1),
        ([100, 124], [0, 0], 0),
        ([100, 125], [0, 0], 1),
    ],
)
def test_the_number_of_pairs(level, slides, count):
    parents, children = ordered_pairs(torch.tensor(level, dtype=torch.long), torch.tensor(slides, dtype=torch.long))
    assert len(parents) == len(children) == count


def test_ordered_pairs_are_the_same_each_time():
    level, slides = torch.randint(0, 9, (60,)), torch.randint(0, 3, (60,))
    torch.manual_seed(0)
    first = ordered_pairs(level, slides)
    state = torch.get_rng_state()
    second = ordered_pairs(level, slides)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(state, torch.get_rng_state())


def test_ordered_pairs_span_half_the_ranks():
    parents, children = ordered_pairs(torch.arange(1, 101) ** 2)
    assert len(parents) == 50
    assert (children - parents == 50).all()


def test_ordered_pairs_refuse_what_is_no_count():
    with pytest.raises(ValueError, match="parent='most' is not known. Choose 'fewer' or 'more'"):
        ordered_pairs(torch.tensor([1.0, 2.0]), parent="most")
    for bad in (math.nan, -1.0):
        with pytest.raises(ValueError, match="level holds NaN or negative values. Give counts"):
            ordered_pairs(torch.tensor([1.0, bad]))


@pytest.mark.parametrize("modality", [0, 1])
@pytest.mark.parametrize("parent", ["fewer", "more"])
def test_intra_entailment_loss_is_the_loop(modality, parent):
    embeds = embeddings("lorentz", 20)[modality]
    rng = np.random.default_rng(1)
    level, slide = rng.integers(1, 300, 20), rng.integers(0, 2, 20)
    pairs = pairs_by_hand(level.tolist(), slide.tolist(), parent, 1.5)
    assert len(pairs) > 4
    expected = entailment_by_hand(embeds[[i for i, _ in pairs]], embeds[[j for _, j in pairs]], 0.7, 1.1, 0.2)
    level, slide = torch.tensor(level), torch.tensor(slide)
    loss = intra_entailment_loss(embeds, level, 0.7, slide, parent, 1.5, 1.1, 0.2)
    assert loss.item() == pytest.approx(expected, rel=1e-8)


# --- several processes ----------------------------------------------------------------------------------------------

SIZES = [5, 3]  # rows of each rank: uneven on purpose
LEVEL = torch.tensor([900, 20, 30, 700, 650, 10, 15, 800])
SLIDES = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])


def tiny_model() -> DelstModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    vision = ViTConfig(**sizes, image_size=16, patch_size=8)
    gene = DelstGeneConfig(num_genes=6, hidden_size=8, dropout=0.0)
    return DelstModel(DelstConfig(vision_config=vision, gene_config=gene, projection_dim=4)).train()


def loss_of_rows(geometry: str, rows: slice, across_ranks: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The whole objective of a slice of the joined batch, as `DelstModel` composes it, and its shared parameters."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(2, sum(SIZES), 6, dtype=torch.float64, generator=generator)[:, rows]
    weights = [torch.randn(6, 4, dtype=torch.float64, generator=generator).div(2).requires_grad_() for _ in range(2)]
    scale = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    log_curvature = torch.tensor(-0.4, dtype=torch.float64, requires_grad=True)
    curvature = log_curvature.exp()
    image, gene = (x @ w for x, w in zip(inputs, weights, strict=True))
    if geometry == "cosine":
        image, gene = (x / x.norm(dim=-1, keepdim=True) for x in (image, gene))
    if geometry != "lorentz":
        loss = contrastive_loss(image, gene, scale, curvature, geometry, chunk_size=3, across_ranks=across_ranks)
        return loss, [*weights, scale]
    image, gene = exp_map0(image, curvature), exp_map0(gene, curvature)
    loss = contrastive_loss(image, gene, scale, curvature, geometry, chunk_size=3, across_ranks=across_ranks)
    level, slides = LEVEL[rows], SLIDES[rows]
    if across_ranks:
        image, gene, level, slides = (gather_across_ranks(x)[0] for x in (image, gene, level, slides))
    loss = loss + 0.2 * entailment_loss(gene, image, curvature)
    for embeds in (image, gene):
        loss = loss + 0.3 * intra_entailment_loss(embeds, level, curvature, slides)
    return loss, [*weights, scale, log_curvature]


def loss_of_model(rows: slice, across_ranks: bool, niche: bool = False) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model = tiny_model()
    generator = torch.Generator().manual_seed(4)
    pixels = torch.randn(sum(SIZES), 3, 16, 16, generator=generator)[rows]
    genes = torch.randn(sum(SIZES), 6, generator=generator)[rows]
    batch = {"level": LEVEL[rows], "slide_ids": SLIDES[rows], "return_loss": True, "across_ranks": across_ranks}
    if niche:
        batch["niche_pixel_values"] = torch.randn(sum(SIZES), 3, 16, 16, generator=generator)[rows]
        batch["niche_gene_values"] = torch.randn(sum(SIZES), 6, generator=generator)[rows]
    return model(pixels, genes, **batch).loss, list(model.parameters())


def regression_of_rows(rows: slice, across_ranks: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Of spots of two panels, most of which one rank holds."""
    generator = torch.Generator().manual_seed(5)
    inputs, values = torch.randn(2, sum(SIZES), 6, dtype=torch.float64, generator=generator)[:, rows]
    weight = torch.randn(6, 6, dtype=torch.float64, generator=generator).requires_grad_()
    mask = (torch.arange(6) < 2) | (torch.arange(sum(SIZES)) < SIZES[0] - 1)[:, None]
    return regression_loss(inputs @ weight, values, mask[rows], across_ranks), [weight]


KINDS = {name: partial(loss_of_rows, name) for name in GEOMETRIES}
KINDS |= {
    "regression": regression_of_rows,
    "model": loss_of_model,
    "model, two levels": partial(loss_of_model, niche=True),
}


def work_of_one_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo")
    assert world_size() == dist.get_world_size() == 2
    rows = slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1]))
    joined, start = gather_across_ranks(torch.arange(8, dtype=torch.long).reshape(8, 1)[rows])
    assert start == rows.start and joined.flatten().tolist() == list(range(8))
    joined, _ = gather_across_ranks(torch.arange(8.0)[rows])
    assert joined.tolist() == list(range(8))
    results = {}
    for name in KINDS:
        loss, leaves = KINDS[name](rows, True)
        loss.backward()
        averages = [loss.detach().clone()] + [leaf.grad for leaf in leaves]
        for value in averages:
            dist.all_reduce(value)
            value /= 2
        results[name] = averages
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_loss_and_the_gradients_of_one(tmp_path: Path):
    pairs = list(zip(*(indices.tolist() for indices in ordered_pairs(LEVEL, SLIDES)), strict=True))
    assert any((i < SIZES[0]) != (j < SIZES[0]) for i, j in pairs), "no pair crosses the ranks: the test would be blind"
    in_ranks(work_of_one_rank, str(tmp_path), ranks=len(SIZES))
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for name, kind in KINDS.items():
        loss, leaves = kind(slice(0, sum(SIZES)), False)
        loss.backward()
        # The model is in float32: 1e-6 of its largest gradients, which are near 100.
        tolerance = {"rtol": 1e-4, "atol": 1e-4} if "model" in name else {"rtol": 1e-10, "atol": 1e-12}
        for results in ranks:
            for value, expected in zip(results[name], [loss.detach()] + [leaf.grad for leaf in leaves], strict=True):
                torch.testing.assert_close(value, expected, **tolerance)


def test_one_process_gathers_nothing():
    x = torch.randn(3, 2, requires_grad=True)
    joined, start = gather_across_ranks(x)
    assert joined is x and start == 0
    assert world_size() == 1


def test_across_ranks_changes_nothing_in_one_process():
    image, gene = embeddings("lorentz")
    expected = contrastive_loss(image, gene, 3.0, 0.7)
    assert contrastive_loss(image, gene, 3.0, 0.7, across_ranks=True) == expected

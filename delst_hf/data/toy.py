"""Synthetic H&E-like slides with a planted hierarchy: more tissue structure goes with more expressed genes.

A smooth field in 0..1, the level of structure, covers each slide. It determines what is drawn (with rising level: white adipose
cells, pink stroma, glands with a lumen, ducts filled by cells, dense tumour) and which genes are on: a programme gene is
expressed where the level exceeds the gene's own threshold, so the genes of a lower level are a subset of those of a higher one.
Library size varies independently of the level. Stain differs between slides, expression between patients.
"""

from collections.abc import Iterator
from itertools import islice
from string import ascii_uppercase
from zlib import crc32

import numpy as np
import pandas as pd
import scipy.sparse as sp
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, zoom
from scipy.spatial import cKDTree
from scipy.stats import rankdata

from .counts import make_genes
from .slide import Slide

REGIONS = ("adipose", "stroma", "gland", "in situ", "tumour")

# Optical density per unit of dye in red, green, blue (Ruifrok and Johnston, 2001).
_HEMATOXYLIN = np.array([0.65, 0.70, 0.29])
_EOSIN = np.array([0.07, 0.99, 0.11])
# Drawing at twice the size and averaging smooths the outlines of nuclei, which are only a few pixels wide.
_OVERSAMPLING = 2


def make_toy_slides(num_slides: int = 5, *, seed: int = 0, **options: float) -> Iterator[Slide]:
    """Make slides toy_A1, toy_A2 (one patient), toy_B1, toy_C1, toy_D1, ... with a common set of genes.

    Args:
        num_slides: number of slides.
        seed: equal seeds give equal slides.
        **options: passed to `make_toy_slide`.

    Raises:
        ValueError: num_slides below 1.

    Examples:
        >>> [slide.slide_id for slide in make_toy_slides(3, spots_per_side=4, image_px=300)]
        ['toy_A1', 'toy_A2', 'toy_B1']
    """
    names = toy_slide_names(num_slides)
    return (make_toy_slide(name, seed=seed, **options) for name in names)  # type: ignore[arg-type]


def toy_slide_names(num_slides: int) -> list[str]:
    """Return the slides' ids: toy_A1, toy_A2, toy_B1, toy_C1, ...

    Raises:
        ValueError: num_slides below 1.
    """
    if num_slides < 1:
        raise ValueError(f"num_slides is {num_slides}. Allowed: 1 or more (--slides).")
    return list(islice(_names(), num_slides))


def make_toy_slide(
    slide_id: str = "toy_A1",
    *,
    seed: int = 0,
    spots_per_side: int = 14,
    num_genes: int = 200,
    image_px: int = 800,
    mpp: float = 2.0,
) -> Slide:
    """Make one synthetic slide.

    Args:
        slide_id: the letters after the last "_" are the patient: "A" for "toy_A1".
        seed: determines the slide together with slide_id; the genes depend on the seed only.
        spots_per_side: spots lie on a square grid of this many rows and columns.
        num_genes: 60 % programme genes (nested thresholds), 25 % markers of one region, the rest expressed everywhere.
        image_px: side of the square image.
        mpp: micrometres per pixel; the drawing is made for about 2.

    Returns:
        A valid slide; spots also have a column `level`, the planted structure in 0..1.

    Raises:
        ValueError: fewer than 2 spots per side, 20 genes or 8 pixels per spot.

    Examples:
        >>> slide = make_toy_slide("toy_A1", spots_per_side=6, image_px=400)
        >>> slide.counts.shape, slide.image.shape, slide.patient_id
        ((36, 200), (400, 400, 3), 'A')
    """
    for name, value, least in (
        ("spots_per_side", spots_per_side, 2), ("num_genes", num_genes, 20), ("image_px", image_px, 8 * spots_per_side)
    ):  # fmt: skip
        if value < least:
            raise ValueError(f"{name} is {value}. Allowed: {least} or more.")
    patient = slide_id.split("_")[-1].rstrip("0123456789") or slide_id
    rng = np.random.default_rng([seed, 2, crc32(slide_id.encode())])
    field = _structure_field(rng, image_px)
    centres = (np.arange(spots_per_side) + 0.5) * image_px / spots_per_side
    row, col = (
        grid.ravel() for grid in np.meshgrid(np.arange(spots_per_side), np.arange(spots_per_side), indexing="ij")
    )
    x, y = centres[col] + rng.uniform(-1, 1, col.size), centres[row] + rng.uniform(-1, 1, row.size)
    level = field[y.astype(int), x.astype(int)]
    region = _region(level)
    spots = pd.DataFrame(
        {"x": x, "y": y, "array_row": row, "array_col": col, "label": [REGIONS[i] for i in region], "level": level},
        index=[f"{c}x{r}" for r, c in zip(row, col, strict=True)],
    )
    return Slide(
        slide_id=slide_id,
        image=_draw(field, rng),
        spots=spots,
        counts=_sample_counts(level, num_genes, seed, patient, rng),
        genes=make_genes([f"TOY{i:03d}" for i in range(num_genes)]),
        mpp=mpp,
        patient_id=patient,
        technology="synthetic",
        tissue="synthetic",
        species="synthetic",
        label_source="synthetic",
    )


def _names() -> Iterator[str]:
    yield from ("toy_A1", "toy_A2")
    number = 1
    while True:
        yield from (f"toy_{letter}{number}" for letter in ascii_uppercase[1:])
        number += 1


def _region(level: np.ndarray) -> np.ndarray:
    return np.minimum((level * len(REGIONS)).astype(int), len(REGIONS) - 1)


def _structure_field(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a smooth field (size, size) of nearly evenly distributed values in 0..1, so that every region appears."""
    coarse = 64
    noise = gaussian_filter(rng.standard_normal((coarse, coarse)), sigma=coarse / 9, mode="reflect")
    ranks = (rankdata(noise).reshape(coarse, coarse) - 0.5) / coarse**2
    field = zoom(ranks ** rng.uniform(0.85, 1.2), size / coarse, order=1, grid_mode=True, mode="nearest")
    return np.clip(field[:size, :size], 0, 1)


def _sample_counts(
    level: np.ndarray, num_genes: int, seed: int, patient: str, rng: np.random.Generator
) -> sp.csr_matrix:
    """Return negative-binomial counts (spots, genes): nested programmes, markers of a region, and genes that are always on."""
    genes = np.random.default_rng([seed, 1])
    mean = 1.5 + genes.lognormal(np.log(3.0), 0.5, num_genes)
    num_programme, num_markers = int(0.6 * num_genes), int(0.25 * num_genes)
    threshold = np.zeros(num_genes)
    threshold[:num_programme] = np.linspace(0.03, 0.95, num_programme)
    active = level[:, None] >= threshold[None]
    markers = slice(num_programme, num_programme + num_markers)
    active[:, markers] = _region(level)[:, None] == np.arange(num_markers)[None] % len(REGIONS)
    patient_effect = np.random.default_rng([seed, 3, crc32(patient.encode())]).lognormal(0, 0.15, num_genes)
    depth = rng.lognormal(rng.normal(0, 0.1), 0.2, level.size)
    # A hundredth of the expression leaks everywhere, since real genes are never exactly off.
    rate = mean * patient_effect * np.where(active, 1.0, 0.01) * depth[:, None]
    return sp.csr_matrix(rng.poisson(rng.gamma(4.0, rate / 4.0)).astype(np.int32))


def _draw(field: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint uint8 (height, width, 3) from two dyes: eosin (tissue, fibres, fat membranes) and hematoxylin (nuclei)."""
    size = field.shape[0]
    fibres = gaussian_filter(rng.standard_normal((size, size)).astype(np.float32), (1.2, 7))
    eosin = np.interp(field, [0, 0.17, 0.24, 0.5, 1], [0, 0, 0.5, 0.42, 0.34]) * (1 + 2.5 * fibres)
    eosin += 0.35 * _fat_membranes(field, rng)
    positions, lumina = _structures(field, rng)
    nuclei = _draw_nuclei(np.concatenate([_scattered(field, rng), positions]), field, rng)
    inside = Image.new("L", (size, size), 0)
    brush = ImageDraw.Draw(inside)
    for x, y, radius in lumina:
        brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    tissue = 1 - gaussian_filter(np.asarray(inside, dtype=np.float32) / 255, 0.7)
    hematoxylin = gaussian_filter(nuclei, 0.4) + 0.16 * np.clip(field - 0.3, 0, 1)
    stain_h = _HEMATOXYLIN * rng.uniform(0.88, 1.12, 3) * rng.uniform(0.85, 1.15)
    stain_e = _EOSIN * rng.uniform(0.88, 1.12, 3) * rng.uniform(0.85, 1.15)
    density = (hematoxylin * tissue)[..., None] * stain_h + (np.clip(eosin, 0, None) * tissue)[..., None] * stain_e
    rgb = 248 * np.exp(-density) + rng.normal(0, 2.0, (size, size, 1))
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def _fat_membranes(field: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return borders of Voronoi cells about 35 px wide, where the level is that of adipose tissue."""
    size = field.shape[0]
    rows, cols = np.nonzero(field < 0.22)
    lines = np.zeros_like(field)
    if len(rows):
        seeds = rng.uniform(-40, size + 40, (int(((size + 80) / 32) ** 2) + 2, 2))
        nearest = cKDTree(seeds).query(np.column_stack([rows, cols]), k=2)[0]
        lines[rows, cols] = np.exp(-(((nearest[:, 1] - nearest[:, 0]) / 2.2) ** 2))
    return lines


def _scattered(field: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return positions (nuclei, 2) as x, y of single nuclei; their density rises with the level."""
    size, densest = field.shape[0], 0.013
    points = rng.uniform(0, size, (rng.poisson(densest * size**2), 2))
    level = field[points[:, 1].astype(int), points[:, 0].astype(int)]
    density = np.interp(level, [0, 0.2, 0.4, 0.6, 0.8, 1], [0.0002, 0.001, 0.0025, 0.004, 0.0075, densest])
    return points[rng.uniform(0, densest, len(points)) < density]


def _structures(field: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[float, float, float]]]:
    """Return glands (a ring of nuclei around a lumen) and filled ducts: nuclei (n, 2) as x, y; lumina as (x, y, radius)."""
    size = field.shape[0]
    nuclei, lumina, taken = [np.empty((0, 2))], [], np.empty((0, 2))
    for x, y in rng.uniform(0, size, (int(size**2 / 250), 2)):
        level = field[int(y), int(x)]
        if not 0.4 <= level < 0.8 or (len(taken) and np.hypot(*(taken - (x, y)).T).min() < 46):
            continue
        taken = np.vstack([taken, (x, y)])
        radius = rng.uniform(13, 18)
        if level < 0.6:
            angle = np.arange(0, 2 * np.pi, 4.2 / radius)
            distance = radius + rng.normal(0, 0.6, angle.size)
            lumina.append((x, y, radius - rng.uniform(4, 6)))
        else:
            angle = rng.uniform(0, 2 * np.pi, int(0.045 * np.pi * radius**2))
            distance = (radius + 3) * np.sqrt(rng.uniform(0, 1, angle.size))
        nuclei.append(np.column_stack([x + distance * np.cos(angle), y + distance * np.sin(angle)]))
    return np.concatenate(nuclei), lumina


def _draw_nuclei(points: np.ndarray, field: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the amount of hematoxylin (height, width): ellipses, thin and dark in stroma, large and round in tumour."""
    size, k = field.shape[0], _OVERSAMPLING
    level = field[np.clip(points[:, 1], 0, size - 1).astype(int), np.clip(points[:, 0], 0, size - 1).astype(int)]
    length = np.interp(level, [0, 0.4, 1], [2.2, 2.4, 3.1]) * rng.uniform(0.8, 1.2, len(points))
    breadth = length * np.interp(level, [0, 0.3, 0.5, 1], [0.4, 0.45, 0.8, 0.85])
    turn, around = rng.uniform(0, np.pi, len(points))[:, None], np.linspace(0, 2 * np.pi, 12, endpoint=False)
    along, across = length[:, None] * np.cos(around), breadth[:, None] * np.sin(around)
    x = points[:, :1] + along * np.cos(turn) - across * np.sin(turn)
    y = points[:, 1:] + along * np.sin(turn) + across * np.cos(turn)
    outlines = (np.stack([x, y], axis=2) * k).reshape(len(points), -1)
    canvas = Image.new("L", (size * k, size * k), 0)
    brush = ImageDraw.Draw(canvas)
    for outline, dye in zip(outlines.tolist(), rng.integers(130, 230, len(points)).tolist(), strict=True):
        brush.polygon(outline, fill=dye)
    return np.asarray(canvas.reduce(k), dtype=np.float32) / 160

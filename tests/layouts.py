"""A small slide, and the same slide as different tools lay it on disk."""

import gzip
import json
from dataclasses import dataclass

import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp
from PIL import Image

from delst_hf.data.images import open_image
from delst_hf.data.slide import Slide


@dataclass
class Source:
    """What a reader must give back: pixels (300, 400, 3), spots on a Visium lattice of 20 px pitch (5 um per px)."""

    pixels: np.ndarray
    spots: pd.DataFrame  # index barcodes; x, y, array_row, array_col
    counts: np.ndarray
    gene_ids: list[str]
    symbols: list[str]


def make_source(seed: int = 0, rows: int = 3, columns: int = 4, num_genes: int = 6) -> Source:
    """At most 7 rows and 14 columns of spots fit on the slide; the last two of six genes share their symbol."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 180, (30, 40, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((400, 300), Image.Resampling.BICUBIC))
    positions = [(row, 2 * column + row % 2) for row in range(rows) for column in range(columns)]
    array = np.array(positions)
    spots = pd.DataFrame(
        {
            "x": 100 + 10.0 * array[:, 1],
            "y": 120 + 10 * np.sqrt(3) * array[:, 0],
            "array_row": array[:, 0],
            "array_col": array[:, 1],
        },
        index=[f"BARCODE{i:02d}-1" for i in range(len(positions))],
    )
    counts = rng.poisson(1.5, (len(positions), num_genes)).astype(np.int32)
    counts[:, 0] += 1
    symbols = ["ACTB", "GAPDH", "ERBB2", "CD74", "TBCE", "TBCE", *(f"GENE{i}" for i in range(6, num_genes))]
    return Source(pixels, spots, counts, [f"ENSG{i:011d}" for i in range(num_genes)], symbols)


def assert_same(
    slide: Slide, source: Source, scale: float = 1.0, mpp: float | None = 5.0, with_ids: bool = True
) -> None:
    """Counts, genes, coordinates and patches of a slide are those of the source, spot by spot."""
    slide.validate()
    assert sorted(slide.spots.index) == sorted(source.spots.index)
    order = source.spots.index.get_indexer(slide.spots.index)
    np.testing.assert_array_equal(slide.counts.toarray(), source.counts[order])
    assert slide.genes["symbol"].tolist() == source.symbols
    assert slide.genes["gene_id"].tolist() == (source.gene_ids if with_ids else [""] * 6)
    np.testing.assert_allclose(slide.spots[["x", "y"]], source.spots[["x", "y"]].to_numpy()[order] * scale)
    if mpp is not None:
        assert slide.mpp == np.float64(mpp / scale) or abs(slide.mpp - mpp / scale) < 1e-6 * slide.mpp
    side = 24
    for patch, i in zip(slide.patches(side * slide.mpp, side), order, strict=True):
        x, y = source.spots[["x", "y"]].to_numpy()[i] * scale
        left, top = int(np.rint(x - side / 2)), int(np.rint(y - side / 2))
        expected = np.asarray(slide.image[top : top + side, left : left + side])
        np.testing.assert_array_equal(np.asarray(patch), expected)


def write_10x_h5(path, source, extra_feature=True):
    """HDF5 as Space Ranger writes it: genes x barcodes, compressed by column, with an antibody at the end."""
    counts = np.hstack([source.counts, np.full((len(source.counts), 1), 7)]) if extra_feature else source.counts
    ids = [*source.gene_ids, "CD3_TotalC"][: counts.shape[1]]
    names = [*source.symbols, "CD3_TotalC"][: counts.shape[1]]
    kinds = [*["Gene Expression"] * len(source.symbols), "Antibody Capture"][: counts.shape[1]]
    matrix = sp.csc_matrix(counts.T)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group.create_dataset("barcodes", data=np.array(source.spots.index.tolist(), dtype="S"))
        for name, values in (("data", matrix.data), ("indices", matrix.indices.astype("i8")),
                             ("indptr", matrix.indptr.astype("i8")), ("shape", np.array(matrix.shape, "i4"))):  # fmt: skip
            group.create_dataset(name, data=values)
        features = group.create_group("features")
        for name, values in (("id", ids), ("name", names), ("feature_type", kinds), ("genome", ["GRCh38"] * len(ids))):
            features.create_dataset(name, data=np.array(values, dtype="S32"))
        features.create_dataset("_all_tag_keys", data=np.array(["genome"], dtype="S6"))


def write_mtx(folder, source):
    folder.mkdir(parents=True)
    with gzip.open(folder / "matrix.mtx.gz", "wb") as file:
        scipy.io.mmwrite(file, sp.coo_matrix(source.counts.T), field="integer")
    with gzip.open(folder / "barcodes.tsv.gz", "wt") as file:
        file.writelines(f"{name}\n" for name in source.spots.index)
    with gzip.open(folder / "features.tsv.gz", "wt") as file:
        file.writelines(f"{i}\t{n}\tGene Expression\n" for i, n in zip(source.gene_ids, source.symbols, strict=True))


def positions_table(source, off_tissue=True):
    """Columns of Space Ranger; with two spots that lie beside the tissue."""
    table = pd.DataFrame(
        {
            "barcode": source.spots.index,
            "in_tissue": 1,
            "array_row": source.spots["array_row"].to_numpy(),
            "array_col": source.spots["array_col"].to_numpy(),
            "pxl_row_in_fullres": source.spots["y"].to_numpy(),
            "pxl_col_in_fullres": source.spots["x"].to_numpy(),
        }
    )
    if off_tissue:
        step = 10 * np.sqrt(3)
        extra = pd.DataFrame({"barcode": ["OFF1-1", "OFF2-1"], "in_tissue": 0, "array_row": [3, 3], "array_col": [1, 3],
                              "pxl_row_in_fullres": 120 + 3 * step, "pxl_col_in_fullres": [110.0, 130.0]})  # fmt: skip
        table = pd.concat([extra, table], ignore_index=True)
    return table


def write_spatial(folder, source, positions="csv", factors=None):
    """The folder spatial/ of Space Ranger; the hires image is half, the lowres a quarter of the full resolution."""
    folder.mkdir(parents=True)
    table = positions_table(source)
    if positions == "csv":
        table.to_csv(folder / "tissue_positions.csv", index=False)
    elif positions == "list":
        table.to_csv(folder / "tissue_positions_list.csv", index=False, header=False)
    else:
        table.to_parquet(folder / "tissue_positions.parquet", index=False)
    factors = factors or {"spot_diameter_fullres": 13.0, "fiducial_diameter_fullres": 21.0,
                          "tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.25}  # fmt: skip
    (folder / "scalefactors_json.json").write_text(json.dumps(factors))
    Image.fromarray(source.pixels[::2, ::2]).save(folder / "tissue_hires_image.png")
    Image.fromarray(source.pixels[::4, ::4]).save(folder / "tissue_lowres_image.png")


def write_outs(folder, source, positions="csv", counts="h5", factors=None):
    write_spatial(folder / "spatial", source, positions, factors)
    if counts == "h5":
        write_10x_h5(folder / "filtered_feature_bc_matrix.h5", source)
    else:
        write_mtx(folder / "filtered_feature_bc_matrix", source)
    return folder


def image_of(path):
    return np.asarray(open_image(path)[:, :])

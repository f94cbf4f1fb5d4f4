"""Xenium: rows that are no transcripts of a gene somewhere are counted and left out; cells as 10x lays them on disk."""

import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from layouts import make_source, write_mtx
from PIL import Image

from delst_hf.cli import main
from delst_hf.data.readers.xenium import read_xenium
from delst_hf.data.readers.xenium_cells import _cell_names, read_xenium_cells

TRANSCRIPTS = pd.DataFrame(
    [("A", 5, 5, 40), ("B", 15, 5, 20), ("A", 5.5, 5, 40), ("B", 25, 25, 19.9), ("NegControlProbe_1", 5, 5, 40)],
    columns=["feature_name", "x_location", "y_location", "qv"],
)


@pytest.fixture
def he(tmp_path):
    Image.fromarray(np.full((40, 60, 3), 120, np.uint8)).save(tmp_path / "he.png")
    return tmp_path / "he.png"


def write_transcripts(folder, table, pixel_size=1.0):
    folder.mkdir(exist_ok=True)
    table.to_parquet(folder / "transcripts.parquet")
    (folder / "experiment.xenium").write_text(json.dumps({"pixel_size": pixel_size}))
    return folder


def as_dict(slide):
    return {name: dict(zip(slide.genes["symbol"], row, strict=True))
            for name, row in zip(slide.spots.index, slide.counts.toarray().tolist(), strict=True)}  # fmt: skip


RIGHT = {"0x0": {"A": 2, "B": 0}, "0x1": {"A": 0, "B": 1}}


@pytest.mark.parametrize(("organism", "right"), [("Mouse", "mouse"), ("Human", "human"), ("Custom", ""), (None, "")])
def test_the_species_is_that_of_the_panel_where_no_id_tells_it(tmp_path, he, organism, right):
    folder = write_transcripts(tmp_path / "out", TRANSCRIPTS)
    (folder / "experiment.xenium").write_text(json.dumps({"pixel_size": 1.0, "panel_organism": organism}))
    assert read_xenium(folder, he, grid_um=10).species == right
    assert read_xenium(folder, he, grid_um=10, species="rat").species == "rat"
    gene = {"type": {"data": {"name": "A", "id": "ENSG00000000001"}}}
    (folder / "gene_panel.json").write_text(json.dumps({"payload": {"targets": [gene]}}))
    assert read_xenium(folder, he, grid_um=10).species == ""  # its genes say so when they are put in order


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (("A", np.nan, 5, 40), "1 without a position"),
        (("A", np.inf, 5, 40), "1 without a position"),
        (("A", 5, -np.inf, 40), "1 without a position"),
        ((None, 5, 5, 40), "1 without a name"),
        (("", 5, 5, 40), "1 without a name"),
        (("  ", 5, 5, 40), "1 without a name"),
        (("A", 5, 5, np.nan), "2 below quality 20"),
    ],
)
def test_a_row_that_is_no_transcript_is_counted_and_left_out(tmp_path, he, row, told):
    table = pd.concat([TRANSCRIPTS, pd.DataFrame([row], columns=TRANSCRIPTS.columns)], ignore_index=True)
    slide = read_xenium(write_transcripts(tmp_path / "out", table), he, grid_um=10)
    assert as_dict(slide) == RIGHT
    assert told in slide.notes.remarks[0]
    assert slide.spots.loc["0x1", ["x", "y"]].tolist() == [15, 5]


def test_text_among_numbers_of_a_csv_is_no_position(tmp_path, he):
    folder = write_transcripts(tmp_path / "out", TRANSCRIPTS)
    (folder / "transcripts.parquet").unlink()
    odd = pd.concat([TRANSCRIPTS.astype(str), pd.DataFrame([["A", "none", "5", "40"]], columns=TRANSCRIPTS.columns)])
    odd.to_csv(folder / "transcripts.csv", index=False)
    assert as_dict(read_xenium(folder, he, grid_um=10)) == RIGHT


@pytest.mark.parametrize("grid_um", [0.0001, 10])
def test_a_grid_beyond_the_key_is_refused(tmp_path, he, grid_um):
    far = TRANSCRIPTS if grid_um < 1 else TRANSCRIPTS.assign(y_location=[5, 5, 1e12, 5, 5])
    with pytest.raises(
        ValueError, match=r"at [xy] = .* um is \d+ squares of .* Allowed: up to 32768 squares.*--grid-um"
    ):
        read_xenium(write_transcripts(tmp_path / "out", far), he, grid_um=grid_um)


def test_squares_at_both_ends_of_the_key(tmp_path, he):
    ends = TRANSCRIPTS[:2].assign(x_location=[-32768 * 10.0, 32767 * 10.0], y_location=[32767 * 10.0, -32768 * 10.0])
    slide = read_xenium(write_transcripts(tmp_path / "out", ends), he, grid_um=10, mpp=1.5)
    assert as_dict(slide) == {"-32768x32767": {"A": 0, "B": 1}, "32767x-32768": {"A": 1, "B": 0}}


# --- cells ----------------------------------------------------------------------------------------------------------


def write_cells(folder, source, matrix="h5", table="parquet"):
    """12 cells; the matrix has a control more, in another order, and the cells have a row without counts."""
    folder.mkdir()
    order = np.arange(len(source.spots))[::-1]
    names = _cell_names(
        np.column_stack([np.arange(len(order)) * 1000 + 17, np.ones(len(order), int)]).astype(np.uint32)
    )
    source.spots.index = names
    cells = pd.DataFrame({"cell_id": names, "x_centroid": source.spots["x"] * 0.5, "y_centroid": source.spots["y"] * 0.5,
                          "transcript_counts": 1, "cell_area": 20.5 + np.arange(len(names)), "nucleus_area": 9.0})  # fmt: skip
    cells = pd.concat([cells, cells[:1].assign(cell_id="pppppppp-1")])
    if table == "parquet":
        cells.assign(cell_id=cells["cell_id"].str.encode("utf-8")).to_parquet(folder / "cells.parquet", index=False)
    else:
        cells.to_csv(folder / f"cells.{table}", index=False)
    counts = np.hstack([source.counts[order], np.full((len(order), 1), 9)])
    ids, symbols = [*source.gene_ids, "NegControlProbe_1"], [*source.symbols, "NegControlProbe_1"]
    shuffled = [names[i] for i in order]
    if matrix == "h5":
        write_h5(folder / "cell_feature_matrix.h5", counts, shuffled, ids, symbols)
    elif matrix == "mtx":
        write_mtx(folder / "cell_feature_matrix", source)
    else:
        write_zarr(folder / "cell_feature_matrix.zarr", counts, order, ids, symbols)
        if matrix == "zarr.zip":
            shutil.make_archive(str(folder / "cell_feature_matrix.zarr"), "zip", folder / "cell_feature_matrix.zarr")
            shutil.rmtree(folder / "cell_feature_matrix.zarr")
    (folder / "experiment.xenium").write_text(json.dumps({"pixel_size": 0.5}))
    return folder


def write_h5(path, counts, names, ids, symbols):
    matrix = sp.csc_matrix(counts.T)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(names, dtype="S")
        for name, values in (("data", matrix.data), ("indices", matrix.indices), ("indptr", matrix.indptr)):
            group[name] = values
        group["shape"] = np.array(matrix.shape, np.int32)
        kinds = ["Gene Expression"] * 6 + ["Negative Control Probe"]
        for name, values in (("id", ids), ("name", symbols), ("feature_type", kinds)):
            group[f"features/{name}"] = np.array(values, dtype="S")


def write_zarr(path, counts, order, ids, symbols):
    """Genes x cells by gene, with the numbers of which names of cells are made."""
    matrix = sp.csr_matrix(counts.T)
    group = zarr.open_group(str(path), mode="w", zarr_format=2).create_group("cell_features")
    numbers = np.column_stack([order * 1000 + 17, np.ones(len(order), int)]).astype(np.uint32)
    for name, values in (
        ("data", matrix.data),
        ("indices", matrix.indices),
        ("indptr", matrix.indptr),
        ("cell_id", numbers),
    ):
        group.create_array(name, data=np.asarray(values).astype(np.uint32))
    kinds = ["gene"] * 6 + ["negative_control_probe"]
    group.attrs.update(
        {"feature_keys": symbols, "feature_ids": ids, "feature_types": kinds, "number_cells": len(order)}
    )


@pytest.mark.parametrize(
    ("matrix", "table"),
    [("h5", "parquet"), ("h5", "csv.gz"), ("mtx", "csv"), ("zarr", "parquet"), ("zarr.zip", "csv.gz")],
)
def test_cells(tmp_path, matrix, table):
    source = make_source()
    Image.fromarray(source.pixels).save(tmp_path / "he.png")
    slide = read_xenium_cells(write_cells(tmp_path / "out", source, matrix, table), tmp_path / "he.png", slide_id="X1")
    slide.validate()
    assert slide.mpp == 0.5 and slide.spot_um is None
    position = source.spots.index.get_indexer(slide.spots.index)
    assert sorted(position) == list(range(12))
    np.testing.assert_array_equal(slide.counts.toarray(), source.counts[position])
    np.testing.assert_allclose(slide.spots[["x", "y"]], source.spots[["x", "y"]].to_numpy()[position])
    np.testing.assert_allclose(slide.spots["cell_area_um2"], 20.5 + position)
    assert slide.genes["gene_id"].tolist() == source.gene_ids
    assert "quality 20 and more" in slide.notes.remarks[0]


def test_names_of_cells_are_those_of_10x():
    """The example of 10x's description of the format."""
    assert _cell_names(np.array([[1437536272, 1], [1437536273, 2]], dtype=np.uint32)) == ["ffkpbaba-1", "ffkpbabb-2"]
    assert _cell_names(np.array([7, 8], dtype=np.uint32)) == ["7", "8"]


def test_a_cell_without_a_position_is_left_out(tmp_path, he):
    source = make_source()
    folder = write_cells(tmp_path / "out", source)
    cells = pd.read_parquet(folder / "cells.parquet")
    cells.loc[cells.index[3], "x_centroid"] = np.inf
    cells.to_parquet(folder / "cells.parquet")
    slide = read_xenium_cells(folder, he, mpp=2.0)
    assert len(slide.spots) == 11 and source.spots.index[3] not in slide.spots.index
    assert slide.notes.spots_left_out["without a position"] == 1


def test_mistakes(tmp_path, he, capsys):
    source = make_source()
    folder = write_cells(tmp_path / "out", source)
    base = ["prepare", "xenium", str(folder), "--image", str(he), "--output", str(tmp_path / "d"), "--unit", "cell"]
    assert main([*base, "--min-qv", "30"]) == 2
    assert "--grid-um and --min-qv apply to --unit grid only" in capsys.readouterr().err
    (folder / "cell_feature_matrix.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"no cell_feature_matrix\.h5.*--unit grid"):
        read_xenium_cells(folder, he)
    (folder / "cell_feature_matrix.zarr.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"cannot read .*zarr\.zip: BadZipFile"):
        read_xenium_cells(folder, he)
    with pytest.raises(FileNotFoundError, match=r"no transcripts\.parquet, .*or read its cells \(--unit cell\)\.$"):
        read_xenium(folder, he)
    pd.read_parquet(folder / "cells.parquet").drop(columns="x_centroid").to_parquet(folder / "cells.parquet")
    with pytest.raises(KeyError, match=r"columns \['x_centroid'\] are missing"):
        read_xenium_cells(folder, he)
    (folder / "cells.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"no cells\.parquet"):
        read_xenium_cells(folder, he)

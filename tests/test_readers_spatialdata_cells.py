"""SpatialData: outlines as rows, tables that do not fit their element; stores written by spatialdata itself."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from layouts import assert_same, make_source

from delst_hf.data.genes import clean_genes

spatialdata = pytest.importorskip("spatialdata", reason="the optional extra spatialdata is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")


def write(folder, shapes, instances=None, region="cells", labels=None, **obs):
    """A store of 12 rows; the image is half as large as the frame of the shapes."""
    from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    source = make_source()
    half = Scale([2.0, 2.0], axes=("x", "y"))
    image = Image2DModel.parse(source.pixels.transpose(2, 0, 1), dims=("c", "y", "x"), transformations={"S1": half})
    columns = {"region": pd.Categorical([region] * 12), "cell": range(12) if instances is None else instances, **obs}
    adata = anndata.AnnData(
        sp.csr_matrix(source.counts.astype(np.float32)),
        var=pd.DataFrame({"gene_ids": source.gene_ids}, index=source.symbols),
        obs=pd.DataFrame(columns, index=source.spots.index),
    )
    elements = {
        "shapes": {"cells": ShapesModel.parse(shapes, transformations={"S1": Identity()})} if shapes is not None else {}
    }
    if labels is not None:
        elements["labels"] = {"mask": Labels2DModel.parse(labels, dims=("y", "x"), transformations={"S1": half})}
    table = TableModel.parse(adata, region=region, region_key="region", instance_key="cell")
    spatialdata.SpatialData(images={"he": image}, tables={"table": table}, **elements).write(folder / "s.zarr")
    return folder / "s.zarr", source


def outlines(source, multi=False):
    """Rectangles of 4 x (2 + 2 number) about 2 x the places, in two halves beside them where `multi`."""
    import geopandas
    from shapely.geometry import MultiPolygon, box

    found = []
    for number, (x, y) in enumerate(source.spots[["x", "y"]].to_numpy() * 2):
        high = 1 + number
        halves = [box(x - 9, y - high, x - 7, y + high), box(x + 7, y - high, x + 9, y + high)]
        found.append(MultiPolygon(halves) if multi else box(x - 2, y - high, x + 2, y + high))
    return geopandas.GeoDataFrame({"geometry": found})


def read(path, **options):
    from delst_hf.data.readers.spatialdata_zarr import read_spatialdata

    return read_spatialdata(path, **options)


AREAS = (8.0 * (1 + np.arange(12))) / 4 * 25  # a quarter of the frame's area in pixels, 5 um each


@pytest.mark.parametrize("multi", [False, True])
def test_outlines_are_cells_with_their_area(tmp_path, multi):
    path, source = write(tmp_path, outlines(make_source(), multi))
    slide = read(path, mpp=5.0)
    assert_same(slide, source)
    np.testing.assert_allclose(slide.spots["cell_area_um2"], AREAS)
    squares = read(path, mpp=5.0, grid_um=200)
    assert squares.counts.sum() == source.counts.sum() and squares.spot_um == 200 and len(squares.spots) < 12


def test_circles_of_different_sizes_are_cells_and_of_one_size_spots(tmp_path):
    import geopandas
    from shapely.geometry import Point

    points = [Point(*place) for place in make_source().spots[["x", "y"]].to_numpy() * 2]
    radius = 3.0 + np.arange(12)
    (tmp_path / "a").mkdir()
    path, _ = write(tmp_path / "a", geopandas.GeoDataFrame({"geometry": points, "radius": radius}))
    np.testing.assert_allclose(read(path, mpp=5.0).spots["cell_area_um2"], np.pi * (radius / 2 * 5) ** 2)
    (tmp_path / "b").mkdir()
    path, source = write(tmp_path / "b", geopandas.GeoDataFrame({"geometry": points, "radius": 11.0}))
    slide = read(path, spot_um=55.0)
    assert_same(slide, source)
    assert slide.spots["cell_area_um2"].isna().all() and slide.spot_px == 11


def test_equal_squares_are_bins(tmp_path):
    import geopandas
    from shapely.geometry import box

    boxes = [box(x - 5, y - 5, x + 5, y + 5) for x, y in make_source().spots[["x", "y"]].to_numpy() * 2]
    path, _ = write(tmp_path, geopandas.GeoDataFrame({"geometry": boxes}))
    slide = read(path, mpp=5.0)
    assert slide.spots["cell_area_um2"].isna().all() and slide.spot_px == 5


def test_rows_without_a_shape_or_off_tissue_are_counted(tmp_path):
    in_tissue = [1] * 9 + [0] * 3
    path, source = write(tmp_path, outlines(make_source()), instances=range(2, 14), in_tissue=in_tissue)
    slide = read(path, mpp=5.0)
    assert slide.spots.index.tolist() == source.spots.index[:9].tolist()  # of those on tissue all have a shape
    assert slide.notes.spots_left_out == {"not in_tissue": 3}
    (tmp_path / "b").mkdir()
    path, source = write(tmp_path / "b", outlines(make_source()), instances=range(2, 14))
    slide = read(path, mpp=5.0)
    assert len(slide.spots) == 10 and slide.counts.sum() == source.counts[:10].sum()
    assert slide.notes.spots_left_out == {"without a shape": 2}


def test_a_table_of_labels_is_joined_to_outlines_that_are_named(tmp_path):
    mask = np.zeros((300, 400), np.int32)
    mask[:12, 0] = np.arange(1, 13)

    def shapes():
        return outlines(make_source()).set_index(pd.Index([f"cell-{i}" for i in range(12)]))

    ids = [f"cell-{i}" for i in range(12)]
    path, source = write(tmp_path, shapes(), range(1, 13), "mask", mask, cell_id=ids)
    with pytest.raises(ValueError, match=r"annotates 'mask', which is labels.*--region cells"):
        read(path, mpp=5.0)
    slide = read(path, mpp=5.0, region="cells")
    assert_same(slide, source)
    np.testing.assert_allclose(slide.spots["cell_area_um2"], AREAS)
    (tmp_path / "b").mkdir()
    path, _ = write(tmp_path / "b", None, range(1, 13), "mask", mask)
    with pytest.raises(ValueError, match=r"which is labels.*to_polygons"):
        read(path, mpp=5.0)
    (tmp_path / "c").mkdir()
    path, _ = write(tmp_path / "c", shapes(), range(1, 13), "mask", mask)
    with pytest.raises(ValueError, match=r"do not have the names of the shapes 'cells'.*--region"):
        read(path, mpp=5.0, region="cells")


def write_region(folder, source):
    """The region of a MERSCOPE run: cells in um about an origin, their outlines, and planes of fluorescence."""
    import geopandas
    import tifffile
    from shapely.geometry import MultiPolygon, box

    images = folder / "images"
    images.mkdir(parents=True)
    matrix = np.array([[2.0, 0, -2000.0], [0, 2.0, 600.0], [0, 0, 1]])  # 0.5 um per px
    np.savetxt(images / "micron_to_mosaic_pixel_transform.csv", matrix)
    um = source.spots[["x", "y"]].to_numpy() / 2 + [1000.0, -300.0]
    names = [str(1504440900000100001 + number) for number in range(12)]  # beyond 2^53
    half = 1 + np.arange(12) / 4
    cells = [MultiPolygon([box(x - h, y - h, x + h, y + h)]) for (x, y), h in zip(um, half, strict=True)]
    table = {"EntityID": list(map(int, names)), "ZIndex": 0, "Geometry": cells}
    geopandas.GeoDataFrame(table, geometry="Geometry").to_parquet(folder / "cell_boundaries.parquet")
    columns = ["ACTB", "GAPDH", "ERBB2", "CD74", "Blank-1", "BLANK_0002"]
    pd.DataFrame(source.counts, index=pd.Index(names, name="cell"), columns=columns).to_csv(folder / "cell_by_gene.csv")
    places = {"fov": 0, "volume": 200.0, "center_x": um[:, 0], "center_y": um[:, 1]}
    pd.DataFrame(places, index=pd.Index(names, name="EntityID")).to_csv(folder / "cell_metadata.csv")
    for stain in ("DAPI", "PolyT"):
        tifffile.imwrite(images / f"mosaic_{stain}_z3.tif", source.pixels[:, :, 0].astype(np.uint16) * 16)
    return names, (2 * half) ** 2


def test_merscope_by_way_of_spatialdata_io(tmp_path):
    """The route of docs/data.md: its store, the H&E put beside it, one row per cell with its outline's area."""
    spatialdata_io = pytest.importorskip("spatialdata_io", reason="spatialdata-io is not installed")
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity

    source = make_source()
    names, areas = write_region(tmp_path / "run" / "region_0", source)
    store = spatialdata_io.merscope(tmp_path / "run" / "region_0", transcripts=False)
    store.images["he"] = Image2DModel.parse(
        source.pixels.transpose(2, 0, 1), dims=("c", "y", "x"), transformations={"global": Identity()}
    )
    store.write(tmp_path / "region_0.zarr")
    with pytest.raises(ValueError, match=r"there are 2 choices for --image. Choose one of \['he', 'run_region_0_z3'\]"):
        read(tmp_path / "region_0.zarr", mpp=0.5)
    with pytest.raises(ValueError, match=r"fluorescence image: its channels are called \['DAPI'"):
        read(tmp_path / "region_0.zarr", mpp=0.5, image="run_region_0_z3")
    slide = read(tmp_path / "region_0.zarr", mpp=0.5, image="he")
    rows = slide.spots.loc[names]
    np.testing.assert_allclose(rows[["x", "y"]].to_numpy(float), source.spots[["x", "y"]], rtol=1e-9)
    np.testing.assert_allclose(rows["cell_area_um2"].to_numpy(float), areas, rtol=1e-6)
    assert (
        slide.counts.toarray()[[slide.spots.index.get_loc(name) for name in names]].tolist()
        == source.counts[:, :4].tolist()
    )
    squares = read(tmp_path / "region_0.zarr", mpp=0.5, image="he", grid_um=20.0)
    assert squares.counts.sum() == slide.counts.sum() and len(squares.spots) < 12


def write_bundle(folder, source, pixel_um):
    """The folder of a Xenium run, version 2: cells in micrometres, their outlines, counts with a control, masks, the H&E."""
    import json

    import tifffile
    import zarr
    from test_readers_xenium import write_h5

    from delst_hf.data.readers.xenium_cells import _cell_names

    folder.mkdir()
    ids = np.column_stack([np.arange(12) * 1000 + 17, np.ones(12, int)]).astype(np.uint32)
    names, half = _cell_names(ids), 1 + np.arange(12) / 4
    x, y = (source.spots[["x", "y"]].to_numpy() * pixel_um).T
    columns = {"cell_id": names, "x_centroid": x, "y_centroid": y, "cell_area": (2 * half) ** 2, "nucleus_area": 9.0}
    pd.DataFrame(columns).to_parquet(folder / "cells.parquet", index=False)
    corners = [
        (names[i], x[i] + a * half[i], y[i] + b * half[i], i + 1)
        for i in range(12)
        for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1))
    ]
    table = pd.DataFrame(corners, columns=["cell_id", "vertex_x", "vertex_y", "label_id"])
    table.to_parquet(folder / "cell_boundaries.parquet", index=False)
    counts = np.hstack([source.counts, np.full((12, 1), 9)])
    control = "NegControlProbe_1"
    write_h5(folder / "cell_feature_matrix.h5", counts, names, [*source.gene_ids, control], [*source.symbols, control])
    with h5py.File(folder / "cell_feature_matrix.h5", "a") as file:
        file["matrix/features/genome"] = np.array(["GRCh38"] * 7, "S")
    told = {"pixel_size": pixel_um, "analysis_sw_version": "xenium-2.0.0.10"}
    (folder / "experiment.xenium").write_text(json.dumps(told))
    tifffile.imwrite(folder / "he_image.ome.tif", source.pixels, photometric="rgb", metadata={"axes": "YXS"})
    store = zarr.storage.ZipStore(folder / "cells.zarr.zip", mode="w")
    group = zarr.open_group(store, mode="w", zarr_format=2)
    summary = np.column_stack([x, y, columns["cell_area"], np.zeros(12), np.ones(12)])
    mask = np.zeros(source.pixels.shape[:2], np.uint32)
    for number, (row, column) in enumerate((source.spots[["y", "x"]].to_numpy()).astype(int), 1):
        mask[row - 2 : row + 3, column - 2 : column + 3] = number
    arrays = {"cell_id": ids, "cell_summary": summary, "masks/0": mask, "masks/1": mask}
    arrays |= {f"polygon_sets/{kind}/cell_index": np.arange(12) for kind in (0, 1)}
    for name, values in arrays.items():
        group.create_array(name, shape=values.shape, dtype=values.dtype)[...] = values
    group["cell_summary"].attrs["column_names"] = [
        "cell_centroid_x",
        "cell_centroid_y",
        "cell_area",
        "z_level",
        "nucleus_count",
    ]
    store.close()
    return names, columns["cell_area"]


@pytest.mark.parametrize("circles", [True, False])
def test_xenium_by_way_of_spatialdata_io(tmp_path, circles):
    """Cells as circles, and as labels whose outlines are named; they lie on hexagons here, and are no spots of Visium."""
    spatialdata_io = pytest.importorskip("spatialdata_io", reason="spatialdata-io is not installed")
    source = make_source()
    names, areas = write_bundle(tmp_path / "run", source, 0.2125)
    elements = {"nucleus_boundaries": False, "nucleus_labels": False, "transcripts": False, "morphology_mip": False}
    elements |= {"morphology_focus": False, "aligned_images": False, "gex_only": False}
    store = spatialdata_io.xenium(
        tmp_path / "run", cells_as_circles=circles, cells_boundaries=True, cells_labels=not circles, **elements
    )
    store.images["he_image"] = spatialdata_io.xenium_aligned_image(tmp_path / "run" / "he_image.ome.tif", None)
    store.write(tmp_path / "run.zarr")
    with pytest.raises(
        ValueError, match="mpp is unknown.*--mpp" if circles else "Join it to the outlines.*cell_boundaries"
    ):
        read(tmp_path / "run.zarr")
    slide = read(tmp_path / "run.zarr", mpp=0.2125, region=None if circles else "cell_boundaries", technology="Xenium")
    slide.validate()
    rows = slide.spots.loc[names]
    np.testing.assert_allclose(rows[["x", "y"]].to_numpy(float), source.spots[["x", "y"]], rtol=1e-6)
    np.testing.assert_allclose(rows["cell_area_um2"].to_numpy(float), areas, rtol=1e-6)
    counts, genes, _ = clean_genes(slide.counts, slide.genes, "S", "human", notes=slide.notes)
    assert counts.toarray().tolist() == source.counts.tolist() and len(genes) == 6
    assert slide.notes.genes_left_out == {"control probes": 1} and slide.technology == "Xenium"

"""SpatialData: outlines as rows, tables that do not fit their element; stores written by spatialdata itself."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from layouts import assert_same, make_source

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
    with pytest.raises(ValueError, match=r"not named as the shapes 'cells' are.*--region"):
        read(path, mpp=5.0, region="cells")

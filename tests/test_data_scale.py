"""The scale of a slide in every format: measured on its lattice, compared with whoever else states one, or refused."""

import json
import re
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import tifffile
from layouts import write_10x_h5
from PIL import Image

from delst_hf.cli import main
from delst_hf.data.part import PatchOptions, slide_row
from delst_hf.data.readers.anndata_visium import read_anndata
from delst_hf.data.readers.generic import read_generic
from delst_hf.data.readers.her2st import read_her2st
from delst_hf.data.readers.image import read_slide_image
from delst_hf.data.readers.legacy_st import read_legacy_st, read_matrix
from delst_hf.data.readers.stimage import read_stimage
from delst_hf.data.readers.visium import read_visium, read_visium_hd
from delst_hf.data.readers.xenium import read_xenium
from delst_hf.data.samples import check_one_slide
from delst_hf.data.scale import (
    Scale,
    Witness,
    check_scale,
    find_array,
    image_states,
    names_positions,
    settle_scale,
    unbelieved,
)
from delst_hf.data.understood import slide_page

SIDE = 900  # of every image of this file
SQUARES = np.array([(row, column) for row in range(2, 9) for column in range(3, 10)])
EVERY_SECOND = np.array([(row, column) for row in range(2, 12) for column in range(2, 14) if (row + column) % 2 == 0])
HEXAGONS = (np.sqrt(3) / 2, 0.5)


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(0)
    coarse = rng.integers(60, 200, (40, 40, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.NEAREST))


def lay(index, step, degrees=0.0, mirrored=False):
    """Places (spots, 2) y, x in the middle of the image; `step` is pixels per row and per column."""
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    places = (index - index.mean(0)) * step @ turn.T
    return places * ((1, -1) if mirrored else (1, 1)) + SIDE / 2


def counts_table(names):
    rng = np.random.default_rng(1)
    return pd.DataFrame(rng.poisson(2, (len(names), 5)) + 1, index=names, columns=[f"GENE{i}" for i in range(5)])


def write_legacy(folder, index, places, image, names=None):
    """The three files of STUtility."""
    names = names or [f"{column}x{row}" for row, column in index]
    counts_table(names).to_csv(folder / "counts.tsv", sep="\t")
    table = {"x": index[:, 1], "y": index[:, 0], "pixel_x": places[:, 1], "pixel_y": places[:, 0], "selected": 1}
    pd.DataFrame(table).to_csv(folder / "spots.tsv", sep="\t", index=False)
    Image.fromarray(image).save(folder / "he.png")
    return folder / "counts.tsv", folder / "spots.tsv", folder / "he.png"


class Outs:
    """The folder outs of Space Ranger."""

    def __init__(self, folder, index, places, image, diameter, hires=1.0, more=None):
        self.spots = pd.DataFrame({"x": places[:, 1]}, index=[f"BC{i:03d}-1" for i in range(len(index))])
        self.counts = counts_table(self.spots.index).to_numpy()
        self.gene_ids, self.symbols = [f"ENSG{i:011d}" for i in range(5)], [f"GENE{i}" for i in range(5)]
        spatial = folder / "spatial"
        spatial.mkdir(parents=True)
        write_10x_h5(folder / "filtered_feature_bc_matrix.h5", self, extra_feature=False)
        columns = {"in_tissue": 1, "array_row": index[:, 0], "array_col": index[:, 1],
                   "pxl_row_in_fullres": places[:, 0] / hires, "pxl_col_in_fullres": places[:, 1] / hires}  # fmt: skip
        pd.DataFrame({"barcode": self.spots.index, **columns}).to_csv(spatial / "tissue_positions.csv", index=False)
        factors = {"tissue_hires_scalef": hires, "tissue_lowres_scalef": hires / 3, "spot_diameter_fullres": diameter}
        (spatial / "scalefactors_json.json").write_text(json.dumps(factors | (more or {})))
        Image.fromarray(image).save(spatial / "tissue_hires_image.png")
        self.folder = folder


def make_adata(index, places, image, diameter):
    adata = anndata.AnnData(
        sp.csr_matrix(np.ones((len(index), 3), np.float32)),
        obs=pd.DataFrame({"array_row": index[:, 0], "array_col": index[:, 1]}, index=[f"S{i}" for i in range(len(index))]),
        var=pd.DataFrame(index=["A", "B", "C"]),
    )  # fmt: skip
    adata.obsm["spatial"] = places[:, ::-1].copy()
    factors = {"tissue_hires_scalef": 1.0} | ({"spot_diameter_fullres": diameter} if diameter else {})
    adata.uns["spatial"] = {"S": {"images": {"hires": image}, "scalefactors": factors}}
    return adata


# --- arrays of legacy Spatial Transcriptomics: squares of 200 um, a checkerboard of 150 um -----------------------------


@pytest.mark.parametrize("degrees", [0, 20, 90])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    ("index", "step", "mpp"),
    [(SQUARES, 60.0, 200 / 60), (EVERY_SECOND, 40.0, 150 / (40 * 2**0.5)),
     (EVERY_SECOND, (44.0, 40.0), 150 / np.hypot(44, 40))],
)  # fmt: skip
def test_legacy_arrays_at_any_angle(tmp_path, picture, index, step, mpp, degrees, mirrored):
    files = write_legacy(tmp_path, index, lay(index, step, degrees, mirrored), picture)
    slide = read_legacy_st(*files)
    slide.validate()
    assert slide.mpp == pytest.approx(mpp)
    assert slide.spot_um == 100
    # her2st has the same tables in other places.
    root = tmp_path / "data"
    for name, file in (("ST-cnts/Z1.tsv", files[0]), ("ST-spotfiles/Z1_selection.tsv", files[1]),
                       ("ST-imgs/Z/Z1/he.png", files[2])):  # fmt: skip
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(file.read_bytes())
    assert read_her2st(tmp_path, "Z1").mpp == pytest.approx(mpp)
    # STimage-1K4M knows array positions by the names of spots only.
    names = [f"S1_{column}x{row}" for row, column in index]
    for part in ("coord", "gene_exp", "image"):
        (tmp_path / "ST" / part).mkdir(parents=True)
    y, x = lay(index, step, degrees, mirrored).T
    pd.DataFrame({"yaxis": y, "xaxis": x, "r": 50 / mpp}, index=names).to_csv(tmp_path / "ST/coord/S1_coord.csv")
    counts_table(names).to_csv(tmp_path / "ST/gene_exp/S1_count.csv")
    (tmp_path / "ST/image/S1.png").write_bytes(files[2].read_bytes())
    slide = read_stimage(tmp_path, "S1")
    slide.validate()
    assert slide.mpp == pytest.approx(mpp)


def test_the_radius_of_another_array_is_refused(tmp_path, picture):
    """STimage-1K4M had the radius of a slide of 2,000 spots as if these were 200 um apart."""
    for part in ("coord", "gene_exp", "image"):
        (tmp_path / "ST" / part).mkdir(parents=True)
    names = [f"S1_{column}x{row}" for row, column in EVERY_SECOND]
    y, x = lay(EVERY_SECOND, 40.0).T
    pd.DataFrame({"yaxis": y, "xaxis": x, "r": 40.0 / 4}, index=names).to_csv(tmp_path / "ST/coord/S1_coord.csv")
    counts_table(names).to_csv(tmp_path / "ST/gene_exp/S1_count.csv")
    Image.fromarray(picture).save(tmp_path / "ST/image/S1.png")
    with pytest.raises(ValueError, match=r"(?s)disagree by more than 5%.*checkerboard, 150 um.*twice the radius r"):
        read_stimage(tmp_path, "S1").validate()


def test_a_legacy_table_on_no_known_array_is_refused_with_what_was_found(tmp_path, picture):
    files = write_legacy(tmp_path, SQUARES, lay(SQUARES, (60.0, 45.0)), picture)
    with pytest.raises(
        ValueError, match=r"steps of 45\.0 and 60\.0 px at 90 degrees; known arrays are squares of 200 um.*--mpp"
    ):
        read_legacy_st(*files)
    assert read_legacy_st(*files, mpp=0.5).mpp == 0.5
    few = write_legacy(tmp_path, SQUARES[:3], lay(SQUARES[:3], 60.0), picture)
    with pytest.raises(ValueError, match="too few spots to measure the array's pitch"):
        read_legacy_st(*few)


MATRICES = {
    "rows": np.array([[60, 0, 0], [0, 60, 0], [90, 120, 1.0]]),
    "columns": np.array([[60, 0, 0], [0, 60, 0], [90, 120, 1.0]]).T,
    "turned": np.array([[48, 36, 0], [-36, 48, 0], [500, 50, 1.0]]),
    "mirrored": np.array([[-60, 0, 0], [0, 60, 0], [800, 90, 1.0]]),
    "sheared": np.array([[60, 1.5, 0], [0, 60, 0], [90, 80, 1.0]]),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize(
    "layout",
    ["%g %g %g %g %g %g %g %g %g\n", "%g,%g,%g\n%g,%g,%g\n%g,%g,%g\n", "[[%g, %g, %g], [%g, %g, %g], [%g, %g, %g]]"],
)
def test_positions_by_the_nine_numbers_of_a_matrix(tmp_path, picture, name, layout):  # fmt: skip
    rng = np.random.default_rng(0)
    xy = SQUARES[:, ::-1] + rng.normal(0, 0.05, SQUARES.shape).round(3)
    counts, _, image = write_legacy(tmp_path, SQUARES, SQUARES, picture, [f"{x:.3f}x{y:.3f}" for x, y in xy])
    (tmp_path / "m.txt").write_text(layout % tuple(MATRICES[name].ravel()))
    slide = read_legacy_st(counts, tmp_path / "m.txt", image)
    slide.validate()
    by_rows = MATRICES[name].T if name == "columns" else MATRICES[name]
    expected = np.column_stack([xy, np.ones(len(xy))]) @ by_rows
    np.testing.assert_allclose(slide.spots[["x", "y"]], expected[:, :2], rtol=1e-9)
    assert slide.mpp == pytest.approx(200 / 60, rel=1e-3)
    assert slide.spots["array_col"].tolist() == SQUARES[:, 1].tolist()


@pytest.mark.parametrize("numbers", ["1 0 0 0 1 0 0.1 0 2", "1 2 0 2 4 0 0 0 1", "nan 0 0 0 1 0 0 0 1"])
def test_nine_numbers_that_are_no_affine_matrix_are_refused(tmp_path, numbers):
    (tmp_path / "m.txt").write_text(numbers)
    with pytest.raises(ValueError, match=r"m\.txt: .* is not an affine matrix. Allowed: nine numbers"):
        read_matrix(tmp_path / "m.txt")
    (tmp_path / "m.txt").write_text("1 2 3 4")
    assert read_matrix(tmp_path / "m.txt") is None


# --- AnnData: the lattice says which array it is -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "step", "diameter", "technology", "mpp"),
    [
        (SQUARES, 60.0, 30.0, "Spatial Transcriptomics", 200 / 60),
        (EVERY_SECOND, 40.0, 37.7, "Spatial Transcriptomics", 150 / (40 * 2**0.5)),
        (EVERY_SECOND, (60 * HEXAGONS[0], 60 * HEXAGONS[1]), 39.0, "Visium", 100 / 60),
    ],
)
def test_the_array_of_an_anndata_is_that_of_its_lattice(tmp_path, picture, index, step, diameter, technology, mpp):
    make_adata(index, lay(index, step, 33), picture, diameter).write_h5ad(tmp_path / "a.h5ad")
    slide = read_anndata(tmp_path / "a.h5ad")
    slide.validate()
    assert (slide.technology, slide.mpp) == (technology, pytest.approx(mpp))


# Places, pixels per row and column for neighbours one pixel apart, micrometres between neighbours, diameter of a spot.
ARRAYS = {
    "Visium": (EVERY_SECOND, np.array(HEXAGONS), 100.0, 65.0),
    "legacy": (SQUARES, np.ones(2), 200.0, 100.0),
    "legacy of 2,000": (EVERY_SECOND, np.array([111.29, 100.0]) / np.hypot(111.29, 100.0), 150.0, 100.0),
}


def read_as(form, folder, index, places, image, diameter_px, technology=""):
    """Write a slide and read it by a reader; "by names" has no array positions but in the names of its spots."""
    named = form.endswith("by names")
    names = [f"{column}x{row}" if named else f"S{i}" for i, (row, column) in enumerate(index)]
    known = {} if named else {"array_row": index[:, 0], "array_col": index[:, 1]}
    if form == "st":
        return read_legacy_st(*write_legacy(folder, index, places, image))
    if form == "visium":
        outs = Outs(folder / "outs", index, places, image, diameter_px)
        return read_visium(outs.folder, technology=technology or "Visium")
    if form.startswith("table"):
        counts_table(names).to_csv(folder / "counts.csv")
        table = pd.DataFrame({"x": places[:, 1], "y": places[:, 0], **known}, index=names)
        table.to_csv(folder / "spots.csv", index_label="barcode")
        Image.fromarray(image).save(folder / "he.png")
        files = (folder / name for name in ("he.png", "counts.csv", "spots.csv"))
        return read_generic(*files, technology="" if named else technology)
    adata = make_adata(index, places, image, diameter_px)
    adata.obs = pd.DataFrame(known, index=names)
    adata.write_h5ad(folder / "a.h5ad")
    return read_anndata(folder / "a.h5ad")


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("form", ["anndata", "anndata by names", "table", "table by names", "visium"])
def test_any_angle_and_pitch_through_the_readers(tmp_path, picture, array, form):
    """Drawn at random: the scale is micrometres over pixels from neighbour to neighbour, and half of it is refused as --mpp."""
    index, unit, between, diameter = ARRAYS[array]
    technology = "Visium" if array == "Visium" else "Spatial Transcriptomics"
    rng = np.random.default_rng(7)
    for turn in range(3):
        pitch, folder = rng.uniform(30, 48), tmp_path / str(turn)
        folder.mkdir()
        places = lay(index, pitch * unit, rng.uniform(0, 360), rng.random() < 0.5)
        slide = read_as(form, folder, index, places, picture, diameter * pitch / between, technology)
        slide.validate()
        assert slide.mpp == pytest.approx(between / pitch, rel=1e-3)
        slide.scale = Scale(slide.mpp / 2, Witness("given", "--mpp", (slide.mpp / 2,)), slide.scale.witnesses)
        with pytest.raises(ValueError, match=r"(?s)disagree by more than 5%.*the lattice of the spots.*Correct --mpp"):
            slide.validate()


@pytest.mark.parametrize("form", ["st", "anndata", "table by names"])
def test_a_chip_of_fifty_channels_is_refused_by_every_reader(tmp_path, picture, form):
    """DBiT-seq names its places as legacy arrays do, 1x1 to 50x50, and a crossing is half as wide as the pitch."""
    index = np.mgrid[1:51, 1:51].reshape(2, -1).T
    told = r"squares of 16\.0 px and 50 x 50 positions, more than the array of 1,007 spots has.*--mpp"
    with pytest.raises(ValueError, match=told):
        read_as(form, tmp_path, index, lay(index, 16.0), picture, 8.0)


def test_squares_that_are_of_no_known_array_are_refused(tmp_path, picture):
    """Crossings of channels of 25 um, 50 um apart, whose tool states the diagonal of a crossing."""
    adata = make_adata(SQUARES, lay(SQUARES, 50.0), picture, 25 * 2**0.5)
    adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"lie on squares of 50\.0 px, which identifies no known array: .*--mpp"):
        read_anndata(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"squares of 50\.0 px"):
        read_anndata(tmp_path / "a.h5ad", technology="Visium")
    assert read_anndata(tmp_path / "a.h5ad", mpp=1.0).mpp == 1.0
    assert read_anndata(tmp_path / "a.h5ad", technology="Spatial Transcriptomics").mpp == pytest.approx(4.0)
    adata.obs_names = [f"{column}x{row}" for row, column in SQUARES]  # as spots of legacy arrays are named
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert read_anndata(tmp_path / "a.h5ad").mpp == pytest.approx(4.0)


# --- the layout of Space Ranger ------------------------------------------------------------------------------------------


def test_squares_in_the_layout_of_visium_are_refused_until_the_scale_is_given(tmp_path, picture, capsys):
    outs = Outs(tmp_path / "outs", SQUARES, lay(SQUARES, 50.0), picture, 25 * 2**0.5).folder
    command = ["prepare", "visium", str(outs), "--output", str(tmp_path / "d"), "--quiet"]
    assert main(command) != 0
    told = capsys.readouterr().err
    assert "squares of 50.0 px, which is not the lattice of Visium (hexagonal, 100 um)" in told and "--mpp" in told
    assert main([*command, "--mpp", "1"]) == 0
    slide = read_visium(outs, technology="Spatial Transcriptomics")  # a legacy array in this layout
    assert (slide.mpp, slide.spot_um) == (pytest.approx(4.0), 100.0)


def test_bins_that_are_not_squares_are_refused(tmp_path, picture):
    square = tmp_path / "HD/outs/binned_outputs/square_016um"
    Outs(square, EVERY_SECOND, lay(EVERY_SECOND, (60 * HEXAGONS[0], 30)), picture, 60.0)
    with pytest.raises(ValueError, match=r"hexagons of 60\.0 px, which is not the lattice of Visium HD"):
        read_visium_hd(tmp_path / "HD", bin_um=16)


def test_a_bin_size_that_the_scale_factors_contradict_is_refused(tmp_path, picture):
    square = tmp_path / "HD/outs/binned_outputs/square_016um"
    Outs(square, SQUARES, lay(SQUARES, 32.0, 2), picture, 32.0, more={"microns_per_pixel": 0.25, "bin_size_um": 16})
    slide = read_visium_hd(tmp_path / "HD", bin_um=16)
    with pytest.raises(
        ValueError, match=r"(?s)16 um = 32\.0 px.*microns_per_pixel of scalefactors_json\.json: 0\.2500 \(DIS"
    ):
        slide.validate()


def test_stated_diameters_of_55_and_65_um_are_both_of_visium(tmp_path, picture):
    for i, (diameter, right) in enumerate(((39.0, True), (33.0, True), (80.0, False))):
        slide = read_visium(
            Outs(tmp_path / str(i), EVERY_SECOND, lay(EVERY_SECOND, (60 * HEXAGONS[0], 30)), picture, diameter).folder
        )
        assert (slide.mpp, slide.spot_um) == (pytest.approx(100 / 60), 55)
        if right:
            slide.validate()
        else:
            with pytest.raises(ValueError, match=r"spot_diameter_fullres \(65 or 55 um = 80.0 px\)"):
                slide.validate()  # fmt: skip


def test_the_user_is_contradicted_by_the_lattice_alone(tmp_path, picture, capsys, caplog):
    outs = Outs(tmp_path / "outs", EVERY_SECOND, lay(EVERY_SECOND, (60 * HEXAGONS[0], 30)), picture, 39.0).folder
    command = ["prepare", "visium", str(outs), "--output", str(tmp_path / "d"), "--quiet", "--mpp", "0.5"]
    assert main(command) != 0
    told = capsys.readouterr().err
    assert "0.5000 um per full-resolution pixel, from --mpp" in told and "100 um = 60.0 px): 1.6667 (DISAGREES)" in told
    assert "add --allow-scale" in told
    assert main([*command, "--allow-scale"]) == 0
    assert "the scale used is 0.5000" in caplog.text
    tifffile.imwrite(
        tmp_path / "he.tif", picture, photometric="rgb", resolution=(20_000, 20_000), resolutionunit="CENTIMETER"
    )
    command = [*command[:-2], "--image", str(tmp_path / "he.tif"), "--overwrite"]
    assert main(command) != 0  # 0.5 um by the tag, 1.67 by the lattice
    assert "XResolution of he.tif: 0.5000 (DISAGREES)" in capsys.readouterr().err
    assert main([*command, "--mpp", "1.6667"]) == 0


# --- an image of another size ----------------------------------------------------------------------------------------------


def test_an_image_of_another_size_than_positions_refer_to(tmp_path, picture):
    small = np.asarray(Image.fromarray(picture).resize((SIDE // 2, SIDE // 2)))
    outs = Outs(
        tmp_path / "outs", EVERY_SECOND, lay(EVERY_SECOND, (60 * HEXAGONS[0], 30)) / 2, small, 39.0, hires=0.5
    ).folder
    Image.fromarray(picture).save(tmp_path / "full.png")
    full = read_visium(outs, image=tmp_path / "full.png")
    full.validate()
    Image.fromarray(picture).resize((2 * SIDE, 2 * SIDE)).save(tmp_path / "double.png")
    with pytest.raises(
        ValueError, match=rf"image of {SIDE} x {SIDE} px.*double\.png has 1800 x 1800.*add --image-scale 2\."
    ):
        read_visium(outs, image=tmp_path / "double.png")
    double = read_visium(outs, image=tmp_path / "double.png", image_scale=2)
    double.validate()
    np.testing.assert_allclose(double.spots["x"], 2 * full.spots["x"])
    assert double.mpp == pytest.approx(full.mpp / 2)
    Image.fromarray(picture[: SIDE // 2]).save(tmp_path / "half.png")
    with pytest.raises(ValueError, match=r"half\.png has 900 x 450, which is cropped or of another slide"):
        read_visium(outs, image=tmp_path / "half.png")
    Image.fromarray(small).resize((200, 200)).save(outs / "spatial/tissue_lowres_image.png")
    with pytest.raises(
        ValueError, match=r"tissue_lowres_image\.png, 200 x 200, divided by tissue_lowres_scalef.*Correct the scale"
    ):
        read_visium(outs)


def test_an_image_of_another_size_than_an_anndata_says(tmp_path, picture):
    adata = make_adata(EVERY_SECOND, lay(EVERY_SECOND, (60 * HEXAGONS[0], 30)), picture[::3, ::3], 39.0)
    adata.uns["spatial"]["S"]["scalefactors"]["tissue_hires_scalef"] = 1 / 3
    adata.write_h5ad(tmp_path / "a.h5ad")
    read_anndata(tmp_path / "a.h5ad").validate()
    Image.fromarray(picture[::2, ::2]).save(tmp_path / "half.png")
    with pytest.raises(ValueError, match=r"positions refer to an image of 900 x 900.*add --image-scale 0\.5\."):
        read_anndata(tmp_path / "a.h5ad", image=tmp_path / "half.png")
    slide = read_anndata(tmp_path / "a.h5ad", image=tmp_path / "half.png", image_scale=0.5)
    slide.validate()
    assert slide.mpp == pytest.approx(2 * 100 / 60)


# --- tags ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mpp", [1.0, 25.4 / 72, 0.2646, 25400 / 72, 10_000.0, 25.4 / 96, 84.667])
def test_placeholders_are_known(mpp):
    assert unbelieved(mpp) == "a placeholder"
    with pytest.raises(ValueError, match="is a placeholder that programs write for an unknown scale.*--mpp"):
        settle_scale("S", [Witness("stated", "PhysicalSizeX of he.tif", (mpp,))])


@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.2528, 0.34, 0.2125, 0.75, 2.0])
def test_scales_of_scanners_are_no_placeholders(mpp):
    assert unbelieved(mpp) == ""
    assert settle_scale("S", [Witness("stated", "MPP of he.svs", (mpp,))]).mpp == mpp


def table_files(folder, picture, index, places, technology_names=False):
    names = [f"{c}x{r}" for r, c in index] if technology_names else [f"S{i}" for i in range(len(index))]
    counts_table(names).to_csv(folder / "counts.csv")
    pd.DataFrame({"barcode": names, "x": places[:, 1], "y": places[:, 0]}).to_csv(folder / "xy.csv", index=False)
    return folder / "counts.csv", folder / "xy.csv"


def ome(path, picture, **sizes):
    tifffile.imwrite(path, picture, photometric="rgb", tile=(128, 128), ome=True, metadata={"axes": "YXS", **sizes})
    return path


def test_a_placeholder_in_a_tiff_gives_way_to_the_lattice_and_is_refused_alone(tmp_path, picture, caplog):
    he = ome(tmp_path / "he.ome.tif", picture, PhysicalSizeX=1.0, PhysicalSizeY=1.0)
    rest = table_files(tmp_path, picture, EVERY_SECOND, lay(EVERY_SECOND, (60 * HEXAGONS[0], 30), 12))
    slide = read_generic(he, *rest)
    slide.validate()
    assert slide.mpp == pytest.approx(100 / 60)
    assert "PhysicalSizeX of he.ome.tif: 1.0000 um per pixel of the image is a placeholder" in caplog.text
    rest = table_files(tmp_path, picture, SQUARES, np.random.default_rng(0).uniform(100, 800, SQUARES.shape))
    with pytest.raises(ValueError, match=r"PhysicalSizeX of he\.ome\.tif: 1\.0000 is a placeholder.*--mpp"):
        read_generic(he, *rest)
    assert read_generic(he, *rest, mpp=1.0).mpp == 1.0
    with pytest.raises(ValueError, match=r"1\.0000 is a placeholder.*--mpp"):
        read_slide_image(he)


@pytest.mark.parametrize(
    ("name", "tags", "tag"),
    [
        ("he.ome.tif", {"metadata": {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "mm"}}, "PhysicalSizeX"),
        ("he.tif", {"resolution": (20, 20), "resolutionunit": "CENTIMETER", "metadata": None}, "XResolution"),
        ("ij.tif", {"imagej": True, "resolution": (2, 2), "metadata": {"unit": "mm"}}, "XResolution in ImageJ's unit"),
        ("small.tif", {"resolution": (1e8, 1e8), "resolutionunit": "CENTIMETER", "metadata": None}, "XResolution"),
    ],
)  # fmt: skip
def test_a_scale_that_no_microscope_has_is_told_and_not_believed(tmp_path, picture, caplog, name, tags, tag):
    tifffile.imwrite(tmp_path / name, picture, photometric="rgb", **tags)
    rest = table_files(tmp_path, picture, EVERY_SECOND, lay(EVERY_SECOND, (60 * HEXAGONS[0], 30), 12))
    slide = read_generic(tmp_path / name, *rest)
    slide.validate()
    assert slide.mpp == pytest.approx(100 / 60)
    told = f"{tag} of {name}: {'0.0001' if name == 'small.tif' else '500.0000'} um per pixel of the image is not the scale of a"
    assert told in caplog.text
    page = slide_page(slide_row(slide, slide.thumbnail(), PatchOptions()), len(slide.spots))
    assert re.search(rf"witnesses: .*{tag} of {name} [\d.e-]+ \(not the scale of a microscope\)", page)
    with pytest.raises(ValueError, match=rf"mpp is unknown.*{tag} of {name}: .*not the scale of a microscope.*--mpp"):
        read_slide_image(tmp_path / name)
    caplog.clear()
    assert read_slide_image(tmp_path / name, mpp=2.0).mpp == 2.0 and "not the scale of a microscope" in caplog.text


def test_a_placeholder_of_a_reduced_image_stays_one():
    image = SimpleNamespace(scale_statements=[("XResolution", 352.8), ("PhysicalSizeX", 0.5)])
    first, second = image_states(image, "hires.tif", 0.04)
    assert first.placeholder and not second.placeholder and second.mpp == (0.02,)


def test_tags_that_disagree_are_all_listed(tmp_path, picture):
    rest = table_files(tmp_path, picture, SQUARES, np.random.default_rng(0).uniform(100, 800, SQUARES.shape))
    he = ome(tmp_path / "he.ome.tif", picture, PhysicalSizeX=0.5, PhysicalSizeY=0.6)
    with pytest.raises(
        ValueError, match=r"(?s)PhysicalSizeX of he\.ome\.tif.*PhysicalSizeY of he\.ome\.tif: 0\.6000 \(DIS.*--mpp"
    ):
        read_generic(he, *rest).validate()
    read_generic(he, *rest, mpp=0.5).validate()
    ome(he, picture, PhysicalSizeX=500.0, PhysicalSizeXUnit="nm", PhysicalSizeY=0.5)
    assert read_generic(he, *rest).mpp == pytest.approx(0.5)
    tifffile.imwrite(tmp_path / "ij.tif", picture, imagej=True, resolution=(4, 4), metadata={"unit": "um"})
    assert read_generic(tmp_path / "ij.tif", *rest).mpp == pytest.approx(0.25)
    tifffile.imwrite(tmp_path / "svs.tif", picture, photometric="rgb", description="Aperio |MPP = 0.2520|AppMag = 40",
                     resolution=(72, 72), resolutionunit="INCH")  # fmt: skip
    assert read_generic(tmp_path / "svs.tif", *rest).mpp == pytest.approx(0.252)


# --- Xenium ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def xenium(tmp_path):
    """Transcripts of 450 x 450 um."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "out"
    folder.mkdir()
    x, y = rng.uniform(0, 450, (2, 3000)).astype(np.float32)
    pd.DataFrame(
        {"feature_name": rng.choice(["A", "B"], 3000), "x_location": x, "y_location": y, "qv": 40.0}
    ).to_parquet(folder / "transcripts.parquet")
    (folder / "experiment.xenium").write_text(json.dumps({"pixel_size": 0.5}))
    return folder


def test_a_placeholder_is_not_believed_against_the_field_of_the_transcripts(tmp_path, picture, xenium, caplog):
    slide = read_xenium(xenium, ome(tmp_path / "he.ome.tif", picture, PhysicalSizeX=1.0, PhysicalSizeY=1.0), grid_um=50)
    slide.validate()
    assert (slide.mpp, slide.spots["x"].max()) == (0.5, 850)
    assert "is a placeholder" in caplog.text
    # 900 px of 0.8 um would be 720 um: the transcripts say 450.
    slide = read_xenium(xenium, ome(tmp_path / "b.ome.tif", picture, PhysicalSizeX=0.8, PhysicalSizeY=0.8), grid_um=50)
    with pytest.raises(
        ValueError, match=r"(?s)pixel_size of experiment\.xenium.*PhysicalSizeX of b\.ome\.tif: 0\.8000 \(DISAGREES"
    ):
        slide.validate()
    # An image of half as many pixels, which says so.
    half = ome(tmp_path / "c.ome.tif", picture[::2, ::2], PhysicalSizeX=0.99, PhysicalSizeY=0.99)
    assert read_xenium(xenium, half, grid_um=50).mpp == pytest.approx(0.99)
    Image.fromarray(picture[::2, ::2]).save(tmp_path / "c.png")
    with pytest.raises(ValueError, match=r"c\.png would be 225 x 225 um, but transcripts reach to 425 x 425 um.*--mpp"):
        read_xenium(xenium, tmp_path / "c.png", grid_um=50)


def test_the_field_of_the_morphology_image_tells_the_scale(tmp_path, picture, xenium):
    tifffile.imwrite(xenium / "morphology.ome.tif", np.zeros((3, 1000, 1000), np.uint16), metadata={"axes": "ZYX"})
    Image.fromarray(picture[::2, ::2]).save(tmp_path / "he.png")
    slide = read_xenium(xenium, tmp_path / "he.png", grid_um=50)
    slide.validate()
    assert slide.mpp == pytest.approx(1000 * 0.5 / 450)
    Image.fromarray(picture[:300]).save(tmp_path / "cut.png")
    with pytest.raises(
        ValueError, match=r"cut\.png \(900 x 300 px\) does not show the field of morphology\.ome\.tif.*--alignment"
    ):
        read_xenium(xenium, tmp_path / "cut.png", grid_um=50)


def test_an_alignment_is_compared_with_the_tags_and_may_not_stretch(tmp_path, picture, xenium):
    he = ome(tmp_path / "he.ome.tif", picture, PhysicalSizeX=0.4, PhysicalSizeY=0.4)
    angle = np.radians(30)
    turn = np.array([[np.cos(angle), np.sin(angle)], [np.sin(angle), -np.cos(angle)]])  # turned and mirrored
    for scale, right in ((0.8, True), (1.4, False)):
        matrix = np.vstack([np.column_stack([scale * turn, [100, 500]]), [0, 0, 1]])
        np.savetxt(tmp_path / "a.csv", matrix, delimiter=",")
        slide = read_xenium(xenium, he, grid_um=50, alignment=tmp_path / "a.csv")
        assert slide.mpp == pytest.approx(scale * 0.5)
        x, y = slide.spots.iloc[0][["x", "y"]]
        row, column = slide.spots.iloc[0][["array_row", "array_col"]]
        np.testing.assert_allclose(matrix @ [x, y, 1], [(column + 0.5) * 100, (row + 0.5) * 100, 1])
        if not right:
            with pytest.raises(ValueError, match=r"(?s)the alignment of a\.csv.*PhysicalSizeX.*DISAGREES"):
                check_scale("S", slide.scale)
        else:
            check_scale("S", slide.scale)
    np.savetxt(tmp_path / "a.csv", np.diag([1.0, 1.2, 1.0]), delimiter=",")
    with pytest.raises(ValueError, match=r"a\.csv stretches the image by 1\.20 in one direction"):
        read_xenium(xenium, he, alignment=tmp_path / "a.csv")


# --- witnesses ---------------------------------------------------------------------------------------------------------------


def test_the_safest_witness_is_believed_and_all_are_kept():
    given, lattice = Witness("given", "--mpp", (0.5,)), Witness("geometry", "the lattice", (0.51,))
    tag, spots = Witness("stated", "a tag", (0.49,)), Witness("spots", "r", (0.6, 0.5))
    everything = [spots, tag, lattice, given]
    for expected in (given, lattice, tag, spots):
        scale = settle_scale("S", everything)
        assert (scale.chosen, scale.mpp) == (expected, expected.mpp[0])
        everything.remove(expected)
    with pytest.raises(
        ValueError, match="mpp is unknown: nothing states it. Give the micrometres per pixel of the image"
    ):
        settle_scale("S", [])


@pytest.mark.parametrize("factor", [0.9, 0.96, 1.0, 1.04, 1.1])
def test_five_per_cent_is_the_border(factor):
    witnesses = (Witness("geometry", "lattice", (0.5,)), Witness("stated", "tag", (0.5 * factor,)))
    scale = Scale(0.5, witnesses[0], witnesses)
    if abs(factor - 1) < 0.05:
        check_scale("S", scale)
    else:
        with pytest.raises(ValueError, match=r"disagree by more than 5%"):
            check_scale("S", scale)
        check_scale("S", scale, allow=True)


def test_names_that_hold_array_positions():
    assert names_positions(["10x21", "2x3"]).tolist() == [[21, 10], [3, 2]]
    assert names_positions(["Human_A1_10x21", "B_2.5x3"]).tolist() == [[21, 10], [3, 2.5]]
    assert names_positions(["7x8_1", "7x9_1"]).tolist() == [[8, 7], [9, 7]]
    assert names_positions(["AAAC-1", "2x3"]) is None and names_positions([]) is None


@pytest.mark.parametrize("form", ["anndata", "anndata by names", "table by names"])
def test_squares_that_nothing_names_are_taken_for_the_legacy_array_aloud(tmp_path, picture, caplog, form):
    """Crossings of 25 um, 50 um apart, on 33 x 33 places look like spots of 100 um, 200 um apart."""
    index = np.mgrid[2:35, 2:35].reshape(2, -1).T
    slide = read_as(form, tmp_path, index, lay(index, 24.0), picture, 12.0)
    slide.validate()
    told = "Squares of 33 x 33 positions are taken for legacy Spatial Transcriptomics"
    assert told in caplog.text and "--technology 'Spatial Transcriptomics'" in caplog.text
    assert [told in one for one in slide.notes.remarks] == [True]
    page = slide_page(slide_row(slide, slide.thumbnail(), PatchOptions()), len(slide.spots))
    assert f"remark   Nothing states the array of the spots. {told}" in page


def test_nothing_is_assumed_of_an_array_that_is_named(tmp_path, picture, caplog):
    index = np.mgrid[2:35, 2:35].reshape(2, -1).T
    slide = read_as("anndata", tmp_path, index, lay(index, 24.0), picture, 12.0)
    caplog.clear()
    slide = read_anndata(tmp_path / "a.h5ad", technology="Spatial Transcriptomics")
    slide.validate()
    assert not slide.notes.remarks and "taken for" not in caplog.text
    slide = read_anndata(tmp_path / "a.h5ad", technology="DBiT-seq", mpp=50 / 24)
    slide.validate()
    assert slide.mpp == 50 / 24 and not slide.notes.remarks


def test_places_beyond_the_legacy_array_are_of_another_chip(tmp_path, picture):
    """Tissue on one corner of a chip of fifty channels: 31 x 31 places, of numbers that no legacy spot has."""
    index = np.mgrid[18:49, 18:49].reshape(2, -1).T
    for form in ("anndata", "anndata by names", "table by names"):
        with pytest.raises(ValueError, match=r"squares of 24\.0 px.*--mpp"):
            read_as(form, tmp_path, index, lay(index, 24.0), picture, 12.0)


def test_a_slide_of_ones_own_is_compared_too(picture):
    from test_slide import make_slide

    index = EVERY_SECOND
    y, x = lay(index, (60 * HEXAGONS[0], 30), 10).T
    spots = pd.DataFrame({"x": x, "y": y, "array_row": index[:, 0], "array_col": index[:, 1]})
    options = {"image": picture, "spots": spots, "counts": sp.csr_matrix(np.ones((len(x), 4))), "technology": "Visium"}
    slide = make_slide(mpp=100 / 60, **options)
    slide.validate()
    assert slide.notes.scale_from == "mpp of the slide" and len(slide.notes.scale_witnesses) == 2
    with pytest.raises(ValueError, match=r"(?s)mpp of the slide.*Visium: hexagonal.*--allow-scale"):
        make_slide(mpp=0.5, **options).validate()
    make_slide(mpp=0.5, **options).validate(allow_scale=True)
    make_slide(mpp=0.5, **{**options, "technology": "Xenium"}).validate()
    assert find_array(None, "Visium") is None


# --- SpatialData -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_store(tmp_path, picture):
    pytest.importorskip("spatialdata", reason="the optional extra spatialdata is not installed")
    import spatialdata
    from spatialdata.models import Image2DModel, ShapesModel, TableModel

    def make(image_systems, shape_systems, places, channels=("r", "g", "b"), radius=19.5, names=None, **columns):
        image = Image2DModel.parse(np.moveaxis(picture, -1, 0), dims=("c", "y", "x"), c_coords=list(channels),
                                   transformations=image_systems)  # fmt: skip
        shapes = ShapesModel.parse(places[:, ::-1].copy(), geometry=0, radius=radius, transformations=shape_systems)
        obs = pd.DataFrame({"region": pd.Categorical(["spots"] * len(places)), "spot": range(len(places)), **columns},
                           index=names or [f"S{i}" for i in range(len(places))])  # fmt: skip
        var = pd.DataFrame(index=["ACTB", "GAPDH", "ERBB2"])
        table = anndata.AnnData(sp.csr_matrix(np.ones((len(places), 3), np.float32)), obs=obs, var=var)
        table = TableModel.parse(table, region="spots", region_key="region", instance_key="spot")
        store = spatialdata.SpatialData(images={"he": image}, shapes={"spots": shapes}, tables={"table": table})
        store.write(tmp_path / "s.zarr")
        return tmp_path / "s.zarr"

    return make


@pytest.mark.filterwarnings("ignore")
def test_coordinate_systems_by_name_and_affine_transformations(make_store):
    from spatialdata.transformations import Affine, Identity, Scale

    from delst_hf.data.readers.spatialdata_zarr import read_spatialdata

    places = lay(EVERY_SECOND, (60 * HEXAGONS[0], 30))
    angle = np.radians(40)
    turn = np.array([[np.cos(angle), np.sin(angle), 80], [np.sin(angle), -np.cos(angle), 900], [0, 0, 1]])
    affine = Affine(turn, input_axes=("x", "y"), output_axes=("x", "y"))
    store = make_store(
        {"S1": affine, "um": Identity()}, {"S1": affine, "half": Scale([0.5, 0.5], axes=("x", "y"))}, places
    )
    slide = read_spatialdata(store, spot_um=55)  # one shared system, whatever its name
    slide.validate()
    np.testing.assert_allclose(slide.spots[["y", "x"]], places, atol=1e-6)
    assert (slide.mpp, slide.technology, slide.spot_um) == (pytest.approx(100 / 60), "Visium", 55)
    words = r"coordinate system 'global' is not shared: shapes 'spots' are in \['S1', 'half'\], image"
    with pytest.raises(ValueError, match=words):
        read_spatialdata(store, coordinate_system="global")


@pytest.mark.filterwarnings("ignore")
def test_systems_that_lay_the_spots_differently_must_be_chosen_between(make_store):
    from spatialdata.transformations import Identity, Scale

    from delst_hf.data.readers.spatialdata_zarr import read_spatialdata

    both = {"a": Identity(), "b": Identity()}
    store = make_store(
        both, {"a": Identity(), "b": Scale([0.5, 0.5], axes=("x", "y"))}, lay(EVERY_SECOND, (60 * HEXAGONS[0], 30))
    )
    with pytest.raises(ValueError, match=r"\['a', 'b'\] place the spots differently on the image.*--coordinate-system"):
        read_spatialdata(store)
    assert read_spatialdata(store, coordinate_system="a").mpp == pytest.approx(100 / 60)
    assert read_spatialdata(store, coordinate_system="b").mpp == pytest.approx(100 / 30)


@pytest.mark.filterwarnings("ignore")
def test_a_store_tells_its_array_by_names_and_its_samples_by_columns(make_store):
    """By distances alone a checkerboard of equal steps is squares, turned by 45 degrees: 200 um for 150."""
    from spatialdata.transformations import Identity

    from delst_hf.data.readers.spatialdata_zarr import read_spatialdata

    names = [f"{column}x{row}" for row, column in EVERY_SECOND]
    systems, samples = {"global": Identity()}, pd.Categorical(["A"] * 30 + ["B"] * (len(names) - 30))
    store = make_store(
        systems, systems, lay(EVERY_SECOND, 40, degrees=10), radius=19.0, names=names, library_id=samples
    )
    slide = read_spatialdata(store)
    assert slide.mpp == pytest.approx(150 / (40 * 2**0.5)) and slide.technology == "Spatial Transcriptomics"
    with pytest.raises(ValueError, match="'library_id' names 2, 'A', 'B'.*--region, --table"):
        check_one_slide(slide)


@pytest.mark.filterwarnings("ignore")
def test_a_store_of_squares_or_of_fluorescence_is_refused(make_store):
    from spatialdata.transformations import Identity

    from delst_hf.data.readers.spatialdata_zarr import read_spatialdata

    one = {"global": Identity()}
    store = make_store(one, one, lay(SQUARES, 50.0), channels=("DAPI", "CD3", "CD20"))
    with pytest.raises(ValueError, match=r"squares of 50\.0 px.*--spot-um"):
        read_spatialdata(store)
    with pytest.raises(ValueError, match=r"is a fluorescence image: its channels are called \['DAPI'\]"):
        read_spatialdata(store, mpp=1.0)


@pytest.mark.parametrize(
    ("dpi", "suffix", "mpp"), [(50_800, "jpg", 0.5), (25_400 / 0.46, "png", 0.46), (101_600, "tif", 0.25)]
)
def test_the_dots_per_inch_of_a_scan_are_a_witness(tmp_path, dpi, suffix, mpp):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"he.{suffix}", dpi=(dpi, dpi))
    counts, spots = _three_spots(tmp_path)
    slide = read_generic(tmp_path / f"he.{suffix}", counts, spots)
    assert slide.mpp == pytest.approx(mpp, rel=2e-3)


@pytest.mark.parametrize("dpi", [72, 96, 144, 300, 350, 600])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_the_dots_per_inch_of_a_printer_are_a_placeholder(tmp_path, dpi, suffix):
    Image.fromarray(np.full((60, 80, 3), 128, np.uint8)).save(tmp_path / f"he.{suffix}", dpi=(dpi, dpi))
    counts, spots = _three_spots(tmp_path)
    with pytest.raises(ValueError, match=r"mpp is unknown: .*dpi of he.* is a placeholder"):
        read_generic(tmp_path / f"he.{suffix}", counts, spots)
    slide = read_generic(tmp_path / f"he.{suffix}", counts, spots, mpp=0.5)
    slide.validate()
    assert len(slide.notes.scale_witnesses) == 2


def _three_spots(folder):
    counts, spots = folder / "counts.csv", folder / "spots.csv"
    pd.DataFrame({"A": [1, 2, 3], "B": [3, 1, 1]}, index=["p", "q", "r"]).to_csv(counts)
    pd.DataFrame({"barcode": ["p", "q", "r"], "x": [10, 30, 50], "y": [20, 25, 40]}).to_csv(spots, index=False)
    return counts, spots

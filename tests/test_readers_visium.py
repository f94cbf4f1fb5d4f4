"""Visium and Visium HD, in the layout of Space Ranger's `outs`."""

import json
import shutil

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import tifffile
from layouts import assert_same, make_source, positions_table, write_10x_h5, write_mtx, write_outs, write_spatial
from PIL import Image

from delst_hf.data.readers.visium import read_visium, read_visium_hd


@pytest.fixture
def source():
    return make_source()


@pytest.mark.parametrize("counts", ["h5", "mtx"])
@pytest.mark.parametrize("positions", ["csv", "list", "parquet"])
def test_every_form_of_counts_and_positions(tmp_path, source, counts, positions):
    write_outs(tmp_path / "S1" / "outs", source, positions, counts)
    tifffile.imwrite(tmp_path / "he.tif", source.pixels, photometric="rgb", tile=(64, 64))
    slide = read_visium(tmp_path / "S1", image=tmp_path / "he.tif", tissue="breast")
    assert_same(slide, source)
    assert list(slide.spots.index) == list(source.spots.index)
    assert slide.spots["array_row"].tolist() == source.spots["array_row"].tolist()
    assert slide.spots["array_col"].tolist() == source.spots["array_col"].tolist()
    assert (slide.slide_id, slide.technology, slide.tissue, slide.spot_um) == ("S1", "Visium", "breast", 55.0)
    np.testing.assert_array_equal(slide.image[:, :], source.pixels)


@pytest.mark.parametrize("options", [{"encoding": "utf-8-sig", "lineterminator": "\r\n"}, {"sep": ";"},
                                     {"sep": ";", "decimal": ","}, {"index": True}])  # fmt: skip
@pytest.mark.parametrize("name", ["tissue_positions.csv", "tissue_positions_list.csv"])
def test_positions_that_went_through_a_spreadsheet(tmp_path, source, options, name):
    outs = write_outs(tmp_path / "outs", source)
    (outs / "spatial/tissue_positions.csv").unlink()
    if "index" in options and "list" in name:
        options = {}  # the old name with the header of the new one
    positions_table(source).to_csv(outs / "spatial" / name, **({"index": False} | options))
    assert_same(read_visium(outs), source, scale=0.5)
    # Either name is read with and without a header.
    positions_table(source).to_csv(outs / "spatial" / name, index=False, header=False)
    assert_same(read_visium(outs), source, scale=0.5)
    positions_table(source).assign(in_tissue=0).to_csv(outs / "spatial" / name, index=False)
    with pytest.raises(ValueError, match="in_tissue of the positions in .*spatial is 1 for none of 14 spots. Correct"):
        read_visium(outs)


def test_a_matrix_of_cell_ranger_2_and_a_name_with_a_prefix(tmp_path, source):
    outs = write_outs(tmp_path / "V1 Human (breast)" / "outs", source)
    (outs / "filtered_feature_bc_matrix.h5").unlink()
    matrix = sp.csc_matrix(source.counts.T)
    with h5py.File(outs / "V1_Breast_filtered_feature_bc_matrix.h5", "w") as file:
        group = file.create_group("GRCh38")
        for name, values in (("barcodes", source.spots.index.tolist()), ("genes", source.gene_ids),
                             ("gene_names", source.symbols)):  # fmt: skip
            group[name] = np.array(values, dtype="S32")
        for name in ("data", "indices", "indptr", "shape"):
            group[name] = getattr(matrix, name)
    slide = read_visium(outs)
    assert_same(slide, source, scale=0.5)
    assert slide.slide_id == "V1_Human_breast"
    with h5py.File(outs / "V1_Breast_filtered_feature_bc_matrix.h5", "a") as file:
        file.copy("GRCh38", "mm10")
    with pytest.raises(ValueError, match=r"holds 2 genomes \(\['GRCh38', 'mm10'\]\)"):
        read_visium(outs)


def test_the_reduced_images_stand_in_with_scaled_coordinates(tmp_path, source, caplog):
    outs = write_outs(tmp_path / "outs", source)
    slide = read_visium(outs, slide_id="S")
    assert_same(slide, source, scale=0.5)
    np.testing.assert_array_equal(slide.image, source.pixels[::2, ::2])
    assert "the reduced tissue_hires_image.png" in caplog.text
    (outs / "spatial" / "tissue_hires_image.png").unlink()
    assert_same(read_visium(outs, slide_id="S"), source, scale=0.25)
    (outs / "spatial" / "tissue_lowres_image.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"no tissue_hires_image\.png or .*--image"):
        read_visium(outs, slide_id="S")


def test_the_scale_comes_from_the_lattice_else_from_the_spot(tmp_path, source):
    outs = write_outs(tmp_path / "outs", source)
    Image.fromarray(source.pixels).save(tmp_path / "he.png")
    # 20 px are 100 um; the stated diameter is that of a spot of 65 um, not of the 55 um that are printed.
    assert read_visium(outs, image=tmp_path / "he.png").mpp == pytest.approx(5.0)
    assert read_visium(outs, image=tmp_path / "he.png", mpp=0.4).mpp == 0.4
    assert read_visium(outs, mpp=0.4).mpp == pytest.approx(0.8)  # per full-resolution pixel, whatever image is used
    assert read_visium(outs, image=tmp_path / "he.png").spot_um == 55
    keep = source.spots.index[:3]  # too few to measure a lattice
    positions_table(source, off_tissue=False)[:3].to_csv(outs / "spatial" / "tissue_positions.csv", index=False)
    few = read_visium(outs, image=tmp_path / "he.png")
    assert (few.spots.index.tolist(), few.mpp) == (keep.tolist(), pytest.approx(65 / 13))
    write = outs / "spatial" / "scalefactors_json.json"
    write.write_text(json.dumps({"tissue_hires_scalef": 0.5}))
    with pytest.raises(ValueError, match=r"mpp is unknown: spot_diameter_fullres is None.*--mpp"):
        read_visium(outs, image=tmp_path / "he.png")


def test_counts_without_spots_and_spots_without_counts_are_reported(tmp_path, source, caplog):
    outs = write_outs(tmp_path / "outs", source)
    table = positions_table(source)
    table.loc[table["barcode"] == "BARCODE03-1", "barcode"] = "NEW-1"
    table.to_csv(outs / "spatial" / "tissue_positions.csv", index=False)
    slide = read_visium(outs)
    assert "left out 1 counts without spot and 1 spots without counts" in caplog.text
    assert len(slide.spots) == 11
    np.testing.assert_array_equal(slide.counts.toarray(), np.delete(source.counts, 3, 0))


def test_features_that_are_no_genes_are_left_out(tmp_path, source):
    assert len(read_visium(write_outs(tmp_path / "outs", source)).genes) == 6


@pytest.mark.parametrize("positions", ["csv", "list"])
def test_duplicated_barcodes_are_refused(tmp_path, source, positions):
    outs = write_outs(tmp_path / "outs", source, positions)
    table = positions_table(source)
    table.loc[5, "barcode"] = table.loc[6, "barcode"]
    name = "tissue_positions.csv" if positions == "csv" else "tissue_positions_list.csv"
    table.to_csv(outs / "spatial" / name, index=False, header=positions == "csv")
    with pytest.raises(ValueError, match=r"1 barcodes are duplicated in the positions, e\.g\. 'BARCODE04-1'"):
        read_visium(outs)


def test_normalised_counts_are_refused(tmp_path, source):
    outs = write_outs(tmp_path / "outs", source)
    source.counts = np.log1p(source.counts)
    write_10x_h5(outs / "filtered_feature_bc_matrix.h5", source)
    with pytest.raises(ValueError, match="already normalised.*put the raw counts into filtered_feature_bc_matrix.h5"):
        read_visium(outs)


def test_what_is_missing_or_damaged_is_named(tmp_path, source):
    with pytest.raises(FileNotFoundError, match="no spatial/ in .*Give the folder `outs`"):
        read_visium(tmp_path)
    outs = write_outs(tmp_path / "outs", source)
    for name, match in [
        ("filtered_feature_bc_matrix.h5", "no filtered_feature_bc_matrix.h5 and no folder"),
        ("spatial/tissue_positions.csv", "none of tissue_positions.parquet"),
        ("spatial/scalefactors_json.json", "no scalefactors_json.json"),
    ]:
        whole = (outs / name).read_bytes()
        (outs / name).unlink()
        with pytest.raises(FileNotFoundError, match=match):
            read_visium(outs)
        (outs / name).write_bytes(whole)
    whole = (outs / "filtered_feature_bc_matrix.h5").read_bytes()
    (outs / "filtered_feature_bc_matrix.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cannot read .*matrix\.h5.*incomplete.*download it again"):
        read_visium(outs)
    (outs / "filtered_feature_bc_matrix.h5").write_bytes(whole)
    (outs / "spatial/scalefactors_json.json").write_text('{"tissue_hires')
    with pytest.raises(ValueError, match=r"cannot read .*scalefactors_json\.json.*incomplete"):
        read_visium(outs)
    (outs / "spatial/scalefactors_json.json").write_text("{}")
    with pytest.raises(ValueError, match="tissue_hires_scalef is None"):
        read_visium(outs)
    positions_table(source).drop(columns="array_row").to_csv(outs / "spatial/tissue_positions.csv", index=False)
    with pytest.raises(KeyError, match=r"columns \['array_row'\] are missing"):
        read_visium(outs)


def test_counts_that_are_missing_are_told_by_what_lies_in_their_place(tmp_path, source):
    outs = write_outs(tmp_path / "outs", source)
    with pytest.raises(FileNotFoundError, match=r"matrix in .*/spatial. Give the folder that holds it, .*outs\.$"):
        read_visium(outs / "spatial")
    with pytest.raises(FileNotFoundError, match=r"filtered_feature_bc_matrix.h5 is one file of a run. Give the folder"):
        read_visium(outs / "filtered_feature_bc_matrix.h5")
    (outs / "filtered_feature_bc_matrix.h5").rename(outs / "raw_feature_bc_matrix.h5")
    with pytest.raises(FileNotFoundError, match=r"There is raw_feature_bc_matrix.h5, whose .*copy it to filtered_feat"):
        read_visium(outs)
    with pytest.raises(
        FileNotFoundError, match=rf"There is raw_feature_bc_matrix.h5 in {outs}, whose .*copy it to filt"
    ):
        read_visium(outs.parent)
    shutil.copy(outs / "raw_feature_bc_matrix.h5", outs / "filtered_feature_bc_matrix.h5")
    assert_same(read_visium(outs), source, 0.5)
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (outs / "spatial").iterdir():
        shutil.copy(path, flat / f"GSM1_{path.name}")
    shutil.copy(outs / "raw_feature_bc_matrix.h5", flat / "GSM1_filtered.h5")
    with pytest.raises(
        FileNotFoundError, match=rf"in {flat}. There is GSM1_filtered.h5: .*end in _filtered_feature_bc"
    ):
        read_visium(flat)
    (tmp_path / "zipped").mkdir()
    (tmp_path / "zipped" / "S1.zip").touch()
    with pytest.raises(
        FileNotFoundError, match=r"Unpack S1.zip, or give the folder `outs`.*several runs, `delst check "
    ):
        read_visium(tmp_path / "zipped")


def test_an_mtx_that_does_not_fit_its_names_is_refused(tmp_path, source):
    outs = tmp_path / "outs"
    write_spatial(outs / "spatial", source)
    write_mtx(outs / "filtered_feature_bc_matrix", source)
    shutil.move(outs / "filtered_feature_bc_matrix/barcodes.tsv.gz", tmp_path / "kept.gz")
    with pytest.raises(FileNotFoundError, match=r"no barcodes\.tsv\.gz"):
        read_visium(outs)
    (outs / "filtered_feature_bc_matrix/barcodes.tsv").write_text("A-1\nB-1\n")
    with pytest.raises(ValueError, match="is 6 x 12, but there are 6 features and 2 barcodes"):
        read_visium(outs)


def make_hd(folder, source, bin_um=8):
    """Bins of 0.25 um per px, so 16 um are 64 px."""
    rows, columns = np.mgrid[:3, :4].reshape(2, -1)
    pitch = bin_um / 0.25
    source.spots = source.spots.assign(array_row=rows, array_col=columns, x=60 + pitch * columns, y=60 + pitch * rows)
    square = folder / "binned_outputs" / f"square_{bin_um:03d}um"
    factors = {"spot_diameter_fullres": bin_um / 0.25, "bin_size_um": float(bin_um), "microns_per_pixel": 0.25,
               "regist_target_img_scalef": 0.5, "tissue_lowres_scalef": 0.25, "fiducial_diameter_fullres": 9.0,
               "tissue_hires_scalef": 0.5}  # fmt: skip
    write_spatial(square / "spatial", source, "parquet", factors)
    write_10x_h5(square / "filtered_feature_bc_matrix.h5", source, extra_feature=False)


def test_visium_hd_bins_are_spots(tmp_path, source):
    source2 = make_source()
    for bin_um in (8, 16):
        make_hd(tmp_path / "HD1" / "outs", source, bin_um)
    make_hd(tmp_path / "HD1" / "outs", source2, 2)
    Image.fromarray(source.pixels).save(tmp_path / "he.png")
    for path in (tmp_path / "HD1", tmp_path / "HD1/outs", tmp_path / "HD1/outs/binned_outputs"):
        slide = read_visium_hd(path, bin_um=16, image=tmp_path / "he.png", slide_id="HD1")
        assert_same(slide, source, mpp=0.25)
        assert (slide.slide_id, slide.spot_um, slide.technology) == ("HD1", 16.0, "Visium HD")
    assert read_visium_hd(tmp_path / "HD1").slide_id == "HD1"
    assert read_visium_hd(tmp_path / "HD1").spot_um == 8.0
    assert_same(
        read_visium_hd(tmp_path / "HD1/outs/binned_outputs/square_002um", bin_um=2), source2, scale=0.5, mpp=0.25
    )
    with pytest.raises(
        FileNotFoundError, match=r"no square_024um.*'square_002um', 'square_008um', 'square_016um'.*--bin-um"
    ):
        read_visium_hd(tmp_path / "HD1", bin_um=24)
    with pytest.raises(FileNotFoundError, match="is a Visium HD run.*visium-hd"):
        read_visium(tmp_path / "HD1")
    (tmp_path / "HD1" / "outs" / "spatial").mkdir(exist_ok=True)  # where Space Ranger lays the images alone
    with pytest.raises(FileNotFoundError, match="is a Visium HD run.*visium-hd"):
        read_visium(tmp_path / "HD1")
    with pytest.raises(FileNotFoundError, match=r"no .*square_008um in .*16um. It holds bins of 16 um: .*--bin-um 16"):
        read_visium_hd(tmp_path / "HD1/outs/binned_outputs/square_016um")
    with pytest.raises(FileNotFoundError, match="It is a Visium run: read it with `delst prepare visium`"):
        read_visium_hd(write_outs(tmp_path / "V1" / "outs", source).parent)
    (tmp_path / "binned_outputs.tar.gz").touch()
    with pytest.raises(FileNotFoundError, match="It is a file: unpack it"):
        read_visium_hd(tmp_path / "binned_outputs.tar.gz")

"""Legacy Spatial Transcriptomics in the style of STUtility, and slides given as an image and two tables."""

import io

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
import tifffile
from layouts import assert_same, make_source, write_10x_h5, write_mtx
from PIL import Image

from delst_hf.data.readers.generic import read_generic
from delst_hf.data.readers.legacy_st import read_legacy_st
from delst_hf.data.readers.matrices import read_counts
from delst_hf.data.readers.tables import POSITION_COLUMNS, is_first_position


@pytest.fixture
def source():
    return make_source()


# --- legacy ST ------------------------------------------------------------------------------------------------------


@pytest.fixture
def legacy(source):
    return on_legacy_array(source)


def on_legacy_array(source):
    """The same spots on an array of 4 x 3 with a pitch of 40 px."""
    columns, rows = np.meshgrid(np.arange(4) + 7, np.arange(3) + 2)
    x, y = columns.ravel(), rows.ravel()
    source.spots = pd.DataFrame(
        {"x": 40.0 * x - 200, "y": 40.0 * y, "array_row": y, "array_col": x},
        index=[f"{a}x{b}" for a, b in zip(x, y, strict=True)],
    )
    return source


def write_legacy(folder, source, transposed=False, suffix=".tsv.gz"):
    counts = pd.DataFrame(source.counts, index=source.spots.index, columns=source.symbols)
    counts = counts.T if transposed else counts
    counts.to_csv(folder / f"S1{suffix}", sep="," if "csv" in suffix else "\t")
    table = pd.DataFrame(
        {
            "x": source.spots["array_col"], "y": source.spots["array_row"],
            "new_x": source.spots["array_col"] + 0.03, "new_y": source.spots["array_row"] - 0.02,
            "pixel_x": source.spots["x"], "pixel_y": source.spots["y"], "selected": 1,
        }
    )  # fmt: skip
    extra = pd.DataFrame({"x": [20], "y": [20], "new_x": [20], "new_y": [20], "pixel_x": [600.0], "pixel_y": [800.0],
                          "selected": [0]})  # fmt: skip
    pd.concat([table, extra]).to_csv(folder / "spot_data-S1.tsv", sep="\t", index=False)
    Image.fromarray(source.pixels).save(folder / "S1.png")
    return folder / f"S1{suffix}", folder / "spot_data-S1.tsv", folder / "S1.png"


@pytest.mark.parametrize("suffix", [".tsv.gz", ".tsv", ".csv"])
@pytest.mark.parametrize("transposed", [False, True])
def test_legacy_counts_lie_either_way(tmp_path, legacy, transposed, suffix):
    slide = read_legacy_st(*write_legacy(tmp_path, legacy, transposed, suffix), species="human")
    assert_same(slide, legacy, with_ids=False)
    assert (slide.slide_id, slide.spot_um) == ("S1", 100.0)
    assert slide.spots["array_col"].tolist() == legacy.spots["array_col"].tolist()


def test_legacy_labels(tmp_path, legacy):
    files = write_legacy(tmp_path, legacy)
    (tmp_path / "labels.csv").write_text("x,y,label\n7,2,tumour\n8.02,1.98,none\n10,4,fat\n")
    slide = read_legacy_st(*files, labels=tmp_path / "labels.csv")
    assert slide.spots["label"].dropna().to_dict() == {"7x2": "tumour", "10x4": "fat"}
    assert slide.label_source == "labels.csv"
    (tmp_path / "labels.csv").write_text("spot,kind\n")
    with pytest.raises(KeyError, match="columns label, and id or x and y, are needed"):
        read_legacy_st(*files, labels=tmp_path / "labels.csv")


def test_legacy_mistakes(tmp_path, legacy):
    counts, spots, image = write_legacy(tmp_path, legacy)
    pd.DataFrame(legacy.counts, index=[f"s{i}" for i in range(12)], columns=legacy.symbols).to_csv(tmp_path / "bad.csv")
    with pytest.raises(ValueError, match=r"neither rows \(\['s0', 's1'\]\) nor columns"):
        read_legacy_st(tmp_path / "bad.csv", spots, image)
    pd.read_csv(spots, sep="\t").drop(columns="pixel_x").to_csv(tmp_path / "bad.tsv", sep="\t")
    with pytest.raises(KeyError, match=r"columns \['pixel_x'\] are missing"):
        read_legacy_st(counts, tmp_path / "bad.tsv", image)
    counts.write_bytes(counts.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"cannot read the counts .*S1\.tsv\.gz.*incomplete"):
        read_legacy_st(counts, spots, image)


# --- image, counts and coordinates ----------------------------------------------------------------------------------


def write_counts(folder, source, form):
    table = pd.DataFrame(source.counts, index=source.spots.index, columns=source.symbols)
    path = folder / f"S1.{form.split()[0]}"
    if form == "mtx":
        write_mtx(folder / "matrix", source)
        return folder / "matrix" / "matrix.mtx.gz"
    if form == "h5":
        write_10x_h5(path, source)
    elif form == "h5ad":
        var = pd.DataFrame({"gene_ids": source.gene_ids}, index=source.symbols)
        anndata.AnnData(X=source.counts.astype(np.float32), obs=pd.DataFrame(index=table.index), var=var).write_h5ad(
            path
        )
    elif form == "parquet":
        table.columns = source.gene_ids  # column names of a parquet file are unique
        table.reset_index(names="barcode").to_parquet(path)
    else:
        (table.T if "genes" in form else table).to_csv(path, sep="\t" if "tsv" in form else ",")
    return path


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize("form", ["csv", "csv.gz", "tsv", "tsv.gz genes", "csv genes", "h5", "h5ad", "parquet", "mtx"])
def test_every_form_of_counts(tmp_path, source, form):
    path = write_counts(tmp_path, source, form)
    table = source.spots.sample(frac=1, random_state=0).reset_index(names="spot")
    table.assign(kind=[f"k{i % 3}" for i in range(12)]).to_csv(tmp_path / "xy.csv", index=False)
    tifffile.imwrite(tmp_path / "he.tif", source.pixels, photometric="rgb", tile=(64, 64))
    slide = read_generic(
        tmp_path / "he.tif",
        path,
        tmp_path / "xy.csv",
        barcode_column="spot",
        label_column="kind",
        mpp=5.0,
        slide_id="S1",
    )
    if form == "parquet":
        assert slide.genes["gene_id"].tolist() == source.gene_ids
        slide.genes["symbol"] = source.symbols
    assert_same(slide, source, with_ids=form in ("h5", "h5ad", "mtx", "parquet"))
    named = dict(zip(table["spot"], [f"k{i % 3}" for i in range(12)], strict=True))
    assert slide.spots["label"].to_dict() == named
    assert slide.label_source == "xy.csv: kind"


def test_columns_scale_and_resolution(tmp_path, source):
    path = write_counts(tmp_path, source, "csv")
    table = pd.DataFrame({"name": source.spots.index, "px": source.spots["x"] * 2, "py": source.spots["y"] * 2})
    table.to_csv(tmp_path / "xy.tsv", sep="\t", index=False)
    tifffile.imwrite(tmp_path / "he.tif", source.pixels, resolution=(2000, 2000), resolutionunit="CENTIMETER")
    options = {"barcode_column": "name", "x_column": "px", "y_column": "py", "scale": 0.5}
    assert_same(read_generic(tmp_path / "he.tif", path, tmp_path / "xy.tsv", **options), source, with_ids=False)
    with pytest.raises(KeyError, match=r"columns \['x', 'y'\] are missing; found \['name', 'px', 'py'\].*--x-column"):
        read_generic(tmp_path / "he.tif", path, tmp_path / "xy.tsv")
    Image.fromarray(source.pixels).save(tmp_path / "he.png")
    assert_same(read_generic(tmp_path / "he.png", path, tmp_path / "xy.tsv", **options), source, with_ids=False)
    table[:5].to_csv(tmp_path / "xy.tsv", sep="\t", index=False)  # too few for a lattice
    with pytest.raises(ValueError, match=r"mpp is unknown: he\.png does not state it.*--mpp"):
        read_generic(tmp_path / "he.png", path, tmp_path / "xy.tsv", **options)


@pytest.mark.parametrize("header", [True, False])
def test_positions_of_space_ranger_are_read_as_they_are(tmp_path, source, header):
    """Row before column, with a header or without, and the spots off tissue are left out as by every reader."""
    path = write_counts(tmp_path, source, "csv")
    Image.fromarray(source.pixels).save(tmp_path / "he.png")
    table = pd.DataFrame({"barcode": source.spots.index, "in_tissue": 1, "array_row": range(12), "array_col": 3,
                          "pxl_row_in_fullres": source.spots["y"], "pxl_col_in_fullres": source.spots["x"]})  # fmt: skip
    table.to_csv(tmp_path / "xy.csv", index=False, header=header)
    assert_same(read_generic(tmp_path / "he.png", path, tmp_path / "xy.csv", mpp=5.0), source, with_ids=False)
    table["in_tissue"] = [0] * 2 + [1] * 10
    table.to_csv(tmp_path / "xy.csv", index=False, header=header)
    slide = read_generic(tmp_path / "he.png", path, tmp_path / "xy.csv", mpp=5.0)
    assert set(slide.spots.index) == set(source.spots.index[2:]) and slide.spots["array_col"].eq(3).all()
    assert slide.notes.spots_left_out == {"not in_tissue": 2, "counts without a spot": 2}
    table.assign(in_tissue=0).to_csv(tmp_path / "xy.csv", index=False, header=header)
    with pytest.raises(ValueError, match="xy.csv: in_tissue is 1 for none of 12 spots. Correct that column"):
        read_generic(tmp_path / "he.png", path, tmp_path / "xy.csv", mpp=5.0)


@pytest.mark.parametrize("first", ["1,0,16,521.5,521.5", "1,1,1,1,1", "0,0,0,1e3,-2", "1,0,16,521,840"])
def test_a_first_spot_that_stands_where_names_would_is_a_spot(first):
    """However often its numbers repeat: pandas renames the second of two equal names."""
    names = pd.read_csv(io.StringIO(f"AAAC-1,{first}\n"), nrows=0).columns
    assert is_first_position(names.tolist())


def test_names_of_columns_are_no_spot():
    for names in (POSITION_COLUMNS, ["spot", "0", "x", "y", "z", "label"], ["AAAC-1", "1", "0", "16", "521"], [], ["a"],
                  ["AAAC-1", "7", "0", "16", "521", "840"]):  # fmt: skip
        assert not is_first_position(names)


def test_a_transposed_matrix_is_told_by_the_names_of_the_spots(tmp_path, source):
    source.symbols = [f"LOC{i}" for i in range(6)]
    path = write_counts(tmp_path, source, "csv genes")
    source.spots.to_csv(tmp_path / "xy.csv", index_label="barcode")
    Image.fromarray(source.pixels).save(tmp_path / "he.png")
    files = tmp_path / "he.png", path, tmp_path / "xy.csv"
    for orientation in ("auto", "genes"):
        assert_same(read_generic(*files, mpp=5.0, orientation=orientation), source, with_ids=False)
    with pytest.raises(ValueError, match="The matrix is transposed: its columns are the spots.*--orientation genes"):
        read_generic(*files, mpp=5.0, orientation="spots")
    with pytest.raises(ValueError, match="orientation is 'up'"):
        read_generic(*files, mpp=5.0, orientation="up")


DIALECTS = {
    "byte order mark": {"encoding": "utf-8-sig"},
    "windows lines": {"lineterminator": "\r\n"},
    "semicolons": {"sep": ";"},
    "semicolons and decimal commas": {"sep": ";", "decimal": ","},
    "tabs": {"sep": "\t"},
    "UTF-16": {"sep": "\t", "encoding": "utf-16"},
    "code page": {"encoding": "cp1252"},
    "quotes": {"quoting": 1},
    "bz2": {"compression": "bz2"},
    "xz": {"compression": "xz"},
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_tables_as_spreadsheets_and_browsers_leave_them(tmp_path, source, dialect):
    """A suffix says nothing of the compression: browsers unpack .gz, and some tools write it without saying so."""
    options = DIALECTS[dialect]
    table = source.spots.assign(**{"région, of the (µm) slide": "graisse à gauche"})
    table.to_csv(tmp_path / "xy.csv", index_label="spot name", **options)
    counts = pd.DataFrame(source.counts, index=source.spots.index, columns=source.symbols)
    counts.to_csv(tmp_path / "S1.csv", **options)
    (tmp_path / "S1.csv").rename(tmp_path / "S1.csv.gz")
    Image.fromarray(source.pixels).save(tmp_path / "he.png")
    slide = read_generic(tmp_path / "he.png", tmp_path / "S1.csv.gz", tmp_path / "xy.csv", mpp=5.0,
                         label_column="région, of the (µm) slide")  # fmt: skip
    assert_same(slide, source, with_ids=False)
    assert set(slide.spots["label"]) == {"graisse à gauche"}


def test_a_large_table_is_made_sparse_piece_by_piece(tmp_path, source, monkeypatch):
    monkeypatch.setattr("delst_hf.data.readers.matrices._ROWS_AT_A_TIME", 5)
    counts = read_counts(write_counts(tmp_path, source, "csv"))
    np.testing.assert_array_equal(counts.matrix.toarray(), source.counts)
    assert counts.barcodes.tolist() == source.spots.index.tolist()
    assert counts.genes["symbol"].tolist() == source.symbols
    (tmp_path / "none.csv").write_text("spot,A,B\n")
    with pytest.raises(ValueError, match=r"none\.csv has no row below its header"):
        read_counts(tmp_path / "none.csv")


@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", ["matrix.mtx", "GSM1_matrix.mtx", "counts.mtx", "S1.mtx"])
def test_mtx_of_either_orientation_with_its_neighbours(tmp_path, source, columns, transposed, name):
    prefix = {"GSM1_matrix.mtx": "GSM1_", "S1.mtx": "S1_"}.get(name, "")
    scipy.io.mmwrite(tmp_path / name, sp.coo_matrix(source.counts if transposed else source.counts.T))
    (tmp_path / f"{prefix}barcodes.tsv").write_text("".join(f"{barcode}\n" for barcode in source.spots.index))
    kind = ["Gene Expression"] * 6
    rows = zip(source.gene_ids, source.symbols, kind, strict=True)
    lines = ["\t".join(row[1:2] if columns == 1 else row[:columns]) for row in rows]
    (tmp_path / f"{prefix}features.tsv").write_text("".join(f"{line}\n" for line in lines))
    counts = read_counts(tmp_path / name)
    np.testing.assert_array_equal(counts.matrix.toarray(), source.counts)
    assert counts.genes["symbol"].tolist() == source.symbols
    assert counts.genes["gene_id"].tolist() == ([""] * 6 if columns == 1 else source.gene_ids)
    (tmp_path / f"{prefix}barcodes.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*barcodes\.tsv"):
        read_counts(tmp_path / name)


def test_nothing_in_common_is_refused(tmp_path, source):
    path = write_counts(tmp_path, source, "csv")
    source.spots.index = [name.removesuffix("-1") for name in source.spots.index]
    source.spots.to_csv(tmp_path / "xy.csv", index_label="barcode")
    Image.fromarray(source.pixels).save(tmp_path / "he.png")
    with pytest.raises(ValueError, match=r"no spot of the positions \(\['BARCODE00', .*same suffix \(-1\)"):
        read_generic(tmp_path / "he.png", path, tmp_path / "xy.csv", mpp=5.0)


@pytest.mark.parametrize(("rename", "said"), [
    (lambda name: name.replace("-", "."), r"differ only in signs that R replaces .*check.names"),
    (lambda name: f"X{name[1:]}", "one slide"),
    (str.lower, "differ only in capitals: rename"),
])  # fmt: skip
def test_names_of_spots_that_differ_by_little_are_told_by_what(tmp_path, source, rename, said):
    path = write_counts(tmp_path, source, "csv")
    source.spots.rename(index=rename).to_csv(tmp_path / "xy.csv", index_label="barcode")
    with pytest.raises(ValueError, match=f"no spot of the positions .*{said}"):
        read_generic(None, path, tmp_path / "xy.csv", mpp=5.0)


def test_lists_of_molecules_are_no_table_of_counts(tmp_path, source):
    source.spots.to_csv(tmp_path / "xy.csv", index_label="barcode")
    for name, columns in (("gem.tsv", ["geneID", "x", "y", "MIDCount"]), ("long.csv", ["barcode", "gene", "count"])):
        pd.DataFrame([["A", *range(1, len(columns))]], columns=columns).to_csv(
            tmp_path / name, sep="\t" if name.endswith("tsv") else ",", index=False
        )
        with pytest.raises(ValueError, match=rf"{name} is a list with a gene in each row .*Sum it first"):
            read_generic(None, tmp_path / name, tmp_path / "xy.csv", mpp=5.0)
    few = pd.DataFrame(source.counts[:3].T, source.symbols, source.spots.index[:3]).rename_axis("gene")
    few.to_csv(tmp_path / "few.csv")
    assert len(read_generic(None, tmp_path / "few.csv", tmp_path / "xy.csv", mpp=5.0).spots) == 3


def test_coordinates_that_are_no_numbers_or_have_no_names_are_told(tmp_path, source):
    path = write_counts(tmp_path, source, "csv")
    odd = source.spots.astype(object)
    odd.iloc[2, 1] = "12,5 px"
    odd.to_csv(tmp_path / "xy.csv", index_label="barcode")
    with pytest.raises(ValueError, match=r"xy.csv: y of row 3 is '12,5 px'. Allowed: numbers.*--y-column"):
        read_generic(None, path, tmp_path / "xy.csv", mpp=5.0)
    source.spots[["x", "y"]].to_csv(tmp_path / "bare.csv", header=False)
    with pytest.raises(KeyError, match="first line seems to be a spot: put a line of names above it"):
        read_generic(None, path, tmp_path / "bare.csv", mpp=5.0)
    with pytest.raises(ValueError, match="--mpp is 0. Allowed: a positive number of micrometres per pixel"):
        read_generic(None, path, tmp_path / "bare.csv", x_column="100.0", y_column="120.0", mpp=0.0)


def test_counts_and_coordinates_that_are_exchanged_are_told_in_one_line(tmp_path, source):
    source.spots.to_csv(tmp_path / "xy.csv", index_label="barcode")
    names = [f"GENE{i}" for i in range(3000)]
    pd.DataFrame(np.ones((12, 3000), int), source.spots.index, names).to_csv(tmp_path / "counts.csv")
    with pytest.raises(KeyError, match=r"counts.csv: columns .* missing.*3001 in all.*may be swapped") as told:
        read_generic(None, tmp_path / "xy.csv", tmp_path / "counts.csv", mpp=5.0)
    assert len(str(told.value)) < 500


def test_text_among_the_counts_and_unknown_forms(tmp_path, source):
    (tmp_path / "a.csv").write_text("spot,A,B\ns1,1,x\ns2,2,y\n")
    source.spots.to_csv(tmp_path / "xy.csv", index_label="barcode")
    Image.fromarray(source.pixels).save(tmp_path / "he.png")
    with pytest.raises(ValueError, match=r"a\.csv: column 'B' holds text"):
        read_generic(tmp_path / "he.png", tmp_path / "a.csv", tmp_path / "xy.csv", mpp=5.0)
    (tmp_path / "a.rds").write_text("x")
    with pytest.raises(ValueError, match=r"a\.rds: unknown format of counts. Allowed: \.csv"):
        read_generic(tmp_path / "he.png", tmp_path / "a.rds", tmp_path / "xy.csv", mpp=5.0)

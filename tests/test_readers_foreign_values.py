"""Labels, names and numbers as other languages and tools write them, through the readers: one class, one name, one number."""

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from layouts import assert_same, make_source, write_outs
from PIL import Image

from delst_hf.data.dataset import write_dataset
from delst_hf.data.merge import merge_datasets
from delst_hf.data.readers.anndata_visium import read_anndata
from delst_hf.data.readers.generic import read_generic
from delst_hf.data.readers.hest import _metadata
from delst_hf.data.readers.stimage import read_stimage
from delst_hf.data.readers.visium import read_visium


def make_adata(source, factors=lambda value: value, images=None):
    import anndata

    adata = anndata.AnnData(
        source.counts.astype(np.float32),
        obs=source.spots[["array_row", "array_col"]].copy(),
        var=pd.DataFrame({"gene_ids": source.gene_ids}, index=[f"{name}{i}" for i, name in enumerate(source.symbols)]),
    )
    adata.obsm["spatial"] = source.spots[["x", "y"]].to_numpy()
    stated = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 13.0}
    library = {"images": images or {"hires": source.pixels}, "scalefactors": {k: factors(v) for k, v in stated.items()}}
    adata.uns["spatial"] = {"LIB": library}
    return adata


@pytest.mark.parametrize("kind", [float, np.float32, np.int16])
def test_a_matrix_whose_every_number_is_a_float_is_read(tmp_path, kind):
    source = make_source()
    outs = write_outs(tmp_path / "outs", source)
    with h5py.File(outs / "filtered_feature_bc_matrix.h5", "r+") as file:
        for key in ("data", "indices", "indptr", "shape"):
            values = file["matrix"][key][:].astype(kind)
            del file["matrix"][key]
            file["matrix"][key] = values[:, None] if key == "shape" else values
    assert_same(read_visium(outs), source, 0.5)


def test_indices_that_are_no_whole_numbers_are_named(tmp_path):
    outs = write_outs(tmp_path / "outs", make_source())
    with h5py.File(outs / "filtered_feature_bc_matrix.h5", "r+") as file:
        values = file["matrix/indices"][:] + 0.5
        del file["matrix/indices"]
        file["matrix/indices"] = values
    with pytest.raises(ValueError, match=r"filtered_feature_bc_matrix.h5: indices holds \d\.5. Allowed: whole numbers"):
        read_visium(outs)


@pytest.mark.parametrize("change", [lambda v: np.array([v]), str, np.float32, lambda v: np.array([str(v).encode()])])
def test_scale_factors_of_any_kind_are_numbers(tmp_path, change):
    source = make_source()
    make_adata(source, change).write_h5ad(tmp_path / "r.h5ad")
    slide = read_anndata(tmp_path / "r.h5ad")
    assert slide.mpp == pytest.approx(5.0) and slide.counts.sum() == source.counts.sum()


def test_a_scale_factor_that_is_no_number_is_named_with_its_file(tmp_path):
    make_adata(make_source(), lambda value: "wide").write_h5ad(tmp_path / "r.h5ad")
    with pytest.raises(ValueError, match=r"r.h5ad: tissue_hires_scalef is 'wide'. Allowed: a positive number"):
        read_anndata(tmp_path / "r.h5ad")


@pytest.mark.parametrize("both", [True, False])
def test_the_full_resolution_image_within_an_h5ad_is_used(tmp_path, both):
    source = make_source()
    images = {"fullres": source.pixels} | ({"hires": source.pixels[::4, ::4].copy()} if both else {})
    adata = make_adata(source, images=images)
    adata.uns["spatial"]["LIB"]["scalefactors"]["tissue_hires_scalef"] = 0.25
    adata.uns["spatial"]["is_single"] = True
    adata.write_h5ad(tmp_path / "a.h5ad")
    slide = read_anndata(tmp_path / "a.h5ad")
    assert slide.image.shape == source.pixels.shape and slide.mpp == pytest.approx(5.0)


def write_slide(folder, name, labels):
    adata = make_adata(make_source())
    adata.obs["cluster"] = labels
    adata.write_h5ad(folder / f"{name}.h5ad")
    return read_anndata(folder / f"{name}.h5ad", slide_id=name, label_key="cluster")


def test_labels_of_several_slides_are_the_same_classes(tmp_path):
    whole = np.arange(12) % 3
    gaps = whole.astype(float)
    gaps[:2] = np.nan
    slides = [
        write_slide(tmp_path, "ints", whole),
        write_slide(tmp_path, "gaps", gaps),
        write_slide(tmp_path, "texts", [f"{value}.0 " for value in whole]),
        write_slide(tmp_path, "categories", pd.Categorical(whole)),
    ]
    summary = write_dataset(slides, tmp_path / "out", patch_um=60, patch_px=32)
    assert set(summary.labels) == {"0", "1", "2", "(none)"} and summary.labels["(none)"] == 2


def test_merging_a_folder_of_an_older_version_cleans_its_labels(tmp_path):
    for name, labels in (("A", [0, 1] * 6), ("B", [0, 1] * 6)):
        write_dataset([write_slide(tmp_path, name, labels)], tmp_path / name.lower(), patch_um=60, patch_px=32)
    path = next((tmp_path / "b" / "spots").glob("*.parquet"))
    table = pq.read_table(path)
    place = table.schema.get_field_index("label")
    old = table.set_column(place, table.schema.field(place), [[f"{value}.0" for value in table["label"].to_pylist()]])
    pq.write_table(old, path)
    for manifest in (tmp_path / "b").glob("*manifest*"):
        manifest.unlink()
    summary = merge_datasets([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert set(summary.labels) == {"0", "1"}
    assert set(pq.read_table(tmp_path / "both" / "spots" / "B.parquet")["label"].to_pylist()) == {"0", "1"}


NAMES = {
    "zeros": ([f"{i:04d}" for i in range(12)],) * 2,
    "floats": ([f"{1000 + i}" for i in range(12)], [f"{1000 + i}.0" for i in range(12)]),
    "exponents": ([f"{i}e5" for i in range(12)],) * 2,
    "words": (["NA", "nan", "None", "TRUE", *(f"S{i}" for i in range(8))],) * 2,
}  # fmt: skip


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("form", ["rows", "columns", "parquet", "r"])
def test_barcodes_are_text_in_every_table(tmp_path, names, form):
    source = make_source()
    ids, written = NAMES[names]
    Image.fromarray(source.pixels).save(tmp_path / "he.png")
    table = pd.DataFrame(source.counts, ids, list("ABCDEF"))
    path = tmp_path / f"counts.{'parquet' if form == 'parquet' else 'csv'}"
    if form == "parquet":
        table.reset_index().to_parquet(path)
    elif form == "r":  # write.table's header is one name shorter
        lines = [
            ",".join(table.columns),
            *(",".join([name, *map(str, row)]) for name, row in zip(ids, source.counts, strict=True)),
        ]
        path.write_text("\n".join(lines) + "\n")
    else:
        (table if form == "rows" else table.T).to_csv(path)
    source.spots[["x", "y"]].set_axis(written).to_csv(tmp_path / "spots.csv", index_label="barcode")
    slide = read_generic(tmp_path / "he.png", path, tmp_path / "spots.csv", mpp=5.0)
    assert slide.spots.index.tolist() == ids and slide.counts.sum() == source.counts.sum()


@pytest.mark.parametrize("form", ["csv", "parquet", "joined"])
def test_cells_are_named_by_two_columns(tmp_path, form):
    source = make_source()
    Image.fromarray(source.pixels).save(tmp_path / "he.png")
    keys = pd.DataFrame({"fov": np.arange(12) // 4 + 1, "cell_ID": np.arange(12) % 4 + 1})
    counts = pd.DataFrame(source.counts, columns=list("ABCDEF"))
    path = tmp_path / f"counts.{'parquet' if form == 'parquet' else 'csv'}"
    if form == "joined":
        counts.set_axis([f"{a}_{b}" for a, b in keys.to_numpy()]).to_csv(path)
    elif form == "csv":
        pd.concat([keys, counts], axis=1).to_csv(path, index=False)
    else:
        pd.concat([counts, keys.astype(float)], axis=1).to_parquet(path)
    keys.assign(x=source.spots["x"].to_numpy(), y=source.spots["y"].to_numpy()).to_csv(
        tmp_path / "cells.csv", index=False
    )
    slide = read_generic(tmp_path / "he.png", path, tmp_path / "cells.csv", barcode_column="fov,cell_ID", mpp=5.0)
    assert slide.spots.index[:5].tolist() == ["1_1", "1_2", "1_3", "1_4", "2_1"]
    assert slide.genes["symbol"].tolist() == list("ABCDEF") and slide.counts.sum() == source.counts.sum()


def test_half_of_a_key_is_refused(tmp_path):
    source = make_source()
    Image.fromarray(source.pixels).save(tmp_path / "he.png")
    pd.DataFrame(source.counts, columns=list("ABCDEF")).assign(fov=1).to_csv(tmp_path / "counts.csv", index=False)
    table = pd.DataFrame({"fov": 1, "cell_ID": range(12), "x": 100.0, "y": 100.0})
    table.to_csv(tmp_path / "cells.csv", index=False)
    with pytest.raises(
        KeyError, match=r"named by \['fov', 'cell_ID'\] together, but columns \['cell_ID'\] are missing"
    ):
        read_generic(
            tmp_path / "he.png", tmp_path / "counts.csv", tmp_path / "cells.csv", barcode_column="fov,cell_ID", mpp=5.0
        )


def test_patients_of_metadata_stay_text_and_releases_must_agree(tmp_path):
    pd.DataFrame({"id": ["S1"], "patient": ["007"], "species": ["NA"]}).to_csv(tmp_path / "HEST_v1.csv", index=False)
    assert _metadata(tmp_path, "S1")["patient"] == "007" and _metadata(tmp_path, "S1")["species"] is None
    pd.DataFrame({"id": ["S1"], "patient": ["8"], "species": ["NA"]}).to_csv(tmp_path / "HEST_v2.csv", index=False)
    with pytest.raises(ValueError, match="HEST_v1.csv, HEST_v2.csv disagree about patient"):
        _metadata(tmp_path, "S1")


def test_the_annotation_of_another_slide_is_not_taken(tmp_path):
    source = make_source()
    for name in ("coord", "gene_exp", "image"):
        (tmp_path / "ST" / name).mkdir(parents=True)
    (tmp_path / "annotation").mkdir()
    spots = pd.DataFrame({"yaxis": source.spots["y"], "xaxis": source.spots["x"], "r": 5.0}).set_axis(
        [f"{i:03d}" for i in range(12)]
    )
    spots.to_csv(tmp_path / "ST/coord/S_A10_coord.csv")
    pd.DataFrame(source.counts, spots.index, list("ABCDEF")).to_csv(tmp_path / "ST/gene_exp/S_A10_count.csv")
    Image.fromarray(source.pixels).save(tmp_path / "ST/image/S_A10.png")
    pd.DataFrame({"V2": ["wrong"] * 12}, spots.index).to_csv(tmp_path / "annotation/S_A1_anno.csv")
    read = read_stimage(tmp_path, "S_A10", mpp=5.0)
    assert read.spots.index.tolist() == spots.index.tolist() and read.spots["label"].isna().all()
    pd.DataFrame({"V2": [1.0, None] * 6}, spots.index).to_csv(tmp_path / "annotation/S_anno.csv")
    assert read_stimage(tmp_path, "S_A10", mpp=5.0).spots["label"].tolist() == ["1", None] * 6


def store_floats(path, groups):
    """Places of sparse matrices as R stores them."""
    with h5py.File(path, "r+") as file:
        for name in groups:
            for key in ("indices", "indptr"):
                values = file[name][key][:].astype(float)
                kept = dict(file[name][key].attrs)
                del file[name][key]
                file[name].create_dataset(key, data=values).attrs.update(kept)


@pytest.mark.parametrize("form", ["csr", "csc"])
@pytest.mark.parametrize("layer", [None, "counts", "raw"])
def test_places_of_an_anndata_that_r_stored_as_floats(tmp_path, form, layer):
    source = make_source()
    adata = make_adata(source)
    adata.X = getattr(sp, f"{form}_matrix")(adata.X)
    adata.layers["counts"], adata.raw = adata.X.copy(), adata.copy()
    adata.write_h5ad(tmp_path / "r.h5ad")
    store_floats(tmp_path / "r.h5ad", ["X", "layers/counts", "raw/X"])
    np.testing.assert_array_equal(read_anndata(tmp_path / "r.h5ad", layer=layer).counts.toarray(), source.counts)


def test_a_matrix_that_says_nothing_of_its_form_is_named(tmp_path):
    adata = make_adata(make_source())
    adata.X = sp.csr_matrix(adata.X)
    adata.write_h5ad(tmp_path / "r.h5ad")
    with h5py.File(tmp_path / "r.h5ad", "r+") as file:
        del file["X"].attrs["encoding-type"]
    with pytest.raises(ValueError, match=r"r\.h5ad: X is a group \['data'.*'encoding-type'.*write_h5ad"):
        read_anndata(tmp_path / "r.h5ad")


COLUMNS = [
    ("x", "y"),
    ("imagecol", "imagerow"),
    ("pxl_col_in_fullres", "pxl_row_in_fullres"),
    ("X_centroid", "Y_centroid"),
]


@pytest.mark.parametrize("x_first", [True, False])
@pytest.mark.parametrize("names", COLUMNS)
def test_positions_go_by_the_names_of_their_columns(tmp_path, names, x_first):
    """R's SpatialExperiment and Seurat have y before x; names decide, and without such the order does."""
    source = make_source()
    adata = make_adata(source)
    table = pd.DataFrame(source.spots[["x", "y"]].to_numpy(), index=adata.obs_names, columns=names)
    adata.obsm["spatial"] = table if x_first else table.iloc[:, ::-1]
    adata.write_h5ad(tmp_path / "r.h5ad")
    assert_places(read_anndata(tmp_path / "r.h5ad"), source)
    adata.obsm["spatial"] = table.set_axis(["spatial1", "spatial2"], axis=1)
    adata.write_h5ad(tmp_path / "r.h5ad")
    assert_places(read_anndata(tmp_path / "r.h5ad"), source)


def assert_places(slide, source):
    np.testing.assert_array_equal(slide.spots[["x", "y"]].to_numpy(float), source.spots[["x", "y"]].to_numpy(float))


def test_a_matrix_without_names_is_read_by_its_ids(tmp_path):
    source = make_source()
    outs = write_outs(tmp_path / "outs", source)
    with h5py.File(outs / "filtered_feature_bc_matrix.h5", "r+") as file:
        del file["matrix/features/name"]
    assert read_visium(outs).genes["gene_id"].tolist() == source.gene_ids


@pytest.mark.parametrize(("text", "match"), [
    ('{"tissue_hires_scalef": "wide"}', r"scalefactors_json\.json: tissue_hires_scalef is 'wide'.*a positive number"),
    ('{"tissue_hires_scalef": 0}', "tissue_hires_scalef is 0.*a positive number"),
    ("[1, 2]", "scalefactors_json.json holds a JSON list, not named scale factors"),
])  # fmt: skip
def test_scale_factors_that_are_none_are_named(tmp_path, text, match):
    outs = write_outs(tmp_path / "outs", make_source())
    (outs / "spatial" / "scalefactors_json.json").write_text(text)
    with pytest.raises((ValueError, KeyError), match=match):
        read_visium(outs)


def test_an_image_in_the_order_of_r_is_named(tmp_path):
    source = make_source()
    make_adata(source, images={"hires": source.pixels.transpose(2, 1, 0)}).write_h5ad(tmp_path / "r.h5ad")
    with pytest.raises(ValueError, match=r"r\.h5ad: the hires image has shape \(3, 400, 300\)"):
        read_anndata(tmp_path / "r.h5ad")

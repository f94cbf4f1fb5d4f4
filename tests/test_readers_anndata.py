"""The AnnData reader, on files that the test writes with anndata and on the real section A1."""

import gzip

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from PIL import Image

from delst_hf.data import counts as counts_of_data
from delst_hf.data import understood
from delst_hf.data.readers.anndata_visium import find_anndata_slides, read_anndata


def make_adata(image=None) -> anndata.AnnData:
    """Four spots; the full resolution is 400 x 320 px, the hires image a quarter of it."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (80, 100, 3), dtype=np.uint8) if image is None else image
    adata = anndata.AnnData(
        X=sp.csr_matrix(np.arange(12, dtype=np.float32).reshape(4, 3)),
        obs=pd.DataFrame(
            {
                "in_tissue": [1, 1, 0, 1],
                "array_row": [0, 1, 2, 3],
                "array_col": [5, 6, 7, 8],
                "label": ["a", None, "c", "b"],
            },
            index=["AA-1", "AC-1", "AG-1", "AT-1"],
        ),
        var=pd.DataFrame({"gene_ids": ["ENSG1", "ENSG2", "ENSG3"]}, index=["G1", "G2", "G3"]),
    )
    adata.obsm["spatial"] = np.array([[40, 80], [100, 120], [0, 0], [399, 319]])
    adata.uns["spatial"] = {
        "LIB": {
            "images": {"hires": pixels, "lowres": pixels[::2, ::2]},
            "scalefactors": {
                "tissue_hires_scalef": 0.25,
                "tissue_lowres_scalef": 0.125,
                "spot_diameter_fullres": 130.0,
            },
        }
    }
    return adata


def write(adata, path):
    adata.write_h5ad(path)
    return path


def test_coordinates_and_scale_are_those_of_the_image(tmp_path):
    adata = make_adata()
    slide = read_anndata(write(adata, tmp_path / "a.h5ad"), species="human")
    slide.validate()
    assert (slide.slide_id, slide.patient_id, slide.species) == ("LIB", "LIB", "human")
    np.testing.assert_array_equal(slide.image, adata.uns["spatial"]["LIB"]["images"]["hires"])
    # AG-1 is not on tissue.
    assert list(slide.spots.index) == ["AA-1", "AC-1", "AT-1"]
    assert slide.spots[["x", "y"]].to_numpy().tolist() == [[10, 20], [25, 30], [99.75, 79.75]]
    assert slide.spots["array_row"].tolist() == [0, 1, 3]
    assert slide.spots["array_col"].tolist() == [5, 6, 8]
    assert slide.spots["label"].tolist() == ["a", None, "b"]
    assert slide.label_source == "obs['label']"
    # Four spots on a line are no lattice. The stated 130 px are those of 65 um: 0.5 um per full-resolution pixel.
    assert slide.mpp == pytest.approx(2.0)
    assert slide.counts.toarray().tolist() == [[0, 1, 2], [3, 4, 5], [9, 10, 11]]
    assert slide.counts.dtype == np.int32
    assert slide.genes.to_numpy().tolist() == [["ENSG1", "G1"], ["ENSG2", "G2"], ["ENSG3", "G3"]]


def test_mpp_is_that_of_the_full_resolution(tmp_path):
    path = write(make_adata(), tmp_path / "a.h5ad")
    assert read_anndata(path, mpp=0.3).mpp == pytest.approx(1.2)
    assert read_anndata(path, spot_diameter_um=100).mpp == pytest.approx(100 / 130 * 4)


def test_the_legacy_array_is_measured_by_its_own_pitch(tmp_path):
    adata = make_adata()
    adata.obs["array_row"], adata.obs["array_col"] = [4, 4, 4, 5], [6, 7, 8, 6]
    # 200 um are 80 px, so 2.5 um per full-resolution pixel, whatever the diameter of a spot says.
    adata.obsm["spatial"] = np.array([[40, 60], [120, 60], [200, 60], [40, 140]])
    adata.obs["in_tissue"] = 1
    slide = read_anndata(write(adata, tmp_path / "a.h5ad"), technology="Spatial Transcriptomics")
    assert slide.mpp == pytest.approx(2.5 * 4)


def test_a_full_resolution_image_can_be_given(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (320, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "full.png")
    slide = read_anndata(write(make_adata(), tmp_path / "a.h5ad"), image=tmp_path / "full.png")
    np.testing.assert_array_equal(slide.image, pixels)
    assert slide.spots["x"].tolist() == [40, 100, 399]
    assert slide.mpp == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_float_images_as_scanpy_stores_them(tmp_path, dtype):
    original = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    slide = read_anndata(write(make_adata(image=(original / 255).astype(dtype)), tmp_path / "a.h5ad"))
    np.testing.assert_array_equal(slide.image, original)


def test_lowres_is_used_without_hires(tmp_path):
    adata = make_adata()
    del adata.uns["spatial"]["LIB"]["images"]["hires"]
    slide = read_anndata(write(adata, tmp_path / "a.h5ad"))
    assert slide.image.shape == (40, 50, 3)
    assert slide.spots["x"].tolist() == [5, 12.5, 49.875]
    assert slide.mpp == pytest.approx(4.0)


def test_counts_are_found_where_the_user_says(tmp_path):
    adata = make_adata()
    counts = adata.X.copy()
    adata.raw = anndata.AnnData(X=counts, obs=adata.obs, var=adata.var)
    adata.layers["counts"] = counts * 2
    adata.X = counts.log1p()
    path = write(adata, tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"already normalised.*with counts in this file: \['counts', 'raw'\].*--layer"):
        read_anndata(path)
    assert read_anndata(path, layer="counts").counts.toarray()[1].tolist() == [6, 8, 10]
    assert read_anndata(path, layer="raw").counts.toarray()[1].tolist() == [3, 4, 5]
    with pytest.raises(KeyError, match=r"no layer 'spliced'. Available: \['counts', 'raw'\]"):
        read_anndata(path, layer="spliced")


def test_dense_counts_and_no_optional_columns(tmp_path):
    adata = make_adata()
    adata.X = adata.X.toarray()
    adata.obs, adata.var = adata.obs[[]], adata.var[[]]
    slide = read_anndata(write(adata, tmp_path / "a.h5ad"), slide_id="mine", patient_id="P1")
    assert (slide.slide_id, slide.patient_id, slide.label_source) == ("mine", "P1", "")
    assert slide.counts.toarray().tolist() == np.arange(12).reshape(4, 3).tolist()
    assert slide.spots["array_row"].tolist() == [-1] * 4
    assert slide.genes["gene_id"].tolist() == [""] * 3


def test_one_of_several_libraries(tmp_path):
    adata = make_adata()
    adata.uns["spatial"]["TWO"] = adata.uns["spatial"]["LIB"]
    with pytest.raises(ValueError, match=r"holds 2 libraries: \['LIB', 'TWO'\].*--library-id"):
        read_anndata(write(adata, tmp_path / "a.h5ad"))
    with pytest.raises(KeyError, match=r"no column of obs names the library of each spot\. Add obs\['library_id'\]"):
        read_anndata(tmp_path / "a.h5ad", library_id="TWO")
    adata.obs["library_id"] = ["LIB", "TWO", "TWO", "TWO"]
    slide = read_anndata(write(adata, tmp_path / "b.h5ad"), library_id="TWO")
    assert list(slide.spots.index) == ["AC-1", "AT-1"]
    with pytest.raises(KeyError, match=r"no library 'X' in .*Available: \['LIB', 'TWO'\]"):
        read_anndata(tmp_path / "b.h5ad", library_id="X")


def without(*path):
    def remove(adata):
        for name in path[:-1]:
            adata = getattr(adata, name) if isinstance(adata, anndata.AnnData) else adata[name]
        del adata[path[-1]]

    return remove


@pytest.mark.parametrize(
    ("damage", "options", "error", "match"),
    [
        (without("obsm", "spatial"), {}, KeyError, r"obsm\['spatial'\] is missing"),
        (without("uns", "spatial"), {}, KeyError, r"uns\['spatial'\] is missing.*squidpy.read.visium"),
        (without("uns", "spatial", "LIB"), {}, KeyError, r"uns\['spatial'\] holds no image and no scale factors"),
        (without("uns", "spatial", "LIB", "images"), {}, KeyError, "no 'fullres', 'hires', .* image.*--image"),
        (
            without("uns", "spatial", "LIB", "scalefactors", "tissue_hires_scalef"), {}, ValueError,
            "tissue_hires_scalef is None. Allowed: a positive number.*scalefactors has .*spot_diameter_fullres",
        ),
        (
            without("uns", "spatial", "LIB", "scalefactors", "spot_diameter_fullres"), {}, ValueError,
            "spot_diameter_fullres is None.*--mpp",
        ),
        (lambda adata: None, {"label_key": "pathology"}, KeyError, "no column 'pathology' in obs. Available: .*label"),
        (lambda adata: None, {"spot_diameter_um": 0.0}, ValueError, "spot_diameter_um is 0.0"),
    ],
)  # fmt: skip
def test_missing_parts_are_named(tmp_path, damage, options, error, match):
    adata = make_adata()
    damage(adata)
    with pytest.raises(error, match=match):
        read_anndata(write(adata, tmp_path / "a.h5ad"), **options)


def test_files_that_are_no_anndata_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file at"):
        read_anndata(tmp_path / "none.h5ad")
    (tmp_path / "seurat.rds").write_bytes(gzip.compress(b"X"))  # as R packs it
    with pytest.raises(ValueError, match=rf"^{tmp_path}/seurat.rds is not an .h5ad .*in R with anndataR"):
        read_anndata(tmp_path / "seurat.rds")
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(ValueError, match="not an .h5ad file"):
        read_anndata(tmp_path / "a.csv")
    path = write(make_adata(), tmp_path / "a.h5ad")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"cannot read .*a\.h5ad.*incomplete"):
        read_anndata(path)


def test_real_section_a1(shared_dir):
    path = shared_dir / "data/her2st_A1_visium_style.h5ad"
    slide = read_anndata(path)  # the lattice tells the legacy array
    slide.validate()
    assert (slide.technology, slide.spot_um) == ("Spatial Transcriptomics", 100.0)
    assert slide.counts.shape == (346, 15045)
    assert slide.spots["label"].value_counts().to_dict() == {
        "invasive cancer": 282, "connective tissue": 24, "cancer in situ": 21, "adipose tissue": 12, "undetermined": 5,
        "immune infiltrate": 2,
    }  # fmt: skip
    counts = pd.read_csv(shared_dir / "data/her2st/data/ST-cnts/A1.tsv.gz", sep="\t", index_col=0)
    expected = counts.loc[slide.spots.index, slide.genes["symbol"]].to_numpy()
    np.testing.assert_array_equal(slide.counts.toarray(), expected)
    # The stated spot of 100 um is 29 px of the reduced image: by the lattice it is 8 % smaller.
    assert 200 / slide.mpp == pytest.approx(2 * 29 * 1.08, rel=0.01)
    # Background is black: spots in the right frame are on tissue.
    on_tissue = slide.image[slide.spots["y"].astype(int), slide.spots["x"].astype(int)].sum(axis=1) > 0
    assert on_tissue.mean() > 0.95


def two_slides(make_library=True) -> anndata.AnnData:
    """Two sections in one file, whose barcodes repeat."""
    first, second = make_adata(), make_adata(np.full((80, 100, 3), 77, np.uint8))
    adata = anndata.concat([first, second], keys=["A", "B"], label="section")
    adata.var = first.var
    if make_library:
        adata.uns["spatial"] = {"A": first.uns["spatial"]["LIB"], "B": second.uns["spatial"]["LIB"]}
    return adata


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_several_slides_by_a_column_of_obs(tmp_path, suffix):
    path = tmp_path / f"two.{suffix}"
    two_slides().write_h5ad(path) if suffix == "h5ad" else two_slides().write_zarr(path)
    assert find_anndata_slides(path, "section") == ["A", "B"]
    for name, value in (("A", None), ("B", 77)):
        slide = read_anndata(path, slide_key="section", slide_value=name)
        slide.validate()
        assert (slide.slide_id, list(slide.spots.index)) == (name, ["AA-1", "AC-1", "AT-1"])
        assert slide.counts.toarray().tolist() == [[0, 1, 2], [3, 4, 5], [9, 10, 11]]
        assert value is None or (slide.image == value).all()
    with pytest.raises(KeyError, match=r"no column 'slice' in obs. Available: .*section"):
        find_anndata_slides(path, "slice")
    with pytest.raises(ValueError, match=r"no spot has obs\['section'\] = 'C'. There are \['A', 'B'\]"):
        read_anndata(path, slide_key="section", slide_value="C")


@pytest.mark.filterwarnings("ignore")
def test_zarr_round_trip_and_without_a_library(tmp_path):
    make_adata().write_zarr(tmp_path / "a.zarr")
    assert read_anndata(tmp_path / "a.zarr").counts.toarray().tolist() == [[0, 1, 2], [3, 4, 5], [9, 10, 11]]
    adata = make_adata()
    del adata.uns["spatial"]
    write(adata, tmp_path / "plain.h5ad")
    with pytest.raises(KeyError, match=r"uns\['spatial'\] is missing.*--image"):
        read_anndata(tmp_path / "plain.h5ad")
    pixels = np.random.default_rng(1).integers(0, 256, (320, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "full.png")
    slide = read_anndata(tmp_path / "plain.h5ad", image=tmp_path / "full.png", mpp=0.5)
    assert (slide.slide_id, slide.mpp) == ("plain", 0.5)


IN_TISSUE = {
    "integers": [1, 1, 0, 1],
    "floats with a gap": [1.0, 1.0, np.nan, 1.0],
    "booleans": [True, True, False, True],
    "text": ["1", "1", "0", "1"],
    "words": ["True", "True", "False", "True"],
    "categories": pd.Categorical(["1", "1", "0", "1"]),
    "categories of words": pd.Categorical(["in", "in", "out", "in"]),
    "categories of booleans": pd.Categorical([True, True, False, True]),
}


@pytest.mark.parametrize("kind", IN_TISSUE)
def test_in_tissue_of_every_type(tmp_path, kind):
    adata = make_adata()
    adata.obs["in_tissue"] = IN_TISSUE[kind]
    assert list(read_anndata(write(adata, tmp_path / "a.h5ad")).spots.index) == ["AA-1", "AC-1", "AT-1"]


def test_in_tissue_that_says_neither(tmp_path):
    adata = make_adata()
    adata.obs["in_tissue"] = ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match=r"obs\['in_tissue'\] holds 'a'. Allowed: 1 or 0"):
        read_anndata(write(adata, tmp_path / "a.h5ad"))
    adata.obs["in_tissue"] = 0
    with pytest.raises(ValueError, match=r"obs\['in_tissue'\] is 1 for none of 4 spots. Correct.*or remove it"):
        read_anndata(write(adata, tmp_path / "a.h5ad"))


@pytest.mark.parametrize("kind", ["csc", "csr_array", "int64", "uint16", "float64", "dense int", "dense float16"])
def test_counts_of_every_type(tmp_path, kind):
    values = np.arange(12).reshape(4, 3)
    adata = make_adata()
    adata.X = {
        "csc": sp.csc_matrix(values.astype(np.float32)), "csr_array": sp.csr_array(values), "dense int": values,
        "dense float16": values.astype(np.float16),
    }.get(kind, sp.csr_matrix(values.astype(kind if kind in ("int64", "uint16", "float64") else int)))  # fmt: skip
    slide = read_anndata(write(adata, tmp_path / "a.h5ad"))
    np.testing.assert_array_equal(slide.counts.toarray(), values[[0, 1, 3]])


def test_layers_are_named_where_x_is_probably_no_counts(tmp_path, caplog, monkeypatch):
    called, describe = [], counts_of_data.describe_unlikely_counts
    monkeypatch.setattr(
        counts_of_data, "describe_unlikely_counts", lambda one: (called.append(one.shape[0]), describe(one))[1]
    )
    counts = np.random.default_rng(0).poisson(9 * np.random.default_rng(1).gamma(2, 1, (30, 1)), (30, 12))
    adata = anndata.AnnData(np.rint(np.log1p(counts)).astype(np.float32), layers={"raw_counts": sp.csr_matrix(counts)})
    adata.var_names = [f"G{i}" for i in range(12)]
    adata.obsm["spatial"] = np.column_stack([np.arange(30), np.arange(30)])
    path = write(adata, tmp_path / "a.h5ad")
    understood.measure(read_anndata(path, without_image=True, mpp=1.0), None)
    assert called == [30]
    assert "other layers with whole numbers in this file: ['raw_counts']; choose one (--layer)" in caplog.text
    caplog.clear()
    understood.measure(read_anndata(path, without_image=True, mpp=1.0, layer="raw_counts"), None)
    assert "--layer" not in caplog.text


IDS = [f"ENSG{i:011d}" for i in range(3)]
VAR = {
    "scanpy": pd.DataFrame({"gene_ids": IDS}, index=["G1", "G2", "G3"]),
    "ensembl_id": pd.DataFrame({"ensembl_id": IDS}, index=["G1", "G2", "G3"]),
    "cell2location": pd.DataFrame({"SYMBOL": ["G1", "G2", "G3"]}, index=IDS),
    "gene_symbols": pd.DataFrame({"gene_symbols": ["G1", "G2", "G3"], "gene_ids": IDS}, index=IDS),
    "cellxgene": pd.DataFrame({"feature_name": pd.Categorical(["G1", "G2", "G3"])}, index=IDS),
}


@pytest.mark.parametrize("kind", VAR)
def test_genes_are_found_where_tools_put_them(tmp_path, kind):
    adata = make_adata()
    adata.var = VAR[kind]
    genes = read_anndata(write(adata, tmp_path / "a.h5ad")).genes
    assert (genes["symbol"].tolist(), genes["gene_id"].tolist()) == (["G1", "G2", "G3"], IDS)


def test_antibodies_and_flags_beside_the_libraries(tmp_path):
    adata = make_adata()
    adata.var["feature_types"] = ["Gene Expression", "Antibody Capture", "Gene Expression"]
    adata.uns["spatial"]["is_single"] = np.array([1])
    adata.obsm["spatial"] = pd.DataFrame(adata.obsm["spatial"], index=adata.obs_names, columns=["x", "y"])
    adata.obs["array_row"] = pd.Categorical(adata.obs["array_row"].astype(str))
    slide = read_anndata(write(adata, tmp_path / "a.h5ad"))
    assert slide.genes["symbol"].tolist() == ["G1", "G3"]
    np.testing.assert_array_equal(slide.counts.toarray(), [[0, 2], [3, 5], [9, 11]])
    assert slide.spots["array_row"].tolist() == [0, 1, 3]
    assert slide.slide_id == "LIB"


def test_the_column_that_names_the_libraries_is_found(tmp_path):
    adata = make_adata()
    adata.uns["spatial"]["B 2"] = adata.uns["spatial"]["LIB"]
    adata.obs["sample"] = pd.Categorical(["LIB", "B 2", "LIB", "B 2"])
    path = write(adata, tmp_path / "a.h5ad")
    slide = read_anndata(path, library_id="B 2")
    assert (slide.slide_id, list(slide.spots.index)) == ("B_2", ["AC-1", "AT-1"])
    with pytest.raises(ValueError, match=r"holds 2 libraries: \['B 2', 'LIB'\].*--slide-key sample"):
        read_anndata(path)
    assert read_anndata(path, slide_key="sample", slide_value="B 2").slide_id == "B_2"

"""HEST-1k, STimage-1K4M, Xenium and SpatialData, each in its exact layout."""

import json

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import tifffile
from layouts import assert_same, make_source
from PIL import Image

from delst_hf.data.readers.hest import find_hest_samples, read_hest
from delst_hf.data.readers.stimage import find_stimage_slides, read_stimage
from delst_hf.data.readers.xenium import read_xenium


@pytest.fixture
def source():
    return make_source()


# --- HEST-1k --------------------------------------------------------------------------------------------------------


def write_hest(root, source, sample="TENX1", image=True, patches=True):
    for name in ("st", "wsis", "patches", "metadata"):
        (root / name).mkdir(parents=True, exist_ok=True)
    adata = anndata.AnnData(
        X=sp.csr_matrix(source.counts.astype(np.float32)),
        obs=source.spots[["array_row", "array_col"]].assign(
            in_tissue=True, pxl_col_in_fullres=source.spots["x"], pxl_row_in_fullres=source.spots["y"]
        ),
        var=pd.DataFrame({"gene_ids": source.gene_ids}, index=source.symbols),
    )
    adata.obsm["spatial"] = source.spots[["x", "y"]].to_numpy()
    small = {"images": {"downscaled_fullres": source.pixels[::2, ::2]}}
    adata.uns["spatial"] = {"ST": {**small, "scalefactors": {"tissue_downscaled_fullres_scalef": 0.5}}}
    adata.write_h5ad(root / f"st/{sample}.h5ad")
    meta = {"id": sample, "dataset_title": "Breast study", "patient": "Patient 1", "species": "Homo sapiens",
            "organ": "Breast", "st_technology": "Visium", "pixel_size_um_estimated": 5.0,
            "pixel_size_um_embedded": None, "spot_diameter": 55.0, "inter_spot_dist": 100.0}  # fmt: skip
    (root / f"metadata/{sample}.json").write_text(json.dumps(meta))
    if image:
        with tifffile.TiffWriter(root / f"wsis/{sample}.tif", bigtiff=True) as file:
            file.write(source.pixels, tile=(64, 64), photometric="rgb", subifds=1)
            file.write(source.pixels[::2, ::2], tile=(64, 64), photometric="rgb", subfiletype=1)
    stored = np.random.default_rng(1).integers(0, 256, (11, 224, 224, 3), dtype=np.uint8)
    if patches:
        names = source.spots.index[:11][::-1]
        with h5py.File(root / f"patches/{sample}.h5", "w") as file:
            file.create_dataset("img", data=stored, chunks=(1, 224, 224, 3))
            file.create_dataset("coords", data=np.zeros((11, 2), int))
            file.create_dataset("barcode", data=np.array(names, dtype="S").reshape(-1, 1))
    return stored


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_hest_from_the_whole_slide_image(tmp_path, source):
    write_hest(tmp_path, source)
    slide = read_hest(tmp_path, "TENX1")
    assert_same(slide, source, mpp=5.0)
    assert (slide.species, slide.tissue, slide.technology, slide.spot_um) == ("Homo sapiens", "Breast", "Visium", 55.0)
    assert slide.patient_id == "Breast study / Patient 1"
    assert find_hest_samples(tmp_path) == ["TENX1"]
    with pytest.raises(FileNotFoundError, match=r"no sample 'X' in .*Available: \['TENX1'\]"):
        read_hest(tmp_path, "X")
    with pytest.raises(FileNotFoundError, match="no st/ in"):
        find_hest_samples(tmp_path / "st")


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_hest_from_stored_patches(tmp_path, source, caplog):
    stored = write_hest(tmp_path, source, image=False)
    slide = read_hest(tmp_path, "TENX1")
    slide.validate()
    assert "left out 1 spots without a stored patch" in caplog.text
    assert list(slide.spots.index) == list(source.spots.index[:11])
    np.testing.assert_array_equal(slide.counts.toarray(), source.counts[:11])
    for patch, expected in zip(slide.patches(112, 224), stored[::-1], strict=True):
        np.testing.assert_array_equal(np.asarray(patch), expected)
    half = np.asarray(next(slide.patches(56, 112)))
    np.testing.assert_array_equal(half, stored[10][56:168, 56:168])
    assert slide.mpp == pytest.approx(10.0)  # of the reduced image
    np.testing.assert_allclose(slide.spots[["x", "y"]], source.spots[["x", "y"]].to_numpy()[:11] / 2)
    np.testing.assert_array_equal(
        np.asarray(slide.select(slide.spots.index == "BARCODE04-1").cutter(112, 224)(0)), stored[6]
    )
    with pytest.raises(ValueError, match="stored patches are 112 um wide"):
        next(slide.patches(150, 224))
    write_hest(tmp_path, source, "TENX2", image=False, patches=False)
    with pytest.raises(FileNotFoundError, match=r"neither .*TENX2\.tif nor .*TENX2\.h5"):
        read_hest(tmp_path, "TENX2")
    (tmp_path / "patches/TENX2.h5").write_bytes((tmp_path / "patches/TENX1.h5").read_bytes()[:900])
    with pytest.raises(ValueError, match=r"cannot read .*TENX2\.h5.*download it again"):
        read_hest(tmp_path, "TENX2")


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_hest_metadata_from_the_table(tmp_path, source, caplog):
    write_hest(tmp_path, source)
    meta = json.loads((tmp_path / "metadata/TENX1.json").read_text())
    (tmp_path / "metadata/TENX1.json").unlink()
    pd.DataFrame([{**meta, "species": "Mus musculus"}]).to_csv(
        tmp_path / "HEST_v1_1_0.csv", index=False, encoding="utf-8-sig"
    )
    assert read_hest(tmp_path, "TENX1").species == "Mus musculus"
    (tmp_path / "HEST_v1_1_0.csv").unlink()
    with pytest.raises(ValueError, match=r"no pixel_size_um_estimated in its metadata.*--mpp"):
        read_hest(tmp_path, "TENX1")  # without metadata nobody says of which array the lattice is
    assert read_hest(tmp_path, "TENX1", mpp=0.5).patient_id == "TENX1"


# --- STimage-1K4M ---------------------------------------------------------------------------------------------------


def write_stimage(root, source, name="Human_Breast_Andersson_10142021_ST_A1"):
    for folder in ("ST/coord", "ST/gene_exp", "ST/image", "annotation", "meta"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:3, :4].reshape(2, -1)
    source.spots = pd.DataFrame(
        {"x": 100 + 40.0 * x, "y": 120 + 40.0 * y, "array_row": -1, "array_col": -1},
        index=[f"{name}_{a}x{b}" for a, b in zip(x, y, strict=True)],
    )
    pd.DataFrame({"yaxis": source.spots["y"], "xaxis": source.spots["x"], "r": 10.0}, index=source.spots.index).to_csv(
        root / f"ST/coord/{name}_coord.csv"
    )
    pd.DataFrame(source.counts, index=source.spots.index, columns=source.symbols).to_csv(
        root / f"ST/gene_exp/{name}_count.csv"
    )
    Image.fromarray(source.pixels).save(root / f"ST/image/{name}.png", format="TIFF")  # as the data set itself warns
    labels = pd.DataFrame({"V1": range(11), "V2": ["tumour", *["fat"] * 9, None]}, index=source.spots.index[:11])
    labels.to_csv(root / "annotation/Human_Breast_Andersson_10142021_ST_anno.csv", sep="\t")
    meta = pd.DataFrame({"slide": [name], "species": "human", "tissue": "breast", "tech": "ST"})
    meta.to_csv(root / "meta/meta_all_gene.csv", index=False, quoting=1)
    return name


def test_stimage(tmp_path, source):
    name = write_stimage(tmp_path, source)
    assert find_stimage_slides(tmp_path) == [name]
    for root in (tmp_path, tmp_path / "ST"):
        slide = read_stimage(root, name)
        assert_same(slide, source, mpp=5.0, with_ids=False)  # 40 px are 200 um, and a radius of 10 px is 50 um
        assert (slide.species, slide.tissue, slide.technology) == ("human", "breast", "Spatial Transcriptomics")
        assert slide.spots["label"].tolist() == ["tumour", *["fat"] * 9, None, None]
        assert slide.label_source == "annotation/Human_Breast_Andersson_10142021_ST_anno.csv"
    with pytest.raises(
        ValueError, match=r"(?s)disagree.*twice the radius r \(65 or 55 um = 20.0 px\): 3.2500 or 2.7500"
    ):
        read_stimage(tmp_path, name, spot_um=55).validate()
    with pytest.raises(FileNotFoundError, match=f"no slide 'X' in .*{name}"):
        read_stimage(tmp_path, "X")
    with pytest.raises(FileNotFoundError, match="none of ST, Visium, VisiumHD"):
        find_stimage_slides(tmp_path / "meta")
    coordinates = pd.read_csv(tmp_path / f"ST/coord/{name}_coord.csv", index_col=0)
    coordinates[:3].drop(columns="r").to_csv(tmp_path / f"ST/coord/{name}_coord.csv")  # too few for a lattice
    with pytest.raises(ValueError, match="no radius r in its coordinates.*--mpp"):
        read_stimage(tmp_path, name)
    coordinates.drop(columns="xaxis").to_csv(tmp_path / f"ST/coord/{name}_coord.csv")
    with pytest.raises(KeyError, match=r"columns \['xaxis'\] are missing"):
        read_stimage(tmp_path, name)


# --- Xenium ---------------------------------------------------------------------------------------------------------


def write_xenium(folder, form="parquet", seed=0):
    """3,000 transcripts of 5 genes and a control on 160 x 120 um, a quarter of them of low quality."""
    rng = np.random.default_rng(seed)
    names = np.array(["ACTB", "ERBB2", "KRT5", "CD3E", "MKI67", "NegControlProbe_00042"])
    table = pd.DataFrame(
        {
            "transcript_id": np.arange(3000, dtype=np.uint64), "cell_id": "UNASSIGNED", "overlaps_nucleus": 0,
            "feature_name": rng.choice(names, 3000), "x_location": rng.uniform(0, 160, 3000).astype(np.float32),
            "y_location": rng.uniform(0, 120, 3000).astype(np.float32), "z_location": 1.0,
            "qv": rng.choice([5.0, 20.0, 40.0, 40.0], 3000).astype(np.float32),
        }
    )  # fmt: skip
    if (
        "3" in form
    ):  # version 3 of the onboard analysis says what a codeword is; one control has the name of a gene here
        control = table["feature_name"].str.startswith("Neg")
        table["feature_name"] = table["feature_name"].where(~control, "Fiducial_1")
        table["codeword_category"] = np.where(control, "negative_control_probe", "predesigned_gene")
        if "is_gene" in form:
            table["is_gene"] = ~control
    folder.mkdir()
    if form.startswith("parquet"):
        stored = table  # versions up to 2 store bytes
        if "3" not in form:
            stored = table.assign(feature_name=table["feature_name"].str.encode("utf-8"))
        stored.to_parquet(folder / "transcripts.parquet", index=False)
    else:
        table.to_csv(folder / f"transcripts.{form.split()[0]}", index=False)
    (folder / "experiment.xenium").write_text(json.dumps({"pixel_size": 0.25, "panel_organism": "Human"}))
    return table[(table["qv"] >= 20) & ~table["feature_name"].str.startswith(("Neg", "Fiducial"))]


def expected_counts(table, grid):
    """By plain loops."""
    counts: dict = {}
    for name, x, y in zip(table["feature_name"], table["x_location"], table["y_location"], strict=True):
        key = f"{int(y // grid)}x{int(x // grid)}"
        counts.setdefault(key, {}).setdefault(name, 0)
        counts[key][name] += 1
    return counts


@pytest.mark.parametrize("form", ["parquet", "csv.gz", "csv", "parquet 3", "parquet 3 is_gene", "csv.gz 3 is_gene"])
def test_xenium_squares(tmp_path, source, form):
    kept = write_xenium(tmp_path / "out", form)
    Image.fromarray(np.asarray(Image.fromarray(source.pixels).resize((640, 480)))).save(tmp_path / "he.png")
    slide = read_xenium(tmp_path / "out", tmp_path / "he.png", grid_um=40, slide_id="X1")
    slide.validate()
    expected = expected_counts(kept, 40)
    assert set(slide.spots.index) == set(expected)
    for name, row in zip(slide.spots.index, slide.counts.toarray(), strict=True):
        assert {g: int(n) for g, n in zip(slide.genes["symbol"], row, strict=True) if n} == expected[name]
    assert slide.spots.loc["2x3", ["array_row", "array_col"]].tolist() == [2, 3]
    assert slide.spots.loc["2x3", ["x", "y"]].tolist() == [140 / 0.25, 100 / 0.25]
    assert (slide.mpp, slide.spot_um, slide.technology) == (0.25, 40.0, "Xenium")


def test_xenium_in_many_batches_and_with_the_ids_of_its_panel(tmp_path, source, monkeypatch):
    kept = write_xenium(tmp_path / "out")
    shift = kept.assign(x_location=kept["x_location"] - 100)  # squares left of the origin
    targets = [{"type": {"descriptor": "gene", "data": {"id": f"ENSG{i:011d}", "name": name}}}
               for i, name in enumerate(["CD3E", "ACTB"])]  # fmt: skip
    (tmp_path / "out" / "gene_panel.json").write_text(json.dumps({"payload": {"targets": targets}}))
    Image.fromarray(source.pixels).resize((640, 480)).save(tmp_path / "he.png")
    monkeypatch.setattr("delst_hf.data.readers.xenium._transcripts",
                        lambda folder: (shift[i : i + 100] for i in range(0, len(shift), 100)))  # fmt: skip
    slide = read_xenium(tmp_path / "out", tmp_path / "he.png", grid_um=40)
    ids = slide.genes.set_index("symbol")["gene_id"]
    assert (ids["CD3E"], ids["ACTB"], ids["KRT5"]) == ("ENSG00000000000", "ENSG00000000001", "")
    expected: dict = {}
    for name, x, y in zip(shift["feature_name"], shift["x_location"], shift["y_location"], strict=True):
        key = f"{int(np.floor(y / 40))}x{int(np.floor(x / 40))}", name
        expected[key] = expected.get(key, 0) + 1
    found = {(slide.spots.index[i], slide.genes["symbol"][j]): int(n)
             for i, j, n in zip(*sp.find(slide.counts), strict=True)}  # fmt: skip
    assert found == expected


def test_xenium_with_an_aligned_image(tmp_path, source):
    write_xenium(tmp_path / "out")
    Image.fromarray(source.pixels).save(tmp_path / "he.png")
    # H&E pixels to morphology pixels: turned by 90 degrees, twice as coarse, moved.
    matrix = np.array([[0.0, -2.0, 620.0], [2.0, 0.0, -40.0], [0.0, 0.0, 1.0]])
    np.savetxt(tmp_path / "align.csv", matrix, delimiter=",")
    slide = read_xenium(tmp_path / "out", tmp_path / "he.png", grid_um=40, alignment=tmp_path / "align.csv")
    assert slide.mpp == pytest.approx(0.5)
    x, y = slide.spots.loc["1x2", ["x", "y"]]
    np.testing.assert_allclose(matrix @ [x, y, 1], [100 / 0.25, 60 / 0.25, 1])
    np.savetxt(tmp_path / "align.csv", np.zeros((3, 3)), delimiter=",")
    with pytest.raises(ValueError, match="not an invertible 3 x 3 matrix"):
        read_xenium(tmp_path / "out", tmp_path / "he.png", alignment=tmp_path / "align.csv")


def test_xenium_mistakes(tmp_path, source):
    write_xenium(tmp_path / "out")
    Image.fromarray(source.pixels).save(tmp_path / "he.png")
    with pytest.raises(ValueError, match="grid_um is 0.*--grid-um"):
        read_xenium(tmp_path / "out", tmp_path / "he.png", grid_um=0)
    with pytest.raises(
        ValueError, match="none of 3000 transcripts is of a gene, with a name, a position and a quality of 99.*--min-qv"
    ):
        read_xenium(tmp_path / "out", tmp_path / "he.png", min_qv=99)
    with pytest.raises(FileNotFoundError, match="no transcripts.parquet"):
        read_xenium(tmp_path, tmp_path / "he.png")
    (tmp_path / "GSM1_R1_transcripts.csv.gz").touch()  # as archives hold them
    with pytest.raises(FileNotFoundError, match="There is GSM1_R1_transcripts.csv.gz: remove what stands before"):
        read_xenium(tmp_path, tmp_path / "he.png")


# --- SpatialData ----------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path, source):
    pytest.importorskip("spatialdata", reason="the optional extra spatialdata is not installed")
    import spatialdata
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    half = Scale([2.0, 2.0], axes=("x", "y"))  # the image is half as large as the frame of the spots
    image = Image2DModel.parse(
        source.pixels.transpose(2, 0, 1), dims=("c", "y", "x"), scale_factors=[2], transformations={"global": half}
    )
    points = source.spots[["x", "y"]].to_numpy() * 2
    shapes = ShapesModel.parse(points, geometry=0, radius=11.0, transformations={"global": Identity()})
    order = np.random.default_rng(0).permutation(12)
    adata = anndata.AnnData(
        X=sp.csr_matrix(source.counts[order].astype(np.float32)),
        obs=pd.DataFrame({"region": "spots", "instance": order, "kind": "t"}, index=source.spots.index[order]),
        var=pd.DataFrame({"gene_ids": source.gene_ids}, index=source.symbols),
    )
    adata.obs["region"] = adata.obs["region"].astype("category")
    table = TableModel.parse(adata, region="spots", region_key="region", instance_key="instance")
    data = spatialdata.SpatialData(images={"he": image}, shapes={"spots": shapes}, tables={"table": table})
    data.write(tmp_path / "s.zarr")
    return tmp_path / "s.zarr"


@pytest.mark.filterwarnings("ignore")
def test_spatialdata(store, source):
    from delst_hf.data.readers.spatialdata_zarr import read_spatialdata

    slide = read_spatialdata(store, spot_um=55.0, label_key="kind")
    assert_same(slide, source, mpp=5.0)  # circles of 22 are 11 px of the image: 55 um
    assert set(slide.spots["label"]) == {"t"}
    assert read_spatialdata(store, mpp=2.0).mpp == 2.0
    assert read_spatialdata(store).mpp == pytest.approx(5)  # by the lattice of its spots
    with pytest.raises(ValueError, match=r"image is 'x'. Choose one of \['he'\]"):
        read_spatialdata(store, image="x", mpp=1.0)
    with pytest.raises(KeyError, match="no column 'zone' in obs"):
        read_spatialdata(store, mpp=1.0, label_key="zone")
    with pytest.raises(FileNotFoundError, match="no folder at"):
        read_spatialdata(store / "none.zarr")


def test_spatialdata_is_an_extra(tmp_path, monkeypatch):
    from delst_hf.data.readers.spatialdata_zarr import read_spatialdata

    monkeypatch.setitem(__import__("sys").modules, "spatialdata", None)
    with pytest.raises(ImportError, match=r"pip install 'delst-hf\[spatialdata\]'"):
        read_spatialdata(tmp_path)

"""Which file belongs to which, in every format: never the first of several, never a hidden one, never two samples as one."""

import gzip
import shutil
import tarfile
from functools import partial

import numpy as np
import pandas as pd
import pytest
from layouts import assert_same, make_source, write_10x_h5, write_mtx, write_outs
from PIL import Image

from delst_hf.data.dataset import write_dataset
from delst_hf.data.files import is_hidden, only_one, split_prefix, visible
from delst_hf.data.names import check_slide_names
from delst_hf.data.readers.anndata_visium import anndata_slide_id, read_anndata
from delst_hf.data.readers.generic import read_generic
from delst_hf.data.readers.her2st import find_her2st_sections, locate_her2st
from delst_hf.data.readers.matrices import read_mtx
from delst_hf.data.readers.stimage import find_stimage_slides, read_stimage
from delst_hf.data.readers.visium import outs_name, read_visium
from delst_hf.data.samples import check_one_slide, signs_of_samples
from delst_hf.data.slide import make_slide_id

S1, S2 = "GSM0000001_S1_", "GSM0000002_S2_"


@pytest.fixture
def source():
    return make_source()


def pack(path):
    """Replace a file by its .gz."""
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def as_deposit(outs, folder, prefix, packed=True):
    """Files of a run side by side, a prefix before each name, all but HDF5 gzipped."""
    folder.mkdir(exist_ok=True)
    for path in [path for path in outs.rglob("*") if path.is_file()]:
        shutil.copy(path, folder / f"{prefix}{path.name}")
        if packed and path.suffix != ".h5":
            pack(folder / f"{prefix}{path.name}")
    return folder


def tar(folder, path, names=None):
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for entry in sorted(folder.iterdir()):
            archive.add(entry, entry.name)
    return path


def test_hidden_files_are_nobodys_data(tmp_path):
    for name in ("._x.h5", ".DS_Store", "~$sheet.csv", "counts.csv~", "Thumbs.db", ".~lock.sheet.csv#", "seen.h5"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in visible(tmp_path)] == ["seen.h5"] and is_hidden("__MACOSX")
    assert visible(tmp_path / "nowhere") == []


@pytest.mark.parametrize("counts", ["h5", "mtx"])
def test_sidecars_of_a_mac_are_ignored_in_a_run(tmp_path, source, counts):
    outs = write_outs(tmp_path / "outs", source, counts=counts)
    for path in [path for path in outs.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07" + bytes(200))
    assert_same(read_visium(outs), source, 0.5)


def test_sidecars_are_ignored_in_a_collection(tmp_path):
    for folder, name in (("coord", "A1_coord.csv"), ("gene_exp", "A1_count.csv"), ("image", "A1.png")):
        (tmp_path / "ST" / folder).mkdir(parents=True)
        for one in (name, f"._{name}"):
            (tmp_path / "ST" / folder / one).write_bytes(b"x")
    assert find_stimage_slides(tmp_path) == ["A1"]


def test_sidecars_are_ignored_and_counts_compared_in_the_layout_of_her2st(tmp_path):
    images = ("ST-imgs/A/A1/he.jpg", "ST-imgs/A/A1/._he.jpg")
    for name in ("ST-cnts/A1.tsv", "ST-cnts/._A1.tsv", "ST-spotfiles/A1_selection.tsv", *images):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"x")
    assert find_her2st_sections(tmp_path) == ["A1"]
    assert locate_her2st(tmp_path, "A1").image.name == "he.jpg"
    (tmp_path / "data" / "ST-cnts" / "A1.tsv.gz").write_bytes(gzip.compress(b"y"))
    with pytest.raises(ValueError, match=r"2 candidates for the counts of section 'A1': A1.tsv.gz, A1.tsv"):
        locate_her2st(tmp_path, "A1")


def test_one_slide_in_two_folders_of_a_collection_is_refused(tmp_path):
    for technology in ("ST", "Visium"):
        (tmp_path / technology / "coord").mkdir(parents=True)
        (tmp_path / technology / "coord" / "A1_coord.csv").write_text(f",xaxis,yaxis\n{technology},1,2\n")
    with pytest.raises(
        ValueError, match=r"2 candidates for the coordinates of A1: .*Give the folder of one technology"
    ):
        read_stimage(tmp_path, "A1")


def test_candidates_are_listed_unless_they_are_copies(tmp_path):
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("1"), second.write_text("2")
    with pytest.raises(ValueError, match=r"holds 2 candidates for the counts: a.csv, b.csv. Keep one."):
        only_one([first, second], "the counts", "Keep one.")
    second.write_text("1")
    pack(second)
    assert only_one([first, tmp_path / "b.csv.gz"], "the counts", "Keep one.") == first
    assert only_one([], "the counts", "Keep one.") is None
    assert split_prefix("GSM1_S1_matrix.mtx", r"matrix\.mtx") == "GSM1_S1"
    assert split_prefix("matrix.mtx", r"matrix\.mtx") == "" and split_prefix("xmatrix.mtx", r"matrix\.mtx") is None


def test_counts_of_two_samples_are_refused_and_one_is_read_by_its_prefix(tmp_path, source):
    outs = write_outs(tmp_path / "outs", source)
    (outs / "filtered_feature_bc_matrix.h5").rename(outs / f"{S2}filtered_feature_bc_matrix.h5")
    write_10x_h5(outs / f"{S1}filtered_feature_bc_matrix.h5", make_source(seed=5))
    with pytest.raises(ValueError, match=f"{S1}filtered.*, {S2}filtered.*--prefix"):
        read_visium(outs)
    slide = read_visium(outs, prefix=S2)
    assert_same(slide, source, 0.5)
    assert slide.slide_id == "GSM0000002_S2"
    with pytest.raises(FileNotFoundError, match=r"begins with 'GSM3'. Available: \['GSM0000001_S1'"):
        read_visium(outs, prefix="GSM3")


def test_files_whose_beginnings_differ_do_not_join(tmp_path, source):
    outs = write_outs(tmp_path / "outs", source)
    folder = as_deposit(outs, tmp_path / "flat", S2)
    (folder / f"{S2}filtered_feature_bc_matrix.h5").unlink()
    write_10x_h5(folder / f"{S1}filtered_feature_bc_matrix.h5", make_source(seed=5))
    with pytest.raises(ValueError, match=r"are of 2 samples: GSM0000001_S1_filtered.*the same barcodes"):
        read_visium(folder)


@pytest.mark.parametrize("counts", ["h5", "mtx"])
def test_the_names_of_a_deposit_are_read(tmp_path, source, counts):
    outs = write_outs(tmp_path / "outs", source, "list", counts)
    flat = as_deposit(outs, tmp_path / "flat", S1, packed=counts == "h5")
    assert_same(read_visium(flat), source, 0.5)
    assert_same(read_visium(tar(flat, tmp_path / "GSE1_RAW.tar")), source, 0.5)
    # 10x's own downloads: counts beside spatial.tar.gz
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    inner = tmp_path / "inner"
    shutil.copytree(outs / "spatial", inner / "spatial")
    tar(inner, shelf / "V1_Breast_spatial.tar.gz")
    if counts == "h5":
        shutil.copy(outs / "filtered_feature_bc_matrix.h5", shelf / "V1_Breast_filtered_feature_bc_matrix.h5")
    else:
        matrix = tmp_path / "packed"
        shutil.copytree(outs / "filtered_feature_bc_matrix", matrix / "filtered_feature_bc_matrix")
        tar(matrix, shelf / "V1_Breast_filtered_feature_bc_matrix.tar.gz")
    assert_same(read_visium(shelf), source, 0.5)


def test_two_samples_within_one_tar_are_chosen_by_prefix(tmp_path, source):
    flat = as_deposit(write_outs(tmp_path / "a" / "outs", source), tmp_path / "flat", S1)
    other = make_source(seed=5)
    as_deposit(write_outs(tmp_path / "b" / "outs", other), flat, S2)
    path = tar(flat, tmp_path / "GSE1_RAW.tar")
    with pytest.raises(ValueError, match="--prefix"):
        read_visium(path)
    assert_same(read_visium(path, prefix=S1), source, 0.5)
    assert_same(read_visium(path, prefix=S2), other, 0.5)


def test_an_archive_that_leads_out_is_refused(tmp_path, source):
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("spatial/link")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(ValueError, match="holds 'spatial/link', which is a link or leads out"):
        read_visium(path)


def test_two_tables_of_positions_must_be_one(tmp_path, source):
    outs = write_outs(tmp_path / "outs", source)
    table = pd.read_csv(outs / "spatial" / "tissue_positions.csv")
    table.to_csv(outs / "spatial" / "tissue_positions_list.csv", index=False, header=False)
    assert_same(read_visium(outs), source, 0.5)
    table["pxl_row_in_fullres"] += 1
    table.to_csv(outs / "spatial" / "tissue_positions_list.csv", index=False, header=False)
    with pytest.raises(
        ValueError, match=r"2 different tables of positions: tissue_positions.csv, tissue_positions_list"
    ):
        read_visium(outs)


def test_several_matrices_in_a_folder_are_refused(tmp_path, source):
    write_mtx(tmp_path / "mtx", source)
    for path in list((tmp_path / "mtx").iterdir()):
        shutil.copy(path, path.with_name(f"A_{path.name}"))
    copies = read_mtx(tmp_path / "mtx")
    assert copies.matrix.sum() == source.counts.sum()
    with gzip.open(tmp_path / "mtx" / "A_matrix.mtx.gz", "at") as file:
        file.write("%\n")
    with pytest.raises(ValueError, match=r"A_matrix.mtx.gz, matrix.mtx.gz. Give the file itself"):
        read_mtx(tmp_path / "mtx")


# --- two samples in one file


def joined(seed=0, **names):
    """Two sections of the same array, joined as anndata.concat joins them, with one image."""
    import anndata

    source = make_source(seed)
    parts = []
    for number, suffix in enumerate(names.get("suffixes", ("", ""))):
        obs = source.spots[["array_row", "array_col"]].set_axis(
            [f"{name}{suffix}" for name in nucleotides(source, number)]
        )
        adata = anndata.AnnData(source.counts.astype(np.float32), obs=obs, var=pd.DataFrame(index=list("ABCDEF")))
        adata.obsm["spatial"] = source.spots[["x", "y"]].to_numpy() + names.get("shift", 0) * number
        adata.obs["sample"] = f"s{number + 1}" if names.get("column") else "one"
        adata.obs["array_row"] += 100 * number if names.get("shift") else 0
        parts.append(adata)
    both = anndata.concat(parts)
    both.uns["spatial"] = {"LIB": {"images": {"hires": source.pixels}, "scalefactors": {
        "tissue_hires_scalef": 1.0, "spot_diameter_fullres": 11.0}}}  # fmt: skip
    return both


def nucleotides(source, seed):
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("ACGT"), 16)) for _ in source.spots.index]


@pytest.mark.parametrize(("how", "match"), [
    ({"suffixes": ("-1", "-2"), "shift": 3}, r"barcodes are of 2 kinds, '...-1', '...-2'"),
    ({"suffixes": ("-1_a", "-1_b"), "shift": 3}, r"barcodes are of 2 kinds"),
    ({"column": True, "shift": 3}, r"the column 'sample' names 2, 's1', 's2'.*--slide-key"),
    ({}, r"12 of 24 array positions occur more than once"),
])  # fmt: skip
def test_two_sections_in_one_anndata_are_refused_unless_insisted_on(tmp_path, how, match):
    joined(**how).write_h5ad(tmp_path / "both.h5ad")
    slide = read_anndata(tmp_path / "both.h5ad", mpp=5.0)
    with pytest.raises(ValueError, match=match):
        check_one_slide(slide)
    with pytest.raises(ValueError, match="is several samples on one image.*--one-slide"):
        write_dataset([slide], tmp_path / "out", patch_px=32, patch_um=60)
    if how:
        summary = write_dataset([slide], tmp_path / "out", patch_px=32, patch_um=60, one_slide=True, off_tissue="allow")
        assert summary.slides == {"LIB": 24}


def test_one_image_for_two_sections_at_the_same_places_is_refused_for_each(tmp_path):
    joined(column=True).write_h5ad(tmp_path / "both.h5ad")
    read = partial(read_anndata, tmp_path / "both.h5ad", slide_key="sample", mpp=5.0)
    words = r"has one image, 'LIB', for several slides: 12 spots of 's1' have the positions of spots of other"
    with pytest.raises(ValueError, match=words):
        read(slide_value="s1")
    assert len(read(slide_value="s1", library_id="LIB").spots) == 12  # who names the image knows
    joined(column=True, shift=3).write_h5ad(tmp_path / "both.h5ad")  # two sections beside each other on one image
    assert len(read(slide_value="s2").spots) == 12


def test_an_image_of_ones_own_makes_no_slide_of_two_sections(tmp_path):
    joined(column=True, shift=3).write_h5ad(tmp_path / "both.h5ad")
    Image.fromarray(make_source().pixels).save(tmp_path / "he.png")
    slide = read_anndata(tmp_path / "both.h5ad", mpp=5.0, image=tmp_path / "he.png")
    with pytest.raises(ValueError, match="the column 'sample' names 2, 's1', 's2'"):
        check_one_slide(slide)


def test_sections_joined_without_new_names_are_refused_in_words(tmp_path):
    both = joined(column=True, shift=3)
    both.obs_names = [*both.obs_names[:12], *both.obs_names[:12]]
    both.write_h5ad(tmp_path / "both.h5ad")
    with pytest.raises(ValueError, match=r"12 barcodes are duplicated.*split them first"):
        read_anndata(tmp_path / "both.h5ad", mpp=5.0).validate()


def write_tables(folder, source, **columns):
    Image.fromarray(source.pixels).save(folder / "he.png")
    pd.DataFrame(source.counts, source.spots.index, list("ABCDEF")).to_csv(folder / "counts.csv")
    source.spots[["x", "y"]].assign(**columns).to_csv(folder / "spots.csv", index_label="barcode")
    return folder / "he.png", folder / "counts.csv", folder / "spots.csv"


def test_a_table_of_two_samples_is_refused_and_one_is_chosen(tmp_path, source):
    files = write_tables(tmp_path, source, library_id=["007"] * 5 + ["8"] * 7)
    with pytest.raises(ValueError, match=r"the column 'library_id' names 2, '007', '8'.*--slide-column COLUMN"):
        check_one_slide(read_generic(*files, mpp=5.0))
    chosen = read_generic(*files, mpp=5.0, slide_column="library_id", slide_value="007")
    assert chosen.spots.index.tolist() == source.spots.index[:5].tolist()
    check_one_slide(chosen)
    with pytest.raises(ValueError, match=r"library_id is None. Choose one of \['007', '8'\] \(--slide-value\)"):
        read_generic(*files, mpp=5.0, slide_column="library_id")
    with pytest.raises(KeyError, match="no column 'slid'.*--slide-column"):
        read_generic(*files, mpp=5.0, slide_column="slid", slide_value="1")


def test_a_sound_slide_is_one(tmp_path, source):
    check_one_slide(read_generic(*write_tables(tmp_path, source, sample="S1", batch=1), mpp=5.0))
    check_one_slide(read_visium(write_outs(tmp_path / "outs", source)))


def table_of(xy):
    return pd.DataFrame({"x": xy[:, 0], "y": xy[:, 1], "array_row": -1, "array_col": -1})


def hexagons(side=20):
    return np.array([(100.0 * (c + r % 2 / 2), 86.6 * r) for r in range(side) for c in range(side)])


@pytest.mark.parametrize("shift", [(5, 0), (-10, 20), (0, -30)])
def test_sections_laid_on_one_another_with_a_shift_are_several(shift):
    """Nothing but their places tells: no array positions, no names of samples."""
    rng = np.random.default_rng(0)
    first = hexagons() + rng.normal(0, 0.5, (400, 2))
    both = np.concatenate([first, (hexagons() + shift)[rng.random(400) < 0.8]])
    (sign,) = signs_of_samples(table_of(both))
    assert sign.startswith(tuple(f"{n} of {len(both)} spots have another " for n in range(600, 700)))
    assert "as two sections laid on one another" in sign


def test_single_sections_of_every_kind_are_one(shared_dir):
    rng = np.random.default_rng(0)
    squares, cells = np.argwhere(np.ones((40, 40))) * 8.0, rng.uniform(0, 3000, (4000, 2))
    sixths = np.array([(25, 14.4), (25, -14.4), (-25, 14.4), (-25, -14.4), (0, 28.9), (0, -28.9)])  # BayesSpace
    slides = [hexagons(), hexagons()[rng.random(400) < 0.4], squares, np.rint(squares / 3), squares * (1, 4), cells,
              squares[squares[:, 1] % 24 < 16], squares + rng.normal(0, 2, squares.shape),
              np.concatenate([cells, cells[:400] + (3, 0)]), np.concatenate([hexagons() + one for one in sixths])]  # fmt: skip
    for file in sorted(shared_dir.glob("data/her2st/data/ST-spotfiles/*.tsv")):
        slides.append(pd.read_csv(file, sep="\t")[["pixel_x", "pixel_y"]].to_numpy(float))
    assert [list(signs_of_samples(table_of(one))) for one in slides] == [[]] * len(slides)


# --- names


@pytest.mark.parametrize("names", [("A", "A"), ("toy_a", "toy_A")])
def test_names_that_meet_are_refused_before_anything_is_read(tmp_path, names):
    def never(*_, **__):
        raise AssertionError("a slide was read")

    jobs = [partial(never, f"{i}/outs", slide_id=name) for i, name in enumerate(names)]
    with pytest.raises(ValueError, match=r"0/outs.*--slide-id A,B"):
        write_dataset(jobs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert check_slide_names(iter(jobs)) is not None  # a generator is left alone


def test_a_name_that_is_none_of_a_file_is_refused_before_anything_is_read(tmp_path):
    def read(path, slide_id):
        raise AssertionError("a slide was read before its name was looked at")

    with pytest.raises(ValueError, match=r"slide_id 'my slide' cannot name a file.*--slide-id"):
        write_dataset([partial(read, "S1", slide_id="my slide")], tmp_path / "out")


def test_different_names_stay_different():
    assert outs_name("/data/P1/spaceranger/outs") == "P1" and outs_name("/data/P2/spaceranger/outs") == "P2"
    assert make_slide_id("肝") != make_slide_id("肺") and make_slide_id("Tumör 1") == "Tumor_1"
    assert len({make_slide_id(name) for name in ("β", "δ", "切片", "slide")}) == 4


def test_the_name_of_an_anndata_is_known_before_it_is_read(tmp_path):
    adata = joined()
    adata.write_h5ad(tmp_path / "both.h5ad")
    adata.write_zarr(tmp_path / "both.zarr")
    assert anndata_slide_id(tmp_path / "both.h5ad") == anndata_slide_id(tmp_path / "both.zarr") == "LIB"
    del adata.uns["spatial"]
    adata.write_h5ad(tmp_path / "plain.h5ad")
    assert anndata_slide_id(tmp_path / "plain.h5ad") == "plain"

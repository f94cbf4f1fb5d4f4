"""A dataset folder that was damaged, in every way that was seen: refused by whoever opens it, and never read wrongly."""

import json
import logging
import os
import shutil
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from delst_hf.data.dataset import merge_datasets, write_dataset
from delst_hf.data.folder import check_gene_indices, open_folder
from delst_hf.data.schema import MANIFEST
from delst_hf.data.study import Study
from delst_hf.data.toy import make_toy_slide
from delst_hf.errors import explain
from delst_hf.record import license_of, read_header

pytestmark = pytest.mark.fault("damaged dataset folders")

SIZE = {"patch_um": 40, "patch_px": 20}
small = partial(make_toy_slide, spots_per_side=3, num_genes=20, image_px=90)
FILE = "spots/toy_A1.parquet"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "data"
    write_dataset([small("toy_A1"), small("toy_B1")], folder, preview=True, **SIZE)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "data")


def rewrite(path, change):
    """Write a parquet file again with other rows."""
    pq.write_table(change(pq.read_table(path, partitioning=None)), path, row_group_size=100)


def replaced(name, change):
    def change_table(table):
        place = table.schema.get_field_index(name)
        return table.set_column(
            place, table.schema.field(name), pa.array(change(table[name].to_pylist()), table.schema.field(name).type)
        )

    return change_table


def test_the_manifest_says_what_is_there(original):
    manifest = json.loads((original / MANIFEST).read_text())
    files = {path.relative_to(original).as_posix() for path in original.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == files - {MANIFEST}
    assert manifest["slides"] == {"toy_A1": 9, "toy_B1": 9} and manifest["genes"] == 20
    opened = open_folder(original, verify=True)
    assert opened.rows == manifest["slides"]
    assert set(opened.files) == files


def test_every_missing_or_cut_file_is_found(folder, original):
    for name in json.loads((folder / MANIFEST).read_text())["files"]:
        (folder / name).unlink()
        with pytest.raises(ValueError, match=f"{name} is missing or not a regular file.*delst prepare"):
            open_folder(folder)
        if name != "README.md":
            (folder / name).write_bytes((original / name).read_bytes()[:-9])
            with pytest.raises(ValueError, match=f"{name} has [0-9,]+ bytes instead of"):
                open_folder(folder)
        shutil.copyfile(original / name, folder / name)
    assert open_folder(folder).rows == {"toy_A1": 9, "toy_B1": 9}


@pytest.mark.parametrize("manifest", [True, False])
def test_pipes_and_links_to_themselves_are_no_files(folder, manifest):
    if not manifest:
        (folder / MANIFEST).unlink()
    for make in (os.mkfifo, lambda path: path.symlink_to(path.name), lambda path: path.mkdir()):
        path = folder / FILE
        (path.rmdir if path.is_dir() and not path.is_symlink() else path.unlink)()
        make(path)
        with pytest.raises(ValueError, match=f"{FILE} is missing or not a regular file"):
            open_folder(folder)
        with pytest.raises(ValueError, match=FILE):
            merge_datasets([folder], folder.parent / "merged")


def test_a_flipped_bit_is_found_or_changes_nothing(folder, tmp_path):
    """Anywhere in the file: by the checksum when asked; without, by the page's checksum when it is read."""
    path = folder / FILE
    good, expected = path.read_bytes(), Study.load(folder).spots.remove_columns("image").to_pandas()
    random = np.random.default_rng(0)
    seen = []
    for place in random.integers(0, len(good), 12).tolist():
        changed = bytearray(good)
        changed[place] ^= 1 << int(random.integers(8))
        path.write_bytes(changed)
        with pytest.raises(ValueError, match="does not match its checksum|complete parquet file"):
            open_folder(folder, verify=True)
        try:
            found = Study.load(folder, cache_dir=str(tmp_path / "cache")).spots.remove_columns("image").to_pandas()
        except ValueError as error:
            seen.append("refused" if str(folder) in str(error) else f"not named: {error}")
        else:
            assert found.equals(expected)
            seen.append("the same")
    assert "refused" in seen and set(seen) <= {"refused", "the same"}


def test_the_cache_does_not_answer_for_a_changed_file(folder):
    """Also where size and time of modification are put back."""
    (folder / MANIFEST).unlink()
    first = Study.load(folder).spots["x"][:]
    before = (folder / FILE).stat()
    rewrite(folder / FILE, replaced("x", lambda values: [value + 1 for value in values]))
    os.utime(folder / FILE, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = Study.load(folder).spots["x"][:]
    assert second[:9] == [value + 1 for value in first[:9]] and second[9:] == first[9:]


def as_text(name):
    return lambda table: table.set_column(table.schema.get_field_index(name), name, pc.cast(table[name], pa.string()))


OUTSIDE = {"bytes": None, "path": "/etc/hostname"}
DAMAGE = {
    "negative gene": (replaced("gene_indices", lambda rows: [[-1, *row[1:]] for row in rows]), "gene_indices .* from -1 to"),
    "gene beyond the table": (
        replaced("gene_indices", lambda rows: [[*row[:-1], 20] for row in rows]), "to 20, but there are 20 genes"
    ),
    "negative counts": (replaced("gene_counts", lambda rows: [[-5, *row[1:]] for row in rows]), "gene_counts .*down to -5"),
    "wrong totals": (replaced("total_counts", lambda rows: [0] * len(rows)), "total_counts is not the sum"),
    "wrong numbers of genes": (replaced("n_genes", lambda rows: [1] * len(rows)), "n_genes is not the number"),
    "another slide": (replaced("slide_id", lambda rows: ["toy_Z9"] * len(rows)), "spots of another slide, 'toy_Z9'"),
    "one spot of another slide": (replaced("slide_id", lambda rows: ["toy_B1", *rows[1:]]), "spots of another slide, 'toy_B1'"),
    "a barcode twice": (replaced("barcode", lambda rows: [rows[1], *rows[1:]]), "barcodes of slide 'toy_A1' are not unique"),
    "a column gone": (lambda table: table.drop_columns(["barcode"]), "has no column barcode"),
    "a column of another type": (as_text("n_genes"), "column n_genes .*type string instead of int32"),
    "fewer rows": (lambda table: table.slice(1), "states 18 spots, but the files hold 17"),
    "no rows": (lambda table: table.slice(0, 0), "slide 'toy_A1' has no spots"),
    "images by path": (replaced("image", lambda rows: [OUTSIDE] * len(rows)), "are paths in place of bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_rows_that_cannot_be_are_refused_with_and_without_a_manifest(folder, name):
    change, match = DAMAGE[name]
    rewrite(folder / FILE, change)
    with pytest.raises(ValueError, match=rf"{FILE} has [0-9,]+ bytes instead of"):
        Study.load(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(ValueError, match=match):
        Study.load(folder)
    with pytest.raises(ValueError, match=match):
        merge_datasets([folder], folder.parent / "merged")
    assert not (folder.parent / "merged").exists()


def test_a_manifest_that_agrees_with_wrong_rows_does_not_save_them(folder):
    """A stranger can write a manifest: ranges are looked at all the same."""
    path = folder / FILE
    rewrite(path, DAMAGE["negative gene"][0])
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][FILE]["bytes"] = path.stat().st_size
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="gene_indices of .* from -1 to"):
        Study.load(folder)
    with pytest.raises(ValueError, match="gene_indices go from -1 to 3, but there are 4 genes"):
        check_gene_indices(np.array([3, -1]), 4)


def test_slides_and_spots_belong_together(folder):
    shutil.copyfile(folder / FILE, folder / "spots" / "toy_C1.parquet")
    with pytest.raises(ValueError, match=r"spots/toy_C1.parquet is not in manifest.json"):
        open_folder(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(ValueError, match="toy_C1.parquet holds spots of another slide, 'toy_A1'"):
        open_folder(folder)
    (folder / "spots" / "toy_C1.parquet").unlink()
    rewrite(folder / "slides" / "slides.parquet", lambda table: table.slice(1))
    with pytest.raises(ValueError, match="spots of 'toy_A1' belong to no row of slides"):
        open_folder(folder)


HEAD = '{"format": "delst-dataset-1", "genes": 1, "slides": {}, '


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "is not the manifest of a dataset folder"),
        ("[" * 100_000, "is not the manifest of a dataset folder"),
        ('{"format": "delst-dataset-9", "files": {}, "slides": {}}', "is of format 'delst-dataset-9'; this version reads"),
        (HEAD + '"files": {"../../x.parquet": {"bytes": 1}}}', "names .*x.parquet"),
        (HEAD + '"files": {"spots/a.parquet": {"bytes": -1}}}', "not numbers"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(folder, text, match):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=match):
        open_folder(folder)


def test_a_folder_of_an_older_version_opens(folder, caplog):
    (folder / MANIFEST).unlink()
    with caplog.at_level(logging.INFO):
        study = Study.load(folder, verify=True)
    assert "has no manifest.json (it is of an older version)" in caplog.text
    assert len(study.spots) == 18


def test_a_readme_does_not_lead_out_of_the_folder(folder, tmp_path):
    (tmp_path / "secret.parquet").write_bytes((folder / FILE).read_bytes())
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    header = yaml.safe_load(header)
    header["configs"][0]["data_files"] = [{"split": "train", "path": "../secret.parquet"}]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(header)}---\n{text}")
    assert len(Study.load(folder).spots) == 18


def test_links_are_not_merged(folder, tmp_path):
    (tmp_path / "secret").write_text("mine")
    (folder / "previews" / "toy_A1.png").unlink()
    (folder / "previews" / "toy_A1.png").symlink_to(tmp_path / "secret")
    for manifest in (True, False):
        if not manifest:
            (folder / MANIFEST).unlink()
        with pytest.raises(ValueError, match="bytes instead of|holds symlinks .*toy_A1.png"):
            merge_datasets([folder], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_flipped_bit_is_not_merged(folder, tmp_path):
    """Wherever it is in a file that is copied as it is: the copy would pass for whole."""
    original = (folder / FILE).read_bytes()
    for position in range(200, len(original) - 8, len(original) // 6):
        data = bytearray(original)
        data[position] ^= 2
        (folder / FILE).write_bytes(data)
        with pytest.raises(
            ValueError, match=r"toy_A1.parquet.*(does not match the checksum|not a complete parquet|CRC)"
        ):
            merge_datasets([folder], tmp_path / "merged")
        assert not (tmp_path / "merged").exists()


def test_strangers_are_left_behind_by_a_merge(folder, tmp_path):
    (folder / "previews" / "notes.txt").write_text("mine")
    (folder / "spots" / ".env").write_text("TOKEN=1")
    merge_datasets([folder], tmp_path / "merged")
    names = {path.name for path in (tmp_path / "merged").rglob("*")}
    assert not names & {"notes.txt", ".env"} and "toy_A1.png" in names


def test_a_shard_that_is_missing_is_named(tmp_path):
    jobs = [partial(small, f"toy_{name}1") for name in "ABCDE"]
    folders = []
    for index in range(3):
        folders.append(tmp_path / f"d-{index:05d}-of-00003")
        part = jobs[5 * index // 3 : 5 * (index + 1) // 3]
        write_dataset(part, folders[-1], shard_of={"index": index, "of": 3, "slides": 5}, **SIZE)
    with pytest.raises(ValueError, match="parts of 3, and .*d-00001-of-00003 is missing.*delst prepare"):
        merge_datasets([folders[0], folders[2]], tmp_path / "d")
    (folders[0] / MANIFEST).unlink()
    (folders[2] / MANIFEST).unlink()
    with pytest.raises(ValueError, match="d-00001-of-00003 is missing"):
        merge_datasets([folders[0], folders[2]], tmp_path / "d")
    assert list(merge_datasets(folders, tmp_path / "d").slides) == [f"toy_{name}1" for name in "ABCDE"]


def test_a_license_in_words_is_kept(tmp_path):
    for name, slide in (("a", "toy_A1"), ("b", "toy_B1")):
        write_dataset([small(slide)], tmp_path / name, license="Ours: 'as is',\nno \"warranty\"", **SIZE)
    merge_datasets([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")
    assert license_of(read_header(tmp_path / "ab" / "README.md")) == "Ours: 'as is',\nno \"warranty\""


@pytest.mark.parametrize("said", ["Couldn't deserialize thrift: std::bad_alloc", "Failed to launch worker thread"])
@pytest.mark.parametrize("reader", ["ParquetFile", "read_metadata"])
def test_a_table_that_there_is_no_memory_for_is_not_called_damaged(folder, monkeypatch, said, reader):
    def refused(*given, **options):
        raise pa.ArrowException(f"Unknown error: {said}: Resource temporarily unavailable")

    monkeypatch.setattr(pq, reader, refused)
    with pytest.raises(pa.ArrowException) as raised:
        open_folder(folder)
    assert "memory ran out" in explain(raised.value) and "machine with more memory" in explain(raised.value)

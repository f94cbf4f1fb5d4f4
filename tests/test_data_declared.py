"""Sizes and codecs that a file declares are looked at before a library obeys them."""

import gzip
import json
import os

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from layouts import make_source, write_10x_h5, write_mtx
from PIL import Image
from scipy import sparse

from delst_hf.data.counts import describe_bad_counts
from delst_hf.data.declared import check_declared, check_hdf5, check_zarr, free_memory
from delst_hf.data.images import open_image, read_image
from delst_hf.data.readers.anndata_file import open_anndata
from delst_hf.data.readers.matrices import read_10x_h5, read_counts, read_mtx
from delst_hf.data.readers.tables import read_table
from delst_hf.data.vocabulary_file import gene_names_of
from delst_hf.evaluation.arrays import read_embeddings
from delst_hf.evaluation.protocols.signatures import read_signatures
from delst_hf.evaluation.results import FORMAT, read_results

pytestmark = pytest.mark.fault("declared sizes and codecs")


def test_more_than_memory_and_more_than_the_file_are_refused():
    assert free_memory() > 1 << 20
    with pytest.raises(ValueError, match=r"x.h5 declares a cube: reading it takes 1e\+03.*memory are free"):
        check_declared(1000 * 2**30, "x.h5", "a cube")
    with pytest.raises(ValueError, match=r"x.h5 declares a cube, 1 GiB, but holds 0.00\d+ MiB"):
        check_declared(1 << 30, "x.h5", "a cube", stored=1000)
    check_declared(1 << 20, "x.h5", "a cube", stored=1000)


@pytest.mark.parametrize("sizes", ["30000 3000 100000000000", "300000 300000", "1000000000000 3 1", "-1 3 1", "x"])
def test_an_mtx_of_absurd_size_is_refused_and_the_process_lives(tmp_path, sizes):
    write_mtx(tmp_path / "mtx", make_source())
    kind = "array" if len(sizes.split()) == 2 else "coordinate"
    with gzip.open(tmp_path / "mtx" / "matrix.mtx.gz", "wt") as file:
        file.write(f"%%MatrixMarket matrix {kind} integer general\n% a comment\n{sizes}\n1 1 1\n")
    with pytest.raises(ValueError, match=r"matrix.mtx.gz"):
        read_mtx(tmp_path / "mtx")


def test_arrays_of_an_hdf5_file_that_nothing_stores_are_refused(tmp_path):
    source = make_source()
    write_10x_h5(tmp_path / "x.h5", source)
    assert read_10x_h5(tmp_path / "x.h5").matrix[:, :6].sum() == source.counts.sum()
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        del file["matrix/data"]
        file.create_dataset("matrix/data", shape=(1 << 33,), dtype="i4", chunks=(1 << 20,), compression="gzip")
    with pytest.raises(ValueError, match=r"declares matrix/data of shape \(8589934592,\), 32 GiB, but holds 0 MiB"):
        read_10x_h5(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5ad", "w") as file:
        file.create_dataset("X", shape=(1 << 20, 1 << 20), dtype="f4", chunks=(1024, 1024))
    with pytest.raises(ValueError, match=r"x.h5ad declares X of shape"):
        open_anndata(tmp_path / "x.h5ad")
    with pytest.raises(ValueError, match=r"x.h5ad declares X of shape"):
        check_hdf5(tmp_path / "x.h5ad")


def test_a_table_of_too_many_columns_or_rows_is_refused(tmp_path):
    with gzip.open(tmp_path / "wide.csv.gz", "wb", compresslevel=1) as file:
        for _ in range(30):
            file.write(b"a," * 100_000)
    for read in (read_table, read_counts):
        with pytest.raises(ValueError, match=r"wide.csv.gz has more than 2000000 columns"):
            read(tmp_path / "wide.csv.gz")
    pd.DataFrame({"x": np.zeros(10)}).to_parquet(tmp_path / "long.parquet")
    assert len(read_table(tmp_path / "long.parquet")) == 10


def test_an_image_larger_than_its_file_can_be_is_refused(tmp_path, monkeypatch):
    Image.new("1", (40_000, 30_000)).save(tmp_path / "bomb.png")
    with pytest.raises(
        ValueError, match=r"bomb.png declares an image of 40000 x 30000 px.*holds 0.\d+ MiB|memory are free"
    ):
        read_image(tmp_path / "bomb.png")


def test_a_tiff_of_tiles_without_width_is_named(tmp_path):
    path = tmp_path / "zero.tif"
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), tile=(16, 16), photometric="rgb")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags["TileWidth"]
        offset = tag.valueoffset
    data[offset : offset + 2] = b"\0\0"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"zero.tif"):
        open_image(path)


class Payload:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ["filters", "compressor", "v3", "consolidated"])
def test_a_store_that_names_a_codec_which_runs_code_is_refused_before_it_is_read(tmp_path, where):
    import pickle

    store = tmp_path / "evil.zarr"
    store.mkdir()
    (store / ".zgroup").write_text('{"zarr_format": 2}')
    array = store / "X"
    array.mkdir()
    pickled = {"id": "pickle", "protocol": 5}
    told = {"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "fill_value": None, "order": "C",
            "compressor": pickled if where == "compressor" else None,
            "filters": [{"id": "vlen-utf8"}, pickled] if where != "compressor" else [{"id": "vlen-utf8"}]}  # fmt: skip
    if where == "v3":
        told = {"zarr_format": 3, "node_type": "array", "codecs": [{"name": "bytes"}, {"name": "numcodecs.pickle"}]}
        (array / "zarr.json").write_text(json.dumps(told))
    elif where == "consolidated":
        (store / ".zmetadata").write_text(json.dumps({"metadata": {"X/.zarray": told}}))
    else:
        (array / ".zarray").write_text(json.dumps(told))
    (array / "0").write_bytes(pickle.dumps(np.array([Payload(tmp_path / "ran")], dtype=object)))
    with pytest.raises(
        ValueError, match=r"names the codec '(numcodecs\.)?pickle', which is not one of those that are safe"
    ):
        open_anndata(store)
    assert not (tmp_path / "ran").exists()


NODE = {"zarr_format": 3, "node_type": "array", "codecs": [{"name": "bytes"}, {"name": "numcodecs.pickle"}]}
GROUP = {"zarr_format": 3, "node_type": "group", "attributes": {}}
DEEP = "obsm/a/b/c/attributes"


@pytest.mark.parametrize(
    ("file", "told"),
    [
        (f"{DEEP}/zarr.json", NODE),
        (f"{DEEP}/.zarray", {"zarr_format": 2, "filters": None, "compressor": {"id": "pickle"}}),
        ("zarr.json", {**GROUP, "consolidated_metadata": {"metadata": {DEEP: NODE}}}),
        ("zarr.json", {**GROUP, "consolidated_metadata": {"metadata": {"attributes": NODE}}}),
        ("uns/zarr.json", {**GROUP, "consolidated_metadata": {"metadata": {"zarr_format": NODE, "attributes": NODE}}}),
        (".zmetadata", {"metadata": {f"{DEEP}/.zarray": {"zarr_format": 2, "filters": [{"id": "json2"}]}}}),
        (
            "X/zarr.json",
            {**NODE, "codecs": [{"name": "sharding_indexed", "configuration": {"codecs": NODE["codecs"]}}]},
        ),
        ("X/zarr.json", {**NODE, "codecs": [{"id": "zlib", "name": "numcodecs.pickle"}]}),
        ("X/zarr.json", {**NODE, "codecs": ["bytes", "numcodecs.pickle"]}),
        ("elsewhere", NODE),
    ],
)
def test_codecs_are_looked_at_however_deep_they_stand(tmp_path, file, told):
    store = tmp_path / "evil.zarr"
    store.mkdir()
    (store / "zarr.json").write_text(json.dumps(GROUP))
    if file == "elsewhere":  # zarr follows a link, and a link to its own folder is no endless way
        (tmp_path / "outside" / "array").mkdir(parents=True)
        (store / "obs").symlink_to(tmp_path / "outside")
        (store / "self").symlink_to(store)
        file = "obs/array/zarr.json"
    (store / file).parent.mkdir(parents=True, exist_ok=True)
    (store / file).write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"names the codec '(numcodecs.pickle|pickle|json2)'"):
        check_zarr(store)


def test_what_attributes_say_is_not_a_codec_and_a_pipe_is_not_waited_for(tmp_path):
    store = tmp_path / "good.zarr"
    (store / "X").mkdir(parents=True)
    about = {"codecs": [{"name": "of my own"}], "filters": ["any"]}
    (store / "zarr.json").write_text(json.dumps({**GROUP, "attributes": about}))
    (store / ".zmetadata").write_text(json.dumps({"metadata": {"X/.zattrs": about}}))
    check_zarr(store)
    os.mkfifo(store / "X" / "zarr.json")
    with pytest.raises(ValueError, match=r"X/zarr.json is not a file"):
        check_zarr(store)


@pytest.mark.parametrize(
    ("indptr", "indices", "match"),
    [
        ((0, 2, 3), (0, 2, 1_000_000), "indices go from 0 to 1000000 in 3 columns"),
        ((0, 2, 3), (-5, 2, 1), "indices go from -5 to 2 in 3 columns"),
        ((0, 2, 10**12), (0, 2, 1), "does not say where its 2 lines of 3 entries begin|index pointer"),
        ((0, -2, -3), (0, 2, 1), "does not say where its 2 lines of 3 entries begin|index pointer"),
        ((3, 2, 0), (0, 2, 1), "does not say where its 2 lines of 3 entries begin|index pointer"),
    ],
)
def test_places_outside_of_a_matrix_are_refused(tmp_path, indptr, indices, match):
    """They end the process, or read what is elsewhere in its memory."""
    import anndata

    for name in ("X", "layers/counts", "raw/X"):
        adata = anndata.AnnData(sparse.csr_matrix(([1.0, 2.0, 3.0], [0, 2, 1], [0, 2, 3]), shape=(2, 3)))
        adata.layers["counts"], adata.raw = adata.X.copy(), adata.copy()
        adata.write_h5ad(tmp_path / "x.h5ad")
        with h5py.File(tmp_path / "x.h5ad", "r+") as file:
            for part, values in (("indptr", indptr), ("indices", indices)):
                del file[f"{name}/{part}"]
                file[f"{name}/{part}"] = np.array(values)
        with pytest.raises(ValueError, match=match) as error:
            open_anndata(tmp_path / "x.h5ad")
        assert "x.h5ad" in str(error.value)
    source = make_source()
    write_10x_h5(tmp_path / "x.h5", source)
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file["matrix/indices"][0] = 10**6
    with pytest.raises(ValueError, match="x.h5: the matrix is damaged: its indices go from 0 to 1000000"):
        read_10x_h5(tmp_path / "x.h5")


@pytest.mark.parametrize("value", ["1.7", "1e400", "-3", "99999999999"])
def test_an_mtx_that_says_integer_and_holds_something_else_is_not_read_as_counts(tmp_path, value):
    write_mtx(tmp_path / "mtx", make_source())
    path = tmp_path / "mtx" / "matrix.mtx.gz"
    lines = gzip.decompress(path.read_bytes()).split(b"\n")
    first = next(number for number, line in enumerate(lines) if number and not line.startswith(b"%")) + 1
    lines[first] = b" ".join([*lines[first].split()[:2], value.encode()])
    path.write_bytes(gzip.compress(b"\n".join(lines)))
    assert describe_bad_counts(read_mtx(tmp_path / "mtx").matrix)


def test_other_files_of_users_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="cannot read the signatures .*deep.json.*Give a JSON file"):
        read_signatures(str(tmp_path / "deep.json"))
    (tmp_path / "genes.txt").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(ValueError, match="cannot read the gene list .*genes.txt.*one gene per line"):
        gene_names_of(str(tmp_path / "genes.txt"))
    (tmp_path / "e.parquet").write_bytes(b"PAR1x PAR1")
    with pytest.raises(ValueError, match="cannot read the embeddings .*e.parquet"):
        read_embeddings(tmp_path / "e.parquet", None, 0)
    pd.DataFrame({"image": [[1.0], None]}).to_parquet(tmp_path / "e.parquet")
    with pytest.raises(ValueError, match="cannot read the embeddings .*e.parquet"):
        read_embeddings(tmp_path / "e.parquet", None, 0)
    results = tmp_path / "results.json"
    for text, match in {
        "[" * 100_000: "results.json is not JSON",
        json.dumps({"format": FORMAT, "test_slides": ["a"], "protocols": 5}): "protocols is not a list of results",
        json.dumps({"format": FORMAT, "test_slides": ["a"], "protocols": [5]}): "protocols is not a list of results",
    }.items():
        results.write_text(text)
        with pytest.raises(ValueError, match=match):
            read_results(results)


HUGE = {"zarr_format": 3, "node_type": "array", "shape": [10**12], "data_type": "int8", "codecs": [{"name": "bytes"}],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1000]}}}  # fmt: skip
OLD = {"zarr_format": 2, "shape": [10**12], "chunks": [1000], "dtype": "|i1", "filters": None, "compressor": None}


@pytest.mark.parametrize(
    ("file", "told", "match"),
    [
        ("X/zarr.json", HUGE, r"X/zarr.json declares X of 1000000000000, 931 GiB, but holds 0.00"),
        ("X/.zarray", OLD, r"X/.zarray declares X of 1000000000000, 931 GiB, but holds 0.00"),
        ("X/.zarray", {**OLD, "shape": [10**6, 10**6], "dtype": "<f8"}, r"X of 1000000 x 1000000, 7.45e\+03 GiB"),
        (".zmetadata", {"metadata": {"obsm/spatial/.zarray": OLD}}, r"obsm/spatial of 1000000000000"),
        ("zarr.json", {**GROUP, "consolidated_metadata": {"metadata": {"layers/counts": HUGE}}}, "layers/counts of 1000"),
        ("images/he/0/zarr.json", {**HUGE, "chunk_grid": {"configuration": {"chunk_shape": [10**13]}}}, "pieces of images/he"),
        ("X/zarr.json", {**HUGE, "shape": [2], "data_type": {"configuration": {"length_bytes": 10**13}}}, "pieces of X"),
        ("X/zarr.json", {**HUGE, "shape": ["many"]}, "cannot read .*X/zarr.json: could not convert"),
        ("X/zarr.json", {**HUGE, "shape": [None]}, "cannot read .*X/zarr.json"),
        ("X/zarr.json", {**HUGE, "shape": [10**400]}, "cannot read .*X/zarr.json: int too large"),
    ],
)  # fmt: skip
def test_arrays_of_a_store_that_nothing_stores_are_refused(tmp_path, file, told, match):
    store = tmp_path / "bomb.zarr"
    (store / file).parent.mkdir(parents=True)
    (store / "zarr.json").write_text(json.dumps(GROUP))
    (store / file).write_text(json.dumps(told))
    (store / file).parent.joinpath("c0").write_bytes(b"x" * 1000)
    for read in (check_zarr, open_anndata):
        with pytest.raises(ValueError, match=match):
            read(store)


def test_large_arrays_that_are_stored_or_read_in_pieces_pass(tmp_path):
    store = tmp_path / "large.zarr"
    for name, told in {
        "images/he/0": HUGE,  # only what is under a spot is read
        "labels/cells/0": {**HUGE, "codecs": [{"name": "sharding_indexed", "configuration": {"chunk_shape": [1000]}}]},
        "X": {**HUGE, "shape": [10**8]},  # 0.1 GB, mostly zeros
    }.items():
        (store / name / "c").mkdir(parents=True)
        (store / name / "zarr.json").write_text(json.dumps(told))
        (store / name / "c" / "0").write_bytes(b"x" * 1000)
    check_zarr(store)


@pytest.mark.parametrize("how", ["link", "raw", "virtual"])
def test_hdf5_files_that_keep_numbers_in_other_files_are_refused(tmp_path, how):
    """Counts of 32-bit numbers could be read from any file of the machine, and pushed with the dataset."""
    (tmp_path / "secret").write_bytes(b"password" * 100)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.arange(10)
    write_10x_h5(tmp_path / "x.h5", make_source())
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        del file["matrix/data"]
        if how == "link":
            file["matrix/data"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "data")
        elif how == "raw":
            outside = [(str(tmp_path / "secret"), 0, 800)]
            file["matrix"].create_dataset("data", shape=(200,), dtype="i4", external=outside)
        else:
            layout = h5py.VirtualLayout(shape=(10,), dtype="i8")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "data", shape=(10,))
            file["matrix"].create_virtual_dataset("data", layout)
    with pytest.raises(ValueError, match=r"x.h5 keeps matrix/data.* in another file.*h5repack"):
        read_10x_h5(tmp_path / "x.h5")


def test_stores_as_anndata_writes_them_pass(tmp_path):
    import anndata

    adata = anndata.AnnData(np.eye(3, dtype=np.float32), obs=pd.DataFrame({"a": ["x", "y", "x"]}, index=list("abc")))
    adata.obs["a"] = adata.obs["a"].astype("category")
    for version in (2, 3):
        with anndata.settings.override(zarr_write_format=version):
            adata.write_zarr(tmp_path / f"v{version}.zarr")
        check_zarr(tmp_path / f"v{version}.zarr")
        assert open_anndata(tmp_path / f"v{version}.zarr").n_obs == 3

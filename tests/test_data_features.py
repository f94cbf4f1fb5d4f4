"""What is a gene: names of every kind by hand, and the same mistakes in every format."""

import gzip
import json
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

from delst_hf.data.counts import as_counts, make_genes
from delst_hf.data.features import genes_only, identify
from delst_hf.data.genes import clean_genes
from delst_hf.data.notes import Notes
from delst_hf.data.readers.anndata_file import raw_counts
from delst_hf.data.readers.matrices import read_counts

ERBB2, MKI67 = "ENSG00000141736", "ENSG00000148773"


def told(gene_id, symbol):
    table = identify(pd.DataFrame({"gene_id": [gene_id], "symbol": [symbol]}))
    return tuple(table.iloc[0])


@pytest.mark.parametrize(
    ("gene_id", "symbol", "expected"),
    [
        ("ERBB2", "ERBB2", ("", "ERBB2")),  # symbols as ids
        ("ERBB2.1", "ERBB2", ("", "ERBB2")),  # ... made unique by R
        (f"{ERBB2}.13", f"{ERBB2}.13", (ERBB2, "")),  # ids as symbols
        ("ERBB2", ERBB2, (ERBB2, "ERBB2")),  # the two columns changed
        ("", f"ERBB2 {ERBB2}", (ERBB2, "ERBB2")),
        ("", f"{ERBB2}|ERBB2", (ERBB2, "ERBB2")),
        ("", f"ERBB2_{ERBB2}.13", (ERBB2, "ERBB2")),
        ("", f"{ERBB2};ERBB2", (ERBB2, "ERBB2")),
        ("", f"HLA-A ({ERBB2})", (ERBB2, "HLA-A")),
        ("", f"Y_RNA_{ERBB2}", (ERBB2, "Y_RNA")),
        ("", f"gene:{ERBB2}", (ERBB2, "")),
        (f"{ERBB2}|ERBB2|abc1234", "ERBB2|abc1234", (ERBB2, "ERBB2")),  # a probe of 10x
        ("", f"{ERBB2};{MKI67}", ("", f"{ERBB2};{MKI67}")),  # two genes in one feature: neither of them
        ("", "ERBB2|2064", ("", "ERBB2")),  # TCGA
        ("2064.0", "ERBB2", ("", "ERBB2")),  # Entrez, made a float by a missing neighbour
        ("", "2064", ("2064", "")),
        ("NM_004448.4", "ERBB2", ("", "ERBB2")),
        ("", "NM_004448.4", ("NM_004448", "")),
        ("ENSMUSG00000062312", "Erbb2", ("ENSMUSG00000062312", "Erbb2")),
        ("ENSGALG00000004293", "", ("ENSGALG00000004293", "")),
        ("FBgn0003731", "Egfr", ("FBgn0003731", "Egfr")),
        ("", "dpp_FBgn0000490", ("FBgn0000490", "dpp")),
        ("WBGene00000912", "daf-16", ("WBGene00000912", "daf-16")),
        ("AT1G01010", "AT1G01010", ("AT1G01010", "")),
        ("ENSGR0000002586.12", "CD99", ("ENSG00000002586", "CD99")),  # GENCODE's pseudoautosomal copies
        ("ensg00000141736", "ERBB2", (ERBB2, "ERBB2")),
        ("b'ENSG00000141736'", "'ERBB2'", (ERBB2, "ERBB2")),  # bytes and quotes, written as text
        (b"ENSG00000141736", b"ERBB2", (ERBB2, "ERBB2")),
        (None, "ERBB2", ("", "ERBB2")),
        ("ILMN_1728047", "ERBB2", ("", "ERBB2")),
        ("216836_s_at", "ERBB2", ("", "ERBB2")),
        ("gene-ERBB2", "gene-ERBB2", ("", "ERBB2")),
    ],
)
def test_ids_and_symbols_are_told_by_what_they_look_like(gene_id, symbol, expected):
    found = told(gene_id, symbol)
    assert found == (*expected, "")
    assert told(*found[:2]) == found  # a second time changes nothing


@pytest.mark.parametrize(
    "name",
    ["NA", "nan", "-", "", "unknown", "LOC?", "None", "N/A", "#N/A", ".", "?", "NULL", "NA.1", "nan-12", "ENSGXXXXXX",
     "ENSG?", "#NAME?", "no_symbol", "Unknown gene", "not found", "0", "-1", float("nan"), None, pd.NA],
)  # fmt: skip
def test_placeholders_are_neither_ids_nor_symbols(name):
    assert told(name, "ERBB2") == ("", "ERBB2", "")
    assert told(ERBB2, name) == (ERBB2, "", "")
    assert told(name, name) == ("", "", "features without a name")


KINDS = {
    "control probes": ["NegPrb3", "Negative1", "Negative 01", "SystemControl12", "FalseCode7", "NegControlProbe_00042",
                       "NegControlCodeword_0500", "Intergenic_Region_1", "NegProbe-WTX", "NegProbe-CTP01", "Negative Probe",
                       "neg_ctrl_1", "POS_A(128)", "NEG_B", "Custom Negative Set 1", "GenomicControl1", "FalsePositive_2",
                       "FP 3B2", "mouse_IgG1k_isotype_Ctrl", "Control1", "negative_control", "Custom1_NegPrb"],
    "blanks": ["Blank-1", "BLANK_0006", "blank12", "Blank", "BlankCodeword_1"],
    "unassigned codewords": ["UnassignedCodeword_0001", "infeasible"],
    "deprecated probes": ["DeprecatedCodeword_0318", "DEPRECATED_ENSG00000182330"],
    "antisense probes": ["antisense_PROKR2"],
    "spike-ins": ["ERCC-00002", "ERCC_00171", "gSpikein_ERCC-00002", "SIRV101"],
    "antibodies": ["CD3_TotalSeqB", "CD3_TotalC", "ADT_CD3", "prot_CD45", "CD8-ADT", "anti-CD20", "HTO1", "Hashtag_2",
                   "mouse_IgG2a_isotype", "CD4.TotalSeqA", "TotalSeq-B0251"],
    "totals": ["n_counts", "total", "Sum", "nCount_RNA", "nFeature_Spatial", "total_counts", "n_genes", "n_genes_by_counts",
               "nUMI", "library size", "pct_counts_mt", "percent.mt", "log1p_total_counts", "counts", "Grand total", "rowSums"],
    "summary rows of a read counter": ["__no_feature", "__ambiguous", "__too_low_aQual", "__not_aligned",
                                       "__alignment_not_unique", "no_feature", "N_unmapped", "N_noFeature",
                                       "Unassigned_NoFeatures", "Unassigned_Ambiguity"],
    "columns about spots": ["Unnamed: 0", "fov", "cell_ID", "barcode", "array_row", "in_tissue", "center_x", "x_centroid",
                            "cell_area", "pxl_row_in_fullres", "EntityID", "volume", "Area", "Area.um2", "AspectRatio",
                            "Width", "Mean.PanCK", "Max.DAPI", "CenterX_global_px"],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in KINDS.items() for name in names])
def test_what_is_not_a_gene_is_told_by_its_name(kind, name):
    assert told("", name)[2] == told(name, "CD3")[2] == kind


# Genes whose symbols look like the names above: of man, mouse, fly and worm.
GENES = ["BLNK", "NEGR1", "CTRL", "CTRB1", "Ctrl", "ERCC1", "ERCC6L2", "ADTRP", "SUMO1", "Sumo2", "UNK", "UNKL", "TOTAL1A",
         "POSTN", "NANOG", "NANS", "ANTXR1", "FPR1", "FPGS", "HTOR", "DEPTOR", "DEPP1", "INTS1", "READ1", "IGHG1", "IGKC",
         "ENSA", "LOC105370", "NA1", "PROTL1", "PCTP", "PERCC1", "blanks", "neg-1", "adt-1", "HOXA-AS2", "ZEB1-AS1", "NOV",
         "T", "AR", "H2-K1", "MT-CO1", "HLA-DRA", "7SK", "5S_rRNA", "Y_RNA", "Metazoa_SRP", "RP11-34P13.7", "C1orf112",
         "Gm12345", "4930568D16Rik", "NKX2-1", "TMEM110-MUSTN1", "hsa-mir-21", "U6", "SNORD13"]  # fmt: skip


@pytest.mark.parametrize("name", GENES)
def test_genes_that_look_like_something_else_stay(name):
    assert told("", name) == ("", name, "")
    assert told(ERBB2, name) == (ERBB2, name, "")


def test_every_symbol_of_real_tissue_stays(shared_dir):
    folder = shared_dir / "data"
    files = [*(folder / "her2st/data/ST-cnts").glob("*.tsv.gz"), *(folder / "mob").glob("*.tsv.gz")]
    names = set()
    for path in files:
        with gzip.open(path, "rt") as file:
            names |= set(file.readline().rstrip("\n").split("\t")[1:])
    names = sorted(names)
    found = identify(make_genes(names))
    assert len(names) > 15_000 and (found["kind"] == "").all()
    bare = [name.split(".")[0] if name.startswith("ENSMUSG") else name for name in names]
    assert [gene_id or symbol for gene_id, symbol in zip(found["gene_id"], found["symbol"], strict=True)] == bare


def test_an_id_that_many_symbols_share_is_a_placeholder_whatever_it_looks_like():
    """Genes are never summed because they share one."""
    symbols = [f"GENE{letter}" for letter in "ABCDEFGH"]
    for placeholder in ("ENSGXXXXXX", "ENSG00000000003", "pending", "ENSG00000000000.1", "TBD-17"):
        counts, genes, _ = clean_genes(sp.csr_matrix(np.eye(8, dtype=int)), make_genes(symbols, [placeholder] * 8), "S")
        assert genes.to_numpy().tolist() == [["", symbol] for symbol in symbols]
        assert counts.toarray().tolist() == np.eye(8).tolist()
    ids = [f"ENSG{i:011d}" for i in range(1, 60)]
    found = identify(make_genes(["to be named"] * 59, ids))
    assert found["gene_id"].tolist() == ids and (found["symbol"] == "").all()


def test_features_without_any_name_are_left_out_and_not_summed():
    counts, genes, _ = clean_genes(sp.csr_matrix([[1, 2, 4]]), make_genes(["A", "NA", "nan"], ["", "-", "NA"]), "S")
    assert (genes["symbol"].tolist(), counts.toarray().tolist()) == (["A"], [[1]])


def test_what_is_left_out_is_counted_by_kind(caplog):
    notes = Notes()
    with caplog.at_level("INFO"):
        clean_genes(
            sp.csr_matrix([[1, 2, 4, 8]]), make_genes(["ACTB", "Blank-1", "Blank-2", "NegPrb1"]), "S", notes=notes
        )
    assert "S: left out 3 of 4 features: 2 blanks (Blank-1, Blank-2), 1 control probes (NegPrb1)" in caplog.text
    assert notes.genes_left_out == {"blanks": 2, "control probes": 1}


def test_a_total_is_found_by_arithmetic_whatever_its_name():
    counts = np.random.default_rng(0).poisson(2, (9, 7))
    names = [*(f"G{letter}" for letter in "ABCDEFG"), "everything", "n_genes"]
    table = np.column_stack([counts, counts.sum(1), (counts > 0).sum(1)])
    order = np.random.default_rng(1).permutation(9)
    kept, genes = genes_only(sp.csr_matrix(table[:, order]), make_genes([names[i] for i in order]), "S", Notes())
    np.testing.assert_array_equal(kept.toarray(), table[:, [i for i in order if i < 7]])
    assert sorted(genes["symbol"]) == names[:7]
    table[0, 7] += 1  # in one spot it is not the sum: then it is a gene
    assert genes_only(sp.csr_matrix(table), make_genes(names), "S", Notes())[0].shape == (9, 8)


@pytest.mark.parametrize("seed", range(5))
def test_order_and_names_of_the_columns_do_not_matter(seed):
    """Any mixture of genes and controls, written in any of the ways above, gives the genes and their counts."""
    rng = np.random.default_rng(seed)
    ids, symbols = [f"ENSG{i:011d}" for i in range(1, 13)], [f"GENE{chr(65 + i)}" for i in range(12)]
    ways = [lambda i, s: ("", f"{s}|{i}"), lambda i, s: (f"{i}.{rng.integers(1, 20)}", s), lambda i, s: (s, i),
            lambda i, s: ("NA", f"{i}_{s}"), lambda i, s: (f"{i};{s}", "-")]  # fmt: skip
    rows = [(*ways[rng.integers(len(ways))](i, s), value) for i, s, value in zip(ids, symbols, range(12), strict=True)]
    rows += [("", str(rng.choice(KINDS[kind])), 99) for kind in rng.permutation(list(KINDS))]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    counts = sp.csr_matrix([[value for *_, value in rows]])
    found, genes, species = clean_genes(counts, make_genes([s for _, s, _ in rows], [i for i, _, _ in rows]), "S")
    assert dict(zip(genes["gene_id"], genes["symbol"], strict=True)) == dict(zip(ids, symbols, strict=True))
    assert dict(zip(genes["symbol"], found.toarray()[0], strict=True)) == dict(zip(symbols, range(12), strict=True))
    assert species == "human"


def test_probes_and_transcripts_need_their_genes():
    probes = [f"ILMN_{i}" for i in (1728047, 1809099, 1651282)]
    matrix = sp.csr_matrix([[1, 2, 4]])
    with pytest.raises(ValueError, match=r"3 of 3 features are probes or transcripts.*'ILMN_1728047'.*--aliases CSV"):
        clean_genes(matrix, make_genes(probes), "S")
    aliases = {probes[0].lower(): ("", "ERBB2"), probes[1].lower(): ("", "ERBB2"), probes[2].lower(): ("", "MKI67")}
    counts, genes, _ = clean_genes(matrix, make_genes(probes), "S", aliases=aliases)
    assert (genes["symbol"].tolist(), counts.toarray().tolist()) == (["ERBB2", "MKI67"], [[3, 4]])
    transcripts = ["ENST00000269571.10", "ENST00000584450", "ENST00000368654"]
    with pytest.raises(ValueError, match="3 of 3 features are probes or transcripts"):
        clean_genes(matrix, make_genes(transcripts), "S")
    aliases = {"enst00000269571": ("", "ERBB2"), "enst00000584450": ("", "ERBB2")}
    counts, genes, _ = clean_genes(matrix, make_genes(transcripts), "S", aliases=aliases)
    assert (genes.to_numpy().tolist(), counts.toarray().tolist()) == ([["", "ERBB2"]], [[3]])


def test_names_that_were_lost_and_matrices_without_a_gene_are_refused():
    matrix = sp.csr_matrix([[1, 2, 4]])
    for names in (["0", "1", "2"], ["V1", "V2", "V3"]):
        with pytest.raises(ValueError, match=f"the genes are numbered {names[0]} to {names[2]}: their names were lost"):
            clean_genes(matrix, make_genes(names), "S")
    with pytest.raises(ValueError, match="none of 3 features is a gene: 2 blanks, 1 totals"):
        clean_genes(matrix, make_genes(["Blank-1", "total", "Blank-2"]), "S")
    with pytest.raises(ValueError, match=r"'BAD\\x00NAME' holds a control character"):
        clean_genes(matrix, make_genes(["A", "BAD\0NAME", "C"]), "S")
    assert clean_genes(matrix, make_genes(["A", "B\nC", "D"]), "S")[1]["symbol"].tolist() == ["A", "B C", "D"]


def test_sums_beyond_32_bits_are_refused():
    twice = sp.csr_matrix(np.array([[1, 2_000_000_000, 2_000_000_000]], dtype=np.int32))
    with pytest.raises(ValueError, match="the columns of 'B' add up to 4000000000 in one spot"):
        clean_genes(twice, make_genes(["A", "B", "B"]), "S")
    stored_twice = sp.csr_matrix(
        (np.array([2_000_000_000] * 2, np.int32), np.array([0, 0]), np.array([0, 2])), shape=(1, 1)
    )
    with pytest.raises(ValueError, match="the largest value is 4e"):
        as_counts(stored_twice)
    assert as_counts(sp.csr_matrix(([1, 2, 0], [0, 0, 1], [0, 3]), shape=(1, 2))).data.tolist() == [3]


# --- the same in every format -----------------------------------------------------------------------------------------

NAMES = ["ACTB", "Blank-1", "ERBB2", "NegPrb1", "MKI67", "total_counts", "ERBB2"]
VALUES = np.array([[1, 9, 2, 9, 3, 9, 10], [4, 9, 5, 9, 6, 9, 20]])
EXPECTED = (["ACTB", "ERBB2", "MKI67"], [[1, 12, 3], [4, 25, 6]])


def write(path: Path, form: str) -> Path:
    """NAMES and VALUES of two spots in one of the forms of counts."""
    table = pd.DataFrame(VALUES, index=["s1", "s2"], columns=NAMES)
    if form == "h5ad":
        with pytest.warns(UserWarning, match="not unique"):
            anndata.AnnData(
                table.to_numpy(float), pd.DataFrame(index=["s1", "s2"]), pd.DataFrame(index=NAMES)
            ).write_h5ad(path)
    elif form == "h5":
        matrix = sp.csc_matrix(VALUES.T)
        with h5py.File(path, "w") as file:
            group = file.create_group("matrix")
            for name in ("data", "indices", "indptr"):
                group[name] = getattr(matrix, name)
            group["shape"] = matrix.shape
            for name, values in (("barcodes", ["s1", "s2"]), ("features/id", NAMES), ("features/name", NAMES)):
                group.create_dataset(name, data=values, dtype=h5py.string_dtype())
    elif form == "mtx":
        path.mkdir()
        scipy.io.mmwrite(path / "matrix.mtx", sp.coo_matrix(VALUES.T), field="integer")
        (path / "barcodes.tsv").write_text("s1\ns2\n")
        (path / "features.tsv").write_text("".join(f"{name}\t{name}\n" for name in NAMES))
    else:
        (table.T if form == "genes.csv" else table).to_csv(path)
    return path


@pytest.mark.parametrize("form", ["h5ad", "h5", "mtx", "spots.csv", "genes.csv"])
@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_every_form_of_counts_leaves_the_same_out(tmp_path, form):
    found = read_counts(write(tmp_path / f"counts.{form}", form), barcodes=["s1", "s2"])
    notes = Notes()
    counts, genes, _ = clean_genes(found.matrix, found.genes, "S", notes=notes)
    assert (genes["symbol"].tolist(), counts.toarray().tolist()) == EXPECTED
    assert notes.genes_left_out == {"blanks": 1, "control probes": 1, "totals": 1}
    assert notes.genes_summed == 1


def test_types_of_features_are_obeyed(tmp_path):
    """10x, Xenium and CELLxGENE: what the source calls a feature decides, biotypes of genes do not."""
    types = ["Gene Expression", "Antibody Capture", "Negative Control Probe", "Unassigned Codeword", "Genomic Control",
             "CRISPR Guide Capture", "Custom", "Deprecated Codeword", "Multiplexing Capture", "Blank Codeword"]  # fmt: skip
    found = identify(make_genes([f"GENE{letter}" for letter in "ABCDEFGHIJ"], feature_type=types))
    assert found["kind"].tolist() == ["", "antibodies", "control probes", "unassigned codewords", "control probes", "guides",
                                      "features of type 'Custom'", "deprecated probes", "antibodies", "blanks"]  # fmt: skip
    biotypes = ["protein_coding", "lncRNA", "antisense", "IG_C_gene", "TEC"]
    assert (identify(make_genes(list("ABCDE"), feature_type=biotypes))["kind"] == "").all()
    assert identify(make_genes(["A", "B"], feature_type=["gene", "spike-in"]))["kind"].tolist() == ["", "spike-ins"]


def test_probes_of_a_panel_are_summed_to_genes_through_their_own_table(tmp_path):
    genes = [f"ENSG{i:011d}" for i in (1, 1, 1, 2, 2, 3)]
    names = ["AAA", "AAA", "AAA", "BBB", "BBB", "CCC"]
    probes = [f"{gene}|{name}|{i:07x}" for i, (gene, name) in enumerate(zip(genes, names, strict=True))]
    values = np.array([[1, 2, 4, 8, 16, 32], [3, 0, 1, 0, 1, 5]])
    var = pd.DataFrame({"gene_ids": genes, "gene_name": names, "filtered_probes": [True, False, True, True, True, True]},
                       index=probes)  # fmt: skip
    counts, found, _ = clean_genes(*raw_counts(anndata.AnnData(values.astype(float), var=var), None, "S"), "S")
    assert found["gene_id"].tolist() == [genes[0], genes[3], genes[5]]
    assert counts.toarray().tolist() == [[5, 24, 32], [4, 1, 5]]
    counts, found, _ = clean_genes(sp.csr_matrix(values), make_genes(probes), "S")  # by their names alone
    assert (found["symbol"].tolist(), counts.toarray().tolist()) == (["AAA", "BBB", "CCC"], [[7, 24, 32], [4, 1, 5]])
    flags = ["TRUE", "FALSE", "TRUE", "TRUE", "TRUE", "FALSE"]
    counts, found, _ = clean_genes(sp.csr_matrix(values), make_genes(names, genes, feature=probes, included=flags), "S")
    assert counts.toarray().tolist() == [[5, 24], [4, 1]]


def test_ids_of_an_anndata_are_found_in_any_column():
    """BioMart's, Seurat's and CELLxGENE's columns; an index of numbers; genes that CELLxGENE emptied."""
    values = np.array([[1.0, 2.0, 0.0], [3.0, 4.0, 0.0]])
    ids, symbols = [ERBB2, MKI67, "ENSG00000026508"], ["ERBB2", "MKI67", "CD44"]
    for index, columns in (
        (symbols, {"Gene stable ID": ids}),
        (symbols, {"accession": ids}),
        (ids, {"external_gene_name": symbols}),
        (["0", "1", "2"], {"gene_ids": ids, "gene_symbols": symbols}),
        ([f"{one}.{i}" for i, one in enumerate(ids)], {"chromosome": ["17", "10", "11"], "hgnc": symbols}),
        (ids, {"biotype": ["protein_coding"] * 3, "name in the panel": symbols}),
        (["2064", "4288", "960"], {"ensembl_gene_id": ids, "SYMBOL": symbols}),
        ([f"{s}_{i}" for s, i in zip(symbols, ids, strict=True)], {}),
    ):
        adata = anndata.AnnData(values, var=pd.DataFrame(columns, index=index))
        _, genes, species = clean_genes(*raw_counts(adata, None, "S"), "S")
        assert genes["gene_id"].tolist() == ids and genes["symbol"].tolist() == symbols, columns
        assert species == "human"
    var = pd.DataFrame({"feature_name": symbols, "feature_is_filtered": [False, False, True]}, index=ids)
    _, genes, _ = clean_genes(*raw_counts(anndata.AnnData(values, var=var), None, "S"), "S")
    assert genes["symbol"].tolist() == ["ERBB2", "MKI67"]


def test_a_case_of_each_kind_through_the_command(tmp_path, caplog):
    """From a table with controls to a dataset: the counts, the log and the notes of the slide."""
    from PIL import Image

    from delst_hf.cli import main

    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(90, 200, (120, 160, 3), dtype=np.uint8)).save(tmp_path / "he.png")
    table = pd.DataFrame(rng.poisson(3, (12, 5)), index=[f"c{i}" for i in range(12)],
                         columns=["ACTB", "Blank-1", f"ERBB2|{ERBB2}", "NegPrb1", "NA"])  # fmt: skip
    table.insert(0, "n_counts", table.sum(axis=1))
    table.to_csv(tmp_path / "counts.csv")
    places = pd.DataFrame({"barcode": table.index, "x": np.tile([30, 60, 90, 120], 3), "y": np.repeat([30, 60, 90], 4)})
    places.to_csv(tmp_path / "spots.csv", index=False)
    assert not main(["prepare", "table", "--image", str(tmp_path / "he.png"), "--counts", str(tmp_path / "counts.csv"),
                     "--coordinates", str(tmp_path / "spots.csv"), "--mpp", "1", "--patch-um", "20", "--patch-px", "20",
                     "--output", str(tmp_path / "d"), "--quiet"])  # fmt: skip
    genes = pd.read_parquet(tmp_path / "d/genes/genes.parquet")
    assert genes.to_numpy().tolist() == [["", "ACTB", "human"], [ERBB2, "ERBB2", "human"]]
    spots = pd.read_parquet(tmp_path / "d/spots", columns=["total_counts"])
    assert spots["total_counts"].sum() == table[["ACTB", f"ERBB2|{ERBB2}"]].to_numpy().sum()
    left_out = json.loads(pd.read_parquet(tmp_path / "d/slides")["notes"][0])["genes_left_out"]
    assert left_out == {"totals": 1, "blanks": 1, "control probes": 1, "features without a name": 1}


def test_a_total_is_found_under_any_name_however_often_it_is_there():
    rng = np.random.default_rng(0)
    genes = rng.poisson(2, (20, 8))
    total = genes.sum(1, keepdims=True)
    for times in (1, 2, 3):
        names = [*(f"GENE{letter}" for letter in "ABCDEFGH"), *("Summe", "Alles", "TUTTO")[:times]]
        order = rng.permutation(len(names))
        values = np.hstack([genes, *[total] * times])[:, order]
        notes = Notes()
        counts, found, _ = clean_genes(sp.csr_matrix(values), make_genes([names[i] for i in order]), "S", notes=notes)
        assert sorted(found["symbol"]) == names[:8] and notes.genes_left_out == {"totals": times}
        assert int(counts.sum()) == int(genes.sum())


def test_the_modality_of_a_joined_table_is_obeyed():
    """Proteins that are named like genes, told by the column in which tools keep their kind."""
    for column, kinds in (("modality", ["RNA", "RNA", "Protein"]), ("Assay", ["RNA", "RNA", "ADT"]),
                          ("gene_type", ["protein_coding", "lncRNA", "ERCC spike-in"])):  # fmt: skip
        var = pd.DataFrame({column: kinds}, index=["ERBB2", "MKI67", "CD4"])
        _, genes, _ = clean_genes(*raw_counts(anndata.AnnData(np.ones((2, 3)), var=var), None, "S"), "S")
        assert genes["symbol"].tolist() == ["ERBB2", "MKI67"]

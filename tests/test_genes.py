"""Gene names: versions, case, aliases, duplicates, species, and panels that are joined."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from delst_hf.data.counts import make_genes
from delst_hf.data.genes import canonical_species, clean_genes, read_aliases, union_genes

MATRIX = sp.csr_matrix(np.array([[1, 2, 4, 8], [0, 1, 0, 3]]))


def clean(names, ids=None, species="", aliases=None):
    matrix = MATRIX if len(names) <= 4 else sp.csr_matrix(np.ones((2, len(names)), dtype=int))
    counts, genes, species = clean_genes(matrix[:, : len(names)], make_genes(names, ids), "S", species, aliases)
    return counts.toarray().tolist(), genes["gene_id"].tolist(), genes["symbol"].tolist(), species


def test_versions_of_ensembl_ids_are_dropped_and_what_becomes_one_is_summed(caplog):
    ids = ["ENSG00000141736.13", "ENSG00000141736.14", "ENSG00000002586.20_PAR_Y", "ENSG00000000003"]
    counts, ids, symbols, species = clean(["ERBB2", "ERBB2", "CD99", "TSPAN6"], ids)
    assert ids == ["ENSG00000141736", "ENSG00000002586", "ENSG00000000003"]
    assert symbols == ["ERBB2", "CD99", "TSPAN6"]
    assert counts == [[3, 4, 8], [1, 0, 3]]
    assert species == "human"
    assert "summed 1 duplicate columns of genes, e.g. ERBB2" in caplog.text


def test_one_symbol_of_two_ids_stays_two_genes():
    counts, _, symbols, _ = clean(["TBCE", "TBCE"], ["ENSG00000284770", "ENSG00000285053"])
    assert (symbols, counts) == (["TBCE", "TBCE"], [[1, 2], [0, 1]])
    assert clean(["TBCE", "TBCE"])[0] == [[3], [1]]  # without ids they cannot be told apart


def test_case_follows_the_species_where_most_names_are_in_the_other(caplog):
    assert clean(["Actb", "Gapdh", "c1orf112", "mt-Co1"], species="Homo sapiens")[2] == [
        "ACTB",
        "GAPDH",
        "C1orf112",
        "MT-CO1",
    ]
    assert "changed the case of symbols to that of human, e.g. Actb to ACTB" in caplog.text
    assert "4 of 4 are written as those of mouse are: if they are, give --species mouse" in caplog.text
    assert clean(["ACTB", "MT-CO1", "H2-K1"], species="mouse")[2] == [
        "Actb",
        "mt-Co1",
        "H2-K1",
    ]
    assert clean(["ACTB", "6030445D17RIK"], species="mouse")[2] == ["Actb", "6030445D17Rik"]
    ours = ["ACTB", "C1orf112", "snoU13", "hsa-mir-21"]
    assert clean(ours, species="human")[2] == ours
    theirs = ["Actb", "Gm10", "Xist", "LTO1"]
    assert clean(theirs, species="mouse")[2] == theirs
    assert clean(["Actb", "GAPDH"])[2] == ["Actb", "GAPDH"]  # of unknown species


def test_mixed_species_are_refused_or_sorted_out(caplog):
    names, ids = (
        ["ACTB", "Actb", "GAPDH"],
        ["GRCh38_ENSG00000075624", "mm10___ENSMUSG00000029580", "GRCh38_ENSG00000111640"],
    )
    with pytest.raises(ValueError, match=r"mixes species: genes of \{'human': 2, 'mouse': 1\}.*--species human"):
        clean(names, ids)
    counts, ids, symbols, _ = clean(names, ids, species="human")
    assert (ids, symbols, counts) == (["ENSG00000075624", "ENSG00000111640"], ["ACTB", "GAPDH"], [[1, 4], [0, 0]])
    assert "left out 1 genes of other species than human" in caplog.text
    with pytest.raises(ValueError, match=r"species is 'mouse', but its genes are of \{'human': 1\}"):
        clean(["ACTB"], ["ENSG00000075624"], species="mouse")
    assert [canonical_species(name) for name in ("Mus  musculus", "HUMAN", "axolotl")] == ["mouse", "human", "axolotl"]


def test_a_species_that_is_typed_wrong_is_told_by_the_genes():
    genes = pd.DataFrame({"gene_id": [f"ENSG{i:011d}" for i in range(5)], "symbol": list("ABCDE")})
    counts = sp.csr_matrix(np.ones((2, 5), np.int32))
    with pytest.raises(ValueError, match=r"species is 'humna', but its genes are of {'human': 5}.*--species human"):
        clean_genes(counts, genes, "S", "humna")
    assert clean_genes(counts, genes, "S", "Homo sapiens")[2] == "human"
    assert clean_genes(counts, genes, "S", "chimera")[2] == "chimera"


def test_mixed_species_are_told_by_symbols_alone(caplog):
    """A barnyard reference by its prefixes, and a table that has lost them by the two ways to write a symbol."""
    with pytest.raises(ValueError, match=r"mixes species: genes of \{'human': 1, 'mouse': 1\}.*--species human"):
        clean(["GRCh38_ACTB", "mm10___Actb"])
    assert clean(["GRCh38_ACTB", "mm10___Actb"], species="mouse")[2] == ["Actb"]
    assert clean(["hg19_ACTB", "hg19_C1orf112"])[3] == "human"
    human = [f"{word}{i}" for word in ("CXCL", "KRT", "ERBB", "MUC") for i in range(1, 9)]
    mouse = [name.capitalize() for name in human]
    for names in (human + mouse, human[:16] + mouse[16:]):  # the same genes, or other ones of each
        with pytest.raises(ValueError, match="mixes species: genes of"):
            clean([*names, "C1orf112", "H19"])
        assert clean([*names, "C1orf112"], species="human")[2] == [*(n for n in names if n.isupper()), "C1orf112"]
        assert clean([*names, "C1orf112"], species="rat")[2] == [n for n in names if not n.isupper()]
    odd = ["C1orf112", "Y_RNA", "snoU13", "hsa-mir-21", "Metazoa_SRP", "Vault", "RP11-34P13.7", "7SK", "Actb"]
    assert clean(human + odd)[2] == human + odd
    odd = ["LOC100360413", "RGD1560010", "AABR07000398.1", "H2-K1", "BC004004", "LTO1", "mt-Co1", "4930568D16Rik"]
    assert clean(mouse + odd * 2)[2] == mouse + odd
    assert "other species" in caplog.text


def test_real_genes_are_of_one_species(shared_dir, caplog):
    names = pd.read_csv(shared_dir / "data/her2st/data/ST-cnts/C2.tsv.gz", sep="\t", index_col=0, nrows=1).columns
    assert len(clean(list(names))[2]) == len(names)
    assert "dates" not in caplog.text


def test_names_that_a_spreadsheet_made_dates_are_reported(caplog):
    dates = ["1-Mar", "2-Sep", "Mar-01", "2001-09-02", "2021-03-01 00:00:00", "02.09.2001", "1-DEC", "1. Mrz"]
    clean([*dates, "ACTB", "MARCHF1", "SEPTIN2", "DEC1", "RP11-34P13.7", "HLA-A", "mir-21"])
    told = f"slide: a spreadsheet turned {len(dates)} gene names into dates, e.g. 1-Mar, 2-Sep, Mar-01"
    assert told.split(": ")[1] in caplog.text
    assert "alias file (--aliases CSV" in caplog.text
    caplog.clear()
    assert clean(["2-Sep", "ACTB"], aliases={"2-sep": ("", "SEPTIN2")})[2] == ["SEPTIN2", "ACTB"]
    assert "dates" not in caplog.text


def test_aliases_rename_and_report(tmp_path, caplog):
    (tmp_path / "a.csv").write_text("alias,symbol,gene_id\nHER2,ERBB2,ENSG00000141736.3\nENSG00000026508,CD44,\n")
    aliases = read_aliases(tmp_path / "a.csv")
    counts, ids, symbols, _ = clean(["her2", "ERBB2", "CD44x", "OTHER"], ["", "ENSG00000141736", "ENSG00000026508", ""],
                                    aliases=aliases)  # fmt: skip
    assert symbols == ["ERBB2", "CD44", "OTHER"]
    assert ids == ["ENSG00000141736", "ENSG00000026508", ""]
    assert counts == [[3, 4, 8], [1, 0, 3]]
    clean(["A", "B", "C", "HER2"], aliases=aliases)
    assert "1 of 4 genes (25 %) are in the alias table, 1 were renamed; is the table of this species" in caplog.text
    (tmp_path / "b.csv").write_text("alias\tsymbol\nX\tY\nx\tZ\n")
    with pytest.raises(ValueError, match="the alias 'x' has two meanings"):
        read_aliases(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_text("from,to\nX,Y\n")
    with pytest.raises(KeyError, match=r"columns \['from', 'to'\] found; needed are alias"):
        read_aliases(tmp_path / "c.csv")


def table(*rows, species="human"):
    return pd.DataFrame([(*row, species) for row in rows], columns=["gene_id", "symbol", "species"])


def test_a_panel_of_symbols_joins_one_of_ids():
    symbols = table(("", "ERBB2"), ("", "ONLY_A"), ("", "TBCE"))
    full = table(("E3", "CD44"), ("E1", "ERBB2"), ("E5", "TBCE"), ("E6", "TBCE"))
    bare = table(("E1", ""), ("E9", ""), species="")
    union, places = union_genes([symbols, full, bare])
    assert union.to_numpy().tolist() == [
        ["E1", "ERBB2", "human"], ["", "ONLY_A", "human"], ["", "TBCE", "human"], ["E3", "CD44", "human"],
        ["E5", "TBCE", "human"], ["E6", "TBCE", "human"], ["E9", "", "human"],
    ]  # fmt: skip
    assert [place.tolist() for place in places] == [[0, 1, 2], [3, 0, 4, 5], [0, 6]]


def test_species_stay_apart_and_case_does_not_matter():
    union, places = union_genes([table(("", "Actb"), species="mouse"), table(("", "ACTB")), table(("", "actb"))])
    assert union.to_numpy().tolist() == [["", "Actb", "mouse"], ["", "ACTB", "human"]]
    assert [place.tolist() for place in places] == [[0], [1], [1]]

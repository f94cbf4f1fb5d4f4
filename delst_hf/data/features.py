"""Recognise the features of a count matrix: genes, with id and symbol, or one of the kinds that are not genes.

Sources write ids where symbols belong and symbols where ids belong, both in one name, or "NA" for either; and beside the genes
of a panel they list blanks, control probes, antibodies and totals. This module recognises all of them by their form, for every
format. Only the unmistakable is taken for something other than a gene: BLNK, NEGR1, CTRL, ERCC1, ADTRP and SUMO1 are genes.
"""

import logging
import re
from collections.abc import Collection, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .feature_kinds import SPOT_COLUMNS, TOTALS, kind_of_name, kinds_by_type
from .notes import Notes
from .schema import FEATURE, FEATURE_TYPE, GENE_ID, INCLUDED, SYMBOL
from .values import texts, unwrapped

logger = logging.getLogger(__name__)

# Kinds that neither the name nor the type of a feature shows.
NO_NAME, EXCLUDED = "features without a name", "probes that the source excludes"
PROBES, TRANSCRIPTS = "probes without a gene", "transcripts without a gene"
# Attribute of a gene table from which features that are not genes were already left out.
GENES_ONLY = "genes_only"
# Fewer features or spots could add up to another feature by chance; a total occurs under this many names at most.
_TOTAL_OF_FEATURES, _TOTAL_IN_SPOTS, _MOST_TOTALS = 5, 5, 3
_FALSE = {"false", "0", "0.0", "f", "no", "n"}

_END = r"(?![A-Za-z0-9])"
# Ids within a name, alone or beside a symbol. Those of Ensembl and of its divisions name one gene for good.
_IDS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?P<ensembl>ENS[A-Z]*G\d+)(?:\.\d+)?(?:_PAR_Y)?|ENSGR(?P<par_y>\d{10})(?:\.\d+)?|"
    r"(?P<stable>FBgn\d{7}|WBGene\d{8}|AT[1-5MC]G\d{5}|Y[A-P][LR]\d{3}[WC](?:-[A-Z])?|MGP_\w+?_G\d{7}|"
    r"XB-GENE-\d+|DDB_G\d{7}|PF3D7_\d{7}|Os\d\dg\d{7}|Solyc\d\dg\d{6}|AMEX60DD\d{9})|"
    r"(?P<transcript>ENS[A-Z]*[TPE]\d{6,}|FBtr\d{7}|OTTHUM[GTP]\d{6,}|[NX][MRP]_\d{5,})(?:\.\d+)?|"
    r"(?P<database>(?:HGNC|MGI|RGD|NCBIGene|Entrez):\d+|ZDB-GENE-\d+-\d+)"
    rf"){_END}",
    re.I,
)
GENOME_PREFIX = re.compile(r"^(?:(GRCh3[78]|hg19|hg38)|(?:GRCm3[89]|mm10|mm39))_+(?=.)")
# Names that may hold an id, or several names; all others are plain symbols and need no further search.
_COMPOUND = re.compile(r"[|;:=,/\s_]|\d{3}|^\d|^ENS.*\d|^(?:gene|rna)-")
_ENTREZ = re.compile(r"[1-9]\d*(?:\.0)?")
# Most ids are exactly one Ensembl id: these need no further search either.
_ENSEMBL = re.compile(r"(ENS[A-Z]*G\d+)(?:\.\d+)?")
# A probe of 10x (the end of its name) and of microarrays and GeoMx; "gene-ERBB2" and "gene:ENSG..." of GFF files.
_PROBE_HASH = re.compile(r"[0-9a-f]{7}")
_PROBE = re.compile(r"ILMN_\d+|\d+_(?:[a-z]_)?at|AFFX-.+|A_\d\d_P\d+|RTS\d{7}|TC\d{6,}(?:\.hg\.\d)?|cg\d{8}")
_TRANSCRIPT = re.compile(r"ENS[A-Z]*[TPE]\d|FBtr", re.I)
_PREFIX = re.compile(r"(?:gene|rna|transcript|gene_id|gene_name|symbol)[:=-](?=.)")
# A symbol in one word, and the share of symbols that differ: few genes share one.
_SYMBOL, _DISTINCT = re.compile(r"[A-Za-z0-9][\w.@()-]*"), 0.9
_BIOTYPE = re.compile(
    r"gene|gene[ _]expression|protein_coding|l(?:nc|inc)RNA|miRNA|sn[o]?RNA|\w*pseudogene|processed_transcript", re.I
)
_PLACEHOLDER = re.compile(
    r"[\W_]*|(?:n/?a|nan|<na>|none|null|nil|unknown|undefined|unnamed|unmapped|unannotated|uncharacterized|novel|hypothetical|"
    r"no[ _]?(?:name|symbol|id|match|gene)|not[ _](?:found|available)|missing|withdrawn)"
    r"(?:[ _](?:gene|id|symbol|name|protein|transcript))?(?:[._-]\d+)?|"
    r"0|-1|#(?:n/a|name\?|ref!|value!)|ENS[A-Z]{0,6}G[X?*#_.-]*|LOC[?X*]*|[NX][MR]_",
    re.I,
)  # fmt: skip
# An id with this many different symbols is a placeholder; so is a symbol of more than this many rows, or this share of them.
_SYMBOLS_OF_AN_ID, _ROWS_OF_A_SYMBOL, _SHARE_OF_A_SYMBOL = 3, 20, 0.05


def identify(genes: pd.DataFrame) -> pd.DataFrame:
    """Recognise the id, the symbol and the kind of each feature.

    Args:
        genes: columns gene_id and symbol as the source has them, even exchanged; optionally feature_type (the source's type of
            the feature), included (False: the source itself leaves the feature out) and feature (the feature's own name, where
            gene_id and symbol are those of its gene).

    Returns:
        One row per feature: gene_id and symbol, "" where unknown, and kind: "" for a gene, else a plural noun.

    >>> table = pd.DataFrame({"gene_id": ["ERBB2_ENSG00000141736.13", "NA", "Blank-1"], "symbol": ["", "BLNK", "Blank-1"]})
    >>> identify(table).to_numpy().tolist()
    [['ENSG00000141736', 'ERBB2', ''], ['', 'BLNK', ''], ['', 'Blank-1', 'blanks']]
    """
    ids, symbols = (_texts(genes[name]) for name in (GENE_ID, SYMBOL))
    found = [_identify(*pair) for pair in zip(ids, symbols, strict=True)]
    table = pd.DataFrame(found, columns=[GENE_ID, SYMBOL, "kind"], dtype=object)
    _drop_shared(table)
    named = table["kind"] == ""
    table.loc[named & (table[GENE_ID] == "") & (table[SYMBOL] == ""), "kind"] = NO_NAME
    names = set(symbols)
    if {"x", "y"} <= names:  # both together are positions
        table.loc[named & np.isin(symbols, ["x", "y"]), "kind"] = SPOT_COLUMNS
    if FEATURE in genes:
        kinds = np.array([kind_of_name(value) for value in _texts(genes[FEATURE])], dtype=object)
        table.loc[kinds != "", "kind"] = kinds[kinds != ""]
    if FEATURE_TYPE in genes:
        kinds = kinds_by_type(_texts(genes[FEATURE_TYPE]))
        table.loc[kinds != "", "kind"] = kinds[kinds != ""]
    if INCLUDED in genes:
        table.loc[
            (table["kind"] == "") & np.isin([text.lower() for text in _texts(genes[INCLUDED])], list(_FALSE)), "kind"
        ] = EXCLUDED
    return table


def genes_only(
    counts: sp.csr_matrix, features: pd.DataFrame, slide_id: str, notes: Notes, aliases: Collection[str] | None = None
) -> tuple[sp.csr_matrix, pd.DataFrame]:
    """Return the genes among the features of a slide; log the others, and count them in the notes by kind.

    Args:
        counts: (spots, features) raw counts: a feature that is the sum of all others is a total, whatever its name.
        features: see `identify`.
        slide_id: for messages.
        notes: of the slide.
        aliases: lower-case names of probes and transcripts whose genes are known; None keeps all probes and transcripts, for
            a later step that knows the aliases.

    Returns:
        Counts (spots, genes), and columns gene_id and symbol.

    Raises:
        ValueError: no gene is left, most features are probes or transcripts of unknown genes, genes are merely numbered, or a
            name holds a control character.
    """
    _refuse_numbers(features, slide_id)
    counts, table = counts.tocsr(), identify(features)
    unplaced = table["kind"].isin([PROBES, TRANSCRIPTS])
    named = table[SYMBOL].str.lower().isin(aliases or ()) | table[GENE_ID].str.lower().isin(aliases or ())
    table.loc[unplaced & (named | (aliases is None)), "kind"] = ""
    _refuse_unplaced(table, slide_id)
    table.loc[_columns_of_totals(counts, (table["kind"] == "").to_numpy()), "kind"] = TOTALS
    _report_left_out(table, slide_id, notes)
    keep = (table["kind"] == "").to_numpy()
    if not keep.any():
        kinds = ", ".join(f"{number} {kind}" for kind, number in table["kind"].value_counts().items())
        raise ValueError(
            f"slide {slide_id!r}: none of {len(table)} features is a gene: {kinds}. Give a matrix whose features are named by "
            "symbols or Ensembl ids."
        )
    _refuse_unprintable(table[keep], slide_id)
    return counts if keep.all() else counts[:, keep], table.loc[keep, [GENE_ID, SYMBOL]].reset_index(drop=True)


def without_genome(name: str) -> str:
    """Return a name without the prefix of its genome, which Space Ranger adds for a reference of two genomes."""
    return GENOME_PREFIX.sub("", name) if "_" in name else name


def holds_ids(names: Sequence[str]) -> bool:
    """Return whether most names are ids of any kind, including Entrez numbers and transcripts, and not symbols."""
    sample = names[:2000]
    ids = [name for name in sample if _ENTREZ.fullmatch(name) or _IDS.fullmatch(name)]
    return 2 * len(ids) > len(sample)


def holds_ids_of_genes(names: Sequence[str]) -> bool:
    """Return whether most names are stable ids of genes, such as those of Ensembl."""
    sample = names[:2000]
    matches = [_IDS.fullmatch(name) for name in sample]
    return 2 * sum(bool(m and (m["ensembl"] or m["par_y"] or m["stable"])) for m in matches) > len(sample)


def holds_symbols(names: Sequence[str]) -> bool:
    """Return whether names can be symbols of genes: most are single words, not placeholders, and nearly all differ."""
    sample = names[:2000]
    words = [name for name in sample if _SYMBOL.fullmatch(name) and not _PLACEHOLDER.fullmatch(name)]
    return 2 * len(words) > len(sample) and len(set(words)) >= _DISTINCT * len(words)


def names_transcript(name: str) -> bool:
    """Return whether a name is the id of a transcript or a protein."""
    return _TRANSCRIPT.match(name) is not None


def _texts(values: pd.Series) -> list[str]:
    """Return names without the blanks, line breaks, quotes and b'' of Python's bytes that exporters add."""
    return [name if name.isalnum() else unwrapped(" ".join(name.split())) for name in texts(values)]


@lru_cache(maxsize=1 << 18)
def _identify(gene_id: str, symbol: str) -> tuple[str, str, str]:
    """Return the id, symbol and kind of one feature, from its two names."""
    prefix = GENOME_PREFIX.match(symbol)
    gene_id, symbol = without_genome(gene_id), without_genome(symbol)
    kind = kind_of_name(symbol) or ("" if _ENSEMBL.fullmatch(gene_id) else kind_of_name(gene_id))
    if kind:
        return "", symbol or gene_id, kind
    stable, others, names = _parts(symbol)
    if gene_id != symbol:
        of_id, others_of_id, names_of_id = _parts(gene_id)
        stable, others, names = of_id or stable, others_of_id + others, names or names_of_id
    if len(set(stable)) == 1:
        return stable[0], names[0] if names else "", ""
    name = names[0] if names else ""
    if len(set(stable)) > 1:  # of two genes: it can be added to neither
        name = name or symbol or gene_id
    if name:  # without an id, the prefix alone tells the species
        return "", (prefix[0] if prefix else "") + name, PROBES if _PROBE.fullmatch(name) else ""
    return (others[0], "", TRANSCRIPTS if names_transcript(others[0]) else "") if others else ("", "", "")


def _parts(value: str) -> tuple[list[str], list[str], list[str]]:
    """Split one name into stable ids of genes, other ids, and the remaining names, the symbol first."""
    if plain := _ENSEMBL.fullmatch(value):
        return [plain[1]], [], []
    if not _COMPOUND.search(value):
        return [], [], [] if _PLACEHOLDER.fullmatch(value) else [value]
    value = _PREFIX.sub("", value)
    matches = list(_IDS.finditer(value))
    stable = [_stable_id(match) for match in matches if match["ensembl"] or match["par_y"] or match["stable"]]
    others = [match["transcript"] or match["database"] for match in matches if match["transcript"] or match["database"]]
    if matches:
        pieces = re.split(r"[|;,\s/]+", _IDS.sub("|", value))
    else:
        pieces = re.split(r"[|;]", value)
    pieces = [piece.strip(" _-.:()[]{}") if matches else piece.strip() for piece in pieces]
    rest = [piece for piece in pieces if not _PLACEHOLDER.fullmatch(piece)]
    numbers = [piece for piece in rest if _ENTREZ.fullmatch(piece)]
    names = [piece for piece in rest if piece not in numbers]
    if len(pieces) > 1 and names:
        names = [piece for piece in names if not (_PROBE_HASH.fullmatch(piece) or _BIOTYPE.fullmatch(piece))]
    if not matches and len(names) > 1:  # two genes in one name: it stays one name
        return [], [], [value]
    return stable, others + [number.removesuffix(".0") for number in numbers], names


def _stable_id(match: re.Match[str]) -> str:
    if match["par_y"]:
        return f"ENSG0{match['par_y']}"
    return match["ensembl"].upper() if match["ensembl"] else match["stable"]


def _drop_shared(table: pd.DataFrame) -> None:
    """Empty ids and symbols that so many features share that they must be placeholders."""
    genes = table[table["kind"] == ""]
    with_id = genes[(genes[GENE_ID] != "") & (genes[SYMBOL] != "")]
    symbols_of = with_id[SYMBOL].str.casefold().groupby(with_id[GENE_ID].to_numpy()).nunique()
    shared = {
        gene_id for gene_id, number in symbols_of[symbols_of > 1].items()
        if number >= _SYMBOLS_OF_AN_ID or not _IDS.fullmatch(str(gene_id))
    }  # fmt: skip
    if shared:
        table.loc[table[GENE_ID].isin(shared), GENE_ID] = ""
    rows = genes[SYMBOL].value_counts()
    least = max(_ROWS_OF_A_SYMBOL, _SHARE_OF_A_SYMBOL * len(table))
    for symbol in rows.index[(rows > least) & (rows.index != "")]:
        ids = table.loc[table[SYMBOL] == symbol, GENE_ID]
        if ids.nunique() > 1 or (ids == "").all():
            table.loc[table[SYMBOL] == symbol, SYMBOL] = ""


def _report_left_out(table: pd.DataFrame, slide_id: str, notes: Notes) -> None:
    told = []
    for kind, of_kind in table[table["kind"] != ""].groupby("kind", sort=False):
        examples = ", ".join(filter(None, of_kind[SYMBOL].iloc[:2]))
        told.append(f"{len(of_kind)} {kind}" + (f" ({examples})" if examples else ""))
        notes.leave_out_genes(str(kind), len(of_kind))
    if told:
        number = int((table["kind"] != "").sum())
        logger.info("%s: left out %d of %d features: %s", slide_id, number, len(table), ", ".join(told))


def _columns_of_totals(counts: sp.csr_matrix, genes: np.ndarray) -> list[int]:
    """Return the features that are the sum of all other genes in every spot: none, one, or copies of one."""
    chosen = np.flatnonzero(genes)
    if len(chosen) <= _TOTAL_OF_FEATURES or not counts.nnz:
        return []
    # The fullest spot alone rules out almost every feature.
    fullest = counts[int(np.diff(counts.indptr).argmax())].toarray().ravel().astype(np.int64)[chosen]
    for times in range(1, _MOST_TOTALS + 1):
        columns = chosen[(times + 1) * fullest == fullest.sum()]
        if len(columns) != times:
            continue
        own = counts[:, columns].toarray().astype(np.int64)
        of_spots = np.asarray(counts[:, chosen].sum(axis=1, dtype=np.int64)).ravel()
        if (own[:, 0] > 0).sum() >= _TOTAL_IN_SPOTS and ((times + 1) * own == of_spots[:, None]).all():
            return columns.tolist()
    return []


def _refuse_unplaced(table: pd.DataFrame, slide_id: str) -> None:
    unplaced = table["kind"].isin([PROBES, TRANSCRIPTS])
    lost = int(unplaced.sum())
    if lost > int((table["kind"] == "").sum()):
        example = table[unplaced].iloc[0]
        raise ValueError(
            f"slide {slide_id!r}: {lost} of {len(table)} features are probes or transcripts that name no gene, e.g. "
            f"{example[SYMBOL] or example[GENE_ID]!r}. Allowed: genes, by symbol or id. Give the gene of each (--aliases CSV, "
            "columns alias, symbol, gene_id); features of one gene are then summed."
        )


def _refuse_numbers(features: pd.DataFrame, slide_id: str) -> None:
    names = [symbol or gene_id for gene_id, symbol in zip(features[GENE_ID], features[SYMBOL], strict=True)]
    if len(names) > 1 and all(str(name).removeprefix("V").isdecimal() for name in names):
        numbers = sorted(int(str(name).removeprefix("V")) for name in names)
        if numbers in (list(range(len(names))), list(range(1, len(names) + 1))):
            raise ValueError(
                f"slide {slide_id!r}: the genes are numbered {names[0]} to {names[-1]}: their names were lost when the matrix "
                "was written. Write it again with symbols or Ensembl ids."
            )


def _refuse_unprintable(genes: pd.DataFrame, slide_id: str) -> None:
    for name in (*genes[GENE_ID], *genes[SYMBOL]):
        if not name.isprintable():
            raise ValueError(
                f"slide {slide_id!r}: the gene name {name!r} holds a control character. Allowed: printable text. Correct it in "
                "the source."
            )

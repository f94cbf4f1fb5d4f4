"""Clean the genes of a slide (species, case, aliases, duplicates), and join several panels.

`features` decides which features are genes, and which of two names is the id.
"""

import logging
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..errors import did_you_mean
from .features import GENES_ONLY, GENOME_PREFIX, genes_only, names_transcript, without_genome
from .images import check_readable
from .notes import Notes
from .schema import GENE_ID, SYMBOL

logger = logging.getLogger(__name__)

_ENSEMBL = re.compile(r"(ENS([A-Z]*)G\d{6,})(\.\d+)?(_PAR_Y)?")
_MAX_COUNT = np.iinfo(np.int32).max
# Symbols as human and as mouse and rat genes are written; names of clones (LOC100360413, Gm1234) are neither.
_HUMAN_SYMBOL, _RODENT_SYMBOL = re.compile(r"[A-Z]{3,}\d{0,2}[A-Z]?\d?"), re.compile(r"[A-Z][a-z]{2,}\d{0,3}[a-z]?\d?")
# Two species are present if each has this share of all symbols, or if this share of the genes occurs in both spellings.
_BOTH_CASES, _TWINS = 0.2, 0.02
# What spreadsheets turn MARCH1, SEPT2, DEC1, OCT4 into.
_MONTH = "jan|feb|mar|mrz|mär|apr|may|mai|jun|jul|aug|sep|sept|oct|okt|nov|dec|dez"
_DATE = re.compile(
    rf"\d{{1,2}}[-. ]{{1,2}}(?:{_MONTH})|(?:{_MONTH})[-. ]\d\d|"
    r"\d{4}-\d\d-\d\d(?: [\d:.]+)?|\d{1,2}[./]\d{1,2}[./]\d{2,4}",
    re.I,
)
_SPECIES_OF_PREFIX = {"": "human", "MUS": "mouse", "RNO": "rat", "DAR": "zebrafish", "SSC": "pig", "GAL": "chicken"}
_SPECIES_NAMES = {
    "homo sapiens": "human",
    "hs": "human",
    "mus musculus": "mouse",
    "mm": "mouse",
    "rattus norvegicus": "rat",
}
_STRANGERS = 0.01
_FEW_MATCHES = 0.5


def canonical_species(name: str) -> str:
    """Return "human" for "Homo sapiens" and the like; another name in lower case."""
    name = " ".join(str(name).lower().split())
    return _SPECIES_NAMES.get(name, name)


def read_aliases(path: str | Path) -> dict[str, tuple[str, str]]:
    """Read a mapping of gene names.

    Args:
        path: CSV or TSV with the column alias (a symbol or an Ensembl id as the data have it) and the columns symbol or
            gene_id or both (the names that the gene gets).

    Returns:
        (gene_id, symbol) by alias in lower case; "" where the table gives none.

    Raises:
        KeyError: a missing column.
        ValueError: an alias that is given two meanings.
    """
    path = check_readable(path, "alias", "Give a CSV with the columns alias, symbol and, where known, gene_id.")
    table = pd.read_csv(path, sep=None, engine="python", dtype=str, keep_default_na=False)
    if "alias" not in table or not {"symbol", "gene_id"} & set(table):
        raise KeyError(
            f"{path.name}: columns {list(table)} found; needed are alias, and symbol or gene_id. Rename them."
        )
    aliases: dict[str, tuple[str, str]] = {}
    blank = [""] * len(table)
    for alias, gene_id, symbol in zip(
        table["alias"], table.get("gene_id", blank), table.get("symbol", blank), strict=True
    ):
        meaning = (_bare_id(gene_id.strip()), symbol.strip())
        if aliases.setdefault(_bare_id(alias.strip()).lower(), meaning) != meaning:
            raise ValueError(f"{path.name}: the alias {alias!r} has two meanings. Keep one row for it.")
    return aliases


def clean_genes(
    counts: sp.csr_matrix,
    genes: pd.DataFrame,
    slide_id: str,
    species: str = "",
    aliases: Mapping[str, tuple[str, str]] | None = None,
    notes: Notes | None = None,
) -> tuple[sp.csr_matrix, pd.DataFrame, str]:
    """Clean the features of one slide so that slides can be joined; log what changed.

    Every slide of every format passes here before it is written.

    Args:
        counts: (spots, features) raw counts.
        genes: columns gene_id and symbol as the source has them, and the other columns that `features.identify` reads.
        slide_id: for messages.
        species: of the slide; "" takes it from the genes.
        aliases: see `read_aliases`.
        notes: of the slide; receives what was left out, by kind, and how many columns were summed.

    Returns:
        Counts and genes, and the species. Controls, antibodies, totals and the like are left out; ids and symbols are in their
        columns; versions of Ensembl ids and prefixes of genomes are removed; the case of symbols is that of the species;
        aliases are replaced; columns of one gene are summed.

    Raises:
        ValueError: what `features.genes_only` refuses; genes of two species and no `species` that says which to keep; no gene
            of the given species; or a sum above the range of counts.
    """
    notes = notes or Notes()
    counts, table = genes_only(counts, genes, slide_id, notes, aliases or ())
    prefixes = _species_by_prefix(table)
    table[SYMBOL] = [without_genome(symbol) for symbol in table[SYMBOL]]
    _report_dates(table[SYMBOL], aliases or {}, slide_id)
    told = _species_told(table, prefixes, canonical_species(species))
    keep, species = _one_species(told, canonical_species(species), slide_id)
    if not keep.all():
        counts, table = counts[:, keep], table[keep].reset_index(drop=True)
        notes.leave_out_genes(f"genes of other species than {species}", int((~keep).sum()))
    table[SYMBOL] = _case_by_species(table[SYMBOL], species, slide_id)
    if aliases:
        table = _rename(table, aliases, slide_id)
    counts, table = _sum_duplicates(counts, table, slide_id, notes)
    table.attrs[GENES_ONLY] = True
    return counts, table, species


def union_genes(tables: Sequence[pd.DataFrame]) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """Join gene tables of several slides or folders into one.

    Two rows are one gene if their Ensembl ids agree, and their species agree or one is unknown. A row without an id joins the
    gene with its symbol, if exactly one id has that symbol; a row without a symbol joins by its id alone.

    Args:
        tables: each with columns gene_id, symbol, species.

    Returns:
        The union in order of first appearance (gene_id, symbol, species), and for each table the row of the union for each of
        its genes (genes,).
    """
    rows = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["gene_id", "symbol", "species"])
    known_as = {name: canonical_species(name) for name in set(rows["species"])}
    species = [known_as[name] for name in rows["species"]]
    known = sorted(set(species) - {""})
    species = [name or (known[0] if len(known) == 1 else "") for name in species]
    ids = [_bare_id(str(value)) for value in rows["gene_id"]]
    symbols = rows["symbol"].tolist()
    names = [(kind, symbol.casefold()) if symbol else None for kind, symbol in zip(species, symbols, strict=True)]
    only_id, keys = _only_ids(names, ids), []
    for kind, gene_id, symbol, name in zip(species, ids, symbols, names, strict=True):
        resolved = gene_id or only_id.get(name, "")
        keys.append((kind, resolved, "" if resolved else symbol.casefold()))
    index: dict[tuple[str, str, str], int] = {}
    which = np.array([index.setdefault(key, len(index)) for key in keys], dtype=np.int32)
    union = pd.DataFrame({"gene_id": [key[1] for key in index], "symbol": "", "species": [key[0] for key in index]})
    named: dict[int, str] = {}
    for place, symbol in zip(which.tolist(), symbols, strict=True):
        if symbol:
            named.setdefault(place, symbol)
    union["symbol"] = [named.get(place, "") for place in range(len(union))]
    borders = np.cumsum([len(table) for table in tables])[:-1]
    return union, np.split(which, borders) if tables else []


def _only_ids(names: Iterable[Hashable], ids: Iterable[str]) -> dict[Hashable, str]:
    """Return the id of each name that occurs with exactly one id; rows without a name or an id are ignored."""
    found: dict[Hashable, set[str]] = {}
    for name, gene_id in zip(names, ids, strict=True):
        if name and gene_id:
            found.setdefault(name, set()).add(gene_id)
    return {name: next(iter(own)) for name, own in found.items() if len(own) == 1}


def _bare_id(value: str) -> str:
    match = _ENSEMBL.fullmatch(value) if value.startswith("ENS") else None
    return match[1] if match else value


def _report_dates(symbols: pd.Series, aliases: Mapping[str, tuple[str, str]], slide_id: str) -> None:
    """Report names that a spreadsheet turned into dates, unless the alias file has them."""
    dates = [name for name in symbols if _DATE.fullmatch(name) and name.lower() not in aliases]
    if dates:
        logger.warning(
            "%s: a spreadsheet turned %d gene names into dates, e.g. %s (1-Mar was MARCH1 or MARC1, 2-Sep was SEPT2). Use the "
            "original table, or name the genes in an alias file (--aliases CSV, columns alias,symbol, a row such as "
            "2-Sep,SEPTIN2); as dates they match no other slide", slide_id, len(dates), ", ".join(dates[:3]),
        )  # fmt: skip


def _species_by_prefix(genes: pd.DataFrame) -> np.ndarray:
    """Return "human" or "mouse" (genes,) by the prefix of a genome, "" without one."""
    prefixes = [GENOME_PREFIX.match(symbol) for symbol in genes[SYMBOL]]
    return np.array(["" if found is None else "human" if found[1] else "mouse" for found in prefixes], dtype=object)


def _species_told(table: pd.DataFrame, prefixes: np.ndarray, species: str) -> np.ndarray:
    """Return the species of each gene (genes,), "" where unknown: by Ensembl id, else by genome prefix, else by symbols."""
    matches = [_ENSEMBL.fullmatch(value) if value.startswith("ENS") else None for value in table[GENE_ID]]
    told = np.array([_SPECIES_OF_PREFIX.get(m[2], "ENS" + m[2]) if m else "" for m in matches], dtype=object)
    if told.any():
        return told
    return prefixes if prefixes.any() else _species_by_case(table[SYMBOL], species)


def _species_by_case(symbols: pd.Series, species: str) -> np.ndarray:
    """Return "human" and "mouse" (or "rat", if that is `species`) where symbols are of both; else "" for every gene."""
    human = np.array([_HUMAN_SYMBOL.fullmatch(name) is not None for name in symbols])
    rodent = np.array([_RODENT_SYMBOL.fullmatch(name) is not None for name in symbols])
    twins = len(set(symbols[human]) & set(symbols[rodent].str.upper()))
    least = max(10, _BOTH_CASES * len(symbols))
    told = np.full(len(symbols), "", dtype=object)
    if min(human.sum(), rodent.sum()) >= least or twins >= max(10, _TWINS * len(symbols)):
        lower = symbols.str.contains("[a-z]") & ~symbols.str.contains(r"^C(?:\d+|X|Y)orf\d")
        told[:] = np.where(lower, "rat" if species == "rat" else "mouse", "human")
    return told


def _one_species(told: np.ndarray, species: str, slide_id: str) -> tuple[np.ndarray, str]:
    """Return which genes to keep (genes,) bool, and the species, from the species of each gene."""
    numbers = {str(name): int((told == name).sum()) for name in sorted(set(told) - {""})}
    common = [name for name, number in numbers.items() if number > _STRANGERS * sum(numbers.values())]
    if not numbers:
        return np.ones(len(told), dtype=bool), species
    if not species and len(common) > 1:
        raise ValueError(
            f"slide {slide_id!r} mixes species: genes of {numbers}. Choose the genes to keep (--species {common[0]}), "
            "and prepare the other species as a separate dataset."
        )
    species = species or common[0]
    known = set(_SPECIES_OF_PREFIX.values())
    # An unknown species may be right, but one that resembles a known name is a typing error.
    if species not in numbers and set(numbers) & known and (species in known or did_you_mean([species], known)):
        raise ValueError(
            f"slide {slide_id!r}: species is {species!r}, but its genes are of {numbers}. Correct the species "
            f"(--species {common[0]})."
        )
    foreign = (told != "") & (told != species) & np.isin(told, list(_SPECIES_OF_PREFIX.values()))
    if species not in numbers:
        foreign[:] = False
    if foreign.any():
        logger.warning("%s: left out %d genes of other species than %s", slide_id, foreign.sum(), species)
    return ~foreign, species


def _case_by_species(symbols: pd.Series, species: str, slide_id: str) -> list[str]:
    """Write symbols in upper case for human, capitalised for mouse and rat; only where most symbols are in the other case."""
    names = symbols.tolist()
    if species not in ("human", "mouse", "rat"):
        return names
    lettered = [name for name in names if (name.isalpha() and len(name) >= 3) or sum(map(str.isalpha, name)) >= 3]
    other = "mouse" if species == "human" else "human"
    if species == "human":
        wrong, change = ([name for name in lettered if (plain := name.replace("orf", "")).upper() != plain], _human)
    else:
        wrong, change = [name for name in lettered if name == name.upper()], _mouse
    if 2 * len(wrong) <= len(lettered):
        return names
    logger.warning(
        "%s: changed the case of symbols to that of %s, e.g. %s to %s; %d of %d are written as those of %s are: if they are, "
        "give --species %s", slide_id, species, wrong[0], change(wrong[0]), len(wrong), len(lettered), other, other,
    )  # fmt: skip
    return [change(name) for name in names]


def _human(name: str) -> str:
    return re.sub(r"^(C(?:\d+|X|Y))ORF(\d+)", r"\1orf\2", name.upper())


def _mouse(name: str) -> str:
    if name.upper().startswith("MT-"):
        return "mt-" + _mouse(name[3:])
    if re.match(r"H2-", name, re.I):  # the histocompatibility genes keep their capitals
        return name.upper()
    name = re.sub(r"[A-Za-z]", lambda letter: letter[0].upper(), name.lower(), count=1)
    return re.sub(r"^(\d{5,}[A-Z]\d+)rik$", r"\1Rik", name)


def _rename(table: pd.DataFrame, aliases: Mapping[str, tuple[str, str]], slide_id: str) -> pd.DataFrame:
    targets = {name.lower() for pair in aliases.values() for name in pair if name}
    ids, symbols, renamed, known = [], [], 0, 0
    for gene_id, symbol in zip(table["gene_id"], table["symbol"], strict=True):
        found = aliases.get(symbol.lower()) if symbol else None
        found = found or (aliases.get(gene_id.lower()) if gene_id else None)
        # A gene has several transcripts, so the id of one does not stand for the gene.
        own_id = "" if found and names_transcript(gene_id) else gene_id
        new_id, new_symbol = (found[0] or own_id, found[1] or symbol) if found else (gene_id, symbol)
        renamed += (new_id, new_symbol) != (gene_id, symbol)
        known += found is not None or symbol.lower() in targets or gene_id.lower() in targets
        ids.append(new_id)
        symbols.append(new_symbol)
    rate = known / max(len(table), 1)
    report = logger.warning if rate < _FEW_MATCHES else logger.info
    report("%s: %d of %d genes (%.0f %%) are in the alias table, %d were renamed%s",
           slide_id, known, len(table), 100 * rate, renamed,
           "; is the table of this species and panel?" if rate < _FEW_MATCHES else "")  # fmt: skip
    return pd.DataFrame({"gene_id": ids, "symbol": symbols})


def _sum_duplicates(
    counts: sp.csr_matrix, genes: pd.DataFrame, slide_id: str, notes: Notes
) -> tuple[sp.csr_matrix, pd.DataFrame]:
    """Sum the columns of each gene: those of one id; those without an id join the only id of their symbol, or one another."""
    only_id = _only_ids(genes[SYMBOL], genes[GENE_ID])
    pairs = zip(genes[GENE_ID], genes[SYMBOL], strict=True)
    key = [gene_id or only_id.get(symbol, f"symbol {symbol}") for gene_id, symbol in pairs]
    group = pd.factorize(np.array(key, dtype=object))[0]
    first = ~pd.Series(group).duplicated().to_numpy()
    if first.all():
        return counts, genes
    example = genes[~first].iloc[0]
    logger.warning("%s: summed %d duplicate columns of genes, e.g. %s",
                   slide_id, (~first).sum(), example[SYMBOL] or example[GENE_ID])  # fmt: skip
    notes.genes_summed += int((~first).sum())
    genes = _names_of_groups(genes, group, first)
    # Two counts that fit into 32 bits may have a sum that does not.
    summing = sp.csr_matrix((np.ones(len(group), np.int64), (np.arange(len(group)), group)))
    summed = (counts.astype(np.int64) @ summing).tocsr()
    if summed.nnz and summed.data.max() > _MAX_COUNT:
        gene = genes.iloc[int(summed.indices[summed.data.argmax()])]
        raise ValueError(
            f"slide {slide_id!r}: the columns of {gene[SYMBOL] or gene[GENE_ID]!r} add up to {summed.data.max()} in one spot. "
            f"Allowed: up to {_MAX_COUNT}. Check that the matrix holds raw counts."
        )
    return summed.astype(counts.dtype), genes


def _names_of_groups(genes: pd.DataFrame, group: np.ndarray, first: np.ndarray) -> pd.DataFrame:
    """Return one row per gene, with the first id and the first symbol that any of its columns has."""
    named = genes.replace("", None).groupby(group, sort=False).first().fillna("")
    return named.loc[group[first], [GENE_ID, SYMBOL]].reset_index(drop=True)

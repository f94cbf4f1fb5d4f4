"""Well-known markers by tissue: a reminder of genes that a vocabulary may lack, not a reference.

The markers are of cell types that pathologists name, as in textbooks of histology and on proteinatlas.org: human symbols,
compared ignoring case. Markers of stroma, vessels, immune cells and proliferation are added for every tissue.
"""

import re
from collections.abc import Iterable, Sequence

_EVERYWHERE = ("COL1A1", "VIM", "ACTA2", "PECAM1", "PTPRC", "CD3E", "MS4A1", "CD68", "MKI67")
MARKERS = {
    "breast": ("ERBB2", "ESR1", "PGR", "EPCAM", "KRT19", "KRT5", "GATA3"),
    "brain": ("GFAP", "SNAP25", "SLC17A7", "GAD1", "MBP", "PLP1", "AIF1", "OLIG2"),
    "olfactory bulb": ("PENK", "TH", "GAD1", "SLC17A7", "MBP", "GFAP"),
    "colon": ("EPCAM", "KRT20", "CDX2", "MUC2", "LGR5", "CHGA"),
    "liver": ("ALB", "APOA1", "CYP2E1", "KRT19", "GPC3"),
    "lung": ("EPCAM", "NKX2-1", "SFTPC", "AGER", "SCGB1A1", "TP63"),
    "kidney": ("NPHS2", "LRP2", "UMOD", "AQP2", "CA9"),
    "prostate": ("KLK3", "AR", "NKX3-1", "KRT5", "AMACR"),
    "skin": ("KRT5", "KRT10", "KRT14", "MLANA", "PMEL"),
    "lymph": ("CD19", "CD8A", "CD4", "BCL6", "MZB1"),
    "ovar": ("PAX8", "WT1", "MUC16", "EPCAM"),
    "pancrea": ("PRSS1", "INS", "GCG", "KRT19"),
    "heart": ("MYH6", "MYH7", "TNNT2", "DES"),
}


# Housekeeping genes, which do not show the type of a cell: mitochondrial, ribosomal, cytoskeleton, general metabolism.
_HOUSEKEEPING = re.compile(
    r"MT-|MT[RT]?NR|RP[LS]\d|RPLP\d|RPSA|MRP[LS]\d|EEF\d|EIF\d|ACT[BG]1?$|GAPDH$|B2M$|TMSB(4X|10)$|MALAT1$|NEAT1$|FTL\d?$|FTH1$"
    r"|UB[BC]$|UBA52$|TUB[AB]\w+$|HSP90A|HSPA8$|PPIA$|FAU$|TPT1$|NACA$|CFL1$|PFN1$|PSAP$|ALDOA$|PGK1$|LDHA$|OAZ1$|SERF2$|COX\d|ATP5"
    r"|NDUF|UQCR|XIST$|H3F3B$|H3-3B$|PTMA$|CALM\d$",
    flags=re.IGNORECASE,
)


def is_housekeeping(gene: str) -> bool:
    """Tell whether a gene is expressed by nearly any cell, so that its name under a picture is not informative.

    >>> [gene for gene in ("MT-CO1", "Rpl13", "ACTB", "ERBB2", "ACTA2", "Mbp") if is_housekeeping(gene)]
    ['MT-CO1', 'Rpl13', 'ACTB']
    """
    return _HOUSEKEEPING.match(gene) is not None


def absent_markers(tissues: Iterable[str], vocabulary: Sequence[str]) -> dict[str, list[str]]:
    """Return the well-known markers of each tissue that a vocabulary lacks; tissues outside of the table are left out.

    Args:
        tissues: Tissues of the slides table; "breast cancer" has the markers of breast.
        vocabulary: Names of genes.

    >>> absent_markers(["breast cancer"], ["ERBB2", "ESR1", "PGR", "EPCAM", "KRT19", "KRT5", "GATA3", *_EVERYWHERE[:-1]])
    {'breast': ['MKI67']}
    """
    known = {name.casefold() for name in vocabulary}
    found = {}
    for tissue in sorted({name for text in tissues for name in MARKERS if name in text.casefold()}):
        found[tissue] = [name for name in (*MARKERS[tissue], *_EVERYWHERE) if name.casefold() not in known]
    return found

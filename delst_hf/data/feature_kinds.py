"""Recognise features of a count matrix that are not genes, by name and by the type that the source states."""

import re
from functools import lru_cache

import numpy as np

TOTALS, SPOT_COLUMNS = "totals", "columns about spots"
# Features that are not genes, by name. Each occurs in public outputs of the platform or tool named beside it.
_NOT_GENES = {
    "summary rows of a read counter": re.compile(  # htseq-count, featureCounts, STAR
        r"_*(?:no_feature|ambiguous|too_low_aqual|not_aligned|alignment_not_unique)|"
        r"unassigned_(?:no_?features|ambiguity|unmapped|multi_?mapping|mapping_?quality|secondary|chimera|duplicate|read_type|"
        r"singleton|overlapping_length|fragment_length|nonjunction)|n_(?:unmapped|multimapping|nofeature|ambiguous)",
        re.I,
    ),
    "blanks": re.compile(r"blank(?:[-_ .]?\d+|[-_ .].*|codeword.*)?", re.I),  # MERSCOPE, seqFISH, Xenium; fly's gene is blanks
    "deprecated probes": re.compile(r"deprecated.*", re.I),  # Space Ranger's probe sets, Xenium
    "unassigned codewords": re.compile(  # Xenium, in situ sequencing
        r"unassigned.*|infeasible|background|no[-_ ]?code", re.I
    ),
    "antisense probes": re.compile(r"antisense[-_ :].*", re.I),  # Xenium
    "control probes": re.compile(  # CosMx, GeoMx, Xenium, nCounter, Molecular Cartography
        r"(?:custom\d*[-_ ])?neg(?:ative)?[-_ ]?(?:control|ctrl|cntrl|prb|probe|set|add).*|"
        r"negative(?:[-_ .]?\d+.*)?|false[-_ ]?(?:code|pos).*|"
        r"(?:.*[-_ .])?(?:system|genomic|pos(?:itive)?|internal|technical|custom|codeword|probe)?[-_ ]?"
        r"(?:controls?(?:[-_ .]?\d+|(?:[-_ .]|probe|codeword).*)?|ctrl[-_ .]?\d+)|(?:.*[-_ ]|pos)ctrl|"
        r"\w*codeword[-_ ]?\d+|intergenic.*|(?:pos|neg)_[a-h](?:\(.*\))?|fp[ _]\w+|custom\d*[-_ ]neg(?:ative)?[-_ ]?\d*",
        re.I,
    ),
    "spike-ins": re.compile(r"(?:.*[-_])?ercc[-_.]?0\d{4}|sirv\d+|(?:rna[-_ ])?spike[-_ ]?ins?[-_ ]?\w*", re.I),
    "antibodies": re.compile(  # TotalSeq of BioLegend, CITE-seq
        r".*[-_. ]total(?:seq[-_]?[abcd]?|[abcd])(?:[-_]?\d+)?|(?:adt|antibody|hto|hashtag)[_: .]?\d+|"
        r"adt(?:[_: .].+|-[a-z].*)|(?:prot|protein|antibody|hto|hashtag)[-_: .].+|.+[-_:.](?:adt|prot|protein|hto)|"
        r"anti[-_ ].+|"
        r"total[-_]?seq[-_]?[abcd]\d*[-_ ]?\w*|.*isotype.*|(?:mouse|rat|hamster)[-_ ]ig[gm]\d?[a-z]?.*",
        re.I,
    ),
    TOTALS: re.compile(  # scanpy, Seurat, spreadsheets
        r"(?:log1p[_. ]|log[_. ])?(?:n|num|number|total|sum|row)?[_. ]?(?:of[_. ])?"
        r"(?:counts?|umis?|genes|features|transcripts|reads|molecules)"
        r"(?:[_. ](?:rna|spatial|sct|xenium|nanostring|by[_. ]counts|mt|mito|total|per[_. ](?:spot|cell)))?|"
        r"n(?:count|feature|umi|gene)s?(?:[_. ]\w+)?|n[_. ](?:umi|gene|count|feature)|"
        r"(?:grand|row|column)?[_. ]?(?:total|sum)s?|total[_. ](?:umi|counts?|reads?).*|"
        r"library[_. ]?size|size[_. ]?factors?|depth|(?:pct|percent|percentage|fraction)[_. ].+",
        re.I,
    ),
    SPOT_COLUMNS: re.compile(  # written beside the genes by pandas, CosMx, Space Ranger, Seurat
        r"unnamed[: _]+\d+|level_0|index|fov|cell|barcodes?|(?:cell|spot|bin|sample|slide|patient|library)[_. ]?ids?|"
        r"in[_. ]tissue|entity_?id|volume|area(?:[_. ]um2?)?|aspect_?ratio|width|height|(?:mean|max)\.\w+|center[xy]_\w+|"
        r"array[_. ](?:row|col)|pxl[_. ](?:row|col).*|image(?:row|col)|(?:cell|nucleus)[_. ](?:area|volume)|"
        r"(?:transcript|control_(?:probe|codeword)|(?:unassigned|deprecated)_codeword)_counts|"
        r"[xyz][_. ](?:centroid|location|coords?|pos(?:ition)?|pixel|um|px|mm|(?:global|local)_px|slide_mm)|"
        r"(?:center|centre|centroid|min|max|pixel|global|local|new|spatial)[_. ][xyz](?:_\w+)?",
        re.I,
    ),
}  # fmt: skip
# Features that are not genes, by the type that the source states. "antisense" and "protein_coding" are biotypes of genes.
_NOT_GENE_TYPES = {
    "antibodies": re.compile(r"antibod|^proteins?(?! *_?coding)|\badt\b|hashtag|\bhto\b|multiplex|isotype|antigen", re.I),
    "blanks": re.compile("blank", re.I),
    "deprecated probes": re.compile("deprecated", re.I),
    "unassigned codewords": re.compile("unassigned", re.I),
    "spike-ins": re.compile("spike|ercc", re.I),
    "control probes": re.compile(r"control|negative|codeword|^neg", re.I),
    "guides": re.compile("crispr|guide", re.I),
    "peaks": re.compile("peak|chromatin|atac", re.I),
}  # fmt: skip
_GENE_TYPES = {"gene expression", "gene", "genes", "rna", "mrna", "gex", "transcript", "transcripts", "transcriptome"}


@lru_cache(maxsize=1 << 18)
def kind_of_name(name: str) -> str:
    """Return the kind of a feature of this name, as a plural noun; "" for a gene.

    >>> [kind_of_name(name) for name in ("NegPrb3", "__no_feature", "ERCC-00002", "ERCC1", "CTRL")]
    ['control probes', 'summary rows of a read counter', 'spike-ins', '', '']
    """
    return next((kind for kind, pattern in _NOT_GENES.items() if pattern.fullmatch(name)), "")


def kinds_by_type(types: list[str]) -> np.ndarray:
    """Return (features,) kinds, "" for genes and for types that say nothing about it."""
    meaning = {}
    for name in set(types):
        kind = next((kind for kind, pattern in _NOT_GENE_TYPES.items() if pattern.search(name)), "")
        meaning[name] = "" if name.casefold() in _GENE_TYPES else kind
    # If a type says "Gene Expression", every other type is not a gene; without it, types may be biotypes of genes.
    if any(name.casefold() in _GENE_TYPES for name in meaning):
        for name, kind in meaning.items():
            if not kind and name and name.casefold() not in _GENE_TYPES:
                meaning[name] = f"features of type {name!r}"
    return np.array([meaning[name] for name in types], dtype=object)

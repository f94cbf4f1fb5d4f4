"""Join positions and counts of the same spots by name."""

import logging
import re

import pandas as pd
import scipy.sparse as sp

from ..counts import as_counts, check_counts
from ..values import identifiers
from .matrices import Counts

logger = logging.getLogger(__name__)

# What programs change in the names of spots, with the pattern and the replacement that undo it.
_CHANGED_IN_NAMES = {
    "in capitals": ("$^", ""),
    "in signs that R replaces (- by ., X before a number; check.names = FALSE keeps them)": (r"^X(?=[ACGT\d])|\W", ""),
    "at the end, where both need the same suffix (-1)": (r"[-._]\d+$", ""),
    "in a prefix": (r"^.*[_:#](?=[ACGT]{8})", ""),
}


def join_spots(spots: pd.DataFrame, counts: Counts, slide_id: str) -> tuple[pd.DataFrame, sp.csr_matrix]:
    """Keep the spots with both a position and counts, in the order of the counts; report what was left out.

    Args:
        spots: index = barcodes.
        counts: the counts.
        slide_id: for messages.

    Returns:
        The spots and their int32 counts.

    Raises:
        ValueError: duplicated barcodes, a transposed or normalised matrix, or no spot in common.
    """
    spots = spots.set_axis(pd.Index(identifiers(spots.index), dtype=object))
    for names, where in ((counts.barcodes, counts.name), (spots.index, "the positions")):
        twice = names[names.duplicated()]
        if len(twice):
            raise ValueError(
                f"slide {slide_id!r}: {len(twice)} barcodes are duplicated in {where}, e.g. {twice[0]!r}. Each spot needs its "
                "own; if several sections were joined, split them first."
            )
    shared = counts.barcodes.isin(spots.index)
    if not shared.any():
        both = spots.index.isin(counts.genes["symbol"]) | spots.index.isin(counts.genes["gene_id"])
        hint = (
            "The matrix is transposed: its columns are the spots. Transpose it, or add --orientation genes."
            if both.any()
            else _how_names_differ(spots.index, counts.barcodes)
        )
        raise ValueError(
            f"slide {slide_id!r}: no spot of the positions ({spots.index[:2].tolist()}) is in {counts.name} "
            f"({counts.barcodes[:2].tolist()}). {hint}"
        )
    lonely_counts, lonely_spots = int((~shared).sum()), len(spots) - int(shared.sum())
    counts.notes.leave_out_spots("counts without a spot", lonely_counts)
    counts.notes.leave_out_spots("spots without counts", lonely_spots)
    if lonely_counts or lonely_spots:
        logger.warning("%s: left out %d counts without spot and %d spots without counts",
                       slide_id, lonely_counts, lonely_spots)  # fmt: skip
    check_counts(counts.matrix, slide_id, hint=f"put the raw counts into {counts.name}")
    return spots.loc[counts.barcodes[shared]], as_counts(counts.matrix.tocsr()[shared])


def _how_names_differ(spots: pd.Index, barcodes: pd.Index) -> str:
    """Return in what two lists of spot names differ, if one known change explains it, and the next step, in sentences."""
    for what, (pattern, instead) in _CHANGED_IN_NAMES.items():
        bare = [{re.sub(pattern, instead, str(name).upper()) for name in names} for names in (spots, barcodes)]
        if 2 * len(bare[0] & bare[1]) > min(len(bare[0]), len(bare[1])):
            return f"The names differ only {what}: rename the spots of one of the two."
    return "Check that both belong to one slide, and that their barcodes have the same suffix (-1)."

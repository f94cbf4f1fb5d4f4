"""Niches: a spot with its nearest neighbours, on a wide patch whose centre is the spot's own (HyperST, arXiv 2511.22107).

The dataset is prepared with patches as wide as a niche (``delst prepare ... --patch-um 336 --patch-px 336``). The centre of
such a patch shows the spot, and the complete patch shows the niche. The counts of a niche are the sums over its spots.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse
import torch
from datasets import Dataset
from PIL import Image
from scipy.spatial import cKDTree
from torch import Tensor

from .collator import Columns, DelstCollator, open_patch
from .patches import centre_of
from .study import Study

# Fewer pixels than this show no tissue.
_FEWEST_PX = 8


def with_niches(study: Study, spots: Dataset, neighbours: int, niche_um: float) -> Dataset:
    """Return these spots with the column ``niche``: the ``spot_index`` of every spot of their niche, their own first.

    A niche is a spot and the nearest of these spots on its slide whose centres lie on its wide patch. A spot without neighbours
    is its own niche.

    Args:
        study: The dataset.
        spots: Some of its spots; only these can be neighbours, so that held-out spots stay held out.
        neighbours: Largest number of other spots in a niche.
        niche_um: Side of the wide patch in micrometres.

    Raises:
        ValueError: If the micrometres per pixel of a slide are not known.

    Examples:
        >>> study = Study.load("runs/toy/data")
        >>> niches = with_niches(study, study.subset(["toy_A1"]), neighbours=4, niche_um=336)
        >>> niches[0]["niche"][0] == niches[0]["spot_index"], max(len(niche) for niche in niches["niche"])
        (True, 5)
    """
    placed = spots if "x_um" in spots.column_names else study.with_positions_um(spots)
    columns = placed.select_columns(["x_um", "y_um", "slide_id", "spot_index"])
    table = columns.with_format("numpy")[:]
    slides, index = np.asarray(table["slide_id"]), np.asarray(table["spot_index"])
    niches: list[Any] = [None] * len(spots)
    for slide in np.unique(slides):
        rows = np.flatnonzero(slides == slide)
        points = np.stack([table["x_um"][rows], table["y_um"][rows]], axis=1)
        nearest = cKDTree(points).query(points, k=range(1, min(neighbours + 1, len(rows)) + 1))[1]
        for row, found in zip(rows, nearest, strict=True):
            on_patch = np.abs(points[found] - points[found[0]]).max(axis=1) <= niche_um / 2
            # Of two spots at one position either may come first.
            others = rows[found[on_patch]]
            niches[row] = [int(index[row]), *index[others[others != row]][:neighbours].tolist()]
    return spots.add_column("niche", pa.array(niches, pa.list_(pa.int64())))


def centre_px(stored_px: int, spot_um: float, niche_um: float) -> int:
    """Return the side in pixels of the centre of a wide patch.

    Raises:
        ValueError: If the centre is not smaller than the patch, or too small to show anything.

    >>> centre_px(336, 112.0, 336.0)
    112
    """
    if not 0 < spot_um < niche_um:
        raise ValueError(
            f"spot_um={spot_um:g} must be above 0 and below the side of a niche, which is that of the stored patches: "
            f"{niche_um:g} um. For wider niches prepare the dataset again: delst prepare ... --patch-um 336 --patch-px 336."
        )
    side = round(stored_px * spot_um / niche_um)
    if side < _FEWEST_PX:
        raise ValueError(
            f"The spot's centre of {spot_um:g} um has only {side} of the {stored_px} px of a stored patch. Prepare the dataset "
            "with more pixels per patch (--patch-px), or give a larger spot_um."
        )
    return side


class NicheCounts:
    """Sparse counts of the vocabulary's genes for every spot that can be in a niche.

    Args:
        study: The dataset.
        datasets: Spots that may be requested.
        columns: Position in the vocabulary of each gene of the dataset, -1 for genes outside of it (genes,).
        vocabulary_size: Number of genes in the vocabulary.
    """

    def __init__(self, study: Study, datasets: Sequence[Dataset], columns: np.ndarray, vocabulary_size: int):
        known = np.flatnonzero(columns >= 0)
        # Genes of one name are summed, as in the feature extractor.
        to_vocabulary = scipy.sparse.csr_matrix(
            (np.ones(len(known), np.float32), (known, columns[known])), shape=(len(columns), vocabulary_size)
        )
        parts, totals, index = [], [], []
        for spots in datasets:
            parts += [counts @ to_vocabulary for counts in study.count_batches(spots)]
            table = spots.select_columns(["spot_index", "total_counts"]).with_format("numpy")[:]
            index.append(np.asarray(table["spot_index"]))
            totals.append(np.asarray(table["total_counts"], dtype=np.float64))
        self.counts, self.totals = scipy.sparse.vstack(parts, format="csr"), np.concatenate(totals)
        joined = np.concatenate(index)
        self.row_of_spot = np.full(joined.max() + 1, -1)
        self.row_of_spot[joined] = np.arange(len(joined))

    def summed(self, niches: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sum the counts of the spots of each niche.

        Args:
            niches: ``spot_index`` of all spots, one niche after the other.
            lengths: Number of spots of each niche (niches,).

        Returns:
            Counts (niches, vocabulary), and total counts of all genes (niches,).
        """
        member = scipy.sparse.csr_matrix(
            (np.ones(len(niches), np.float32), self.row_of_spot[niches], np.concatenate([[0], np.cumsum(lengths)])),
            shape=(len(lengths), len(self.totals)),
        )
        return (member @ self.counts).toarray(), member @ self.totals


class NicheCollator(DelstCollator):
    """Make batches of spots and their niches from rows with wide patches and the column ``niche``.

    Args:
        processor, gene_names, slide_ids, measured_genes, defer_pixels: As in `DelstCollator`.
        counts: Counts of all spots that are in a niche.
        centre: Side of a spot's patch as a share of the side of the wide patch.
    """

    def __init__(self, *args: Any, counts: NicheCounts, centre: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.counts, self.centre = counts, centre

    def __call__(self, rows: Sequence[Mapping[str, Any]] | pa.Table) -> dict[str, Any]:
        """Collate rows.

        Returns:
            The batch of `DelstCollator` for the centres of the patches; ``niche_pixel_values`` (batch, 3, height, width), the
            complete patches; and ``niche_gene_values`` (batch, vocabulary), the normalised sums over the niches.
        """
        columns = Columns(rows)
        wide = [open_patch(image) for image in columns.values("image")]
        counts, totals = self.counts.summed(*columns.lists("niche"))
        return {
            "pixel_values": self.pixel_values([self._of_spot(patch) for patch in wide]),
            **self.all_but_pixels(rows),
            "niche_pixel_values": self.pixel_values(wide),
            "niche_gene_values": torch.from_numpy(self.processor.feature_extractor.normalize(counts, totals)),
        }

    def _of_spot(self, patch: Image.Image) -> Image.Image:
        """Cut the patch of the spot out of the wide one."""
        side = patch.width * self.centre
        return centre_of(patch, side, round(side))

    def finish(self, batch: dict[str, Any], choices: Tensor | None = None) -> dict[str, Any]:
        """Finish the patches of spots and of niches as the base class does; a wide patch is turned like its spot's."""
        batch = super().finish(batch, choices)
        if "niche_pixel_values" not in batch:
            return batch
        wide = super().finish({"pixel_values": batch["niche_pixel_values"]}, choices)["pixel_values"]
        return {**batch, "niche_pixel_values": wide}

"""One tissue section in memory: its image, its spots, their counts, and its scale in micrometres per pixel."""

import logging
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from PIL import Image

from .counts import check_counts
from .features import GENES_ONLY, genes_only
from .notes import Notes
from .patches import Cutter, StoredPatches, check_patch_size, image_cutter
from .scale import Scale, check_scale, scale_of
from .schema import GENE_ID, SYMBOL
from .values import identifiers, labels

logger = logging.getLogger(__name__)

# Scanners give 0.1 to 1 um/px and reduced "hires" images up to about 10; outside this range, units were mixed up.
PLAUSIBLE_MPP = (0.05, 50.0)
# Side of the squares that a thumbnail is made from: 12 MB, and a few tiles of any slide.
_BLOCK_PX = 2048
_MANY_CLASSES = 20  # so many classes may have numbers with decimals as names, such as clusters of clusters
# Slide ids become file names and glob patterns; `datasets` skips names that begin with "." or "_".
_SLIDE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class WrongFrameError(ValueError):
    """Raised for spots that do not lie on tissue: their coordinates belong to another image or scale."""


@dataclass
class Slide:
    """One section. Coordinates are continuous: the pixel in row i and column j covers y in [i, i+1) and x in [j, j+1).

    Attributes:
        slide_id: unique within a dataset; letters, digits, "_", "-" and ".".
        image: uint8 (height, width, 3): an array, or anything with `.shape` and `[y0:y1, x0:x1]` slicing. None where there are
            only counts: its spots train the gene side.
        spots: index = barcodes, kept as text; columns x, y (float, pixels of `image`), array_row, array_col (-1 when unknown),
            label (None when unknown; cleaned by `values.label`, so 1.0 is "1" and "NA" is None), cell_area_um2 (NaN unless a
            row is a cell of known size). All but x and y are added where they are missing.
        counts: (spots, genes) sparse raw counts. Features that are not genes are left out, and counted in the notes.
        genes: columns gene_id and symbol, in the order of the columns of `counts`. May be given as the source names them, with
            the other columns that `features.identify` reads; ids and symbols are then told apart, "" where unknown.
        mpp: micrometres per pixel of `image`.
        patient_id: all slides of one patient belong to one split.
        technology: for example "Visium".
        tissue: for example "breast".
        species: for example "human".
        label_source: who or what gave the labels, "" without labels.
        spot_um: diameter of a spot, or side of a bin, in micrometres; None when unknown.
        spot_px: the same in pixels of `image`, as the source states it; None when it does not.
        source: the format and the names of the files that the slide was read from.
        stored_patches: patches cut earlier, where there is no image to cut them from.
        notes: what was left out while it was read, and which sources state a scale.
        has_counts: False for an image without counts: `counts` and `genes` are then empty.
        signs_of_samples: signs of several samples that were found before rows were added up (see `samples`).
        scale: the sources of `mpp`; without it, `mpp` is compared with the lattice of the spots and the tags of the image.

    Examples:
        >>> from delst_hf.data.toy import make_toy_slide
        >>> slide = make_toy_slide("toy_A1", spots_per_side=6, image_px=400)
        >>> slide.validate()
        >>> patch = next(slide.patches(patch_um=112, patch_px=32))
        >>> patch.size, slide.select(slide.spots["x"].to_numpy() < 200).counts.shape
        ((32, 32), (18, 200))
    """

    slide_id: str
    image: Any
    spots: pd.DataFrame
    counts: sp.csr_matrix
    genes: pd.DataFrame
    mpp: float
    patient_id: str
    technology: str = ""
    tissue: str = ""
    species: str = ""
    label_source: str = ""
    spot_um: float | None = None
    spot_px: float | None = None
    source: str = ""
    stored_patches: StoredPatches | None = None
    notes: Notes = field(default_factory=Notes)
    has_counts: bool = True
    scale: Scale | None = None
    signs_of_samples: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.spots = self.spots.set_axis(pd.Index(identifiers(self.spots.index), dtype=object))
        for column, default in (("array_row", -1), ("array_col", -1), ("label", None)):
            if column not in self.spots:
                self.spots[column] = pd.Series([default] * len(self.spots), index=self.spots.index, dtype=object)
        if "cell_area_um2" not in self.spots:
            self.spots["cell_area_um2"] = np.nan
        self.spots["label"] = pd.Series(labels(self.spots["label"]), index=self.spots.index, dtype=object)
        if self.scale is not None:
            self.scale.note(self.notes, self.mpp)
        if depth := getattr(self.image, "depth", ""):
            self.notes.image["samples"] = depth
        self._keep_genes()

    def validate(self, allow_scale: bool = False) -> None:
        """Refuse a slide that would give wrong patches or wrong counts.

        Args:
            allow_scale: log it, and do not raise, where sources of the scale disagree.

        Raises:
            ValueError: invalid ids or shapes, duplicated barcodes, counts that are not raw counts, labels that are not classes,
                an implausible `mpp` or one that the spots or the image contradict, or spots whose centre lies outside the
                image. The message names the next step.
        """
        self._check_names()
        self._check_tables()
        check_mpp(self.mpp, self.slide_id)
        check_counts(self.counts, self.slide_id)
        self._check_labels()
        if self.has_counts and self.counts.nnz == 0:
            raise ValueError(
                f"slide {self.slide_id!r}: every count is zero. Check that the counts belong to these spots."
            )
        outside = ~self._inside()
        if outside.any():
            raise WrongFrameError(self._outside_message(outside))
        if self.scale is None:
            self.scale = scale_of(self)
            self.scale.note(self.notes, self.mpp)
        check_scale(self.slide_id, self.scale, allow_scale)

    def drop_outside(self) -> "Slide":
        """Return the slide without the spots whose centre lies outside the image.

        Raises:
            ValueError: most spots are outside, which means that the coordinates are wrong.
        """
        self._check_tables()
        outside = ~self._inside()
        if not outside.any():
            return self
        if 2 * outside.sum() > len(outside):
            raise WrongFrameError(self._outside_message(outside))
        logger.warning("%s: dropped %d of %d spots outside the image", self.slide_id, outside.sum(), len(outside))
        self.notes.leave_out_spots("outside the image", outside.sum())
        return self.select(~outside)

    def select(self, keep: np.ndarray) -> "Slide":
        """Return the slide with only these spots.

        Args:
            keep: (spots,) bool.
        """
        stored = self.stored_patches
        stored = None if stored is None else replace(stored, rows=stored.rows[keep])
        return replace(self, spots=self.spots[keep], counts=self.counts.tocsr()[keep], stored_patches=stored)

    def patches(self, patch_um: float, patch_px: int) -> Iterator[Image.Image]:
        """Cut one square patch per spot by physical size, in the order of `spots`.

        The square of patch_um / mpp pixels centred on (x, y) is taken at sub-pixel precision and resampled once
        (bicubic, antialiased); beyond the border of the image it is white. Only that region of `image` is read. Where
        patch_um / mpp equals patch_px, nothing is resampled: the patch is the crop at the nearest whole pixel.

        Args:
            patch_um: side in micrometres.
            patch_px: side of the result in pixels.

        Yields:
            RGB images of (patch_px, patch_px).

        Raises:
            ValueError: sizes or `mpp` that are not positive.
        """
        cut = self.cutter(patch_um, patch_px)
        yield from (Image.fromarray(cut(position)) for position in range(len(self.spots)))

    def cutter(self, patch_um: float, patch_px: int) -> Cutter:
        """Return a function from the row of a spot to its patch as an array, for any order of the spots."""
        check_patch_size(patch_um, patch_px)
        self._need_image()
        check_mpp(self.mpp, self.slide_id)
        if self.stored_patches is not None:
            return self.stored_patches.cutter(patch_um, patch_px)
        return image_cutter(self.image, self.spots[["x", "y"]].to_numpy(float), patch_um / self.mpp, patch_px)

    def thumbnail(self, max_px: int = 512) -> Image.Image:
        """Return the whole image with its longer side at most max_px, read in blocks of some megabytes."""
        self._need_image()
        image = self.image.overview(max_px) if hasattr(self.image, "overview") else self.image
        height, width = image.shape[:2]
        factor = -(-max(height, width) // max_px)
        reduced = Image.new("RGB", (-(-width // factor), -(-height // factor)))
        # Blocks cover whole pixels of the thumbnail. A strip is decoded at once, so blocks do not divide it.
        strips = getattr(image, "chunks", (1, 1))[1] >= width
        columns = factor * -(-(width if strips else _BLOCK_PX) // factor)
        rows = factor * max(1, _BLOCK_PX**2 // (columns * factor))
        for top in range(0, height, rows):
            for left in range(0, width, columns):
                block = image[top : min(top + rows, height), left : min(left + columns, width)]
                small = Image.fromarray(np.ascontiguousarray(block)).reduce(factor)
                reduced.paste(small, (left // factor, top // factor))
        return reduced

    def _need_image(self) -> None:
        if self.image is None:
            raise ValueError(
                f"slide {self.slide_id!r} has no image, so nothing can be cut or drawn. Give its image, or train the gene side "
                "alone on its spots (--unpaired_slides)."
            )

    def _keep_genes(self) -> None:
        """Leave out the features that are not genes; leave tables that do not fit to `validate`."""
        fits = {GENE_ID, SYMBOL} <= set(self.genes) and self.counts.shape[1] == len(self.genes) > 0
        if fits and not self.genes.attrs.get(GENES_ONLY):
            self.counts, self.genes = genes_only(self.counts, self.genes, self.slide_id, self.notes)
            self.genes.attrs[GENES_ONLY] = True

    def _check_names(self) -> None:
        check_slide_id(self.slide_id)
        if not isinstance(self.patient_id, str) or not self.patient_id:
            raise ValueError(
                f"slide {self.slide_id!r}: patient_id is {self.patient_id!r}. Allowed: a non-empty string."
            )

    def _check_tables(self) -> None:
        where, n_spots, n_genes = f"slide {self.slide_id!r}", len(self.spots), len(self.genes)
        missing = [name for name in ("x", "y") if name not in self.spots] + [
            name for name in ("gene_id", "symbol") if name not in self.genes
        ]
        if missing:
            raise ValueError(
                f"{where}: columns {missing} are missing. Needed: spots with x, y; genes with gene_id, symbol."
            )
        if n_spots == 0 or (n_genes == 0 and self.has_counts):
            raise ValueError(
                f"{where} is empty: {n_spots} spots, {n_genes} genes. Check the filters and the ids that join spots and counts."
            )
        if self.counts.shape != (n_spots, n_genes):
            hint = "Transpose it." if self.counts.shape == (n_genes, n_spots) else "Align the three tables."
            raise ValueError(
                f"{where}: counts have shape {self.counts.shape}; {n_spots} spots x {n_genes} genes expected. {hint}"
            )
        shape = (1, 1, 3) if self.image is None else tuple(self.image.shape)
        if len(shape) != 3 or shape[2] != 3 or 0 in shape or (self.image is not None and self.image.dtype != np.uint8):
            raise ValueError(
                f"{where}: the image is {self.image.dtype} {shape}. Allowed: uint8 (height, width, 3). "
                "Convert it with delst_hf.data.images.to_rgb."
            )
        duplicated = self.spots.index[self.spots.index.duplicated()]
        if len(duplicated):
            raise ValueError(
                f"{where}: {len(duplicated)} barcodes are duplicated, e.g. {duplicated[0]!r}. Each spot needs its own; "
                "if several sections were joined, split them first."
            )
        undefined = int((~np.isfinite(self.spots[["x", "y"]].to_numpy(float))).any(axis=1).sum())
        if undefined:
            raise ValueError(
                f"{where}: {undefined} of {n_spots} spots have no coordinates (NaN). Drop them, or complete x and y."
            )

    def _check_labels(self) -> None:
        """Refuse measurements in place of classes: nearly every spot would be its own class."""
        named = self.spots["label"].dropna()
        numbers = pd.to_numeric(named, errors="coerce")
        if named.nunique() > _MANY_CLASSES and 2 * (numbers.notna() & (numbers % 1 != 0)).sum() > len(named):
            raise ValueError(
                f"slide {self.slide_id!r}: the labels are measurements, such as {named.iloc[0]}, and not classes: {len(named)} "
                f"labelled spots have {named.nunique()} different ones. Allowed: names or whole numbers of classes. Name the "
                "column that holds them (--label-key, --label-column), or read no labels (of an .h5ad: --label-key '')."
            )

    def _inside(self, x_name: str = "x", y_name: str = "y") -> np.ndarray:
        if self.image is None:
            return np.ones(len(self.spots), dtype=bool)
        height, width = self.image.shape[:2]
        x, y = self.spots[x_name].to_numpy(float), self.spots[y_name].to_numpy(float)
        return (x >= 0) & (x < width) & (y >= 0) & (y < height)

    def _outside_message(self, outside: np.ndarray) -> str:
        height, width = self.image.shape[:2]
        x, y, n = self.spots["x"], self.spots["y"], len(outside)
        found = (
            f"slide {self.slide_id!r}: {outside.sum()} of {n} spots lie outside the image "
            f"(x {x.min():.1f}..{x.max():.1f}, y {y.min():.1f}..{y.max():.1f}; image {width} wide, {height} high)."
        )
        swapped = self._inside("y", "x").sum()
        if swapped > n - outside.sum():
            return f"{found} With x and y swapped, {swapped} would be inside: swap them (--swap-xy)."
        if 2 * outside.sum() > n:
            return f"{found} The scale is probably wrong: scale x and y to this image, or give the image that they refer to."
        return f"{found} Drop them with outside='drop' (--drop-outside), or correct their coordinates."


def no_counts(spots: pd.DataFrame) -> dict[str, Any]:
    """Return the fields of a slide of these spots that has no counts: empty counts, empty genes, has_counts False."""
    genes = pd.DataFrame({GENE_ID: [], SYMBOL: []}, dtype=object)
    return {"counts": sp.csr_matrix((len(spots), 0), dtype=np.int32), "genes": genes, "has_counts": False}


def make_slide_id(name: str) -> str:
    """Make a slide id from the name of a file, a folder or a sample.

    Accents are dropped; letters that are not Latin become their code points, so that different names stay different; any other
    character that a slide id may not hold becomes "_".

    >>> make_slide_id("Caf\u00e9 1"), make_slide_id("\u809d"), make_slide_id("a/b")
    ('Cafe_1', 'u809d', 'a_b')
    """
    latin = "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    spelled = "".join(f"u{ord(one):x}" if one.isalnum() and not one.isascii() else one for one in latin)
    cleaned = re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9_.-]+", "_", spelled)).lstrip("_.-").rstrip("_")
    return cleaned or "slide"


def check_slide_id(slide_id: object) -> None:
    """Raise a ValueError unless `slide_id` can be part of the name of a file."""
    if not isinstance(slide_id, str) or not _SLIDE_ID.fullmatch(slide_id) or "--" in slide_id:
        raise ValueError(
            f"slide_id {slide_id!r} cannot name a file. Allowed: letters, digits, '_', '-' and '.', beginning "
            "with a letter or digit, no '--'. Pass another slide_id (--slide-id)."
        )


def check_mpp(mpp: float | None, slide_id: str) -> None:
    """Raise a ValueError unless `mpp` is a plausible number of micrometres per pixel."""
    low, high = PLAUSIBLE_MPP
    if mpp is None or not np.isfinite(mpp) or not low <= mpp <= high:
        raise ValueError(
            f"slide {slide_id!r}: mpp is {mpp}. Allowed: {low} to {high} micrometres per pixel. Give the scanner's "
            "value (mpp=, --mpp); a 20x scan has about 0.5."
        )

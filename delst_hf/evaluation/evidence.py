"""What protocols read: the spots, the arms that are scored, the space of a model, and the options of the evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import sparse

from ..model.lorentz import log_map0
from .preparation import MAX_FOLDS, joined_groups, missing_rows

SPLITS = ("auto", "patient", "slide", "block")
BLOCKS = 5

# name -> {"genes": {name: weight} or [names], or "profile": {name: counts}; "region": label}
Signatures = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Evaluation:
    """Options of an evaluation.

    Attributes:
        num_genes: Number of most variable genes that the protocol `arms` predicts.
        seeds: Seeds of the random-init backbones and shuffled controls; the first one also seeds all other random choices.
        ignore_labels: Labels that are treated as missing, as they are not tissue classes.
        baselines: False leaves the baseline arms out, for example where other results already hold them.
        protocols: Names of `suite.SUITE`.
        signatures: Gene signatures for zero-shot maps (see `signatures.reference_profiles`).
        resamples: Bootstrap resamples per interval.
        split: What is left out at a time (see `Spots`).
        domain_method: "kmeans" or "leiden".
        batch_size: Spots per batch when embedding.
        progress: Show progress bars.
    """

    num_genes: int = 100
    seeds: Sequence[int] = (0, 1, 2)
    ignore_labels: Sequence[str] = ("undetermined",)
    baselines: bool = True
    protocols: Sequence[str] = ("arms", "retrieval", "hierarchy")
    signatures: Signatures = field(default_factory=dict)
    resamples: int = 1000
    split: str = "auto"
    domain_method: str = "kmeans"
    batch_size: int = 64
    progress: bool = True


@dataclass(frozen=True)
class Arm:
    """Something that is scored: one set of features of all spots, of the model or of a baseline.

    Attributes:
        name: Its name in every row.
        repeats: One array (spots, columns), or (spots,) for a confidence, per random seed; a single one if nothing is random.
        own: Whether it is the model's own and not a baseline.
        control: Whether its rows belong to other spots, so that it must score at chance.
    """

    name: str
    repeats: Sequence[np.ndarray]
    own: bool = False
    control: bool = False

    @property
    def features(self) -> np.ndarray:
        """The array of the first seed (spots, columns)."""
        return self.repeats[0]


@dataclass(frozen=True)
class Spots:
    """What is known about the evaluated spots besides their embeddings; all arrays have one entry per spot.

    Attributes:
        slides: Slide ids.
        patients: Patient ids.
        test: bool, True for the spots to score. The others, if there are any, are only fitted on.
        labels: Strings, None where a spot has no label.
        positions: (spots, 2) x and y.
        counts: (spots, genes) raw counts, sparse.
        genes: (genes,) names.
        split: What is left out at a time: "patient", "slide", "block" (one of five strips of every slide), or "auto", the
            strictest that leaves something to fit on.
        target_sum: Library size of the log-normalisation, as in the model's processor.

    Raises:
        ValueError: If the split is unknown, or there are not two patients or slides to leave out.
    """

    slides: np.ndarray
    patients: np.ndarray
    test: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    counts: sparse.csr_matrix
    genes: Sequence[str]
    split: str = "auto"
    target_sum: float = 1e4

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(
                f"split is {self.split!r}; allowed are {', '.join(SPLITS)}. Choose what is left out at a time."
            )
        if self.split in ("patient", "slide") and len(np.unique(getattr(self, f"{self.split}s"))) < 2:
            raise ValueError(
                f"split is {self.split!r} and all spots are of one {self.split}. Add a second one, or use split='block', which "
                "leaves out strips of a slide, whose borders leak."
            )

    @property
    def groups(self) -> tuple[np.ndarray, str]:
        """The group of every spot (spots,), `MAX_FOLDS` groups at most, and what a group is."""
        if self.split in ("auto", "patient") and len(np.unique(self.patients)) > 1:
            return joined_groups(self.patients, MAX_FOLDS), "patient"
        if self.split in ("auto", "slide") and len(np.unique(self.slides)) > 1:
            return joined_groups(self.slides, MAX_FOLDS), "slide"
        return self._blocks(), "block"

    @property
    def reference(self) -> np.ndarray:
        """Mask of the spots to choose genes and take means from: those that are not scored, or all if all are scored."""
        return ~self.test if not self.test.all() else self.test

    @property
    def folds(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Pairs of rows to fit on and rows to score: one pair, or if all spots are scored, one per group that is left out."""
        if not self.test.all():
            return [(np.flatnonzero(~self.test), np.flatnonzero(self.test))]
        groups = self.groups[0]
        return [(np.flatnonzero(groups != group), np.flatnonzero(groups == group)) for group in np.unique(groups)]

    @property
    def labelled(self) -> bool:
        """Whether spots to score have labels, and all labels together have two classes or more."""
        known = ~missing_rows(self.labels)
        return bool((known & self.test).any()) and len(set(self.labels[known])) > 1

    def _blocks(self) -> np.ndarray:
        """Cut each slide along its longer side into strips of equal numbers of spots; a single slide has no other groups."""
        names = np.empty(len(self.slides), dtype=object)
        for slide in np.unique(self.slides):
            rows = np.flatnonzero(self.slides == slide)
            places = self.positions[rows]
            along = places[:, np.ptp(places, axis=0).argmax()]
            order = np.argsort(along, kind="stable")
            for number, part in enumerate(np.array_split(order, BLOCKS)):
                names[rows[part]] = f"strip {number + 1}"
        return names.astype(str)


@dataclass(frozen=True)
class Space:
    """A space that holds images and genes.

    Attributes:
        image: (spots, dim) image embeddings; space parts for "lorentz".
        gene: (spots, dim) gene embeddings.
        geometry: "lorentz", "cosine" or "euclidean".
        curvature: The positive c of "lorentz".
        curvature_bounds: The range that training allowed.
        parent: The modality whose cones hold the other.
        min_radius: K of the half-aperture.
        aperture_scale: eta of the cones across modalities.
        name: Name of its model in the rows of the results.
        arm: Name of the arm of its image embeddings.
        signatures: Name -> gene embedding (dim,) of a signature or of a reference profile.
        regions: Signature name -> the label it is meant to find.
        gene_shares: Signature name -> how many of its genes the model reads, such as "3 of 5 genes".
        mean_profile: (1, dim) gene embedding of the mean reference profile.
    """

    image: np.ndarray
    gene: np.ndarray
    geometry: str
    curvature: float | None = None
    curvature_bounds: tuple[float, float] | None = None
    parent: str = "gene"
    min_radius: float = 0.1
    aperture_scale: float = 1.0
    name: str = "DELST"
    arm: str = "DELST embedding"
    signatures: Mapping[str, np.ndarray] = field(default_factory=dict)
    regions: Mapping[str, str] = field(default_factory=dict)
    gene_shares: Mapping[str, str] = field(default_factory=dict)
    mean_profile: np.ndarray | None = None

    def tangent(self, embeds: np.ndarray) -> np.ndarray:
        """Return coordinates for Euclidean methods: for "lorentz" those of the tangent space at the origin."""
        if self.geometry != "lorentz":
            return embeds
        return log_map0(torch.from_numpy(np.asarray(embeds, dtype=np.float64)), float(self.curvature)).numpy()  # type: ignore[arg-type]

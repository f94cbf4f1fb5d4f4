"""What protocols read: the spots with what is known of them, and the space that a model put them in. Arrays only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import sparse

from ..lorentz import log_map0
from .preparation import missing_rows


@dataclass(frozen=True)
class Spots:
    """What is known of the evaluated spots besides their embeddings; all arrays have one entry a spot.

    Attributes:
        slides: Slide ids.
        patients: Patient ids.
        test: bool, True for the spots to score.
        labels: Strings, None where there is none.
        positions: (spots, 2) x and y.
        counts: (spots, genes) raw counts, sparse.
        genes: (genes,) names.
    """

    slides: np.ndarray
    patients: np.ndarray
    test: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    counts: sparse.csr_matrix
    genes: Sequence[str]

    @property
    def groups(self) -> tuple[np.ndarray, str]:
        """The strictest grouping there is: patients where there are two, else slides; and its name."""
        return (self.patients, "patient") if len(np.unique(self.patients)) > 1 else (self.slides, "slide")

    @property
    def labelled(self) -> bool:
        """Whether test and training spots have labels, of two classes at least."""
        known = ~missing_rows(self.labels)
        return bool((known & self.test).any()) and len(set(self.labels[known & ~self.test])) > 1


@dataclass(frozen=True)
class Space:
    """The two-tower space to evaluate.

    Attributes:
        image: (spots, dim) image embeddings; space parts for "lorentz".
        gene: (spots, dim) gene embeddings.
        geometry: "lorentz", "cosine" or "euclidean".
        curvature: The positive c of "lorentz".
        curvature_bounds: The range that training allowed.
        parent: The modality whose cones hold the other.
        min_radius: K of the half-aperture.
        signatures: Name -> gene embedding (dim,) of a signature or of a reference profile.
        regions: Signature name -> the label it is meant to find.
        mean_profile: (1, dim) gene embedding of the mean training profile.
    """

    image: np.ndarray
    gene: np.ndarray
    geometry: str
    curvature: float | None = None
    curvature_bounds: tuple[float, float] | None = None
    parent: str = "gene"
    min_radius: float = 0.1
    signatures: Mapping[str, np.ndarray] = field(default_factory=dict)
    regions: Mapping[str, str] = field(default_factory=dict)
    mean_profile: np.ndarray | None = None

    def tangent(self, embeds: np.ndarray) -> np.ndarray:
        """Coordinates for methods of flat space."""
        if self.geometry != "lorentz":
            return embeds
        return log_map0(torch.from_numpy(np.asarray(embeds, dtype=np.float64)), float(self.curvature)).numpy()  # type: ignore[arg-type]

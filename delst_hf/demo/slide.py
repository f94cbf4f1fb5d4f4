"""A slide that is open on the page: its patches, predicted once, and the queries of the page."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from ..errors import did_you_mean
from ..prediction.predict import PatchChoice, open_source
from ..prediction.predictor import Predictor
from ..prediction.reference import Reference
from ..prediction.shards import in_memory
from ..prediction.source import PatchSource
from ..report.drawing import pitch

# Longer side of the picture on the page.
PICTURE_PX = 900
_NEIGHBOURS = 5


@dataclass(frozen=True)
class OpenSlide:
    """Patches of a slide with the predictions of a model.

    Attributes:
        source: The patches.
        picture: The slide, reduced (height, width, 3) uint8.
        scale: Pixels of the picture per pixel of the slide.
        values: Arrays of the predictor: tangent, radius and, where there are heads, expression and probabilities.
        genes: Names of the columns of the expression, with held-out scores where they are known.
        classes: Names of the columns of the probabilities.
        distance: (patches,) mean distance to the nearest spots of the reference, None without one.
        imputed: Whether the expression is the mean profile of the nearest spots, because the model has no head.
    """

    source: PatchSource
    picture: np.ndarray
    scale: float
    values: dict[str, np.ndarray]
    genes: pd.DataFrame
    classes: list[str]
    distance: np.ndarray | None
    imputed: bool = False

    @property
    def places(self) -> np.ndarray:
        """Centres of the patches (patches, 2) in pixels of the picture."""
        return self.source.rows[["x", "y"]].to_numpy(float) * self.scale

    @property
    def side(self) -> float:
        """Side at which a patch is drawn, in pixels of the picture."""
        return pitch(self.places, alone=next(iter(self.source.spot_px.values())) * self.scale)

    def score(self, asked: str) -> tuple[np.ndarray, list[str]]:
        """Return the weighted mean of genes (patches,), and a line about each of them.

        Args:
            asked: Comma-separated genes, each with a weight after a colon where it is not 1: ``KRT8, ERBB2:2``.

        Raises:
            ValueError: If nothing is predicted, no gene is given, or one is not known; then with the most similar names.
        """
        if "expression" not in self.values:
            raise ValueError(
                "This model has no expression head and no reference, so no gene is predicted: see delst fit."
            )
        weights = _weights(asked)
        known = {str(name).upper(): place for place, name in reversed(list(enumerate(self.genes.index)))}
        if unknown := [name for name in weights if name.upper() not in known]:
            hint = did_you_mean(unknown[:5], map(str, self.genes.index))
            names = ", ".join(unknown[:5])
            raise ValueError(f"{names}: not predicted by this model, which knows {len(self.genes)} genes.{hint}")
        columns = [known[name.upper()] for name in weights]
        weight = np.array(list(weights.values()))
        values = self.values["expression"][:, columns] @ weight / np.abs(weight).sum()
        return values, [self._told(column) for column in columns]

    def _told(self, column: int) -> str:
        name = str(self.genes.index[column])
        if self.imputed:
            return f"{name}: mean of the nearest spots of the reference"
        if "pearson" not in self.genes or not np.isfinite(self.genes["pearson"].iloc[column]):
            return f"{name}: not scored on held-out slides"
        score = self.genes.iloc[column]
        return f"{name}: held-out Pearson {score['pearson']:.2f} ({score['pearson_low']:.2f} to {score['pearson_high']:.2f})"

    def at(self, x: float, y: float) -> int | None:
        """Return the number of the patch at a position of the picture, None where there is none."""
        distance = np.abs(self.places - [x, y]).max(axis=1)
        nearest = int(distance.argmin())
        return nearest if distance[nearest] <= self.side * 0.75 else None

    def patch(self, number: int) -> np.ndarray:
        """Return the pixels of a patch (height, width, 3)."""
        return self.source.read([number])[0]


def _weights(asked: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in filter(None, (word.strip() for word in asked.replace(";", ",").split(","))):
        name, _, weight = part.partition(":")
        try:
            weights[name.strip()] = float(weight) if weight.strip() else 1.0
        except ValueError:
            raise ValueError(f"{part}: the weight after the colon must be a number, such as ERBB2:2.") from None
    if not weights or not any(weights.values()):
        raise ValueError("Type the name of a gene, or several with commas between them, such as ERBB2, GRB7.")
    return weights


def open_slide(
    predictor: Predictor,
    path: str | os.PathLike,
    mpp: float | None = None,
    reference: Reference | None = None,
    step: Callable[[float], Any] | None = None,
) -> OpenSlide:
    """Open a slide and predict all its patches.

    Args:
        predictor: The model.
        path: Image of a slide, or any other source that `predict_slide` takes.
        mpp: Micrometres per pixel; by default those that the file states.
        reference: Spots to compare with.
        step: Called with the share that is done.

    Raises:
        ValueError: As `predict_slide`.
    """
    source = open_source(path, predictor, PatchChoice(mpp=mpp))
    values = in_memory(source, predictor, step=step)
    genes, imputed, distance = predictor.genes, False, None
    if reference is not None:
        distance = reference.distance(predictor, values["tangent"])
        if "expression" not in values:
            number = min(_NEIGHBOURS, len(reference.spots))
            values["expression"] = reference.impute(reference.nearest(predictor, values["tangent"], number, "image")[0])
            genes, imputed = pd.DataFrame(index=pd.Index(reference.genes, name="gene")), True
    name = next(iter(source.shapes))
    picture = source.pictures[name].convert("RGB")
    picture.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
    scale = picture.width / source.shapes[name][1]
    return OpenSlide(source, np.asarray(picture), scale, values, genes, predictor.classes, distance, imputed)

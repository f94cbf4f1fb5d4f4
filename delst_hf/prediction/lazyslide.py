"""A checkpoint as models of LazySlide (extra ``lazyslide``): one for its tiles, one for features of its tiles.

LazySlide needs only a few methods of a model and no base class, so it is not imported here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .predictor import Predictor, load_predictor

RADIUS = "delst_radius"


class LazySlideModel:
    """Base of both models.

    Args:
        model: Folder or Hub id of a checkpoint, or a loaded one.
        heads: Further heads on the same backbone.
        genes: Genes to predict; by default all that the head knows.
        min_pearson: Leave out genes whose held-out Pearson is lower.

    Attributes:
        model: The towers, a `DelstModel`.
        name: Name of the checkpoint, under which results are stored.
        columns: Names of the predicted columns: genes, "p_" and a class, and the radius where the geometry has one.
    """

    def __init__(
        self,
        model: str | Predictor,
        heads: Sequence[str] = (),
        genes: Sequence[str] | None = None,
        min_pearson: float | None = None,
    ):
        self.predictor = load_predictor(model, heads) if isinstance(model, str) else model
        self.predictor.keep_genes(genes, min_pearson)
        self.model = self.predictor.model
        self.name = str(self.predictor.name).rstrip("/").rsplit("/", 1)[-1]
        names = [*map(str, self.predictor.genes.index), *(f"p_{name}" for name in self.predictor.classes)]
        self.columns = (*names, *([RADIUS] if self.model.config.geometry != "cosine" else []))

    def get_transform(self) -> Callable[[Any], Tensor] | None:
        """Return the function that turns a tile into an input of the model; None for features."""
        return None

    def to(self, device: Any) -> "LazySlideModel":
        """Move the model to a device."""
        self.predictor.to(device)
        return self

    def try_compile(self, **options: Any) -> None:
        """Do nothing: heads are small, and not every backbone can be compiled."""

    def _named(self, found: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return name -> column (tiles,) of the predictor's arrays."""
        parts = [found[name] for name in ("expression", "probabilities") if name in found]
        if RADIUS in self.columns:
            parts.append(found["radius"][:, None])
        if not parts:
            return {}
        values = torch.cat([part.float() for part in parts], dim=1).cpu().numpy()
        return dict(zip(self.columns, values.T, strict=True))


class LazySlideTiles(LazySlideModel):
    """Model for ``lazyslide.tl.tile_prediction`` and ``lazyslide.tl.feature_extraction``.

    Tiles must have the side in micrometres that the model was trained on: ``patch_um`` of the predictor.

    Examples:
        >>> model = LazySlideTiles("runs/toy/expression", min_pearson=-1.0)
        >>> tile = model.get_transform()(np.zeros((50, 50, 3), dtype=np.uint8))
        >>> sorted(model.predict(tile[None]))[-1]
        'delst_radius'
    """

    def get_transform(self) -> Callable[[Any], Tensor]:
        """Return the preparation of the model's own processor: a tile (height, width, 3) uint8 -> (3, side, side)."""
        processor, encoding, side = self.predictor.processor, self.predictor.encoding, self.predictor.cut_px

        def prepared(tile: Any) -> Tensor:
            picture = tile if isinstance(tile, Image.Image) else Image.fromarray(np.asarray(tile, dtype=np.uint8))
            picture = picture.convert("RGB")
            if encoding is not None and picture.size == (side, side):
                picture = Image.fromarray(encoding.restored(np.asarray(picture)))
            return processor.prepare_images(picture, return_tensors="pt")["pixel_values"][0]

        return prepared

    @torch.no_grad()
    def encode_image(self, image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the pooled features (tiles, width) of the backbone, which heads read."""
        return self.predictor.features(image)

    def __call__(self, image: Tensor) -> Tensor:
        """Return the same as `encode_image`."""
        return self.encode_image(image)

    @torch.no_grad()
    def predict(self, image: Tensor, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        """Predict `columns` of tiles (tiles, 3, side, side), prepared."""
        return self._named(self.predictor.from_features(self.encode_image(image)))


class LazySlideFeatures(LazySlideModel):
    """Model for ``lazyslide.tl.feature_prediction``, on features from `LazySlideTiles` or from the model's own encoder.

    Examples:
        >>> model = LazySlideFeatures("runs/toy/expression")
        >>> width = model.model.config.vision_feature_size
        >>> len(model.predict(np.zeros((4, width), dtype=np.float32))["delst_radius"])
        4
    """

    @property
    def features_model_name(self) -> str:
        """Name of the model whose features are read unless another table is named."""
        return self.name

    @torch.no_grad()
    def predict(self, features: Any, coords: Any = None, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        """Predict `columns` from features (tiles, width)."""
        values = torch.as_tensor(np.asarray(features, dtype=np.float32)).to(self.model.device)
        width = self.model.config.vision_feature_size
        if values.ndim != 2 or values.shape[1] != width:
            raise ValueError(
                f"the features have the shape {tuple(values.shape)}, but the model {self.name} reads (tiles, {width}). Make "
                "them with LazySlideTiles of the same checkpoint, or with the encoder that it was trained on."
            )
        return self._named(self.predictor.from_features(values))

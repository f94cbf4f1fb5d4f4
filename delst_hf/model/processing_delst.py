"""One processor for both modalities: the backbone's image processor joined with the gene feature extractor."""

from collections.abc import Sequence
from typing import Any, cast

from transformers import AutoImageProcessor, BatchFeature, ProcessorMixin
from transformers.processing_utils import ProcessingKwargs, Unpack

from .feature_extraction_delst import DelstGeneFeatureExtractor


class DelstProcessor(ProcessorMixin):
    """Patches and counts -> model inputs. Saved in one folder with the model, loaded by ``AutoProcessor``.

    Args:
        image_processor: The image processor of the vision backbone (``AutoImageProcessor.from_pretrained(backbone)``).
        feature_extractor: The gene side, with the vocabulary.
    """

    def __init__(self, image_processor: Any, feature_extractor: DelstGeneFeatureExtractor):
        super().__init__(image_processor, feature_extractor)

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        # Left to itself, transformers takes another image processor where torchvision is installed, whose resizing gives
        # other pixels than those that the model was trained on.
        return [
            AutoImageProcessor.from_pretrained(pretrained_model_name_or_path, backend="pil", **kwargs),
            DelstGeneFeatureExtractor.from_pretrained(pretrained_model_name_or_path, **kwargs),
        ]

    def __call__(
        self,
        images: Any = None,
        counts: Any = None,
        gene_names: Sequence[str] | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        """Prepare patches, expression or both.

        Args:
            images: One patch or a list of them: PIL images or uint8 arrays (height, width, 3).
            counts: Raw counts (batch, genes), as `DelstGeneFeatureExtractor` takes them.
            gene_names: Names of the genes (genes,).
            **kwargs: ``return_tensors`` (``"pt"`` or ``"np"``) and options of the image processor, flat or as
                ``images_kwargs``.

        Returns:
            ``pixel_values`` (batch, 3, height, width) for images; ``gene_values``, ``gene_mask`` (batch, genes) and ``level``
            (batch,) for counts.

        Raises:
            ValueError: If neither images nor counts are given, or their numbers differ.
        """
        if images is None and counts is None:
            raise ValueError("Nothing to process: pass images=, counts= with gene_names=, or both.")
        options = self._merge_kwargs(cast(Any, ProcessingKwargs), **kwargs)["images_kwargs"]
        data: dict[str, Any] = {}
        if images is not None:
            data.update(self.image_processor(images, **options))
        if counts is not None:
            data.update(self.feature_extractor(counts, gene_names, return_tensors=options.get("return_tensors")))
        if images is not None and counts is not None and len(data["pixel_values"]) != len(data["gene_values"]):
            raise ValueError(
                f"{len(data['pixel_values'])} images but {len(data['gene_values'])} rows of counts: row i of both must be "
                "the same spot."
            )
        return BatchFeature(data)

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", *self.feature_extractor.model_input_names]


__all__ = ["DelstProcessor"]

"""`--levels niche`: a run on spots and their niches."""

from collections.abc import Mapping, Sequence

from datasets import Dataset

from ..data.niche import NicheCollator, NicheCounts, centre_px, with_niches
from ..data.study import Study
from ..model.processing_delst import DelstProcessor
from .arguments import DataArguments, DelstTrainingArguments


class Niches:
    """The two levels of a run: sizes of spot and niche, and the spots and collator that hold both.

    Args:
        study: The dataset, prepared with wide patches.
        slides: Slides of the run.
        data: ``niche_spots`` and ``spot_um``, by default a third of the side of the stored patches.
        training: How to train.

    Raises:
        ValueError: If the slides' patches differ in size, or options do not support two levels.
    """

    def __init__(self, study: Study, slides: Sequence[str], data: DataArguments, training: DelstTrainingArguments):
        check_levels(data, training)
        widths, pixels = study.patch_um(slides), study.patch_px(slides)
        if len(widths) > 1 or len(pixels) > 1:
            raise ValueError(
                f"levels='niche' needs patches of one size, and those of these slides are {widths} um and {pixels} px wide. "
                "Prepare them alike, or choose others by --train_slides."
            )
        self.study, self.neighbours = study, data.niche_spots
        self.niche_um = widths[0]
        self.spot_um = self.niche_um / 3 if data.spot_um is None else data.spot_um
        self.spot_px = centre_px(pixels[0], self.spot_um, self.niche_um)

    def added_to(self, spots: Dataset | None) -> Dataset | None:
        """Return spots with the column ``niche``; None passes through."""
        return spots and with_niches(self.study, spots, self.neighbours, self.niche_um)

    def collator(self, processor: DelstProcessor, spots: Mapping[str, Dataset | None]) -> NicheCollator:
        """Make the collator of spots that `added_to` has returned."""
        extractor = processor.feature_extractor
        columns = extractor.match(self.study.gene_names)
        present = [dataset for dataset in spots.values() if dataset is not None]
        counts = NicheCounts(self.study, present, columns, len(extractor.vocabulary))
        return NicheCollator.of(
            processor, self.study, counts=counts, centre=self.spot_um / self.niche_um, defer_pixels=True
        )

    @property
    def size_of_spots(self) -> dict[str, str]:
        """Size of the patches that the model reads, which is that of the spots, as facts of the data."""
        return {"patch_um": f"{self.spot_um:g}", "patch_px": f"{self.spot_px:d}"}


def check_levels(data: DataArguments, training: DelstTrainingArguments) -> None:
    """Refuse options that do not support two levels, before any work.

    Raises:
        ValueError: If any is given; the message names them.
    """
    if data.niche_spots < 1:
        raise ValueError(
            f"niche_spots={data.niche_spots} must be 1 or more: a niche is a spot and its nearest neighbours."
        )
    given = {
        "streaming": data.streaming,
        "features": data.features is not None,
        "cache_features": training.cache_features,
        "contrastive_micro_batch_size": training.contrastive_micro_batch_size is not None,
        "views='nested'": training.views == "nested",
    }
    asked = [name for name, value in given.items() if value]
    if asked:
        raise ValueError(
            f"levels='niche' embeds each spot and its niche in every step, which {' and '.join(asked)} "
            f"{'does' if len(asked) == 1 else 'do'} not support. Leave one of the two out."
        )

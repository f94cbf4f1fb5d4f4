"""Scores of each gene and class on slides that were held out of the fit, with intervals."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..evaluation.preparation import nanmean
from ..evaluation.uncertainty import Bootstrap
from .ridge import correlation

# Neighbouring spots are alike: where there are too few slides to resample, strips of slides are resampled, never single spots.
_STRIPS = 8
_ENOUGH_SLIDES = 5
_GENES_AT_ONCE = 256


def strips(slides: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return for each spot (spots,) the number of its strip; slides are cut along y into strips of equally many spots."""
    of_slide = pd.Series(y).groupby(slides)
    size = of_slide.transform("size")
    strip = (of_slide.rank(method="first") - 1) * size.clip(upper=_STRIPS) // size
    return np.unique(of_slide.ngroup() * _STRIPS + strip, return_inverse=True)[1]


class PearsonSums:
    """Sums of predictions and targets by strip and gene, from which Pearson correlations and their intervals follow.

    Args:
        slides: (strips,) the slide of each strip.
        genes: Number of genes.
    """

    def __init__(self, slides: Sequence[str], genes: int):
        self.slides = np.asarray(slides)
        self.sums = np.zeros((len(self.slides), 6, genes))

    def add(self, units: np.ndarray, predicted: np.ndarray, measured: np.ndarray, mask: np.ndarray) -> None:
        """Add rows.

        Args:
            units: (rows,) the strip of each row.
            predicted: (rows, genes).
            measured: (rows, genes).
            mask: (rows, genes) bool, True where measured.
        """
        p, y = np.where(mask, predicted, 0.0), np.where(mask, measured, 0.0)
        for number, value in enumerate((mask.astype(float), p, y, p * p, p * y, y * y)):
            np.add.at(self.sums[:, number], units, value)

    def scores(self, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Return pearson, pearson_low and pearson_high by gene: the mean over slides of the correlation within each.

        The 95 % interval resamples slides where there are five or more, else strips of these slides.
        """
        names = list(dict.fromkeys(self.slides))
        over_slides = len(names) >= _ENOUGH_SLIDES
        if over_slides:
            bootstrap = Bootstrap(len(names), names, "slides", resamples=resamples, seed=seed)
        else:
            bootstrap = Bootstrap(len(self.slides), self.slides, "spots", resamples=resamples, seed=seed)
        draws = np.concatenate(list(bootstrap.weights()))
        rows: list[tuple[float, float, float]] = []
        for start in range(0, self.sums.shape[2], _GENES_AT_ONCE):
            sums = self.sums[:, :, start : start + _GENES_AT_ONCE]
            of_slide = [sums[self.slides == name] for name in names]
            plain = np.stack([_pearson(one.sum(axis=0)) for one in of_slide])
            if over_slides:
                there = ~np.isnan(plain)
                with np.errstate(invalid="ignore", divide="ignore"):
                    drawn = (draws @ np.where(there, plain, 0.0)) / (draws @ there.astype(float))
            else:
                weights = [draws[:, self.slides == name] for name in names]
                drawn = nanmean(
                    np.stack([_pearson(np.tensordot(w, one, 1)) for w, one in zip(weights, of_slide, strict=True)])
                )
            for gene, value in enumerate(nanmean(plain)):
                interval = bootstrap.interval_of(float(value), drawn[:, gene])
                rows.append((interval["value"], interval["low"], interval["high"]))
        return pd.DataFrame(rows, columns=["pearson", "pearson_low", "pearson_high"])


def _pearson(sums: np.ndarray) -> np.ndarray:
    """Return correlations (..., genes) from the six sums (..., 6, genes)."""
    count, p, y, pp, py, yy = np.moveaxis(sums, -2, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = 1 / np.maximum(count, 1)
        result = correlation(py - p * y * mean, pp - p * p * mean, yy - y * y * mean)
    return np.where(count > 2, result, np.nan)


def class_scores(truth: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """Return f1, precision, recall and spots by class, on labels (rows,) that were held out of the fit."""
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, number = precision_recall_fscore_support(
        truth, predicted, labels=list(classes), zero_division=0
    )
    return pd.DataFrame(
        {"class": list(classes), "f1": f1, "precision": precision, "recall": recall, "spots": number.astype(int)}
    )

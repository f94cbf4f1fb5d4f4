"""Per-class scores of the labels that a probe predicted, from the predictions that results hold for every test spot."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from ..evaluation.tables import Table

Record = Mapping[str, Any]


@dataclass(frozen=True)
class ClassScores:
    """Labels against predictions.

    Attributes:
        classes: Names of the classes, for labels and predictions.
        confusion: Number of spots (label, prediction).
    """

    classes: list[str]
    confusion: np.ndarray

    def table(self) -> Table:
        """Return precision, recall and F1 of each class, with its number of spots and what it is most often taken for."""
        rows = []
        for i, name in enumerate(self.classes):
            hits, labelled, predicted = self.confusion[i, i], self.confusion[i].sum(), self.confusion[:, i].sum()
            others = np.where(np.arange(len(self.classes)) == i, 0, self.confusion[i])
            mistaken = f"{self.classes[others.argmax()]} ({others.max()})" if others.any() else "-"
            scores = (_share(hits, predicted), _share(hits, labelled), _share(2 * hits, labelled + predicted))
            rows.append((name, str(labelled), *scores, mistaken))
        header = ("class", "spots", "precision", "recall", "F1", "most often taken for")
        return Table(
            "Labels by class, linear probe", header, tuple(rows), "A class of few spots has an uncertain score."
        )


def class_scores(record: Record) -> ClassScores | None:
    """Compare the labels of the test spots with the linear probe of the model's first arm; None where there are none."""
    spots = record.get("spots") or {}
    predicted = spots.get(f"predicted:linear:{record['own_arms'][0]}") if record["own_arms"] else None
    pairs = [(a, b) for a, b in zip(spots.get("label") or [], predicted or []) if a is not None and b is not None]
    if not pairs:
        return None
    classes = sorted({name for pair in pairs for name in pair})
    return ClassScores(classes, confusion_matrix(*zip(*pairs), labels=classes))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "-"

"""How well texts are put into classes: the confusion matrix, and what follows from it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class ClassFigures(NamedTuple):
    """The figures of one class, and its number of texts. A figure of 0 / 0 is 0, as scikit-learn has it."""

    precision: float
    """The share of the texts put into this class that belong to it."""
    recall: float
    """The share of the texts of this class that were put into it."""
    f1: float
    """The harmonic mean of the two."""
    texts: int


class Confusion(NamedTuple):
    """How many texts of each true class (row) were put into each class (column)."""

    counts_CC: np.ndarray

    @staticmethod
    def of(
        true_N: Sequence[int] | np.ndarray, found_N: Sequence[int] | np.ndarray, classes: int
    ) -> "Confusion":
        """Count the pairs of a true and a predicted class."""
        counts_CC = np.zeros((classes, classes), np.int64)
        np.add.at(counts_CC, (np.asarray(true_N, int), np.asarray(found_N, int)), 1)
        return Confusion(counts_CC)

    @property
    def accuracy(self) -> float:
        """The share of all texts that were put into their class."""
        return _ratio(np.trace(self.counts_CC), self.counts_CC.sum())

    @property
    def classes(self) -> list[ClassFigures]:
        """The figures of each class."""
        right_C, of_C, put_C = (
            np.diag(self.counts_CC),
            self.counts_CC.sum(axis=1),
            self.counts_CC.sum(axis=0),
        )
        return [
            ClassFigures(_ratio(right, put), _ratio(right, of), _ratio(2 * right, put + of), int(of))
            for right, of, put in zip(right_C, of_C, put_C, strict=True)
        ]

    @property
    def macro_f1(self) -> float:
        """The mean of the F1 of all classes, each with the same weight."""
        return float(np.mean([each.f1 for each in self.classes]))


def _ratio(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole else 0.0

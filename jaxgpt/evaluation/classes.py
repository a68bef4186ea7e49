"""How well texts are put into classes: the confusion matrix, and what follows from it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

BINS = 10  # of confidence


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


class Calibration(NamedTuple):
    """How sure a classifier was of its labels, and how often it was right, in bins of equal width.

    Its confidence in a label is the largest of the probabilities. Bin m of B holds the confidences greater
    than (m - 1) / B and at most m / B.
    """

    texts_B: np.ndarray
    """The number of texts in each bin."""
    confidence_B: np.ndarray
    """The mean confidence in each bin; 0 where there are no texts."""
    accuracy_B: np.ndarray
    """The share of texts in each bin that were put into their class; 0 where there are none."""

    @staticmethod
    def of(
        true_N: Sequence[int] | np.ndarray, probabilities_NC: np.ndarray, bins: int = BINS
    ) -> "Calibration":
        """Sort texts into bins, from the probabilities of all classes."""
        confidence_N = np.asarray(probabilities_NC, np.float64).max(axis=1)
        right_N = np.asarray(probabilities_NC).argmax(axis=1) == np.asarray(true_N)
        bin_N = np.clip(np.ceil(confidence_N * bins).astype(int) - 1, 0, bins - 1)
        texts_B = np.bincount(bin_N, minlength=bins)
        sums = (np.bincount(bin_N, weights=values_N, minlength=bins) for values_N in (confidence_N, right_N))
        return Calibration(texts_B, *(sum_B / np.maximum(texts_B, 1) for sum_B in sums))

    @property
    def error(self) -> float:
        """The expected calibration error: the mean distance of accuracy and confidence, weighted by texts.

        Source: Guo et al. 2017, On Calibration of Modern Neural Networks, equation 3.
        """
        return _ratio(np.sum(self.texts_B * np.abs(self.accuracy_B - self.confidence_B)), self.texts_B.sum())


def _ratio(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole else 0.0

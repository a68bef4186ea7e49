"""The figures of a confusion matrix, against hand-computed ones."""

import json

import numpy as np
import pytest

from jaxgpt.evaluation.class_report import class_parts
from jaxgpt.evaluation.classes import Calibration, Confusion
from jaxgpt.evaluation.markdown import markdown


def test_figures_by_hand() -> None:
    found = Confusion.of([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 0], 4)
    np.testing.assert_array_equal(found.counts_CC, [[2, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    assert found.accuracy == 0.5
    assert [each.texts for each in found.classes] == [3, 2, 1, 0]
    assert [each.precision for each in found.classes] == [0.5, 0.5, 0, 0]
    assert [each.recall for each in found.classes] == pytest.approx([2 / 3, 0.5, 0, 0])
    assert [each.f1 for each in found.classes] == pytest.approx([4 / 7, 0.5, 0, 0])
    assert found.macro_f1 == pytest.approx((4 / 7 + 0.5) / 4)


def test_calibration_by_hand() -> None:
    """Of three classes. 0.7 and 0.8 are the ends of bins, and belong to the bins below them."""
    probabilities = np.array(
        [[0.7, 0.2, 0.1], [0.1, 0.65, 0.25], [0.05, 0.05, 0.9], [0.8, 0.1, 0.1], [0.8, 0.2, 0], [1, 0, 0]]
    )
    found = Calibration.of([0, 2, 2, 0, 1, 0], probabilities)
    np.testing.assert_array_equal(found.texts_B, [0, 0, 0, 0, 0, 0, 2, 2, 1, 1])
    np.testing.assert_allclose(found.confidence_B[6:], [0.675, 0.8, 0.9, 1])
    np.testing.assert_allclose(found.accuracy_B[6:], [0.5, 0.5, 1, 1])
    assert found.error == pytest.approx((2 * 0.175 + 2 * 0.3 + 0.1 + 0) / 6)
    assert not found.confidence_B[:6].any() and not found.accuracy_B[:6].any()
    assert Calibration.of([0], np.full((1, 3), 1 / 3), bins=3).texts_B.tolist() == [1, 0, 0]


def test_the_report_shows_the_calibration_beside_the_matrix(tmp_path) -> None:
    bins = [[0, 8, 2], [0, 0.6, 0.95], [0, 0.75, 0.5]]
    rows = [
        {"step": 4, "test_confusion": "[[3, 0], [1, 1]]", "test_calibration": "[[1], [1], [1]]"},
        {"step": 9, "test_confusion": "[[3, 0], [1, 1]]", "test_calibration": json.dumps(bins)},
        {"step": 9, "val_confusion": "[[1, 0], [0, 7]]", "val_calibration": "[[1], [1], [1]]"},
    ]
    text = markdown("run", class_parts(rows, ["ham", "spam"], tmp_path))
    assert "The expected calibration error is 0.2100" in text  # (8 x 0.15 + 2 x 0.45) / 10
    assert "| 0.3 to 0.7 | 8 | 0.6000 | 0.7500 |" in text and "| 0.7 to 1.0 | 2 | 0.9500 | 0.5000 |" in text
    assert (
        "0.0 to 0.3" not in text
        and "![reliability diagram: accuracy over confidence](calibration.png)" in text
    )
    assert (tmp_path / "calibration.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_shows_the_test_texts_of_the_last_measurement(tmp_path) -> None:
    rows = [
        {"step": 0, "test_confusion": "[[0, 3], [1, 1]]"},
        {"step": 9, "test_confusion": "[[3, 0], [1, 1]]"},
        {"step": 9, "val_confusion": "[[1, 0], [0, 7]]"},
    ]
    text = markdown("run", class_parts(rows, ["ham", "a|b"], tmp_path))
    assert "| 9 | test | 80.00% | 0.7619 |" in text and "The test texts after 9 steps" in text
    assert "| ham | 3 | 0 |" in text and r"| a\|b | 1.0000 | 0.5000 | 0.6667 | 2 |" in text
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")

"""The figures of a confusion matrix, against hand-computed ones."""

import numpy as np
import pytest

from jaxgpt.evaluation.class_report import class_parts
from jaxgpt.evaluation.classes import Confusion
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

"""The part of a report that says how well a classifier recognises each class.

It uses these entries of the rows of metrics.jsonl, if they exist: `test_confusion` or else `val_confusion`,
the counts of the confusion matrix as JSON, and `test_calibration` or else `val_calibration`, the bins of
confidence as JSON.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxgpt.evaluation.classes import Calibration, Confusion
from jaxgpt.evaluation.document import Heading, Paragraph, Part, Picture, Table
from jaxgpt.evaluation.plots import heat_map, new_figure
from jaxgpt.log import latest
from jaxgpt.training.devices import Rows

PICTURE_FILE = "confusion.png"
CALIBRATION_FILE = "calibration.png"


def class_parts(rows: Rows, labels: Sequence[str], folder: Path) -> list[Part]:
    """The parts of the report; pictures are drawn too, where matplotlib is installed."""
    measured = [
        (row["step"], name, Confusion(np.array(json.loads(row[f"{name}_confusion"]))))
        for row in rows
        for name in ("val", "test")
        if f"{name}_confusion" in row
    ]
    if not measured:
        return [Heading("Classes"), Paragraph("No texts were classified.")]
    step, name, confusion = next((each for each in reversed(measured) if each[1] == "test"), measured[-1])
    parts: list[Part] = [
        Heading("Classes"),
        Table(
            ("step", "texts", "accuracy", "macro F1"),
            [(f"{s:,}", n, f"{found.accuracy:.2%}", f"{found.macro_f1:.4f}") for s, n, found in measured],
        ),
        Paragraph(f"The {name} texts after {step:,} steps, by class:"),
        Table(
            ("label", "precision", "recall", "F1", "texts"),
            [
                (label, f"{each.precision:.4f}", f"{each.recall:.4f}", f"{each.f1:.4f}", f"{each.texts:,}")
                for label, each in zip(labels, confusion.classes, strict=True)
            ],
        ),
        Paragraph("Which class (column) the texts of each true class (row) were put into:"),
        Table(
            ("", *labels),
            [
                (label, *(f"{count:,}" for count in counts_C))
                for label, counts_C in zip(labels, confusion.counts_CC, strict=True)
            ],
        ),
    ]
    parts += _picture(confusion, labels, folder / PICTURE_FILE)
    bins = latest([row for row in rows if row["step"] == step], f"{name}_calibration")
    return parts if bins is None else [*parts, *_calibration(bins, name, folder / CALIBRATION_FILE)]


def _calibration(bins: str, name: str, path: Path) -> list[Part]:
    """How often the classifier was right, beside how sure it was: a table, and a picture."""
    found = Calibration(*map(np.array, json.loads(bins)))
    edges = np.arange(len(found.texts_B) + 1) / len(found.texts_B)
    lines = [
        (f"{low:.1f} to {high:.1f}", f"{texts:,}", f"{confidence:.4f}", f"{accuracy:.4f}")
        for low, high, texts, confidence, accuracy in zip(edges, edges[1:], *found, strict=False)
        if texts
    ]
    told = (
        f"The {name} texts by the confidence of the classifier, the probability of the label that it gave. "
        f"The expected calibration error is {found.error:.4f}: the distance of accuracy and mean confidence, "
        "as a mean over the bins in which each counts as much as it has texts."
    )
    head = ("confidence", "texts", "mean confidence", "accuracy")
    return [Heading("Calibration"), Paragraph(told), Table(head, lines), *_reliability(found, edges, path)]


def _reliability(found: Calibration, edges: np.ndarray, path: Path) -> list[Part]:
    """Draw accuracy over confidence. Returns the picture, where matplotlib is installed."""
    if (figure := new_figure(4.5, 4.5)) is None:
        return []
    axes = figure.add_subplot(
        xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), aspect="equal"
    )
    axes.bar(edges[:-1], found.accuracy_B, width=1 / len(found.texts_B), align="edge", edgecolor="white")
    axes.plot([0, 1], [0, 1], "--", color="0.4", label="as often right as it is sure")
    full = found.texts_B > 0
    axes.plot(found.confidence_B[full], found.accuracy_B[full], "o", color="black", label="mean of a bin")
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return [Picture(path, "reliability diagram: accuracy over confidence")]


def _picture(confusion: Confusion, labels: Sequence[str], path: Path) -> list[Part]:
    """Draw the confusion matrix. Returns the picture, where matplotlib is installed."""
    size = 2.5 + 0.6 * len(labels)
    if (figure := new_figure(size, size)) is None:
        return []
    axes = figure.add_subplot(xlabel="predicted class", ylabel="true class")
    heat_map(axes, confusion.counts_CC, labels, form=",")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return [Picture(path, "confusion matrix")]

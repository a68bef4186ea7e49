"""The part of a report that says how well a classifier recognises each class.

It uses these entries of the rows of metrics.jsonl, if they exist: `test_confusion` or else `val_confusion`,
the counts of the confusion matrix as JSON, and `test_accuracy` and `val_accuracy`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxgpt.evaluation.classes import Confusion
from jaxgpt.evaluation.document import Heading, Paragraph, Part, Picture, Table
from jaxgpt.training.devices import Rows

PICTURE_FILE = "confusion.png"


def class_parts(rows: Rows, labels: Sequence[str], folder: Path) -> list[Part]:
    """The parts of the report; the confusion matrix is drawn too, where matplotlib is installed."""
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
    return [*parts, *_picture(confusion, labels, folder / PICTURE_FILE)]


def _picture(confusion: Confusion, labels: Sequence[str], path: Path) -> list[Part]:
    """Draw the confusion matrix. Returns the picture, where matplotlib is installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return []
    size = 2.5 + 0.6 * len(labels)
    figure = Figure(figsize=(size, size), layout="constrained")
    FigureCanvasAgg(figure)
    places = range(len(labels))
    axes = figure.add_subplot(xlabel="predicted class", ylabel="true class")
    axes.imshow(confusion.counts_CC, cmap="Blues")
    axes.set_xticks(places, labels, rotation=45, ha="right")
    axes.set_yticks(places, labels)
    middle = confusion.counts_CC.max() / 2
    for row in places:
        for column in places:
            count = int(confusion.counts_CC[row, column])
            colour = "white" if count > middle else "black"
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return [Picture(path, "confusion matrix")]

#!/usr/bin/env python3
"""Writes notebooks/NAME.ipynb, which Colab opens, from notebooks/NAME.py, which people edit.

python tools/write_notebooks.py
"""

import hashlib
import json
from collections import Counter
from pathlib import Path

import jupytext
import nbformat

FOLDER = Path(__file__).parent.parent / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def sources() -> list[Path]:
    """Return the sources of all notebooks, in order."""
    return sorted(FOLDER.glob("*.py"))


def notebook_of(source: Path) -> nbformat.NotebookNode:
    """Return the notebook that a source stands for.

    The id of a cell is made from its text, so that changing one cell changes no other.
    """
    book: nbformat.NotebookNode = jupytext.read(source, fmt="py:percent")
    book.metadata = METADATA
    book.nbformat, book.nbformat_minor = 4, 5
    seen: Counter[str] = Counter()
    for cell in book.cells:
        digest = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        seen[digest] += 1
        cell.id = f"{digest}-{seen[digest]}"
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
    nbformat.validate(book)
    return book


def written(source: Path) -> str:
    """Return the content of the .ipynb file that belongs to a source: the same for the same source."""
    return json.dumps(notebook_of(source), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for source in sources():
        source.with_suffix(".ipynb").write_text(written(source), encoding="utf-8")

#!/usr/bin/env python3
"""Builds the documentation site into build/docs/html, without a network. A warning is an error.

python tools/build_docs.py

The pages are those of docs/, and the notebooks. `make notebooks` leaves executed copies in build/notebooks;
a notebook without one, or whose source has changed since then, is shown without its results.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "docs"
SOURCE, HTML = BUILD / "source", BUILD / "html"
TEXTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")


def gather() -> list[str]:
    """Copy everything into one folder. Returns the names of notebooks that are shown without results."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(ROOT / "docs", SOURCE)
    for name in TEXTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        # In the site, the pages of docs/ stand beside them.
        (SOURCE / name).write_text(re.sub(r"\]\(docs/", "](", text), encoding="utf-8")
    (SOURCE / "notebooks").mkdir()
    bare = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        executed = ROOT / "build" / "notebooks" / path.name
        if not (executed.is_file() and cells(executed) == cells(path)):
            bare.append(path.stem)
            executed = path
        shutil.copy(executed, SOURCE / "notebooks")
    return bare


def cells(path: Path) -> list[Any]:
    """The sources of a notebook's cells."""
    return ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]


if __name__ == "__main__":
    for name in gather():
        print(f"{name} is shown without its results: `make notebooks` runs it", file=sys.stderr)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run([*command, str(SOURCE), str(HTML)], check=False)
    if done.returncode == 0:
        print(f"{HTML.relative_to(ROOT)}/index.html")
    sys.exit(done.returncode)

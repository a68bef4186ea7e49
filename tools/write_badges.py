#!/usr/bin/env python3
"""Writes the row of badges below README's title, from the address in pyproject.toml.

python tools/write_badges.py
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
COLAB = "https://colab.research.google.com"
FIRST_NOTEBOOK = "notebooks/02_text_data.ipynb"


def badge_row() -> str:
    """Return the row: checks, documentation, a notebook in Colab, versions of Python, licence."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address = project["urls"]["Repository"]
    owner, name = address.removeprefix("https://github.com/").split("/")
    actions, shields = f"{address}/actions/workflows", "https://img.shields.io/badge"
    python, licence = project["requires-python"].removeprefix(">="), project["license"].replace("-", "--")
    badges = {
        "checks": (f"{actions}/ci.yml/badge.svg", f"{actions}/ci.yml"),
        "documentation": (f"{actions}/docs.yml/badge.svg", f"https://{owner}.github.io/{name}/"),
        "a notebook in Colab": (
            f"{COLAB}/assets/colab-badge.svg",
            f"{COLAB}/github/{owner}/{name}/blob/main/{FIRST_NOTEBOOK}",
        ),
        "Python": (f"{shields}/Python-{python}%2B-blue", "pyproject.toml"),
        "licence": (f"{shields}/licence-{licence}-blue", "LICENSE"),
    }
    return "\n".join(f"[![{text}]({image})]({link})" for text, (image, link) in badges.items())


if __name__ == "__main__":
    head, rest = README.read_text(encoding="utf-8").split("\n\n", 1)
    rest = re.sub(r"^(\[!\[.*\n)+\n", "", rest)
    README.write_text(f"{head}\n\n{badge_row()}\n\n{rest}", encoding="utf-8")

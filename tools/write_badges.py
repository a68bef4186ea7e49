#!/usr/bin/env python3
"""Writes the row of badges below README's title, from what pyproject.toml says.

    python tools/write_badges.py

Where `[project.urls]` names no Repository, there are no badges that need its address.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
COLAB = "https://colab.research.google.com"
FIRST_NOTEBOOK = "notebooks/02_text_data.ipynb"


def described() -> dict[str, Any]:
    """Return what pyproject.toml says of the project."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def badge_row(project: dict[str, Any]) -> str:
    """Return the row: checks, documentation, a notebook in Colab, versions of Python, licence."""
    python, licence = project["requires-python"].removeprefix(">="), project["license"].replace("-", "--")
    shields = "https://img.shields.io/badge"
    badges = _of_repository(project.get("urls", {}).get("Repository")) | {
        "Python": (f"{shields}/Python-{python}%2B-blue", "pyproject.toml"),
        "licence": (f"{shields}/licence-{licence}-blue", "LICENSE"),
    }
    return "\n".join(f"[![{text}]({image})]({link})" for text, (image, link) in badges.items())


def _of_repository(address: str | None) -> dict[str, tuple[str, str]]:
    """The badges that lead to a repository on GitHub: of each its picture and where it leads."""
    if address is None:
        return {}
    owner, name = address.removeprefix("https://github.com/").split("/")
    actions = f"{address}/actions/workflows"
    return {
        "checks": (f"{actions}/ci.yml/badge.svg", f"{actions}/ci.yml"),
        "documentation": (f"{actions}/docs.yml/badge.svg", f"https://{owner}.github.io/{name}/"),
        "a notebook in Colab": (
            f"{COLAB}/assets/colab-badge.svg",
            f"{COLAB}/github/{owner}/{name}/blob/main/{FIRST_NOTEBOOK}",
        ),
    }


if __name__ == "__main__":
    head, rest = README.read_text(encoding="utf-8").split("\n\n", 1)
    rest = re.sub(r"^(\[!\[.*\n)+\n", "", rest)
    README.write_text(f"{head}\n\n{badge_row(described())}\n\n{rest}", encoding="utf-8")

"""Sphinx's settings. tools/build_docs.py copies this file, and all that the site shows, into one folder."""

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]  # from build/docs/source
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project, author = PROJECT["name"], PROJECT["authors"][0]["name"]
release = version = PROJECT["version"]
extensions = ["myst_nb", "sphinx_design", "sphinx.ext.autodoc"]
exclude_patterns = ["README.md"]  # its sections are included where they belong
nb_execution_mode = "off"  # `make notebooks` has executed them
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
html_theme = "sphinx_book_theme"
html_title = project
if "urls" in PROJECT:  # each page leads to its place there, and each notebook to Colab
    html_theme_options = {
        "repository_url": PROJECT["urls"]["Repository"],
        "repository_branch": "main",
        "use_repository_button": True,
        "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    }


def escaped(line: str) -> str:
    """A line of a docstring as reStructuredText: code between backticks stays, all else is plain text."""
    parts = re.split(r"(`+[^`]+`+)", line)
    return "".join(
        f"``{part.strip('`')}``" if part.startswith("`") else re.sub(r"([*|_\\])", r"\\\1", part)
        for part in parts
    )


def write_plainly(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Docstrings are written in plain English with Markdown's code. Indented blocks are shown as they are."""
    found: list[str] = []
    for line in lines:
        if line.startswith("    "):
            if found and not found[-1].startswith("    ") and found[-1:] != ["::"]:
                found += ["", "::", ""]
            found.append(line)
        else:
            if found and found[-1].startswith("    ") and line:
                found.append("")
            found.append(escaped(line))
    lines[:] = found


def setup(app: Any) -> None:
    """What Sphinx calls when it begins."""
    app.connect("autodoc-process-docstring", write_plainly)

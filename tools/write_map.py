#!/usr/bin/env python3
"""Writes docs/map.md: every file of the package, with the first line of its docstring.

python tools/write_map.py
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAP = ROOT / "docs" / "map.md"
HEAD = """# The files

Every file of the package, with the first line of its docstring. CONTRIBUTING.md says in which order the rooms
build on one another. `python tools/write_map.py` makes this page.
"""


def first_line(path: Path) -> str:
    """Return the first paragraph of a file's docstring, as one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n\n")[0].replace("\n", " ")


def written_map() -> str:
    """Return the page."""
    package = ROOT / "jaxgpt"
    folders = sorted({path.parent for path in package.rglob("*.py")})
    parts = [HEAD]
    for folder in folders:
        parts.append(f"## {folder.relative_to(ROOT)}/\n\n{first_line(folder / '__init__.py')}\n")
        files = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
        parts.append(
            "| file | |\n|---|---|\n" + "".join(f"| `{p.name}` | {first_line(p)} |\n" for p in files)
        )
    return "\n".join(parts)


if __name__ == "__main__":
    MAP.write_text(written_map(), encoding="utf-8")

#!/usr/bin/env python3
"""Write docs/map.md: every file of the package with the first line of its docstring.

python tools/write_map.py
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAP = ROOT / "docs" / "map.md"
HEAD = """# The files

Data flows down this list and never back up: a file imports only from the rooms above its own, and a test holds that.
This page is made by `python tools/write_map.py` from the first line of each file's docstring.
"""


def first_line(path: Path) -> str:
    """The first line of a file's docstring."""
    return (
        (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
        .split("\n\n")[0]
        .replace("\n", " ")
    )


def written_map() -> str:
    """The page."""
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

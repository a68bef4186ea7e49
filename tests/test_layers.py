"""Data flows down the list of rooms and never back up."""

import ast
import subprocess
import sys
from pathlib import Path

import jaxgpt

ROOT = Path(jaxgpt.__file__).parent
STOREYS = [
    "errors", "config", "parallel", "text", "model", "weights", "training", "inference", "evaluation", "finetuning",
    "language_model", "serving", "verbs", "cli", "__main__",
]  # fmt: skip


def imported_rooms(path: Path) -> set[str]:
    """Rooms of jaxgpt that a file imports, wherever in the file it does."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("jaxgpt.")}
    return rooms


def test_a_room_imports_only_what_stands_above_it() -> None:
    wrong = []
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in STOREYS, f"{room} has no storey: add it to the list in the right place"
        below = [name for name in imported_rooms(path) if STOREYS.index(name) > STOREYS.index(room)]
        wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in below]
    assert not wrong


def test_importing_the_package_and_the_command_line_imports_no_jax() -> None:
    code = (
        "import importlib, sys, jaxgpt, jaxgpt.cli\n"
        "for verb in jaxgpt.cli.VERBS.values():\n"
        "    verb.arguments and importlib.import_module(f'jaxgpt.verbs.{verb.module}')\n"
        "loaded = {'jax', 'flax', 'orbax', 'grain', 'tiktoken', 'starlette'} & set(sys.modules)\n"
        "sys.exit(', '.join(loaded) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_resolve() -> None:
    for name in jaxgpt.__all__:
        assert getattr(jaxgpt, name).__name__ == name

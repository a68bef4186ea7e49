"""Data flows down the list of rooms and never back up."""

import ast
import graphlib
import pydoc
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import jaxgpt

ROOT = Path(jaxgpt.__file__).parent
STOREYS = [
    "errors",
    "interrupt",
    "huge_pages",
    "memory",
    "files",
    "log",
    "doctor",
    "config",
    "hosts",
    "display",
    "parallel",
    "text",
    "compilation_cache",
    "model",
    "book",
    "weights",
    "training",
    "inference",
    "evaluation",
    "finetuning",
    "pretraining",
    "language_model",
    "measuring",
    "runs",
    "serving",
    "verbs",
    "cli",
    "__main__",
]


def module_of(path: Path) -> str:
    """The dotted name of a file, a package's `__init__` standing for the package."""
    parts = [*path.relative_to(ROOT.parent).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in ROOT.rglob("*.py")}


def imported_modules(source: str, modules: Collection[str]) -> set[str]:
    """The modules among `modules` that a source imports, anywhere in it and in any form of the statement."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            within = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else node.module or "" for name in within}
    return found & set(modules)


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_every_way_to_import_is_seen() -> None:
    modules = {"jaxgpt", "jaxgpt.text", "jaxgpt.text.bpe", "jaxgpt.model.gpt"}
    assert imported_modules("from jaxgpt import text", modules) == {"jaxgpt.text"}
    assert imported_modules("from jaxgpt.text import bpe, other", modules) == {
        "jaxgpt.text.bpe",
        "jaxgpt.text",
    }
    assert imported_modules("def f():\n    import jaxgpt.model.gpt as g", modules) == {"jaxgpt.model.gpt"}
    assert imported_modules("import jax, os.path", modules) == set()


def test_a_room_imports_only_what_stands_above_it() -> None:
    wrong = []
    for module, path in MODULES.items():
        if module == "jaxgpt":
            continue
        room = room_of(module)
        assert room in STOREYS, f"{room} has no storey: add it to the list in the right place"
        wrong += [
            f"{module} imports {name}"
            for name in imported_modules(path.read_text(), MODULES)
            if name == "jaxgpt" or STOREYS.index(room_of(name)) > STOREYS.index(room)
        ]
    assert not wrong


def test_no_files_of_a_room_import_one_another_in_a_circle() -> None:
    graph = {
        module: imported_modules(path.read_text(), MODULES) - {"jaxgpt"} for module, path in MODULES.items()
    }
    graph.pop("jaxgpt")  # its names resolve lazily
    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        raise AssertionError(f"a circle of imports: {' -> '.join(error.args[1])}") from None
    assert set(graph) <= set(order)


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


def test_the_package_lists_its_public_names() -> None:
    assert set(dir(jaxgpt)) == {*jaxgpt.__all__, "__version__"}
    text = pydoc.plain(pydoc.render_doc(jaxgpt))
    assert "    class LanguageModel(" in text and "    train(recipe" in text


def test_public_names_resolve() -> None:
    for name in jaxgpt.__all__:
        assert getattr(jaxgpt, name).__name__ == name

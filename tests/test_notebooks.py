"""The notebooks: what stands in them, that Colab's files are theirs, and that all of them run.

The rules and the imports are checked on both pairs of jax and flax; `make notebooks` runs them on the first.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tools"))

from write_notebooks import FOLDER, notebook_of, sources, written  # noqa: E402  It is not in the package.

OFFLINE = Path(__file__).parent / "offline"
COLAB = FOLDER / "colab_tpu.py"
EXECUTED = ROOT / "build" / "notebooks"
LEDGER = ROOT / "docs" / "book.md"
MOST_LINES = 19
CELL_SECONDS = 300
OTHERS = {"flax", "jax", "numpy", "matplotlib", "tiktoken", *sys.stdlib_module_names}
OTHERS.add("google")  # google.colab, which is there in Colab alone
SOURCES = pytest.mark.parametrize("source", sources(), ids=lambda source: source.stem)


def code_cells(source: Path) -> list[str]:
    return [cell.source for cell in notebook_of(source).cells if cell.cell_type == "code"]


def imported(code: str) -> Iterator[tuple[str, str | None]]:
    """The modules that a cell imports, each with a name that it takes from there."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


@SOURCES
def test_the_file_for_colab_is_the_one_that_the_source_makes(source: Path) -> None:
    found = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert found == written(source), "run python tools/write_notebooks.py"


def test_there_is_no_other_file_for_colab() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {path.stem for path in sources()}


@SOURCES
def test_cells_are_short_and_the_first_one_installs(source: Path) -> None:
    cells = code_cells(source)
    if source != COLAB:  # it has an installation of its own
        installs = code_cells(sources()[0])[0]
        assert "google.colab" in installs and cells[0] == installs, (
            "copy the first cell of the first notebook"
        )
    assert [cell for cell in cells if len(cell.splitlines()) > MOST_LINES] == []
    tags = [tag for cell in notebook_of(source).cells for tag in cell.metadata.get("tags", ())]
    assert tags.count("parameters") == 1 and set(tags) <= {"parameters", "eight-devices"}


@SOURCES
def test_what_is_imported_is_public_and_exists(source: Path) -> None:
    for module, name in (pair for cell in code_cells(source) for pair in imported(cell)):
        top = module.split(".")[0]
        assert top == "jaxgpt" or top in OTHERS, module
        if top == "jaxgpt":
            assert not re.search(r"(^|\.)_", f"{module}.{name or ''}")
            exec(f"from {module} import {name}" if name else f"import {module}")


class Installed(NamedTuple):
    """What a session of Colab has: packages, what is imported of JAX, and what the first cell is to do."""

    jax: str
    flax: str
    imported: str | None
    installs: bool
    restarts: bool


PAIR = ("0.12.0.1", "0.12.12")


@pytest.mark.parametrize(
    "session",
    [
        Installed("0.7.2", "0.11.2", imported=None, installs=True, restarts=False),
        Installed("0.7.2", "0.11.2", imported="0.7.2", installs=True, restarts=True),
        Installed(PAIR[0], "0.11.2", imported=PAIR[0], installs=True, restarts=False),
        Installed(*PAIR, imported="0.7.2", installs=False, restarts=True),
        Installed(*PAIR, imported=PAIR[0], installs=False, restarts=False),
    ],
    ids=["as Colab is", "jax was imported", "another flax", "restart was forgotten", "installed"],
)
def test_the_first_cell_of_the_colab_notebook_installs_a_pair_that_is_tested(
    session: Installed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    has, commands = {"jax": session.jax, "flax": session.flax, "numpy": np.__version__}, []

    def run(command: list[str], *, check: bool) -> None:
        commands.append(command)
        assert check
        has.update(part.split("==") for part in command if "==" in part)

    monkeypatch.setattr("importlib.metadata.version", has.__getitem__)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    if session.imported:
        jax = ModuleType("jax")
        jax.__version__ = session.imported
        monkeypatch.setitem(sys.modules, "jax", jax)
    exec(code_cells(COLAB)[0], {})
    assert (has["jax"], has["flax"]) == PAIR
    assert len(commands) == session.installs and all("jaxgpt[plots,tpu]" in command for command in commands)
    assert ("Runtime > Restart session" in capsys.readouterr().out) == session.restarts
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for name, number in zip(("jax", "flax"), PAIR, strict=True):
        assert f"{name}=={number}; python_version >= '3.12'" in pins


def literals(node: ast.expr) -> list[str | float]:
    """The numbers and texts of a literal, however deep it is, in order."""
    parts = node.elts if isinstance(node, ast.List) else None
    return [ast.literal_eval(node)] if parts is None else [leaf for part in parts for leaf in literals(part)]


def asserted(code: str) -> Iterator[list[str | float]]:
    """What each call of assert_printed says that the book prints."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "assert_printed":
            yield literals(node.args[1])


def constants(code: str) -> list[str | float]:
    """All numbers and texts in a test's source, in order, and those below zero with their sign."""
    tree = ast.parse(code)
    signed = {node.operand for node in ast.walk(tree) if isinstance(node, ast.UnaryOp)}
    found = [
        node
        for node in ast.walk(tree)
        if (isinstance(node, ast.Constant) and node not in signed)
        or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub))
    ]
    found.sort(key=lambda node: (node.lineno, node.col_offset))
    return [
        ast.literal_eval(node) for node in found if isinstance(getattr(node, "operand", node), ast.Constant)
    ]


def ledger() -> list[tuple[list[str | float], str, str]]:
    """The rows of docs/book.md: what is printed, what ours is, and where that is asserted."""
    rows = []
    for line in LEDGER.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) == 5 and cells[0] != "section":
            printed = re.sub(r"(?<=\d),(?=\d{3})", "", cells[2].strip("`"))
            rows.append((literals(ast.parse(printed, mode="eval").body), cells[3], cells[4].strip("`")))
    return rows


def within(part: list[str | float], whole: list[str | float]) -> bool:
    return any(whole[at : at + len(part)] == part for at in range(len(whole)))


def test_a_row_of_the_ledger_that_is_equal_is_asserted() -> None:
    for printed, ours, where in ledger():
        if not ours.startswith("equal"):
            assert len(ours.split()) > 4, f"why is {printed} not ours?"
            continue
        code = (ROOT / where).read_text(encoding="utf-8")
        claims = list(asserted(code)) if where.startswith("notebooks/") else [constants(code)]
        assert any(within(printed, claim) for claim in claims), f"{where} does not assert {printed}"


def test_every_assertion_stands_in_the_ledger() -> None:
    rows = ledger()
    for source in sources():
        here = [printed for printed, _, where in rows if where == f"notebooks/{source.name}"]
        for claim in asserted(source.read_text(encoding="utf-8")):
            assert any(within(printed, claim) for printed in here), f"{source.name}: no row for {claim[:4]}"


def environment(*, devices: int) -> dict[str, str]:
    """What a notebook's kernel finds: this checkout, the processor, no network."""
    path = os.pathsep.join([str(OFFLINE), str(ROOT)])
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def test_notebooks_have_no_network() -> None:
    code = "import socket, urllib.request as u; u.urlopen('http://example.org')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(devices=1), capture_output=True, text=True
    )
    assert "a notebook wants the network: example.org" in done.stderr
    listening = (
        "import socket as s; a = s.create_server(('localhost', 0)); s.create_connection(a.getsockname())"
    )
    subprocess.run([sys.executable, "-c", listening], env=environment(devices=1), check=True)


@pytest.mark.notebook
@SOURCES
def test_it_runs(source: Path, tmp_path: Path) -> None:
    """From the first cell to the last, in a kernel of its own. The executed copy is left in build/."""
    import nbformat
    from nbclient import NotebookClient

    book = notebook_of(source)
    meshed = any("eight-devices" in cell.metadata.get("tags", ()) for cell in book.cells)
    resources = {"metadata": {"path": str(tmp_path)}}
    client = NotebookClient(book, timeout=CELL_SECONDS, kernel_name="python3", resources=resources)
    try:
        client.execute(env=environment(devices=8 if meshed else 1))
    finally:
        EXECUTED.mkdir(parents=True, exist_ok=True)
        nbformat.write(book, EXECUTED / f"{source.stem}.ipynb")

"""What README and the other documents say agrees with the code: commands, extras, make targets, files."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jaxgpt
from jaxgpt.cli import VERBS, parse
from jaxgpt.config import preset_names

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = [ROOT / "pyproject.toml", ROOT / "Makefile"] + [
    path for room in ("jaxgpt", "tools", "configs") for path in sorted((ROOT / room).rglob("*.*"))
]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def text_of(paths: list[Path]) -> str:
    """The text of all these files that are text."""
    return "\n".join(p.read_text("utf-8") for p in paths if p.suffix in (".md", ".py", ".toml", ""))


def command_lines() -> Iterator[str]:
    """Every command line that a document, a recipe's comment or a tool's docstring shows."""
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
            yield from (line[2:] for line in block.splitlines() if line.startswith("$ "))
        yield from re.findall(r"`(jaxgpt [^`]+)`", text)
    yield from re.findall(r"^(?:#  | ) +(jaxgpt .*)", text_of(SOURCES), re.MULTILINE)


def jaxgpt_commands() -> list[str]:
    """The calls of jaxgpt among them, but for names of verbs and for placeholders such as MODEL."""
    found = []
    for line in command_lines():
        for command in re.split(r" && | & | \| ", line):
            words = shlex.split(command, comments=True)
            placeholders = [word for word in words if re.match(r"\[?[A-Z]{2}", word)]
            if words[:1] == ["jaxgpt"] and len(words) > 2 and not placeholders:
                found.append(shlex.join(words))
    return sorted(set(found))


def test_the_map_is_the_one_that_the_docstrings_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from write_map import MAP, written_map

    assert MAP.read_text(encoding="utf-8") == written_map(), "run python tools/write_map.py"


def test_the_badges_are_those_of_the_one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from write_badges import badge_row, described

    project = described()
    row = badge_row(project)
    assert README.split("\n\n")[1] == row, "run python tools/write_badges.py"
    assert ("github.com" in row) == ("urls" in project), "an address that pyproject.toml does not state"
    row = badge_row(project | {"urls": {"Repository": "https://github.com/owner/name"}})
    workflows = re.findall(r"github\.com/owner/name/actions/workflows/(\w+\.yml)\)", row)
    assert workflows and all((ROOT / ".github" / "workflows" / name).is_file() for name in workflows)
    notebooks = re.findall(r"github/owner/name/blob/main/([^)]+)\)", row)
    assert notebooks and all((ROOT / path).is_file() for path in notebooks)


def test_the_site_shows_every_section_of_readme_and_every_public_name() -> None:
    pages = text_of([path for path in DOCUMENTS if path.parent.name == "docs"])
    sections = re.findall(r"^## (.*)$", README, re.MULTILINE)
    included = re.findall(r'^:start-after: "## (.*)"$', pages, re.MULTILINE)
    ends = re.findall(r'^:end-before: "## (.*)"$', pages, re.MULTILINE)
    assert sorted(included) == sorted(set(sections) - {"Working on jaxgpt"})
    assert ends == [sections[sections.index(name) + 1] for name in included]
    api = (ROOT / "docs" / "api.md").read_text()
    assert set(re.findall(r"auto(?:class|function):: jaxgpt\.(\w+)$", api, re.MULTILINE)) == set(
        jaxgpt.__all__
    )
    listed = re.findall(r"^(\w+)$", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE)
    here = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert {name for name in listed if name not in ("CONTRIBUTING", "CHANGELOG")} == here


def test_every_verb_and_every_preset_is_named() -> None:
    for verb in VERBS:
        assert f"`jaxgpt {verb}" in README
    for preset in preset_names():
        assert f"`{preset}`" in README


@pytest.mark.parametrize("command", jaxgpt_commands())
def test_every_command_that_is_shown_is_understood(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is parsed and not run. A recipe of the reader's own is an empty file."""
    verb, *words = shlex.split(command)[1:]
    monkeypatch.chdir(tmp_path)
    for word in words:
        if word.endswith(".toml"):
            (tmp_path / word).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / word).touch()
    assert verb in VERBS
    try:
        parse(verb, words)
    except SystemExit as end:
        if end.code:  # --help ends with 0
            pytest.fail(f"{command}: {capsys.readouterr().err}")


def test_the_tool_that_runs_readme_leaves_out_only_what_stands_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from run_readme import NOT_RUN, TYPED, commands, reason_not_to_run

    lines = commands(README)
    run = [line for line in lines if not reason_not_to_run(line)]
    assert run[0] == "make demo" and len(run) > len(lines) / 2
    for beginning in (*NOT_RUN, *TYPED):
        assert any(line.startswith(beginning) for line in lines), f"{beginning} is not in README"


def test_commands_are_found_in_each_kind_of_place() -> None:
    commands = jaxgpt_commands()
    for verb in ("prepare", "pretrain", "generate", "chat", "serve", "convert"):
        assert any(command.startswith(f"jaxgpt {verb} ") for command in commands)
    assert "jaxgpt pretrain gpt2 --out-dir runs/gpt2" in commands  # a recipe's comment
    assert "jaxgpt pretrain nano --out-dir /tmp/run --steps 200" in commands  # a tool's docstring


def test_every_extra_that_is_named_exists() -> None:
    text = text_of(DOCUMENTS + SOURCES)
    named = {
        extra
        for extras in re.findall(r"(?:\bjaxgpt|(?<=['\" ])\.)\[([\w,-]+)\]", text)
        for extra in extras.split(",")
    }
    named |= set(re.findall(r"\bextra `([\w-]+)`", text))
    for sentence in re.findall(r"\bExtras: ([^.]*)\.", text):
        named |= set(re.findall(r"`([\w-]+)`", sentence))
    assert named - set(EXTRAS) == set()
    assert {"cuda13", "plots", "serve", "tensorboard"} <= named


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    calls = re.findall(r"(?:`|\$ |^ {4})make ((?:\w+=\S+ )*[a-z][\w-]*)", text_of(DOCUMENTS), re.MULTILINE)
    named = {call.split()[-1] for call in calls}
    assert named - targets == set()
    assert {"demo", "test", "lint"} <= named


def test_every_file_that_is_named_exists() -> None:
    text = re.sub(r"https://\S+", "", text_of(DOCUMENTS))
    named = re.findall(r"\b(?:configs|docs|jaxgpt|tests|tools)/[a-z0-9_/-]+\.\w+", text)
    named += re.findall(r"\btools/\w+\.\w+", text_of(SOURCES))
    assert [name for name in sorted(set(named)) if not (ROOT / name).is_file()] == []
    assert {"tools/convert_weights.py", "tools/bench_weights.py", "docs/map.md"} <= set(named)


def test_the_python_example_runs() -> None:
    """The half that needs no trained run."""
    blocks = [part.split("```")[0] for part in README.split("```python")[1:]]
    [example] = [block for block in blocks if "jaxgpt.define" in block]
    lines = [line for line in example.splitlines() if "lm" not in line.split("(")[0]]
    names: dict[str, Any] = {}
    exec("import numpy as np\ntokens_BT = np.zeros((2, 5), np.int32)\n" + "\n".join(lines), names)
    assert names["logits_BTV"].shape == (2, 5, 50257)

"""README agrees with the code."""

from pathlib import Path

import pytest

from jaxgpt.cli import VERBS
from jaxgpt.config import preset_names

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_map_is_the_one_that_the_docstrings_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from write_map import MAP, written_map

    assert MAP.read_text(encoding="utf-8") == written_map(), "run python tools/write_map.py"


def test_every_verb_and_every_preset_is_named() -> None:
    for verb in VERBS:
        assert f"`jaxgpt {verb}" in README
    for preset in preset_names():
        assert f"`{preset}`" in README


def test_the_python_example_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The half that needs no trained run."""
    example = README.split("```python")[1].split("```")[0]
    lines = [line for line in example.splitlines() if "lm" not in line.split("(")[0]]
    names: dict = {}
    exec("import numpy as np\ntokens_BT = np.zeros((2, 5), np.int32)\n" + "\n".join(lines), names)
    assert names["logits_BTV"].shape == (2, 5, 50257)

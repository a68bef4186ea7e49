"""The tools that inject faults find none that does harm: a few tries of each (docs/reliability.md: many)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent / "tools"


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv",
    [
        ["soak.py", "signals", "--tries", "2"],
        ["soak.py", "kills", "--tries", "20"],
        ["soak.py", "operations", "--share", "0.05"],
        ["soak.py", "damage", "--tries", "100", "--flips-only"],
        ["soak.py", "damage", "--tries", "8"],
        ["soak.py", "divergence", "--tries", "2"],
        ["soak.py", "data"],
        ["soak.py", "readers", "--tries", "30"],
        ["fuzz_text.py", "--files", "150"],
    ],
    ids=" ".join,
)
def test_faults_do_no_harm(argv: list[str]) -> None:
    command = [sys.executable, str(TOOLS / argv[0]), *argv[1:]]
    environment = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 problems" in done.stdout or "0 files broke a rule" in done.stdout

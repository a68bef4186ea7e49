"""Runs the commands on data, manifests, recipes and tables with faults, for tools/soak.py."""

import contextlib
import io
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from soak_faults import Outcome
from soak_faulty_files import faults

from jaxgpt.cli import main as jaxgpt_command

LONGEST = 5.0  # seconds that a refusal may take


@dataclass(frozen=True, kw_only=True)
class Data:
    """Give data with faults: a documented exit code in five seconds, and the file named."""

    def run(self, folder: Path) -> Outcome:
        codes, problems, slowest = Counter[int](), list[str](), 0.0
        wrong = dict(faults(folder))
        compiled = RuntimeError("the training step would be compiled")
        with mock.patch("jaxgpt.training.run.compile_step", side_effect=compiled):
            for name, (argv, named) in wrong.items():
                since, said = time.monotonic(), io.StringIO()
                code: Any = 0
                with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                    try:
                        jaxgpt_command([str(arg) for arg in argv])
                    except SystemExit as end:
                        code = end.code
                seconds = time.monotonic() - since
                slowest = max(slowest, seconds)
                codes[code] += 1
                last = said.getvalue().strip().splitlines()[-1:]
                if code not in (2, 65, 66) or named not in said.getvalue() or seconds > LONGEST:
                    problems.append(f"{name}: code {code} after {seconds:.1f} s: {last}")
        told = ", ".join(f"{count} x {code}" for code, count in sorted(codes.items()))
        return Outcome(f"{len(wrong)} faults: {told}; the slowest took {slowest:.1f} s", problems)

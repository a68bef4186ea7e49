"""Faults that are injected into small runs in this process, for tools/soak.py: damage, and divergence."""

import contextlib
import functools
import gc
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxgpt
from jaxgpt.errors import DivergedError, JaxgptError
from jaxgpt.parallel import by_path
from jaxgpt.training.divergence import DIVERGED_FILE
from jaxgpt.weights.checkpoint import CHECKPOINTS, finished_steps, read_meta

TEXT = "\n".join(f"{a} times {b} is {a * b}." for a in range(30) for b in range(30))
SMALL: dict[str, Any] = {
    "model.context": 16,
    "model.layers": 1,
    "model.heads": 1,
    "model.width": 16,
    "batch": 8,
    "steps": 8,
    "log_every": 1,
    "eval_every": 4,
    "eval_batches": 1,
    "sample_tokens": 0,
    "checkpoint_every": 4,
}


class Outcome(NamedTuple):
    """What came out of some tries."""

    figures: str
    problems: list[str]


class Wound(NamedTuple):
    """What is done to a file."""

    what: str
    file: Path
    """Its path in the run."""
    content: bytes | None
    """What it holds instead; None where it is deleted."""


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Damage a file of a run by a flipped bit, or cut, empty or delete it; then load it and train on."""

    tries: int = 20
    """How many files to damage."""
    seed: int = 0
    """The seed of the files and places."""
    flips_only: bool = False
    """Whether bits are flipped and nothing else."""
    every_file: bool = False
    """Delete, empty and cut at five places each file of the newest checkpoint, and nothing else."""

    def run(self, folder: Path) -> Outcome:
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))  # all compile the same
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        counts, problems, begun = Counter[str](), list[str](), train(folder, folder / "begun")
        shutil.copytree(begun, folder / "whole")
        whole, sound = _resumed(folder, folder / "whole"), _weights(begun)
        older = _weights(f"{begun}@{SMALL['checkpoint_every']}")
        wounds = self._of_every_file(begun) if self.every_file else self._drawn(begun)
        for number, (what, file, content) in enumerate(wounds):
            out = folder / f"try-{number}"
            shutil.copytree(begun, out)
            _replace(out / file, content)
            for verb, work, wanted in (
                ("load", functools.partial(_weights, out), sound),
                ("resume", functools.partial(_resumed, folder, out), whole),
            ):
                with _screen(folder / "screen") as screen:
                    found = _attempt(work)
                    gc.collect()  # what complains when it is collected shall do so here
                said = screen.read_text(errors="replace")
                if isinstance(found, JaxgptError):
                    counts[f"{verb} refused"] += 1
                elif isinstance(found, Exception):
                    problems.append(f"{what}: {verb} raised {found!r}")
                elif found == wanted:
                    counts[f"{verb} went well"] += 1
                elif found == older and "is not a finished checkpoint and is ignored" in said:
                    counts[f"{verb} took the one before it, with a warning"] += 1
                else:
                    problems.append(f"{what}: {verb} was silently wrong")
                if "Traceback" in said:
                    problems.append(f"{what}: {verb} showed a traceback: {said[-600:]}")
            shutil.rmtree(out)
        told = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        return Outcome(f"{len(wounds)} damaged files: {told}", problems)

    def _drawn(self, run: Path) -> list[Wound]:
        draw = random.Random(self.seed)
        areas = [
            [path for path in _files(run) if path.stat().st_size],
            [run / "config.json"],
            [run / "tokenizer.tiktoken"],
            sorted(path for path in (run / "data").iterdir() if path.suffix in (".bin", ".json")),
        ]
        wounds = []
        for _ in range(self.tries):
            path = draw.choice(draw.choice(areas))
            kind = "flip" if self.flips_only else draw.choice(["flip", "flip", "cut", "empty", "delete"])
            content = bytearray(path.read_bytes())
            place = draw.randrange(len(content))
            if kind == "flip":
                content[place] ^= 1 << draw.randrange(8)
            damaged = {"flip": bytes(content), "cut": bytes(content[:place]), "empty": b""}.get(kind)
            file = path.relative_to(run)
            wounds.append(Wound(f"{kind} {file} at {place}", file, damaged))
        return wounds

    def _of_every_file(self, run: Path) -> list[Wound]:
        wounds = []
        for path in _files(run):
            file, content = path.relative_to(run), path.read_bytes()
            wounds += [Wound(f"delete {file}", file, None), Wound(f"empty {file}", file, b"")]
            for place in sorted({len(content) * part // 6 for part in range(1, 6)}):
                wounds.append(Wound(f"cut {file} at {place}", file, content[:place]))
        return wounds


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Train with rates that nothing withstands: exit code 76, the batch written down, nothing bad saved."""

    tries: int = 10
    """How many trainings."""
    seed: int = 0
    """The seed of their settings."""

    def run(self, folder: Path) -> Outcome:
        draw, seen, problems = random.Random(self.seed), Counter[str](), list[str]()
        for number in range(self.tries):
            settings = {
                "optim.learning_rate": draw.choice([1e25, 1e30, 1e36, 3.4e38]),
                "optim.clip_norm": draw.choice([0.0, 1.0]),
                "optim.schedule": draw.choice(["constant", "cosine"]),
                "optim.weight_decay": draw.choice([0.0, 0.1, 1e3]),
                "optim.warmup_steps": draw.choice([0, 3]),
                "optim.ema_decay": draw.choice([0.0, 0.9]),
                "model.compute_dtype": draw.choice(["float32", "bfloat16"]),
                "eval_every": draw.choice([0, 1, 3]),
                "sample_tokens": draw.choice([0, 4]),
                "checkpoint_every": draw.choice([1, 2, 100]),
                "on_divergence": draw.choice(["stop", "skip", "rewind"]),
                "divergence_limit": draw.choice([0, 2]),
                "spike_deviations": draw.choice([0.0, 6.0]),
                "steps": 12,
            }
            out = folder / f"try-{number}"
            found = _attempt(functools.partial(train, folder, out, **settings))
            shown = json.dumps(settings)
            if not isinstance(found, DivergedError):
                problems.append(f"{shown}: ended with {found!r}")
                continue
            seen[str(found).partition(": ")[2].partition(" is ")[0].partition(": ")[0]] += 1
            table = json.loads((out / DIVERGED_FILE).read_text()) if (out / DIVERGED_FILE).is_file() else {}
            rows = table.get("batches", {}).get(str(found.step), [])
            if (
                table.get("step") != found.step
                or len(rows) != 8
                or not all(row["texts"][0] in TEXT for row in rows)
            ):
                problems.append(f"{shown}: the batch is not written down")
            for step in finished_steps(out / CHECKPOINTS):
                params = by_path(jaxgpt.load(f"{out}@{step}").params)
                if bad := [path for path, leaf in params.items() if not np.isfinite(leaf).all()]:
                    problems.append(f"{shown}: checkpoint {step} has numbers that are not finite in {bad}")
            shutil.rmtree(out)
        told = ", ".join(f"{name} {count}" for name, count in seen.most_common())
        return Outcome(f"{self.tries} trainings: {sum(seen.values())} x 76, first seen in {told}", problems)


def train(folder: Path, out: Path, **more: Any) -> Path:
    """A small training, or its continuation."""
    text = folder / "tables.txt"
    if not text.exists():
        text.write_text(TEXT)
    settings = SMALL | {"data.path": str(text), "data.tokenizer": "bytes", "out_dir": str(out)} | more
    return jaxgpt.train("nano", settings, progress=False).directory


def _weights(out: Path | str) -> dict[str, bytes]:
    """The parameters of a run's model, and the bytes of its tokens."""
    lm = jaxgpt.load(out)
    assert lm.tokenizer is not None, "a run has one"
    tokens = {str(token): lm.tokenizer.decode_bytes([token]) for token in range(lm.config.vocab)}
    return tokens | {path: np.asarray(leaf).tobytes() for path, leaf in by_path(lm.params).items()}


def _resumed(folder: Path, out: Path) -> tuple[Any, ...]:
    return left(train(folder, out, steps=10), 10)


def left(out: Path, step: int) -> tuple[Any, ...]:
    """What tells two runs apart: the losses of the log, and the digests of the last state."""
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    log = [
        (row["step"], key, row[key])
        for row in rows
        for key in ("loss", "grad_norm", "val_loss")
        if key in row
    ]
    return log, read_meta(out / CHECKPOINTS, step)["digests"]


def _files(run: Path) -> list[Path]:
    """The files of the newest checkpoint of a run."""
    newest = run / CHECKPOINTS / str(finished_steps(run / CHECKPOINTS)[-1])
    return sorted(path for path in newest.rglob("*") if path.is_file())


def _replace(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


@contextlib.contextmanager
def _screen(path: Path) -> Iterator[Path]:
    """What this process writes to stderr, C++ code and all, in a file."""
    before = os.dup(2)
    with path.open("w") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield path
    finally:
        os.dup2(before, 2)
        os.close(before)


def _attempt(work: Callable[[], Any]) -> Any:
    """The result of some work, or the error that it raised."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001  Every kind of error is an outcome.
        return error

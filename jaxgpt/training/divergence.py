"""A training that diverges ends, or passes over what did harm, and says what it has read.

No number that is not finite is ever kept.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgpt import hosts
from jaxgpt.config import RunConfig
from jaxgpt.errors import DataError, DivergedError, StorageError
from jaxgpt.files import write_atomically
from jaxgpt.parallel import one_by_one, path_of
from jaxgpt.text.batch import Origin
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.training.guard import LIMIT, NO_UPDATE
from jaxgpt.weights.digests import storable

DIVERGED_FILE = "diverged.json"
NAMED = 3  # how many arrays a message names


def refuse_non_finite(step: int, row: Mapping[str, float]) -> None:
    """Raise DivergedError where a measurement of a step is not finite."""
    if wrong := [f"{name} is {value}" for name, value in row.items() if not math.isfinite(value)]:
        raise _diverged(step, ", ".join(wrong))


def refuse_non_finite_arrays(step: int, tree: Any) -> None:
    """Raise DivergedError where an array of a step's state holds a number that is not finite.

    An update can overflow although the loss and the gradient were finite.
    """
    leaves = [
        (path, leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(storable(tree))[0]
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    finite = one_by_one(_is_finite, (leaf for _, leaf in leaves))
    if wrong := [path_of(path) for (path, _), each in zip(leaves, finite, strict=True) if not each]:
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise _diverged(step, f"not finite any more: {', '.join(wrong[:NAMED])}{more}")


def why_no_update(row: dict[str, float]) -> str | None:
    """Why a guarded step made no update; None where it made one. What says so is taken out of the row."""
    left_out, limit = row.pop(NO_UPDATE, 0), row.pop(LIMIT, math.inf)
    if not left_out:
        return None
    if wrong := [f"{name} is {value}" for name, value in row.items() if not math.isfinite(value)]:
        return ", ".join(wrong)
    if row["loss"] > limit:
        return f"loss is {row['loss']:.6g}, a spike: the recent ones allow {limit:.6g}"
    return "the update would not be finite"


@dataclass(kw_only=True)
class Divergences:
    """The steps of a run that made no update because they would do harm."""

    limit: int = 0
    """How many of them a run may have. One more ends it."""
    count: int = 0
    """How many there have been."""
    write_down: Callable[[int, str], None] = lambda _step, _why: None
    """Called with each step and why it made no update."""

    def see(self, step: int, why: str) -> None:
        """Take note of one. Raises DivergedError where it is one too many."""
        if self.count >= self.limit:
            raise _diverged(step, why)
        self.count += 1
        self.write_down(step, f"step {step} made no update: {why}")


@dataclass(frozen=True)
class Recorder:
    """Writes diverged.json into the directory of a run: what the steps have read that diverged."""

    folder: Path
    origins: Callable[[int], list[Origin]]
    """Where each row of a step's batch was read; steps are counted from 0 here alone."""
    tokenizer: Tokenizer

    def write_down(self, step: int, why: str) -> None:
        """Write the step at which a divergence was seen, and why. Of several, the file has the latest.

        It also has where each row of that step's batch and of the one before it was read, with its texts:
        what one step has broken, often only the next one shows.
        """
        if not hosts.is_first():
            return
        steps = [each for each in (step - 1, step) if each > 0]
        batches = {each: [self._row(origin) for origin in self.origins(each - 1)] for each in steps}
        table = {"step": step, "why": why, "batches": batches}
        with contextlib.suppress(StorageError):  # the divergence is what a person must hear of
            write_atomically(self.folder / DIVERGED_FILE, (json.dumps(table, indent=1) + "\n").encode())

    def _row(self, origin: Origin) -> dict[str, Any]:
        return origin.place | {"texts": [self.tokenizer.decode(ids) for ids in origin.texts]}

    @contextlib.contextmanager
    def around(self, *, ends: bool) -> Iterator[None]:
        """Around a training: where it diverges, write that down. If that `ends` it, tell the others."""
        try:
            yield
        except DivergedError as error:
            if error.step is not None:
                self.write_down(error.step, str(error))
            if ends:
                hosts.announce(error)
            raise


def passed_over(recipe: RunConfig, error: DivergedError, since: int) -> RunConfig:
    """The recipe that passes over the step of a divergence and the one before it, if they come after `since`.

    Raises the error where neither of them does, or both are passed over already.
    """
    last = error.step or 0
    steps = [step for step in (last - 1, last) if step > since and not recipe.skips(step)]
    if not steps:
        raise error
    skipped = ",".join([*filter(None, [recipe.skip_steps]), *map(str, steps)])
    return dataclasses.replace(recipe, skip_steps=skipped)


def diverged_at(folder: Path) -> int | None:
    """The step at which a run diverged when it last did, as diverged.json has it. None where there is none.

    Raises DataError where the file is damaged.
    """
    path = folder / DIVERGED_FILE
    if not path.is_file():
        return None
    try:
        return int(json.loads(path.read_bytes())["step"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            "the record of a divergence is damaged", path=path, why=repr(error), fix="delete it"
        ) from error


@jax.jit
def _is_finite(leaf: Array) -> Array:
    return jnp.isfinite(leaf).all()


def _diverged(step: int, why: str) -> DivergedError:
    error = DivergedError(
        f"diverged at step {step}",
        why=why,
        fix="lower --optim.learning-rate or raise --optim.warmup-steps; earlier checkpoints are intact, "
        "`jaxgpt replay RUN` shows what that step has read, and --on-divergence rewind passes over it",
    )
    error.step = step
    return error

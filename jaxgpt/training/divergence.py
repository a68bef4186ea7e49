"""A training that diverges ends before a number that is not finite is kept, and says what it has read."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgpt import hosts
from jaxgpt.errors import DataError, DivergedError, StorageError
from jaxgpt.files import write_atomically
from jaxgpt.parallel import one_by_one, path_of
from jaxgpt.text.batch import Origin
from jaxgpt.text.tokenizer import Tokenizer
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


@contextlib.contextmanager
def written_down(
    folder: Path, origins: Callable[[int], list[Origin]], tokenizer: Tokenizer
) -> Iterator[None]:
    """Around a training: where it diverges, write diverged.json into its directory.

    The file has the step at which that was seen, why, and where each row of that step's batch and of the one
    before it was read, with its texts: what one step has broken, often only the next one shows.
    """
    try:
        yield
    except DivergedError as error:
        if error.step is not None and hosts.is_first():
            steps = [step for step in (error.step - 1, error.step) if step > 0]
            batches = {step: [_row(origin, tokenizer) for origin in origins(step - 1)] for step in steps}
            table = {"step": error.step, "why": str(error), "batches": batches}
            with contextlib.suppress(StorageError):  # the divergence is what a person must hear of
                write_atomically(folder / DIVERGED_FILE, (json.dumps(table, indent=1) + "\n").encode())
        raise


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


def _row(origin: Origin, tokenizer: Tokenizer) -> dict[str, Any]:
    return origin.place | {"texts": [tokenizer.decode(ids) for ids in origin.texts]}


@jax.jit
def _is_finite(leaf: Array) -> Array:
    return jnp.isfinite(leaf).all()


def _diverged(step: int, why: str) -> DivergedError:
    error = DivergedError(
        f"diverged at step {step}",
        why=why,
        fix="lower --optim.learning-rate or raise --optim.warmup-steps; earlier checkpoints are intact, and "
        "`jaxgpt replay RUN` shows what that step has read",
    )
    error.step = step
    return error

"""A training that diverges ends before a number that is not finite is kept."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgpt.errors import DivergedError
from jaxgpt.parallel import one_by_one, path_of
from jaxgpt.weights.digests import storable

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


@jax.jit
def _is_finite(leaf: Array) -> Array:
    return jnp.isfinite(leaf).all()


def _diverged(step: int, why: str) -> DivergedError:
    return DivergedError(
        f"diverged at step {step}",
        why=why,
        fix="lower --optim.learning-rate or raise --optim.warmup-steps; earlier checkpoints are intact, and "
        f"`jaxgpt replay RUN --step {step}` shows what that step has read",
    )

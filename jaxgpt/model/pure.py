"""How NNX modules become pure functions of plain nested dicts, for `define` of every architecture."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx
from jax import Array

M = TypeVar("M", bound=nnx.Module)


def structure(make: Callable[[], M]) -> nnx.GraphDef[M]:
    """What a module is without its parameters. Raises where it holds any other state."""
    found: nnx.GraphDef[M] = nnx.split(nnx.eval_shape(make), nnx.Param)[0]
    return found


def parameters(module: nnx.Module) -> dict[str, Any]:
    """The parameters of a module."""
    return nnx.to_pure_dict(nnx.split(module, nnx.Param)[1])


def stacked(make: Callable[[nnx.Rngs], nnx.Module], layers: int, key: Array) -> dict[str, Any]:
    """New parameters of equal blocks: one leaf a kind, with a leading axis of layers."""
    return jax.vmap(lambda key: parameters(make(nnx.Rngs(key))))(jax.random.split(key, layers))

"""Which parameters train. They are chosen by their paths and, in the blocks, by layer."""

import re
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxgpt.errors import ConfigError
from jaxgpt.model.gpt import Params
from jaxgpt.parallel import by_path


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A choice of parameters. The default is all of them.

    A leaf of the blocks is an array whose first axis is the layer. Where `layers` is given, only these layers
    of it train, so one part of a leaf can train while the rest is frozen. `layers` does not affect leaves
    outside the blocks.
    """

    pattern: str = ".*"
    """A regular expression that the whole path of a leaf must match, such as `h/.*|ln_f/.*`."""
    layers: tuple[int, int] | None = None
    """The first layer that trains, and the first one after them that does not. None trains all layers."""
    alone: bool = False
    """Whether checkpoints hold what trains alone. The rest is then read from the model that the run began
    with."""

    @property
    def is_everything(self) -> bool:
        """Whether all parameters are chosen."""
        return self == Chosen()


EVERYTHING = Chosen()


def partition(params: Params, chosen: Chosen) -> tuple[Params, Params]:
    """The parameters that train, and those that stay frozen, each as a nested dict.

    A leaf of which only some layers train is in both: its chosen layers in the first, the others in the
    second, in their order. Raises ConfigError when the choice matches no parameter, or names layers that the
    model does not have.
    """
    if chosen.is_everything:
        return params, {}
    trainable: Params = {}
    frozen: Params = {}
    for path, leaf in by_path(params).items():
        if not re.fullmatch(chosen.pattern, path):
            _put(frozen, path, leaf)
        elif chosen.layers is None or not path.startswith("h/"):
            _put(trainable, path, leaf)
        else:
            first, last = _checked_layers(chosen.layers, leaf.shape[0])
            _put(trainable, path, leaf[first:last])
            if last - first < leaf.shape[0]:
                _put(frozen, path, jnp.concatenate([leaf[:first], leaf[last:]]))
    if not trainable:
        raise ConfigError(
            f"nothing trains: no parameter is called {chosen.pattern!r}",
            why=f"the parameters are called {', '.join(by_path(params))}",
            fix="choose a pattern that matches some of these names",
        )
    return trainable, frozen


def combine(trainable: Params, frozen: Params, chosen: Chosen) -> Params:
    """All parameters together again. This is the inverse of `partition`."""
    if chosen.is_everything:
        return trainable
    params: Params = {}
    parts = by_path(trainable), by_path(frozen)
    for path in sorted(parts[0].keys() | parts[1].keys()):
        mine, rest = (part.get(path) for part in parts)
        _put(params, path, rest if mine is None else mine if rest is None else _joined(mine, rest, chosen))
    return params


def _joined(mine: Array, rest: Array, chosen: Chosen) -> Array:
    assert chosen.layers is not None, "only a choice of layers divides a leaf"
    first = chosen.layers[0]
    return jnp.concatenate([rest[:first], mine, rest[first:]])


def _checked_layers(layers: tuple[int, int], count: int) -> tuple[int, int]:
    first, last = layers
    if not 0 <= first < last <= count:
        raise ConfigError(
            f"layers {first} to {last}",
            why=f"the model has layers 0 to {count - 1}; the second number is one more than the last layer",
            fix=f"choose two numbers from 0 to {count}, the smaller one first",
        )
    return first, last


def _put(tree: Params, path: str, leaf: Any) -> None:
    *parents, last = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = leaf

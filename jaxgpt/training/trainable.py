"""Which parameters train: by the names of their paths and, for the stacked blocks, by layer."""

import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgpt.errors import ConfigError
from jaxgpt.model.gpt import Params
from jaxgpt.parallel import path_of


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A choice of parameters; the default is all of them.

    A leaf of the blocks has a leading axis of layers. Where `layers` is given, only these layers of it train, so a
    leaf can belong to both sides. Leaves outside the blocks know no layers.
    """

    pattern: str = ".*"
    """A regular expression that the whole path of a leaf must match, such as `h/.*|ln_f/.*`."""
    layers: tuple[int, int] | None = None
    """The first layer that trains, and the one behind the last; None trains all layers."""

    @property
    def is_everything(self) -> bool:
        return self == Chosen()


EVERYTHING = Chosen()


def partition(params: Params, chosen: Chosen) -> tuple[Params, Params]:
    """The parameters that train, and those that stay frozen, each a nested dict with the leaves it has.

    A leaf that is cut by layer is in both: its trained layers in one, the others in the other, in order.

    Raises ConfigError when nothing is chosen, or layers that the model does not have.
    """
    if chosen.is_everything:
        return params, {}
    trainable: Params = {}
    frozen: Params = {}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = path_of(key_path)
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
        paths = [path_of(key_path) for key_path, _ in jax.tree_util.tree_leaves_with_path(params)]
        raise ConfigError(
            f"nothing trains: no parameter is called {chosen.pattern!r}",
            why=f"the parameters are called {', '.join(paths)}",
            fix="choose a pattern that matches some of these names",
        )
    return trainable, frozen


def combine(trainable: Params, frozen: Params, chosen: Chosen) -> Params:
    """The whole parameters again: the inverse of `partition`. Gradients flow to `trainable` alone."""
    if chosen.is_everything:
        return trainable
    params: Params = {}
    parts = [
        {path_of(place): leaf for place, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (trainable, frozen)
    ]
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
            why=f"the model has layers 0 to {count - 1}, and the second number is the one behind the last",
            fix=f"choose two numbers from 0 to {count}, the first one smaller",
        )
    return first, last


def _put(tree: Params, path: str, leaf: Any) -> None:
    *parents, last = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = leaf

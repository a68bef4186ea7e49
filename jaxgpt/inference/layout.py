"""Parameters laid out for serving: each layer its own arrays, kernels turned where that is faster, int8 on request."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgpt.model.gpt import Params
from jaxgpt.model.linear import Kernels
from jaxgpt.parallel import partition_spec

LARGEST_INT8 = 127


def kernels_for(mesh: Mesh, *, int8: bool) -> Kernels:
    """How kernels lie on these devices: (out, in) on one CPU device, whose products with few rows are memory-bound.

    (124M, 12 blocks, one row: 13.5 ms turned, 16.5 as stored; eight rows: 25 and 31 ms.)
    """
    one_cpu = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
    return Kernels(turned=one_cpu, int8=int8)


def served(params: Params, kernels: Kernels, mesh: Mesh) -> Params:
    """The parameters as `define(config, kernels=kernels)` takes them, `h` a tuple of layers, on the mesh.

    Stacked leaves are taken apart one at a time. int8 rounds each output's weights to 255 steps of their largest
    magnitude / 127 (symmetric, per output channel).
    """
    layers = jax.tree.leaves(params["h"])[0].shape[0]
    outside = {name: _served(table, name, kernels, mesh) for name, table in params.items() if name != "h"}
    inside: list[dict[str, Any]] = [{} for _ in range(layers)]
    for path, leaf in _leaves(params["h"]):
        for number in range(layers):
            node = inside[number]
            for name in path[:-2]:
                node = node.setdefault(name, {})
            place = "h/" + "/".join(path[:-1])
            node.setdefault(path[-2], {}).update(_served({path[-1]: leaf[number]}, place, kernels, mesh, stacked=True))
    return outside | {"h": tuple(inside)}


def _leaves(tree: Any) -> list[tuple[list[str], Array]]:
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return [([entry.key for entry in path], leaf) for path, leaf in flat]


def _served(
    module: dict[str, Array], path: str, kernels: Kernels, mesh: Mesh, *, stacked: bool = False
) -> dict[str, Array]:
    """The leaves of one small module, laid out and placed."""
    found: dict[str, Array] = {}
    for name, leaf in module.items():
        spec = tuple(partition_spec(f"{path}/{name}"))[stacked:]
        wide = leaf.astype(jnp.float32)
        if name == "kernel":
            scale = None
            if kernels.int8:
                wide, scale = _rounded(wide, axis=0)
            if kernels.turned:
                wide = jnp.moveaxis(wide, 0, -1)
            found[name] = _placed(wide, spec if not kernels.turned else (), mesh)
            if scale is not None:
                found["kernel_scale"] = _placed(scale, spec[1:], mesh)
        elif name == "embedding" and kernels.int8 and path in ("wte", "lm_head"):
            wide, scale = _rounded(wide, axis=1)
            found[name], found["embedding_scale"] = _placed(wide, spec, mesh), _placed(scale, spec[:1], mesh)
        else:
            found[name] = _placed(wide, spec, mesh)
    return found


def _rounded(wide: Array, axis: int) -> tuple[Array, Array]:
    """int8 numbers and the float32 scale that each slice along the other axes is to be multiplied with."""
    scale = jnp.max(jnp.abs(wide), axis=axis) / LARGEST_INT8
    steps = wide / jnp.expand_dims(jnp.where(scale > 0, scale, 1), axis)
    return jnp.round(steps).astype(jnp.int8), scale


def _placed(array: Array, spec: tuple[Any, ...], mesh: Mesh) -> Array:
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))

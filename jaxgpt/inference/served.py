"""Parameters laid out for serving: each layer its own arrays, kernels turned where that is faster, int8 on request."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgpt.config import GPTConfig, MeshConfig
from jaxgpt.model.cache import KVCache
from jaxgpt.model.gpt import Params
from jaxgpt.model.layers import Kernels
from jaxgpt.parallel import mesh_of, partition_spec, path_of

LARGEST_INT8 = 127


def kernels_for(mesh: Mesh, *, int8: bool) -> Kernels:
    """How kernels lie on these devices: (out, in) on one CPU device, whose products with few rows are memory-bound.

    (124M, 12 blocks, one row: 13.5 ms turned, 16.5 as stored; eight rows: 25 and 31 ms.)
    """
    one_cpu = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
    return Kernels(turned=one_cpu, int8=int8)


def served(
    params: Params, config: GPTConfig, kernels: Kernels, mesh: Mesh, *, consume: bool = False
) -> Params:
    """The parameters as `define(config, kernels=kernels)` takes them, `h` a tuple of layers, on the mesh.

    Stacked leaves are taken apart one at a time; matrices are stored in the dtype they are computed with. int8 rounds
    each output's weights to 255 steps of their largest magnitude / 127 (symmetric, per output channel).

    `consume` deletes the stacked leaves as they are taken apart, so that there are never two copies of the blocks; the
    parameters given are of no more use then.
    """
    tree: dict[str, Any] = {"h": tuple({} for _ in range(config.layers))}
    for place, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = path_of(place)
        *parents, _ = path.removeprefix("h/").split("/")
        stacked = path.startswith("h/")
        specs = _specs(path, tuple(partition_spec(path))[stacked:], kernels)
        parts = _laid_out(leaf, path=path, dtype=config.compute_dtype, kernels=kernels)
        for node, part in zip(tree["h"] if stacked else (tree,), parts, strict=True):
            for parent in parents:
                node = node.setdefault(parent, {})
            for name, array in part.items():
                node[name] = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*specs[name])))
        if consume and stacked:
            jax.block_until_ready(parts)
            leaf.delete()
    return tree


@functools.partial(jax.jit, static_argnames=("path", "dtype", "kernels"))
def _laid_out(leaf: Array, *, path: str, dtype: str, kernels: Kernels) -> tuple[dict[str, Array], ...]:
    """What a leaf becomes, a layer each where it is stacked."""
    name = path.rpartition("/")[2]

    def lay_out(array: Array) -> dict[str, Array]:
        array = array.astype(jnp.float32)
        if (along := _summed_axis(path)) is None:
            return {name: array}
        more = {}
        if kernels.int8:
            array, more[f"{name}_scale"] = _rounded(array, along)
        else:
            array = array.astype(dtype)
        return {name: jnp.moveaxis(array, 0, -1) if kernels.turned and along == 0 else array} | more

    return tuple(lay_out(array) for array in (leaf if path.startswith("h/") else (leaf,)))


def _specs(path: str, spec: tuple[Any, ...], kernels: Kernels) -> dict[str, tuple[Any, ...]]:
    """How what a leaf becomes lies on the mesh. (Kernels are turned on one device only, where nothing is split.)"""
    name, along = path.rpartition("/")[2], _summed_axis(path)
    if along is None:
        return {name: spec}
    return {name: () if kernels.turned else spec, f"{name}_scale": spec[:along] + spec[along + 1 :]}


def _summed_axis(path: str) -> int | None:
    """The axis of a matrix that products sum over; None for everything else."""
    if path.endswith("/kernel"):
        return 0
    return 1 if path in ("wte/embedding", "lm_head/embedding") else None


def _rounded(array: Array, axis: int) -> tuple[Array, Array]:
    """int8 numbers, and the float32 scale that each slice along the other axes is to be multiplied with."""
    scale = jnp.max(jnp.abs(array), axis=axis) / LARGEST_INT8
    steps = array / jnp.expand_dims(jnp.where(scale > 0, scale, 1), axis)
    return jnp.round(steps).astype(jnp.int8), scale


def mesh_under(params: Params) -> Mesh:
    """The mesh parameters lie on; of one device where they lie on one."""
    sharding = jax.tree.leaves(params)[0].sharding
    if isinstance(sharding, NamedSharding):
        assert isinstance(sharding.mesh, Mesh)
        return sharding.mesh
    return mesh_of(MeshConfig(data=1), sorted(sharding.device_set, key=lambda device: device.id)[:1])


def heads_sharding(config: GPTConfig, mesh: Mesh) -> NamedSharding:
    """How a layer's cache [B, H, S, K] lies: heads over the mesh's `tensor` axis, where it divides them."""
    return NamedSharding(
        mesh, PartitionSpec(None, "tensor" if config.heads % mesh.shape["tensor"] == 0 else None)
    )


def on_heads(cache: KVCache, sharding: NamedSharding) -> KVCache:
    """A cache that lies so, inside a compiled program."""
    keys, values = jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), (cache.keys, cache.values)
    )
    return KVCache(keys, values, cache.length_B)

"""A model laid out for serving, once: whatever writes or scores text with it takes the same `Served`.

Each layer has arrays of its own, in the dtype they are computed with; kernels are turned where that is
faster; weights are int8 on request.
"""

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgpt.config import GPTConfig, MeshConfig
from jaxgpt.inference.products import reads_small_types
from jaxgpt.inference.served_layers import ServedLayers
from jaxgpt.model.cache import KVCache
from jaxgpt.model.gpt import Model, Params, define
from jaxgpt.parallel import mesh_of, partition_spec, path_of

LARGEST_INT8 = 127


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Served:
    """A model laid out for serving, as one argument of a compiled program.

    The parameters are data. The rest is static: another value compiles another program.
    """

    params: Params = field(repr=False)
    """`h` is a tuple with the parameters of each layer."""
    config: GPTConfig = field(metadata={"static": True})
    layers: ServedLayers = field(metadata={"static": True})
    """How the parameters lie."""
    heads: NamedSharding = field(metadata={"static": True})
    """How a layer's cache [B, H, S, K] lies on the mesh."""

    @classmethod
    def of(
        cls,
        config: GPTConfig,
        params: Params,
        *,
        int8: bool = False,
        mesh: Mesh | None = None,
        consume: bool = False,
    ) -> Self:
        """Lay parameters out for serving, on their own mesh unless another is given.

        int8 rounds the weights of each output to 255 steps of their largest magnitude / 127 (symmetric, per
        output channel). `consume` deletes the stacked leaves as they are taken apart, so that there are never
        two copies of the blocks; the parameters given cannot be used any more afterwards.
        """
        mesh = mesh or _mesh_under(params)
        layers = layers_for(mesh, int8=int8)
        placed = laid_out(params, config, layers, mesh, consume=consume)
        return cls(placed, config, layers, _heads_sharding(config, mesh))

    @property
    def mesh(self) -> Mesh:
        """The devices that the model lies on."""
        assert isinstance(self.heads.mesh, Mesh)
        return self.heads.mesh

    @property
    def platform(self) -> str:
        """The kind of these devices: `cpu`, `gpu` or `tpu`."""
        return str(self.mesh.devices.flat[0].platform)

    @property
    def model(self) -> Model:
        """The model's pure functions; they take `params`."""
        return define(self.config, layers=self.layers)

    def sharing(self, other: "Served") -> "Served":
        """The same model, whose arrays are those of the other model wherever they hold the same numbers.

        What this model alone held of these is freed with it. Both must have one architecture and one layout.
        """

        def shared(mine: Array, theirs: Array) -> Array:
            return theirs if bool(jnp.array_equal(mine, theirs)) else mine

        return dataclasses.replace(self, params=jax.tree.map(shared, self.params, other.params))

    def on_heads(self, cache: KVCache) -> KVCache:
        """The same cache laid out as `heads` says, inside a compiled program."""
        return on_heads(cache, self.heads)


def layers_for(mesh: Mesh, *, int8: bool) -> ServedLayers:
    """The layers that suit these devices.

    They are turned on a single CPU device, whose products with few rows wait for memory.
    """
    device = mesh.devices.flat[0]
    one_cpu = mesh.size == 1 and device.platform == "cpu"
    return ServedLayers(turned=one_cpu, int8=int8, as_stored=one_cpu and reads_small_types(device))


def on_heads(cache: KVCache, heads: NamedSharding) -> KVCache:
    """The same cache with the keys and values of every layer laid out so, inside a compiled program."""
    keys, values = jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(leaf, heads), (cache.keys, cache.values)
    )
    return KVCache(keys, values, cache.length_B)


def laid_out(
    params: Params, config: GPTConfig, layers: ServedLayers, mesh: Mesh, *, consume: bool = False
) -> Params:
    """The parameters as `define(config, layers=layers)` takes them, `h` a tuple of layers, on the mesh.

    Stacked leaves are taken apart one at a time. See `Served.of` for `consume`.
    """
    tree: dict[str, Any] = {"h": tuple({} for _ in range(config.layers))}
    for place, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = path_of(place)
        *parents, _ = path.removeprefix("h/").split("/")
        stacked = path.startswith("h/")
        specs = _specs(path, tuple(partition_spec(path))[stacked:], layers)
        parts = _parts(leaf, path=path, dtype=config.compute_dtype, layers=layers)
        for node, part in zip(tree["h"] if stacked else (tree,), parts, strict=True):
            for parent in parents:
                node = node.setdefault(parent, {})
            for name, array in part.items():
                node[name] = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*specs[name])))
        if consume and stacked:
            jax.block_until_ready(parts)
            leaf.delete()
    return tree


@functools.partial(jax.jit, static_argnames=("path", "dtype", "layers"))
def _parts(leaf: Array, *, path: str, dtype: str, layers: ServedLayers) -> tuple[dict[str, Array], ...]:
    """What a leaf becomes: one dict of arrays by name, or one for each layer where the leaf is stacked."""
    name = path.rpartition("/")[2]

    def lay_out(array: Array) -> dict[str, Array]:
        array = array.astype(jnp.float32)
        if (along := _summed_axis(path)) is None:
            return {name: array}
        more = {}
        if layers.int8:
            array, more[f"{name}_scale"] = _rounded(array, along)
        else:
            array = array.astype(dtype)
        return {name: jnp.moveaxis(array, 0, -1) if layers.turned and along == 0 else array} | more

    return tuple(lay_out(array) for array in (leaf if path.startswith("h/") else (leaf,)))


def _specs(path: str, spec: tuple[Any, ...], layers: ServedLayers) -> dict[str, tuple[Any, ...]]:
    """How the arrays that a leaf becomes lie on the mesh, by name.

    Kernels are turned on a single device only, where nothing is split.
    """
    name, along = path.rpartition("/")[2], _summed_axis(path)
    if along is None:
        return {name: spec}
    return {name: () if layers.turned else spec, f"{name}_scale": spec[:along] + spec[along + 1 :]}


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


def _mesh_under(params: Params) -> Mesh:
    """The mesh that parameters lie on; a mesh of one device where they lie on one without a mesh."""
    sharding = jax.tree.leaves(params)[0].sharding
    if isinstance(sharding, NamedSharding):
        assert isinstance(sharding.mesh, Mesh)
        return sharding.mesh
    return mesh_of(MeshConfig(data=1), sorted(sharding.device_set, key=lambda device: device.id)[:1])


def _heads_sharding(config: GPTConfig, mesh: Mesh) -> NamedSharding:
    """How a layer's cache [B, H, S, K] lies: heads over the mesh's `tensor` axis, where it divides them."""
    return NamedSharding(
        mesh, PartitionSpec(None, "tensor" if config.heads % mesh.shape["tensor"] == 0 else None)
    )

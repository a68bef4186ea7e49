"""The mesh, and the two tables that say how parameters and activations lie on it.

The mesh has three axes: `data` (copies of the model), `fsdp` (shards of the parameters, gathered when they
are used) and `tensor` (shards of the matrix products). The table of parameters also places Adam's moments and
what is restored from a checkpoint. The table of activations keeps each sequence on its own devices; without
it the compiler would rather move the activations of all sequences than gather the parameters.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxgpt.config import MeshConfig
from jaxgpt.errors import ConfigError

P = PartitionSpec
ROWS = P(("data", "fsdp"))  # a batch: its first axis is split over everything that holds other sequences

# Name of an activation -> its PartitionSpec.
ACTIVATIONS: dict[str, PartitionSpec] = {
    "tokens": ROWS,  # [B, T]
    "stream": ROWS,  # [B, T, D], the residual stream
    "heads": P(*ROWS, None, "tensor"),  # [B, T, H, K], queries, keys and values
    "logits": P(*ROWS, "tensor"),  # [B * T, V]
}

# Path of a leaf (behind any prefix, such as an optimizer's) -> its PartitionSpec. Exactly one rule fits each
# leaf.
PARAMETERS: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(wte|lm_head)/embedding", P("tensor", "fsdp")),
    (r"wpe/embedding", P(None, "fsdp")),
    (r"h/ln_[12]/(scale|bias)", P()),
    (r"h/attn/c_attn/kernel", P(None, "fsdp", None, "tensor")),
    (r"h/attn/c_attn/bias", P(None, None, "tensor")),
    (r"h/attn/c_proj/kernel", P(None, "tensor", "fsdp")),
    (r"h/attn/c_proj/bias", P()),
    (r"h/mlp/c_fc/kernel", P(None, "fsdp", "tensor")),
    (r"h/mlp/c_fc/bias", P(None, "tensor")),
    (r"h/mlp/c_proj/kernel", P(None, "tensor", "fsdp")),
    (r"h/mlp/c_proj/bias", P()),
    # Adapters (LoRA): as the kernels beside them, and whole along the rank, which is small.
    (r"h/(attn/c_attn|mlp/c_fc)/lora_A", P(None, "fsdp")),
    (r"h/attn/c_attn/lora_B", P(None, None, None, "tensor")),
    (r"h/mlp/c_fc/lora_B", P(None, None, "tensor")),
    (r"h/(attn|mlp)/c_proj/lora_A", P(None, "tensor")),
    (r"h/(attn|mlp)/c_proj/lora_B", P(None, None, "fsdp")),
    (r"ln_f/(scale|bias)", P()),
    (r"score/kernel", P("fsdp")),
    (r"step|count|key|losses|seen|ns_coeffs", P()),
)


def mesh_of(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh `data x fsdp x tensor` over these devices (all of them unless given).

    Raises ConfigError when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    filled = config.over(len(devices))
    sizes = filled.data, filled.fsdp, filled.tensor
    return jax.make_mesh(sizes, ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3, devices=devices)


@dataclass(frozen=True)
class Placement:
    """Where a model's computation runs: all that `define` knows of devices.

    Without a mesh it constrains nothing.
    """

    mesh: Mesh | None = None

    @property
    def platform(self) -> str | None:
        """What the mesh's devices are: `cpu`, `gpu` or `tpu`. None without a mesh."""
        return None if self.mesh is None else str(self.mesh.devices.flat[0].platform)

    def __call__(self, name: str, x: jax.Array) -> jax.Array:
        """`x`, made to lie as the activation of this name does."""
        if self.mesh is None or self.mesh.size == 1:
            return x
        placed: jax.Array = jax.lax.with_sharding_constraint(
            x, NamedSharding(self.mesh, self._spec(name, x.shape))
        )
        return placed

    @property
    def gathers(self) -> bool:
        """Whether kernels are to be gathered by hand (`gathered`), because they are split over fsdp on TPUs.

        Left to itself, their compiler passes the parts of a kernel round while it multiplies, and sends some
        of them twice. Other compilers gather the whole kernel.
        """
        return self.platform == "tpu" and self.mesh is not None and self.mesh.shape["fsdp"] > 1

    def gathered(self, path: str, x: jax.Array) -> jax.Array:
        """`x`, the parameter at this path or a layer's part of it, as it is used: whole along fsdp."""
        if self.mesh is None or self.mesh.size == 1:
            return x
        axes = partition_spec(path)
        stored = P(*axes[max(len(axes) - x.ndim, 0) :])
        used = P(*(None if axis == "fsdp" else axis for axis in stored))
        lies = NamedSharding(self.mesh, stored), NamedSharding(self.mesh, used)
        return _gathered(x, *lies) if self.gathers else jax.lax.with_sharding_constraint(x, lies[1])

    def settled(self, x: jax.Array) -> jax.Array:
        """`x`, which on TPUs becomes an array of its own.

        Their compiler would else make it anew for each tile of each product that reads it.
        """
        return jax.lax.optimization_barrier(x) if self.platform == "tpu" else x

    def part(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of what one device has of an activation of this name and shape."""
        if self.mesh is None:
            return tuple(shape)
        return NamedSharding(self.mesh, self._spec(name, shape)).shard_shape(tuple(shape))

    def on_each_device(
        self, function: Callable[..., Any], names: Sequence[str], result: str, given: Sequence[jax.Array]
    ) -> Callable[..., Any]:
        """`function`, run by each device on its own part of the arrays; `names` and `result` are activations.

        For kernels that the compiler cannot split. The result has the shape of the first argument.
        """
        if self.mesh is None or self.mesh.size == 1:
            return function
        specs = tuple(self._spec(name, x.shape) for name, x in zip(names, given, strict=True))
        out = self._spec(result, given[0].shape)
        return jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=out, check_vma=False)

    def _spec(self, name: str, shape: Sequence[int]) -> PartitionSpec:
        """The table's entry, without axes that do not divide the array, such as 25 heads over 8 devices."""
        assert self.mesh is not None
        entries = []
        for size, axes in zip(shape, ACTIVATIONS[name], strict=False):
            named = (axes,) if isinstance(axes, str) else axes or ()
            shards = math.prod(self.mesh.shape[axis] for axis in named)
            entries.append(axes if size % shards == 0 else None)
        return P(*entries)


NOWHERE = Placement()


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(x: jax.Array, stored: NamedSharding, used: NamedSharding) -> jax.Array:  # noqa: ARG001
    """`x` as it is used. Its gradient is added up to the parts that are stored."""
    whole: jax.Array = jax.lax.with_sharding_constraint(x, used)
    return whole


def _gathered_forward(x: jax.Array, stored: NamedSharding, used: NamedSharding) -> tuple[jax.Array, None]:
    return _gathered(x, stored, used), None


def _gathered_backward(
    stored: NamedSharding, used: NamedSharding, _: None, grad: jax.Array
) -> tuple[jax.Array]:
    # First whole, so that the compiler adds up the finished product and takes its part in one go; for the
    # part alone it would pass sums round while it multiplies.
    whole = jax.lax.with_sharding_constraint(grad, used)
    return (jax.lax.with_sharding_constraint(whole, stored),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def path_of(key_path: Any) -> str:
    """A leaf's place in a tree as text: `h/attn/c_attn/kernel`."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths."""
    return {path_of(place): leaf for place, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def partition_spec(path: str) -> PartitionSpec:
    """The PartitionSpec of the leaf at this path. Raises ConfigError unless exactly one rule fits."""
    fitting = [spec for pattern, spec in PARAMETERS if re.fullmatch(rf"(.*/)?({pattern})", path)]
    if len(fitting) != 1:
        raise ConfigError(
            f"parameter {path}",
            why=f"{len(fitting)} sharding rules fit it",
            fix="give it one rule in parallel.PARAMETERS",
        )
    return fitting[0]


def shardings(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A NamedSharding for every leaf of a tree of arrays or shapes.

    Raises ConfigError naming every leaf with an axis that the mesh does not divide.
    """
    problems: list[str] = []

    def place(key_path: Any, leaf: Any) -> NamedSharding:
        path = path_of(key_path)
        spec = partition_spec(path)
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                problems.append(f"{path} {leaf.shape} along {axis}={mesh.shape[axis]}")
        return NamedSharding(mesh, spec)

    placed = jax.tree_util.tree_map_with_path(place, tree)
    if problems:
        raise ConfigError(
            "mesh does not divide the model", why=", ".join(problems), fix="choose other mesh sizes"
        )
    return placed


def abstract(tree: Any, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of a tree, no arrays: what a checkpoint is restored into."""

    def describe(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(describe, tree, shardings(tree, mesh))


def one_by_one(program: Callable[[Array], Any], arrays: Iterable[Array]) -> list[Any]:
    """Return what a program makes of each array, in NumPy, waiting for each before the next is launched.

    On CPU JAX runs at most 32 programs of a device at once. Where more wait, and they need other processes of
    the job, those processes may run theirs in another order, and all wait for ever (seen with jax 0.10.1).
    """
    return [jax.device_get(program(array)) for array in arrays]


def check_batch(sequences: int, mesh: Mesh) -> None:
    """Raises ConfigError unless the sequences of a micro-batch divide over the mesh's rows."""
    MeshConfig(**mesh.shape).check_batch(sequences)


def place_rows(read: Callable[[int, int], Any], sequences: int, mesh: Mesh) -> Any:
    """The global batch as sharded arrays; `read(start, stop)` gives rows of it as a pytree of NumPy arrays.

    Each process reads the rows its own devices hold, each row once.
    """
    sharding = NamedSharding(mesh, ROWS)
    where = {
        device: index[0].indices(sequences)[:2]
        for device, index in sharding.addressable_devices_indices_map((sequences,)).items()
        if index is not None
    }
    rows = {span: read(*span) for span in set(where.values())}

    def assemble(*parts: np.ndarray) -> jax.Array:
        part = dict(zip(rows, parts, strict=True))
        arrays = [jax.device_put(part[span], device) for device, span in where.items()]
        return jax.make_array_from_single_device_arrays((sequences, *parts[0].shape[1:]), sharding, arrays)

    return jax.tree.map(assemble, *rows.values())

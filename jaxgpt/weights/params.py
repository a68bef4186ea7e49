"""A stored model becomes our parameters, and our parameters become a stored model."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxgpt.config import GPTConfig
from jaxgpt.model.gpt import Params
from jaxgpt.parallel import shardings
from jaxgpt.weights.names import Place, leaf_at, leaf_shapes, leaves, places, tree_of
from jaxgpt.weights.tensors import StoredModel, Tensor


class RestorableTensors(dict[str, Tensor]):
    """The tensors of a checkpoint, which can also be restored at once, straight to the devices of a mesh.

    Whoever changes a tensor makes a plain dict of the tensors, so a change is never lost by restoring.
    """

    def __init__(self, tensors: Mapping[str, Tensor], restore: Callable[[Mesh], Params]) -> None:
        """Take the tensors, and the function that restores all parameters to a mesh."""
        super().__init__(tensors)
        self.restore = restore


def read_params(model: StoredModel, mesh: Mesh) -> Params:
    """Return the parameters in their stored dtype, each shard read to the device that it belongs on.

    A checkpoint is restored to its place. Tensors of any other file are read one after another: the host
    never holds more than one leaf, and of that leaf only what this process's devices hold. Raises ConfigError
    when the mesh does not divide the model, DataError when the file is damaged.
    """
    if isinstance(model.tensors, RestorableTensors):
        return model.tensors.restore(mesh)
    shapes = leaf_shapes(model.config)
    abstract = tree_of({path: jax.ShapeDtypeStruct(shape, model.dtype) for path, shape in shapes.items()})
    placed = shardings(abstract, mesh)
    read = {
        path: _read_leaf(shapes[path], leaf_at(placed, path), parts, model.tensors)
        for path, parts in leaves(model.config).items()
    }
    return tree_of(read)


def _read_leaf(
    shape: tuple[int, ...], sharding: NamedSharding, parts: list[Place], tensors: Mapping[str, Tensor]
) -> jax.Array:
    """Return one leaf, put together from its tensors. Each tensor is read once."""
    where = {
        device: tuple(span.indices(size)[:2] for span, size in zip(index, shape, strict=True))
        for device, index in sharding.addressable_devices_indices_map(shape).items()
        if index is not None
    }
    dtype = tensors[parts[0].name].dtype
    shards = {
        spans: _aligned([stop - start for start, stop in spans], dtype) for spans in set(where.values())
    }
    for place in parts:
        array = tensors[place.name].read()
        for spans, shard in shards.items():
            index = tuple(slice(*span) for span in spans)
            if place.layer is None:
                rows = array[index]  # fewer rows than the shard has when the shard ends in padding rows
                shard[: len(rows)] = rows
                shard[len(rows) :] = 0
            else:  # no sharding rule splits the axis of the layers
                shard[place.layer] = array.reshape(shape[1:])[index[1:]]
    pieces = [jax.device_put(shards[spans], device) for device, spans in where.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, pieces)


def _aligned(shape: list[int], dtype: np.dtype) -> np.ndarray:
    """Return an array that begins at a multiple of 64 bytes.

    JAX's CPU devices take such an array without a copy.
    """
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + 64, np.uint8)  # np.empty may get large memory pages, np.zeros does not
    start = -buffer.ctypes.data % 64
    return buffer[start : start + size].view(dtype).reshape(shape)


def stored_params(config: GPTConfig, params: Params) -> StoredModel:
    """Return the parameters as a StoredModel, in GPT-2's names and layouts, without padding rows."""

    def tensor(place: Place) -> Tensor:
        leaf = leaf_at(params, place.path)
        return Tensor(place.shape, np.dtype(leaf.dtype), lambda: part_of(leaf, place))

    return StoredModel(config, {place.name: tensor(place) for place in places(config)})


def part_of(leaf: Any, place: Place) -> np.ndarray:
    """Return the tensor that has this place in a leaf."""
    array = np.asarray(leaf if place.layer is None else leaf[place.layer])
    return array[: place.shape[0]] if place.layer is None else array.reshape(place.shape)

"""Tensors go to their shards: each is read once, nothing of another shard is kept, and it all comes back."""

import dataclasses
import tracemalloc

import jax
import numpy as np
import pytest

from jaxgpt.config import GPTConfig, MeshConfig
from jaxgpt.errors import ConfigError
from jaxgpt.model.gpt import Params
from jaxgpt.parallel import mesh_of, shardings
from jaxgpt.weights.names import places
from jaxgpt.weights.params import read_params, stored_params
from jaxgpt.weights.run import one_device
from jaxgpt.weights.tensors import StoredModel, Tensor

MESHES = [
    MeshConfig(),
    MeshConfig(data=1, fsdp=8),
    MeshConfig(data=1, fsdp=2, tensor=4),
    MeshConfig(data=2, fsdp=4),
]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_parameters_come_back_on_any_mesh(config: GPTConfig, params: Params, mesh: MeshConfig) -> None:
    reads: list[str] = []

    def counted(name: str, tensor: Tensor) -> Tensor:
        def read() -> np.ndarray:
            reads.append(name)
            return tensor.read()

        return dataclasses.replace(tensor, read=read)

    stored = stored_params(config, params)
    stored = StoredModel(config, {name: counted(name, tensor) for name, tensor in stored.tensors.items()})
    placed = read_params(stored, mesh_of(mesh))
    assert sorted(reads) == sorted(stored.tensors)
    jax.tree.map(np.testing.assert_array_equal, placed, params)
    wanted = shardings(params, mesh_of(mesh))
    assert jax.tree.map(lambda leaf: leaf.sharding, placed) == wanted


def test_a_mesh_that_does_not_divide_the_model_is_refused(config: GPTConfig, params: Params) -> None:
    config = dataclasses.replace(config, vocab_multiple=1)
    with pytest.raises(ConfigError, match="mesh does not divide the model"):
        read_params(stored_params(config, params), mesh_of(MeshConfig(data=1, fsdp=1, tensor=8)))


def test_the_host_holds_one_leaf_at_a_time() -> None:
    """While it reads, NumPy holds little more than what stays at the end.

    Everything stays on CPU devices, which take NumPy's arrays as they are; other devices copy them.
    """
    config = GPTConfig(vocab=256, context=64, layers=4, heads=2, width=128)
    largest = 4 * 128 * 512 * 4  # bytes of h/mlp/c_fc/kernel

    def tensor(shape: tuple[int, ...]) -> Tensor:
        return Tensor(shape, np.dtype(np.float32), lambda: np.ones(shape, np.float32))

    stored = StoredModel(config, {place.name: tensor(place.shape) for place in places(config)})
    total = sum(int(np.prod(place.shape)) * 4 for place in places(config))
    read_params(stored, mesh_of(MeshConfig(data=1, fsdp=8)))  # compiles and imports what it needs
    tracemalloc.start()
    kept = read_params(stored, mesh_of(MeshConfig(data=1, fsdp=8)))
    stays, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert jax.tree.leaves(kept) and peak - stays < 1.5 * largest < total / 2


def test_one_device_is_one(config: GPTConfig) -> None:
    assert one_device().size == 1 and one_device().axis_names == ("data", "fsdp", "tensor")

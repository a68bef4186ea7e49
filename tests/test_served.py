"""What is served is what was trained: the same model in other arrays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import GPTConfig, MeshConfig
from jaxgpt.inference import served
from jaxgpt.inference.served import Served, laid_out, layers_for
from jaxgpt.inference.served_layers import ServedLayers, product
from jaxgpt.model.gpt import Params, define
from jaxgpt.parallel import mesh_of

ONE = mesh_of(MeshConfig(data=1), jax.devices()[:1])


@pytest.mark.parametrize(
    "changes",
    [{}, {"bias": False}, {"tied_head": False, "qkv_bias": False}, {"compute_dtype": "bfloat16"}],
    ids=str,
)
@pytest.mark.parametrize(
    "layers", [ServedLayers(), ServedLayers(turned=True), ServedLayers(turned=True, as_stored=True)], ids=str
)
def test_another_layout_is_the_same_model(
    config: GPTConfig, tokens_BT: np.ndarray, changes: dict, layers: ServedLayers
) -> None:
    config = dataclasses.replace(config, **changes)
    params = jax.jit(define(config).init)(jax.random.key(3))
    model, placed = define(config, layers=layers), laid_out(params, config, layers, ONE)
    expected = jax.jit(define(config, unrolled=True).apply)(params, tokens_BT)
    found = jax.jit(model.apply)(placed, tokens_BT)
    exact = config.compute_dtype == "float32"
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 if exact else 2e-2)
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(placed) if leaf.ndim > 1}
    assert dtypes <= {"float32", config.compute_dtype}


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize(
    "layers", [ServedLayers(), ServedLayers(turned=True), ServedLayers(int8=True)], ids=str
)
def test_parameters_that_are_consumed_make_the_same_and_their_blocks_are_gone(
    config: GPTConfig, number: int, layers: ServedLayers
) -> None:
    config = dataclasses.replace(config, layers=number)
    params = jax.jit(define(config).init)(jax.random.key(3))
    expected = jax.device_get(laid_out(params, config, layers, ONE))
    consumed = laid_out(params, config, layers, ONE, consume=True)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params["h"]))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(consumed), expected)


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 9, 40])
@pytest.mark.parametrize("outputs", [(24,), (3, 8), (7,)])
def test_a_turned_product_is_the_product(rows: int, outputs: tuple[int, ...]) -> None:
    """In pairs of outputs for a few rows; 7 outputs make no pairs."""
    x_LI = jax.random.normal(jax.random.key(0), (rows, 20))
    kernel = jax.random.normal(jax.random.key(1), (20, *outputs))
    turned = product(x_LI, jnp.moveaxis(kernel, 0, -1), ServedLayers(turned=True))
    assert turned.shape == (rows, *outputs)
    np.testing.assert_allclose(turned, product(x_LI, kernel, ServedLayers()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("turned", [False, True])
def test_int8_is_within_half_a_step_of_each_output(config: GPTConfig, params: Params, turned: bool) -> None:
    placed = laid_out(params, config, ServedLayers(turned, int8=True), ONE)
    module, stored = placed["h"][1]["mlp"]["c_fc"], np.asarray(params["h"]["mlp"]["c_fc"]["kernel"][1])
    kernel = np.asarray(module["kernel"], np.float32)
    assert module["kernel"].dtype == jnp.int8 and np.abs(kernel).max() == 127
    scale_O = np.asarray(module["kernel_scale"])
    np.testing.assert_allclose(scale_O, np.abs(stored).max(axis=0) / 127, rtol=1e-6)
    assert np.all(np.abs((kernel.T if turned else kernel) * scale_O - stored) <= 0.5001 * scale_O)
    table = placed["wte"]
    rows = np.asarray(table["embedding"], np.float32) * np.asarray(table["embedding_scale"])[:, None]
    largest = np.abs(params["wte"]["embedding"]).max(axis=1, keepdims=True)
    assert np.all(np.abs(rows - params["wte"]["embedding"]) <= 0.5001 * largest / 127)


def test_kernels_are_turned_and_read_as_stored_on_one_cpu_device_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(served, "reads_small_types", lambda device: True)
    assert layers_for(ONE, int8=False) == ServedLayers(turned=True, as_stored=True)
    assert layers_for(mesh_of(MeshConfig()), int8=True) == ServedLayers(int8=True)
    monkeypatch.setattr(served, "reads_small_types", lambda device: False)
    assert layers_for(ONE, int8=True) == ServedLayers(turned=True, int8=True)


def test_int8_on_a_mesh_lies_as_the_kernels_do(config: GPTConfig, params: Params) -> None:
    mesh = mesh_of(MeshConfig(data=2, fsdp=2, tensor=2))
    placed = laid_out(params, config, ServedLayers(int8=True), mesh)
    c_fc = placed["h"][0]["mlp"]["c_fc"]
    assert c_fc["kernel"].addressable_shards[0].data.shape == (12, 20)
    assert c_fc["kernel_scale"].addressable_shards[0].data.shape == (20,)
    assert placed["wte"]["embedding_scale"].addressable_shards[0].data.shape == (32,)


def test_a_served_model_is_one_argument_whose_static_part_decides_the_program(
    config: GPTConfig, params: Params, tokens_BT: np.ndarray
) -> None:
    """Other parameters run the same program; another config, layout or mesh is another one."""
    logits = jax.jit(lambda served, tokens_BT: served.model.apply(served.params, tokens_BT))
    mine = Served.of(config, params)
    expected = jax.jit(define(config).apply)(params, tokens_BT)
    np.testing.assert_allclose(logits(mine, tokens_BT), expected, rtol=0, atol=1e-5)
    others = jax.tree.map(lambda leaf: 2 * leaf, params)
    assert np.abs(logits(Served.of(config, others), tokens_BT) - expected).max() > 0.1
    assert logits._cache_size() == 1
    longer = dataclasses.replace(config, layer_norm_epsilon=1e-6)
    for other in (Served.of(longer, params), Served.of(config, params, int8=True)):
        logits(other, tokens_BT)
    assert logits._cache_size() == 3
    mesh = mesh_of(MeshConfig(data=2, tensor=4))
    on_mesh = Served.of(config, params, mesh=mesh)
    np.testing.assert_allclose(logits(on_mesh, tokens_BT), expected, rtol=0, atol=1e-5)
    assert (on_mesh.mesh, on_mesh.platform, on_mesh.layers) == (mesh, "cpu", ServedLayers(turned=False))

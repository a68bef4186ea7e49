import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from placements import OnTpu

from jaxgpt.config import GPTConfig, MeshConfig, OptimConfig
from jaxgpt.errors import ConfigError
from jaxgpt.model.gpt import define
from jaxgpt.parallel import Placement, check_batch, mesh_of, partition_spec, path_of, place_rows, shardings
from jaxgpt.training.optim import learning_rate, optimizer_of
from jaxgpt.training.state import abstract_state


@pytest.mark.parametrize("settings", [{}, {"position": "rotary"}, {"tied_head": False}, {"bias": False}])
def test_every_leaf_of_the_train_state_has_exactly_one_rule(settings: dict) -> None:
    config = GPTConfig(vocab=64, context=8, layers=2, heads=2, width=16, **settings)
    optim = OptimConfig(ema_decay=0.9, clip_after=3)
    mesh = mesh_of(MeshConfig(data=2, fsdp=2, tensor=2))
    state = abstract_state(define(config), optimizer_of(optim, learning_rate(optim, 10)), mesh)
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    assert len(leaves) >= 4 * 9 + 3  # parameters, two moments, the average; step, key, counters
    for path, leaf in leaves:
        assert leaf.sharding.spec == partition_spec(path_of(path))


def test_an_unknown_leaf_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 sharding rules"):
        partition_spec("h/attn/c_attn/extra")


def test_moments_lie_where_their_parameters_lie() -> None:
    assert partition_spec("opt_state/1/0/mu/h/mlp/c_fc/kernel") == partition_spec("h/mlp/c_fc/kernel")
    assert partition_spec("h/mlp/c_fc/kernel") == P(None, "fsdp", "tensor")


def test_the_mesh_fills_one_axis_and_refuses_what_does_not_multiply() -> None:
    assert dict(mesh_of(MeshConfig(fsdp=4)).shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    with pytest.raises(ConfigError, match="8 devices"):
        mesh_of(MeshConfig(data=3))
    with pytest.raises(ConfigError, match="8 devices"):
        mesh_of(MeshConfig(data=-1, tensor=3))
    with pytest.raises(ConfigError, match="one axis"):
        MeshConfig(data=-1, fsdp=-1)


def test_leaves_that_the_mesh_does_not_divide_are_all_named() -> None:
    config = GPTConfig(vocab=64, context=8, layers=2, heads=3, width=9)
    shapes = jax.eval_shape(define(config).init, jax.random.key(0))
    with pytest.raises(ConfigError) as caught:
        shardings(shapes, mesh_of(MeshConfig(data=4, fsdp=2)))
    assert "wpe/embedding (8, 9) along fsdp=2" in str(caught.value)
    assert "h/attn/c_proj/kernel (2, 9, 9) along fsdp=2" in str(caught.value)
    with pytest.raises(ConfigError, match="does not divide over"):
        check_batch(6, mesh_of(MeshConfig(data=4, fsdp=2)))


def test_rows_are_read_once_and_land_in_order() -> None:
    mesh, spans = mesh_of(MeshConfig(data=2, fsdp=2, tensor=2)), []

    def read(start: int, stop: int) -> dict[str, np.ndarray]:
        spans.append((start, stop))
        return {
            "x": np.arange(start, stop, dtype=np.int32)[:, None] * np.ones((1, 3), np.int32),
            "none": None,
        }

    placed = place_rows(read, 12, mesh)
    assert sorted(spans) == [(0, 3), (3, 6), (6, 9), (9, 12)]
    np.testing.assert_array_equal(placed["x"][:, 2], np.arange(12))
    assert placed["none"] is None and placed["x"].sharding.spec == P(("data", "fsdp"))


@pytest.mark.parametrize(("sizes", "by_hand"), [((2, 2, 2), True), ((1, 8, 1), True), ((4, 1, 2), False)])
def test_a_gathered_kernel_is_whole_and_its_gradient_lies_as_it_is_stored(
    sizes: tuple[int, int, int], by_hand: bool
) -> None:
    """By hand where kernels are split over fsdp on TPUs: what fsdp splits is whole while it is used."""
    mesh = mesh_of(MeshConfig(data=sizes[0], fsdp=sizes[1], tensor=sizes[2]))
    placement, path = OnTpu(mesh), "h/mlp/c_fc/kernel"
    stored, used = (NamedSharding(mesh, P(first, "tensor")) for first in ("fsdp", None))
    kernel_DF = jax.device_put(jnp.arange(128.0).reshape(8, 16), stored)

    @jax.jit
    def both(kernel_DF: jax.Array) -> tuple[jax.Array, jax.Array]:
        whole_DF, back = jax.vjp(lambda x: placement.gathered(path, x), kernel_DF)
        return whole_DF, back(2 * whole_DF)[0]

    whole_DF, grad_DF = both(kernel_DF)
    assert placement.gathers is by_hand and not Placement(mesh).gathers
    assert whole_DF.sharding.is_equivalent_to(used, 2)
    assert grad_DF.sharding.is_equivalent_to(stored, 2)
    np.testing.assert_array_equal(whole_DF, kernel_DF)
    np.testing.assert_array_equal(grad_DF, 2 * kernel_DF)

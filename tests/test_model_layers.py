"""The factory of layers: `define` builds with whatever it is given."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxgpt.config import GPTConfig
from jaxgpt.model.gpt import Params, define
from jaxgpt.model.initializers import INIT_STD
from jaxgpt.model.layers import AS_TRAINED, Linear, TokenTable, TrainedLayers

LINEAR = (("attn", "c_attn"), ("attn", "c_proj"), ("mlp", "c_fc"), ("mlp", "c_proj"))


class Adapted(nnx.Module):
    """A linear layer and the product of two small matrices beside it."""

    def __init__(
        self, config: GPTConfig, inputs: int, outputs: tuple[int, ...], rngs: nnx.Rngs, std: float, rank: int
    ) -> None:
        self.base = Linear(config, inputs, outputs, rngs, std=std)
        self.down = nnx.Param(jax.random.normal(rngs.params(), (inputs, rank)))
        self.up = nnx.Param(jnp.zeros((rank, *outputs)))

    def __call__(self, x: Array, /, *, key: Array | None = None) -> Array:
        return self.base(x) + jnp.tensordot(x @ self.down[...], self.up[...], 1)


@dataclass(frozen=True)
class AdaptedLayers:
    rank: int

    def linear(
        self,
        config: GPTConfig,
        name: str,
        inputs: int,
        outputs: tuple[int, ...],
        rngs: nnx.Rngs,
        *,
        std: float = INIT_STD,
        bias: bool = True,
    ) -> Adapted:
        return Adapted(config, inputs, outputs, rngs, std, self.rank)

    def table(self, config: GPTConfig, rngs: nnx.Rngs, *, head: bool = False) -> TokenTable:
        return TokenTable(config, rngs, head=head)


def test_every_linear_layer_comes_from_the_factory_and_has_its_parameters(
    config: GPTConfig, params: Params, tokens_BT: np.ndarray
) -> None:
    model = define(config, layers=AdaptedLayers(rank=2))
    adapted = jax.jit(model.init)(jax.random.key(0))
    shapes = jax.tree.map(jnp.shape, adapted["h"])
    assert shapes["attn"]["c_attn"]["up"] == (3, 2, 3, 24)
    assert shapes["mlp"]["c_proj"]["down"] == (3, 40, 2)
    for room, name in LINEAR:
        adapted["h"][room][name]["base"] = params["h"][room][name]
    outside = {name: leaf for name, leaf in params.items() if name != "h"}
    norms = {name: params["h"][name] for name in ("ln_1", "ln_2")}
    adapted = adapted | outside | {"h": adapted["h"] | norms}
    expected = jax.jit(define(config).apply)(params, tokens_BT)
    np.testing.assert_allclose(jax.jit(model.apply)(adapted, tokens_BT), expected, rtol=0, atol=1e-5)
    for room, name in LINEAR:
        layer = adapted["h"][room][name]
        up = jax.random.normal(
            jax.random.key(1), layer["up"].shape
        )  # LayerNorm hides what is the same for all
        moved = {room: adapted["h"][room] | {name: layer | {"up": up}}}
        logits = jax.jit(model.apply)(adapted | {"h": adapted["h"] | moved}, tokens_BT)
        assert np.abs(logits - expected).max() > 0.01, f"{room}/{name} is built without the factory"


def test_factories_are_static_arguments_equal_by_what_they_make(config: GPTConfig) -> None:
    assert TrainedLayers() == AS_TRAINED and hash(TrainedLayers()) == hash(AS_TRAINED)
    assert AdaptedLayers(2) == AdaptedLayers(2) != AdaptedLayers(3)


def test_new_rows_of_the_table_that_pad_the_vocabulary_are_zero(config: GPTConfig) -> None:
    table = TokenTable(config, nnx.Rngs(0))
    rows_VD = np.asarray(table.rows(np.arange(64)))
    assert rows_VD.shape == (64, 24) and not rows_VD[61:].any() and rows_VD[:61].all()
    np.testing.assert_allclose(rows_VD[:61].std(), INIT_STD, rtol=0.1)
    x_LD = jax.random.normal(jax.random.key(0), (5, 24))
    np.testing.assert_allclose(table.scores(x_LD), np.asarray(x_LD) @ rows_VD.T, rtol=0, atol=1e-6)

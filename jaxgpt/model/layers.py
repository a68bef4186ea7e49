"""The linear layers and embedding tables that a model is built from, as they are trained.

`define` is given a factory (`Layers`) and asks it for every linear layer and every table of token embeddings.
The factory here, AS_TRAINED, makes what a model is trained with and what is stored: kernels (in, out) in
float32. Another factory may store or compute the same layers in another way (`inference.served_layers`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxgpt.config import GPTConfig

INIT_STD = 0.02  # GPT-2's initializer_range


class Table(Protocol):
    """A table with one embedding for each token."""

    def rows(self, tokens: Array) -> Array:
        """The embeddings of token ids [...], float32 [..., D]."""

    def scores(self, x_LD: Array) -> Array:
        """The product of each row of x with every embedding, float32 [L, V]."""


class Layers(Protocol):
    """A factory of layers. It must be hashable: factories are static arguments of compiled programs."""

    def linear(
        self,
        config: GPTConfig,
        inputs: int,
        outputs: tuple[int, ...],
        rngs: nnx.Rngs,
        *,
        std: float = INIT_STD,
    ) -> Callable[[Array], Array]:
        """An NNX module that maps the last axis: [..., inputs] to [..., *outputs].

        `std` is the standard deviation of a new kernel.
        """

    def table(self, config: GPTConfig, rngs: nnx.Rngs) -> Table:
        """An NNX module with a row for each token id of the padded vocabulary."""


class Linear(nnx.LinearGeneral):
    """A linear layer over the last axis. It computes in the compute dtype; its parameters are float32.

    All leading axes are flattened into one, because XLA on CPU is slow on the gradient of a product whose
    left operand has two of them.
    """

    def __init__(
        self,
        config: GPTConfig,
        inputs: int,
        outputs: tuple[int, ...],
        rngs: nnx.Rngs,
        *,
        std: float = INIT_STD,
    ) -> None:
        super().__init__(
            inputs,
            outputs,
            use_bias=config.bias,
            dtype=config.compute_dtype,
            param_dtype=jnp.float32,
            kernel_init=normal(std),
            rngs=rngs,
        )

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """[..., inputs] to [..., *outputs]."""
        y = super().__call__(inputs.reshape(-1, inputs.shape[-1]), out_sharding)
        return y.reshape(*inputs.shape[:-1], *y.shape[1:])


class TokenTable(nnx.Embed):
    """The token embeddings, float32. The rows that pad the vocabulary are zero."""

    def __init__(self, config: GPTConfig, rngs: nnx.Rngs) -> None:
        super().__init__(
            config.padded_vocab, config.width, embedding_init=_padded_normal(config.vocab), rngs=rngs
        )

    def rows(self, tokens: Array) -> Array:
        """The float32 embeddings of tokens, [..., D]."""
        return self.embedding[tokens].astype(jnp.float32)

    def scores(self, x_LD: Array) -> Array:
        """The float32 product of each row of x with every row of the table, [L, V]."""
        table_VD = self.embedding[...].astype(x_LD.dtype)
        return jnp.einsum("ld,vd->lv", x_LD, table_VD, preferred_element_type=jnp.float32)


@dataclass(frozen=True)
class TrainedLayers:
    """The factory of the layers that a model is trained with."""

    def linear(
        self,
        config: GPTConfig,
        inputs: int,
        outputs: tuple[int, ...],
        rngs: nnx.Rngs,
        *,
        std: float = INIT_STD,
    ) -> Linear:
        """A linear layer from `inputs` to `outputs`."""
        return Linear(config, inputs, outputs, rngs, std=std)

    def table(self, config: GPTConfig, rngs: nnx.Rngs) -> TokenTable:
        """A table of token embeddings."""
        return TokenTable(config, rngs)


AS_TRAINED = TrainedLayers()


def normal(std: float) -> nnx.Initializer:
    """Initialiser: normal with this standard deviation."""
    return nnx.initializers.normal(stddev=std)


def _padded_normal(vocab: int) -> nnx.Initializer:
    """Initialiser: normal rows for the vocabulary, zero rows for the padding behind it."""

    def initialise(
        key: Array,
        shape: Any,
        dtype: Any = jnp.float32,
        out_sharding: Any = None,  # noqa: ARG001  NNX passes it.
    ) -> Array:
        rows_VD = INIT_STD * jax.random.normal(key, shape, dtype)
        return jnp.where(jnp.arange(shape[0])[:, None] < vocab, rows_VD, 0)

    return initialise

"""The linear layers and embedding tables that a model is built from, as they are trained.

`define` is given a factory (`Layers`) and asks it for every linear layer and every table of token embeddings.
The factory here, AS_TRAINED, makes what a model is trained with and what is stored: kernels (in, out) in
float32. Another factory may store or compute the same layers in another way (`inference.served_layers`).
"""

from dataclasses import dataclass
from typing import Any, Protocol

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxgpt.config import GPTConfig
from jaxgpt.model.initializers import INIT_STD, embedding_init, head_init, linear_init


class Table(Protocol):
    """A table with one embedding for each token."""

    def rows(self, tokens: Array) -> Array:
        """The embeddings of token ids [...], float32 [..., D]."""

    def scores(self, x_LD: Array) -> Array:
        """The product of each row of x with every embedding, float32 [L, V]."""


class Layer(Protocol):
    """A linear layer."""

    def __call__(self, x: Array, /, *, key: Array | None = None) -> Array:
        """[..., inputs] to [..., *outputs]. `key` turns dropout on, in layers that have any."""


class Layers(Protocol):
    """A factory of layers. It must be hashable: factories are static arguments of compiled programs."""

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
    ) -> Layer:
        """An NNX module that maps the last axis: [..., inputs] to [..., *outputs].

        `name` is the layer's path in the parameters, such as `h/attn/c_attn`. `std` is the standard deviation
        of a new kernel, where GPT-2's way of drawing is asked for. `bias` says whether the layer has biases
        in a model with biases.
        """

    def table(self, config: GPTConfig, rngs: nnx.Rngs, *, head: bool = False) -> Table:
        """An NNX module with a row for each token id of the padded vocabulary.

        `head` says that it is an output head.
        """


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
        bias: bool = True,
    ) -> None:
        kernel_init, bias_init = linear_init(config, inputs, std)
        super().__init__(
            inputs,
            outputs,
            use_bias=config.bias and bias,
            dtype=config.compute_dtype,
            param_dtype=jnp.float32,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )

    def __call__(
        self,
        inputs: Array,
        out_sharding: Any = None,
        *,
        key: Array | None = None,  # noqa: ARG002  It has no dropout.
    ) -> Array:
        """[..., inputs] to [..., *outputs]."""
        y = super().__call__(inputs.reshape(-1, inputs.shape[-1]), out_sharding)
        return y.reshape(*inputs.shape[:-1], *y.shape[1:])


class TokenTable(nnx.Embed):
    """The token embeddings, float32. The rows that pad the vocabulary are zero."""

    def __init__(self, config: GPTConfig, rngs: nnx.Rngs, *, head: bool = False) -> None:
        drawn = _padded(head_init(config) if head else embedding_init(config), config.vocab)
        super().__init__(config.padded_vocab, config.width, embedding_init=drawn, rngs=rngs)

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
        name: str,  # noqa: ARG002  All are made alike.
        inputs: int,
        outputs: tuple[int, ...],
        rngs: nnx.Rngs,
        *,
        std: float = INIT_STD,
        bias: bool = True,
    ) -> Linear:
        """A linear layer from `inputs` to `outputs`."""
        return Linear(config, inputs, outputs, rngs, std=std, bias=bias)

    def table(self, config: GPTConfig, rngs: nnx.Rngs, *, head: bool = False) -> TokenTable:
        """A table of token embeddings, or an output head."""
        return TokenTable(config, rngs, head=head)


AS_TRAINED = TrainedLayers()


def _padded(drawn: nnx.Initializer, vocab: int) -> nnx.Initializer:
    """Initialiser: drawn rows for the vocabulary, zero rows for the padding behind it."""

    def initialise(
        key: Array,
        shape: Any,
        dtype: Any = jnp.float32,
        out_sharding: Any = None,  # noqa: ARG001  NNX passes it.
    ) -> Array:
        rows_VD = drawn(key, shape, dtype)
        return jnp.where(jnp.arange(shape[0])[:, None] < vocab, rows_VD, 0)

    return initialise

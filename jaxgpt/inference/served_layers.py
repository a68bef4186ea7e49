"""The linear layers and embedding tables that a model is served with: turned kernels, int8 weights.

A turned kernel is (out, in) instead of (in, out). A CPU's products with few rows wait for memory, and read
such a kernel from its beginning to its end. An int8 kernel or table has a float32 scale for each output
(weight-only quantisation).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxgpt.config import GPTConfig
from jaxgpt.inference.products import stored_product, stored_rows, turned_product
from jaxgpt.model.initializers import INIT_STD


@dataclass(frozen=True)
class ServedLayers:
    """The factory of served layers. They are never initialised: `inference.served` fills them."""

    turned: bool = False
    """Kernels are (out, in)."""
    int8: bool = False
    """Kernels and tables are int8; `kernel_scale` and `embedding_scale` hold what 1 means for each output."""
    as_stored: bool = False
    """Products read turned kernels of 8 and 16 bits as they are stored, and have float32 results."""

    def linear(
        self,
        config: GPTConfig,
        name: str,  # noqa: ARG002  All are made alike.
        inputs: int,
        outputs: tuple[int, ...],
        rngs: nnx.Rngs,  # noqa: ARG002  Nothing is drawn: the numbers come from a trained model.
        *,
        std: float = INIT_STD,  # noqa: ARG002
        bias: bool = True,
    ) -> "ServedLinear":
        """A linear layer from `inputs` to `outputs`."""
        return ServedLinear(config, inputs, outputs, self, bias=config.bias and bias)

    def table(
        self,
        config: GPTConfig,
        rngs: nnx.Rngs,  # noqa: ARG002
        *,
        head: bool = False,  # noqa: ARG002
    ) -> "ServedTable":
        """A table of token embeddings."""
        return ServedTable(config, self)


class ServedLinear(nnx.Module):
    """A linear layer over the last axis, in the compute dtype."""

    def __init__(
        self, config: GPTConfig, inputs: int, outputs: tuple[int, ...], layers: ServedLayers, *, bias: bool
    ) -> None:
        self.dtype, self.layers = config.compute_dtype, layers
        shape = (*outputs, inputs) if layers.turned else (inputs, *outputs)
        self.kernel = nnx.Param(jnp.zeros(shape, jnp.int8 if layers.int8 else config.compute_dtype))
        self.kernel_scale = nnx.Param(jnp.zeros(outputs)) if layers.int8 else None
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: Array, /, *, key: Array | None = None) -> Array:  # noqa: ARG002  No dropout here.
        """[..., inputs] to [..., *outputs]."""
        x_LI = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        y = product(x_LI, self.kernel[...], self.layers)
        if self.kernel_scale is not None:
            y = y * self.kernel_scale[...].astype(y.dtype)[None]
        if self.bias is not None:
            y = y + self.bias[...].astype(y.dtype)[None]
        return y.astype(self.dtype).reshape(*x.shape[:-1], *y.shape[1:])


class ServedTable(nnx.Module):
    """The token embeddings, stored in the compute dtype or in int8.

    A table is (out, in) as it is, like a turned kernel.
    """

    def __init__(self, config: GPTConfig, layers: ServedLayers) -> None:
        self.layers = layers
        shape = (config.padded_vocab, config.width)
        self.embedding = nnx.Param(jnp.zeros(shape, jnp.int8 if layers.int8 else config.compute_dtype))
        self.embedding_scale = nnx.Param(jnp.zeros(config.padded_vocab)) if layers.int8 else None

    def rows(self, tokens: Array) -> Array:
        """The float32 embeddings of tokens, [..., D]."""
        rows = stored_rows(self.embedding[...], tokens)
        return rows if self.embedding_scale is None else rows * self.embedding_scale[tokens][..., None]

    def scores(self, x_LD: Array) -> Array:
        """The float32 product of each row of x with every row of the table, [L, V]."""
        if self.layers.turned and (self.layers.as_stored or x_LD.dtype == jnp.float32):
            scores_LV = product(x_LD, self.embedding[...], self.layers)
        else:
            table_VD = self.embedding[...].astype(x_LD.dtype)
            scores_LV = jnp.einsum("ld,vd->lv", x_LD, table_VD, preferred_element_type=jnp.float32)
        return scores_LV if self.embedding_scale is None else scores_LV * self.embedding_scale[...][None]


def product(x_LI: Array, kernel: Array, layers: ServedLayers) -> Array:
    """[L, I] times a kernel (I, ...) or, turned, (..., I): [L, ...].

    The result of a kernel that is read as it is stored is float32. Others are converted to the type of x.
    """
    if not layers.turned:
        return jax.lax.dot_general(x_LI, kernel.astype(x_LI.dtype), (((1,), (0,)), ((), ())))
    outputs, kernel_OI = kernel.shape[:-1], kernel.reshape(-1, kernel.shape[-1])
    if layers.as_stored and kernel.dtype != jnp.float32:
        y_OL = stored_product(kernel_OI, x_LI)
    else:
        y_OL = turned_product(kernel_OI.astype(x_LI.dtype), x_LI)
    return y_OL.T.reshape(len(x_LI), *outputs)

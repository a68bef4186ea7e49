"""Linear layers and embedding tables: as they are trained, and as they are laid out to be served.

Trained, a kernel is (in, out) and float32. Served (`Kernels`), it may be turned to (out, in), which the CPU's products
with few rows read in order, and it may be int8 with a float32 scale for each output (weight-only quantisation).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxgpt.config import GPTConfig

INIT_STD = 0.02  # GPT-2's initializer_range
MOST_PAIRED = 8  # rows of a product with a turned kernel that reads its outputs in pairs


class Kernels(NamedTuple):
    """How the matrices of a model lie in memory; the default is how they are trained and stored."""

    turned: bool = False
    """Kernels are (out, in)."""
    int8: bool = False
    """Kernels and embedding tables are int8; `kernel_scale` and `embedding_scale` say what 1 means, a row each."""


AS_TRAINED = Kernels()


def normal(std: float) -> nnx.Initializer:
    """Initialiser: normal with this standard deviation."""
    return nnx.initializers.normal(stddev=std)


def linear(
    config: GPTConfig,
    inputs: int,
    outputs: tuple[int, ...],
    rngs: nnx.Rngs,
    kernels: Kernels,
    *,
    std: float = INIT_STD,
) -> nnx.Module:
    """A linear layer over the last axis: [..., inputs] to [..., *outputs]."""
    if kernels == AS_TRAINED:
        return Linear(config, inputs, outputs, rngs, std=std)
    return ServedLinear(config, inputs, outputs, kernels)


class Linear(nnx.LinearGeneral):
    """A linear layer over the last axis, in the compute dtype with float32 parameters.

    All leading axes are flattened into one: XLA on CPU is slow on the gradient of a product whose left operand has two
    (unrolled blocks, gradient, before and after: nano 254 and 192 ms, GPT-2 width at 2 x 1024 tokens 1.68 and 1.50 s).
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
        y = super().__call__(inputs.reshape(-1, inputs.shape[-1]), out_sharding)
        return y.reshape(*inputs.shape[:-1], *y.shape[1:])


class ServedLinear(nnx.Module):
    """The same layer with its kernel laid out for serving; never initialised, only filled (`inference.served`)."""

    def __init__(self, config: GPTConfig, inputs: int, outputs: tuple[int, ...], kernels: Kernels) -> None:
        self.dtype, self.turned = config.compute_dtype, kernels.turned
        shape = (*outputs, inputs) if kernels.turned else (inputs, *outputs)
        self.kernel = nnx.Param(jnp.zeros(shape, jnp.int8 if kernels.int8 else config.compute_dtype))
        self.kernel_scale = nnx.Param(jnp.zeros(outputs)) if kernels.int8 else None
        self.bias = nnx.Param(jnp.zeros(outputs)) if config.bias else None

    def __call__(self, x: Array) -> Array:
        x_LI = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        y = product(x_LI, self.kernel[...].astype(self.dtype), turned=self.turned)
        if self.kernel_scale is not None:
            y = y * self.kernel_scale[...].astype(self.dtype)[None]
        if self.bias is not None:
            y = y + self.bias[...].astype(self.dtype)[None]
        return y.reshape(*x.shape[:-1], *y.shape[1:])


def product(x_LI: Array, kernel: Array, *, turned: bool) -> Array:
    """[L, I] times a kernel (I, ...) or, turned, (..., I): [L, ...]."""
    if not turned:
        return jax.lax.dot_general(x_LI, kernel, (((1,), (0,)), ((), ())))
    outputs, kernel_OI = kernel.shape[:-1], kernel.reshape(-1, kernel.shape[-1])
    y_OL = _turned_product(kernel_OI, x_LI)
    return y_OL.T.reshape(len(x_LI), *outputs)


def _turned_product(kernel_OI: Array, x_LI: Array) -> Array:
    """[O, I] times [L, I] transposed: [O, L].

    With a few rows, two outputs are read as one of twice the length, and each row is multiplied once with zeros behind
    it and once with zeros before it. The zeros' arithmetic is free, as such a product waits for memory, and longer
    runs are read faster (all matrices of 124M: two rows 34 ms, so 21; eight 37 and 31; with four outputs as one 52).
    """
    rows, (outputs, inputs) = len(x_LI), kernel_OI.shape
    if not 1 < rows <= MOST_PAIRED or outputs % 2:
        return jax.lax.dot_general(kernel_OI, x_LI, (((1,), (1,)), ((), ())))
    none_LI = jnp.zeros_like(x_LI)
    twice = jnp.block([[x_LI, none_LI], [none_LI, x_LI]])
    y = jax.lax.dot_general(kernel_OI.reshape(-1, 2 * inputs), twice, (((1,), (1,)), ((), ())))
    return y.reshape(outputs, rows)


class ServedEmbed(nnx.Module):
    """A table of embeddings, a row a token, in int8."""

    def __init__(self, rows: int, width: int) -> None:
        self.embedding = nnx.Param(jnp.zeros((rows, width), jnp.int8))
        self.embedding_scale = nnx.Param(jnp.zeros(rows))


def rows_of(table: Any, tokens: Array) -> Array:
    """The float32 embeddings of tokens."""
    rows = table.embedding[tokens].astype(jnp.float32)
    return rows * table.embedding_scale[tokens][..., None] if isinstance(table, ServedEmbed) else rows


def scores_of(table: Any, x_LD: Array, *, turned: bool) -> Array:
    """The float32 product of each row of x with every row of the table, which lies as a turned kernel does: [L, V]."""
    table_VD = table.embedding[...].astype(x_LD.dtype)
    if turned and x_LD.dtype == jnp.float32:
        scores_LV = _turned_product(table_VD, x_LD).T
    else:
        scores_LV = jnp.einsum("ld,vd->lv", x_LD, table_VD, preferred_element_type=jnp.float32)
    return scores_LV * table.embedding_scale[...][None] if isinstance(table, ServedEmbed) else scores_LV

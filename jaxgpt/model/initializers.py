"""How new weights are drawn: as GPT-2's paper has it, or as PyTorch's layers begin by default.

In GPT-2 every matrix is normal with a standard deviation of 0.02, less where it adds to the residual stream,
and biases are 0. PyTorch's `nn.Embedding` is normal with a standard deviation of 1; `nn.Linear` draws weights
and biases evenly between -1 / sqrt(inputs) and 1 / sqrt(inputs). Sources: GPT-2, section 2.3; PyTorch,
torch/nn/modules/sparse.py and linear.py (kaiming_uniform_ with a = sqrt(5), He et al. 2015).
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from jaxgpt.config import GPTConfig

INIT_STD = 0.02  # GPT-2's initializer_range


def linear_init(
    config: GPTConfig, inputs: int, std: float = INIT_STD
) -> tuple[nnx.Initializer, nnx.Initializer]:
    """How the kernel and the biases of a linear layer are drawn. `std` is that of GPT-2's kernel."""
    if config.init == "torch":
        return _even(inputs), _even(inputs)
    return nnx.initializers.normal(std), nnx.initializers.zeros_init()


def embedding_init(config: GPTConfig) -> nnx.Initializer:
    """How the embeddings of tokens and positions are drawn."""
    return nnx.initializers.normal(1.0 if config.init == "torch" else INIT_STD)


def head_init(config: GPTConfig) -> nnx.Initializer:
    """How an output head of its own is drawn, a row for each token."""
    return linear_init(config, config.width)[0]


def _even(inputs: int) -> nnx.Initializer:
    """Initialiser: evenly distributed between -1 / sqrt(inputs) and 1 / sqrt(inputs)."""
    bound = 1 / math.sqrt(inputs)

    def initialise(
        key: Array,
        shape: tuple[int, ...],
        dtype: DTypeLike = jnp.float32,
        out_sharding: object = None,  # noqa: ARG001  NNX passes it.
    ) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return initialise

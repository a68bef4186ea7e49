"""A model made by hand: the probability of a token depends on the token before it alone, by a given table."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.config import GPTConfig
from jaxgpt.model.gpt import Params, define


def bigram_config(vocab: int, context: int) -> GPTConfig:
    return GPTConfig(
        vocab=vocab, context=context, layers=1, heads=1, width=vocab, tied_head=False, vocab_multiple=1
    )


def bigram_params(config: GPTConfig, table_VV: np.ndarray) -> Params:
    """Parameters by which token j follows token i with probability table[i, j].

    The blocks add nothing, there are no positions, and a token's embedding is its unit vector. The last
    LayerNorm turns that into a multiple of it plus a constant, which its own scale and bias take away again.
    """
    shapes = jax.eval_shape(define(config).init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    size = config.vocab
    mean, variance = 1 / size, (1 - 1 / size) / size
    params["wte"]["embedding"] = jnp.eye(size)
    params["ln_f"]["scale"] = jnp.full(size, math.sqrt(variance + config.layer_norm_epsilon))
    params["ln_f"]["bias"] = jnp.full(size, mean)
    params["lm_head"]["embedding"] = jnp.asarray(np.log(table_VV).T, jnp.float32)
    return params

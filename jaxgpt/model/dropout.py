"""Dropout."""

import jax
import jax.numpy as jnp
from jax import Array


def drop(x: Array, rate: float, key: Array | None) -> Array:
    """Inverted dropout: zero with probability `rate`, the rest scaled by 1/(1-rate). `key=None` changes
    nothing.
    """
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)

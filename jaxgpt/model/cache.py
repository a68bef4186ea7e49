"""The key/value cache: what attention has already computed, as a frozen pytree passed in and returned."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from jaxgpt.config import GPTConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of all layers, and how much of each row is filled."""

    keys_NBSHK: Array
    values_NBSHK: Array
    length_B: Array


def empty_cache(config: GPTConfig, batch: int, length: int) -> KVCache:
    """A cache of zeros for `batch` rows of up to `length` tokens, in the compute dtype."""
    shape = (config.layers, batch, length, config.heads, config.head_size)
    keys, values = (jnp.zeros(shape, config.compute_dtype) for _ in range(2))
    return KVCache(keys, values, jnp.zeros(batch, jnp.int32))


def write_rows(cache_BSHK: Array, new_BTHK: Array, start_B: Array) -> Array:
    """The cache with row b's new entries at start_B[b] and after."""

    def write(row_SHK: Array, new_THK: Array, start: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(row_SHK, new_THK.astype(row_SHK.dtype), start, axis=0)

    return jax.vmap(write)(cache_BSHK, new_BTHK, start_B)

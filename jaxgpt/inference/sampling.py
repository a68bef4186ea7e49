"""Choosing the next token from logits."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from jaxgpt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn. The order of the filters is temperature, top-k, top-p."""

    temperature: float = 1.0
    """Divides the logits: below 1 bolder, above 1 wilder; 0 always takes the most probable token."""
    top_k: int = 0
    """Only the k most probable tokens stay; 0 keeps all."""
    top_p: float = 1.0
    """Only the smallest set of tokens with this much probability together stays; 1 keeps all."""

    def __post_init__(self) -> None:
        for holds, name, rule in (
            (0 <= self.temperature < math.inf, "temperature", "finite, 0 or more"),
            (self.top_k >= 0, "top_k", "0 or more"),
            (0 < self.top_p <= 1, "top_p", "greater than 0 and at most 1"),
        ):
            if not holds:
                raise ConfigError(f"{name} = {getattr(self, name)}", why=f"it must be {rule}", fix="change it")


def sample(logits_BV: Array, sampling: Sampling, key: Array) -> Array:
    """Token ids [B] drawn from float32 logits [B, V]."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1)
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k:
        logits_BV = keep_top_k(logits_BV, sampling.top_k)
    if sampling.top_p < 1:
        logits_BV = keep_top_p(logits_BV, sampling.top_p)
    return jax.random.categorical(key, logits_BV)


def keep_top_k(logits_BV: Array, k: int) -> Array:
    """-inf for all but the k largest logits of each row (ties with the k-th stay). Fan et al. 2018, section 5.3."""
    smallest_B1 = jax.lax.top_k(logits_BV, min(k, logits_BV.shape[-1]))[0][:, -1:]
    return jnp.where(logits_BV >= smallest_B1, logits_BV, -jnp.inf)


def keep_top_p(logits_BV: Array, p: float) -> Array:
    """-inf for all but the fewest most probable tokens that reach p together. Holtzman et al. 2020, equation 3."""
    order_BV = jnp.argsort(-logits_BV, axis=-1)
    sorted_BV = jnp.take_along_axis(jax.nn.softmax(logits_BV, axis=-1), order_BV, axis=-1)
    before_BV = jnp.cumsum(sorted_BV, axis=-1) - sorted_BV
    kept_BV = jnp.put_along_axis(jnp.zeros_like(before_BV, bool), order_BV, before_BV < p, axis=-1, inplace=False)
    return jnp.where(kept_BV, logits_BV, -jnp.inf)

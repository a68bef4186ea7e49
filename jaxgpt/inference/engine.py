"""Generation: read the prompt into a key/value cache once, then one token at a time.

Past the context window the model slides: when the window is full, the older half is dropped and the rest is read
again from position 0. A prompt longer than the window is cut to its last tokens the same way.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgpt.config import GPTConfig
from jaxgpt.inference.sampling import Sampling, sample
from jaxgpt.model.cache import KVCache, empty_cache
from jaxgpt.model.gpt import Params, define


@functools.partial(jax.jit, static_argnames=("config", "sampling"))
def read_prompt(
    params: Params, tokens_BT: Array, length_B: Array, key: Array, *, config: GPTConfig, sampling: Sampling
) -> tuple[Array, KVCache]:
    """The token after each prompt [B] and the cache. Prompts are padded on the right; `length_B` is their own."""
    model = define(config)
    x_BTD, cache = model.hidden(params, tokens_BT, cache=empty_cache(config, len(tokens_BT), config.context))
    assert cache is not None
    last_BD = jnp.take_along_axis(x_BTD, (length_B - 1)[:, None, None], axis=1)[:, 0]
    logits_BV = model.unembed(params, last_BD)
    return sample(logits_BV, sampling, key), dataclasses.replace(cache, length_B=length_B)


@functools.partial(jax.jit, static_argnames=("config", "sampling"), donate_argnames="cache")
def next_token(
    params: Params, token_B: Array, cache: KVCache, key: Array, *, config: GPTConfig, sampling: Sampling
) -> tuple[Array, KVCache]:
    """The token after `token_B` [B], which is read into the cache."""
    model = define(config)
    x_BTD, longer = model.hidden(params, token_B[:, None], cache=cache)
    assert longer is not None
    return sample(model.unembed(params, x_BTD[:, 0]), sampling, key), longer


def generate_ids(
    params: Params, config: GPTConfig, prompt: Sequence[int], *, sampling: Sampling, seed: int, end: int | None = None
) -> Iterator[int]:
    """The tokens that follow a prompt of at least one token, without end unless the model says `end`.

    The random numbers of the n-th new token depend on seed and n alone.
    """
    tokens = list(prompt)
    assert tokens, "a prompt has at least one token"
    root, number, filled = jax.random.key(seed), 0, config.context
    while True:
        key = jax.random.fold_in(root, number)
        if filled == config.context:
            window = tokens[-config.context :] if number == 0 else tokens[-(config.context // 2 + 1) :]
            padded_BT = np.zeros((1, _bucket(len(window), config.context)), np.int32)
            padded_BT[0, : len(window)] = window
            length_B = np.array([len(window)], np.int32)
            token_B, cache = read_prompt(params, padded_BT, length_B, key, config=config, sampling=sampling)
            filled = len(window)
        else:
            token_B, cache = next_token(params, token_B, cache, key, config=config, sampling=sampling)
            filled += 1
        token = int(token_B[0])
        if token == end:
            return
        tokens.append(token)
        yield token
        number += 1


def _bucket(length: int, context: int) -> int:
    """Prompt lengths are rounded up to a power of two (at most the context) so that few shapes are compiled."""
    return min(max(16, 1 << (length - 1).bit_length()), context)

"""What the engine has the device do, each a compiled program: read prompts, draw, fill slots, decode, score.

A program is compiled once for each combination of shapes and static arguments; lengths are rounded up (`bucket_of`) so
that there are few.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding

from jaxgpt.config import GPTConfig
from jaxgpt.inference.sampling import Plan, Seen, Settings, choose
from jaxgpt.inference.served import on_heads
from jaxgpt.model.cache import KVCache, lengthened
from jaxgpt.model.gpt import Params, define
from jaxgpt.model.layers import Kernels

SHORTEST_PROMPT, SHORTEST_SPAN = 16, 128  # the smallest buckets, in tokens
MOST_LOGPROBS = 20  # alternatives a token is reported with at most


def bucket_of(length: int, shortest: int, context: int) -> int:
    """Lengths are rounded up to a power of two (at most the context) so that few shapes are compiled."""
    return min(max(shortest, 1 << (length - 1).bit_length()), context)


class Picked(NamedTuple):
    """What a step of the device drew, a row each; in `decode` with a leading axis of steps."""

    token: Any
    logprob: Any | None
    top: tuple[Any, Any] | None
    """The largest log-probabilities and their ids."""


@functools.partial(jax.jit, static_argnames=("config", "slots", "span", "sharding"))
def empty_cache(*, config: GPTConfig, slots: int, span: int, sharding: NamedSharding) -> KVCache:
    shape = (slots, config.heads, span, config.head_size)
    keys, values = (
        tuple(jnp.zeros(shape, config.compute_dtype) for _ in range(config.layers)) for _ in range(2)
    )
    return on_heads(KVCache(keys, values, jnp.zeros(slots, jnp.int32)), sharding)


@functools.partial(jax.jit, static_argnames=("span", "sharding"))
def longer_cache(cache: KVCache, *, span: int, sharding: NamedSharding) -> KVCache:
    return on_heads(lengthened(cache, span), sharding)


@functools.partial(jax.jit, static_argnames=("plan", "logprobs"))
def pick(
    logits_BV: Array,
    settings: Settings,
    seed_B: Array,
    number_B: Array,
    seen: Seen | None,
    *,
    plan: Plan,
    logprobs: bool,
) -> Picked:
    """The next token of every row."""
    token_B = choose(logits_BV, settings, seed_B, number_B, plan, seen)
    if not logprobs:
        return Picked(token_B, None, None)
    logprobs_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    top = jax.lax.top_k(logprobs_BV, min(MOST_LOGPROBS, logits_BV.shape[-1]))
    return Picked(
        token_B, jnp.take_along_axis(logprobs_BV, token_B[:, None], axis=-1)[:, 0], (top[0], top[1])
    )


@functools.partial(jax.jit, static_argnames=("config", "kernels"))
def prefill(
    params: Params, tokens_BT: Array, length_B: Array, *, config: GPTConfig, kernels: Kernels
) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
    """The logits [B, V] after each window, and the windows' keys and values. Padding stands on the right, unseen."""
    model = define(config, kernels=kernels)
    x_BTD, cache = model.hidden(params, tokens_BT, keep=True)
    assert cache is not None
    last_BD = jnp.take_along_axis(x_BTD, (length_B - 1)[:, None, None], axis=1)[:, 0]
    return model.unembed(params, last_BD), cache.keys, cache.values


@functools.partial(jax.jit, donate_argnames="cache", static_argnames="sharding")
def put(
    cache: KVCache,
    keys: tuple[Array, ...],
    values: tuple[Array, ...],
    slots: Array,
    *,
    sharding: NamedSharding,
) -> KVCache:
    """The cache with the windows' keys and values in these slots, from position 0."""

    def write(leaf_BHSK: Array, new_BHTK: Array) -> Array:
        for line in range(len(new_BHTK)):
            new = new_BHTK[line : line + 1].astype(leaf_BHSK.dtype)
            leaf_BHSK = jax.lax.dynamic_update_slice(leaf_BHSK, new, (slots[line], 0, 0, 0))
        return leaf_BHSK

    keys, values = jax.tree.map(write, (cache.keys, cache.values), (keys, values))
    return on_heads(KVCache(keys, values, cache.length_B), sharding)


@functools.partial(
    jax.jit,
    donate_argnames=("cache", "seen"),
    static_argnames=("config", "kernels", "plan", "most", "logprobs", "sharding"),
)
def decode(
    params: Params,
    cache: KVCache,
    seen: Seen | None,
    token_B: Array,
    left_B: Array,
    settings: Settings,
    seed_B: Array,
    number_B: Array,
    steps: Array,
    end: Array,
    *,
    config: GPTConfig,
    kernels: Kernels,
    plan: Plan,
    most: int,
    logprobs: bool,
    sharding: NamedSharding,
) -> tuple[KVCache, Seen | None, Picked, Array]:
    """Up to `steps` (at most `most`) tokens of every row that has any left; how many each got, in the last item.

    `token_B` is the newest token of each row, which its cache does not hold yet.
    """
    model = define(config, kernels=kernels)

    def read(cache: KVCache, seen: Seen | None, token_B: Array, number_B: Array) -> tuple[KVCache, Picked]:
        x_BTD, longer = model.hidden(params, token_B[:, None], cache=cache)
        assert longer is not None
        logits_BV = model.unembed(params, x_BTD[:, 0])
        return longer, pick(logits_BV, settings, seed_B, number_B, seen, plan=plan, logprobs=logprobs)

    def going_on(carry: Any) -> Array:
        step, *_, left_B, _, _ = carry
        return (step < steps) & (left_B > 0).any()

    def one_step(carry: Any) -> Any:
        step, cache, seen, token_B, number_B, left_B, made_B, picked = carry
        longer, one = read(cache, seen, token_B, number_B)
        active_B = left_B > 0
        cache = on_heads(longer, sharding)
        cache = KVCache(cache.keys, cache.values, jnp.where(active_B, longer.length_B, longer.length_B - 1))
        if seen is not None:
            seen = seen.after(one.token, active_B)
        picked = jax.tree.map(lambda all_, new: all_.at[step].set(new), picked, one)
        token_B = jnp.where(active_B, one.token, token_B)
        left_B = jnp.where(active_B & (token_B != end), left_B - 1, 0)
        return step + 1, cache, seen, token_B, number_B + active_B, left_B, made_B + active_B, picked

    shapes = jax.eval_shape(read, cache, seen, token_B, number_B)[1]
    picked = jax.tree.map(lambda leaf: jnp.zeros((most, *leaf.shape), leaf.dtype), shapes)
    start = (jnp.int32(0), cache, seen, token_B, number_B, left_B, jnp.zeros_like(left_B), picked)
    _, cache, seen, _, _, _, made_B, picked = jax.lax.while_loop(going_on, one_step, start)
    return cache, seen, picked, made_B


@functools.partial(jax.jit, static_argnames=("config", "kernels"))
def score(
    params: Params, tokens_1T: Array, *, config: GPTConfig, kernels: Kernels
) -> tuple[Array, Array, Array]:
    """Of each position of a text: the log-probability of the next token, and the most probable ones with their ids."""
    model = define(config, kernels=kernels)
    x_BTD, _ = model.hidden(params, tokens_1T)
    logprobs_TV = jax.nn.log_softmax(model.unembed(params, x_BTD[0]), axis=-1)
    next_T1 = jnp.roll(tokens_1T[0], -1)[:, None]
    return jnp.take_along_axis(logprobs_TV, next_T1, axis=-1)[:, 0], *jax.lax.top_k(
        logprobs_TV, min(MOST_LOGPROBS, config.vocab)
    )

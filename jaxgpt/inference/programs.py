"""What the engine has the device do, each a compiled program: read prompts, draw, fill slots, decode.

A program is compiled once for each combination of shapes and static arguments. Lengths are rounded up
(`bucket_of`) so that there are few combinations.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding

from jaxgpt.config import GPTConfig
from jaxgpt.inference.sampling import Biases, Plan, Seen, Settings, choose
from jaxgpt.inference.served import Served, on_heads
from jaxgpt.model.cache import KVCache, lengthened

SHORTEST_PROMPT, SHORTEST_SPAN = 16, 128  # the smallest buckets, in tokens
MOST_LOGPROBS = 20  # a token is reported with so many alternatives at most


def bucket_of(length: int, shortest: int, context: int) -> int:
    """Lengths are rounded up to a power of two (at most the context) so that few shapes are compiled."""
    return min(max(shortest, 1 << (length - 1).bit_length()), context)


class Picked(NamedTuple):
    """What the device drew, one entry for each row; `decode` gives arrays with a leading axis of steps."""

    token: Any
    logprob: Any | None
    top: tuple[Any, Any] | None
    """The largest log-probabilities of each row, and the ids of their tokens."""


@functools.partial(jax.jit, static_argnames=("config", "slots", "span", "heads"))
def empty_cache(*, config: GPTConfig, slots: int, span: int, heads: NamedSharding) -> KVCache:
    """A cache of this many rows and positions, with nothing in it.

    It is float32 on a CPU, which would convert all of it at each step.
    """
    shape = (slots, config.heads, span, config.head_size)
    assert isinstance(heads.mesh, Mesh)
    dtype = "float32" if heads.mesh.devices.flat[0].platform == "cpu" else config.compute_dtype
    keys, values = (tuple(jnp.zeros(shape, dtype) for _ in range(config.layers)) for _ in range(2))
    return on_heads(KVCache(keys, values, jnp.zeros(slots, jnp.int32)), heads)


@functools.partial(jax.jit, static_argnames=("span", "heads"))
def longer_cache(cache: KVCache, *, span: int, heads: NamedSharding) -> KVCache:
    """The same cache with room for more positions."""
    return on_heads(lengthened(cache, span), heads)


@functools.partial(jax.jit, static_argnames=("plan", "logprobs"))
def pick(
    logits_BV: Array,
    settings: Settings,
    seed_B: Array,
    number_B: Array,
    seen: Seen | None,
    biases: Biases | None,
    *,
    plan: Plan,
    logprobs: bool,
) -> Picked:
    """The next token of every row."""
    token_B = choose(logits_BV, settings, seed_B, number_B, plan, seen, biases)
    if not logprobs:
        return Picked(token_B, None, None)
    logprobs_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    top = jax.lax.top_k(logprobs_BV, min(MOST_LOGPROBS, logits_BV.shape[-1]))
    return Picked(
        token_B, jnp.take_along_axis(logprobs_BV, token_B[:, None], axis=-1)[:, 0], (top[0], top[1])
    )


@jax.jit
def prefill(
    served: Served, tokens_BT: Array, length_B: Array
) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
    """The logits [B, V] after each window, and the keys and values of the windows.

    Padding stands on the right, unseen.
    """
    last_BD, cache = read_prompt(served, tokens_BT, length_B)
    return served.model.unembed(served.params, last_BD), cache.keys, cache.values


def read_prompt(served: Served, tokens_BT: Array, length_B: Array) -> tuple[Array, KVCache]:
    """The hidden state [B, D] of the last token of each prompt, and a cache that holds the prompts and no
    more.

    To be called inside a compiled program. Padding stands on the right, unseen.
    """
    x_BTD, cache = served.model.hidden(served.params, tokens_BT, keep=True)
    assert cache is not None
    last_BD = jnp.take_along_axis(x_BTD, (length_B - 1)[:, None, None], axis=1)[:, 0]
    return last_BD, KVCache(cache.keys, cache.values, length_B)


@functools.partial(jax.jit, donate_argnames="cache", static_argnames="heads")
def put(
    cache: KVCache, keys: tuple[Array, ...], values: tuple[Array, ...], slots: Array, *, heads: NamedSharding
) -> KVCache:
    """The cache with the windows' keys and values in these slots, from position 0."""

    def write(leaf_BHSK: Array, new_BHTK: Array) -> Array:
        for line in range(len(new_BHTK)):
            new = new_BHTK[line : line + 1].astype(leaf_BHSK.dtype)
            leaf_BHSK = jax.lax.dynamic_update_slice(leaf_BHSK, new, (slots[line], 0, 0, 0))
        return leaf_BHSK

    keys, values = jax.tree.map(write, (cache.keys, cache.values), (keys, values))
    return on_heads(KVCache(keys, values, cache.length_B), heads)


@functools.partial(jax.jit, donate_argnames=("cache", "seen"), static_argnames=("plan", "most", "logprobs"))
def decode(
    served: Served,
    cache: KVCache,
    seen: Seen | None,
    token_B: Array,
    left_B: Array,
    settings: Settings,
    seed_B: Array,
    number_B: Array,
    steps: Array,
    end_BE: Array,
    biases: Biases | None,
    *,
    plan: Plan,
    most: int,
    logprobs: bool,
) -> tuple[KVCache, Seen | None, Picked, Array]:
    """Up to `steps` (at most `most`) more tokens of every row that has any left, and how many each row got.

    `token_B` is the newest token of each row, which its cache does not hold yet. A row that draws one
    of its ends gets no more.
    """
    model = served.model

    def read(cache: KVCache, seen: Seen | None, token_B: Array, number_B: Array) -> tuple[KVCache, Picked]:
        x_BTD, longer = model.hidden(served.params, token_B[:, None], cache=cache)
        assert longer is not None
        logits_BV = model.unembed(served.params, x_BTD[:, 0])
        return longer, pick(logits_BV, settings, seed_B, number_B, seen, biases, plan=plan, logprobs=logprobs)

    def going_on(carry: Any) -> Array:
        step, *_, left_B, _, _ = carry
        any_left: Array = (step < steps) & (left_B > 0).any()
        return any_left

    def one_step(carry: Any) -> Any:
        step, cache, seen, token_B, number_B, left_B, made_B, picked = carry
        longer, one = read(cache, seen, token_B, number_B)
        active_B = left_B > 0
        cache = served.on_heads(longer)
        cache = KVCache(cache.keys, cache.values, jnp.where(active_B, longer.length_B, longer.length_B - 1))
        if seen is not None:
            seen = seen.after(one.token, active_B)
        picked = jax.tree.map(lambda all_, new: all_.at[step].set(new), picked, one)
        token_B = jnp.where(active_B, one.token, token_B)
        ends_B = (token_B[:, None] == end_BE).any(axis=1)
        left_B = jnp.where(active_B & ~ends_B, left_B - 1, 0)
        return step + 1, cache, seen, token_B, number_B + active_B, left_B, made_B + active_B, picked

    shapes = jax.eval_shape(read, cache, seen, token_B, number_B)[1]
    picked = jax.tree.map(lambda leaf: jnp.zeros((most, *leaf.shape), leaf.dtype), shapes)
    start = (jnp.int32(0), cache, seen, token_B, number_B, left_B, jnp.zeros_like(left_B), picked)
    _, cache, seen, _, _, _, made_B, picked = jax.lax.while_loop(going_on, one_step, start)
    return cache, seen, picked, made_B

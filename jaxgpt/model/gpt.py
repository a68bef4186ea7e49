"""GPT-2 as a few pure functions: `define(config)` gives init, hidden, unembed and apply over a plain nested dict.

    params = {"wte": {"embedding"}, "wpe": {"embedding"}, "h": {...}, "ln_f": {"scale", "bias"}}

`h` holds the blocks stacked, one leaf a kind with a leading layer axis N; they then run under `lax.scan`. Where `h` is
a tuple of N single blocks (`unstack_blocks`), they run one after another: the same numbers, another trade of compile
time against speed. What is stored is always the stacked form.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxgpt.config import GPTConfig
from jaxgpt.model.attention import drop
from jaxgpt.model.block import Block, layer_norm
from jaxgpt.model.cache import KVCache
from jaxgpt.model.layers import AS_TRAINED, INIT_STD, Kernels, ServedEmbed, normal, rows_of, scores_of
from jaxgpt.model.positions import sinusoidal_positions

Params = dict[str, Any]


class GPT(nnx.Module):
    """What stands around the blocks: token and position embeddings below, final LayerNorm and output head above."""

    def __init__(self, config: GPTConfig, rngs: nnx.Rngs, kernels: Kernels = AS_TRAINED) -> None:
        self.config, self.turned = config, kernels.turned
        self.wte = _table(config, rngs, kernels)
        if config.position == "learned":
            self.wpe = nnx.Embed(config.context, config.width, embedding_init=normal(INIT_STD), rngs=rngs)
        self.ln_f = layer_norm(config, rngs)
        if not config.tied_head:
            self.lm_head = _table(config, rngs, kernels)

    def embed(self, tokens_BT: Array, positions_BT: Array, key: Array | None) -> Array:
        x_BTD = rows_of(self.wte, tokens_BT)
        if self.config.position == "learned":
            x_BTD = x_BTD + self.wpe.embedding[positions_BT]
        elif self.config.position == "sinusoidal":
            x_BTD = x_BTD + sinusoidal_positions(positions_BT, self.config.width)
        return drop(x_BTD.astype(self.config.compute_dtype), self.config.dropout, key)

    def unembed(self, x_BTD: Array) -> Array:
        flat_LD = x_BTD.reshape(-1, self.config.width)  # one leading axis: see layers.Linear
        logits_LV = scores_of(
            self.wte if self.config.tied_head else self.lm_head, flat_LD, turned=self.turned
        )
        real_V = jnp.arange(self.config.padded_vocab) < self.config.vocab
        logits_LV = jnp.where(jnp.broadcast_to(real_V, logits_LV.shape), logits_LV, -jnp.inf)
        return logits_LV.reshape(*x_BTD.shape[:-1], self.config.padded_vocab)


class Model(NamedTuple):
    """The model as pure functions of its parameters, a plain nested dict of float32 arrays."""

    init: Callable[[Array], Params]
    """init(key) -> params"""
    hidden: Callable[..., tuple[Array, KVCache | None]]
    """hidden(params, tokens_BT, *, positions_BT, segments_BT, cache, keep, key) -> (x_BTD, cache), before the head.

    `positions_BT` are 0..T-1 (after what the cache holds) unless given; `segments_BT` keeps packed texts apart;
    `key` turns dropout on. `keep` returns a cache that holds these tokens and has room for no more; with `cache`,
    which needs unstacked blocks, the tokens are written behind what each row holds. Token ids must be below the
    vocabulary and positions below the context and the cache's span: JAX does not check, callers do.
    """
    unembed: Callable[[Params, Array], Array]
    """unembed(params, x) -> float32 logits over the stored (padded) vocabulary; ids past the real one have -inf."""
    apply: Callable[..., Array]
    """apply(params, tokens_BT, *, positions_BT, segments_BT, key) -> float32 logits [B, T, V] over the vocabulary."""


def define(config: GPTConfig, *, remat: bool = False, kernels: Kernels = AS_TRAINED) -> Model:
    """The pure functions of this architecture.

    `remat` recomputes each block's activations in the backward pass. `kernels` says how the parameters they are given
    are laid out; other than as trained, only `hidden` and `unembed` make sense.
    """
    outside, _ = nnx.split(nnx.eval_shape(lambda: GPT(config, nnx.Rngs(0), kernels)), nnx.Param)
    inside, _ = nnx.split(nnx.eval_shape(lambda: Block(config, nnx.Rngs(0), kernels)), nnx.Param)

    # float32 means float32, also where the hardware would round its products' inputs to fewer bits by default.
    exactly = jax.default_matmul_precision("highest" if config.compute_dtype == "float32" else "default")

    def init(key: Array) -> Params:
        ends, blocks = jax.random.split(key)
        stacked = jax.vmap(lambda k: _parameters(Block(config, nnx.Rngs(k))))(
            jax.random.split(blocks, config.layers)
        )
        return _parameters(GPT(config, nnx.Rngs(ends))) | {"h": stacked}

    def run_block(block: Params, *arguments: Any) -> Any:
        return nnx.merge(inside, block)(*arguments)

    if remat:
        run_block = jax.checkpoint(run_block)

    @exactly
    def hidden(params, tokens_BT, *, positions_BT=None, segments_BT=None, cache=None, keep=False, key=None):
        if positions_BT is None:
            start_B1 = 0 if cache is None else cache.length_B[:, None]
            positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape) + start_B1
        model = nnx.merge(outside, {name: leaf for name, leaf in params.items() if name != "h"})
        x_BTD = model.embed(
            tokens_BT, positions_BT, None if key is None else jax.random.fold_in(key, config.layers)
        )
        x_BTD, new = _run_blocks(run_block, params["h"], x_BTD, positions_BT, segments_BT, cache, key, keep)
        if keep or cache is not None:
            before_B = 0 if cache is None else cache.length_B
            cache = KVCache(new[0], new[1], before_B + jnp.full(len(tokens_BT), tokens_BT.shape[1]))
        return model.ln_f(x_BTD).astype(config.compute_dtype), cache

    @exactly
    def unembed(params: Params, x: Array) -> Array:
        return nnx.merge(outside, {name: leaf for name, leaf in params.items() if name != "h"}).unembed(x)

    def apply(params, tokens_BT, *, positions_BT=None, segments_BT=None, key=None):
        x_BTD, _ = hidden(params, tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT, key=key)
        return unembed(params, x_BTD)[..., : config.vocab]

    return Model(init, hidden, unembed, apply)


def _run_blocks(run_block, blocks, x_BTD, positions_BT, segments_BT, cache, key, keep):
    """The residual stream behind the last block; and the keys and the values of every layer, where they are wanted."""

    def step(x_BTD, layer, block, cached=None):
        layer_key = None if key is None else jax.random.fold_in(key, layer)
        x_BTD, keys_values = run_block(block, x_BTD, layer, positions_BT, segments_BT, cached, layer_key)
        return x_BTD, keys_values if keep or cached is not None else None

    if not isinstance(blocks, tuple):
        assert cache is None, "decoding from a cache needs unstacked blocks"
        layers = jax.tree.leaves(blocks)[0].shape[0]
        x_BTD, stacked = jax.lax.scan(lambda x, xs: step(x, *xs), x_BTD, (jnp.arange(layers), blocks))
        return x_BTD, jax.tree.map(tuple, stacked) if keep else None
    news = []
    for layer, block in enumerate(blocks):
        cached = None if cache is None else (cache.keys[layer], cache.values[layer], cache.length_B)
        x_BTD, new = step(x_BTD, layer, block, cached)
        news.append(new)
    return x_BTD, tuple(zip(*news, strict=True)) if keep or cache is not None else None


def unstack_blocks(params: Params) -> Params:
    """The same parameters with `h` a tuple of single blocks, which run one after another."""
    layers = jax.tree.leaves(params["h"])[0].shape[0]
    return params | {"h": tuple(jax.tree.map(lambda leaf, n=n: leaf[n], params["h"]) for n in range(layers))}


def stack_blocks(params: Params) -> Params:
    """The inverse of `unstack_blocks`."""
    return params | {"h": jax.tree.map(lambda *leaves: jnp.stack(leaves), *params["h"])}


def _parameters(module: nnx.Module) -> Params:
    return nnx.to_pure_dict(nnx.split(module, nnx.Param)[1])


def _table(config: GPTConfig, rngs: nnx.Rngs, kernels: Kernels) -> nnx.Module:
    if kernels.int8:
        return ServedEmbed(config.padded_vocab, config.width)
    return nnx.Embed(config.padded_vocab, config.width, embedding_init=_padded_normal(config), rngs=rngs)


def _padded_normal(config: GPTConfig) -> nnx.Initializer:
    """Normal rows for the vocabulary, zero rows for the padding."""

    def initialise(key, shape, dtype=jnp.float32, out_sharding=None):
        rows_VD = INIT_STD * jax.random.normal(key, shape, dtype)
        return jnp.where(jnp.arange(shape[0])[:, None] < config.vocab, rows_VD, 0)

    return initialise

"""GPT-2 as a few pure functions: `define(config)` gives init, hidden, unembed and apply over a plain nested
dict.

    params = {"wte": {"embedding"}, "wpe": {"embedding"}, "h": {...}, "ln_f": {"scale", "bias"}}

`h` holds the blocks stacked, one leaf a kind with a leading layer axis N. They run under `lax.scan`, or one
after another where `unrolled` is asked for: the same numbers, another trade of compile time against speed. A
model laid out for serving has `h` as a tuple of N single blocks. What is stored is always the stacked form.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxgpt.config import GPTConfig, Keeps
from jaxgpt.model.block import Block, layer_norm
from jaxgpt.model.cache import Cached, KVCache
from jaxgpt.model.dropout import drop
from jaxgpt.model.initializers import embedding_init, linear_init
from jaxgpt.model.layers import AS_TRAINED, Layers
from jaxgpt.model.positions import sinusoidal_positions
from jaxgpt.model.pure import parameters, stacked, structure
from jaxgpt.model.stack import Params as Params
from jaxgpt.model.stack import keeping, run_blocks, unstacked, whole
from jaxgpt.parallel import NOWHERE, Placement


class GPT(nnx.Module):
    """What stands around the blocks: embeddings before them, a last LayerNorm and the output head behind."""

    def __init__(
        self, config: GPTConfig, rngs: nnx.Rngs, layers: Layers = AS_TRAINED, placement: Placement = NOWHERE
    ) -> None:
        self.config, self.placement = config, placement
        self.wte = layers.table(config, rngs)
        if config.position == "learned":
            self.wpe = nnx.Embed(
                config.context, config.width, embedding_init=embedding_init(config), rngs=rngs
            )
        self.ln_f = layer_norm(config, rngs)
        if not config.tied_head:
            self.lm_head = layers.table(config, rngs, head=True)
        if config.classes:
            kernel_init, _ = linear_init(config, config.width)
            self.score = nnx.Linear(
                config.width, config.classes, use_bias=False, kernel_init=kernel_init, rngs=rngs
            )

    def embed(self, tokens_BT: Array, positions_BT: Array, key: Array | None) -> Array:
        """The residual stream [B, T, D] in front of the first block."""
        x_BTD = self.wte.rows(tokens_BT)
        if self.config.position == "learned":
            x_BTD = x_BTD + self.wpe.embedding[positions_BT]
        elif self.config.position == "sinusoidal":
            x_BTD = x_BTD + sinusoidal_positions(positions_BT, self.config.width)
        x_BTD = self.placement("stream", x_BTD.astype(self.config.compute_dtype))
        return drop(x_BTD, self.config.dropout, key)

    def unembed(self, x_BTD: Array) -> Array:
        """float32 logits over the stored vocabulary; ids past the real one have -inf."""
        flat_LD = x_BTD.reshape(-1, self.config.width)  # one leading axis: see layers.Linear
        logits_LV = (self.wte if self.config.tied_head else self.lm_head).scores(flat_LD)
        logits_LV = self.placement("logits", logits_LV)
        if self.config.padded_vocab > self.config.vocab:
            # Added, not selected: XLA on CPU then makes no second array of this size.
            real_V = jnp.arange(self.config.padded_vocab) < self.config.vocab
            logits_LV = logits_LV + jnp.where(real_V, 0.0, -jnp.inf)[None, :]
        return logits_LV.reshape(*x_BTD.shape[:-1], self.config.padded_vocab)


class Hidden(Protocol):
    """hidden(params, tokens_BT, ...) -> (x_BTD, cache): everything before the output head."""

    def __call__(
        self,
        params: Params,
        tokens_BT: Array | np.ndarray,
        *,
        positions_BT: Array | None = None,
        segments_BT: Array | None = None,
        cache: KVCache | None = None,
        keep: bool = False,
        key: Array | None = None,
    ) -> tuple[Array, KVCache | None]:
        """The last hidden states [B, T, D], and a cache where one is given or asked for.

        `positions_BT` are 0..T-1, or what follows the cache, unless they are given. `segments_BT` keeps
        packed texts apart. `key` turns dropout on. `keep` returns a cache that holds these tokens and has no
        more room. With `cache`, which needs unstacked blocks, the tokens are written behind what each row
        holds.

        Token ids must be below the vocabulary, and positions below the context and the cache's span. JAX does
        not check that; callers do.
        """


class Apply(Protocol):
    """apply(params, tokens_BT, ...) -> logits: `unembed` after `hidden`, for callers without a cache."""

    def __call__(
        self,
        params: Params,
        tokens_BT: Array | np.ndarray,
        *,
        positions_BT: Array | None = None,
        segments_BT: Array | None = None,
        key: Array | None = None,
    ) -> Array:
        """float32 logits [B, T, V] over the vocabulary. The arguments are those of `Hidden`."""


class Inside(NamedTuple):
    """What a model computes on its way, layer by layer."""

    hidden_NBTD: Array
    """What `hidden` would give if the model ended after its first n blocks, for n from 0 to N, [N + 1, B, T,
    D]. `unembed` makes the logit lens of it: what the model would predict there. The last is what it does
    predict. Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    weights_NBHTT: Array
    """How much each position looks at each one in every layer and head, float32. A row adds up to 1."""


class Model(NamedTuple):
    """The model as pure functions of its parameters, a plain nested dict of float32 arrays."""

    init: Callable[[Array], Params]
    """init(key) -> params"""
    hidden: Hidden
    unembed: Callable[[Params, Array], Array]
    """unembed(params, x) -> float32 logits over the stored (padded) vocabulary; ids past the real one have
    -inf.
    """
    apply: Apply
    score: Callable[[Params, Array], Array]
    """score(params, x) -> float32 logits [..., C]: the head of a model with classes, as it is in Hugging
    Face's GPT2ForSequenceClassification.
    """
    inside: Callable[[Params, Array], Inside] | None = None
    """inside(params, tokens_BT) -> what the layers compute, without dropout. A compiled program computes only
    the half that it uses. None where an architecture does not have it (the encoder).
    """


def define(
    config: GPTConfig,
    *,
    keeps: Keeps = "all",
    unrolled: bool = False,
    layers: Layers = AS_TRAINED,
    placement: Placement = NOWHERE,
) -> Model:
    """The pure functions of this architecture.

    `keeps` says what the blocks keep for the backward pass (`model.stack`). `unrolled` runs stacked blocks
    one after another instead of scanning them: the same numbers, a longer compilation, often a faster step.
    `layers` makes the linear layers and the tables of tokens, and so decides how the parameters are laid out.
    `placement` says which devices compute; it decides how activations lie and which attention kernel runs.
    """
    functions = _Functions(config, keeps, unrolled, layers, placement)
    return Model(
        functions.init,
        functions.hidden,
        functions.unembed,
        functions.apply,
        functions.score,
        functions.inside,
    )


class _Functions:
    """The functions of a Model: methods, because all of them need what `define` was given."""

    def __init__(
        self, config: GPTConfig, keeps: Keeps, unrolled: bool, layers: Layers, placement: Placement
    ) -> None:
        self._config, self._unrolled, self._layers, self._placement = config, unrolled, layers, placement
        self._outside = structure(lambda: GPT(config, nnx.Rngs(0), layers, placement))
        inside = structure(lambda: Block(config, nnx.Rngs(0), layers, placement))

        def run_block(block: Params, *arguments: Any) -> tuple[Array, tuple[Array, Array]]:
            return nnx.merge(inside, whole(block, placement, config.compute_dtype))(*arguments)

        self._run_block = keeping(keeps, run_block, looped=not unrolled)
        self._inside = inside

    def init(self, key: Array) -> Params:
        config, layers = self._config, self._layers
        ends, blocks = jax.random.split(key)
        h = stacked(lambda rngs: Block(config, rngs, layers), config.layers, blocks)
        return parameters(GPT(config, nnx.Rngs(ends), layers)) | {"h": h}

    def hidden(
        self,
        params: Params,
        tokens_BT: Array | np.ndarray,
        *,
        positions_BT: Array | None = None,
        segments_BT: Array | None = None,
        cache: KVCache | None = None,
        keep: bool = False,
        key: Array | None = None,
    ) -> tuple[Array, KVCache | None]:
        def step(
            x_BTD: Array, layer: Array | int, block: Params, cached: Cached | None = None
        ) -> tuple[Array, tuple[Array, Array] | None]:
            layer_key = None if key is None else jax.random.fold_in(key, layer)
            x_BTD, new = self._run_block(block, x_BTD, layer, positions_BT, segments_BT, cached, layer_key)
            return x_BTD, new if keep or cached is not None else None

        with self._exactly():
            B, T = tokens_BT.shape
            if positions_BT is None:
                start_B1 = 0 if cache is None else cache.length_B[:, None]
                positions_BT = jnp.broadcast_to(jnp.arange(T), (B, T)) + start_B1
            model = self._around(params)
            first_key = None if key is None else jax.random.fold_in(key, self._config.layers)
            x_BTD = model.embed(jnp.asarray(tokens_BT), positions_BT, first_key)
            x_BTD, news = run_blocks(step, self._blocks(params), x_BTD, cache)
            if news is not None:
                before_B: Array | int = 0 if cache is None else cache.length_B
                cache = KVCache(*news, before_B + jnp.full(B, T))
            return model.ln_f(x_BTD).astype(self._config.compute_dtype), cache

    def inside(self, params: Params, tokens_BT: Array) -> Inside:
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)

        def step(
            x_BTD: Array, layer: Array | int, block: Params, cached: Cached | None = None
        ) -> tuple[Array, tuple[Array, Array]]:
            weights_BHTT = nnx.merge(self._inside, block).weights(x_BTD, layer, positions_BT)
            x_BTD, _ = self._run_block(block, x_BTD, layer, positions_BT, None, cached)
            return x_BTD, (x_BTD, weights_BHTT)

        with self._exactly():
            model = self._around(params)
            first_BTD = model.embed(jnp.asarray(tokens_BT), positions_BT, None)
            _, found = run_blocks(step, self._blocks(params), first_BTD, None)
            assert found is not None
            hidden_NBTD = model.ln_f(jnp.stack([first_BTD, *found[0]]))
            return Inside(hidden_NBTD.astype(self._config.compute_dtype), jnp.stack(found[1]))

    def unembed(self, params: Params, x: Array) -> Array:
        with self._exactly():
            return self._around(self._rounded(params)).unembed(x)

    def score(self, params: Params, x: Array) -> Array:
        with self._exactly():
            logits_C: Array = self._around(params).score(x.astype(jnp.float32))
            return logits_C

    def apply(
        self,
        params: Params,
        tokens_BT: Array | np.ndarray,
        *,
        positions_BT: Array | None = None,
        segments_BT: Array | None = None,
        key: Array | None = None,
    ) -> Array:
        x_BTD, _ = self.hidden(params, tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT, key=key)
        logits_BTV: Array = self.unembed(params, x_BTD)[..., : self._config.vocab]
        return logits_BTV

    def _blocks(self, params: Params) -> Params | tuple[Params, ...]:
        """The blocks as they are to be run."""
        apart = isinstance(params["h"], tuple)
        return unstacked(params["h"]) if self._unrolled and not apart else params["h"]

    def _exactly(self) -> AbstractContextManager[None]:
        """Matrix products of the precision that the compute dtype asks for."""
        precision: AbstractContextManager[None] = jax.default_matmul_precision(self._config.matmul_precision)
        return precision

    def _rounded(self, params: Params) -> Params:
        """The parameters, the output head's table in the compute dtype: rounded before it is gathered."""
        name = "wte" if self._config.tied_head else "lm_head"
        table_VD = params[name]["embedding"]
        if table_VD.dtype != jnp.float32:  # it is stored rounded
            return params
        table_VD = self._placement.settled(table_VD.astype(self._config.compute_dtype))
        return params | {name: params[name] | {"embedding": table_VD}}

    def _around(self, params: Params) -> GPT:
        """The model without its blocks, its tables gathered where they are split for storage."""
        rest = {name: leaf for name, leaf in params.items() if name != "h"}
        for name in ("wte", "wpe", "lm_head"):
            if name in rest:
                whole_VD = self._placement.gathered(f"{name}/embedding", rest[name]["embedding"])
                rest[name] = rest[name] | {"embedding": whole_VD}
        return nnx.merge(self._outside, rest)

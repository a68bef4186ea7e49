"""BERT's architecture: an encoder in which every token sees the whole text, before it and behind it.

    params = {"wte": {"embedding"}, "wpe": {"embedding"}, "ln_e": {...}, "h": {...}, "head": {...}}

`define(config)` gives the same functions as GPT's: `hidden` encodes texts, `unembed` is the head that guesses
hidden words, and `score` the head of a classifier (`pooler` and `score` in the parameters). So the losses,
the training step and classification work with it as they do with GPT. Two things are left out: BERT's task of
telling whether one text follows another, and with it the embeddings that tell the two texts apart.

Source: Devlin et al. 2019, BERT.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxgpt.config import EncoderConfig
from jaxgpt.model.block import ACTIVATIONS, layer_norm
from jaxgpt.model.cache import KVCache
from jaxgpt.model.dropout import drop
from jaxgpt.model.gpt import Model, Params
from jaxgpt.model.initializers import embedding_init
from jaxgpt.model.layers import AS_TRAINED
from jaxgpt.model.post_norm import PostNormBlock, run_blocks
from jaxgpt.model.pure import parameters, stacked, structure


class Head(nnx.Module):
    """A layer in front of the output table, and a bias for each token behind it."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs) -> None:
        self.activation = ACTIVATIONS[config.activation]
        self.dense = AS_TRAINED.linear(config.blocks, "head/dense", config.width, (config.width,), rngs)
        self.ln = layer_norm(config.blocks, rngs)
        self.bias = nnx.Param(jnp.zeros(config.vocab))

    def __call__(self, x_BTD: Array) -> Array:
        """What is compared with the embeddings of all tokens."""
        found_BTD: Array = self.ln(self.activation(self.dense(x_BTD)))
        return found_BTD


class Encoder(nnx.Module):
    """What stands around the blocks: embeddings with a LayerNorm before them, and the heads behind."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs) -> None:
        self.config, blocks = config, config.blocks
        self.wte = AS_TRAINED.table(blocks, rngs)
        self.wpe = nnx.Embed(config.context, config.width, embedding_init=embedding_init(blocks), rngs=rngs)
        self.ln_e = layer_norm(blocks, rngs)
        self.head = Head(config, rngs)
        if config.classes:
            self.pooler = AS_TRAINED.linear(blocks, "pooler", config.width, (config.width,), rngs)
            self.score = AS_TRAINED.linear(blocks, "score", config.width, (config.classes,), rngs)

    def embed(self, tokens_BT: Array, positions_BT: Array, key: Array | None) -> Array:
        """The states [B, T, D] in front of the first block."""
        x_BTD = self.wte.rows(tokens_BT) + self.wpe.embedding[positions_BT]
        return drop(self.ln_e(x_BTD), self.config.dropout, key)

    def unembed(self, x_BTD: Array) -> Array:
        """float32 logits [B, T, V] of the word that stands at each position."""
        flat_LD = self.head(x_BTD).reshape(-1, self.config.width)
        logits_LV = self.wte.scores(flat_LD) + self.head.bias[None]
        return logits_LV.reshape(*x_BTD.shape[:-1], self.config.vocab)

    def classify(self, x_BD: Array) -> Array:
        """float32 logits [B, C] of the classes, from the state of each text's first token."""
        return self.score(jnp.tanh(self.pooler(x_BD)))


def define(config: EncoderConfig) -> Model:
    """The pure functions of this architecture.

    Texts are padded on the right with `config.padding`, which no token of a text sees. `segments_BT`, where
    it is given, says instead which tokens belong together. An encoder decodes nothing, and has no cache.
    """
    outside = structure(lambda: Encoder(config, nnx.Rngs(0)))
    inside = structure(lambda: PostNormBlock(config.blocks, nnx.Rngs(0)))

    def around(params: Params) -> Encoder:
        return nnx.merge(outside, {name: leaf for name, leaf in params.items() if name != "h"})

    def init(key: Array) -> Params:
        ends, blocks = jax.random.split(key)
        h = stacked(lambda rngs: PostNormBlock(config.blocks, rngs), config.layers, blocks)
        return parameters(Encoder(config, nnx.Rngs(ends))) | {"h": h}

    def hidden(
        params: Params,
        tokens_BT: Array | np.ndarray,
        *,
        positions_BT: Array | None = None,
        segments_BT: Array | None = None,
        cache: KVCache | None = None,
        keep: bool = False,
        key: Array | None = None,
    ) -> tuple[Array, None]:
        assert cache is None and not keep, "an encoder has no cache"
        tokens_BT = jnp.asarray(tokens_BT)
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        if segments_BT is None:
            segments_BT = tokens_BT != config.padding
        keys = (None, None) if key is None else jax.random.split(key)
        x_BTD = around(params).embed(tokens_BT, positions_BT, keys[0])
        return run_blocks(inside, params["h"], x_BTD, segments_BT, key=keys[1]), None

    def apply(params: Params, tokens_BT: Array | np.ndarray, **rest: Any) -> Array:
        return around(params).unembed(hidden(params, tokens_BT, **rest)[0])

    return Model(
        init=init,
        hidden=hidden,
        unembed=lambda params, x_BTD: around(params).unembed(x_BTD),
        apply=apply,
        score=lambda params, x_BD: around(params).classify(x_BD),
    )

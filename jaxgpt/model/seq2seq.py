"""The original Transformer: an encoder reads one sequence, and a decoder writes another, one token at a time.

    params = {"wte": {"embedding"}, "encoder": {...}, "decoder": {...}}

Both hold their blocks stacked, as GPT does. One table embeds source and target, and scores the outputs, as in
the paper. Positions are sinusoidal, so nothing limits how long a sequence may be.

`Seq2Seq` is what every model of this kind is made of; `model.rnn` has another one. The decoder takes a
`Memory`, which is what the encoder made of the source, where GPT takes its cache.

Source: Vaswani et al. 2017, Attention Is All You Need.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxgpt.config import Seq2SeqConfig
from jaxgpt.model.dropout import drop
from jaxgpt.model.gpt import Params
from jaxgpt.model.mask import Mask
from jaxgpt.model.positions import sinusoidal_positions
from jaxgpt.model.post_norm import PostNormBlock, run_blocks
from jaxgpt.model.pure import parameters, stacked, structure


class Memory(NamedTuple):
    """What an encoder made of its source."""

    states_BSD: Array
    real_BS: Array
    """Where the source has a token and no padding."""


class Encode(Protocol):
    """encode(params, source_BS) -> memory."""

    def __call__(self, params: Params, source_BS: Array | np.ndarray, *, key: Array | None = None) -> Memory:
        """Read sources, each with one token at least. `key` turns dropout on."""


class Decode(Protocol):
    """decode(params, inputs_BT, memory) -> logits."""

    def __call__(
        self, params: Params, inputs_BT: Array | np.ndarray, memory: Memory, *, key: Array | None = None
    ) -> Array:
        """The float32 logits [B, T, V] of the token that follows each of the inputs.

        They depend on the inputs up to there, and on the memory. `key` turns dropout on.
        """


class Seq2Seq(NamedTuple):
    """A model that makes a sequence from a sequence, as pure functions of its parameters."""

    init: Callable[[Array], Params]
    """init(key) -> params"""
    encode: Encode
    decode: Decode


def define(config: Seq2SeqConfig) -> Seq2Seq:
    """The pure functions of the original Transformer."""
    blocks = config.blocks
    table = structure(lambda: nnx.Embed(config.vocab, config.width, rngs=nnx.Rngs(0)))
    encoder = structure(lambda: PostNormBlock(blocks, nnx.Rngs(0)))
    decoder = structure(lambda: PostNormBlock(blocks, nnx.Rngs(0), decoder=True))

    def init(key: Array) -> Params:
        keys = jax.random.split(key, 3)
        reads = stacked(lambda rngs: PostNormBlock(blocks, rngs), config.layers, keys[1])
        writes = stacked(lambda rngs: PostNormBlock(blocks, rngs, decoder=True), config.layers, keys[2])
        wte = parameters(nnx.Embed(config.vocab, config.width, rngs=nnx.Rngs(keys[0])))
        return {"wte": wte, "encoder": {"h": reads}, "decoder": {"h": writes}}

    def embed(params: Params, tokens_BT: Array, key: Array | None) -> Array:
        """Section 3.4: the embeddings are multiplied by the square root of the width."""
        x_BTD = nnx.merge(table, params["wte"])(tokens_BT) * math.sqrt(config.width)
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        return drop(x_BTD + sinusoidal_positions(positions_BT, config.width), config.dropout, key)

    def encode(params: Params, source_BS: Array | np.ndarray, *, key: Array | None = None) -> Memory:
        source_BS = jnp.asarray(source_BS)
        real_BS, keys = source_BS != config.padding, _split(key, 0)
        x_BSD = embed(params, source_BS, keys[0])
        return Memory(run_blocks(encoder, params["encoder"]["h"], x_BSD, real_BS, key=keys[1]), real_BS)

    def decode(
        params: Params, inputs_BT: Array | np.ndarray, memory: Memory, *, key: Array | None = None
    ) -> Array:
        inputs_BT, keys = jnp.asarray(inputs_BT), _split(key, 1)
        mask = Mask(causal=False, segments_BT=jnp.ones(inputs_BT.shape, bool), key_segments_BS=memory.real_BS)
        x_BTD = embed(params, inputs_BT, keys[0])
        shared = None, memory.states_BSD, mask
        x_BTD = run_blocks(decoder, params["decoder"]["h"], x_BTD, *shared, key=keys[1])
        return nnx.merge(table, params["wte"]).attend(x_BTD)

    return Seq2Seq(init, encode, decode)


def _split(key: Array | None, place: int) -> tuple[Array | None, Array | None]:
    """Two keys of the encoder (place 0) or the decoder (place 1), for the embeddings and for the blocks."""
    if key is None:
        return None, None
    first, second = jax.random.split(jax.random.fold_in(key, place))
    return first, second


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def write(model: Seq2Seq, params: Params, source_BS: Array | np.ndarray, begin: int, length: int) -> Array:
    """What the model writes for each source, [B, length]: the most probable token at each step.

    The decoder's first input is the token `begin`. It reads all that it has written again at each step, which
    is short to say and enough for short sequences. What stands behind an end token has no meaning.
    """
    memory = model.encode(params, source_BS)

    def step(number: Array, inputs_BT: Array) -> Array:
        logits_BV = model.decode(params, inputs_BT[:, :-1], memory)[:, number]
        return inputs_BT.at[:, number + 1].set(jnp.argmax(logits_BV, axis=-1))

    inputs_BT = jnp.full((source_BS.shape[0], length + 1), begin)
    written_BT: Array = jax.lax.fori_loop(0, length, step, inputs_BT)[:, 1:]
    return written_BT

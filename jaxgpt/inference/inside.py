"""What a model computes on its way through one text, for people to look at: attention, and the logit lens.

A text is padded to a power of two (`bucket_of`), so that few programs are compiled: one for each bucket, and
for each of the two views. What stands behind a token changes nothing before it.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from jaxgpt.errors import ConfigError
from jaxgpt.inference.programs import MOST_LOGPROBS, SHORTEST_PROMPT, bucket_of
from jaxgpt.inference.served import Served
from jaxgpt.model.gpt import Inside
from jaxgpt.text.batch import check_ids

ALTERNATIVES = 5  # tokens that the lens tells of in each place, unless asked otherwise


class Lens(NamedTuple):
    """What a model of N layers would write behind each token if it ended after its first n blocks.

    The axis of layers has N + 1 entries: the embedding alone comes first, and the whole model last.
    """

    logprobs_NTK: Any
    """The largest log-probabilities in each place, the largest first, in nats, float32 [N + 1, T, K]."""
    ids_NTK: Any
    """The tokens that have them."""


def attention_weights(served: Served, ids: Sequence[int], layer: int | None = None) -> np.ndarray:
    """How much each token looks at each one before it, in the heads of a layer, float32 [H, T, T].

    Without a `layer`, which counts from 0, those of all layers, [N, H, T, T]. A row adds up to 1. Raises
    ConfigError for more tokens than the context and for no such layer, DataError for ids of no token.
    """
    tokens_1T = _padded(served, ids)
    if layer is not None and not 0 <= layer < served.config.layers:
        last = served.config.layers - 1
        raise ConfigError(f"layer {layer}", why=f"the layers are 0 to {last}", fix="name one of these")
    weights_HTT = _weights(served, tokens_1T, None if layer is None else np.int32(layer))
    return np.asarray(weights_HTT)[..., : len(ids), : len(ids)]


def logit_lens(served: Served, ids: Sequence[int], alternatives: int = ALTERNATIVES) -> Lens:
    """What each layer would write behind each token of a text, which has at most as many as the context.

    `alternatives` is K, how many tokens are told of in each place: 1 to 20. Raises ConfigError and DataError.
    """
    if not 1 <= alternatives <= MOST_LOGPROBS:
        why, fix = f"it must be 1 to {MOST_LOGPROBS}", f"ask for at most {MOST_LOGPROBS}"
        raise ConfigError(f"alternatives = {alternatives}", why=why, fix=fix)
    lens = _lens(served, _padded(served, ids), most=min(alternatives, served.config.vocab))
    logprobs_NTK, ids_NTK = (np.asarray(leaf)[:, : len(ids)] for leaf in lens)
    return Lens(logprobs_NTK, ids_NTK)


def compile_attention(served: Served, ids: Sequence[int]) -> None:
    """Compile what `attention_weights` of a layer needs for this text, and run nothing."""
    _weights.lower(served, _padded(served, ids), np.int32(0)).compile()


def compile_lens(served: Served, ids: Sequence[int]) -> None:
    """Compile what `logit_lens` needs for this text, and run nothing."""
    _lens.lower(served, _padded(served, ids), most=min(ALTERNATIVES, served.config.vocab)).compile()


def _padded(served: Served, ids: Sequence[int]) -> np.ndarray:
    """The ids as one row of a bucket's length, with zeros behind them."""
    context = served.config.context
    if not 0 < len(ids) <= context:
        raise ConfigError(
            f"{len(ids)} tokens",
            why=f"1 to {context} can be looked at",
            fix=f"give a text of 1 to {context} tokens",
        )
    tokens_T = check_ids(np.asarray(ids, np.int32), served.config.vocab)
    return np.pad(tokens_T, (0, bucket_of(len(ids), SHORTEST_PROMPT, context) - len(ids)))[None]


def _inside(served: Served, tokens_1T: Array) -> Inside:
    inside = served.model.inside
    assert inside is not None, "only a GPT is served"
    return inside(served.params, tokens_1T)


@jax.jit
def _weights(served: Served, tokens_1T: Array, layer: Array | None) -> Array:
    weights_NHTT = _inside(served, tokens_1T).weights_NBHTT[:, 0]
    return weights_NHTT if layer is None else weights_NHTT[layer]


@functools.partial(jax.jit, static_argnames="most")
def _lens(served: Served, tokens_1T: Array, *, most: int) -> Lens:
    model = served.model
    hidden_NTD = _inside(served, tokens_1T).hidden_NBTD[:, 0]

    def of_layer(x_TD: Array) -> Lens:  # a layer at a time: only its logits exist
        logprobs_TV = jax.nn.log_softmax(model.unembed(served.params, x_TD), axis=-1)
        return Lens(*jax.lax.top_k(logprobs_TV, most))

    lens: Lens = jax.lax.map(of_layer, hidden_NTD)
    return lens

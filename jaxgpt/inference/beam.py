"""Beam search: the most probable continuation of one prompt, sought among a fixed number of hypotheses.

The prompt is read once, and its keys and values are copied to all beams (`_start`). Every further step reads
the newest token of each beam behind the cache row of the hypothesis that it continues (`_extend`). Shapes are
rounded up as in the engine, so that any mix of lengths compiles, for one number of beams, at most

    start: (number of bucket lengths) x (number of spans)     extend: number of spans
"""

import functools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgpt.config import GPTConfig
from jaxgpt.errors import ConfigError
from jaxgpt.inference.programs import SHORTEST_PROMPT, SHORTEST_SPAN, bucket_of, read_prompt
from jaxgpt.inference.served import Served
from jaxgpt.model.cache import KVCache, lengthened
from jaxgpt.text.batch import check_ids


@dataclass(frozen=True)
class Beam:
    """A continuation that was found."""

    tokens: tuple[int, ...]
    """Without the prompt and without the end token."""
    logprob: float
    """The log-probability of all its tokens together, the end token among them, in nats."""
    score: float
    """What it was ranked by: logprob / length**length_penalty. The length counts the end token."""
    finished: bool
    """Whether the end token ended it, and not max_new_tokens."""


class Candidates(NamedTuple):
    """The best continuations by one token, best first: from which beam, and with which token."""

    logprob_C: Array | np.ndarray
    """Of the whole hypothesis, in nats; -inf where there are fewer than were looked for."""
    parent_C: Array | np.ndarray
    token_C: Array | np.ndarray


class _Rows(NamedTuple):
    """The hypotheses that go on, best first; fewer than there are beams where there are no more."""

    texts: list[tuple[int, ...]]
    logprobs: list[float]
    parents: list[int]


def beam_search(
    served: Served,
    prompt: Sequence[int],
    *,
    beams: int,
    max_new_tokens: int,
    ends: Collection[int] = (),
    length_penalty: float = 1.0,
    results: int = 1,
) -> list[Beam]:
    """The `results` best continuations of a prompt, best first; fewer where the vocabulary allows no more.

    Each step takes the best continuations by one token: 2 x beams of them, and more where there are several
    `ends`. Those with one of the `ends` are finished where they are among the best `beams`; the best of the
    others go on. The search ends at `max_new_tokens`, where what still runs is ranked beside what has
    finished, or as soon as no continuation of the others can beat `results` finished ones. With one beam it
    is greedy decoding (with an end, at length_penalty 0).

    `length_penalty` 0 ranks by probability, 1 by the mean of the tokens' log-probabilities; larger values
    favour longer texts. Source: Wu et al. 2016, section 7, without its coverage penalty and with equation
    14's (5 + length)**penalty / 6**penalty simplified to length**penalty, as most implementations do.

    Raises ConfigError for what cannot be searched, DataError for ids of no token.
    """
    config = served.config
    _check(config, prompt, beams, max_new_tokens, length_penalty, results)
    span = bucket_of(len(prompt) + max_new_tokens, SHORTEST_SPAN, config.context)
    tokens_1T = np.zeros((1, bucket_of(len(prompt), SHORTEST_PROMPT, config.context)), np.int32)
    tokens_1T[0, : len(prompt)] = prompt
    length_1 = np.array([len(prompt)], np.int32)
    each = max(2, 1 + len(ends))  # so many that enough of them go on
    cache, found = _start(served, tokens_1T, length_1, beams=beams, span=span, each=each)
    rows, finished = _Rows([()], [0.0], [0]), list[Beam]()
    for length in range(1, max_new_tokens + 1):
        ended, rows = _sorted_out(jax.device_get(found), rows.texts, beams, ends, length**length_penalty)
        finished = _best([*finished, *ended], results)
        if length == max_new_tokens:
            break
        if _decided(finished, rows, results, length + 1, max_new_tokens, length_penalty):
            return finished
        cache, found = _extend(served, cache, *_arrays(rows, beams), each=each)
    pairs = zip(rows.texts, rows.logprobs, strict=True)
    unfinished = [Beam(text, logprob, logprob / length**length_penalty, False) for text, logprob in pairs]
    return _best([*finished, *unfinished], results)


def _check(
    config: GPTConfig,
    prompt: Sequence[int],
    beams: int,
    max_new_tokens: int,
    length_penalty: float,
    results: int,
) -> None:
    if not prompt:
        raise ConfigError("empty prompt", why="there is nothing to continue", fix="give at least one token")
    for holds, name, value, rule in (
        (beams >= 1, "beams", beams, "1 or more"),
        (max_new_tokens >= 1, "max_new_tokens", max_new_tokens, "1 or more"),
        (math.isfinite(length_penalty), "length_penalty", length_penalty, "finite"),
        (1 <= results <= beams, "results", results, f"from 1 to the number of beams, {beams}"),
    ):
        if not holds:
            fix = f"give a number that is {rule}"
            raise ConfigError(f"{name} = {value}", why=f"it must be {rule}", fix=fix)
    if len(prompt) + max_new_tokens > config.context:
        raise ConfigError(
            f"max_new_tokens = {max_new_tokens} after a prompt of {len(prompt)} tokens",
            why=f"the context is {config.context}, and a beam does not slide past it",
            fix="ask for fewer tokens, or shorten the prompt",
        )
    check_ids(np.asarray([prompt]), config.vocab)


def _sorted_out(
    found: Candidates, texts: list[tuple[int, ...]], beams: int, ends: Collection[int], norm: float
) -> tuple[list[Beam], _Rows]:
    """The candidates that have ended, with their scores, and those that go on.

    `norm` divides the log-probability.
    """
    ended, rows = list[Beam](), _Rows([], [], [])
    for place, (logprob, parent, token) in enumerate(zip(*(leaf.tolist() for leaf in found), strict=True)):
        if logprob == -math.inf:
            break
        if token in ends:
            if place < beams:  # as it would have been, had it not ended
                ended.append(Beam(texts[parent], logprob, logprob / norm, True))
        elif len(rows.texts) < beams:
            rows.texts.append((*texts[parent], token))
            rows.logprobs.append(logprob)
            rows.parents.append(parent)
    return ended, rows


def _best(beams: list[Beam], results: int) -> list[Beam]:
    return sorted(beams, key=lambda beam: -beam.score)[:results]


def _decided(
    finished: list[Beam], rows: _Rows, results: int, shortest: int, longest: int, penalty: float
) -> bool:
    """Whether no continuation of what still runs can come among the results.

    More tokens never raise a log-probability, so that the best imaginable continuation adds 0 to it, at the
    length that suits its score best.
    """
    if not rows.texts:
        return True
    attainable = max(rows.logprobs[0] / shortest**penalty, rows.logprobs[0] / longest**penalty)
    return len(finished) == results and finished[-1].score >= attainable


def _arrays(rows: _Rows, beams: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parents, newest tokens and log-probabilities of all beams; beams without a hypothesis have -inf."""
    parent_B, token_B = np.zeros(beams, np.int32), np.zeros(beams, np.int32)
    logprob_B = np.full(beams, -np.inf, np.float32)
    count = len(rows.texts)
    parent_B[:count], token_B[:count] = rows.parents, [text[-1] for text in rows.texts]
    logprob_B[:count] = rows.logprobs
    return parent_B, token_B, logprob_B


def _candidates(served: Served, x_BD: Array, logprob_B: Array, each: int) -> Candidates:
    """The `each` x B best continuations of B hypotheses, given their log-probabilities and last states."""
    totals_BV = logprob_B[:, None] + jax.nn.log_softmax(served.model.unembed(served.params, x_BD), axis=-1)
    B, V = totals_BV.shape
    logprob_C, place_C = jax.lax.top_k(totals_BV.reshape(-1), min(each * B, B * V))
    return Candidates(logprob_C, place_C // V, place_C % V)


@functools.partial(jax.jit, static_argnames=("beams", "span", "each"))
def _start(
    served: Served, tokens_1T: Array, length_1: Array, *, beams: int, span: int, each: int
) -> tuple[KVCache, Candidates]:
    """The prompt's keys and values in the row of every beam, and the best first tokens.

    Padding stands on the right.
    """
    last_1D, cache = read_prompt(served, tokens_1T, length_1)
    last_BD = jnp.broadcast_to(last_1D, (beams, served.config.width))
    # All beams are the same hypothesis yet, so that only one of them counts.
    logprob_B = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf)
    found = _candidates(served, last_BD, logprob_B, each)
    copied = jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=0), cache)
    return served.on_heads(lengthened(copied, span)), found


@functools.partial(jax.jit, donate_argnames="cache", static_argnames="each")
def _extend(
    served: Served, cache: KVCache, parent_B: Array, token_B: Array, logprob_B: Array, *, each: int
) -> tuple[KVCache, Candidates]:
    """Each beam continues its parent's row by a token. Returns the cache, and the best tokens to follow."""
    cache = jax.tree.map(lambda leaf: leaf[parent_B], cache)
    x_BTD, longer = served.model.hidden(served.params, token_B[:, None], cache=cache)
    assert longer is not None
    return served.on_heads(longer), _candidates(served, x_BTD[:, 0], logprob_B, each)

"""How probable given texts are: the log-probabilities of many spans, in few passes over the device.

Texts of about the same length are read side by side, up to TOKENS tokens in a call of the device. Rows are
padded to a power of two (`bucket_of`). Logits are made only for the tokens that are scored, CHUNK of them at
a time. The number of rows in a call is a power of four, or as many as TOKENS allows, so that any mix of texts
compiles at most

    (number of bucket lengths) x (number of powers of four up to TOKENS / SHORTEST_PROMPT)

programs, and as many again where one alternative is asked for, and where several are.
"""

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from jaxgpt.errors import ConfigError
from jaxgpt.inference.programs import MOST_LOGPROBS, SHORTEST_PROMPT, bucket_of
from jaxgpt.inference.served import Served
from jaxgpt.parallel import ROWS, P
from jaxgpt.text.batch import check_ids
from jaxgpt.text.examples import Example, padded
from jaxgpt.training.loss import cross_entropy

TOKENS = 4096  # read in a call of the device at most, unless a single text is longer
CHUNK = 128  # scored tokens whose logits exist at one time


class SpanScore(NamedTuple):
    """What a model finds of the tokens of a text from `start` on, each of them given all tokens before it."""

    logprobs_T: Any
    """float32 log-probabilities, in nats."""
    greedy_T: Any
    """Whether each token is the most probable one: the one that greedy decoding takes."""
    top: tuple[Any, Any] | None
    """The largest log-probabilities at each place and their ids, both [T, K]; None unless asked for."""


def score_spans(
    served: Served,
    spans: Sequence[tuple[Sequence[int], int]],
    *,
    alternatives: int = 0,
    barred: Collection[int] = (),
    show: Callable[[int, int], None] = lambda *_: None,
) -> list[SpanScore]:
    """Score the tokens of each text from its start on; `spans` are pairs (ids, start).

    The first token of a text has nothing before it and cannot be scored: `start` is 1 or more. `alternatives`
    is how many of the most probable tokens are told of at each place. Greedy decoding does not take the
    `barred` ids as the first token that is scored of a text. `show` is called with how many texts are scored
    and how many there are. Raises ConfigError for texts that cannot be scored, DataError for ids outside the
    vocabulary.
    """
    examples = [Example(*span) for span in spans]
    _check(served, examples, alternatives)
    scores: list[SpanScore] = [_nothing(alternatives)] * len(examples)
    done = 0
    for bucket, group in _groups(examples, served.config.context):
        show(done, len(examples))
        done += len(group)
        rows = _rows_for(len(group), bucket)
        found = score_together(
            served, [examples[n] for n in group], bucket, rows=rows, alternatives=alternatives, barred=barred
        )
        for n, score in zip(group, found, strict=True):
            scores[n] = score
    show(len(examples), len(examples))
    return scores


def score_together(
    served: Served,
    examples: Sequence[Example],
    length: int,
    *,
    rows: int,
    alternatives: int = 0,
    barred: Collection[int] = (),
) -> list[SpanScore]:
    """Score texts in one call of the device, padded to `rows` rows of `length` predictions.

    The rows are split over the model's mesh where they divide by its devices. The texts must fit, and their
    ids are not checked: `score_spans` does that.
    """
    batch = padded(examples, length, rows=rows)
    place_S = np.flatnonzero(batch.weights_BT)
    ends = np.cumsum([len(example.ids) - example.start for example in examples])
    begins = [0, *ends[:-1].tolist()]
    found = _score(
        served,
        _placed(batch.inputs_BT, served),
        _filled(place_S, batch.weights_BT.size),
        _filled(batch.targets_BT.reshape(-1)[place_S], batch.weights_BT.size),
        np.int32(len(place_S)),
        _barred(barred, begins, batch.weights_BT.size, served.config.vocab) if barred else None,
        most=alternatives if alternatives < 2 else min(MOST_LOGPROBS, served.config.vocab),
    )
    found = jax.tree.map(np.asarray, found)
    return [_cut(found, begin, end, alternatives) for begin, end in zip(begins, ends.tolist(), strict=True)]


def row_shards(served: Served) -> int:
    """Over how many devices the rows of a batch can be split: those of the mesh but for its tensor axis."""
    return int(served.mesh.shape["data"] * served.mesh.shape["fsdp"])


def _barred(ids: Collection[int], begins: Sequence[int], size: int, vocab: int) -> tuple[np.ndarray, ...]:
    """Which of the scored tokens are the first of their text, and which ids are barred there."""
    first_S, barred_V = np.zeros(size, bool), np.zeros(vocab, bool)
    first_S[list(begins)], barred_V[list(ids)] = True, True
    return first_S, barred_V


def _placed(tokens_BT: np.ndarray, served: Served) -> Any:
    shards = row_shards(served)
    if shards == 1 or len(tokens_BT) % shards:
        return tokens_BT
    return jax.device_put(tokens_BT, NamedSharding(served.mesh, ROWS))


def _check(served: Served, examples: Sequence[Example], alternatives: int) -> None:
    longest = served.config.context + 1
    for number, example in enumerate(examples):
        if not 1 <= example.start <= len(example.ids) <= longest:
            raise ConfigError(
                f"text {number}, {len(example.ids)} tokens scored from {example.start} on",
                why=f"1 to {longest} tokens can be scored, from the second one on",
                fix="shorten the text at its beginning, or start later",
            )
        check_ids(np.asarray(example.ids), served.config.vocab)
    if not 0 <= alternatives <= MOST_LOGPROBS:
        raise ConfigError(
            f"alternatives = {alternatives}",
            why=f"it must be 0 to {MOST_LOGPROBS}",
            fix=f"ask for at most {MOST_LOGPROBS}",
        )


def _groups(examples: Sequence[Example], context: int) -> Iterator[tuple[int, list[int]]]:
    """The numbers of the texts that are read together, shorter ones first, and the bucket that fits them."""
    by_bucket: dict[int, list[int]] = {}
    for n, example in enumerate(examples):
        if example.start < len(example.ids):  # otherwise nothing is asked for
            by_bucket.setdefault(bucket_of(example.length, SHORTEST_PROMPT, context), []).append(n)
    for bucket, group in sorted(by_bucket.items()):
        most = _most_rows(bucket)
        for begin in range(0, len(group), most):
            yield bucket, group[begin : begin + most]


def _most_rows(bucket: int) -> int:
    return max(1, TOKENS // bucket)


def _rows_for(count: int, bucket: int) -> int:
    """The number of rows of a call: a power of four, at most as many as are read together."""
    rows = 1
    while rows < count:
        rows *= 4
    return min(rows, _most_rows(bucket))


def _filled(values_S: np.ndarray, size: int) -> np.ndarray:
    """int32 [size], with zeros behind the values."""
    return np.pad(values_S.astype(np.int32), (0, size - len(values_S)))


def _nothing(alternatives: int) -> SpanScore:
    """The score of no tokens."""
    none_TK = np.zeros((0, alternatives))
    top = (none_TK.astype(np.float32), none_TK.astype(np.int32)) if alternatives else None
    return SpanScore(np.zeros(0, np.float32), np.zeros(0, bool), top)


def _cut(found: SpanScore, begin: int, end: int, alternatives: int) -> SpanScore:
    """The part of the scores that belongs to one text."""
    top = None
    if found.top is not None:
        values_SK, ids_SK = found.top
        top = values_SK[begin:end, :alternatives], ids_SK[begin:end, :alternatives]
    return SpanScore(found.logprobs_T[begin:end], found.greedy_T[begin:end], top)


@functools.partial(jax.jit, static_argnames="most")
def _score(
    served: Served,
    tokens_BT: Array,
    place_S: Array,
    target_S: Array,
    count: Array,
    barred: tuple[Array, Array] | None,
    *,
    most: int,
) -> SpanScore:
    """Scores of `count` targets, each predicted at a place among the B x T positions of the batch, with the
    `most` most probable tokens there.

    `place_S` and `target_S` are as long as there are positions, so that there is one program for a shape of
    the batch; what stands behind `count` is passed over.
    """
    model, S = served.model, place_S.shape[0]
    x_BTD, _ = model.hidden(served.params, tokens_BT)
    x_LD = x_BTD.reshape(-1, x_BTD.shape[-1])
    size = min(CHUNK, S)

    def chunk_at(begin: Array) -> SpanScore:
        place_C, target_C = (jax.lax.dynamic_slice(of_S, (begin,), (size,)) for of_S in (place_S, target_S))
        logits_CV = model.unembed(served.params, x_LD[place_C])
        top = None
        if most:
            values_CK, ids_CK = jax.lax.top_k(jax.nn.log_softmax(logits_CV, axis=-1), most)
            top = values_CK, ids_CK
        logprobs_C = -cross_entropy(logits_CV, target_C)
        if barred is not None:
            first_C = jax.lax.dynamic_slice(barred[0], (begin,), (size,))
            barred_V = jnp.pad(barred[1], (0, logits_CV.shape[-1] - barred[1].size))  # to the stored rows
            logits_CV = jnp.where(first_C[:, None] & barred_V[None], -jnp.inf, logits_CV)
        return SpanScore(logprobs_C, jnp.argmax(logits_CV, axis=-1) == target_C, top)

    def one_more(step: Array, scores: SpanScore) -> SpanScore:
        begin = jnp.minimum(step * size, S - size)  # the last chunk may overlap the one before it
        longer: SpanScore = jax.tree.map(
            lambda all_S, new_C: jax.lax.dynamic_update_slice_in_dim(all_S, new_C, begin, axis=0),
            scores,
            chunk_at(begin),
        )
        return longer

    shapes: Any = jax.eval_shape(chunk_at, jnp.int32(0))
    empty = jax.tree.map(lambda leaf: jnp.zeros((S, *leaf.shape[1:]), leaf.dtype), shapes)
    scores: SpanScore = jax.lax.fori_loop(0, -(-count // size), one_more, empty)
    everywhere = NamedSharding(served.mesh, P())  # so that each of several processes can read them
    replicated: SpanScore = jax.lax.with_sharding_constraint(scores, everywhere)
    return replicated

"""Pairs of answers as batches: both answers behind the same question, and their reference. NumPy alone."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgpt.finetuning.dialogue_batches import ended, row_length, spoken
from jaxgpt.inference.templates import Template
from jaxgpt.text.batch import Batch, Origin
from jaxgpt.text.examples import Example, padded
from jaxgpt.text.preferences import Pair
from jaxgpt.text.shown import Shown, shown_texts
from jaxgpt.text.tokenizer import Tokenizer

EncodedPair = tuple[Example, Example]
"""The question with the chosen answer, and with the rejected one. Only the answers are scored."""


class PairBatch(NamedTuple):
    """Pairs of answers. Any array library's arrays. Of each axis of 2, the first is the chosen answer."""

    sequences: Batch
    """The question with each answer, in arrays of the shape [B, 2, T]."""
    reference_B2: Any
    """The log-probability that the model gave to each answer before training, float32, in nats."""
    weight_B: Any
    """How much each pair counts, float32; 0 for rows that only fill the batch."""


def encode_pairs(
    pairs: Sequence[Pair], template: Template, tokenizer: Tokenizer, *, context: int
) -> tuple[list[EncodedPair], int]:
    """Write pairs in a template, as ids. Returns those that fit the context, and the number of the others."""
    found: list[EncodedPair] = []
    for pair in pairs:
        asked = spoken(pair.prompt, template)
        prompt = template.ids(asked)
        chosen, rejected = (
            Example(prompt + ended(template.answer_ids(asked, answer), tokenizer), len(prompt))
            for answer in (pair.chosen, pair.rejected)
        )
        if max(chosen.length, rejected.length) <= context:
            found.append((chosen, rejected))
    return found, len(pairs) - len(found)


def shown_pairs(
    batch: PairBatch,
    losses_B2T: np.ndarray,
    *,
    tokenizer: Tokenizer,
    mean: bool,
    loss: Callable[[np.ndarray], Any],
) -> list[Shown]:
    """The answers of a batch, the chosen and the rejected one of each pair, with the loss of each token.

    A title has the answer's log-probability, and how far it is above that of the reference: the `mean` over
    the answer's tokens, or their sum. The loss of a text is that of its pair, which `loss` makes of the
    changes of the two log-probabilities, [B, 2].
    """
    weights_B2T = np.asarray(batch.sequences.weights_BT)
    logprob_B2 = -np.sum(losses_B2T * weights_B2T, axis=-1)
    if mean:
        logprob_B2 /= np.maximum(weights_B2T.sum(axis=-1), 1)
    change_B2 = logprob_B2 - np.asarray(batch.reference_B2)
    loss_B, texts = np.asarray(loss(change_B2)), list[Shown]()
    for row in np.flatnonzero(np.asarray(batch.weight_B) > 0):
        pair = Batch(*(np.asarray(array)[row] for array in batch.sequences[:3]))
        for place, shown in enumerate(shown_texts(pair, losses_B2T[row], tokenizer)):
            logprob, change = logprob_B2[row, place], change_B2[row, place]
            title = f"pair {row + 1}, {('chosen', 'rejected')[place]} answer, log-probability {logprob:.4f} "
            title += f"({change:+.4f} since step 0), loss of the pair"
            texts.append(Shown(title, shown.tokens, float(loss_B[row])))
    return texts


class PairRows:
    """Rows of pairs, each row padded to the same length as the others of its batch."""

    def __init__(self, pairs: Sequence[EncodedPair], *, context: int) -> None:
        """Take the pairs. The log-probabilities of the reference are 0 in their batches."""
        self._pairs, self._context = pairs, context
        self._reference = functools.cache(lambda count: np.zeros((count, 2), np.float32))

    def with_reference(self, read: Callable[[int], np.ndarray]) -> "PairRows":
        """The same pairs with a reference. `read(pairs)` gives the log-probabilities of them all, [pairs, 2].

        It is called when a batch is first asked for.
        """
        rows = PairRows(self._pairs, context=self._context)
        rows._reference = functools.cache(read)
        return rows

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def tokens(self) -> int:
        """The number of tokens that are read in all pairs together, without padding."""
        return sum(example.length for pair in self._pairs for example in pair)

    def batch(self, numbers: Sequence[int], start: int, stop: int) -> PairBatch:
        """Rows `start` to `stop` - 1 of the batch of the pairs with these numbers. -1 is an empty row."""
        present = [self._pairs[number] for number in numbers if number >= 0]
        length = row_length((example.length for pair in present for example in pair), self._context)
        mine = [number for number in numbers[start:stop] if number >= 0]
        examples = [example for number in mine for example in self._pairs[number]]
        flat = padded(examples, length, rows=2 * (stop - start))
        sequences = Batch(*(array.reshape(stop - start, 2, length) for array in flat[:3]))
        reference_B2 = np.zeros((stop - start, 2), np.float32)
        reference_B2[: len(mine)] = self._reference(len(self._pairs))[mine]
        weight_B = (np.arange(stop - start) < len(mine)).astype(np.float32)
        return PairBatch(sequences, reference_B2, weight_B)

    def origin(self, number: int) -> Origin:
        """Which pair a row is. The pairs are counted from 1."""
        return Origin({"pair": number + 1}, [list(example.ids) for example in self._pairs[number]])

"""Texts with a class each, as batches: padded on the right, to few different lengths. NumPy alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxgpt.text.batch import Origin
from jaxgpt.text.order import shuffled
from jaxgpt.text.shown import Shown, token_texts
from jaxgpt.text.tokenizer import Tokenizer

SHORTEST = 16  # the smallest length that rows are padded to, in tokens


class TextBatch(NamedTuple):
    """Texts, padded on the right. Any array library's arrays."""

    inputs_BT: Any
    """Token ids, int32."""
    length_B: Any
    """How many of them belong to the text, at least 1."""
    label_B: Any
    """The class of each text."""
    weight_B: Any
    """How much each text counts, float32; 0 for rows that only fill the batch."""


class Encoded(NamedTuple):
    """Texts as token ids, with the classes that they belong to."""

    ids: list[list[int]]
    labels: list[int]
    cut: int
    """How many texts were longer than the context. Their ends are left out."""

    @property
    def longest(self) -> int:
        """The number of tokens of the longest text."""
        return max(map(len, self.ids), default=0)


def encoded(texts: Sequence[str], labels: Sequence[int], tokenizer: Tokenizer, *, context: int) -> Encoded:
    """Encode texts, each cut to the first `context` tokens."""
    ids = tokenizer.encode_batch(texts)
    return Encoded([text[:context] for text in ids], list(labels), sum(len(text) > context for text in ids))


def padding_of(tokenizer: Tokenizer) -> int:
    """The id that fills rows: the end of text, as transformers expects it, or 0 where there is none."""
    return 0 if tokenizer.end_of_text is None else tokenizer.end_of_text


@dataclass(frozen=True, kw_only=True)
class Rows:
    """How texts are put into rows of a common length."""

    context: int
    """The most tokens that a row may have."""
    padding: int
    """The id that fills a row behind its text."""
    length: int | None = None
    """The length of every row. None means the next power of two, so that few shapes are compiled."""

    def length_for(self, data: Encoded, numbers: Sequence[int]) -> int:
        """The length of the rows in which these texts fit. -1 stands for no text."""
        longest = max((len(data.ids[number]) for number in numbers if number >= 0), default=1)
        return self.length or min(max(SHORTEST, 1 << (longest - 1).bit_length()), self.context)

    def batch(self, data: Encoded, numbers: Sequence[int], length: int) -> TextBatch:
        """These texts as rows of `length` tokens. The row of -1 only fills the batch."""
        inputs_BT = np.full((len(numbers), length), self.padding, np.int32)
        length_B, label_B = np.ones(len(numbers), np.int32), np.zeros(len(numbers), np.int32)
        weight_B = np.zeros(len(numbers), np.float32)
        for row, number in enumerate(numbers):
            if number >= 0:
                ids = data.ids[number]
                inputs_BT[row, : len(ids)] = ids
                length_B[row], label_B[row], weight_B[row] = len(ids), data.labels[number], 1
        return TextBatch(inputs_BT, length_B, label_B, weight_B)


def shown_texts(
    batch: TextBatch, losses_B: np.ndarray, *, labels: Sequence[str], tokenizer: Tokenizer
) -> list[Shown]:
    """The texts of a batch, each with its label and its loss. Its tokens have no losses of their own."""
    texts = []
    for row in np.flatnonzero(np.asarray(batch.weight_B) > 0):
        ids = [int(token) for token in batch.inputs_BT[row, : int(batch.length_B[row])]]
        tokens = [(text, None) for text in token_texts(ids, tokenizer)]
        title = f"row {row + 1}, {labels[int(batch.label_B[row])]}"
        texts.append(Shown(title, tokens, float(losses_B[row])))
    return texts


class TrainingTexts:
    """The endless, shuffled sequence of batches. Every epoch has each text once, in an order of its own."""

    def __init__(self, data: Encoded, form: Rows, *, sequences: int, seed: int) -> None:
        """Take the texts. A batch has `sequences` of them, in rows of this form."""
        self._data, self._form, self._sequences, self._seed = data, form, sequences, seed

    def rows(self, step: int, start: int, stop: int) -> TextBatch:
        """Rows `start` to `stop` - 1 of the batch of a step, which is counted from 0."""
        numbers = self._numbers(step)
        return self._form.batch(self._data, numbers[start:stop], self._form.length_for(self._data, numbers))

    def origins(self, step: int) -> list[Origin]:
        """Which text each row of the batch of a step is. The training texts are counted from 1."""
        return [Origin({"text": number + 1}, [self._data.ids[number]]) for number in self._numbers(step)]

    def _numbers(self, step: int) -> list[int]:
        places = range(step * self._sequences, (step + 1) * self._sequences)
        return shuffled(places, len(self._data.ids), self._seed)

"""Batches of sliding windows over a token stream, shuffled with Grain; a pure function of (data, seed, step).

A window holds `context` tokens and the token after them. The inputs are all but the last, and the targets all
but the first, as in the book. The next window starts `stride` tokens later.
"""

from dataclasses import dataclass

import grain
import numpy as np

from jaxgpt.errors import DataError
from jaxgpt.text.batch import Batch, Origin, check_ids, shifted
from jaxgpt.text.shards import TokenStream


def window_starts(tokens: int, context: int, stride: int) -> range:
    """Return where the windows of a stream start: every `stride` tokens, if context + 1 tokens are left."""
    return range(0, tokens - context, stride)


@dataclass(frozen=True)
class Windows:
    """All windows of a stream: `windows[i]` is int32 [context + 1]."""

    stream: TokenStream
    context: int
    stride: int
    vocab: int

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(window_starts(len(self.stream), self.context, self.stride))

    def __getitem__(self, number: int) -> np.ndarray:
        """Return a window. Raises DataError for an id outside the vocabulary."""
        start = number * self.stride
        return check_ids(self.stream.read(start, start + self.context + 1), self.vocab)

    def origin(self, number: int) -> Origin:
        """Return where a window was read."""
        file, token = self.stream.place(number * self.stride)
        return Origin({"file": file, "token": token}, [self[number].tolist()])


class TrainingBatches:
    """The endless, shuffled sequence of global batches.

    Every epoch has each window once, in an order of its own. Batch n holds rows n * sequences to (n + 1) *
    sequences of the shuffled windows, for any number of processes: a run's place in its data is one integer.
    """

    def __init__(
        self, stream: TokenStream, *, context: int, stride: int, sequences: int, seed: int, vocab: int
    ) -> None:
        """Take the stream; a batch has `sequences` windows. Raises DataError without a whole window."""
        self._windows = Windows(stream, context, stride, vocab)
        self.windows, self.sequences = len(self._windows), sequences
        if self.windows == 0:
            raise _too_short("training", len(stream), context + 1)
        self._order = grain.MapDataset.source(range(self.windows)).seed(seed).shuffle().repeat()

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Return rows `start` to `stop` - 1 of the global batch of a step, which is counted from 0."""
        return shifted(np.stack([self._windows[number] for number in self._numbers(step, start, stop)]))

    def origins(self, step: int) -> list[Origin]:
        """Return where each row of the global batch of a step was read."""
        return [self._windows.origin(number) for number in self._numbers(step, 0, self.sequences)]

    def _numbers(self, step: int, start: int, stop: int) -> list[int]:
        """Return the numbers of the windows in these rows of a step."""
        first = step * self.sequences
        return [int(self._order[first + row]) for row in range(start, stop)]


class ValidationBatches:
    """Every token of a stream once, in order, in windows side by side; the end is padded with weight 0."""

    def __init__(self, stream: TokenStream, *, context: int, sequences: int, vocab: int) -> None:
        """Take the stream; a batch has `sequences` windows. Raises DataError for fewer than two tokens."""
        if len(stream) < 2:
            raise _too_short("validation", len(stream), 2)
        self._stream, self._context, self.sequences, self._vocab = stream, context, sequences, vocab

    def __len__(self) -> int:
        """Return the number of batches."""
        windows = len(range(0, len(self._stream) - 1, self._context))
        return -(-windows // self.sequences)

    def rows(self, number: int, start: int, stop: int) -> Batch:
        """Return rows `start` to `stop` - 1 of batch `number`."""
        T = self._context
        windows_BT1 = np.zeros((stop - start, T + 1), np.int32)
        weights_BT = np.zeros((stop - start, T), np.float32)
        for row in range(stop - start):
            begin = (number * self.sequences + start + row) * T
            tokens = self._stream.read(min(begin, len(self._stream)), min(begin + T + 1, len(self._stream)))
            windows_BT1[row, : len(tokens)] = check_ids(tokens, self._vocab)
            weights_BT[row, : max(len(tokens) - 1, 0)] = 1
        return shifted(windows_BT1, weights_BT)


def _too_short(split: str, tokens: int, needed: int) -> DataError:
    return DataError(
        f"{split} split of {tokens} tokens",
        why=f"{needed} are needed for one prediction at this context",
        fix="use more text or choose a smaller --model.context",
    )

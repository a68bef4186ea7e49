"""A long text read in windows: each of its tokens is scored once, after as much context as the stride leaves.

A window has room for `context` tokens and the prediction of the token after them. The next window begins
`stride` tokens later, and there only the tokens are scored that no window before it has scored. With a stride
of the whole context, windows stand side by side, and the first tokens of each have little context. A small
stride gives every token but the first ones at least context - stride tokens of context, and reads the text
context / stride times.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxgpt.errors import ConfigError, DataError
from jaxgpt.evaluation.validation import Between
from jaxgpt.inference.programs import SHORTEST_PROMPT, bucket_of
from jaxgpt.inference.scoring import row_shards, score_spans, score_together
from jaxgpt.inference.served import Served
from jaxgpt.text.batch import check_ids
from jaxgpt.text.examples import Example
from jaxgpt.text.shards import TokenStream

# Small pieces stay in a CPU's caches (docs/measurements.md).
BATCH_TOKENS = 2048  # tokens of the text that go through the model at a time, or one window
GROUP = 1024  # windows of documents that are sorted by length together


class Window(NamedTuple):
    """Tokens `begin` to `stop` - 1 of a text are read, and those from `start` on are scored."""

    begin: int
    stop: int
    start: int


class Losses(NamedTuple):
    """What the tokens cost that were scored in each window, or in each document."""

    nats_W: np.ndarray
    """The sum of their losses, float64."""
    tokens_W: np.ndarray
    """How many were scored."""

    @property
    def nats(self) -> float:
        """The loss of all tokens together."""
        return float(self.nats_W.sum())

    @property
    def tokens(self) -> int:
        """How many tokens were scored."""
        return int(self.tokens_W.sum())

    def per(self, counts_W: np.ndarray) -> tuple[float, float]:
        """The loss of one unit, such as a token or a word, and its standard error over the windows.

        `counts_W` has the units of each window. The error is that of a ratio of two sums (W. Cochran,
        Sampling Techniques, section 2.11); with a single window it is unknown, which is NaN.
        """
        mean, n = self.nats_W.sum() / counts_W.sum(), len(counts_W)
        if n < 2:
            return float(mean), float("nan")
        apart_W = self.nats_W - mean * counts_W
        return float(mean), float(np.sqrt(n / (n - 1) * (apart_W**2).sum()) / counts_W.sum())


def windows_of(tokens: int, context: int, stride: int, *, full_last: bool = False) -> Iterator[Window]:
    """The windows in which all of so many tokens but the first are scored, each once.

    The last window is as long as there are tokens left. With `full_last` it begins earlier and is full, which
    changes what it reads and not what it scores.
    """
    start, begin = 1, 0
    while start < tokens:
        stop = min(begin + context + 1, tokens)
        yield Window(max(0, stop - context - 1) if full_last else begin, stop, start)
        start, begin = stop, begin + stride


def check_stride(stride: int | None, context: int) -> int:
    """The stride, or the whole context where none is given. Raises ConfigError for one outside 1 to context.

    A larger one would leave tokens out.
    """
    if stride is not None and not 1 <= stride <= context:
        raise ConfigError(
            f"stride = {stride}",
            why=f"the model's context is {context} tokens",
            fix=f"give a stride from 1 to {context}, or none to put windows side by side",
        )
    return stride or context


def window_losses(
    served: Served,
    tokens: TokenStream,
    *,
    stride: int | None = None,
    full_last: bool = False,
    show: Between = lambda *_: None,
) -> Losses:
    """The losses of all tokens but the first, window by window.

    `show` is called before the first batch, which compiles, and after each. Raises DataError for fewer than
    two tokens and for ids outside the vocabulary, ConfigError for an impossible stride.
    """
    if len(tokens) < 2:
        raise DataError(
            f"a text of {len(tokens)} tokens",
            why="two are needed, since nothing predicts the first one",
            fix="give more text",
        )
    context = served.config.context
    stride = check_stride(stride, context)
    windows = list(windows_of(len(tokens), context, stride, full_last=full_last))
    length = bucket_of(min(len(tokens) - 1, context), SHORTEST_PROMPT, context)
    rows = _rows(len(windows), length, row_shards(served))
    batches, nats = -(-len(windows) // rows), []
    show(0, batches)
    for number in range(batches):
        group = windows[number * rows : (number + 1) * rows]
        examples = [_example(tokens, window, served.config.vocab) for window in group]
        scores = score_together(served, examples, length, rows=rows)
        nats += [-score.logprobs_T.sum(dtype=np.float64) for score in scores]
        show(number + 1, batches)
    return Losses(np.array(nats), np.array([window.stop - window.start for window in windows]))


def mean_of_batch_means(losses: Losses, context: int, batch: int) -> tuple[float, float, int]:
    """The book's loss over a loader: the mean of the means of batches of `batch` whole windows each.

    A last batch of fewer windows counts as much as the others, and tokens behind the last whole window are
    left out (S. Raschka, Build a Large Language Model From Scratch, section 5.1.3, `calc_loss_loader`).
    Returns the loss in nats a token, its standard error over the batches, and how many tokens it is of. The
    losses are those of windows side by side. Raises DataError without a whole window.
    """
    means_W = losses.nats_W[losses.tokens_W == context] / context
    if not len(means_W):
        raise DataError(
            f"a text of {losses.tokens + 1} tokens",
            why=f"the protocol `book` scores whole windows, and one needs {context + 1} tokens",
            fix="give more text, or take the protocol `tokens`",
        )
    means = np.array([means_W[begin : begin + batch].mean() for begin in range(0, len(means_W), batch)])
    error = means.std(ddof=1) / np.sqrt(len(means)) if len(means) > 1 else np.nan
    return float(means.mean()), float(error), len(means_W) * context


def document_losses(
    served: Served,
    documents: Sequence[Sequence[int]],
    *,
    stride: int | None = None,
    full_last: bool = False,
    show: Between = lambda *_: None,
) -> Losses:
    """The losses of documents, each read alone, in windows where it is long; a number for each document.

    The first id of a document is read and not scored: begin each with the id that begins a text. `show` is
    called with how many windows are scored and how many there are. Raises what `window_losses` raises.
    """
    context = served.config.context
    stride = check_stride(stride, context)
    places = [
        (number, window)
        for number, ids in enumerate(documents)
        for window in windows_of(len(ids), context, stride, full_last=full_last)
    ]
    nats_W, tokens_W = np.zeros(len(documents)), np.zeros(len(documents), np.int64)
    for begin in range(0, len(places), GROUP):
        show(begin, len(places))
        group = places[begin : begin + GROUP]
        spans = [
            (documents[number][window.begin : window.stop], window.start - window.begin)
            for number, window in group
        ]
        for (number, _), score in zip(group, score_spans(served, spans), strict=True):
            nats_W[number] -= score.logprobs_T.sum(dtype=np.float64)
            tokens_W[number] += len(score.logprobs_T)
    show(len(places), len(places))
    return Losses(nats_W, tokens_W)


def _rows(windows: int, length: int, shards: int) -> int:
    """How many windows are read together: a multiple of the devices that they are split over."""
    rows = min(max(1, BATCH_TOKENS // length), windows)
    return -(-rows // shards) * shards


def _example(tokens: TokenStream, window: Window, vocab: int) -> Example:
    ids = check_ids(tokens.read(window.begin, window.stop), vocab)
    return Example(ids.tolist(), window.start - window.begin)

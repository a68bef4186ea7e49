"""The texts of a batch as a person reads them: token by token, each with its loss."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxgpt.text.batch import Batch
from jaxgpt.text.tokenizer import Tokenizer


class Shown(NamedTuple):
    """A text of a batch."""

    title: str
    """Where it stands in the batch, and what else there is to say of it."""
    tokens: Sequence[tuple[str, float | None]]
    """Its tokens, each with its loss in nats; None for a token that is not scored."""
    loss: float
    """The mean loss of what is scored, in nats."""


def shown_texts(batch: Batch, losses_BT: np.ndarray, tokenizer: Tokenizer) -> list[Shown]:
    """The texts of a batch of sequences. Each text of a packed row stands alone; padding is left out."""
    texts = []
    for row in range(batch.inputs_BT.shape[0]):
        segments_T = None if batch.segments_BT is None else np.asarray(batch.segments_BT[row])
        parts = [None] if segments_T is None else sorted(set(segments_T.tolist()) - {0})
        for number, segment in enumerate(parts, start=1):
            scored_T = np.asarray(batch.weights_BT[row]) > 0
            within_T = np.ones_like(scored_T) if segment is None else segments_T == segment
            if not np.any(scored_T & within_T):
                continue
            first, last = np.flatnonzero(within_T)[0], np.flatnonzero(scored_T & within_T)[-1]
            span = slice(first, last + 1)
            ids = [int(batch.inputs_BT[row, first]), *map(int, batch.targets_BT[row, span])]
            losses = [None, *_losses(losses_BT[row, span], scored_T[span])]
            tokens = list(zip(token_texts(ids, tokenizer), losses, strict=True))
            title = f"row {row + 1}" + (f", text {number}" if len(parts) > 1 else "")
            texts.append(Shown(title, tokens, float(np.mean([loss for loss in losses if loss is not None]))))
    return texts


def token_texts(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    r"""The text of each token. Of a token that holds a part of a character, the bytes are shown: `\xe2`."""
    return [tokenizer.decode_bytes([token]).decode("utf-8", errors="backslashreplace") for token in ids]


def _losses(losses_T: np.ndarray, scored_T: np.ndarray) -> list[float | None]:
    return [float(loss) if scored else None for loss, scored in zip(losses_T, scored_T, strict=True)]

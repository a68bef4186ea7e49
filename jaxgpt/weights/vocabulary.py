"""The vocabulary of a model grows by special tokens, with rows of its embedding and its head for them."""

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from jaxgpt.errors import ConfigError
from jaxgpt.text.special_tokens import with_special_tokens
from jaxgpt.weights.formats.huggingface import EMBEDDING, HEAD
from jaxgpt.weights.tensors import StoredModel, Tensor


def with_tokens(model: StoredModel, tokens: Sequence[str]) -> StoredModel:
    """Return the model with further special tokens, whose ids follow those of its tokenizer.

    The row of a new token is the mean of the rows of all ids that the tokenizer had. A model which has rows
    to spare behind them gets no more rows. Raises ConfigError for a model without a tokenizer, and what
    `with_special_tokens` raises.

    Source: Hewitt 2021, Initializing new word embeddings for pretrained language models. With the mean, no
    text becomes much less probable than before.
    """
    before = model.tokenizer
    if before is None:
        raise ConfigError(
            "the model has no tokenizer",
            why="there is nothing that new tokens could be added to",
            fix="put the model's tokenizer.json beside its weights",
        )
    after = with_special_tokens(before, tokens)
    rows, tensors = max(model.config.vocab, after.vocab), dict(model.tensors)
    for name in (EMBEDDING, HEAD):
        if name in tensors:
            tensors[name] = _with_mean_rows(tensors[name], before.used_ids, before.vocab, after.vocab, rows)
    told = ", ".join(f"{text} {after.special_ids[text]}" for text in tokens)
    return dataclasses.replace(
        model,
        config=dataclasses.replace(model.config, vocab=rows),
        tensors=tensors,
        tokenizer=after,
        notes=(*model.notes, f"special tokens and their ids: {told}; each row is the mean of the old rows"),
    )


def _with_mean_rows(tensor: Tensor, used: Collection[int], begin: int, end: int, rows: int) -> Tensor:
    """The tensor with `rows` rows, of which those from `begin` to `end` - 1 are the mean of the used ones."""

    def read() -> np.ndarray:
        old = tensor.read()
        new = np.concatenate([old, np.zeros((rows - len(old), *old.shape[1:]), old.dtype)])
        new[begin:end] = old[sorted(used)].mean(axis=0, dtype=np.float64).astype(old.dtype)
        return new

    return Tensor((rows, *tensor.shape[1:]), tensor.dtype, read)

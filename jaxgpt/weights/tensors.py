"""A tensor that still lies in a file, and a model made of such tensors.

Numbers are read only when asked for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import ml_dtypes
import numpy as np

from jaxgpt.config import GPTConfig
from jaxgpt.errors import DataError
from jaxgpt.text.tokenizer import Tokenizer

# The dtypes a parameter can be stored in, by the names that `--dtype` and our own files use.
DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
FLOATS = frozenset({*DTYPES.values(), np.dtype(np.float64)})  # what a file of weights may hold


@dataclass(frozen=True)
class Tensor:
    """The shape and dtype of a tensor, and a function that reads it.

    Views of a tensor are tensors too. Only `read` touches the numbers.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    """Returns the numbers as an array of that shape and dtype. Raises DataError when the file is damaged."""
    source: object = None
    """Where the numbers lie. Two tensors whose sources are equal, and not None, hold the same numbers."""

    @staticmethod
    def of(array: np.ndarray) -> "Tensor":
        """Return a tensor whose numbers are already in memory."""
        return Tensor(array.shape, array.dtype, lambda: array)

    def raw(self) -> memoryview:
        """Read the numbers and return them as bytes, in row-major order."""
        return bytes_of(self.read())

    def transposed(self) -> "Tensor":
        """Return the matrix (in, out) of a matrix (out, in), or the other way round."""
        return Tensor(self.shape[::-1], self.dtype, lambda: self.read().T)

    def reshaped(self, *shape: int) -> "Tensor":
        """Return the same numbers in another shape of equal size."""
        return Tensor(shape, self.dtype, lambda: self.read().reshape(shape))


def bytes_of(array: np.ndarray) -> memoryview:
    """Return an array's numbers as bytes in row-major order, without a copy if they already lie that way."""
    return array.reshape(-1).view(np.uint8).data


class Head(NamedTuple):
    """What the head of a classifier means."""

    labels: tuple[str, ...]
    """The label of each class."""
    reads: str = "last"
    """What the head reads of a text, as `ClassifyConfig.reads` says it."""


@dataclass(frozen=True)
class StoredModel:
    """A GPT-2 that lies in some file. Every reader returns one, and every writer takes one."""

    config: GPTConfig
    tensors: Mapping[str, Tensor]
    """By GPT-2's names, in the layouts of `weights.names`: matrices are (in, out), without padding rows."""
    tokenizer: Tokenizer | None = None
    """The tokenizer that belongs to the weights, or None when there is none."""
    stated_ends: frozenset[int] = frozenset()
    """The ids that end a text, as the model's files state them; without any, see `ends`."""
    templates: Mapping[str, str] = field(default_factory=dict)
    """Its chat templates by their names (`text.chat_template`)."""
    notes: tuple[str, ...] = ()
    """What a reader or writer had to assume, add or leave out, in sentences for the person who asked."""

    head: Head | None = None
    """What the head of a classifier means. None for a language model."""

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end a text: those that the model's files state, or else the tokenizer's."""
        return self.stated_ends or (self.tokenizer.ends if self.tokenizer else frozenset())

    @property
    def dtype(self) -> np.dtype:
        """The dtype of all tensors.

        Raises DataError when they have several, or one we do not compute with.
        """
        kinds = {tensor.dtype for tensor in self.tensors.values()}
        if len(kinds) > 1 or not kinds <= set(DTYPES.values()):
            raise DataError(
                "cannot use the dtypes of these weights",
                why=f"they are {', '.join(sorted(map(str, kinds)))}",
                fix=f"cast them to one of {', '.join(DTYPES)} with `jaxgpt convert --dtype`",
            )
        return kinds.pop()

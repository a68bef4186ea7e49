"""A tensor that still lies in a file, and a model made of such tensors: nothing is read before it is asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from jaxgpt.config import GPTConfig
from jaxgpt.errors import DataError
from jaxgpt.text.tokenizer import Tokenizer

# The dtypes a parameter can be stored in, by the name that `--dtype` and our files use.
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
FLOATS = frozenset({*DTYPES.values(), np.dtype(np.float64)})  # what files may hold


@dataclass(frozen=True)
class Tensor:
    """Shape and dtype of a tensor, and how to read it. Views of it are tensors too; only `read` touches the numbers."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    """The numbers, as an array of that shape and dtype. Raises DataError when the file turns out to be damaged."""
    source: object = None
    """Where they lie; two tensors with equal sources, other than None, are the same numbers."""

    @staticmethod
    def of(array: np.ndarray) -> "Tensor":
        """A tensor whose numbers are in memory already."""
        return Tensor(array.shape, array.dtype, lambda: array)

    def raw(self) -> memoryview:
        """Its numbers as bytes, in row-major order."""
        return bytes_of(self.read())

    def transposed(self) -> "Tensor":
        """The matrix (in, out) of a matrix (out, in), and the other way."""
        return Tensor(self.shape[::-1], self.dtype, lambda: self.read().T)

    def reshaped(self, *shape: int) -> "Tensor":
        return Tensor(shape, self.dtype, lambda: self.read().reshape(shape))

    def cut(self, rows: int) -> "Tensor":
        """The first rows of it."""
        return Tensor((rows, *self.shape[1:]), self.dtype, lambda: self.read()[:rows])


def bytes_of(array: np.ndarray) -> memoryview:
    """An array's numbers as bytes, in row-major order; a view of them where they lie so."""
    return array.reshape(-1).view(np.uint8).data


@dataclass(frozen=True)
class StoredModel:
    """A GPT-2 that lies in some file: what every reader gives and every writer takes."""

    config: GPTConfig
    tensors: Mapping[str, Tensor]
    """By GPT-2's names, in the layouts of `weights.names`: matrices (in, out), no padding rows."""
    tokenizer: Tokenizer | None = None
    """The tokenizer that lies beside it, if one does."""
    notes: tuple[str, ...] = ()
    """What had to be assumed, added or left out, for people to see."""

    @property
    def dtype(self) -> np.dtype:
        """The dtype of all its tensors. Raises DataError where they have several, or one we do not compute with."""
        kinds = {tensor.dtype for tensor in self.tensors.values()}
        if len(kinds) > 1 or not kinds <= set(DTYPES.values()):
            raise DataError(
                "dtypes of the weights",
                why=f"they are {', '.join(sorted(map(str, kinds)))}",
                fix=f"cast them to one of {', '.join(DTYPES)}: jaxgpt convert --dtype",
            )
        return kinds.pop()

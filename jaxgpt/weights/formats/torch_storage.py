"""Where the numbers of a torch file lie: in storages, of which tensors are views.

A storage is a flat run of numbers of one dtype in the file. A tensor is an offset, a shape and strides into a
storage, which several tensors may share. Source: pytorch/pytorch, torch/_utils.py (`_rebuild_tensor_v2`).
"""

import math
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxgpt.errors import DataError, unreadable
from jaxgpt.weights.tensors import DTYPES, Tensor

# torch's name for a class of storages -> the dtype of their numbers
STORAGE_CLASSES = {
    "FloatStorage": DTYPES["float32"],
    "HalfStorage": DTYPES["float16"],
    "BFloat16Storage": DTYPES["bfloat16"],
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
MOST_AXES = 8
# The product of the sizes other than 0 may not be larger. NumPy refuses larger shapes even for empty arrays.
LARGEST_SHAPE = 1 << 48
CHUNK = 1 << 20  # bytes read at a time; they are still in the processor's cache when the checksum is computed


def refused(path: Path, why: str) -> DataError:
    """Return the error for anything that does not belong in a file of parameters saved by torch."""
    return DataError(
        "not a torch file we read",
        path=path,
        why=why,
        fix="fetch it again, or save the state dict alone with torch.save",
    )


def shown(text: str) -> str:
    """Return at most 80 printable characters of a text from a file."""
    return text[:80] if text[:80].isprintable() else ascii(text[:80])[:80]


@dataclass(frozen=True)
class Storage:
    """A storage as the pickle names it."""

    key: str
    dtype: np.dtype
    count: int

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self.count * self.dtype.itemsize


class Span(NamedTuple):
    """The bytes of a storage in the file."""

    start: int
    size: int
    crc32: int | None = None
    """The checksum of all these bytes, or None when the file has none."""


class Storages:
    """The storages of one file.

    The pickle names them first, then the file around it says where they lie, and then tensors are read.
    """

    def __init__(self, path: Path) -> None:
        """Begin without any storage; `path` is the file."""
        self.path = path
        self.named: dict[str, Storage] = {}
        self._spans: Mapping[str, Span] = {}
        self._sound: set[str] = set()

    def name(self, key: str, dtype: np.dtype, count: int) -> Storage:
        """Return the storage of this key.

        Raises DataError when it was named before with another dtype or size.
        """
        storage = Storage(key, dtype, count)
        if self.named.setdefault(key, storage) != storage:
            raise refused(self.path, f"its storage {key} is used in two ways")
        return storage

    def place(self, spans: Mapping[str, Span]) -> None:
        """Set where the storages lie. Raises DataError unless they are those named, in the sizes named."""
        if odd := sorted(spans.keys() ^ self.named.keys()):
            why = "is used by no tensor" if odd[0] in spans else "is not there"
            raise refused(self.path, f"its storage {odd[0]} {why}")
        for key, storage in self.named.items():
            if storage.size != spans[key].size:
                raise refused(self.path, f"its storage {key} has {spans[key].size} bytes, not {storage.size}")
        self._spans = spans

    def tensor(
        self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> Tensor:
        """Return a tensor of a storage; offset and strides are in elements.

        Raises DataError when the tensor reaches beyond its storage or uses a number of it twice.
        """
        if len(shape) > MOST_AXES or len(shape) != len(strides) or min(offset, *shape, *strides, 0) < 0:
            raise refused(self.path, "it has a tensor of impossible shape, strides or offset")
        if math.prod(max(size, 1) for size in shape) > LARGEST_SHAPE:
            raise refused(self.path, "it has a tensor larger than any memory")
        count = math.prod(shape)
        last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if count else -1
        # An expanded tensor (stride 0) can be larger than its storage, so a small file could fill memory.
        if offset + last >= storage.count + (not count) or count > storage.count:
            raise refused(self.path, f"it has a tensor outside its storage {storage.key}")
        if count and _overlaps(shape, strides):  # torch calls such a tensor expanded; no parameter is one
            raise refused(
                self.path, f"it has a tensor with numbers of its storage {storage.key} in several places"
            )
        view = _View(self, storage, offset, shape, strides, last + 1)
        return Tensor(
            shape, storage.dtype, view, source=(str(self.path), storage.key, offset, shape, strides)
        )

    def read(self, storage: Storage, first: int, count: int) -> np.ndarray:
        """Return `count` elements of a storage from `first` on.

        Raises DataError when its checksum is wrong.
        """
        span, numbers = self._spans[storage.key], np.empty(count, storage.dtype)
        try:
            with self.path.open("rb", buffering=0) as file:
                crc32 = span.crc32 if count == storage.count else None
                start = span.start + first * storage.dtype.itemsize
                sound = read_into(file, start, numbers.view(np.uint8), crc32) and (
                    count == storage.count or self._is_sound(file, storage.key)
                )
        except OSError as error:
            raise unreadable(self.path, error) from error
        if not sound:
            raise refused(self.path, f"its storage {storage.key} is damaged")
        # In NumPy a bool of another byte than 0 and 1 counts as true in one place and as false in another.
        if storage.dtype == np.bool_ and numbers.view(np.uint8).max(initial=0) > 1:
            raise refused(self.path, f"its storage {storage.key} holds other bytes than truth values")
        return numbers

    def _is_sound(self, file: FileIO, key: str) -> bool:
        """Return whether the checksum of a whole storage is right. It is computed once for all its parts."""
        span = self._spans[key]
        if span.crc32 is None or key in self._sound:
            return True
        file.seek(span.start)
        crc, left = 0, span.size
        while left and (chunk := file.read(min(left, CHUNK))):
            crc, left = zlib.crc32(chunk, crc), left - len(chunk)
        if left or crc != span.crc32:
            return False
        self._sound.add(key)
        return True


def _overlaps(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Return whether two places of a tensor may share a number.

    They may when an axis steps no further than the axes of smaller strides reach.
    """
    reach = 0
    for stride, size in sorted(
        (stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1
    ):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def read_into(file: BufferedReader | FileIO, start: int, numbers: np.ndarray, crc32: int | None) -> bool:
    """Fill an array of bytes from a place in the file.

    Return whether the file is long enough and, if `crc32` is given, the bytes have this checksum.
    """
    file.seek(start)
    rest, crc = numbers.data, 0

    def pass_over(chunk: memoryview) -> None:
        nonlocal crc
        crc = zlib.crc32(chunk, crc)

    with ThreadPoolExecutor(1) as second:  # computes the checksum while the next chunk is read
        while rest:
            size = file.readinto(rest[:CHUNK])
            if not size:
                return False
            if crc32 is not None:
                second.submit(pass_over, rest[:size])
            rest = rest[size:]
    return crc32 is None or crc == crc32


@dataclass(frozen=True)
class _View:
    """Reads one tensor, that is, the part of its storage that it spans."""

    storages: Storages
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    span: int
    """The number of elements from the first to the last, both included."""

    def __call__(self) -> np.ndarray:
        if not math.prod(self.shape):
            return np.empty(self.shape, self.storage.dtype)
        numbers = self.storages.read(self.storage, self.offset, self.span)
        if self._is_contiguous():
            return numbers.reshape(self.shape)
        # The stride of an axis of size 1 is never used, so it may be any number.
        steps = [
            n * numbers.itemsize if size > 1 else 0 for n, size in zip(self.strides, self.shape, strict=True)
        ]
        return np.lib.stride_tricks.as_strided(numbers, self.shape, steps, writeable=False).copy()

    def _is_contiguous(self) -> bool:
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size > 1 and stride != expected:
                return False
            expected *= size
        return True

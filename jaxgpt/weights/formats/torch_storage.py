"""Where the numbers of a torch file lie: storages, and tensors as views of them.

A storage is a flat run of numbers of one dtype in the file; a tensor is an offset, a shape and strides into one, and
several tensors may share it. Source: pytorch/pytorch, torch/_utils.py (`_rebuild_tensor_v2`).
"""

import math
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from jaxgpt.errors import DataError, StorageError
from jaxgpt.weights.tensors import DTYPES, Tensor

# torch's name of the class of a storage, and the dtype of its numbers
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
LARGEST_SHAPE = (
    1 << 48
)  # product of the sizes other than 0, so that an empty tensor's shape stays one numpy can have
CHUNK = 1 << 20  # bytes read at a time: still in the processor's cache when the checksum passes over them


def refused(path: Path, why: str) -> DataError:
    """The error for everything that a file of parameters saved by torch does not hold."""
    return DataError(
        "not a torch file we read", path=path, why=why, fix="fetch it again, or save a plain state dict"
    )


def shown(text: str) -> str:
    """At most 80 printable characters of what a file says."""
    return text[:80] if text[:80].isprintable() else ascii(text[:80])[:80]


@dataclass(frozen=True)
class Storage:
    """A storage as the pickle names it."""

    key: str
    dtype: np.dtype
    count: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.count * self.dtype.itemsize


class Span(NamedTuple):
    """The bytes of a storage in the file."""

    start: int
    size: int
    crc32: int | None = None
    """Checksum of all of them, where the container keeps one."""


class Storages:
    """The storages of one file: named by the pickle first, then placed by the container, then read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.named: dict[str, Storage] = {}
        self._spans: Mapping[str, Span] = {}
        self._sound: set[str] = set()

    def name(self, key: str, dtype: np.dtype, count: int) -> Storage:
        """The storage of this key. Raises DataError when it was named before as another."""
        storage = Storage(key, dtype, count)
        if self.named.setdefault(key, storage) != storage:
            raise refused(self.path, f"storage {key} is used in two ways")
        return storage

    def place(self, spans: Mapping[str, Span]) -> None:
        """Say where they lie. Raises DataError unless these are the storages named, in the sizes named."""
        if odd := sorted(spans.keys() ^ self.named.keys()):
            why = "no tensor uses it" if odd[0] in spans else "it is not there"
            raise refused(self.path, f"storage {odd[0]}: {why}")
        for key, storage in self.named.items():
            if storage.size != spans[key].size:
                raise refused(self.path, f"storage {key} has {spans[key].size} bytes, not {storage.size}")
        self._spans = spans

    def tensor(
        self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> Tensor:
        """A tensor of these numbers; offset and strides in elements. Raises DataError when it leaves its storage."""
        if len(shape) > MOST_AXES or len(shape) != len(strides) or min(offset, *shape, *strides, 0) < 0:
            raise refused(self.path, "a tensor of impossible shape, strides or offset")
        if math.prod(max(size, 1) for size in shape) > LARGEST_SHAPE:
            raise refused(self.path, "a tensor larger than any memory")
        count = math.prod(shape)
        last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if count else -1
        # An expanded tensor (stride 0) can have more elements than its storage: of a small file, without end.
        if offset + last >= storage.count + (not count) or count > storage.count:
            raise refused(self.path, f"a tensor outside its storage {storage.key}")
        if count and _overlaps(shape, strides):  # what torch calls expanded: no parameter is
            raise refused(
                self.path, f"a tensor that holds numbers of its storage {storage.key} in several places"
            )
        view = _View(self, storage, offset, shape, strides, last + 1)
        return Tensor(
            shape, storage.dtype, view, source=(str(self.path), storage.key, offset, shape, strides)
        )

    def read(self, storage: Storage, first: int, count: int) -> np.ndarray:
        """A run of elements of a storage. Raises DataError when its checksum is not the container's."""
        span, numbers = self._spans[storage.key], np.empty(count, storage.dtype)
        try:
            with self.path.open("rb", buffering=0) as file:
                crc32 = span.crc32 if count == storage.count else None
                start = span.start + first * storage.dtype.itemsize
                sound = read_into(file, start, numbers.view(np.uint8), crc32) and (
                    count == storage.count or self._is_sound(file, storage.key)
                )
        except OSError as error:
            raise StorageError("cannot read", path=self.path, why=str(error), fix="check the file") from error
        if not sound:
            raise refused(self.path, f"storage {storage.key} is damaged")
        # numpy takes any byte but 0 and 1 for both true and false.
        if storage.dtype == np.bool_ and numbers.view(np.uint8).max(initial=0) > 1:
            raise refused(self.path, f"storage {storage.key} holds other bytes than truth values")
        return numbers

    def _is_sound(self, file: BinaryIO, key: str) -> bool:
        """Pass over a whole storage of which only a part is wanted; once, as there may be many parts."""
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
    """Whether a number may stand in two places: an axis moves no further than those of smaller strides reach."""
    reach = 0
    for stride, size in sorted(
        (stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1
    ):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def read_into(file: BinaryIO, start: int, numbers: np.ndarray, crc32: int | None) -> bool:
    """Fill an array of bytes from a place in the file; whether it is long enough and, where given, has this CRC-32."""
    file.seek(start)
    rest, crc = numbers.data, 0

    def pass_over(chunk: memoryview) -> None:
        nonlocal crc
        crc = zlib.crc32(chunk, crc)

    with ThreadPoolExecutor(
        1
    ) as second:  # the checksum takes as long as reading does, and is computed behind it
        while rest:
            size = file.readinto(rest[:CHUNK])  # type: ignore[attr-defined]
            if not size:
                return False
            if crc32 is not None:
                second.submit(pass_over, rest[:size])
            rest = rest[size:]
    return crc32 is None or crc == crc32


@dataclass(frozen=True)
class _View:
    """Reads one tensor: the part of its storage that it spans."""

    storages: Storages
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    span: int
    """Elements from the first to the last, both included."""

    def __call__(self) -> np.ndarray:
        if not math.prod(self.shape):
            return np.empty(self.shape, self.storage.dtype)
        numbers = self.storages.read(self.storage, self.offset, self.span)
        if self._is_contiguous():
            return numbers.reshape(self.shape)
        # The stride of an axis of size 1 is never used, and may be any number.
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
